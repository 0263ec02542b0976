"""Single normalisations under deel-torchlip's names. New code finds more in lipfuse.functional."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .._checks import check_positive, check_positive_int, check_tensor
from ..functional.normalization import bjorck, power_iteration

__all__ = [
    "DEFAULT_BETA",
    "DEFAULT_EPS_BJORCK",
    "DEFAULT_EPS_SPECTRAL",
    "DEFAULT_MAXITER_BJORCK",
    "DEFAULT_MAXITER_SPECTRAL",
    "bjorck_normalization",
    "spectral_normalization",
]

DEFAULT_EPS_SPECTRAL = 1e-3
DEFAULT_EPS_BJORCK = 1e-3
DEFAULT_MAXITER_BJORCK = 15
DEFAULT_MAXITER_SPECTRAL = 10
DEFAULT_BETA = 0.5


def bjorck_normalization(
    w: Tensor,
    eps: float = DEFAULT_EPS_BJORCK,
    beta: float = DEFAULT_BETA,
    maxiter: int = DEFAULT_MAXITER_BJORCK,
) -> Tensor:
    r"""Björck's orthonormalisation of a weight whose largest singular value is about 1.

    Args:
        w: ``(out, ...)``, taken as one matrix of ``out`` rows; floating point.
        eps: the iteration stops once a step is shorter, positive.
        beta: step length, in (0, 0.5].
        maxiter: at most so many steps; 0 returns the weight.

    Returns:
        A tensor of the shape and dtype of ``w``, differentiable in it.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    See also :func:`lipfuse.functional.bjorck` and :func:`lipfuse.functional.orthogonalize`, which
    takes a matrix of any size.
    """
    check_tensor("w", w, min_dim=2)
    check_positive_int("maxiter", maxiter, minimum=0)
    flat = bjorck(w.flatten(1), beta=beta, max_iterations=maxiter, eps=eps)
    return flat.reshape(w.shape)


def spectral_normalization(
    kernel: Tensor,
    u: Optional[Tensor] = None,
    eps: float = DEFAULT_EPS_SPECTRAL,
    maxiter: int = DEFAULT_MAXITER_SPECTRAL,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""A matrix over its spectral norm by power iteration, which approaches the norm from below.

    Args:
        kernel: ``(m, n)``, floating point.
        u: where to start: the right singular vector of an earlier call, with n elements. If None,
            a random one, and twice as many iterations.
        eps: the iteration stops once the vector moves by less, positive.
        maxiter: at most so many iterations, positive.

    Returns:
        ``(normalized, u, sigma)``: the matrix over ``sigma``, the right singular vector ``(1, n)``
        and the estimate of the largest singular value, a scalar. A zero matrix stays zero.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    See also :func:`lipfuse.functional.spectral_norm_bound` for a bound that is never too small.
    """
    check_tensor("kernel", kernel)
    if kernel.dim() != 2:
        raise ValueError(f"kernel must have 2 dimensions, got shape {tuple(kernel.shape)}")
    check_positive("eps", eps)
    iterations = check_positive_int("maxiter", maxiter)
    columns = kernel.shape[1]
    if u is None:
        v = torch.randn(columns, dtype=kernel.dtype, device=kernel.device)
        iterations *= 2
    else:
        check_tensor("u", u)
        if u.numel() != columns:
            raise ValueError(f"u must have {columns} elements, got shape {tuple(u.shape)}")
        v = u.detach().flatten().to(kernel)
    v = torch.nn.functional.normalize(v, dim=0)
    # One step first: the left vector is what the operator starts from.
    left = torch.nn.functional.normalize(kernel.detach() @ v, dim=0)
    sigma = power_iteration(kernel, left, v, n_iterations=0)[0]
    for _ in range(iterations):
        before = v
        sigma, left, v = power_iteration(kernel, left, v, n_iterations=1)
        if torch.linalg.vector_norm(v - before) < eps:
            break
    normalized = kernel / sigma.clamp_min(torch.finfo(kernel.dtype).tiny)
    return normalized, v.unsqueeze(0), sigma
