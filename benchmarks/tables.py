"""The tables of the documentation, in markdown: ``python -m benchmarks.tables [NAME ...]``.

`benchmarks.report` writes them into pages.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
from benchmarks.records import (
    AVX2,
    HALF,
    OTHER,
    RACES,
    ROOT,
    RUN,
    Case,
    Record,
    cases,
    load,
    processor,
)
from benchmarks.runner import show_bytes, show_time

DASH = "–"
MAPS = tuple(weights.map_name(m) for m in weights.MAPS)
PEERS = ("deel-torchlip", "orthogonium", "torch ", "compiled")
"""How the names of those begin who do the same as lipfuse."""
HEADLINE = ("64x64", "256x256", "512x512", "128x1152")
"""The weights that the README shows."""


@dataclass(frozen=True)
class Sources:
    """What tables and pictures are made from; pictures of the first two alone."""

    run_path: Path
    races_path: Path
    other_path: Path
    avx2_path: Path
    half_path: Path
    run: Record
    races: Record
    other: Record
    avx2: Record
    half: Record

    @staticmethod
    def of(
        run: Path = RUN,
        race: Path = RACES,
        other: Path = OTHER,
        avx2: Path = AVX2,
        half: Path = HALF,
    ) -> Sources:
        """The five records."""
        loaded = load(run), races.load(race), load(other), load(avx2), load(half)
        return Sources(run, race, other, avx2, half, *loaded)

    def with_avx2(self) -> Sources:
        """The run on the processor that has no more than AVX2 in place of the first."""
        return replace(self, run_path=self.avx2_path, run=self.avx2)

    def with_half(self) -> Sources:
        """The run on the processor that takes AVX-512 in two halves in place of the first."""
        return replace(self, run_path=self.half_path, run=self.half)

    def pairs(self, benchmark: str) -> list[tuple[Case, Case | None]]:
        """The contests of the run, each with that of the other processor if it has it."""
        there = {case.name: case for case in cases(self.other, benchmark)}
        return [(case, there.get(case.name)) for case in cases(self.run, benchmark)]

    @property
    def processors(self) -> str:
        """What a cell of :func:`_both` has, in its order."""
        return f"{processor(self.run)} / {processor(self.other)}"


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


def _ratio(case: Case, name: str | None, ours: str) -> str:
    median, reference = None if name is None else case.median(name), case.median(ours)
    return DASH if median is None or not reference else times(median / reference)


def _both(pair: tuple[Case, Case | None], cell: Callable[[Case], str]) -> str:
    """A cell of two processors; one dash if neither has it."""
    found = [DASH if case is None else cell(case) for case in pair]
    return DASH if set(found) == {DASH} else " / ".join(found)


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


def _origin(path: Path, record: Record) -> str:
    """Which record, of which machine, with which versions."""
    machine = record["machine"]
    kind = "a quick run" if record["settings"]["quick"] else "a run"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    generation = f" ({machine['generation']})" if machine.get("generation") else ""
    return (
        f"From `{relative(path)}`, {kind} of {record['seconds']:.0f} s that finished "
        f"{record['finished']}: {machine['cpu']}{generation}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['instruction_set']}; {versions}."
    )


def source(s: Sources) -> str:
    """Where the tables of one processor come from."""
    return (
        f"{_origin(s.run_path, s.run)} Time to accuracy from `{relative(s.races_path)}`: "
        f"{s.races['machine']['cpu']}, {s.races['settings']['threads']} thread."
    )


def other_source(s: Sources) -> str:
    """Where the figures of another processor come from."""
    return f"{_origin(s.other_path, s.other)} {_met(s.other)}"


def avx2_source(s: Sources) -> str:
    """Where the figures of the processor without AVX-512 come from."""
    return f"{_origin(s.avx2_path, s.avx2)} {_met(s.avx2)}"


def half_source(s: Sources) -> str:
    """Where the figures of the processor that takes AVX-512 in two halves come from."""
    return f"{_origin(s.half_path, s.half)} {_met(s.half)}"


def relative(path: Path) -> str:
    """A path as the documentation writes it: from the root of the repository."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def headline(s: Sources) -> str:
    """What the README shows: a row a question, ratios to lipfuse, on both processors."""
    rows = []

    def row(
        what: str,
        pair: tuple[Case, Case | None],
        ours: str,
        others: Sequence[str | tuple[str, ...] | None],
        show: Callable[[float], str] = show_time,
    ) -> None:
        def own(case: Case) -> str:
            median = case.median(ours)
            return DASH if median is None else show(median)

        rows.append([what, _both(pair, own)] + [_both(pair, _quickest(o, ours)) for o in others])

    for pair in s.pairs("weights"):
        if (name := pair[0].name) in HEADLINE:
            others = (weights.DEEL, weights.ORTHOGONIUM, MAPS, None)
            row(f"an orthogonal weight, {name}", pair, weights.OURS, others)
    for pair in s.pairs("steps"):
        beside = (steps.DEEL, steps.ORTHOGONIUM, None, steps.PLAIN)
        row(f"a training step, {pair[0].name}", pair, steps.FUSED, beside)
    for pair in s.pairs("memory"):
        what = f"peak memory, an orthogonal weight, {pair[0].name}"
        peers = (memory.DEEL, memory.ORTHOGONIUM, None, None)
        row(what, pair, memory.OURS, peers, show_bytes)
    for goal in races.goals(s.races):
        if all(goal.seconds.values()):
            what = f"training to {goal.level:.0%} certified accuracy, {goal.network} network"
            rows.append(
                [what, show_time(statistics.mean(goal.seconds[OURS]))]
                + [_times(goal.ratios(name)) for name in (DEEL, ORTHOGONIUM)]
                + [DASH, DASH]
            )
    columns = ["lipfuse", "deel-torchlip", "orthogonium", "torch, best map", "unconstrained"]
    return markdown([s.processors, *columns], rows)


