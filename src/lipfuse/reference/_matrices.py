"""What the matrices' operators share. A scalar a matrix has the shape of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def outer(u: Tensor, v: Tensor) -> Tensor:
    return u.unsqueeze(-1) * v.unsqueeze(-2)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1))


def each(x: Tensor) -> Tensor:
    """A scalar a matrix, ready to multiply matrices."""
    return x[..., None, None]


def divisor_of(sigma: Tensor, eps: float) -> Tensor:
    """sigma, which may be negative where u and v are stale, kept away from zero."""
    return torch.where(sigma.abs() < eps, eps, sigma)


def largest_singular_value(w: Tensor) -> Tensor:
    """NaN for a matrix that is not finite, where torch raises; 0 for one without elements."""
    if min(w.shape[-2:]) == 0:
        return w.new_zeros(w.shape[:-2])
    finite = torch.isfinite(w).all(-1).all(-1)
    norm = torch.linalg.matrix_norm(torch.where(each(finite), w, torch.zeros_like(w)), ord=2)
    return torch.where(finite, norm, torch.full_like(norm, math.nan))
