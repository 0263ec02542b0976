"""The command line: ``python -m benchmarks [NAME ...] [--quick] [--json PATH]``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    *("weights", "spectral", "ortho_conv", "layers", "fuse", "activations", "steps", "scaling"),
    *("compiled", "accelerate", "memory", "accuracy", "conv_bounds"),
)


def find_lipfuse() -> None:
    """Makes the package importable from a checkout where it is not installed."""
    try:
        importlib.import_module("lipfuse")
    except ModuleNotFoundError as error:
        if error.name != "lipfuse":
            raise
        sys.path.insert(0, str(ROOT / "src"))


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed, memory and accuracy of lipfuse on this machine, against the peers "
        "that are installed. Contenders take turns in one process; figures are medians.",
    )
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    p.add_argument("--only", action="append", default=[], metavar="NAME", help="the same")
    p.add_argument("--case", default="", metavar="TEXT", help="only cases whose name has this text")
    p.add_argument("--quick", action="store_true", help="fewer cases and samples: under a minute")
    p.add_argument("--thorough", action="store_true", help="accuracy: the largest sizes as well")
    p.add_argument("--threads", type=int, metavar="N", help="of torch; default: one a usable core")
    p.add_argument("--budget", type=float, metavar="SECONDS", help="of each case")
    p.add_argument("--json", type=Path, metavar="PATH", help="write the record there")
    p.add_argument("--list", action="store_true", help="print the questions and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks named.

    Args:
        argv: the command line's arguments; those of the process if not given.

    Returns:
        0.
    """
    p = parser()
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = p.parse_args(given)
    names = [*arguments.names, *arguments.only] or list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        p.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = arguments.threads or usable or 1
    if threads < 1:
        p.error(f"--threads must be positive, got {threads}")
    if arguments.budget is not None and arguments.budget <= 0:
        p.error(f"--budget must be positive, got {arguments.budget:g}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    find_lipfuse()

    import torch

    from benchmarks import runner

    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    if arguments.list:
        for name, module in modules.items():
            print(f"{name:<12}{module.QUESTION}")
        return 0
    changes: dict[str, Any] = {"threads": threads, "case": arguments.case}
    changes["thorough"] = arguments.thorough
    if arguments.budget is not None:
        changes["budget"] = arguments.budget
    torch.set_num_threads(threads)
    session = runner.Session(
        runner.Settings.of(arguments.quick, **changes), out=lambda text: print(text, flush=True)
    )
    print(runner.header(runner.machine(), runner.versions()))
    started = time.perf_counter()
    for name, module in modules.items():
        session.begin(name, module.QUESTION)
        before = time.perf_counter()
        module.run(session)
        session.benchmarks[-1]["seconds"] = round(time.perf_counter() - before, 1)
    seconds = time.perf_counter() - started
    if session.targets:
        print(session.summary())
    print(f"\n{seconds:.0f} s")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(runner.record(session, seconds, given), indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
        print(f"written to {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
