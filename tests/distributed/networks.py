"""What the distributed tests train, and on what."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from every_layer import METHODS
from torch import Tensor, nn

import lipfuse.nn as lnn
from lipfuse import distributed

BATCH = 8


def network(method: str = "polar", seed: int = 0) -> Any:
    """A small network with convolutions, groups, matrices and a Frobenius norm."""
    settings = METHODS[method]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            lnn.SpectralConv2d(1, 4, 3, stride=2, padding=1, **settings),
            lnn.GroupSort2(),
            lnn.SpectralConv2d(4, 4, 3, padding=1, groups=2, bias=False, **settings),
            lnn.ScaledL2NormPool2d(2),
            nn.Flatten(),
            lnn.SpectralLinear(16, 8, **settings),
            lnn.FullSort(),
            lnn.SpectralLinear(8, 8, **settings),
            lnn.FrobeniusLinear(8, 3, disjoint_neurons=False),
        )


@contextlib.contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Gives how many matrices this rank has normalised so far."""
    real = distributed.normalise
    with mock.patch.object(distributed, "normalise", wraps=real) as normalise:
        yield lambda: sum(len(call.args[0]) for call in normalise.call_args_list)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The same for all; each rank takes its part."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 1, 8, 8, generator=generator), torch.arange(BATCH) % 3


def part(x: Tensor, group: Any) -> Tensor:
    """Of the batch, this rank's."""
    return x.chunk(dist.get_world_size(group))[dist.get_rank(group)]


def train(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    steps: int = 4,
    group: Any = None,
    data: Callable[[int], tuple[Tensor, Tensor]] = batch,
) -> list[float]:
    """SGD on the whole batches that ``data`` makes, or on this rank's parts of them.

    Returns:
        The losses of the parts.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        x, y = data(step) if group is None else (part(t, group) for t in data(step))
        loss = nn.functional.cross_entropy(forward(x) * 4, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters and buffers, as a process can send them."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_state(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0
) -> None:
    """To the bit, unless there is a tolerance."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if tolerance:
            assert torch.allclose(found[name], value, atol=tolerance), name
        else:
            assert torch.equal(found[name], value), name


def mesh_of(group: Any) -> Any:
    """The ranks of a group in a row."""
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(group, "cpu")


def whole(tensor: Any) -> Tensor:
    """All of a tensor that may be sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()
