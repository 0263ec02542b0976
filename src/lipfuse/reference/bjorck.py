"""Björck's iteration, alone and after spectral normalisation."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from lipfuse.reference._matrices import (
    divisor_of,
    each,
    inner,
    largest_singular_value,
    outer,
)
from lipfuse.reference.power_iteration import power_iteration


def _gram(w: Tensor) -> Tensor:
    return w.mT @ w if w.shape[-2] >= w.shape[-1] else w @ w.mT


def _times(w: Tensor, s: Tensor) -> Tensor:
    """W times a matrix of its smaller side, whichever that is."""
    return w @ s if w.shape[-2] >= w.shape[-1] else s @ w


def bjorck(
    weight: Tensor, beta: float, max_iterations: int, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``W <- (1 + beta) W - beta W WᵀW`` until a step is shorter than ``eps`` (Björck & Bowie)."""
    w = weight.clone(memory_format=torch.contiguous_format)
    batch = w.shape[:-2]
    steps = torch.zeros(batch, dtype=torch.int64, device=w.device)
    running = torch.ones(batch, dtype=torch.bool, device=w.device)
    history = w.new_zeros((*batch, max_iterations, *w.shape[-2:]) if save else (0,))
    for k in range(max_iterations):
        if save:
            history[..., k, :, :] = w
        new = (1 + beta) * w - beta * _times(w, _gram(w))
        change = torch.linalg.vector_norm(new - w, dim=(-2, -1))
        w = torch.where(each(running), new, w)
        steps = steps + running.to(steps.dtype)
        running = running & ~(change < eps)
    return w, history, steps


def bjorck_backward(grad: Tensor, history: Tensor, steps: Tensor, beta: float) -> Tensor:
    """Exact adjoint: ``G <- (1 + beta) G - beta (G WᵀW + W (GᵀW + WᵀG))``, last step first."""
    g = grad.clone(memory_format=torch.contiguous_format)
    batched = g.dim() + 1 == history.dim()
    for k in range(history.shape[-3] - 1 if batched else -1, -1, -1):
        w = history[..., k, :, :]
        if w.shape[-2] >= w.shape[-1]:
            new = g @ (w.mT @ w) + w @ (g.mT @ w + w.mT @ g)
        else:
            new = (w @ w.mT) @ g + (g @ w.mT + w @ g.mT) @ w
        g = torch.where(each(steps > k), (1 + beta) * g - beta * new, g)
    return g


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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The chain of a layer: W / sigma, guarded against divergence, Björck, times ``scale``.

    The second result holds sigma and the factor by which the guard shrank the weight, ``(..., 2)``.
    """
    sigma, u, v = power_iteration(weight, u, v, n_iterations, eps)
    w = weight * each(1 / divisor_of(sigma, eps))
    bound = largest_singular_value(_gram(w))
    diverges = (bound > 0.98 * (1 + 1 / beta)) & torch.isfinite(bound)
    shrink = torch.where(diverges, bound.clamp_min(1e-30).rsqrt(), torch.ones_like(bound))
    q, history, steps = bjorck(w * each(shrink), beta, max_iterations, eps_bjorck, save)
    return q * scale, torch.stack((sigma, shrink), -1), u, v, history, steps


def spectral_bjorck_backward(
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
    g = bjorck_backward(grad * scale, history, steps, beta)
    norm, shrink = sigma[..., 0], sigma[..., 1]
    first = history[..., 0, :, :] if history.dim() == g.dim() + 1 else g
    divisor = divisor_of(norm, eps)
    along = torch.where(norm.abs() < eps, 0.0, -inner(g, first) / divisor)
    return each(shrink / divisor) * g + each(along) * outer(u, v)
