"""Positive and negative parts, one after the other. Kernels: ``csrc/cpu/max_min.cpp``."""

from __future__ import annotations

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
from lipfuse.ops._layout import doubled_strides


def _fake(input: Tensor, dim: int, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    strides, twice = doubled_strides(input, dim)
    shape = list(input.shape)
    shape[dim] *= 2
    out = torch.empty_strided(shape, twice, dtype=input.dtype, device=input.device)
    if not save:
        return out, input.new_empty(0, dtype=torch.uint8)
    return out, torch.empty_strided(input.shape, strides, dtype=torch.uint8, device=input.device)


def _fake_backward(grad: Tensor, signs: Tensor, dim: int, scale: float) -> Tensor:
    strides, _ = doubled_strides(signs, dim)
    return torch.empty_strided(signs.shape, strides, dtype=grad.dtype, device=grad.device)


_split = define("max_min", _fake)
_join = define("max_min_backward", _fake_backward)
_call_join = quick(_join, once_differentiable(_join))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.dim, ctx.scale = inputs[1], inputs[2]
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None
    (signs,) = ctx.saved_tensors
    again = torch.is_grad_enabled()  # linear in grad: the plain formula differentiates
    function = reference.max_min_backward if again else _call_join
    return function(grad, signs, ctx.dim, ctx.scale), None, None, None


_call = quick(_split, differentiable(_split, _setup, _backward, auxiliary=(1,), autocast=False))


def _parts(input: Tensor, dim: int, scale: float) -> Tensor:
    out: Tensor
    out, _ = _call(input, dim, scale, input.requires_grad and torch.is_grad_enabled())
    return out


_split_quickly = by_node("max_min", _parts, again=reference.max_min_backward)


def max_min(input: Tensor, dim: int, scale: float = 1.0) -> Tensor:
    """``scale`` times ``max(input, 0)``, and ``max(-input, 0)`` after it along ``dim``.

    A NaN is in both.
    """
    return _split_quickly(input, dim, scale)


takes = _define.takes(_split)