def _quickest(names: str | tuple[str, ...] | None, ours: str) -> Callable[[Case], str]:
    """The ratio to ours of the quickest of these in a case; a dash for None."""
    found = (names,) if isinstance(names, str) else names or ()
    return lambda case: _ratio(case, case.quickest(*found), ours)


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
    return _ahead(s.run)


def other_peers_ahead(s: Sources) -> str:
    """The same on another processor."""
    return _ahead(s.other)


def _ahead(record: Record) -> str:
    rows = []
    for found in record["benchmarks"]:
        for case in cases(record, found["name"]):
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
    if not rows:
        return _met(s.run)
    return _met(s.run) + "\n\n" + markdown(["", "ratio", "wanted", "measured"], rows, left=2)


def _met(record: Record) -> str:
    judged = [target["met"] for target in record["targets"] if target["met"] is not None]
    return f"{sum(judged)} of {len(judged)} targets were met."


class Beside(NamedTuple):
    """What of a benchmark is shown for both processors."""

    benchmark: str
    cases: str
    """How the names of those cases match that are shown, from end to end."""
    title: str
    """Of a row; what the pattern's group matched goes in."""
    ours: str
    deel: str | None
    other: str
    """In words, who else is there."""
    others: tuple[str, ...]


BESIDE = (
    Beside(
        *("weights", "(.*)", "an orthogonal weight, {}"),
        *(weights.OURS, weights.DEEL, "torch, best map", MAPS),
    ),
    Beside(
        *("spectral", "(.*)", "spectral norm, {}"),
        *(spectral.OURS, None, "torch", (spectral.TORCH,)),
    ),
    Beside(
        *("steps", "(.*)", "a training step, {}"),
        *(steps.FUSED, steps.DEEL, "unconstrained", (steps.PLAIN,)),
    ),
    Beside(
        *("fuse", "(.*): weights", "lipfuse.fuse, {}"),
        *(fuse.FUSED, fuse.DEEL, "one by one", (fuse.EACH,)),
    ),
    Beside(
        *("activations", "activations, (.*)", "GroupSort2, {}"),
        *("lipfuse GroupSort2", "deel-torchlip GroupSort2", "ReLU", ("ReLU",)),
    ),
)


