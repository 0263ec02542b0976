"""The polar factor and its gradient on the host's model of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from host_model import DTYPES, KINDS, SHAPES, close, gram, near_orthogonal, random, run

TOL = 1e-4
SOLVE = 20 * TOL  # what the gradient's solve is allowed in practice


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


def forward(programs, w, scale=1.0, save=True, tol=TOL, **settings):
    """Results of a launch on one or several items: lists of (out, info, saved)."""
    items = w if isinstance(w, list) else [w]
    outputs = []
    for x in items:
        n = min(x.shape[1:])
        outputs += [(x.shape, x.dtype), ((len(x), 5), np.float64)]
        # The inverse root, and the factor if it would be accurate enough.
        matrices = (x.shape[1] != x.shape[2]) + (tol >= 2e-5)
        outputs += [((len(x), matrices, n, n), x.dtype)] if save else []
    shapes = [x.shape for x in items]
    found = run(
        programs,
        "orthogonalize",
        items[0].dtype.type,
        shapes,
        items,
        [tol, scale, int(save)],
        outputs,
        **settings,
    )
    each = 3 if save else 2
    return [found[i : i + each] for i in range(0, len(found), each)]


def backward(programs, g, w, results, scale=1.0, tangent=False, solve=1e-5, **settings):
    items = w if isinstance(w, list) else [w]
    grads = g if isinstance(g, list) else [g]
    arrays = []
    for gi, x, (out, info, saved) in zip(grads, items, results, strict=True):
        arrays += [gi, x, out, *([saved] if saved.size else []), info]
        factors = saved.shape[1] - (x.shape[1] != x.shape[2])
    return run(
        programs,
        "orthogonalize_backward",
        items[0].dtype.type,
        [x.shape for x in items],
        arrays,
        [solve, scale, int(tangent), factors],
        [(x.shape, x.dtype) for x in items],
        **settings,
    )


def check(w, g, out, info, grad, scale, accuracy=2e-3, product=0.0):
    """``product``: the relative error of products, which small singular values show enlarged."""
    for i in range(len(w)):
        q, s = polar_reference(w[i].astype(float))
        assert np.linalg.norm(out[i] / scale - q) < 1.5 * TOL + product * s[0] / s[-1]
        assert np.linalg.norm(out[i].astype(float), 2) <= scale * info[i, 3] * (1 + 1e-6)
        expected = scale * polar_gradient(g[i].astype(float), w[i].astype(float))
        close(grad[i], expected, accuracy * max(1.0, s[0] / s[-1] / 10), g[i] / s[0])


@KINDS
@pytest.mark.parametrize("low, high", [(0.88, 1.45), (1e-2, 5.0), (0.999, 1.001)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonalize(programs, dtype, products, shape, low, high):
    w = near_orthogonal(0, *shape, low, high).astype(dtype)
    g = random(1, *shape).astype(dtype)
    results = forward(programs, w, 0.9, products=products)
    (grad,) = backward(programs, g, w, results, 0.9, products=products)
    check(w, g, *results[0][:2], grad, 0.9)


@DTYPES
@pytest.mark.parametrize("low", [0.03, 0.5, 0.88])
@pytest.mark.parametrize("shape", [(2, 70, 20), (1, 20, 40), (1, 30, 30)], ids=str)
def test_nothing_saved(programs, dtype, shape, low):
    """The same result, from scratch that suffices whatever the size of the elements."""
    w = near_orthogonal(0, *shape, low, 1.45).astype(dtype)
    for scale in [1.0, 1e-3]:
        (out, info), (kept, kept_info, _) = (
            forward(programs, (w * scale).astype(dtype), save=save)[0] for save in (False, True)
        )
        assert (out == kept).all() and (info == kept_info).all()
        assert np.linalg.norm(out[0] - polar_reference(w[0].astype(float))[0]) < 2 * TOL


@KINDS
@pytest.mark.parametrize("low, high", [(0.88, 1.45), (0.88, 1.1), (0.97, 1.03)])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 12, 12)], ids=str)
def test_the_factor_gives_the_gradient(programs, dtype, products, shape, low, high):
    """Without an iteration, which would ask for W."""
    w = near_orthogonal(0, *shape, low, high).astype(dtype)
    g = random(1, *shape).astype(dtype)
    ((out, info, saved),) = forward(programs, w, 0.9, products=products)
    if min(shape[1:]) > 1:
        assert (saved[:, -1, 0, 0] > 0).all()
    close(saved[:, -1], saved[:, -1].swapaxes(1, 2), 0.0, saved[:, -1])
    (grad,) = backward(programs, g, w, [(out, info, saved)], 0.9, solve=SOLVE, products=products)
    check(w, g, out, info, grad, 0.9)
    if shape[1] == shape[2]:  # W is asked for by the iteration alone
        (alone,) = backward(
            programs, g, 0 * w, [(out, info, saved)], 0.9, solve=SOLVE, products=products
        )
        assert np.array_equal(alone, grad)
    if min(shape[1:]) > 1:  # and another factor gives another gradient
        other = saved.copy()
        other[:, -1] *= 1.1
        (changed,) = backward(
            programs, g, w, [(out, info, other)], 0.9, solve=SOLVE, products=products
        )
        assert np.abs(changed - grad).max() > 1e-3 * np.abs(grad).max()


@pytest.mark.parametrize("low, high", [(0.1, 1.45), (0.5, 1.0)])
def test_a_wide_spectrum_has_no_factor(programs, low, high):
    w = near_orthogonal(0, 2, 24, 24, low, high).astype(np.float32)
    g = random(1, 2, 24, 24).astype(np.float32)
    results = forward(programs, w)
    assert not results[0][2].any()
    (grad,) = backward(programs, g, w, results, solve=SOLVE)
    check(w, g, *results[0][:2], grad, 1.0)


@pytest.mark.parametrize("spread", [1e-9, 1e-6, 1e-4])
@pytest.mark.parametrize("shape", [(24, 24), (40, 24)], ids=str)
def test_the_gradient_of_what_is_nearly_a_multiple_of_an_orthonormal_weight(
    programs, shape, spread
):
    w = near_orthogonal(3, 1, *shape, 1.3 - spread, 1.3 + spread)
    g = random(5, *w.shape)
    results = forward(programs, w, tol=1e-12)
    (grad,) = backward(programs, g, w, results, solve=1e-11)
    expected = polar_gradient(g[0], w[0])
    assert np.linalg.norm(grad[0] - expected) < 1e-10 * np.linalg.norm(expected)


@DTYPES
@pytest.mark.parametrize("condition", [300.0, 9e3])
@pytest.mark.parametrize("shape", [(24, 24), (64, 64), (40, 24)], ids=str)
def test_the_gradient_of_ill_conditioned_weights(programs, dtype, shape, condition):
    """A few singular values far below the others, which the forward's estimate may miss by far."""
    n = min(shape)
    u, _, vh = np.linalg.svd(random(0, *shape), full_matrices=False)
    s = np.where(np.arange(n) < n - 3, 1.0, 1 / condition)
    w, g = ((u * s) @ vh).astype(dtype)[None], random(1, *shape).astype(dtype)[None]
    results = forward(programs, w)
    (grad,) = backward(programs, g, w, results, solve=SOLVE)
    exact = polar_gradient(g[0].astype(float), w[0].astype(float))
    assert np.linalg.norm(grad[0] - exact) < 5e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("shape", [(1, 70, 300), (1, 400, 66)], ids=str)
