"""The convolution's corrective factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Optional, Union

from .._checks import check_bool, check_choice, check_int_or_tuple, check_positive_int
from ._conv_axis import largest_use

__all__ = ["PADDING_MODES", "conv_factor"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")


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
    return [(p, p) for p in check_int_or_tuple("padding", padding, len(kernel_size), 0)]


def lengths_of(input_shape: Optional[Sequence[int]], axes: int) -> tuple[int, ...]:
    """The last numbers of ``input_shape``, one an axis; zeros for None."""
    if input_shape is None:
        return (0,) * axes
    if not isinstance(input_shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple or list of ints, got {input_shape!r}")
    if len(input_shape) < axes:
        raise ValueError(
            f"input_shape must have at least {axes} elements, got {tuple(input_shape)}"
        )
    return tuple(check_positive_int("input_shape", n) for n in tuple(input_shape)[-axes:])


def conv_factor(
    kernel_size: Union[int, Sequence[int]],
    stride: Union[int, Sequence[int]] = 1,
    padding: Union[int, Literal["valid", "same"], Sequence[int]] = 0,
    dilation: Union[int, Sequence[int]] = 1,
    padding_mode: str = "zeros",
    input_shape: Optional[Sequence[int]] = None,
    *,
    transposed: bool = False,
    output_padding: Union[int, Sequence[int]] = 0,
) -> float:
    r"""What a convolution's weight has to be multiplied by so that the convolution is no larger.

    A convolution is its weight, as a matrix, times the operator P that pads the input and extracts
    patches. :math:`P^\top P` is diagonal and counts how often each pixel is used, so

    .. math:: \|\mathrm{conv}\| \le \|W\|_2 \sqrt{\max \text{uses}},

    and the factor is :math:`1 / \sqrt{\max \text{uses}}`, counted with integers. A transposed
    convolution is the adjoint of a convolution with the same settings and has the same factor: its
    padding and output padding only say which outputs are kept.

    Args:
        kernel_size: one number an axis; a single int is a square kernel on two axes.
        stride, padding, dilation: an int for all axes or one an axis; ``padding`` also ``"valid"``
            or ``"same"``.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"`` or
            ``"symmetric"``.
        input_shape: the size of the input; its last numbers, one an axis, are used. If None, the
            factor holds for inputs of every size.
        transposed: for ``torch.nn.ConvTransposeNd``; ``padding`` is then a number, and
            ``padding_mode`` ``"zeros"``.
        output_padding: of a transposed convolution: an int for all axes or one an axis.

    Returns:
        The factor, in (0, 1].

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, length or range.
    """
    kernel = tuple(kernel_size) if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * 2
    if not kernel:
        raise ValueError("kernel_size must have at least one element, got none")
    axes = len(kernel)
    kernel = check_int_or_tuple("kernel_size", kernel, axes)
    strides = check_int_or_tuple("stride", stride, axes)
    dilations = check_int_or_tuple("dilation", dilation, axes)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    if check_bool("transposed", transposed):
        check_choice("padding_mode", padding_mode, ("zeros",))
        sides = check_int_or_tuple("padding", padding, axes, 0)
        pads = [(p, p) for p in sides]
    else:
        pads = padding_of_axes(padding, kernel, dilations)
    extra = check_int_or_tuple("output_padding", output_padding, axes, 0)
    if any(extra) and not transposed:
        raise ValueError(
            f"output_padding must be 0 unless transposed is True, got {output_padding!r}"
        )
    lengths = lengths_of(input_shape, axes)
    uses = 1
    for k, s, (before, after), d, n, o in zip(kernel, strides, pads, dilations, lengths, extra):
        if transposed and n:
            # The outputs of n inputs, seen as the inputs of the adjoint. Those kept beyond the
            # reach of the last window are always 0 and left out.
            after = max(after - o, 0)
            n = (n - 1) * s + d * (k - 1) + 1 - before - after
            if n < 1:
                continue
        uses *= largest_use(k, s, before, after, d, padding_mode, n)
    return 1 / math.sqrt(uses)
