"""Layers that subtract means or add a bias: what they do to a sample they do to it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor, fx, nn

from .._checks import check_bool, check_finite, check_positive_int, check_tensor
from ..export import plain_module
from .module import LipschitzModule, _join_repr
from .scaling import ScaledLipschitzModule

__all__ = ["LayerCentering", "LayerCentering2d", "ScaleBiasLayer"]


# ---- what they share -----------------------------------------------------------------------------


def check_dims(value: object) -> tuple[int, ...]:
    items: Any = value if isinstance(value, (tuple, list)) else (value,)
    if not items or any(isinstance(d, bool) or not isinstance(d, int) for d in items):
        raise TypeError(f"dim must be an integer or a tuple of integers, got {value!r}")
    return tuple(items)


def dims_of(x: Tensor, dims: tuple[int, ...]) -> set[int]:
    """The dimensions counted from the front."""
    if any(not -x.dim() <= d < x.dim() for d in dims):
        raise ValueError(f"dim must name dimensions of x, got {dims} for x of {x.dim()} dimensions")
    named = {d % x.dim() for d in dims}
    if len(named) != len(dims):
        raise ValueError(f"dim must name each dimension once, got {dims}")
    return named


def check_channels(x: Tensor, features: int, shared: bool) -> None:
    """Broadcasting would make several channels of one, each with a share of the gain."""
    check_tensor("x", x, min_dim=2)
    if x.shape[1] != features and not (shared and features == 1):
        raise ValueError(
            f"x must have num_features={features} channels in dimension 1, got {tuple(x.shape)}"
        )


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def channel_bias(num_features: int, bias: bool, device: Any, dtype: Any) -> Optional[nn.Parameter]:
    if not check_bool("bias", bias):
        return None
    return nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))


def plain_scale_bias(
    module: nn.Module, scale: float, shift: Optional[Tensor], requires_grad: bool
) -> fx.GraphModule:
    """``x * scale + shift``, for inputs of any rank."""
    tensors = nn.Module()
    if shift is not None:
        tensors.bias = nn.Parameter(shift.detach().clone(), requires_grad=requires_grad)

    def with_bias(input: Tensor, bias: Tensor) -> Tensor:
        # Channels last, so that the bias broadcasts whatever the rank is.
        return ((input * scale).movedim(1, -1) + bias).movedim(-1, 1)

    def without(input: Tensor) -> Tensor:
        return input * scale

    plain = plain_module("ScaleBias", tensors, without if shift is None else with_bias)
    plain.training = module.training
    return plain


# ---- layers --------------------------------------------------------------------------------------


class LayerCentering(nn.Module, LipschitzModule):
    r"""Subtract each sample's mean over some dimensions, times k: a projection, k-Lipschitz.

    .. math:: y = k\,(x - \mathrm{E}[x]) + \beta

    The same in training and in evaluation.

    Args:
        num_features: of the bias: the number of channels, or 1 for a bias that they share.
        dim: the dimensions of the mean, not the first, which is the batch.
        bias: whether to add a learnable bias.
        device, dtype: of the bias, as in ``torch.nn``.
        k_coef_lip: the Lipschitz constant, positive.

    Shape:
        ``(N, C, *)`` to the same.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name; for inputs with
            another number of channels, or whose batch ``dim`` would include.
    """

    bias: Optional[nn.Parameter]

    def __init__(
        self,
        num_features: int = 1,
        dim: Union[int, Sequence[int]] = (-2, -1),
        bias: bool = True,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        k_coef_lip: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)
        LipschitzModule.__init__(self, k_coef_lip)
        self.num_features: int = check_positive_int("num_features", num_features)
        self.dim: tuple[int, ...] = check_dims(dim)
        self.register_parameter("bias", channel_bias(num_features, bias, device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, min_dim=2)
        if 0 in dims_of(x, self.dim):
            raise ValueError(
                f"dim must not name the batch, dimension 0, got {self.dim} "
                f"for x of shape {tuple(x.shape)}"
            )
        y = x - x.mean(self.dim, keepdim=True)
        if self._k != 1.0:
            y = y * self._k
        if self.bias is None:
            return y
        check_channels(x, self.num_features, shared=True)
        return y + along_channels(self.bias, x)

    def vanilla_export(self) -> fx.GraphModule:
        dim, k = self.dim, self._k
        tensors = nn.Module()
        if self.bias is not None:
            tensors.bias = nn.Parameter(
                self.bias.detach().clone(), requires_grad=self.bias.requires_grad
            )

        def center(input: Tensor, bias: Optional[Tensor] = None) -> Tensor:
            centered = input - input.mean(dim, keepdim=True)
            centered = centered if k == 1.0 else centered * k
            return centered if bias is None else (centered.movedim(1, -1) + bias).movedim(-1, 1)

        plain = plain_module("LayerCentering", tensors, center)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(
            f"{self.num_features}, dim={self.dim}, bias={self.bias is not None}", self._k_repr()
        )


LayerCentering2d = LayerCentering


class ScaleBiasLayer(nn.Module, ScaledLipschitzModule):
    r"""Multiply by a fixed number and add a bias to each channel: ``abs(scalar)``-Lipschitz.

    .. math:: y = \mathrm{scalar} \cdot x + \beta

    Args:
        scalar: a finite number, or a tensor with one element.
        num_features: of the bias: the number of channels, or 1 for a bias that they share.
        bias: whether to add a learnable bias.
        device, dtype: of the bias, as in ``torch.nn``.

    Shape:
        ``(N, C, *)`` to the same.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name; for inputs with
            another number of channels.
    """

    bias: Optional[nn.Parameter]

    def __init__(
        self,
        scalar: Union[float, Tensor] = 1.0,
        num_features: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        nn.Module.__init__(self)
        ScaledLipschitzModule.__init__(self)
        if isinstance(scalar, Tensor) and scalar.numel() == 1:
            scalar = float(scalar)
        self.scalar: float = check_finite("scalar", scalar)
        self.num_features: int = check_positive_int("num_features", num_features)
        self.register_parameter("bias", channel_bias(num_features, bias, device, dtype))

    @property
    def scaling(self) -> bool:
        """Whether the layer may make distances larger."""
        return abs(self.scalar) > 1.0

    def get_scaling(self, training: bool = False) -> Tensor:
        """The absolute value of ``scalar``."""
        return torch.tensor(abs(self.scalar))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scalar
        if self.bias is None:
            return y
        check_channels(x, self.num_features, shared=True)
        return y + along_channels(self.bias, x)

    def vanilla_export(self) -> fx.GraphModule:
        trained = self.bias is not None and self.bias.requires_grad
        return plain_scale_bias(self, self.scalar, self.bias, trained)

    def extra_repr(self) -> str:
        return f"{self.scalar:g}, {self.num_features}, bias={self.bias is not None}"
