"""What can be turned: the demo's settings and their command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

__all__ = ["Settings", "parse"]

LossName = Literal["tau-ce", "hkr"]


@dataclass(frozen=True)
class Settings:
    """One run of the demo. The defaults were chosen on a validation part of the training digits."""

    epochs: int = 60
    batch_size: int = 128
    lr: float = 5e-3
    width: int = 256
    depth: int = 3
    loss: LossName = "tau-ce"
    tau: float = 10.0
    alpha: float = 0.99
    min_margin: float = 2.0
    seed: int = 0
    # One: so small a network gains little from more, and loses much where the processor is shared;
    # and the results are the same whatever the number of cores.
    threads: int = 1
    output: Path = field(default_factory=lambda: Path("demo_output"))
    quick: bool = False
    radii: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    # Attacked besides, for the plot alone.
    plot_radii: tuple[float, ...] = (0.75, 1.25, 1.5, 2.0)
    attack_steps: int = 40
    attack_restarts: int = 3
    jacobian_images: int = 200
    timing_steps: int = 40

    def hurried(self) -> Settings:
        """The same at a fraction of the work: everything runs, nothing is worth reading."""
        return replace(
            self,
            quick=True,
            epochs=2,
            width=64,
            depth=2,
            plot_radii=(),
            attack_steps=5,
            attack_restarts=2,
            jacobian_images=10,
            timing_steps=5,
        )


def _number(
    kind: Callable[[str], float], allowed: str, holds: Callable[[float], bool]
) -> Callable[[str], float]:
    """A parser of numbers for argparse, whose message says what is allowed."""

    def parse_number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return parse_number


_COUNT = _number(int, "an integer >= 1", lambda value: value >= 1)
_SEED = _number(int, "an integer in [0, 2**32)", lambda value: 0 <= value < 2**32)
_POSITIVE = _number(float, "a positive number", lambda value: value > 0)
_FRACTION = _number(float, "a number in [0, 1]", lambda value: 0 <= value <= 1)
_EVEN = _number(int, "an even integer >= 2", lambda value: value >= 2 and value % 2 == 0)


def _parser(default: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lipfuse demo",
        description=(
            "Train a 1-Lipschitz classifier on 4,000 real MNIST digits, certify and attack it on "
            "1,000 others, and export it to plain PyTorch. Needs the extras: lipfuse[demo]."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=_COUNT, default=default.epochs, help="passes")
    training.add_argument("--batch-size", type=_COUNT, default=default.batch_size, help="images")
    training.add_argument("--lr", type=_POSITIVE, default=default.lr, help="Adam's peak step")
    network = parser.add_argument_group("network")
    network.add_argument(
        "--width", type=_EVEN, default=default.width, help="neurons of a hidden layer (even)"
    )
    network.add_argument("--depth", type=_COUNT, default=default.depth, help="hidden layers")
    loss = parser.add_argument_group(
        "loss", "A larger margin buys certified accuracy at large radii for clean accuracy."
    )
    loss.add_argument(
        "--loss",
        choices=("tau-ce", "hkr"),
        default=default.loss,
        help="cross-entropy with temperature and margin, or hinge with Kantorovich-Rubinstein",
    )
    loss.add_argument("--tau", type=_POSITIVE, default=default.tau, help="tau-ce's temperature")
    loss.add_argument(
        "--alpha", type=_FRACTION, default=default.alpha, help="hkr's weight of the hinge"
    )
    loss.add_argument(
        "--min-margin", type=_POSITIVE, default=default.min_margin, help="margin to strive for"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=_SEED, default=default.seed, help="of everything random")
    run.add_argument("--threads", type=_COUNT, default=default.threads, help="CPU threads")
    run.add_argument(
        "--output", type=Path, default=default.output, help="folder for plots, results and model"
    )
    run.add_argument(
        "--quick",
        action="store_true",
        default=argparse.SUPPRESS,
        help="two epochs of a small network under a weak attack: to see that everything runs",
    )
    return parser


def parse(argv: Sequence[str] | None) -> Settings:
    """Read the command line.

    Raises:
        SystemExit: after ``--help``, and for an argument that is not allowed.
    """
    base = Settings()
    arguments = _parser(base).parse_args(argv)
    if "quick" in arguments:
        # Only the defaults are hurried: what was asked for stays.
        base = base.hurried()
        arguments = _parser(base).parse_args(argv)
    return replace(base, **vars(arguments))
