"""Many polar factors in one call: bit for bit those of single calls, with their gradients."""

from __future__ import annotations

import math

import pytest
import tools
import torch
from torch import Tensor

from lipfuse import _native, ops

SHAPES = [(8, 8), (16, 3, 3, 3), (4, 9), (12, 2, 5), (33, 70), (1, 1), (6, 4)]
GROUPS = [1, 1, 2, 3, 1, 1, 2]
SCALES = [1.0, 0.3, 2.0, 1.0, 0.5, 1.0, 0.7]


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    made = []
    for i, (shape, groups) in enumerate(zip(SHAPES, GROUPS, strict=True)):
        matrices = tools.matrix("near", (groups, shape[0] // groups, math.prod(shape[1:])), i)
        made.append(matrices.reshape(shape).to(dtype))
    return made


def one_by_one(ws: list[Tensor], tangent: bool) -> list[Tensor]:
    results = []
    for w, groups, scale in zip(ws, GROUPS, SCALES, strict=True):
        matrices = w.reshape(groups, w.shape[0] // groups, -1)
        results.append(ops.orthogonalize(matrices, 1e-4, scale, tangent)[0].reshape(w.shape))
    return results


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tangent", [False, True])
def test_is_what_single_calls_give(tangent: bool, count: int, isa: str) -> None:
    with tools.threads(count):
        ws = [w.requires_grad_() for w in weights()]
        together = ops.foreach_orthogonalize(ws, GROUPS, SCALES, 1e-4, tangent)
        alone = one_by_one(ws, tangent)
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        grads = [torch.randn_like(w) for w in ws]
        found = torch.autograd.grad(together, ws, grads)
        expected = torch.autograd.grad(alone, ws, grads)
        for a, b in zip(found, expected, strict=True):
            assert tools.relative_error(a, b) <= 2e-5


def test_without_gradients() -> None:
    ws = weights()
    for a, b in zip(
        ops.foreach_orthogonalize(ws, GROUPS, SCALES, 1e-4), one_by_one(ws, False), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)
        assert not a.requires_grad


def test_results_that_are_not_used_have_no_gradient() -> None:
    """Only some of the results go into the loss, and only some of the weights want a gradient."""
    ws = weights(torch.float64)
    for i in (0, 1, 3, 4, 6):
        ws[i].requires_grad_()
    together = ops.foreach_orthogonalize(ws, GROUPS, SCALES, 1e-7)
    used = [1, 3, 6]
    grads = [torch.randn_like(ws[i]) for i in used]
    found = torch.autograd.grad(
        [together[i] for i in used], [ws[i] for i in (0, *used)], grads, allow_unused=True
    )
    assert found[0] is None or not found[0].any()
    expected = torch.autograd.grad(
        [one_by_one(ws, False)[i] for i in used], [ws[i] for i in used], grads
    )
    for a, b in zip(found[1:], expected, strict=True):
        assert tools.relative_error(a, b) <= 1e-3


def test_two_backwards_one_after_the_other() -> None:
    """Each result's gradient may come in a backward of its own."""
    ws = [w.requires_grad_() for w in weights(torch.float64)[:2]]
    out = ops.foreach_orthogonalize(ws, GROUPS[:2], SCALES[:2], 1e-7)
    grads = [torch.randn_like(w) for w in ws]
    first = torch.autograd.grad(out[0], ws[0], grads[0], retain_graph=True)[0]
    second = torch.autograd.grad(out[1], ws[1], grads[1])[0]
    out = ops.foreach_orthogonalize(ws, GROUPS[:2], SCALES[:2], 1e-7)
    together = torch.autograd.grad(out, ws, grads)
    assert torch.allclose(first, together[0]) and torch.allclose(second, together[1])


def test_a_second_derivative_is_refused_in_words() -> None:
    ws = [w.requires_grad_() for w in weights(torch.float64)[:2]]
    out = ops.foreach_orthogonalize(ws, GROUPS[:2], SCALES[:2], 1e-7)
    loss = sum(x.tanh().square().sum() for x in out)
    first = torch.autograd.grad(loss, ws, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        sum(x.sum() for x in first).backward()


@pytest.mark.skipif(not _native.loaded, reason="the reference has no checks of its own")
def test_bad_arguments() -> None:
    op = torch.ops.lipfuse.foreach_orthogonalize
    w = torch.randn(4, 3)
    for arguments in [
        ([], [], []),
        ([w], [1, 1], [1.0]),
        ([w], [1], []),
        ([w], [3], [1.0]),
        ([w], [0], [1.0]),
        ([w[0]], [1], [1.0]),
        ([w, w.double()], [1, 1], [1.0, 1.0]),
    ]:
        with pytest.raises((RuntimeError, ValueError)):
            op(*arguments, 1e-4, False)