def processors(s: Sources) -> str:
    """The main contests on both processors."""
    rows = []
    for b in BESIDE:
        for pair in s.pairs(b.benchmark):
            if found := re.fullmatch(b.cases, pair[0].name):
                own = _both(pair, lambda case, ours=b.ours: _time(case, ours))
                ratios = [_both(pair, _quickest(names, b.ours)) for names in (b.deel, b.others)]
                rows.append([b.title.format(found[1]), own, ratios[0], b.other, ratios[1]])
    return markdown([s.processors, "lipfuse", "deel-torchlip", "beside", "takes"], rows)


def rates(s: Sources) -> str:
    """How quick products are on both processors, and contenders' times as numbers of them."""
    rows = []
    for pair in s.pairs("weights"):
        m, n = pair[0].record["shape"]
        if m != n or pair[0].record.get("spectrum") != "near":
            continue
        row = [pair[0].name]
        for name in (weights.SMALL, weights.OWN):
            found = [None if case is None else case.median(name) for case in pair]
            cells = [DASH if t is None else f"{2e-9 * n**3 / t:.0f}" for t in found]
            grown = f" ({times(found[0] / found[1])})" if found[0] and found[1] else ""
            row.append(" / ".join(cells) + grown)
        for names in ((weights.OURS,), (weights.DEEL,), MAPS):
            row.append(_both(pair, lambda case, names=names: _in_products(case, names)))
        rows.append(row)
    columns = [f"{name}, GFLOP/s" for name in ("torch.mm", "native product, 1 thread")]
    columns += [f"{name}, in torch.mm" for name in ("lipfuse", "deel-torchlip", "torch, best map")]
    return markdown([s.processors, *columns], rows)


def _in_products(case: Case, names: tuple[str, ...]) -> str:
    """The time of the quickest of these as a number of torch's products in the same round."""
    name, one = case.quickest(*names), case.median(weights.SMALL)
    median = None if name is None else case.median(name)
    return DASH if median is None or not one else f"{median / one:.3g}"


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
    "other source": other_source,
    "processors": processors,
    "rates": rates,
    "other peers ahead": other_peers_ahead,
    "half source": half_source,
    "half weights": lambda s: one_weight(s.with_half()),
    "half peers ahead": lambda s: peers_ahead(s.with_half()),
    "narrow source": avx2_source,
    "narrow weights": lambda s: one_weight(s.with_avx2()),
    "narrow spectral": lambda s: spectral_norm(s.with_avx2()),
    "narrow steps": lambda s: whole_steps(s.with_avx2()),
    "narrow peers ahead": lambda s: peers_ahead(s.with_avx2()),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints tables; 0."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.tables")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}; default: all")
    p.add_argument("--run", type=Path, default=RUN, metavar="PATH", help="another record")
    p.add_argument("--races", type=Path, default=RACES, metavar="PATH", help="of time_to_accuracy")
    p.add_argument("--other", type=Path, default=OTHER, metavar="PATH", help="of another processor")
    p.add_argument("--avx2", type=Path, default=AVX2, metavar="PATH", help="of one without AVX-512")
    p.add_argument("--half", type=Path, default=HALF, metavar="PATH", help="of one with half of it")
    a = p.parse_args(argv)
    unknown = [name for name in a.names if name not in TABLES]
    if unknown:
        p.error(f"there is no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    sources = Sources.of(a.run, a.races, a.other, a.avx2, a.half)
    for name in a.names or TABLES:
        print(f"{name}\n\n{TABLES[name](sources)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
