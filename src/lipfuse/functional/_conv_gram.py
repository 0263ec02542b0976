"""The largest singular value of a convolution given axis by axis, proven from above.

The convolution's matrix is A = sum_j W_j x T_j over the taps j, with T_j the Kronecker product of
one matrix an axis (:mod:`._conv_axis`). Its Gram matrix A*A is put together from the products
W_j' W_k of the weight and T_j* T_k of each axis, one axis after the other, so that nothing larger
than the result is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .._proof import Stack, cholesky_margin, prove_largest
from ._conv_axis import Table

__all__ = ["Largest", "largest_norm"]

_EPS = torch.finfo(torch.float64).eps
# Elements of the Gram matrices that are in memory at a time.
_CHUNK = 1 << 23


@dataclass(frozen=True)
class Largest:
    """The largest norm of several matrices."""

    bound: float
    """No singular value is larger; rounding included."""
    estimate: float
    """About the largest singular value, from below."""
    patches: Optional[Tensor]
    """What the weight meets in the input that attains the estimate: complex, ``(inputs and taps,
    n)``; ``weight[group].flatten(1) @ patches`` is the output. None for a zero weight."""
    group: int = 0
    transposed: bool = False
    """Whether the patches are those of the adjoint, with inputs and outputs exchanged."""


def largest_norm(weight: Tensor, combinations: Iterable[list[Table]]) -> Largest:
    """The largest norm of a convolution over combinations of one table an axis.

    Args:
        weight: ``(groups, outputs, inputs, taps of axis 1, ...)``, float64, finite.
        combinations: of tables, in the order of the axes.
    """
    search = _Search()
    for tables in combinations:
        search.look_at(weight, tables)
    return search.result(weight)


class _Search:
    def __init__(self) -> None:
        self.proven = 0.0  # no eigenvalue seen so far is larger, as far as its matrix is exact
        self.error = 0.0  # of the matrices
        self.margin = 0.0  # of the proofs
        self.estimate = 0.0
        self.where: Optional[tuple[list[Tensor], Tensor, int, bool]] = None

    def look_at(self, weight: Tensor, tables: list[Table]) -> None:
        matrices = [m.to(weight.device) for m in _of_half_the_frequencies(tables)]
        inputs = weight.shape[2] * math.prod(m.shape[3] for m in matrices)
        outputs = weight.shape[1] * math.prod(m.shape[2] for m in matrices)
        transposed = outputs < inputs
        if transposed:
            weight, matrices = weight.transpose(1, 2), [m.mH for m in matrices]
        size = min(inputs, outputs)
        self.error = max(self.error, _rounding(weight, matrices))
        for grams, places in _grams(weight, matrices):
            before = torch.full((1,), self.proven, dtype=torch.float64, device=grams.device)
            found = prove_largest(Stack(grams.unsqueeze(1)), before)
            self.proven = float(found.bound)
            if float(found.value) > self.estimate:
                self.estimate = float(found.value)
                group, *frequencies = places(int(found.index))
                chosen = [m[f] for m, f in zip(matrices, frequencies)]
                self.where = chosen, found.vector[0], group, transposed
        self.margin = max(self.margin, cholesky_margin(size, torch.float64))

    def result(self, weight: Tensor) -> Largest:
        bound = math.sqrt(self.proven * (1 + self.margin) + self.error) * (1 + 4 * _EPS)
        if self.where is None:
            return Largest(bound, 0.0, None)
        matrices, vector, group, transposed = self.where
        inputs = weight.shape[1 if transposed else 2]
        x = vector.to(torch.complex128).reshape(inputs, *(m.shape[-1] for m in matrices))
        # One axis after the other: (..., pixels of the axis) to (tap, ..., outputs of the axis).
        for m in matrices:
            x = torch.einsum("jml,il...->i...jm", m.to(x.dtype), x)
        # (input, tap 1, outputs 1, tap 2, ...) to (input, taps..., outputs...)
        axes = len(matrices)
        x = x.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2))
        return Largest(
            bound,
            math.sqrt(self.estimate),
            x.flatten(axes + 1).flatten(0, axes),
            group,
            transposed,
        )


def _of_half_the_frequencies(tables: list[Table]) -> list[Tensor]:
    """The matrices, gains included. Of a real convolution, opposite frequencies are conjugate."""
    repeating = [i for i, t in enumerate(tables) if not t.is_dense]
    if repeating:
        tables = list(tables)
        tables[repeating[0]] = tables[repeating[0]].half()
    return [t.matrices * t.gain for t in tables]


def _rounding(weight: Tensor, matrices: list[Tensor]) -> float:
    """What rounding may add to an eigenvalue of the Gram matrices as they are computed.

    Every element is off by at most the unit roundoff times the number of operations it takes and
    the same sum of absolute values, of norm (sum_j |W_j| |T_j|)^2 at most.
    """
    sizes = torch.linalg.vector_norm(weight, dim=(1, 2)).amax(0)
    for m in matrices:
        absolute = m.abs()
        norms = (absolute.sum(-1).amax(-1) * absolute.sum(-2).amax(-1)).sqrt().amax(0)
        sizes = torch.tensordot(sizes, norms, dims=([0], [0]))
    operations = weight.shape[1] + sum(m.shape[1] ** 2 * m.shape[2] for m in matrices) + 64
    return 4 * operations * _EPS * float(sizes) ** 2


def _grams(
    weight: Tensor, matrices: list[Tensor]
) -> Iterator[tuple[Tensor, Callable[[int], tuple[int, ...]]]]:
    """A*A for every group and combination of frequencies, in parts ``(m, n, n)``.

    With each part, what tells the group and the frequencies of its m-th matrix.
    """
    groups, inputs, axes = weight.shape[0], weight.shape[2], len(matrices)
    # The axis with the most frequencies comes last, and is divided.
    order = sorted(range(axes), key=lambda a: -len(matrices[a]))
    flat = weight.permute(0, 1, *(3 + a for a in order), 2).flatten(2)
    taps = [weight.shape[3 + a] for a in order]
    products = (flat.mT @ flat).reshape(groups, *taps, inputs, *taps, inputs)
    pairs = [d for a in range(axes) for d in (1 + a, axes + 2 + a)]
    x = products.permute(0, axes + 1, 2 * axes + 2, *pairs)
    factors = [torch.einsum("bjml,bkmn->jkbln", m.conj(), m) for m in (matrices[a] for a in order)]
    if any(f.is_complex() for f in factors):
        factors = [f.to(torch.complex128) for f in factors]
        x = x.to(torch.complex128)
    # Every product moves what an axis becomes to the front: (b, l, l') before the axes after it.
    for f in factors[:0:-1]:
        x = (x.flatten(-2) @ f.flatten(2).flatten(0, 1)).movedim(-1, 0)
    sizes = [f.shape[2:] for f in factors]
    others = math.prod(b * n * n for b, n, _ in sizes[1:]) * groups * inputs**2
    count, local, _ = sizes[0]
    most = max(1, _CHUNK // (others * local**2))
    for first in range(0, count, most):
        part = factors[0][:, :, first : first + most]
        y = (x.flatten(-2) @ part.flatten(2).flatten(0, 1)).movedim(-1, 0)
        shape = (part.shape[2], *sizes[0][1:])
        y = y.reshape(*shape, *(n for s in sizes[1:] for n in s), groups, inputs, inputs)
        by_axis = sorted(range(axes), key=lambda i: order[i])
        y = y.permute(
            3 * axes,
            *(3 * i for i in by_axis),
            3 * axes + 1,
            *(3 * i + 1 for i in by_axis),
            3 * axes + 2,
            *(3 * i + 2 for i in by_axis),
        )
        batch = y.shape[: axes + 1]
        size = inputs * math.prod(n for _, n, _ in sizes)

        def places(
            index: int, batch: tuple[int, ...] = batch, first: int = first
        ) -> tuple[int, ...]:
            found = [int(i) for i in torch.unravel_index(torch.tensor(index), batch)]
            found[1 + order[0]] += first
            return tuple(found)

        yield y.reshape(-1, size, size), places
