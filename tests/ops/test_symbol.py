"""Operators on the symbols of convolutions: kernels beside plain torch, and the bound itself."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import tools
import torch
from torch import Tensor

from lipfuse import _native, ops, reference
from lipfuse.reference.symbol_bound import symbol_grams

module = sys.modules["lipfuse.ops.symbol_bound"]

TAPS, SAMPLES = [3, 2], [8, 5]


def symbol(weight: Tensor, taps: list[int], theta: tuple[float, ...]) -> Tensor:
    """sum_t W_t exp(i t theta) for a weight (m, n, taps), by the definition."""
    places = itertools.product(*(range(k) for k in taps))
    angles = (sum(p * a for p, a in zip(place, theta)) for place in places)
    phases = [complex(math.cos(a), math.sin(a)) for a in angles]
    return weight.to(torch.complex128) @ torch.tensor(phases, dtype=torch.complex128)


def largest(weight: Tensor, taps: list[int], samples: list[int]) -> float:
    grids = [[2 * math.pi * f / n for f in range(n)] for n in samples]
    return max(
        float(torch.linalg.matrix_norm(symbol(weight.double(), taps, theta), 2))
        for theta in itertools.product(*grids)
    )


def gram_terms(n: int, terms: int, dtype: torch.dtype) -> list[Tensor]:
    """even, odd, cosines, sines of two matrices and 21 frequencies, positive semidefinite."""
    torch.manual_seed(n)
    w = torch.randn(2, n + 1, n, terms, dtype=torch.float64)
    r = torch.stack(
        [sum(w[..., t].mT @ w[..., t + d] for t in range(terms - d)) for d in range(terms)],  # type: ignore[arg-type]
        -1,
    )
    even, odd = r + r.transpose(1, 2), r - r.transpose(1, 2)
    even[..., 0] /= 2
    angles = torch.arange(terms, dtype=torch.float64)[:, None] * torch.linspace(0, 3.1, 21)
    return [x.to(dtype) for x in (even, odd, angles.cos(), angles.sin())]


@pytest.mark.skipif(not _native.loaded, reason="no native library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 8, 23])
def test_kernels_against_plain_torch(n: int, dtype: torch.dtype, isa: str) -> None:
    arguments = gram_terms(n, 3, dtype)
    start = torch.linspace(1, 2, n, dtype=dtype)
    found = torch.ops.lipfuse.symbol_scores(*arguments, start, 3)
    expected = reference.symbol_scores(*arguments, start, 3)
    assert torch.allclose(found, expected, rtol=1e-4 if dtype == torch.float32 else 1e-12)
    grams = symbol_grams(*arguments)
    values = torch.linalg.eigvalsh(grams)[..., -1]
    for threshold in (values.amax(0) * 1.001, values.median(0).values * 1.001, values[3] * 0.999):
        flags = torch.ops.lipfuse.symbol_exceeds(*arguments, threshold)
        assert flags.dtype == torch.uint8
        assert torch.equal(flags != 0, values > threshold)
        assert torch.equal(flags, reference.symbol_exceeds(*arguments, threshold))
    for op, last in (("symbol_scores", (start, 2)), ("symbol_exceeds", (values[0],))):
        torch.library.opcheck(getattr(torch.ops.lipfuse, op).default, (*arguments, *last))


@pytest.mark.skipif(not _native.loaded, reason="no native library")
def test_kernels_with_threads_nan_and_bad_shapes() -> None:
    arguments = gram_terms(40, 4, torch.float32)
    threshold = torch.full((2,), 30.0)
    with tools.threads(1):
        one = torch.ops.lipfuse.symbol_exceeds(*arguments, threshold)
    with tools.threads(2):
        assert torch.equal(torch.ops.lipfuse.symbol_exceeds(*arguments, threshold), one)
    broken = [a.clone() for a in arguments]
    broken[0][0, 1, 1, 0] = math.nan
    flags = torch.ops.lipfuse.symbol_exceeds(*broken, threshold * 1e6)
    assert flags[:, 0].all() and not flags[:, 1].any()
    assert torch.ops.lipfuse.symbol_exceeds(*broken, threshold * math.nan).all()
    with pytest.raises(RuntimeError, match="thresholds must have 2 elements"):
        torch.ops.lipfuse.symbol_exceeds(*arguments, threshold[:1])
    with pytest.raises(RuntimeError, match="cosines must be"):
        torch.ops.lipfuse.symbol_exceeds(*arguments[:2], *(a[:2] for a in arguments[2:]), threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (5, 1), (2, 6, 4), (3, 2, 5, 2)], ids=str)
def test_bound(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Above the largest norm of all samples, by next to nothing; attained by what it returns."""
    torch.manual_seed(1)
    weight = torch.randn(*shape, 6, dtype=dtype)
    bound, patches = ops.symbol_bound(weight, TAPS, SAMPLES)
    assert bound.dtype == patches.dtype == dtype
    assert bound.shape == shape[:-2] and patches.shape == (*shape[:-2], shape[-1] * 6, 2)
    reached = torch.linalg.vector_norm(weight.flatten(-2) @ patches, dim=(-2, -1))
    for i in itertools.product(*(range(b) for b in shape[:-2])):
        exact = largest(weight[i], TAPS, SAMPLES)
        above = 1e-4 if dtype == torch.float32 else 1e-8
        assert exact * (1 - 1e-13) <= float(bound[i]) <= exact * (1 + above)
        assert float(reached[i]) == pytest.approx(exact, rel=1e-4)


def test_large_matrices_go_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    weight = torch.randn(2, 9, 7, 6)
    expected, _ = ops.symbol_bound(weight, TAPS, SAMPLES)
    monkeypatch.setattr(module, "_LARGEST_WAVE", 3)
    monkeypatch.setattr(module, "_CHUNK", 100)
    assert torch.allclose(ops.symbol_bound(weight, TAPS, SAMPLES)[0], expected, rtol=1e-5)
    monkeypatch.setattr(module, "_LARGEST_SINGLE", 3)
    assert torch.allclose(ops.symbol_bound(weight, TAPS, SAMPLES)[0], expected, rtol=1e-4)


def test_bound_of_zero_nothing_and_the_unbounded() -> None:
    torch.manual_seed(3)
    weight = torch.randn(4, 3, 2, 6)
    weight[0] = 0
    weight[1, 0, 0, 0] = math.nan
    weight[2] *= 1e-25
    bound, patches = ops.symbol_bound(weight, TAPS, SAMPLES)
    assert bound[0] == 0 and bound[1].isnan() and patches.isfinite().all()
    for i in (2, 3):
        exact = largest(weight[i], TAPS, SAMPLES)
        assert exact * (1 - 1e-12) <= float(bound[i]) <= exact * (1 + 1e-4)
    for shape in ((0, 3, 2, 6), (2, 0, 2, 6), (2, 3, 0, 6)):
        bound, patches = ops.symbol_bound(torch.zeros(shape), TAPS, SAMPLES)
        assert bound.shape == shape[:1] and not bound.any()
        assert patches.shape == (shape[0], shape[2] * 6, 2)


def test_opcheck_and_vmap() -> None:
    torch.manual_seed(4)
    weight = torch.randn(3, 4, 2, 6)
    torch.library.opcheck(torch.ops.lipfuse.symbol_bound.default, (weight, TAPS, SAMPLES))
    each = torch.stack([ops.symbol_bound(w, TAPS, SAMPLES)[0] for w in weight])
    mapped = torch.func.vmap(lambda w: ops.symbol_bound(w, TAPS, SAMPLES)[0])(weight)
    assert torch.allclose(mapped, each)
