"""Power iteration and spectral normalisation. Kernels: ``csrc/cpu/power_iteration.cpp``."""

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
from lipfuse.ops._layout import as_matrices, shaped_like
from lipfuse.reference._matrices import divisor_of, each

# ---- sigma ---------------------------------------------------------------------------------------


def _fake_power(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = weight.shape
    return weight.new_empty(batch), weight.new_empty((*batch, m)), weight.new_empty((*batch, n))


def _fake_outer(grad_sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return u.new_empty((*u.shape, v.shape[-1]))


_power = define("power_iteration", _fake_power)
_power_backward = once_differentiable(define("power_iteration_backward", _fake_outer))


def _setup_power(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[1], output[2])


def _backward_power(ctx: Any, grad_sigma: Optional[Tensor], *_: Any) -> tuple[Any, ...]:
    u, v = ctx.saved_tensors
    grad = None
    if grad_sigma is not None:
        again = torch.is_grad_enabled()  # linear in grad_sigma: the plain formula differentiates
        grad = (reference.power_iteration_backward if again else _power_backward)(grad_sigma, u, v)
    return grad, None, None, None, None


_power_call = differentiable(_power, _setup_power, _backward_power, auxiliary=(1, 2))


def power_iteration(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``(sigma, u, v)``; sigma is differentiable with u and v held constant."""
    sigma, u, v = _power_call(weight, u, v, n_iterations, eps)
    return sigma, u, v


# ---- W / sigma -----------------------------------------------------------------------------------


def _fake_normalize(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *batch, m, n = weight.shape
    return (
        weight.new_empty(weight.shape),
        weight.new_empty(batch),
        weight.new_empty((*batch, m)),
        weight.new_empty((*batch, n)),
    )


def _fake_normalize_backward(
    grad: Tensor,
    grad_sigma: Optional[Tensor],
    normalized: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    eps: float,
    scale: float,
) -> Tensor:
    return grad.new_empty(grad.shape)


_normalize = define("spectral_normalize", _fake_normalize)
_normalize_backward = once_differentiable(
    define("spectral_normalize_backward", _fake_normalize_backward)
)


def _setup_normalize(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*output)
    ctx.eps, ctx.scale = inputs[4], inputs[5]


def _backward_normalize(
    ctx: Any, grad: Optional[Tensor], grad_sigma: Optional[Tensor], *_: Any
) -> tuple[Any, ...]:
    normalized, sigma, u, v = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(normalized)
    # The plain formula is differentiable in the gradients, in W and in sigma.
    again = torch.is_grad_enabled()
    function = reference.spectral_normalize_backward if again else _normalize_backward
    out = function(grad, grad_sigma, normalized, sigma, u, v, ctx.eps, ctx.scale)
    return out, None, None, None, None, None


_normalize_call = differentiable(
    _normalize, _setup_normalize, _backward_normalize, auxiliary=(2, 3)
)


def spectral_normalize(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(scale * weight / sigma, sigma, u, v)``."""
    out, sigma, u, v = _normalize_call(weight, u, v, n_iterations, eps, scale)
    return out, sigma, u, v


def _advance(
    weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float
) -> tuple[Tensor, ...]:
    out, *rest = _normalize(as_matrices(weight), u, v, n_iterations, eps, 1.0)
    torch._foreach_copy_((u, v), rest[1:])
    return shaped_like(out, weight), *rest


def _setup_weight(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.settings = (inputs[4],)


def _weight_gradient(
    grad: Tensor,
    weight: Tensor,
    normalized: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    eps: float,
) -> Tensor:
    grad, matrix = as_matrices(grad), as_matrices(normalized)
    function = _normalize_backward
    if torch.is_grad_enabled():  # by the plain formula, of a sigma and a result that depend on W
        function = reference.spectral_normalize_backward
        sigma = torch.einsum("...m,...mn,...n->...", u, as_matrices(weight), v)
        matrix = as_matrices(weight) / each(divisor_of(sigma, eps))
    return shaped_like(function(grad, None, matrix, sigma, u, v, eps, 1.0), weight)


def _backward_weight(ctx: Any, grad: Optional[Tensor]) -> tuple[Any, ...]:
    out = None if grad is None else _weight_gradient(grad, *ctx.saved_tensors, *ctx.settings)
    return (out, *(None,) * 4)


_weight = node("spectral_weight", _advance, _setup_weight, _backward_weight, again=_weight_gradient)


def spectral_weight(weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float) -> Tensor:
    """``weight / sigma`` alone, by the shortest way there is; u and v are advanced in place.

    Of a weight ``(out, ...)``, taken as one matrix.
    """
    device = weight.device
    if u.device != device or v.device != device:  # one of the meta device would send it there
        name, vector = ("u", u) if u.device != device else ("v", v)
        raise ValueError(f"{name} must be on {device} like the weight, got {vector.device}")
    if not torch.compiler.is_compiling() and goes_direct(weight):
        return _weight(weight, u, v, n_iterations, eps)
    out, _, new_u, new_v = spectral_normalize(as_matrices(weight), u, v, n_iterations, eps, 1.0)
    torch._foreach_copy_((u, v), (new_u.detach(), new_v.detach()))
    return shaped_like(out, weight)
