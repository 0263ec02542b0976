"""Who normalises what: without processes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import lipfuse
import lipfuse.nn as lnn
from lipfuse.distributed import assign, cost


def loads(costs: list[float], owners: list[int], ranks: int) -> list[float]:
    sums = [0.0] * ranks
    for c, owner in zip(costs, owners, strict=True):
        sums[owner] += c
    return sums


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_work_is_balanced(ranks: int) -> None:
    """Within 4/3 of the best assignment, which is found by trying all."""
    for seed in range(10):
        costs = [random.Random(seed + i).uniform(1, 100) for i in range(7)]
        owners = assign(costs, ranks)
        assert owners == assign(costs, ranks)
        best = min(
            max(loads(costs, list(some), ranks))
            for some in itertools.product(range(ranks), repeat=len(costs))
        )
        assert max(loads(costs, owners, ranks)) <= 4 / 3 * best + 1e-9


def test_assignments_at_the_edges() -> None:
    assert assign([], 3) == []
    assert assign([1.0, 1.0], 8) == [0, 1]
    assert assign([5.0, 5.0, 5.0, 5.0], 2) == [0, 1, 0, 1]
    # Twelve blocks of a vision transformer on 16 ranks: none is idle, none has two large ones.
    shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12
    owners = assign([cost(*s) for s in shapes], 16)
    sums = loads([cost(*s) for s in shapes], owners, 16)
    assert max(sums) <= 1.15 * sum(sums) / 16


def test_cost_grows_with_the_smaller_side() -> None:
    assert cost(64, 512) == cost(512, 64) < cost(256, 128)
    assert cost(32, 32, 4) == 4 * cost(32, 32)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"process_group must be None or .*ProcessGroup.*got 3"):
        lipfuse.fuse(lnn.SpectralLinear(3, 2), process_group=3)
    with (
        pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"),
        (
            lipfuse.normalize_once(3)  # type: ignore[arg-type]
        ),
    ):
        pass
    with (
        torch.nn.utils.parametrize.cached(),
        pytest.raises(RuntimeError, match="cached"),
        lipfuse.normalize_once(lnn.SpectralLinear(3, 2)),
    ):
        pass
