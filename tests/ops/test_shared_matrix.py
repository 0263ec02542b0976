"""One matrix that several threads share: what one thread finds, up to the order of its sums.

Where threads share a medium matrix, symmetric intermediates are kept as lower halves and packed by
every thread for itself; sizes here lie on both sides of where that begins and ends, with rests that
fill no register tile.
"""

from __future__ import annotations

import pytest
import tools
import torch
from torch import Tensor

from lipfuse import _native, ops

pytestmark = pytest.mark.skipif(_native.kernels is None, reason="plain torch has its own threads")

SHAPES = [
    (160, 160),
    (161, 161),
    (192, 192),
    (203, 203),
    (256, 256),
    (320, 320),
    (321, 321),
    (200, 520),
    (520, 200),
    (165, 190),
]
KINDS = ["near", "gaussian", "log", "deficient"]


def forward_backward(
    w: Tensor, grad: Tensor, tangent: bool, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, (WᵀW)^(-1/2), what was found out, and W's gradient."""
    op = torch.ops.lipfuse
    with tools.threads(count):
        q, root, info = op.orthogonalize(w, 1e-4, 1.0, True)
        found = op.orthogonalize_backward(grad, w, q, root, info, 1e-4, 1.0, tangent)
    return q, root, info, found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_what_one_thread_finds(shape: tuple[int, int], isa: str) -> None:
    """In float64, where rounding leaves nothing to argue about."""
    for seed, kind in enumerate(KINDS):
        w, grad = tools.matrix(kind, shape, seed), tools.matrix("gaussian", shape, seed + 7)
        for tangent in (False, True):
            alone = forward_backward(w, grad, tangent, 1)
            for count in (2, 3):
                shared = forward_backward(w, grad, tangent, count)
                # A spectrum with a gap down to rounding amplifies it in the gradient.
                slack = 1e-9 if kind in ("near", "gaussian") else 1e-4
                for a, b in zip(alone, shared, strict=True):
                    if a.numel():
                        assert tools.relative_error(b, a) <= slack, (kind, tangent, count)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_single_precision_as_accurate_as_one_thread(shape: tuple[int, int], isa: str) -> None:
    w = tools.matrix("near", shape).float()
    grad = tools.matrix("gaussian", shape, 1).float()
    exact = forward_backward(w.double(), grad.double(), False, 1)
    alone = forward_backward(w, grad, False, 1)
    for count in (2, 3):
        shared = forward_backward(w, grad, False, count)
        for which in (0, 3):
            error = tools.relative_error(shared[which], exact[which])
            assert error <= 1e-5 + 1.5 * tools.relative_error(alone[which], exact[which])


@pytest.mark.parametrize("shape", [(168, 168), (256, 256), (400, 200), (200, 400)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_more_threads_than_it_has_panels(
    shape: tuple[int, int], dtype: torch.dtype, isa: str
) -> None:
    """Then a result is cut by columns, which a half does not have."""
    w = tools.matrix("near", shape).to(dtype)
    grad = tools.matrix("gaussian", shape, 1).to(dtype)
    for tangent in (False, True):
        alone = forward_backward(w, grad, tangent, 1)
        shared = forward_backward(w, grad, tangent, 24)
        for a, b in zip(alone, shared, strict=True):
            if a.numel():
                assert tools.relative_error(b, a) <= 100 * torch.finfo(dtype).eps ** 0.75, tangent


def test_gradient_is_the_derivative() -> None:
    """Of the quotient of differences along a direction."""
    w, grad = tools.matrix("near", (170, 170)), tools.matrix("gaussian", (170, 170), 1)
    direction = tools.matrix("gaussian", (170, 170), 2)
    with tools.threads(2):
        leaf = w.clone().requires_grad_()
        ops.orthogonalize(leaf, 1e-10, 1.0, False)[0].backward(grad)
        step = 1e-6
        ends = [
            (ops.orthogonalize(w + s * direction, 1e-10, 1.0, False)[0] * grad).sum()
            for s in (step, -step)
        ]
    assert leaf.grad is not None
    expected = (ends[0] - ends[1]) / (2 * step)
    assert torch.isclose((leaf.grad * direction).sum(), expected, rtol=1e-5)
