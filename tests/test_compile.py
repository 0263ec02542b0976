"""torch.compile and torch.export of whole networks: one graph, the losses of eager code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipfuse.nn as lnn

METHODS: dict[str, dict[str, Any]] = {
    "polar": {},
    "bjorck": {"method": "bjorck"},
    "spectral": {"eps_bjorck": None},
}
SIZE = 6  # of the images; batches have other sizes, so that no two symbols are taken for one


def network(method: str) -> nn.Module:
    settings = METHODS[method]
    return lnn.Sequential(
        lnn.SpectralConv2d(1, 4, 3, stride=2, padding=1, groups=1, **settings),
        lnn.GroupSort2(),
        nn.Flatten(),
        lnn.SpectralLinear(36, 8, **settings),
        lnn.FrobeniusLinear(8, 3, disjoint_neurons=False),
        k_coef_lip=2.0,
    )


def train(model: nn.Module, forward: Any, batches: list[int]) -> list[float]:
    """The losses of a step on each batch; from the second on, nothing may be compiled anew."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step, count in enumerate(batches):
        x = torch.randn(count, 1, SIZE, SIZE, generator=generator)
        y = torch.randint(0, 3, (count,), generator=generator)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            loss = nn.functional.cross_entropy(forward(x) * 4, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_trains_alike(method: str, backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = network(method)
    twin = copy.deepcopy(model)
    batches = [5, 5, 7, 11, 4, 5]
    expected = train(model, model, batches)
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend=backend)
    found = train(twin, compiled, batches)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected[0] != expected[1]
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)
    # And in evaluation.
    x = torch.randn(5, 1, SIZE, SIZE)
    model.eval(), twin.eval()
    twin.load_state_dict(model.state_dict())
    assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_in_one_graph_trains_like_eager_code(method: str) -> None:
    assert_trains_alike(method, "aot_eager")


def test_a_network_trains_under_inductor() -> None:
    assert_trains_alike("polar", "inductor")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_export(method: str, training: bool) -> None:
    """In training mode, too: deel-torchlip breaks the graph two or three times a layer."""
    model = network(method).train(training)
    x = torch.randn(5, 1, SIZE, SIZE)
    twin = copy.deepcopy(model)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(twin, (x,), dynamic_shapes=({0: batch},))
    exported = program.module()
    for count in (5, 3):
        y = torch.randn(count, 1, SIZE, SIZE)
        assert torch.allclose(exported(y), model(y), atol=1e-5)


def test_compiled_gradient_penalty_is_refused_or_right() -> None:
    """Double backward is not what compiled graphs do; it must not be wrong silently."""
    torch._dynamo.reset()
    layer = lnn.SpectralLinear(6, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 6, requires_grad=True)

    def penalty(forward: Any) -> Tensor:
        (slope,) = torch.autograd.grad(forward(x).tanh().sum(), x, create_graph=True)
        return slope.square().sum()

    penalty(layer).backward()
    original: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
    expected = original.grad.clone()
    original.grad = None
    refused = ""
    try:
        penalty(compiled).backward()
    except RuntimeError as error:
        refused = str(error)
    assert "double backward" in refused or torch.allclose(original.grad, expected, atol=1e-5)
