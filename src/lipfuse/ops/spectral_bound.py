"""An upper bound of the spectral norm. Kernel: ``csrc/cpu/spectral_bound.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from lipfuse.ops._define import define, once_differentiable


def _fake(weight: Tensor, squarings: int) -> Tensor:
    return weight.new_empty(weight.shape[:-2])


_bound = once_differentiable(define("spectral_bound", _fake))


def spectral_bound(weight: Tensor, squarings: int) -> Tensor:
    """One bound a matrix, by Gram iteration; no gradient."""
    with torch.no_grad():
        bound: Tensor = _bound(weight.detach(), squarings)
    return bound
