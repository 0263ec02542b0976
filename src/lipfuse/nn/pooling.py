"""Pooling layers whose windows do not overlap, scaled to a Lipschitz constant."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, fx, nn

from .. import functional as F
from .._checks import check_bool, check_int_or_pair, check_positive_int
from ..export import plain_function
from ..functional.pooling import window_counts, window_means
from .module import LipschitzModule, _join_repr

__all__ = [
    "ScaledAdaptativeL2NormPool2d",
    "ScaledAdaptiveAvgPool2d",
    "ScaledAvgPool2d",
    "ScaledL2NormPool2d",
]

_Size = int | tuple[int, int]


def _check_windows(kernel_size: object, stride: object) -> tuple[int, int]:
    """The kernel as a pair; refuses windows that overlap, which would count elements twice."""
    kernel = check_int_or_pair("kernel_size", kernel_size)
    if stride is not None and check_int_or_pair("stride", stride) != kernel:
        raise ValueError(f"stride must be None or equal to kernel_size {kernel}, got {stride!r}")
    return kernel


def _check_whole_image(output_size: object) -> None:
    if check_int_or_pair("output_size", output_size) != (1, 1):
        raise ValueError(
            f"output_size must be (1, 1), since larger ones may overlap, got {output_size!r}"
        )


class ScaledAvgPool2d(nn.AvgPool2d, LipschitzModule):
    r"""Average pooling scaled to be k-Lipschitz.

    Each output is k times the sum of a window over the root of the window's size.

    Args:
        kernel_size: the size of the windows.
        stride: ``None`` or equal to ``kernel_size``.
        padding: 0.
        ceil_mode: whether elements that do not fill a window get one of their own, cut off at the
            border and scaled by its own size.
        count_include_pad: without effect, as there is no padding.
        divisor_override: divide the sum by this instead of the window's size before scaling; at
            least the window's size, since the layer would exceed k otherwise.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, H, W)` or :math:`(C, H, W)`.
        - Output: the same with :math:`H` and :math:`W` divided by the kernel and rounded down, or
          up with ``ceil_mode``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a setting would break the constant, or ``k_coef_lip`` is not positive and
            finite.

    See also :func:`lipfuse.functional.scaled_avg_pool2d`.
    """

    def __init__(
        self,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        k_coef_lip: float = 1.0,
    ) -> None:
        kernel = _check_windows(kernel_size, stride)
        if check_int_or_pair("padding", padding, 0) != (0, 0):
            raise ValueError(f"padding must be 0, got {padding!r}")
        area = kernel[0] * kernel[1]
        if divisor_override is not None:
            check_positive_int("divisor_override", divisor_override)
            if divisor_override < area:
                raise ValueError(
                    f"divisor_override must be None or at least the window's size, {area}, "
                    f"got {divisor_override!r}"
                )
        nn.AvgPool2d.__init__(
            self,
            kernel_size,
            stride,
            padding,
            check_bool("ceil_mode", ceil_mode),
            check_bool("count_include_pad", count_include_pad),
            divisor_override,
        )
        LipschitzModule.__init__(self, k_coef_lip)
        self._kernel = kernel

    def _factor(self) -> float:
        """What a larger divisor than the window's size leaves of k."""
        if self.divisor_override is None:
            return self._k
        return self._k * (self._kernel[0] * self._kernel[1] / self.divisor_override)

    def forward(self, input: Tensor) -> Tensor:
        return F.scaled_avg_pool2d(input, self._kernel, self.ceil_mode, self._factor())

    def vanilla_export(self) -> nn.Module:
        kernel, factor, ceil_mode = self._kernel, self._factor(), self.ceil_mode
        area = kernel[0] * kernel[1]

        def pool(input: Tensor) -> Tensor:
            mean = window_means(input, kernel, ceil_mode)
            if not ceil_mode:
                return mean * (math.sqrt(area) * factor)
            return mean * (window_counts(input, kernel).rsqrt() * (area * factor))

        plain = plain_function("ScaledAvgPool2d", pool)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(
            f"kernel_size={self.kernel_size}",
            "ceil_mode=True" if self.ceil_mode else "",
            "" if self.divisor_override is None else f"divisor_override={self.divisor_override}",
            self._k_repr(),
        )


class ScaledAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d, LipschitzModule):
    r"""Global average pooling scaled to be k-Lipschitz: k times the sum over the root of its size.

    Args:
        output_size: ``(1, 1)``, or 1.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, H, W)` or :math:`(C, H, W)`.
        - Output: :math:`(N, C, 1, 1)` or :math:`(C, 1, 1)`.

    Raises:
        TypeError: if ``output_size`` is no integers, or ``k_coef_lip`` not a number.
        ValueError: if the first is not 1, or the second not positive and finite.
    """

    def __init__(self, output_size: _Size, k_coef_lip: float = 1.0) -> None:
        _check_whole_image(output_size)
        nn.AdaptiveAvgPool2d.__init__(self, output_size)
        LipschitzModule.__init__(self, k_coef_lip)

    def forward(self, input: Tensor) -> Tensor:
        return F.scaled_avg_pool2d(input, _image_size(input), scale=self._k)

    def vanilla_export(self) -> nn.Module:
        k = self._k

        def pool(input: Tensor) -> Tensor:
            root: float = (input.shape[-2] * input.shape[-1]) ** 0.5
            return torch_functional.adaptive_avg_pool2d(input, 1) * (root * k)

        plain = plain_function("ScaledAdaptiveAvgPool2d", pool)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(super().extra_repr(), self._k_repr())


