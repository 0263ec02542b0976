"""How the pictures of the documentation look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200  # of 8 inches: 1600 pixels, for a place of 800

# Okabe and Ito's colours, which colour-blind readers can tell apart too.
BLUE, RED, GREEN, YELLOW = "#0072B2", "#D55E00", "#009E73", "#E69F00"
BLACK, GREY, LIGHT = "#222222", "#777777", "#BBBBBB"
COLOURS = {"lipfuse": BLUE, "deel-torchlip": RED, "orthogonium": GREEN}
MILLI = 1e3


def figure_of(columns: int, height: float, rows: int = 1, **more: Any) -> tuple[Figure, list[Axes]]:
    """Without pyplot, so that no display is ever asked for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained", dpi=DPI, facecolor="white")
    figure.get_layout_engine().set(w_pad=0.07)  # type: ignore[union-attr,call-arg]
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8.5)
        one.set_axisbelow(True)
    return figure, list(axes.flat)


def title(axes: Axes, text: str, below: str = "") -> None:
    """Above the axes, and the label below them."""
    axes.set_title(text, fontsize=10.5, fontweight="bold", loc="left", color=BLACK)
    if below:
        axes.set_xlabel(below, fontsize=9, color=GREY)


def plain_ticks(axes: Axes, which: str, at: Sequence[float] | None = None) -> None:
    """Numbers instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    if at is not None:
        axis.set_ticks(list(at))
        axis.set_ticks([], minor=True)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def line(
    axes: Axes, points: Iterable[tuple[float, float | None]], label: str, **style: Any
) -> None:
    """A curve through the points that were measured; none without any."""
    there = [(x, y) for x, y in points if y is not None]
    if there:
        axes.plot(*zip(*there, strict=True), label=label, **style)


def milli(seconds: float | None) -> float | None:
    """Milliseconds."""
    return None if seconds is None else seconds * MILLI
