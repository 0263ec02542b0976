"""The plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipfuse.demo.data import CLASSES
from lipfuse.demo.evaluation import Assessment
from lipfuse.demo.training import CURVE_RADIUS, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PlotsUnavailableError", "plot_digits", "plot_robustness", "plot_training"]

# Okabe and Ito's colours, which colour-blind readers can tell apart too.
_BLACK, _RED, _BLUE, _GREEN = "#333333", "#D55E00", "#0072B2", "#009E73"
_DPI = 150


class PlotsUnavailableError(RuntimeError):
    """matplotlib is not installed."""


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; without pyplot, so that no display is ever asked for."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError("the plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=_DPI)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def plot_training(history: History, file: Path) -> None:
    """Loss, and accuracies, against the epoch."""
    figure, (left, right) = _figure(1, 2, 9.0, 3.6)
    epochs = range(1, len(history.loss) + 1)
    left.plot(epochs, history.loss, color=_GREEN)
    left.set(title="Training loss", xlabel="epoch")
    for values, label, colour in (
        (history.train_accuracy, "training, distorted digits", _GREEN),
        (history.test_accuracy, "held out, clean", _BLACK),
        (history.test_certified, f"held out, certified at {CURVE_RADIUS:g}", _BLUE),
    ):
        right.plot(epochs, [100 * value for value in values], color=colour, label=label)
    right.set(title="Accuracy (%)", xlabel="epoch")
    # The interesting part is the top; a bad first epoch may leave it.
    right.set_ylim(min(60.0, 100 * min(history.test_certified[len(epochs) // 4 :])), 100)
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        _tidy(axes)
    figure.savefig(file)


def plot_robustness(clean_accuracy: float, assessment: Assessment, file: Path) -> None:
    """Clean, attacked and certified accuracy against the radius."""
    figure, (axes,) = _figure(1, 1, 7.0, 4.4)
    end = max(row.radius for row in assessment.rows)
    certified = assessment.certified.double()
    grid = torch.linspace(0, end, 401, dtype=torch.float64)
    curve = 100 * (certified.unsqueeze(0) > grid.unsqueeze(1)).double().mean(dim=1)
    radii = [0.0] + [row.radius for row in assessment.rows]
    attacked = [100 * clean_accuracy] + [100 * row.attacked for row in assessment.rows]
    axes.axhline(100 * clean_accuracy, color=_BLACK, linestyle="--", label="clean")
    # Not clipped: the last marker sits on the frame.
    axes.plot(
        radii, attacked, "o-", color=_RED, markersize=4, clip_on=False, label="under PGD attack"
    )
    axes.plot(grid.tolist(), curve.tolist(), color=_BLUE, label="certified")
    axes.set(
        title="Held-out digits under L2 perturbations",
        xlabel="radius of the perturbation (L2, pixels in [0, 1])",
        ylabel="accuracy (%)",
        xlim=(0, end),
        ylim=(0, 102),
    )
    axes.legend(loc="lower left", frameon=False)
    _tidy(axes)
    figure.savefig(file)


def _representatives(labels: Tensor, assessment: Assessment) -> list[int]:
    """One image of each class: that of median certified radius, neither the best nor the worst."""
    chosen = []
    for label in range(CLASSES):
        members = (labels == label).nonzero().squeeze(1)
        order = assessment.certified[members].argsort(stable=True)
        chosen.append(int(members[order[len(order) // 2]]))
    return chosen


def plot_digits(
    images: Tensor, labels: Tensor, predictions: Tensor, assessment: Assessment, file: Path
) -> None:
    """A digit of each class with its certified radius, and below it what the attack made of it.

    Args:
        images: clean images, shape (N, 1, H, W).
        labels: their labels.
        predictions: what the network reads in the attacked ones.
        assessment: radii and attacked images.
        file: where to write.
    """
    figure, axes = _figure(2, CLASSES, 12.0, 2.9)
    for column, index in enumerate(_representatives(labels, assessment)):
        broken = float(assessment.broken_at[index])
        distance = float(torch.linalg.vector_norm(assessment.points[index] - images[index]))
        captions = [f"certified {assessment.certified[index]:.2f}"]
        if broken == 0:
            captions = ["wrong as it is", ""]
        elif broken == float("inf"):
            captions.append(f"withstands {distance:.2f}")
        else:
            captions.append(f"a {int(predictions[index])} at {distance:.2f}")
        for row, picture in enumerate((images[index], assessment.points[index])):
            panel = axes[row * CLASSES + column]
            panel.imshow(picture.squeeze(0).tolist(), cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.set_title(captions[row], fontsize=9, color=_BLUE if row == 0 else _RED, pad=4)
            panel.spines[:].set_color("#BBBBBB")
    axes[0].set_ylabel("held out")
    axes[CLASSES].set_ylabel("attacked")
    figure.savefig(file)
