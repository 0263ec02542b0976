"""Every layer of lipfuse.nn with settings that matter to compilers and exporters.

A new layer has to be entered here: a test compares the table with ``lipfuse.nn.__all__``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lipfuse.nn as lnn

VECTOR, ROW, IMAGE = (6,), (6, 8), (6, 8, 8)
METHODS: dict[str, dict[str, Any]] = {
    "polar": {},
    "bjorck": {"method": "bjorck"},
    "spectral": {"eps_bjorck": None},
}


def _conv(**settings: Any) -> nn.Module:
    return lnn.SpectralConv2d(6, 4, 3, **{"padding": 1, **settings})


class _Residual(nn.Module):
    """Of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = lnn.LipResidual()

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.mean(x, x.tanh())
        return mean


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        f"SpectralLinear {name}": (lambda s=s: lnn.SpectralLinear(6, 4, **s), VECTOR)
        for name, s in METHODS.items()
    },
    **{
        f"SpectralConv2d {name}": (lambda s=s: _conv(stride=2, **s), IMAGE)
        for name, s in METHODS.items()
    },
    "SpectralConv2d groups": (lambda: _conv(groups=2), IMAGE),
    "SpectralConv2d symmetric": (lambda: _conv(padding_mode="symmetric"), IMAGE),
    "SpectralConv2d circular": (lambda: _conv(padding_mode="circular"), IMAGE),
    "SpectralConv1d": (lambda: lnn.SpectralConv1d(6, 4, 3, stride=2), ROW),
    "SpectralConv3d": (lambda: lnn.SpectralConv3d(6, 4, 2), (*IMAGE, 3)),
    "SpectralConvTranspose1d": (lambda: lnn.SpectralConvTranspose1d(6, 4, 3, stride=2), ROW),
    "SpectralConvTranspose2d": (lambda: lnn.SpectralConvTranspose2d(6, 4, 2, stride=2), IMAGE),
    "SpectralConvTranspose3d": (lambda: lnn.SpectralConvTranspose3d(6, 4, 2), (*IMAGE, 3)),
    "FrobeniusConv2d": (lambda: lnn.FrobeniusConv2d(6, 4, 3, padding_mode="reflect"), IMAGE),
    "OrthoConv2d": (lambda: lnn.OrthoConv2d(6, 4, 3, 2, groups=2), IMAGE),
    "OrthoConv2d zeros": (lambda: lnn.OrthoConv2d(6, 8, 2, padding_mode="zeros"), IMAGE),
    "OrthoConvTranspose2d": (lambda: lnn.OrthoConvTranspose2d(6, 2, 3, 2), IMAGE),
    "OrthoConvTranspose2d zeros": (
        lambda: lnn.OrthoConvTranspose2d(6, 4, 2, 2, padding_mode="zeros"),
        IMAGE,
    ),
    "FrobeniusLinear": (lambda: lnn.FrobeniusLinear(6, 4), VECTOR),
    "FrobeniusLinear whole": (lambda: lnn.FrobeniusLinear(6, 4, disjoint_neurons=False), VECTOR),
    "MaxMin": (lnn.MaxMin, IMAGE),
    "GroupSort": (lambda: lnn.GroupSort(3), IMAGE),
    "GroupSort2": (lambda: lnn.GroupSort2(k_coef_lip=0.5), IMAGE),
    "FullSort": (lnn.FullSort, VECTOR),
    "HouseHolder": (lambda: lnn.HouseHolder(6), IMAGE),
    "LPReLU": (lambda: lnn.LPReLU(k_coef_lip=0.5), IMAGE),
    "InvertibleDownSampling": (lambda: lnn.InvertibleDownSampling(2), IMAGE),
    "InvertibleUpSampling": (lambda: lnn.InvertibleUpSampling(2), (8, 8, 8)),
    "ScaledAdaptiveAvgPool2d": (lambda: lnn.ScaledAdaptiveAvgPool2d((1, 1)), IMAGE),
    "ScaledAdaptativeL2NormPool2d": (lnn.ScaledAdaptativeL2NormPool2d, IMAGE),
    "ScaledAvgPool2d": (lambda: lnn.ScaledAvgPool2d(2), IMAGE),
    "ScaledAvgPool2d oblong": (lambda: lnn.ScaledAvgPool2d((3, 2), k_coef_lip=2.0), IMAGE),
    "ScaledAvgPool2d ceil": (lambda: lnn.ScaledAvgPool2d(3, ceil_mode=True), IMAGE),
    "ScaledL2NormPool2d": (lambda: lnn.ScaledL2NormPool2d(2), IMAGE),
    "ScaledL2NormPool2d ceil": (lambda: lnn.ScaledL2NormPool2d((3, 2), ceil_mode=True), IMAGE),
    "BatchCentering": (lambda: lnn.BatchCentering(6), IMAGE),
    "LayerCentering": (lambda: lnn.LayerCentering(6), IMAGE),
    "LipResidual": (_Residual, VECTOR),
    "Sequential": (
        lambda: lnn.Sequential(lnn.SpectralLinear(6, 4), lnn.FullSort(), k_coef_lip=2.0),
        VECTOR,
    ),
}


def entered(kind: type[Any]) -> bool:
    """Whether a layer of that type, and not of a subclass of it, is in the table."""
    # A layer with a computed weight has a class made from its own.
    modules = (module for make, _ in LAYERS.values() for module in make().modules())
    return any(kind in type(module).__mro__[:2] for module in modules)


def types_of_layers() -> list[type[Any]]:
    """The layers that lipfuse.nn offers."""
    offered = [getattr(lnn, name) for name in lnn.__all__]
    return [
        kind
        for kind in offered
        if isinstance(kind, type)
        and issubclass(kind, lnn.LipschitzModule)
        and not inspect.isabstract(kind)
    ]


class Together(nn.Module):
    """All layers side by side, each with its own input: one graph shows them all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for make, _ in LAYERS.values())
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def inputs(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """A batch of ``count`` for each layer."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *shape, generator=generator) for _, shape in LAYERS.values())


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    """Layer by layer, so that the message names the one that differs."""
    for name, a, b in zip(LAYERS, found, expected, strict=True):
        assert a.shape == b.shape, name
        assert torch.allclose(a, b, atol=tolerance), name
