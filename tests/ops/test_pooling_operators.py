"""The pools: native against plain torch over shapes, kernels, layouts and types."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import lipfuse.functional as F
from lipfuse import _native, reference
from lipfuse.ops.l2_norm_pool2d import l2_norm_pool2d
from lipfuse.ops.scaled_avg_pool2d import scaled_avg_pool2d

pytestmark = pytest.mark.skipif(not _native.loaded, reason="no native library")
ops: Any = torch.ops.lipfuse
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
POOLS = {"l2": l2_norm_pool2d, "average": scaled_avg_pool2d}
CASES = [
    *itertools.product(
        [(2, 3, 8, 8), (1, 3, 7, 9), (2, 20, 5, 14), (3, 33, 34)],
        [(1, 1), (2, 2), (2, 3), (3, 2), (4, 5)],
    ),
    ((2, 3, 17, 40), (17, 40)),  # the whole image
    ((2, 3, 2, 5), (7, 9)),  # more than the image, with ceil_mode
    ((1, 2, 3, 5000), (3, 2)),  # rows longer than the buffer
    ((1, 2, 3, 5001), (2, 2500)),  # windows longer than the buffer
    ((1, 300, 4, 9), (2, 3)),
    ((1, 1, 6, 7), (2, 2)),
    ((40, 32, 12, 12), (2, 2)),  # several threads
    ((2, 3, 2, 7, 6), (2, 2)),  # any leading dimensions
]


def images(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)
    if layout == "last":
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if layout == "strided" else x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "last", "strided"])
def test_native_equals_the_reference(dtype: torch.dtype, layout: str, isa: str) -> None:
    close: dict[str, Any] = {}
    if dtype is torch.float32:
        close = {"rtol": 2e-5, "atol": 2e-5}
    for (shape, kernel), ceil_mode in itertools.product(CASES, (False, True)):
        if not ceil_mode and (shape[-2] < kernel[0] or shape[-1] < kernel[1]):
            continue
        x = images(shape, dtype, layout)
        settings = (*kernel, ceil_mode, 1.3)
        for name in ("l2_norm_pool2d", "scaled_avg_pool2d"):
            out = getattr(ops, name)(x, *settings)
            wanted = getattr(reference, name)(x, *settings)
            torch.testing.assert_close(out, wanted, **close)
            g = torch.randn(out.shape).to(dtype)
            if layout == "last":
                g = g.movedim(-3, -1).contiguous().movedim(-1, -3)
            first = (g, x) if name.startswith("l2") else (g, *shape[-2:])
            gradient = getattr(ops, name + "_backward")(*first, *settings)
            wanted = getattr(reference, name + "_backward")(*first, *settings)
            torch.testing.assert_close(gradient, wanted, **close)


@pytest.mark.parametrize("name", POOLS)
def test_channels_last_stays_channels_last(name: str) -> None:
    pool, last = POOLS[name], torch.channels_last
    x = torch.randn(2, 4, 7, 6).to(memory_format=last).requires_grad_()
    for ceil_mode in (False, True):
        y = pool(x, (2, 2), ceil_mode)
        assert y.is_contiguous(memory_format=last) and not y.is_contiguous()
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert gradient.is_contiguous(memory_format=last)
        # A gradient of another layout, and an expanded one.
        for g in (torch.ones(y.shape), torch.ones(()).expand(y.shape)):
            (other,) = torch.autograd.grad(pool(x, (2, 2), ceil_mode), x, g)
            torch.testing.assert_close(other, gradient)
    plain = x.detach().contiguous()
    assert pool(plain, (2, 2), False).is_contiguous()
    assert torch.equal(pool(plain, (2, 2), False), pool(x, (2, 2), False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_in_a_window_of_zeros_is_zero(dtype: torch.dtype, isa: str) -> None:
    for layout in ("contiguous", "last"):
        x = torch.zeros(2, 20, 6, 6, dtype=dtype)
        x[:, :, 2:4, 2:4] = 1.0
        x[0, 0, 0, 4] = 1e-30
        x = x.to(memory_format=torch.channels_last) if layout == "last" else x
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(l2_norm_pool2d(x, (2, 2), False, 3.0).sum(), x)
        assert torch.equal(gradient[:, :, 2:4, 2:4], torch.full((2, 20, 2, 2), 1.5, dtype=dtype))
        gradient[:, :, 2:4, 2:4] = 0
        if dtype is torch.float64:
            assert gradient[0, 0, 0, 4] == 3.0
            gradient[0, 0, 0, 4] = 0
        assert (gradient == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_window(bad: float, isa: str) -> None:
    x = torch.ones(1, 1, 4, 40)
    x[0, 0, 1, 5] = bad
    for name in ("l2_norm_pool2d", "scaled_avg_pool2d"):
        out = getattr(ops, name)(x, 2, 2, False, 1.0)
        assert not out[0, 0, 0, 2].isfinite()
        out[0, 0, 0, 2] = 0
        assert out.isfinite().all()
    gradient = ops.l2_norm_pool2d_backward(torch.ones(1, 1, 2, 20), x, 2, 2, False, 1.0)
    assert torch.isnan(gradient).nonzero().tolist() == [[0, 0, 1, 5]]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_derivatives_of_every_order(name: str, ceil_mode: bool) -> None:
    pool = POOLS[name]
    for layout in ("contiguous", "last"):
        x = images((2, 2, 5, 4), torch.float64, layout).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: pool(x, (2, 3), ceil_mode, 0.7), (x,))
        assert torch.autograd.gradgradcheck(lambda x: pool(x, (2, 3), ceil_mode, 0.7) ** 2, (x,))


def test_operators_pass_opcheck() -> None:
    for shape, layout, ceil_mode in (
        ((2, 3, 5, 4), "contiguous", False),
        ((2, 3, 5, 4), "last", True),
        ((2, 1, 5, 4), "last", True),
        ((3, 5, 4), "last", False),
        ((2, 3, 5, 4), "strided", True),
    ):
        x = images(shape, torch.float32, layout)
        settings = (2, 3, ceil_mode, 1.3)
        for name in ("l2_norm_pool2d", "scaled_avg_pool2d"):
            op = getattr(ops, name).default
            torch.library.opcheck(op, (x, *settings))
            torch.library.opcheck(op, (x.clone().requires_grad_(), *settings))
            g = torch.randn_like(op(x, *settings))
            backward = getattr(ops, name + "_backward").default
            first = (g, x) if name.startswith("l2") else (g, *shape[-2:])
            torch.library.opcheck(backward, (*first, *settings))
        # Linear, so that its adjoint has a derivative.
        torch.library.opcheck(backward, (g.requires_grad_(), *shape[-2:], *settings))


def test_transforms_compilers_and_autocast_give_the_same() -> None:
    x = torch.randn(3, 2, 4, 5)
    for pool in (F.l2_norm_pool2d, F.scaled_avg_pool2d):

        def loss(x: Tensor, pool: Any = pool) -> Tensor:
            return (pool(x, 2, True, scale=0.5) ** 3).sum()

        y = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(y), y)
        torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), wanted)
        jacobians = [
            torch.autograd.functional.jacobian(lambda x, p=pool: p(x, 2), x, vectorize=v)
            for v in (True, False)
        ]
        torch.testing.assert_close(*jacobians)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        (gradient,) = torch.autograd.grad(compiled(y), y)
        torch.testing.assert_close(gradient, wanted)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert pool(x.bfloat16().requires_grad_(), 2).dtype is torch.bfloat16
            assert pool(y, 2).dtype is torch.float32


@pytest.mark.parametrize("name", POOLS)
def test_empty_batches(name: str) -> None:
    x = torch.randn(0, 3, 5, 4, requires_grad=True)
    y = POOLS[name](x, (2, 2), True)
    assert y.shape == (0, 3, 3, 2)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
