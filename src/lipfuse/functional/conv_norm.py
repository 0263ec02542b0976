"""The spectral norm of a convolution as an operator on images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Optional, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import (
    check_bool,
    check_choice,
    check_int_or_tuple,
    check_positive_int,
    check_tensor,
)
from .._proof import lanczos, start_vector
from ._conv_axis import Axis, Table
from ._conv_cover import norm_by_cover
from ._conv_gram import Largest, largest_norm
from .convolution import PADDING_MODES, lengths_of, padding_of_axes

__all__ = ["conv_spectral_norm"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# Up to this size the convolution's own matrix is no more work than frequencies.
_SMALL = 768
# Samples of the symbol on each axis for each degree of its square, and what they may cost together,
# in multiplications; a matrix costs at least what one of this size does.
_MOST_SAMPLES, _LEAST_SAMPLES = 64, 12
_AFFORDABLE = 1e9
_LEAST_SIZE = 16
# Products with the operator between two restarts of Lanczos' iteration: what is kept in memory.
_CYCLE = 12


def conv_spectral_norm(
    weight: Tensor,
    stride: Union[int, Sequence[int]] = 1,
    padding: Union[int, Literal["valid", "same"], Sequence[int]] = 0,
    dilation: Union[int, Sequence[int]] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    input_shape: Optional[Sequence[int]] = None,
    bound: Literal["upper", "estimate"] = "upper",
    *,
    transposed: bool = False,
    output_padding: Union[int, Sequence[int]] = 0,
    n_iterations: int = 60,
    max_size: int = 4096,
) -> Tensor:
    r"""The largest singular value of a convolution, as a map from images to images.

    ``bound="upper"`` is never below the truth, rounding included: the least of

    - :math:`\|W\|_2 \sqrt{\max \text{uses}}`, as :func:`conv_factor` counts them,
    - the largest norm of the convolution's symbol, one small matrix a frequency: exact for circular
      padding; for zeros the norm on an infinite plane, or on a circle around the input that is just
      long enough; where padding copies pixels, that of the padded image times what copying may add,
    - where padding copies pixels and ``input_shape`` is given, the norm of the convolution's own
      matrix, or of a cover of corners, edges and inside, whichever ``max_size`` allows.

    ``bound="estimate"`` multiplies by the convolution and its adjoint and comes from below.

    The gradient is that of the singular value that decides: :math:`u v^\top` with its vectors held
    constant, in the form of the weight.

    Args:
        weight: ``(out, in / groups, k...)`` with one to three axes, as ``torch.nn.functional``
            takes it; ``(in, out / groups, k...)`` if ``transposed``.
        stride, padding, dilation, groups: of the convolution; an int for all axes or one an axis.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"`` or
            ``"symmetric"``; zeros if ``transposed``.
        input_shape: the size of the input; its last numbers, one an axis, are used. If None, an
            upper bound holds for inputs of every size, and an estimate for large ones.
        bound: ``"upper"`` or ``"estimate"``.
        transposed: of ``conv_transpose`` instead.
        output_padding: of ``conv_transpose``.
        n_iterations: of the estimate.
        max_size: the largest matrix that an upper bound may factorise where padding copies pixels;
            work grows with its cube.

    Returns:
        A scalar in the dtype of ``weight`` (float32 for half precision), computed in float64;
        upper bounds are rounded up.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, length or range, a weight that is
            not finite, and inputs that are too small to be padded or to give an output.

    References:
        Sedghi et al., "The Singular Values of Convolutional Layers", ICLR 2019; Pfister & Bresler,
        "Bounding multivariate trigonometric polynomials", IEEE TSP 2019.
    """
    check_tensor("weight", weight, min_dim=3)
    check_choice("bound", bound, ("upper", "estimate"))
    check_bool("transposed", transposed)
    check_positive_int("n_iterations", n_iterations)
    check_positive_int("max_size", max_size)
    axes = _axes_of(
        weight,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        input_shape,
        transposed,
        output_padding,
    )
    dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"weight must be finite, got a tensor of shape {tuple(weight.shape)} with NaN or "
            "infinite elements"
        )
    exact = weight.detach().double()
    largest = float(exact.abs().amax()) if weight.numel() else 0.0
    # A power of two, so that no square leaves the range of float64.
    unit = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
    grouped = (exact / unit).reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    if largest == 0:
        value, gradient = 0.0, torch.zeros_like(grouped)
    elif bound == "estimate":
        value, gradient = _estimate(grouped, axes, transposed, n_iterations)
    else:
        value, gradient = _upper(grouped, axes, max_size)
    result = torch.tensor(value * unit, dtype=torch.float64)
    rounded = result.to(dtype)
    if bound == "upper" and rounded.double() < result:
        rounded = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    rounded = rounded.to(weight.device)
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return rounded
    # Adds zero, with the gradient.
    change = (weight - weight.detach()).to(dtype)
    return rounded + (change * gradient.reshape(weight.shape).to(change)).sum()


def _axes_of(
    weight: Tensor,
    stride: Union[int, Sequence[int]],
    padding: Union[int, str, Sequence[int]],
    dilation: Union[int, Sequence[int]],
    groups: int,
    padding_mode: str,
    input_shape: Optional[Sequence[int]],
    transposed: bool,
    output_padding: Union[int, Sequence[int]],
) -> list[Axis]:
    """The axes of the convolution, or of the one whose adjoint it is, all arguments checked."""
    kernel = tuple(weight.shape[2:])
    count = len(kernel)
    if count not in _CONV:
        raise ValueError(
            f"weight must have 3, 4 or 5 dimensions, got a tensor of shape {tuple(weight.shape)}"
        )
    if 0 in kernel:
        raise ValueError(
            f"weight must have a kernel of at least one tap, got a tensor of shape "
            f"{tuple(weight.shape)}"
        )
    check_positive_int("groups", groups)
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the weight's first dimension {weight.shape[0]}, got {groups}"
        )
    strides = check_int_or_tuple("stride", stride, count)
    dilations = check_int_or_tuple("dilation", dilation, count)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    extra = check_int_or_tuple("output_padding", output_padding, count, 0)
    if transposed:
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' if transposed, got {padding_mode!r}")
        if isinstance(padding, str):
            raise ValueError(f"padding must be a number or one an axis if transposed: {padding!r}")
        for e, s, d in zip(extra, strides, dilations):
            if e >= max(s, d):
                raise ValueError(
                    f"output_padding must be smaller than stride or dilation, got {output_padding}"
                )
    elif any(extra):
        raise ValueError(f"output_padding must be 0 unless transposed, got {output_padding}")
    if padding == "same" and any(s > 1 for s in strides):
        raise ValueError(f"padding='same' must have a stride of 1, got {stride}")
    pads = padding_of_axes(padding, kernel, dilations)
    lengths = lengths_of(input_shape, count)
    axes = []
    for k, s, (before, after), d, n, e in zip(kernel, strides, pads, dilations, lengths, extra):
        axis = Axis(k, s, before, after, d, padding_mode, n)
        if n and transposed:
            axis = replace(axis, length=(n - 1) * s - 2 * before + axis.span + e, outputs=n)
        elif n:
            axis = replace(axis, outputs=(n + before + after - axis.span) // s + 1)
        axis.check_size(input_shape)
        axes.append(axis)
    return axes


def _upper(weight: Tensor, axes: list[Axis], max_size: int) -> tuple[float, Tensor]:
    """The least of all bounds, and its gradient; ``weight`` has a dimension of groups."""
    # The weight as a matrix: a convolution with one tap.
    matrix = weight.flatten(2).unsqueeze(-1)
    uses = math.sqrt(math.prod(a.uses for a in axes))
    one = Table(torch.ones(1, 1, 1, 1, dtype=torch.float64), uses)
    best, form = largest_norm(matrix, [[one]]), matrix
    for candidate in _of_the_operator(weight, axes, max_size):
        if candidate.bound < best.bound:
            best, form = candidate, weight
    return best.bound, _gradient(form, best)


def _of_the_operator(weight: Tensor, axes: list[Axis], max_size: int) -> Iterator[Largest]:
    inputs = weight.shape[2] * math.prod(a.length for a in axes)
    outputs = weight.shape[1] * math.prod(a.outputs for a in axes)
    if all(a.repeats for a in axes):
        max_size = min(max_size, _SMALL)
    if 0 < min(inputs, outputs) <= max_size:
        yield largest_norm(weight, [[a.dense() for a in axes]])
        return
    often = _samples(weight, axes)
    for choice in itertools.product(*(a.repeating(often) for a in axes)):
        yield largest_norm(weight, [list(choice)])
    if inputs and not all(a.repeats for a in axes):
        found = norm_by_cover(weight, axes, max_size)
        if found is not None:
            yield found


def _samples(weight: Tensor, axes: list[Axis]) -> int:
    """As many samples a degree as are affordable: the bound is that much tighter."""
    size = weight.shape[0] * max(min(weight.shape[1:3]), _LEAST_SIZE) ** 3
    degrees = math.prod(max(1, (a.kernel - 1) // a.stride) for a in axes)
    for often in range(_MOST_SAMPLES, _LEAST_SAMPLES, -1):
        if often ** len(axes) * degrees / 2 * size <= _AFFORDABLE:
            return often
    return _LEAST_SAMPLES


def _gradient(weight: Tensor, at: Largest) -> Tensor:
    """Of the norm, for the input that attains it, scaled to the bound."""
    gradient = torch.zeros_like(weight)
    if at.patches is None:
        return gradient
    chosen = weight[at.group]
    if at.transposed:
        chosen = chosen.transpose(0, 1)
    y = chosen.flatten(1).to(at.patches.dtype) @ at.patches
    part = (y @ at.patches.mH).real * (at.bound / at.estimate**2)
    part = part.reshape(chosen.shape)
    gradient[at.group] = part.transpose(0, 1) if at.transposed else part
    return gradient


def _estimate(
    weight: Tensor, axes: list[Axis], transposed: bool, n_iterations: int
) -> tuple[float, Tensor]:
    """By Lanczos' iteration on the operator, and its gradient."""
    if all(a.repeats for a in axes) and not axes[0].length:
        # On frequencies of inputs without an end.
        tables = [replace(a.repeating()[0], gain=1.0) for a in axes]
        found = largest_norm(weight, [tables])
        found = replace(found, bound=found.estimate)
        return found.estimate, _gradient(weight, found)
    axes = [a if a.length else a.long_enough() for a in axes]
    groups, shape = weight.shape[0], [a.length for a in axes]
    kernel = weight.flatten(0, 1).clone().requires_grad_()
    sources = [a.sources(weight.device) for a in axes]

    def apply(x: Tensor) -> Tensor:
        x = x.reshape(1, groups * weight.shape[2], *shape)
        for i, (axis, source) in enumerate(zip(axes, sources)):
            if source is not None:
                x = x.index_select(2 + i, source)
            else:
                at_end = [0, 0] * (len(axes) - 1 - i)
                x = F.pad(x, [*at_end, axis.before, axis.after])
        strides, dilations = [a.stride for a in axes], [a.dilation for a in axes]
        y = _CONV[len(axes)](x, kernel, None, strides, 0, dilations, groups)
        # A transposed convolution may leave out the last of its adjoint's outputs.
        for i, axis in enumerate(axes):
            y = y.narrow(2 + i, 0, axis.outputs)
        return y

    def multiply(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = apply(x)
            return torch.autograd.grad(y, x, y.detach())[0]

    vector = start_vector(groups * weight.shape[2] * math.prod(shape)).to(weight.device)[None]
    for first in range(0, n_iterations, _CYCLE):
        vector = lanczos(multiply, vector, min(_CYCLE, n_iterations - first))[1]
    with torch.enable_grad():
        y = apply(vector)
        norm = torch.linalg.vector_norm(y)
        gradient = torch.autograd.grad(norm, kernel)[0]
    return float(norm.detach()), gradient.reshape(weight.shape)
