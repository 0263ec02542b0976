"""Björck's iteration and its adjoint on the host's model of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from host_model import KINDS, SHAPES, close, power_reference, random, run, tolerance


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


@KINDS
@pytest.mark.parametrize(
    "shape, save", [*((shape, 1) for shape in SHAPES), ((2, 33, 70), 0)], ids=str
)
def test_bjorck(programs, dtype, products, shape, save):
    b, m, n = shape
    w = random(0, *shape)
    w /= 0.7 * np.linalg.norm(w, ord=2, axis=(1, 2))[:, None, None]
    w, g = w.astype(dtype), random(1, *shape).astype(dtype)
    eps = 1e-3
    history = [((b, 12, m, n), dtype)] if save else []
    out, steps, *kept = run(
        programs,
        "bjorck",
        dtype,
        shape,
        [w],
        [0.5, 12, eps, 1.0, save],
        [(shape, dtype), ((b,), np.int64), *history],
        products=products,
    )
    for i in range(b):
        expected, iterates = bjorck_reference(w[i].astype(float), 0.5, 12, eps)
        assert steps[i] == len(iterates)
        close(out[i], expected, tolerance(dtype) * 10)
        if save:
            close(kept[0][i, : len(iterates)], np.array(iterates), tolerance(dtype) * 10)
    if not save:
        return
    (grad,) = run(
        programs,
        "bjorck_backward",
        dtype,
        shape,
        [g, kept[0], steps],
        [0.5, 12, 1.0],
        [(shape, dtype)],
        products=products,
    )
    for i in range(b):
        iterates = list(kept[0][i, : steps[i]].astype(float))
        close(grad[i], bjorck_gradient(g[i].astype(float), iterates, 0.5), tolerance(dtype) * 30)


@KINDS
@pytest.mark.parametrize("shape", [(1, 5, 1), (2, 20, 12), (2, 12, 20), (1, 98, 100)], ids=str)
def test_spectral_bjorck(programs, dtype, products, shape):
    b, m, n = shape
    w, u, v, g = (random(i, *s).astype(dtype) for i, s in enumerate([shape, (b, m), (b, n), shape]))
    # One step from a random vector: sigma is too small, and the guard has to act.
    sigma, new_u, new_v, out, steps, history = run(
        programs,
        "spectral_bjorck",
        dtype,
        shape,
        [w, u, v],
        [1, 1e-12, 1, 0.5, 8, 1e-3, 0.9, 1],
        [
            ((b, 2), dtype),
            ((b, m), dtype),
            ((b, n), dtype),
            (shape, dtype),
            ((b,), np.int64),
            ((b, 8, m, n), dtype),
        ],
        products=products,
    )
    (grad,) = run(
        programs,
        "spectral_bjorck_backward",
        dtype,
        shape,
        [g, history, steps, sigma, new_u, new_v],
        [0.5, 8, 0.9, 1e-12],
        [(shape, dtype)],
        products=products,
    )
    for i in range(b):
        s = power_reference(w[i], u[i], v[i], 1, 1e-12)[0]
        close(sigma[i, 0], s, tolerance(dtype) * 10)
        first = w[i] / s * sigma[i, 1]
        assert np.linalg.norm(first, 2) < np.sqrt(3)
        expected, iterates = bjorck_reference(first, 0.5, 8, 1e-3)
        assert steps[i] == len(iterates)
        close(out[i], 0.9 * expected, tolerance(dtype) * 30)
        back = bjorck_gradient(0.9 * g[i].astype(float), iterates, 0.5)
        direct = sigma[i, 1] / s * back
        back = direct - (back * first).sum() / s * np.outer(new_u[i], new_v[i])
        close(grad[i], back, tolerance(dtype) * 100, direct)


def test_no_more_steps_than_were_kept(programs):
    """Whatever `steps` says, which only the device knows."""
    shape = (3, 6, 5)
    g, history = random(0, *shape), random(1, 3, 4, 6, 5)

    def gradient(*steps):
        given = [g, history, np.array(steps)]
        outputs = [(shape, g.dtype)]
        return run(programs, "bjorck_backward", g.dtype, shape, given, [0.5, 4, 1.0], outputs)[0]

    assert np.array_equal(gradient(-7, 2**32 + 1, 5), gradient(0, 4, 4))
