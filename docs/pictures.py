"""The pictures of the documentation: python docs/pictures.py [NAME ...]

Those with curves are computed by lipfuse itself, and drawn by matplotlib; that of the architecture
is written out, from the tables of its page (site/diagram.py).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "tests", "docs/site")]

BLUE, ORANGE, GREEN, RED, GREY = "#3f51b5", "#e07b00", "#2e8b57", "#c0392b", "#8a8f98"


# ---- the architecture ----------------------------------------------------------------------------


def architecture() -> None:
    """The layers of the code, and who imports whom."""
    import diagram

    (IMAGES / "architecture.svg").write_text(diagram.architecture_svg())


# ---- curves and points ---------------------------------------------------------------------------


def _figure(columns: int, height: float = 3.0) -> Any:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "lipfuse",
    }
    pyplot.rcParams.update(style)
    return pyplot.subplots(1, columns, figsize=(9, height), squeeze=False)


def _save(figure: Any, name: str) -> None:
    if name.endswith(".png"):
        figure.savefig(IMAGES / name, dpi=110, metadata={"Software": None})
    else:
        figure.savefig(IMAGES / name, metadata={"Date": None})


def _examples_of(page: str) -> dict[str, Any]:
    """What the examples of a page leave behind."""
    import os
    import re
    import tempfile

    text = (ROOT / "docs" / page).read_text()
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:  # for what they write
        os.chdir(folder)
        for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
            exec(block, names)
        os.chdir(ROOT)
    return names


def rings() -> None:
    """What docs/index.md trains and certifies."""
    import torch

    n = _examples_of("index.md")
    figure, ((left, right),) = _figure(2, 4.0)
    side = torch.linspace(-3.1, 3.1, 160)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        best = n["model"](grid).topk(2).values
        where = n["model"](grid).argmax(1).reshape(160, 160).T
    margin = (best[:, 0] - best[:, 1]).div(2**0.5).reshape(160, 160).T
    shown = left.contourf(side, side, margin, levels=12, cmap="Blues", vmin=0, vmax=1)
    for level in (0.5, 1.5):
        left.contour(side, side, where, levels=[level], colors=[RED], linewidths=1)
    figure.colorbar(shown, ax=left, label="certified radius", shrink=0.8)
    points, labels, radii = n["test_points"], n["test_labels"], n["radii"]
    for kind, colour in enumerate((ORANGE, GREEN, "#222222")):
        left.plot(*points[labels == kind][:70].T, ".", ms=3, color=colour)
    for point, radius in list(zip(points.tolist(), radii.tolist()))[:40]:
        left.add_patch(_circle(point, radius))
    left.set(aspect="equal", title="no disc crosses a boundary (red)", xticks=[], yticks=[])
    radius = torch.linspace(0, 0.7, 200)
    share = (radii[None] > radius[:, None]).double().mean(1)
    right.plot(radius, 100 * share, color=BLUE)
    right.set(xlabel="perturbation of L2 norm up to", ylabel="certainly right, %", ylim=(0, 103))
    right.set_title("1,000 test points")
    _save(figure, "rings.png")


def _circle(point: list[float], radius: float) -> Any:
    from matplotlib.patches import Circle

    return Circle((point[0], point[1]), radius, fill=False, color=GREY, lw=0.7)


def activations() -> None:
    """What pairs of channels become."""
    import torch

    from lipfuse import nn

    figure, (axes,) = _figure(5, 2.3)
    angle = torch.linspace(0, 2 * math.pi, 400)
    rays = torch.stack([angle.cos(), angle.sin()], 1)
    layers = {
        "ReLU": torch.nn.ReLU(),
        "LPReLU(init=0.25)": nn.LPReLU(),
        "GroupSort2": nn.GroupSort2(),
        "HouseHolder": nn.HouseHolder(2, theta_initializer=2.4),
    }
    for ax, (name, layer) in zip(axes, layers.items()):
        with torch.no_grad():
            for size in (1.0, 0.66, 0.33):
                ax.plot(*(size * rays).T, color=GREY, lw=0.7)
                ax.plot(*layer(size * rays).T, color=BLUE, lw=1.6)
        ax.set(aspect="equal", title=name, xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
        ax.set(xticks=[], yticks=[], xlabel="channel 1", ylabel="channel 2")
    x = torch.linspace(-1, 1, 101)[:, None]
    parts = nn.MaxMin()(x)
    axes[4].plot(x, parts[:, 0], color=BLUE)
    axes[4].plot(x, parts[:, 1], color=ORANGE)
    axes[4].set(aspect="equal", title="MaxMin", xlabel="a channel", xlim=(-1.2, 1.2))
    axes[4].set(ylabel="its two", ylim=(-1.2, 1.2), xticks=[], yticks=[])
    _save(figure, "activations.svg")


def constraints() -> None:
    """Singular values of what each layer multiplies by, from the same parameter."""
    import torch

    from lipfuse import nn

    figure, ((left, right),) = _figure(2)
    torch.manual_seed(0)
    start = torch.randn(64, 64) / 8
    layers = {
        "SpectralLinear": (nn.SpectralLinear(64, 64), BLUE, "-"),
        "eps_bjorck=None": (nn.SpectralLinear(64, 64, eps_bjorck=None), ORANGE, "-"),
        "FrobeniusLinear, disjoint": (nn.FrobeniusLinear(64, 64), RED, "--"),
        "FrobeniusLinear, together": (
            nn.FrobeniusLinear(64, 64, disjoint_neurons=False),
            GREEN,
            "-",
        ),
    }
    left.plot(torch.linalg.svdvals(start), ":", color=GREY, label="the parameter")
    for name, (layer, colour, line) in layers.items():
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(start)
            values = torch.linalg.svdvals(layer.eval().weight)
        left.plot(values, line, color=colour, label=name)
    left.set(xlabel="singular values of a 64 x 64 weight", ylim=(0, 2.1))
    left.set_title("what a linear layer does to its input")
    left.legend(fontsize=8)

    convolutions = {
        "SpectralConv2d": (lambda: nn.SpectralConv2d(16, 16, 3, padding=1, bias=False), ORANGE),
        'normalization="operator"': (
            lambda: nn.SpectralConv2d(16, 16, 3, padding=1, bias=False, normalization="operator"),
            GREEN,
        ),
        "OrthoConv2d": (
            lambda: nn.OrthoConv2d(16, 16, 3, padding_mode="circular", bias=False),
            BLUE,
        ),
    }
    for name, (make, colour) in convolutions.items():
        image = torch.randn(1, 16, 32, 32)
        norms = [image.norm()]
        for _ in range(8):
            with torch.no_grad():
                image = make().eval()(image)
            norms.append(image.norm())
        kept = torch.stack(norms) / norms[0]
        right.semilogy(range(9), kept, "o-", ms=3, color=colour, label=name)
    right.set(xlabel="convolutions, 16 channels, 3 x 3, as they are drawn", ylim=(1e-4, 2))
    right.set_title("what is left of the norm of white noise")
    right.legend(fontsize=8)
    _save(figure, "constraints.svg")


def losses() -> None:
    """What a loss asks for, and what that does to accuracy and robustness."""
    import torch

    from lipfuse import functional as F
    from lipfuse import nn

    figure, ((left, right),) = _figure(2)
    margin = torch.linspace(-1, 3, 401)
    logits = torch.stack([margin / 2, -margin / 2], 1)
    classes = torch.zeros(401, dtype=torch.long)
    one_hot = torch.nn.functional.one_hot(classes, 2)
    for tau, line in ((1.0, ":"), (3.0, "--"), (20.0, "-")):
        values = F.tau_cross_entropy_loss(logits, classes, tau, reduction="none")
        label = f"cross entropy, τ={tau:g}"
        left.plot(margin, values - values[200] + 1, line, color=BLUE, label=label)
    hinge = F.categorical_hinge_loss(logits, one_hot, 1.0)
    left.plot(margin, hinge, color=ORANGE, label="CategoricalHinge, margin 1")
    hkr = nn.HKRMulticlassLoss(alpha=0.7, min_margin=1.0)
    both = torch.eye(2)  # a sample of each class: the loss is one of the whole batch
    values = torch.stack([hkr(m * (both - 0.5), both) for m in margin])
    left.plot(margin, values - values[200] + 1, color=GREEN, label="HKR, α=0.7, margin 1")
    left.set(xlabel="margin of the right class", ylabel="loss, up to a constant", ylim=(-0.1, 2.4))
    left.legend(fontsize=8)

    torch.manual_seed(0)
    n = _examples_of("index.md")
    taus = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
    results = {r: [] for r in (0.0, 0.1, 0.2, 0.3, 0.4)}
    for tau in taus:
        model = nn.Sequential(
            nn.SpectralLinear(2, 64),
            nn.GroupSort2(),
            nn.SpectralLinear(64, 64),
            nn.GroupSort2(),
            nn.SpectralLinear(64, 3),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(300):
            loss = F.tau_cross_entropy_loss(model(n["points"]), n["labels"], tau)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            best = model.eval()(n["test_points"])
        right_one = best.gather(1, n["test_labels"][:, None])[:, 0]
        others = best.scatter(1, n["test_labels"][:, None], -math.inf).amax(1)
        for r, values in results.items():
            values.append(100 * float(((right_one - others) / 2**0.5 > r).double().mean()))
    for i, (r, values) in enumerate(results.items()):
        colour = (BLUE, GREEN, "#b8a000", ORANGE, RED)[i]
        right.semilogx(taus, values, "o-", ms=3, color=colour, label=f"radius {r:g}")
    right.set(xlabel="τ of TauCrossEntropyLoss", ylabel="certainly right, %", ylim=(0, 103))
    right.set_title("the rings of the first page")
    right.legend(fontsize=8)
    _save(figure, "losses.svg")


def _minimax(degree: int, low: float) -> Any:
    """p with x p(x²) as close to 1 as its degree allows on [low, 1], by Lawson's iteration."""
    import numpy
    from numpy.polynomial import chebyshev

    x = numpy.cos(numpy.linspace(0, math.pi, 2001)) * (1 - low) / 2 + (1 + low) / 2
    scaled = (2 * x**2 - (low**2 + 1)) / (1 - low**2)
    basis = x[:, None] * chebyshev.chebvander(scaled, degree)
    weight = numpy.full(len(x), 1 / len(x))
    for _ in range(200):
        root = numpy.sqrt(weight)
        c, *_ = numpy.linalg.lstsq(basis * root[:, None], root, rcond=None)
        weight *= numpy.abs(basis @ c - 1)
        weight /= weight.sum()

    def function(x: Any) -> Any:
        return x * chebyshev.chebval((2 * x**2 - (low**2 + 1)) / (1 - low**2), c)

    return function


