r"""Pooling that is 1-Lipschitz and keeps the norm of gradients.

Windows do not overlap, so the Lipschitz constant of the layer is that of a single window. A mean of
:math:`m` elements has the constant :math:`1/\sqrt m`; times :math:`\sqrt m` it is exactly 1. The
Euclidean norm of a window has a gradient of norm 1 wherever it is not zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from .._checks import check_bool, check_int_or_pair, check_positive, check_tensor
from ..ops.l2_norm_pool2d import l2_norm_pool2d as native_l2
from ..ops.l2_norm_pool2d import takes as has_l2_kernel
from ..ops.scaled_avg_pool2d import scaled_avg_pool2d as native_avg
from ..ops.scaled_avg_pool2d import takes as has_avg_kernel

__all__ = ["l2_norm_pool2d", "scaled_avg_pool2d"]


def _check_image(input: Tensor, kernel: tuple[int, int], ceil_mode: bool) -> None:
    check_tensor("input", input)
    check_bool("ceil_mode", ceil_mode)
    if input.dim() not in (3, 4):
        raise ValueError(
            f"input must have shape (N, C, H, W) or (C, H, W), got {tuple(input.shape)}"
        )
    height, width = input.shape[-2:]
    least_height, least_width = (1, 1) if ceil_mode else kernel
    if height < least_height or width < least_width:
        raise ValueError(
            f"input must be at least {least_height} x {least_width} for kernel_size {kernel}, "
            f"got {height} x {width}"
        )


def window_means(input: Tensor, kernel: tuple[int, int], ceil_mode: bool) -> Tensor:
    """The sum of each window over the kernel's area, with ``ceil_mode`` also of windows cut off.

    In operations that mean the same everywhere: torch's exporter to ONNX drops
    ``divisor_override`` without a word, and torch.compile (2.13) differentiates windows that
    torch's own ``ceil_mode`` cuts off wrongly.
    """
    if ceil_mode:
        missing = (0, -input.shape[-1] % kernel[1], 0, -input.shape[-2] % kernel[0])
        input = torch_functional.pad(input, missing)
    return torch_functional.avg_pool2d(input, kernel)


def window_counts(input: Tensor, kernel: tuple[int, int]) -> Tensor:
    """How many elements each window holds, of shape (1, H', W'): fewer where it is cut off."""
    ones = input.new_ones((1, input.shape[-2], input.shape[-1]))
    return (window_means(ones, kernel, True) * (kernel[0] * kernel[1])).round()


def scaled_avg_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    ceil_mode: bool = False,
    scale: float = 1.0,
) -> Tensor:
    r"""Sum of each window over the square root of its size: a ``scale``-Lipschitz mean.

    .. math:: \mathrm{out}_w = \frac{\mathrm{scale}}{\sqrt{|w|}} \sum_{i \in w} x_i

    Args:
        input: floating-point tensor of shape ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: the size of the windows, which lie side by side.
        ceil_mode: whether elements that do not fill a window get a window of their own, cut off at
            the border: it is scaled by its own size.
        scale: the Lipschitz constant: positive and finite.

    Returns:
        A tensor of shape ``(..., H / kernel, W / kernel)``, rounded down, or up with ``ceil_mode``.

    Raises:
        TypeError: if ``input`` is not a floating-point tensor, or ``kernel_size`` no integers.
        ValueError: if the rank is wrong, or the image smaller than a window.
    """
    kernel = check_int_or_pair("kernel_size", kernel_size)
    factor = check_positive("scale", scale)
    _check_image(input, kernel, ceil_mode)
    if has_avg_kernel(input):
        return native_avg(input, kernel, ceil_mode, factor)
    height, width = input.shape[-2:]
    area = kernel[0] * kernel[1]
    if ceil_mode and (height % kernel[0] != 0 or width % kernel[1] != 0):
        mean = window_means(input, kernel, True)
        return mean * (window_counts(input, kernel).rsqrt() * (area * factor))
    mean = torch_functional.avg_pool2d(input, kernel)
    factor *= math.sqrt(area)
    return mean if factor == 1.0 else mean * factor


def l2_norm_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    ceil_mode: bool = False,
    scale: float = 1.0,
) -> Tensor:
    r"""Euclidean norm of each window, times ``scale``: so long is its gradient, too.

    .. math:: \mathrm{out}_w = \mathrm{scale}\,\Bigl(\sum_{i \in w} x_i^2\Bigr)^{1/2}

    The gradient in a window of zeros, where the norm has none, is zero, and so are the second
    derivatives; windows of a norm below :math:`2^{10}` times the root of the smallest normal number
    (1e-16 in float32) count as such. Half precision is computed in float32.

    Args:
        input: floating-point tensor of shape ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: the size of the windows, which lie side by side.
        ceil_mode: whether elements that do not fill a window get a window of their own, cut off at
            the border.
        scale: the Lipschitz constant: positive and finite.

    Returns:
        A tensor of shape ``(..., H / kernel, W / kernel)``, rounded down, or up with ``ceil_mode``.

    Raises:
        TypeError: if ``input`` is not a floating-point tensor, or ``kernel_size`` no integers.
        ValueError: if the rank is wrong, the image smaller than a window, or ``scale`` not positive
            and finite.

    References:
        Y.-L. Boureau, J. Ponce, Y. LeCun, *A theoretical analysis of feature pooling in visual
        recognition*, ICML 2010.
    """
    kernel = check_int_or_pair("kernel_size", kernel_size)
    scale = check_positive("scale", scale)
    _check_image(input, kernel, ceil_mode)
    if has_l2_kernel(input):
        return native_l2(input, kernel, ceil_mode, scale)
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    pooled = _l2_pool(wide, kernel, ceil_mode)
    return (pooled if scale == 1.0 else pooled * scale).to(input.dtype)


def _l2_pool(input: Tensor, kernel: tuple[int, int], ceil_mode: bool) -> Tensor:
    """L2 pooling where there is no kernel for it, or a compiler or transform is at work."""
    apply: Any = _L2Pool.apply  # untyped in torch
    pooled: Tensor = apply(input, kernel, ceil_mode)
    return pooled


class _L2Pool(torch.autograd.Function):
    """Euclidean norms of windows, with a backward that is itself differentiable and never NaN.

    Autograd's own derivative divides by the norm and multiplies by zero afterwards, which is NaN in
    a window of zeros; masking that heals the first derivative but not the second.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, kernel: tuple[int, int], ceil_mode: bool) -> Tensor:
        return (window_means(input * input, kernel, ceil_mode) * (kernel[0] * kernel[1])).sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.kernel, _ = inputs
        ctx.save_for_backward(input, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        input, norm = ctx.saved_tensors
        # Well above the root of the smallest normal number, below which squares lose all their
        # digits, so that the second derivative does not overflow either.
        large = norm >= 1024.0 * math.sqrt(torch.finfo(norm.dtype).tiny)
        # The inner where keeps the division out of zero, in every derivative of this line too.
        ratio = torch.where(large, grad_outputs[0] / torch.where(large, norm, 1.0), 0.0)
        return _times_window_value(input, ratio, ctx.kernel), None, None


def _times_window_value(input: Tensor, value: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Multiply each element by the value of the window it is in, or by 0 if it is in none."""
    (height, width), (rows, columns) = input.shape[-2:], value.shape[-2:]
    spread = value.unsqueeze(-1).unsqueeze(-3)
    # reshape, not flatten: the batched gradients of torch.autograd have no rule for flatten.
    if rows * kernel[0] == height and columns * kernel[1] == width:
        windows = torch.unflatten(input, -1, (columns, kernel[1]))
        windows = torch.unflatten(windows, -3, (rows, kernel[0]))
        return (windows * spread).reshape(input.shape)
    leading = value.shape[:-2]
    spread = spread.expand(*leading, rows, kernel[0], columns, kernel[1])
    spread = spread.reshape(*leading, rows * kernel[0], columns * kernel[1])
    # A negative pad cuts off what the last windows would have covered beyond the border.
    missing = (0, width - columns * kernel[1], 0, height - rows * kernel[0])
    return input * torch_functional.pad(spread, missing)
