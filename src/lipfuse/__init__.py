"""Lipschitz-constrained PyTorch layers on fused native normalisation kernels."""

__version__ = "0.1.0"

from . import convert, functional, nn, optim, parametrizations
from .convert import accelerate
from .export import vanilla_model
from .fusion import fuse, unfuse

__all__ = [
    "__version__",
    "accelerate",
    "convert",
    "functional",
    "fuse",
    "nn",
    "optim",
    "parametrizations",
    "unfuse",
    "vanilla_model",
]
