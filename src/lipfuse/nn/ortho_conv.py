"""Orthogonal convolutions: all singular values of the map are the Lipschitz constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import (
    check_bool,
    check_choice,
    check_int_or_pair,
    check_positive,
    check_positive_int,
)
from ..export import _fill, plain_conv, plain_module
from ..functional.orthogonal_convolution import plan_kernel
from ._orthogonal_kernel import OrthogonalKernel
from ._weighted import WeightedModule
from .module import _join_repr

__all__ = ["OrthoConv2d", "OrthoConvTranspose2d"]

_Pair = Union[int, tuple[int, int]]
# What is cut off or wrapped around before and after the output, on each axis; a negative number
# adds zeros.
_Ends = list[tuple[int, int]]


def _check_settings(
    in_channels: int,
    out_channels: int,
    groups: int,
    bias: bool,
    padding_mode: str,
    k_coef_lip: float,
) -> None:
    """The arguments that both layers check alike."""
    check_positive_int("in_channels", in_channels)
    check_positive_int("out_channels", out_channels)
    check_positive_int("groups", groups)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"{name} must be a multiple of groups={groups}, got {channels}")
    check_bool("bias", bias)
    check_choice("padding_mode", padding_mode, ("circular", "zeros"))
    check_positive("k_coef_lip", k_coef_lip)


def _check_padding(padding: Union[_Pair, str]) -> Union[tuple[int, int], str]:
    if isinstance(padding, str):
        return check_choice("padding", padding, ("valid", "same"))
    return check_int_or_pair("padding", padding, minimum=0)


def _reach(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    """How many pixels the last tap is after the first."""
    height, width = (d * (k - 1) for k, d in zip(kernel_size, dilation))
    return height, width


class _OrthoConv(WeightedModule):
    """What a convolution and its adjoint share."""

    def _draw(self, groups: int = 1) -> None:
        layer: Any = self
        # torch's constructor calls this before there are factors.
        chain = layer._modules.get("parametrizations")
        if chain is not None:
            chain.weight[0].draw(*chain.weight.parameters(recurse=False))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def _build(self, kernel: OrthogonalKernel) -> None:
        WeightedModule.__init__(self, kernel.scale)
        self._normalise_weight(kernel)
        self._draw()


class OrthoConv2d(nn.Conv2d, _OrthoConv):
    r"""A 2-d convolution all of whose singular values are ``k_coef_lip`` on circular padding.

    Its kernel is a product of orthogonal factors (BCOP's block convolutions and the strided matrix
    of AOC; :mod:`lipfuse.functional.orthogonal_convolution`), the polar factors of unconstrained
    parameters. With ``padding="same"`` on circular padding, the map keeps the norm of gradients
    where ``out_channels <= in_channels * stride²``, and that of inputs where it is ``>=``. With
    zero padding, or less padding, it is a part of such a map: ``k_coef_lip``-Lipschitz.

    Such a map exists for every stride, dilation and group count, with two conditions. Where a
    kernel smaller than the stride, or a common factor of stride and dilation, leaves pixels unread,
    there must not be more outputs than pixels read. And with one channel a group, only a kernel
    that is no larger than the stride is more than a shift.

    Args:
        in_channels, out_channels: positive, divisible by ``groups``.
        kernel_size, stride, dilation: a positive int or a pair.
        padding: ``"same"``: as many outputs as inputs, over the stride; ``"valid"``; an int or a
            pair, not negative, and with circular padding at most
            ``dilation * (kernel_size - 1) / 2``, since outputs would repeat otherwise.
        groups: each is orthogonal on its own.
        bias: whether to add a learnable bias.
        padding_mode: ``"circular"`` or ``"zeros"``. The other modes repeat pixels at the border.
        k_coef_lip: the Lipschitz constant, positive.
        device, dtype: of the parameters, as in ``torch.nn``.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``, as ``torch.nn.Conv2d``. On
        circular padding, H and W have to be multiples of the stride.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name, and for settings
            that no orthogonal convolution has.

    References:
        Li et al., arXiv 1911.00937 (BCOP); Boissin et al., arXiv 2501.07930 (AOC).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: Union[_Pair, Literal["valid", "same"]] = "same",
        dilation: _Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "circular",
        k_coef_lip: float = 1.0,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        _check_settings(in_channels, out_channels, groups, bias, padding_mode, k_coef_lip)
        kernel = check_int_or_pair("kernel_size", kernel_size)
        stride = check_int_or_pair("stride", stride)
        dilation = check_int_or_pair("dilation", dilation)
        given: Any = _check_padding(padding)
        mode: Any = padding_mode
        reach = _reach(kernel, dilation)
        if given == "same" and stride != (1, 1):
            if any(s == 1 and r % 2 for s, r in zip(stride, reach)):
                raise ValueError(
                    "padding='same' must have an even dilation * (kernel_size - 1) where the "
                    f"stride is 1 on one axis only, got {reach} with stride={stride}"
                )
            given = (reach[0] // 2, reach[1] // 2)
        if (
            padding_mode == "circular"
            and not isinstance(given, str)
            and any(2 * p > r for p, r in zip(given, reach))
        ):
            raise ValueError(
                f"padding must be at most {(reach[0] // 2, reach[1] // 2)} with "
                "padding_mode='circular', where outputs would repeat, "
                f"got {given}"
            )
        plan = plan_kernel(in_channels, out_channels, kernel, stride, dilation, groups)
        nn.Conv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel,
            stride,
            given,
            dilation,
            groups,
            bias,
            mode,
            device=device,
            dtype=dtype,
        )
        self._build(OrthogonalKernel(plan, k_coef_lip))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        if self.padding_mode == "circular" and self.stride != (1, 1):
            for axis, (stride, pads) in enumerate(zip(self.stride, self._pads())):
                size = input.shape[axis - 2]
                if any(pads) and size % stride:
                    raise ValueError(
                        "input must have sizes that are multiples of "
                        f"stride={self.stride} with padding_mode='circular', "
                        f"got {tuple(input.shape[-2:])}"
                    )
        return super()._conv_forward(input, weight, bias)

    def _pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        left, right, top, bottom = self._reversed_padding_repeated_twice
        return (top, bottom), (left, right)

    def reset_parameters(self) -> None:
        """Draws orthogonal factors and sets the bias to zero."""
        self._draw()

    def vanilla_export(self) -> nn.Module:
        """A ``torch.nn.Conv2d`` with copies of the orthogonal kernel and the bias.

        It does not check that the sizes of its inputs are multiples of the stride.
        """
        return plain_conv(self)

    def extra_repr(self) -> str:
        return _join_repr(nn.Conv2d.extra_repr(self), self._k_repr())


