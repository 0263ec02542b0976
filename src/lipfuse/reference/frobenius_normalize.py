"""Rows divided by their Euclidean norm."""

from __future__ import annotations

import torch
from torch import Tensor


def frobenius_normalize(weight: Tensor, eps: float, scale: float) -> tuple[Tensor, Tensor]:
    """Rows of the last dimension divided by their Euclidean norm; zero rows stay zero."""
    norm = torch.linalg.vector_norm(weight, dim=-1)
    return (weight * (scale / norm.clamp_min(eps)).unsqueeze(-1)).contiguous(), norm


def frobenius_normalize_backward(
    grad: Tensor, normalized: Tensor, norm: Tensor, eps: float, scale: float
) -> Tensor:
    """``(c G - <G, Ŵ> Ŵ / c) / ‖W‖``."""
    clamped = norm.clamp_min(eps)
    along = torch.where(norm < eps, 0.0, -(grad * normalized).sum(-1) / (scale * clamped))
    return (scale / clamped).unsqueeze(-1) * grad + along.unsqueeze(-1) * normalized
