"""The upper bound of the spectral norm: never below it, and close."""

from __future__ import annotations

import math

import pytest
import tools
import torch

import lipfuse.functional as F

op = torch.ops.lipfuse.spectral_bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", tools.SPECTRA)
def test_never_below_and_close(kind: str, dtype: torch.dtype, isa: str) -> None:
    for shape in [*tools.SHAPES, (130, 130)]:
        for seed in range(3):
            w = tools.matrix(kind, shape, seed).to(dtype)
            norm = torch.linalg.matrix_norm(w.double(), ord=2)
            bound = op(w, 10).double()
            assert (bound >= norm).all(), shape
            assert (bound <= norm * 1.002).all(), shape


def test_hard_matrices(isa: str) -> None:
    """Leading vectors that a start vector may miss, clusters, steps: the bound holds regardless."""
    n = 48
    ones = torch.ones(n, n, dtype=torch.float64)
    signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    cases = {
        "all ones": ones,
        "alternating": signs[:, None] * signs[None, :],
        "one element": torch.zeros(n, n, dtype=torch.float64).index_put_(
            (torch.tensor(5), torch.tensor(7)), torch.tensor(1.0).double()
        ),
        "diagonal": torch.diag(torch.linspace(0.5, 1, n, dtype=torch.float64)),
        "identity": torch.eye(n, dtype=torch.float64),
        "two clusters": torch.diag(torch.tensor([1.0] * (n - 1) + [1 + 1e-7]).double()),
        "one above many": torch.diag(torch.tensor([1.0] * (n - 1) + [1.01]).double()),
        "nilpotent": torch.diag(torch.ones(n - 1, dtype=torch.float64), 1),
        "triangular": torch.triu(ones),
        "hilbert": 1 / (torch.arange(n)[:, None] + torch.arange(n)[None, :] + 1).double(),
    }
    for name, w64 in cases.items():
        for w in (w64.float(), w64, w64[:, : n // 3], w64[: n // 3].float()):
            norm = tools.largest_singular_value(w)
            bound = float(op(w, 10))
            assert norm <= bound, name
            assert bound <= norm * 1.005 + 1e-30, name


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30, 1e37])
def test_size_of_the_weight_does_not_matter(scale: float) -> None:
    w = (tools.matrix("near", (9, 7)) * scale).float()
    norm = tools.largest_singular_value(w)
    assert norm <= float(op(w, 10)) <= norm * 1.01


def test_few_squarings_hold_too() -> None:
    w = tools.matrix("gaussian", (20, 20)).float()
    for squarings in range(4):
        assert float(op(w, squarings)) >= tools.largest_singular_value(w)


def test_zero_and_not_finite() -> None:
    assert float(op(torch.zeros(4, 3), 8)) == 0
    w = torch.randn(3, 4, 3)
    w[0, 1, 1], w[1, 1, 1] = math.nan, math.inf
    bound = op(w, 8)
    assert not bound[:2].isfinite().any()
    assert bound[2] >= tools.largest_singular_value(w[2])


def test_no_gradient() -> None:
    w = torch.randn(4, 3, requires_grad=True)
    assert not F.spectral_norm_bound(w).requires_grad
