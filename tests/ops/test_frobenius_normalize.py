"""Rows over their Euclidean norms: values, gradients of first and second order, zero rows."""

from __future__ import annotations

import math

import pytest
import tools
import torch
from torch import Tensor

import lipfuse.functional as F

op = torch.ops.lipfuse.frobenius_normalize


def plain(w: Tensor, scale: float) -> Tensor:
    return scale * w / torch.linalg.vector_norm(w, dim=-1, keepdim=True)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_rows_have_norm_scale(scale: float, isa: str) -> None:
    for shape in [*tools.SHAPES, (5,), (1,), (1000,), (3, 100003)]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            w = torch.randn(shape)
        out, norm = op(w, 1e-12, scale)
        exact_norm = torch.linalg.vector_norm(w.double(), dim=-1)
        tools.assert_as_good_as_plain(norm, torch.linalg.vector_norm(w, dim=-1), exact_norm)
        tools.assert_as_good_as_plain(out, plain(w, scale), plain(w.double(), scale))


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 3), (2, 3, 4)], ids=str)
def test_gradcheck_of_both_orders(shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return F.frobenius_normalize(x, -1, scale=0.7)

    assert torch.autograd.gradcheck(function, w)
    assert torch.autograd.gradgradcheck(function, w)


def test_gradient_as_accurate_as_plain_torch(isa: str) -> None:
    for shape in [(7, 64), (64, 7), (1, 5000)]:
        w = torch.randn(shape)
        grad = torch.randn(shape)
        results = []
        for function, dtype in (
            (F.frobenius_normalize, torch.float32),
            (plain, torch.float32),
            (plain, torch.float64),
        ):
            x = w.to(dtype).requires_grad_()
            out = function(x, -1) if function is F.frobenius_normalize else plain(x, 1.0)
            results.append(torch.autograd.grad(out, x, grad.to(dtype))[0])
        tools.assert_as_good_as_plain(*results)


def test_a_zero_row_stays_zero_and_recovers(isa: str) -> None:
    """deel-torchlip's is NaN."""
    w = torch.randn(3, 4)
    w[1] = 0
    w.requires_grad_()
    out = F.frobenius_normalize(w, 1)
    assert not out[1].any() and out[[0, 2]].norm(dim=1).allclose(torch.ones(2))
    out.sum().backward()
    assert w.grad is not None and w.grad.isfinite().all()
    with torch.no_grad():
        w[1] = 1e-3
    assert float(F.frobenius_normalize(w, 1).detach()[1].norm()) == pytest.approx(1, rel=1e-6)


def test_below_eps_the_divisor_is_eps() -> None:
    w = torch.full((1, 4), 1e-4, requires_grad=True)
    out = F.frobenius_normalize(w, 1, eps=0.1)
    assert torch.allclose(out, torch.full((1, 4), 1e-3))
    out.sum().backward()
    assert torch.allclose(w.grad, torch.full((1, 4), 10.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-12, 1e12, 1e18, 1e20, 1e30])
def test_tiny_and_huge_weights(scale: float, isa: str) -> None:
    """Squares leave the range of float32; the result never exceeds its norm and is finite."""
    w = (torch.randn(3, 8) * scale).requires_grad_()
    out = F.frobenius_normalize(w, 1)
    assert out.isfinite().all()
    assert float(out.detach().norm(dim=1).max()) <= 1 + 1e-6
    if 1e-12 <= scale <= 1e18:  # beyond, torch's own norm overflows as well, and leaves zero
        assert torch.allclose(out.detach().norm(dim=1), torch.ones(3), rtol=1e-5)
    out.sum().backward()
    assert w.grad is not None and w.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    w = torch.randn(3, 4)
    w[1, 2] = value
    out = F.frobenius_normalize(w, 1)
    assert not out[1].isfinite().all()
    assert out[[0, 2]].isfinite().all()
