"""The linear layers: their maps, their arguments, how they start and what they keep."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
from every_layer import METHODS
from tools import original
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lipfuse.nn as lnn

every_method = pytest.mark.parametrize("method", METHODS)
SIZES = [(1, 1), (1, 7), (7, 1), (5, 5), (12, 30), (31, 13)]


# ---- SpectralLinear ------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [1.0, 0.25, 4.0])
def test_singular_values(method: str, training: bool, k: float) -> None:
    """All of them are k at the start; never above, whatever the weight becomes."""
    for inputs, outputs in SIZES:
        layer = lnn.SpectralLinear(inputs, outputs, k_coef_lip=k, **METHODS[method])
        layer.train(training)
        for scale in (None, 1e-4, 1.0, 1e3):
            if scale is not None:
                with torch.no_grad():
                    original(layer).copy_(scale * torch.randn(outputs, inputs))
            matrix = tools.dense(layer, (inputs,))
            values = torch.linalg.svdvals(matrix)
            assert values.max() <= k * (1 + 1e-5)
            if scale is None:
                assert values.min() >= k * (1 - 1e-3 if training else 1 - 1e-5)
            elif not training and method != "spectral":
                assert values.min() >= k * (1 - 1e-3)
            elif not training:
                assert values.max() >= k * (1 - 2e-3)


@every_method
def test_is_a_torch_linear_with_its_weight(method: str) -> None:
    layer = lnn.SpectralLinear(6, 4, **METHODS[method]).eval()
    assert isinstance(layer, nn.Linear) and isinstance(layer, lnn.LipschitzModule)
    with torch.no_grad():
        layer.bias.copy_(torch.randn(4))
    x = torch.randn(2, 3, 6)
    assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert layer(torch.randn(6)).shape == (4,)
    assert layer(torch.randn(0, 6)).shape == (0, 4)
    assert lnn.SpectralLinear(6, 4, bias=False, **METHODS[method]).bias is None


def test_starts_orthogonal_with_a_zero_bias() -> None:
    torch.manual_seed(3)
    layer = lnn.SpectralLinear(9, 5)
    torch.manual_seed(3)
    again = lnn.SpectralLinear(9, 5)
    assert torch.equal(layer.weight, again.weight)
    assert not layer.bias.any()
    w = original(layer).detach().clone()
    assert torch.allclose(w @ w.T, torch.eye(5), atol=1e-5)
    layer.reset_parameters()
    assert not torch.equal(original(layer), w)


@every_method
def test_gradients_reach_the_parameter_in_both_modes(method: str) -> None:
    for training in (True, False):
        layer = lnn.SpectralLinear(6, 4, **METHODS[method]).train(training)
        layer(torch.randn(3, 6)).square().sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
        # It does not change with the size of the weight: the gradient is across the weight.
        weight, gradient = original(layer).detach(), original(layer).grad
        assert gradient is not None
        assert float((weight * gradient).sum().abs()) <= 1e-3 * float(
            weight.norm() * gradient.norm()
        )


def test_the_gradient_in_evaluation_is_that_of_the_current_weight() -> None:
    """deel-torchlip's is None, and the weight stale."""
    layer = lnn.SpectralLinear(6, 4).eval()
    before = layer.weight.detach().clone()
    with torch.no_grad():
        original(layer).add_(torch.randn(4, 6))
    assert not torch.allclose(layer.weight, before)
    g = torch.randn(4, 6)
    layer.weight.backward(g)
    exact = tools.polar_gradient(original(layer).detach(), g)
    assert tools.relative_error(original(layer).grad, exact) <= 1e-4  # type: ignore[arg-type]


@every_method
def test_a_new_k_takes_effect_at_once(method: str) -> None:
    layer = lnn.SpectralLinear(6, 4, **METHODS[method])
    for training in (True, False, True):
        layer.train(training)
        for k in (3.0, 0.5):
            layer.k_coef_lip = k
            assert tools.operator_norm(layer, (6,)) == pytest.approx(k, rel=1e-3)
            assert layer.k_coef_lip == k
    assert "k_coef_lip=0.5" in repr(layer)


@every_method
def test_assignment_of_a_weight(method: str) -> None:
    layer = lnn.SpectralLinear(256, 256, **METHODS[method])
    layer.weight = torch.randn(256, 256)  # deel-torchlip: 33.6 afterwards
    assert tools.largest_singular_value(layer.eval().weight) <= 1 + 1e-5
    assert tools.largest_singular_value(layer.train().weight) <= 1 + 1e-5


@every_method
def test_frozen_and_shared(method: str) -> None:
    first = lnn.SpectralLinear(5, 5, **METHODS[method])
    second = lnn.SpectralLinear(5, 5, **METHODS[method])
    second.parametrizations.weight.original = original(first)
    x = torch.randn(2, 5)
    second(first(x)).sum().backward()
    assert original(first).grad is not None
    assert len({id(p) for p in nn.Sequential(first, second).parameters()}) == 3
    first.requires_grad_(False)
    assert not first(x).requires_grad


