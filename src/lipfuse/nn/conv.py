"""Convolutions with a normalised kernel, and the unconstrained ones that they pad like.

One mechanism for 1, 2 and 3 axes: ``_PadConv``, ``_SpectralConv`` and ``_SpectralConvTranspose``
take every number of axes, and each public class adds the ``torch.nn`` class that convolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .._checks import (
    check_bool,
    check_choice,
    check_int_or_tuple,
    check_positive,
    check_positive_int,
)
from ..export import plain_conv
from ..functional._conv_symbol import ConvOperator
from ..functional.convolution import PADDING_MODES, conv_factor, padding_of_axes
from ..functional.padding import SymmetricPad, symmetric_pad
from ..parametrizations import FrobeniusNorm
from ._weighted import (
    DEFAULT_EPS_BJORCK,
    DEFAULT_EPS_SPECTRAL,
    WeightedModule,
    check_layer,
    lipschitz_weight,
)
from .module import _join_repr

__all__ = [
    "FrobeniusConv2d",
    "PadConv1d",
    "PadConv2d",
    "PadConv3d",
    "SpectralConv1d",
    "SpectralConv2d",
    "SpectralConv3d",
    "SpectralConvTranspose1d",
    "SpectralConvTranspose2d",
    "SpectralConvTranspose3d",
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


# ---- unconstrained -------------------------------------------------------------------------------


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


# ---- spectral ------------------------------------------------------------------------------------

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


# ---- Frobenius -----------------------------------------------------------------------------------


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


# ---- transposed ----------------------------------------------------------------------------------


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
