"""The tables of the documentation, in markdown: ``python -m benchmarks.tables [NAME ...]``.

`benchmarks.report` writes them into pages.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import (
    accelerate,
    compiled,
    fuse,
    layers,
    memory,
    races,
    scaling,
    spectral,
    steps,
    weights,
)
from benchmarks.race_networks import DEEL, NAMES, ORTHOGONIUM, OURS
from benchmarks.records import RACES, ROOT, RUN, Case, Record, cases, load
from benchmarks.runner import show_bytes, show_time

DASH = "–"
MAPS = tuple(weights.map_name(m) for m in weights.MAPS)
PEERS = ("deel-torchlip", "orthogonium", "torch ", "compiled")
"""How the names of those begin who do the same as lipfuse."""


@dataclass(frozen=True)
class Sources:
    """What tables and pictures are made from."""

    run_path: Path
    races_path: Path
    run: Record
    races: Record

    @staticmethod
    def of(run: Path = RUN, race: Path = RACES) -> Sources:
        """The two records."""
        return Sources(run, race, load(run), races.load(race))


# ---- cells ---------------------------------------------------------------------------------------


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table: the first columns, of words, to the left, the others to the right."""
    # Narrow columns break lines, but not between a number and its unit.
    whole = [
        [re.sub(r"(?<=\d) (us|ms|s|MiB|%)", "\u00a0\\1", cell) for cell in row] for row in rows
    ]
    lines = [columns, ["---"] * left + ["---:"] * (len(columns) - left), *whole]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times(ratio: float) -> str:
    """Two digits of a ratio."""
    return (
        f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x" if ratio >= 0.95 else f"{ratio:.2f}x"
    )


def _time(case: Case, name: str | None) -> str:
    median = None if name is None else case.median(name)
    return DASH if median is None else show_time(median)


def _against(case: Case, name: str | None, ours: str) -> str:
    """Time, and how many times that of ours."""
    median, reference = None if name is None else case.median(name), case.median(ours)
    if median is None or not reference:
        return DASH
    return f"{show_time(median)} ({times(median / reference)})"


def _contest(
    record: Record, benchmark: str, ours: str, others: Mapping[str, tuple[str, ...]]
) -> str:
    """A row for each case: ours, and the quickest of each group of others."""
    rows = [
        [case.name, _time(case, ours)]
        + [_against(case, case.quickest(*names), ours) for names in others.values()]
        for case in cases(record, benchmark)
    ]
    return markdown(["", ours, *others], rows)


def least(s: Sources, case: Case) -> float | None:
    """The floor of one orthogonal weight, at the best rate there is for its products.

    That is torch's, or the native product's if all cores did as well as the one it was timed on.
    """
    floor, own, unit = (
        case.floor(weights.OURS),
        case.median(weights.OWN),
        case.median(weights.SMALL),
    )
    if floor is None or own is None or unit is None:
        return floor
    return floor * min(1.0, own / s.run["machine"]["threads"] / unit)


# ---- the tables ----------------------------------------------------------------------------------


def source(s: Sources) -> str:
    """Which records, of which machine, with which versions."""
    machine, found = s.run["machine"], s.run["versions"]
    kind = "a quick run" if s.run["settings"]["quick"] else "a run"
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    goal = s.races["settings"]
    return (
        f"From `{relative(s.run_path)}`, {kind} of {s.run['seconds']:.0f} s that finished "
        f"{s.run['finished']}: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} "
        f"threads, {machine['instruction_set']}; {versions}. Time to accuracy from "
        f"`{relative(s.races_path)}`: {s.races['machine']['cpu']}, {goal['threads']} thread."
    )


