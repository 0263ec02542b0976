"""Spectral normalisation of many weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from lipfuse.reference.power_iteration import spectral_normalize, spectral_normalize_backward


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def foreach_spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int,
    eps: float,
    scales: Sequence[float],
) -> tuple[list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    """:func:`spectral_normalize` of weights ``(out, ...)``, each a matrix; ``vs`` may be empty."""
    results = [
        spectral_normalize(_as_matrix(w), u, vs[i] if vs else None, n_iterations, eps, scales[i])
        for i, (w, u) in enumerate(zip(weights, us))
    ]
    out = [r[0].reshape(w.shape) for r, w in zip(results, weights)]
    return (
        out,
        torch.stack([r[1] for r in results]),
        [r[2] for r in results],
        [r[3] for r in results],
    )


def foreach_spectral_normalize_backward(
    grads: Sequence[Tensor],
    grad_sigmas: Optional[Tensor],
    normalized: Sequence[Tensor],
    sigmas: Tensor,
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    eps: float,
    scales: Sequence[float],
) -> list[Tensor]:
    out = []
    for i, (g, w) in enumerate(zip(grads, normalized)):
        grad_sigma = None if grad_sigmas is None else grad_sigmas[i]
        flat = (_as_matrix(g), grad_sigma, _as_matrix(w), sigmas[i], us[i], vs[i])
        out.append(spectral_normalize_backward(*flat, eps, scales[i]).reshape(g.shape))
    return out
