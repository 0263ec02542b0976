"""One axis of a convolution: what it does to pixels, and its matrices, tap by tap.

A convolution is the sum over its taps j of the weight's matrix W_j times, on every axis, the matrix
that says which pixel tap j of output t reads. A :class:`Table` holds these matrices for one axis:
dense, for the pixels themselves, or diagonal in frequency, for an axis along which every output
does the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
from torch import Tensor

from .. import _native, reference

__all__ = ["Axis", "Table", "largest_use"]


def largest_use(
    kernel: int, stride: int, before: int, after: int, dilation: int, mode: str, length: int
) -> int:
    """How often a convolution uses one pixel of an axis at most, at least 1."""
    count = reference.largest_use if _native.kernels is None else _native.kernels.largest_use
    return max(1, count(kernel, stride, before, after, dilation, mode, length))


@dataclass(frozen=True)
class Table:
    """The matrices of one axis, one a tap, for a batch of frequencies.

    ``matrices`` has shape ``(frequencies, taps, outputs, inputs)``; a dense axis has one frequency.
    The convolution is no larger than ``gain`` times the largest of the batch.
    """

    matrices: Tensor
    gain: float = 1.0
    # Angles; the negative of one is there as well, or was left out as it adds nothing.
    angles: Optional[tuple[float, ...]] = None

    @property
    def is_dense(self) -> bool:
        return self.angles is None

    def half(self) -> Table:
        """Without the frequencies whose negative is there: a real convolution's are conjugate."""
        assert self.angles is not None
        kept = [i for i, a in enumerate(self.angles) if 0 <= a <= math.pi * (1 + 1e-9)]
        angles = tuple(self.angles[i] for i in kept)
        return Table(self.matrices[kept], self.gain, angles)