def _image_size(input: Tensor) -> tuple[int, int]:
    # The rank is checked by the function that is called with it.
    height, width = (1, 1) if input.dim() < 2 else input.shape[-2:]
    return height, width


class ScaledL2NormPool2d(nn.LPPool2d, LipschitzModule):
    r"""Euclidean norm of each window, times k: k-Lipschitz and gradient norm preserving.

    .. math:: \mathrm{out}_w = k\,\Bigl(\sum_{i \in w} x_i^2\Bigr)^{1/2}

    Args:
        kernel_size: the size of the windows.
        stride: ``None`` or equal to ``kernel_size``.
        ceil_mode: whether elements that do not fill a window get one of their own, cut off at the
            border.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, H, W)` or :math:`(C, H, W)`.
        - Output: the same with :math:`H` and :math:`W` divided by the kernel and rounded down, or
          up with ``ceil_mode``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if windows would overlap, or ``k_coef_lip`` is not positive and finite.

    Note:
        The export is not a ``torch.nn.LPPool2d``, whose gradient in a window of zeros is NaN and
        which enlarges the windows that ``ceil_mode`` cuts off.

    References:
        Y.-L. Boureau, J. Ponce, Y. LeCun, *A theoretical analysis of feature pooling in visual
        recognition*, ICML 2010.

    See also :func:`lipfuse.functional.l2_norm_pool2d`.
    """

    def __init__(
        self,
        kernel_size: _Size,
        stride: _Size | None = None,
        ceil_mode: bool = False,
        k_coef_lip: float = 1.0,
    ) -> None:
        kernel = _check_windows(kernel_size, stride)
        nn.LPPool2d.__init__(
            self, 2, kernel_size, stride, ceil_mode=check_bool("ceil_mode", ceil_mode)
        )
        LipschitzModule.__init__(self, k_coef_lip)
        self._kernel = kernel

    def forward(self, input: Tensor) -> Tensor:
        output = F.l2_norm_pool2d(input, self._kernel, self.ceil_mode)
        return output if self._k == 1.0 else output * self._k

    def vanilla_export(self) -> nn.Module:
        plain = _plain_l2_pool("ScaledL2NormPool2d", self._kernel, self.ceil_mode, self._k)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(
            f"kernel_size={self.kernel_size}",
            "ceil_mode=True" if self.ceil_mode else "",
            self._k_repr(),
        )


class ScaledAdaptativeL2NormPool2d(nn.Module, LipschitzModule):
    r"""Euclidean norm of each channel of an image, times k.

    Args:
        output_size: ``(1, 1)``, or 1.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, H, W)` or :math:`(C, H, W)`.
        - Output: :math:`(N, C, 1, 1)` or :math:`(C, 1, 1)`.

    Raises:
        TypeError: if ``output_size`` is no integers, or ``k_coef_lip`` not a number.
        ValueError: if the first is not 1, or the second not positive and finite.

    See also :class:`ScaledL2NormPool2d`.
    """

    def __init__(self, output_size: _Size = (1, 1), k_coef_lip: float = 1.0) -> None:
        nn.Module.__init__(self)
        LipschitzModule.__init__(self, k_coef_lip)
        _check_whole_image(output_size)
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        output = F.l2_norm_pool2d(input, _image_size(input))
        return output if self._k == 1.0 else output * self._k

    def vanilla_export(self) -> nn.Module:
        plain = _plain_l2_pool("ScaledAdaptativeL2NormPool2d", None, False, self._k)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(f"output_size={self.output_size}", self._k_repr())


def _plain_l2_pool(
    name: str, kernel: tuple[int, int] | None, ceil_mode: bool, k: float
) -> fx.GraphModule:
    """L2 pooling in plain torch functions; ``None`` pools the whole image."""
    smallest = 2.0**20 * torch.finfo(torch.float32).tiny

    def pool(input: Tensor) -> Tensor:
        # One dimension, not none: that makes half precision float32 and leaves float64.
        wide = input * input.new_ones(1, dtype=torch.float32)
        squares = wide * wide
        if kernel is None:
            sums = squares.sum((-2, -1), keepdim=True)
        else:
            sums = window_means(squares, kernel, ceil_mode) * (kernel[0] * kernel[1])
        # The inner where keeps the infinite slope of the root at zero out of the gradient.
        large = sums >= smallest
        roots = torch.where(large, torch.where(large, sums, 1.0).sqrt(), 0.0)
        norms: Tensor = roots.type_as(input)
        return norms if k == 1.0 else norms * k

    return plain_function(name, pool)
