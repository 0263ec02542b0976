"""How a training step's time grows with the batch, and with the number of layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks import steps
from benchmarks.runner import Session
from benchmarks.steps import Kit

QUESTION = "whole training steps by batch size and by depth"

NAMES = (steps.PLAIN, steps.DEEL, steps.ORTHOGONIUM, steps.FUSED)
WIDTH = 256
DEPTH, BATCH = 4, 128
"""Where the other one varies."""
BATCHES, QUICK_BATCHES = (16, 32, 64, 128, 256, 512, 1024), (16, 128, 512)
DEPTHS, QUICK_DEPTHS = (1, 2, 4, 8, 16), (1, 4)


def mlp(depth: int) -> Callable[[Kit], nn.Sequential]:
    """Layers of 256, each with an activation, and a last one of 10."""

    def build(kit: Kit) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [kit.linear(WIDTH, WIDTH), kit.activation()]
        return nn.Sequential(*layers, kit.linear(WIDTH, 10))

    return build


def run(session: Session) -> None:
    """Both ways."""
    quick = session.settings.quick
    points = [("batch", n, DEPTH, n) for n in (QUICK_BATCHES if quick else BATCHES)]
    points += [("depth", n, n, BATCH) for n in (QUICK_DEPTHS if quick else DEPTHS)]
    for over, at, depth, batch in points:
        case = f"{over} {at}"
        if not session.wants(case):
            continue
        torch.manual_seed(0)
        x, labels = torch.randn(batch, WIDTH), torch.randint(10, (batch,))
        session.compare(
            case,
            [steps.contender(name, mlp(depth), x, labels) for name in NAMES],
            ours=steps.FUSED,
            about={"over": over, "at": at, "width": WIDTH, "depth": depth, "batch": batch},
            patience=5.0,
        )
