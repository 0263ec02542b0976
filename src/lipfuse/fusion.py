"""All normalised weights of a model in one native call a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import ops
from .distributed import check_process_group, is_sharded, orthogonalize_shared
from .parametrizations.weight import HALF, TRAINING_TOL, ComputedWeight

__all__ = ["fuse", "normalize_once", "polar_weights", "unfuse"]

_M = TypeVar("_M", bound=nn.Module)
_HOOKS = "_lipfuse_hooks"
_BEFORE = "_lipfuse_before"


Factors = list[tuple[Tensor, int, float]]
"""What :meth:`ComputedWeight.polar_factors` lists."""


def polar_weights(model: nn.Module) -> list[Any]:
    """The parametrization lists of all polar-factor weights, each once."""
    return [chain for chain, _, _ in polar_steps(model)]


def polar_steps(model: nn.Module) -> list[tuple[Any, ComputedWeight, Factors]]:
    """The same, each with its module that computes the weight, and the factors it is made of.

    In the order of ``model.modules()``, which takes three times as long: this is called in every
    step of a training.
    """
    found: list[tuple[Any, ComputedWeight, Factors]] = []
    seen, waiting = set(), [model]
    while waiting:
        module = waiting.pop()
        if not module._modules or module in seen:
            continue
        seen.add(module)
        children = [child for child in module._modules.values() if child is not None]
        if len(children) == 1 and isinstance(module, parametrize.ParametrizationList):
            (step,) = children
            if isinstance(step, ComputedWeight):
                factors = step.polar_factors(*parameters_of(module))
                if factors:
                    found.append((module, step, factors))
        waiting += reversed(children)
    return found


def parameters_of(chain: Any) -> list[Tensor]:
    """What the weight of a parametrization list is computed from."""
    return [p for p in chain._parameters.values() if p is not None]


def _hand_out(before: _Before) -> None:
    """Normalises all weights and hands each to its layer."""
    process_group = before.process_group
    calls: dict[tuple[Any, ...], list[tuple[Any, list[Any]]]] = {}
    for chain, step in zip(before.chains, before.steps):
        if not step.training:
            continue  # outside training every layer computes to full accuracy on its own
        parameters = parameters_of(chain)
        weight = parameters[0]
        alone = weight.dtype in HALF or any(map(is_sharded, parameters))
        if weight.numel() and not alone:
            # Ranks that share the work also average their gradients there.
            resting = process_group is None and step.at_rest(*parameters)
            key = weight.dtype, weight.device, step.backward, resting
            calls.setdefault(key, []).append((step, step.polar_factors(*parameters)))
    for (_, _, backward, resting), steps in calls.items():
        weights, groups, scales = zip(*(factor for _, factors in steps for factor in factors))
        arguments = (weights, groups, scales, TRAINING_TOL, backward == "tangent")
        if resting:
            results = iter(ops.orthonormal_weights(weights, groups, scales))
        elif process_group is None:
            results = iter(ops.foreach_orthogonalize(*arguments))
        else:
            results = iter(orthogonalize_shared(*arguments, process_group))
        for step, factors in steps:
            step.hand_out(step.assemble([next(results) for _ in factors]))


class _Before:
    """Forward pre-hook: what :func:`fuse` adds to a model.

    A class, not a closure, so that fused models can be copied and pickled; copies compute alone.
    """

    def __init__(self, chains: list[Any], process_group: Any) -> None:
        self.chains = chains
        self.steps = [chain[0] for chain in chains]
        self.process_group = process_group

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": None}

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or parametrize._cache_enabled:
            return  # a compiler sees the whole graph anyway; a cache computes each weight once
        if any(step.training for step in self.steps):
            _hand_out(self)


class _After:
    """Forward hook: what was handed out is valid for one forward only."""

    def __init__(self, chains: list[Any]) -> None:
        self.steps = [chain[0] for chain in chains]

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not torch.compiler.is_compiling():  # where nothing was handed out
            for step in self.steps:
                step.take_back()


def fuse(model: _M, *, process_group: Any = None) -> _M:
    """From now on all polar-factor weights of ``model`` are normalised in one call a forward.

    The layers' own normalisations are computed together when ``model`` itself is called in
    training, forward and backward, spread over threads by their size; each of several forwards
    computes its own, and their gradients are independent. Layers called on their own, outside
    training or under a compiler work as before, and so does ``torch.nn.utils.parametrize.cached``.

    With a ``process_group``, its ranks share the work: each normalises some of the matrices, chosen
    so that all have as much to do, and all get all results. The parameters are made those of the
    group's first rank now. All ranks then have to call the model, and run its backward, equally
    often; what the backward leaves in these parameters' ``grad`` is the average over the ranks.
    Averaging it once more, as ``DistributedDataParallel`` does, changes nothing.

    Args:
        model: a module with layers of :mod:`lipfuse.nn`; changed in place. Call again after adding
            or replacing layers.
        process_group: of ``torch.distributed``, whose ranks train this model on data of their own,
            ``torch.distributed.group.WORLD`` for all of them. None: every process computes alone.

    Returns:
        The model.

    Raises:
        TypeError: if ``model`` is not a module, or ``process_group`` not a process group that this
            process is in.
        ValueError: if the model has no layer whose weight is a polar factor.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = polar_weights(model)
    if not found:
        raise ValueError(
            f"model must have at least one layer with a polar-factor weight, "
            f"{type(model).__name__} has none"
        )
    if process_group is not None:
        check_process_group(process_group)
        for chain in found:
            for parameter in parameters_of(chain):
                if not is_sharded(parameter):
                    dist.broadcast(parameter.detach(), group=process_group, group_src=0)
        if dist.get_world_size(process_group) == 1:
            process_group = None
    unfuse(model)
    before = _Before(found, process_group)
    handles = (
        model.register_forward_pre_hook(before),
        model.register_forward_hook(_After(found), always_call=True),
    )
    setattr(model, _HOOKS, handles)
    setattr(model, _BEFORE, before)
    return model


