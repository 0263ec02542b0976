"""What holds for every operator: schema, opcheck, accuracy, layouts, determinism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
from op_cases import BY_NAME, CASES, Arguments, Case, example, valid
from torch import Tensor

from lipfuse import _native, reference

needs_native = pytest.mark.skipif(not _native.loaded, reason="no native library")
every_operator = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
# Those that take lists have no batch dimensions, and groups of at least one row.
of_one_weight = pytest.mark.parametrize(
    "case", [c for c in CASES if not c.name.startswith("foreach")], ids=lambda c: c.name
)


def mapped(arguments: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function on every float matrix among the arguments, or batch of matrices."""
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(mapped(a, function) for a in arguments)
    if isinstance(arguments, Tensor) and arguments.dim() >= 2 and arguments.is_floating_point():
        return function(arguments)
    return arguments


def compared(case: Case, *results: list[Tensor]) -> list[tuple[Any, ...]]:
    """The outputs that have a meaning of their own, side by side, with what they may be off."""
    rows = zip(case.slack, *results, strict=True)
    return [row for row in rows if row[0] is not None]


# ---- the table itself ----------------------------------------------------------------------------


# Activations, pools and symbols, which have other arguments and tests of their own, and what only
# compiled code calls.
_ELSEWHERE = ("sort_pairs", "max_min", "l2_norm_pool2d", "scaled_avg_pool2d", "symbol", "evaluate")


def test_there_is_a_case_for_every_operator() -> None:
    registered = {
        name.removeprefix("lipfuse::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("lipfuse::")
    }
    registered -= {name for name in registered if name.startswith(_ELSEWHERE)}
    assert registered == set(BY_NAME)
    assert registered <= set(reference.__all__)


@every_operator
def test_schema_is_that_of_the_reference(case: Case) -> None:
    """Names, order and types of the arguments, and the types of the results."""
    inferred = torch.library.infer_schema(case.reference, mutates_args=())
    written = torch._C.parse_schema(f"lipfuse::{case.name}{inferred}")
    native = case.op._schema
    assert [(a.name, str(a.type)) for a in native.arguments] == [
        (a.name, str(a.type)) for a in written.arguments
    ]
    assert [str(r.type) for r in native.returns] == [str(r.type) for r in written.returns]
    assert not native.is_mutable


# ---- opcheck -------------------------------------------------------------------------------------


@every_operator
@pytest.mark.parametrize("shape", [(4, 4), (2, 5, 3), (3, 4)], ids=str)
def test_opcheck(case: Case, shape: tuple[int, ...]) -> None:
    weight = tools.matrix("near", shape)
    arguments = case.arguments(weight, torch.float32)
    torch.library.opcheck(case.op, arguments)
    if case.differentiable:
        wanted = tuple(
            a.clone().requires_grad_() if i in case.differentiable else a
            for i, a in enumerate(arguments)
        )
        torch.library.opcheck(case.op, wanted)


@every_operator
def test_fake_tensors_have_the_sizes_and_strides_of_the_real_ones(case: Case) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for shape in [(1, 1), (2, 5, 3), (3, 0), (0, 3), (0, 4, 3)]:
        if 0 in shape and case.name.startswith("foreach"):
            continue
        arguments = case.arguments(tools.matrix("near", shape), torch.float32)
        real = tools.flat(case.op(*arguments))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = tools.flat(case.op(*_faked(arguments, mode)))
        for r, f in zip(real, fake, strict=True):
            assert (r.shape, r.dtype) == (f.shape, f.dtype)
            assert r.stride() == f.stride() or r.numel() <= 1 or not r.numel()


def _faked(arguments: Any, mode: Any) -> Any:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_faked(a, mode) for a in arguments)
    return mode.from_tensor(arguments) if isinstance(arguments, Tensor) else arguments


# ---- accuracy ------------------------------------------------------------------------------------


@needs_native
@every_operator
@pytest.mark.parametrize("kind", tools.BENIGN)
def test_native_is_as_accurate_as_plain_torch(case: Case, kind: str, isa: str) -> None:
    """In float32, against the reference in float64 on the same input."""
    for shape in tools.SHAPES:
        arguments, plain, exact = example(case.name, kind, shape, torch.float32)
        native = valid(case, case.op(*arguments))
        for slack, n, p, e in compared(case, native, plain, exact):
            if n.dtype is torch.int64:
                assert torch.equal(n, p), shape
            else:
                tools.assert_as_good_as_plain(n, p, e, slack=slack)


@needs_native
@every_operator
@pytest.mark.parametrize("kind", ["near", "gaussian"])
def test_native_equals_the_reference_in_float64(case: Case, kind: str, isa: str) -> None:
    for shape in tools.SHAPES:
        arguments, exact, _ = example(case.name, kind, shape, torch.float64)
        size = max(float(x.norm()) for x in _tensors(arguments[0]))
        native = valid(case, case.op(*arguments))
        for slack, n, e in compared(case, native, exact):
            assert n.dtype is e.dtype
            # Gradients may cancel to nothing: rounding is relative to what went in, too.
            allowed = (slack + 1e-12) * float(e.double().norm()) + 1e-13 * size
            assert float((n - e).double().norm()) <= allowed, shape


