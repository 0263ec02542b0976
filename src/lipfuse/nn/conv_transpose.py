"""Transposed convolutions with a normalised kernel, for 1, 2 and 3 axes as in ``pad_conv.py``."""

from __future__ import annotations

from typing import Any, Literal, Optional

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from .._checks import check_bool, check_choice, check_int_or_tuple
from ..export import plain_conv
from ._weighted import DEFAULT_EPS_BJORCK, DEFAULT_EPS_SPECTRAL, WeightedModule, check_layer
from .conv import Normalization, _normalise, _normalization_repr
from .module import _join_repr
from .pad_conv import _check_channels, _Size

__all__ = [
    "SpectralConvTranspose1d",
    "SpectralConvTranspose2d",
    "SpectralConvTranspose3d",
]


class _SpectralConvTranspose(_ConvTransposeNd, WeightedModule):
    _axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size = 0,
        output_padding: _Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _Size = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        k_coef_lip: float = 1.0,
        eps_spectral: float = DEFAULT_EPS_SPECTRAL,
        eps_bjorck: Optional[float] = DEFAULT_EPS_BJORCK,
        *,
        method: Literal["polar", "bjorck"] = "polar",
        normalization: Normalization = "factor",
    ) -> None:
        axes = self._axes
        check_layer(k_coef_lip, eps_spectral, eps_bjorck, method)
        check_choice("normalization", normalization, ("factor", "operator"))
        _check_channels(in_channels, out_channels, groups)
        kernel_size = check_int_or_tuple("kernel_size", kernel_size, axes)
        stride = check_int_or_tuple("stride", stride, axes)
        padding = check_int_or_tuple("padding", padding, axes, minimum=0)
        dilation = check_int_or_tuple("dilation", dilation, axes)
        extra = check_int_or_tuple("output_padding", output_padding, axes, minimum=0)
        if any(o >= max(s, d) for o, s, d in zip(extra, stride, dilation)):
            raise ValueError(
                "output_padding must be smaller than stride or dilation, got "
                f"{output_padding!r} with stride {stride} and dilation {dilation}"
            )
        check_bool("bias", bias)
        check_choice("padding_mode", padding_mode, ("zeros",))
        build: Any = super().__init__  # of the torch.nn class that convolves
        build(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            extra,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        WeightedModule.__init__(self, k_coef_lip)
        _normalise(self, normalization, eps_spectral, eps_bjorck, method)

    def reset_parameters(self) -> None:
        """Draws orthogonal weights and sets the bias to zero."""
        self._draw(self.groups)

    def vanilla_export(self) -> nn.Module:
        """The convolution of ``torch.nn`` with copies of the normalised kernel and the bias."""
        return plain_conv(self)

    def extra_repr(self) -> str:
        return _join_repr(super().extra_repr(), self._k_repr(), _normalization_repr(self))


class SpectralConvTranspose1d(_SpectralConvTranspose, nn.ConvTranspose1d):
    """A ``k_coef_lip``-Lipschitz 1-d transposed convolution: :class:`SpectralConvTranspose2d`.

    Sizes are ints, or tuples of one. The same arguments and errors.

    Shape:
        ``(N, in_channels, L)`` to ``(N, out_channels, L')``, as ``torch.nn.ConvTranspose1d``.
    """

    _axes = 1


class SpectralConvTranspose2d(_SpectralConvTranspose, nn.ConvTranspose2d):
    r"""A ``k_coef_lip``-Lipschitz 2-d transposed convolution.

    It is the adjoint of the convolution with the same kernel and settings, and has its norm: the
    kernel, as one matrix a group of ``in_channels / groups`` rows, is normalised as that of
    :class:`SpectralConv2d`, with the same corrective factor.

    Args:
        in_channels, out_channels: positive, divisible by ``groups``.
        kernel_size, stride, dilation: a positive int or a pair.
        padding: an int or a pair, not negative: how much the output is cropped.
        output_padding: an int or a pair, smaller than ``stride`` or ``dilation``.
        groups: each is normalised on its own.
        bias: whether to add a learnable bias.
        padding_mode: ``"zeros"``.
        device, dtype: of the parameters, as in ``torch.nn``.
        k_coef_lip: the Lipschitz constant, positive.
        eps_spectral, eps_bjorck, method: as for :class:`SpectralLinear`.
        normalization: ``"factor"`` or ``"operator"``, as for :class:`SpectralConv2d`.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``, as
        ``torch.nn.ConvTranspose2d``; ``forward`` takes its ``output_size``, too.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

    _axes = 2


class SpectralConvTranspose3d(_SpectralConvTranspose, nn.ConvTranspose3d):
    """A ``k_coef_lip``-Lipschitz 3-d transposed convolution: :class:`SpectralConvTranspose2d`.

    Sizes are ints, or tuples of three. The same arguments and errors.

    Shape:
        ``(N, in_channels, D, H, W)`` to ``(N, out_channels, D', H', W')``, as
        ``torch.nn.ConvTranspose3d``.
    """

    _axes = 3
