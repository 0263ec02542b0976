"""Parameters that already are what their normalisation makes of them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .export import _at_rest
from .parametrizations import FrobeniusNorm, LipschitzWeight

__all__ = ["condense"]

_M = TypeVar("_M", bound=nn.Module)

# What writing a weight and normalising it again may change, relative to the largest element: an
# iteration that stops by a tolerance gets a little further; or so many units of rounding.
_TOLERANCE = 1e-5
_ROUNDING = 64


@torch.no_grad()
def condense(model: _M) -> _M:
    r"""Puts the normalised weights into the parameters; what the model computes stays the same.

    A parameter W and its normalisation, ``W`` over its spectral norm or its polar factor, say, are
    the same layer, but training lets W drift: its singular values spread, steps of the optimizer
    become relatively smaller, and the normalisation needs more iterations. Afterwards the parameter
    has a largest singular value of 1 (k and a convolution's factor are kept out of it).

    Parametrizations of :mod:`lipfuse` and of ``torch.nn.utils.parametrizations`` alike, with all
    originals that ``right_inverse`` writes. One that does not give the same weight again, as a
    factor without a norm, is left as it is. An optimizer's momentum still belongs to the old
    parameters; condense between epochs, or use :func:`lipfuse.optim.retract_` after every step.

    Args:
        model: a module with parametrized tensors; its parameters are changed in place.

    Returns:
        The model.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it has no parametrized tensor, or one of its weights is not finite; nothing
            is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found: list[tuple[nn.Module, str, Tensor]] = []
    for module in model.modules():
        if parametrize.is_parametrized(module):
            with _at_rest(module):
                names: Any = module.parametrizations
                found += [(module, name, getattr(module, name).clone()) for name in names]
    if not found:
        raise ValueError(
            f"model must have at least one parametrized tensor, {type(model).__name__} has none"
        )
    for module, name, weight in found:
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"the weights of model must be finite, but {name} of "
                f"{parametrize.type_before_parametrizations(module).__name__} is not"
            )
    for module, name, weight in found:
        if weight.numel():
            _write(module, name, weight)
    return model


def _write(module: Any, name: str, weight: Tensor) -> None:
    chain = module.parametrizations[name]
    kept = {key: tensor.clone() for key, tensor in chain.state_dict().items()}
    last = chain[len(chain) - 1]
    value: Any = weight
    if isinstance(last, (LipschitzWeight, FrobeniusNorm)):
        value = weight / last.scale
    try:
        for step in reversed(list(chain)):
            value = step.right_inverse(value)
        # Copied, where assigning to the weight would exchange the parameters' memory.
        if chain.is_tensor:
            chain.original.copy_(value)
        else:
            for i, part in enumerate(value):
                getattr(chain, f"original{i}").copy_(part)
        with _at_rest(module):
            again = getattr(module, name)
        allowed = max(_TOLERANCE, _ROUNDING * torch.finfo(weight.dtype).eps)
        same = bool((again - weight).abs().amax() <= allowed * weight.abs().amax())
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        same = False  # a parametrization without an inverse, or one that refuses this weight
    if not same:
        for key, tensor in chain.state_dict().items():
            tensor.copy_(kept[key])
