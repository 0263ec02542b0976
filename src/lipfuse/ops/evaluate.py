"""A weight outside training, in compiled code: asked of the module that computes it.

Modules keep what they computed last, and compute anew only for a changed parameter. A compiler
would put the whole computation into its graph instead, and do it for every batch.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse.ops._define import _library

_modules: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def name_for(module: Any) -> str:
    """A name by which compiled code finds ``module``; no other one, in any process, has it."""
    name = uuid.uuid4().hex
    _modules[name] = module
    return name


_library.define(
    "evaluate(Tensor[] parameters, float scale, SymInt[]? shape, str module) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)


def _evaluate(
    parameters: Sequence[Tensor], scale: float, shape: Optional[Sequence[int]], module: str
) -> Tensor:
    owner = _modules.get(module)
    if owner is None:
        raise ValueError(f"module must be the name of a module of this process, got {module!r}")
    result: Tensor = owner.evaluated(scale, *parameters)
    return result


_library.impl("evaluate", _evaluate, "CompositeExplicitAutograd")


def _fake(
    parameters: Sequence[Tensor], scale: float, shape: Optional[Sequence[int]], module: str
) -> Tensor:
    return parameters[0].new_empty(parameters[0].shape if shape is None else shape)


torch.library.register_fake("lipfuse::evaluate", _fake, lib=_library)


def evaluate(
    parameters: Sequence[Tensor], scale: float, shape: Sequence[int], module: str
) -> Tensor:
    """What the module of that name makes of its parameters, from memory where they are the same.

    Args:
        parameters: its ``evaluated`` gets them after the scale.
        scale: of the weight.
        shape: of the result, which has the dtype of the first parameter.
        module: its name, of :func:`name_for`.
    """
    # Handing over a shape takes longer than comparing a small weight with the last one.
    own = tuple(shape) == tuple(parameters[0].shape)
    result: Tensor = torch.ops.lipfuse.evaluate(
        list(parameters), scale, None if own else list(shape), module
    )
    return result
