"""The polar factor. Kernels: ``csrc/cpu/orthogonalize.cpp``, algorithm: ``polar.h``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse.ops._define import (
    below_autograd,
    define,
    differentiable,
    goes_direct,
    native_node,
    node,
    once_differentiable,
    refuse_forward_mode,
    transforming,
    wants_gradient,
    with_gradient,
)
from lipfuse.ops._layout import as_matrices, shaped_like
from lipfuse.reference.orthogonalize import saved_matrices

SOLVE = 20
"""The gradient's linear solve is stopped at this multiple of the forward's tolerance, relative."""

INFO = ("low", "high", "residual", "bound", "stages")
"""What the last dimension of ``info`` holds."""


def _saved(weight: Tensor, batch: Sequence[int], m: int, n: int, tol: float) -> Tensor:
    small = min(m, n)
    count = saved_matrices(m, n, tol)
    return weight.new_empty((*batch, count * small, small) if count * small else (0,))


def _fake(weight: Tensor, tol: float, scale: float, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = weight.shape
    saved = _saved(weight, batch, m, n, tol) if save else weight.new_empty(0)
    info = weight.new_empty((*batch, len(INFO)), dtype=torch.float64)
    return weight.new_empty(weight.shape), saved, info


def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    orthogonal: Tensor,
    saved: Tensor,
    info: Tensor,
    tol: float,
    scale: float,
    tangent: bool,
) -> Tensor:
    return grad.new_empty(grad.shape)


_orthogonalize = define("orthogonalize", _fake)
_orthogonalize_backward = once_differentiable(define("orthogonalize_backward", _fake_backward))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    if not inputs[3]:
        raise ValueError("save must be True where a gradient is wanted")
    _setup_tangent(ctx, inputs, output)


def _setup_tangent(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    weight, tol, scale, _ = inputs
    ctx.save_for_backward(weight, *output)
    ctx.tol, ctx.scale = tol, scale


def _gradient(tangent: bool) -> Callable[..., tuple[Any, ...]]:
    def backward(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
        out = None
        if grad is not None:
            out = _orthogonalize_backward(
                grad, *ctx.saved_tensors, SOLVE * ctx.tol, ctx.scale, tangent
            )
        return out, None, None, None

    return backward


_backward, _tangent_backward = _gradient(False), _gradient(True)
_call = differentiable(_orthogonalize, _setup, _backward, auxiliary=(1, 2))
_tangent_call = with_gradient(
    "lipfuse::orthogonalize_tangent", _call, _setup_tangent, _tangent_backward, auxiliary=(1, 2)
)


def _normalise_weight(
    weight: Tensor, groups: int, tol: float, solve_tol: float, scale: float, tangent: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out, saved, info = _orthogonalize(as_matrices(weight, groups), tol, scale, not tangent)
    return shaped_like(out, weight), saved, info


def _setup_weight(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.settings = inputs[1], *inputs[3:]


def _weight_gradient(
    grad: Tensor,
    weight: Tensor,
    orthogonal: Tensor,
    saved: Tensor,
    info: Tensor,
    groups: int,
    tol: float,
    scale: float,
    tangent: bool,
) -> Tensor:
    matrices = [as_matrices(x, groups) for x in (grad, weight, orthogonal)]
    out = _orthogonalize_backward(*matrices, saved, info, tol, scale, tangent)
    return shaped_like(out, weight)


def _backward_weight(ctx: Any, grad: Optional[Tensor]) -> tuple[Any, ...]:
    out = None if grad is None else _weight_gradient(grad, *ctx.saved_tensors, *ctx.settings)
    return (out, *(None,) * 5)


_weight = node(
    "orthogonal_weight",
    _normalise_weight,
    _setup_weight,
    _backward_weight,
    again=_weight_gradient,
)


def orthogonal_weight(
    weight: Tensor, tol: float, scale: float, tangent: bool = False, groups: int = 0
) -> Tensor:
    """``scale * Q`` alone, by the shortest way there is for this weight.

    Of a batch of matrices, or of a weight ``(out, ...)`` as ``groups`` matrices below each other.
    """
    if not torch.compiler.is_compiling() and goes_direct(weight):
        return _weight(weight, groups, tol, SOLVE * tol, scale, tangent)
    return shaped_like(orthogonalize(as_matrices(weight, groups), tol, scale, tangent)[0], weight)


def orthogonalize(
    weight: Tensor, tol: float, scale: float, tangent: bool = False
) -> tuple[Tensor, Tensor]:
    """``(scale * Q, info)``; see :data:`INFO`."""
    save = wants_gradient(weight)
    if tangent and save:  # which needs nothing more
        out, _, info = _tangent_call(weight, tol, scale, False)
    else:
        out, _, info = _call(weight, tol, scale, save)
    return out, info


# ---- many weights in one call --------------------------------------------------------------------


def _fake_foreach(
    weights: Sequence[Tensor],
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    save: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    saved = []
    for w, g in zip(weights, groups):
        m = w.shape[0] // g
        n = w.numel() // w.shape[0]
        saved.append(_saved(w, [g], m, n, tol) if save else w.new_empty(0))
    info = weights[0].new_empty((sum(groups), len(INFO)), dtype=torch.float64)
    return [w.new_empty(w.shape) for w in weights], saved, info


def _fake_foreach_backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    orthogonal: Sequence[Tensor],
    saved: Sequence[Tensor],
    info: Tensor,
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    tangent: bool,
) -> list[Tensor]:
    return [g.new_empty(g.shape) for g in grads]


_foreach = define("foreach_orthogonalize", _fake_foreach)
_foreach_backward = define("foreach_orthogonalize_backward", _fake_foreach_backward)
once_differentiable(_foreach)
once_differentiable(_foreach_backward)


def normalise(
    weights: Sequence[Tensor],
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    save: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The polar factors, and what :func:`gradients` needs; outside of autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        out, saved, info = _foreach(list(weights), list(groups), list(scales), tol, save)
    return out, [info, *weights, *out, *saved]


def gradients(
    grads: Sequence[Optional[Tensor]],
    saved: Sequence[Tensor],
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    tangent: bool,
) -> list[Optional[Tensor]]:
    """The gradients of :func:`normalise`, where there are any."""
    refuse_forward_mode("lipfuse::foreach_orthogonalize_backward", grads)
    info, *tensors = saved
    n = len(grads)
    used = [i for i in range(n) if grads[i] is not None]
    out: list[Optional[Tensor]] = [None] * n
    if used:
        if len(used) < n:
            starts = [sum(groups[:i]) for i in range(n)]
            info = info[[r for i in used for r in range(starts[i], starts[i] + groups[i])]]
        arguments = (
            [grads[i] for i in used],
            [tensors[i] for i in used],
            [tensors[n + i] for i in used],
            [tensors[2 * n + i] for i in used],
            info,
            [groups[i] for i in used],
            [scales[i] for i in used],
            tol,
            tangent,
        )
        with below_autograd():
            some = _foreach_backward(*arguments)
        for i, g in zip(used, some):
            out[i] = g
    return out


def retractions(
    weights: Sequence[Tensor], groups: Sequence[int], tol: float
) -> tuple[list[Tensor], Tensor]:
    """The polar factors, and ``‖I - QᵀQ‖_F`` of every matrix; outside of autograd."""
    out, (info, *_) = normalise(weights, groups, [1.0] * len(weights), tol, False)
    return out, info[:, INFO.index("residual")]


class _Foreach(torch.autograd.Function):
    """All weights in one node: its backward runs once, when all their gradients are there."""

    @staticmethod
    def forward(
        ctx: Any,
        groups: list[int],
        scales: list[float],
        tol: float,
        solve_tol: float,
        tangent: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        out, saved = normalise(weights, groups, scales, tol, not tangent)
        ctx.save_for_backward(*saved)
        ctx.arguments = (groups, scales, solve_tol, tangent)
        ctx.set_materialize_grads(False)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Any:
        none = (None,) * 5
        return *none, *gradients(grads, ctx.saved_tensors, *ctx.arguments)


def _foreach_by_python(weights: Sequence[Tensor], *arguments: Any) -> Any:
    return _Foreach.apply(*arguments, *weights)


_foreach_weights = native_node("orthogonal_weights", gradients) or _foreach_by_python


def foreach_orthogonalize(
    weights: Sequence[Tensor],
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    tangent: bool = False,
) -> list[Tensor]:
    """``scales[i] * Q`` for every weight ``(out, ...)``, taken as ``groups[i]`` matrices."""
    if torch.compiler.is_compiling() or transforming():
        # Compilers and function transforms know the operator for one weight.
        results = []
        for w, g, s in zip(weights, groups, scales):
            matrices = w.reshape(g, w.shape[0] // g, -1)
            results.append(orthogonalize(matrices, tol, s, tangent)[0].reshape(w.shape))
        return results
    refuse_forward_mode("lipfuse::foreach_orthogonalize", weights)
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
        arguments = list(groups), list(scales), tol, SOLVE * tol, tangent
        return list(_foreach_weights(list(weights), *arguments))
    out: list[Tensor] = _foreach(list(weights), list(groups), list(scales), tol, False)[0]
    return out


class _Orthonormal(torch.autograd.Function):
    """Matrices that are their own polar factors: there the exact gradient is the tangent one."""

    @staticmethod
    def forward(
        ctx: Any, groups: list[int], scales: list[float], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        # Detached, they share a version: an optimizer's step before the backward is an error.
        out = tuple(w.detach() if s == 1 else w * s for w, s in zip(weights, scales))
        ctx.save_for_backward(*weights, *out)
        ctx.groups, ctx.scales = groups, scales
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Any:
        saved = ctx.saved_tensors
        none = saved[0].new_empty(0)
        info = torch.ones(sum(ctx.groups), len(INFO), dtype=torch.float64, device=none.device)
        tensors = (info, *saved, *[none] * len(grads))
        return None, None, *gradients(grads, tensors, ctx.groups, ctx.scales, 1.0, True)


def orthonormal_weights(
    weights: Sequence[Tensor], groups: Sequence[int], scales: Sequence[float]
) -> list[Tensor]:
    """``scales[i] * Q`` for weights that are orthonormal: computes nothing, copies nothing."""
    return list(_Orthonormal.apply(list(groups), list(scales), *weights))
