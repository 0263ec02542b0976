"""Lipschitz-constrained PyTorch layers on fused native normalisation kernels."""

__version__ = "0.1.0"

from . import (
    certification,
    convert,
    functional,
    metrics,
    nn,
    optim,
    parametrizations,
    regularizers,
)
from .certification import certify
from .condensation import condense
from .convert import accelerate
from .evaluation import evaluate_lip_const
from .export import vanilla_model
from .fusion import fuse, normalize_once, unfuse
from .monitoring import Monitor, monitor
from .spectra import compute_layer_sv, compute_model_sv, layer_singular_values

__all__ = [
    "Monitor",
    "__version__",
    "accelerate",
    "certification",
    "certify",
    "compute_layer_sv",
    "compute_model_sv",
    "condense",
    "convert",
    "evaluate_lip_const",
    "functional",
    "fuse",
    "layer_singular_values",
    "metrics",
    "monitor",
    "nn",
    "normalize_once",
    "optim",
    "parametrizations",
    "regularizers",
    "unfuse",
    "vanilla_model",
]
