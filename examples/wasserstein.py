"""Wasserstein-1 distances by their dual, beside the exact values.

    python examples/wasserstein.py --output example_output

The distance W1(P, Q) of two distributions is the most by which a 1-Lipschitz function can tell them
apart: the supremum of E_P f(x) - E_Q f(x) over all 1-Lipschitz f. So a network that is 1-Lipschitz
whatever its weights are can simply be trained to maximise that. Every value it reaches is a lower
bound, and how near that comes to the exact distance says how well the network fills the set of
1-Lipschitz functions. Needs matplotlib and scipy.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import lipfuse
from lipfuse import nn as lnn

BLUE, RED, BLACK = "#0072B2", "#D55E00", "#333333"


class Case(NamedTuple):
    """Two distributions P and Q: their exact distance, and n points of each."""

    name: str
    exact: float
    draw: Callable[[int], tuple[Tensor, Tensor]]


def gaussians() -> Case:
    """On a line the best plan keeps the order: it moves a standard Gaussian's z by 1.5 + z."""
    exact = 1.5 * math.erf(1.5 / 2**0.5) + (2 / math.pi) ** 0.5 * math.exp(-(1.5**2) / 2)
    return Case("two Gaussians", exact, lambda n: (1.5 + 2 * torch.randn(n, 1), torch.randn(n, 1)))


def ring_and_disc() -> Case:
    """From a disc of radius 1 out to a circle of radius 2, by 2 - 2/3 on average."""

    def draw(n: int) -> tuple[Tensor, Tensor]:
        directions = torch.nn.functional.normalize(torch.randn(2, n, 2), dim=2)
        return 2 * directions[0], torch.rand(n, 1).sqrt() * directions[1]

    return Case("circle and disc", 4 / 3, draw)


def clouds() -> Case:
    """Twice 1,000 points in eight heaps in turn: a linear program knows their distance."""
    angle = math.pi / 2 * (torch.arange(1000) % 4 + torch.tensor([[0.0], [0.5]]))
    centres = 2 * torch.stack((angle.cos(), angle.sin()), dim=2)
    first, second = centres + 0.2 * torch.randn(2, 1000, 2)
    cost = torch.cdist(first.double(), second.double()).numpy()
    # With equal weights there is an optimal plan that is an assignment: each point goes to another.
    exact = float(cost[linear_sum_assignment(cost)].mean())

    def draw(n: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(1000, (2, n)) if n < 1000 else torch.arange(1000).expand(2, -1)
        return first[chosen[0]], second[chosen[1]]

    return Case("two clouds of points", exact, draw)


def train(case: Case, steps: int) -> lnn.Sequential:
    """A critic that tells the two apart as well as a 1-Lipschitz function can.

    Orthonormal weights and sorting keep the length of gradients: the network can be as steep as it
    is allowed to be everywhere at once, which with ReLU in place of GroupSort2 it could not.
    """
    widths = [case.draw(1)[0].shape[1], 64, 64, 64, 64]
    layers = [(lnn.SpectralLinear(n, m), lnn.GroupSort2()) for n, m in itertools.pairwise(widths)]
    critic = lnn.Sequential(*itertools.chain(*layers), lnn.SpectralLinear(64, 1))
    lipfuse.fuse(critic)
    loss_of = lnn.NegKRLoss()  # E_Q f - E_P f, to be minimised
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    labels = torch.cat([torch.ones(256, 1), -torch.ones(256, 1)])
    for _ in range(steps):
        loss = loss_of(critic(torch.cat(case.draw(256))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return critic.eval()


@torch.no_grad()
def plot(axes: Axes, critic: lnn.Sequential, case: Case) -> None:
    """Points of both distributions, and what the critic makes of the plane or line."""
    first, second = case.draw(1000)
    samples = ((first, BLUE, "P"), (second, RED, "Q"))
    if first.shape[1] == 1:
        for points, colour, name in samples:
            axes.hist(points[:, 0].tolist(), 40, density=True, color=colour, alpha=0.4, label=name)
        x = torch.linspace(*axes.get_xlim(), 400)
        right = axes.twinx()
        right.plot(x.tolist(), critic(x[:, None])[:, 0].tolist(), color=BLACK)
        right.set_ylabel("the critic (black)")
        axes.set(xlabel="x", ylabel="density")
    else:
        line = torch.linspace(-2.9, 2.9, 200)
        levels = critic(torch.cartesian_prod(line, line)).reshape(200, 200).T.tolist()
        for points, colour, name in samples:
            axes.scatter(*points.T.tolist(), s=4, color=colour, alpha=0.5, label=name)
        lines = axes.contour(line.tolist(), line.tolist(), levels, 15, colors=BLACK, linewidths=0.7)
        axes.clabel(lines, fontsize=7)
        axes.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$ (lines: the critic's levels)")
    axes.legend(loc="upper left", markerscale=3, framealpha=0.95)


def main(arguments: list[str] | None = None) -> None:
    """Estimates three distances; exits with 1 if one is off, or a critic not 1-Lipschitz."""
    parser = argparse.ArgumentParser(description="Wasserstein-1 distances by their dual")
    parser.add_argument("--output", type=Path, default=Path("example_output"), help="folder")
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative error allowed")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    settings = parser.parse_args(arguments)
    torch.manual_seed(0)
    figure = Figure(figsize=(15, 4.9), layout="constrained", dpi=100)
    wrong = []
    for case, axes in zip((gaussians(), ring_and_disc(), clouds()), figure.subplots(1, 3)):
        critic = train(case, 100 if settings.quick else 1000)
        lipschitz = lipfuse.certify(critic, case.draw(1)[0].shape[1:]).lipschitz
        with torch.no_grad():
            first, second = (float(critic(x).double().mean()) for x in case.draw(400_000))
        error = (first - second) / case.exact - 1
        result = f"{case.name}: {first - second:.3f}, exact {case.exact:.3f}, {100 * error:+.1f} %"
        print(f"{result}; the critic is {lipschitz:.6f}-Lipschitz")
        plot(axes, critic, case)
        axes.set_title(result)
        if abs(error) > settings.tolerance or lipschitz > 1 + 1e-5:
            wrong.append(result)
    settings.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.output / "wasserstein.png")
    if wrong:
        raise SystemExit(f"not within {100 * settings.tolerance:g} %: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
