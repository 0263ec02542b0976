"""Many weights divided by their spectral norms in one launch. Kernels: ``csrc/cuda``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse import reference
from lipfuse.ops._define import (
    define,
    devices_with_kernels,
    is_plain,
    once_differentiable,
    refuse_forward_mode,
)


def _fake(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int,
    eps: float,
    scales: Sequence[float],
) -> tuple[list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    rows = [w.shape[0] for w in weights]
    return (
        [w.new_empty(w.shape) for w in weights],
        weights[0].new_empty(len(weights)),
        [w.new_empty(r) for w, r in zip(weights, rows)],
        [w.new_empty(w.numel() // r) for w, r in zip(weights, rows)],
    )


def _fake_backward(
    grads: Sequence[Tensor],
    grad_sigmas: Optional[Tensor],
    normalized: Sequence[Tensor],
    sigmas: Tensor,
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    eps: float,
    scales: Sequence[float],
) -> list[Tensor]:
    return [g.new_empty(g.shape) for g in grads]


_foreach = define("foreach_spectral_normalize", _fake)
_foreach_backward = define("foreach_spectral_normalize_backward", _fake_backward)
once_differentiable(_foreach)
once_differentiable(_foreach_backward)


class _Foreach(torch.autograd.Function):
    """All weights in one node: its backward runs once, when all their gradients are there."""

    @staticmethod
    def forward(
        ctx: Any, n: int, n_iterations: int, eps: float, scales: list[float], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            out, sigmas, us, vs = _foreach(
                list(tensors[:n]),
                list(tensors[n : 2 * n]),
                list(tensors[2 * n :]),
                n_iterations,
                eps,
                scales,
            )
        ctx.save_for_backward(sigmas, *out, *us, *vs)
        ctx.arguments = (n, eps, scales)
        ctx.inputs = len(tensors)
        ctx.mark_non_differentiable(*us, *vs)
        ctx.set_materialize_grads(False)
        return (sigmas, *out, *us, *vs)

    @staticmethod
    def backward(ctx: Any, grad_sigmas: Optional[Tensor], *grads: Optional[Tensor]) -> Any:
        refuse_forward_mode("lipfuse::foreach_spectral_normalize_backward", (grad_sigmas, *grads))
        sigmas, *tensors = ctx.saved_tensors
        n, eps, scales = ctx.arguments
        out, us, vs = tensors[:n], tensors[n : 2 * n], tensors[2 * n :]
        # The plain formula is differentiable in the gradients, in W and in sigma.
        again = torch.is_grad_enabled()
        call = reference.foreach_spectral_normalize_backward if again else _foreach_backward
        given = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, out)]
        results = call(given, grad_sigmas, out, sigmas, us, vs, eps, scales)
        return None, None, None, None, *results, *(None,) * (ctx.inputs - n)


_devices = devices_with_kernels(_foreach)


def takes(weights: Sequence[Tensor]) -> bool:
    """Whether one call does for all of these: of one dtype, on one device that has a kernel."""
    return bool(weights) and all(
        w.device.type in _devices
        and w.device == weights[0].device
        and w.dtype == weights[0].dtype
        and w.dtype in (torch.float32, torch.float64)
        and w.numel() > 0
        and is_plain(w)
        and not torch.is_autocast_enabled(w.device.type)
        for w in weights
    )


def foreach_spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int,
    eps: float,
    scales: Sequence[float],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """``(normalized, sigmas, us, vs)`` of weights ``(out, ...)``, see :func:`takes`.

    ``vs`` may be empty.
    """
    n = len(weights)
    found = _Foreach.apply(n, n_iterations, eps, list(scales), *weights, *us, *vs)
    sigmas, *tensors = found
    return tensors[:n], list(sigmas.unbind()), tensors[n : 2 * n], tensors[2 * n :]
