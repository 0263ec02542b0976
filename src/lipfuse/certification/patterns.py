"""Groups of operations that are tamer together than one by one.

The plain export of a Lipschitz activation or pool is made of torch's own functions, and so are many
hand-written ones. Each function here looks at what a value was computed from, and answers None if
that is not the group it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from .linear_map import LinearMap
from .norms import up
from .rules import constant
from .values import Value, affine, merged, nonlinear

__all__ = [
    "centred",
    "householder",
    "joined",
    "reflected_halves",
    "root_of_squares",
    "smallest_and_largest",
    "sorted_pair",
]

# Below this, rounding has long since taken over what a root of squares is.
_NEGLIGIBLE_SQUARE = 1e-24


def joined(tensors: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Value:
    """Values and constants side by side, as ``join`` puts them."""
    parts = list(tensors)
    parents = tuple(part for part in parts if isinstance(part, Value))
    shifted = any(bool((constant(p) < 0).any()) for p in parts if not isinstance(p, Value))

    def forward(*given: Tensor) -> Tensor:
        rest = iter(given)
        return join(
            [next(rest) if isinstance(p, Value) else torch.zeros_like(constant(p)) for p in parts]
        )

    bound = math.sqrt(sum(p.bound**2 for p in parents))
    method = "side by side: the root of the sum of squares, or all as one matrix"
    value = merged(parents, forward, bound, method=method, shifted=shifted, moves=True)
    value.sample = join([p.sample if isinstance(p, Value) else p for p in parts])
    return value


def _is(value: Any, *ops: str) -> bool:
    return isinstance(value, Value) and value.op in ops


def _factors(product: Any) -> tuple[Optional[Value], Any]:
    """The value and the constant of a product; None if it is none."""
    if not _is(product, "mul"):
        return None, None
    a, b = product.arguments[:2]
    if isinstance(a, Value) and not isinstance(b, Value):
        return a, b
    return (b, a) if isinstance(b, Value) and not isinstance(a, Value) else (None, None)


def reflected_halves(tensors: Sequence[Any]) -> Optional[Value]:
    """``relu(x)`` and ``relu(-x)`` side by side: of each element, one of the two moves."""
    if len(tensors) != 2 or not all(_is(t, "relu") for t in tensors):
        return None
    for a, b in (tensors, reversed(tensors)):
        x, minus_x = a.arguments[0], b.arguments[0]
        if _is(minus_x, "neg") and minus_x.arguments[0] is x:
            return nonlinear(x, 1.0, "positive and negative parts")
    return None


def sorted_pair(tensors: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Optional[Value]:
    """The smaller and the larger of two: the two in another order."""
    if len(tensors) != 2 or {getattr(t, "op", "") for t in tensors} != {"minimum", "maximum"}:
        return None
    (a, b), (c, d) = (t.arguments[:2] for t in tensors)
    same = (a is c and b is d) or (a is d and b is c)
    if not (same and isinstance(a, Value) and isinstance(b, Value) and a.shape == b.shape):
        return None
    return nonlinear(joined([a, b], join), 1.0, "sorts pairs")


def smallest_and_largest(tensors: Sequence[Any]) -> Optional[Value]:
    """The smallest and the largest of the same elements: two of them, sorted."""
    ops = {getattr(t, "op", "") for t in tensors}
    if len(tensors) != 2 or ops not in ({"min", "max"}, {"amin", "amax"}):
        return None
    (x, dim), (same, other) = (t.arguments[:2] for t in tensors)
    if same is not x or not isinstance(dim, int) or other != dim or x.shape[dim] < 2:
        return None
    return nonlinear(x, 1.0, "the smallest and the largest")


def householder(tensors: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Optional[Value]:
    """``x - 2 r s`` and ``y + 2 r c`` with ``r = relu(x s - y c)``: pairs reflected, or left alone.

    On each side of a line the map of (x, y) is the identity or I - 2nnᵀ with n = (s, -c).
    """
    if len(tensors) != 2 or not (_is(tensors[0], "sub") and _is(tensors[1], "add")):
        return None
    (x, first), (y, second) = (t.arguments[:2] for t in tensors)
    (twice, s), (same, c) = _factors(first), _factors(second)
    relu, two = _factors(twice)
    if twice is not same or two != 2.0 or not (relu is not None and relu.op == "relu"):
        return None
    difference = relu.arguments[0]
    if not _is(difference, "sub"):
        return None
    (x2, s2), (y2, c2) = map(_factors, difference.arguments[:2])
    if x2 is not x or y2 is not y or x is None or x.shape != y.shape:
        return None
    s, c, s2, c2 = map(constant, (s, c, s2, c2))
    if not (torch.equal(s, s2) and torch.equal(c, c2)):
        return None
    reflection = float((1.0 - 2.0 * (s * s + c * c)).abs().max()) if s.numel() else 1.0
    return nonlinear(
        joined([x, y], join), max(1.0, up(reflection, 8)), "reflects pairs across a line"
    )


def centred(a: Any, b: Any) -> Optional[Value]:
    """``x - x.mean(...)``: an orthogonal projection."""
    if not (isinstance(a, Value) and _is(b, "mean") and b.arguments[0] is a):
        return None
    if b.sample.dim() != a.sample.dim():
        return None

    def mean(t: Tensor) -> Tensor:
        reduced: Tensor = b.forward(t)
        return reduced

    return affine(
        a,
        lambda t: t - mean(t),
        absolute=lambda t: t + mean(t),
        method="an orthogonal projection",
    )


def root_of_squares(squares: Value) -> Optional[Value]:
    r"""The root of weighted sums of squares: a Euclidean norm.

    For :math:`y_j = (\sum_i M_{ji} x_i^2 + c_j)^{1/2}` without negative numbers,
    :math:`|y_j - y'_j|^2 \le \sum_i M_{ji} (x_i - x'_i)^2`, so the largest column sum bounds the
    square of the constant.
    """
    source = squares.source
    square = (
        source.op == "square"
        or (source.op == "pow" and source.arguments[1] == 2)
        or (source.op == "mul" and source.arguments[0] is source.arguments[1])
    )
    sums = LinearMap(source, squares)
    if not square or squares.shifted or not sums.is_nonnegative():
        return None
    x: Value = source.arguments[0]
    columns = sums.absolute_sums()[1]
    largest = float(columns.max()) if columns.numel() else 0.0
    margin = 2.0 * sums.relative_error()
    return nonlinear(x, math.sqrt(largest) * (1.0 + margin), "Euclidean norms")


def guarded_root(condition: Value, a: Any, b: Any) -> Optional[Value]:
    """``where(q >= tiny, where(q >= tiny, q, 1).sqrt(), 0)``: the root without its slope at zero.

    It jumps at ``tiny``, by no more than rounding does.
    """
    if condition.op not in ("gt", "ge") or not _is(a, "sqrt") or isinstance(b, Value):
        return None
    squares, least = condition.arguments[:2]
    inner = a.arguments[0]
    if not (_is(inner, "where") and isinstance(squares, Value)) or isinstance(least, Value):
        return None
    same = inner.arguments[0] is condition and inner.arguments[1] is squares
    if not same or isinstance(inner.arguments[2], Value) or bool((constant(b) != 0).any()):
        return None
    if not 0.0 <= float(constant(least).max()) <= _NEGLIGIBLE_SQUARE:
        return None
    return root_of_squares(squares)
