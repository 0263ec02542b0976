"""The positive and the negative part of every number: MaxMin."""

from __future__ import annotations

import torch
from torch import Tensor


def max_min(input: Tensor, dim: int, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    """``scale`` times the positive and the negative part, one after the other along ``dim``.

    With them which there are of each number: 1 for the positive part, plus 2 for the negative one.
    A comparison with NaN is false: it has both.
    """
    up, down = ~(input <= 0), ~(input >= 0)
    parts = (torch.where(up, input, 0.0), torch.where(down, -input, 0.0))
    signs = up.to(torch.uint8) + 2 * down.to(torch.uint8)
    return torch.cat(parts, dim) * scale, signs if save else signs.new_empty(0)


def max_min_backward(grad: Tensor, signs: Tensor, dim: int, scale: float) -> Tensor:
    """The gradients of the parts that there are; they oppose each other."""
    size = signs.shape[dim]
    first, second = grad.split(size, dim) if size else (grad, grad)
    up, down = (signs & 1) != 0, (signs & 2) != 0
    return (torch.where(up, first, 0.0) - torch.where(down, second, 0.0)) * scale
