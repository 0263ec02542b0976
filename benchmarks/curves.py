"""Training curves beside deel-torchlip's: ``python -m benchmarks.curves [--quick] [--output DIR]``.

The demo's network is built from deel-torchlip's layers and from ours. For every seed both start
from the same parameters, see the same batches in the same order, and are trained by the demo's own
loop. They are not the same computation: theirs stops Björck's iteration early and drops a part of
its gradient, so that the two drift apart. What has to agree is where they end: the exit status is 1
if the accuracies on held-out digits differ by more than 0.5 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks import peers, runner
from lipfuse.demo.data import Digits, load_digits
from lipfuse.demo.model import build_constrained
from lipfuse.demo.settings import Settings
from lipfuse.demo.training import History, train

ALLOWED = 0.005
NAMES = ("deel-torchlip", "lipfuse")
COLOURS = ("#D55E00", "#0072B2")


@dataclass(frozen=True)
class Outcome:
    """One seed: the curves of both, in the order of NAMES."""

    seed: int
    histories: tuple[History, History]

    @property
    def difference(self) -> float:
        """Of the accuracies at the end, ours less theirs."""
        theirs, ours = self.histories
        return ours.test_accuracy[-1] - theirs.test_accuracy[-1]


def pair(torchlip: ModuleType, settings: Settings) -> tuple[nn.Module, nn.Module]:
    """The demo's network from their layers and from ours, with equal parameters."""
    ours = build_constrained(settings.width, settings.depth)
    layers: list[nn.Module] = []
    for layer in ours:
        if isinstance(layer, nn.Linear):
            layers.append(torchlip.SpectralLinear(layer.in_features, layer.out_features))
        else:
            kind: Any = getattr(torchlip, type(layer).__name__, type(layer))
            layers.append(kind())
    theirs = torchlip.Sequential(*layers)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
    return theirs, ours


def compare(torchlip: ModuleType, digits: Digits, settings: Settings) -> Outcome:
    """Trains both from the same seed."""
    torch.manual_seed(settings.seed)
    histories = []
    for model in pair(torchlip, settings):
        torch.manual_seed(settings.seed)
        histories.append(train(model, digits, settings))
    return Outcome(settings.seed, (histories[0], histories[1]))


def plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """Held-out accuracy and training loss by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for i, outcome in enumerate(outcomes):
        for name, colour, history in zip(NAMES, COLOURS, outcome.histories):
            style: dict[str, Any] = {"color": colour, "linestyle": ("-", "--", ":", "-.")[i % 4]}
            epochs = range(1, len(history.loss) + 1)
            label = f"{name}, seed {outcome.seed}: {history.test_accuracy[-1]:.1%}"
            left.plot(epochs, [100 * a for a in history.test_accuracy], label=label, **style)
            right.plot(epochs, history.loss, **style)
    worst = max(abs(o.difference) for o in outcomes)
    left.set(title=f"Held-out digits: at the end {100 * worst:.1f} % apart at most")
    last = [h.test_accuracy[len(h.loss) // 6] for o in outcomes for h in o.histories]
    left.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(100 * min(last) - 2, 100))
    left.legend(loc="lower right", frameon=False)
    right.set(title="Training loss", xlabel="epoch", ylabel="loss", ylim=(0, None))
    for axes in (left, right):
        axes.grid(color="#DDDDDD")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main(argv: Sequence[str] | None = None) -> int:
    """Compares and prints.

    Args:
        argv: the command line's arguments; those of the process if not given.

    Returns:
        The exit status: 1 if the ends differ by too much, or deel-torchlip is not installed.
    """
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.curves",
        description="Training curves of the demo's network from deel-torchlip's layers and ours.",
    )
    p.add_argument("--seeds", type=int, default=2, metavar="N", help="so many (default: 2)")
    p.add_argument("--epochs", type=int, default=Settings.epochs, metavar="N", help="of each")
    p.add_argument("--quick", action="store_true", help="a small network, few epochs, one seed")
    p.add_argument("--output", type=Path, metavar="DIR", help="write the plot and a record there")
    arguments = p.parse_args(argv)
    if arguments.seeds < 1 or arguments.epochs < 1:
        p.error("--seeds and --epochs must be positive")
    torchlip, reason = peers.deel()
    if torchlip is None:
        print(f"deel-torchlip: {reason}")
        return 1
    settings = replace(Settings(), epochs=arguments.epochs)
    seeds = range(arguments.seeds)
    if arguments.quick:
        settings, seeds = replace(settings, epochs=8, width=64, depth=2), range(1)
    print(runner.header(runner.machine(), runner.versions()))
    digits = load_digits()
    outcomes = [compare(torchlip, digits, replace(settings, seed=seed)) for seed in seeds]
    for outcome in outcomes:
        print(f"\nseed {outcome.seed}, {settings.epochs} epochs")
        for name, history in zip(NAMES, outcome.histories):
            print(
                f"  {name:<14} held out {history.test_accuracy[-1]:.1%}, certified at 0.5 "
                f"{history.test_certified[-1]:.1%}, loss {history.loss[-1]:.4f}, "
                f"{history.seconds:.1f} s"
            )
        print(f"  difference {100 * outcome.difference:+.1f} %, allowed {100 * ALLOWED:.1f} %")
    if arguments.output:
        plot(outcomes, arguments.output / "curves.png")
        record = {"versions": runner.versions(), "outcomes": [asdict(o) for o in outcomes]}
        text = json.dumps(record, indent=1)
        (arguments.output / "curves.json").write_text(text + "\n", encoding="utf-8")
        print(f"\nwritten to {arguments.output}")
    return int(any(abs(o.difference) > ALLOWED + 1e-9 for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
