"""Lipschitz-constrained PyTorch layers on native normalisation kernels."""

__version__ = "0.1.0"
