"""A binary classifier whose output is a distance: hinge and Kantorovich-Rubinstein on two moons.

    python examples/hkr_binary.py --output example_output

The sign of a 1-Lipschitz network decides. No point nearer than |f(x)| to x can have the other sign,
so |f(x)| is a certified radius, and it costs one evaluation. The hinge asks for the right sign by a
margin; the Kantorovich-Rubinstein part pushes the classes as far apart as the constraint lets them,
which makes f steep everywhere: |f(x)| becomes nearly the true distance from x to the boundary, and
the certificate nearly the best possible one. In the plane that can be seen, and checked. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

import lipfuse
from lipfuse import metrics
from lipfuse import nn as lnn

BLUE, RED, BLACK = "#0072B2", "#D55E00", "#333333"
SIZE = 601  # of the grid on which the true distances are looked up


def two_moons(n: int) -> tuple[Tensor, Tensor]:
    """Two half circles that reach into each other, with some noise; labels -1 and 1, ``(n, 1)``."""
    angle = math.pi * torch.rand(n)
    side = torch.arange(n) % 2
    upper = torch.stack((angle.cos(), angle.sin()), dim=1)
    lower = torch.stack((1 - angle.cos(), 0.5 - angle.sin()), dim=1)
    points = torch.where(side[:, None] == 1, lower, upper) + 0.08 * torch.randn(n, 2)
    return points, (2.0 * side - 1)[:, None]


def train(steps: int) -> lnn.Sequential:
    """A 1-Lipschitz network from the plane to a number."""
    model = lnn.Sequential(
        *(lnn.SpectralLinear(2, 64), lnn.GroupSort2()),
        *(lnn.SpectralLinear(64, 64), lnn.GroupSort2()),
        *(lnn.SpectralLinear(64, 64), lnn.GroupSort2()),
        lnn.SpectralLinear(64, 1),
    )
    lipfuse.fuse(model)
    # alpha is the hinge's share. Small ones make the margins large, large ones the errors few.
    loss_of = lnn.HKRLoss(alpha=0.95, min_margin=0.4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        points, labels = two_moons(256)
        loss = loss_of(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def distances_to_the_other_sign(grid: Tensor, f: Tensor, points: Tensor, signs: Tensor) -> Tensor:
    """How far it is from each point to the nearest point of the grid where f has another sign."""
    nearest = torch.empty(len(points))
    for sign in (-1.0, 1.0):
        mine = signs == sign
        others = grid[f.sign() != sign]
        nearest[mine] = torch.cdist(points[mine], others).amin(dim=1)
    return nearest


def main(arguments: list[str] | None = None) -> None:
    """Trains, certifies, compares; exits with 1 if a certificate is broken or worth little."""
    parser = argparse.ArgumentParser(description="a binary HKR classifier on two moons")
    parser.add_argument("--output", type=Path, default=Path("example_output"), help="folder")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    settings = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = train(200 if settings.quick else 2000)
    points, labels = two_moons(2000)
    certificate = lipfuse.certify(model, (2,))
    x, y = torch.linspace(-2, 3, SIZE), torch.linspace(-1.6, 2.1, SIZE)
    grid = torch.cartesian_prod(x, y)
    with torch.no_grad():
        f, heights = model(points), model(grid)[:, 0]

    accuracy = metrics.certified_accuracy(f, labels, 0.0)
    radii = certificate.radius(f)  # of the decision, right or wrong: |f| / constant
    truth = distances_to_the_other_sign(grid, heights, points, f[:, 0].sign())
    tightness = float((radii / truth).median())
    at = {e: metrics.certified_accuracy(f, labels, e, certificate.lipschitz) for e in (0.1, 0.2)}
    result = f"{accuracy:.1%} right; certified within 0.1: {at[0.1]:.1%}, within 0.2: {at[0.2]:.1%}"
    print(f"{result}; the constant is {certificate.lipschitz:.6f}")
    print(f"certified radii are {tightness:.1%} of the true distance to the boundary (median)")

    figure = Figure(figsize=(9, 5.8), layout="constrained", dpi=120)
    axes = figure.subplots()
    height = heights.reshape(SIZE, SIZE).T.tolist()
    levels = [round(0.1 * i, 1) for i in range(-18, 19)]
    area = axes.contourf(x.tolist(), y.tolist(), height, levels, cmap="RdBu", alpha=0.55)
    axes.contour(x.tolist(), y.tolist(), height, [0.0], colors=BLACK, linewidths=2)
    figure.colorbar(
        area, shrink=0.85, label="f(x): its sign decides, its size is the certified radius"
    )
    for sign, colour in ((-1, RED), (1, BLUE)):
        mine = points[labels[:, 0] == sign][:400]
        axes.scatter(*mine.T.tolist(), s=6, color=colour, label=f"class {sign:+d}")
    for point, radius in zip(points[:14].tolist(), radii[:14].tolist()):
        axes.add_patch(Circle(point, radius, fill=False, color=BLACK, linewidth=0.8))
    axes.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=f"Two moons: {result}")
    axes.legend(loc="upper right", framealpha=0.95, markerscale=2)
    settings.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.output / "hkr_binary.png")
    if bool((radii > truth).any()):
        raise SystemExit(f"a certified radius is too large by {float((radii - truth).max()):.3g}")
    if accuracy < 0.98 or tightness < (0.8 if settings.quick else 0.9):
        raise SystemExit("98 % should be right, and certificates at least 90 % of what is possible")


if __name__ == "__main__":
    main()
