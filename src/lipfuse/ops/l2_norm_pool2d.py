"""Euclidean norms of windows side by side. Kernels: ``csrc/cpu/l2_norm_pool2d.cpp``."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse import reference
from lipfuse.ops import _define
from lipfuse.ops._define import (
    by_node,
    define,
    differentiable,
    once_differentiable,
    quick,
)
from lipfuse.ops._layout import empty_image


def pooled_size(size: int, kernel: int, ceil_mode: bool) -> int:
    return -(-size // kernel) if ceil_mode else size // kernel


def _fake(
    input: Tensor, kernel_height: int, kernel_width: int, ceil_mode: bool, scale: float
) -> Tensor:
    height = pooled_size(input.shape[-2], kernel_height, ceil_mode)
    width = pooled_size(input.shape[-1], kernel_width, ceil_mode)
    return empty_image(input, (*input.shape[:-2], height, width))


def _fake_backward(
    grad: Tensor,
    input: Tensor,
    kernel_height: int,
    kernel_width: int,
    ceil_mode: bool,
    scale: float,
) -> Tensor:
    return empty_image(input, input.shape)


_pool = define("l2_norm_pool2d", _fake)
_slope = define("l2_norm_pool2d_backward", _fake_backward)
_pool_backward = quick(_slope, once_differentiable(_slope))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.settings = inputs[1:]


def _backward(ctx: Any, grad: Optional[Tensor]) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None, None
    (input,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _backward_formula(grad, input, *ctx.settings), None, None, None, None
    return _pool_backward(grad, input, *ctx.settings), None, None, None, None


def _backward_formula(
    grad: Tensor,
    input: Tensor,
    kernel_height: int,
    kernel_width: int,
    ceil_mode: bool,
    scale: float,
) -> Tensor:
    """The backward in differentiable operations, never NaN in any derivative.

    The norm is the operator itself, as autograd's derivative of the root divides by zero.
    """
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    norm = _call(wide, kernel_height, kernel_width, ceil_mode, 1.0)
    large = norm >= 1024.0 * math.sqrt(torch.finfo(norm.dtype).tiny)
    # The inner where keeps the division out of zero, in every derivative of this line too.
    ratio = torch.where(large, grad.to(norm.dtype) / torch.where(large, norm, 1.0), 0.0) * scale
    windows = reference.windows_of(wide, (kernel_height, kernel_width), ceil_mode)
    products = windows * ratio.unsqueeze(-1).unsqueeze(-3)
    return reference.from_windows(products, *input.shape[-2:]).to(input.dtype)


_call = quick(_pool, differentiable(_pool, _setup, _backward, auxiliary=(), autocast=False))
_pool_quickly = by_node("l2_norm_pool2d", _call, again=_backward_formula)


def l2_norm_pool2d(
    input: Tensor, kernel: tuple[int, int], ceil_mode: bool, scale: float = 1.0
) -> Tensor:
    """``scale`` times the Euclidean norm of each window."""
    return _pool_quickly(input, kernel[0], kernel[1], ceil_mode, scale)


takes = _define.takes(_pool)