def test_eval_serves_nothing_stale() -> None:
    """What evaluation keeps from one forward to the next follows every kind of change."""
    layer = lnn.SpectralLinear(6, 4).eval()
    x = torch.randn(2, 6)
    with torch.no_grad():
        last = layer(x)
        assert torch.equal(layer(x), last)
        changes: list[Callable[[], Any]] = [
            lambda: original(layer).add_(torch.randn(4, 6)),
            lambda: original(layer).data.copy_(torch.randn(4, 6)),
            lambda: original(layer).data.numpy().__setitem__((0, 0), 17.0),
            lambda: layer.load_state_dict(lnn.SpectralLinear(6, 4).state_dict()),
            lambda: setattr(layer, "weight", torch.randn(4, 6)),
            lambda: setattr(layer, "k_coef_lip", 2.0),
        ]
        for change in changes:
            change()
            new = layer(x)
            assert not torch.equal(new, last)
            fresh = lnn.SpectralLinear(6, 4, k_coef_lip=layer.k_coef_lip).eval()
            fresh.load_state_dict(layer.state_dict())
            assert torch.equal(fresh(x), new)
            last = new
        # Nor can what was handed out be changed from outside.
        layer.weight.zero_()
        assert torch.equal(layer(x), last)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        original(twin).neg_()
        assert torch.allclose(twin.weight, -layer.weight, atol=1e-6)