def test_blocks_share_the_depth_of_a_tile(programs, shape):
    """Few tiles and much to add up in each."""
    w = near_orthogonal(0, *shape, 0.8, 1.3).astype(np.float32)
    g = random(1, *shape).astype(np.float32)
    settings = {"products": "split", "resident": 12}
    results = forward(programs, w, **settings)
    (grad,) = backward(programs, g, w, results, **settings)
    check(w, g, *results[0][:2], grad, 1.0)


@pytest.mark.parametrize("low", [0.88, 0.05])
def test_rough_products_end_with_a_step_in_float32(programs, low):
    """The same certificate, and gradients to what two pieces of a number allow."""
    w = near_orthogonal(0, 1, 80, 96, low, 1.45).astype(np.float32)
    g = random(1, 1, 80, 96).astype(np.float32)
    results = forward(programs, w, products="rough")
    out, info, _ = results[0]
    assert info[0, 2] < TOL
    assert np.linalg.norm(gram(out[0].astype(float)) - np.eye(80)) < 1.1 * TOL
    (grad,) = backward(programs, g, w, results, products="rough")
    check(w, g, out, info, grad, 1.0, product=2**-17)


@pytest.mark.parametrize("low", [0.05, 0.35, 0.5])
@pytest.mark.parametrize("products", ["rough", "split"])
def test_the_residual_of_a_tall_weight_is_no_illusion(programs, products, low):
    """Rough products are for results that are measured afterwards, and here they are not."""
    values = np.linspace(low, 1, 96)
    for shape in [(256, 96), (96, 256)]:
        w = near_orthogonal(0, 1, *shape, 1.0, 1.0)
        u, _, vh = np.linalg.svd(w[0], full_matrices=False)
        w = ((u * values) @ vh)[None].astype(np.float32)
        ((out, info),) = forward(programs, w, save=False, products=products)
        left = np.linalg.norm(gram(out[0].astype(float)) - np.eye(96))
        assert left <= 1.2 * info[0, 2] + 1e-6
        assert np.linalg.norm(out[0].astype(float), 2) <= info[0, 3]


