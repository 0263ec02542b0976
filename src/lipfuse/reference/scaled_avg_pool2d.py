"""Sums of windows over the root of their sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from lipfuse.reference._images import from_windows, widened, windows_of


def _window_factors(
    like: Tensor, height: int, width: int, kernel: tuple[int, int], ceil_mode: bool, scale: float
) -> Tensor:
    ones = torch.ones((1, height, width), dtype=torch.float64, device=like.device)
    counts = windows_of(ones, kernel, ceil_mode).sum((-3, -1))
    return (scale / counts.sqrt()).to(like.dtype)


def scaled_avg_pool2d(
    input: Tensor, kernel_height: int, kernel_width: int, ceil_mode: bool, scale: float
) -> Tensor:
    """``scale`` times the sum of each window over the root of its size."""
    kernel, wide = (kernel_height, kernel_width), widened(input)
    height, width = input.shape[-2:]
    factors = _window_factors(wide, height, width, kernel, ceil_mode, scale)
    return (windows_of(wide, kernel, ceil_mode).sum((-3, -1)) * factors).to(input.dtype)


def scaled_avg_pool2d_backward(
    grad: Tensor,
    height: int,
    width: int,
    kernel_height: int,
    kernel_width: int,
    ceil_mode: bool,
    scale: float,
) -> Tensor:
    """The adjoint: each element gets its window's gradient, scaled."""
    kernel, wide = (kernel_height, kernel_width), widened(grad)
    values = wide * _window_factors(wide, height, width, kernel, ceil_mode, scale)
    spread = values.unsqueeze(-1).unsqueeze(-3)
    shape = (*values.shape[:-1], kernel_height, values.shape[-1], kernel_width)
    windows = spread.expand(*shape)
    return from_windows(windows, height, width).to(grad.dtype)
