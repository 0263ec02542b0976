"""Gradient accumulation with one normalisation a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from every_layer import METHODS
from torch import nn
from torch.nn.utils import parametrize

import lipfuse
import lipfuse.nn as lnn
from lipfuse import ops


def network(method: str) -> Any:
    settings = METHODS[method]
    return nn.Sequential(
        lnn.SpectralConv2d(1, 4, 3, padding=1, **settings),
        lnn.GroupSort2(),
        nn.Flatten(),
        lnn.SpectralLinear(64, 6, **settings),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
        lnn.FrobeniusLinear(6, 3),
    )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_one_large_batch(
    method: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(method)
    twin = copy.deepcopy(model)
    if fused and method == "polar":
        lipfuse.fuse(model)
    x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 3
    nn.functional.cross_entropy(twin(x), y).backward()
    calls: list[int] = []
    for name in ("orthogonal_weight", "foreach_orthogonalize", "spectral_bjorck"):
        function = getattr(ops, name)

        def counted(*arguments: Any, function: Any = function) -> Any:
            calls.append(1)
            return function(*arguments)

        monkeypatch.setattr(ops, name, counted)
    with lipfuse.normalize_once(model):
        for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
            (nn.functional.cross_entropy(model(a), b) / 4).backward()
        assert model[3].parametrizations.weight.original.grad is None
        assert model[3].bias.grad is not None
    assert len(calls) == {"polar": 1 if fused else 2, "bjorck": 2, "spectral": 0}[method]
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5), name
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    # Nothing is left over.
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    twin.load_state_dict(model.state_dict())
    assert torch.allclose(model(x), twin(x), atol=1e-5)


def test_torch_cached_with_one_backward() -> None:
    """What torch has for it: all losses in one graph."""
    model = network("polar")
    twin = copy.deepcopy(model)
    x = torch.randn(8, 1, 4, 4)
    for m in (model, lipfuse.fuse(twin)):
        with parametrize.cached():
            sum(m(part).square().sum() for part in x.chunk(4)).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]


def test_what_goes_wrong_inside() -> None:
    model = network("polar")
    x = torch.randn(2, 1, 4, 4)

    def step(then: Any) -> None:
        with lipfuse.normalize_once(model):
            model(x).sum().backward()
            then()

    with pytest.raises(ZeroDivisionError):
        step(lambda: 1 / 0)
    assert model[3].parametrizations.weight.original.grad is None
    assert not parametrize._cache and not parametrize._cache_enabled
    # A parameter that changes under way cannot be differentiated.
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        step(lambda: model[3].parametrizations.weight.original.detach().zero_())
    # Nothing to go back through.
    model.zero_grad()
    with torch.no_grad(), lipfuse.normalize_once(model):
        model(x)
    with lipfuse.normalize_once(model):
        pass
    assert model[3].parametrizations.weight.original.grad is None


def test_in_evaluation_and_frozen() -> None:
    model = network("polar").eval()
    model[0].requires_grad_(False)
    x = torch.randn(2, 1, 4, 4)
    expected = model(x)
    with lipfuse.normalize_once(model):
        assert torch.allclose(model(x), expected, atol=1e-6)
        model(x).sum().backward()
    assert model[0].parametrizations.weight.original.grad is None
    assert model[3].parametrizations.weight.original.grad is not None


def test_a_layer_used_twice_and_a_shared_parameter() -> None:
    layer = lnn.SpectralLinear(4, 4)
    tied = lnn.SpectralLinear(4, 4, k_coef_lip=0.5)
    tied.parametrizations.weight.original = layer.parametrizations.weight.original  # type: ignore
    model = nn.Sequential(layer, lnn.FullSort(), layer, tied)
    x = torch.randn(3, 4)
    model(x).square().sum().backward()
    original: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
    expected = original.grad
    original.grad = None
    with lipfuse.normalize_once(model):
        model(x).square().sum().backward()
    assert torch.allclose(original.grad, expected, rtol=1e-4, atol=1e-6)
