"""lipfuse.fuse: all weights in one call, and nothing else changes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import tools
import torch
from torch import nn
from torch.nn.utils import parametrize

import lipfuse
import lipfuse.nn as lnn
from lipfuse import ops
from lipfuse.fusion import polar_weights, unfuse


def network() -> nn.Module:
    return lnn.Sequential(
        lnn.SpectralConv2d(1, 4, 3, padding=1, groups=1),
        lnn.GroupSort2(),
        lnn.SpectralConv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Flatten(),
        lnn.SpectralLinear(36, 8),
        lnn.SpectralLinear(8, 8, eps_bjorck=None),
        lnn.FrobeniusLinear(8, 3),
        k_coef_lip=2.0,
    )


def train(model: nn.Module, steps: int = 4) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x = torch.randn(5, 1, 6, 6, generator=generator)
        y = torch.randn(4, 1, 6, 6, generator=generator)
        loss = model(x).tanh().sum() - model(y).square().sum()  # two forwards, one backward
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_trains_as_before() -> None:
    model = network()
    twin = copy.deepcopy(model)
    assert lipfuse.fuse(twin) is twin
    assert train(twin) == pytest.approx(train(model), rel=1e-4)
    x = torch.randn(3, 1, 6, 6)
    assert torch.allclose(twin.eval()(x), model.eval()(x), atol=1e-4)


def test_one_call_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    foreach = ops.foreach_orthogonalize

    def counted(weights: Any, *rest: Any) -> Any:
        calls.append(len(weights))
        return foreach(weights, *rest)

    def alone(single: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(-1)
            return single(*arguments)

        return call

    monkeypatch.setattr(ops, "foreach_orthogonalize", counted)
    monkeypatch.setattr(ops, "orthogonalize", alone(ops.orthogonalize))
    monkeypatch.setattr(ops, "orthogonal_weight", alone(ops.orthogonal_weight))
    model = lipfuse.fuse(network())
    model(torch.randn(2, 1, 6, 6))
    assert calls == [3]
    model.double()(torch.randn(2, 1, 6, 6).double())
    assert calls == [3, 3]
    calls.clear()
    unfuse(model)(torch.randn(2, 1, 6, 6).double())
    assert calls == [-1, -1, -1]
    model.float().eval()
    calls.clear()
    lipfuse.fuse(model)(torch.randn(2, 1, 6, 6))
    assert calls == [-1, -1, -1]  # full accuracy, each on its own


def test_what_is_handed_out_lasts_one_forward() -> None:
    model: Any = lipfuse.fuse(network())
    x = torch.randn(2, 1, 6, 6)
    first = model(x)
    with torch.no_grad():
        model[4].parametrizations.weight.original.normal_()
    assert not torch.allclose(model(x), first)
    weight = model[4].weight
    with torch.no_grad():
        model[4].parametrizations.weight.original.normal_()
    assert not torch.allclose(model[4].weight, weight)
    # Also where the forward fails half way.
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 7, 6, 6))
    with torch.no_grad():
        model[4].parametrizations.weight.original.normal_()
    fresh = copy.deepcopy(unfuse(copy.deepcopy(model)))
    assert torch.allclose(model[4].weight, fresh[4].weight)


def test_the_constant_holds_while_training() -> None:
    model: Any = lipfuse.fuse(nn.Sequential(lnn.SpectralLinear(12, 12), lnn.SpectralLinear(12, 6)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        (model(torch.randn(4, 12)) * 10).sum().backward()
        optimizer.step()
        assert tools.operator_norm(model, (12,)) <= 1 + 4e-5


def test_copies_are_fused_on_their_own() -> None:
    model: Any = lipfuse.fuse(network())
    x = torch.randn(2, 1, 6, 6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.allclose(twin(x), model(x), atol=1e-6)
        with torch.no_grad():
            twin[4].parametrizations.weight.original.normal_()
        assert not torch.allclose(twin(x), model(x))
        twin(x).sum().backward()
        assert model[4].parametrizations.weight.original.grad is None
        assert all(p.grad is not None for p in twin.parameters())


def test_inside_cached_and_under_autocast() -> None:
    model = lipfuse.fuse(network())
    x = torch.randn(2, 1, 6, 6)
    expected = model(x)
    with parametrize.cached():
        assert torch.allclose(model(x), expected, atol=1e-5)
    twin = unfuse(copy.deepcopy(model))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(x), twin(x), atol=1e-2)


def test_polar_weights_are_found_once_in_the_order_of_the_modules() -> None:
    shared: Any = lnn.SpectralLinear(4, 4)
    model = nn.Sequential(
        nn.ModuleDict({"a": lnn.OrthoConv2d(4, 4, 3), "b": nn.Sequential(nn.ReLU(), shared)}),
        shared,
        lnn.SpectralLinear(4, 4, method="bjorck"),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lnn.SpectralConv2d(4, 4, 3),
    )
    model.register_module("nothing", None)
    wanted = [model[0]["a"], shared, model[4]]  # type: ignore[index]
    chains = [layer.parametrizations.weight for layer in wanted]  # type: ignore[union-attr]
    assert polar_weights(model) == chains
    assert polar_weights(chains[0]) == chains[:1]
    assert polar_weights(nn.ReLU()) == []


def test_fusing_twice_and_undoing() -> None:
    model = network()
    lipfuse.fuse(lipfuse.fuse(model))
    assert len(model._forward_pre_hooks) == 1
    unfuse(unfuse(model))
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        lipfuse.fuse(3)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"model must have at least one layer.*Linear has none"):
        lipfuse.fuse(nn.Linear(3, 2))
