"""Errors of the polar factor and of its gradient, relative to singular values in float64.

The yardstick is what plain torch makes of the same float32 weight: its singular value decomposition
in float32, and the gradient in the basis of those singular vectors.

Where singular values are below 1e-4 of the largest, the polar factor and its gradient depend on
digits that a float32 weight does not have. The errors are those of the rest: of Q on the right
singular vectors of larger ones, of the gradient in the block of larger ones and outside the column
space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lipfuse
from benchmarks import peers
from benchmarks.runner import Session
from lipfuse import _native

QUESTION = "errors relative to float64 singular values"

SPECTRA = ("near", "gaussian", "wide", "deficient")
Shape = tuple[int, int]
SIZES: list[Shape] = [(n, n) for n in (1, 2, 3, 7, 16, 33, 64, 128, 256, 512)]
SIZES += [(64, 576), (576, 64), (128, 1152)]
LARGE: list[tuple[Shape, str]] = [((1024, 1024), "gaussian"), ((2048, 2048), "near")]
THOROUGH: list[tuple[Shape, str]] = [
    *(((1024, 1024), s) for s in SPECTRA if s != "gaussian"),
    *(((2048, 2048), s) for s in SPECTRA[1:]),
]
QUICK: list[Shape] = [(1, 1), (16, 16), (33, 33), (128, 128), (64, 576)]
CUT = 1e-4
"""Of the largest singular value: what is below is not judged."""
OURS, PLAIN = "lipfuse", "torch SVD"
ALL_SETS = 256
"""Up to this size, all instruction sets are tried."""
SLOW_YARDSTICK = 512
"""Above this size only thorough runs have it: its decomposition would take most of the time."""


@dataclass(frozen=True)
class Oracle:
    """The polar factor of ``w`` (rows >= columns) and its gradient for ``g``, in float64."""

    u: Tensor
    s: Tensor
    v: Tensor
    g: Tensor
    kept: int

    @staticmethod
    def of(w: Tensor, g: Tensor) -> Oracle:
        """By singular value decomposition."""
        u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
        return Oracle(u, s, vh.mT, g.double(), int((s > CUT * s[0]).sum()))

    def factor_error(self, q: Tensor) -> float:
        """Relative, on the singular vectors that are judged."""
        k = self.kept
        gap = q.double() @ self.v[:, :k] - self.u[:, :k]
        return float(torch.linalg.matrix_norm(gap)) / math.sqrt(k)

    def gradient_error(self, found: Tensor) -> float:
        """Relative, in the part that is judged."""
        exact = gradient(self.u, self.s, self.v, self.g)
        size = float(torch.linalg.matrix_norm(self._judged(exact)))
        gap = float(torch.linalg.matrix_norm(self._judged(found.double() - exact)))
        # Of a 1x1 weight the gradient is zero, and rounding is all there is.
        size = size or float(torch.linalg.matrix_norm(self.g)) / float(self.s[0])
        return gap / size

    def _judged(self, x: Tensor) -> Tensor:
        k = self.kept
        x = x @ self.v[:, :k]
        judged: Tensor = x - self.u[:, k:] @ (self.u[:, k:].mT @ x)
        return judged


def gradient(u: Tensor, s: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Of <U Vᵀ, G> in the basis of the singular vectors; small singular values count as CUT.

    U (X - Xᵀ) / (s_i + s_j) Vᵀ with X = UᵀGV, and (I - U Uᵀ) G V / s Vᵀ outside the column space.
    """
    s = s.clamp_min(float(s[0]) * CUT)
    x = u.mT @ g @ v
    inside = u @ ((x - x.mT) / (s.unsqueeze(1) + s.unsqueeze(0))) @ v.mT
    if u.shape[0] == u.shape[1]:
        return inside
    return inside + (g - u @ (u.mT @ g)) @ v / s @ v.mT


