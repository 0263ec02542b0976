"""Training in half precision: autocast, gradient scaling, half-precision parameters.

Normalisation stays in float32, the weight that is multiplied by stays within its constant after it
has been rounded, and gradients that overflow leave no trace.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tools
import torch
from every_layer import METHODS
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn

HALF = [torch.bfloat16, torch.float16]
every_method = pytest.mark.parametrize("method", METHODS)
every_half = pytest.mark.parametrize("dtype", HALF, ids=str)


def network(method: str) -> Any:
    settings = METHODS[method]
    return nn.Sequential(
        lnn.SpectralConv2d(1, 4, 3, stride=2, padding=1, **settings),
        lnn.GroupSort2(),
        lnn.ScaledL2NormPool2d((1, 2), ceil_mode=True),
        nn.Flatten(),
        lnn.SpectralLinear(24, 8, **settings),
        lnn.FullSort(),
        lnn.SpectralLinear(8, 8, **settings),
        lnn.FrobeniusLinear(8, 3, disjoint_neurons=False),
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(8) % 3
    x = torch.randn(8, 1, 6, 6, generator=generator) + labels[:, None, None, None]
    return x, labels


def assert_within_its_constant(model: Any, dtype: torch.dtype) -> None:
    """Of every weight as it is multiplied by: rounded to half precision."""
    for layer in (model[0], model[4], model[6], model[7]):
        for training in (True, False):
            layer.train(training)
            with torch.autocast("cpu", dtype):
                weight = layer.weight.detach()
            assert weight.isfinite().all()
            assert tools.largest_singular_value(weight.to(dtype).flatten(1)) <= layer._factor * (
                1 + 1e-5
            )
        layer.train()


@every_half
@pytest.mark.parametrize(
    ("method", "fused"), [(method, False) for method in METHODS] + [("polar", True)]
)
def test_autocast_with_gradient_scaling(method: str, dtype: torch.dtype, fused: bool) -> None:
    """The gradients of float32; steps whose gradients overflow are skipped and forgotten."""
    model = network(method)
    twin = copy.deepcopy(model)
    if fused:
        lipfuse.fuse(model)
    # So large that the first steps overflow in float16.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, enabled=dtype is torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses: list[float] = []
    skipped = 0
    while len(losses) < 12:
        x, labels = batch(0)
        with torch.autocast("cpu", dtype):
            logits = model(x)
            loss = nn.functional.cross_entropy(logits * 4, labels)
        assert logits.dtype is dtype
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        finite = all(bool(p.grad.isfinite().all()) for p in model.parameters())
        if finite and not losses:
            # No step was taken yet: power iterations, if any, have gone as far.
            for _ in range(skipped + 1):
                expected = nn.functional.cross_entropy(twin(x) * 4, labels)
            expected.backward()
            for a, b in zip(model.parameters(), twin.parameters(), strict=True):
                assert a.dtype is a.grad.dtype is torch.float32
                assert tools.relative_error(a.grad, b.grad) <= 12 * torch.finfo(dtype).eps
        scaler.step(optimizer)
        scaler.update()
        assert_within_its_constant(model, dtype)
        if finite:
            losses.append(float(loss.detach()))
        else:
            skipped += 1
            assert skipped < 30
    assert (skipped > 0) is (dtype is torch.float16)
    assert losses[-1] < 0.9 * losses[0]


@every_half
@every_method
def test_half_precision_parameters(method: str, dtype: torch.dtype) -> None:
    """Gradients in the parameters' precision, normalisation in float32, the constant kept."""
    model = network(method).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(8):
        x, labels = batch(step)
        loss = nn.functional.cross_entropy(model(x.to(dtype)).float() * 4, labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype is dtype for p in model.parameters())
        optimizer.step()
        losses.append(float(loss))
        for layer in (model[0], model[4], model[6], model[7]):
            for training in (True, False):
                weight = layer.train(training).weight.detach()
                assert weight.dtype is dtype
                norm = tools.largest_singular_value(weight.flatten(1))
                assert norm <= layer._factor * (1 + 1e-5)
            layer.train()
    assert losses[-1] < losses[0]
