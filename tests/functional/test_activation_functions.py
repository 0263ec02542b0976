"""The activation functions: values, gradients, layouts, errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tools
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lipfuse.functional as F

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """A random tensor of that shape whose memory lies in the way that ``layout`` says."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        # Few values, so that ties are common.
        return torch.randint(-3, 4, size, generator=generator).to(dtype)

    if layout == "last":  # channels last, of any rank
        return random(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    if layout == "transposed":
        return random(*shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    if layout == "expanded":
        return random(*shape[:-1], 1).expand(shape)
    if layout == "strided":
        return random(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "offset":
        return random(shape[0] + 1, *shape[1:])[1:]
    return random(*shape)


LAYOUTS = ["contiguous", "last", "transposed", "expanded", "strided", "offset"]


@settings(max_examples=120, deadline=None)
@given(
    batch=st.integers(0, 3),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 5),
    rest=st.lists(st.integers(1, 4), max_size=3),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    move=st.integers(0, 4),
    from_end=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_group_sort_sorts_each_group(
    batch: int,
    groups: int,
    group_size: int,
    rest: list[int],
    layout: str,
    dtype: torch.dtype,
    move: int,
    from_end: bool,
    seed: int,
) -> None:
    x = laid_out((batch, groups * group_size, *rest), layout, dtype, seed)
    dim = move % x.dim()
    x = x.movedim(1, dim)
    before = x.clone()
    y = F.group_sort(x, group_size, dim - x.dim() if from_end else dim)

    array = np.moveaxis(x.double().numpy(), dim, -1)
    split = array.reshape(*array.shape[:-1], groups, group_size)
    expected = np.moveaxis(np.sort(split, -1).reshape(array.shape), -1, dim)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.double().numpy(), expected)
    assert torch.equal(x, before)
    y.add_(1.0)  # the output must not share memory with the input
    assert torch.equal(x, before)


def test_shorthands_agree_with_group_sort() -> None:
    x = torch.randn(3, 6, 5)
    assert torch.equal(F.group_sort_2(x), F.group_sort(x, 2))
    assert torch.equal(F.full_sort(x), x.sort(1).values)
    assert torch.equal(F.full_sort(x), F.group_sort(x))
    assert torch.equal(F.group_sort(x, 100), F.full_sort(x))


@pytest.mark.parametrize("group_size", [2, 4, None])
@pytest.mark.parametrize("kind", ["random", "zeros", "ties"])
def test_sorting_has_a_permutation_as_jacobian_even_at_ties(
    group_size: int | None, kind: str
) -> None:
    torch.manual_seed(0)
    x = {
        "random": torch.randn(1, 8, 2),
        "zeros": torch.zeros(1, 8, 2),
        "ties": torch.randint(0, 2, (1, 8, 2)).float(),
    }[kind].double()
    jacobian = torch.autograd.functional.jacobian(lambda x: F.group_sort(x, group_size), x)
    matrix = jacobian.reshape(16, 16)
    assert set(matrix.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(matrix.sum(0), torch.ones(16, dtype=torch.float64))
    assert torch.equal(matrix.sum(1), torch.ones(16, dtype=torch.float64))


@pytest.mark.parametrize("dim", [1, 2, 3, -1])
def test_pairs_keep_the_memory_layout_of_the_input(dim: int) -> None:
    x = torch.randn(2, 4, 6, 8)
    assert F.group_sort(x, 2, dim).is_contiguous()
    image = torch.randn(2, 4, 6, 8).contiguous(memory_format=torch.channels_last)
    y = F.group_sort_2(image)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, F.group_sort_2(image.contiguous()))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_min": F.max_min,
    "group_sort_2": F.group_sort_2,
    "group_sort_3": lambda x: F.group_sort(x, 3),
    "full_sort": F.full_sort,
    "lipschitz_prelu": lambda x: F.lipschitz_prelu(x, torch.linspace(-2, 2, 6).to(x), 0.7),
    "householder": lambda x: F.householder(x, torch.linspace(-2, 2, 3).to(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(name: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FUNCTIONS[name], (x,))
    # The functions are piecewise linear: multiply, so that there is a second derivative at all.
    assert torch.autograd.gradgradcheck(lambda x: FUNCTIONS[name](x) ** 2, (x,))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_batch_passes_in_both_directions(name: str) -> None:
    x = torch.randn(0, 6, 3, requires_grad=True)
    y = FUNCTIONS[name](x)
    assert y.shape[0] == 0 and y.shape[2:] == (3,)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape


def test_max_min_lays_both_parts_along_dim() -> None:
    x = torch.tensor([[1.0, -2.0], [-3.0, 4.0]])
    by_channel = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 4.0, 3.0, 0.0]])
    assert torch.equal(F.max_min(x), by_channel)
    assert torch.equal(F.max_min(x, 1), F.max_min(x, -1))
    assert torch.equal(F.max_min(x, 0), F.max_min(x.T).T)
    assert torch.equal(F.max_min(x[0]), by_channel[0])


@pytest.mark.parametrize("k", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("slope", [-9.0, -1.0, -0.2, 0.2, 1.0, 9.0])
def test_lipschitz_prelu_holds_both_slopes(k: float, slope: float) -> None:
    x = torch.tensor([2.0, -2.0], dtype=torch.float64)
    y = F.lipschitz_prelu(x, torch.tensor([slope], dtype=torch.float64), k)
    clamped = max(-k, min(slope, k))
    torch.testing.assert_close(y, torch.tensor([2.0 * min(1.0, k), -2.0 * clamped]).to(y))


def test_lipschitz_prelu_is_prelu_where_nothing_is_clamped() -> None:
    x, weight = torch.randn(2, 5, 3), torch.rand(5)
    assert torch.equal(F.lipschitz_prelu(x, weight), torch.nn.functional.prelu(x, weight))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rank=st.integers(1, 4), where=st.integers(0, 3))
def test_householder_reflects_or_keeps_each_pair(seed: int, rank: int, where: int) -> None:
    torch.manual_seed(seed)
    dim = where % rank
    shape = [3] * rank
    shape[dim] = 6
    x = torch.randn(shape, dtype=torch.float64)
    theta = 4.0 * torch.randn(3, dtype=torch.float64)
    y = F.householder(x, theta, dim).movedim(dim, 0)
    for pair in range(3):
        before = x.movedim(dim, 0)[[pair, pair + 3]].reshape(2, -1)
        after = y[[pair, pair + 3]].reshape(2, -1)
        half = theta[pair] / 2
        normal = torch.stack((half.sin(), -half.cos()))
        reflection = torch.eye(2, dtype=torch.float64) - 2 * torch.outer(normal, normal)
        expected = torch.where(normal @ before > 0, reflection @ before, before)
        torch.testing.assert_close(after, expected)


BAD: list[tools.Refusal] = [
    (lambda: F.max_min([1.0]), TypeError, ["input", "[1.0]", "torch.Tensor"]),
    (lambda: F.max_min(torch.ones(2, 2).int()), TypeError, ["input", "int32", "floating-point"]),
    (lambda: F.max_min(torch.tensor(1.0)), ValueError, ["input", "()", "at least 1"]),
    (lambda: F.max_min(torch.ones(2, 2), 2), ValueError, ["dim", "2", "[-2, 1]"]),
    (lambda: F.max_min(torch.ones(2, 2), 0.5), TypeError, ["dim", "0.5", "integer"]),
    (lambda: F.max_min(torch.ones(2, 2), scale=0.0), ValueError, ["scale", "0.0", "positive"]),
    (lambda: F.group_sort(torch.ones(2, 5), 2), ValueError, ["group_size", "2", "5"]),
    (lambda: F.group_sort(torch.ones(2, 6), 0), ValueError, ["group_size", "0", ">= 1"]),
    (lambda: F.group_sort(torch.ones(2, 6), 2.0), TypeError, ["group_size", "2.0", "integer"]),
    (lambda: F.group_sort(torch.ones(2, 6), True), TypeError, ["group_size", "True", "integer"]),
    (lambda: F.group_sort(torch.ones(6), 2), ValueError, ["dim", "1", "[-1, 0]"]),
    (lambda: F.group_sort_2(torch.ones(2, 5)), ValueError, ["group_size", "5", "divide"]),
    (lambda: F.full_sort(torch.ones(6)), ValueError, ["dim", "1"]),
    (
        lambda: F.lipschitz_prelu(torch.ones(2, 3), torch.ones(2)),
        ValueError,
        ["weight", "(2,)", "3"],
    ),
    (
        lambda: F.lipschitz_prelu(torch.ones(2, 3), torch.ones(1), float("nan")),
        ValueError,
        ["k_coef_lip", "nan", "positive finite"],
    ),
    (
        lambda: F.householder(torch.ones(2, 3), torch.ones(1)),
        ValueError,
        ["input", "3", "even"],
    ),
    (
        lambda: F.householder(torch.ones(2, 4), torch.ones(3)),
        ValueError,
        ["theta", "(3,)", "(2,)"],
    ),
]


test_bad_arguments_are_named = tools.refusals(BAD)
