"""Lipschitz-constrained PyTorch layers on fused native normalisation kernels."""

__version__ = "0.1.0"

from . import certification, functional, nn, optim, parametrizations
from .certification import certify
from .export import vanilla_model
from .fusion import fuse, unfuse

__all__ = [
    "__version__",
    "certification",
    "certify",
    "functional",
    "fuse",
    "nn",
    "optim",
    "parametrizations",
    "unfuse",
    "vanilla_model",
]