def stages() -> None:
    """What a stage does to singular values."""
    import numpy

    figure, ((left, right),) = _figure(2)
    x = numpy.linspace(0, 1.02, 600)
    for degree, low, colour in ((2, 0.6, BLUE), (4, 0.3, GREEN), (8, 0.1, ORANGE)):
        f = _minimax(degree, low)
        left.plot(x, f(x), color=colour, label=f"degree {degree}, for [{low:g}, 1]")
    left.plot(x, x, ":", color=GREY, label="as they are")
    left.set(xlabel="singular value before a stage", ylabel="after it", ylim=(0, 1.35))
    left.set_title("polynomial stages")
    left.legend(fontsize=8)
    x = numpy.geomspace(1e-3, 1, 400)
    low = 0.01
    d = (4 * (1 - low**2) / low**4) ** (1 / 3)
    s = math.sqrt(1 + d)
    a = s + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - low**2) / (low**2 * s))
    b = (a - 1) ** 2 / 4
    halley = x * (a + b * x**2) / (1 + (a + b - 1) * x**2)
    right.loglog(x, halley, color=RED, label="rational, for [0.01, 1]")
    right.loglog(x, _minimax(8, 0.02)(x), color=ORANGE, label="degree 8, for [0.02, 1]")
    right.loglog(x, x * (3 - x**2) / 2, color=GREY, label="a step of Björck's iteration")
    right.loglog(x, x, ":", color=GREY, label="as they are")
    right.set(xlabel="singular value before a stage", ylabel="after it")
    right.set_title("small ones are lifted by a factor")
    right.legend(fontsize=8)
    _save(figure, "stages.svg")


PICTURES = {
    "architecture": architecture,
    "rings": rings,
    "activations": activations,
    "constraints": constraints,
    "losses": losses,
    "stages": stages,
}


def main(names: list[str]) -> None:
    IMAGES.mkdir(exist_ok=True)
    for name in names or PICTURES:
        PICTURES[name]()
        print("drawn:", name)


if __name__ == "__main__":
    main(sys.argv[1:])
