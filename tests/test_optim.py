"""lipfuse.optim: parameters back onto the orthonormal matrices, or clipped."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tools
import torch
from torch import nn

import lipfuse
import lipfuse.nn as lnn
from lipfuse import ops
from lipfuse.fusion import parameters_of, polar_weights
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


# ---- layers whose parameters are at rest ---------------------------------------------------------


def layers() -> dict[str, nn.Module]:
    return {
        "linear": lnn.SpectralLinear(5, 7, k_coef_lip=2.0),
        "square": lnn.SpectralLinear(6, 6),
        "convolution": lnn.SpectralConv2d(4, 6, 3, groups=2),
        "operator": lnn.SpectralConv2d(2, 3, 3, normalization="operator"),
        "orthogonal": lnn.OrthoConv2d(3, 4, 3, k_coef_lip=0.5),
        "double": lnn.SpectralLinear(5, 4).double(),
    }


def weight_and_gradients(layer: Any, direction: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    weight = layer.weight
    weight.backward(direction)
    return [weight.detach(), *(p.grad for p in layer.parametrizations.weight.parameters())]


@pytest.mark.parametrize("kind", layers())
def test_at_rest_a_layer_is_what_it_computes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Any = layers()[kind]
    retract_(layer)
    twin = copy.deepcopy(layer)  # knows nothing of the retraction
    direction = torch.randn_like(layer.weight)
    computed = weight_and_gradients(twin, direction)
    for name in ("orthogonal_weight", "foreach_orthogonalize"):
        monkeypatch.delattr(ops, name)
    found = weight_and_gradients(layer, direction)
    with pytest.raises(AttributeError):
        twin.weight  # noqa: B018
    for a, b in zip(found, computed, strict=True):
        assert tools.relative_error(a, b.double()) <= 1e-4
    if kind in ("square", "double"):
        assert found[0].data_ptr() == tools.original(layer).data_ptr()


@pytest.mark.parametrize("autocast", [False, True])
def test_at_rest_in_a_fused_model(autocast: bool) -> None:
    model = nn.Sequential(lnn.SpectralLinear(6, 8), lnn.GroupSort2(), lnn.SpectralLinear(8, 8))
    retract_(model)
    alone = copy.deepcopy(model)
    lipfuse.fuse(model)
    x = torch.randn(5, 6)
    for network in (alone, model):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            network(x).square().sum().backward()
    tolerance = 2e-2 if autocast else 1e-4
    for a, b in zip(model.parameters(), alone.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert tools.relative_error(a.grad, b.grad.double()) <= tolerance
    # Given up once a step came in between.
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    model(x)
    steps = [m.parametrizations.weight[0] for m in model if isinstance(m, nn.Linear)]
    assert all(step._rest is None for step in steps)


EDITS: dict[str, Any] = {
    "in place": lambda layer, w: w.data.mul_(1 + 1e-3),
    "one element": lambda layer, w: w.data.view(-1)[3:4].add_(1e-3),
    "numpy": lambda layer, w: np.multiply(w.detach().numpy(), 2, out=w.detach().numpy()),
    "replaced": lambda layer, w: setattr(w, "data", 3 * w.data),
    "state dict": lambda layer, w: layer.load_state_dict(
        {k: 2 * v for k, v in layer.state_dict().items()}
    ),
    "optimizer": lambda layer, w: torch.optim.SGD([w], lr=1.0).step(
        lambda: setattr(w, "grad", w.detach().clone().neg_()) or 0.0
    ),
    "precision": lambda layer, w: layer.double(),
    "NaN": lambda layer, w: w.data.fill_(float("nan")),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", ["linear", "convolution", "orthogonal"])
def test_every_edit_ends_the_rest(kind: str, edit: str) -> None:
    layer: Any = layers()[kind]
    retract_(layer)
    layer.weight  # noqa: B018
    for w in layer.parametrizations.weight.parameters():
        EDITS[edit](layer, w)
    fresh = copy.deepcopy(layer)
    assert torch.equal(layer.weight, fresh.weight) or edit == "NaN"
    assert layer.parametrizations.weight[0]._rest is None
    if edit == "NaN":
        assert bool(layer.weight.isnan().any())


def test_when_there_is_no_rest() -> None:
    layer: Any = lnn.SpectralLinear(6, 8)
    step = layer.parametrizations.weight[0]
    retract_(layer, tol=1e-3)  # not as accurate as the layer itself
    assert step._rest is None
    with torch.no_grad():
        tools.original(layer)[:, 1] = 0  # its polar factor is not orthonormal
    retract_(layer)
    assert step._rest is None
    retract_(tools.original(layer))
    assert step._rest is None
    unusual = lnn.SpectralLinear(4, 4).bfloat16()
    retract_(unusual)
    assert unusual.parametrizations.weight[0]._rest is None  # type: ignore[index,union-attr]
    layer = lnn.SpectralLinear(4, 4)
    retract_(layer)
    # Evaluation is computed to full accuracy, and a step before the backward is seen.
    assert layer.eval().weight.data_ptr() != tools.original(layer).data_ptr()
    loss = layer.train()(torch.randn(3, 4, requires_grad=True)).square().sum()
    with torch.no_grad():
        tools.original(layer).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_each_layer_rests_or_not_for_itself() -> None:
    bad: Any = lnn.SpectralConv2d(4, 6, 3, groups=2)
    with torch.no_grad():
        tools.original(bad)[0] = 0
    nan: Any = lnn.SpectralConv2d(4, 6, 3, groups=2)
    with torch.no_grad():
        tools.original(nan)[4] = float("nan")
    good: list[Any] = [lnn.OrthoConv2d(4, 4, 3), lnn.SpectralConv2d(4, 6, 3, groups=2)]
    model = nn.Sequential(bad, good[0], nan, good[1])
    retract_(model)
    for layer in model:
        step = layer.parametrizations.weight[0]  # type: ignore[index,union-attr]
        assert (step._rest is not None) is (layer in good)


def test_compiled_steps_are_compiled_once() -> None:
    model = nn.Sequential(lnn.SpectralLinear(4, 6), lnn.GroupSort2(), lnn.SpectralLinear(6, 3))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 4)

    def step() -> None:
        optimizer.zero_grad()
        compiled(x).square().sum().backward()
        optimizer.step()
        retract_(model)

    step()
    with torch.compiler.set_stance("fail_on_recompile"):
        step()
        step()


def test_a_thousand_steps_of_adam() -> None:
    model = nn.Sequential(
        lnn.SpectralConv2d(3, 16, 3, padding=1),
        lnn.GroupSort2(),
        lnn.OrthoConv2d(16, 8, 3, 2),
        nn.Flatten(),
        lnn.SpectralLinear(8 * 4 * 4, 10),
    )
    chains = polar_weights(model)
    weights = [f[:2] for c in chains for f in c[0].polar_factors(*parameters_of(c))]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(8, 3, 8, 8)
    labels = torch.arange(8)
    retract_(model)
    start = [w.detach().clone() for w, _ in weights]
    for step in range(1000):
        optimizer.zero_grad()
        nn.functional.cross_entropy(10 * model(x), labels).backward()
        optimizer.step()
        retract_(model)
        if step % 10 == 0:
            assert all(residual(w, g) <= 1e-5 for w, g in weights)
    assert all(float((w - s).detach().norm()) > 1 for (w, _), s in zip(weights, start, strict=True))
    for layer, shape in zip(model[::2], ((3, 8, 8), (16, 8, 8)), strict=False):
        assert tools.operator_norm(layer, shape) <= 1 + 2e-5


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