@of_one_weight
def test_every_matrix_of_a_batch_is_on_its_own(case: Case) -> None:
    """A batch gives what its matrices give one by one."""
    weight = tools.matrix("gaussian", (3, 9, 6))
    arguments = case.arguments(weight, torch.float64)
    together = valid(case, case.op(*arguments))
    for i in range(3):
        one = valid(case, case.op(*_item(arguments, i)))
        for a, b in zip(together, one, strict=True):
            if a.shape == (0,):
                assert b.shape == (0,)
            elif a.dtype is torch.int64:
                assert torch.equal(a[i], b)
            else:
                assert tools.relative_error(b, a[i]) <= 1e-12


def _item(arguments: Arguments, i: int) -> Arguments:
    return tuple(a[i] if isinstance(a, Tensor) and a.shape[:1] == (3,) else a for a in arguments)


@of_one_weight
@pytest.mark.parametrize("shape", tools.EMPTY_SHAPES, ids=str)
def test_empty_weights(case: Case, shape: tuple[int, ...]) -> None:
    """Nothing is read or written, results have the reference's shapes, and norms are zero."""
    for dtype in (torch.float32, torch.float64):
        arguments = case.arguments(torch.zeros(shape, dtype=torch.float64), dtype)
        native, plain = case.op(*arguments), case.reference(*arguments)
        for n, p in zip(tools.flat(native), tools.flat(plain), strict=True):
            assert n.shape == p.shape and n.dtype == p.dtype
            assert n.isfinite().all()
            assert torch.equal(n, p)


# ---- layouts -------------------------------------------------------------------------------------


@needs_native
@every_operator
@pytest.mark.parametrize("layout", tools.LAYOUTS)
def test_layouts(case: Case, layout: str) -> None:
    """The same values in any memory give the same bits."""
    for shape in [(5, 7), (7, 5), (2, 3, 6, 9), (1, 4), (4, 1)]:
        arguments, _, _ = example(case.name, "near", shape, torch.float32)
        other = mapped(arguments, tools.LAYOUTS[layout])
        same = tools.equal_bits(valid(case, case.op(*arguments)), valid(case, case.op(*other)))
        assert same, shape


@of_one_weight
def test_expanded_tensors(case: Case) -> None:
    """One matrix seen as a batch: strides of zero."""
    arguments = case.arguments(tools.matrix("near", (6, 4)), torch.float32)

    def stretched(a: Any) -> Any:
        if not isinstance(a, Tensor) or a.shape == (0,):
            return a
        return a.expand(3, *a.shape)

    expanded = tuple(stretched(a) for a in arguments)
    copied = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in expanded)
    same = tools.equal_bits(valid(case, case.op(*expanded)), valid(case, case.op(*copied)))
    assert same


@every_operator
def test_results_are_contiguous_and_arguments_unchanged(case: Case) -> None:
    arguments = case.arguments(tools.matrix("near", (2, 6, 9)), torch.float32)
    other = mapped(arguments, tools.LAYOUTS["strided"])
    before = [x.clone() for x in _tensors(other)]
    for x in tools.flat(case.op(*other)):
        assert x.is_contiguous()
    assert tools.equal_bits(before, _tensors(other))


def _tensors(arguments: Any) -> list[Tensor]:
    if isinstance(arguments, (tuple, list)):
        return [x for a in arguments for x in _tensors(a)]
    return [arguments] if isinstance(arguments, Tensor) else []


# ---- determinism ---------------------------------------------------------------------------------


@needs_native
@every_operator
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_bits_every_time(case: Case, count: int, isa: str) -> None:
    """With one thread and with two, each on its own, for one large matrix and several small."""
    with tools.threads(count):
        for shape in [(150, 170), (5, 40, 30)]:
            arguments, _, _ = example(case.name, "near", shape, torch.float32)
            first = valid(case, case.op(*arguments))
            for _ in range(3):
                again = valid(case, case.op(*arguments))
                assert tools.equal_bits(first, again)


@needs_native
@every_operator
def test_two_threads_compute_what_one_does(case: Case) -> None:
    """Up to the order of sums: large enough for every pass to be shared out."""
    for shape in [(460, 470), (9, 40, 30)]:
        arguments = case.arguments(tools.matrix("near", shape), torch.float32)
        results = []
        for count in (1, 2):
            with tools.threads(count):
                results.append(valid(case, case.op(*arguments)))
        for slack, a, b in compared(case, *results):
            if a.dtype is torch.int64:
                assert torch.equal(a, b)
            else:
                assert tools.relative_error(a, b) <= 2e-5 + slack
