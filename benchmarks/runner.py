"""What all benchmarks share: timing, statistics, tables, and the record of a run."""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

Item = TypeVar("Item")
Clock = Callable[[], float]
Call = Callable[[], object]


# ---- what is compared ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How much time a run may take, and what it leaves out."""

    threads: int = 1
    quick: bool = False
    thorough: bool = False
    case: str = ""
    """Only cases with this text in their name."""
    budget: float = 3.0
    """Seconds a case, shared evenly by its contenders."""
    least: int = 5
    """Samples of a contender, whatever the budget."""
    most: int = 300
    """Samples of a contender, however quick it is."""
    sample: float = 1e-4
    """Seconds a sample at least: quicker calls are repeated within one."""
    patience: float = 2.0
    """Seconds a call at most: slower contenders are listed, but not measured."""

    @staticmethod
    def of(quick: bool, **changes: Any) -> Settings:
        """The usual settings of a quick or a full run, with changes."""
        usual: dict[str, Any] = {}
        if quick:
            usual = {"quick": True, "budget": 0.4, "least": 3, "most": 50, "patience": 0.15}
        return Settings(**{**usual, **changes})


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Args:
        name: in tables, records and targets.
        call: does the work once; None for a contender that cannot be measured.
        reason: why it cannot: "not installed", for instance.
        facts: evaluated once after the timing: what to know besides the time.
        floor: the least work that its method needs, as (how often, name of the yardstick).
        yardstick: not in the contest, but what floors are counted in.
        ours: lipfuse's. An exception is an error of the run, not only of this contender, and
            `compare.py` holds it against former runs.
        slow_start: the first call does what the others do not: it is no measure of them.
    """

    name: str
    call: Call | None = None
    reason: str = ""
    facts: Callable[[], Mapping[str, float]] | None = None
    floor: tuple[tuple[float, str], ...] = ()
    yardstick: bool = False
    ours: bool = False
    slow_start: bool = False


@dataclass(frozen=True)
class Target:
    """A bound on a ratio of medians.

    Args:
        text: what is claimed, in words.
        above: the contender whose median is divided; "floor" stands for the floor of ``below``.
        below: those it is divided by: their quickest.
        at_least, at_most: the bound; one of them.
    """

    text: str
    above: tuple[str, ...]
    below: str
    at_least: float | None = None
    at_most: float | None = None

    @staticmethod
    def faster(than: str | Sequence[str], ours: str, factor: float, text: str = "") -> Target:
        """``ours`` takes at most a ``factor``-th of the time of the quickest of ``than``."""
        names = (than,) if isinstance(than, str) else tuple(than)
        return Target(text or f"{names[0]} / {ours}", names, ours, at_least=factor)

    @staticmethod
    def within(ours: str, of: str, factor: float) -> Target:
        """``ours`` takes at most ``factor`` times what ``of`` takes."""
        return Target(f"{ours} / {of}", (ours,), of, at_most=factor)


# ---- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Of the samples of one contender: seconds a call, or bytes."""

    median: float
    q1: float
    q3: float
    minimum: float
    samples: int
    calls: int
    """Calls within one sample."""

    @property
    def spread(self) -> float:
        """The interquartile range over the median."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0


def summarise(values: Sequence[float], calls: int = 1) -> Statistics:
    """Median, quartiles and minimum."""
    if len(values) == 1:
        q1 = median = q3 = values[0]
    else:
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Statistics(median, q1, q3, min(values), len(values), calls)


def takes_part(round_: int, samples: int, rounds: int) -> bool:
    """Whether a contender with so many samples is measured in this round: spread over all evenly.

    Slow contenders get fewer samples than quick ones, but from all over the run, so that whatever
    else the machine does hits all alike.
    """
    return (round_ + 1) * samples // rounds > round_ * samples // rounds


def turns(items: Sequence[Item], last: object, source: random.Random) -> list[Item]:
    """The order of a round, by chance: nobody always runs in the wake of the same other.

    Nor does whoever ran last begin, if there are others: its caches hold just what it needs.
    """
    order = source.sample(items, len(items))
    if order and order[0] is last:
        order.append(order.pop(0))
    return order


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector off: it would hit whoever happens to be running."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass
class _Plan:
    call: Call
    calls: int
    samples: int
    seconds: list[float] = field(default_factory=list)


def _estimate(
    contender: Contender, call: Call, allowed: float, settings: Settings, clock: Clock
) -> float | str:
    """Warms up for ``allowed`` seconds or less; seconds a call, or why it is left out."""
    if contender.slow_start:
        call()
    start = clock()
    call()
    first = clock() - start
    if first > settings.patience:
        return f"{first:.1f} s a call, more than {settings.patience:g} s"
    least, spent, count = first, 0.0, 0
    while count < 1 or (spent < allowed and (count < 3 or spent < 0.02) and count < 200):
        start = clock()
        call()
        seconds = clock() - start
        least, spent, count = min(least, seconds), spent + seconds, count + 1
    return max(least, 1e-9)


def measure(
    contenders: Sequence[Contender], settings: Settings, clock: Clock = time.perf_counter
) -> dict[str, Statistics | str]:
    """Times the contenders in turn, round by round.

    Args:
        contenders: their names differ.
        settings: time and samples.
        clock: seconds.

    Returns:
        By name: the statistics, or why there are none.
    """
    results: dict[str, Statistics | str] = {}
    plans: dict[str, _Plan] = {}
    entered = [c for c in contenders if c.call is not None]
    allowed = settings.budget / max(1, len(entered)) / 2
    for contender in contenders:
        if contender.call is None:
            results[contender.name] = contender.reason or "not measured"
            continue
        try:
            estimate = _estimate(contender, contender.call, allowed, settings, clock)
        except Exception as error:
            if contender.ours:
                raise
            line = (str(error).splitlines() or [""])[0]
            results[contender.name] = f"failed: {type(error).__name__}: {line}"[:200]
            continue
        if isinstance(estimate, str):
            results[contender.name] = estimate
            continue
        calls = max(1, min(1000, math.ceil(settings.sample / estimate)))
        affordable = int(settings.budget / len(entered) / (calls * estimate))
        samples = max(settings.least, min(settings.most, affordable))
        plans[contender.name] = _Plan(contender.call, calls, samples)
    rounds = max((p.samples for p in plans.values()), default=0)
    with no_collection():
        last, source = None, random.Random(0)
        for round_ in range(rounds):
            taking = [p for p in plans.values() if takes_part(round_, p.samples, rounds)]
            for plan in turns(taking, last, source):
                call = plan.call
                start = clock()
                for _ in range(plan.calls):
                    call()
                plan.seconds.append((clock() - start) / plan.calls)
                last = plan
    for name, plan in plans.items():
        results[name] = summarise(plan.seconds, plan.calls)
    return {c.name: results[c.name] for c in contenders}


# ---- tables --------------------------------------------------------------------------------------


def show_time(seconds: float) -> str:
    """Three digits in a unit that fits."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def show_bytes(count: float) -> str:
    """In MiB."""
    return f"{count / 2**20:.1f} MiB"