class OrthoConvTranspose2d(nn.ConvTranspose2d, _OrthoConv):
    r"""The adjoint of :class:`OrthoConv2d` from ``out_channels`` to ``in_channels``.

    All its singular values are ``k_coef_lip`` on circular padding, which wraps what reaches beyond
    the border around to the other side; with zero padding, which cuts it off, it is
    ``k_coef_lip``-Lipschitz. It keeps the norm of gradients where
    ``in_channels >= out_channels * stride²``, and that of inputs where it is ``<=``.

    Args:
        in_channels, out_channels: positive, divisible by ``groups``.
        kernel_size, stride, dilation: a positive int or a pair.
        padding: ``"same"``: as many outputs as inputs, times the stride (``output_padding`` must
            then be 0); an int or a pair, as ``torch.nn.ConvTranspose2d`` takes it.
        output_padding: the number of further outputs, not negative, less than stride or dilation.
        groups: each is orthogonal on its own.
        bias: whether to add a learnable bias.
        padding_mode: ``"circular"`` or ``"zeros"``. With ``"circular"``, padding and output padding
            must lead to outputs whose sizes are multiples of the stride, and no smaller than with
            ``"same"``.
        k_coef_lip: the Lipschitz constant, positive.
        device, dtype: of the parameters, as in ``torch.nn``.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``, as
        ``torch.nn.ConvTranspose2d``; ``H' = stride * H`` for ``"same"``.

    Raises:
        TypeError, ValueError: as :class:`OrthoConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: Union[_Pair, Literal["same"]] = "same",
        output_padding: _Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _Pair = 1,
        padding_mode: str = "circular",
        k_coef_lip: float = 1.0,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        _check_settings(in_channels, out_channels, groups, bias, padding_mode, k_coef_lip)
        kernel = check_int_or_pair("kernel_size", kernel_size)
        stride = check_int_or_pair("stride", stride)
        dilation = check_int_or_pair("dilation", dilation)
        more = check_int_or_pair("output_padding", output_padding, minimum=0)
        reach = _reach(kernel, dilation)
        ends: _Ends
        if isinstance(padding, str):
            check_choice("padding", padding, ("same",))
            if any(more):
                raise ValueError(f"output_padding must be 0 with padding='same', got {more}")
            ends = [(r // 2, r + 1 - s - r // 2) for r, s in zip(reach, stride)]
        else:
            before = check_int_or_pair("padding", padding, minimum=0)
            if any(m >= max(s, d) for m, s, d in zip(more, stride, dilation)):
                raise ValueError(
                    f"output_padding must be less than stride={stride} or dilation={dilation}, "
                    f"got {more}"
                )
            ends = [(b, b - m) for b, m in zip(before, more)]
            if padding_mode == "circular":
                _check_wraps(reach, stride, ends)
        plan = plan_kernel(out_channels, in_channels, kernel, stride, dilation, groups)
        nn.ConvTranspose2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel,
            stride,
            (ends[0][0], ends[1][0]),
            tuple(max(0, a - b) for a, b in ends),  # type: ignore[arg-type]
            groups,
            bias,
            dilation,
            device=device,
            dtype=dtype,
        )
        # torch.nn knows only zeros.
        mode: Any = padding_mode
        self.padding_mode = mode
        self._ends = ends
        self._build(OrthogonalKernel(plan, k_coef_lip))

    def forward(self, input: Tensor, output_size: Optional[Sequence[int]] = None) -> Tensor:
        """The transposed convolution.

        Args:
            input: ``(N, in_channels, H, W)`` or ``(in_channels, H, W)``.
            output_size: in place of the output padding, as for ``torch.nn.ConvTranspose2d``.

        Raises:
            ValueError: on circular padding, for sizes that cannot be wrapped around.
        """
        circular = self.padding_mode == "circular"
        ends = self._ends if output_size is None else self._ends_for(input, output_size)
        if circular:
            for full, (before, after) in zip(self._full_size(input), ends):
                if full - before - after < max(before, after):
                    raise ValueError(
                        f"input must be large enough for outputs of {max(before, after)} pixels or "
                        f"more with padding_mode='circular', got {tuple(input.shape[-2:])}"
                    )
        return _transposed(
            input, self.weight, self.bias, self.stride, ends, self.groups, self.dilation, circular
        )

    def _full_size(self, input: Tensor) -> list[int]:
        """Of the output before anything is cut off or added."""
        reach = _reach(self.kernel_size, self.dilation)
        return [(n - 1) * s + r + 1 for n, s, r in zip(input.shape[-2:], self.stride, reach)]

    def _ends_for(self, input: Tensor, output_size: Sequence[int]) -> _Ends:
        if len(output_size) not in (2, input.dim()):
            raise ValueError(f"output_size must have 2 elements, got {tuple(output_size)}")
        # As for padding of both ends alike, or less.
        usual = [n - 2 * a for n, (a, _) in zip(self._full_size(input), self._ends)]
        more = [n - m for n, m in zip(output_size[-2:], usual)]
        least = [min(0, a - b) for a, b in self._ends]
        if any(not low <= m < s for low, m, s in zip(least, more, self.stride)):
            allowed = tuple(range(n + low, n + s) for n, low, s in zip(usual, least, self.stride))
            raise ValueError(f"output_size must be in {allowed}, got {tuple(output_size)}")
        ends = [(a, a - m) for (a, _), m in zip(self._ends, more)]
        if self.padding_mode == "circular":
            _check_wraps(_reach(self.kernel_size, self.dilation), self.stride, ends)
        return ends

    def reset_parameters(self) -> None:
        """Draws orthogonal factors and sets the bias to zero."""
        self._draw()

    def vanilla_export(self) -> nn.Module:
        """A ``torch.nn.ConvTranspose2d`` with copies of the orthogonal kernel and the bias.

        On circular padding, which it does not have, a ``torch.fx.GraphModule`` of torch functions.
        """
        ends, circular = self._ends, self.padding_mode == "circular"
        if not circular and all(a >= b for a, b in ends):
            return plain_conv(self)
        stride, groups, dilation = self.stride, self.groups, self.dilation

        def function(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
            return _transposed(input, weight, bias, stride, ends, groups, dilation, circular)

        tensors = nn.Module()
        _fill(tensors, self)
        plain = plain_module("CircularConvTranspose2d", tensors, function)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(nn.ConvTranspose2d.extra_repr(self), self._k_repr())


def _check_wraps(reach: Sequence[int], stride: Sequence[int], ends: _Ends) -> None:
    """Whether the adjoint is that of a convolution on circular padding, and repeats no output."""
    further = [r + 1 - s - a - b for r, s, (a, b) in zip(reach, stride, ends)]
    if any(f < 0 or f % s for f, s in zip(further, stride)):
        raise ValueError(
            "padding and output_padding must lead to stride times as many outputs as inputs, or "
            "further multiples of the stride, with padding_mode='circular': 2 padding - "
            f"output_padding must be {tuple(r + 1 - s for r, s in zip(reach, stride))}, "
            f"got {tuple(a + b for a, b in ends)}"
        )


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    stride: tuple[int, ...],
    ends: _Ends,
    groups: int,
    dilation: tuple[int, ...],
    circular: bool,
) -> Tensor:
    """The adjoint of a convolution, which pads its input by ``ends``."""
    if not circular and all(a >= b for a, b in ends):
        cut, more = [a for a, _ in ends], [a - b for a, b in ends]
        return F.conv_transpose2d(input, weight, bias, stride, cut, more, groups, dilation)
    out = F.conv_transpose2d(input, weight, None, stride, 0, 0, groups, dilation)
    for axis, (before, beyond) in zip((-2, -1), ends):
        if beyond < 0:
            out = F.pad(out, (0, -beyond) if axis == -1 else (0, 0, 0, -beyond))
        after = max(0, beyond)
        size = out.shape[axis] - before - after
        middle = out.narrow(axis, before, size)
        if circular and (before or after):
            middle = middle.clone()
            middle.narrow(axis, size - before, before).add_(out.narrow(axis, 0, before))
            middle.narrow(axis, 0, after).add_(out.narrow(axis, before + size, after))
        out = middle
    return out if bias is None else out + bias[:, None, None]
