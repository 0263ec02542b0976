"""Björck's iteration: when it stops, and the exact adjoint of what ran."""

from __future__ import annotations

import math

import pytest
import tools
import torch
from torch import Tensor

import lipfuse.functional as F

op = torch.ops.lipfuse.bjorck


def reachable(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Singular values below sqrt(3)."""
    w = tools.matrix(kind, shape)
    return w / torch.linalg.matrix_norm(w, ord=2).clamp_min(1)[..., None, None]


@pytest.mark.parametrize("kind", ["near", "gaussian", "deficient", "zero"])
def test_singular_values_follow_the_scalar_iteration(kind: str, isa: str) -> None:
    for shape in tools.SHAPES:
        w = reachable(kind, shape)
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        for _ in range(6):
            s = 1.5 * s - 0.5 * s**3
        expected = (u * s.unsqueeze(-2)) @ vh
        assert torch.allclose(op(w, 0.5, 6, 0.0, False)[0], expected, atol=1e-12)


def test_converges_to_the_polar_factor() -> None:
    w = reachable("near", (20, 13))
    assert torch.allclose(
        F.bjorck(w, max_iterations=50, eps=1e-12), tools.polar_factor(w), atol=1e-10
    )
    assert torch.allclose(
        F.bjorck(w, beta=0.25, max_iterations=200, eps=1e-12), tools.polar_factor(w), atol=1e-10
    )


def test_each_matrix_stops_on_its_own(isa: str) -> None:
    """After the first step shorter than eps, and not before."""
    w = torch.stack(
        [reachable("orthogonal", (9, 7)), reachable("near", (9, 7)), reachable("gaussian", (9, 7))]
    )
    eps = 1e-3
    expected = []
    for x in w:
        steps = 0
        while True:
            new = tools.plain_bjorck(x, 0.5, 1)
            steps += 1
            done = float((new - x).norm()) < eps
            x = new
            if done or steps == 40:
                break
        expected.append(steps)
    out, history, steps = op(w, 0.5, 40, eps, True)
    assert steps.tolist() == expected
    assert len(set(expected)) == 3
    for i, count in enumerate(expected):
        assert torch.allclose(out[i], tools.plain_bjorck(w[i], 0.5, count), atol=1e-12)
        for k in range(count):
            assert torch.allclose(history[i, k], tools.plain_bjorck(w[i], 0.5, k), atol=1e-12)


def test_no_iteration_is_the_weight() -> None:
    w = reachable("near", (4, 3)).requires_grad_()
    out = F.bjorck(w, max_iterations=0)
    assert torch.equal(out, w)
    out.backward(torch.full_like(out, 2.0))
    assert torch.equal(w.grad, torch.full_like(w, 2.0))  # type: ignore[arg-type]


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["near", "gaussian", "deficient", "zero"])
@pytest.mark.parametrize("beta, steps", [(0.5, 1), (0.5, 7), (0.3, 4)])
def test_gradient_is_that_of_the_iterations(kind: str, beta: float, steps: int, isa: str) -> None:
    """Against torch's autograd through the same iterations: deel-torchlip's is 27-49x too large."""
    for shape in tools.SHAPES:
        w = reachable(kind, shape).requires_grad_()
        grad = tools.matrix("gaussian", shape, 9)
        exact = torch.autograd.grad(tools.plain_bjorck(w, beta, steps), w, grad)[0]
        w32 = w.detach().float().requires_grad_()
        plain = torch.autograd.grad(tools.plain_bjorck(w32, beta, steps), w32, grad.float())[0]
        _, history, ran = op(w.detach(), beta, steps, 0.0, True)
        found = torch.ops.lipfuse.bjorck_backward(grad, history, ran, beta)
        assert torch.allclose(found, exact, rtol=1e-10, atol=1e-11 * float(exact.abs().max() + 1))
        out32, _, _ = op(w32, beta, steps, 0.0, True)
        (found32,) = torch.autograd.grad(out32, w32, grad.float())
        tools.assert_as_good_as_plain(found32, plain, exact)


def test_gradient_goes_through_as_many_steps_as_ran() -> None:
    w = torch.stack(
        [reachable("orthogonal", (9, 7)), reachable("gaussian", (9, 7))]
    ).requires_grad_()
    steps = op(w.detach(), 0.5, 40, 1e-3, False)[2].tolist()
    assert steps[0] < steps[1] < 40
    grad = tools.matrix("gaussian", (2, 9, 7), 9)
    (found,) = torch.autograd.grad(F.bjorck(w, max_iterations=40, eps=1e-3), w, grad)
    for i, count in enumerate(steps):
        one = w.detach()[i].requires_grad_()
        (expected,) = torch.autograd.grad(tools.plain_bjorck(one, 0.5, count), one, grad[i])
        assert torch.allclose(found[i], expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 2), (2, 4), (2, 3, 2)], ids=str)
def test_gradcheck(shape: tuple[int, ...]) -> None:
    w = reachable("gaussian", shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.bjorck(x, max_iterations=5, eps=1e-30), w)


def test_a_second_derivative_is_refused_in_words() -> None:
    w = reachable("near", (4, 3)).requires_grad_()
    (first,) = torch.autograd.grad(F.bjorck(w).square().sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        first.sum().backward()


def test_without_a_history_there_is_no_gradient_and_it_says_so() -> None:
    w = reachable("near", (4, 3)).requires_grad_()
    with pytest.raises(ValueError, match="save"):
        op(w, 0.5, 3, 1e-3, False)
    with torch.no_grad():
        assert op(w, 0.5, 3, 1e-3, False)[1].shape == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows_and_stays_in_its_matrix(value: float) -> None:
    w = reachable("near", (2, 4, 3))
    expected = F.bjorck(w)[1]  # of the batch: plain torch multiplies one matrix in another order
    w[0, 1, 1] = value
    out = F.bjorck(w)
    assert not out[0].isfinite().any()
    assert torch.equal(out[1], expected)
