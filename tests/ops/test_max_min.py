"""Positive and negative parts: native against plain torch, layouts, gradients, NaN, zeros."""

from __future__ import annotations

import pytest
import torch
from test_sort_pairs import DTYPES, LAYOUTS, assert_compiled_but_not_exported, laid_out
from torch import Tensor

import lipfuse
import lipfuse.functional as F
from lipfuse import _native, reference
from lipfuse.ops.max_min import max_min

pytestmark = pytest.mark.skipif(not _native.loaded, reason="no native library")
op = torch.ops.lipfuse.max_min.default
op_backward = torch.ops.lipfuse.max_min_backward.default
# Rows below, at and above every vector width, with tails; a large one for several threads.
SHAPES = [(1,), (34,), (5, 6), (1000, 1), (2, 1, 7), (3, 16, 3, 3), (2, 1, 1, 5), (9, 33, 16, 17)]


def plain(x: Tensor, dim: int, scale: float) -> Tensor:
    return torch.cat((torch.relu(x), torch.relu(-x)), dim) * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_equals_the_reference_and_plain_torch(
    dtype: torch.dtype, layout: str, isa: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        for dim in range(len(shape)):
            numbers = torch.randn(shape, generator=generator)
            x = laid_out((numbers * (numbers > -1)).to(dtype), layout).requires_grad_()
            out, signs = op(x.detach(), dim, 0.7, True)
            wanted, flags = reference.max_min(x.detach(), dim, 0.7, True)
            assert torch.equal(out, wanted), (shape, dim)
            assert torch.equal(out, plain(x, dim, 0.7)), (shape, dim)
            assert torch.equal(signs, flags), (shape, dim)
            assert torch.equal(op(x.detach(), dim - x.dim(), 0.7, False)[0], wanted)
            g = torch.randn(out.shape, generator=generator).to(dtype)
            (gradient,) = torch.autograd.grad(plain(x, dim, 0.7), x, g)
            assert torch.equal(reference.max_min_backward(g, flags, dim, 0.7), gradient)
            for given in (g, laid_out(g, layout), laid_out(g, "strided")):
                assert torch.equal(op_backward(given, signs, dim, 0.7), gradient), (shape, dim)
            # Signs of another layout, whose strides may say anything where there is no choice.
            strides = [5 if n == 1 else s for n, s in zip(shape, flags.stride(), strict=True)]
            odd = flags.as_strided(shape, strides)
            assert torch.equal(op_backward(g, odd, dim, 0.7), gradient), (shape, dim)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_kept(layout: str) -> None:
    for shape in ((3, 4), (2, 3, 4, 5), (2, 3, 1, 5)):
        x = laid_out(torch.randn(shape), layout)
        out, signs = op(x, 1, 1.0, True)
        like = torch.randn(shape) if layout == "strided" else x
        twice = laid_out(torch.randn(out.shape), "contiguous" if layout == "strided" else layout)
        gradient = op_backward(torch.randn(out.shape), signs, 1, 1.0)
        for y, wanted in ((out, twice), (gradient, like)):
            pairs = zip(y.stride(), wanted.stride(), y.shape, strict=True)
            assert all(a == b or n == 1 for a, b, n in pairs), (shape, y.stride())
    # A single channel is channels last if its stride says so.
    x = torch.empty_strided((2, 1, 4, 5), (20, 1, 5, 1)).normal_()
    assert op(x, 1, 1.0, False)[0].stride() == (40, 1, 10, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_in_both_parts_and_infinity_in_one(dtype: torch.dtype, isa: str) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, inf, -inf, 0.0, -0.0, 3.0, -3.0] * 5, dtype=dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    g = torch.arange(1.0, 71.0).to(dtype)
    out, wanted = max_min(x, 0), plain(y, 0, 1.0)
    torch.testing.assert_close(out, wanted, equal_nan=True, rtol=0, atol=0)
    out.backward(g)
    wanted.backward(g)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)


def test_operators_pass_opcheck() -> None:
    for shape, dim in (((3, 4), 1), ((2, 3, 2, 2), -3), ((2, 1, 3, 3), 1), ((0, 3), 1)):
        for layout in LAYOUTS:
            x = laid_out(torch.randn(shape), layout)
            torch.library.opcheck(op, (x, dim, 1.5, True))
            torch.library.opcheck(op, (x, dim, 1.5, False))
            torch.library.opcheck(op, (x.clone().requires_grad_(), dim, 1.5, True))
            out, signs = op(x, dim, 1.0, True)
            torch.library.opcheck(op_backward, (torch.randn_like(out), signs, dim, 1.5))


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_derivatives_of_every_order(layout: str) -> None:
    x = laid_out(torch.randn(2, 3, 2, 2, dtype=torch.float64), layout).requires_grad_()
    for dim in range(2):
        assert torch.autograd.gradcheck(lambda x, dim=dim: max_min(x, dim, 0.7), (x,))
        assert torch.autograd.gradgradcheck(lambda x, dim=dim: max_min(x, dim, 0.7) ** 3, (x,))


def test_input_and_output_may_be_changed_before_the_backward() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    y = x * 2
    out = F.max_min(y, scale=0.5)
    y.zero_()
    out.mul_(3)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, 3 * x.detach().sign())
    assert not F.max_min(x.detach()).requires_grad
    assert op(x.detach(), 1, 1.0, False)[1].shape == (0,)


def test_transforms_and_compilers_give_the_same() -> None:
    x = torch.randn(3, 2, 4, 5)

    def loss(x: Tensor) -> Tensor:
        return (F.max_min(x, 0, scale=0.5) ** 3).sum()

    wanted = torch.stack([torch.func.grad(loss)(image) for image in x])
    y = x.clone().requires_grad_()
    (eager,) = torch.autograd.grad(sum(loss(image) for image in y), y)
    torch.testing.assert_close(eager, wanted)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), wanted)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(y[0]), y)
    torch.testing.assert_close(gradient[0], wanted[0])
    assert_compiled_but_not_exported(F.max_min, lipfuse.nn.MaxMin(), x)


def test_large_results_are_in_large_pages_and_right() -> None:
    """Advice on pages reaches no byte outside of a tensor, and changes none inside."""
    x = torch.randn(4, 64, 72, 72)  # 5.1 MiB, 10.1 MiB: no multiples of a page
    torch.testing.assert_close(max_min(x, 1), plain(x, 1, 1.0), rtol=0, atol=0)
