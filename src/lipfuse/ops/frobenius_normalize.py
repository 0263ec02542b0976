"""Rows divided by their norm. Kernels: ``csrc/cpu/frobenius_normalize.cpp``."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse import reference
from lipfuse.ops._define import (
    define,
    differentiable,
    goes_direct,
    node,
    once_differentiable,
)
from lipfuse.ops._layout import merged, shaped_like


def _fake(weight: Tensor, eps: float, scale: float) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[:-1])


def _fake_backward(
    grad: Tensor, normalized: Tensor, norm: Tensor, eps: float, scale: float
) -> Tensor:
    return grad.new_empty(grad.shape)


_normalize = define("frobenius_normalize", _fake)
_normalize_backward = once_differentiable(define("frobenius_normalize_backward", _fake_backward))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.settings = inputs[1:]


def _gradient(
    grad: Tensor,
    weight: Tensor,
    normalized: Tensor,
    norm: Tensor,
    eps: float,
    scale: float,
    dims: int = 1,
) -> Tensor:
    grad = merged(grad, dims)
    if torch.is_grad_enabled():  # a second derivative is wanted: plain formulas in W
        rows = merged(weight, dims)
        norm = torch.linalg.vector_norm(rows, dim=-1)
        rows = rows * (scale / norm.clamp_min(eps)).unsqueeze(-1)
        out = reference.frobenius_normalize_backward(grad, rows, norm, eps, scale)
    else:
        out = _normalize_backward(grad, merged(normalized, dims), norm, eps, scale)
    return shaped_like(out, weight)


def _backward(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    out = None if grad is None else _gradient(grad, *ctx.saved_tensors, *ctx.settings)
    return out, None, None


_call = differentiable(_normalize, _setup, _backward, auxiliary=(1,))


def _normalize_weight(weight: Tensor, eps: float, scale: float, dims: int) -> tuple[Tensor, Tensor]:
    rows, norm = _normalize(merged(weight, dims), eps, scale)
    return shaped_like(rows, weight), norm


def _backward_weight(ctx: Any, grad: Optional[Tensor]) -> tuple[Any, ...]:
    return *_backward(ctx, grad), None


_weight = node("frobenius_weight", _normalize_weight, _setup, _backward_weight, again=_gradient)


def frobenius_normalize(weight: Tensor, eps: float, scale: float, dims: int = 1) -> Tensor:
    """``scale * weight / norm``; the last ``dims`` dimensions make up one vector."""
    if not torch.compiler.is_compiling() and goes_direct(weight):
        return _weight(weight, eps, scale, dims)
    rows, _ = _call(merged(weight, dims), eps, scale)
    return shaped_like(rows, weight)
