"""How long each library trains until the same certified accuracy is reached.

The task is the demo's: its digits, distortions, loss and schedule, with its own network and a
convolutional one. All contenders see the same batches, and start from the same weights where their
parametrizations can: of dense layers always; an orthogonal convolution's kernel is a product of
factors that each library writes in its own way, so there everybody draws its own from one seed.
deel-torchlip's convolutions are not orthogonal and start as it draws them.

The contenders take turns, an epoch each, and only what training needs is on the clock: distorting
the batch, forward, loss, backward and Adam. After every epoch, off the clock, the weights that the
library gives in evaluation mode are put into a plain network, whose Lipschitz bound
`lipfuse.certify` computes: one judge for all.

    python -m benchmarks.time_to_accuracy                        # what is missing of three seeds
    python -m benchmarks.time_to_accuracy --network dense --seed 1    # about a minute and a half

Finished races are kept in the record and not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lipfuse
from benchmarks import runner
from benchmarks.race_networks import (
    CONVOLUTIONAL,
    DENSE,
    NAMES,
    OURS,
    build,
    layers_of,
    plain,
)
from benchmarks.races import SCHEMA, load
from benchmarks.records import RACES
from lipfuse.demo.data import Digits, augment, load_digits
from lipfuse.demo.settings import Settings as DemoSettings
from lipfuse.demo.training import build_loss, learning_rate_factor

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Settings:
    """Of all races of a record. What is not here is as in the demo."""

    epochs: dict[str, int] = field(default_factory=lambda: {DENSE: 12, CONVOLUTIONAL: 12})
    levels: dict[str, list[float]] = field(
        default_factory=lambda: {DENSE: [0.87], CONVOLUTIONAL: [0.7, 0.84]}
    )
    """Of certified accuracy, by network: the times until they are reached are compared. The second
    is out of reach of convolutions that are not orthogonal, within so many epochs."""
    radius: float = 0.5
    threads: int = 1
    width: int = 256
    depth: int = 3
    channels: int = 16


QUICK = Settings(
    epochs={DENSE: 1, CONVOLUTIONAL: 1},
    levels={DENSE: [0.0], CONVOLUTIONAL: [0.0, 1.0]},
    width=32,
    depth=1,
    channels=8,
)
"""Everything runs, nothing is worth reading."""


def judge(model: nn.Sequential, digits: Digits, radius: float) -> tuple[float, float]:
    """Accuracy, and certified accuracy at the radius, on the digits held out."""
    network = plain(model)
    certificate = lipfuse.certify(network, digits.test_images.shape[1:])
    with torch.no_grad():
        logits = network.double()(digits.test_images.double())
    certified = certificate.radius(logits, digits.test_labels)
    right = logits.argmax(dim=1) == digits.test_labels
    return right.double().mean().item(), (right & (certified > radius)).double().mean().item()


class Racer:
    """One contender of a race: its network, its optimizer and its clock."""

    def __init__(self, name: str, model: nn.Sequential, demo: DemoSettings, digits: Digits) -> None:
        self.name, self.model, self.demo, self.digits = name, model, demo, digits
        count = len(digits.train_labels)
        self.batch = min(demo.batch_size, count)
        self.batches = count // self.batch
        steps = self.batches * demo.epochs
        self.loss_of = build_loss(demo)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=demo.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, steps)
        )
        self.generator = torch.Generator().manual_seed(demo.seed)
        self.seconds: list[float] = []
        self.curve: list[tuple[float, float, float]] = []

    def epoch(self) -> None:
        """Every training digit once, on the clock."""
        images, labels = self.digits.train_images, self.digits.train_labels
        self.model.train()
        order = torch.randperm(len(labels), generator=self.generator)
        for chosen in order[: self.batches * self.batch].split(self.batch):
            start = time.perf_counter()
            logits = self.model(augment(images[chosen], self.generator))
            loss = self.loss_of(logits, labels[chosen])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.seconds.append(time.perf_counter() - start)

    def look(self, radius: float) -> None:
        """Where it stands after so many seconds."""
        accuracy, certified = judge(self.model, self.digits, radius)
        self.curve.append((round(sum(self.seconds), 4), accuracy, certified))

    def record(self, levels: Sequence[float]) -> dict[str, Any]:
        """What the race found of it."""
        reached = []
        for level in levels:
            at = [i for i, (_, _, certified) in enumerate(self.curve) if certified >= level]
            seconds = self.curve[at[0]][0] if at else None
            reached.append({"level": level, "epoch": at[0] if at else None, "seconds": seconds})
        return {
            "name": self.name,
            "status": "measured",
            "step": asdict(runner.summarise(self.seconds)),
            "curve": [list(point) for point in self.curve],
            "reached": reached,
        }


def race(settings: Settings, network: str, seed: int, digits: Digits) -> dict[str, Any]:
    """All contenders, from the same weights, with the same batches, in turn."""
    demo = replace(DemoSettings(), epochs=settings.epochs[network], seed=seed)
    racers, absent = [], []
    for name in NAMES:
        layers, reason = layers_of(name)
        if layers is None:
            absent.append({"name": name, "status": "not measured", "reason": reason})
            continue
        model = build(network, layers, settings, seed)
        if name == OURS:
            lipfuse.fuse(model)
        racers.append(Racer(name, model, demo, digits))
    with torch.no_grad():
        first = [plain(racer.model)(digits.test_images) for racer in racers]
    apart = max((float((logits - first[0]).abs().max()) for logits in first), default=0.0)
    if network == DENSE and apart > 1e-3:
        raise RuntimeError(f"the contenders' logits differ by {apart:.2g} before training")
    for racer in racers:
        racer.look(settings.radius)
    for epoch in range(settings.epochs[network]):
        with runner.no_collection():
            for racer in racers if epoch % 2 == 0 else reversed(racers):
                racer.epoch()
        for racer in racers:
            racer.look(settings.radius)
    return {
        "network": network,
        "seed": seed,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "apart_at_start": apart,
        "contenders": [*[racer.record(settings.levels[network]) for racer in racers], *absent],
    }


def summarise(run: dict[str, Any]) -> str:
    """A race in a few lines."""
    columns, rows = ["", "step", "accuracy", "certified"], []
    for found in run["contenders"]:
        if found["status"] != "measured":
            rows.append([found["name"], found["reason"]])
            continue
        _, accuracy, certified = found["curve"][-1]
        row = [found["name"], runner.show_time(found["step"]["median"])]
        row += [f"{accuracy:.1%}", f"{certified:.1%}"]
        for goal in found["reached"]:
            seconds = goal["seconds"]
            row.append("not reached" if seconds is None else runner.show_time(seconds))
            if len(row) > len(columns):
                columns.append(f"to {goal['level']:.0%}")
        rows.append(row)
    rows = [row + [""] * (len(columns) - len(row)) for row in rows]
    return f"\n{run['network']}, seed {run['seed']}\n{runner.table(columns, rows)}"


def empty_record(settings: Settings) -> dict[str, Any]:
    """A record without runs."""
    about = {key: value for key, value in runner.machine().items() if key != "load_average"}
    return {
        "schema": SCHEMA,
        "command": ["python", "-m", "benchmarks.time_to_accuracy"],
        "machine": about,
        "versions": runner.versions(),
        "settings": asdict(settings),
        "runs": [],
    }


def resume(path: Path, settings: Settings) -> dict[str, Any]:
    """The record at the path, to go on with, or an empty one.

    Raises:
        ValueError: if that record is of another machine, other versions or other settings.
    """
    fresh = empty_record(settings)
    if not path.exists():
        return fresh
    found = load(path)
    for key in ("machine", "versions", "settings"):
        if found[key] != fresh[key]:
            raise ValueError(
                f"{path} has other {key}, {found[key]} instead of {fresh[key]}: "
                "its runs cannot be compared with new ones; remove it, or write elsewhere by --json"
            )
    return found


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_accuracy",
        description="Seconds of training until a certified accuracy is reached, by library.",
    )
    networks = (DENSE, CONVOLUTIONAL)
    p.add_argument("--network", choices=networks, action="append", help="default: both")
    p.add_argument("--seed", type=int, action="append", metavar="N", help="default: 0, 1 and 2")
    p.add_argument("--json", type=Path, default=RACES, metavar="PATH", help="the record")
    p.add_argument("--quick", action="store_true", help="one epoch of small networks")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the races that the record lacks.

    Args:
        argv: the command line's arguments; those of the process if not given.

    Returns:
        0.
    """
    p = parser()
    arguments = p.parse_args(argv)
    settings = QUICK if arguments.quick else Settings()
    if arguments.quick and arguments.json == RACES:
        p.error("--quick needs a --json of its own: its runs are no results")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    try:
        try:
            record = resume(arguments.json, settings)
        except ValueError as error:
            p.error(str(error))
        print(runner.header({**runner.machine(), **record["machine"]}, record["versions"]))
        digits = load_digits()
        races = itertools.product(
            arguments.network or (DENSE, CONVOLUTIONAL), arguments.seed or SEEDS
        )
        for network, seed in races:
            if any((run["network"], run["seed"]) == (network, seed) for run in record["runs"]):
                print(f"\n{network}, seed {seed}: there already")
                continue
            run = race(settings, network, seed, digits)
            record["runs"].append(run)
            record["runs"].sort(key=lambda run: (run["network"], run["seed"]))
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(record, indent=1, ensure_ascii=False)
            arguments.json.write_text(text + "\n", encoding="utf-8")
            print(summarise(run), flush=True)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
