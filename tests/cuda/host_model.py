"""Runs the CUDA kernels' bodies on the host, thread by thread: see csrc/cuda/host_execution.h.

One build with AddressSanitizer finds what is read or written outside of a buffer or of a scratch
array, one with ThreadSanitizer, to which every CUDA thread is a thread, finds races.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("host_kernels.cpp")
RESIDENT, SHARED = 6, 120 * 1024
"""Blocks that run at the same time, and shared memory of each."""
FLAGS = {
    "memory": ["-fsanitize=address", "-fno-omit-frame-pointer"],
    "races": ["-fsanitize=thread"],
}
ENVIRONMENT = {"TSAN_OPTIONS": "report_bugs=1 exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}


def build() -> dict[str, Path]:
    """The programs, which are kept until a source changes."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        pytest.skip("the host's model of a GPU needs g++ on Linux")
    headers = [
        *sorted((ROOT / "csrc" / "algorithms").glob("*.h")),
        *sorted((ROOT / "csrc" / "cuda").glob("*.h")),
        ROOT / "csrc" / "cpu" / "kernels.h",
    ]
    digest = hashlib.sha256(compiler.encode())
    for path in [SOURCE, Path(__file__), *headers]:
        digest.update(path.read_bytes())
    name = f"lipfuse_host_cuda_{os.getuid()}_{digest.hexdigest()[:16]}"
    where = Path(tempfile.gettempdir()) / name
    where.mkdir(exist_ok=True)
    jobs = []
    for name, flags in FLAGS.items():
        if (where / name).is_file():
            continue
        scratch = where / f"{name}.{os.getpid()}"
        command = [compiler, "-std=c++17", "-O1", "-g1", *flags, f"-I{ROOT / 'csrc'}", str(SOURCE)]
        jobs.append((name, scratch, subprocess.Popen([*command, "-o", str(scratch)])))
    for name, scratch, job in jobs:
        if job.wait():
            pytest.fail(f"the host's model of the CUDA kernels does not compile ({name})")
        scratch.replace(where / name)
    return {name: where / name for name in FLAGS}


def start(
    program,
    op,
    dtype,
    shapes,
    arrays=(),
    parameters=(),
    *,
    resident=RESIDENT,
    shared=SHARED,
    products="plain",
    order="forward",
):
    """One launch. ``shapes``: of its items, each (matrices, rows, columns); or that of the one."""
    items = [shapes] if isinstance(shapes, tuple) else shapes
    text = ",".join("x".join(map(str, s)) for s in items)
    kind = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    done = subprocess.run(
        [str(program), op, kind, text, *map(str, (resident, shared, products, order, *parameters))],
        input=b"".join(np.ascontiguousarray(a).tobytes() for a in arrays),
        capture_output=True,
        timeout=280,
        check=False,
        env={**os.environ, **ENVIRONMENT},
    )
    if b"unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel's memory layout")
    return done


def run(programs, op, dtype, shapes, arrays, parameters, outputs, **settings):
    """What a launch writes; ``outputs`` are the (shape, dtype) of that."""
    done = start(programs["memory"], op, dtype, shapes, arrays, parameters, **settings)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    results, at = [], 0
    for size, kind in outputs:
        count = int(np.prod(size))
        results.append(np.frombuffer(done.stdout, kind, count, at).reshape(size))
        at += count * np.dtype(kind).itemsize
    assert at == len(done.stdout)
    return results


# ---- cases and references ------------------------------------------------------------------------

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
KINDS = pytest.mark.parametrize(
    "dtype, products",
    [(np.float32, "plain"), (np.float32, "split"), (np.float64, "plain")],
    ids=["float32", "float32-tensor-cores", "float64"],
)
# One block in shared memory, one block with scratch in global memory, and teams of blocks.
SHAPES = [(1, 1, 1), (1, 1, 5), (1, 5, 1), (3, 17, 9), (2, 33, 70), (1, 40, 40), (1, 98, 100)]


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def near_orthogonal(seed, b, m, n, low, high):
    """Singular values evenly spaced in [low, high]."""
    u, s, vh = np.linalg.svd(random(seed, b, m, n), full_matrices=False)
    s = np.linspace(high, low, s.shape[-1]) if s.shape[-1] > 1 else np.ones(1)
    return u * s @ vh


def close(actual, expected, tolerance, terms=0.0):
    """``terms``: of this size are the terms that cancel."""
    scale = max(1e-30, float(np.abs(expected).max(initial=0)), float(np.abs(terms).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def tolerance(dtype):
    return 1e-10 if dtype is np.float64 else 3e-5


def gram(w):
    return w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T


def power_reference(w, u, v, n, eps):
    w, u, v, sigma = w.astype(float), u.astype(float), v.astype(float), 0.0
    if n == 0:
        return u @ w @ v, u, v
    for _ in range(n):
        t = w @ v
        s = w.T @ t
        length = np.linalg.norm(t)
        sigma = np.linalg.norm(s) / length if length > eps else length
        if not length > eps or not np.isfinite(sigma) or not np.linalg.norm(s) > 0:
            break
        u, v = t / length, s / np.linalg.norm(s)
    return sigma, u, v
