"""Lipschitz-constrained PyTorch layers on fused native normalisation kernels."""

__version__ = "0.1.0"

from . import functional, nn, parametrizations
from .export import vanilla_model

__all__ = ["__version__", "functional", "nn", "parametrizations", "vanilla_model"]
