"""Sorting of pairs: native against plain torch, layouts, gradients, ties, NaN."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipfuse
import lipfuse.functional as F
from lipfuse import _native, reference
from lipfuse.ops.sort_pairs import sort_pairs

pytestmark = pytest.mark.skipif(not _native.loaded, reason="no native library")
op = torch.ops.lipfuse.sort_pairs.default
op_backward = torch.ops.lipfuse.sort_pairs_backward.default
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Inner sizes below, at and above every vector width, with tails; a large one for several threads.
SHAPES = [
    ((2,), 0),
    ((34,), 0),
    ((5, 6), 1),
    ((4, 7), 0),
    ((2, 1000), 0),
    ((3, 70), 1),
    ((2, 2, 3, 1), 1),
    ((2, 6, 7, 7), 1),
    ((2, 4, 4, 33), 2),
    ((3, 4, 5, 6), 3),
    ((1, 2, 67, 1), 1),
    ((2, 2, 1, 1), 1),
    ((9, 64, 16, 17), 1),
]


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return (
            x.permute(*range(x.dim() - 1, -1, -1)).contiguous().permute(*range(x.dim() - 1, -1, -1))
        )
    if layout == "last" and x.dim() > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        wide = torch.zeros(*x.shape, 2, dtype=x.dtype)
        wide[..., 0] = x
        return wide[..., 0]
    return x


LAYOUTS = ["contiguous", "transposed", "last", "strided"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_equals_the_reference(dtype: torch.dtype, layout: str, isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for (shape, dim), scale in itertools.product(SHAPES, (1.0, 0.7)):
        x = laid_out(torch.randn(shape, generator=generator).to(dtype), layout)
        g = torch.randn(shape, generator=generator).to(dtype)
        out, swapped = op(x, dim, scale, True)
        wanted, flags = reference.sort_pairs(x, dim, scale, True)
        assert torch.equal(out, wanted), (shape, dim)
        assert torch.equal(swapped, flags), (shape, dim)
        assert torch.equal(op(x, dim - x.dim(), scale, False)[0], wanted)
        wanted = reference.sort_pairs_backward(g, flags, dim, scale)
        for gradient in (g, laid_out(g, layout), laid_out(g, "strided")):
            assert torch.equal(op_backward(gradient, swapped, dim, scale), wanted), (shape, dim)
        # Flags of another layout than the kernel's, whose strides may say anything.
        assert torch.equal(op_backward(g, flags, dim, scale), wanted), (shape, dim)
        odd = torch.empty_strided(flags.shape, flags.stride(), dtype=torch.uint8).copy_(flags)
        if flags.shape[dim] == 1:
            strides = list(flags.stride())
            strides[dim] = 5
            odd = odd.as_strided(flags.shape, strides)
        assert torch.equal(op_backward(g, odd, dim, scale), wanted), (shape, dim)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_kept(layout: str) -> None:
    for shape, dim in SHAPES:
        x = laid_out(torch.randn(shape), layout)
        out, swapped = op(x, dim, 1.0, True)
        gradient = op_backward(torch.randn(shape), swapped, dim, 1.0)
        wanted = x.contiguous().stride() if layout == "strided" else x.stride()
        for y in (out, gradient):
            pairs = zip(y.stride(), wanted, x.shape, strict=True)
            assert all(a == b or n == 1 for a, b, n in pairs), (shape, dim)


def test_half_precision_numbers_pass_unchanged(isa: str) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        every = bits.view(dtype)
        pairs = torch.stack((every, every), 1).flatten()
        out = op(pairs, 0, 1.0, False)[0]
        finite = ~pairs.isnan()
        assert torch.equal(out[finite].view(torch.int16), pairs[finite].view(torch.int16))
        assert torch.equal(out.isnan(), pairs.isnan())
        # Rounded as torch rounds, beyond the range and below the smallest normal number too.
        for scale in (3.0, 1 / 3, 1e-5):
            scaled = op(pairs, 0, scale, False)[0]
            assert torch.equal(scaled[finite], (pairs * scale)[finite])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_with_a_nan_stays_as_it_is(dtype: torch.dtype, isa: str) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, 1, 1, nan, nan, nan, inf, -inf, -inf, nan, nan, -inf] * 6, dtype=dtype)
    wanted = torch.tensor([nan, 1, 1, nan, nan, nan, -inf, inf, -inf, nan, nan, -inf] * 6)
    for y in (x, x.view(-1, 2).T.contiguous()):
        sorted = op(y, 0, 1.0, False)[0]
        flat = sorted if y.dim() == 1 else sorted.T.reshape(-1)
        torch.testing.assert_close(flat, wanted.to(dtype), equal_nan=True, rtol=0, atol=0)


def test_tied_pairs_keep_their_gradients(isa: str) -> None:
    for shape in ((40,), (2, 20)):
        x = torch.zeros(shape, requires_grad=True)
        g = torch.arange(40.0).reshape(shape)
        (gradient,) = torch.autograd.grad(sort_pairs(x, 0), x, g)
        assert torch.equal(gradient, g)
    # Zeros of either sign are tied.
    x = torch.tensor([0.0, -0.0])
    assert not op(x, 0, 1.0, True)[1].any()


def test_operators_pass_opcheck() -> None:
    for shape, dim in (((3, 4), 1), ((2, 4, 3, 2), 1), ((2, 2, 3, 3), -3)):
        for layout in LAYOUTS:
            x = laid_out(torch.randn(shape), layout)
            torch.library.opcheck(op, (x, dim, 1.5, True))
            torch.library.opcheck(op, (x, dim, 1.5, False))
            torch.library.opcheck(op, (x.clone().requires_grad_(), dim, 1.5, True))
            swapped = op(x, dim, 1.0, True)[1]
            g = torch.randn(shape, requires_grad=True)
            torch.library.opcheck(op_backward, (g, swapped, dim, 1.5))


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_derivatives_of_every_order(layout: str) -> None:
    x = laid_out(torch.randn(2, 4, 3, 2, dtype=torch.float64), layout).requires_grad_()
    for dim in range(2):
        assert torch.autograd.gradcheck(lambda x, dim=dim: sort_pairs(x, dim, 0.7), (x,))
        assert torch.autograd.gradgradcheck(lambda x, dim=dim: sort_pairs(x, dim, 0.7) ** 3, (x,))


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    x = torch.randn(2, 4)
    assert op(x, 1, 1.0, False)[1].shape == (0,)
    assert not sort_pairs(x, 1).requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not sort_pairs(x, 1).requires_grad
    assert sort_pairs(x, 1).requires_grad


def test_odd_sizes_and_unknown_dimensions_are_refused() -> None:
    for arguments in ((torch.ones(3), 0), (torch.ones(2), 1), (torch.ones(2), -2)):
        with pytest.raises(RuntimeError):
            op(*arguments, 1.0, True)
    with pytest.raises(RuntimeError):
        op_backward(torch.ones(4), torch.ones(3, dtype=torch.uint8), 0, 1.0)
    with pytest.raises(RuntimeError):
        op(torch.ones(2).int(), 0, 1.0, True)


def test_transforms_compilers_and_autocast_give_the_same() -> None:
    x = torch.randn(3, 2, 4, 5)

    def loss(x: Tensor) -> Tensor:
        return (F.group_sort(x, 2, 0, scale=0.5) ** 3).sum()

    wanted = torch.stack([torch.func.grad(loss)(image) for image in x])
    y = x.clone().requires_grad_()
    (eager,) = torch.autograd.grad(sum(loss(image) for image in y), y)
    torch.testing.assert_close(eager, wanted)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), wanted)
    _, tangent = torch.func.jvp(loss, (x[0],), (torch.ones_like(x[0]),))
    torch.testing.assert_close(tangent, wanted[0].sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        tangent = torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent
        torch.testing.assert_close(tangent, wanted[0].sum())
    jacobians = [
        torch.autograd.functional.jacobian(lambda x: F.group_sort_2(x), x[0], vectorize=v)
        for v in (True, False)
    ]
    assert torch.equal(*jacobians)
    compiled = torch.compile(lambda x: F.group_sort_2(x), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), F.group_sort_2(x))
    of_many = torch.vmap(lambda x: F.group_sort_2(x))
    compiled = torch.compile(of_many, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), of_many(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.group_sort_2(x.bfloat16().requires_grad_()).dtype is torch.bfloat16
        assert F.group_sort_2(x.requires_grad_()).dtype is torch.float32


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    for dim in range(len(shape)):
        if shape[dim] % 2 == 0:
            x = torch.randn(shape, requires_grad=True)
            y = sort_pairs(x, dim)
            assert y.shape == shape
            assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def assert_compiled_but_not_exported(function: Any, layer: nn.Module, x: Tensor) -> None:
    """Compiled code keeps the operator, exported code does not."""
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(module.code)
        return module

    torch.compile(lambda x: function(x), backend=backend, fullgraph=True)(x)
    assert "lipfuse" in graphs[0]
    program = torch.export.export(layer, (x,))
    assert "lipfuse" not in str(program.graph)


def test_compiled_code_keeps_the_operator_and_exported_code_does_not() -> None:
    assert_compiled_but_not_exported(F.group_sort_2, lipfuse.nn.GroupSort2(), torch.randn(3, 4))
