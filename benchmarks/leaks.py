"""The table of leaks, with ours beside it: ``python -m benchmarks.leaks [--json PATH]``.

Measured on ours always, and on the peer if it is installed; else its recorded figures stand there.
The exit status is 1 if anything of ours exceeds its promise or shows the defect.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import peers, runner
from benchmarks.leak_measurements import CASES, Case, Library, overlapping_maxima

# Float32 with its own rounding, in training too.
LIMIT = 1 + 1e-5


@dataclass(frozen=True)
class Row:
    """What a case came to."""

    case: str
    recorded: str
    theirs: str
    ours: str
    exceeded: bool


def figure(case: Case, library: Library) -> tuple[float, str]:
    """A measurement, and how to print it."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        if case.measure is not overlapping_maxima:
            warnings.simplefilter("ignore")
        value = case.measure(library)
    if case.defect:
        if value in (0.0, 1.0):
            return value, case.defect if value else "no"
        return value, f"{value:.3g} {case.defect}"
    if value == 0.0:
        return value, "refused"
    return value, f"{value:.5f}" if 0.9 < value < 1.1 else f"{value:.4g}"


def run_case(case: Case, ours: Library, theirs: Library | None) -> Row:
    """Both libraries on one case; an exception of the peer is a result, one of ours an error."""
    value, shown = figure(case, ours)
    beside = case.recorded or "not recorded"
    if theirs is not None:
        try:
            beside = figure(case, theirs)[1]
        except Exception as error:
            beside = f"raises {type(error).__name__}"
    # A comparison with NaN is false.
    exceeded = not value <= 0.01 if case.defect else not case.least <= value <= LIMIT
    return Row(case.text, case.recorded, beside, shown, exceeded)


def libraries() -> tuple[Library, Library | None, str]:
    """Ours, the peer if it is installed, and what the peer's column is called."""
    import lipfuse

    ours = Library("lipfuse", lipfuse.nn, "lipfuse")
    peer, reason = peers.deel()
    if peer is None:
        return ours, None, f"deel-torchlip ({reason}: recorded)"
    return ours, Library("deel-torchlip", peer, "deel.torchlip"), "deel-torchlip, here"


def report(rows: Sequence[Row], column: str) -> str:
    """The table, and what it comes to."""
    columns = ("case", "deel-torchlip 1.0.5, recorded", column, "lipfuse", "")
    lines = [
        (row.case, row.recorded, row.theirs, row.ours, "LEAKS" if row.exceeded else "holds")
        for row in rows
    ]
    count = sum(row.exceeded for row in rows)
    verdict = f"{len(rows)} cases; lipfuse leaks in {count}"
    return "\n".join([runner.table(columns, lines), "", verdict])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 if anything of ours is exceeded."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.leaks",
        description="What leaks in deel-torchlip, and that it does not here.",
    )
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with this text")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    started = time.perf_counter()
    ours, theirs, column = libraries()
    rows = [run_case(case, ours, theirs) for case in CASES if arguments.case in case.text]
    print(report(rows, column))
    print(f"{time.perf_counter() - started:.0f} s")
    if arguments.json:
        text = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return int(any(row.exceeded for row in rows))


if __name__ == "__main__":
    sys.exit(main())
