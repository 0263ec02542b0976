"""What the network is worth on the held-out digits: certified, attacked, and the two compared.

The *exported* network is what is attacked, and it is judged in float64: its float32 weights and the
images are represented exactly there, and the rounding that is left is ten orders of magnitude below
the radii.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipfuse.certification import Certificate
from lipfuse.demo.attack import l2_pgd, margins
from lipfuse.demo.progress import Progress

__all__ = [
    "Assessment",
    "Robustness",
    "UnsoundCertificateError",
    "assess",
    "check_attack",
    "in_float64",
    "jacobian_norms",
]

# What float64 arithmetic may add to a margin of order one.
_ROUNDING = 1e-9


class UnsoundCertificateError(AssertionError):
    """An attack broke what a certificate promised. Never expected; never to be ignored."""


@dataclass(frozen=True)
class Robustness:
    """Accuracies in [0, 1] at one L2 radius."""

    radius: float
    certified: float
    attacked: float


@dataclass(frozen=True)
class Assessment:
    """Every held-out image by itself.

    Attributes:
        rows: the accuracies, by radius.
        certified: the certified radius of each image, 0 where the decision is wrong.
        points: the worst image found near each.
        broken_at: the smallest radius at which each was broken: 0 if wrong to begin with, infinite
            if never.
    """

    rows: list[Robustness]
    certified: Tensor
    points: Tensor
    broken_at: Tensor


def in_float64(model: nn.Module) -> nn.Module:
    """The same network in float64, frozen."""
    return copy.deepcopy(model).double().requires_grad_(False)


def jacobian_norms(model: nn.Module, images: Tensor) -> Tensor:
    """The spectral norm of the exact dense Jacobian at each image: never above the true constant.

    Args:
        model: the exported network.
        images: shape (N, ...).

    Returns:
        N norms, in the dtype of the images.
    """

    def logits(image: Tensor) -> Tensor:
        output: Tensor = model(image.unsqueeze(0)).squeeze(0)
        return output

    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(logits, image).flatten(1) for image in images]
    )
    return torch.linalg.matrix_norm(jacobians, ord=2)


def check_attack(
    model: nn.Module, images: Tensor, labels: Tensor, attacked: Tensor, certificate: Certificate
) -> None:
    """Hold every attacked image against the certificate of the clean one.

    That no image within its certified radius was broken is only the half of it: even where the
    attack failed, no competitor must have come nearer than the certificate allows.

    Args:
        model: the exported network, in float64.
        images: the clean images, float64.
        labels: their labels.
        attacked: what the attack made of them, float64.
        certificate: the network's.

    Raises:
        UnsoundCertificateError: naming the first image for which the two do not agree.
    """

    def gaps(points: Tensor) -> Tensor:
        logits = model(points)
        return logits.gather(1, labels[:, None]) - logits

    with torch.no_grad():
        fallen = gaps(images) - gaps(attacked)
    distance = torch.linalg.vector_norm((attacked - images).flatten(1), dim=1)
    excess = (fallen - certificate.slopes(labels) * distance[:, None]).amax(dim=1)
    if bool((excess > _ROUNDING).any()):
        worst = int(excess.argmax())
        raise UnsoundCertificateError(
            f"image {worst}: a perturbation of L2 norm {distance[worst]:.6f} moved a competitor "
            f"closer by {fallen[worst].max():.6f}, further than the certificate allows, by "
            f"{excess[worst]:.3g}"
        )


def assess(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    certificate: Certificate,
    *,
    steps: int,
    restarts: int,
    seed: int,
) -> Assessment:
    """Certified accuracy, and accuracy under attack, at each radius in ascending order.

    An image broken at one radius counts as broken at every larger one: the same perturbation does.

    Args:
        model: the exported network.
        images: clean images, in its dtype, shape (N, ...), pixels in [0, 1].
        labels: shape (N,).
        radii: the L2 radii.
        certificate: the network's.
        steps: of the attack.
        restarts: of the attack.
        seed: of the attack's random starts.

    Raises:
        UnsoundCertificateError: if the attack breaks anything that was certified.
    """
    generator = torch.Generator().manual_seed(seed)
    exact = in_float64(model)
    with torch.no_grad():
        certified = certificate.radius(exact(images.double()), labels)
    points = images.clone()
    broken_at = torch.where(certified > 0, float("inf"), 0.0)
    rows = []
    progress = Progress(len(radii), "attacking")
    for radius in sorted(radii):
        chosen = broken_at.isinf().nonzero().squeeze(1)
        if len(chosen) > 0:
            clean, truth = images[chosen], labels[chosen]
            worst = l2_pgd(
                model,
                clean,
                truth,
                radius,
                steps=steps,
                restarts=restarts,
                generator=generator,
                start=points[chosen],
            )
            check_attack(exact, clean.double(), truth, worst.double(), certificate)
            points[chosen] = worst
            with torch.no_grad():
                broken = margins(exact(worst.double()), truth) <= 0
            if bool((broken & (certified[chosen] > radius)).any()):
                raise UnsoundCertificateError(f"an image certified at radius {radius} was broken")
            broken_at[chosen[broken]] = radius
        row = Robustness(
            radius,
            (certified > radius).double().mean().item(),
            broken_at.isinf().double().mean().item(),
        )
        rows.append(row)
        progress.step(f"radius {radius:g}  still right {row.attacked:6.1%}")
    return Assessment(rows, certified, points, broken_at)
