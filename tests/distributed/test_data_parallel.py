"""DistributedDataParallel: trains like one process, to the same weights everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_layer import METHODS
from networks import assert_same_state, network, train, values
from pool import Pool
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lipfuse


def trained(group: Any, method: str, how: str) -> tuple[dict[str, Tensor], int]:
    """The state after some steps, and the number of buffer elements broadcast."""
    seed = torch.distributed.get_rank(group) if how != "shared" else 0
    model = network(method, seed)  # every rank starts elsewhere: DDP has to see to it
    if how == "fused":
        lipfuse.fuse(model)
    elif how == "shared":
        lipfuse.fuse(model, process_group=group)
    parallel = DistributedDataParallel(model, process_group=group)
    broadcast = 0
    send = parallel._distributed_broadcast_coalesced

    def counted(tensors: Any, *arguments: Any) -> None:
        nonlocal broadcast
        broadcast += sum(t.numel() for t in tensors)
        send(tensors, *arguments)

    parallel._distributed_broadcast_coalesced = counted
    train(model, parallel, group=group)
    return values(model), broadcast


def trained_alone(method: str) -> dict[str, Tensor]:
    model = network(method)
    train(model, model)
    return values(model)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("method", "how"), [(m, "plain") for m in METHODS] + [("polar", "fused"), ("polar", "shared")]
)
def test_trains_like_one_process(pool: Pool, count: int, method: str, how: str) -> None:
    results = pool.run(count, trained, method, how)
    first, broadcast = results[0]
    assert_same_state(first, trained_alone(method), 2e-4)
    for state, _ in results[1:]:
        assert_same_state(state, first)
    # Vectors at most; deel-torchlip sends as many bytes of buffers as of gradients.
    vectors = sum(p.numel() for name, p in first.items() if name.endswith(("._u", "._v")))
    assert broadcast == 4 * vectors
    assert vectors == 0 if method == "polar" else vectors < sum(p.numel() for p in first.values())


def with_static_graph(group: Any) -> dict[str, Tensor]:
    model = network()
    parallel = DistributedDataParallel(model, process_group=group, static_graph=True)
    train(model, parallel, group=group)
    return values(model)


def test_static_graph(pool: Pool) -> None:
    results = pool.run(2, with_static_graph)
    assert_same_state(results[0], trained_alone("polar"), 2e-4)
    assert_same_state(results[1], results[0])


def compiled(group: Any) -> dict[str, Tensor]:
    model = network()
    parallel = DistributedDataParallel(model, process_group=group)
    train(model, torch.compile(parallel, backend="aot_eager"), group=group)
    return values(model)


def test_compiled(pool: Pool) -> None:
    results = pool.run(2, compiled)
    assert_same_state(results[0], trained_alone("polar"), 2e-4)
    assert_same_state(results[1], results[0])


def half(group: Any) -> float:
    """Under autocast with gradient scaling; the largest singular value of what is multiplied by."""
    model = lipfuse.fuse(network(), process_group=group)
    parallel = DistributedDataParallel(model, process_group=group)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(parallel(x), torch.arange(4) % 3)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    with torch.autocast("cpu", torch.float16):
        weight = model[5].weight.detach().half().double()
    return float(torch.linalg.matrix_norm(weight, 2))


def test_mixed_precision(pool: Pool) -> None:
    norms = pool.run(2, half)
    assert norms[0] == norms[1] <= 1 + 1e-5
