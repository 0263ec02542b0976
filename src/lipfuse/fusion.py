"""All normalised weights of a model in one native call a step."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import ops
from .parametrizations import HALF, TRAINING_TOL, LipschitzWeight, as_matrices, headroom

__all__ = ["fuse", "polar_weights", "unfuse"]

_M = TypeVar("_M", bound=nn.Module)
_HOOKS = "_lipfuse_hooks"


def polar_weights(model: nn.Module) -> list[Any]:
    """The parametrization lists of all polar-factor weights, each once."""
    found = {}
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList) and len(module) == 1:
            step = module[0]
            if isinstance(step, LipschitzWeight) and step.method == "polar":
                found[id(module)] = module
    return list(found.values())


class _Before:
    """Forward pre-hook: normalises all weights and hands each to its layer.

    A class, not a closure, so that fused models can be copied and pickled.
    """

    def __init__(self, chains: list[Any]) -> None:
        self.chains = chains

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or parametrize._cache_enabled:
            return  # a compiler sees the whole graph anyway; a cache computes each weight once
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for chain in self.chains:
            step, weight = chain[0], chain.original
            # Outside training every layer computes to full accuracy on its own.
            if step.training and weight.numel() and weight.dtype not in HALF:
                groups.setdefault((weight.dtype, weight.device, step.backward), []).append(chain)
        for (_, _, backward), chains in groups.items():
            results = ops.foreach_orthogonalize(
                [c.original for c in chains],
                [c[0].groups for c in chains],
                [c[0].own_scale(c[0].scale * headroom(c.original)) for c in chains],
                TRAINING_TOL,
                backward == "tangent",
            )
            for chain, result in zip(chains, results):
                step = chain[0]
                if step.operator is not None:
                    scale = step.scale * headroom(chain.original)
                    matrices = as_matrices(result, step.groups)
                    result = step.finish(matrices, scale).reshape(result.shape)
                step.given = result


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