@dataclass(frozen=True)
class Axis:
    """The settings of one axis; those of the adjoint for a transposed convolution.

    ``length`` and ``outputs`` are 0 where the input may be of any size.
    """

    kernel: int
    stride: int
    before: int
    after: int
    dilation: int
    mode: str
    length: int = 0
    outputs: int = 0

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def check_size(self, given: Any) -> None:
        """Raises if torch would not pad so far, or if there is no output.

        Args:
            given: what to show as the argument ``input_shape``.
        """
        if not self.length and not self.outputs:
            return
        most = max(self.before, self.after)
        least = {"reflect": most + 1, "circular": most, "symmetric": most}.get(self.mode, 1)
        if self.length < least or self.outputs < 1:
            raise ValueError(
                f"input_shape must be large enough for {self.mode} padding of "
                f"{(self.before, self.after)} and a kernel that spans {self.span} pixels, "
                f"got {given!r}"
            )

    def long_enough(self) -> Axis:
        """A line whose ends do not see each other, for an axis of any length."""
        length = max(16, 4 * (self.span + self.before + self.after))
        outputs = (length + self.before + self.after - self.span) // self.stride + 1
        return replace(self, length=length, outputs=outputs)

    @property
    def copies(self) -> int:
        """How often padding repeats one pixel, itself included."""
        if self.mode == "zeros":
            return 1
        return largest_use(1, 1, self.before, self.after, 1, self.mode, self.length)

    @property
    def uses(self) -> int:
        """How often a pixel is used at most, counted over taps and outputs."""
        settings = (self.kernel, self.stride, self.before, self.after, self.dilation, self.mode)
        return largest_use(*settings, self.length)

    # ---- axes along which every output does the same -------------------------------------------

    @property
    def repeats(self) -> bool:
        """Whether the axis is part of a line or a circle on which every output does the same."""
        if self.mode == "zeros" or self.before == self.after == 0:
            return True
        if self.mode != "circular":
            return False
        if not self.length:
            return self.stride == 1 and self.before + self.after < self.span
        blocks, rest = divmod(self.length, self.stride)
        return rest == 0 and (self.outputs <= blocks or self.outputs % blocks == 0)

    def repeating(self, often: int = 16) -> list[Table]:
        r"""Choices of tables with frequencies, of which each bounds the axis.

        For an axis that does not repeat, a longer one that does and contains it.

        Args:
            often: how many samples there are for each degree n of the squared symbol where the
                input is of any size, or longer than these samples would be. Between N samples its
                root rises to no more than its largest sample over :math:`\cos(\pi n / 2 N)`.
        """
        padded = self if self.mode == "zeros" else self._padded()
        gain = 1.0 if self.repeats else math.sqrt(self.copies)
        around = self.mode == "circular" and self.length and self.before + self.after
        if around:
            # The rows of a circle of outputs, each at most `turns` times.
            step = math.gcd(self.length, self.stride)
            circle = self.length // step
            gain = math.sqrt(-(-self.outputs // circle))
            padded = replace(padded, stride=step)
        stride = padded.stride // math.gcd(padded.stride, padded.dilation)
        # On an infinite line dilation changes nothing, beyond the divisors it shares with stride.
        offsets = [divmod(j, stride) for j in range(padded.kernel)]
        degree = (padded.kernel - 1) // stride
        line = max(1, often * degree)
        if not around:
            circle = padded._circle(stride) if padded.length else line + 1
        if circle > line:
            gain /= math.cos(math.pi * degree / (2 * line))
            return [padded._on_circle(stride, line, 0.0, offsets, gain)]
        if around:
            return [self._on_circle(step, circle, 0.0, self._offsets(step), gain)]
        # Zeros around the input can be a piece of any circle that is long enough, also of one that
        # turns the phase by any angle in going around.
        twists = (0.5, 0.0) if degree else (0.0,)
        return [padded._on_circle(stride, circle, t, offsets, gain) for t in twists]

    def _padded(self) -> Axis:
        """The same taps on the padded line, as if it had been given."""
        length = self.length + self.before + self.after if self.length else 0
        return Axis(self.kernel, self.stride, 0, 0, self.dilation, "zeros", length, self.outputs)

    def _offsets(self, step: int) -> list[tuple[int, int]]:
        return [divmod(j * self.dilation - self.before, step) for j in range(self.kernel)]

    def _on_circle(
        self, stride: int, blocks: int, twist: float, offsets: list[tuple[int, int]], gain: float
    ) -> Table:
        """Outputs of one frequency from blocks of ``stride`` pixels of that frequency."""
        places = sorted({place for _, place in offsets})
        angles = 2 * math.pi * (torch.arange(blocks, dtype=torch.float64) + twist) / blocks
        matrices = torch.zeros(blocks, self.kernel, 1, len(places), dtype=torch.complex128)
        for j, (block, place) in enumerate(offsets):
            phase = torch.polar(torch.ones_like(angles), angles * block)
            matrices[:, j, 0, places.index(place)] = phase
        return Table(matrices, gain, tuple(angles.tolist()))

    def _circle(self, stride: int) -> int:
        """The blocks of a circle so long that no output meets itself, for zeros around the input.

        Outputs that share pixels are ``shared`` apart: each such class is a convolution of its own,
        without dilation, on every ``step``-th pixel.
        """
        common = math.gcd(self.stride, self.dilation)
        shared = self.dilation // common
        first = -(-self.before // common)
        last = (self.length - 1 + self.before) // common
        longest = 1
        for c in range(min(shared, self.outputs)):
            outputs = -(-(self.outputs - c) // shared)
            low = -(-(first - c * stride) // shared)
            high = (last - c * stride) // shared
            low, high = max(low, 0), min(high, (outputs - 1) * stride + self.kernel - 1)
            if low <= high:
                blocks = -(-self.kernel // stride)
                longest = max(longest, outputs + blocks - 1 - low // stride, high // stride + 1)
        return longest

    # ---- the pixels themselves -----------------------------------------------------------------

    def place(self, output: int, tap: int) -> int:
        """Where a tap of an output reads; outside the pixels, which count from 0, is padding."""
        return output * self.stride + tap * self.dilation - self.before

    def pixel(self, output: int, tap: int) -> int:
        """The pixel that a tap of an output reads; -1 for a zero."""
        return reference.pixel_at(self.place(output, tap), self.length, self.mode)

    def sources(self, device: torch.device) -> Optional[Tensor]:
        """The pixel at every place of the padded line; None where padding is by zeros."""
        if self.mode == "zeros" or self.before == self.after == 0:
            return None
        places = range(-self.before, self.length + self.after)
        pixels = [reference.pixel_at(p, self.length, self.mode) for p in places]
        return torch.tensor(pixels, device=device)

    def dense(self) -> Table:
        """All pixels and outputs."""
        matrices = torch.zeros(1, self.kernel, self.outputs, self.length, dtype=torch.float64)
        for t in range(self.outputs):
            for j in range(self.kernel):
                pixel = self.pixel(t, j)
                if pixel >= 0:
                    matrices[0, j, t, pixel] = 1
        return Table(matrices)
