"""An upper bound of the spectral norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipfuse.reference._matrices import largest_singular_value


def spectral_bound(weight: Tensor, squarings: int) -> Tensor:
    """An upper bound of the spectral norm: here the norm itself, with a margin for rounding."""
    margin = 1 + 4 * math.sqrt(min(weight.shape[-2:])) * torch.finfo(weight.dtype).eps
    return largest_singular_value(weight) * margin
