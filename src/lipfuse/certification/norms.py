"""Upper bounds of the norms of linear maps, in float64, each with a margin for its own rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Union

import torch
from torch import Tensor

from .. import functional as F

__all__ = [
    "EPS",
    "Norm",
    "conv_norm",
    "dense_matrix",
    "matrix_norm",
    "nonnegative_norm",
    "up",
]

EPS = 2.0**-52
"""The spacing of float64 at 1: twice the relative error of one operation."""

# Up to this size of the smaller side all eigenvalues are computed; beyond, one is and is proven.
_EXACT_SIDE = 1024


class Norm(NamedTuple):
    """A bound, how it was obtained, and what of it is the margin for rounding, relative to it."""

    bound: float
    method: str
    margin: float


def up(value: float, operations: float = 1.0) -> float:
    """``value`` and what so many roundings may have taken away from it."""
    return value * (1.0 + operations * EPS)


def matrix_norm(weight: Tensor) -> Norm:
    r"""The largest singular value of a matrix, or the largest of a batch of them.

    The eigenvalues of the smaller Gram matrix G are computed in float64. Its rounding error is at
    most :math:`m\,\epsilon\,\|A\|_F^2 \le m n\,\epsilon\,\|A\|^2` for a sum of m products in each
    of n x n elements; the margin covers that and the eigenvalue solver. A large matrix is bounded
    by :func:`lipfuse.functional.spectral_norm_bound` instead.

    Args:
        weight: ``(..., m, n)``, finite.
    """
    if weight.numel() == 0:
        return Norm(0.0, "empty weight", 0.0)
    w = weight.detach().double().cpu()
    w = w.reshape(-1, *w.shape[-2:])
    # A power of two, so that squares neither overflow nor vanish.
    largest = float(w.abs().max())
    if largest == 0.0:
        return Norm(0.0, "zero weight", 0.0)
    unit = 2.0 ** math.floor(math.log2(largest))
    w = w / unit
    rows, columns = w.shape[-2:]
    small, large = min(rows, columns), max(rows, columns)
    if small > _EXACT_SIDE:
        bound = float(F.spectral_norm_bound(w).max())
        # Its margins for rounding and for what its estimate misses are in it.
        return Norm(up(bound * unit, 2), "proven bound of the largest singular value, float64", 0.0)
    gram = w @ w.mT if rows <= columns else w.mT @ w
    eigenvalue = float(torch.linalg.eigvalsh(gram)[..., -1].max())
    sigma = math.sqrt(max(eigenvalue, 0.0)) * unit
    operations = small * (large + 16.0)
    return Norm(up(sigma, operations), "largest singular value, float64", operations * EPS)


def nonnegative_norm(function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> float:
    r"""An upper bound of the norm of a linear map whose matrix M has no negative element.

    For every positive vector v, :math:`\|M\|^2 \le \max_i (M^\top M v)_i / v_i` (Collatz and
    Wielandt). Iterating :math:`v \leftarrow M^\top M v` lowers it to the norm itself. It is exact
    at once where M's rows are disjoint: for pads, copies, selections and pools whose windows do not
    overlap.

    Args:
        function: the map, differentiable by autograd.
        shape: of its input.
    """
    v = torch.ones(tuple(shape), dtype=torch.float64)
    best = math.inf
    terms, idle = 0.0, 0
    for _ in range(60):
        with torch.enable_grad():
            x = v.requires_grad_()
            y = function(x)
            if y.numel() == 0 or not y.requires_grad:
                return 0.0
            (w,) = torch.autograd.grad(y, x, y.detach())
        if float(y.detach().min()) < 0.0 or float(w.min()) < 0.0:
            raise ValueError("has negative coefficients where none are allowed")
        terms = float(x.numel() + y.numel())
        v = v.detach()
        found = float((w / v).max())
        # The largest quotient may stand still while others fall: that goes on to it in the end.
        idle = 0 if found < best * (1.0 - 1e-6) else idle + 1
        best = min(best, found)
        if idle == 6 or found <= float((w / v).min()) * (1.0 + 1e-9):
            break
        # An element that nothing uses has a zero column: any positive value does for it.
        v = (w / w.max().clamp_min(1e-300)).clamp_min(1e-9)
    # Sums of terms that are not negative: no cancellation.
    return up(math.sqrt(best), terms + 16.0)


def dense_matrix(
    function: Callable[[Tensor], Tensor], shape: Sequence[int], by_rows: bool
) -> Tensor:
    """The matrix of a linear map from ``shape`` to whatever it returns, in float64.

    Args:
        function: made of operations that ``torch.vmap`` knows.
        shape: of its input.
        by_rows: one pass of the adjoint an output, instead of one of the map an input.
    """
    size = torch.Size(tuple(shape)).numel()
    zero = torch.zeros(tuple(shape), dtype=torch.float64)
    # Enough at a time to be quick, not so many as to fill the memory.
    chunk = max(1, 2**22 // max(size, 1))
    if by_rows:
        vjp: Any = torch.func.vjp
        out, adjoint = vjp(function, zero)
        basis = torch.eye(out.numel(), dtype=torch.float64).reshape(-1, *out.shape)
        (rows,) = torch.vmap(adjoint, chunk_size=chunk)(basis)
        return rows.reshape(out.numel(), size).detach()
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *zero.shape)
    with torch.no_grad():
        columns = torch.vmap(function, chunk_size=chunk)(basis)
    return columns.reshape(size, -1).mT


def conv_norm(
    weight: Tensor,
    stride: Union[int, Sequence[int]],
    padding: Union[int, Literal["valid", "same"], Sequence[int]],
    dilation: Union[int, Sequence[int]],
    groups: int,
    padding_mode: str,
    input_shape: Sequence[int],
    *,
    transposed: bool = False,
    output_padding: Union[int, Sequence[int]] = 0,
) -> Norm:
    """The norm of a convolution on inputs of the spatial size ``input_shape``.

    Args:
        weight: as torch stores it, transposed or not.
        input_shape: the spatial size of the input, one number an axis.
    """
    w = weight.detach().double().cpu()
    if w.numel() == 0 or not bool(w.any()):
        return Norm(0.0, "zero weight", 0.0)
    bound = F.conv_spectral_norm(
        w,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        tuple(input_shape),
        transposed=transposed,
        output_padding=output_padding,
    )
    # Its margins are in it, and unknown here.
    return Norm(up(float(bound), 4), "bound of the convolution's own norm, float64", 4 * EPS)
