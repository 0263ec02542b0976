"""Rules for modules: Lipschitz layers of this package, convolutions, and those of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, Union

import torch.nn.functional as F
from torch import Tensor, nn

from .. import nn as lipschitz
from .._checks import check_finite
from ..functional.convolution import padding_of_axes
from ..functional.padding import symmetric_pad
from .modules import kind_of
from .norms import up
from .tracing import ModuleRule
from .values import Value, elementwise, nonlinear
from .weighted import convolution, finite

__all__ = ["UserRule", "register", "rule_for", "unregister"]

UserRule = Callable[[Any, tuple[int, ...]], Union[float, tuple[float, str]]]

_PACKAGE = __name__.partition(".")[0]

_USERS: dict[type[nn.Module], UserRule] = {}


# ---- of users ------------------------------------------------------------------------------------


def register(kind: type[nn.Module], rule: UserRule) -> None:
    """Teach :func:`lipfuse.certify` a bound for a class of modules.

    It is believed, and goes before every other rule, also where the module could be looked into.

    Args:
        kind: the class; instances of subclasses do not count.
        rule: called with the module and the shape of its input, without the batch dimension;
            returns an upper bound of the module's Lipschitz constant in the Euclidean norm, or a
            pair of it and how it was obtained.

    Raises:
        TypeError: if ``kind`` is not a class of modules, or ``rule`` cannot be called.

    Example:
        >>> from torch import nn
        >>> from lipfuse import certification
        >>> class Doubled(nn.Module):
        ...     def forward(self, x):
        ...         return 2.0 * x
        >>> certification.register(Doubled, lambda module, input_shape: 2.0)
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"kind must be a class of torch.nn.Module, got {kind!r}")
    if not callable(rule):
        raise TypeError(f"rule must be callable, got {rule!r}")
    _USERS[kind] = rule


def unregister(kind: type[nn.Module]) -> None:
    """Forget what was registered for a class.

    Args:
        kind: the class.

    Raises:
        ValueError: if nothing was.
    """
    if kind not in _USERS:
        raise ValueError(f"kind must be a registered class, got {kind!r}")
    del _USERS[kind]


def _by_user(rule: UserRule) -> ModuleRule:
    def bound(module: nn.Module, x: Value) -> Value:
        found = rule(module, tuple(x.shape[1:]))
        constant, how = found if isinstance(found, tuple) else (found, "registered by the user")
        constant = check_finite("the registered bound", constant)
        if constant < 0.0:
            raise ValueError(f"the registered bound must not be negative, got {constant}")
        return nonlinear(x, constant, how)

    return bound


# ---- of this package -----------------------------------------------------------------------------


def _times_k(method: str) -> ModuleRule:
    """A layer that is 1-Lipschitz by what it computes, times its constant."""

    def bound(module: Any, x: Value) -> Value:
        return nonlinear(x, module.k_coef_lip, f"{method}, times k_coef_lip")

    return bound


def _average_pool(module: Any, x: Value) -> Value:
    return nonlinear(x, up(module._factor(), 4), "scaled sums of disjoint windows")


def _prelu(module: Any, x: Value) -> Value:
    k = module.k_coef_lip
    slope = min(float(finite("weight", module.weight).abs().max()), k)
    return elementwise(x, max(min(1.0, k), slope), "larger of the two slopes")


_OURS: dict[type[nn.Module], ModuleRule] = {
    lipschitz.MaxMin: _times_k("positive and negative parts"),
    lipschitz.GroupSort: _times_k("sorts"),
    lipschitz.GroupSort2: _times_k("sorts"),
    lipschitz.FullSort: _times_k("sorts"),
    lipschitz.HouseHolder: _times_k("reflects pairs across a line"),
    lipschitz.LPReLU: _prelu,
    lipschitz.ScaledAvgPool2d: _average_pool,
    lipschitz.ScaledAdaptiveAvgPool2d: _times_k("scaled sum"),
    lipschitz.ScaledL2NormPool2d: _times_k("Euclidean norms of disjoint windows"),
    lipschitz.ScaledAdaptativeL2NormPool2d: _times_k("Euclidean norm"),
    lipschitz.InvertibleDownSampling: _times_k("moves elements"),
    lipschitz.InvertibleUpSampling: _times_k("moves elements"),
}


# ---- convolutions --------------------------------------------------------------------------------


def _convolution(module: Any, x: Value) -> Value:
    """Together with its padding, which it would otherwise seem to apply before."""
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[module.weight.dim()]
    weight, mode = module.weight, module.padding_mode
    pads = padding_of_axes(module.padding, module.kernel_size, module.dilation)
    reversed_pads = [p for pair in reversed(pads) for p in pair]

    def forward(t: Tensor, w: Tensor) -> Tensor:
        padding: Any = module.padding
        if mode != "zeros":
            padding = 0
            if mode == "symmetric":
                t = symmetric_pad(t, reversed_pads)
            else:
                t = F.pad(t, reversed_pads, mode)
        out: Tensor = function(t, w, None, module.stride, padding, module.dilation, module.groups)
        return out

    return convolution(
        x, weight, module.bias, module.stride, module.padding, module.dilation, module.groups,
        mode, forward,
    )  # fmt: skip


_CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d}


def _is_plain_convolution(module: nn.Module) -> bool:
    """Whether it computes what torch.nn's class, or ours, computes from weight and settings."""
    kind = kind_of(module)
    if kind in _CONVOLUTIONS:
        return True
    ours = kind.__module__.partition(".")[0] == _PACKAGE
    return ours and any(
        issubclass(kind, base) and kind.forward is base.forward for base in _CONVOLUTIONS
    )


def rule_for(module: nn.Module) -> Optional[ModuleRule]:
    """What to do for a module instead of looking into its ``forward``, if anything."""
    kind = kind_of(module)
    if kind in _USERS:
        return _by_user(_USERS[kind])
    if kind in _OURS:
        return _OURS[kind]
    if _is_plain_convolution(module):
        return _convolution
    return None
