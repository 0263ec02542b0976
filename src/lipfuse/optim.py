"""Projected training: the parameters themselves stay on the constraint set.

Also weight clipping, the constraint of the first Wasserstein GANs, to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Optional, Union

import torch
from torch import Tensor, nn

from . import ops
from ._checks import check_positive, check_tensor
from .distributed import is_sharded, whole
from .fusion import polar_steps
from .parametrizations.weight import HALF, TRAINING_TOL, ComputedWeight

__all__ = ["clip_weights_", "retract_"]

_AT_REST = 1e-5
"""The largest tolerance whose results the layers use as they are: as accurate as their own."""


@torch.no_grad()
def retract_(
    params_or_model: Union[nn.Module, Tensor, Iterable[Tensor]], *, tol: float = 1e-5
) -> None:
    r"""Moves parameters back onto the orthonormal matrices, after an optimizer step.

    Every weight becomes its polar factor, the nearest matrix with orthonormal columns or rows, in
    place, all in one native call (the projection of Parseval networks; Cisse et al., 2017). On a
    CPU, the layers of a model then use their parameters as they are: the forward computes nothing,
    and the backward two products, the exact gradient where the parameter is orthonormal. Each layer
    keeps a copy to compare with, so that a parameter that anything else has changed is normalised
    as ever.

    ::

        loss.backward()
        optimizer.step()
        lipfuse.optim.retract_(model)

    Args:
        params_or_model: a model, whose polar-factor layers (:mod:`lipfuse.nn`) are retracted, or
            tensors ``(out, ...)``, each taken as one matrix of ``out`` rows.
        tol: what :math:`\|I - Q^\top Q\|_F` may be, positive. Above 1e-5 the layers normalise once
            more.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range; before anything changes.
    """
    check_positive("tol", tol)
    steps: list[tuple[ComputedWeight, int]] = []
    weights: list[Tensor] = []
    groups: list[int] = []
    if isinstance(params_or_model, nn.Module):
        for _, step, factors in polar_steps(params_or_model):
            steps.append((step, len(factors)))
            for weight, count, _ in factors:
                weights.append(weight)
                groups.append(count)
        if not weights:
            raise ValueError(
                "params_or_model must have at least one layer with a polar-factor weight, "
                f"{type(params_or_model).__name__} has none"
            )
    else:
        given = [params_or_model] if isinstance(params_or_model, Tensor) else list(params_or_model)
        weights = [check_tensor("params_or_model", p, min_dim=2) for p in given]
        groups = [1] * len(weights)
    copies = _retract_together_(weights, groups, tol)
    if tol <= _AT_REST:
        first = 0
        for step, count in steps:
            orthonormal = [c for c in copies[first : first + count] if c is not None]
            if len(orthonormal) == count:
                step.rest(orthonormal)
            first += count


def _retract_together_(
    weights: Sequence[Tensor], groups: Sequence[int], tol: float
) -> list[Optional[Tensor]]:
    """Returns copies of those that are orthonormal now, where layers profit from knowing it."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    sharded = []
    for i, w in enumerate(weights):
        if is_sharded(w):
            sharded.append(i)
        elif w.numel():
            kinds.setdefault((w.dtype, w.device), []).append(i)
    copies: list[Optional[Tensor]] = [None] * len(weights)
    for (dtype, device), indices in kinds.items():
        chosen = [weights[i] for i in indices]
        full = [w.float() for w in chosen] if dtype in HALF else chosen
        some = [groups[i] for i in indices]
        results, residuals = ops.retractions(full, some, tol)
        torch._foreach_copy_(chosen, results)
        if dtype in HALF or device.type != "cpu":
            continue  # rounded, or where comparing would wait for the device
        left, row = residuals.tolist(), 0
        for i, q, count in zip(indices, results, some):
            # Not by the largest of them: a NaN has to be seen.
            if all(r <= TRAINING_TOL for r in left[row : row + count]):
                copies[i] = q
            row += count
    for i in sharded:
        w = weights[i]
        w.copy_(whole(partial(_retracted, groups=groups[i], tol=tol), w))
    return copies


def _retracted(weight: Tensor, groups: int, tol: float) -> Tensor:
    copy = weight.clone()
    _retract_together_([copy], [groups], tol)
    return copy


@torch.no_grad()
def clip_weights_(
    params_or_model: Union[nn.Module, Tensor, Iterable[Tensor]], c: Optional[float] = 0.01
) -> None:
    r"""Clips parameters to ``[-c, c]``, after an optimizer step: a baseline, not a good constraint.

    What the first Wasserstein GANs did to have *some* Lipschitz constant. Which one is
    another question: a matrix m x n of such elements has a spectral norm of up to
    :math:`c \sqrt{mn}`. With ``c=None`` each weight is clipped to :math:`1 / \sqrt{mn}`, so that
    its Frobenius norm, and with it its spectral norm, is at most 1, and mostly far less. NaN stays
    NaN.

    Args:
        params_or_model: a model, all of whose parameters are clipped, or tensors.
        c: positive, or None; then tensors of fewer than 2 dimensions, such as biases, are left as
            they are.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range; before anything changes.

    Reference:
        Arjovsky, Chintala, Bottou, "Wasserstein GAN", arXiv 1701.07875, algorithm 1.
    """
    if c is not None:
        check_positive("c", c)
    given: list[Tensor]
    if isinstance(params_or_model, nn.Module):
        given = [p for p in params_or_model.parameters() if p.is_floating_point()]
    else:
        given = [params_or_model] if isinstance(params_or_model, Tensor) else list(params_or_model)
    for p in [check_tensor("params_or_model", p) for p in given]:
        if c is not None:
            p.clamp_(-c, c)
        elif p.dim() >= 2 and p.numel():
            # Rounded down, so that the norm is not above 1 in half precision either.
            bound = (1 - torch.finfo(p.dtype).eps) / math.sqrt(p.numel())
            p.clamp_(-bound, bound)
