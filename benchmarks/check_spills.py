"""Reads nvcc's resource report (``-Xptxas=-v``) and fails where a kernel spills registers.

    python benchmarks/check_spills.py BUILD_LOG
    python benchmarks/check_spills.py --compile [--arch 90]   compiles csrc/cuda/*.cu itself

Stack frames are no spills: they hold what is indexed at run time and what calls pass.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
FUNCTION = re.compile(r"Function properties for (\S+)")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def demangle(names: list[str]) -> dict[str, str]:
    """Readable names, as far as c++filt is there to make them."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {n: n for n in names}
    text = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    return dict(zip(names, text.splitlines(), strict=True))


def short(name: str) -> str:
    """Without parameters and namespaces."""
    name = re.sub(r"\(anonymous namespace\)::|\(lipfuse::cuda::Pooling\)", "", name)
    name = name.split("(")[0].replace("lipfuse::cuda::", "").replace("lipfuse::cpu::", "")
    return name.replace("void ", "").strip()


def read(text: str) -> list[tuple[str, str, int, int, int]]:
    """``(architecture, function, registers, stack, spilled)`` for every function of a report.

    Registers are the kernel's: functions that are called share them, and have 0 here.
    """
    rows: list[tuple[str, str, int, int, int]] = []
    arch = function = entry = ""
    for line in text.splitlines():
        if m := ENTRY.search(line):
            entry, arch = m[1], m[2]
        elif m := FUNCTION.search(line):
            function = m[1]
        elif m := SPILLS.search(line):
            rows.append((arch, function, 0, int(m[1]), int(m[2]) + int(m[3])))
        elif m := USED.search(line):
            for i in range(len(rows) - 1, -1, -1):
                if rows[i][1] == entry:
                    rows[i] = (*rows[i][:2], int(m[1]), *rows[i][3:])
                    break
    return rows


def compile_all(arch: str) -> str:
    """nvcc's report for every source, one architecture."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("nvcc was not found")
    report = ""
    with tempfile.TemporaryDirectory() as scratch:
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            command = [
                nvcc,
                "-std=c++17",
                "-O3",
                "--expt-relaxed-constexpr",
                "-Xptxas=-v",
                "-c",
                str(source),
            ]
            command += [
                f"-gencode=arch=compute_{arch},code=sm_{arch}",
                "-o",
                f"{scratch}/{source.stem}.o",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            report += done.stdout + done.stderr
    return report


def main() -> int:
    """Prints a table; 1 if anything spills or nothing was found."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("log", nargs="?", type=Path)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--arch", default="90")
    arguments = p.parse_args()
    if not arguments.compile and arguments.log is None:
        p.error("a build log, or --compile, is needed")
    text = (
        compile_all(arguments.arch)
        if arguments.compile
        else arguments.log.read_text(errors="replace")
    )
    rows = read(text)
    names = demangle(sorted({r[1] for r in rows}))
    print(f"{'':8}{'registers':>10}{'stack':>7}{'spilled':>9}")
    for arch, function, registers, stack, spilled in sorted(set(rows)):
        if registers or spilled:
            print(f"{arch:8}{registers or '-':>10}{stack:>7}{spilled:>9}  {short(names[function])}")
    spilling = [r for r in set(rows) if r[4]]
    print(f"{len(rows)} functions, {len(spilling)} spill registers")
    return 1 if spilling or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
