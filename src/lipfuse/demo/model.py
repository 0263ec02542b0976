"""The networks of the demo: the Lipschitz one, and what it is timed against."""

from __future__ import annotations

from typing import Literal

from torch import nn

import lipfuse.nn as lnn
from lipfuse.demo.data import CLASSES, SIDE

__all__ = ["Activation", "build_constrained", "build_unconstrained"]

Activation = Literal["groupsort", "relu"]


def build_constrained(width: int, depth: int) -> lnn.Sequential:
    """A 1-Lipschitz classifier: ``depth`` hidden layers of ``width`` neurons and GroupSort2.

    The last layer is constrained as a whole (`SpectralLinear`), so the vector of logits is jointly
    1-Lipschitz, the difference of two logits sqrt(2)-Lipschitz, and margin / sqrt(2) is a certified
    radius.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    size = SIDE * SIDE
    for _ in range(depth):
        layers += [lnn.SpectralLinear(size, width), lnn.GroupSort2()]
        size = width
    layers.append(lnn.SpectralLinear(size, CLASSES))
    return lnn.Sequential(*layers, k_coef_lip=1.0)


def build_unconstrained(width: int, depth: int, activation: Activation) -> nn.Sequential:
    """The same architecture from torch's own linear layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    size = SIDE * SIDE
    for _ in range(depth):
        layers += [
            nn.Linear(size, width),
            lnn.GroupSort2() if activation == "groupsort" else nn.ReLU(),
        ]
        size = width
    layers.append(nn.Linear(size, CLASSES))
    return nn.Sequential(*layers)
