"""Training: an ordinary PyTorch loop. That it needs nothing special is the point."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipfuse.nn as lnn
from lipfuse.demo.attack import margins
from lipfuse.demo.data import CLASSES, Digits, augment
from lipfuse.demo.progress import Progress
from lipfuse.demo.settings import Settings

__all__ = ["History", "Loss", "build_loss", "learning_rate_factor", "train"]

Loss = Callable[[Tensor, Tensor], Tensor]

_WARM_UP = 0.05
# The radius whose certified accuracy the training curves follow.
CURVE_RADIUS = 0.5


@dataclass
class History:
    """One entry an epoch; accuracies in [0, 1]. Nothing here steers the training."""

    loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    test_certified: list[float] = field(default_factory=list)
    seconds: float = 0.0


def build_loss(settings: Settings) -> Loss:
    """The loss as a function of logits and integer labels."""
    if settings.loss == "hkr":
        hkr = lnn.HKRMulticlassLoss(settings.alpha, settings.min_margin)

        def hkr_loss(logits: Tensor, labels: Tensor) -> Tensor:
            signs = 2 * F.one_hot(labels, CLASSES).to(logits.dtype) - 1
            value: Tensor = hkr(logits, signs)
            return value

        return hkr_loss

    cross_entropy = lnn.TauCrossEntropyLoss(settings.tau)

    def margin_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        # With the margin taken off the true class first, the loss does not rest at an image that is
        # right, but only at one that is right by the margin.
        handicap = settings.min_margin * F.one_hot(labels, CLASSES).to(logits.dtype)
        value: Tensor = cross_entropy(logits - handicap, labels)
        return value

    return margin_cross_entropy


def learning_rate_factor(step: int, steps: int) -> float:
    """A short linear warm-up, then half a cosine down to zero."""
    return min(1.0, (step + 1) / (_WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(model: nn.Module, digits: Digits, settings: Settings) -> History:
    """Train a model in place and leave it in evaluation mode."""
    count = len(digits.train_labels)
    batch_size = min(settings.batch_size, count)
    batches = count // batch_size
    steps = batches * settings.epochs
    loss_of = build_loss(settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    progress = Progress(settings.epochs * batches, "training")
    history = History()
    started = time.perf_counter()
    for epoch in range(1, settings.epochs + 1):
        model.train()
        total_loss, right = 0.0, 0
        order = torch.randperm(count, generator=generator)
        for batch in range(batches):
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            labels = digits.train_labels[chosen]
            logits = model(augment(digits.train_images[chosen], generator))
            loss = loss_of(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
            right += int((logits.argmax(dim=1) == labels).sum())
            mean_loss = total_loss / (batch + 1)
            accuracy = right / ((batch + 1) * batch_size)
            progress.step(
                f"epoch {epoch}/{settings.epochs}  loss {mean_loss:.3f}  acc {accuracy:6.1%}"
            )
        history.loss.append(mean_loss)
        history.train_accuracy.append(accuracy)
        model.eval()
        with torch.no_grad():
            margin = margins(model(digits.test_images), digits.test_labels)
        history.test_accuracy.append((margin > 0).double().mean().item())
        history.test_certified.append((margin > CURVE_RADIUS * math.sqrt(2)).double().mean().item())
    history.seconds = time.perf_counter() - started
    return history
