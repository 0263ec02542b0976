"""Initialisers under deel-torchlip's names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tools
import torch

from lipfuse.nn import init

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3, 3), (1, 1)])
def test_spectral(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = torch.randn(shape).to(dtype)
    before = w.double()
    assert init.spectral_(w) is w
    eps = torch.finfo(dtype).eps
    assert tools.largest_singular_value(w.flatten(1)) == pytest.approx(1, abs=4 * eps)
    norm = tools.largest_singular_value(before.flatten(1))
    assert torch.allclose(w.double() * norm, before, rtol=2 * eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (4, 2, 3, 3)])
def test_bjorck(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = torch.nn.Parameter(torch.randn(shape).to(dtype))
    exact = tools.polar_factor(w.detach().double().flatten(1))
    assert init.bjorck_(w) is w
    assert w.requires_grad and w.grad_fn is None
    eps = torch.finfo(dtype).eps
    assert tools.relative_error(w.detach().flatten(1), exact) <= 2 * eps + 1e-5


def test_the_settings_of_the_iteration_count() -> None:
    w = torch.randn(6, 4)
    normal = w.double() / tools.largest_singular_value(w)
    one = init.bjorck_(w.clone(), maxiter_bjorck=2, beta=0.25)
    assert tools.relative_error(one, tools.plain_bjorck(normal, 0.25, 2)) <= 1e-6
    assert torch.equal(init.bjorck_(w.clone(), maxiter_bjorck=0), init.spectral_(w.clone()))
    assert torch.equal(
        init.bjorck_(w.clone(), eps_bjorck=100.0, maxiter_bjorck=9),
        init.bjorck_(w.clone(), maxiter_bjorck=1),
    )


@pytest.mark.parametrize("f", [init.spectral_, init.bjorck_])
def test_extreme_tensors(f: Any) -> None:
    assert torch.equal(f(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert f(torch.zeros(0, 4)).shape == (0, 4)
    for size in (1e-44, 1e-30, 1e30, 3e38):
        w = f(torch.full((3, 4), size))
        assert tools.largest_singular_value(w) == pytest.approx(1, abs=1e-6)
    for bad in (math.nan, math.inf):
        w = torch.ones(3, 4)
        w[1, 1] = bad
        with pytest.raises(ValueError, match="tensor must be finite"):
            f(w)
        assert float(w[0, 0]) == 1
    with pytest.raises(ValueError, match="tensor must have at least 2"):
        f(torch.ones(3))
    with pytest.raises(TypeError, match="tensor must have a real floating-point dtype"):
        f(torch.ones(3, 3).long())


@pytest.mark.parametrize("name", ["eps_spectral", "maxiter_spectral", "eps_bjorck"])
def test_bad_settings(name: str) -> None:
    w = torch.ones(2, 2)
    with pytest.raises(ValueError, match=f"{name} must be"):
        init.bjorck_(w, **{name: 0})
    with pytest.raises(ValueError, match="beta must be"):
        init.bjorck_(w, beta=0.6)
    assert torch.equal(w, torch.ones(2, 2))