def _ours(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    parameter = w.clone().requires_grad_()
    q = lipfuse.functional.orthogonalize(parameter)
    (found,) = torch.autograd.grad(q, parameter, g)
    return q.detach(), found


def _plain(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    if w.shape[0] < w.shape[1]:
        q, found = _plain(w.mT, g.mT)
        return q.mT, found.mT
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ vh, gradient(u, s, vh.mT, g)


def _excess(q: Tensor) -> float:
    """The largest singular value minus 1."""
    gram = q.double().mT @ q.double() if q.shape[0] >= q.shape[1] else q.double() @ q.double().mT
    return math.sqrt(float(torch.linalg.eigvalsh(gram)[-1])) - 1


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    kernels = _native.kernels
    if kernels is None:
        yield
        return
    before = kernels.cpu_features()["selected"]
    kernels.select_instruction_set(name)
    try:
        yield
    finally:
        kernels.select_instruction_set(before)


def instruction_sets() -> list[str]:
    """Those of this processor; without native kernels, only their name for it."""
    kernels = _native.kernels
    return ["plain torch"] if kernels is None else list(kernels.cpu_features()["available"])


def _errors(
    oracle: Oracle, flipped: bool, function: Callable[[Tensor, Tensor], Any], w: Tensor, g: Tensor
) -> dict[str, float]:
    q, found = function(w, g)
    excess = _excess(q)
    if flipped:
        q, found = q.mT, found.mT
    return {
        "Q": oracle.factor_error(q),
        "gradient": oracle.gradient_error(found),
        "sigma - 1": excess,
    }


def case_records(
    rows: int, columns: int, spectrum: str, thorough: bool = False
) -> list[dict[str, Any]]:
    """All errors for one weight: every instruction set, 1 and 2 threads, and the yardstick.

    Of large weights only the instruction set in use, if not ``thorough``: the slowest of them would
    take longer than all the rest.
    """
    sets = instruction_sets()
    if min(rows, columns) > ALL_SETS and _native.kernels is not None and not thorough:
        sets = [_native.kernels.cpu_features()["selected"]]
    w = peers.matrix(spectrum, rows, columns)
    g = peers.matrix("gaussian", rows, columns, seed=1)
    flipped = rows < columns
    oracle = Oracle.of(w.mT, g.mT) if flipped else Oracle.of(w, g)
    about = {"size": f"{rows}x{columns}", "spectrum": spectrum, "judged": oracle.kept}
    records: list[dict[str, Any]] = []
    for name in sets:
        for threads in (1, 2):
            with _instruction_set(name), _threads(threads):
                errors = _errors(oracle, flipped, _ours, w, g)
            records.append({**about, "who": OURS, "isa": name, "threads": threads, **errors})
    if min(rows, columns) <= SLOW_YARDSTICK or thorough:
        errors = _errors(oracle, flipped, _plain, w, g)
        records.append({**about, "who": PLAIN, "isa": "", "threads": None, **errors})
    return records


def worst(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One line: the largest of our errors, beside the yardstick's."""
    ours = [r for r in records if r["who"] == OURS]
    plain = [r for r in records if r["who"] == PLAIN]
    line = {key: records[0][key] for key in ("size", "spectrum", "judged")}
    for key in ("Q", "gradient", "sigma - 1"):
        line[key] = max(r[key] for r in ours)
        line[f"{PLAIN}: {key}"] = plain[0][key] if plain else None
    return line


def run(session: Session) -> None:
    """All sizes and spectra; the table shows the worst of the instruction sets and threads."""
    settings = session.settings
    cases = [(shape, s) for shape in (QUICK if settings.quick else SIZES) for s in SPECTRA]
    if not settings.quick:
        cases += LARGE + (THOROUGH if settings.thorough else [])
    records: list[dict[str, Any]] = []
    lines = []
    for (rows, columns), spectrum in cases:
        if not session.wants(f"{rows}x{columns} {spectrum}"):
            continue
        found = case_records(rows, columns, spectrum, settings.thorough)
        records += found
        lines.append(worst(found))
    if lines:
        title = f"largest errors of {', '.join(instruction_sets())} with 1 and 2 threads"
        if not settings.thorough:
            title += f" (above {ALL_SETS}: of the one in use)"
        session.rows(title, list(lines[0]), lines)
        session.keep("all instruction sets and threads", records)
