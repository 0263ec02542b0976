"""Factors of layers, and layers of one's own built on the base classes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lipfuse.nn as lnn


class Half(nn.Linear, lnn.LipschitzModule):
    """A layer of one's own as deel-torchlip's documentation writes them."""

    def __init__(self, size: int, k_coef_lip: float = 1.0) -> None:
        nn.Linear.__init__(self, size, size)
        lnn.LipschitzModule.__init__(self, k_coef_lip)
        nn.init.orthogonal_(self.weight)
        self.apply_lipschitz_factor()

    def vanilla_export(self) -> nn.Module:
        return self


def test_a_layer_of_ones_own_follows_k() -> None:
    """deel-torchlip reads k once, at construction, so that no container can change it."""
    layer = Half(4, 3.0)
    assert tools.operator_norm(layer, (4,)) == pytest.approx(3, rel=1e-5)
    layer.apply_lipschitz_factor()
    assert tools.operator_norm(layer, (4,)) == pytest.approx(3, rel=1e-5)
    lnn.Sequential(layer, Half(4), k_coef_lip=4.0)
    assert tools.operator_norm(layer, (4,)) == pytest.approx(2, rel=1e-5)
    assert parametrize.is_parametrized(layer, "weight")
    with pytest.raises(ValueError, match="MaxMin must have a weight to apply a factor to"):
        lnn.MaxMin().apply_lipschitz_factor()


def test_layers_of_this_package_have_their_factor_already() -> None:
    """deel-torchlip multiplies by k once more."""
    for layer in (
        lnn.SpectralLinear(4, 4, k_coef_lip=2.0),
        lnn.FrobeniusLinear(4, 1, True, True, 2.0),
    ):
        layer.apply_lipschitz_factor()
        assert tools.operator_norm(layer, (4,)) == pytest.approx(2, rel=1e-5)


def test_the_factor_of_a_layer_is_its_constant() -> None:
    layer = lnn.SpectralLinear(3, 3)
    assert not layer.scaling and float(layer.get_scaling_factor()) == 1
    layer.k_coef_lip = 0.5
    for training in (True, False):
        assert layer.scaling and float(layer.get_scaling_factor(training)) == 0.5


def test_products() -> None:
    """deel-torchlip cannot stack the numbers and tensors of different layers."""
    factory = lnn.SharedLipFactory()
    assert float(factory.get_current_product_value(True)) == 1
    first = Half(3, 2.0)
    factory.register(first)
    norm = lnn.BatchLipNorm(3, factory=factory)
    assert factory.modules == [first, norm]
    x = torch.randn(5, 3) / 4
    norm(x)
    expected = 2 / float(x.var(0).max()) ** 0.5
    for training in (True, False):
        product = factory.get_current_product_value(training)
        assert product.dim() == 0 and float(product.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_copy_of_a_model_has_a_factory_of_its_own() -> None:
    factory = lnn.SharedLipFactory()
    model = nn.Sequential(nn.Linear(3, 3), lnn.BatchLipNorm(3, factory=factory))
    model(torch.randn(5, 3))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        own: Any = twin[1].factory
        assert own is not factory and own.modules == [twin[1]]
        assert float(own.get_current_product_value(False)) != 1


class Constant(nn.Module, lnn.ScaledLipschitzModule):
    def __init__(self, **settings: Any) -> None:
        nn.Module.__init__(self)
        lnn.ScaledLipschitzModule.__init__(self, **settings)

    def get_scaling(self, training: bool = False) -> Tensor:
        return torch.full((1,), 3.0)

    def vanilla_export(self) -> nn.Module:
        return nn.Identity()


def test_scaled_modules() -> None:
    factory = lnn.SharedLipFactory()
    assert float(Constant().get_scaling_factor()) == 1
    assert float(Constant(scaling=True, factory=factory).get_scaling_factor()) == 3
    assert float(factory.get_current_product_value(False)) == 3
    with pytest.raises(TypeError, match="abstract"):
        lnn.ScaledLipschitzModule()  # type: ignore[abstract]
    for settings, error, message in (
        ({"scaling": 1}, TypeError, "scaling must be True or False, got 1"),
        ({"factory": factory}, ValueError, "factory must be None where scaling is False"),
        ({"scaling": True, "factory": {}}, TypeError, "factory must be a SharedLipFactory or None"),
    ):
        with pytest.raises(error, match=message):
            Constant(**settings)
    with pytest.raises(TypeError, match="module must be a ScaledLipschitzModule"):
        factory.register(nn.Linear(2, 2))  # type: ignore[arg-type]
    assert len(factory.modules) == 1
