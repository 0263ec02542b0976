"""The adjoints of orthogonal convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_choice, check_int_or_pair
from ..export import _fill, plain_conv, plain_module
from ..functional.orthogonal_convolution import plan_kernel
from ._orthogonal_kernel import OrthogonalKernel
from .module import _join_repr
from .ortho_conv import OrthoConv, Pair, check_settings, reach_of

__all__ = ["OrthoConvTranspose2d"]

# What is cut off or wrapped around before and after the output, on each axis; a negative number
# adds zeros.
_Ends = list[tuple[int, int]]


class OrthoConvTranspose2d(nn.ConvTranspose2d, OrthoConv):
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
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Union[Pair, Literal["same"]] = "same",
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        padding_mode: str = "circular",
        k_coef_lip: float = 1.0,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        check_settings(in_channels, out_channels, groups, bias, padding_mode, k_coef_lip)
        kernel = check_int_or_pair("kernel_size", kernel_size)
        stride = check_int_or_pair("stride", stride)
        dilation = check_int_or_pair("dilation", dilation)
        more = check_int_or_pair("output_padding", output_padding, minimum=0)
        reach = reach_of(kernel, dilation)
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
        reach = reach_of(self.kernel_size, self.dilation)
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
            _check_wraps(reach_of(self.kernel_size, self.dilation), self.stride, ends)
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
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]
