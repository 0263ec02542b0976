"""The activation layers: their Lipschitz constant, however they were trained, and their export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn

import lipfuse.functional as F
import lipfuse.nn as lnn

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "MaxMin": lnn.MaxMin,
    "GroupSort": lambda **k: lnn.GroupSort(3, **k),
    "GroupSort2": lnn.GroupSort2,
    "FullSort": lnn.FullSort,
    "LPReLU": lnn.LPReLU,
    "LPReLU-channels": lambda **k: lnn.LPReLU(6, **k),
    "HouseHolder": lambda **k: lnn.HouseHolder(6, **k),
    "HouseHolder-normal": lambda **k: lnn.HouseHolder(6, theta_initializer="normal", **k),
}


@pytest.mark.parametrize("k", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", LAYERS)
def test_the_constant_is_k(
    name: str,
    k: float,
    lipschitz_at: Callable[..., float],
    largest_gain: Callable[..., float],
    trained: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    layer = trained(LAYERS[name](k_coef_lip=k)).double()
    points = [torch.randn(1, 6, 2), torch.zeros(1, 6, 2), torch.randint(-1, 2, (1, 6, 2)).float()]
    constants = [lipschitz_at(layer, x) for x in points]
    assert max(constants) <= k * (1 + 1e-12)
    # Trained hard against it, every one of these layers reaches its constant.
    assert constants[0] == pytest.approx(k)
    pairs = [(torch.randn(1, 6, 2).double(), torch.randn(1, 6, 2).double()) for _ in range(50)]
    assert largest_gain(layer, pairs) <= k * (1 + 1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_a_new_k_takes_effect_at_once(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](k_coef_lip=1.0)
    x = torch.randn(2, 6)
    before = layer(x)
    layer.k_coef_lip = 0.2
    assert layer.k_coef_lip == layer._coefficient_lip == 0.2
    built_with_it = LAYERS[name](k_coef_lip=0.2)
    built_with_it.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), built_with_it(x))
    assert not torch.equal(layer(x), before)
    layer._coefficient_lip = 1.0  # deel-torchlip's spelling
    assert torch.equal(layer(x), before)


def test_values_are_those_of_the_functions() -> None:
    x = torch.randn(2, 6, 3)
    assert torch.equal(lnn.MaxMin()(x), F.max_min(x))
    assert torch.equal(lnn.MaxMin(2, 3.0)(x), 3.0 * F.max_min(x, 2))
    assert torch.equal(lnn.GroupSort(3, 3.0)(x), 3.0 * F.group_sort(x, 3))
    assert torch.equal(lnn.GroupSort()(x), F.full_sort(x))
    assert torch.equal(lnn.GroupSort2()(x), F.group_sort_2(x))
    assert torch.equal(lnn.FullSort()(x), F.full_sort(x))
    prelu = lnn.LPReLU(6, 0.4, 2.0)
    assert torch.equal(prelu(x), F.lipschitz_prelu(x, torch.full((6,), 0.4), 2.0))
    reflect = lnn.HouseHolder(6, theta_initializer=0.7)
    assert torch.equal(reflect(x), F.householder(x, torch.full((3,), 0.7)))
    x = torch.randn(6, 4)
    assert torch.equal(reflect(x, axis=0), F.householder(x, torch.full((3,), 0.7), 0))


def test_householder_starts_where_it_is_told() -> None:
    assert torch.equal(lnn.HouseHolder(4).theta, torch.full((2,), torch.pi / 2))
    assert torch.equal(lnn.HouseHolder(4, theta_initializer="zeros").theta, torch.zeros(2))
    assert torch.equal(lnn.HouseHolder(4, theta_initializer="ones").theta, torch.ones(2))
    torch.manual_seed(0)
    assert lnn.HouseHolder(64, theta_initializer="normal").theta.unique().numel() == 32


@pytest.mark.parametrize("name", ["LPReLU", "HouseHolder"])
def test_parameters_are_made_where_and_as_asked(name: str) -> None:
    layer = LAYERS[name](device="meta", dtype=torch.float64)
    for parameter in layer.parameters():
        assert parameter.device.type == "meta" and parameter.dtype == torch.float64


@pytest.mark.parametrize("shape", [(4, 6), (2, 6, 3), (2, 6, 3, 3), (0, 6, 3, 3)])
@pytest.mark.parametrize("k", [1.0, 0.5, 2.5])
@pytest.mark.parametrize("name", LAYERS)
def test_export_computes_the_same(
    name: str, k: float, shape: tuple[int, ...], trained: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    layer = trained(LAYERS[name](k_coef_lip=k))
    plain = layer.vanilla_export()
    assert all(type(m).__module__.startswith("torch.") for m in plain.modules())
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(plain.to(dtype)(x), layer.to(dtype)(x))


def test_export_handles_what_the_layers_do_at_odd_sizes() -> None:
    assert lnn.GroupSort2().vanilla_export()(torch.ones(3, 1)).shape == (3, 1)
    x = torch.tensor([[3.0, 2.0, 1.0]])
    assert torch.equal(lnn.GroupSort(9).vanilla_export()(x), torch.tensor([[1.0, 2.0, 3.0]]))
    with pytest.raises(RuntimeError):
        lnn.GroupSort2().vanilla_export()(x)
    x = torch.tensor([1.0, -2.0])
    assert torch.equal(lnn.MaxMin().vanilla_export()(x), lnn.MaxMin()(x))


def test_exported_tensors_are_copies_and_stay_trainable_or_frozen() -> None:
    for layer in (lnn.LPReLU(6), lnn.LPReLU(6, k_coef_lip=0.5), lnn.HouseHolder(6)):
        (own,) = layer.parameters()
        for requires_grad in (True, False):
            own.requires_grad_(requires_grad)
            (copied,) = layer.eval().vanilla_export().parameters()
            assert copied.requires_grad == requires_grad
            assert copied.untyped_storage().data_ptr() != own.untyped_storage().data_ptr()
        assert not layer.vanilla_export().training
        assert layer.train().vanilla_export().training


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_keep_k(name: str) -> None:
    layer = LAYERS[name](k_coef_lip=0.5)
    x = torch.randn(2, 6)
    for copied in tools.COPIES.values():
        twin = copied(layer)
        assert twin.k_coef_lip == 0.5
        assert torch.equal(twin(x), layer(x))


def test_repr_shows_k() -> None:
    assert repr(lnn.GroupSort2()) == "GroupSort2(k_coef_lip=1)"
    assert repr(lnn.GroupSort(4, 2.0)) == "GroupSort(group_size=4, k_coef_lip=2)"
    assert repr(lnn.MaxMin(2)) == "MaxMin(dim=2, k_coef_lip=1)"
    assert repr(lnn.LPReLU(3, k_coef_lip=2.0)) == "LPReLU(num_parameters=3, k_coef_lip=2)"
    assert repr(lnn.HouseHolder(4)) == "HouseHolder(channels=4, k_coef_lip=1)"


def test_a_compiled_stack_computes_and_differentiates_the_same() -> None:
    torch.manual_seed(0)
    stack = lnn.Sequential(
        lnn.GroupSort2(), lnn.FullSort(), lnn.MaxMin(), lnn.HouseHolder(12), k_coef_lip=2.0
    )
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 6, requires_grad=True)
    torch.testing.assert_close(compiled(x), stack(x))
    (ours,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(stack(x).square().sum(), x)
    torch.testing.assert_close(ours, wanted)
    stack.k_coef_lip = 3.0  # must not be baked into the graph
    torch.testing.assert_close(compiled(x), stack(x))


BAD_K: list[tuple[Any, type[Exception]]] = [
    (0.0, ValueError),
    (-1.0, ValueError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    ("1", TypeError),
    (None, TypeError),
    (True, TypeError),
    (torch.tensor(1.0), TypeError),
]


@pytest.mark.parametrize(("k", "error"), BAD_K)
@pytest.mark.parametrize("name", LAYERS)
def test_bad_k_is_refused_at_once_and_later(name: str, k: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="k_coef_lip must be a positive finite number"):
        LAYERS[name](k_coef_lip=k)
    layer = LAYERS[name]()
    with pytest.raises(error, match="k_coef_lip must be a positive finite number"):
        layer.k_coef_lip = k
    assert layer.k_coef_lip == 1.0


BAD: list[tools.Refusal] = [
    (lambda: lnn.MaxMin("1"), TypeError, ["dim", "'1'", "integer"]),
    (lambda: lnn.GroupSort(0), ValueError, ["group_size", "0", ">= 1"]),
    (lambda: lnn.GroupSort(2.0), TypeError, ["group_size", "2.0", "integer"]),
    (lambda: lnn.GroupSort2()(torch.ones(4)), ValueError, ["input", "(4,)", "at least 2"]),
    (lambda: lnn.GroupSort2()(torch.ones(2, 3)), ValueError, ["group_size", "2", "3"]),
    (lambda: lnn.LPReLU(0), ValueError, ["num_parameters", "0", ">= 1"]),
    (lambda: lnn.LPReLU(1, float("nan")), ValueError, ["init", "nan", "finite"]),
    (lambda: lnn.LPReLU(4)(torch.ones(2, 3)), ValueError, ["weight", "(4,)", "3"]),
    (lambda: lnn.HouseHolder(3), ValueError, ["channels", "3", "even"]),
    (lambda: lnn.HouseHolder(0), ValueError, ["channels", "0"]),
    (lambda: lnn.HouseHolder(4.0), TypeError, ["channels", "4.0", "integer"]),
    (
        lambda: lnn.HouseHolder(4, theta_initializer="uniform"),
        ValueError,
        ["theta_initializer", "'uniform'", "'zeros'"],
    ),
    (
        lambda: lnn.HouseHolder(4, theta_initializer=[1.0]),
        TypeError,
        ["theta_initializer", "[1.0]", "number"],
    ),
    (lambda: lnn.HouseHolder(4)(torch.ones(2, 6)), ValueError, ["theta", "(2,)", "(3,)"]),
]


test_bad_arguments_are_named = tools.refusals(BAD)


def test_gradients_flow_to_the_parameters() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    for layer in (lnn.LPReLU(6, 0.3, 0.5), lnn.HouseHolder(6, 2.0, "normal")):
        layer.double()
        (own,) = layer.parameters()

        def function(x: Tensor, value: Tensor, layer: nn.Module = layer) -> Tensor:
            name = next(iter(dict(layer.named_parameters())))
            return torch.func.functional_call(layer, {name: value}, x)

        assert torch.autograd.gradcheck(function, (x, own))
        assert torch.autograd.gradgradcheck(function, (x, own))
