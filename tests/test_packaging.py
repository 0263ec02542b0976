"""What is installed: no paths of the build machine, no new torch, and a way without compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lipfuse
from lipfuse import _native

ROOT = Path(__file__).parents[1]
PACKAGE = Path(lipfuse.__file__).parent
LIBRARIES = sorted(PACKAGE.glob("*.so"))
OLDEST = (2, 11)

needs_elf = pytest.mark.skipif(
    not _native.loaded or not sys.platform.startswith("linux") or shutil.which("nm") is None,
    reason="needs native libraries under Linux, and binutils",
)


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_elf
def test_libraries_are_found_beside_each_other_and_nowhere_else() -> None:
    assert len(LIBRARIES) >= 2
    for library in LIBRARIES:
        paths = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", output_of("readelf", "-d", library))
        assert paths in ([], ["$ORIGIN"]), library.name


def declared_by(oldest: tuple[int, int]) -> set[str]:
    """The words of torch's stable headers, without blocks that later versions have added."""
    include = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    words: set[str] = set()
    for header in ("stable/c/shim.h", "inductor/aoti_torch/c/shim.h"):
        later: list[bool] = []
        for line in (include / header).read_text().splitlines():
            if re.match(r"\s*#\s*if", line):
                guard = re.search(r"FEATURE_VERSION >= TORCH_VERSION_(\d+)_(\d+)", line)
                version = tuple(map(int, guard.groups())) if guard else oldest
                later.append(version > oldest)
            elif re.match(r"\s*#\s*endif", line):
                later.pop()
            elif not any(later):
                words.update(re.findall(r"\w+", line))
    return words


@needs_elf
def test_operators_need_nothing_that_the_oldest_torch_lacks() -> None:
    """One build for torch 2.11 and later: what the library asks of torch was there already."""
    undefined = output_of("nm", "-D", "--undefined-only", str(PACKAGE / "lipfuse_ops.so"))
    asked = set(re.findall(r" U ((?:aoti_)?torch_\w+)", undefined))
    assert {"torch_call_dispatcher", "aoti_torch_get_data_ptr"} <= asked
    assert not re.search(r" U _ZN\w*(?:c10|at|torch)\d", undefined)  # no C++ of torch's: it changes
    assert asked <= declared_by(OLDEST)
    if torch.__version__ >= "2.12":  # the parser tells them apart
        assert declared_by(OLDEST) < declared_by((9, 9))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy without libraries, in which to build."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("needs the checkout")
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "src"):
        ignored = shutil.ignore_patterns("*.so", "*.dylib", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    return copy


def build(checkout: Path, mode: str) -> subprocess.CompletedProcess[str]:
    """As pip does it, where no compiler is to be had."""
    return subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", "out"],
        cwd=checkout,
        env={
            **os.environ,
            "LIPFUSE_NATIVE": mode,
            "CMAKE_ARGS": "-DCMAKE_CXX_COMPILER=/does/not/exist",
        },
        capture_output=True,
        text=True,
    )


def test_without_a_compiler(checkout: Path) -> None:
    """Installed all the same, says so while building and, once, when it is imported."""
    pytest.importorskip("setuptools", "77")
    built = build(checkout, "auto")
    assert built.returncode == 0, built.stderr
    assert built.stderr.count("no native library could be built") == 1
    out = checkout / "out"
    assert not [p for p in out.rglob("*") if p.suffix in (".so", ".dylib")]
    assert (out / "lipfuse" / "py.typed").is_file()
    code = "import lipfuse.nn as n, torch; print(n.SpectralLinear(3, 2)(torch.ones(1, 3)).shape)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LIPFUSE_")}
    used = subprocess.run(
        [sys.executable, "-W", "always::RuntimeWarning", "-c", code],
        env={**environment, "PYTHONPATH": str(out)},
        capture_output=True,
        text=True,
    )
    assert used.returncode == 0 and "torch.Size([1, 2])" in used.stdout, used.stderr
    assert used.stderr.count("RuntimeWarning") == 1
    assert build(checkout, "require").returncode != 0
