"""The CUDA kernels without a GPU: their bodies run on the host, thread by thread, against float64.

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
RESIDENT, SHARED = 6, 99 * 1024
FLAGS = {
    "memory": ["-fsanitize=address", "-fno-omit-frame-pointer"],
    "races": ["-fsanitize=thread"],
}


def _build() -> dict[str, Path]:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        pytest.skip("the host's model of a GPU needs g++ on Linux")
    headers = [p for d in ("algorithms", "cuda") for p in sorted((ROOT / "csrc" / d).glob("*.h"))]
    digest = hashlib.sha256(compiler.encode())
    for path in [SOURCE, Path(__file__), *headers]:
        digest.update(path.read_bytes())
    where = (
        Path(tempfile.gettempdir()) / f"lipfuse_host_cuda_{os.getuid()}_{digest.hexdigest()[:16]}"
    )
    where.mkdir(exist_ok=True)
    jobs = []
    for name, flags in FLAGS.items():
        if (where / name).is_file():
            continue
        scratch = where / f"{name}.{os.getpid()}"
        command = [compiler, "-std=c++20", "-O1", "-g1", *flags, f"-I{ROOT / 'csrc'}", str(SOURCE)]
        jobs.append((name, scratch, subprocess.Popen([*command, "-o", str(scratch)])))
    for name, scratch, job in jobs:
        if job.wait():
            pytest.fail(f"the host's model of the CUDA kernels does not compile ({name})")
        scratch.replace(where / name)
    return {name: where / name for name in FLAGS}


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    return _build()


def start(program, op, dtype, batch, rows, cols, arrays, parameters, resident, shared, order):
    arguments = [op, np.dtype(dtype).name, batch, rows, cols, resident, shared, order, *parameters]
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return subprocess.run(
        [str(program), *map(str, arguments)],
        input=data,
        capture_output=True,
        timeout=280,
        check=False,
        env={
            **os.environ,
            "TSAN_OPTIONS": "report_bugs=1 exitcode=66",
            "ASAN_OPTIONS": "detect_leaks=0",
        },
    )


def run(
    program,
    op,
    dtype,
    shape,
    arrays,
    parameters,
    outputs,
    resident=RESIDENT,
    shared=SHARED,
    order="forward",
):
    """Runs a kernel; ``outputs`` are the (shape, dtype) of what it writes."""
    batch, rows, cols = shape
    done = start(program, op, dtype, batch, rows, cols, arrays, parameters, resident, shared, order)
    text = done.stderr.decode()
    if "unexpected memory mapping" in text:
        pytest.skip("ThreadSanitizer does not run on this kernel's memory layout")
    assert done.returncode == 0, text[-4000:]
    results, at = [], 0
    for size, kind in outputs:
        count = int(np.prod(size))
        results.append(np.frombuffer(done.stdout, kind, count, at).reshape(size))
        at += count * np.dtype(kind).itemsize
    assert at == len(done.stdout)
    return results


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def close(actual, expected, tolerance, terms=0.0):
    """``terms``: of this size are the terms that cancel."""
    scale = max(1e-30, float(np.abs(expected).max(initial=0)), float(np.abs(terms).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def tolerance(dtype):
    return 1e-10 if dtype is np.float64 else 3e-5


DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# One block in shared memory, one block with scratch in global memory, and a team of several blocks.
SHAPES = [(1, 1, 1), (1, 1, 5), (1, 5, 1), (3, 17, 9), (2, 33, 70), (1, 40, 40), (1, 98, 100)]


# ---- float64 references --------------------------------------------------------------------------


def power_reference(w, u, v, n, eps):
    u, v, sigma = u.copy(), v.copy(), 0.0
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


def gram(w):
    return w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T


def bjorck_reference(w, beta, most, eps):
    history = []
    for _ in range(most):
        history.append(w)
        new = (1 + beta) * w - beta * (w @ w.T @ w)
        done = np.linalg.norm(new - w) < eps
        w = new
        if done:
            break
    return w, history


def bjorck_gradient(g, history, beta):
    for w in reversed(history):
        g = (1 + beta) * g - beta * (g @ w.T @ w + w @ g.T @ w + w @ w.T @ g)
    return g


def polar_reference(w):
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    return u @ vh, s


def polar_gradient(g, w):
    if w.shape[0] < w.shape[1]:
        return polar_gradient(g.T, w.T).T
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    a = u.T @ g @ vh.T
    k = (a - a.T) / (s[:, None] + s[None, :])
    return u @ k @ vh + (g @ vh.T - u @ a) / s @ vh


# ---- power iteration -----------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_power_iteration(programs, dtype, shape):
    b, m, n = shape
    w, u, v = (random(i, *s).astype(dtype) for i, s in enumerate([(b, m, n), (b, m), (b, n)]))
    for steps in (0, 1, 3):
        sigma, new_u, new_v = run(
            programs["memory"],
            "power_iteration",
            dtype,
            shape,
            [w, u, v],
            [steps, 1e-12, 1],
            [((b,), dtype), ((b, m), dtype), ((b, n), dtype)],
        )
        for i in range(b):
            expected = power_reference(
                w[i].astype(float), u[i].astype(float), v[i].astype(float), steps, 1e-12
            )
            close(sigma[i], expected[0], tolerance(dtype) * 10)
            close(new_u[i], expected[1], tolerance(dtype) * 10)
            close(new_v[i], expected[2], tolerance(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("resident", [1, 6])
def test_power_iteration_leaves_vectors_alone(programs, dtype, resident):
    shape = (3, 150, 64)
    b, m, n = shape
    w, u, v = (random(i, *s).astype(dtype) for i, s in enumerate([(b, m, n), (b, m), (b, n)]))
    w[0] = 0
    w[1, 3, 4] = np.nan
    w[2] *= 1e25 if dtype is np.float32 else 1e200  # squares leave the range
    sigma, new_u, new_v = run(
        programs["memory"],
        "power_iteration",
        dtype,
        shape,
        [w, u, v],
        [2, 1e-12, 1],
        [((b,), dtype), ((b, m), dtype), ((b, n), dtype)],
        resident=resident,
    )
    assert sigma[0] == 0 and np.isnan(sigma[1])
    assert (new_u[:2] == u[:2]).all() and (new_v[:2] == v[:2]).all()
    unit = float(np.abs(w[2]).max())
    expected = power_reference(
        w[2].astype(float) / unit, u[2].astype(float), v[2].astype(float), 2, 1e-12
    )
    close(sigma[2] / unit, expected[0], tolerance(dtype) * 10)
    close(new_v[2], expected[2], tolerance(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("shape", [(2, 9, 14), (1, 150, 130)], ids=str)
def test_power_iteration_starts_from_u_alone(programs, dtype, shape):
    b, m, n = shape
    w, u = random(0, *shape).astype(dtype), random(1, b, m).astype(dtype)
    sigma, _, new_v = run(
        programs["memory"],
        "power_iteration",
        dtype,
        shape,
        [w, u],
        [1, 1e-12, 0],
        [((b,), dtype), ((b, m), dtype), ((b, n), dtype)],
    )
    for i in range(b):
        v = w[i].astype(float).T @ u[i]
        expected = power_reference(w[i].astype(float), u[i], v / np.linalg.norm(v), 1, 1e-12)
        close(sigma[i], expected[0], tolerance(dtype) * 10)
        close(new_v[i], expected[2], tolerance(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spectral_normalize(programs, dtype, shape):
    b, m, n = shape
    w, u, v, g = (random(i, *s).astype(dtype) for i, s in enumerate([shape, (b, m), (b, n), shape]))
    gs = random(9, b).astype(dtype)
    out, sigma, u, v = run(
        programs["memory"],
        "spectral_normalize",
        dtype,
        shape,
        [w, u, v],
        [2, 1e-12, 1, 0.7],
        [(shape, dtype), ((b,), dtype), ((b, m), dtype), ((b, n), dtype)],
    )
    close(out, 0.7 * w / sigma[:, None, None], tolerance(dtype))
    sigma = sigma.copy()
    sigma[0] = -sigma[0]  # stale vectors may give a negative one
    for both in (0, 1):
        (grad,) = run(
            programs["memory"],
            "spectral_normalize_backward",
            dtype,
            shape,
            [g, gs, out, sigma, u, v] if both else [g, out, sigma, u, v],
            [1e-12, 0.7, both],
            [(shape, dtype)],
        )
        for i in range(b):
            s = float(sigma[i])
            along = -(g[i].astype(float) * out[i]).sum() / s + both * gs[i]
            direct = 0.7 / s * g[i].astype(float)
            close(grad[i], direct + along * np.outer(u[i], v[i]), tolerance(dtype) * 10, direct)
    (outer,) = run(
        programs["memory"],
        "power_iteration_backward",
        dtype,
        shape,
        [gs, u, v],
        [],
        [(shape, dtype)],
    )
    close(outer, gs[:, None, None] * u[:, :, None] * v[:, None, :], tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("rows, n", [(1, 1), (5, 7), (1, 30000), (3, 300)])
def test_frobenius_normalize(programs, dtype, rows, n):
    w, g = random(0, rows, n).astype(dtype), random(1, rows, n).astype(dtype)
    if rows > 1:
        w[1] = 0
    out, norm = run(
        programs["memory"],
        "frobenius_normalize",
        dtype,
        (rows, 1, n),
        [w],
        [1e-12, 0.5],
        [((rows, n), dtype), ((rows,), dtype)],
    )
    length = np.linalg.norm(w.astype(float), axis=1)
    close(norm, length, tolerance(dtype))
    close(out, 0.5 * w / np.maximum(length, 1e-12)[:, None], tolerance(dtype))
    (grad,) = run(
        programs["memory"],
        "frobenius_normalize_backward",
        dtype,
        (rows, 1, n),
        [g, out, norm],
        [1e-12, 0.5],
        [((rows, n), dtype)],
    )
    live = length > 0
    y = out[live].astype(float)
    expected = 0.5 * g[live] - (g[live] * y).sum(1, keepdims=True) * y / 0.5
    direct = 0.5 * g[live] / length[live][:, None]
    close(grad[live], expected / length[live][:, None], tolerance(dtype) * 10, direct)


# ---- Björck --------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("save", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bjorck(programs, dtype, shape, save):
    b, m, n = shape
    w = random(0, *shape)
    w /= 0.7 * np.linalg.norm(w, ord=2, axis=(1, 2))[:, None, None]
    w, g = w.astype(dtype), random(1, *shape).astype(dtype)
    eps = 1e-3
    out, steps, history = run(
        programs["memory"],
        "bjorck",
        dtype,
        shape,
        [w],
        [0.5, 12, eps, 1.0, save],
        [(shape, dtype), ((b,), np.int64), ((b, 12 * save, m, n), dtype)],
    )
    for i in range(b):
        expected, kept = bjorck_reference(w[i].astype(float), 0.5, 12, eps)
        assert steps[i] == len(kept)
        close(out[i], expected, tolerance(dtype) * 10)
        if save:
            close(history[i, : len(kept)], np.array(kept), tolerance(dtype) * 10)
    if not save:
        return
    (grad,) = run(
        programs["memory"],
        "bjorck_backward",
        dtype,
        shape,
        [g, history, steps],
        [0.5, 12, 1.0],
        [(shape, dtype)],
    )
    for i in range(b):
        kept = list(history[i, : steps[i]].astype(float))
        close(grad[i], bjorck_gradient(g[i].astype(float), kept, 0.5), tolerance(dtype) * 30)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 5, 1), (2, 20, 12), (2, 12, 20), (1, 98, 100)], ids=str)
def test_spectral_bjorck(programs, dtype, shape):
    b, m, n = shape
    w, u, v, g = (random(i, *s).astype(dtype) for i, s in enumerate([shape, (b, m), (b, n), shape]))
    # One step from a random vector: sigma is too small, and the guard has to act.
    out, steps, sigma, new_u, new_v, history = run(
        programs["memory"],
        "spectral_bjorck",
        dtype,
        shape,
        [w, u, v],
        [0.5, 8, 1e-3, 0.9, 1, 1, 1e-12],
        [
            (shape, dtype),
            ((b,), np.int64),
            ((b, 2), dtype),
            ((b, m), dtype),
            ((b, n), dtype),
            ((b, 8, m, n), dtype),
        ],
    )
    (grad,) = run(
        programs["memory"],
        "spectral_bjorck_backward",
        dtype,
        shape,
        [g, history, steps, sigma, new_u, new_v],
        [0.5, 8, 0.9, 1e-12],
        [(shape, dtype)],
    )
    for i in range(b):
        s = power_reference(w[i].astype(float), u[i].astype(float), v[i].astype(float), 1, 1e-12)[0]
        close(sigma[i, 0], s, tolerance(dtype) * 10)
        first = w[i] / s * sigma[i, 1]
        assert np.linalg.norm(first, 2) < np.sqrt(3)
        expected, kept = bjorck_reference(first, 0.5, 8, 1e-3)
        assert steps[i] == len(kept)
        close(out[i], 0.9 * expected, tolerance(dtype) * 30)
        back = bjorck_gradient(0.9 * g[i].astype(float), kept, 0.5)
        direct = sigma[i, 1] / s * back
        back = direct - (back * first).sum() / s * np.outer(new_u[i], new_v[i])
        close(grad[i], back, tolerance(dtype) * 100, direct)


# ---- the polar factor ----------------------------------------------------------------------------


def near_orthogonal(seed, b, m, n, low, high):
    w = random(seed, b, m, n)
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    s = np.linspace(high, low, s.shape[-1]) if s.shape[-1] > 1 else s / s
    return u * s @ vh


@DTYPES
@pytest.mark.parametrize("low, high", [(0.88, 1.45), (1e-2, 5.0), (0.999, 1.001)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonalize(programs, dtype, shape, low, high):
    b, m, n = shape
    w = near_orthogonal(0, *shape, low, high).astype(dtype)
    g = random(1, *shape).astype(dtype)
    small, save = min(m, n), int(m != n)
    tol = 1e-4
    out, info, root = run(
        programs["memory"],
        "orthogonalize",
        dtype,
        shape,
        [w],
        [tol, 0.9, save],
        [(shape, dtype), ((b, 5), np.float64), ((b, small * save, small * save), dtype)],
    )
    (grad,) = run(
        programs["memory"],
        "orthogonalize_backward",
        dtype,
        shape,
        [g, w, out, root, info],
        [1e-5, 0.9, 0, save],
        [(shape, dtype)],
    )
    for i in range(b):
        q, s = polar_reference(w[i].astype(float))
        assert np.linalg.norm(out[i] / 0.9 - q) < 1.5 * tol
        assert np.linalg.norm(out[i].astype(float), 2) <= 0.9 * info[i, 3] * (1 + 1e-6)
        expected = 0.9 * polar_gradient(g[i].astype(float), w[i].astype(float))
        accuracy = 2e-3 * max(1.0, s[0] / s[-1] / 10)
        close(grad[i], expected, accuracy, g[i] / s[0])


@DTYPES
def test_orthogonalize_is_not_fooled(programs, dtype):
    shape = (4, 24, 40)
    w = random(0, *shape).astype(dtype)
    w[0] = 0
    w[1, 2, 3] = np.nan
    w[2, 12:] = w[2, :12]  # rank 12
    w[3] *= 1e-20
    out, info, root = run(
        programs["memory"],
        "orthogonalize",
        dtype,
        shape,
        [w],
        [1e-4, 1.0, 1],
        [(shape, dtype), ((4, 5), np.float64), ((4, 24, 24), dtype)],
    )
    assert (out[0] == 0).all() and np.isnan(out[1]).all()
    values = np.linalg.svd(out[2].astype(float), compute_uv=False)
    assert values[0] <= info[2, 3] * (1 + 1e-6) and values[0] < 1.0001 and values[11] > 0.9999
    assert np.linalg.norm(gram(out[3].astype(float)) - np.eye(24)) < 2e-4
    # The gradient where it is unbounded in theory.
    (grad,) = run(
        programs["memory"],
        "orthogonalize_backward",
        dtype,
        shape,
        [random(1, *shape).astype(dtype), w, out, root, info],
        [1e-4, 1.0, 0, 1],
        [(shape, dtype)],
    )
    assert (grad[0] == 0).all() and np.isfinite(grad[2:]).all()


def test_tangent_gradient(programs):
    shape, dtype = (2, 12, 8), np.float64
    w, g = near_orthogonal(0, *shape, 1.0, 1.0), random(1, *shape)
    (grad,) = run(
        programs["memory"],
        "orthogonalize_backward",
        dtype,
        shape,
        [g, w, w, np.tile(np.eye(8), (2, 1, 1)), np.ones((2, 5))],
        [1e-5, 1.0, 1, 1],
        [(shape, dtype)],
    )
    for i in range(2):
        a = w[i].T @ g[i]
        close(grad[i], w[i] @ (a - a.T) / 2 + g[i] - w[i] @ a, 1e-10)


# ---- the machine ---------------------------------------------------------------------------------

EVERY = {
    "power_iteration": ([3, 1e-12, 1], "wuv"),
    "spectral_normalize": ([2, 1e-12, 1, 0.7], "wuv"),
    "bjorck": ([0.5, 6, 1e-3, 1.0, 1], "w"),
    "spectral_bjorck": ([0.5, 6, 1e-3, 0.9, 1, 1, 1e-12], "wuv"),
    "orthogonalize": ([1e-4, 1.0, 1], "w"),
    "frobenius_normalize": ([1e-12, 1.0], "w"),
    "power_iteration_backward": ([], "suv"),
    "spectral_normalize_backward": ([1e-12, 0.7, 1], "wswsuv"),
    "bjorck_backward": ([0.5, 3, 1.0], "whc"),
    "spectral_bjorck_backward": ([0.5, 3, 0.9, 1e-12], "whc2uv"),
    "orthogonalize_backward": ([1e-3, 1.0, 0, 1], "wwwri"),
    "frobenius_normalize_backward": ([1e-12, 1.0], "wws"),
}


def inputs(letters, shape, dtype):
    b, m, n = shape
    small = min(m, n)
    q = near_orthogonal(0, b, m, n, 0.7, 1.3).astype(dtype)
    values = {
        "w": q,
        "u": random(1, b, m).astype(dtype),
        "v": random(2, b, n).astype(dtype),
        "s": np.ones(b, dtype),
        "h": np.repeat(q[:, None], 3, 1),
        "c": np.full(b, 3, np.int64),
        "2": np.ones((b, 2), dtype),
        "r": np.tile(np.eye(small, dtype=dtype), (b, 1, 1)),
        "i": np.tile([0.7, 1.3, 0, 1, 0.0], (b, 1)),
    }
    return [values[x] for x in letters]


def layouts(op):
    """(shape, resident blocks, shared memory): one block, one with global scratch, a team."""
    if op.startswith("frobenius"):
        return [((3, 1, 70), 6, SHARED), ((2, 1, 9000), 6, SHARED)]
    one = 46 * 1024  # little more than what the backend itself takes
    return [((2, 20, 12), 6, SHARED), ((1, 33, 40), 6, one), ((2, 97, 98), 6, SHARED)]


@pytest.mark.parametrize("op", EVERY)
def test_no_races(programs, op):
    parameters, letters = EVERY[op]
    for shape, resident, shared in layouts(op):
        done = start(
            programs["races"],
            op,
            np.float64,
            *shape,
            inputs(letters, shape, np.float64),
            parameters,
            resident,
            shared,
            "forward",
        )
        text = done.stderr.decode()
        if "unexpected memory mapping" in text:
            pytest.skip("ThreadSanitizer does not run on this kernel's memory layout")
        assert done.returncode == 0, text[:6000]


@pytest.mark.parametrize("op", EVERY)
def test_any_order_gives_the_same_bits(programs, op):
    parameters, letters = EVERY[op]
    for shape, resident, shared in layouts(op):
        results = []
        for order in ("backward", "shuffled"):
            done = start(
                programs["memory"],
                op,
                np.float32,
                *shape,
                inputs(letters, shape, np.float32),
                parameters,
                resident,
                shared,
                order,
            )
            assert done.returncode == 0, done.stderr.decode()[:6000]
            results.append(done.stdout)
        assert results[0] == results[1]


@pytest.mark.parametrize(
    "kind, program, says",
    [
        ("race", "races", "data race"),
        ("bounds", "memory", "use-after-poison"),
        ("barrier", "memory", "wait at a barrier"),
    ],
)
def test_mistakes_are_found(programs, kind, program, says):
    done = start(
        programs[program],
        f"mistake_{kind}",
        np.float64,
        1,
        1,
        1,
        [],
        [],
        RESIDENT,
        SHARED,
        "forward",
    )
    text = done.stderr.decode()
    if "unexpected memory mapping" in text:
        pytest.skip("ThreadSanitizer does not run on this kernel's memory layout")
    assert done.returncode != 0 and says in text
