r"""Layers that scale by a factor, and the product of the factors of a network."""

from __future__ import annotations

import abc
from typing import Optional

import torch
from torch import Tensor, nn

from .._checks import check_bool

__all__ = ["ScaledLipschitzModule", "SharedLipFactory"]


class SharedLipFactory:
    """The product of the factors by which the layers of a sequential network scale.

    Give one factory to all layers that scale, such as :class:`BatchLipNorm`; the network, if its
    other layers are 1-Lipschitz, is then as Lipschitz as :meth:`get_current_product_value` says.

    Example:
        >>> from lipfuse import nn
        >>> factory = nn.SharedLipFactory()
        >>> layers = [nn.BatchLipNorm(4, factory=factory), nn.ScaledL2NormPool2d(2)]
        >>> factory.get_current_product_value(training=False)
        tensor(1.)

    Attributes:
        modules: the layers registered, in this order.
    """

    def __init__(self) -> None:
        self.modules: list[ScaledLipschitzModule] = []

    def register(self, module: ScaledLipschitzModule) -> None:
        """Adds a layer to the product. Layers do this in their constructor.

        Raises:
            TypeError: if ``module`` is not a :class:`ScaledLipschitzModule`.
        """
        if not isinstance(module, ScaledLipschitzModule):
            raise TypeError(f"module must be a ScaledLipschitzModule, got {module!r}")
        self.modules.append(module)

    def get_current_product_value(self, training: bool) -> Tensor:
        """The product of the factors of all layers registered; differentiable in training.

        Args:
            training: take the factors of the last training batch, instead of those of evaluation.
                The former describe how each sample was scaled, but are no bound of the map from
                batch to batch: see :class:`BatchLipNorm`.

        Returns:
            A tensor of no dimension; 1 if there is no layer.

        Raises:
            RuntimeError: if ``training`` and a layer has not seen a training batch yet.
        """
        product = torch.ones(())
        for module in self.modules:
            product = product * module.get_scaling_factor(training=training).reshape(())
        return product


class ScaledLipschitzModule(abc.ABC):
    """What makes a ``torch.nn.Module`` a layer that scales by a factor of its own.

    A mixin: derive from the ``torch.nn`` class first and from this one second, and call both
    constructors.

    Args:
        scaling: whether the layer scales at all; if not, its factor is 1.
        factory: where to register the layer.

    Raises:
        TypeError: if ``scaling`` is not a bool, or ``factory`` neither None nor a factory.
        ValueError: if there is a factory, but no scaling.
    """

    def __init__(self, scaling: bool = False, factory: Optional[SharedLipFactory] = None) -> None:
        self._scaling = check_bool("scaling", scaling)
        if factory is not None and not scaling:
            raise ValueError(f"factory must be None where scaling is False, got {factory!r}")
        self._register_at(factory)

    def _register_at(self, factory: Optional[SharedLipFactory]) -> None:
        if factory is not None and not isinstance(factory, SharedLipFactory):
            raise TypeError(f"factory must be a SharedLipFactory or None, got {factory!r}")
        self.factory = factory
        if factory is not None:
            factory.register(self)

    @property
    def scaling(self) -> bool:
        """Whether the layer may scale by something else than 1."""
        return self._scaling

    def get_scaling_factor(self, training: bool = False) -> Tensor:
        """The factor: :meth:`get_scaling`, or 1 for a layer that does not scale."""
        return self.get_scaling(training=training) if self.scaling else torch.ones(())

    @abc.abstractmethod
    def get_scaling(self, training: bool = False) -> Tensor:
        """The factor by which the layer scales: that of evaluation, or of the last training batch.

        Returns:
            A tensor with one element.
        """

    @abc.abstractmethod
    def vanilla_export(self) -> nn.Module:
        """The same map as a plain PyTorch module, with copies of the tensors.

        Returns:
            A module made of ``torch.nn`` classes, or a ``torch.fx.GraphModule`` of plain torch
            functions where ``torch.nn`` has no such layer. It knows nothing of this package.
        """
