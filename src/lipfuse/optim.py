"""Projected training: the parameters themselves stay on the constraint set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Union

import torch
from torch import Tensor, nn

from . import ops
from ._checks import check_positive, check_tensor
from .distributed import is_sharded, whole
from .fusion import polar_weights
from .parametrizations import HALF

__all__ = ["retract_"]


@torch.no_grad()
def retract_(
    params_or_model: Union[nn.Module, Tensor, Iterable[Tensor]], *, tol: float = 1e-5
) -> None:
    r"""Moves parameters back onto the orthonormal matrices, after an optimizer step.

    Every weight becomes its polar factor, the nearest matrix with orthonormal columns or rows, in
    place, all in one native call (the projection of Parseval networks; Cisse et al., 2017). A layer
    whose parameter is orthonormal already finds so by one Gram matrix, and its gradient is then the
    tangent one: forward and backward cost about a quarter of what they cost for a parameter that
    drifts freely.

    ::

        loss.backward()
        optimizer.step()
        lipfuse.optim.retract_(model)

    Args:
        params_or_model: a model, whose polar-factor layers (:mod:`lipfuse.nn`) are retracted, or
            tensors ``(out, ...)``, each taken as one matrix of ``out`` rows.
        tol: what :math:`\|I - Q^\top Q\|_F` may be, positive.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range; before anything changes.
    """
    check_positive("tol", tol)
    if isinstance(params_or_model, nn.Module):
        chains = polar_weights(params_or_model)
        weights = [c.original for c in chains]
        groups = [c[0].groups for c in chains]
        if not weights:
            raise ValueError(
                "params_or_model must have at least one layer with a polar-factor weight, "
                f"{type(params_or_model).__name__} has none"
            )
    else:
        given = [params_or_model] if isinstance(params_or_model, Tensor) else list(params_or_model)
        weights = [check_tensor("params_or_model", p, min_dim=2) for p in given]
        groups = [1] * len(weights)
    alone = [(w, g) for w, g in zip(weights, groups) if not is_sharded(w)]
    _retract_together_([w for w, _ in alone], [g for _, g in alone], tol)
    for w, g in zip(weights, groups):
        if is_sharded(w):
            w.copy_(whole(partial(_retracted, groups=g, tol=tol), w))


def _retract_together_(weights: Sequence[Tensor], groups: Sequence[int], tol: float) -> None:
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, w in enumerate(weights):
        if w.numel():
            kinds.setdefault((w.dtype, w.device), []).append(i)
    for (dtype, _), indices in kinds.items():
        chosen = [weights[i] for i in indices]
        full = [w.float() for w in chosen] if dtype in HALF else [w.detach() for w in chosen]
        some = [groups[i] for i in indices]
        results = ops.foreach_orthogonalize(full, some, [1.0] * len(full), tol)
        torch._foreach_copy_([w.detach() for w in chosen], results)
        for w in chosen:
            # Autograd has to know that the parameter changed.
            torch.autograd.graph.increment_version(w)


def _retracted(weight: Tensor, groups: int, tol: float) -> Tensor:
    copy = weight.clone()
    _retract_together_([copy], [groups], tol)
    return copy
