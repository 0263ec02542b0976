"""The pictures of the documentation, drawn from the records of runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import scaling, spectral, steps, weights
from benchmarks.plot_style import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LIGHT,
    MILLI,
    RED,
    YELLOW,
    figure_of,
    line,
    milli,
    plain_ticks,
    title,
)
from benchmarks.race_networks import NAMES
from benchmarks.races import goals, networks
from benchmarks.records import ROOT, Case, Record, cases, digest
from benchmarks.tables import MAPS, Sources, least, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES = ROOT / "docs" / "images"

# ---- what convinces ------------------------------------------------------------------------------


def _versus(
    axes: Axes, groups: Sequence[tuple[str, Case, str, dict[str, str], float | None]]
) -> None:
    """Bars in times of ours, a group for each case, and a mark where the floor is.

    Args:
        axes: where.
        groups: title, case, name of ours, names of the others by label, and the floor.
    """
    at, labels, places = 0.0, [], []
    for text, case, ours, others, floor in groups:
        reference = case.median(ours)
        assert reference is not None
        top = at
        for label, name in {"lipfuse": ours, **others}.items():
            median = case.median(name)
            if median is None:
                continue
            ratio = median / reference
            axes.barh(at, ratio, height=0.82, color=COLOURS[label])
            axes.annotate(
                f"{median * MILLI:.3g} ms" if label == "lipfuse" else times(ratio),
                (ratio, at),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=COLOURS[label],
                fontweight="bold",
            )
            at += 1
        if floor is not None:
            axes.plot([floor / reference] * 2, [top - 0.5, at - 0.5], color=BLACK, linewidth=1.6)
        labels.append(text)
        places.append((top + at - 1) / 2)
        at += 0.7
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)


def speed(s: Sources) -> Figure:
    """Bars against the peers: one weight and its floor, whole steps and unconstrained ones."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, (left, right) = figure_of(2, 3.6)
    shown = [
        case
        for name in ("64x64", "256x256", "512x512", "128x1152")
        for case in cases(s.run, "weights")
        if case.name == name
    ]
    others = {"deel-torchlip": weights.DEEL, "orthogonium": weights.ORTHOGONIUM}
    _versus(
        left,
        [(c.name, c, weights.OURS, others, least(s, c)) for c in shown],
    )
    title(
        left,
        "One orthogonal weight, forward + backward",
        "time relative to lipfuse (less is better)",
    )
    names = {
        "MLP 784-512-512-256-10, batch 128": "MLP",
        "CNN 28x28, batch 128": "small CNN",
        "six convolutions 32x32, batch 16": "6 conv.\nlayers",
    }
    _versus(
        right,
        [
            (
                names.get(case.name, case.name),
                case,
                steps.FUSED,
                {"deel-torchlip": steps.DEEL, "orthogonium": steps.ORTHOGONIUM},
                case.median(steps.PLAIN),
            )
            for case in cases(s.run, "steps")
        ],
    )
    title(right, "One whole training step", "time relative to lipfuse (less is better)")
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    label = "floor: the products needed | the network unconstrained"
    handles.append(Line2D([], [], color=BLACK, linewidth=1.6, label=label))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
        columnspacing=1.2,
        handlelength=1.2,
    )
    return figure


# ---- cost against n ------------------------------------------------------------------------------


def _square(record: Record, benchmark: str) -> list[tuple[int, Case]]:
    """The square cases of a benchmark by their size, but for other spectra."""
    found = []
    for case in cases(record, benchmark):
        rows, columns = case.record["shape"]
        if rows == columns and case.record.get("spectrum", "near") == "near":
            found.append((rows, case))
    return sorted(found, key=lambda pair: pair[0])


