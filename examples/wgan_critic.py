"""A generator and a critic: a Wasserstein GAN on eight Gaussians, judged by the exact distance.

    python examples/wgan_critic.py --output example_output

The critic of a Wasserstein GAN has to be 1-Lipschitz. Clipped weights and gradient penalties only
approach that; here it is so by construction, and there is nothing to tune. Its estimate of the
distance between real and generated points can then never be more than the truth (for the same
points), which a linear program knows. Needs matplotlib and scipy.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import lipfuse
from lipfuse import nn as lnn

BLUE, RED, BLACK = "#0072B2", "#D55E00", "#333333"
BATCH, JUDGED = 256, 1000  # points of a step, and for an exact distance
ANGLES = math.pi / 4 * torch.arange(8)
CENTRES = 2 * torch.stack((ANGLES.cos(), ANGLES.sin()), dim=1)


def real(n: int) -> Tensor:
    """Eight Gaussians of deviation 0.1 on a circle of radius 2, ``(n, 2)``."""
    return CENTRES[torch.randint(8, (n,))] + 0.1 * torch.randn(n, 2)


def exact_distance(first: Tensor, second: Tensor) -> float:
    """Wasserstein-1 of two clouds of equally many points: an optimal assignment."""
    cost = torch.cdist(first.double(), second.double()).numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


def critic() -> lnn.Sequential:
    """1-Lipschitz, and able to be as steep as that everywhere."""
    return lnn.Sequential(
        *(lnn.SpectralLinear(2, 128), lnn.GroupSort2()),
        *(lnn.SpectralLinear(128, 128), lnn.GroupSort2()),
        *(lnn.SpectralLinear(128, 128), lnn.GroupSort2()),
        lnn.SpectralLinear(128, 1),
    )


def generator() -> nn.Sequential:
    """An ordinary network: nothing has to be bounded here."""
    return nn.Sequential(
        *(nn.Linear(2, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, 2),
    )


def train(steps: int, held_out: Tensor) -> tuple[nn.Sequential, lnn.Sequential, list[list[float]]]:
    """Five steps of the critic for each of the generator.

    Returns:
        Both, and rows of step, exact distance to the held-out points, the critic's estimate of it.
    """
    make, judge = generator(), lipfuse.fuse(critic())
    of_make = torch.optim.Adam(make.parameters(), lr=1e-3, betas=(0.5, 0.9))
    of_judge = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(of_make, steps)
    loss_of = lnn.NegKRLoss()
    labels = torch.cat([torch.ones(BATCH, 1), -torch.ones(BATCH, 1)])
    history = []
    for step in range(steps):
        if step % max(steps // 25, 20) == 0:
            history.append([step, *distances(make, judge, held_out)])
        for _ in range(5):
            made = make(torch.randn(BATCH, 2)).detach()
            loss = loss_of(judge(torch.cat([real(BATCH), made])), labels)
            of_judge.zero_grad()
            loss.backward()
            of_judge.step()
        loss = -judge(make(torch.randn(BATCH, 2))).mean()
        of_make.zero_grad()
        loss.backward()
        of_make.step()
        schedule.step()
    return make, judge.eval(), [*history, [steps, *distances(make, judge, held_out)]]


@torch.no_grad()
def distances(make: nn.Module, judge: nn.Module, held_out: Tensor) -> tuple[float, float]:
    """From the held-out points to as many generated ones: exactly, and the critic's estimate."""
    made = make(torch.randn(len(held_out), 2))
    estimate = float(judge.eval()(held_out).mean() - judge(made).mean())
    judge.train()
    return exact_distance(held_out, made), estimate


def main(arguments: list[str] | None = None) -> None:
    """Trains and judges; exits with 1 if the generator is far off or the critic above the truth."""
    parser = argparse.ArgumentParser(description="a Wasserstein GAN with a 1-Lipschitz critic")
    parser.add_argument("--output", type=Path, default=Path("example_output"), help="folder")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps")
    settings = parser.parse_args(arguments)
    torch.manual_seed(0)
    held_out = real(JUDGED)
    floor = exact_distance(real(JUDGED), held_out)
    make, judge, history = train(75 if settings.quick else 1500, held_out)
    steps, exact, estimates = zip(*history)
    with torch.no_grad():
        made = make(torch.randn(4000, 2))
    shares = torch.bincount(torch.cdist(made, CENTRES).argmin(dim=1), minlength=8) / len(made)
    result = f"W1 to held-out points {exact[-1]:.3f}, of {exact[0]:.2f} at the start"
    print(f"{result}; between two samples of real points {floor:.3f}")
    print(
        f"each of the eight Gaussians gets {shares.min():.1%} to {shares.max():.1%} of the points"
    )

    figure = Figure(figsize=(12, 5.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    line = torch.linspace(-2.9, 2.9, 200)
    with torch.no_grad():
        levels = judge(torch.cartesian_prod(line, line)).reshape(200, 200).T.tolist()
    left.contour(line.tolist(), line.tolist(), levels, 20, colors="#BBBBBB", linewidths=0.7)
    left.scatter(*held_out.T.tolist(), s=5, color=BLUE, alpha=0.6, label="real, held out")
    left.scatter(*made[:JUDGED].T.tolist(), s=5, color=RED, alpha=0.6, label="generated")
    left.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$ (lines: the critic's levels)")
    left.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), title=result)
    left.legend(loc="upper left", framealpha=0.95, markerscale=3)
    right.plot(steps, exact, color=BLACK, label="exact")
    right.plot(steps, estimates, color=RED, label="the critic's estimate: never more")
    right.axhline(floor, color=BLUE, linestyle="--", label="two samples of real points")
    right.set(xlabel="step of the generator", ylabel="W1 to held-out points", ylim=(0, None))
    right.set_title("Exact distance during training")
    right.legend(frameon=False)
    settings.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.output / "wgan_critic.png")

    if any(found > truth + 1e-4 for truth, found in zip(exact, estimates)):
        raise SystemExit("the critic's estimate is above the exact distance")
    if exact[-1] > (0.8 if settings.quick else 0.3):
        raise SystemExit(f"the generated points are {exact[-1]:.3f} from real ones")
    if not settings.quick and not 0.05 <= float(shares.min()) <= float(shares.max()) <= 0.25:
        raise SystemExit(f"the Gaussians' shares should be near 1/8, they are {shares.tolist()}")


if __name__ == "__main__":
    main()
