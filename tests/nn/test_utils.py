"""What deel-torchlip has in its modules normalizers and utils."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tools
import torch

from lipfuse.nn import normalizers, utils


def test_names() -> None:
    norms = ["bjorck_norm", "frobenius_norm", "lconv_norm"]
    theirs = [*norms, *(f"remove_{n}" for n in norms), "evaluate_lip_const", "sqrt_with_gradeps"]
    assert set(theirs) <= set(utils.__all__)
    assert all(callable(getattr(utils, name)) for name in utils.__all__)


def test_root_with_a_gradient_at_zero() -> None:
    x = torch.tensor([0.0, 4.0, 0.25], dtype=torch.float64, requires_grad=True)
    y = utils.sqrt_with_gradeps(x, 1e-3)
    assert torch.equal(y, x.sqrt())
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.allclose(gradient, 1 / (2 * (x.sqrt() + 1e-3)))
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.allclose(second, -1 / (4 * (x.sqrt() + 1e-3) ** 3))
    mapped = torch.func.vmap(torch.func.grad(utils.sqrt_with_gradeps))(x.detach())
    assert torch.allclose(mapped, 1 / (2 * (x.detach().sqrt() + 1e-6)))
    assert float(utils.sqrt_with_gradeps(torch.tensor(-1.0)).isnan())
    with pytest.raises(ValueError, match="eps must be a positive"):
        utils.sqrt_with_gradeps(x, 0.0)
    with pytest.raises(TypeError, match="input must be a torch"):
        utils.sqrt_with_gradeps(2)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1)])
def test_spectral_normalization(shape: tuple[int, int]) -> None:
    w = tools.matrix("wide", shape).requires_grad_()
    norm = tools.largest_singular_value(w)
    out, u, sigma = normalizers.spectral_normalization(w, eps=1e-9, maxiter=500)
    assert u.shape == (1, shape[1]) and sigma.shape == ()
    assert float(sigma.detach()) == pytest.approx(norm, rel=1e-6)
    assert float((w @ u.mT).norm().detach()) == pytest.approx(norm, rel=1e-6)
    assert torch.allclose(out, w / sigma)
    # From where it ended, one iteration does.
    again = normalizers.spectral_normalization(w, u, maxiter=1)[2]
    assert float(again.detach()) == pytest.approx(norm, rel=1e-6)
    exact = torch.linalg.matrix_norm(w, ord=2)
    (found,) = torch.autograd.grad(sigma, w)
    (wanted,) = torch.autograd.grad(exact, w)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_warm_start_ends_early() -> None:
    w = tools.matrix("near", (6, 6))
    u = normalizers.spectral_normalization(w, eps=1e-12, maxiter=1000)[1]
    moved = normalizers.spectral_normalization(w, u, eps=1e-3, maxiter=10)[1]
    assert float((moved - u).norm()) < 1e-5


def test_a_random_start_gets_twice_the_iterations() -> None:
    w = tools.matrix("near", (6, 6))
    torch.manual_seed(1)
    found = normalizers.spectral_normalization(w, eps=1e-30, maxiter=3)
    torch.manual_seed(1)
    start = torch.randn(6, dtype=torch.float64)
    assert tools.equal_bits(found, normalizers.spectral_normalization(w, start, 1e-30, 6))


def test_zero_and_bjorck() -> None:
    zero = torch.zeros(3, 4)
    out, _, sigma = normalizers.spectral_normalization(zero)
    assert torch.equal(out, zero) and float(sigma) == 0
    w = tools.matrix("gaussian", (4, 18)).reshape(4, 2, 3, 3) / 8
    found = normalizers.bjorck_normalization(w, maxiter=40)
    assert tools.relative_error(found.flatten(1), tools.polar_factor(w.flatten(1))) <= 1e-5
    assert torch.equal(normalizers.bjorck_normalization(w, maxiter=0), w)


def test_errors() -> None:
    w = torch.randn(3, 4)
    f, g = normalizers.spectral_normalization, normalizers.bjorck_normalization
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: f([1]), TypeError, "kernel must be a torch.Tensor"),
        (lambda: f(torch.randn(2, 2, 2)), ValueError, "kernel must have 2 dimensions"),
        (lambda: f(w, torch.randn(3)), ValueError, r"u must have 4 elements, got shape \(3,\)"),
        (lambda: f(w, eps=math.nan), ValueError, "eps must be a positive"),
        (lambda: f(w, maxiter=0), ValueError, "maxiter must be an integer >= 1"),
        (lambda: g(w, eps=0.0), ValueError, "eps must be a positive"),
        (lambda: g(w, beta=0.7), ValueError, "beta must be"),
        (lambda: g(w, maxiter=-1), ValueError, "maxiter must be an integer >= 0"),
        (lambda: g(w[0]), ValueError, "w must have at least 2"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
