"""Frequencies of a convolution's symbol: which are large, and whether any exceeds a bound."""

from __future__ import annotations

import torch
from torch import Tensor


def symbol_grams(even: Tensor, odd: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """sum over terms of even cos + i odd sin, ``(frequencies, batch, n, n)``."""
    real = torch.einsum("bijt,tf->fbij", even, cosines)
    return torch.complex(real, torch.einsum("bijt,tf->fbij", odd, sines))


def symbol_scores(
    even: Tensor, odd: Tensor, cosines: Tensor, sines: Tensor, start: Tensor, steps: int
) -> Tensor:
    """The norm of S x after power iteration, for the Gram matrices S of convolutions' symbols.

    S is the sum over terms of even cos + i odd sin, with ``even`` and ``odd``
    ``(batch, n, n, terms)``, ``cosines`` and ``sines`` ``(terms, frequencies)``; the result is
    ``(frequencies, batch)``.
    """
    grams = symbol_grams(even, odd, cosines, sines)
    x = start.to(grams).expand(grams.shape[:-1]).unsqueeze(-1)
    norm = even.new_zeros(grams.shape[:2])
    for _ in range(steps):
        length = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        x = grams @ torch.where(length > 0, x / length, 0.0)
        norm = torch.linalg.vector_norm(x, dim=(-2, -1))
    return norm


def symbol_exceeds(
    even: Tensor, odd: Tensor, cosines: Tensor, sines: Tensor, thresholds: Tensor
) -> Tensor:
    """0 where no eigenvalue of such a matrix exceeds its threshold ``(batch,)``, else 1 (uint8)."""
    grams = symbol_grams(even, odd, cosines, sines)
    shifted = torch.diag_embed(thresholds.unsqueeze(-1).expand(grams.shape[1:3])) - grams
    return (torch.linalg.cholesky_ex(shifted).info != 0).to(torch.uint8)
