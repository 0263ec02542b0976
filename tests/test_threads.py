"""Layers in several threads at once, in processes forked from one that has threads, in loaders."""

from __future__ import annotations

import copy
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Optional

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import lipfuse
import lipfuse.functional as F
import lipfuse.nn as lnn
from lipfuse import _native

# Large enough for several of torch's threads each.
SIZE = 96


class Checkpointed(nn.Module):
    """Computes its activations once more in the backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return out


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "polar": lambda: lnn.SpectralLinear(SIZE, SIZE),
    "bjorck": lambda: lnn.SpectralLinear(SIZE, SIZE, method="bjorck"),
    "spectral": lambda: lnn.SpectralLinear(SIZE, SIZE, eps_bjorck=None),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (6, 4, 4)),
        lnn.SpectralConv2d(6, 8, 3, padding=1, normalization="operator"),
        lnn.GroupSort2(),
        lnn.ScaledL2NormPool2d(2),
    ),
    "fused": lambda: lipfuse.fuse(
        lnn.Sequential(
            *(lnn.SpectralLinear(SIZE, SIZE) for _ in range(3)), lnn.SpectralLinear(SIZE, 8)
        )
    ),
    "fused, checkpointed": lambda: lipfuse.fuse(
        Checkpointed(nn.Sequential(lnn.SpectralLinear(SIZE, SIZE), lnn.SpectralLinear(SIZE, 8)))
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What ``call`` gives for each number, from threads that start together."""
    found: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(i: int) -> None:
        barrier.wait()
        try:
            found[i] = call(i)
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


def steps(layer: nn.Module, x: Tensor, count: int = 4) -> list[Tensor]:
    """Outputs and parameters of a short training."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    outputs = []
    for _ in range(count):
        out = layer(x)
        optimizer.zero_grad()
        out.tanh().mean().backward()
        optimizer.step()
        outputs.append(out.detach())
    return [*outputs, *(p.detach() for p in layer.parameters()), layer.eval()(x).detach()]


@every_layer
def test_different_layers_in_several_threads(name: str) -> None:
    """Each trains as it would alone, but for the order of sums: a new thread has other helpers."""
    with tools.threads(2):
        layers = [LAYERS[name]() for _ in range(3)]
        twins = [copy.deepcopy(layer) for layer in layers]
        x = torch.randn(4, SIZE)
        expected = [steps(layer, x) for layer in layers]
        found = at_once(3, lambda i: steps(twins[i], x))
    for a, b in zip(found, expected, strict=True):
        for one, other in zip(a, b, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_one_layer_in_several_threads(name: str, training: bool) -> None:
    """Outputs and gradients are those of a single thread, whoever computes the weight first."""
    layer = LAYERS[name]().train(training)
    inputs = [torch.randn(4, SIZE) for _ in range(4)]
    parameters = list(layer.parameters())

    def call(i: int) -> list[Tensor]:
        results = []
        for _ in range(3):
            out = layer(inputs[i])
            results = [out, *torch.autograd.grad(out.tanh().sum(), parameters)]
        return [r.detach() for r in results]

    with tools.threads(2):
        for _ in range(10):  # power iteration settles
            layer(inputs[0])
        expected = [call(i) for i in range(4)]
        with torch.no_grad():
            for p in parameters:
                p.mul_(1.0)  # whatever was kept is computed anew
        found = at_once(4, call)
    for a, b in zip(found, expected, strict=True):
        for one, other in zip(a, b, strict=True):
            assert tools.relative_error(one, other) <= 1e-3
    for buffer in layer.buffers():
        assert bool(buffer.isfinite().all())


def test_one_layer_changes_while_others_look() -> None:
    """Evaluation beside a thread that moves the parameter: always with an orthogonal weight."""
    layer: Any = lnn.SpectralLinear(24, 24, bias=False).eval()
    stop = threading.Event()
    x = torch.randn(24, 24)
    gram = x.double() @ x.double().mT

    def call(i: int) -> float:
        if i == 0:
            for _ in range(100):
                with torch.no_grad():
                    layer.parametrizations.weight.original.normal_()
            stop.set()
            return 0.0
        worst = 0.0
        while not stop.is_set():
            with torch.no_grad():
                out = layer(x).double()
            worst = max(worst, float((out.square().sum() / gram.trace() - 1).abs()))
        return worst

    # An orthogonal matrix keeps every norm, whatever it was computed from.
    assert max(at_once(3, call)) <= 1e-4


# ---- processes -----------------------------------------------------------------------------------


class Features(Dataset[Tensor]):
    """Inputs as a layer sees them: it is computed in the worker."""

    def __init__(self, layer: nn.Module, inputs: Tensor) -> None:
        self.layer, self.inputs = layer, inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Tensor:
        out: Tensor = self.layer(self.inputs[index : index + 1])
        (gradient,) = torch.autograd.grad(out.tanh().sum(), next(self.layer.parameters()))
        return torch.cat([out.detach().flatten(), gradient.flatten()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_the_workers_of_a_loader(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    layer = lnn.Sequential(lnn.SpectralLinear(SIZE, SIZE), lnn.GroupSort2())
    data = Features(layer, torch.randn(6, SIZE))
    with tools.threads(2):
        data[0]  # the threads of the pool are there before the fork
        workers = 2 if method == "fork" else 1
        loader = DataLoader(
            data, batch_size=2, num_workers=workers, multiprocessing_context=method, timeout=60
        )
        found = torch.cat(list(loader))
    expected = torch.stack([data[i] for i in range(len(data))])
    assert torch.allclose(found, expected, atol=1e-5)


def _in_child(queue: Any, weight: Tensor) -> None:
    signal.alarm(60)
    queue.put(F.orthogonalize(weight).numpy())


@pytest.mark.skipif(not _native.loaded, reason="plain torch waits for OpenMP's threads")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")
def test_a_forked_process_has_no_helpers() -> None:
    """torch's own operators wait there for ever for threads that the fork left behind."""
    weight = torch.randn(SIZE, SIZE)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with tools.threads(2):
        F.orthogonalize(weight)
        child = context.Process(target=_in_child, args=(queue, weight))
        child.start()
        child.join(90)
        assert child.exitcode == 0
    found: Optional[Any] = queue.get()
    with tools.threads(1):
        assert torch.equal(torch.from_numpy(found), F.orthogonalize(weight))
