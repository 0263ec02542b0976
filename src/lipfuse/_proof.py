"""Proven upper bounds of the largest eigenvalues of many positive semidefinite matrices.

That x I - S has a Cholesky factor proves that no eigenvalue of S exceeds x: for a fraction of the
price of eigenvalues, which are computed only for the few matrices that may have the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Proven", "cholesky_margin", "lanczos", "prove_largest", "start_vector"]

# Up to this size eigenvalues are computed directly, beyond by Lanczos' iteration.
_DIRECT = 64
# How far above an estimate the first, second, ... attempt at a proof goes, relative; and the steps
# of Lanczos' iteration that it takes.
_ATTEMPTS = ((1e-9, 24), (1e-7, 48), (1e-6, 48), (1e-5, 96), (1e-4, 96), (1e-3, 96), (1e-2, 96))
# Matrices of each owner whose eigenvalues are computed first: those that a few power iterations
# find to be large.
_FIRST = 8
_POWER_STEPS = 3


@dataclass(frozen=True)
class Proven:
    """What is known of the largest eigenvalue of each owner's matrices."""

    bound: Tensor
    """(g,): no eigenvalue is larger, for the matrices as they are given and up to
    :func:`cholesky_margin`."""
    value: Tensor
    """(g,): about the largest eigenvalue, from below; 0 where all lie below the bound given."""
    index: Tensor
    """(g,): of the matrix that has it."""
    vector: Tensor
    """(g, n): its unit eigenvector."""


def cholesky_margin(size: int, dtype: torch.dtype) -> float:
    """How much larger than proven an eigenvalue may be at most, relative, for rounding.

    That is the trace of what has a Cholesky factor, at most ``size`` times what is proven, times
    the unit roundoff for every operation on an element, and half as much again for complex ones
    (Rump, "Verification of positive definiteness", BIT 2006).
    """
    return 1.5 * size * (size + 2) * torch.finfo(dtype).eps


def prove_largest(matrices: Tensor, bound: Tensor) -> Proven:
    """The largest eigenvalue of all matrices of each owner.

    Args:
        matrices: ``(m, g, n, n)``, Hermitian, positive semidefinite and finite, real or complex: m
            for each of g owners.
        bound: ``(g,)``, of the same precision, a bound from elsewhere to stay at if it holds; or zeros.
    """
    m, g, n = matrices.shape[:3]
    if n == 1:
        found = matrices[:, :, 0, 0].real.max(0)
        return Proven(
            torch.maximum(bound, found.values),
            found.values,
            found.indices,
            matrices.new_ones(g, 1),
        )
    flat = matrices.reshape(m * g, n, n)
    owner = torch.arange(m * g, device=flat.device) % g
    value = torch.zeros_like(bound)
    index = torch.zeros(g, dtype=torch.int64, device=flat.device)
    pending = torch.arange(m * g, device=flat.device)
    if bool((bound > 0).any()):
        pending = pending[_exceeds(flat, bound[owner])]
    look = _likely(flat, pending, m, g)
    least = 16 * torch.finfo(bound.dtype).eps
    for slack, steps in _ATTEMPTS:
        if not len(look):
            break
        if slack < least:
            continue
        values = _largest(flat[look], steps)
        best = value.scatter_reduce(0, owner[look], values, "amax")
        at = values == best[owner[look]]
        index[owner[look[at]]] = look[at] // g
        value, bound = best, torch.maximum(bound, best * (1 + slack))
        tried = flat if len(pending) == len(flat) else flat[pending]
        pending = pending[_exceeds(tried, bound[owner[pending]])]
        look = pending
    else:  # never seen; rather a loose bound than none
        norms = torch.linalg.matrix_norm(flat[pending])
        bound = bound.scatter_reduce(0, owner[pending], norms, "amax")
    chosen = matrices[index, torch.arange(g, device=flat.device)]
    if not bool(value.any()):
        vector = chosen.new_zeros(g, n)
    elif n <= _DIRECT:
        vector = torch.linalg.eigh(chosen)[1][:, :, -1]
    else:
        start = start_vector(n).to(chosen).expand(g, n)
        vector = lanczos(_multiplying(chosen), start, 48)[1]
    return Proven(bound, value, index, vector)


def _exceeds(matrices: Tensor, thresholds: Tensor) -> Tensor:
    """Which of the matrices may have an eigenvalue above their threshold."""
    shifted = -matrices
    shifted.diagonal(dim1=-2, dim2=-1).add_(thresholds.unsqueeze(-1))
    return torch.linalg.cholesky_ex(shifted).info != 0


def _likely(flat: Tensor, pending: Tensor, m: int, g: int) -> Tensor:
    """The few of each owner's pending matrices that seem to have the largest eigenvalues."""
    if len(pending) <= _FIRST * g:
        return pending
    some = flat if len(pending) == len(flat) else flat[pending]
    x = start_vector(flat.shape[-1]).to(flat).expand(len(pending), -1).unsqueeze(-1)
    for _ in range(_POWER_STEPS):
        x = some @ (x / torch.linalg.vector_norm(x, dim=1, keepdim=True))
    scores = torch.full((m * g,), -1.0, dtype=x.real.dtype, device=flat.device)
    scores[pending] = torch.linalg.vector_norm(x, dim=1).squeeze(-1)
    top = scores.reshape(m, g).topk(min(m, _FIRST), dim=0)
    flat_index = top.indices * g + torch.arange(g, device=flat.device)
    return flat_index[top.values >= 0]


def _largest(matrices: Tensor, steps: int) -> Tensor:
    size = matrices.shape[-1]
    if size <= _DIRECT:
        return torch.linalg.eigvalsh(matrices)[:, -1].clamp_min(0)
    start = start_vector(size).to(matrices).expand(len(matrices), size)
    return lanczos(_multiplying(matrices), start, min(steps, size))[0]


def _multiplying(matrices: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (matrices @ x.unsqueeze(-1)).squeeze(-1)


def start_vector(size: int) -> Tensor:
    """Fixed, and without a symmetry that an eigenvector could have."""
    return torch.sin(torch.arange(1, size + 1, dtype=torch.float64) ** 2)


def lanczos(
    multiply: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues ``(m,)`` of m Hermitian matrices, from below, and unit vectors.

    Args:
        multiply: multiplies vectors ``(m, n)`` by their matrices.
        start: ``(m, n)``, not zero.
        steps: how often.
    """
    rounding = 1e4 * torch.finfo(start.dtype).eps
    basis, products = [start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)], []
    for _ in range(steps):
        products.append(multiply(basis[-1]))
        known, new = torch.stack(basis, -1), products[-1]
        for _ in range(2):  # twice is enough
            new = new - (known @ (known.mH @ new.unsqueeze(-1))).squeeze(-1)
        length = torch.linalg.vector_norm(new, dim=-1, keepdim=True)
        # What rounding leaves where the products span no more is no direction.
        least = torch.linalg.vector_norm(products[-1], dim=-1, keepdim=True) * rounding
        basis.append(torch.where(length > least, new / length, 0.0))
    known = torch.stack(basis[:-1], -1)
    small = known.mH @ torch.stack(products, -1)
    values, vectors = torch.linalg.eigh((small + small.mH) / 2)
    ritz = (known @ vectors[:, :, -1:]).squeeze(-1)
    return values[:, -1], ritz / torch.linalg.vector_norm(ritz, dim=-1, keepdim=True)
