"""Pairs of neighbours in ascending order. Kernels: ``csrc/cpu/sort_pairs.cpp``."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse.ops import _define
from lipfuse.ops._define import (
    by_node,
    define,
    differentiable,
    quick,
)
from lipfuse.ops._layout import contiguous_strides, doubled_strides, is_dense


def _fake(input: Tensor, dim: int, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    shape, strides = list(input.shape), list(input.stride())
    if input.numel() == 0 or not is_dense(shape, strides):
        strides = contiguous_strides(shape)
    out = torch.empty_strided(shape, strides, dtype=input.dtype, device=input.device)
    if not save:
        return out, input.new_empty(0, dtype=torch.uint8)
    inner = strides[dim]
    shape[dim] //= 2
    halved = [s // 2 if i != dim % len(shape) and s > inner else s for i, s in enumerate(strides)]
    return out, torch.empty_strided(shape, halved, dtype=torch.uint8, device=input.device)


def _fake_backward(grad: Tensor, swapped: Tensor, dim: int, scale: float) -> Tensor:
    _, strides = doubled_strides(swapped, dim)
    return torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device)


_sort = define("sort_pairs", _fake)
_swap = define("sort_pairs_backward", _fake_backward)


def _setup_swap(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, swapped, ctx.dim, ctx.scale = inputs
    ctx.save_for_backward(swapped)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.dim, ctx.scale = inputs[1], inputs[2]
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None
    return _call_swap(grad, *ctx.saved_tensors, ctx.dim, ctx.scale), None, None, None


# The Jacobian is constant and symmetric: the derivative of the backward is the backward.
_call_swap = quick(_swap, differentiable(_swap, _setup_swap, _backward, (), autocast=False))
_call = quick(_sort, differentiable(_sort, _setup, _backward, auxiliary=(1,), autocast=False))


def _sorted_pairs(input: Tensor, dim: int, scale: float) -> Tensor:
    out: Tensor
    out, _ = _call(input, dim, scale, input.requires_grad and torch.is_grad_enabled())
    return out


_sort_quickly = by_node("sort_pairs", _sorted_pairs, again=_call_swap)


def sort_pairs(input: Tensor, dim: int, scale: float = 1.0) -> Tensor:
    """``scale`` times ``input`` with the pairs along ``dim`` in ascending order.

    A pair with a NaN stays as it is.
    """
    return _sort_quickly(input, dim, scale)


takes = _define.takes(_sort)
