r"""Lipschitz activations as functions.

Sorting a vector permutes it, so the Jacobian of a sorting activation is a permutation matrix
wherever it exists: it is 1-Lipschitz and keeps the norm of every gradient, which element-wise
activations such as ReLU do not (Anil, Lucas and Grosse, *Sorting out Lipschitz function
approximation*, ICML 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import check_dim, check_positive, check_positive_int, check_tensor
from ..ops.max_min import max_min as split
from ..ops.max_min import takes as split_takes
from ..ops.sort_pairs import sort_pairs, takes

__all__ = [
    "full_sort",
    "group_sort",
    "group_sort_2",
    "householder",
    "lipschitz_prelu",
    "max_min",
]


def max_min(input: Tensor, dim: int | None = None, *, scale: float = 1.0) -> Tensor:
    r"""Concatenate the positive and the negative part of ``input``: a 1-Lipschitz MaxMin.

    .. math:: \mathrm{out} = [\max(x, 0),\; \max(-x, 0)]

    Both parts together keep the distance of two inputs that agree in sign, and never enlarge it.

    Args:
        input: tensor of at least one dimension, floating-point.
        dim: the dimension along which the two parts are laid, which the output doubles. ``None``
            means the channel dimension: 1, or 0 for a tensor of one dimension.
        scale: what to multiply the result by: the Lipschitz constant, positive and finite.

    Returns:
        A tensor like ``input`` with twice the size along ``dim``.

    Raises:
        TypeError: if ``input`` is not a floating-point tensor or ``dim`` not an integer.
        ValueError: if ``input`` has no dimension, or none called ``dim``, or ``scale`` is not
            positive and finite.

    References:
        M. Blot, M. Cord, N. Thome, *Max-min convolutional neural networks for image
        classification*, ICIP 2016.
    """
    check_tensor("input", input, min_dim=1)
    if dim is None:
        dim = 0 if input.dim() == 1 else 1
    dim = check_dim("dim", dim, input.dim())
    scale = check_positive("scale", scale)
    if split_takes(input):
        return split(input, dim - input.dim(), scale)
    out = torch.cat((F.relu(input), F.relu(-input)), dim=dim)
    return out if scale == 1.0 else out * scale


def _sort_pairs(input: Tensor, dim: int, scale: float = 1.0) -> Tensor:
    """Sort the pairs (0, 1), (2, 3), ... along ``dim``, which must have even size.

    The one place where GroupSort2 is computed: by one kernel, or in torch's operations where a
    compiler fuses or a transform rewrites them. Those use ``where`` rather than ``minimum`` and
    ``maximum``: these split the gradient of a tied pair in halves, ``where`` hands each output's
    gradient to exactly one input, so the Jacobian is a permutation everywhere, ties included.
    """
    # A compiler puts what needs no gradient into one loop with what stands before it; with one the
    # kernel, which keeps a byte for each pair, is the quicker.
    inlined = torch.compiler.is_compiling() and not torch.is_grad_enabled()
    if not inlined and takes(input):
        return sort_pairs(input, dim - input.dim(), scale)
    # Work along the last dimension if that is how the memory lies (channels_last images), so that
    # the result keeps the layout of the input and no pass is spent on reordering it.
    moved = input.dim() > 1 and dim != input.dim() - 1 and input.stride(dim) == 1
    x = input.movedim(dim, -1) if moved else input
    axis = x.dim() - 1 if moved else dim
    first, second = torch.unflatten(x, axis, (x.shape[axis] // 2, 2)).unbind(axis + 1)
    swap = first > second
    low = torch.where(swap, second, first)
    high = torch.where(swap, first, second)
    out = torch.stack((low, high), axis + 1).flatten(axis, axis + 1)
    out = out.movedim(-1, dim) if moved else out
    return out if scale == 1.0 else out * scale


def group_sort(
    input: Tensor, group_size: int | None = None, dim: int = 1, *, scale: float = 1.0
) -> Tensor:
    """Sort groups of ``group_size`` neighbours along ``dim`` in ascending order.

    NaN counts as larger than any number, except in groups of two: a pair with a NaN stays as it is.

    Args:
        input: floating-point tensor with a dimension ``dim``.
        group_size: the number of neighbours sorted together; it must divide the size of ``dim``.
            ``None``, or more than there are, sorts the whole dimension.
        dim: the dimension to sort along; negative values count from the end.
        scale: what to multiply the result by: the Lipschitz constant, positive and finite.

    Returns:
        A tensor of the shape and dtype of ``input``. Its Jacobian is ``scale`` times a permutation
        matrix, at ties too: equal elements keep their order.

    Raises:
        TypeError: if ``input`` is not a floating-point tensor, or ``group_size`` or ``dim`` not
            an integer.
        ValueError: if ``input`` has no dimension ``dim``, ``group_size`` is not positive or does
            not divide its size, or ``scale`` is not positive and finite.

    References:
        C. Anil, J. Lucas, R. Grosse, *Sorting out Lipschitz function approximation*, ICML 2019.
    """
    check_tensor("input", input)
    scale = check_positive("scale", scale)
    dim = check_dim("dim", dim, input.dim())
    size = input.shape[dim]
    if group_size is None:
        group_size = max(size, 1)
    else:
        group_size = min(check_positive_int("group_size", group_size), max(size, 1))
    if size % group_size != 0:
        raise ValueError(
            f"group_size must divide the size of dimension {dim} of input, which is {size}, "
            f"got {group_size}"
        )
    if group_size == 2 and size != 0:
        return _sort_pairs(input, dim, scale)
    if group_size == 1 or size == 0:
        # A view would let an in-place operation on the output change the input.
        out = input.clone()
    elif group_size == size:
        out = torch.sort(input, dim=dim, stable=True).values
    else:
        groups = torch.unflatten(input, dim, (size // group_size, group_size))
        out = torch.sort(groups, dim=dim + 1, stable=True).values.flatten(dim, dim + 1)
    return out if scale == 1.0 else out * scale


def group_sort_2(input: Tensor) -> Tensor:
    """Sort pairs of neighbouring channels in ascending order: ``group_sort(input, 2)``.

    Args:
        input: floating-point tensor of shape ``(N, C, *)`` with even ``C``.

    Returns:
        A tensor of the shape and dtype of ``input``.

    Raises:
        TypeError: if ``input`` is not a floating-point tensor.
        ValueError: if it has fewer than two dimensions, or an odd number of channels.
    """
    return group_sort(input, 2)


def full_sort(input: Tensor) -> Tensor:
    """Sort all channels in ascending order: ``group_sort(input, None)``.

    Args:
        input: floating-point tensor of shape ``(N, C, *)``.

    Returns:
        A tensor of the shape and dtype of ``input``.

    Raises:
        TypeError: if ``input`` is not a floating-point tensor.
        ValueError: if it has fewer than two dimensions.
    """
    return group_sort(input, None)


def lipschitz_prelu(input: Tensor, weight: Tensor, k_coef_lip: float = 1.0) -> Tensor:
    r"""PReLU with both slopes held within ``k_coef_lip``.

    .. math::
        \mathrm{out} = \min(1, k)\,\max(x, 0) + \min(\max(a, -k), k)\,\min(x, 0)

    For :math:`k \ge 1` this is PReLU with a clamped slope; a smaller :math:`k` holds the slope of
    the positive side down as well, since the map would otherwise be 1-Lipschitz only.

    Args:
        input: floating-point tensor, ``(N, C, *)`` where ``weight`` has more than one element.
        weight: the slope :math:`a` of the negative side: one, or one per channel.
        k_coef_lip: the Lipschitz constant :math:`k` to guarantee.

    Returns:
        A tensor of the shape and dtype of ``input``.

    Raises:
        TypeError: if ``input`` or ``weight`` is not a floating-point tensor.
        ValueError: if ``k_coef_lip`` is not positive and finite, or ``weight`` has neither one
            element nor one per channel.

    References:
        K. He, X. Zhang, S. Ren, J. Sun, *Delving deep into rectifiers*, ICCV 2015.
    """
    check_tensor("input", input)
    check_tensor("weight", weight)
    k = check_positive("k_coef_lip", k_coef_lip)
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.dim() > 1 or (weight.numel() != 1 and weight.numel() != channels):
        raise ValueError(
            f"weight must have one element or one per channel of input ({channels}), "
            f"got shape {tuple(weight.shape)}"
        )
    if k >= 1.0:
        return F.prelu(input, weight.clamp(-k, k))
    return F.prelu(input, (weight / k).clamp(-1.0, 1.0)) * k


def householder(input: Tensor, theta: Tensor, dim: int = 1) -> Tensor:
    r"""Reflect the pairs of channels that lie on the far side of a learnt line.

    Channel :math:`i` of the first half and of the second half form a point :math:`z` of the plane.
    With the unit normal :math:`n = (\sin\frac\theta2, -\cos\frac\theta2)`,

    .. math:: \mathrm{out} = z - 2\max(\langle n, z\rangle, 0)\, n,

    which is the identity on one side of the line and a Householder reflection on the other: an
    orthogonal map on each side, and continuous across.

    Args:
        input: floating-point tensor with an even size along ``dim``.
        theta: the angles, one for each pair: a vector of half that size.
        dim: the dimension that holds the two halves.

    Returns:
        A tensor of the shape of ``input``.

    Raises:
        TypeError: if ``input`` or ``theta`` is not a floating-point tensor.
        ValueError: if ``input`` has no dimension ``dim``, its size is odd, or ``theta`` does not
            match it.

    References:
        S. Singla, S. Singla, S. Feizi, *Improved deterministic l2 robustness on CIFAR-10 and
        CIFAR-100*, ICLR 2022.
    """
    check_tensor("input", input)
    check_tensor("theta", theta)
    dim = check_dim("dim", dim, input.dim())
    size = input.shape[dim]
    if size % 2 != 0:
        raise ValueError(f"input must have an even size along dimension {dim}, got {size}")
    if theta.dim() != 1 or theta.shape[0] != size // 2:
        raise ValueError(
            f"theta must have shape ({size // 2},), one angle for each pair along dimension {dim} "
            f"of input, got {tuple(theta.shape)}"
        )
    half = (0.5 * theta).view((-1,) + (1,) * (input.dim() - dim - 1))
    sine, cosine = torch.sin(half), torch.cos(half)
    x, y = input.narrow(dim, 0, size // 2), input.narrow(dim, size // 2, size // 2)
    twice = 2.0 * F.relu(x * sine - y * cosine)
    return torch.cat((x - twice * sine, y + twice * cosine), dim=dim)
