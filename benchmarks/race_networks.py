"""The networks of benchmarks.time_to_accuracy, from the layers of each library."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

import lipfuse
from benchmarks import peers
from lipfuse.demo.data import CLASSES, SIDE

OURS, DEEL, ORTHOGONIUM = "lipfuse", "deel-torchlip", "orthogonium"
NAMES = (OURS, DEEL, ORTHOGONIUM)
DENSE, CONVOLUTIONAL = "dense", "convolutional"


class Size(Protocol):
    """How large the networks are."""

    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def channels(self) -> int: ...


@dataclass(frozen=True)
class Layers:
    """What a contender builds its networks from."""

    linear: Callable[[int, int], nn.Module]
    conv: Callable[..., nn.Module]
    activation: Callable[[], nn.Module]


def layers_of(name: str) -> tuple[Layers | None, str]:
    """Of a contender, or None and why there are none.

    orthogonium has no GroupSort2 of neighbours. It gets ours, the quickest, so that all networks
    compute the same function of the same weights.
    """
    ours = lipfuse.nn
    if name == OURS:
        return Layers(ours.SpectralLinear, ours.OrthoConv2d, ours.GroupSort2), ""
    if name == DEEL:
        library, reason = peers.deel()
        if library is None:
            return None, reason
        return Layers(library.SpectralLinear, library.SpectralConv2d, library.GroupSort2), ""
    linear, reason = peers.orthogonium()
    aoc, reason_of_aoc = peers.find("orthogonium.layers.conv.AOC")
    if linear is None or aoc is None:
        return None, reason or reason_of_aoc
    conv = functools.partial(aoc.AdaptiveOrthoConv2d, padding_mode="zeros")
    return Layers(linear.OrthoLinear, conv, ours.GroupSort2), ""


def build(network: str, layers: Layers, size: Size, seed: int) -> nn.Sequential:
    """The demo's network, or a convolutional one. Biases are zero, dense weights orthogonal."""
    torch.manual_seed(seed)
    found: list[nn.Module] = []
    sizes = [SIDE * SIDE, *[size.width] * size.depth, CLASSES]
    if network == CONVOLUTIONAL:
        c = size.channels
        for inputs, outputs, kernel, stride in (
            (1, c, 5, 2),
            (c, 2 * c, 3, 2),
            (2 * c, 2 * c, 3, 1),
        ):
            layer = layers.conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
            found += [layer, layers.activation()]
        sizes = [2 * c * (SIDE // 4) ** 2, size.width // 2, CLASSES]
    found.append(nn.Flatten())
    for inputs, outputs in itertools.pairwise(sizes):
        found += [layers.linear(inputs, outputs), layers.activation()]
    model = nn.Sequential(*found[:-1]).train()
    # Of its own: how much the layers drew from torch's does not matter.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                chain: Any = layer.parametrizations
                nn.init.orthogonal_(chain.weight.original, generator=generator)
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                layer.bias.zero_()
        # deel-torchlip evaluates the weights of the last forward in training mode.
        model(torch.zeros(1, 1, SIDE, SIDE))
    return model


def plain(model: nn.Sequential) -> nn.Sequential:
    """The same map as a network of plain layers, with the weights of evaluation mode."""
    model.eval()
    found: list[nn.Module] = []
    for module in model:
        if isinstance(module, nn.Linear | nn.Conv2d):
            layer: Any
            if isinstance(module, nn.Linear):
                layer = nn.Linear(module.in_features, module.out_features)
            else:
                layer = nn.Conv2d(
                    module.in_channels,
                    module.out_channels,
                    module.kernel_size,  # type: ignore[arg-type]
                    module.stride,  # type: ignore[arg-type]
                    module.padding,  # type: ignore[arg-type]
                )
            with torch.no_grad():
                layer.weight.copy_(module.weight)
                layer.bias.copy_(module.bias)
            found.append(layer)
        else:
            found.append(
                nn.Flatten() if isinstance(module, nn.Flatten) else lipfuse.nn.GroupSort2()
            )
    model.train()
    return nn.Sequential(*found)
