"""Power iteration: what it converges to, its gradient, and weights that defeat it."""

from __future__ import annotations

import math

import pytest
import tools
import torch
from tools import start
from torch import Tensor

import lipfuse.functional as F
from lipfuse import _native

op = torch.ops.lipfuse.power_iteration


@pytest.mark.parametrize("shape", tools.SHAPES, ids=str)
def test_sigma_rises_to_the_norm(shape: tuple[int, ...], isa: str) -> None:
    w = tools.matrix("gaussian", shape)
    u, v = start(w)
    norm = torch.linalg.matrix_norm(w, ord=2)
    before = torch.zeros_like(norm)
    for _ in range(8):
        sigma, u, v = op(w, u, v, 5, 1e-12)
        assert (sigma >= before * (1 - 1e-12)).all()
        assert (sigma <= norm * (1 + 1e-12)).all()
        before = sigma
    assert ((u.norm(dim=-1) - 1).abs() <= 1e-12).all()
    assert ((v.norm(dim=-1) - 1).abs() <= 1e-12).all()
    sigma, u, v = op(w, u, v, 2000, 1e-12)
    assert torch.allclose(sigma, norm, rtol=1e-9)
    # sigma is uᵀWv of the vectors that come with it.
    assert torch.allclose(sigma, torch.einsum("...m,...mn,...n->...", u, w, v), rtol=1e-12)


def test_many_iterations_are_iterations_one_by_one() -> None:
    w = tools.matrix("gaussian", (3, 7, 5))
    u, v = start(w)
    together = op(w, u, v, 4, 1e-12)
    for _ in range(4):
        sigma, u, v = op(w, u, v, 1, 1e-12)
    for a, b in zip(together, (sigma, u, v), strict=True):
        assert torch.allclose(a, b, rtol=1e-13)


def test_no_iteration_evaluates_sigma() -> None:
    w = tools.matrix("gaussian", (3, 7, 5))
    u, v = start(w)
    sigma, new_u, new_v = op(w, u, v, 0, 1e-12)
    assert torch.equal(new_u, u) and torch.equal(new_v, v)
    assert new_u.data_ptr() != u.data_ptr() and new_v.data_ptr() != v.data_ptr()
    assert torch.allclose(sigma, torch.einsum("bm,bmn,bn->b", u, w, v), rtol=1e-13)


def test_v_is_made_from_u_where_it_is_missing() -> None:
    w = tools.matrix("gaussian", (3, 7, 5))
    u, _ = start(w)
    v = torch.einsum("bmn,bm->bn", w, u)
    v /= v.norm(dim=-1, keepdim=True)
    for a, b in zip(op(w, u, None, 2, 1e-12), op(w, u, v, 2, 1e-12), strict=True):
        assert torch.allclose(a, b, rtol=1e-13)


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (3, 4), (2, 3, 5)], ids=str)
def test_gradient_of_fixed_vectors(shape: tuple[int, ...]) -> None:
    """Without an iteration sigma is uᵀWv: exact for any u and v."""
    w = tools.matrix("gaussian", shape).requires_grad_()
    u, v = start(w.detach())

    def sigma(x: Tensor) -> Tensor:
        return F.power_iteration(x, u, v, n_iterations=0)[0]

    assert torch.autograd.gradcheck(sigma, w)
    assert torch.autograd.gradgradcheck(sigma, w)


def test_gradient_once_converged() -> None:
    """With the dependence of u and v on W, which vanishes there."""
    w = tools.matrix("gaussian", (5, 4)).requires_grad_()
    u, _ = start(w.detach())
    assert torch.autograd.gradcheck(
        lambda x: F.power_iteration(x, u, n_iterations=400)[0], w, fast_mode=False
    )


def test_gradient_is_the_outer_product_of_what_is_returned() -> None:
    w = tools.matrix("gaussian", (3, 7, 5)).requires_grad_()
    u, v = start(w.detach())
    sigma, new_u, new_v = F.power_iteration(w, u, v, n_iterations=3)
    grad = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    sigma.backward(grad)
    expected = grad[:, None, None] * new_u[:, :, None] * new_v[:, None, :]
    assert torch.allclose(w.grad, expected, rtol=1e-13)
    assert not new_u.requires_grad and not new_v.requires_grad


# ---- weights that defeat it ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("with_v", [True, False])
def test_nothing_spoils_u_and_v(value: float, with_v: bool, isa: str) -> None:
    """A weight that is zero or not finite leaves them usable, and its neighbours alone."""
    w = tools.matrix("gaussian", (2, 6, 5)).float()
    u, v = start(w)
    good = op(w, u, v if with_v else None, 2, 1e-12)
    bad = w.clone()
    if value == 0:
        bad[0] = 0
    else:
        bad[0, 1, 2] = value
    sigma, new_u, new_v = op(bad, u, v if with_v else None, 2, 1e-12)
    assert torch.equal(new_u[0], u[0])
    if with_v:
        assert torch.equal(new_v[0], v[0])
    assert new_v.isfinite().all()
    assert (new_v.norm(dim=-1) - 1).abs().max() <= 1e-6
    assert sigma[0] == 0 if value == 0 else not math.isfinite(sigma[0])
    for a, b in zip(good, (sigma, new_u, new_v), strict=True):
        assert torch.equal(a[1], b[1])
    # And then the weight recovers.
    sigma, _, _ = op(w, new_u, new_v, 300, 1e-12)
    assert torch.allclose(sigma, torch.linalg.matrix_norm(w, ord=2), rtol=1e-4)


@pytest.mark.parametrize("with_v", [True, False])
@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e3, 1e9, 1e12, 1e18, 1e20, 1e30])
def test_size_of_the_weight_does_not_matter(scale: float, with_v: bool) -> None:
    """Squares of huge elements overflow float32; sigma must not."""
    w = tools.matrix("near", (6, 5)).float() * scale
    u, v = start(w)
    sigma, new_u, new_v = op(w, u, v if with_v else None, 200, 1e-12)
    assert float(sigma) == pytest.approx(tools.largest_singular_value(w), rel=1e-4)
    assert float(new_u.norm()) == pytest.approx(1, rel=1e-5)
    assert float(new_v.norm()) == pytest.approx(1, rel=1e-5)


# ---- arguments of the operator -------------------------------------------------------------------


@pytest.mark.skipif(not _native.loaded, reason="the reference has no checks of its own")
def test_bad_arguments() -> None:
    w, u, v = torch.randn(4, 3), torch.randn(4), torch.randn(3)
    for arguments in [
        (w[0], u, v),
        (w, u[:3], v),
        (w, u, v[:2]),
        (w, u.double(), v),
        (w, u, v.double()),
        (w.long(), u.long(), v.long()),
        (w.half(), u.half(), v.half()),
    ]:
        with pytest.raises(RuntimeError):
            op(*arguments, 1, 1e-12)