def unfuse(model: _M) -> _M:
    """Undoes :func:`fuse`; nothing happens to a model that is not fused.

    Args:
        model: what ``fuse`` was given; changed in place.

    Returns:
        The model.
    """
    for handle in model.__dict__.pop(_HOOKS, ()):
        handle.remove()
    model.__dict__.pop(_BEFORE, None)
    return model


@contextmanager
def normalize_once(model: nn.Module) -> Iterator[None]:
    """Normalises every weight once for all forwards inside, and goes back through that once.

    For gradient accumulation::

        with lipfuse.normalize_once(model):
            for x, y in micro_batches:
                (loss(model(x), y) / len(micro_batches)).backward()
        optimizer.step()

    Each backward inside leaves a gradient in the normalised weights; their sum goes through the
    normalisation at the end, and only then are the parameters' gradients there. In a fused model,
    the polar factors are computed in one call, and with a process group by all of its ranks.

    Args:
        model: a module; of all its parametrized tensors, those of other libraries too. Under
            ``DistributedDataParallel``, all backwards but the last belong into ``no_sync()``.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if a parametrized tensor is sharded (a DTensor).
        RuntimeError: inside ``torch.nn.utils.parametrize.cached()``, or if a parameter changes
            before the end.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if parametrize._cache_enabled:
        raise RuntimeError("normalize_once cannot be used inside parametrize.cached()")
    computed = []
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            for name, chain in chains.items():
                if any(is_sharded(p) for p in chain.parameters()):
                    raise ValueError(f"model must not be sharded, {path}.{name} is a DTensor")
                computed.append((module, name))
    fused = [m.__dict__[_BEFORE] for m in model.modules() if _BEFORE in m.__dict__]
    with parametrize.cached():
        pairs = []
        try:
            for before in fused:
                _hand_out(before)
            for module, name in computed:
                weight = getattr(module, name)
                leaf = weight.detach().requires_grad_(weight.requires_grad)
                parametrize._cache[id(module), name] = leaf
                pairs.append((weight, leaf))
        finally:
            for before in fused:
                for step in before.steps:
                    step.take_back()
        yield
    used = [(weight, leaf.grad) for weight, leaf in pairs if leaf.grad is not None]
    if used:
        torch.autograd.backward([w for w, _ in used], [g for _, g in used])
