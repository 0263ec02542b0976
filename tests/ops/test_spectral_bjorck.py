"""The chain of a layer as one operator: the composition of its parts, and the guard of Björck."""

from __future__ import annotations

import math

import pytest
import tools
import torch
from tools import start
from torch import Tensor

import lipfuse.functional as F

op = torch.ops.lipfuse.spectral_bjorck


def leading(w: Tensor) -> tuple[Tensor, Tensor]:
    u, _, vh = torch.linalg.svd(w.double(), full_matrices=False)
    return u[..., 0].to(w.dtype), vh[..., 0, :].to(w.dtype)


def plain(w: Tensor, u: Tensor, v: Tensor, steps: int, scale: float) -> Tensor:
    """The chain with u and v constants."""
    sigma = torch.einsum("...m,...mn,...n->...", u, w, v)
    return scale * tools.plain_bjorck(w / sigma[..., None, None], 0.5, steps)


@pytest.mark.parametrize("kind", ["near", "gaussian", "wide", "deficient"])
def test_is_the_composition_of_its_parts(kind: str, isa: str) -> None:
    for shape in tools.SHAPES:
        if min(shape[-2:]) == 1 and kind == "deficient":
            continue
        w = tools.matrix(kind, shape)
        u, v = leading(w)
        out, sigma, new_u, new_v = F.spectral_bjorck(
            w, u, v, n_iterations=2, max_iterations=5, eps_bjorck=1e-30, scale=0.7
        )
        assert torch.allclose(out, plain(w, new_u, new_v, 5, 0.7), atol=1e-11)
        _, expected, _, _ = F.spectral_normalize(w, u, v, n_iterations=2)
        assert torch.allclose(sigma, expected, rtol=1e-13)


@pytest.mark.parametrize("kind", ["near", "gaussian", "wide"])
def test_gradient_is_that_of_the_chain(kind: str, isa: str) -> None:
    """u and v held constant, through as many steps as ran."""
    for shape in tools.SHAPES:
        w = tools.matrix(kind, shape).requires_grad_()
        u, v = leading(w.detach())
        grad = tools.matrix("gaussian", shape, 9)
        out, _, new_u, new_v = F.spectral_bjorck(
            w, u, v, n_iterations=2, max_iterations=5, eps_bjorck=1e-30, scale=0.7
        )
        (exact,) = torch.autograd.grad(plain(w, new_u, new_v, 5, 0.7), w, grad)
        (found,) = torch.autograd.grad(out, w, grad)
        size = float(grad.norm() / w.detach().norm())
        assert float((found - exact).norm()) <= 1e-10 * float(exact.norm()) + 1e-12 * size

        w32 = w.detach().float().requires_grad_()
        u32, v32 = new_u.float(), new_v.float()
        (rough,) = torch.autograd.grad(plain(w32, u32, v32, 5, 0.7), w32, grad.float())
        out32, _, _, _ = F.spectral_bjorck(
            w32, u32, v32, n_iterations=1, max_iterations=5, eps_bjorck=1e-30, scale=0.7
        )
        (found32,) = torch.autograd.grad(out32, w32, grad.float())
        # Rounding is relative to the terms that cancel.
        slack = 1e-5 * size / max(float(exact.norm()), 1e-30)
        tools.assert_as_good_as_plain(found32, rough, exact, slack=slack)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 2)], ids=str)
def test_gradcheck_of_fixed_vectors(shape: tuple[int, ...]) -> None:
    w = tools.matrix("gaussian", shape).requires_grad_()
    u, v = leading(w.detach())
    assert torch.autograd.gradcheck(
        lambda x: F.spectral_bjorck(x, u, v, n_iterations=0, max_iterations=4, eps_bjorck=1e-30)[0],
        w,
    )


def test_a_second_derivative_is_refused_in_words() -> None:
    w = tools.matrix("near", (4, 3)).requires_grad_()
    out, _, _, _ = F.spectral_bjorck(w, *leading(w.detach()))
    (first,) = torch.autograd.grad(out.square().sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        first.sum().backward()


# ---- the guard -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (40, 30), (30, 40), (16, 144), (2, 12, 9)], ids=str)
def test_a_bad_estimate_of_sigma_does_not_diverge(shape: tuple[int, ...], isa: str) -> None:
    """u and v orthogonal to the leading vectors: W / sigma is far outside Björck's reach.

    This is how deel-torchlip's ConvTranspose2d is NaN at its first forward.
    """
    w = tools.matrix("wide", shape).float()
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    for max_iterations in (1, 3, 15):
        x = w.clone().requires_grad_()
        out, sigma, _, _ = F.spectral_bjorck(
            x, u[..., -3], vh[..., -3, :], n_iterations=0, max_iterations=max_iterations, scale=0.7
        )
        assert (torch.linalg.matrix_norm(w, ord=2) > 2 * sigma).all()
        assert out.isfinite().all()
        assert tools.largest_singular_value(out) <= 0.7 * (1 + 1e-5)
        out.backward(torch.ones_like(out))
        assert x.grad is not None and x.grad.isfinite().all()


def test_the_guard_leaves_good_weights_alone() -> None:
    for shape in tools.SHAPES:
        w = tools.matrix("near", shape).float()
        _, sigma, _, _, _, _ = op(w, *leading(w), 2, 1e-12, 0.5, 5, 1e-3, 1.0, False)
        assert (sigma[..., 1] == 1).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 1e3, 1e9, 1e12, 1e20, 1e30])
def test_tiny_and_huge_weights(scale: float) -> None:
    w = (tools.matrix("near", (6, 5)) * scale).float().requires_grad_()
    out, _, _, _ = F.spectral_bjorck(w, *start(w.detach()), n_iterations=20)
    assert out.isfinite().all()
    assert tools.largest_singular_value(out) <= 1 + 1e-5
    if scale >= 1e-3:
        assert tools.largest_singular_value(out) == pytest.approx(1, abs=1e-3)


def test_zero_stays_zero_and_recovers(isa: str) -> None:
    w = torch.zeros(4, 3, requires_grad=True)
    out, _, u, v = F.spectral_bjorck(w, *start(w.detach()))
    assert not out.any()
    out.backward(torch.ones_like(out))
    assert w.grad is not None and w.grad.isfinite().all()
    out, _, _, _ = F.spectral_bjorck(torch.randn(4, 3), u, v, n_iterations=50)
    assert tools.largest_singular_value(out) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows_and_does_not_spoil_u_and_v(value: float) -> None:
    w = tools.matrix("near", (2, 4, 3)).float()
    w[0, 1, 1] = value
    u, v = start(w)
    out, _, new_u, new_v = F.spectral_bjorck(w, u, v)
    assert not out[0].isfinite().any()
    assert out[1].isfinite().all()
    assert torch.equal(new_u[0], u[0]) and torch.equal(new_v[0], v[0])
