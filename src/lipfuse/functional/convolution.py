"""The convolution's corrective factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Optional, Union

from .. import _native, reference
from .._checks import check_choice, check_positive_int

__all__ = ["PADDING_MODES", "conv_factor"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")


def _axes(name: str, value: Union[int, Sequence[int]], axes: int, minimum: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes:
        raise ValueError(f"{name} must be an int or have {axes} elements, got {value!r}")
    return tuple(check_positive_int(name, v, minimum=minimum) for v in values)


def padding_of_axes(
    padding: Union[int, str, Sequence[int]],
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
) -> list[tuple[int, int]]:
    """``(before, after)`` of every axis for what ``torch.nn.ConvNd`` takes as ``padding``."""
    if isinstance(padding, str):
        check_choice("padding", padding, ("valid", "same"))
        if padding == "valid":
            return [(0, 0)] * len(kernel_size)
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation)]
        return [(t // 2, t - t // 2) for t in totals]
    return [(p, p) for p in _axes("padding", padding, len(kernel_size), 0)]


def conv_factor(
    kernel_size: Union[int, Sequence[int]],
    stride: Union[int, Sequence[int]] = 1,
    padding: Union[int, Literal["valid", "same"], Sequence[int]] = 0,
    dilation: Union[int, Sequence[int]] = 1,
    padding_mode: str = "zeros",
    input_shape: Optional[Sequence[int]] = None,
) -> float:
    r"""What a convolution's weight has to be multiplied by so that the convolution is no larger.

    A convolution is its weight, as a matrix, times the operator P that pads the input and extracts
    patches. :math:`P^\top P` is diagonal and counts how often each pixel is used, so

    .. math:: \|\mathrm{conv}\| \le \|W\|_2 \sqrt{\max \text{uses}},

    and the factor is :math:`1 / \sqrt{\max \text{uses}}`, counted with integers. A transposed
    convolution is the adjoint of the convolution with the same settings and has the same factor.

    Args:
        kernel_size: one number an axis; a single int is a square kernel on two axes.
        stride, padding, dilation: an int for all axes or one an axis; ``padding`` also ``"valid"``
            or ``"same"``.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"`` or
            ``"symmetric"``.
        input_shape: the size of the input; its last numbers, one an axis, are used. If None, the
            factor holds for inputs of every size.

    Returns:
        The factor, in (0, 1].

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, length or range.
    """
    kernel = tuple(kernel_size) if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * 2
    if not kernel:
        raise ValueError("kernel_size must have at least one element, got none")
    axes = len(kernel)
    kernel = _axes("kernel_size", kernel, axes, 1)
    strides = _axes("stride", stride, axes, 1)
    dilations = _axes("dilation", dilation, axes, 1)
    pads = padding_of_axes(padding, kernel, dilations)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    lengths: Sequence[int] = (0,) * axes
    if input_shape is not None:
        if not isinstance(input_shape, (tuple, list)):
            raise TypeError(f"input_shape must be a tuple or list of ints, got {input_shape!r}")
        if len(input_shape) < axes:
            raise ValueError(
                f"input_shape must have at least {axes} elements, got {tuple(input_shape)}"
            )
        lengths = [check_positive_int("input_shape", n) for n in tuple(input_shape)[-axes:]]
    count = _native.kernels.largest_use if _native.kernels is not None else reference.largest_use
    uses = 1
    for k, s, (before, after), d, n in zip(kernel, strides, pads, dilations, lengths):
        uses *= max(1, count(k, s, before, after, d, padding_mode, n))
    return 1 / math.sqrt(uses)
