"""One class for all layers of a type whose weight is computed.

``torch.nn.utils.parametrize`` makes a class for every single layer at run time, with a property in
place of each computed tensor. Such classes cannot be pickled, and stacking layers for ``vmap``
(:func:`torch.func.stack_module_state`) refuses layers of different classes. Here layers of one type
share one class. Its properties look at the layer they are read from, so that a layer may have
further parametrizations, or lose its own, without its siblings noticing.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch.nn.utils import parametrize

_ATTRIBUTE = "_class_with_computed_weight"


class _Shared(abc.ABCMeta):
    """The type of the shared classes: torch's changes of a class are meant for one layer only."""

    def __setattr__(cls, name: str, value: Any) -> None:
        super().__setattr__(name, _computed(name) if isinstance(value, property) else value)

    def __delattr__(cls, name: str) -> None:
        # Where a parametrization is removed, the property stays, and finds nothing to compute.
        if not isinstance(cls.__dict__.get(name), property):
            super().__delattr__(name)


def _computed(name: str) -> property:
    """The attribute ``name`` of layers that may have a parametrization for it."""

    def get(layer: Any) -> Any:
        chains = layer._modules.get("parametrizations")
        chain = None if chains is None else chains._modules.get(name)
        if chain is None:
            # An ordinary attribute of this layer. torch.nn.Module would look there itself, but
            # torch.compile does not follow it from here.
            for place in (layer.__dict__, layer._parameters, layer._buffers):
                if name in place:
                    return place[name]
            raise AttributeError(f"{type(layer).__name__!r} object has no attribute {name!r}")
        if parametrize._cache_enabled:
            return _cached(layer, name, chain)
        # A small weight is normalised in a few microseconds; the module calls on the way to it,
        # which only long chains and hooks need, would cost as much again. In compiled code they
        # would be many guards, checked for every batch.
        step, original = chain._modules.get("0"), chain._parameters.get("original")
        if (
            len(chain._modules) == 1
            and original is not None
            and not _has_hooks(step)
            and not _has_hooks(chain)
        ):
            return step.forward(original)
        return chain()

    def set(layer: Any, value: Any) -> None:
        chains = layer._modules.get("parametrizations")
        if chains is None or name not in chains._modules:
            layer.__dict__[name] = value
        else:
            chains._modules[name].right_inverse(value)

    return property(get, set)


def _has_hooks(module: Any) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _cached(layer: Any, name: str, chain: Any) -> Any:
    """Inside ``parametrize.cached()``: computed once for each layer."""
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError("a model cannot be traced inside torch.nn.utils.parametrize.cached()")
    key = (id(layer), name)
    if parametrize._cache.get(key) is None:
        parametrize._cache[key] = chain()
    return parametrize._cache[key]


def shorten(module: Any, name: str) -> None:
    """Computes a parametrized tensor of any module by the same short way.

    In a class that torch has made for the module alone, or for it and its copies.
    """
    if isinstance(type(module).__dict__.get(name), property):
        setattr(type(module), name, _computed(name))


def class_for(base: type[Any], names: tuple[str, ...] = ("weight",)) -> Any:
    """The class of layers of type ``base`` whose tensors ``names`` may be computed."""
    shared = base.__dict__.get(_ATTRIBUTE)
    if shared is None:
        # Named as torch would, which takes the first base for the type before parametrization.
        title = f"Parametrized{base.__name__}"
        shared = _Shared(title, (base,), {"__module__": base.__module__})
        setattr(base, _ATTRIBUTE, shared)
    for name in names:
        if name not in shared.__dict__:
            setattr(shared, name, property())
    return shared


def blank(base: type[Any], names: tuple[str, ...]) -> Any:
    """A layer without contents, for pickle and copy, which fill it."""
    kind = class_for(base, names)
    return kind.__new__(kind)
