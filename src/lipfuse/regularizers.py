r"""Orthogonality as a penalty on plain layers: softer, and a baseline for layers that guarantee it.

A penalty leaves every layer some distance away from orthogonal; add it to the loss where that will
do, with a weight of its own, and look at the result with :func:`lipfuse.compute_model_sv`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional
from torch.nn.utils import parametrize

from ._checks import check_choice, check_positive_int, check_tensor

__all__ = ["conv_orthogonality", "kernel_orthogonality", "orthogonality"]

_CONVOLVE: dict[int, Any] = {
    1: torch_functional.conv1d,
    2: torch_functional.conv2d,
    3: torch_functional.conv3d,
}


def _check_groups(weight: Tensor, groups: int) -> None:
    check_positive_int("groups", groups)
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} channels of weight, got {groups}"
        )


def kernel_orthogonality(weight: Tensor, *, groups: int = 1) -> Tensor:
    r"""How far a weight, as a matrix, is from orthonormal rows or columns.

    .. math:: \|W W^\top - I\|_F^2 \quad\text{or}\quad \|W^\top W - I\|_F^2,

    whichever is the smaller side. Enough for linear layers; a convolution can have an orthonormal
    kernel and be far from orthogonal: see :func:`conv_orthogonality`.

    Args:
        weight: ``(out, ...)``, taken as ``groups`` matrices of ``out / groups`` rows; floating
            point.
        groups: positive, divides ``out``; the penalties add up.

    Returns:
        A scalar of the dtype of ``weight``, differentiable any number of times.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    Reference:
        Xie, Xiong, Pu, "All You Need is Beyond a Good Init", CVPR 2017, arXiv 1703.01827.
    """
    check_tensor("weight", weight, min_dim=2)
    _check_groups(weight, groups)
    if not weight.numel():
        return weight.sum()
    w = weight.reshape(groups, weight.shape[0] // groups, -1)
    gram = w @ w.mT if w.shape[1] <= w.shape[2] else w.mT @ w
    return (gram - torch.eye(gram.shape[-1], dtype=w.dtype, device=w.device)).square().sum()


def _per_axis(name: str, value: Union[int, Sequence[int]], axes: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value] * axes
    if len(values) != axes:
        raise ValueError(f"{name} must be an int or have {axes} elements, got {value!r}")
    return [check_positive_int(name, v) for v in values]


def conv_orthogonality(
    weight: Tensor,
    *,
    stride: Union[int, Sequence[int]] = 1,
    dilation: Union[int, Sequence[int]] = 1,
    groups: int = 1,
) -> Tensor:
    r"""How far a convolution, as an operator on images, is from orthogonal.

    With the kernel's correlation with itself at all shifts by multiples of the stride S,

    .. math:: L = \|\mathrm{conv}(K, K, \text{stride} = S) - I_0\|_F^2 - (M - C S^d)_+,

    where I_0 is the identity at shift zero, M and C are the numbers of output and input
    channels, and d is the number of axes. L is 0 if and only if the convolution with circular
    padding is orthogonal, in its rows or in its columns, whichever are fewer. With N outputs a
    channel, along each axis no fewer than there are shifts, it is exactly
    :math:`\|A A^\top - I\|_F^2 / N` of the dense operator A, or the same of :math:`A^\top A`. Zero
    padding is close to it for images that are large beside the kernel.

    Args:
        weight: ``(out, in / groups, k...)`` with one to three axes; that of a transposed
            convolution, ``(in, out / groups, k...)``, is its adjoint's and has the same penalty.
            Floating point.
        stride, dilation: positive ints, one for all axes or one each.
        groups: positive, divides ``out``; the penalties add up.

    Returns:
        A scalar of the dtype of ``weight``, differentiable any number of times; not negative but
        for rounding.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    Reference:
        Wang et al., "Orthogonal Convolutional Neural Networks", CVPR 2020; Achour, Malgouyres,
        Mamalet, "Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks",
        JMLR 23 (2022).
    """
    check_tensor("weight", weight)
    axes = weight.dim() - 2
    if axes not in _CONVOLVE:
        raise ValueError(f"weight must have 3 to 5 dimensions, got shape {tuple(weight.shape)}")
    strides = _per_axis("stride", stride, axes)
    dilations = _per_axis("dilation", dilation, axes)
    _check_groups(weight, groups)
    if not weight.numel():
        return weight.sum()
    rows, channels = weight.shape[0] // groups, weight.shape[1]
    # A dilated kernel meets itself only at multiples of the dilation, of which those that are
    # multiples of the stride too count.
    steps = [s // math.gcd(s, d) for s, d in zip(strides, dilations)]
    reach = [(k - 1) // s * s for k, s in zip(weight.shape[2:], steps)]
    # Image b holds filter b of every group, and each group of filters sees its own group only.
    images = weight.reshape(groups, rows, *weight.shape[1:]).transpose(0, 1)
    images = images.reshape(rows, groups * channels, *weight.shape[2:])
    shifted = _CONVOLVE[axes](images, weight, stride=steps, padding=reach, groups=groups)
    # (rows, groups * rows, shifts...)
    centre = [r // s for r, s in zip(reach, steps)]
    identity = torch.eye(rows, dtype=weight.dtype, device=weight.device).repeat(1, groups)
    target = torch.zeros_like(shifted)
    target.movedim((0, 1), (-2, -1))[tuple(centre)] = identity
    loss = (shifted - target).square().sum()
    return loss - groups * max(0, rows - channels * math.prod(strides))


def orthogonality(model: nn.Module, *, conv: Literal["operator", "kernel"] = "operator") -> Tensor:
    """The sum of the penalties of all plain linear layers and convolutions of a model.

    ::

        loss = criterion(model(x), y) + 0.01 * lipfuse.regularizers.orthogonality(model)

    Layers with a parametrized weight, those of :mod:`lipfuse.nn` among them, are left out: they
    keep a constraint of their own.

    Args:
        model: a module.
        conv: of convolutions, transposed ones too, ``"operator"``: :func:`conv_orthogonality`, or
            ``"kernel"``: :func:`kernel_orthogonality`.

    Returns:
        A scalar, differentiable any number of times.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it has no such layer, or ``conv`` is none of these.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_choice("conv", conv, ("operator", "kernel"))
    total: Any = None
    for layer in model.modules():
        if parametrize.is_parametrized(layer, "weight"):
            continue
        if isinstance(layer, nn.Linear):
            penalty = kernel_orthogonality(layer.weight)
        elif isinstance(layer, nn.modules.conv._ConvNd):
            if conv == "kernel":
                penalty = kernel_orthogonality(layer.weight, groups=layer.groups)
            else:
                penalty = conv_orthogonality(
                    layer.weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups
                )
        else:
            continue
        total = penalty if total is None else total + penalty
    if total is None:
        raise ValueError(
            "model must have at least one linear layer or convolution without a parametrized "
            f"weight, {type(model).__name__} has none"
        )
    result: Tensor = total
    return result
