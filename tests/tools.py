"""What the tests share: matrices with chosen spectra, memory layouts, oracles in float64.

Nothing here uses lipfuse, so that an error of the package cannot hide in its own yardstick.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from torch import Tensor, nn

# ---- matrices ------------------------------------------------------------------------------------

SHAPES: list[tuple[int, ...]] = [
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 2),
    (16, 16),
    (17, 17),
    (37, 23),
    (13, 101),
    (101, 13),
    (67, 64),
    (3, 5, 4),
    (2, 3, 6, 9),
]
"""1x1, rows, columns, square, prime, tall and wide matrices, and batches of them."""

EMPTY_SHAPES: list[tuple[int, ...]] = [(0, 4, 3), (2, 0, 4, 3), (0, 3), (3, 0), (2, 3, 0), (0, 0)]


def singular_values(kind: str, count: int) -> Tensor:
    """Descending order is not promised."""
    if kind == "near":
        return torch.empty(count, dtype=torch.float64).uniform_(0.88, 1.45)
    if kind == "orthogonal":
        return torch.ones(count, dtype=torch.float64)
    if kind == "wide":
        return torch.logspace(-2, 0.5, count, dtype=torch.float64)
    if kind == "log":
        return torch.logspace(-6, 3, count, dtype=torch.float64)
    if kind == "deficient":
        values = torch.empty(count, dtype=torch.float64).uniform_(0.5, 1.5)
        values[(count + 1) // 2 :] = 0
        return values
    assert kind == "zero"
    return torch.zeros(count, dtype=torch.float64)


BENIGN = ["near", "orthogonal", "gaussian", "wide"]
"""Spectra whose polar factor is well defined in float32."""
HOSTILE = ["log", "deficient", "zero"]
SPECTRA = BENIGN + HOSTILE


def matrix(kind: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A float64 matrix, or a batch of different ones, with the spectrum named."""
    return _matrix(kind, tuple(shape), seed).clone()


