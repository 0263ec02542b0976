"""Operators called past the public functions: what a kernel would read beyond its end is refused.

Each of these once crashed the process, hung, or computed from memory of others; benchmarks/fuzz.py
looks for more.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lipfuse.functional as F
from lipfuse import _native, ops

if not _native.loaded:
    pytest.skip("no native library", allow_module_level=True)
lipfuse = torch.ops.lipfuse
assert ops.evaluate  # registers them

W, U, V = torch.randn(6, 4), torch.ones(6), torch.ones(4)
STEPS, HISTORY = torch.tensor(3), torch.randn(3, 6, 4)
ROOT, INFO = torch.eye(4), torch.ones(5, dtype=torch.float64)
PAIRS, FLAGS = torch.randn(2, 4), torch.zeros(2, 2, dtype=torch.uint8)
SYMBOL = [torch.randn(1, 3, 3, 2), torch.randn(1, 3, 3, 2), torch.randn(2, 5), torch.randn(2, 5)]
TWO = (1, 1e-12, [1.0, 1.0])  # iterations, eps and the scales of two weights
MANY = 2**32 + 1  # as an int, 1
EMPTY = torch.empty(0).as_strided((0, 2**40, 2**40), (1, 1, 1))

CASES: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "power: v": ("power_iteration", (W, U, torch.ones(9), 1, 1e-12), "v must have 4"),
    "power: count": ("power_iteration", (W, U, V, MANY, 1e-12), "n_iterations must be in"),
    "power: empty": ("power_iteration", (EMPTY, EMPTY[:, 0], None, 1, 1e-12), "too large"),
    "outer: grad": ("power_iteration_backward", (torch.ones(0), U, V), "grad_sigma must have 1"),
    "outer: v": ("power_iteration_backward", (torch.ones(2), U[:2, None], V), "v must have"),
    "spectral: sigma": (
        "spectral_normalize_backward",
        (W, None, W, torch.ones(0), U, V, 1e-12, 1.0),
        "sigma must have 1",
    ),
    "spectral: u": (
        "spectral_normalize_backward",
        (W, None, W, torch.ones(()), V, V, 1e-12, 1.0),
        "u must have 6",
    ),
    "bjorck: count": ("bjorck", (W, 0.5, -1, 1e-3, True), "max_iterations must be in"),
    "bjorck: steps": (
        "bjorck_backward",
        (W, HISTORY, STEPS + 1, 0.5),
        r"steps must be in \[0, 3\]",
    ),
    "bjorck: negative": ("bjorck_backward", (W, HISTORY, -STEPS, 0.5), "got -3"),
    "bjorck: dtype": ("bjorck_backward", (W, HISTORY, STEPS.int(), 0.5), "steps must be int64"),
    "bjorck: history": ("bjorck_backward", (W, HISTORY.double(), STEPS, 0.5), "history must"),
    "chain: nothing kept": (
        "spectral_bjorck_backward",
        (W, torch.ones(2), U, V, torch.ones(0), 0 * STEPS, 1e-12, 0.5, 1.0),
        "first iterate",
    ),
    "chain: v": (
        "spectral_bjorck",
        (W, U, V.double(), 1, 1e-12, 0.5, 3, 1e-3, 1.0, False),
        "v must have the dtype",
    ),
    "polar: tol": ("orthogonalize", (W, -1.0, 1.0, False), "tol must not be negative"),
    "polar: hangs": (
        "orthogonalize_backward",
        (W, W, W, ROOT, INFO, -1.0, 1.0, False),
        "tol must not be negative",
    ),
    "polar: root": (
        "orthogonalize_backward",
        (W, W, W, torch.ones(0), INFO, 1e-4, 1.0, False),
        "saved must have 16",
    ),
    "polar: info": (
        "orthogonalize_backward",
        (W, W, W, ROOT, INFO.float(), 1e-4, 1.0, False),
        "info must be float64",
    ),
    "polar: weight": (
        "orthogonalize_backward",
        (W, W[:2], W, ROOT, INFO, 1e-4, 1.0, False),
        "weight must have 24",
    ),
    "many: groups": (
        "foreach_orthogonalize",
        ([torch.ones(0, 3)], [2**40], [1.0], 1e-4, False),
        "groups divide",
    ),
    "many: lists": (
        "foreach_orthogonalize_backward",
        ([W], [W], [], [ROOT], INFO[None], [1], [1.0], 1e-4, False),
        "length of weights",
    ),
    "norms: us": ("foreach_spectral_normalize", ([W, W], [U], [V, V], *TWO), "length of weights"),
    "norms: vs": ("foreach_spectral_normalize", ([W, W], [U, U], [V], *TWO), "length of weights"),
    "norms: u": ("foreach_spectral_normalize", ([W, W], [U, V], [V, V], *TWO), "u must have 6"),
    "norms: v": ("foreach_spectral_normalize", ([W, W], [U, U], [V, U], *TWO), "v must have 4"),
    "norms: scales": (
        "foreach_spectral_normalize",
        ([W, W, W], [U, U, U], [], *TWO),
        "scales must have the same length",
    ),
    "norms: none": ("foreach_spectral_normalize", ([], [], [], 1, 1e-12, []), "not be empty"),
    "norms: lists": (
        "foreach_spectral_normalize_backward",
        ([W, W], None, [W], torch.ones(2), [U, U], [V, V], *TWO[1:]),
        "length of weights",
    ),
    "norms: normalized": (
        "foreach_spectral_normalize_backward",
        ([W, W], None, [W, W[:1]], torch.ones(2), [U, U], [V, V], *TWO[1:]),
        "normalized must have 24",
    ),
    "rows: norm": (
        "frobenius_normalize_backward",
        (W, W, torch.ones(2), 1e-12, 1.0),
        "norm must have 6",
    ),
    "bound: count": ("spectral_bound", (W, MANY), "squarings must be in"),
    "symbol: start": ("symbol_scores", (*SYMBOL, torch.ones(9), 2), "start must have 3"),
    "symbol: steps": ("symbol_scores", (*SYMBOL, torch.ones(3), -1), "steps must be in"),
    "symbol: taps": ("symbol_bound", (torch.ones(2, 2, 3), [2**40], [4]), "product 3"),
    "pairs: flags": ("sort_pairs_backward", (PAIRS, FLAGS.long(), 1, 1.0), "swapped must be uint8"),
    "parts: signs": (
        "max_min_backward",
        (torch.ones(2, 6), torch.ones(2, 3), 1, 1.0),
        "signs must be uint8",
    ),
    "parts: sizes": (
        "max_min_backward",
        (torch.ones(2, 5), torch.ones(2, 2, dtype=torch.uint8), 1, 1.0),
        "signs must have one element",
    ),
    "pool: empty": ("l2_norm_pool2d", (EMPTY, 2, 2, True, 1.0), "too large"),
    "pool: huge": (
        "scaled_avg_pool2d_backward",
        (
            torch.ones(1, 2, 1, 3).to(memory_format=torch.channels_last),
            2**62,
            3,
            2**62,
            1,
            True,
            1.0,
        ),
        "too large|overflow",
    ),
    "pairs: empty": ("sort_pairs", (EMPTY, 2, 1.0, True), "too large"),
    "pool: size": (
        "scaled_avg_pool2d_backward",
        (torch.ones(1, 0, 0), -3, 4, 2, 2, True, 1.0),
        "must not be negative",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_is_refused(name: str) -> None:
    operator, arguments, message = CASES[name]
    with pytest.raises((RuntimeError, ValueError), match=message):
        getattr(lipfuse, operator).default(*arguments)


def test_the_largest_windows() -> None:
    """Their number is counted without overflow."""
    x = torch.ones(1, 3, 5)
    for kernel in (5, 2**62, 2**63 - 1):
        out = lipfuse.l2_norm_pool2d(x, kernel, kernel, True, 1.0)
        assert out.shape == (1, 1, 1) and float(out) == pytest.approx(15**0.5)


def test_no_iteration_has_a_gradient() -> None:
    """Of Björck's chain: the first iterate was read though none was kept."""
    w = torch.randn(5, 3, requires_grad=True)
    u = torch.ones(5) / 5**0.5
    out = F.spectral_bjorck(w, u, max_iterations=0)[0]
    expected = F.spectral_normalize(w, u)[0]
    assert torch.equal(out, expected)

    def gradient(y: Tensor) -> Tensor:
        return torch.autograd.grad(y.tanh().sum(), w)[0]

    assert torch.equal(gradient(out), gradient(expected))


@pytest.mark.parametrize("name", ["l2_norm_pool2d", "scaled_avg_pool2d", "sort_pairs"])
def test_fake_versions_and_references_refuse_in_the_same_words(name: str) -> None:
    """Not by an IndexError or a ZeroDivisionError."""
    arguments = (7, 1.0, True) if name == "sort_pairs" else (0, 0, True, 1.0)
    with pytest.raises(RuntimeError, match="lipfuse"):
        getattr(lipfuse, name).default(torch.ones(2, 3, 4, device="meta"), *arguments)
