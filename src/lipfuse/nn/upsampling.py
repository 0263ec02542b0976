"""Upsampling that loses nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from .._checks import check_positive_int, check_tensor
from ..export import plain_function
from .module import LipschitzModule, _join_repr

__all__ = ["InvertibleUpSampling"]


def _upsampled(input: Tensor, factor: int) -> Tensor:
    """``pixel_shuffle``, which does not rearrange the shape of an empty batch."""
    if input.numel() > 0:
        return torch_functional.pixel_shuffle(input, factor)
    blocks = torch.unflatten(input, -3, (input.shape[-3] // factor**2, factor, factor))
    # (..., C, r, r, H, W) to (..., C, H r, W r)
    return blocks.movedim((-4, -3), (-3, -1)).flatten(-2).flatten(-3, -2)


class InvertibleUpSampling(nn.PixelShuffle, LipschitzModule):
    r"""Spread channels over r x r blocks of pixels, times k.

    A permutation: for :math:`k = 1` an isometry.

    Args:
        kernel_size: the factor :math:`r`.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(*, r^2 C, H, W)`.
        - Output: :math:`(*, C, rH, rW)`.

    Raises:
        TypeError: if ``kernel_size`` is not an integer, or ``k_coef_lip`` not a number.
        ValueError: if the first is not positive, or the second not positive and finite; for inputs
            whose number of channels is no multiple of ``kernel_size**2``.
    """

    def __init__(self, kernel_size: int, k_coef_lip: float = 1.0) -> None:
        nn.PixelShuffle.__init__(self, check_positive_int("kernel_size", kernel_size))
        LipschitzModule.__init__(self, k_coef_lip)

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input, min_dim=3)
        factor = self.upscale_factor
        if input.shape[-3] % factor**2:
            raise ValueError(
                "input must have a number of channels that is a multiple of "
                f"kernel_size**2={factor**2}, got a tensor of shape {tuple(input.shape)}"
            )
        output = _upsampled(input, factor)
        return output if self._k == 1.0 else output * self._k

    def vanilla_export(self) -> nn.Module:
        factor, k = self.upscale_factor, self._k
        plain: nn.Module
        if k == 1.0:
            plain = nn.PixelShuffle(factor)
        else:
            plain = plain_function(
                "InvertibleUpSampling",
                lambda input: torch_functional.pixel_shuffle(input, factor) * k,
            )
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(super().extra_repr(), self._k_repr())
