"""Downsampling that loses nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from .._checks import check_positive_int, check_tensor
from ..export import plain_function
from .module import LipschitzModule, _join_repr

__all__ = ["InvertibleDownSampling"]


def _downsampled(input: Tensor, factor: int) -> Tensor:
    """``pixel_unshuffle``, which does not rearrange the shape of an empty batch."""
    if input.numel() > 0:
        return torch_functional.pixel_unshuffle(input, factor)
    rows = torch.unflatten(input, -2, (input.shape[-2] // factor, factor))
    blocks = torch.unflatten(rows, -1, (input.shape[-1] // factor, factor))
    # (..., C, H, r, W, r) to (..., C r r, H, W)
    return blocks.movedim((-3, -1), (-4, -3)).flatten(-5, -3)


class InvertibleDownSampling(nn.PixelUnshuffle, LipschitzModule):
    r"""Move each r x r block of pixels into channels, times k.

    A permutation: for :math:`k = 1` an isometry.

    Args:
        kernel_size: the factor :math:`r`.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(*, C, rH, rW)`.
        - Output: :math:`(*, r^2 C, H, W)`.

    Raises:
        TypeError: if ``kernel_size`` is not an integer, or ``k_coef_lip`` not a number.
        ValueError: if the first is not positive, or the second not positive and finite; for inputs
            whose height or width is no multiple of ``kernel_size``.
    """

    def __init__(self, kernel_size: int, k_coef_lip: float = 1.0) -> None:
        nn.PixelUnshuffle.__init__(self, check_positive_int("kernel_size", kernel_size))
        LipschitzModule.__init__(self, k_coef_lip)

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input, min_dim=3)
        factor = self.downscale_factor
        if input.shape[-2] % factor or input.shape[-1] % factor:
            raise ValueError(
                f"input must have a height and a width that are multiples of kernel_size={factor}, "
                f"got a tensor of shape {tuple(input.shape)}"
            )
        output = _downsampled(input, factor)
        return output if self._k == 1.0 else output * self._k

    def vanilla_export(self) -> nn.Module:
        factor, k = self.downscale_factor, self._k
        plain: nn.Module
        if k == 1.0:
            plain = nn.PixelUnshuffle(factor)
        else:
            plain = plain_function(
                "InvertibleDownSampling",
                lambda input: torch_functional.pixel_unshuffle(input, factor) * k,
            )
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(super().extra_repr(), self._k_repr())
