"""The hook of ``torch.nn.utils.spectral_norm`` on a fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from ..functional import spectral_normalize

__all__ = ["SpectralNormHook"]


class SpectralNormHook(SpectralNorm):
    """Computes what torch's does, in one call.

    Only the class differs, so that a hook can become one in place: names of parameters and buffers,
    checkpoints and ``torch.nn.utils.remove_spectral_norm`` remain as they are.
    """

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        held: Any = module
        weight = getattr(held, self.name + "_orig")
        u, v = getattr(held, self.name + "_u"), getattr(held, self.name + "_v")
        matrix = self.reshape_weight_to_matrix(weight)
        # torch's iteration starts with the right vector: ours does so for the transposed matrix.
        iterations = self.n_power_iterations if do_power_iteration else 0
        out, _, right, left = spectral_normalize(
            matrix.mT, v, u, n_iterations=iterations, eps=self.eps
        )
        if do_power_iteration:
            with torch.no_grad():
                u.copy_(left)
                v.copy_(right)
        moved = weight.movedim(self.dim, 0).shape
        return out.mT.reshape(moved).movedim(0, self.dim)
