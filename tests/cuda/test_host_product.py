"""Products by tiles on the host's model of a GPU, in whatever way they are made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from host_model import KINDS, random, run


def product(programs, dtype, a, b, x, *, transposed=(0, 0), symmetric=0, rough=0, **settings):
    (m, k), n = a.shape, b.shape[1]
    stored = [y.T if t else y for y, t in zip((a, b), transposed, strict=True)]
    return run(
        programs,
        "product",
        dtype,
        (m, n, k),
        [*stored, x],
        [*transposed, symmetric, rough],
        [((m, n), dtype), ((m, n), dtype)],
        **settings,
    )


def check(found, a, b, x, accuracy):
    """Relative to what rounding does to the sum of the absolute values."""
    exact, size = a.astype(float) @ b.astype(float), np.abs(a).astype(float) @ np.abs(b) + 1
    errors = [
        np.abs(found[0] - (2 * exact + 3 * x.astype(float) + np.eye(*x.shape))) / (2 * size),
        np.abs(found[1] - (exact - x.astype(float))) / size,
    ]
    assert max(float(e.max()) for e in errors) < accuracy


# Whole tiles and parts of them, depths that end in the middle of a chunk, lines that cannot be read
# two at a time.
@KINDS
@pytest.mark.parametrize(
    "m, n, k", [(1, 1, 1), (64, 64, 32), (65, 130, 33), (33, 70, 100), (129, 40, 7)]
)
def test_product(programs, dtype, products, m, n, k):
    a, b, x = (random(i, *s).astype(dtype) for i, s in enumerate([(m, k), (k, n), (m, n)]))
    accuracy = 1e-6 if dtype is np.float32 else 1e-15
    for transposed, resident in zip(itertools.product((0, 1), (0, 1)), (1, 4, 3, 2), strict=True):
        found = product(
            programs, dtype, a, b, x, transposed=transposed, products=products, resident=resident
        )
        check(found, a, b, x, accuracy)


@KINDS
@pytest.mark.parametrize("n", [20, 64, 150])
def test_symmetric_product_is_exactly_symmetric(programs, dtype, products, n):
    a, x = random(0, n, 40).astype(dtype), random(1, n, n).astype(dtype)
    x += x.T
    found = product(programs, dtype, a, a.T, x, symmetric=1, products=products, resident=2)
    check(found, a, a.T, x, 1e-6 if dtype is np.float32 else 1e-15)
    assert all((y == y.T).all() for y in found)


# Depths that blocks cannot share evenly: a little is over, or the last blocks have nothing to do.
@pytest.mark.parametrize(
    "symmetric, n, k", [(0, 70, 600), (1, 70, 600), (0, 40, 900), (0, 40, 1290)]
)
def test_blocks_share_the_depth_of_a_tile(programs, symmetric, n, k):
    a, x = random(0, n, k).astype(np.float32), random(1, n, n).astype(np.float32)
    x += x.T
    b = np.ascontiguousarray(a.T)
    settings = {"symmetric": symmetric, "products": "split", "resident": 13}
    found = product(programs, np.float32, a, b, x, **settings)
    check(found, a, b, x, 1e-6)


def test_three_pieces_are_float32_and_two_are_what_they_say(programs):
    """Errors relative to float64, beside those of float32 by NumPy."""
    a, b = random(0, 64, 512).astype(np.float32), random(1, 512, 64).astype(np.float32)
    exact, none = a.astype(float) @ b.astype(float), np.zeros((64, 64), np.float32)
    plain = np.abs(a @ b - exact).max()
    errors = [
        np.abs(product(programs, np.float32, a, b, none, rough=r, products=p)[1] - exact).max()
        for p, r in (("split", 1), ("rough", 0), ("rough", 1))
    ]
    assert errors[0] == errors[1] < 2 * plain
    assert 4 * plain < errors[2] < 2**-15 * np.abs(exact).max()


def test_pieces_have_the_range_of_float32(programs):
    a, b = random(0, 40, 48).astype(np.float32), random(1, 48, 40).astype(np.float32)
    none = np.zeros((40, 40), np.float32)
    for unit in (1e-18, 1e18):
        found = product(programs, np.float32, a * np.float32(unit), b, none, products="split")
        exact = (a * np.float32(unit)).astype(float) @ b.astype(float)
        assert np.abs(found[1] - exact).max() < 1e-6 * np.abs(exact).max()
    a[3, 5], b[7, 2] = np.inf, np.nan
    found = product(programs, np.float32, a, b, none, products="split")[1]
    touched = np.zeros((40, 40), bool)
    touched[3], touched[:, 2] = True, True
    assert (~np.isfinite(found) == touched).all()
