"""All normalised weights of a model in one native call a step."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import ops
from .parametrizations import HALF, TRAINING_TOL, ComputedWeight

__all__ = ["fuse", "polar_weights", "unfuse"]

_M = TypeVar("_M", bound=nn.Module)
_HOOKS = "_lipfuse_hooks"


def polar_weights(model: nn.Module) -> list[Any]:
    """The parametrization lists of all polar-factor weights, each once."""
    found = {}
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList) and len(module) == 1:
            step = module[0]
            if isinstance(step, ComputedWeight) and step.polar_factors(*parameters_of(module)):
                found[id(module)] = module
    return list(found.values())


def parameters_of(chain: Any) -> list[Tensor]:
    """What the weight of a parametrization list is computed from."""
    return list(chain.parameters(recurse=False))


class _Before:
    """Forward pre-hook: normalises all weights and hands each to its layer.

    A class, not a closure, so that fused models can be copied and pickled.
    """

    def __init__(self, chains: list[Any]) -> None:
        self.chains = chains

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or parametrize._cache_enabled:
            return  # a compiler sees the whole graph anyway; a cache computes each weight once
        calls: dict[tuple[Any, ...], list[tuple[Any, list[Any]]]] = {}
        for chain in self.chains:
            step, parameters = chain[0], parameters_of(chain)
            weight = parameters[0]
            # Outside training every layer computes to full accuracy on its own.
            if step.training and weight.numel() and weight.dtype not in HALF:
                key = weight.dtype, weight.device, step.backward
                calls.setdefault(key, []).append((step, step.polar_factors(*parameters)))
        for (_, _, backward), steps in calls.items():
            weights, groups, scales = zip(*(factor for _, factors in steps for factor in factors))
            results = iter(
                ops.foreach_orthogonalize(
                    weights, groups, scales, TRAINING_TOL, backward == "tangent"
                )
            )
            for step, factors in steps:
                step.given = step.assemble([next(results) for _ in factors])


class _After:
    """Forward hook: what was handed out is valid for one forward only."""

    def __init__(self, chains: list[Any]) -> None:
        self.chains = chains

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        for chain in self.chains:
            chain[0].given = None


def fuse(model: _M) -> _M:
    """From now on all polar-factor weights of ``model`` are normalised in one call a forward.

    The layers' own normalisations are computed together when ``model`` itself is called in
    training, forward and backward, spread over threads by their size; each of several forwards
    computes its own, and their gradients are independent. Layers called on their own, outside
    training or under a compiler work as before, and so does ``torch.nn.utils.parametrize.cached``.

    Args:
        model: a module with layers of :mod:`lipfuse.nn`; changed in place. Call again after adding
            or replacing layers.

    Returns:
        The model.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it has no layer whose weight is a polar factor.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = polar_weights(model)
    if not found:
        raise ValueError(
            f"model must have at least one layer with a polar-factor weight, "
            f"{type(model).__name__} has none"
        )
    unfuse(model)
    handles = (
        model.register_forward_pre_hook(_Before(found)),
        model.register_forward_hook(_After(found), always_call=True),
    )
    setattr(model, _HOOKS, handles)
    return model


def unfuse(model: _M) -> _M:
    """Undoes :func:`fuse`; nothing happens to a model that is not fused.

    Returns:
        The model.
    """
    for handle in model.__dict__.pop(_HOOKS, ()):
        handle.remove()
    return model
