"""Sums of windows over the root of their sizes. Kernels: ``csrc/cpu/scaled_avg_pool2d.cpp``."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from lipfuse.ops import _define
from lipfuse.ops._define import (
    by_node,
    define,
    differentiable,
    quick,
)
from lipfuse.ops._layout import empty_image
from lipfuse.ops.l2_norm_pool2d import pooled_size


def _fake(
    input: Tensor, kernel_height: int, kernel_width: int, ceil_mode: bool, scale: float
) -> Tensor:
    height = pooled_size(input.shape[-2], kernel_height, ceil_mode)
    width = pooled_size(input.shape[-1], kernel_width, ceil_mode)
    return empty_image(input, (*input.shape[:-2], height, width))


def _fake_backward(
    grad: Tensor,
    height: int,
    width: int,
    kernel_height: int,
    kernel_width: int,
    ceil_mode: bool,
    scale: float,
) -> Tensor:
    return empty_image(grad, (*grad.shape[:-2], height, width))


_pool = define("scaled_avg_pool2d", _fake)
_unpool = define("scaled_avg_pool2d_backward", _fake_backward)


def _setup_unpool(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.settings = inputs[3:]


def _backward_of_unpool(ctx: Any, grad: Optional[Tensor]) -> tuple[Any, ...]:
    pooled = None if grad is None else _call(grad, *ctx.settings)
    return pooled, None, None, None, None, None, None


# The map is linear: the derivative of its adjoint is the map.
_call_unpool = quick(
    _unpool,
    differentiable(_unpool, _setup_unpool, _backward_of_unpool, auxiliary=(), autocast=False),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.size = inputs[0].shape[-2:]
    ctx.settings = inputs[1:]


def _backward(ctx: Any, grad: Optional[Tensor]) -> tuple[Any, ...]:
    spread = None if grad is None else _call_unpool(grad, *ctx.size, *ctx.settings)
    return spread, None, None, None, None


_call = quick(_pool, differentiable(_pool, _setup, _backward, auxiliary=(), autocast=False))
_pool_quickly = by_node("scaled_avg_pool2d", _call, again=_call_unpool)


def scaled_avg_pool2d(
    input: Tensor, kernel: tuple[int, int], ceil_mode: bool, scale: float = 1.0
) -> Tensor:
    """``scale`` times the sum of each window over the root of its size."""
    return _pool_quickly(input, kernel[0], kernel[1], ceil_mode, scale)


takes = _define.takes(_pool)