def relative(path: Path) -> str:
    """A path as the documentation writes it: from the root of the repository."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def _pick(record: Record, benchmark: str, name: str) -> list[Case]:
    return [case for case in cases(record, benchmark) if case.name == name]


def headline(s: Sources) -> str:
    """What the README shows: a row a question, ratios to lipfuse."""
    rows = []
    for name in ("64x64", "256x256", "512x512", "128x1152"):
        for case in _pick(s.run, "weights", name):
            rows.append(
                [f"an orthogonal weight, {name}", _time(case, weights.OURS)]
                + [
                    _ratio(case, other, weights.OURS)
                    for other in (weights.DEEL, weights.ORTHOGONIUM, case.quickest(*MAPS), None)
                ]
            )
    for case in cases(s.run, "steps"):
        rows.append(
            [f"a training step, {case.name}", _time(case, steps.FUSED)]
            + [
                _ratio(case, other, steps.FUSED)
                for other in (steps.DEEL, steps.ORTHOGONIUM, None, steps.PLAIN)
            ]
        )
    for case in cases(s.run, "memory"):
        median = case.median(memory.OURS)
        rows.append(
            [
                f"peak memory, an orthogonal weight, {case.name}",
                DASH if median is None else show_bytes(median),
                _ratio(case, memory.DEEL, memory.OURS),
                _ratio(case, memory.ORTHOGONIUM, memory.OURS),
                DASH,
                DASH,
            ]
        )
    for goal in races.goals(s.races):
        if all(goal.seconds.values()):
            what = f"training to {goal.level:.0%} certified accuracy, {goal.network} network"
            rows.append(
                [what, show_time(statistics.mean(goal.seconds[OURS]))]
                + [_times(goal.ratios(name)) for name in (DEEL, ORTHOGONIUM)]
                + [DASH, DASH]
            )
    columns = ["", "lipfuse", "deel-torchlip", "orthogonium", "torch, best map", "unconstrained"]
    return markdown(columns, rows)


def _ratio(case: Case, name: str | None, ours: str) -> str:
    median, reference = None if name is None else case.median(name), case.median(ours)
    return DASH if median is None or not reference else times(median / reference)


def one_weight(s: Sources) -> str:
    """The benchmark `weights`."""
    rows = []
    for case in cases(s.run, "weights"):
        floor = least(s, case)
        made = [name for name in case.contenders if name.startswith(weights.COMPILED)]
        rows.append(
            [case.name, _time(case, weights.OURS), DASH if floor is None else show_time(floor)]
            + [
                _against(case, name, weights.OURS)
                for name in (
                    weights.OURS_TANGENT,
                    weights.DEEL,
                    weights.ORTHOGONIUM,
                    case.quickest(*MAPS),
                    case.quickest(*made),
                )
            ]
        )
    columns = ["", "lipfuse", "floor", "tangent gradient", "deel-torchlip", "orthogonium"]
    return markdown([*columns, "torch, best map", "compiled Björck"], rows)


def spectral_norm(s: Sources) -> str:
    """The benchmark `spectral`."""
    return _contest(s.run, "spectral", spectral.OURS, {"torch": (spectral.TORCH,)})


def one_layer(s: Sources) -> str:
    """The benchmark `layers`."""
    others = {
        "deel-torchlip": (layers.DEEL,),
        "orthogonium": (layers.ORTHOGONIUM, layers.AOC),
        "torch.nn, unconstrained": (layers.PLAIN,),
    }
    return _contest(s.run, "layers", layers.OURS, others)


def many_layers(s: Sources) -> str:
    """The benchmark `fuse`."""
    others = {name: (name,) for name in (fuse.EACH, fuse.FOREACH, fuse.DEEL)}
    return _contest(s.run, "fuse", fuse.FUSED, others)


def elementwise(s: Sources) -> str:
    """The benchmark `activations`: all contenders of all cases."""
    rows = [
        [case.name, name, show_time(found["median"]), times(found["ratio"])]
        for case in cases(s.run, "activations")
        for name, found in case.contenders.items()
        if not found["yardstick"]
    ]
    return markdown(["", "", "time", "to ReLU, AvgPool2d"], rows, left=2)


def whole_steps(s: Sources) -> str:
    """The benchmark `steps`: a column for each network, ratios to the unconstrained one."""
    found = cases(s.run, "steps")
    rows = [
        [name, *[_against(case, name, steps.PLAIN) for case in found]]
        for name in steps.NAMES
        if any(name in case.contenders for case in found)
    ]
    return markdown(["", *[case.name for case in found]], rows)


def growth(s: Sources) -> str:
    """The benchmark `scaling`."""
    others = {name: (name,) for name in scaling.NAMES if name != steps.FUSED}
    return _contest(s.run, "scaling", steps.FUSED, others)


def converted(s: Sources) -> str:
    """The benchmark `accelerate`."""
    others = {name: (name,) for name in (accelerate.AFTER, accelerate.BEFORE)}
    return _contest(s.run, "accelerate", accelerate.FUSED, others)


def by_compiler(s: Sources) -> str:
    """The benchmark `compiled`."""
    names = (compiled.EAGER, compiled.FUSED, compiled.PLAIN, compiled.PLAIN_COMPILED)
    return _contest(s.run, "compiled", compiled.COMPILED, {name: (name,) for name in names})


def peak_memory(s: Sources) -> str:
    """The benchmark `memory`."""
    rows = [
        [case.name, name, show_bytes(found["median"]), f"{found['facts']['x weight']:.1f}"]
        for case in cases(s.run, "memory")
        for name, found in case.contenders.items()
    ]
    return markdown(["", "", "peak", "in weights"], rows, left=2)


def time_to_accuracy(s: Sources) -> str:
    """The races: a row for each library and level."""
    rows = []
    for goal in races.goals(s.races):
        runs = [run for run in s.races["runs"] if run["network"] == goal.network]
        for name in NAMES:
            found = [c for run in runs for c in run["contenders"] if c["name"] == name]
            there = [c for c in found if c["status"] == "measured"]
            if not there:
                rows.append([goal.network, f"{goal.level:.0%}", name, *[DASH] * 5])
                continue
            seconds, epochs = goal.seconds[name], goal.epochs[name]
            last = [c["curve"][-1][2] for c in there]
            rows.append(
                [
                    goal.network,
                    f"{goal.level:.0%}",
                    name,
                    show_time(statistics.median(c["step"]["median"] for c in there)),
                    "not reached" if not epochs else ", ".join(map(str, epochs)),
                    DASH if not seconds else _mean(seconds, " s", 2),
                    "1" if name == OURS else _times(goal.ratios(name)),
                    _mean([100 * value for value in last], " %", 1),
                ]
            )
    columns = ["network", "level", "", "step", "epochs, by seed", "seconds", "to lipfuse"]
    return markdown([*columns, "certified at the end"], rows, left=3)


def _times(ratios: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not ratios:
        return DASH
    apart = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    return _mean(ratios, "x", 1 if apart >= 0.1 else 2)


def _mean(values: Sequence[float], unit: str, digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{unit}"


def peers_ahead(s: Sources) -> str:
    """Every contest in which somebody else took less time or memory than lipfuse."""
    rows = []
    for found in s.run["benchmarks"]:
        for case in cases(s.run, found["name"]):
            there = case.contenders
            for name, contender in there.items():
                if contender["ours"] or contender["yardstick"] or not name.startswith(PEERS):
                    continue
                # Activations stand beside ReLU, but are to be held against our own.
                ours = re.sub("^deel-torchlip", "lipfuse", name)
                if ours == name or ours not in there:
                    ours = str(case.record["compared_to"])
                if ours in there and there[ours]["ours"]:
                    ratio = contender["median"] / there[ours]["median"]
                    if ratio < 1:
                        rows.append(
                            [f"`{found['name']}`, {case.name}", name, ours, f"{ratio:.2f}x"]
                        )
    if not rows:
        return "None in this run."
    return markdown(["", "quicker", "than", "takes"], rows, left=3)


def targets_missed(s: Sources) -> str:
    """What was aimed at and not reached."""
    rows = []
    for target in s.run["targets"]:
        if target["met"] is False:
            words = "at least" if target["at_least"] else "at most"
            bound = target["at_least"] or target["at_most"]
            where = f"`{target['benchmark']}`, {target['case']}"
            rows.append([where, target["text"], f"{words} {bound:g}", f"{target['ratio']:.2f}"])
    judged = sum(target["met"] is not None for target in s.run["targets"])
    counted = f"{judged - len(rows)} of {judged} targets were met."
    if not rows:
        return counted
    return counted + "\n\n" + markdown(["", "ratio", "wanted", "measured"], rows, left=2)


TABLES: dict[str, Callable[[Sources], str]] = {
    "source": source,
    "headline": headline,
    "weights": one_weight,
    "spectral": spectral_norm,
    "layers": one_layer,
    "fuse": many_layers,
    "activations": elementwise,
    "steps": whole_steps,
    "scaling": growth,
    "accelerate": converted,
    "compiled": by_compiler,
    "memory": peak_memory,
    "time to accuracy": time_to_accuracy,
    "peers ahead": peers_ahead,
    "targets missed": targets_missed,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints tables; 0."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.tables")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}; default: all")
    p.add_argument("--run", type=Path, default=RUN, metavar="PATH", help="another record")
    p.add_argument("--races", type=Path, default=RACES, metavar="PATH", help="of time_to_accuracy")
    arguments = p.parse_args(argv)
    unknown = [name for name in arguments.names if name not in TABLES]
    if unknown:
        p.error(f"there is no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    sources = Sources.of(arguments.run, arguments.races)
    for name in arguments.names or TABLES:
        print(f"{name}\n\n{TABLES[name](sources)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
