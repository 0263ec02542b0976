"""Projected training: the parameters themselves stay on the constraint set.

Also weight clipping, the constraint of the first Wasserstein GANs, to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from . import ops
from ._checks import check_positive, check_tensor
from .distributed import is_sharded, whole
from .fusion import parameters_of, polar_weights
from .parametrizations.weight import HALF, TRAINING_TOL

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
    steps: list[tuple[Any, int]] = []
    if isinstance(params_or_model, nn.Module):
        weights, groups = [], []
        for chain in polar_weights(params_or_model):
            factors = chain[0].polar_factors(*parameters_of(chain))
            steps.append((chain[0], len(factors)))
            weights += [f[0] for f in factors]
            groups += [f[1] for f in factors]
        if not weights:
            raise ValueError(
                "params_or_model must have at least one layer with a polar-factor weight, "
                f"{type(params_or_model).__name__} has none"
            )
    else:
        given = [params_or_model] if isinstance(params_or_model, Tensor) else list(params_or_model)
        weights = [check_tensor("params_or_model", p, min_dim=2) for p in given]
        groups = [1] * len(weights)
    alone = [i for i, w in enumerate(weights) if not is_sharded(w)]
    found = _retract_together_([weights[i] for i in alone], [groups[i] for i in alone], tol)
    for w, g in zip(weights, groups):
        if is_sharded(w):
            w.copy_(whole(partial(_retracted, groups=g, tol=tol), w))
    orthonormal = dict(zip(alone, found))
    first = 0
    for step, count in steps:
        copies = [orthonormal.get(i) for i in range(first, first + count)]
        if tol <= _AT_REST and all(c is not None for c in copies):
            step.rest(copies)
        first += count


def _retract_together_(
    weights: Sequence[Tensor], groups: Sequence[int], tol: float
) -> list[Optional[Tensor]]:
    """Returns copies of those that are orthonormal now, where layers profit from knowing it."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, w in enumerate(weights):
        if w.numel():
            kinds.setdefault((w.dtype, w.device), []).append(i)
    copies: list[Optional[Tensor]] = [None] * len(weights)
    for (dtype, device), indices in kinds.items():
        chosen = [weights[i].detach() for i in indices]
        full = [w.float() for w in chosen] if dtype in HALF else chosen
        some = [groups[i] for i in indices]
        results, residuals = ops.retractions(full, some, tol)
        torch._foreach_copy_(chosen, results)
        for i in indices:
            # Autograd has to know that the parameter changed.
            torch.autograd.graph.increment_version(weights[i])
        if dtype in HALF or device.type != "cpu":
            continue  # rounded, or where comparing would wait for the device
        for i, q, left in zip(indices, results, residuals.split(some)):
            if bool((left <= TRAINING_TOL).all()):
                copies[i] = q
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