@functools.cache
def _matrix(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    *batch, m, n = shape
    with torch.random.fork_rng():
        torch.manual_seed(seed + 7919 * m + 104729 * n)
        if kind == "gaussian":
            return torch.randn(shape, dtype=torch.float64)
        count = 1
        for b in batch:
            count *= b
        small = min(m, n)
        parts = []
        for _ in range(count):
            left = torch.linalg.qr(torch.randn(m, small, dtype=torch.float64))[0]
            right = torch.linalg.qr(torch.randn(n, small, dtype=torch.float64))[0]
            parts.append((left * singular_values(kind, small)) @ right.mT)
        if not parts:
            return torch.zeros(shape, dtype=torch.float64)
        return torch.stack(parts).reshape(shape)


def unit(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Random float64 unit vectors along the last dimension."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(shape, dtype=torch.float64)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def start(w: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors u and v for power iteration to start from."""
    u = unit(tuple(w.shape[:-1]), 1).to(w.dtype)
    v = unit((*w.shape[:-2], w.shape[-1]), 2).to(w.dtype)
    return u, v


# ---- memory layouts ------------------------------------------------------------------------------


def _offset(x: Tensor) -> Tensor:
    storage = torch.full((x.numel() + 5,), 777.0, dtype=x.dtype)
    view = storage[3 : 3 + x.numel()].view(x.shape)
    return view.copy_(x)


def _strided(x: Tensor) -> Tensor:
    """Every second element of every second row of something larger."""
    *batch, m, n = x.shape
    large = torch.full((*batch, 2 * m + 1, 2 * n + 3), 777.0, dtype=x.dtype)
    view = large[..., 1 : 2 * m + 1 : 2, 2 : 2 * n + 2 : 2]
    return view.copy_(x)


def _padded_rows(x: Tensor) -> Tensor:
    *batch, m, n = x.shape
    large = torch.full((*batch, m, n + 3), 777.0, dtype=x.dtype)
    return large[..., :n].copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.clone(memory_format=torch.contiguous_format).mT,
    "offset": _offset,
    "strided": _strided,
    "padded rows": _padded_rows,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}
"""The same values in memory of another kind."""


# ---- errors --------------------------------------------------------------------------------------


def relative_error(found: Tensor, exact: Tensor) -> float:
    """In the Frobenius norm, of the whole tensor."""
    size = float(torch.linalg.vector_norm(exact.double()))
    gap = float(torch.linalg.vector_norm(found.double() - exact.double()))
    return gap / size if size > 0 else gap


def assert_as_good_as_plain(
    found: Tensor, plain: Tensor, exact: Tensor, *, factor: float = 3.0, slack: float = 0.0
) -> None:
    """The error against ``exact`` is that of ``plain`` torch in the same precision, or smaller.

    ``factor`` allows for another order of summation; where plain torch happens to be exact, a few
    units in the last place remain.
    """
    assert found.shape == plain.shape == exact.shape
    assert found.dtype == plain.dtype
    if not exact.numel():
        return
    ulp = torch.finfo(found.dtype).eps
    allowed = factor * relative_error(plain, exact) + 4 * ulp + slack
    assert relative_error(found, exact) <= allowed


def largest_singular_value(x: Tensor) -> float:
    """Of the worst matrix of a batch, in float64."""
    if not x.numel():
        return 0.0
    return float(torch.linalg.matrix_norm(x.detach().double(), ord=2).max())


# ---- oracles -------------------------------------------------------------------------------------


def polar_factor(w: Tensor) -> Tensor:
    """In float64, by singular value decomposition."""
    u, _, vh = torch.linalg.svd(w.double(), full_matrices=False)
    return u @ vh


def polar_gradient(w: Tensor, g: Tensor) -> Tensor:
    """The gradient of <polar factor, G> in float64, in the basis of the singular vectors.

    dQ = U (X - Xᵀ) / (s_i + s_j) Vᵀ + (the part of dW outside both bases) / s with X = UᵀdW V.
    """
    w, g = w.double(), g.double()
    if w.shape[-2] < w.shape[-1]:
        return polar_gradient(w.mT, g.mT).mT
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    x = u.mT @ g @ vh.mT
    inside = u @ ((x - x.mT) / (s.unsqueeze(-1) + s.unsqueeze(-2))) @ vh
    outside = (g - u @ (u.mT @ g)) @ vh.mT / s.unsqueeze(-2) @ vh
    return inside + outside


def plain_bjorck(w: Tensor, beta: float, steps: int) -> Tensor:
    for _ in range(steps):
        w = (1 + beta) * w - beta * w @ w.mT @ w
    return w


def dense(module: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine map, as it computes it, rounding and all: one call for all columns.

    Args:
        module: takes a batch.
        shape: of one input, without the batch dimension.
    """
    size = torch.Size(shape).numel()
    parameter: Optional[Tensor] = None
    if isinstance(module, nn.Module):
        parameter = next(iter(module.parameters()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    inputs = torch.cat([torch.zeros(1, size), torch.eye(size)]).to(dtype).reshape(size + 1, *shape)
    # Biases only add rounding errors of their own size.
    biases = [b for n, b in _parameters(module) if n.rsplit(".", 1)[-1] == "bias"]
    kept = [b.detach().clone() for b in biases]
    with torch.no_grad():
        for bias in biases:
            bias.zero_()
        outputs = module(inputs).double().reshape(size + 1, -1)
        for bias, values in zip(biases, kept):
            bias.copy_(values)
    return (outputs[1:] - outputs[:1]).mT


def _parameters(module: Callable[[Tensor], Tensor]) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters()) if isinstance(module, nn.Module) else []


def operator_norm(module: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """The exact Lipschitz constant of an affine map: the largest singular value of its matrix."""
    return largest_singular_value(dense(module, shape))


# ---- layers --------------------------------------------------------------------------------------


def original(layer: nn.Module) -> nn.Parameter:
    """The parameter that a layer's weight is computed from."""
    parameter = layer.parametrizations.weight.original  # type: ignore[union-attr]
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _saved(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _saved,
}
"""Ways to a copy of a module."""


# ---- process state -------------------------------------------------------------------------------


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Refusal = tuple[Callable[[], Any], type[Exception], list[str]]
"""A call, the error that it raises, and what stands in the message."""


def refusals(cases: Sequence[Refusal]) -> Callable[..., None]:
    """The test that arguments are refused in words: ``test_... = tools.refusals(CASES)``."""

    @pytest.mark.parametrize(("call", "error", "fragments"), cases)
    def test(call: Callable[[], Any], error: type[Exception], fragments: list[str]) -> None:
        with pytest.raises(error) as caught:
            call()
        missing = [fragment for fragment in fragments if fragment not in str(caught.value)]
        assert not missing, f"{missing} not in: {caught.value}"

    return test


def example(name: str) -> Any:
    """The module of a script of examples/; the test is skipped where there is no checkout."""
    path = Path(__file__).parents[1] / "examples" / name
    if not path.is_file():
        pytest.skip("needs the checkout")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(results: Any) -> list[Tensor]:
    """The tensors of an operator's result."""
    if isinstance(results, Tensor):
        return [results]
    return [x for result in results for x in flat(result)]


def equal_bits(a: Any, b: Any) -> bool:
    """Whether all tensors are the same to the last bit, NaN included."""
    return all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and torch.equal(x.nan_to_num(nan=1.25e7), y.nan_to_num(nan=1.25e7))
        for x, y in zip(flat(a), flat(b), strict=True)
    )
