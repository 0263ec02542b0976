"""Proven upper bounds of the largest eigenvalues of many positive semidefinite matrices.

That x I - S has a Cholesky factor proves that no eigenvalue of S exceeds x: for a fraction of the
price of eigenvalues, which are computed only for the few matrices that may have the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional, Protocol

import torch
from torch import Tensor

__all__ = [
    "Family",
    "Proven",
    "Stack",
    "cholesky_margin",
    "exceeds",
    "lanczos",
    "prove_largest",
    "start_vector",
]

# Up to this size eigenvalues are computed directly, beyond by Lanczos' iteration.
_DIRECT = 64
# How far above an estimate the first, second, ... attempt at a proof goes, relative.
_SLACKS = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# Matrices of each owner whose eigenvalues are computed in one attempt: those that power iteration
# finds to be the largest.
_FEW = 8
# Steps of power iteration and of Lanczos' in the first attempt; twice and then four times
# as many in those that follow.
_POWER_STEPS = 8
_LANCZOS_STEPS = 24


@dataclass(frozen=True)
class Proven:
    """What is known of the largest eigenvalue of each owner's matrices."""

    bound: Tensor
    """(g,): no eigenvalue is larger, for the matrices as they are given and up to
    :func:`cholesky_margin`."""
    value: Tensor
    """(g,): about the largest eigenvalue, from below; 0 where all lie below the bound given."""
    index: Tensor
    """(g,): of the matrix that has it; any where value is 0."""
    vector: Tensor
    """(g, n): its unit eigenvector."""


def cholesky_margin(size: int, dtype: torch.dtype) -> float:
    """How much larger than proven an eigenvalue may be at most, relative, for rounding.

    That is the trace of what has a Cholesky factor, at most ``size`` times what is proven, times
    the unit roundoff for every operation on an element, and half as much again for complex ones
    (Rump, "Verification of positive definiteness", BIT 2006).
    """
    return 1.5 * size * (size + 2) * torch.finfo(dtype).eps


class Family(Protocol):
    """Hermitian, positive semidefinite, finite matrices, ``count`` for each of ``owners``.

    Matrix i of owner j has the number ``i * owners + j``.
    """

    count: int
    owners: int
    size: int

    def at(self, which: Tensor) -> Tensor:
        """The matrices of these numbers, ``(k, n, n)``."""
        ...

    def exceeds(self, which: Tensor, bound: Tensor) -> Tensor:
        """Of each of these numbers, whether an eigenvalue may exceed the bound ``(owners,)``."""
        ...

    def scores(self, start: Tensor, steps: int) -> Tensor:
        """Of each number, the norm of the product after so many power iterations."""
        ...


class Stack:
    """A family in memory, ``(count, owners, n, n)``."""

    def __init__(self, matrices: Tensor) -> None:
        self.count, self.owners, self.size = matrices.shape[:3]
        self._flat = matrices.reshape(-1, self.size, self.size)

    def at(self, which: Tensor) -> Tensor:
        return self._flat[which]

    def exceeds(self, which: Tensor, bound: Tensor) -> Tensor:
        some = self._flat if len(which) == len(self._flat) else self._flat[which]
        return exceeds(some, bound[which % self.owners])

    def scores(self, start: Tensor, steps: int) -> Tensor:
        x = start.to(self._flat).expand(len(self._flat), -1).unsqueeze(-1)
        for _ in range(steps):
            x = self._flat @ (x / torch.linalg.vector_norm(x, dim=1, keepdim=True))
        return torch.linalg.vector_norm(x, dim=1).squeeze(-1)