def cost(s: Sources) -> Figure:
    """Milliseconds against n, both axes logarithmic: orthogonal weights, and spectral norms."""
    figure, (left, right) = figure_of(2, 4.4)
    squares = _square(s.run, "weights")
    marks: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.6}
    thin = {**marks, "linewidth": 1.0, "markersize": 2.5}
    compiled = f"{weights.COMPILED}-5"
    series: list[tuple[str, str, dict[str, Any]]] = [
        (weights.ORTHOGONIUM, "orthogonium", {**marks, "color": GREEN}),
        (weights.DEEL, "deel-torchlip", {**marks, "color": RED}),
        *[
            (
                name,
                name.replace("torch orthogonal, ", "torch, "),
                {**thin, "color": GREY, "linestyle": style},
            )
            for name, style in zip(MAPS, ("-", "--", ":"), strict=True)
        ],
        (compiled, "Björck, compiled", {**thin, "color": YELLOW}),
        (weights.OURS, "lipfuse", {**marks, "color": BLUE, "linewidth": 2.2}),
        (
            weights.OURS_TANGENT,
            "lipfuse, tangent gradient",
            {**thin, "color": BLUE, "linestyle": "--"},
        ),
    ]
    for name, label, style in series:
        points = [(n, milli(case.median(name))) for n, case in squares]
        line(left, points, label, **style)
    floors = [(n, milli(least(s, case))) for n, case in squares]
    line(left, floors, "floor of the exact method", color=BLACK, linestyle=":", linewidth=1.4)
    title(left, "n x n weight made orthogonal", "n")
    left.set_ylabel("forward + backward, ms", fontsize=9, color=GREY)

    spectra = _square(s.run, "spectral")
    for name, label, style in (
        (spectral.TORCH, "torch", {**marks, "color": GREY}),
        (spectral.OURS, "lipfuse", {**marks, "color": BLUE, "linewidth": 2.2}),
        (spectral.BOUND, "lipfuse, bound proven", {**thin, "color": BLUE, "linestyle": "--"}),
    ):
        line(right, [(n, milli(case.median(name))) for n, case in spectra], label, **style)
    floors = [(n, milli(case.floor(spectral.OURS))) for n, case in spectra]
    line(right, floors, "floor: memory traffic", color=BLACK, linestyle=":", linewidth=1.4)
    title(right, "n x n weight divided by its norm", "n")
    for axes, found in ((left, squares), (right, spectra)):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(color="#E5E5E5", linewidth=0.6)
        plain_ticks(axes, "x", [n for n, _ in found])
        plain_ticks(axes, "y")
        axes.legend(
            fontsize=8,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(-0.08, -0.17),
            ncols=2,
            labelspacing=0.35,
            columnspacing=1.2,
        )
    return figure


# ---- scaling -------------------------------------------------------------------------------------


def growth(s: Sources) -> Figure:
    """A step's milliseconds against batch and depth, both axes logarithmic."""
    figure, axes = figure_of(2, 3.4, sharey=True)
    styles = {
        steps.ORTHOGONIUM: ("orthogonium", GREEN),
        steps.DEEL: ("deel-torchlip", RED),
        steps.FUSED: ("lipfuse", BLUE),
        steps.PLAIN: ("unconstrained, ReLU", BLACK),
    }
    titles = {
        "batch": f"{scaling.DEPTH} layers of {scaling.WIDTH}",
        "depth": f"batch of {scaling.BATCH}",
    }
    for one, (over, text) in zip(axes, titles.items(), strict=True):
        found = [c for c in cases(s.run, "scaling") if c.record["over"] == over]
        for name, (label, colour) in styles.items():
            points = [(c.record["at"], milli(c.median(name))) for c in found]
            wide = 2.2 if colour == BLUE else 1.6
            line(
                one,
                points,
                label,
                color=colour,
                marker="o",
                markersize=3.5,
                linewidth=wide,
                linestyle="--" if colour == BLACK else "-",
            )
        title(one, text, "batch size" if over == "batch" else "layers")
        one.set_xscale("log", base=2)
        one.set_yscale("log")
        one.grid(color="#E5E5E5", linewidth=0.6)
        plain_ticks(one, "x", [c.record["at"] for c in found])
        plain_ticks(one, "y")
    axes[0].set_ylabel("training step, ms", fontsize=9, color=GREY)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
    )
    return figure


# ---- where a step's time goes --------------------------------------------------------------------

PARTS = {"rest": LIGHT, "activations and pooling": YELLOW, "normalisation": BLUE}


def parts(case: Case, name: str) -> dict[str, float] | None:
    """Seconds of a step's parts, by differences between networks that were timed in turn.

    Without activations and normalisation, the step of the same network is the rest; with the same
    activations and no normalisation, the difference to the whole is the normalisation.
    """
    without = {steps.DEEL: steps.DEEL_SORTED, steps.PLAIN: steps.PLAIN}.get(name, steps.SORTED)
    whole, rest, both = case.median(name), case.median(steps.BARE), case.median(without)
    if whole is None or rest is None or both is None:
        return None
    # What is smaller than the noise may come out negative.
    return {
        "rest": min(rest, both, whole),
        "activations and pooling": max(0.0, min(both, whole) - rest),
        "normalisation": max(0.0, whole - both),
    }


