"""A real attack: projected gradient descent in the L2 ball, on the margin, with restarts.

A certificate is a promise about every perturbation; an attack is a search for one that breaks it.
The attack bounds the true robust accuracy from above, the certificate from below, and if the two
ever cross for a single image, one of them is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["l2_pgd", "margins", "project"]


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The true class's logit less the largest other one; positive exactly where it is right.

    Args:
        logits: shape (N, classes).
        labels: shape (N,).
    """
    index = labels.unsqueeze(1)
    others = logits.scatter(1, index, float("-inf"))
    return logits.gather(1, index).squeeze(1) - others.amax(dim=1)


def _norms(delta: Tensor) -> Tensor:
    """The L2 norm of each image of the batch, shaped to broadcast against the batch."""
    norms = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norms.view(-1, *[1] * (delta.dim() - 1))


def project(delta: Tensor, images: Tensor, radius: Tensor | float) -> Tensor:
    """Bring perturbations back into the ball, and the perturbed images back into [0, 1].

    In this order: as the image itself lies in [0, 1], clipping to it only shortens a perturbation.
    The radius is a number, or of a shape that broadcasts against the images.
    """
    delta = delta * (radius / torch.clamp(_norms(delta), min=radius))
    return (images + delta).clamp(0, 1) - images


def l2_pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    radius: float | Tensor,
    *,
    steps: int = 40,
    restarts: int = 3,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The worst images found within the L2 ball and the pixel range.

    Each restart walks ``steps`` normalised gradient steps down the margin, their length falling
    linearly so that it can cross the ball at first and settle at the end. The best point ever
    visited is kept, so more steps or restarts never make the attack weaker.

    Args:
        model: maps a batch of images to logits.
        images: shape (N, ...), pixels in [0, 1].
        labels: shape (N,).
        radius: of the ball, L2; one for all or one an image, of shape (N,).
        steps: gradient steps a restart.
        restarts: the first starts at ``start`` (or the image itself), the others at random points.
        generator: for the random starting points.
        start: perturbed images to begin with, for instance those of a smaller radius.

    Returns:
        Perturbed images, of the same shape; where the margin there is not positive the attack
        has succeeded.
    """
    ball = torch.as_tensor(radius, dtype=images.dtype).reshape(-1, *[1] * (images.dim() - 1))
    if not bool((ball > 0).all()):
        raise ValueError(f"radius must be positive, got {radius!r}")
    # A hair less, so that rounding, of each pixel and of the norm, cannot leave the ball.
    rounding = torch.finfo(images.dtype).eps * math.sqrt(images[:1].numel())
    reach = torch.maximum(ball * (1 - 1e-6) - rounding, 0.5 * ball)
    best = images.clone()
    best_margin = torch.full((images.shape[0],), float("inf"), dtype=images.dtype)

    def visit(delta: Tensor) -> Tensor:
        """Note the point if it is the worst so far; return the margin's gradient there."""
        nonlocal best, best_margin
        point = (images + delta).detach().requires_grad_()
        margin = margins(model(point), labels)
        (gradient,) = torch.autograd.grad(margin.sum(), point)
        better = margin.detach() < best_margin
        best_margin = torch.where(better, margin.detach(), best_margin)
        best = torch.where(better.view(-1, *[1] * (images.dim() - 1)), point.detach(), best)
        return gradient

    for restart in range(restarts):
        if restart == 0:
            delta = torch.zeros_like(images) if start is None else start - images
        else:
            delta = torch.randn(images.shape, generator=generator, dtype=images.dtype)
            delta = delta * (reach / _norms(delta))
        delta = project(delta, images, reach)
        for step in range(steps):
            gradient = visit(delta)
            length = 2 * ball * (1 - step / steps)
            delta = delta - gradient * (length / _norms(gradient).clamp_min(1e-12))
            delta = project(delta, images, reach)
        visit(delta)
    return best
