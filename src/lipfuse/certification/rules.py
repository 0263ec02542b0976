"""The table of operations: for each function of torch, how far its result can move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, TypeVar, Union

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from .values import Value

__all__ = [
    "ATTRIBUTES",
    "IN_PLACE",
    "METADATA",
    "REFUSED",
    "RULES",
    "constant",
    "find",
    "name_of",
    "refuse",
    "rule",
    "words",
]

Result = Union[Value, tuple[Optional[Value], ...], list[Value]]
"""What a rule makes of a call: a value, or one for each output; None for outputs that are indices
or otherwise not continuous."""

Rule = Callable[..., Result]
_R = TypeVar("_R", bound=Rule)

RULES: dict[Any, tuple[str, Rule]] = {}
"""By function: the operation's canonical name, and its rule."""
IN_PLACE: set[Any] = set()
"""Functions that overwrite their first argument."""
REFUSED: dict[Any, str] = {}
"""By function: why there is no rule for it, and what to do."""


def words(text: str) -> list[str]:
    """The words of a text: lists of names are easier to read so."""
    return text.split()


METADATA = frozenset(
    words(
        "size dim ndimension numel nelement is_floating_point is_complex is_contiguous stride "
        "element_size storage_offset is_signed get_device __len__ __repr__ __format__ "
        "new_ones new_zeros new_full new_empty new_tensor zeros_like ones_like full_like empty_like"
    )
)
"""Functions whose result does not depend on the tensor's elements."""

ATTRIBUTES = frozenset(
    words(
        "shape ndim dtype device layout is_cuda is_cpu is_sparse is_quantized is_meta itemsize "
        "requires_grad nbytes is_nested is_leaf names grad grad_fn is_mps is_xpu is_mkldnn"
    )
)
"""Attributes of a tensor that do not depend on its elements."""

_NAMESPACES = (torch, torch.Tensor, torch_functional)


def find(name: str, spaces: tuple[Any, ...] = _NAMESPACES) -> list[Any]:
    """The functions of that name in torch, of its tensors and of ``torch.nn.functional``."""
    return [getattr(space, name) for space in spaces if callable(getattr(space, name, None))]


def rule(canonical: str, *others: Any, spaces: tuple[Any, ...] = _NAMESPACES) -> Callable[[_R], _R]:
    """Register a rule for an operation, under all its names, in-place variants included.

    Args:
        canonical: its name, that of a function of torch.
        others: further names, or functions that are found in none of the usual places.
        spaces: where to look, if the same name means something else elsewhere.
    """

    def register(function: _R) -> _R:
        for name in (canonical, *others):
            if not isinstance(name, str):
                RULES[name] = (canonical, function)
                continue
            for each in find(name, spaces):
                RULES[each] = (canonical, function)
            for each in find(name + "_", spaces) if not name.startswith("__") else []:
                RULES[each] = (canonical, function)
                IN_PLACE.add(each)
            if name.startswith("__i") and not name.startswith(("__inv", "__int")):
                IN_PLACE.update(find(name))
        return function

    return register


def refuse(why: str, *names: str) -> None:
    """Note why some functions cannot be bounded."""
    for name in names:
        for each in [*find(name), *find(name + "_")]:
            REFUSED[each] = why


def name_of(function: Any) -> str:
    """A function's name, for messages."""
    return str(getattr(function, "__name__", function))


def constant(value: Any) -> Tensor:
    """A tensor that does not depend on the input, or a number, in float64 on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64)
    return torch.tensor(value, dtype=torch.float64)
