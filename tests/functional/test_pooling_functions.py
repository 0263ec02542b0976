"""The pooling functions: values by an independent formula, gradients, zeros, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import tools
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lipfuse.functional as F


def windows(x: Tensor, kernel: tuple[int, int], ceil_mode: bool) -> list[list[Tensor]]:
    """The windows themselves, cut out one by one; the oracle of this file."""
    height, width = x.shape[-2:]
    rows = math.ceil(height / kernel[0]) if ceil_mode else height // kernel[0]
    columns = math.ceil(width / kernel[1]) if ceil_mode else width // kernel[1]
    return [
        [
            x[..., i * kernel[0] : (i + 1) * kernel[0], j * kernel[1] : (j + 1) * kernel[1]]
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def over_windows(
    x: Tensor, kernel: tuple[int, int], ceil_mode: bool, function: Callable[[Tensor], Tensor]
) -> Tensor:
    rows = [
        torch.stack([function(window) for window in row], -1)
        for row in windows(x, kernel, ceil_mode)
    ]
    return torch.stack(rows, -2)


shapes = st.tuples(
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**31), channels_last=st.booleans())
def test_pooling_agrees_with_windows_cut_out_by_hand(
    shape: tuple[list[int], int, int, int, int, bool], seed: int, channels_last: bool
) -> None:
    leading, height, width, kh, kw, ceil_mode = shape
    if not ceil_mode:
        height, width = max(height, kh), max(width, kw)
    torch.manual_seed(seed)
    x = torch.randn(*leading, height, width, dtype=torch.float64)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()

    def scaled(window: Tensor) -> Tensor:
        return 2.0 * window.sum((-2, -1)) / math.sqrt(window.shape[-1] * window.shape[-2])

    for ours, oracle in (
        (F.scaled_avg_pool2d(x, (kh, kw), ceil_mode, 2.0), scaled),
        (F.l2_norm_pool2d(x, (kh, kw), ceil_mode), lambda w: w.square().sum((-2, -1)).sqrt()),
    ):
        expected = over_windows(x, (kh, kw), ceil_mode, oracle)
        torch.testing.assert_close(ours, expected)
        weight = torch.randn_like(ours)
        (gradient,) = torch.autograd.grad((ours * weight).sum(), x)
        (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("pool", [F.scaled_avg_pool2d, F.l2_norm_pool2d])
def test_first_and_second_derivatives(pool: Callable[..., Tensor], ceil_mode: bool) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pool(x, (2, 3), ceil_mode), (x,))
    assert torch.autograd.gradgradcheck(lambda x: pool(x, (2, 3), ceil_mode) ** 2, (x,))


# Among them those whose squares are denormal in float32 or in float64, and the least numbers.
SIZES = [0.0, 5e-324, 1.6e-162, 1e-45, 1e-30, 2.6e-23, 1e-21, 1e-19, 1e-15, 1e-12, 1e-6]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_l2_pooling_of_tiny_windows_has_bounded_derivatives(
    dtype: torch.dtype, size: float
) -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=dtype)
    # One window of zeros, one with a single element, one full: zero times infinity lurks in each.
    x[..., 0, 2] = size
    x[..., 2:, 2:] = size
    x.requires_grad_()
    y = F.l2_norm_pool2d(x, 2)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert gradient.isfinite().all()
    per_window = torch.nn.functional.lp_pool2d(gradient.double(), 2, 2)
    assert per_window.max() <= 1.0 + 2 * torch.finfo(dtype).eps
    assert (gradient[..., :2, :2] == 0).all()
    direction = torch.arange(16.0).reshape(x.shape).to(dtype)
    (second,) = torch.autograd.grad((gradient * direction).sum(), x, retain_graph=True)
    # A second derivative of 1/norm may exceed a narrow dtype, but is never NaN.
    assert not second.isnan().any()
    assert (second[..., :2, :2] == 0).all()
    # The same where what comes from above is differentiated too.
    weight = torch.ones_like(y).requires_grad_()
    (gradient,) = torch.autograd.grad((weight * y).square().sum(), x, create_graph=True)
    for second in torch.autograd.grad((gradient * direction).sum(), (x, weight)):
        assert not second.isnan().any()


def test_l2_pooling_in_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 1, 2, 2), 3000.0, dtype=torch.float16)
    assert F.l2_norm_pool2d(x, 2).item() == 6000.0
    tiny = torch.full((1, 1, 2, 2), 1e-5, dtype=torch.float16)
    torch.testing.assert_close(F.l2_norm_pool2d(tiny, 2), (2 * tiny)[..., :1, :1])


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("pool", [F.scaled_avg_pool2d, F.l2_norm_pool2d])
def test_an_empty_batch_passes_in_both_directions(
    pool: Callable[..., Tensor], ceil_mode: bool
) -> None:
    x = torch.randn(0, 3, 5, 4, requires_grad=True)
    y = pool(x, 2, ceil_mode)
    assert y.shape == ((0, 3, 3, 2) if ceil_mode else (0, 3, 2, 2))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape


def test_pooling_can_be_mapped_over_a_batch_of_batches() -> None:
    x = torch.randn(3, 2, 4, 5, 4)
    for pool in (F.scaled_avg_pool2d, F.l2_norm_pool2d):
        mapped = torch.vmap(lambda x, pool=pool: pool(x, 2, True))(x)
        torch.testing.assert_close(mapped, torch.stack([pool(image, 2, True) for image in x]))
    gradients = torch.vmap(torch.func.grad(lambda x: F.l2_norm_pool2d(x, 2).sum()))(x)
    for image, gradient in zip(x, gradients, strict=True):
        wanted = torch.func.grad(lambda x: F.l2_norm_pool2d(x, 2).sum())(image)
        torch.testing.assert_close(gradient, wanted)


image = torch.ones(1, 1, 4, 4)
BAD: list[tools.Refusal] = [
    (lambda: F.l2_norm_pool2d(image.int(), 2), TypeError, ["input", "int32", "floating-point"]),
    (lambda: F.l2_norm_pool2d(image[0, 0], 2), ValueError, ["input", "(4, 4)", "(C, H, W)"]),
    (lambda: F.l2_norm_pool2d(image, 5), ValueError, ["input", "4 x 4", "at least 5 x 5"]),
    (lambda: F.l2_norm_pool2d(image, 0), ValueError, ["kernel_size", "0", ">= 1"]),
    (lambda: F.l2_norm_pool2d(image, (1, 2, 3)), ValueError, ["kernel_size", "(1, 2, 3)", "pair"]),
    (lambda: F.l2_norm_pool2d(image, 1.5), TypeError, ["kernel_size", "1.5", "integer"]),
    (lambda: F.scaled_avg_pool2d(image, 2, scale=-1.0), ValueError, ["scale", "-1.0", "positive"]),
    (lambda: F.scaled_avg_pool2d(image, "2"), TypeError, ["kernel_size", "'2'", "integer"]),
]


test_bad_arguments_are_named = tools.refusals(BAD)
