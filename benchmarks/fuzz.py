"""Operators called with whatever comes: ``python -m benchmarks.fuzz [--seconds S] [--seed N]``.

Every operator of ``torch.ops.lipfuse`` and every function of ``lipfuse._kernels`` is called with
valid arguments of which some were made unusual or wrong: other shapes, memory layouts, dtypes,
devices and types, values that are not finite, absurd numbers. A call may give a result, or raise an
exception of a kind that says what is wrong. Calls are made in a process of their own, so that a
crash or a hang is seen; the call that did it is named, and is repeated alone by ``--case``. The
exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PATIENCE = 60.0  # seconds for one call; the slowest take less than one
_MOST_FAILURES = 10


@dataclass
class Record:
    """What came of some calls.

    Attributes:
        calls: by the name of what was called.
        results: how many gave one.
        refusals: by the name of the exception.
        failures: what must not have happened.
    """

    calls: Counter[str] = field(default_factory=Counter)
    results: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def write(self, file: Path) -> None:
        """For the process that watches."""
        file.write_text(json.dumps(vars(self)), encoding="utf-8")

    def add(self, other: dict[str, Any]) -> None:
        """Adds that of a process that has ended."""
        self.calls.update(other["calls"])
        self.results += other["results"]
        self.refusals.update(other["refusals"])
        self.failures += other["failures"]

    def report(self) -> str:
        """The last lines of a run."""
        refused = ", ".join(f"{n} {name}" for name, n in sorted(self.refusals.items()))
        lines = [f"FAILED {failure}" for failure in self.failures]
        lines.append(
            f"{sum(self.calls.values())} calls of {len(self.calls)} functions: {self.results} "
            f"results; refused: {refused or 'none'}"
        )
        lines.append(f"{len(self.failures)} crashes, hangs or exceptions of another kind")
        return "\n".join(lines)


# ---- in the process that may crash ---------------------------------------------------------------


def one_call(seed: int, case: int, record: Record, show: bool = False) -> None:
    """Makes the arguments of a case from its number, and calls."""
    import torch

    from benchmarks.fuzz_arguments import REFUSALS, Draw, described, target

    draw = Draw(random.Random(f"{seed}/{case}"))
    torch.manual_seed(draw.random.getrandbits(32))
    name, function, arguments = target(draw)
    record.calls[name] += 1
    if show:
        print(name, *map(described, arguments), sep="\n  ", flush=True)
    try:
        result = function(*arguments)
        tensors = result if isinstance(result, (tuple, list)) else [result]
        for x in tensors:
            if isinstance(x, torch.Tensor) and x.requires_grad:
                x.sum().backward(retain_graph=True)
        record.results += 1
        if show:
            print("gives", *map(described, tensors), sep="\n  ")
    except REFUSALS as error:
        record.refusals[type(error).__name__] += 1
        if show:
            print(f"raises {type(error).__name__}: {str(error).splitlines()[:1]}")
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        record.failures.append(f"case {case}, {name}: {type(error).__name__}: {text}")


def run_cases(seed: int, first: int, until: float, most: int, files: tuple[Path, Path]) -> None:
    """Calls case after case; the number of the one at work is in the first file."""
    import torch

    progress, found = files
    torch.set_num_threads(2)
    record = Record()
    with progress.open("r+b", buffering=0) as at:
        for case in range(first, most):
            if time.time() > until or len(record.failures) >= _MOST_FAILURES:
                break
            os.pwrite(at.fileno(), case.to_bytes(8, "little"), 0)
            one_call(seed, case, record)
            if case % 200 == 0:
                record.write(found)
    record.write(found)


# ---- in the process that watches -----------------------------------------------------------------


def _watch(process: subprocess.Popen[bytes], progress: Path, begin: int) -> tuple[int, str]:
    """Waits for its end; the last case, and what was wrong, if anything."""
    last, since = begin, time.monotonic()
    while True:
        try:
            process.wait(timeout=0.2)
            hangs = False
        except subprocess.TimeoutExpired:
            hangs = time.monotonic() - since > _PATIENCE
        case = int.from_bytes(progress.read_bytes()[:8], "little")
        if case != last:
            last, since = case, time.monotonic()
        if hangs:
            process.kill()
            process.wait()
            return last, f"hangs for more than {_PATIENCE:g} s"
        if process.returncode is not None:
            return last, f"ends with {process.returncode}" if process.returncode else ""


def fuzz(seed: int, seconds: float, calls: int) -> Record:
    """Starts processes until time is up, or as many calls were made."""
    record = Record()
    first, until = 0, time.time() + seconds
    command = [sys.executable, "-m", "benchmarks.fuzz", "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        progress, found, said = (Path(folder) / n for n in ("progress", "found", "said"))
        while time.time() < until and first < calls and len(record.failures) < _MOST_FAILURES:
            progress.write_bytes(first.to_bytes(8, "little"))
            Record().write(found)
            inside = ["--inside", str(progress), str(found), str(first), str(until), str(calls)]
            with said.open("wb") as output:
                process = subprocess.Popen([*command, *inside], stdout=output, stderr=output)
                last, wrong = _watch(process, progress, first)
            record.add(json.loads(found.read_text(encoding="utf-8")))
            if wrong:
                words = said.read_text(encoding="utf-8", errors="replace").strip()
                record.failures.append(f"case {last}: the process {wrong}\n{words[-2000:]}")
            first = last + 1
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description="Operators called with unusual and wrong arguments, in a process of their own.",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="default: 60")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--case", type=int, help="only this one, here, and show it")
    parser.add_argument("--inside", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    if options.inside:
        faulthandler.enable()
        progress, found, first, until, calls = options.inside
        files = (Path(progress), Path(found))
        run_cases(options.seed, int(first), float(until), int(calls), files)
        return 0
    if options.case is not None:
        record = Record()
        one_call(options.seed, options.case, record, show=True)
    else:
        print(f"seed {options.seed}; python -m benchmarks.fuzz --seed {options.seed} --case N")
        record = fuzz(options.seed, options.seconds, options.calls)
    print(record.report())
    return int(bool(record.failures))


if __name__ == "__main__":
    sys.exit(main())
