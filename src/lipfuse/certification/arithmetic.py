"""Rules for sums, products and powers."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor

from .norms import nonnegative_norm, up
from .patterns import (
    centred,
    root_of_squares,
)
from .rules import constant, rule
from .values import Map, Value, affine, merged, times, unbounded

__all__ = ["refolded"]


# ---- sums ----------------------------------------------------------------------------------------


def _stretched(x: Value, other: Tensor, factor: Any = 1.0) -> tuple[Map, bool]:
    """``x`` in the shape that it has once it is combined with a constant, times a factor."""
    shape = torch.broadcast_shapes(x.shape, other.shape)
    return (lambda t: t.expand(shape) * factor), shape == x.shape


def _with_constant(x: Value, other: Any, sign: float, factor: float) -> Value:
    """``sign * x + factor * other``."""
    shift = constant(other)
    if not bool(torch.isfinite(shift).all()):
        raise ValueError("has a constant with NaN or infinite elements")
    shifted = bool((shift * factor < 0).any())
    forward, same = _stretched(x, shift, sign)
    stretched, _ = _stretched(x, shift)
    if same and sign == 1.0:
        return affine(x, lambda t: t, shifted=shifted, moves=True)
    norm = abs(sign) * (1.0 if same else nonnegative_norm(stretched, x.shape))
    absolute = stretched if sign == -1.0 else (lambda t: stretched(t) * abs(sign))
    return affine(
        x, forward, norm, absolute=None if sign > 0 else absolute, shifted=shifted,
        method="plus a constant",
    )  # fmt: skip


def _sum(a: Any, b: Any, alpha: float) -> Value:
    """``a + alpha * b``, at least one of which is a value."""
    if not isinstance(b, Value):
        return _with_constant(a, b, 1.0, alpha)
    if not isinstance(a, Value):
        return _with_constant(b, a, float(alpha), 1.0)
    weight = abs(alpha)
    shape = torch.broadcast_shapes(a.shape, b.shape)
    norms = [
        1.0 if p.shape == shape else nonnegative_norm(lambda t: t.expand(shape), p.shape)
        for p in (a, b)
    ]
    bound = times(norms[0], a.bound) + times(up(weight * norms[1]), b.bound)

    def forward(s: Tensor, t: Tensor) -> Tensor:
        return s + alpha * t

    absolute = None if alpha >= 0 else (lambda s, t: s + weight * t)
    return merged((a, b), forward, bound, absolute=absolute, method="sum of the branches")


@rule("add", "__add__", "__radd__", "__iadd__")
def _add(a: Any, b: Any, *, alpha: float = 1.0) -> Value:
    return _sum(a, b, alpha)


@rule("sub", "subtract", "__sub__", "__isub__")
def _sub(a: Any, b: Any, *, alpha: float = 1.0) -> Value:
    known = centred(a, b) if alpha == 1 else None
    return known or _sum(a, b, -alpha)


@rule("rsub", "__rsub__")
def _rsub(a: Any, b: Any, *, alpha: float = 1.0) -> Value:
    """``b - alpha * a``."""
    return _sum(b, a, -alpha)


@rule("neg", "negative", "__neg__")
def _neg(x: Value) -> Value:
    return affine(x, lambda t: -t, absolute=lambda t: t, method="negated")


def _reduced(name: str, mean: bool) -> None:
    function: Map = getattr(torch, name)

    @rule(name)
    def _(x: Value, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Value:
        dim = kwargs.get("axis", dim)
        if dim is None or (isinstance(dim, (tuple, list)) and not dim):
            dims = tuple(range(x.sample.dim()))
        else:
            dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
        count = math.prod(x.shape[d] for d in dims) or 1
        norm = 1.0 / math.sqrt(count) if mean else math.sqrt(count)
        if not dims:
            return affine(x, lambda t: t, moves=True)
        method = f"{name} of {count}"
        return affine(x, lambda t: function(t, dims, keepdim), up(norm), method=method)


_reduced("sum", mean=False)
_reduced("mean", mean=True)


@rule("cumsum")
def _cumsum(x: Value, dim: int, **kwargs: Any) -> Value:
    def forward(t: Tensor) -> Tensor:
        return torch.cumsum(t, dim)

    return affine(x, forward, nonnegative_norm(forward, x.shape), method="cumulative sum")


# ---- products ------------------------------------------------------------------------------------


def _times_constant(x: Value, factor: Tensor) -> Value:
    if not bool(torch.isfinite(factor).all()):
        raise ValueError("has a constant with NaN or infinite elements")
    largest = float(factor.abs().max()) if factor.numel() else 0.0
    forward, same = _stretched(x, factor, factor)
    absolute, _ = _stretched(x, factor, factor.abs())
    norm = largest if same else nonnegative_norm(absolute, x.shape)
    negative = bool((factor < 0).any())
    found = affine(
        x, forward, norm, absolute=absolute if negative else None,
        method="times a constant",
    )  # fmt: skip
    return refolded(found, x, factor) if same else found


def refolded(found: Value, x: Value, factor: Tensor) -> Value:
    """Lets a scale of the channels behind a layer with weights be part of its weights."""
    dims = x.sample.dim()
    per_channel = dims > 1 and all(
        size == 1 or axis == 1 - dims for axis, size in zip(range(-factor.dim(), 0), factor.shape)
    )
    if x.rescaled is None or not per_channel:
        return found
    scales = factor.reshape(-1).expand(x.shape[1])
    norm, how, margin = x.rescaled(scales)
    if times(norm, x.parents[0].bound) < found.rule_bound:
        found.rule_bound = times(norm, x.parents[0].bound)
        found.margin = x.parents[0].margin + margin
        found.method = f"with the layer before it: {how}"
    return found


@rule("mul", "multiply", "__mul__", "__rmul__", "__imul__")
def _mul(a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        if a is b:
            return unbounded((a,), "squares a value that depends on the input")
        return unbounded((a, b), "multiplies two values that both depend on the input")
    return (
        _times_constant(a, constant(b)) if isinstance(a, Value) else _times_constant(b, constant(a))
    )


@rule("div", "divide", "true_divide", "__truediv__", "__itruediv__")
def _div(a: Any, b: Any, *, rounding_mode: Optional[str] = None) -> Value:
    if rounding_mode is not None:
        return unbounded((a,) if isinstance(a, Value) else (b,), "a division that rounds")
    if isinstance(b, Value):
        return _reciprocal(b)
    return _times_constant(a, 1.0 / constant(b))


@rule("reciprocal", "__rtruediv__", "rsqrt", "log", "log2", "log10", "log1p")
def _reciprocal(x: Value, *_: Any) -> Value:
    return unbounded((x,), "has no bounded slope near zero")


@rule("exp", "exp2", "expm1", "prod", "cosh", "sinh", "__rpow__")
def _steep(x: Value, *_: Any, **__: Any) -> Value:
    return unbounded((x,), "has no bounded slope")


@rule("square")
def _square(x: Value) -> Value:
    return unbounded((x,), "squares a value that depends on the input")


@rule("pow", "__pow__")
def _pow(x: Any, exponent: Any) -> Value:
    if isinstance(x, Value) and isinstance(exponent, (int, float)):
        if exponent == 1:
            return affine(x, lambda t: t, moves=True)
        if exponent == 0.5:
            return _sqrt(x)
        return unbounded((x,), f"raises a value that depends on the input to the power {exponent}")
    return unbounded(
        tuple(v for v in (x, exponent) if isinstance(v, Value)), "a power without a bounded slope"
    )


@rule("sqrt")
def _sqrt(x: Value) -> Value:
    return root_of_squares(x) or unbounded((x,), "the slope of the root is unbounded at zero")
