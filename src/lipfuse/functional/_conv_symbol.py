"""A bound of a convolution's norm for inputs of every size, cheap enough to train with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ._conv_axis import Axis
from .convolution import padding_of_axes

__all__ = ["ConvOperator"]

# Samples an axis for each degree of the squared symbol, and what all Gram matrices may cost, in
# multiplications, before there are fewer.
_MOST_SAMPLES, _LEAST_SAMPLES = 24, 8
_AFFORDABLE = 1.5e8


class ConvOperator:
    r"""Bounds the norm of a convolution, for inputs of every size, from its kernel alone.

    The kernel's symbol is sampled at N frequencies an axis. Its square, seen by any vector, is a
    trigonometric polynomial p >= 0 of degree n, one less than there are taps (strides gather taps
    into blocks), and between samples rises to no more than :math:`\max p / \cos^2(\pi n / 2N)`.
    Where padding copies pixels, the norm is at most that of the padded image, times the root of the
    number of copies. The kernel, as a matrix, must not be larger than 1: then the corrective factor
    bounds the norm as well.

    Args:
        kernel_size, stride, padding, dilation, padding_mode: of the convolution, one an axis.
        channels: of each group, the smaller of in and out: decides how many samples are affordable.
        most: the norm is no larger: one over the corrective factor.
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Union[str, Sequence[int]],
        dilation: Sequence[int],
        padding_mode: str,
        channels: int,
        most: float,
    ) -> None:
        kernel = tuple(kernel_size)
        pads = padding_of_axes(padding, kernel, tuple(dilation))
        axes = [
            Axis(k, s, before, after, d, padding_mode)
            for k, s, (before, after), d in zip(kernel, stride, pads, dilation)
        ]
        self.kernel = kernel
        # A polar factor computed in training may be so much larger than 1.
        self.most = most * (1 + 1e-5)
        # Only strides that dilation does not share tell apart the pixels of a block.
        self.steps = [a.stride // math.gcd(a.stride, a.dilation) for a in axes]
        self.taps = [-(-k // s) for k, s in zip(kernel, self.steps)]
        degrees = [k - 1 for k in self.taps]
        for often in range(_MOST_SAMPLES, _LEAST_SAMPLES - 1, -1):
            self.samples = [max(1, often * n) for n in degrees]
            if math.prod(self.samples) / 2 * channels**3 <= _AFFORDABLE:
                break
        self.gain = math.prod(1.0 if a.repeats else math.sqrt(a.copies) for a in axes) / math.prod(
            math.cos(math.pi * n / (2 * s)) for n, s in zip(degrees, self.samples)
        )

    def norm(self, weight: Tensor) -> Tensor:
        """A bound for each group, ``(groups,)``, differentiable by the singular vectors.

        Args:
            weight: ``(groups, outputs, inputs, taps of axis 1, ...)``, float32 or float64.
        """
        packed = self._packed(weight)
        bound, patches = ops.symbol_bound(packed, self.taps, self.samples)
        inner = bound * self.gain
        # Rounded up.
        proven = inner.clamp_max(self.most).to(weight.dtype) * (1 + torch.finfo(weight.dtype).eps)
        reached = torch.linalg.vector_norm(packed.flatten(-2) @ patches, dim=(-2, -1))
        # The slope of the bound in the norm of what the wave becomes; none where `most` decides.
        moves = (inner < self.most) & (reached > 0)
        slope = torch.where(moves, proven / torch.where(moves, reached, 1.0), 0.0).detach()
        return proven + (reached - reached.detach()) * slope

    def _packed(self, weight: Tensor) -> Tensor:
        """``(groups, m, n, taps)`` with blocks of pixels as inputs, and n the smaller side."""
        axes = len(self.kernel)
        widths = [
            n
            for k, t, s in zip(self.kernel[::-1], self.taps[::-1], self.steps[::-1])
            for n in (0, t * s - k if t > 1 else 0)
        ]
        weight = F.pad(weight, widths) if any(widths) else weight
        blocks = [
            n for k, t, s in zip(self.kernel, self.taps, self.steps) for n in (t, s if t > 1 else k)
        ]
        shape = weight.shape[:3]
        w = weight.reshape(*shape, *blocks)
        w = w.permute(0, 1, 2, *range(4, 3 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2))
        w = w.reshape(shape[0], shape[1], -1, math.prod(self.taps))
        return w.transpose(1, 2) if w.shape[1] < w.shape[2] else w

    def divided(self, weight: Tensor, scale: float) -> Tensor:
        """The kernels of all groups so that the convolution's norm is at most ``scale``.

        Args:
            weight: ``(groups, outputs, inputs and taps)`` or, of one group, without the first; as
                matrices no larger than 1.
        """
        matrices = weight if weight.dim() == 3 else weight.unsqueeze(0)
        norm = self.norm(matrices.reshape(*matrices.shape[:2], -1, *self.kernel))
        # Zero stays zero.
        factor = scale / torch.where(norm > 0, norm, 1.0)
        return (matrices * factor[:, None, None]).reshape(weight.shape)
