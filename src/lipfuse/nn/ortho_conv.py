"""Orthogonal convolutions: all singular values of the map are the Lipschitz constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn

from .._checks import (
    check_bool,
    check_choice,
    check_int_or_pair,
    check_positive,
)
from ..export import plain_conv
from ..functional.orthogonal_convolution import plan_kernel
from ._orthogonal_kernel import OrthogonalKernel
from ._weighted import WeightedModule
from .module import _join_repr
from .pad_conv import _check_channels

__all__ = ["OrthoConv2d"]

Pair = Union[int, tuple[int, int]]


def check_settings(
    in_channels: int,
    out_channels: int,
    groups: int,
    bias: bool,
    padding_mode: str,
    k_coef_lip: float,
) -> None:
    """The arguments that both layers check alike."""
    _check_channels(in_channels, out_channels, groups)
    check_bool("bias", bias)
    check_choice("padding_mode", padding_mode, ("circular", "zeros"))
    check_positive("k_coef_lip", k_coef_lip)


def reach_of(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    """How many pixels the last tap is after the first."""
    height, width = (d * (k - 1) for k, d in zip(kernel_size, dilation))
    return height, width


class OrthoConv(WeightedModule):
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


class OrthoConv2d(nn.Conv2d, OrthoConv):
    r"""A 2-d convolution all of whose singular values are ``k_coef_lip`` on circular padding.

    Its kernel is a product of orthogonal factors (BCOP's block convolutions and the strided matrix
    of AOC; :mod:`lipfuse.functional.orthogonal_convolution`), the polar factors of unconstrained
    parameters. With ``padding="same"`` on circular padding, the map keeps the norm of gradients
    where ``out_channels <= in_channels * stride²``, and that of inputs where it is ``>=``. With
    zero padding, or less padding, it is a part of such a map: ``k_coef_lip``-Lipschitz. The
    defaults of ``padding`` and ``padding_mode`` are therefore not those of ``torch.nn``.

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
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Union[Pair, Literal["valid", "same"]] = "same",
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "circular",
        k_coef_lip: float = 1.0,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        check_settings(in_channels, out_channels, groups, bias, padding_mode, k_coef_lip)
        kernel = check_int_or_pair("kernel_size", kernel_size)
        stride = check_int_or_pair("stride", stride)
        dilation = check_int_or_pair("dilation", dilation)
        given: Any = padding
        if isinstance(padding, str):
            check_choice("padding", padding, ("valid", "same"))
        else:
            given = check_int_or_pair("padding", padding, minimum=0)
        mode: Any = padding_mode
        reach = reach_of(kernel, dilation)
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
