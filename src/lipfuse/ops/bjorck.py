"""Björck's iteration and a layer's whole chain on it. Kernels: ``csrc/cpu/bjorck.cpp``."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse.ops._define import define, differentiable, once_differentiable, wants_gradient


def _history(weight: Tensor, max_iterations: int, save: bool) -> Tensor:
    *batch, m, n = weight.shape
    return weight.new_empty((*batch, max_iterations, m, n) if save else (0,))


def _steps(weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape[:-2], dtype=torch.int64)


# ---- the iteration -------------------------------------------------------------------------------


def _fake_bjorck(
    weight: Tensor, beta: float, max_iterations: int, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out = weight.new_empty(weight.shape)
    return out, _history(weight, max_iterations, save), _steps(weight)


def _fake_bjorck_backward(grad: Tensor, history: Tensor, steps: Tensor, beta: float) -> Tensor:
    return grad.new_empty(grad.shape)


_bjorck = define("bjorck", _fake_bjorck)
_bjorck_backward = once_differentiable(define("bjorck_backward", _fake_bjorck_backward))


def _setup_bjorck(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.beta = inputs[1]
    if not inputs[4]:
        raise ValueError("save must be True where a gradient is wanted")


def _backward_bjorck(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    out = None if grad is None else _bjorck_backward(grad, *ctx.saved_tensors, ctx.beta)
    return out, None, None, None, None


_bjorck_call = differentiable(_bjorck, _setup_bjorck, _backward_bjorck, auxiliary=(1, 2))


def bjorck(weight: Tensor, beta: float, max_iterations: int, eps: float) -> tuple[Tensor, Tensor]:
    """``(weight, steps)``: the last iterate and how many steps ran, int64, one a matrix."""
    save = wants_gradient(weight)
    out, _, steps = _bjorck_call(weight, beta, max_iterations, eps, save)
    return out, steps


# ---- the chain of a layer ------------------------------------------------------------------------


def _fake_chain(
    weight: Tensor,
    u: Tensor,
    v: Optional[Tensor],
    n_iterations: int,
    eps: float,
    beta: float,
    max_iterations: int,
    eps_bjorck: float,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *batch, m, n = weight.shape
    return (
        weight.new_empty(weight.shape),
        weight.new_empty((*batch, 2)),
        weight.new_empty((*batch, m)),
        weight.new_empty((*batch, n)),
        _history(weight, max_iterations, save),
        _steps(weight),
    )


def _fake_chain_backward(
    grad: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    history: Tensor,
    steps: Tensor,
    eps: float,
    beta: float,
    scale: float,
) -> Tensor:
    return grad.new_empty(grad.shape)


_chain = define("spectral_bjorck", _fake_chain)
_chain_backward = once_differentiable(define("spectral_bjorck_backward", _fake_chain_backward))


def _setup_chain(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.arguments = (inputs[4], inputs[5], inputs[8])
    if not inputs[9]:
        raise ValueError("save must be True where a gradient is wanted")


def _backward_chain(ctx: Any, grad: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    out = None if grad is None else _chain_backward(grad, *ctx.saved_tensors, *ctx.arguments)
    return (out, *(None,) * 9)


_chain_call = differentiable(_chain, _setup_chain, _backward_chain, auxiliary=(1, 2, 3, 4, 5))


def spectral_bjorck(
    weight: Tensor,
    u: Tensor,
    v: Optional[Tensor],
    n_iterations: int,
    eps: float,
    beta: float,
    max_iterations: int,
    eps_bjorck: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(weight, sigma, u, v)``; sigma is not differentiable here."""
    save = wants_gradient(weight)
    out, sigma, u, v, _, _ = _chain_call(
        weight, u, v, n_iterations, eps, beta, max_iterations, eps_bjorck, scale, save
    )
    return out, sigma[..., 0], u, v