def split(s: Sources) -> Figure:
    """Stacked bars: each network by each library."""
    from matplotlib.patches import Patch

    labels = {
        steps.ORTHOGONIUM: "orthogonium",
        steps.DEEL: "deel-torchlip",
        steps.FUSED: "lipfuse",
        steps.BOTH: "lipfuse, retract_",
        steps.PLAIN: "unconstrained, ReLU",
    }
    found = [case for case in cases(s.run, "steps") if any(parts(case, name) for name in labels)]
    figure, axes = figure_of(1, 1.0 + 1.5 * max(1, len(found)), rows=max(1, len(found)))
    for one, case in zip(axes, found, strict=False):
        there = {n: p for n in labels if (p := parts(case, n)) is not None}
        for at, found_parts in enumerate(there.values()):
            left = 0.0
            for part, seconds in found_parts.items():
                one.barh(at, seconds * MILLI, left=left, height=0.78, color=PARTS[part])
                left += seconds * MILLI
            one.annotate(
                f"{left:.3g} ms",
                (left, at),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=BLACK,
            )
        one.set_yticks(range(len(there)), [labels[n] for n in there])
        one.tick_params(axis="y", length=0)
        one.invert_yaxis()
        one.margins(x=0.12)
        one.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        title(one, case.name, "training step, ms" if one is axes[-1] else "")
    handles = [Patch(color=colour, label=name) for name, colour in PARTS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    return figure


# ---- time to accuracy ----------------------------------------------------------------------------


def accuracy(s: Sources) -> Figure:
    """Certified accuracy against seconds: a thin line a seed, a thick one their mean."""
    there = networks(s.races)
    figure, axes = figure_of(max(1, len(there)), 3.5, sharey=True)
    radius = s.races["settings"]["radius"]
    lowest = min(
        (c["curve"][1][2] for run in s.races["runs"] for c in run["contenders"] if "curve" in c),
        default=0.0,
    )
    for one, network in zip(axes, there, strict=False):
        runs = [run for run in s.races["runs"] if run["network"] == network]
        for name in NAMES:
            curves = [
                found["curve"]
                for run in runs
                for found in run["contenders"]
                if found["name"] == name and found["status"] == "measured"
            ]
            for curve in curves:
                _curve(one, curve, color=COLOURS[name], linewidth=0.7, alpha=0.45)
            if curves:
                mean = [
                    [statistics.mean(values) for values in zip(*points, strict=True)]
                    for points in zip(*curves, strict=True)
                ]
                _curve(one, mean, color=COLOURS[name], linewidth=2.2, label=name)
        for goal in goals(s.races):
            if goal.network == network:
                one.axhline(100 * goal.level, color=BLACK, linewidth=0.9, linestyle=":")
                one.annotate(
                    f"{goal.level:.0%}",
                    (1, 100 * goal.level),
                    (2, 0),
                    textcoords="offset points",
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=8.5,
                    color=BLACK,
                )
        one.set_ylim(bottom=100 * lowest - 5)
        one.set_xlim(left=0)
        one.grid(color="#E5E5E5", linewidth=0.6)
        title(one, f"{network} network", "seconds of training, 1 thread")
    axes[0].set_ylabel(f"certified accuracy at radius {radius:g}, %", fontsize=9, color=GREY)
    axes[0].legend(fontsize=8.5, frameon=False, loc="lower right")
    return figure


def _curve(axes: Axes, curve: Sequence[Sequence[float]], **style: Any) -> None:
    seconds, _, certified = zip(*curve, strict=True)
    axes.plot(seconds, [100 * value for value in certified], **style)


# ---- files ---------------------------------------------------------------------------------------

PLOTS: dict[str, Callable[[Sources], Figure]] = {
    "speed": speed,
    "cost": cost,
    "scaling": growth,
    "split": split,
    "time_to_accuracy": accuracy,
}
_KEY = "Source"


def draw(s: Sources, folder: Path = IMAGES, names: Sequence[str] = tuple(PLOTS)) -> list[Path]:
    """Draws the pictures; each file remembers the records it was drawn from."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        path = folder / f"{name}.png"
        source = digest(s.run_path, s.races_path)
        PLOTS[name](s).savefig(path, metadata={_KEY: source, "Software": None})
        written.append(path)
    return written


def drawn_from(path: Path) -> str:
    """The digest of the records that a picture was drawn from; empty if it does not say."""
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get(_KEY, ""))
