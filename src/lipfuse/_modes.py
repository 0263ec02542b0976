"""Looking at a module in evaluation without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module, *, frozen: bool = False) -> Iterator[None]:
    """Switch to evaluation; afterwards every submodule has the training flag that it had.

    Args:
        module: the module.
        frozen: whether no parameter requires a gradient meanwhile.
    """
    flags = [(m, m.training) for m in module.modules()]
    trained = [p for p in module.parameters() if p.requires_grad] if frozen else []
    module.eval()
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        # By the method first, since modules may do more in it than set the flag.
        module.train(flags[0][1])
        for submodule, training in flags:
            submodule.training = training