@DTYPES
def test_orthogonalize_is_not_fooled(programs, dtype):
    w = random(0, 4, 24, 40).astype(dtype)
    w[0] = 0
    w[1, 2, 3] = np.nan
    w[2, 12:] = w[2, :12]  # rank 12
    w[3] *= 1e-20
    results = forward(programs, w)
    out, info, _ = results[0]
    assert (out[0] == 0).all() and np.isnan(out[1]).all()
    values = np.linalg.svd(out[2].astype(float), compute_uv=False)
    assert values[0] <= info[2, 3] * (1 + 1e-6) and values[0] < 1.0001 and values[11] > 0.9999
    assert np.linalg.norm(gram(out[3].astype(float)) - np.eye(24)) < 2e-4
    # The gradient where it is unbounded in theory.
    (grad,) = backward(programs, random(1, *w.shape).astype(dtype), w, results)
    assert (grad[0] == 0).all() and np.isfinite(grad[2:]).all()


def test_tangent_gradient(programs):
    w, g = near_orthogonal(0, 2, 12, 8, 1.0, 1.0), random(1, 2, 12, 8)
    results = [(w, np.ones((2, 5)), np.tile(np.eye(8), (2, 2, 1, 1)))]
    (grad,) = backward(programs, g, w, results, tangent=True)
    for i in range(2):
        a = w[i].T @ g[i]
        close(grad[i], w[i] @ (a - a.T) / 2 + g[i] - w[i] @ a, 1e-10)


@KINDS
def test_many_sizes_in_one_launch(programs, dtype, products):
    """Teams, and a pool that takes the rest; bit for bit what a launch of their own gives."""
    shapes = [(1, 6, 6), (1, 150, 130), (3, 17, 9), (1, 5, 40), (2, 1, 3), (1, 40, 40)]
    w = [near_orthogonal(i, *s, 0.9, 1.3).astype(dtype) for i, s in enumerate(shapes)]
    g = [random(i, *s).astype(dtype) for i, s in enumerate(shapes)]
    results = forward(programs, w, products=products)
    grads = backward(programs, g, w, results, products=products)
    for x, gi, (out, info, _), grad in zip(w, g, results, grads, strict=True):
        check(x, gi, out, info, grad, 1.0)
