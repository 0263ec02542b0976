"""The base of every Lipschitz layer."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._checks import check_positive
from .scaling import ScaledLipschitzModule, SharedLipFactory

__all__ = ["LipschitzModule"]


class _LipschitzFactor(nn.Module):
    """The parametrization that multiplies a weight by the constant of its layer."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.k == 1.0 else weight * self.k

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"k={self.k:g}"


class LipschitzModule(ScaledLipschitzModule):
    """What makes a ``torch.nn.Module`` a layer with a Lipschitz constant of its own.

    A mixin: derive from the ``torch.nn`` class first and from this one second, and call both
    constructors. The class itself constrains nothing; the derived layer's ``forward`` has to be
    ``k_coef_lip``-Lipschitz in the Euclidean norm.

    Args:
        coefficient_lip: the Lipschitz constant to guarantee: positive and finite.
        factory: where to register the layer, whose factor is its constant.

    Raises:
        TypeError: if ``coefficient_lip`` is not a number, or ``factory`` neither None nor a
            :class:`SharedLipFactory`.
        ValueError: if the constant is not positive and finite.

    Note:
        A layer whose ``forward`` reads ``self.k_coef_lip`` needs nothing else. One that is
        1-Lipschitz with its ``weight`` calls :meth:`apply_lipschitz_factor`. One that keeps its
        scale somewhere else overrides :meth:`_apply_k`.
    """

    _k: float

    def __init__(
        self, coefficient_lip: float = 1.0, factory: Optional[SharedLipFactory] = None
    ) -> None:
        self._k = check_positive("k_coef_lip", coefficient_lip)
        self._register_at(factory)

    @property
    def k_coef_lip(self) -> float:
        """The Lipschitz constant the layer guarantees.

        It can be set at any time to a positive finite number, and holds from the next ``forward``.
        """
        return self._k

    @k_coef_lip.setter
    def k_coef_lip(self, value: float) -> None:
        k = check_positive("k_coef_lip", value)
        self._k = k
        self._apply_k(k)

    # deel-torchlip's name. A property, so that code which writes it is honoured as well.
    @property
    def _coefficient_lip(self) -> float:
        return self.k_coef_lip

    @_coefficient_lip.setter
    def _coefficient_lip(self, value: float) -> None:
        self.k_coef_lip = value

    def _apply_k(self, k: float) -> None:
        """Carry a new constant to wherever the layer keeps it besides ``k_coef_lip``.

        Called whenever ``k_coef_lip`` is set, but not by the constructor.
        """
        for step in self._factors_of_weight():
            step.k = k

    def _factors_of_weight(self) -> list[_LipschitzFactor]:
        module: Any = self
        if not parametrize.is_parametrized(module, "weight"):
            return []
        return [p for p in module.parametrizations.weight if isinstance(p, _LipschitzFactor)]

    def apply_lipschitz_factor(self) -> None:
        """Multiplies ``weight`` by ``k_coef_lip``, whatever is set there later.

        For layers of one's own, at the end of the constructor. Nothing happens a second time.

        Raises:
            ValueError: if the layer has no parameter ``weight``.
        """
        module: Any = self
        if not isinstance(getattr(module, "weight", None), Tensor):
            raise ValueError(f"{type(self).__name__} must have a weight to apply a factor to")
        if not self._factors_of_weight():
            parametrize.register_parametrization(
                module, "weight", _LipschitzFactor(self._k), unsafe=True
            )

    @property
    def scaling(self) -> bool:
        """Whether the layer's constant is another than 1."""
        return self.k_coef_lip != 1.0

    def get_scaling(self, training: bool = False, update: bool = True) -> Tensor:
        """The layer's constant."""
        return torch.tensor(self.k_coef_lip)

    def _k_repr(self) -> str:
        """``"k_coef_lip=..."``: what ``extra_repr`` shows."""
        return f"k_coef_lip={self.k_coef_lip:g}"


def _join_repr(*parts: str) -> str:
    """Join the parts of an ``extra_repr`` that are not empty."""
    return ", ".join(part for part in parts if part)
