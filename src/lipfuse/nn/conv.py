"""Convolutions with a normalised kernel."""

from __future__ import annotations

from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_bool, check_choice, check_int_or_pair, check_positive_int
from ..export import plain_conv, plain_function
from ..functional.convolution import PADDING_MODES, conv_factor, padding_of_axes
from ._weighted import (
    DEFAULT_EPS_BJORCK,
    DEFAULT_EPS_SPECTRAL,
    WeightedModule,
    check_layer,
    lipschitz_weight,
)
from .module import _join_repr

__all__ = ["SpectralConv2d"]

_Pair = Union[int, tuple[int, int]]


def symmetric_pad(input: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Pads the last two dimensions by their mirror image, the edge included.

    Args:
        input: ``(..., h, w)``.
        padding: (left, right, top, bottom), none larger than the size of its axis.
    """
    left, right, top, bottom = padding
    for before, after, axis in ((left, right, -1), (top, bottom, -2)):
        # An empty slice where nothing is to be added.
        size = input.shape[axis]
        parts = [
            input.narrow(axis, 0, before).flip(axis),
            input,
            input.narrow(axis, size - after, after).flip(axis),
        ]
        input = torch.cat(parts, axis)
    return input


class SpectralConv2d(nn.Conv2d, WeightedModule):
    r"""A ``k_coef_lip``-Lipschitz 2-d convolution.

    Its kernel, as one matrix a group of ``out_channels / groups`` rows, is the polar factor of the
    parameter times the corrective factor of
    :func:`lipfuse.functional.conv_factor`, which is counted from stride, padding, dilation and
    padding mode and holds for inputs of every size. With ``eps_bjorck=None`` the matrix is the
    parameter over a proven bound of its spectral norm.

    Args:
        in_channels, out_channels: positive, divisible by ``groups``.
        kernel_size, stride, dilation: a positive int or a pair.
        padding: an int or a pair, not negative; or ``"valid"`` or ``"same"``.
        groups: each is normalised on its own.
        bias: whether to add a learnable bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"`` or
            ``"symmetric"``.
        k_coef_lip: the Lipschitz constant, positive.
        eps_spectral, eps_bjorck, method: as for :class:`SpectralLinear`.
        device, dtype: of the parameters, as in ``torch.nn``.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``, as ``torch.nn.Conv2d``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

    padding_mode: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: Union[_Pair, Literal["valid", "same"]] = 0,
        dilation: _Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        k_coef_lip: float = 1.0,
        eps_spectral: float = DEFAULT_EPS_SPECTRAL,
        eps_bjorck: Optional[float] = DEFAULT_EPS_BJORCK,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        method: Literal["polar", "bjorck"] = "polar",
    ) -> None:
        check_positive_int("in_channels", in_channels)
        check_positive_int("out_channels", out_channels)
        check_positive_int("groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name} must be a multiple of groups={groups}, got {channels}")
        kernel_size = check_int_or_pair("kernel_size", kernel_size)
        stride = check_int_or_pair("stride", stride)
        dilation = check_int_or_pair("dilation", dilation)
        if isinstance(padding, str):
            check_choice("padding", padding, ("valid", "same"))
            if padding == "same" and stride != (1, 1):
                raise ValueError(f"padding='same' must have a stride of 1, got {stride}")
        else:
            padding = check_int_or_pair("padding", padding, minimum=0)
        check_bool("bias", bias)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        check_layer(k_coef_lip, eps_spectral, eps_bjorck, method)
        # torch.nn does not know "symmetric".
        known: Any = "zeros" if padding_mode == "symmetric" else padding_mode
        nn.Conv2d.__init__(
            self,
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
        WeightedModule.__init__(self, k_coef_lip)
        self._factor = conv_factor(kernel_size, stride, padding, dilation, padding_mode)
        self._normalise_weight(
            lipschitz_weight(
                self.weight,
                self.k_coef_lip * self._factor,
                eps_spectral,
                eps_bjorck,
                method,
                groups,
            )
        )

    def _symmetric_padding(self) -> tuple[int, int, int, int]:
        (top, bottom), (left, right) = padding_of_axes(
            self.padding, self.kernel_size, self.dilation
        )
        return left, right, top, bottom

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        if self.padding_mode != "symmetric":
            return super()._conv_forward(input, weight, bias)
        padded = symmetric_pad(input, self._symmetric_padding())
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)

    def reset_parameters(self) -> None:
        """Draws orthogonal weights and sets the bias to zero."""
        self._draw(self.groups)

    def vanilla_export(self) -> nn.Module:
        """A ``torch.nn.Conv2d`` with copies of the normalised kernel and the bias.

        Symmetric padding, which ``torch.nn`` does not have, becomes a module of its own before it.
        """
        if self.padding_mode != "symmetric":
            return plain_conv(self)
        padding = self._symmetric_padding()
        # An unpadded twin: plain_conv reads the settings of what it is given.
        mode, old = self.padding_mode, self.padding
        try:
            self.padding_mode, self.padding = "zeros", (0, 0)
            conv = plain_conv(self)
        finally:
            self.padding_mode, self.padding = mode, old
        pad = plain_function("SymmetricPad2d", lambda x: symmetric_pad(x, padding))
        return nn.Sequential(pad, conv)

    def extra_repr(self) -> str:
        return _join_repr(nn.Conv2d.extra_repr(self), self._k_repr())
