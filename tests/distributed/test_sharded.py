"""Weights that are spread over ranks: fully_shard (FSDP2) and tensor parallelism, with gloo."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tools
import torch
from every_layer import METHODS
from networks import assert_same_state, batch, mesh_of, network, train, values, whole
from pool import Pool
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn

every_method = pytest.mark.parametrize("method", METHODS)


# ---- fully_shard ---------------------------------------------------------------------------------


def fully_sharded(group: Any, method: str, how: str) -> tuple[dict[str, Tensor], float, list[int]]:
    """The state after training, the largest singular value in evaluation, and the shards' sizes."""
    from torch.distributed.fsdp import fully_shard

    model = network(method)
    if how == "fused":
        lipfuse.fuse(model)
    mesh = mesh_of(group)
    if how != "root only":
        for layer in model:
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, model, group=group)
    if how == "retracted":
        lipfuse.optim.retract_(model)
    sizes = [p.to_local().numel() for p in model.parameters()]
    state = {name: whole(p).detach() for name, p in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        assert model(batch(9)[0]).isfinite().all()
        weight = whole(model[5].weight)
    return state, tools.largest_singular_value(weight), sizes


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("method", "how"),
    [(m, "by layer") for m in METHODS] + [("polar", "fused"), ("polar", "root only")],
)
def test_fully_sharded_training(pool: Pool, count: int, method: str, how: str) -> None:
    """Like one process; each rank holds its part of every parameter."""
    results = pool.run(count, fully_sharded, method, how)
    model = network(method)
    train(model, model)
    assert_same_state(results[0][0], values(model), 2e-4)
    for state, norm, _ in results:
        assert_same_state(state, results[0][0])
        assert norm <= 1 + 1e-5
    # Rows are spread evenly, as far as there are enough of them.
    assert sum(sum(sizes) for _, _, sizes in results) == sum(p.numel() for p in model.parameters())
    assert max(sum(sizes) for _, _, sizes in results) < sum(p.numel() for p in model.parameters())


def test_retraction_of_sharded_weights(pool: Pool) -> None:
    results = pool.run(2, fully_sharded, "polar", "retracted")
    model = network()
    train(model, model)
    lipfuse.optim.retract_(model)
    assert_same_state(results[0][0], values(model), 2e-4)
    weight = results[0][0]["5.parametrizations.weight.original"]
    assert torch.allclose(weight @ weight.mT, torch.eye(8), atol=1e-5)


