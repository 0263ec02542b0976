r"""A convolution whose padding copies pixels, covered by its ends and its inside.

Along one axis let an angle :math:`\varphi` be 0 near the ends, where padding is felt, and rise to
:math:`\pi / 2` over a ramp of pixels. With :math:`\chi = \cos\varphi` on the ends and
:math:`\sin\varphi` inside, the squares of the pieces add up to 1, and for the convolution A with
elements :math:`A_{ti}` (output, pixel)

.. math:: A^\top A - \sum_p \chi_p A^\top A \chi_p = A^\top A - X^\top X - Y^\top Y
    \le (A - X)^\top (A + X) \text{, symmetrised},

where :math:`X_{ti} = A_{ti} \cos(\psi_t - \varphi_i)`, :math:`Y` has the sine, and
:math:`\psi_t` is any angle: that of the output's middle tap. Hence with :math:`e = \|A - X\|`

.. math:: \|A\|^2 \le \max_p \|A_p\|^2 + 2 e \|A\| + e^2

with :math:`A_p` the convolution of the pixels where :math:`\chi_p` is not 0. The slower the ramp,
the smaller is e. Inside, :math:`A_p` is part of a convolution with zeros around, to be bounded by
frequencies; at the ends it is a matrix of few pixels.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from ._conv_axis import Axis, Table
from ._conv_gram import Largest, largest_norm

__all__ = ["norm_by_cover"]

# With a longer ramp, e is no longer what counts.
_LONGEST_RAMP = 24


@dataclass(frozen=True)
class _Ends:
    """How many pixels at each end are read by outputs that also read padding."""

    left: int
    right: int

    @staticmethod
    def of(axis: Axis) -> _Ends:
        left = right = 0
        for t in range(axis.outputs):
            places = [axis.place(t, j) for j in range(axis.kernel)]
            pixels = [axis.pixel(t, j) for j in range(axis.kernel)]
            if min(places) < 0 or max(places) >= axis.length:
                if axis.mode == "circular":
                    # Both ends are next to each other.
                    half = axis.length // 2
                    left = max([left, *(p + 1 for p in pixels if p < half)])
                    right = max([right, *(axis.length - p for p in pixels if p >= half)])
                elif min(places) < 0:
                    left = max(left, max(pixels) + 1)
                if axis.mode != "circular" and max(places) >= axis.length:
                    right = max(right, axis.length - min(pixels))
        return _Ends(left, right)

    def supports(self, ramp: int) -> tuple[int, int]:
        """The pixels of the end pieces."""
        return tuple(n + ramp - 1 if n else 0 for n in (self.left, self.right))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Cover:
    """The pieces of one axis, and the largest of 1 - cos(psi - phi) for each tap."""

    pieces: list[Table]
    defects: list[float]


def norm_by_cover(weight: Tensor, axes: list[Axis], max_size: int) -> Optional[Largest]:
    """The norm of a convolution whose padding copies pixels on some of its axes.

    Args:
        weight: ``(groups, outputs, inputs, taps...)``, float64.
        axes: with lengths.
        max_size: the largest matrix to factorise.

    Returns:
        What was found; None if every cover takes a larger matrix.
    """
    covers = _covers(weight, axes, max_size)
    if covers is None:
        return None
    found = largest_norm(weight, map(list, itertools.product(*(c.pieces for c in covers))))
    bound = found.bound
    for i, cover in enumerate(covers):
        if any(cover.defects):
            e = _defect(weight, axes, i, cover.defects, max_size)
            bound = (e + math.sqrt(bound**2 + 2 * e**2)) * (1 + 1e-14)
    return replace(found, bound=bound)


def _defect(
    weight: Tensor, axes: list[Axis], at: int, defects: list[float], max_size: int
) -> float:
    r"""A bound of e for one axis.

    A - X is :math:`\sum_j D_j W_j S_j` with the shift to tap j and diagonal :math:`0 \le D_j \le
    \epsilon_j`; off the ends a shift reads no pixel twice. By Cauchy and Schwarz it is no larger
    than :math:`(\sum_j \epsilon_j)^{1/2}` times the norm of all :math:`\epsilon_j^{1/2} W_j` side
    by side, which are convolutions of the other axes.
    """
    roots = torch.tensor(defects, dtype=torch.float64).sqrt()
    total = math.sqrt(math.fsum(defects)) * (1 + 1e-14)
    side_by_side = Table(torch.diag(roots)[None, :, None, :], total)
    others = [a for i, a in enumerate(axes) if i != at]
    size = weight.shape[1] * math.prod(a.outputs for a in others)
    tables = [a.dense() if size <= max_size else a.repeating()[0] for a in others]
    return largest_norm(weight, [[*tables[:at], side_by_side, *tables[at:]]]).bound


def _covers(weight: Tensor, axes: list[Axis], max_size: int) -> Optional[list[_Cover]]:
    """For each axis, its whole length or its pieces: what costs the least of those affordable.

    That is, with the longest ramps, and among those on the fewest axes.
    """
    ends = {i: _Ends.of(a) for i, a in enumerate(axes) if not a.repeats}
    best: Optional[tuple[float, list[int], int]] = None
    for ramp in range(2, min(_LONGEST_RAMP, max(axes[i].length for i in ends)) + 1):
        cost = 1 - math.cos(math.pi / 2 / ramp)
        for count in range(len(ends) + 1):
            for covered in itertools.combinations(ends, count):
                size = _largest_piece(weight, axes, ends, list(covered), ramp)
                if size <= max_size and (best is None or count * cost < best[0]):
                    best = count * cost, list(covered), ramp
    if best is None:
        return None
    _, chosen, ramp = best
    covers = []
    for i, axis in enumerate(axes):
        if i in chosen:
            covers.append(_cover(axis, ends[i], ramp))
        else:
            piece = axis.dense() if i in ends else axis.repeating()[0]
            covers.append(_Cover([piece], []))
    return covers


def _largest_piece(
    weight: Tensor, axes: list[Axis], ends: dict[int, _Ends], covered: list[int], ramp: int
) -> float:
    """The size of the largest Gram matrix if these axes are covered; infinite if they cannot be."""
    inputs, outputs = weight.shape[2], weight.shape[1]
    for i, end in ends.items():
        axis = axes[i]
        pixels, rows = axis.length, axis.outputs
        if i in covered:
            left, right = end.supports(ramp)
            if left + right + axis.span - 1 > axis.length:  # an output may read both ends
                return math.inf
            pixels = left + right if axis.mode == "circular" else max(left, right)
            rows = min(axis.outputs, -(-(pixels + 2 * axis.span) // axis.stride))
        inputs, outputs = inputs * pixels, outputs * rows
    return min(inputs, outputs)


def _cover(axis: Axis, ends: _Ends, ramp: int) -> _Cover:
    n = axis.length
    angles = []
    for i in range(n):
        # Steps up the ramp, from each end that is there.
        steps = [ramp]
        steps += [max(0, i - ends.left + 1)] if ends.left else []
        steps += [max(0, n - 1 - i - ends.right + 1)] if ends.right else []
        angles.append(math.pi / 2 * min(steps) / ramp)
    defects = [0.0] * axis.kernel
    for t in range(axis.outputs):
        read = [angles[axis.pixel(t, j)] for j in range(axis.kernel)]
        middle = (read[(axis.kernel - 1) // 2] + read[axis.kernel // 2]) / 2
        for j, angle in enumerate(read):
            defects[j] = max(defects[j], 1 - math.cos(middle - angle))
    left, right = ends.supports(ramp)
    sets = [list(range(left)), list(range(n - right, n))]
    if axis.mode == "circular":
        sets = [[*sets[0], *sets[1]]]
    pieces = [_end(axis, pixels) for pixels in sets if pixels]
    inside = replace(axis, mode="zeros").repeating()[0]
    return _Cover([*pieces, inside], defects)


def _end(axis: Axis, pixels: list[int]) -> Table:
    """The convolution of these pixels alone."""
    columns = {pixel: i for i, pixel in enumerate(pixels)}
    rows = []
    for t in range(axis.outputs):
        row = torch.zeros(axis.kernel, len(pixels), dtype=torch.float64)
        for j in range(axis.kernel):
            pixel = axis.pixel(t, j)
            if pixel in columns:
                row[j, columns[pixel]] = 1
        if row.any():
            rows.append(row)
    return Table(torch.stack(rows, 1)[None])
