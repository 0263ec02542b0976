"""The peers that are installed, and matrices for all contenders alike."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor


@functools.cache
def find(name: str) -> tuple[Any, str]:
    """A peer's module, or None and why there is none."""
    try:
        return importlib.import_module(name), ""
    except ModuleNotFoundError as error:
        if name.startswith((error.name or "?").split(".")[0]):
            return None, "not installed"
        return None, f"does not load: {error}"
    except Exception as error:
        return None, f"does not load: {type(error).__name__}: {error}"


def deel() -> tuple[Any, str]:
    """deel-torchlip."""
    return find("deel.torchlip")


def orthogonium() -> tuple[Any, str]:
    """orthogonium's linear layers."""
    return find("orthogonium.layers.linear")


def singular_values(kind: str, count: int) -> Tensor:
    """In float64.

    "near" is what training keeps weights at, [0.88, 1.45]; "wide" spans 1e-6 to 1e3; half of
    "deficient" is zero.
    """
    if kind == "near":
        return torch.empty(count, dtype=torch.float64).uniform_(0.88, 1.45)
    if kind == "wide":
        return torch.logspace(3, -6, count, dtype=torch.float64)
    if kind != "deficient":
        raise ValueError(f"kind must be 'near', 'wide' or 'deficient', got {kind!r}")
    values = torch.empty(count, dtype=torch.float64).uniform_(0.5, 1.5)
    values[(count + 1) // 2 :] = 0
    return values


def matrix(kind: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A float32 matrix with the spectrum named, or "gaussian"; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed + 7919 * rows + 104729 * columns)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "gaussian":
        return draw(rows, columns).float()
    small = min(rows, columns)
    left = torch.linalg.qr(draw(rows, small))[0]
    right = torch.linalg.qr(draw(columns, small))[0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values = singular_values(kind, small)
    found: Tensor = (left * values) @ right.mT
    return found.float()


def orthogonality_error(q: Tensor) -> float:
    """The Frobenius norm of QᵀQ - I, on the smaller side, in float64."""
    q = q.detach().double().flatten(1)
    gram = q @ q.mT if q.shape[0] <= q.shape[1] else q.mT @ q
    gram.diagonal().sub_(1)
    return float(torch.linalg.matrix_norm(gram))
