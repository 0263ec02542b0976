"""Power iteration and spectral normalisation."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor

from lipfuse.reference._matrices import divisor_of, each, inner, outer


def _matvec(w: Tensor, x: Tensor) -> Tensor:
    return (w @ x.unsqueeze(-1)).squeeze(-1)


def _in_range(w: Tensor) -> tuple[Tensor, Tensor]:
    """Huge matrices divided by a power of two, so that no square overflows, and what undoes it."""
    if w.numel() == 0:
        return w, w.new_ones(w.shape[:-2])
    largest = w.detach().abs().amax((-2, -1))
    huge = (largest > 1e6) & torch.isfinite(largest)
    unit = torch.where(huge, torch.exp2(torch.floor(torch.log2(largest))), torch.ones_like(largest))
    return w / each(unit), unit


def power_iteration(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``u <- Wv/|Wv|, v <- Wᵀu/|Wᵀu|``; sigma = uᵀWv.

    Products that vanish or are not finite leave u and v alone.
    """
    if not 0 <= n_iterations < 2**31:  # as the kernels say it
        raise ValueError(f"n_iterations must be in [0, 2^31), got {n_iterations}")
    weight, unit = _in_range(weight)
    u = u.clone(memory_format=torch.contiguous_format)
    if v is None:
        v = _matvec(weight.mT, u)
        norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        even = torch.full_like(v, 1 / math.sqrt(max(1, v.shape[-1])))
        v = torch.where((norm > eps) & torch.isfinite(norm), v / norm.clamp_min(eps), even)
    else:
        v = v.clone(memory_format=torch.contiguous_format)
    if n_iterations == 0:
        return (u * _matvec(weight, v)).sum(-1) * unit, u, v
    sigma = u.new_zeros(u.shape[:-1])
    stopped = torch.zeros(u.shape[:-1], dtype=torch.bool, device=u.device)
    for _ in range(n_iterations):
        t = _matvec(weight, v)
        s = _matvec(weight.mT, t)
        t_norm = torch.linalg.vector_norm(t, dim=-1)
        s_norm = torch.linalg.vector_norm(s, dim=-1)
        new = torch.where(t_norm > eps, s_norm / t_norm, t_norm)
        sigma = torch.where(stopped, sigma, new)
        stopped = stopped | ~((t_norm > eps) & (s_norm > 0) & torch.isfinite(new))
        keep = stopped.unsqueeze(-1)
        u = torch.where(keep, u, t / t_norm.unsqueeze(-1))
        v = torch.where(keep, v, s / s_norm.unsqueeze(-1))
    return sigma * unit, u, v


def power_iteration_backward(grad_sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """d sigma / dW = u vᵀ."""
    return each(grad_sigma) * outer(u, v)


def spectral_normalize(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``scale W / sigma`` (Miyato et al., 2018)."""
    sigma, u, v = power_iteration(weight, u, v, n_iterations, eps)
    out = weight * each(scale / divisor_of(sigma, eps))
    return out.contiguous(), sigma, u, v


def spectral_normalize_backward(
    grad: Tensor,
    grad_sigma: Optional[Tensor],
    normalized: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    eps: float,
    scale: float,
) -> Tensor:
    """``(c G - <G, Ŵ> u vᵀ) / sigma + g_sigma u vᵀ``."""
    divisor = divisor_of(sigma, eps)
    along = torch.where(sigma.abs() < eps, 0.0, -inner(grad, normalized) / divisor)
    if grad_sigma is not None:
        along = along + grad_sigma
    return each(scale / divisor) * grad + each(along) * outer(u, v)
