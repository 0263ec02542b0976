"""Pairs of channels in ascending order: GroupSort2."""

from __future__ import annotations

import torch
from torch import Tensor

from lipfuse.reference._images import laid_out_as


def _exchanged(input: Tensor, swap: Tensor, dim: int, scale: float) -> Tensor:
    first, second = torch.unflatten(input, dim, (-1, 2)).unbind(dim if dim < 0 else dim + 1)
    low, high = torch.where(swap, second, first), torch.where(swap, first, second)
    pairs = torch.stack((low, high), dim if dim < 0 else dim + 1)
    return pairs.flatten(dim - 1 if dim < 0 else dim, dim if dim < 0 else dim + 1) * scale


def sort_pairs(input: Tensor, dim: int, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    """Pairs (0, 1), (2, 3), ... along ``dim`` in ascending order, and which were swapped: 1, or 0.

    Comparing with NaN is false: such a pair stays as it is. Numbers, not booleans: compilers bring
    those into another layout one by one.
    """
    if input.shape[dim] == 0:
        return input.clone(), input.new_empty(input.shape if save else 0, dtype=torch.uint8)
    pairs = torch.unflatten(input, dim, (-1, 2))
    first, second = pairs.unbind(dim if dim < 0 else dim + 1)
    swap = first > second
    out = laid_out_as(input, _exchanged(input, swap, dim, scale))
    return out, swap.to(torch.uint8) if save else input.new_empty(0, dtype=torch.uint8)


def sort_pairs_backward(grad: Tensor, swapped: Tensor, dim: int, scale: float) -> Tensor:
    """The Jacobian is a symmetric permutation matrix: the same pairs are swapped."""
    if grad.shape[dim] == 0:
        return grad.clone()
    return _exchanged(grad, swapped != 0, dim, scale)
