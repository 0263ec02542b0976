"""The gradient penalty: its value where slopes are known, and its gradient through them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipfuse.functional as F
import lipfuse.nn as lnn


def slope_of(length: float) -> nn.Linear:
    """A critic whose gradient has that length everywhere."""
    critic = nn.Linear(6, 1).double()
    with torch.no_grad():
        critic.weight.mul_(length / critic.weight.norm())
    return critic


@pytest.mark.parametrize("length", [0.0, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_value_and_gradient(length: float, one_sided: bool) -> None:
    critic = slope_of(length)
    x, y = torch.randn(2, 5, 6).double()
    excess = length - 0.8
    expected = max(excess, 0.0) ** 2 if one_sided else excess**2
    for other in (None, y):
        settings: dict[str, Any] = {"target": 0.8, "one_sided": one_sided}
        penalty = F.gradient_penalty(critic, x, other, **settings)
        assert penalty.item() == pytest.approx(expected)
        each = F.gradient_penalty(critic, x, other, reduction="none", **settings)
        assert each.shape == (5,) and torch.allclose(each.mean(), penalty)
        total = F.gradient_penalty(critic, x, other, reduction="sum", **settings)
        assert total.item() == pytest.approx(5 * expected)
        (gradient,) = torch.autograd.grad(penalty, critic.weight, materialize_grads=True)
        free = one_sided and excess <= 0
        direction = critic.weight.detach() / max(length, 1e-300)
        assert torch.allclose(gradient, 2 * excess * direction * (not free), atol=1e-12)


def test_points_lie_between_and_are_drawn_for_each_sample() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).norm(dim=1)

    x, y = torch.zeros(50, 2, 3), torch.ones(50, 2, 3)
    drawn = [
        F.gradient_penalty(critic, x, y, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    t = seen[0].flatten(1)
    assert (t == t[:, :1]).all() and 0 <= t.min() < 0.2 < 0.8 < t.max() <= 1
    assert len(t[:, 0].unique()) == 50
    assert drawn[0].item() == pytest.approx(0.0, abs=1e-10)


def test_it_persuades_a_network() -> None:
    """And a network that is Lipschitz by design needs no persuasion."""
    critic = nn.Sequential(nn.Linear(4, 16), nn.Softplus(), nn.Linear(16, 1))
    with torch.no_grad():
        critic[2].weight.mul_(20.0)  # type: ignore[operator]
    x, y = torch.randn(2, 64, 4)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
    values = []
    for _ in range(100):
        with torch.no_grad():  # of no consequence
            penalty = F.gradient_penalty(critic, x, y)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert values[-1] < 0.05 * values[0]
    lipschitz = nn.Sequential(lnn.SpectralLinear(4, 4), lnn.FullSort(), lnn.SpectralLinear(4, 1))
    assert F.gradient_penalty(lipschitz, x, y).item() == pytest.approx(0.0, abs=1e-6)


def test_a_critic_that_ignores_its_input() -> None:
    penalty = F.gradient_penalty(lambda x: torch.ones(3, requires_grad=True), torch.randn(3, 2))
    assert penalty.item() == 1.0


def test_arguments() -> None:
    critic, x = slope_of(1.0), torch.randn(3, 6).double()
    for wrong, error, text in (
        ({"input": x.long()}, TypeError, "input"),
        ({"input": x[:0]}, ValueError, "at least one sample"),
        ({"other": x[:2]}, ValueError, "other"),
        ({"other": x.float()}, TypeError, "other"),
        ({"target": 0.0}, ValueError, "target"),
        ({"target": math.nan}, ValueError, "target"),
        ({"one_sided": 1}, TypeError, "one_sided"),
        ({"reduction": "max"}, ValueError, "reduction"),
        ({"function": nn.Linear(6, 2).double()}, ValueError, "one number a sample"),
        ({"function": lambda x: 1.0}, TypeError, "function's result"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            F.gradient_penalty(**{"function": critic, "input": x, **wrong})  # type: ignore[arg-type]
