r"""Orthogonal convolution kernels: a matrix on strided patches times block convolutions.

With the kernel as a polynomial :math:`K(z, w) = \sum_{ij} K_{ij} z^i w^j` of matrices, composing
convolutions multiplies polynomials, and a convolution on circular padding is orthogonal where
:math:`K(z, w)` is for all :math:`|z| = |w| = 1`. Here

.. math:: K(z, w) = M(z, w) \prod_t (I - P_t + x_t P_t), \qquad x_t \in \{z, w\},

with orthogonal projectors :math:`P_t = V_t V_t^\top` onto half the channels (the block convolutions
of BCOP), and M a matrix with orthonormal rows or columns, whose taps lie side by side as far as the
stride reaches (the strided kernel of AOC); ``docs/orthogonal_convolutions.md`` says why this is
orthogonal, for which shapes orthogonal convolutions exist, and what the products cost.

References:
    Xiao et al., arXiv 1806.05393 (block convolutions); Li et al., "Preventing Gradient Attenuation
    in Lipschitz Constrained Convolutional Networks" (BCOP), arXiv 1911.00937; Boissin et al.,
    "An Adaptive Orthogonal Convolution Scheme" (AOC), arXiv 2501.07930.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .. import ops

__all__ = ["KernelPlan", "compose_kernel", "plan_kernel"]


@dataclass(frozen=True)
class KernelPlan:
    """The shapes of an orthogonal kernel's factors, and how they are multiplied.

    Args:
        groups: of the convolution; each has factors of its own.
        rows: of the matrix M.
        channels: that the block convolutions act on.
        taps: of M, on each axis.
        axes: on which each block convolution acts, 0 or 1, in the order of the product.
        columns: how many of the channels the kernel keeps.
        transposed: whether the product is the transpose of the kernel: rows for inputs.
    """

    groups: int
    rows: int
    channels: int
    taps: tuple[int, int]
    axes: tuple[int, ...]
    columns: int
    transposed: bool

    @property
    def counts(self) -> tuple[int, ...]:
        """How many matrices are in each parameter: one M a group; one V a block and group."""
        return (self.groups, len(self.axes) * self.groups)[: 2 if self.axes else 1]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Of the parameters, their matrices below each other: M, and V if there are blocks.

        M has ``rows`` rows, and columns ordered by taps, then channels. V has half as many columns
        as there are channels.
        """
        core = self.groups * self.rows, math.prod(self.taps) * self.channels
        blocks = len(self.axes) * self.groups * self.channels, self.channels // 2
        return (core, blocks)[: len(self.counts)]

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """``(out_channels, in_channels / groups, *kernel_size)``."""
        height, width = (n + self.axes.count(axis) for axis, n in enumerate(self.taps))
        outer, inner = self.rows, self.columns
        if self.transposed:
            outer, inner = inner, outer
        return self.groups * outer, inner, height, width


