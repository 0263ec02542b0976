"""Spectral normalisation: the norm it leaves, its gradients of first and second order."""

from __future__ import annotations

import math

import pytest
import tools
import torch
from tools import start
from torch import Tensor

import lipfuse.functional as F

op = torch.ops.lipfuse.spectral_normalize


def plain(w: Tensor, u: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """W / uᵀWv with u and v constants."""
    sigma = torch.einsum("...m,...mn,...n->...", u, w, v)
    return scale * w / sigma[..., None, None], sigma


@pytest.mark.parametrize("scale", [1.0, 0.3, 5.0])
@pytest.mark.parametrize("kind", ["near", "gaussian", "wide", "log", "deficient"])
def test_norm_is_scale(kind: str, scale: float, isa: str) -> None:
    for shape in tools.SHAPES:
        if min(shape[-2:]) == 1 and kind == "deficient":
            continue
        w = tools.matrix(kind, shape).float()
        u, _ = start(w)
        out, sigma, _, _ = op(w, u, None, 1000, 1e-12, scale)
        norm = torch.linalg.matrix_norm(out.double(), ord=2)
        assert torch.allclose(norm, torch.full_like(norm, scale), rtol=1e-3)
        ratio = out.double() * sigma.double()[..., None, None]
        assert torch.allclose(ratio, scale * w.double(), rtol=1e-6)


def test_sigma_and_vectors_are_those_of_power_iteration() -> None:
    w = tools.matrix("gaussian", (3, 7, 5)).float()
    u, v = start(w)
    _, *found = op(w, u, v, 3, 1e-12, 2.0)
    assert tools.equal_bits(found, list(torch.ops.lipfuse.power_iteration(w, u, v, 3, 1e-12)))


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (3, 4), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_of_fixed_vectors(shape: tuple[int, ...], scale: float, sign: int) -> None:
    """Without an iteration u and v are constants: exact for any, of both results, twice."""
    w = tools.matrix("gaussian", shape).requires_grad_()
    u, _ = start(w.detach())
    # Not the singular vectors; sigma is negative where the weight was negated since.
    v = sign * torch.einsum("...mn,...m->...n", w.detach(), u)
    v = v / v.norm(dim=-1, keepdim=True)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        out, sigma, _, _ = F.spectral_normalize(x, u, v, n_iterations=0, scale=scale)
        return out, sigma

    for function in (both, lambda x: both(x)[0], lambda x: both(x)[1]):
        assert torch.autograd.gradcheck(function, w)
        assert torch.autograd.gradgradcheck(function, w)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (2, 3, 5, 4)], ids=str)
def test_gradient_after_iterations_holds_u_and_v_constant(shape: tuple[int, ...]) -> None:
    w = tools.matrix("gaussian", shape).requires_grad_()
    u, v = start(w.detach())
    out, sigma, new_u, new_v = F.spectral_normalize(w, u, v, n_iterations=3, scale=0.7)
    expected_out, expected_sigma = plain(w, new_u, new_v, 0.7)
    grads = torch.randn_like(out), torch.randn_like(sigma)
    for used in [(0, 1), (0,), (1,)]:
        found = torch.autograd.grad(
            [(out, sigma)[i] for i in used], w, [grads[i] for i in used], retain_graph=True
        )
        expected = torch.autograd.grad(
            [(expected_out, expected_sigma)[i] for i in used],
            w,
            [grads[i] for i in used],
            retain_graph=True,
        )
        assert torch.allclose(found[0], expected[0], rtol=1e-10, atol=1e-12)


def test_second_derivative_after_iterations() -> None:
    """A penalty on the gradient of the parameters, against plain torch with the same u and v."""
    w = tools.matrix("gaussian", (5, 4)).requires_grad_()
    x = tools.matrix("gaussian", (4, 3), 3)
    u, v = start(w.detach())
    out, _, new_u, new_v = F.spectral_normalize(w, u, v, n_iterations=3)
    results = []
    for weight in (out, plain(w, new_u, new_v, 1.0)[0]):
        loss = (weight @ x).tanh().square().sum()
        (first,) = torch.autograd.grad(loss, w, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), w)[0])
    assert torch.allclose(*results, rtol=1e-9)


# ---- weights that defeat it ----------------------------------------------------------------------


def test_zero_stays_zero_and_recovers(isa: str) -> None:
    w = torch.zeros(4, 3, requires_grad=True)
    u, v = start(w.detach())
    out, sigma, u, v = F.spectral_normalize(w, u, v)
    assert not out.any() and not sigma.any()
    out.backward(torch.ones_like(out))
    assert w.grad is not None and w.grad.isfinite().all()
    out, sigma, _, _ = F.spectral_normalize(torch.randn(4, 3), u, v, n_iterations=200)
    assert tools.largest_singular_value(out) == pytest.approx(1, rel=1e-4)


def test_below_eps_the_divisor_is_eps() -> None:
    w = tools.matrix("near", (4, 3)).float() * 1e-6
    u, v = start(w)
    out, _, _, _ = F.spectral_normalize(w, u, v, n_iterations=50, eps=1e-3)
    assert torch.allclose(out, w / 1e-3)
    w.requires_grad_()
    out, _, _, _ = F.spectral_normalize(w, u, v, n_iterations=50, eps=1e-3)
    out.backward(torch.ones_like(out))
    assert w.grad is not None
    assert torch.allclose(w.grad, torch.full_like(w, 1e3))


@pytest.mark.parametrize("with_v", [True, False])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-13, 1e9, 1e12, 1e18, 1e20, 1e30])
def test_tiny_and_huge_weights_are_never_blown_up(scale: float, with_v: bool) -> None:
    w = (tools.matrix("near", (6, 5)) * scale).float()
    u, v = start(w)
    out, _, _, _ = op(w, u, v if with_v else None, 100, 1e-12, 1.0)
    assert out.isfinite().all()
    assert tools.largest_singular_value(out) <= 1.0001
    if scale > 1:
        assert tools.largest_singular_value(out) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    w = tools.matrix("near", (2, 4, 3)).float()
    w[0, 1, 1] = value
    u, v = start(w)
    out, _, new_u, new_v = op(w, u, v, 2, 1e-12, 1.0)
    assert not out[0].isfinite().all()
    assert out[1].isfinite().all()
    assert torch.equal(new_u[0], u[0]) and torch.equal(new_v[0], v[0])
