"""The torch-free kernels through numpy, for every instruction set, against float64 and beyond."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tools
import torch

from lipfuse import _native

Array = np.ndarray[Any, np.dtype[Any]]

if _native.kernels is None:
    pytest.skip("lipfuse._kernels was not built", allow_module_level=True)
kernels = _native.kernels
every_isa = pytest.mark.usefixtures("isa")

SIZES = [
    (1, 1, 1),
    (1, 9, 5),
    (9, 1, 5),
    (5, 9, 1),
    (2, 3, 4),
    (6, 16, 8),
    (14, 32, 64),
    (17, 31, 13),
    (61, 67, 71),
    (97, 5, 101),
    (3, 300, 2),
    (128, 128, 128),
    (130, 33, 257),
]


def relative_error(found: Array, exact: Array) -> float:
    size = float(np.sqrt((exact.astype(np.longdouble) ** 2).sum()))
    gap = float(np.sqrt(((found.astype(np.longdouble) - exact) ** 2).sum()))
    return gap / size if size else gap


def assert_as_good_as_numpy(found: Array, plain: Array, exact: Array) -> None:
    assert found.dtype == plain.dtype
    assert found.shape == exact.shape
    allowed = 3 * relative_error(plain, exact) + 4 * np.finfo(found.dtype).eps
    assert relative_error(found, exact) <= allowed


def drawn(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def spectrum_matrix(kind: str, shape: tuple[int, int], dtype: Any) -> Array:
    return tools.matrix(kind, shape).numpy().astype(dtype)


# ---- products ------------------------------------------------------------------------------------


def _transposed(x: Array) -> Array:
    return np.ascontiguousarray(x.T).T


def _strided(x: Array) -> Array:
    large = np.full((2 * x.shape[0] + 1, 3 * x.shape[1] + 2), 777, x.dtype)
    large[1::2, 2::3][: x.shape[0], : x.shape[1]] = x
    return large[1::2, 2::3][: x.shape[0], : x.shape[1]]


def _padded(x: Array) -> Array:
    large = np.full((x.shape[0], x.shape[1] + 3), 777, x.dtype)
    large[:, 1:-2] = x
    return large[:, 1:-2]


def _reversed(x: Array) -> Array:
    return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]


ARRAY_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.ascontiguousarray,
    "transposed": _transposed,
    "strided": _strided,
    "padded rows": _padded,
    "reversed": _reversed,
}


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m, k, n", SIZES)
def test_matmul(m: int, k: int, n: int, dtype: Any) -> None:
    a, b = drawn((m, k), dtype, 1), drawn((k, n), dtype, 2)
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    assert_as_good_as_numpy(kernels.matmul(a, b), a @ b, exact)


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout_a", ARRAY_LAYOUTS)
@pytest.mark.parametrize("layout_b", ARRAY_LAYOUTS)
def test_matmul_of_any_layout(layout_a: str, layout_b: str, dtype: Any) -> None:
    for m, k, n in [(5, 7, 3), (33, 18, 50), (70, 40, 67)]:
        a, b = drawn((m, k), dtype, 1), drawn((k, n), dtype, 2)
        exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
        found = kernels.matmul(ARRAY_LAYOUTS[layout_a](a), ARRAY_LAYOUTS[layout_b](b))
        assert_as_good_as_numpy(found, a @ b, exact)


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matmul_of_a_broadcast_row(dtype: Any) -> None:
    row, b = drawn((1, 21), dtype, 1), drawn((21, 19), dtype, 2)
    a = np.broadcast_to(row, (18, 21))
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    assert_as_good_as_numpy(kernels.matmul(a, b), a @ b, exact)


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "n, k", [(1, 1), (1, 8), (2, 5), (7, 3), (16, 16), (31, 64), (97, 40), (160, 7)]
)
def test_symmetric_products_are_symmetric_to_the_bit(n: int, k: int, dtype: Any) -> None:
    a = drawn((n, k), dtype)
    exact = a.astype(np.longdouble) @ a.T.astype(np.longdouble)
    for left, right in [(a, a.T), (_transposed(a), _transposed(a).T), (_strided(a), _strided(a).T)]:
        found = kernels.matmul(left, right, symmetric=True)
        assert np.array_equal(found, found.T)
        assert_as_good_as_numpy(found, a @ a.T, exact)


@every_isa
def test_matmul_leaves_its_operands_alone() -> None:
    a, b = drawn((33, 18), np.float32, 1), drawn((18, 50), np.float32, 2)
    a_before, b_before = a.copy(), b.copy()
    kernels.matmul(a, b)
    assert np.array_equal(a, a_before) and np.array_equal(b, b_before)


@every_isa
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_matmul_spreads_what_is_not_finite_to_one_row_only(value: float) -> None:
    a, b = drawn((19, 18), np.float32, 1), drawn((18, 23), np.float32, 2)
    a[7, 3] = value
    found = kernels.matmul(a, b)
    assert not np.isfinite(found[7]).any()
    assert np.isfinite(np.delete(found, 7, axis=0)).all()


# ---- algorithms ----------------------------------------------------------------------------------


def numpy_power_iteration(w: Array, v: Array, iterations: int) -> tuple[float, Array, Array]:
    for _ in range(iterations):
        u = w @ v
        u = u / np.linalg.norm(u)
        v = w.T @ u
        sigma = np.linalg.norm(v)
        v = v / sigma
    return float(sigma), u, v


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (17, 13), (13, 101), (101, 13)])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_power_iteration(shape: tuple[int, int], dtype: Any, iterations: int) -> None:
    w = drawn(shape, dtype)
    v = drawn((shape[1],), dtype, 3)
    v /= np.linalg.norm(v)
    exact = numpy_power_iteration(w.astype(np.longdouble), v.astype(np.longdouble), iterations)
    plain = numpy_power_iteration(w, v, iterations)
    sigma, new_u, new_v = kernels.power_iteration(w, v, iterations)
    one = np.array
    assert_as_good_as_numpy(one([sigma], dtype), one([plain[0]], dtype), one([exact[0]]))
    assert_as_good_as_numpy(new_u, plain[1], exact[1])
    assert_as_good_as_numpy(new_v, plain[2], exact[2])


@every_isa
def test_power_iteration_without_an_iteration_keeps_v() -> None:
    w, v = drawn((5, 4), np.float64), drawn((4,), np.float64, 3)
    sigma, u, new_v = kernels.power_iteration(w, v, 0)
    assert np.array_equal(new_v, v)
    assert sigma == 0 and not u.any()  # u starts at zero here


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (16, 16), (13, 101), (101, 13)])
@pytest.mark.parametrize("beta, steps", [(0.5, 1), (0.5, 6), (0.25, 4)])
def test_bjorck(shape: tuple[int, int], dtype: Any, beta: float, steps: int) -> None:
    w = spectrum_matrix("near", shape, dtype)

    def iterate(x: Array) -> Array:
        for _ in range(steps):
            x = x.dtype.type(1 + beta) * x - x.dtype.type(beta) * (x @ x.T @ x)
        return x

    found, ran = kernels.bjorck(w, beta, steps, 1e-30)
    # Rounding may bring the iteration to a full stop before that.
    assert ran == steps or np.array_equal(iterate(w), found)
    assert_as_good_as_numpy(found, iterate(w), iterate(w.astype(np.longdouble)))


@every_isa
def test_bjorck_stops_once_a_step_is_shorter_than_eps() -> None:
    w = spectrum_matrix("near", (20, 20), np.float64)
    lengths = []
    x = w
    for _ in range(8):
        new = 1.5 * x - 0.5 * x @ x.T @ x
        lengths.append(np.linalg.norm(new - x))
        x = new
    for steps in range(1, 6):  # between two lengths: after exactly so many steps
        eps = (
            float(np.sqrt(lengths[steps - 1] * lengths[steps - 2])) if steps > 1 else lengths[0] * 2
        )
        assert kernels.bjorck(w, 0.5, 15, eps)[1] == steps
    assert kernels.bjorck(w, 0.5, 3, 1e-30)[1] == 3
    same, ran = kernels.bjorck(w, 0.5, 0, 1e-3)
    assert ran == 0 and np.array_equal(same, w)


@every_isa
@pytest.mark.parametrize(
    "dtype, tol", [(np.float32, 1e-4), (np.float32, 1e-6), (np.float64, 1e-7), (np.float64, 1e-12)]
)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 9), (9, 1), (17, 17), (13, 101), (101, 13), (48, 48)]
)
@pytest.mark.parametrize("kind", tools.BENIGN)
def test_orthogonalize(kind: str, shape: tuple[int, int], dtype: Any, tol: float) -> None:
    w = spectrum_matrix(kind, shape, dtype)
    q, info = kernels.orthogonalize(w, tol)
    assert q.dtype == dtype
    exact = q.astype(np.float64)
    gram = exact @ exact.T if shape[0] < shape[1] else exact.T @ exact
    small = min(shape)
    residual = np.linalg.norm(gram - np.eye(small))
    # As promised: tol, or what rounding leaves.
    floor = 5 * np.finfo(dtype).eps * small
    assert residual <= tol + floor
    assert info["residual"] <= tol + floor
    assert np.linalg.norm(exact, 2) <= 1 + 1e-5 + floor
    assert np.linalg.norm(exact, 2) <= info["bound"] * (1 + 2 * np.finfo(dtype).eps)
    # H = QᵀW symmetric and positive: it is the polar factor, not just any orthonormal matrix.
    h = exact @ w.T if shape[0] < shape[1] else exact.T @ w
    size = np.linalg.norm(w.astype(np.float64), 2)
    assert np.linalg.norm(h - h.T) <= 4 * size * (tol + floor)
    assert np.linalg.eigvalsh((h + h.T) / 2).min() >= -size * (tol + floor)


# ---- arguments -----------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    w, v = np.ones((3, 4)), np.ones(4)
    cases: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
        (kernels.matmul, (w, np.ones((3, 4))), "matrices"),
        (kernels.matmul, (w, v), "matrices"),
        (kernels.matmul, (np.ones((2, 3, 4)), w), "matrices"),
        (kernels.power_iteration, (np.ones(4), v), "weight"),
        (kernels.power_iteration, (w, np.ones(3)), "v must"),
        (kernels.power_iteration, (w, np.ones((4, 1))), "v must"),
        (kernels.bjorck, (np.ones(4),), "weight"),
        (kernels.orthogonalize, (np.ones((2, 3, 4)),), "weight"),
        (kernels.select_instruction_set, ("sse9",), "sse9.*generic"),
        (kernels.largest_use, (3, 1, 1, 1, 1, "mirror"), "mirror"),
        (kernels.largest_use, (0, 1, 1, 1, 1, "zeros"), "positive"),
        (kernels.largest_use, (3, 0, 1, 1, 1, "zeros"), "positive"),
        (kernels.largest_use, (3, 1, -1, 1, 1, "zeros"), "negative"),
        (kernels.largest_use, (3, 1, 1, 1, 0, "zeros"), "positive"),
        (kernels.largest_use, (3, 1, 1, 1, 1, "zeros", -1), "negative"),
    ]
    for function, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    with pytest.raises(ValueError, match="square"):
        kernels.matmul(np.ones((3, 4)), np.ones((4, 2)), symmetric=True)
    with pytest.raises(TypeError):
        kernels.matmul(w, "a matrix")


@every_isa
def test_empty_products() -> None:
    assert kernels.matmul(np.ones((0, 3)), np.ones((3, 2))).shape == (0, 2)
    assert kernels.matmul(np.ones((3, 2)), np.ones((2, 0))).shape == (3, 0)
    assert np.array_equal(kernels.matmul(np.ones((3, 0)), np.ones((0, 2))), np.zeros((3, 2)))


# ---- instruction sets ----------------------------------------------------------------------------


def test_what_was_selected_is_what_runs(isa: str) -> None:
    assert kernels.cpu_features()["selected"] == isa


def test_operators_follow_the_choice() -> None:
    """Sums are taken in another order: over a few sizes, bits differ somewhere."""
    available = kernels.cpu_features()["available"]
    if len(available) == 1:
        pytest.skip("this processor has but one instruction set")
    before = kernels.cpu_features()["selected"]
    weight = torch.randn(64, 300)
    results = []
    try:
        for name in (available[0], available[-1]):
            kernels.select_instruction_set(name)
            results.append(torch.ops.lipfuse.bjorck(weight * 0.02, 0.5, 3, 1e-9, False)[0])
    finally:
        kernels.select_instruction_set(before)
    assert not torch.equal(*results)
    assert torch.allclose(*results, atol=1e-5)


def test_environment_variable() -> None:
    """LIPFUSE_ISA chooses; a wrong one fails with what is allowed, at the first use."""
    code = (
        "from lipfuse import _kernels as k\n"
        "try: print(k.cpu_features()['selected'])\n"
        "except ValueError as e: print(e)\n"
    )
    for name, expected in [("generic", "generic"), ("sse9", "choose from: generic")]:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "LIPFUSE_ISA": name},
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in result.stdout


def test_build_info() -> None:
    info = kernels.build_info()
    assert {"version", "compiler", "flags", "cuda_architectures", "torch_target"} <= set(info)
    assert kernels.cpu_features()["available"][0] == "generic"
