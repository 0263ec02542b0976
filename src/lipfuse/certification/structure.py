"""Rules for operations that move and copy elements, and put values side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .norms import nonnegative_norm
from .patterns import (
    householder,
    joined,
    reflected_halves,
    smallest_and_largest,
    sorted_pair,
)
from .rules import rule, words
from .values import Map, Value, affine, unbounded

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


def _of_two(tensors: Sequence[Any], join: Map) -> Optional[Value]:
    """Two values that are tamer together than each on its own."""
    known = reflected_halves(tensors) or smallest_and_largest(tensors)
    return known or sorted_pair(tensors, join) or householder(tensors, join)


@rule("cat", "concat", "concatenate")
def _cat(tensors: Sequence[Any], dim: int = 0, **kwargs: Any) -> Value:
    dim = kwargs.get("axis", dim)

    def join(parts: Any) -> Tensor:
        return torch.cat(parts, dim)

    return _of_two(tensors, join) or joined(tensors, join)


@rule("stack")
def _stack(tensors: Sequence[Any], dim: int = 0) -> Value:
    def join(parts: Any) -> Tensor:
        return torch.stack(parts, dim)

    return _of_two(tensors, join) or joined(tensors, join)


def _side_by_side(name: str) -> None:
    function: Map = getattr(torch, name)

    @rule(name)
    def _(tensors: Sequence[Any]) -> Value:
        return joined(tensors, function)


for _name in words("hstack vstack dstack column_stack row_stack"):
    _side_by_side(_name)
