"""docs/add_operator.md is followed: its files are written, compiled, and its tests run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lipfuse import _native

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "add_operator.md"
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```', re.M | re.S)


def follow(folder: Path) -> dict[str, str]:
    """Applies all blocks to the sources in ``folder``; returns what each file was given."""
    written: dict[str, str] = {}
    for kind, name, text in BLOCK.findall(PAGE.read_text()):
        file = folder / name
        if kind == "diff":
            lines = text.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if not line.startswith("+"))
            assert file.read_text().count(before) == 1, f"{name} has not once:\n{before}"
            file.write_text(file.read_text().replace(before, "".join(x[1:] or x for x in lines)))
            text = "".join(line[1:] for line in lines if line.startswith("+"))
        else:
            start = file.read_text() + "\n\n" if file.exists() else ""
            file.write_text(start + text)
        written[name] = written.get(name, "") + text
    return written


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("src/lipfuse", "tests/ops", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/tools.py", "tests/conftest.py", "ruff.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _compile(folder: Path, schemas: str) -> Path:
    """The operator as a library beside the one that is built."""
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    source, package = folder / "csrc" / "extra.cpp", folder / "src" / "lipfuse"
    source.write_text(
        "#include <torch/csrc/stable/library.h>\n"
        f"STABLE_TORCH_LIBRARY_FRAGMENT(lipfuse, m) {{\n{schemas}}}\n"
    )
    torch_at, library = Path(torch.__file__).parent, folder / "extra.so"
    command = [
        *(compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"),
        *("-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{folder / 'csrc'}"),
        *("-isystem", str(torch_at / "include")),
        *("-isystem", str(torch_at / "include" / "torch" / "csrc" / "api" / "include")),
        *(str(source), str(folder / "csrc" / "cpu" / "l1_normalize.cpp"), "-o", str(library)),
        *(f"-L{package}", "-llipfuse_kernels", f"-Wl,-rpath,{package}"),
        *(f"-L{torch_at / 'lib'}", "-ltorch", "-ltorch_cpu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def test_the_walk_through_works(copy: Path) -> None:
    written = follow(copy)
    load = ""
    if _native.loaded and sys.platform == "linux":
        library = _compile(copy, written["csrc/library.cpp"])
        load = f"torch.ops.load_library({str(library)!r}); "
    code = f"import sys, torch; {load}import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "-qpno:cacheprovider",
            "-k",
            "l1_normalize or case_for_every",
            "tests/ops",
        ],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 25
