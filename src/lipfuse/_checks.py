"""Argument checks shared by the whole package.

Every check either returns its argument, in the type the caller works with, or raises an error
that says which argument was wrong, what its value was and what is allowed: ``TypeError`` where no
value of that type could be right, ``ValueError`` otherwise.

Two rules hold throughout: ``bool`` is not a number (``Linear(True, 3)`` is a slip of the pen), and
NaN and infinity are never a valid hyper-parameter.

They are written with comparisons only (no ``math.isfinite``), since ``torch.compile`` traces the
checks of the functions, with symbolic numbers where a layer's constant has changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = [
    "check_bool",
    "check_choice",
    "check_device",
    "check_dim",
    "check_finite",
    "check_in_range",
    "check_int_or_pair",
    "check_int_or_tuple",
    "check_positive",
    "check_positive_int",
    "check_same",
    "check_tensor",
]

_T = TypeVar("_T")

# Beyond this a size or a number of steps is a mistake, and no kernel can count it.
_TOO_MANY = 2**31


def _shown(value: object) -> str:
    """The value as it should stand in an error message: a tensor by its metadata only."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return repr(value)


def _number(name: str, value: object, allowed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be {allowed}, got {_shown(value)}")
    return float(value)


def check_finite(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite real number.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.

    Raises:
        TypeError: if it is not a real number (``bool`` and tensors are not).
        ValueError: if it is NaN or infinite.
    """
    number = _number(name, value, "a finite number")
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name} must be a finite number, got {_shown(value)}")
    return number


def check_positive(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a positive finite real number.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.

    Raises:
        TypeError: if it is not a real number (``bool`` and tensors are not).
        ValueError: if it is zero, negative, NaN or infinite.
    """
    number = _number(name, value, "a positive finite number")
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {_shown(value)}")
    return number


def check_in_range(
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return ``value`` as a float if it lies between ``low`` and ``high``.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.
        low: the lower end; may be ``-math.inf``.
        high: the upper end; may be ``math.inf``.
        low_open: whether ``low`` itself is excluded.
        high_open: whether ``high`` itself is excluded.

    Raises:
        TypeError: if it is not a real number (``bool`` and tensors are not).
        ValueError: if it lies outside, or is NaN or infinite.
    """
    left = "(" if low_open or math.isinf(low) else "["
    right = ")" if high_open or math.isinf(high) else "]"
    allowed = f"a finite number in {left}{low:g}, {high:g}{right}"
    number = _number(name, value, allowed)
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if not (-math.inf < number < math.inf and above and below):
        raise ValueError(f"{name} must be {allowed}, got {_shown(value)}")
    return number


def check_positive_int(name: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` as an int if it is an integer of at least ``minimum``.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.
        minimum: the smallest value allowed.

    Raises:
        TypeError: if it is not an integer (``bool``, floats and tensors are not).
        ValueError: if it is smaller than ``minimum``, or 2**31 and more.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer >= {minimum}, got {_shown(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {_shown(value)}")
    if value >= _TOO_MANY:
        raise ValueError(f"{name} must be an integer in [{minimum}, 2**31), got {_shown(value)}")
    return int(value)


def check_int_or_tuple(name: str, value: object, axes: int, minimum: int = 1) -> tuple[int, ...]:
    """Return ``value`` as a tuple of ``axes`` ints; a single int stands for all of them.

    Args:
        name: the argument's name, for the message.
        value: an int, or a tuple or list of ``axes`` of them.
        axes: how many.
        minimum: the smallest value allowed for each.

    Raises:
        TypeError: if it is neither an integer nor a sequence of integers.
        ValueError: if it is a sequence of another length, or a value is smaller than ``minimum``,
            or 2**31 and more.
    """
    several = "a pair of them" if axes == 2 else f"{axes} of them in a tuple"
    allowed = f"an integer >= {minimum} or {several}"
    items: Any = value if isinstance(value, (tuple, list, torch.Size)) else (value,) * axes
    if any(isinstance(item, bool) or not isinstance(item, (int, np.integer)) for item in items):
        raise TypeError(f"{name} must be {allowed}, got {_shown(value)}")
    if len(items) != axes or any(item < minimum for item in items):
        raise ValueError(f"{name} must be {allowed}, got {_shown(value)}")
    if any(item >= _TOO_MANY for item in items):
        raise ValueError(f"{name} must be below 2**31, got {_shown(value)}")
    return tuple(int(item) for item in items)


def check_int_or_pair(name: str, value: object, minimum: int = 1) -> tuple[int, int]:
    """Return ``value`` as a pair of ints: :func:`check_int_or_tuple` for two axes."""
    first, second = check_int_or_tuple(name, value, 2, minimum)
    return first, second


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` if it is a ``bool``.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.

    Raises:
        TypeError: if it is anything else, 0 and 1 included.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}")
    return bool(value)


def check_choice(name: str, value: _T, choices: Iterable[_T]) -> _T:
    """Return ``value`` if it is one of ``choices``.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.
        choices: what is allowed, in the order the message should list it.

    Raises:
        ValueError: if it is none of them.
    """
    allowed = tuple(choices)
    # Compare types as well: 1 == True == 1.0, and none of them means another here. A list or a
    # tensor compares elementwise or not at all, hence the type first.
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        listed = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {listed}, got {_shown(value)}")
    return value


def check_device(name: str, value: object) -> torch.device | None:
    """Return ``value`` as a device, or ``None``, which stands for the default one.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.

    Raises:
        TypeError: if it is not a device, a string, an integer or ``None``.
        ValueError: if torch knows no such device.
    """
    if value is None or isinstance(value, torch.device):
        return value
    allowed = f"{name} must be a torch.device, its name, its index or None, got {_shown(value)}"
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(allowed)
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{allowed}: {error}") from None


def check_tensor(
    name: str,
    value: Any,
    *,
    min_dim: int | None = None,
    floating: bool = True,
) -> torch.Tensor:
    """Return ``value`` if it is a tensor of the rank and kind the caller works on.

    Args:
        name: the argument's name, for the message.
        value: what the caller was given.
        min_dim: the smallest rank allowed, or ``None`` for any.
        floating: whether the dtype must be real floating-point.

    Raises:
        TypeError: if it is not a tensor, or not of a floating-point dtype where one is needed.
        ValueError: if it has too few dimensions.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {_shown(value)}")
    if floating and not value.is_floating_point():
        raise TypeError(f"{name} must have a real floating-point dtype, got {_shown(value)}")
    if min_dim is not None and value.dim() < min_dim:
        raise ValueError(f"{name} must have at least {min_dim} dimension(s), got {_shown(value)}")
    return value


def check_dim(name: str, dim: object, ndim: int) -> int:
    """Return ``dim`` counted from the front, for a tensor of ``ndim`` dimensions.

    Args:
        name: the argument's name, for the message.
        dim: the dimension; negative values count from the end.
        ndim: the tensor's rank.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if the tensor has no such dimension.
    """
    allowed = f"an integer in [{-ndim}, {ndim - 1}] for a tensor of {ndim} dimension(s)"
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"{name} must be {allowed}, got {_shown(dim)}")
    if not -ndim <= dim < ndim:
        raise ValueError(f"{name} must be {allowed}, got {_shown(dim)}")
    return int(dim) % ndim


def check_same(
    name: str,
    value: torch.Tensor,
    other_name: str,
    other: torch.Tensor,
    *,
    dtype: bool = True,
    device: bool = True,
) -> None:
    """Check that two tensors live on one device and have one dtype.

    Args:
        name: the first tensor's name, for the message.
        value: the first tensor.
        other_name: the second tensor's name.
        other: the second tensor.
        dtype: whether the dtypes must agree.
        device: whether the devices must agree.

    Raises:
        TypeError: if the dtypes differ.
        ValueError: if the devices differ.
    """
    if dtype and value.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name} ({other.dtype}), got {value.dtype}"
        )
    if device and value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {value.device}"
        )
