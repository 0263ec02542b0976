"""Helpers for the tests of layers: the exact Lipschitz constant, and inputs of many layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def _lipschitz_at(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The largest singular value of the dense Jacobian at x, in float64."""
    x = x.detach().double()
    jacobian = torch.autograd.functional.jacobian(function, x, vectorize=True)
    matrix = jacobian.reshape(-1, x.numel())
    assert matrix.isfinite().all()
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0


@pytest.fixture
def lipschitz_at() -> Callable[[Callable[[Tensor], Tensor], Tensor], float]:
    return _lipschitz_at


def _largest_gain(
    function: Callable[[Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]
) -> float:
    """The largest ratio of output to input distances: what the Jacobian at a point cannot see."""
    with torch.no_grad():
        ratios = [(function(x) - function(y)).norm() / (x - y).norm() for x, y in pairs]
    return float(torch.stack(ratios).max())


@pytest.fixture
def largest_gain() -> Callable[..., float]:
    return _largest_gain


@pytest.fixture
def trained() -> Callable[[nn.Module], nn.Module]:
    """Push every parameter far off, as an adversarial optimiser would."""

    def push(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(7.0 * torch.randn_like(parameter))
        return module

    return push
