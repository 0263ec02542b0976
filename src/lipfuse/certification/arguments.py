"""The arguments of a call: what is in them, and the concrete tensors that stand behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .stand_in import StandIn
from .values import Value

__all__ = [
    "distance",
    "each",
    "in_float64",
    "sample_of",
    "size",
    "stand_ins_in",
    "twin_of",
    "values_in",
]


def each(change: Callable[[Any], Any], arguments: Any) -> Any:
    """The arguments of a call with a change made to each, in lists and the like too."""
    if type(arguments) in (tuple, list):
        return type(arguments)(each(change, item) for item in arguments)
    if type(arguments) is dict:
        return {key: each(change, item) for key, item in arguments.items()}
    return change(arguments)


def values_in(arguments: Any) -> list[Value]:
    found: list[Value] = []
    each(lambda x: found.append(x) if isinstance(x, Value) else None, arguments)
    return found


def stand_ins_in(arguments: Any) -> list[StandIn]:
    found: list[StandIn] = []
    each(lambda x: found.append(x) if type(x) is StandIn else None, arguments)
    return found


def sample_of(x: Any) -> Any:
    return x.sample if isinstance(x, Value) else x


def twin_of(x: Any) -> Any:
    return x.twin if isinstance(x, Value) else x


def in_float64(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


def distance(x: Tensor, y: Tensor) -> float:
    return float((in_float64(x) - in_float64(y)).norm())


def size(x: Tensor, y: Tensor) -> float:
    return float(in_float64(x).norm() + in_float64(y).norm())
