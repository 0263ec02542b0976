"""The extreme singular values of an operator that is too large to be written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import torch
from torch import Tensor

__all__ = ["extreme_singular_values"]

_MOST_STEPS = 256
# Numbers that the basis vectors may take together.
_MOST_ELEMENTS = 2**25
_CHECK_EVERY = 10


def extreme_singular_values(
    apply: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    rows: int,
    columns: int,
    *,
    device: Union[torch.device, str, None] = None,
    tol: float = 1e-9,
) -> tuple[float, float]:
    """Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation, in float64.

    The values are those of the operator on a growing subspace of its smaller side: they lie inside
    the true ones, so that the largest is never above the truth and the smallest never below.

    Args:
        apply: ``(columns,)`` to ``(rows,)``.
        adjoint: ``(rows,)`` to ``(columns,)``.
        rows, columns: of the operator.
        device: of its vectors.
        tol: stop once both ends move by less, relative to the largest.

    Returns:
        ``(smallest, largest)`` of the ``min(rows, columns)`` singular values; NaN if the operator
        gives NaN.
    """
    if rows > columns:
        apply, adjoint, rows, columns = adjoint, apply, columns, rows
    if rows == 0:
        return 0.0, 0.0
    steps = min(rows, _MOST_STEPS, max(32, _MOST_ELEMENTS // (rows + columns)))
    # Always the same start: results are reproducible, and the caller's random state untouched.
    start = torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = start.to(device) / torch.linalg.vector_norm(start)
    left = u.new_zeros(steps, rows)
    right = u.new_zeros(steps, columns)
    bidiagonal = torch.zeros(steps, steps, dtype=torch.float64)
    low, high = float("inf"), 0.0
    for j in range(steps):
        left[j] = u
        v = _orthogonal_to(right[:j], adjoint(u))
        alpha = float(torch.linalg.vector_norm(v))
        if alpha != alpha:
            return float("nan"), float("nan")
        bidiagonal[j, j] = alpha
        if alpha > 0:
            right[j] = v / alpha
        u = _orthogonal_to(left[: j + 1], apply(right[j]))
        beta = float(torch.linalg.vector_norm(u))
        found = j + 1
        size = float(bidiagonal[:found, :found].abs().max())
        # Nothing is left of the space: what was found is all there is.
        finished = found == steps or min(alpha, beta) <= 1e-13 * size
        if finished or found % _CHECK_EVERY == 0:
            values = torch.linalg.svdvals(bidiagonal[:found, :found])
            before, (low, high) = (low, high), (float(values[-1]), float(values[0]))
            if finished or max(high - before[1], before[0] - low) <= tol * high:
                break
        bidiagonal[j, j + 1] = beta
        u = u / beta
    return low, high


def _orthogonal_to(basis: Tensor, x: Tensor) -> Tensor:
    """Twice: once leaves rounding errors of the size of what was taken off."""
    for _ in range(2):
        x = x - basis.mT @ (basis @ x)
    return x
