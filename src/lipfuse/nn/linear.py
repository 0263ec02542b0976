"""Linear layers with a normalised weight."""

from __future__ import annotations

from typing import Any, Literal, Optional

import torch
from torch import nn

from .._checks import check_bool, check_positive, check_positive_int
from ..export import plain_linear
from ..parametrizations import FrobeniusNorm
from ._weighted import (
    DEFAULT_EPS_BJORCK,
    DEFAULT_EPS_SPECTRAL,
    WeightedModule,
    check_layer,
    lipschitz_weight,
)
from .module import _join_repr

__all__ = ["FrobeniusLinear", "SpectralLinear"]


class SpectralLinear(nn.Linear, WeightedModule):
    r"""A linear layer all of whose singular values are ``k_coef_lip``.

    Its weight is :math:`k\,Q` with Q the polar factor of the parameter: orthonormal rows or
    columns, so that the gradient keeps its norm. With ``eps_bjorck=None`` it is the parameter over
    a proven bound of its spectral norm: at most k-Lipschitz.

    Args:
        in_features: size of each input sample, positive.
        out_features: size of each output sample, positive.
        bias: whether to add a learnable bias.
        k_coef_lip: the Lipschitz constant, positive.
        eps_spectral: accuracy of the spectral norm, in (0, 1], for ``method="bjorck"``; 1e-3
            unless given.
        eps_bjorck: when Björck's iteration stops, in (0, 1], for ``method="bjorck"``; 1e-3
            unless given. None: spectral normalisation alone.
        device, dtype: of the parameters, as in ``torch.nn``.
        method: ``"polar"``, or ``"bjorck"`` for the classic chain of power iteration and Björck's
            iteration in training.

    Shape:
        ``(*, in_features)`` to ``(*, out_features)``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        k_coef_lip: float = 1.0,
        eps_spectral: float = DEFAULT_EPS_SPECTRAL,
        eps_bjorck: Optional[float] = DEFAULT_EPS_BJORCK,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        method: Literal["polar", "bjorck"] = "polar",
    ) -> None:
        check_positive_int("in_features", in_features)
        check_positive_int("out_features", out_features)
        check_bool("bias", bias)
        check_layer(k_coef_lip, eps_spectral, eps_bjorck, method)
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        WeightedModule.__init__(self, k_coef_lip)
        self._normalise_weight(
            lipschitz_weight(self.weight, self.k_coef_lip, eps_spectral, eps_bjorck, method)
        )

    def reset_parameters(self) -> None:
        """Draws orthogonal weights and sets the bias to zero."""
        self._draw()

    def vanilla_export(self) -> nn.Linear:
        """A ``torch.nn.Linear`` with copies of the normalised weight and the bias."""
        return plain_linear(self)

    def extra_repr(self) -> str:
        return _join_repr(nn.Linear.extra_repr(self), self._k_repr())


class FrobeniusLinear(nn.Linear, WeightedModule):
    """A linear layer whose weight is divided by Frobenius norms.

    With ``disjoint_neurons`` every output neuron has a weight vector of norm k and is k-Lipschitz
    *on its own*; the outputs together are ``k sqrt(out_features)``-Lipschitz at most. Without, the
    whole weight has Frobenius norm k and the layer is k-Lipschitz.

    Args:
        in_features: size of each input sample, positive.
        out_features: size of each output sample, positive.
        bias: whether to add a learnable bias.
        disjoint_neurons: normalise each output neuron on its own.
        k_coef_lip: the Lipschitz constant, positive.
        device, dtype: of the parameters, as in ``torch.nn``.

    Shape:
        ``(*, in_features)`` to ``(*, out_features)``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        disjoint_neurons: bool = True,
        k_coef_lip: float = 1.0,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        check_positive_int("in_features", in_features)
        check_positive_int("out_features", out_features)
        check_bool("bias", bias)
        check_bool("disjoint_neurons", disjoint_neurons)
        check_positive("k_coef_lip", k_coef_lip)
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        WeightedModule.__init__(self, k_coef_lip)
        self.disjoint_neurons: bool = bool(disjoint_neurons)
        self._normalise_weight(FrobeniusNorm(self.disjoint_neurons, self.k_coef_lip))

    def reset_parameters(self) -> None:
        """Draws orthogonal weights and sets the bias to zero."""
        self._draw()

    def vanilla_export(self) -> nn.Linear:
        """A ``torch.nn.Linear`` with copies of the normalised weight and the bias."""
        return plain_linear(self)

    def extra_repr(self) -> str:
        disjoint = f"disjoint_neurons={self.disjoint_neurons}"
        return _join_repr(nn.Linear.extra_repr(self), disjoint, self._k_repr())
