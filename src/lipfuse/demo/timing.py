"""How long a training step takes, with the constraint and without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lipfuse.demo.training import Loss

__all__ = ["step_times"]


def _stepper(model: nn.Module, images: Tensor, labels: Tensor, loss_of: Loss) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    model.train()

    def step() -> None:
        loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def step_times(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    loss_of: Loss,
    *,
    steps: int,
    warm_up: int = 5,
) -> dict[str, float]:
    """Median seconds of a training step (forward, backward, Adam) of each model.

    The models take turns, step by step, so that whatever else the machine does hits all alike.

    Args:
        models: the models by name. They are trained by this: pass copies.
        images: one batch.
        labels: its labels.
        loss_of: the loss, the same for all.
        steps: steps measured.
        warm_up: steps before that.
    """
    steppers = {name: _stepper(model, images, labels, loss_of) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(warm_up + steps):
        for name, step in steppers.items():
            started = time.perf_counter()
            step()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
