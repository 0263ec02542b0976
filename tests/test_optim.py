"""lipfuse.optim: parameters back onto the orthonormal matrices, or clipped."""

from __future__ import annotations

from typing import Any

import pytest
import tools
import torch
from torch import nn

import lipfuse.nn as lnn
from lipfuse.optim import clip_weights_, retract_


def residual(weight: torch.Tensor, groups: int = 1) -> float:
    parts = weight.detach().double().reshape(groups, weight.shape[0] // groups, -1)
    wide = parts.shape[1] < parts.shape[2]
    gram = parts @ parts.mT if wide else parts.mT @ parts
    return float((gram - torch.eye(gram.shape[-1], dtype=torch.float64)).norm())


def test_a_model() -> None:
    model: Any = nn.Sequential(
        lnn.SpectralConv2d(2, 4, 3, groups=2), lnn.SpectralLinear(6, 8), lnn.FrobeniusLinear(8, 3)
    )
    originals = [m.parametrizations.weight.original for m in model]
    with torch.no_grad():
        for w in originals:
            w.add_(0.3 * torch.randn_like(w))
    before = [m.weight.detach().clone() for m in model]
    untouched = originals[2].detach().clone()
    version = originals[1]._version
    retract_(model)
    assert residual(originals[0], groups=2) <= 2e-5
    assert residual(originals[1]) <= 2e-5
    assert torch.equal(originals[2], untouched)
    # The nearest orthonormal matrix: the map stays what it was.
    for layer, weight in zip(model, before, strict=True):
        assert torch.allclose(layer.weight, weight, atol=1e-4)
    assert originals[1]._version > version


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors(dtype: torch.dtype) -> None:
    ws = [
        tools.matrix("near", (5, 8)).to(dtype),
        tools.matrix("gaussian", (6, 2, 9)).to(dtype)[:, :, :],
    ]
    exact = [tools.polar_factor(w.flatten(1).double()) for w in ws]
    retract_(ws)
    for w, q in zip(ws, exact, strict=True):
        assert w.dtype is dtype
        assert tools.relative_error(w.flatten(1), q) <= max(2e-5, 2 * torch.finfo(dtype).eps)
    one = nn.Parameter(tools.matrix("near", (4, 4)).to(dtype))
    retract_(one)
    assert residual(one) <= max(5e-5, 8 * torch.finfo(dtype).eps)
    retract_([torch.zeros(0, 3)])


def test_training_on_the_manifold() -> None:
    layer = lnn.SpectralLinear(8, 8)
    original: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
    target = tools.polar_factor(tools.matrix("gaussian", (8, 8), 3)).float()
    if torch.linalg.det(target) * torch.linalg.det(layer.weight.detach()) < 0:
        target[0] *= -1
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    losses = []
    for _ in range(150):
        loss = (layer.weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        retract_(layer)
        losses.append(float(loss.detach()))
        assert residual(original) <= 5e-5
    assert losses[-1] <= 1e-2 * losses[0]


def test_errors_before_anything_changes() -> None:
    w = torch.randn(4, 3)
    kept = w.clone()
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ([w, torch.randn(3)], {}, ValueError, "params_or_model must have at least 2 dim"),
        ([w, "w"], {}, TypeError, "params_or_model must be a torch.Tensor, got 'w'"),
        ([w, torch.ones(2, 2).long()], {}, TypeError, "params_or_model must have a real floating"),
        (w, {"tol": 0}, ValueError, "tol must be a positive finite number, got 0"),
        (nn.Linear(3, 2), {}, ValueError, "at least one layer with a polar-factor weight"),
    ]
    for given, settings, error, message in cases:
        with pytest.raises(error, match=message):
            retract_(given, **settings)
    assert torch.equal(w, kept)


def test_clipping() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Conv2d(2, 3, 3))
    for p in model.parameters():
        nn.init.normal_(p)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    clip_weights_(model, None)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, kept[name])
        else:
            assert 0.9 < float(p.detach().double().norm()) <= 1
    clip_weights_(model)
    for name, p in model.named_parameters():
        assert float(p.detach().abs().max()) <= 0.01
        assert torch.equal(p.sign(), kept[name].sign())
    for n in range(1, 12):  # 1 / sqrt(7 n) rounds up for some
        half = 100 * torch.randn(7, n).bfloat16()
        clip_weights_([half], None)
        assert 0.98 <= float(half.double().norm()) <= 1
    version, one = half._version, torch.tensor([2.0, float("nan")])
    clip_weights_(iter([half, one]), 0.1)
    assert half._version > version
    assert one[0] == 0.1 and one[1].isnan()
    for bad, error in ((0.0, ValueError), ("1", TypeError), (float("nan"), ValueError)):
        with pytest.raises(error, match="c must be a positive finite number"):
            clip_weights_(model, bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="params_or_model must be a torch"):
        clip_weights_([one, "w"])  # type: ignore[list-item]
