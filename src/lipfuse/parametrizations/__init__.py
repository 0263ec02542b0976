"""Modules for :mod:`torch.nn.utils.parametrize`, and functions that register and remove them.

The layers of :mod:`lipfuse.nn` use one fused module, :class:`LipschitzWeight`, instead of a chain.
"""

from __future__ import annotations

from .modules import BjorckNorm, FrobeniusNorm, LConvNorm, Orthogonal, SpectralNorm
from .registrars import (
    bjorck_norm,
    frobenius_norm,
    lconv_norm,
    orthogonal,
    remove_bjorck_norm,
    remove_frobenius_norm,
    remove_lconv_norm,
    remove_orthogonal,
    remove_spectral_norm,
    spectral_norm,
)
from .weight import HALF, LipschitzWeight

__all__ = [
    "HALF",
    "BjorckNorm",
    "FrobeniusNorm",
    "LConvNorm",
    "LipschitzWeight",
    "Orthogonal",
    "SpectralNorm",
    "bjorck_norm",
    "frobenius_norm",
    "lconv_norm",
    "orthogonal",
    "remove_bjorck_norm",
    "remove_frobenius_norm",
    "remove_lconv_norm",
    "remove_orthogonal",
    "remove_spectral_norm",
    "spectral_norm",
]
