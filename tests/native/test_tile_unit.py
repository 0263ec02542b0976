"""Products on the processor's tile unit: spelled out where there is none, and the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipfuse import _native

ROOT = Path(__file__).parents[2]
Array = np.ndarray[Any, np.dtype[Any]]

if _native.kernels is None:
    pytest.skip("lipfuse._kernels was not built", allow_module_level=True)
kernels = _native.kernels
available = kernels.cpu_features()["available"]

with_tile_unit = pytest.mark.skipif("amx" not in available, reason="no AMX here")


def test_spelled_out(tmp_path: Path) -> None:
    """The same source, the unit's instructions in plain C++: shapes, strides, epilogues, tasks."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or "avx512" not in available:
        pytest.skip("needs a C++ compiler and AVX-512")
    program = tmp_path / "tile_unit"
    flags = ["-std=c++17", "-O1", *(f"-mavx512{x}" for x in ("f", "vl", "dq", "bw")), "-mfma"]
    source = ROOT / "tests" / "native" / "tile_unit.cpp"
    build = [compiler, *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(build, check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("products right\n")


@pytest.fixture
def tile_unit() -> Iterator[None]:
    before = kernels.cpu_features()["selected"]
    kernels.select_instruction_set("amx")
    yield
    kernels.select_instruction_set(before)


def _errors(a: Array, b: Array) -> tuple[float, float]:
    """Of our product and of float32's in numpy, in the Frobenius norm."""
    exact = a.astype(np.float64) @ b.astype(np.float64)
    ours, plain = kernels.matmul(a, b), a @ b
    return float(np.linalg.norm(ours - exact)), float(np.linalg.norm(plain - exact))


@with_tile_unit
@pytest.mark.usefixtures("tile_unit")
@pytest.mark.parametrize("wide", [0.0, 3.0])
@pytest.mark.parametrize("shape", [(160, 160, 160), (512, 512, 512), (200, 1700, 130)])
def test_as_good_as_float32(shape: tuple[int, int, int], wide: float) -> None:
    """Three bf16 are a float32; with two, errors would be ten times as large."""
    rows, depth, cols = shape
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sizes = np.exp(wide * rng.standard_normal((rows, depth)))
        a = (rng.standard_normal((rows, depth)) * sizes).astype(np.float32)
        b = rng.standard_normal((depth, cols)).astype(np.float32)
        ours, plain = _errors(a, b)
        assert ours <= 1.5 * plain


@with_tile_unit
@pytest.mark.usefixtures("tile_unit")
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_tiny_and_huge_numbers(scale: float) -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((192, 192)).astype(np.float32) * np.float32(scale)
    b = rng.standard_normal((192, 192)).astype(np.float32) * np.float32(scale)
    ours, plain = _errors(a, b)
    assert ours <= 1.5 * plain


def _printed(code: str, instruction_set: str | None) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "LIPFUSE_ISA"}
    if instruction_set:
        environment["LIPFUSE_ISA"] = instruction_set
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, env=environment, text=True).strip()


@with_tile_unit
@pytest.mark.parametrize(
    ("name", "selected"), [("avx512", "avx512"), ("amx", "amx"), (None, "amx")]
)
def test_chosen_by_environment_and_by_default(name: str | None, selected: str) -> None:
    code = "from lipfuse import _kernels as k; print(k.cpu_features()['selected'])"
    assert _printed(code, name) == selected


@with_tile_unit
@pytest.mark.parametrize(("name", "asked"), [("avx512", "False"), ("amx", "True")])
def test_permission_is_asked_for_where_it_is_used(name: str, asked: str) -> None:
    """Linux lets a process use tiles once it has asked, and then takes larger signal frames."""
    code = (
        "import ctypes, numpy\n"
        "from lipfuse import _kernels\n"
        "_kernels.matmul(numpy.ones((2, 2), 'f'), numpy.ones((2, 2), 'f'))\n"
        "permitted = ctypes.c_ulong()\n"
        "arch_prctl, get_permissions, tile_data = 158, 0x1022, 18\n"
        "ctypes.CDLL(None).syscall(arch_prctl, get_permissions, ctypes.byref(permitted))\n"
        "print(bool(permitted.value >> tile_data & 1))\n"
    )
    assert _printed(code, name) == asked
