"""The factor that a forward leaves for its gradient: K = a C + F C F instead of an iteration."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tools
import torch
from torch import Tensor

from lipfuse import _native, ops
from lipfuse.ops.orthogonalize import SOLVE
from lipfuse.reference.orthogonalize import FACTORS_FROM

pytestmark = pytest.mark.skipif(_native.kernels is None, reason="plain torch leaves no factor")

op = torch.ops.lipfuse
ALGORITHMS = Path(__file__).parents[2] / "csrc" / "algorithms"
checkout = pytest.mark.skipif(
    not (ALGORITHMS / "fit_separable.py").is_file(), reason="needs the checkout"
)
SHAPES = [(3, 3), (32, 32), (64, 64), (7, 5), (5, 7), (90, 40), (40, 90), (150, 50), (200, 200)]
RATIOS = [0.62, 0.65, 0.75, 0.85, 0.95, 0.99, 0.9999]


def quartics() -> dict[str, list[float]]:
    """The coefficients that are compiled in."""
    found = re.findall(
        r"^ +(a|f\[\d\]) = at\(t, ([^)]*)\);", (ALGORITHMS / "separable.h").read_text(), re.M
    )
    return {name: [float(c) for c in numbers.split(",")] for name, numbers in found}


def promised(ratio: float) -> float:
    return 1e-5 + 1.45e-3 * ((1 - ratio) / 0.4) ** 3.6


def weight(shape: tuple[int, int], ratio: float, seed: int = 0) -> Tensor:
    """With singular values that fill [ratio, 1] times 1.3."""
    torch.manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    return (u * torch.linspace(1.3 * ratio, 1.3, min(shape), dtype=torch.float64)) @ vh


def factor(w: Tensor, saved: Tensor) -> Tensor:
    return saved[..., -min(w.shape[-2:]) :, :]


# ---- the approximation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitting() -> Any:
    spec = importlib.util.spec_from_file_location("fit_separable", ALGORITHMS / "fit_separable.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@checkout
def test_coefficients_are_the_best_and_as_good_as_promised(fitting: Any) -> None:
    numbers = quartics()
    assert sorted(numbers) == ["a", "f[0]", "f[1]", "f[2]", "f[3]"]
    found = np.array([0.32, 0.46, 0.22, -0.36, 0.1])
    for ratio in np.arange(0.57, 0.999, 0.03):
        t = 1 - ratio
        a, *f = (np.polyval(c[::-1], t) for c in numbers.values())
        error = fitting.largest_error(ratio, a, np.array(f))
        assert error <= promised(ratio), ratio
        if ratio < 0.95:  # above, rounding is what is fitted
            best, found = fitting.fit(ratio, found)
            assert error <= 1.05 * best + 5e-6, ratio


@checkout
def test_numbers_are_written_as_they_are_tested() -> None:
    text = (ALGORITHMS / "separable.h").read_text()
    (least,) = re.findall(r"separable_tolerance = ([^,;]+)[,;]", text)
    assert float(least) == FACTORS_FROM
    assert "return 1e-5 + 1.45e-3 * std::pow((1 - l) / 0.4, 3.6);" in text


# ---- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_is_as_exact_as_promised(
    shape: tuple[int, int], dtype: torch.dtype, isa: str
) -> None:
    for seed, ratio in enumerate(RATIOS):
        w = weight(shape, ratio, seed).to(dtype)
        g = tools.matrix("gaussian", shape, 9).to(dtype)
        q, saved, info = op.orthogonalize(w, 1e-4, 0.7, True)
        used = float(info[0] / info[1])
        assert 0.55 < used <= ratio + 1e-3  # an estimate, with a margin
        found = op.orthogonalize_backward(g, w, q, saved, info, SOLVE * 1e-4, 0.7, False)
        exact = 0.7 * tools.polar_gradient(w.double(), g.double())
        # The forward's own error, and what rounding does to a solve.
        slack = 3e-4 if dtype == torch.float64 else 5e-4
        assert tools.relative_error(found, exact) <= promised(used) + slack, ratio
        f = factor(w, saved)
        assert f.any() and torch.equal(f, f.mT), ratio
        if (1 - used) / (1 + used) <= SOLVE * 1e-4:
            continue  # C itself, over twice the middle of the spectrum, is exact enough
        other = op.orthogonalize_backward(g, w, q, 1.01 * saved, info, SOLVE * 1e-4, 0.7, False)
        assert not torch.equal(found, other), "the factor was not used"


@pytest.mark.parametrize("kind", ["zero", "orthogonal", "gaussian", "deficient", "log"])
def test_no_factor_is_zero(kind: str, isa: str) -> None:
    """An orthogonal weight needs none, and of a wide spectrum there is none."""
    for shape in [(20, 20), (30, 20), (20, 30), (200, 200)]:
        w = torch.zeros(shape) if kind == "zero" else tools.matrix(kind, shape).float()
        _, saved, _ = op.orthogonalize(w, 1e-4, 1.0, True)
        assert saved.shape[-2] == min(shape) * (1 + (shape[0] != shape[1]))
        assert not factor(w, saved).any()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("ratio", [0.62, 0.8, 0.85, 0.9, 0.95, 0.98, 0.999])
def test_factor_is_that_function_and_costs_the_weight_nothing(
    ratio: float, count: int, isa: str
) -> None:
    """For polynomials of every degree: Q is the same to the bit, F what it is said to be."""
    numbers = quartics()
    for shape in [(12, 12), (48, 48), (64, 64), (80, 48), (200, 200), (256, 256)]:
        w = weight(shape, ratio)
        for dtype in (torch.float32, torch.float64):
            with tools.threads(count):
                alone, _, without = op.orthogonalize(w.to(dtype), 1e-4, 1.0, False)
                q, saved, info = op.orthogonalize(w.to(dtype), 1e-4, 1.0, True)
            assert torch.equal(alone, q) and torch.equal(without, info), shape
            t = 1 - float(info[0] / info[1])
            _, *f = (float(np.polyval(c[::-1], t)) for c in numbers.values())
            values, basis = torch.linalg.eigh(w.T @ w if shape[0] >= shape[1] else w @ w.T)
            x = values.sqrt() / info[1]
            exact = (basis * (f[0] + f[1] / x + f[2] * x**2 + f[3] * x**4)) @ basis.T
            assert tools.relative_error(factor(w, saved), exact) <= 2e-5, (shape, dtype)


def start_vector(n: int) -> Tensor:
    """What Lanczos's process begins with: see ``spectrum.h``."""
    state, signs = 0x9E3779B9, []
    for _ in range(n):
        state = (1664525 * state + 1013904223) % 2**32
        signs.append(1.0 if state >> 31 else -1.0)
    sizes = torch.arange(1, n + 1, dtype=torch.float64).sqrt()
    return torch.nn.functional.normalize(torch.tensor(signs, dtype=torch.float64) * sizes, dim=0)


