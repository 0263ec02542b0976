"""Rules for operations that move, copy, add and multiply by constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .norms import nonnegative_norm, up
from .patterns import (
    centred,
    guarded_root,
    householder,
    joined,
    reflected_halves,
    root_of_squares,
    sorted_pair,
)
from .rules import constant, refuse, rule, words
from .values import Map, Value, affine, elementwise, merged, nonlinear, times, unbounded

__all__: list[str] = []


# ---- the same elements elsewhere -----------------------------------------------------------------


def _moved(x: Value, forward: Map) -> Value:
    return affine(x, forward, moves=True)


def _isometry(name: str) -> None:
    """An operation that only rearranges elements; its arguments after the first are constants."""
    # The method first: it takes sizes and axes one by one as well as in a tuple.
    function = getattr(torch.Tensor, name, None) or getattr(torch, name)

    @rule(name)
    def _(x: Value, *args: Any, **kwargs: Any) -> Value:
        return _moved(x, lambda t: function(t, *args, **kwargs))


for _name in words(
    "flatten unflatten permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze "
    "flip fliplr flipud roll rot90 t adjoint pixel_shuffle pixel_unshuffle channel_shuffle "
    "narrow select ravel"
):
    _isometry(_name)


# The strides of a replay may be others: what was a view may need a copy there.
@rule("reshape", "view")
def _reshape(x: Value, *shape: Any, **kwargs: Any) -> Value:
    return _moved(x, lambda t: torch.Tensor.reshape(t, *shape, **kwargs))


@rule("reshape_as", "view_as")
def _reshape_as(x: Value, other: Any) -> Value:
    size = other.shape
    return _moved(x, lambda t: t.reshape(size))


@rule(
    "to", "float", "double", "half", "bfloat16", "type_as", "cpu", "cuda", "contiguous", "clone",
    "detach", "positive", "__pos__", "requires_grad_", "alias",
)  # fmt: skip
def _as_it_is(x: Value, *args: Any, **kwargs: Any) -> Value:
    return _moved(x, lambda t: t)


def _pieces(name: str) -> None:
    function: Map = getattr(torch, name)

    @rule(name)
    def _(x: Value, *args: Any, **kwargs: Any) -> list[Value]:
        count = len(function(x.sample, *args, **kwargs))
        return [_moved(x, lambda t, i=i: function(t, *args, **kwargs)[i]) for i in range(count)]


for _name in words("split chunk tensor_split unbind split_with_sizes hsplit vsplit dsplit"):
    _pieces(_name)


@rule("__getitem__")
def _getitem(x: Value, index: Any) -> Value:
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Value) for part in parts):
        return unbounded((x,), "an index that depends on the input")
    if all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
        return _moved(x, lambda t: t[index])
    fixed = tuple(part.cpu() if isinstance(part, Tensor) else part for part in parts)
    return _copied(x, lambda t: t[fixed])


@rule("index_select")
def _index_select(x: Value, dim: int, index: Tensor) -> Value:
    index = index.cpu()
    return _copied(x, lambda t: torch.index_select(t, dim, index))


def _copied(x: Value, forward: Map) -> Value:
    """Elements may appear several times: the root of how often the most frequent one does."""
    norm = nonnegative_norm(forward, x.shape)
    return affine(x, forward, norm, method="counts how often an element is used")


def _copies(name: str) -> None:
    function: Map = getattr(torch.Tensor, name)

    @rule(name)
    def _(x: Value, *args: Any, **kwargs: Any) -> Value:
        return _copied(x, lambda t: function(t, *args, **kwargs))


for _name in words("expand repeat tile repeat_interleave broadcast_to"):
    _copies(_name)


@rule("expand_as")
def _expand_as(x: Value, other: Any) -> Value:
    size = other.shape
    return _copied(x, lambda t: t.expand(size))


@rule("pad")
def _pad(
    x: Value, pad: Sequence[int], mode: str = "constant", value: Optional[float] = None
) -> Value:
    pad = list(pad)
    if mode == "constant":
        shifted = value is not None and value < 0
        return affine(x, lambda t: F.pad(t, pad), shifted=shifted, moves=True)
    return _copied(x, lambda t: F.pad(t, pad, mode))


def _patches(name: str, space: Any) -> None:
    """Patches, in and out: every element as often as windows hold it."""
    function: Map = getattr(space, name)

    @rule(name, spaces=(space,))
    def _(x: Value, *args: Any, **kwargs: Any) -> Value:
        return _copied(x, lambda t: function(t, *args, **kwargs))


_patches("fold", F)
# Two things of one name.
_patches("unfold", F)
_patches("unfold", torch.Tensor)


# ---- several values side by side -----------------------------------------------------------------


@rule("cat", "concat", "concatenate")
def _cat(tensors: Sequence[Any], dim: int = 0, **kwargs: Any) -> Value:
    dim = kwargs.get("axis", dim)

    def join(parts: Any) -> Tensor:
        return torch.cat(parts, dim)

    known = reflected_halves(tensors) or householder(tensors, join) or sorted_pair(tensors, join)
    return known or joined(tensors, join)


@rule("stack")
def _stack(tensors: Sequence[Any], dim: int = 0) -> Value:
    def join(parts: Any) -> Tensor:
        return torch.stack(parts, dim)

    known = reflected_halves(tensors) or householder(tensors, join) or sorted_pair(tensors, join)
    return known or joined(tensors, join)


def _side_by_side(name: str) -> None:
    function: Map = getattr(torch, name)

    @rule(name)
    def _(tensors: Sequence[Any]) -> Value:
        return joined(tensors, function)


for _name in words("hstack vstack dstack column_stack row_stack"):
    _side_by_side(_name)


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
            return _moved(x, lambda t: t)
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
            return _moved(x, lambda t: t)
        if exponent == 0.5:
            return _sqrt(x)
        return unbounded((x,), f"raises a value that depends on the input to the power {exponent}")
    return unbounded(
        tuple(v for v in (x, exponent) if isinstance(v, Value)), "a power without a bounded slope"
    )


@rule("sqrt")
def _sqrt(x: Value) -> Value:
    return root_of_squares(x) or unbounded((x,), "the slope of the root is unbounded at zero")


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


_STATISTICS = (
    "divides by a statistic of its input, which has no useful bound; centre with "
    "lipfuse.nn.LayerCentering, or use batch normalisation in evaluation"
)
refuse(_STATISTICS, "layer_norm", "group_norm", "rms_norm", "local_response_norm", "normalize")
refuse(_STATISTICS, "std", "var", "std_mean", "var_mean", "cosine_similarity")
refuse(
    "multiplies values that all depend on the input, so its slope grows with them",
    "multi_head_attention_forward", "scaled_dot_product_attention", "bilinear", "glu", "bmm",
    "baddbmm", "outer", "dot", "inner", "cdist", "lstm", "gru", "rnn_tanh", "rnn_relu",
    "lstm_cell", "gru_cell",
)  # fmt: skip
refuse(
    "looks elements up by an index: a network has to be certified behind it",
    "embedding", "embedding_bag", "gather", "take", "take_along_dim", "one_hot",
)  # fmt: skip
refuse("draws at random", "gumbel_softmax", "bernoulli", "multinomial", "rand_like", "randn_like")