def prove_largest(family: Family, bound: Tensor) -> Proven:
    """The largest eigenvalue of all matrices of each owner.

    Args:
        family: the matrices.
        bound: ``(owners,)``, in their precision: a bound from elsewhere to stay at if it holds, or
            zeros.
    """
    g, n = family.owners, family.size
    pending = torch.arange(family.count * g, device=bound.device)
    value = torch.zeros_like(bound)
    index = torch.zeros_like(bound, dtype=torch.int64)
    if n == 1:
        diagonal = family.at(pending).real.reshape(-1, g)
        found = diagonal.max(0)
        ones = torch.ones(g, 1, dtype=bound.dtype, device=bound.device)
        return Proven(torch.maximum(bound, found.values), found.values, found.indices, ones)
    if bool((bound > 0).any()):
        pending = pending[family.exceeds(pending, bound)]
    vector: Optional[Tensor] = None
    often = 1
    tiny = torch.finfo(bound.dtype).tiny
    # What is much less than the margin is not worth an attempt.
    least = cholesky_margin(n, bound.dtype) / 16
    for slack in [s for s in _SLACKS if s >= least]:
        if not len(pending):
            break
        look = _likely(family, pending, often * _POWER_STEPS)
        owner = look % g
        values, vectors = _largest(family.at(look), often * _LANCZOS_STEPS)
        best = value.scatter_reduce(0, owner, values, "amax")
        top = (values == best[owner]) & (best > value)[owner]
        index[owner[top]] = look[top] // g
        if vectors is not None:
            vector = vectors.new_zeros(g, n) if vector is None else vector
            vector[owner[top]] = vectors[top]
        value, bound = best, torch.maximum(bound, best * (1 + slack))
        # Zero matrices lie below every threshold but zero.
        pending = pending[family.exceeds(pending, bound.clamp_min(tiny))]
        often = min(2 * often, 4)
    else:  # never seen; rather a loose bound than none
        norms = torch.linalg.matrix_norm(family.at(pending))
        bound = bound.scatter_reduce(0, pending % g, norms, "amax")
    if vector is None and not bool(value.any()):
        vector = family.at(index[:1]).new_zeros((g, n))
    elif vector is None:
        numbers = index * g + torch.arange(g, device=bound.device)
        vector = torch.linalg.eigh(family.at(numbers))[1][:, :, -1]
    return Proven(bound, value, index, vector)


def exceeds(matrices: Tensor, thresholds: Tensor) -> Tensor:
    """Which of the matrices ``(k, n, n)`` may have an eigenvalue above their threshold."""
    shifted = -matrices
    shifted.diagonal(dim1=-2, dim2=-1).add_(thresholds.unsqueeze(-1))
    return torch.linalg.cholesky_ex(shifted).info != 0


def _likely(family: Family, pending: Tensor, steps: int) -> Tensor:
    """Those of the pending that seem to have the largest eigenvalues, a few of each owner."""
    if len(pending) <= _FEW * family.owners:
        return pending
    scores = family.scores(start_vector(family.size).to(pending.device), steps)
    of_pending = torch.full_like(scores, -1.0)
    of_pending[pending] = scores[pending]
    table = of_pending.reshape(family.count, family.owners)
    last = table.topk(min(family.count, _FEW), dim=0).values[-1].clamp_min(0)
    return pending[scores[pending] >= last[pending % family.owners]]


def _largest(matrices: Tensor, steps: int) -> tuple[Tensor, Optional[Tensor]]:
    """The largest eigenvalues, from below, and their vectors where they come for nothing."""
    size = matrices.shape[-1]
    if size <= _DIRECT:
        return torch.linalg.eigvalsh(matrices)[:, -1].clamp_min(0), None
    start = start_vector(size).to(matrices).expand(len(matrices), size)
    return lanczos(_multiplying(matrices), start, min(steps, size))


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
        start: ``(m, n)``.
        steps: how often.
    """
    rounding = 1e4 * torch.finfo(start.dtype).eps
    basis, products = [_unit(start)], []
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
    return values[:, -1], _unit(ritz)


def _unit(x: Tensor) -> Tensor:
    """Of length 1, but zero where it is zero."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(length > 0, x / length, 0.0)
