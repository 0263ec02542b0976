"""The linear map between two values of a network, branches included, as the one map that it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .norms import EPS, Norm, dense_matrix, matrix_norm, nonnegative_norm, up

if TYPE_CHECKING:
    from .values import Map, Value

__all__ = ["LinearMap"]

# It is written out as a matrix where that has at most so many elements, with no more than so many
# of them on the smaller side.
_DENSE_ELEMENTS = 2**21
_DENSE_SIDE = 768


class LinearMap:
    """What ``end`` is made of ``start`` by, without constants.

    Args:
        start: an earlier value, in which ``end`` is affine.
        end: the later one.
    """

    def __init__(self, start: Value, end: Value) -> None:
        self.start = start
        self.end = end

    def __call__(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Apply it, or the map that has the absolute values of its coefficients."""
        known: dict[int, Tensor] = {id(self.start): x}

        def at(value: Value) -> Tensor:
            if id(value) not in known:
                step = value.absolute if absolute else value.forward
                assert step is not None
                known[id(value)] = step(*[at(parent) for parent in value.parents])
            return known[id(value)]

        return at(self.end)

    def _steps(self) -> list[Value]:
        found: dict[int, Value] = {}

        def visit(value: Value) -> None:
            if value is not self.start and id(value) not in found:
                found[id(value)] = value
                for parent in value.parents:
                    visit(parent)

        visit(self.end)
        return list(found.values())

    def is_nonnegative(self) -> bool:
        """Whether none of its coefficients is negative, as far as is known."""
        return all(step.absolute is step.forward for step in self._steps())

    def size(self) -> tuple[int, int]:
        """How many elements go in, and how many come out."""
        return self.start.sample.numel(), self.end.sample.numel()

    def absolute_sums(self) -> tuple[Tensor, Tensor]:
        """Sums of the rows and of the columns of the matrix of absolute values."""
        with torch.enable_grad():
            ones = torch.ones(tuple(self.start.shape), dtype=torch.float64, requires_grad=True)
            rows = self(ones, absolute=True)
            (columns,) = torch.autograd.grad(rows.sum(), ones)
        return rows.detach(), columns

    def relative_error(self) -> float:
        """What rounding does to an element of its matrix, relative to that of absolute values."""
        # No operation sums up more terms than it has inputs.
        terms = sum(2 + sum(p.sample.numel() for p in v.parents) for v in self._steps())
        return 2.0 * EPS * terms

    def matrix(self) -> tuple[Tensor, Tensor]:
        """It written out, and a bound of the norm of each row's rounding error."""
        inputs, outputs = self.size()
        matrix = dense_matrix(self, self.start.shape, by_rows=outputs < inputs)
        return matrix, self.absolute_sums()[0].reshape(-1) * self.relative_error()

    def norm_as_matrix(self) -> Norm:
        """Its norm, written out; infinite if it is too large for that."""
        inputs, outputs = self.size()
        small = min(inputs, outputs)
        if inputs * outputs > _DENSE_ELEMENTS or not 0 < small <= _DENSE_SIDE:
            return Norm(math.inf, "", 0.0)
        matrix, _ = self.matrix()
        rows, columns = self.absolute_sums()
        error = self.relative_error() * math.sqrt(float(rows.max()) * float(columns.max()))
        norm, how, margin = matrix_norm(matrix)
        norm = up(norm + error)
        margin += error / norm if norm else 0.0
        return Norm(norm, f"written out as a matrix: {how}", margin)

    def norm_of_magnitudes(self) -> Norm:
        """The norm of the map of its coefficients' absolute values: its own, or more."""
        norm = nonnegative_norm(lambda x: self(x, absolute=True), self.start.shape)
        margin = EPS * (sum(self.size()) + 16.0)
        return Norm(norm, "all at once: how often elements are used", margin)

    def norm_with(self, after: Map) -> float:
        """The norm of ``after`` behind it, if neither has negative coefficients; else infinite."""
        if not self.is_nonnegative():
            return math.inf
        return nonnegative_norm(lambda x: after(self(x)), self.start.shape)
