"""The polar factor, of one weight and of many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipfuse.reference._matrices import each

GRADIENT_FLOOR = 1e-4
"""Singular values below this fraction of the largest count as that in the polar factor's gradient,
which is unbounded in theory."""


FACTORS_FROM = 2e-5
"""The least ``tol`` for which the kernels save a factor; the same as in ``separable.h``."""


def saved_matrices(m: int, n: int, tol: float) -> int:
    """How many square matrices are saved for the gradient of one of m x n, below each other.

    The inverse root of WᵀW if it is not square, and a factor, which may be zero: there is none. On
    all devices alike, though only kernels make any: compilers ask for shapes alone.
    """
    return (m != n) + (tol >= FACTORS_FROM)


def orthogonalize(
    weight: Tensor, tol: float, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The polar factor U Vᵀ of W = U S Vᵀ, by singular value decomposition.

    Singular values that rounding cannot tell from zero are left below one. ``info`` holds, in
    float64: the smallest and largest singular value of W, ‖I - QᵀQ‖_F, an upper bound of the
    largest singular value of Q, and the number of stages (0: none were needed).
    """
    m, n = weight.shape[-2:]
    small = min(m, n)
    if small == 0:
        info = weight.new_zeros((*weight.shape[:-2], 5), dtype=torch.float64)
        return weight.clone(), weight.new_zeros(0), info
    finite = torch.isfinite(weight).all(-1).all(-1)
    safe = torch.where(each(finite), weight, torch.zeros_like(weight))
    u, s, vh = torch.linalg.svd(safe, full_matrices=False)
    largest = s[..., :1]
    cut = 8 * torch.finfo(weight.dtype).eps * math.sqrt(small) * largest
    kept = torch.where(s > cut, torch.ones_like(s), s / cut.clamp_min(torch.finfo(s.dtype).tiny))
    kept = torch.where(largest > 0, kept, torch.zeros_like(kept))
    q = (u * kept.unsqueeze(-2)) @ vh
    q = torch.where(each(finite), q, torch.full_like(q, math.nan))
    count = saved_matrices(m, n, tol) if save else 0
    saved = weight.new_zeros((*weight.shape[:-2], count * small, small) if count else (0,))
    if save and m != n:
        basis = vh.mT if m > n else u
        # Bounded like the rest of the gradient.
        least = (GRADIENT_FLOOR * largest).clamp_min(torch.finfo(s.dtype).tiny)
        inverse = kept / torch.maximum(s, least)
        saved[..., :small, :] = (basis * inverse.unsqueeze(-2)) @ basis.mT
    residual = torch.linalg.vector_norm(1 - kept.double() ** 2, dim=-1)
    info = torch.stack(
        (
            s[..., -1].double(),
            s[..., 0].double(),
            residual,
            1 + small * torch.finfo(weight.dtype).eps * torch.ones_like(residual),
            torch.zeros_like(residual),
        ),
        -1,
    )
    return (q * scale).contiguous(), saved, info


def orthogonalize_backward(
    grad: Tensor,
    weight: Tensor,
    orthogonal: Tensor,
    saved: Tensor,
    info: Tensor,
    tol: float,
    scale: float,
    tangent: bool,
) -> Tensor:
    """With A = QᵀG and H = QᵀW: HK + KH = A - Aᵀ, then ``Q K + (G - Q A) H⁻¹``."""
    m, n = weight.shape[-2:]
    if min(m, n) == 0:
        return grad.clone()
    if m < n:
        flipped = orthogonalize_backward(
            grad.mT, weight.mT, orthogonal.mT, saved, info, tol, scale, tangent
        )
        return flipped.mT.contiguous()
    q, g = orthogonal / scale, grad * scale
    a = q.mT @ g
    skew = a - a.mT
    if tangent:
        return (q @ skew / 2 + (g - q @ a)).contiguous()
    h = q.mT @ weight
    h = (h + h.mT) / 2
    # Of a weight that is not finite Q is NaN, and so is whatever is made of it below.
    h = torch.where(each(torch.isfinite(h).all(-1).all(-1)), h, torch.zeros_like(h))
    values, basis = torch.linalg.eigh(h)
    values = torch.maximum(values, GRADIENT_FLOOR * values.amax(-1, keepdim=True).clamp_min(0))
    pairs = values.unsqueeze(-1) + values.unsqueeze(-2)
    pairs = torch.where(pairs > 0, pairs, torch.full_like(pairs, math.inf))
    k = basis @ ((basis.mT @ skew @ basis) / pairs) @ basis.mT
    out = q @ k
    if m != n:
        out = out + (g - q @ a) @ saved[..., :n, :]
    return out.contiguous()


def _as_groups(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def foreach_orthogonalize(
    weights: Sequence[Tensor],
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    save: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """:func:`orthogonalize` of weights ``(out, ...)``, each as ``groups`` matrices."""
    results = [
        orthogonalize(_as_groups(w, g), tol, s, save) for w, g, s in zip(weights, groups, scales)
    ]
    out = [q.reshape(w.shape) for (q, _, _), w in zip(results, weights)]
    return out, [r for _, r, _ in results], torch.cat([i for _, _, i in results])


def foreach_orthogonalize_backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    orthogonal: Sequence[Tensor],
    saved: Sequence[Tensor],
    info: Tensor,
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    tangent: bool,
) -> list[Tensor]:
    out: list[Tensor] = []
    row = 0
    for grad, w, q, kept, g, s in zip(grads, weights, orthogonal, saved, groups, scales):
        parts = (_as_groups(grad, g), _as_groups(w, g), _as_groups(q, g))
        one = orthogonalize_backward(*parts, kept, info[row : row + g], tol, s, tangent)
        out.append(one.reshape(w.shape))
        row += g
    return out
