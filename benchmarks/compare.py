"""Whether a run is slower than a former one: ``python -m benchmarks.compare OLD.json NEW.json``.

Two runs never meet the same machine, so seconds are not compared. In every case each run timed its
contenders in turn, and those that are not ours (yardsticks, peers, plain torch) did the same work
both times: the median of their changes is what the machine did, and is taken off ours.
What remains counts as slower beyond the noise, which both runs measured:

- the interquartile ranges of the contender, in both runs;
- how far the others' changes lie apart, which is what two processes differ by for no reason.

They are added as squares, and a small tolerance to them. Memory does not depend on what else the
machine does: no drift is taken off, and all that the others' changed by is noise.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.records import Case, Record, cases, load
from benchmarks.runner import table

TOLERANCE = 0.05
"""What is always forgiven."""


@dataclass(frozen=True)
class Change:
    """Of one contender of ours. Changes are logarithms, noise is relative."""

    benchmark: str
    case: str
    name: str
    own: float
    drift: float
    noise: float

    @property
    def ratio(self) -> float:
        """New time over old, the machine's drift taken off."""
        return math.exp(self.own - self.drift)

    def limit(self, tolerance: float) -> float:
        """The largest ratio that is no slow-down."""
        return 1 + self.noise + tolerance


def incomparable(old: Record, new: Record) -> list[str]:
    """What differs between two runs so that their ratios would not mean anything."""
    found = []
    for key in ("cpu", "threads", "instruction_set"):
        a, b = old["machine"][key], new["machine"][key]
        if a != b:
            found.append(f"{key}: {a} and {b}")
    for name in ("torch", "deel-torchlip", "orthogonium"):
        a, b = old["versions"][name], new["versions"][name]
        if a != b:
            found.append(f"{name}: {a} and {b}")
    if old["settings"]["quick"] != new["settings"]["quick"]:
        found.append("one of them is a quick run")
    return found


def _pairs(old: Record, new: Record) -> Iterator[tuple[str, Case, Case]]:
    """The cases of both runs."""
    names = [found["name"] for found in new["benchmarks"]]
    for name in names:
        before = {case.name: case for case in cases(old, name)}
        for case in cases(new, name):
            if case.name in before:
                yield name, before[case.name], case


def _logs(old: Case, new: Case, ours: bool) -> dict[str, float]:
    """By contender of one kind, the logarithm of new over old."""
    a, b = old.contenders, new.contenders
    return {
        name: math.log(b[name]["median"] / a[name]["median"])
        for name in b
        if name in a and b[name]["ours"] == ours and a[name]["median"] and b[name]["median"]
    }


def _spread(case: Case, name: str) -> float:
    found = case.contenders[name]
    return float((found["q3"] - found["q1"]) / found["median"])


def _scatter(logs: Sequence[float]) -> float:
    """How far the changes of one machine lie apart: the median distance from their median, scaled
    as for a normal distribution."""
    middle = statistics.median(logs)
    return 1.4826 * statistics.median(abs(log - middle) for log in logs)


def changes(old: Record, new: Record) -> list[Change]:
    """Of all contenders of ours that both runs measured."""
    pairs = list(_pairs(old, new))
    timed = [
        list(_logs(before, after, ours=False).values())
        for _, before, after in pairs
        if after.record["unit"] == "s"
    ]
    # A case in which nobody else takes part has the drift of the whole run.
    everyone = [log for logs in timed for log in logs]
    relative = [log - statistics.median(logs) for logs in timed if len(logs) > 1 for log in logs]
    found = []
    for benchmark, before, after in pairs:
        others = list(_logs(before, after, ours=False).values())
        if after.record["unit"] == "s":
            # One or two do not show how far apart they can be: those of all cases do.
            scatter = max((_scatter(logs) for logs in (others, relative) if logs), default=0.0)
            drift = statistics.median(others or everyone or [0.0])
        else:
            scatter = statistics.median(map(abs, others)) if others else 0.0
            drift = 0.0
        for name, own in _logs(before, after, ours=True).items():
            noise = math.hypot(_spread(before, name), _spread(after, name), scatter)
            found.append(Change(benchmark, after.name, name, own, drift, noise))
    return found


def lost(old: Record, new: Record) -> list[str]:
    """Contenders of ours that the old run measured and the new one, in the same case, did not."""
    return [
        f"{benchmark}, {after.name}: {name}"
        for benchmark, before, after in _pairs(old, new)
        for name, contender in before.contenders.items()
        if contender["ours"] and name not in after.contenders
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compares two records.

    Args:
        argv: the command line's arguments; those of the process if not given.

    Returns:
        1 if something is slower or is no longer measured, 2 if the runs cannot be compared, else 0.
    """
    p = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("old", type=Path, help="a record of python -m benchmarks --json")
    p.add_argument("new", type=Path, help="a later one")
    p.add_argument("--tolerance", type=float, default=TOLERANCE, help="default: %(default)s")
    p.add_argument("--all", action="store_true", help="print all ratios")
    p.add_argument("--anyway", action="store_true", help="compare different machines or versions")
    arguments = p.parse_args(argv)
    if not 0 <= arguments.tolerance < math.inf:
        p.error(f"--tolerance must be at least 0, got {arguments.tolerance}")
    try:
        old, new = load(arguments.old), load(arguments.new)
    except (OSError, ValueError) as error:
        p.error(str(error))
    obstacles = incomparable(old, new)
    for obstacle in obstacles:
        print(f"not the same in both runs: {obstacle}")
    if obstacles and not arguments.anyway:
        print("not compared; --anyway compares them all the same")
        return 2
    found = changes(old, new)
    if not found:
        print("the two runs have nothing in common")
        return 2
    slower = [c for c in found if c.ratio > c.limit(arguments.tolerance)]
    shown = found if arguments.all else slower
    if shown:
        rows = [
            [
                f"{c.benchmark}, {c.case}: {c.name}",
                f"{c.ratio:.2f}x",
                f"{c.limit(arguments.tolerance):.2f}x",
                f"{math.exp(c.drift):.2f}x",
            ]
            for c in sorted(shown, key=lambda c: -c.ratio / c.limit(arguments.tolerance))
        ]
        print(table(["", "new / old", "limit", "machine"], rows))
    gone = lost(old, new)
    for line in gone:
        print(f"no longer measured: {line}")
    middle = math.exp(statistics.median(c.own - c.drift for c in found))
    print(f"{len(found)} compared, {len(slower)} slower beyond noise; the median is {middle:.2f}x")
    return 1 if slower or gone else 0


if __name__ == "__main__":
    sys.exit(main())
