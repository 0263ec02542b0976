"""Proven bounds of the spectral norm on the host's model of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from host_model import KINDS, SHAPES, near_orthogonal, random, run


def bounds(programs, w, squarings=10, **settings):
    dtype = w.dtype.type
    outputs = [((len(w),), dtype)]
    return run(programs, "spectral_bound", dtype, w.shape, [w], [squarings], outputs, **settings)[0]


@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bound_is_never_below_and_close(programs, dtype, products, shape):
    for w in (random(0, *shape), near_orthogonal(0, *shape, 0.999, 1.001)):
        w = w.astype(dtype)
        exact = np.linalg.norm(w.astype(float), ord=2, axis=(1, 2))
        found = bounds(programs, w, products=products) / exact
        assert (found >= 1).all() and (found < 1.002).all()


@KINDS
def test_bound_of_hostile_weights(programs, dtype, products):
    w = random(0, 4, 20, 37).astype(dtype)
    w[0] = 0
    w[1, 3, 4] = np.nan
    w[2] *= 1e-18
    w[3] *= 1e18
    found = bounds(programs, w, products=products)
    assert found[0] == 0 and np.isnan(found[1])
    exact = np.linalg.norm(w[2:].astype(float), ord=2, axis=(1, 2))
    assert ((found[2:] >= exact) & (found[2:] < 1.002 * exact)).all()
