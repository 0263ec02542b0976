"""Spectral normalisation of many weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from lipfuse.reference.power_iteration import spectral_normalize, spectral_normalize_backward


def _as_matrices(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w.flatten(1).contiguous() for w in weights]


def _check(
    matrices: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    scales: Sequence[float],
    *others: Sequence[Tensor],
) -> None:
    """Refuses, as the kernels do, what ``zip`` would cut short and what broadcasting would let in.

    ``others`` only need the right length.
    """
    if not matrices:
        raise ValueError("weights must not be empty")
    if len(scales) != len(matrices):
        raise ValueError("weights and scales must have the same length")
    if any(len(tensors) != len(matrices) for tensors in (us, vs, *others)):
        raise ValueError("lists of tensors must have the length of weights")
    for name, vectors, dim in (("u", us, 0), ("v", vs, 1)):
        for w, x in zip(matrices, vectors):
            if tuple(x.shape) != (w.shape[dim],):
                raise ValueError(
                    f"{name} must have {w.shape[dim]} elements, got shape {tuple(x.shape)}"
                )


def foreach_spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int,
    eps: float,
    scales: Sequence[float],
) -> tuple[list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    """:func:`spectral_normalize` of weights ``(out, ...)``, each a matrix; ``vs`` may be empty."""
    matrices = _as_matrices(weights)
    # Without a v there is none that could be wrong.
    _check(matrices, us, vs or [w.new_empty(w.shape[1]) for w in matrices], scales)
    results = [
        spectral_normalize(w, u, vs[i] if vs else None, n_iterations, eps, scales[i])
        for i, (w, u) in enumerate(zip(matrices, us))
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
    matrices, each_sigma = _as_matrices(grads), sigmas.flatten().unbind()
    _check(matrices, us, vs, scales, normalized, each_sigma)
    out = []
    for i, (g, w) in enumerate(zip(matrices, _as_matrices(normalized))):
        if w.shape != g.shape:
            raise ValueError(f"normalized must have {g.numel()} elements, got {tuple(w.shape)}")
        grad_sigma = None if grad_sigmas is None else grad_sigmas[i]
        grad = spectral_normalize_backward(
            g, grad_sigma, w, each_sigma[i], us[i], vs[i], eps, scales[i]
        )
        out.append(grad.reshape(grads[i].shape))
    return out
