"""Kernels made of several polar factors: work shared by the ranks, and factors that are sharded."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tools
import torch
from networks import assert_same_state, batch, counted, mesh_of, train, values, whole
from pool import Pool
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lipfuse
import lipfuse.nn as lnn


def network() -> Any:
    """Kernels with block convolutions, strided and in groups, beside an ordinary layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            lnn.OrthoConv2d(1, 4, 2, stride=2, bias=False),
            lnn.GroupSort2(),
            lnn.OrthoConv2d(4, 4, 3, groups=2),
            lnn.OrthoConvTranspose2d(4, 2, 2, stride=2),
            lnn.ScaledL2NormPool2d(4),
            nn.Flatten(),
            lnn.SpectralLinear(8, 3),
        )


def norm_of(model: nn.Module) -> float:
    """The largest singular value of the exact Jacobian, in evaluation."""
    x = batch(9)[0][:1]
    model.eval()

    def compute(x: Tensor) -> Tensor:
        return whole(model(x))

    jacobian = torch.autograd.functional.jacobian(compute, x)
    return tools.largest_singular_value(jacobian.reshape(3, -1))


def trained_alone() -> tuple[dict[str, Tensor], float]:
    model = network()
    train(model, model)
    return values(model), norm_of(model)


# ---- the work shared -----------------------------------------------------------------------------


def shared(group: Any) -> tuple[int, dict[str, Tensor], float]:
    """How many matrices this rank normalised in a forward; the state after training."""
    model = network()
    lipfuse.fuse(model, process_group=group)
    with counted() as matrices, torch.no_grad():
        model(batch(0)[0])
        once = matrices()
    train(model, DistributedDataParallel(model, process_group=group), group=group)
    return once, values(model), norm_of(model)


@pytest.mark.parametrize("count", [2, 4])
def test_work_shared_by_ranks(pool: Pool, count: int) -> None:
    """Each factor is one rank's work; training goes as in one process, with equal weights."""
    results = pool.run(count, shared)
    expected, norm = trained_alone()
    factors = [name for name in expected if "original" in name]
    assert sum(once for once, _, _ in results) == len(factors) == 5
    assert all(once >= 1 for once, _, _ in results)
    for _, state, found in results:
        assert_same_state(state, results[0][1])
        assert found == pytest.approx(norm, abs=1e-4) and found <= 1 + 1e-5
    assert_same_state(results[0][1], expected, 2e-4)


# ---- factors that are sharded --------------------------------------------------------------------


def fully_sharded(group: Any, fused: bool) -> tuple[dict[str, Tensor], float, float, int]:
    """The state after training, the norm, a kernel's error, and the size of the shards."""
    from torch.distributed.fsdp import fully_shard

    model = network()
    if fused:
        lipfuse.fuse(model)
    mesh = mesh_of(group)
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, model, group=group)
    size = sum(p.to_local().numel() for p in model.parameters())
    state = {name: whole(p).detach() for name, p in model.state_dict().items()}
    norm = norm_of(model)
    twin = network().eval()
    twin.load_state_dict(state)
    model.reshard()
    with torch.no_grad():
        error = float((whole(model[2].weight) - twin[2].weight).abs().max())
    return state, norm, error, size


@pytest.mark.parametrize(("count", "fused"), [(2, False), (4, True)])
def test_fully_sharded_training(pool: Pool, count: int, fused: bool) -> None:
    results = pool.run(count, fully_sharded, fused)
    expected, _ = trained_alone()
    assert_same_state(results[0][0], expected, 2e-4)
    for state, norm, error, size in results:
        assert_same_state(state, results[0][0])
        assert norm <= 1 + 1e-5
        assert error < 1e-6
        assert size < sum(p.numel() for p in network().parameters())


def weights(group: Any) -> list[tuple[Tensor, Tensor]]:
    """Weights of sharded factors, and the factors' gradients, beside those of a whole twin."""
    import torch.distributed.tensor as dt

    mesh = mesh_of(group)
    pairs = []
    for make, placement, training in itertools.product(
        (
            lambda: lnn.OrthoConv2d(3, 4, 3, bias=False),
            lambda: lnn.OrthoConv2d(4, 4, 2, stride=2, groups=2, k_coef_lip=2.0),
            lambda: lnn.OrthoConvTranspose2d(4, 3, 3, stride=2),
        ),
        (dt.Shard(0), dt.Shard(1), dt.Replicate()),
        (True, False),
    ):
        torch.manual_seed(0)
        layer: Any = make().train(training)
        torch.manual_seed(0)
        twin: Any = make().train(training)
        chain = layer.parametrizations.weight
        grad = torch.randn(twin.weight.shape)
        (twin.weight * grad).sum().backward()
        names = [name for name, _ in chain.named_parameters(recurse=False)]
        for name in names:
            whole_factor = getattr(chain, name).detach()
            factor = nn.Parameter(dt.distribute_tensor(whole_factor, mesh, [placement]))
            setattr(chain, name, factor)
        weight = layer.weight
        assert weight.placements == (placement,)
        (weight * dt.distribute_tensor(grad, mesh, [placement])).sum().backward()
        pairs.append((weight.full_tensor().detach(), twin.weight.detach()))
        for name in names:
            found = getattr(chain, name).grad
            assert found.placements == (placement,)
            pairs.append((found.full_tensor(), getattr(twin.parametrizations.weight, name).grad))
    return pairs


def test_weights_of_sharded_factors(pool: Pool) -> None:
    for pairs in pool.run(2, weights):
        assert len(pairs) >= 6 * 3 + 6 * 2
        for found, expected in pairs:
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
