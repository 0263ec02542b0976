"""Convolutions with a normalised kernel, for 1, 2 and 3 axes as in ``pad_conv.py``."""

from __future__ import annotations

from typing import Any, Literal, Optional, Union

import torch
from torch.nn.modules.conv import _ConvTransposeNd

from .._checks import check_choice, check_positive
from ..functional._conv_symbol import ConvOperator
from ..functional.convolution import conv_factor
from ..parametrizations import FrobeniusNorm
from ._weighted import (
    DEFAULT_EPS_BJORCK,
    DEFAULT_EPS_SPECTRAL,
    WeightedModule,
    check_layer,
    lipschitz_weight,
)
from .module import _join_repr
from .pad_conv import PadConv1d, PadConv2d, PadConv3d, _PadConv, _Size

__all__ = [
    "FrobeniusConv2d",
    "SpectralConv1d",
    "SpectralConv2d",
    "SpectralConv3d",
]

Normalization = Literal["factor", "operator"]


def _normalise(
    layer: Any,
    normalization: Normalization,
    eps_spectral: float,
    eps_bjorck: Optional[float],
    method: Literal["polar", "bjorck"],
) -> None:
    """Registers the normalisation of a convolution's kernel, transposed or not."""
    transposed = isinstance(layer, _ConvTransposeNd)
    settings = (layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    factor = conv_factor(layer.kernel_size, *settings, transposed=transposed)
    operator = None
    if normalization == "operator":
        channels = min(layer.in_channels, layer.out_channels) // layer.groups
        operator = ConvOperator(layer.kernel_size, *settings, channels, 1 / factor)
    layer.normalization = normalization
    # The norm of the operator takes the place of the norm of the weight, and of the factor.
    layer._factor = 1.0 if operator else factor
    scale = layer.k_coef_lip * layer._factor
    layer._normalise_weight(
        lipschitz_weight(
            layer.weight, scale, eps_spectral, eps_bjorck, method, layer.groups, operator
        )
    )


def _normalization_repr(layer: Any) -> str:
    return "" if layer.normalization == "factor" else "normalization='operator'"


class _SpectralConv(_PadConv, WeightedModule):
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
        k_coef_lip: float = 1.0,
        eps_spectral: float = DEFAULT_EPS_SPECTRAL,
        eps_bjorck: Optional[float] = DEFAULT_EPS_BJORCK,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        method: Literal["polar", "bjorck"] = "polar",
        normalization: Normalization = "factor",
    ) -> None:
        check_layer(k_coef_lip, eps_spectral, eps_bjorck, method)
        check_choice("normalization", normalization, ("factor", "operator"))
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        WeightedModule.__init__(self, k_coef_lip)
        _normalise(self, normalization, eps_spectral, eps_bjorck, method)

    def reset_parameters(self) -> None:
        """Draws orthogonal weights and sets the bias to zero."""
        self._draw(self.groups)

    def extra_repr(self) -> str:
        return _join_repr(super().extra_repr(), self._k_repr(), _normalization_repr(self))


class SpectralConv1d(_SpectralConv, PadConv1d):
    """A ``k_coef_lip``-Lipschitz 1-d convolution: :class:`SpectralConv2d` with one axis.

    Sizes are ints, or tuples of one. The same arguments and errors.

    Shape:
        ``(N, in_channels, L)`` to ``(N, out_channels, L')``, as ``torch.nn.Conv1d``.
    """


class SpectralConv2d(_SpectralConv, PadConv2d):
    r"""A ``k_coef_lip``-Lipschitz 2-d convolution.

    Its kernel, as one matrix a group of ``out_channels / groups`` rows, is the polar factor of the
    parameter times the corrective factor of
    :func:`lipfuse.functional.conv_factor`, which is counted from stride, padding, dilation and
    padding mode and holds for inputs of every size. With ``eps_bjorck=None`` the matrix is the
    parameter over a proven bound of its spectral norm.

    The factor is safe for every kernel, and loose for most. With ``normalization="operator"`` the
    kernel is divided by a proven bound of the convolution's own norm instead, which holds for
    inputs of every size too. For 3x3 kernels with zeros around, or circular padding and a stride of
    1, it exceeds the norm on an endless image by 0.5 % for 16 channels, 1 % for 64 and 4 % for 128
    or more, and takes more time: see ``docs/convolutions.md``. Where padding copies pixels it is
    rarely better than the factor.

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
        normalization: ``"factor"`` or ``"operator"``.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``, as ``torch.nn.Conv2d``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """


class SpectralConv3d(_SpectralConv, PadConv3d):
    """A ``k_coef_lip``-Lipschitz 3-d convolution: :class:`SpectralConv2d` with three axes.

    Sizes are ints, or tuples of three. The same arguments and errors.

    Shape:
        ``(N, in_channels, D, H, W)`` to ``(N, out_channels, D', H', W')``, as ``torch.nn.Conv3d``.
    """


class FrobeniusConv2d(PadConv2d, WeightedModule):
    """A ``k_coef_lip``-Lipschitz 2-d convolution whose kernel is divided by its Frobenius norm.

    The Frobenius norm bounds the spectral norm, and is equal to it for a single output channel,
    where this layer is the cheaper :class:`SpectralConv2d`. The corrective factor is the same. All
    groups share one norm.

    Args:
        in_channels, out_channels, kernel_size, stride: as for :class:`SpectralConv2d`.
        padding, dilation, groups, bias, padding_mode: as for :class:`SpectralConv2d`.
        k_coef_lip: the Lipschitz constant, positive.
        device, dtype: of the parameters, as in ``torch.nn``.

    Shape:
        As ``torch.nn.Conv2d``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

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
        k_coef_lip: float = 1.0,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        check_positive("k_coef_lip", k_coef_lip)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        WeightedModule.__init__(self, k_coef_lip)
        self._factor = conv_factor(
            self.kernel_size, self.stride, padding, self.dilation, padding_mode
        )
        self._normalise_weight(FrobeniusNorm(False, k_coef_lip * self._factor))

    def reset_parameters(self) -> None:
        """Draws orthogonal weights and sets the bias to zero."""
        self._draw()

    def extra_repr(self) -> str:
        return _join_repr(super().extra_repr(), self._k_repr())
