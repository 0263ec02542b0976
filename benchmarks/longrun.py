"""A long training at a high learning rate: ``python -m benchmarks.longrun [--steps N] [--lr LR]``.

Layers of every kind and method train towards targets out of reach, so that their parameters wander
far and never settle. Every so often each layer's exact norm is taken: the largest singular value,
in float64, of the matrix that it produces column by column, in training and in evaluation. The exit
status is 1 if one exceeds its promise, if anything is not finite, or if memory grows.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipfuse.nn as lnn

TESTS = Path(__file__).resolve().parent.parent / "tests"
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))

import tools  # noqa: E402, what judges must not be ours, and is with the tests

# How far above its constant a layer may be in float32, in training and in evaluation.
_LIMIT = 1e-5
# MiB that the peak of memory may grow once a tenth of the steps is done.
_GROWTH = 8.0

_ROW, _IMAGE = (12,), (3, 6, 6)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "SpectralLinear": (lambda: lnn.SpectralLinear(12, 12), _ROW),
    "SpectralLinear, k = 3": (lambda: lnn.SpectralLinear(12, 20, k_coef_lip=3.0), _ROW),
    "SpectralLinear, Björck": (lambda: lnn.SpectralLinear(12, 9, method="bjorck"), _ROW),
    "SpectralLinear, spectral only": (lambda: lnn.SpectralLinear(12, 12, eps_bjorck=None), _ROW),
    "FrobeniusLinear, whole": (lambda: lnn.FrobeniusLinear(12, 4, disjoint_neurons=False), _ROW),
    "SpectralConv2d": (lambda: lnn.SpectralConv2d(3, 4, 3, padding=1), _IMAGE),
    "SpectralConv2d, stride, groups": (
        lambda: lnn.SpectralConv2d(3, 6, 3, stride=2, padding=1, groups=3, method="bjorck"),
        _IMAGE,
    ),
    "SpectralConv2d, own norm": (
        lambda: lnn.SpectralConv2d(3, 4, 3, padding=1, normalization="operator"),
        _IMAGE,
    ),
    "SpectralConvTranspose2d": (lambda: lnn.SpectralConvTranspose2d(3, 2, 4, stride=2), _IMAGE),
    "OrthoConv2d": (lambda: lnn.OrthoConv2d(3, 4, 3), _IMAGE),
}


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        steps: that were made.
        worst: by layer and mode, the largest norm over the constant, less 1.
        not_finite: steps with a loss or a parameter that is not finite.
        growth: of the peak of memory after a tenth of the steps, in MiB.
        largest: of the parameters at the end: how far they have wandered.
    """

    steps: int = 0
    worst: dict[tuple[str, bool], float] = field(default_factory=dict)
    not_finite: int = 0
    growth: float = 0.0
    largest: float = 0.0

    @property
    def exceeded(self) -> list[str]:
        """Layers that did not keep their promise. A comparison with NaN is false."""
        return sorted({name for (name, _), excess in self.worst.items() if not excess <= _LIMIT})

    @property
    def failed(self) -> bool:
        """Whether anything must not have happened."""
        return bool(self.exceeded or self.not_finite or self.growth > _GROWTH)

    def report(self) -> str:
        """A line for each layer, and what they come to."""
        lines = [f"{'norm / k - 1, the worst':<32}{'training':>12}{'evaluation':>12}"]
        for name in dict.fromkeys(name for name, _ in self.worst):
            note = "  EXCEEDS" if name in self.exceeded else ""
            found = [self.worst[name, mode] for mode in (True, False)]
            lines.append(f"{name:<32}{found[0]:>12.1e}{found[1]:>12.1e}{note}")
        lines.append(
            f"{self.steps} steps, parameters up to {self.largest:.3g}; layers above their "
            f"constant: {len(self.exceeded)}; steps that were not finite: {self.not_finite}; "
            f"memory grew by {self.growth:.1f} MiB"
        )
        return "\n".join(lines)


def _peak() -> float:
    """The most memory that this process has had, in MiB; macOS counts bytes, Linux KiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _judge(name: str, layer: Any, shape: tuple[int, ...], outcome: Outcome) -> None:
    for mode in (True, False, True):  # it is left in training
        layer.train(mode)
        matrix = tools.dense(layer, shape)
        finite = bool(matrix.isfinite().all())
        norm = tools.largest_singular_value(matrix) if finite else math.nan
        excess = norm / layer.k_coef_lip - 1
        before = outcome.worst.get((name, mode), -1.0)
        # NaN stays.
        outcome.worst[name, mode] = excess if not excess <= before else before


def run(steps: int, lr: float, every: int, seed: int = 0) -> Outcome:
    """Trains, and judges every so many steps."""
    torch.manual_seed(seed)
    layers = {name: (make().train(), shape) for name, (make, shape) in LAYERS.items()}
    parameters = [p for layer, _ in layers.values() for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    outcome = Outcome()
    settled = 0.0
    for step in range(steps):
        loss: Tensor = torch.zeros(())
        for layer, shape in layers.values():
            out = layer(torch.randn(4, *shape))
            # New targets all the time: there is nothing to converge to.
            loss = loss + (out - 10.0 * torch.randn_like(out)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        outcome.steps += 1
        outcome.not_finite += not bool(loss.isfinite())
        if step % every == 0 or step == steps - 1:
            for name, (layer, shape) in layers.items():
                _judge(name, layer, shape, outcome)
            if step <= steps // 10:
                settled = _peak()
    outcome.growth = _peak() - settled
    outcome.largest = max(float(p.detach().abs().max()) for p in parameters)
    outcome.not_finite += not math.isfinite(outcome.largest)
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.longrun",
        description="Layers of every kind through a long training at a high learning rate.",
    )
    parser.add_argument("--steps", type=int, default=20_000, help="default: 20000")
    parser.add_argument("--lr", type=float, default=0.3, help="of Adam; default: 0.3")
    parser.add_argument("--every", type=int, default=200, help="steps from judgement to judgement")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    started = time.perf_counter()
    outcome = run(options.steps, options.lr, options.every, options.seed)
    print(outcome.report())
    print(f"Adam at {options.lr:g}, {time.perf_counter() - started:.0f} s")
    return int(outcome.failed)


if __name__ == "__main__":
    sys.exit(main())