def plan_kernel(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> KernelPlan:
    """Plans the orthogonal kernel of a convolution; its rows are orthonormal, or its columns.

    Args:
        in_channels, out_channels: multiples of ``groups``.
        kernel_size, stride, dilation, groups: of the convolution.

    Returns:
        The plan.

    Raises:
        ValueError: if no orthogonal convolution has these settings, or only trivial ones have.
    """
    inputs, outputs = in_channels // groups, out_channels // groups
    # Where they have a common factor, only every so many pixels are read at all.
    shared = [math.gcd(s, d) for s, d in zip(stride, dilation)]
    steps = [s // g for s, g in zip(stride, shared)]
    taps = (min(kernel_size[0], steps[0]), min(kernel_size[1], steps[1]))
    axes = _alternating(kernel_size[0] - taps[0], kernel_size[1] - taps[1])
    patch = math.prod(taps)
    wide = outputs <= inputs * patch
    settings = f"kernel_size={kernel_size}, stride={stride}, dilation={dilation}"
    if not wide and any(g > 1 or k < s for g, k, s in zip(shared, kernel_size, steps)):
        raise ValueError(
            f"out_channels must be at most {in_channels * patch} for in_channels={in_channels}, "
            f"{settings}, where an orthogonal convolution does not read every pixel, "
            f"got {out_channels}"
        )
    transposed = not wide and patch == 1 and bool(axes)
    if transposed:
        rows, channels, columns = inputs, outputs, outputs
    elif wide or not axes:
        rows, channels, columns = outputs, inputs, inputs
    else:
        rows, channels, columns = outputs, outputs // patch, inputs
    if axes and channels < 2:
        raise ValueError(
            f"kernel_size must be {taps} for in_channels={in_channels}, "
            f"out_channels={out_channels}, stride={stride}, groups={groups}: with one channel a "
            f"group, larger orthogonal kernels are that kernel shifted, got {kernel_size}"
        )
    return KernelPlan(groups, rows, channels, taps, axes, columns, transposed)


def _alternating(first: int, second: int) -> tuple[int, ...]:
    """So many factors on each axis, in turns as long as there are both."""
    both = min(first, second)
    return (0, 1) * both + (0,) * (first - both) + (1,) * (second - both)


# ---- the product -------------------------------------------------------------------------------


def compose_kernel(core: Tensor, blocks: Tensor | None, plan: KernelPlan) -> Tensor:
    r"""The kernel from M and the matrices :math:`V_t`, with orthonormal rows or columns each.

    The projectors are formed as :math:`V (2I - V^\top V) V^\top`, a Newton step on
    :math:`V^\top V`: an eigenvalue is :math:`1 - (1 - \sigma^2)^2` for a singular value
    :math:`\sigma` of V. It is never above 1, so that no block convolution enlarges anything, and
    wrong by the square of V's own error.

    Args:
        core, blocks: of ``plan.shapes``; ``blocks`` None if the plan has no block convolutions.
        plan: of :func:`plan_kernel`.

    Returns:
        ``(out_channels, in_channels / groups, *kernel_size)``, contiguous. The gradient takes the
        matrices V for orthonormal; there is no second derivative.
    """
    if blocks is None:
        return _to_kernel(_spread(core, plan)[..., : plan.columns], plan)
    needed = torch.is_grad_enabled() and (core.requires_grad or blocks.requires_grad)
    with ops.full_precision(core):
        if torch.compiler.is_compiling() or ops.transforming() or not needed:
            return _to_kernel(_product(core, blocks, plan)[0], plan)
        kernel: Tensor = _Product.apply(core, blocks, plan)
        return kernel


def _spread(core: Tensor, plan: KernelPlan) -> Tensor:
    """M as a polynomial, ``(groups, rows, *taps, channels)``."""
    return core.reshape(plan.groups, plan.rows, *plan.taps, plan.channels)


def _to_kernel(product: Tensor, plan: KernelPlan) -> Tensor:
    order = (0, 4, 1, 2, 3) if plan.transposed else (0, 1, 4, 2, 3)
    return product.permute(order).flatten(0, 1).contiguous()


def _of_kernel(kernel: Tensor, plan: KernelPlan) -> Tensor:
    """The inverse of :func:`_to_kernel`."""
    order = (0, 2, 3, 4, 1) if plan.transposed else (0, 1, 3, 4, 2)
    return kernel.unflatten(0, (plan.groups, -1)).permute(order)


def _rows(x: Tensor) -> Tensor:
    """All coefficients of all rows below each other: ``(groups, -1, channels)``."""
    return x.flatten(1, 3)


def _product(
    core: Tensor, blocks: Tensor, plan: KernelPlan
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """X <- X (I - P) + x X P from M on, for one V after the other.

    Every step is two products with half the channels for all coefficients together, so that
    nothing larger than the rows of M is multiplied; returns with the steps' operands.
    """
    flat = blocks.unflatten(0, (-1, plan.channels))
    # V (2I - VᵀV)
    newton = torch.baddbmm(flat, flat, torch.bmm(flat.mT, flat), beta=2, alpha=-1)
    v, newton = (f.unflatten(0, (-1, plan.groups)) for f in (flat, newton))
    x, lefts, rights = _spread(core, plan), [], []
    for t, (axis, a) in enumerate(zip(plan.axes, newton)):
        lefts.append(_rows(x))
        rights.append(torch.bmm(lefts[t], a))
        kept = plan.columns if t == len(plan.axes) - 1 else plan.channels
        part = torch.bmm(rights[t], v[t, :, :kept].mT).unflatten(1, x.shape[1:4])
        pad = (0, 0, 0, 1) if axis else (0, 0, 0, 0, 0, 1)
        x = F.pad(x[..., :kept] - part, pad)
        x.narrow(2 + axis, 1, part.shape[2 + axis]).add_(part)
    return x, lefts, rights, v


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, core: Tensor, blocks: Tensor, plan: KernelPlan) -> Tensor:
        product, lefts, rights, v = _product(core, blocks, plan)
        ctx.save_for_backward(v, *lefts, *rights)
        ctx.plan = plan
        return _to_kernel(product, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        plan: KernelPlan = ctx.plan
        v, *operands = ctx.saved_tensors
        count = len(plan.axes)
        lefts, rights = operands[:count], operands[count:]
        with ops.full_precision(grad):
            g, grads = _of_kernel(grad, plan).contiguous(), torch.empty_like(v)
            for t in reversed(range(count)):
                axis, dv, left, right = 2 + plan.axes[t], grads[t], lefts[t], rights[t]
                size, kept = g.shape[axis] - 1, g.shape[-1]
                stays = g.narrow(axis, 0, size)
                part = g.narrow(axis, 1, size) - stays  # the gradient of X P
                flat = _rows(part)
                z = torch.bmm(flat, v[t, :, :kept])
                torch.bmm(left.mT, z, out=dv)
                dv[:, :kept].baddbmm_(flat.mT, right)
                g = torch.bmm(z, v[t].mT).view(*part.shape[:-1], plan.channels)
                g.narrow(-1, 0, kept).add_(stays)
        core_shape, blocks_shape = plan.shapes
        return g.reshape(core_shape), grads.view(blocks_shape), None
