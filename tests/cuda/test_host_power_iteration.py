"""Power iteration, spectral and Frobenius normalisation on the host's model of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from host_model import DTYPES, SHAPES, close, power_reference, random, run, tolerance


def vectors(dtype, b, m, n):
    return random(1, b, m).astype(dtype), random(2, b, n).astype(dtype)


def outputs(dtype, b, m, n):
    return [((b,), dtype), ((b, m), dtype), ((b, n), dtype)]


def iterated(programs, w, u, v, steps, **settings):
    """sigma, u and v; without v they start from u."""
    given = [w, u] if v is None else [w, u, v]
    dtype, numbers = w.dtype.type, [steps, 1e-12, int(v is not None)]
    results = outputs(dtype, *w.shape)
    return run(programs, "power_iteration", dtype, w.shape, given, numbers, results, **settings)


def compared(found, w, u, v, steps, accuracy):
    for i in range(len(w)):
        expected = power_reference(w[i], u[i], v[i], steps, 1e-12)
        for actual, wanted in zip(found, expected, strict=True):
            close(actual[i], wanted, accuracy)


# A warp a row, with few and with many columns a thread; all threads a row; rows too long for that.
@DTYPES
@pytest.mark.parametrize("shape", [*SHAPES, (1, 9, 300), (1, 7, 1500), (2, 3, 5000), (1, 3, 6200)])
def test_power_iteration(programs, dtype, shape):
    w, (u, v) = random(0, *shape).astype(dtype), vectors(dtype, *shape)
    for steps in (0, 3) if shape[2] < 1000 else (2,):
        found = iterated(programs, w, u, v, steps)
        compared(found, w, u, v, steps, tolerance(dtype) * 10)


@DTYPES
def test_teams_of_blocks_share_rows(programs, dtype):
    shape = (1, 150, 400)
    w, (u, v) = random(0, *shape).astype(dtype), vectors(dtype, *shape)
    found = iterated(programs, w, u, v, 2)
    compared(found, w, u, v, 2, tolerance(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("resident", [1, 6])
def test_power_iteration_leaves_vectors_alone(programs, dtype, resident):
    shape = (3, 150, 64)
    w, (u, v) = random(0, *shape).astype(dtype), vectors(dtype, *shape)
    w[0] = 0
    w[1, 3, 4] = np.nan
    w[2] *= 1e25 if dtype is np.float32 else 1e200  # squares leave the range
    sigma, new_u, new_v = iterated(programs, w, u, v, 2, resident=resident)
    assert sigma[0] == 0 and np.isnan(sigma[1])
    assert (new_u[:2] == u[:2]).all() and (new_v[:2] == v[:2]).all()
    unit = float(np.abs(w[2]).max())
    found = [sigma[2:] / unit, new_u[2:], new_v[2:]]
    compared(found, w[2:].astype(float) / unit, u[2:], v[2:], 2, tolerance(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("shape", [(2, 9, 14), (1, 150, 130)], ids=str)
def test_power_iteration_starts_from_u_alone(programs, dtype, shape):
    w, (u, _) = random(0, *shape).astype(dtype), vectors(dtype, *shape)
    found = iterated(programs, w, u, None, 1)
    v = np.einsum("bmn,bm->bn", w.astype(float), u.astype(float))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    compared(found, w, u, v, 1, tolerance(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 17, 9), (1, 98, 100)], ids=str)
def test_spectral_normalize(programs, dtype, shape):
    b = shape[0]
    w, g = random(0, *shape).astype(dtype), random(3, *shape).astype(dtype)
    u, v = vectors(dtype, *shape)
    gs = random(9, b).astype(dtype)
    out, sigma, u, v = run(
        programs,
        "spectral_normalize",
        dtype,
        shape,
        [w, u, v],
        [2, 1e-12, 1, 0.7],
        [(shape, dtype), *outputs(dtype, *shape)],
    )
    close(out, 0.7 * w / sigma[:, None, None], tolerance(dtype))
    sigma = sigma.copy()
    sigma[0] = -sigma[0]  # stale vectors may give a negative one
    for both in (0, 1):
        (grad,) = run(
            programs,
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
        programs,
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
        programs,
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
        programs,
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