@every_method
def test_nan_raises_in_evaluation_and_does_not_last(method: str) -> None:
    layer = lnn.SpectralLinear(6, 4, **METHODS[method])
    good = original(layer).detach().clone()
    for bad in (math.nan, math.inf):
        with torch.no_grad():
            original(layer)[1, 2] = bad
        layer.train()
        assert not layer(torch.randn(2, 6)).isfinite().all()
        layer.eval()
        with pytest.raises(ValueError, match="weight must be finite"):
            layer(torch.randn(2, 6))
        with pytest.raises(ValueError, match="weight must be finite"):
            layer.vanilla_export()
        with torch.no_grad():
            original(layer).copy_(good)
        layer.train()
        for _ in range(20):
            layer(torch.randn(2, 6))
        assert tools.operator_norm(layer, (6,)) == pytest.approx(1, abs=1e-3)
        assert tools.operator_norm(layer.eval(), (6,)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("training", [True, False])
@every_method
def test_zero_stays_zero_and_recovers(method: str, training: bool) -> None:
    layer = lnn.SpectralLinear(6, 4, **METHODS[method]).train(training)
    with torch.no_grad():
        original(layer).zero_()
    x = torch.randn(2, 6)
    for _ in range(3):
        out = layer(x)
        assert not out.any()
        out.sum().backward()
        assert original(layer).grad.isfinite().all()  # type: ignore[union-attr]
    with torch.no_grad():
        original(layer).copy_(torch.randn(4, 6))
    for _ in range(30):
        layer(x)
    assert tools.operator_norm(layer, (6,)) == pytest.approx(1, abs=2e-3)


def test_on_the_meta_device() -> None:
    """As large models are built: no memory until they are materialised."""
    layer = lnn.SpectralLinear(6, 4, device="meta")
    assert layer(torch.empty(2, 6, device="meta")).shape == (2, 4)
    assert layer.eval()(torch.empty(2, 6, device="meta")).shape == (2, 4)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert tools.operator_norm(layer, (6,)) == pytest.approx(1, abs=1e-4)


@every_method
def test_dtypes(method: str) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        layer = lnn.SpectralLinear(12, 8, dtype=dtype, **METHODS[method])
        assert all(p.dtype is dtype for p in layer.parameters())
        for training in (True, False):
            layer.train(training)
            assert layer.weight.dtype is dtype
            assert layer(torch.randn(2, 12, dtype=dtype)).dtype is dtype
    layer = lnn.SpectralLinear(12, 8, **METHODS[method]).double()
    assert layer.eval().weight.dtype is torch.float64
    assert tools.largest_singular_value(layer.weight) <= 1 + 1e-5


def test_parametrize_cached_around_a_model() -> None:
    layer = lnn.SpectralLinear(5, 5)
    model = nn.Sequential(layer, layer)
    x = torch.randn(2, 5)
    expected = model(x)
    with parametrize.cached():
        found = model(x)
        found.sum().backward()
    assert torch.equal(found, expected)
    assert original(layer).grad is not None


# ---- FrobeniusLinear -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [1.0, 0.25, 4.0])
@pytest.mark.parametrize("disjoint", [True, False])
def test_frobenius_norms(disjoint: bool, k: float, training: bool) -> None:
    """Disjoint: every output is k-Lipschitz on its own, and together they are not."""
    for inputs, outputs in SIZES:
        layer = lnn.FrobeniusLinear(inputs, outputs, disjoint_neurons=disjoint, k_coef_lip=k)
        layer.train(training)
        with torch.no_grad():
            original(layer).copy_(3 * torch.randn(outputs, inputs))
        matrix = tools.dense(layer, (inputs,))
        if disjoint:
            assert torch.allclose(matrix.norm(dim=1), torch.full((outputs,), k).double(), rtol=1e-5)
            assert tools.largest_singular_value(matrix) <= k * math.sqrt(outputs) * (1 + 1e-5)
        else:
            assert float(matrix.norm()) == pytest.approx(k, rel=1e-5)
            assert tools.largest_singular_value(matrix) <= k * (1 + 1e-5)


def test_frobenius_disjoint_neurons_together_are_not_one_lipschitz() -> None:
    layer = lnn.FrobeniusLinear(16, 16)
    layer.weight = torch.ones(16, 16)
    assert tools.operator_norm(layer, (16,)) == pytest.approx(4.0, rel=1e-5)


def test_frobenius_zero_rows_nan_and_k() -> None:
    layer = lnn.FrobeniusLinear(6, 4)
    with torch.no_grad():
        original(layer)[1] = 0
    out = layer(torch.randn(3, 6))
    assert not out[:, 1].any()
    out.sum().backward()
    assert original(layer).grad.isfinite().all()  # type: ignore[union-attr]
    layer.k_coef_lip = 2.0
    assert torch.allclose(layer.weight.detach().norm(dim=1), torch.tensor([2.0, 0.0, 2.0, 2.0]))
    with torch.no_grad():
        original(layer)[2, 2] = math.nan
    layer(torch.randn(3, 6))
    with pytest.raises(ValueError, match="weight must be finite"):
        layer.eval()(torch.randn(3, 6))


def test_frobenius_gradient_penalty_on_the_parameters() -> None:
    """Its second derivative is available: a penalty on the parameters' gradients."""
    layer = lnn.FrobeniusLinear(6, 4).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    loss = layer(x).tanh().square().sum()
    (first,) = torch.autograd.grad(loss, original(layer), create_graph=True)
    first.square().sum().backward()
    assert original(layer).grad.isfinite().all()  # type: ignore[union-attr]


# ---- arguments -----------------------------------------------------------------------------------


def errors() -> list[Any]:
    positive = "a positive finite number"
    cases: list[tuple[type[nn.Module], dict[str, Any], type[Exception], str]] = []
    for kind in (lnn.SpectralLinear, lnn.FrobeniusLinear):
        for name in ("in_features", "out_features"):
            for value in (0, -2):
                cases.append(
                    (kind, {name: value}, ValueError, f"{name} must be.*>= 1, got {value}")
                )
            for wrong in (2.0, True, None, "3"):
                cases.append(
                    (kind, {name: wrong}, TypeError, f"{name} must be.*>= 1, got {wrong!r}")
                )
        for value in (0, -1, math.nan, math.inf):
            cases.append(
                (
                    kind,
                    {"k_coef_lip": value},
                    ValueError,
                    f"k_coef_lip must be {positive}, got {value}",
                )
            )
        for wrong in (None, "1", True):
            cases.append((kind, {"k_coef_lip": wrong}, TypeError, f"k_coef_lip must be {positive}"))
        cases.append((kind, {"bias": 1}, TypeError, "bias must be True or False, got 1"))
    for name in ("eps_spectral", "eps_bjorck"):
        for value in (0, -1e-3, math.nan, math.inf, 1e9):
            cases.append(
                (
                    lnn.SpectralLinear,
                    {name: value},
                    ValueError,
                    rf"{name} must be a finite number in \(0, 1\], got ",
                )
            )
    cases += [
        (lnn.SpectralLinear, {"eps_spectral": None}, TypeError, "eps_spectral must be"),
        (
            lnn.SpectralLinear,
            {"method": "svd"},
            ValueError,
            "method must be one of 'polar', 'bjorck', got 'svd'",
        ),
        (
            lnn.FrobeniusLinear,
            {"disjoint_neurons": None},
            TypeError,
            "disjoint_neurons must be True or False, got None",
        ),
    ]
    return [pytest.param(*c, id=f"{c[0].__name__}-{c[1]}") for c in cases]


@pytest.mark.parametrize("kind, arguments, error, message", errors())
def test_errors(
    kind: type[nn.Module], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        kind(**{"in_features": 3, "out_features": 2, **arguments})
    assert caught.type is error


def test_inputs_of_the_wrong_size_are_refused_as_by_torch() -> None:
    for layer in (lnn.SpectralLinear(6, 4), lnn.FrobeniusLinear(6, 4)):
        with pytest.raises(RuntimeError):
            layer(torch.randn(2, 5))


def test_signature_is_deel_torchlips_and_torchs() -> None:
    layer: Any = lnn.SpectralLinear(6, 4, True, 2.0, 1e-3, 1e-3)
    assert layer.k_coef_lip == 2.0 and layer.in_features == 6 and layer.out_features == 4
    layer = lnn.FrobeniusLinear(6, 4, True, False, 2.0)
    assert layer.k_coef_lip == 2.0 and layer.disjoint_neurons is False
    x: Tensor = torch.randn(2, 6)
    assert layer(x).shape == (2, 4)
