"""Initialisers under deel-torchlip's names. ``torch.nn.init.orthogonal_`` is what layers use."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_in_range, check_positive, check_positive_int, check_tensor
from .normalizers import (
    DEFAULT_BETA,
    DEFAULT_EPS_BJORCK,
    DEFAULT_EPS_SPECTRAL,
    DEFAULT_MAXITER_BJORCK,
    DEFAULT_MAXITER_SPECTRAL,
    bjorck_normalization,
)

__all__ = ["bjorck_", "spectral_"]


def _over_its_norm(tensor: Tensor, eps_spectral: float, maxiter_spectral: int) -> Tensor:
    """In float64, as one matrix; all arguments checked."""
    check_tensor("tensor", tensor, min_dim=2)
    check_positive("eps_spectral", eps_spectral)
    check_positive_int("maxiter_spectral", maxiter_spectral)
    matrix = tensor.detach().double().flatten(1) if tensor.numel() else tensor.detach().double()
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(
            f"tensor must be finite, got shape {tuple(tensor.shape)} with NaN or infinite elements"
        )
    if not matrix.numel():
        return matrix
    # Scaled first: the squares of very large or small numbers are none.
    matrix = matrix / matrix.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    norm = torch.linalg.matrix_norm(matrix, ord=2)
    return matrix / norm.clamp_min(torch.finfo(torch.float64).tiny)


@torch.no_grad()
def spectral_(
    tensor: Tensor,
    eps_spectral: float = DEFAULT_EPS_SPECTRAL,
    maxiter_spectral: int = DEFAULT_MAXITER_SPECTRAL,
) -> Tensor:
    """Divides a tensor by its spectral norm, in place.

    The norm is that of a singular value decomposition in float64, so that the largest singular
    value is 1 to the rounding of the tensor's dtype. Zero stays zero.

    Args:
        tensor: ``(out, ...)``, taken as one matrix of ``out`` rows; floating point.
        eps_spectral, maxiter_spectral: of deel-torchlip's power iteration; checked, but nothing
            depends on them here.

    Returns:
        The tensor.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range, and for a tensor
            with NaN or infinite elements; the tensor is then unchanged.
    """
    tensor.copy_(_over_its_norm(tensor, eps_spectral, maxiter_spectral).reshape(tensor.shape))
    return tensor


@torch.no_grad()
def bjorck_(
    tensor: Tensor,
    eps_spectral: float = DEFAULT_EPS_SPECTRAL,
    maxiter_spectral: int = DEFAULT_MAXITER_SPECTRAL,
    eps_bjorck: float = DEFAULT_EPS_BJORCK,
    maxiter_bjorck: int = DEFAULT_MAXITER_BJORCK,
    beta: float = DEFAULT_BETA,
) -> Tensor:
    """Divides a tensor by its spectral norm and applies Björck's iteration, in place.

    All singular values become 1 as far as ``maxiter_bjorck`` steps, each of which multiplies small
    ones by ``1 + beta``, reach. Zero stays zero.

    Args:
        tensor: ``(out, ...)``, taken as one matrix of ``out`` rows; floating point.
        eps_spectral, maxiter_spectral: as for :func:`spectral_`.
        eps_bjorck, maxiter_bjorck, beta: of the iteration; see
            :func:`~lipfuse.nn.normalizers.bjorck_normalization`.

    Returns:
        The tensor.

    Raises:
        TypeError, ValueError: as for :func:`spectral_`.
    """
    check_positive("eps_bjorck", eps_bjorck)
    check_positive_int("maxiter_bjorck", maxiter_bjorck, minimum=0)
    check_in_range("beta", beta, 0.0, 0.5, low_open=True)
    matrix = _over_its_norm(tensor, eps_spectral, maxiter_spectral)
    if matrix.numel():
        matrix = bjorck_normalization(matrix, eps_bjorck, beta, maxiter_bjorck)
    tensor.copy_(matrix.reshape(tensor.shape))
    return tensor
