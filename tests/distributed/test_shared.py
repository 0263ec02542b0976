"""fuse(process_group=...): each rank normalises a part, all get all, gradients are averages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from networks import assert_same_state, batch, counted, network, part, train, values
from pool import Pool
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lipfuse
import lipfuse.nn as lnn
from lipfuse.fusion import polar_weights


def gradients_of(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (nn.functional.cross_entropy(model(x), y) + model(x).square().mean()).backward()
    return {name: p.grad for name, p in model.named_parameters()}  # type: ignore[misc]


def single(group: Any, columns: int) -> tuple[Tensor, Tensor]:
    """One matrix for all ranks, the gradient of which is this rank's number."""
    torch.manual_seed(dist.get_rank(group))
    layer: Any = lipfuse.fuse(lnn.SpectralLinear(columns, 5), process_group=group)
    original = layer.parametrizations.weight.original
    layer(torch.eye(columns)).mul(dist.get_rank(group) * torch.arange(5.0)).sum().backward()
    return original.detach(), original.grad


@pytest.mark.parametrize("columns", [3, 9])
def test_more_ranks_than_matrices(pool: Pool, columns: int) -> None:
    results = pool.run(4, single, columns)
    twin: Any = lnn.SpectralLinear(columns, 5)
    original = twin.parametrizations.weight.original
    original.data.copy_(results[0][0])
    twin(torch.eye(columns)).mul(1.5 * torch.arange(5.0)).sum().backward()
    for found, gradient in results:
        assert torch.equal(found, results[0][0])
        assert torch.equal(gradient, results[0][1])
        assert torch.allclose(gradient, original.grad, atol=1e-5)


def forward_and_backward(group: Any) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """How many matrices this rank normalised; the weights, and the gradients without DDP."""
    model = network()
    if dist.get_rank(group):  # the first rank's parameters will be everybody's
        for chain in polar_weights(model):
            nn.init.normal_(chain.original)
    lipfuse.fuse(model, process_group=group)
    with counted() as matrices, torch.no_grad():
        model(batch(0)[0])
        once = matrices()
    found = gradients_of(model, *(part(t, group) for t in batch(0)))
    assert all(p.isfinite().all() for p in found.values())
    return once, {n: p for n, p in values(model).items() if "original" in n}, found


@pytest.mark.parametrize("count", [2, 3, 4])
def test_forward_and_backward(pool: Pool, count: int) -> None:
    """More ranks than there is work for: some have none."""
    results = pool.run(count, forward_and_backward)
    assert sum(once for once, _, _ in results) == 4
    assert all(once >= 1 for once, _, _ in results)
    model = network()
    expected: dict[str, Tensor] = {}
    for rank in range(count):
        x, y = (t.chunk(count)[rank] for t in batch(0))
        for name, gradient in gradients_of(copy.deepcopy(model), x, y).items():
            expected[name] = expected.get(name, torch.tensor(0.0)) + gradient / count
    for _, originals, found in results:
        own = values(model)
        for name, value in originals.items():
            if not name.startswith("8."):  # the Frobenius norm is each process's own affair
                assert torch.equal(value, own[name])
                assert torch.allclose(found[name], expected[name], atol=1e-5), name
                assert torch.equal(found[name], results[0][2][name])


def partly_used(group: Any) -> list[Tensor]:
    """A layer that only the first rank uses, and one that nobody does."""
    layers = nn.ModuleList(lnn.SpectralLinear(4, 4) for _ in range(3))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Any:
            x = layers[0](x)
            return layers[1](x) if dist.get_rank(group) == 0 else x

    model = lipfuse.fuse(Model(), process_group=group)
    model(torch.ones(1, 4)).square().sum().backward()
    return [layer.parametrizations.weight.original.grad for layer in layers]  # type: ignore


def test_weights_without_a_gradient_count_as_zero(pool: Pool) -> None:
    first, second = pool.run(2, partly_used)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert first[0].abs().sum() > 0
    assert first[2].abs().sum() == 0


def copied(group: Any) -> bool:
    """A copy computes alone: the other ranks do not call it."""
    model = lipfuse.fuse(network(), process_group=group)
    x = batch(0)[0]
    if dist.get_rank(group) == 0:
        twin = copy.deepcopy(model)
        twin(x).sum().backward()
        lipfuse.unfuse(copy.deepcopy(model))(x)
    model.eval()
    if dist.get_rank(group) == 0:
        model(x)  # evaluation, too, is everybody's own
    return True


def test_copies_and_evaluation_are_not_shared(pool: Pool) -> None:
    assert all(pool.run(2, copied))


def accumulated(group: Any, shared: bool) -> dict[str, Tensor]:
    """Three micro-batches a step under DDP, one normalisation and one exchange."""
    model = network()
    if shared:
        lipfuse.fuse(model, process_group=group)
    parallel = DistributedDataParallel(model, process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        x, y = (part(t, group) for t in batch(step))
        micro = list(zip(x.split(1), y.split(1), strict=True))
        with lipfuse.normalize_once(parallel):
            for i, (a, b) in enumerate(micro):
                if i < len(micro) - 1:
                    with parallel.no_sync():
                        (nn.functional.cross_entropy(parallel(a) * 4, b) / len(micro)).backward()
                else:
                    (nn.functional.cross_entropy(parallel(a) * 4, b) / len(micro)).backward()
        optimizer.step()
    return values(model)


@pytest.mark.parametrize("shared", [False, True])
def test_accumulation(pool: Pool, shared: bool) -> None:
    results = pool.run(2, accumulated, shared)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x) * 4, y).backward()
        optimizer.step()
    assert_same_state(results[0], values(model), 1e-4)
    assert_same_state(results[1], results[0])


def one_rank(group: Any) -> dict[str, Tensor]:
    model = lipfuse.fuse(network(), process_group=group)
    train(model, model)
    return values(model)


def test_a_group_of_one(pool: Pool) -> None:
    model = network()
    train(model, model)
    assert_same_state(pool.run(1, one_rank)[0], values(model), 2e-4)
