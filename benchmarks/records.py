"""Reading the records of runs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
RUN, RACES = RESULTS / "cpu.json", RESULTS / "time_to_accuracy.json"
OTHER, AVX2 = RESULTS / "cpu_xeon.json", RESULTS / "cpu_avx2.json"
HALF = RESULTS / "cpu_zen4.json"
"""The records that the documentation is made from: all of it from the first two, and what other
processors make of the same run from the others."""

SCHEMA = 2

Record = dict[str, Any]


def load(path: Path) -> Record:
    """A record of ``python -m benchmarks --json``.

    Raises:
        ValueError: if the file is something else, or of another version of the benchmarks.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "benchmarks" not in found:
        raise ValueError(f"{path} is no record of python -m benchmarks --json")
    if found["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {found['schema']}, this is for {SCHEMA}: run it again")
    return found


def processor(record: Record) -> str:
    """The name of a record's processor, without trademarks and what every name has."""
    name = re.sub(r"\((R|TM)\)|\b(Processor|CPU)\b|@.*", "", record["machine"]["cpu"], flags=re.I)
    return " ".join(name.split())


def digest(*paths: Path) -> str:
    """Tells whether a picture was drawn from these files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@dataclass(frozen=True)
class Case:
    """A contest of a record."""

    record: Record

    @property
    def name(self) -> str:
        """Of the case."""
        return str(self.record["name"])

    @property
    def contenders(self) -> dict[str, Record]:
        """By name, those that were measured."""
        found = self.record["contenders"]
        return {c["name"]: c for c in found if c["status"] == "measured"}

    def median(self, name: str) -> float | None:
        """Of a contender: seconds or bytes; None if it was not measured."""
        found = self.contenders.get(name)
        return None if found is None else float(found["median"])

    def floor(self, name: str) -> float | None:
        """The least that a contender's method needs; None if nobody said."""
        found = self.contenders.get(name)
        return None if found is None or found["floor"] is None else float(found["floor"])

    def quickest(self, *names: str) -> str | None:
        """Of the contenders named, who was measured and took least."""
        there = self.contenders
        return min(
            (name for name in names if name in there),
            key=lambda name: float(there[name]["median"]),
            default=None,
        )


def cases(record: Record, benchmark: str) -> list[Case]:
    """The contests of a benchmark; none if it was not run."""
    return [
        Case(case)
        for found in record["benchmarks"]
        if found["name"] == benchmark
        for case in found["cases"]
        if "contenders" in case
    ]
