"""Rules for what picks elements: by size, by order, by a mask; for steps, and for norms."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor

from .norms import up
from .patterns import (
    guarded_root,
    joined,
)
from .rules import constant, rule, words
from .values import Value, affine, elementwise, merged, nonlinear, unbounded

__all__: list[str] = []


# ---- one of two ----------------------------------------------------------------------------------


def _either(a: Any, b: Any) -> Optional[Value]:
    """Elements of one or the other, whichever is larger or smaller, say."""
    values = [v for v in (a, b) if isinstance(v, Value)]
    if len(values) == 1 and isinstance(b, (int, float)):
        return elementwise(values[0], 1.0, "cut off at a constant")
    parts = [v if isinstance(v, Value) else constant(v) for v in (a, b)]
    if len(values) == 1:
        if torch.broadcast_shapes(parts[0].shape, parts[1].shape) != values[0].shape:
            return None
        return elementwise(values[0], 1.0, "cut off at a constant")
    if a.shape != b.shape:
        return None
    return nonlinear(joined([a, b], torch.stack), 1.0, "the larger or smaller of two")


@rule("maximum", "minimum", "fmax", "fmin")
def _extremum(a: Any, b: Any) -> Value:
    found = _either(a, b)
    if found is None:
        raise ValueError("needs two tensors of the same shape to be bounded")
    return found


def _along(name: str) -> None:
    """Reductions to one of the elements, or to a value between them."""

    @rule(name)
    def _(x: Value, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if any(isinstance(a, (Value, Tensor)) for a in given):
            return _extremum(x, given[0])
        value = nonlinear(x, 1.0, "one element of many")
        if name in ("amax", "amin", "logsumexp") or not given:
            return value
        return (value, None)


for _name in words("max min amax amin median kthvalue logsumexp"):
    _along(_name)


@rule("sort", "topk")
def _sort(x: Value, *args: Any, **kwargs: Any) -> tuple[Optional[Value], ...]:
    if kwargs.get("sorted") is False or (len(args) > 3 and not args[3]):
        raise ValueError("must be called with sorted=True: otherwise its order may jump")
    return (nonlinear(x, 1.0, "sorts"), None)


@rule("msort")
def _msort(x: Value) -> Value:
    return nonlinear(x, 1.0, "sorts")


def _step(name: str, *others: str) -> None:
    @rule(name, *others)
    def _(*args: Any, **kwargs: Any) -> Value:
        parents = tuple(a for a in args if isinstance(a, Value))
        return unbounded(parents, f"{name} is a step: not continuous in the input")


for _name, *_others in (
    ("gt", "greater", "__gt__"),
    ("ge", "greater_equal", "__ge__"),
    ("lt", "less", "__lt__"),
    ("le", "less_equal", "__le__"),
    ("eq", "__eq__"),
    ("ne", "not_equal", "__ne__"),
    ("and", "logical_and", "bitwise_and", "__and__"),
    ("or", "logical_or", "bitwise_or", "__or__"),
    ("not", "logical_not", "bitwise_not", "__invert__"),
    ("remainder", "fmod", "__mod__"),
    ("floor_divide", "__floordiv__"),
):
    _step(_name, *_others)
for _name in words(
    "isnan isfinite isinf isclose argmax argmin argsort sign sgn round floor ceil trunc frac "
    "long int bool short heaviside count_nonzero hardshrink"
):
    _step(_name)


@rule("where", spaces=(torch.Tensor,))
def _where_of_a_tensor(a: Any, condition: Any, b: Any) -> Value:
    return _where(condition, a, b)


@rule("where", spaces=(torch,))
def _where(condition: Any, a: Any, b: Any) -> Value:
    values = tuple(v for v in (a, b) if isinstance(v, Value))
    if isinstance(condition, Value):
        return _chosen(condition, a, b)
    mask = condition.cpu()
    shape = torch.broadcast_shapes(
        mask.shape, *(v.shape for v in (a, b) if isinstance(v, (Value, Tensor)))
    )
    if any(v.shape != shape for v in values):
        raise ValueError("needs tensors of the shape of the result to be bounded")
    shifted = any(bool((constant(v) < 0).any()) for v in (a, b) if not isinstance(v, Value))

    def forward(*given: Tensor) -> Tensor:
        rest = iter(given)
        zero = torch.zeros((), dtype=torch.float64)
        chosen = [next(rest) if isinstance(v, Value) else zero for v in (a, b)]
        return torch.where(mask, chosen[0], chosen[1])

    bound = math.sqrt(sum(v.bound**2 for v in values))
    return merged(values, forward, bound, method="a fixed mask", shifted=shifted)


def _chosen(condition: Value, a: Any, b: Any) -> Value:
    """A choice that depends on the input: only where it amounts to something continuous."""
    compared = condition.arguments[:2]
    known = guarded_root(condition, a, b)
    if known is not None:
        return known
    greater = condition.op in ("gt", "ge")
    if greater or condition.op in ("lt", "le"):
        for (i, j), larger in (((0, 1), greater), ((1, 0), not greater)):
            if _same(a, compared[i]) and _same(b, compared[j]):
                found = _extremum(a, b)
                # What it amounts to, for patterns to see.
                found.op, found.arguments = "maximum" if larger else "minimum", (a, b)
                return found
    parents = tuple(v for v in (condition, a, b) if isinstance(v, Value))
    return unbounded(parents, "chooses between values by a comparison that depends on the input")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Value) or isinstance(b, Value):
        return a is b
    return isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b


@rule("masked_fill")
def _masked_fill(x: Value, mask: Any, value: Any) -> Value:
    if isinstance(mask, Value) or isinstance(value, Value):
        return unbounded((x,), "fills by a mask that depends on the input")
    keep = (~mask.cpu()).double()
    return affine(x, lambda t: t * keep, shifted=float(value) < 0, method="a fixed mask")


# ---- norms ---------------------------------------------------------------------------------------


@rule("norm", torch.linalg.vector_norm)
def _norm(x: Value, p: Any = None, *args: Any, **kwargs: Any) -> Value:
    order = kwargs.get("ord", p)
    order = 2.0 if order in (None, "fro") else order
    if isinstance(order, str) or float(order) < 1.0:
        return unbounded((x,), f"a norm of order {order!r} has no bounded slope")
    constant = x.sample.numel() ** max(0.0, 1.0 / float(order) - 0.5)
    return nonlinear(x, up(constant, 4), f"{float(order):g}-norm")
