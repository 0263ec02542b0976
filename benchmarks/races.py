"""Reading the record of benchmarks.time_to_accuracy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.race_networks import NAMES, OURS
from benchmarks.records import Record

SCHEMA = 1


def load(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        ValueError: if the file is something else.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "runs" not in found or found.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no record of python -m benchmarks.time_to_accuracy")
    return found


@dataclass(frozen=True)
class Goal:
    """A certified accuracy, and by library the seconds until each seed reached it."""

    network: str
    level: float
    seconds: dict[str, list[float]]
    """Empty where a seed did not get there."""
    epochs: dict[str, list[int]]

    def ratios(self, name: str) -> list[float]:
        """Of a library to lipfuse, seed by seed; empty where one of the two did not get there."""
        pairs = zip(self.seconds[name], self.seconds[OURS], strict=False)
        return [theirs / ours for theirs, ours in pairs]


def networks(record: Record) -> list[str]:
    """Those that were raced."""
    there = {run["network"] for run in record["runs"]}
    return [network for network in record["settings"]["levels"] if network in there]


def goals(record: Record) -> list[Goal]:
    """All levels of all networks."""
    found = []
    for network in networks(record):
        runs = [run for run in record["runs"] if run["network"] == network]
        for i, level in enumerate(record["settings"]["levels"][network]):
            seconds: dict[str, list[float]] = {}
            epochs: dict[str, list[int]] = {}
            for name in NAMES:
                ends = [_end(run, name, i) for run in runs]
                reached = [end for end in ends if end is not None and end["seconds"] is not None]
                everyone = reached if len(reached) == len(runs) else []
                seconds[name] = [end["seconds"] for end in everyone]
                epochs[name] = [end["epoch"] for end in everyone]
            found.append(Goal(network, level, seconds, epochs))
    return found


def _end(run: Record, name: str, level: int) -> dict[str, Any] | None:
    for found in run["contenders"]:
        if found["name"] == name and found["status"] == "measured":
            end: dict[str, Any] = found["reached"][level]
            return end
    return None
