"""Rows divided by their norm. Kernels: ``csrc/cpu/frobenius_normalize.cpp``."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse import reference
from lipfuse.ops._define import define, differentiable, once_differentiable


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
    ctx.eps, ctx.scale = inputs[1], inputs[2]


def _backward(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
    weight, normalized, norm = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: plain formulas in W
        norm = torch.linalg.vector_norm(weight, dim=-1)
        normalized = weight * (ctx.scale / norm.clamp_min(ctx.eps)).unsqueeze(-1)
        plain = reference.frobenius_normalize_backward
        return plain(grad, normalized, norm, ctx.eps, ctx.scale), None, None
    return _normalize_backward(grad, normalized, norm, ctx.eps, ctx.scale), None, None


_call = differentiable(_normalize, _setup, _backward, auxiliary=(1,))


def frobenius_normalize(weight: Tensor, eps: float, scale: float) -> tuple[Tensor, Tensor]:
    """``(scale * rows / norm, norm)``; the norms are not differentiable here."""
    out, norm = _call(weight, eps, scale)
    return out, norm
