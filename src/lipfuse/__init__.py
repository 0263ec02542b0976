"""Lipschitz-constrained PyTorch layers on fused native normalisation kernels."""

__version__ = "0.1.0"

from . import functional, nn, optim, parametrizations
from .export import vanilla_model
from .fusion import fuse, normalize_once, unfuse

__all__ = [
    "__version__",
    "functional",
    "fuse",
    "nn",
    "normalize_once",
    "optim",
    "parametrizations",
    "unfuse",
    "vanilla_model",
]
