"""evaluate_lip_const: lower bounds of the Lipschitz constant, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn
from lipfuse.evaluation import (
    evaluate_lip_const,
    evaluate_lip_const_attack,
    evaluate_lip_const_jacobian_norm,
    evaluate_lip_const_noise_norm,
)

METHODS = ["jacobian_norm", "noise_norm", "attack"]


def steep(size: int = 96) -> nn.Linear:
    """Norm 2.37, but hardly anything in most directions: noise alone finds a fifth of it."""
    layer = nn.Linear(size, size, dtype=torch.float64)
    spectrum = 2.37 * torch.exp(-torch.arange(size, dtype=torch.float64) / 2)
    u, _, vh = torch.linalg.svd(tools.matrix("gaussian", (size, size)))
    with torch.no_grad():
        layer.weight.copy_(u * spectrum @ vh)
    return layer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("disjoint", [False, True])
def test_an_affine_map(method: str, disjoint: bool) -> None:
    layer = steep()
    weight = layer.weight.detach()
    true = float(weight.norm(dim=1).max()) if disjoint else tools.largest_singular_value(weight)
    found = evaluate_lip_const(layer, torch.randn(4, 96).double(), method, disjoint)
    assert 0.99 * true <= found <= true * (1 + 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_bent_map_is_bounded_from_below(method: str) -> None:
    model = lnn.Sequential(
        lnn.SpectralConv2d(2, 4, 3, padding=1),
        lnn.GroupSort2(),
        lnn.ScaledL2NormPool2d(2),
        nn.Flatten(),
        lnn.SpectralLinear(16, 5),
        k_coef_lip=3.0,
    ).double()
    found = evaluate_lip_const(model, torch.randn(6, 2, 4, 4).double(), method)
    assert 0.3 <= found <= 3.0 * (1 + 1e-6)


def test_the_attack_finds_what_is_steep_elsewhere() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.fill_(-1.0)
    x = torch.full((1, 1), 0.2).double()  # flat here, slope 2 from 0.5 on
    assert evaluate_lip_const(model, x) == 0.0
    once = evaluate_lip_const_attack(model, x, num_iterations=300)
    twice = evaluate_lip_const_attack(model, x, num_iterations=300, double_attack=True)
    noisy = evaluate_lip_const_noise_norm(model, x, num_noisy_samples=50, epsilon_noise=3.0)
    assert once <= twice <= 2.0 * (1 + 1e-9)
    assert noisy > 1.5


def test_all_and_lists_take_the_largest() -> None:
    layer, x = steep(16), torch.randn(3, 16).double()
    each = [evaluate_lip_const(layer, x, method) for method in METHODS]
    assert evaluate_lip_const(layer, x, "all") == max(each)
    assert evaluate_lip_const(layer, x, METHODS[1:]) == max(each[1:])
    options: dict[str, Any] = {"num_noisy_samples": 1, "num_iterations": 3}
    assert evaluate_lip_const(layer, x, "all", **options) <= max(each)


class Noisy(nn.Module):
    """Draws random numbers in evaluation, and notices the mode it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = lnn.SpectralLinear(3, 2)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.layer(x) + 0 * torch.rand(2)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(method: str) -> None:
    model = nn.Sequential(Noisy(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].bias.requires_grad_(False)
    model[1].eval()
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    tensors = [t.clone() for t in model.state_dict().values()]
    x, state = torch.randn(4, 3), torch.get_rng_state()
    first = evaluate_lip_const(model, x, method)
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate_lip_const(model, x, method) == first
    assert evaluate_lip_const(model, input_shape=(4, 3), evaluation_type=method) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert tools.equal_bits(tensors, list(model.state_dict().values()))
    assert not any(model[0].modes)
    with torch.inference_mode():
        assert evaluate_lip_const(model, torch.randn(4, 3), method) > 0


def test_the_mode_is_restored_after_an_error() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        evaluate_lip_const(model, torch.randn(4, 5))
    assert model.training
    assert model.weight.requires_grad


def test_expected_value() -> None:
    model = lnn.SpectralLinear(8, 8)
    assert evaluate_lip_const(model, torch.randn(4, 8), "all", expected_value=1.0) > 0.999
    with pytest.raises(AssertionError, match=r"at least (1\.0|0\.99).*expected 0\.9"):
        evaluate_lip_const(model, torch.randn(4, 8), expected_value=0.9)


def test_maps_without_a_slope() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 2)

    for method in METHODS:
        assert evaluate_lip_const(Constant(), torch.randn(2, 3), method) == 0.0
        zero = nn.Linear(3, 2)
        nn.init.zeros_(zero.weight)
        assert evaluate_lip_const(zero, torch.zeros(2, 3), method) == 0.0
        nn.init.constant_(zero.weight, torch.nan)
        with pytest.raises(ValueError, match="model must give finite outputs for x"):
            evaluate_lip_const(zero, torch.zeros(2, 3), method)


def test_jacobians_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = steep(16), torch.randn(5, 16).double()
    whole = evaluate_lip_const_jacobian_norm(layer, x)
    monkeypatch.setattr("lipfuse.evaluation._MOST_ELEMENTS", 600)
    assert evaluate_lip_const_jacobian_norm(layer, x) == pytest.approx(whole)
    monkeypatch.setattr("lipfuse.evaluation._MOST_ELEMENTS", 3)
    assert evaluate_lip_const_jacobian_norm(layer, x) == pytest.approx(whole)


L, X = nn.Linear(3, 2), torch.randn(4, 3)
BAD: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (("m", X), {}, TypeError, "model must be a torch.nn.Module, got str"),
    ((L,), {}, ValueError, "input_shape must be given where x is None"),
    ((L,), {"input_shape": 3}, TypeError, "input_shape must be a tuple or list of ints, got 3"),
    ((L,), {"input_shape": (0, 3)}, ValueError, "input_shape must be an integer >= 1, got 0"),
    ((L, X[:0]), {}, ValueError, "x must have at least one element"),
    ((L, X.long()), {}, TypeError, "x must have a real floating-point dtype"),
    ((L, X, "foo"), {}, ValueError, "evaluation_type must be one of 'jacobian_norm'.*got 'foo'"),
    ((L, X, []), {}, ValueError, "evaluation_type must name at least one"),
    ((L, X), {"disjoint_neurons": 1}, TypeError, "disjoint_neurons must be True or False, got 1"),
    ((L, X), {"expected_value": -1.0}, ValueError, "expected_value must be a positive"),
    ((L, X), {"iterations": 3}, TypeError, "unknown option 'iterations'; there are num_noisy"),
    ((L, X, "noise_norm"), {"num_noisy_samples": 0}, ValueError, "num_noisy_samples"),
    ((L, X, "noise_norm"), {"epsilon_noise": 0.0}, ValueError, "epsilon_noise"),
    ((L, X, "attack"), {"num_iterations": 0}, ValueError, "num_iterations"),
    ((L, X, "attack"), {"step_size": float("nan")}, ValueError, "step_size"),
    ((L, X, "attack"), {"double_attack": 1}, TypeError, "double_attack"),
    ((nn.Flatten(0), X), {}, ValueError, "model must return a tensor of 4 outputs for 4 inputs"),
]


@pytest.mark.parametrize("arguments, options, error, message", BAD)
def test_errors(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate_lip_const(*arguments, **options)


def test_it_is_where_people_look_for_it() -> None:
    assert lipfuse.evaluate_lip_const is lnn.utils.evaluate_lip_const is evaluate_lip_const
