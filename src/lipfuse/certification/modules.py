"""What the modules of a network are, and what state they have to be in while it is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Optional

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

__all__ = ["computing_weights_exactly", "is_leaf", "kind_of", "restore_buffers", "where_is"]


def kind_of(module: nn.Module) -> type[nn.Module]:
    """A module's class as it was written: parametrizations give it a class of its own."""
    kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return kind


def where_is(name: str, module: Optional[nn.Module]) -> str:
    """A module as messages should call it."""
    kind = "" if module is None else f" ({kind_of(module).__name__})"
    return f"module '{name}'{kind}" if name else f"the model{kind}"


@contextlib.contextmanager
def computing_weights_exactly(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for what computes weights, and nothing else."""
    computing = [m for m in model.modules() if _computes_its_weight(m)]
    switched = {m for module in computing for m in _with_parametrizations(module) if m.training}
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True


def _computes_its_weight(module: nn.Module) -> bool:
    """Whether what it multiplies by may be inexact, or advance its state, in training mode."""
    hooks = module._forward_pre_hooks.values()
    package = __name__.partition(".")[0]
    return (
        isinstance(module, parametrize.ParametrizationList)
        or any(kind.__module__.partition(".")[0] == package for kind in type(module).__mro__)
        or any(isinstance(hook, SpectralNorm) for hook in hooks)
    )


def _with_parametrizations(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    if isinstance(module, parametrize.ParametrizationList):
        yield from module.modules()


def is_leaf(module: nn.Module) -> bool:
    return all(name == "parametrizations" for name, _ in module.named_children())


def restore_buffers(buffers: list[tuple[nn.Module, dict[str, Optional[Tensor]]]]) -> None:
    """Take away what a model has kept of a run."""
    for module, kept in buffers:
        module._buffers.update(kept)
