"""What holds for every Lipschitz layer alike: its constant as an argument, copies, and exports."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lipfuse
import lipfuse.nn as lnn

IMAGE, ROW = (2, 4, 6, 6), (2, 6)
# Each layer's constructor without its constant, and the shape of an input.
LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "BatchCentering": (lambda **k: lnn.BatchCentering(4, **k), IMAGE),
    "FrobeniusConv2d": (lambda **k: lnn.FrobeniusConv2d(4, 3, 3, **k), IMAGE),
    "FrobeniusLinear": (lambda **k: lnn.FrobeniusLinear(6, 3, **k), ROW),
    "FullSort": (lnn.FullSort, ROW),
    "GroupSort": (lambda **k: lnn.GroupSort(3, **k), ROW),
    "GroupSort2": (lnn.GroupSort2, ROW),
    "HouseHolder": (lambda **k: lnn.HouseHolder(6, **k), ROW),
    "InvertibleDownSampling": (lambda **k: lnn.InvertibleDownSampling(2, **k), IMAGE),
    "InvertibleUpSampling": (lambda **k: lnn.InvertibleUpSampling(2, **k), IMAGE),
    "LPReLU": (lnn.LPReLU, ROW),
    "LayerCentering": (lambda **k: lnn.LayerCentering(4, **k), IMAGE),
    "LipResidual": (lnn.LipResidual, ROW),
    "MaxMin": (lnn.MaxMin, ROW),
    "OrthoConv2d": (lambda **k: lnn.OrthoConv2d(4, 3, 3, **k), IMAGE),
    "OrthoConvTranspose2d": (lambda **k: lnn.OrthoConvTranspose2d(4, 3, 2, 2, **k), IMAGE),
    "ScaledAdaptativeL2NormPool2d": (lnn.ScaledAdaptativeL2NormPool2d, IMAGE),
    "ScaledAdaptiveAvgPool2d": (lambda **k: lnn.ScaledAdaptiveAvgPool2d((1, 1), **k), IMAGE),
    "ScaledAvgPool2d": (lambda **k: lnn.ScaledAvgPool2d(2, **k), IMAGE),
    "ScaledL2NormPool2d": (lambda **k: lnn.ScaledL2NormPool2d(2, **k), IMAGE),
    "Sequential": (lambda **k: lnn.Sequential(lnn.SpectralLinear(6, 5), nn.ReLU(), **k), ROW),
    "SpectralConv1d": (lambda **k: lnn.SpectralConv1d(4, 3, 3, **k), IMAGE[:3]),
    "SpectralConv2d": (lambda **k: lnn.SpectralConv2d(4, 3, 3, **k), IMAGE),
    "SpectralConv3d": (lambda **k: lnn.SpectralConv3d(4, 3, 2, **k), (*IMAGE, 3)),
    "SpectralConvTranspose1d": (lambda **k: lnn.SpectralConvTranspose1d(4, 3, 3, **k), IMAGE[:3]),
    "SpectralConvTranspose2d": (lambda **k: lnn.SpectralConvTranspose2d(4, 3, 3, **k), IMAGE),
    "SpectralConvTranspose3d": (
        lambda **k: lnn.SpectralConvTranspose3d(4, 3, 2, **k),
        (*IMAGE[:3], 3, 2),
    ),
    "SpectralLinear": (lambda **k: lnn.SpectralLinear(6, 5, **k), ROW),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
BAD_K: list[tuple[Any, type[Exception]]] = [
    (0, ValueError),
    (-1.0, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (True, TypeError),
    ("1", TypeError),
    (None, TypeError),
    (torch.tensor(1.0), TypeError),
]


def inputs_of(name: str) -> tuple[torch.Tensor, ...]:
    count = 2 if name == "LipResidual" else 1
    return tuple(torch.randn(LAYERS[name][1]) for _ in range(count))


def test_no_layer_is_left_out() -> None:
    abstract = {"LipschitzModule"}
    layers = {
        name
        for name in lnn.__all__
        if isinstance(getattr(lnn, name), type)
        and issubclass(getattr(lnn, name), lnn.LipschitzModule)
    }
    # BatchCentering2d and LayerCentering2d are second names.
    assert {getattr(lnn, n) for n in layers - abstract} == {getattr(lnn, n) for n in LAYERS}


@every_layer
def test_bad_constants(name: str) -> None:
    """deel-torchlip accepts them all silently."""
    make = LAYERS[name][0]
    layer = make(k_coef_lip=0.5)
    for bad, error in BAD_K:
        with pytest.raises(error, match=r"k_coef_lip must be a positive finite number, got "):
            make(k_coef_lip=bad)
        with pytest.raises(error, match=r"k_coef_lip must be a positive finite number, got "):
            layer.k_coef_lip = bad
        assert layer.k_coef_lip == 0.5


@every_layer
def test_k_scales_the_map(name: str) -> None:
    """Given to the constructor, set later, read from a copy: the same outputs, in both modes."""
    make = LAYERS[name][0]
    x = inputs_of(name)
    given, later = make(k_coef_lip=0.3), make()
    later.k_coef_lip = 0.3  # checkpoints say what they were made with
    later.load_state_dict(given.state_dict())
    for training in (True, False):
        given.train(training), later.train(training)
        later.k_coef_lip = 1.0
        one = later(*x)
        later.k_coef_lip = 0.3
        expected = given(*x)
        assert torch.allclose(later(*x), expected, atol=1e-6)
        assert (expected - one).abs().max() > 1e-3
        for twin in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
            assert twin.k_coef_lip == 0.3 and twin.training is training
            assert torch.equal(twin(*x), given(*x))


@every_layer
@pytest.mark.parametrize("k", [1.0, 0.3])
def test_export(name: str, k: float) -> None:
    """Plain torch, with tensors of its own and the outputs of evaluation."""
    layer = LAYERS[name][0](k_coef_lip=k)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = inputs_of(name)
    layer(*x)
    plain = layer.vanilla_export()
    assert plain.training and layer.training
    for module in plain.modules():
        assert not any(base.__module__.startswith("lipfuse") for base in type(module).__mro__)
    loaded = pickle.loads(pickle.dumps(plain))
    expected = layer.eval()(*x)
    for twin in (plain, loaded):
        assert torch.allclose(twin.eval()(*x), expected, atol=1e-5)
    own = {t.data_ptr() for t in layer.state_dict().values() if t.numel()}
    assert not any(t.data_ptr() in own for t in plain.state_dict().values())


class OfOneInput(nn.Module):
    """The input for all inputs of a layer."""

    def __init__(self, layer: nn.Module, count: int) -> None:
        super().__init__()
        self.layer, self.count = layer, count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(*[x] * self.count)
        return out


@every_layer
@pytest.mark.parametrize("exported", [False, True])
def test_certify_finds_the_constant_or_less(name: str, exported: bool) -> None:
    """From the weights and the operations, for the layer and for its export."""
    layer = LAYERS[name][0](k_coef_lip=0.3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    model = OfOneInput(layer.vanilla_export() if exported else layer, len(inputs_of(name)))
    certificate = lipfuse.certify(model, LAYERS[name][1][1:])
    if name == "FrobeniusLinear":  # each output on its own
        assert float(certificate.outputs.max()) == pytest.approx(0.3, rel=1e-5)
    else:
        assert 0.01 < certificate.lipschitz <= 0.3 * (1 + 1e-5)
