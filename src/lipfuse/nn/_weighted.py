"""What layers with a normalised weight share."""

from __future__ import annotations

from typing import Any, Literal, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .._checkpoint import WeightChain
from .._checks import check_choice, check_in_range, check_positive
from ..functional._conv_symbol import ConvOperator
from ..parametrizations import BjorckNorm, FrobeniusNorm, LConvNorm, LipschitzWeight
from ..parametrizations._computed import blank, class_for
from ..parametrizations.weight import as_matrices
from .module import LipschitzModule

DEFAULT_EPS_SPECTRAL = 1e-3
DEFAULT_EPS_BJORCK = 1e-3


def check_layer(
    k_coef_lip: float,
    eps_spectral: float,
    eps_bjorck: Optional[float],
    method: str,
) -> None:
    """The arguments that layers with a normalised weight share, before anything is built."""
    check_positive("k_coef_lip", k_coef_lip)
    # Larger ones would stop an iteration before it has done anything.
    check_in_range("eps_spectral", eps_spectral, 0.0, 1.0, low_open=True)
    if eps_bjorck is not None:
        check_in_range("eps_bjorck", eps_bjorck, 0.0, 1.0, low_open=True)
    check_choice("method", method, ("polar", "bjorck"))


def compute_weights(layer: Any) -> None:
    """Gives a layer with parametrizations, but of a class without, the class that computes them."""
    layer.__class__ = class_for(type(layer), tuple(layer.parametrizations))


class WeightedModule(LipschitzModule):
    """A layer whose weight is normalised by one parametrization that also holds its scale."""

    # What k is multiplied by: the convolution's corrective factor.
    _factor: float = 1.0
    normalization: Literal["factor", "operator"] = "factor"

    def _normalise_weight(self, parametrization: nn.Module) -> None:
        assert isinstance(self, nn.Module)
        parametrize.register_parametrization(self, "weight", parametrization, unsafe=True)
        WeightChain.adopt(self, factor=self._factor)
        # torch has made a class for this layer alone.
        self.__class__ = class_for(type(self).__bases__[0])

    def _draw(self, groups: int = 1) -> None:
        """Orthogonal matrices, one a group, and a zero bias."""
        layer: Any = self
        computed = parametrize.is_parametrized(layer, "weight")
        weight = layer.parametrizations.weight.original if computed else layer.weight
        with torch.no_grad():
            if weight.numel():
                # Half precision has no QR decomposition.
                shape = as_matrices(weight, groups).shape
                drawn = torch.empty(shape, dtype=torch.float32, device=weight.device)
                for matrix in drawn if groups > 1 else [drawn]:
                    nn.init.orthogonal_(matrix)
                weight.copy_(drawn.reshape(weight.shape))
            if layer.bias is not None:
                layer.bias.zero_()

    @property
    def _parametrization(self) -> Any:
        return self.parametrizations.weight[0]  # type: ignore[attr-defined]

    def _apply_k(self, k: float) -> None:
        self._parametrization.scale = k * self._factor

    # Whether the corrective factor has been taken back.
    _without_factor: bool = False

    def _remove_from_weight(self, kind: type[nn.Module]) -> bool:
        """Takes one step of the normalisation back, so that ``k_coef_lip`` still holds.

        Returns:
            Whether the layer has a step of that kind.
        """
        layer: Any = self
        if not parametrize.is_parametrized(layer, "weight"):
            return False
        step = self._parametrization
        if kind is BjorckNorm and isinstance(step, LipschitzWeight) and step.method != "spectral":
            step.without_bjorck(layer.parametrizations.weight.original)
        elif (
            kind is LConvNorm
            and isinstance(layer, _ConvNd)
            and not self._without_factor
            and layer.normalization == "factor"
        ):
            self._without_factor = True
            self.k_coef_lip = self.k_coef_lip / self._factor
        elif kind is FrobeniusNorm and isinstance(step, FrobeniusNorm):
            parametrize.remove_parametrizations(layer, "weight")
            # No constant is left to promise: the first class that promises none.
            unconstrained = (c for c in type(layer).__mro__ if not issubclass(c, LipschitzModule))
            layer.__class__ = next(unconstrained)
        else:
            return False
        return True

    def apply_lipschitz_factor(self) -> None:
        """Nothing to do: the normalised weight has the factor already."""

    def _k_repr(self) -> str:
        shown = super()._k_repr()
        if not parametrize.is_parametrized(self, "weight"):  # type: ignore[arg-type]
            return shown  # the normalisation was removed
        method = getattr(self._parametrization, "method", None)
        return shown if method is None else f"{shown}, method={method!r}"

    # torch's parametrized modules refuse to be pickled: their class is made at run time. Ours can
    # be made again. A copy goes the same way.
    def __reduce_ex__(self, protocol: Any) -> Any:
        chains = self.__dict__["_modules"].get("parametrizations")
        if not chains:
            return super().__reduce_ex__(protocol)
        return blank, (type(self).__bases__[0], tuple(chains)), self.__dict__


def lipschitz_weight(
    weight: Tensor,
    scale: float,
    eps_spectral: float,
    eps_bjorck: Optional[float],
    method: Literal["polar", "bjorck"],
    groups: int = 1,
    operator: Optional[ConvOperator] = None,
) -> LipschitzWeight:
    """The parametrization of a spectral layer."""
    return LipschitzWeight(
        weight,
        method="spectral" if eps_bjorck is None else method,
        scale=scale,
        groups=groups,
        eps_spectral=eps_spectral,
        eps_bjorck=DEFAULT_EPS_BJORCK if eps_bjorck is None else eps_bjorck,
        operator=operator,
    )
