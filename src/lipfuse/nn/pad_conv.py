"""Unconstrained convolutions that know one padding mode more than torch's.

One mechanism for 1, 2 and 3 axes: ``_PadConv`` takes every number of axes, and each public class
adds the ``torch.nn`` class that convolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from .._checks import check_bool, check_choice, check_int_or_tuple, check_positive_int
from ..export import plain_conv
from ..functional.convolution import PADDING_MODES, padding_of_axes
from ..functional.padding import SymmetricPad, symmetric_pad

__all__ = [
    "PadConv1d",
    "PadConv2d",
    "PadConv3d",
]

_Size = Union[int, Sequence[int]]
_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    check_positive_int("in_channels", in_channels)
    check_positive_int("out_channels", out_channels)
    check_positive_int("groups", groups)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"{name} must be a multiple of groups={groups}, got {channels}")


class _PadConv(_ConvNd):
    """A convolution of ``torch.nn`` that also knows symmetric padding."""

    _axes: int
    padding_mode: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: Union[_Size, Literal["valid", "same"]] = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        axes = self._axes
        _check_channels(in_channels, out_channels, groups)
        kernel_size = check_int_or_tuple("kernel_size", kernel_size, axes)
        stride = check_int_or_tuple("stride", stride, axes)
        dilation = check_int_or_tuple("dilation", dilation, axes)
        if isinstance(padding, str):
            check_choice("padding", padding, ("valid", "same"))
            if padding == "same" and any(s != 1 for s in stride):
                raise ValueError(f"padding='same' must have a stride of 1, got {stride}")
        else:
            padding = check_int_or_tuple("padding", padding, axes, minimum=0)
        check_bool("bias", bias)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        # torch.nn does not know "symmetric".
        known = "zeros" if padding_mode == "symmetric" else padding_mode
        build: Any = super().__init__  # of the torch.nn class that convolves
        build(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            known,
            device=device,
            dtype=dtype,
        )
        self.padding_mode = padding_mode

    def _symmetric_padding(self) -> list[int]:
        axes = padding_of_axes(self.padding, self.kernel_size, self.dilation)
        return [side for axis in reversed(axes) for side in axis]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        if self.padding_mode != "symmetric":
            return super()._conv_forward(input, weight, bias)
        padded = symmetric_pad(input, self._symmetric_padding())
        convolved: Tensor = _CONVOLVE[self._axes](
            padded, weight, bias, self.stride, 0, self.dilation, self.groups
        )
        return convolved

    def vanilla_export(self) -> nn.Module:
        """The convolution of ``torch.nn`` with copies of the kernel in use and of the bias.

        Symmetric padding, which ``torch.nn`` does not have, becomes a module of its own before it.
        """
        if self.padding_mode != "symmetric":
            return plain_conv(self)
        pad = SymmetricPad(0, onedim=self._axes == 1)
        pad.pad = tuple(self._symmetric_padding())
        # An unpadded twin: plain_conv reads the settings of what it is given.
        mode, old = self.padding_mode, self.padding
        try:
            self.padding_mode, self.padding = "zeros", (0,) * self._axes
            conv = plain_conv(self)
        finally:
            self.padding_mode, self.padding = mode, old
        return nn.Sequential(pad.vanilla_export(), conv)


class PadConv1d(_PadConv, nn.Conv1d):
    """``torch.nn.Conv1d`` that also knows ``padding_mode="symmetric"``. Not constrained.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as of :class:`PadConv2d`,
            for one axis.
        groups, bias, padding_mode, device, dtype: as of :class:`PadConv2d`.

    Shape:
        As ``torch.nn.Conv1d``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

    _axes = 1


class PadConv2d(_PadConv, nn.Conv2d):
    """``torch.nn.Conv2d`` that also knows ``padding_mode="symmetric"``. Not constrained.

    Args:
        in_channels, out_channels: positive, divisible by ``groups``.
        kernel_size, stride, dilation: a positive int or one an axis.
        padding: an int or one an axis, not negative; or ``"valid"`` or ``"same"``.
        groups, bias: as for ``torch.nn.Conv2d``.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"`` or
            ``"symmetric"``: the mirror image, the edge included.
        device, dtype: of the parameters, as in ``torch.nn``.

    Shape:
        As ``torch.nn.Conv2d``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

    _axes = 2


class PadConv3d(_PadConv, nn.Conv3d):
    """``torch.nn.Conv3d`` that also knows ``padding_mode="symmetric"``. Not constrained.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as of :class:`PadConv2d`,
            for three axes.
        groups, bias, padding_mode, device, dtype: as of :class:`PadConv2d`.

    Shape:
        As ``torch.nn.Conv3d``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

    _axes = 3
