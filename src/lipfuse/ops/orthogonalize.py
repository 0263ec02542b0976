"""The polar factor. Kernels: ``csrc/cpu/orthogonalize.cpp``, algorithm: ``polar.h``."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse.ops._define import define, differentiable, once_differentiable

INFO = ("low", "high", "residual", "bound", "stages")
"""What the last dimension of ``info`` holds."""


def _fake(weight: Tensor, tol: float, scale: float, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = weight.shape
    keep = save and m != n
    root = weight.new_empty((*batch, min(m, n), min(m, n)) if keep else (0,))
    info = weight.new_empty((*batch, len(INFO)), dtype=torch.float64)
    return weight.new_empty(weight.shape), root, info


def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    orthogonal: Tensor,
    inverse_root: Tensor,
    info: Tensor,
    tol: float,
    scale: float,
    tangent: bool,
) -> Tensor:
    return grad.new_empty(grad.shape)


_orthogonalize = define("orthogonalize", _fake)
_orthogonalize_backward = define("orthogonalize_backward", _fake_backward)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    weight, tol, scale, save = inputs
    if not save:
        raise ValueError("save must be True where a gradient is wanted")
    ctx.save_for_backward(weight, *output)
    ctx.tol, ctx.scale = tol, scale


def _grad(ctx: Any, grad: Optional[Tensor], tangent: bool) -> tuple[Any, ...]:
    out = None
    if grad is not None:
        # The linear solve's error relative to the gradient: of the order of Q's own.
        out = _orthogonalize_backward(
            grad, *ctx.saved_tensors, 5 * ctx.tol, ctx.scale, tangent
        )
    return out, None, None, None


def _backward(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    return _grad(ctx, grad, False)


_call = differentiable(_orthogonalize, _setup, _backward, auxiliary=(1, 2))
once_differentiable(_orthogonalize_backward)


class _Tangent(torch.autograd.Function):
    """The same forward with the cheap gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tol: float, scale: float) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = _orthogonalize(weight, tol, scale, True)
        _setup(ctx, (weight, tol, scale, True), output)
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        return output[0], output[2]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _grad(ctx, grads[0], True)[:3]


def orthogonalize(
    weight: Tensor, tol: float, scale: float, tangent: bool = False
) -> tuple[Tensor, Tensor]:
    """``(scale * Q, info)``; see :data:`INFO`."""
    save = weight.requires_grad and torch.is_grad_enabled()
    if tangent and save:
        out, info = _Tangent.apply(weight, tol, scale)
        return out, info
    out, _, info = _call(weight, tol, scale, save)
    return out, info
