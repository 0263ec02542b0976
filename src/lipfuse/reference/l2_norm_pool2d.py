"""Euclidean norms of windows side by side."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipfuse.reference._images import from_windows, laid_out_as, widened, windows_of


def l2_norm_pool2d(
    input: Tensor, kernel_height: int, kernel_width: int, ceil_mode: bool, scale: float
) -> Tensor:
    """``scale`` times the Euclidean norm of windows side by side."""
    windows = windows_of(widened(input), (kernel_height, kernel_width), ceil_mode)
    return ((windows * windows).sum((-3, -1)).sqrt() * scale).to(input.dtype)


def l2_norm_pool2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel_height: int,
    kernel_width: int,
    ceil_mode: bool,
    scale: float,
) -> Tensor:
    """``scale g x / norm``; zero where the norm is too small for squares to have digits."""
    wide = widened(input)
    windows = windows_of(wide, (kernel_height, kernel_width), ceil_mode)
    norm = (windows * windows).sum((-3, -1)).sqrt()
    large = norm >= 1024.0 * math.sqrt(torch.finfo(norm.dtype).tiny)
    ratio = torch.where(large, widened(grad) * scale / torch.where(large, norm, 1.0), 0.0)
    values = from_windows(windows * ratio.unsqueeze(-1).unsqueeze(-3), *input.shape[-2:])
    return laid_out_as(input, values.to(input.dtype))