def in_half_precision(group: Any) -> tuple[float, bool]:
    """FSDP's mixed precision: bfloat16 parameters in the forward, float32 ones in the optimizer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = network()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    norms = []

    def look(layer: Any, *_: Any) -> None:
        assert layer.weight.dtype is torch.bfloat16
        norms.append(tools.largest_singular_value(layer.weight))

    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh_of(group), mp_policy=policy)
    fully_shard(model, mesh=mesh_of(group), mp_policy=policy)
    for i in (5, 7):
        model[i].register_forward_pre_hook(look)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(batch(step)[0]).float().square().sum().backward()
        optimizer.step()
    finite = all(bool(whole(p).isfinite().all()) for p in model.parameters())
    return max(norms), finite and all(p.dtype is torch.float32 for p in model.parameters())


def test_fully_sharded_in_half_precision(pool: Pool) -> None:
    for norm, finite in pool.run(2, in_half_precision):
        assert norm <= 1 + 1e-5
        assert finite


# ---- tensor parallelism --------------------------------------------------------------------------


def perceptron(method: str) -> Any:
    settings = METHODS[method]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            lnn.SpectralLinear(6, 8, **settings),
            lnn.GroupSort2(),
            lnn.SpectralLinear(8, 8, **settings),
            nn.Flatten(),
            lnn.FrobeniusLinear(8, 4, disjoint_neurons=False),
        )


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.arange(8) % 4


def tensor_parallel(
    group: Any, method: str, fused: bool
) -> tuple[list[float], dict[str, Tensor], list[int], Tensor]:
    """Losses, state, the parameters' local sizes, and the output in evaluation."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    from lipfuse.tensor_parallel import Normalized

    model = perceptron(method)
    if fused:
        lipfuse.fuse(model)
    plan = {
        "0": Normalized(ColwiseParallel()),
        "2": Normalized(RowwiseParallel()),
        "4": Normalized(ColwiseParallel(output_layouts=Replicate())),
    }
    model = parallelize_module(model, mesh_of(group), plan)
    losses = train(model, model, data=data)
    state = {name: whole(p).detach() for name, p in model.state_dict().items()}
    sizes = [p.to_local().numel() for p in model.parameters()]
    with torch.no_grad():
        output = whole(model.eval()(data(9)[0]))
    return losses, state, sizes, output


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(("method", "fused"), [(m, False) for m in METHODS] + [("polar", True)])
def test_tensor_parallel_training(pool: Pool, count: int, method: str, fused: bool) -> None:
    """Norms are those of whole weights, of which every rank holds a part."""
    results = pool.run(count, tensor_parallel, method, fused)
    model = perceptron(method)
    losses = train(model, model, data=data)
    for found, state, sizes, output in results:
        assert found == pytest.approx(losses, rel=1e-4)
        assert_same_state(state, values(model), 2e-4)
        # Rows and bias, columns but not the bias, rows and bias.
        assert sizes == [8 // count, 48 // count, 8, 64 // count, 4 // count, 32 // count]
        with torch.no_grad():
            assert torch.allclose(output, model.eval()(data(9)[0]), atol=1e-4)


def registered(group: Any) -> list[tuple[Tensor, Tensor]]:
    """Other normalisations, and other ways of sharding."""
    import torch.distributed.tensor as dt

    import lipfuse.parametrizations as P

    mesh = mesh_of(group)
    results = []
    for make in (
        lambda: P.spectral_norm(nn.Linear(6, 4)),
        lambda: P.bjorck_norm(P.spectral_norm(nn.Linear(6, 4))),
        lambda: P.orthogonal(nn.Conv2d(3, 4, 2)),
        lambda: P.frobenius_norm(nn.Linear(6, 4), disjoint_neurons=False),
        lambda: lnn.SpectralConv2d(2, 4, 3, groups=2),
    ):
        for placement, training in itertools.product(
            (dt.Shard(0), dt.Shard(1), dt.Replicate()), (True, False)
        ):
            torch.manual_seed(0)
            layer: Any = make().train(training)
            chain = layer.parametrizations.weight
            torch.manual_seed(0)
            twin: Any = make().train(training)
            grad = torch.randn(layer.weight.shape)
            (twin.weight * grad).sum().backward()
            chain.original = nn.Parameter(
                dt.distribute_tensor(chain.original.detach(), mesh, [placement])
            )
            weight = layer.weight
            assert weight.placements == (placement,)
            (weight * dt.distribute_tensor(grad, mesh, [placement])).sum().backward()
            assert chain.original.grad.placements == (placement,)
            results += [
                (chain.original.grad.full_tensor(), twin.parametrizations.weight.original.grad)
            ]
    return results


def test_every_normalisation_of_sharded_weights(pool: Pool) -> None:
    for results in pool.run(2, registered):
        assert len(results) == 30
        for found, expected in results:
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_normalized_names_what_it_cannot_take(pool: Pool) -> None:
    assert all(pool.run(1, named_errors))


def named_errors(group: Any) -> bool:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    from lipfuse.tensor_parallel import Normalized

    with pytest.raises(TypeError, match=r"style must be a torch ParallelStyle, got 3"):
        Normalized(3)  # type: ignore[arg-type]
    for layer in (nn.Linear(3, 2), lnn.SpectralConv2d(2, 3, 1)):
        kind = type(layer).__name__.removeprefix("Parametrized")
        with pytest.raises(TypeError, match=f"linear layer whose weight is computed .*got {kind}"):
            parallelize_module(layer, mesh_of(group), Normalized(ColwiseParallel()))
    return True


def refused(group: Any) -> str:
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=mesh_of(group))
    try:
        with lipfuse.normalize_once(model):
            pass
    except ValueError as error:
        return str(error)
    return ""


def test_normalize_once_refuses_sharded_weights(pool: Pool) -> None:
    for message in pool.run(2, refused):
        assert message == "model must not be sharded, 0.weight is a DTensor"