def test_a_singular_value_that_is_seen_late_takes_the_factor_back(isa: str) -> None:
    """One that is invisible from the start vector: what the first stage left is for others."""
    n = 32
    torch.manual_seed(0)
    basis = torch.linalg.qr(
        torch.cat([start_vector(n)[:, None], torch.randn(n, n - 1).double()], 1)
    )[0]
    mixed = torch.linalg.qr(torch.randn(n - 1, n - 1, dtype=torch.float64))[0]
    basis = torch.cat([basis[:, :-1] @ mixed, basis[:, -1:]], 1)
    values = torch.cat([torch.linspace(0.8, 1, n - 1), torch.tensor([0.2])]).double()
    w = (basis * values) @ basis.T
    q, saved, info = op.orthogonalize(w, 2e-3, 1.0, True)
    assert float(info[0]) < 0.5 and float(info[4]) > 1  # it was found in the end
    assert not saved.any()
    g = tools.matrix("gaussian", (n, n), 9)
    found = op.orthogonalize_backward(g, w, q, saved, info, SOLVE * 2e-3, 1.0, False)
    assert tools.relative_error(found, tools.polar_gradient(w, g)) <= 0.05


def test_a_tight_tolerance_does_without(isa: str) -> None:
    """None is kept where none would do, and one that is there is not used where it would not."""
    for shape in [(24, 24), (40, 24), (24, 40)]:
        w, g = weight(shape, 0.7), tools.matrix("gaussian", shape, 9)
        exact = tools.polar_gradient(w, g)
        q, saved, info = op.orthogonalize(w, 1e-8, 1.0, True)
        assert saved.numel() == (0 if shape[0] == shape[1] else min(shape) ** 2)
        found = op.orthogonalize_backward(g, w, q, saved, info, 1e-8, 1.0, False)
        assert tools.relative_error(found, exact) <= 1e-6
        _, saved, info = op.orthogonalize(w, 1e-4, 1.0, True)
        found = op.orthogonalize_backward(g, w, q, saved, info, 1e-8, 1.0, False)
        assert tools.relative_error(found, exact) <= (1e-6 if shape[0] == shape[1] else 1e-3)


# ---- what is saved -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(6, 6), (9, 4), (4, 9), (2, 3, 5, 5), (2, 7, 5), (0, 3), (2, 0, 0)], ids=str
)
@pytest.mark.parametrize("tol", [1e-4, 1e-6])
def test_operators_follow_torchs_rules(shape: tuple[int, ...], tol: float) -> None:
    w = torch.randn(shape, requires_grad=True)
    torch.library.opcheck(op.orthogonalize.default, (w, tol, 0.7, True))
    rows = w.detach().flatten(0, -2)
    if rows.numel():
        torch.library.opcheck(
            op.foreach_orthogonalize.default, ([rows, rows.T], [1, 1], [1.0, 2.0], tol, True)
        )


def test_tangent_saves_nothing_more() -> None:
    kept = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    w = weight((40, 40), 0.8).float().requires_grad_()
    for call in (
        lambda tangent: ops.orthogonal_weight(w, 1e-4, 1.0, tangent),
        lambda tangent: ops.orthogonalize(w, 1e-4, 1.0, tangent),
        lambda tangent: ops.foreach_orthogonalize([w], [1], [1.0], 1e-4, tangent),
    ):
        sizes = []
        for tangent in (False, True):
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                call(tangent)
            sizes.append(sum(kept))
        assert sizes[0] - sizes[1] == 1600


@pytest.mark.parametrize("size", [3, 8, 48])
def test_saved_of_another_size_is_refused(size: int) -> None:
    w = torch.randn(4, 4)
    q, _, info = op.orthogonalize(w, 1e-4, 1.0, True)
    with pytest.raises(RuntimeError, match="saved must have"):
        op.orthogonalize_backward(w, w, q, torch.randn(size, 4), info, 1e-3, 1.0, False)