def show_fact(value: float) -> str:
    """Short: facts are errors and counts."""
    return f"{value:.2g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    widths = [max(len(r[i]) for r in (columns, *rows)) for i in range(len(columns))]
    lines = []
    for row in (columns, *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


# ---- a run ---------------------------------------------------------------------------------------


class Session:
    """One run: measures cases, prints tables, and keeps the record.

    Args:
        settings: of the run.
        clock: seconds.
        out: prints a text.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock = time.perf_counter,
        out: Callable[[str], object] = print,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.out = out
        self.benchmarks: list[dict[str, Any]] = []
        self.targets: list[dict[str, Any]] = []

    def begin(self, name: str, question: str) -> None:
        """What follows belongs to this benchmark."""
        self.benchmarks.append({"name": name, "question": question, "cases": []})
        self.out(f"\n== {name}: {question}")

    def wants(self, case: str) -> bool:
        """Whether the case was asked for; ask before preparing it."""
        return self.settings.case in case

    def compare(
        self,
        case: str,
        contenders: Sequence[Contender],
        *,
        ours: str,
        targets: Sequence[Target] = (),
        about: Mapping[str, Any] | None = None,
        work: float | None = None,
        patience: float | None = None,
    ) -> None:
        """Times the contenders of a case, prints the table and the targets, records both.

        Args:
            case: its name.
            contenders: what is compared.
            ours: the name of the one that the others are divided by.
            targets: bounds on ratios.
            about: what else to record.
            work: floating-point operations of one call of the first yardstick.
            patience: as in the settings, if they do not fit.
        """
        settings = self.settings if patience is None else replace(self.settings, patience=patience)
        self.report(
            case,
            contenders,
            measure(contenders, settings, self.clock),
            ours=ours,
            targets=targets,
            about=about,
            work=work,
        )

    def report(
        self,
        case: str,
        contenders: Sequence[Contender],
        results: Mapping[str, Statistics | str],
        *,
        ours: str,
        targets: Sequence[Target] = (),
        about: Mapping[str, Any] | None = None,
        work: float | None = None,
        unit: str = "s",
        show: Callable[[float], str] = show_time,
    ) -> None:
        """As :meth:`compare`, for results that are there already, in any unit."""
        medians = {n: r.median for n, r in results.items() if isinstance(r, Statistics)}
        reference = medians.get(ours)
        units = [c for c in contenders if c.yardstick]
        one = medians.get(units[0].name) if units else None
        floors = {c.name: _floor(c, medians) for c in contenders}
        facts = {
            c.name: dict(c.facts()) for c in contenders if c.facts is not None and c.name in medians
        }
        fact_names = list(dict.fromkeys(name for f in facts.values() for name in f))

        columns = ["", "median", "iqr", "min", "ratio"]
        columns += ["units"] if one else []
        columns += ["floor", "x floor"] if any(floors.values()) else []
        columns += fact_names
        rows, left_out, records = [], [], []
        for contender in contenders:
            result, floor = results[contender.name], floors[contender.name]
            record: dict[str, Any] = {"name": contender.name, "yardstick": contender.yardstick}
            record["ours"] = contender.ours
            records.append(record)
            if isinstance(result, str):
                record.update(status="not measured", reason=result)
                left_out.append(f"  {contender.name}: {result}")
                continue
            ratio = result.median / reference if reference else None
            record.update(
                status="measured",
                median=result.median,
                q1=result.q1,
                q3=result.q3,
                minimum=result.minimum,
                samples=result.samples,
                calls=result.calls,
                ratio=ratio,
                floor=floor,
                facts=facts.get(contender.name, {}),
            )
            row = [contender.name, show(result.median), f"{100 * result.spread:.0f} %"]
            row += [show(result.minimum), f"{ratio:.2f}x" if ratio else "-"]
            row += [f"{result.median / one:.3g}"] if one else []
            if any(floors.values()):
                row += [show(floor), f"{result.median / floor:.2f}"] if floor else ["", ""]
            mine = facts.get(contender.name, {})
            row += [show_fact(mine[name]) if name in mine else "" for name in fact_names]
            rows.append(row)
        title = f"\n{case}"
        rate = None
        if one and work:
            rate = work / one
            title += f"   (one unit: {show(one)}, {rate / 1e9:.1f} GFLOP/s)"
        self.out(title)
        self.out(table(columns, rows))
        for line in left_out:
            self.out(line)
        judged = [_judge(t, medians, floors) for t in targets]
        for verdict in judged:
            self.out(f"  {_sentence(verdict)}")
            self.targets.append({"benchmark": self.benchmarks[-1]["name"], "case": case, **verdict})
        self.benchmarks[-1]["cases"].append(
            {
                "name": case,
                **(about or {}),
                "unit": unit,
                "compared_to": ours,
                "flops_per_second": rate,
                "contenders": records,
                "targets": judged,
            }
        )

    def rows(self, case: str, columns: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
        """A table of figures that are no contest, with its record."""
        self.out(f"\n{case}")
        self.out(table(columns, [[_cell(record.get(c)) for c in columns] for record in records]))

    def keep(self, case: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Records figures without printing them."""
        self.benchmarks[-1]["cases"].append({"name": case, "records": [dict(r) for r in records]})

    def summary(self) -> str:
        """Which targets were met and which were not, in words."""
        judged = [t for t in self.targets if t["met"] is not None]
        missed = [t for t in judged if not t["met"]]
        open_ = len(self.targets) - len(judged)
        lines = [f"\ntargets: {len(judged) - len(missed)} met, {len(missed)} missed, {open_} open"]
        lines += [f"  {t['benchmark']}, {t['case']}: {_sentence(t)}" for t in missed]
        return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return show_fact(value) if isinstance(value, float) else str(value)


def _floor(contender: Contender, medians: Mapping[str, float]) -> float | None:
    if not contender.floor or any(name not in medians for _, name in contender.floor):
        return None
    return sum(count * medians[name] for count, name in contender.floor)


def _judge(
    target: Target, medians: Mapping[str, float], floors: Mapping[str, float | None]
) -> dict[str, Any]:
    """The ratio, and whether it is within the bound; both None where something is missing."""
    text, ratio = target.text, None
    measured = [name for name in target.above if name in medians]
    below = floors.get(target.above[0]) if target.below == "floor" else medians.get(target.below)
    if measured and below:
        best = min(measured, key=lambda name: medians[name])
        ratio = medians[best] / below
        if len(target.above) > 1:
            text += f" ({best})"
    met = None
    if ratio is not None:
        met = ratio >= target.at_least if target.at_least else ratio <= (target.at_most or 0.0)
    return {
        "text": text,
        "ratio": ratio,
        "at_least": target.at_least,
        "at_most": target.at_most,
        "met": met,
    }


def _sentence(verdict: Mapping[str, Any]) -> str:
    bound = verdict["at_least"] or verdict["at_most"]
    words = "at least" if verdict["at_least"] else "at most"
    if verdict["ratio"] is None:
        return f"open    {verdict['text']}: {words} {bound:g}"
    outcome = "met   " if verdict["met"] else "MISSED"
    return f"{outcome}  {verdict['text']}: {verdict['ratio']:.2f}, {words} {bound:g}"


# ---- the machine ---------------------------------------------------------------------------------


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                found.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    return found


def _generation(cpu: Mapping[str, str]) -> str:
    """Family and model: hosts of virtual machines like to name all their processors alike."""
    named = (("family", "cpu family"), ("model", "model"))
    return ", ".join(f"{name} {cpu[key]}" for name, key in named if key in cpu)


def machine() -> dict[str, Any]:
    """Processor and its generation, cores, threads, instruction set and load."""
    import torch

    from lipfuse import _native

    kernels, cpu = _native.kernels, _cpuinfo()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "generation": _generation(cpu),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "instruction_set": None if kernels is None else kernels.cpu_features()["selected"],
        "native": _native.loaded,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python, torch, lipfuse and the peers; "not installed" for those that are not."""
    from importlib import metadata

    import torch

    import lipfuse

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lipfuse": lipfuse.__version__,
    }
    for name in ("numpy", "deel-torchlip", "orthogonium"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def header(about: Mapping[str, Any], found: Mapping[str, str]) -> str:
    """Machine and versions in a few lines."""
    native = about["instruction_set"] or ("yes" if about["native"] else "none: plain torch")
    load = about["load_average"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads used, "
        f"native kernels: {native}",
        ", ".join(f"{name} {version}" for name, version in found.items()),
    ]
    if load and load[0] > 0.5:
        lines.append(
            f"load average {load[0]:.1f}: something else is running, ratios are rough",
        )
    return "\n".join(lines)


def record(session: Session, seconds: float, arguments: Sequence[str]) -> dict[str, Any]:
    """All that a run found, for JSON."""
    settings = session.settings
    return {
        "schema": 2,
        "command": ["python", "-m", "benchmarks", *arguments],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
        "settings": {
            "quick": settings.quick,
            "thorough": settings.thorough,
            "budget": settings.budget,
            "least": settings.least,
            "most": settings.most,
            "patience": settings.patience,
        },
        "targets": session.targets,
        "benchmarks": session.benchmarks,
    }
