"""Rules for layers with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import refolded
from .linear_map import LinearMap
from .norms import Norm, conv_norm, matrix_norm, up
from .rules import constant, rule
from .values import Map, Value, affine, times, unbounded

__all__ = ["convolution", "finite"]

_Size = Union[int, Sequence[int]]


def finite(name: str, weight: Any) -> Tensor:
    """A weight in float64 on the CPU.

    Raises:
        ValueError: if an element is NaN or infinite.
    """
    w = constant(weight)
    if not bool(torch.isfinite(w).all()):
        raise ValueError(f"has a {name} with NaN or infinite elements")
    return w


def _vary(*tensors: Any) -> bool:
    return any(isinstance(t, Value) for t in tensors)


def _varying(*tensors: Any) -> Value:
    values = tuple(t for t in tensors if isinstance(t, Value))
    return unbounded(values, "has weights that depend on the input")


# ---- matrices ------------------------------------------------------------------------------------


@rule("linear")
def _linear(x: Any, weight: Any, bias: Any = None) -> Value:
    if _vary(weight, bias):
        return _varying(x, weight, bias)
    w, shift = finite("weight", weight), finite("bias", 0.0 if bias is None else bias)
    return _matrix(x, w, shifted=bool((shift < 0).any()))


def _matrix(x: Value, w: Tensor, shifted: bool) -> Value:
    norm, how, margin = matrix_norm(w if w.dim() == 2 else w[None])
    magnitudes = w.abs()
    value = affine(
        x, lambda t: F.linear(t, w), norm, absolute=lambda t: F.linear(t, magnitudes),
        method=how, weighted=True, shifted=shifted, margin=margin,
    )  # fmt: skip
    if x.sample.dim() == 2 and w.dim() == 2:
        value.rescaled = lambda scales: matrix_norm(w * scales[:, None])
    return value


@rule("matmul", "mm", "mv", "__matmul__")
def _matmul(a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        return unbounded((a, b), "multiplies two values that both depend on the input")
    x, weight = (a, b) if isinstance(a, Value) else (b, a)
    w = finite("matrix", weight)
    if w.dim() > 2:
        raise ValueError(f"needs a matrix or a vector as its constant, got {w.dim()} dimensions")
    norm, how, margin = matrix_norm(w if w.dim() == 2 else w[None])
    magnitudes = w.abs()
    if x is a:
        forward: Map = lambda t: t @ w  # noqa: E731
        absolute: Map = lambda t: t @ magnitudes  # noqa: E731
    else:
        forward = lambda t: w @ t  # noqa: E731
        absolute = lambda t: magnitudes @ t  # noqa: E731
    return affine(
        x, forward, norm, absolute=absolute, method=how, weighted=True, shifted=True,
        margin=margin,
    )  # fmt: skip


@rule("__rmatmul__")
def _rmatmul(a: Any, b: Any) -> Value:
    return _matmul(b, a)


@rule("addmm")
def _addmm(shift: Any, a: Any, b: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Value:
    if isinstance(shift, Value) or alpha != 1.0:
        raise ValueError("is bounded for a constant bias and alpha=1 only")
    return _matmul(a, b)


# ---- convolutions --------------------------------------------------------------------------------


def convolution(
    x: Value,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_mode: str,
    forward: Map,
    *,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Value:
    """A convolution by its own norm.

    Args:
        x: its argument.
        weight, ...: as torch has them; ``padding_mode`` may be "symmetric".
        forward: takes a tensor and a weight; without the bias.
    """
    if _vary(weight, bias):
        return _varying(x, weight, bias)
    w = finite("weight", weight)
    axes = w.dim() - 2
    spatial = tuple(x.shape[-axes:])

    def norm_of(scaled: Tensor) -> Norm:
        return conv_norm(
            scaled, stride, padding, dilation, groups, padding_mode, spatial,
            transposed=transposed, output_padding=output_padding,
        )  # fmt: skip

    def rescaled(scales: Tensor) -> Norm:
        if not transposed:
            return norm_of(w * scales.reshape(-1, *[1] * (w.dim() - 1)))
        # Stored as (in, out / groups, ...).
        grouped = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        each = scales.reshape(groups, 1, -1, *[1] * axes)
        return norm_of((grouped * each).reshape(w.shape))

    norm, how, margin = norm_of(w)
    shift = finite("bias", 0.0 if bias is None else bias)
    magnitudes = w.abs()
    value = affine(
        x, lambda t: forward(t, w), norm, absolute=lambda t: forward(t, magnitudes),
        method=how, weighted=True, loose=True, shifted=bool((shift < 0).any()), margin=margin,
    )  # fmt: skip
    if x.sample.dim() == w.dim():
        value.rescaled = rescaled
    if padding_mode == "zeros" and not transposed and x.root is not x:
        _behind_a_pad(value, x, w, groups, forward)
    return value


def _behind_a_pad(value: Value, x: Value, w: Tensor, groups: int, forward: Map) -> None:
    """What comes before a convolution may only copy elements: a pad that is a module of its own.

    Then it is its weight as a matrix, times the map that cuts patches out of those copies.
    """
    with torch.enable_grad():
        ones = torch.ones(tuple(x.shape), dtype=torch.float64, requires_grad=True)
        kernel = torch.zeros_like(w)
        kernel[:: w.shape[0] // groups] = 1.0
        (uses,) = torch.autograd.grad(forward(ones, kernel).sum(), ones)
    patches = LinearMap(x.root, x).norm_with(lambda t: t * uses.sqrt())
    sigma, how, margin = matrix_norm(w.reshape(groups, w.shape[0] // groups, -1))
    bound = times(up(sigma * patches, 4), x.root.bound)
    if bound < value.rule_bound:
        value.rule_bound = bound
        value.method = f"{how}, times the root of the largest use count, padding included"
        value.margin = x.root.margin + margin


def _conv(axes: int) -> None:
    function: Map = getattr(F, f"conv{axes}d")

    @rule(f"conv{axes}d")
    def _(
        x: Any, weight: Any, bias: Any = None, stride: _Size = 1, padding: Any = 0,
        dilation: _Size = 1, groups: int = 1,
    ) -> Value:  # fmt: skip
        return convolution(
            x, weight, bias, _plain(stride), _plain(padding), _plain(dilation), groups, "zeros",
            lambda t, w: function(t, w, None, stride, padding, dilation, groups),
        )  # fmt: skip


def _conv_transpose(axes: int) -> None:
    function: Map = getattr(F, f"conv_transpose{axes}d")

    @rule(f"conv_transpose{axes}d")
    def _(
        x: Any, weight: Any, bias: Any = None, stride: _Size = 1, padding: Any = 0,
        output_padding: _Size = 0, groups: int = 1, dilation: _Size = 1,
    ) -> Value:  # fmt: skip
        return convolution(
            x, weight, bias, _plain(stride), _plain(padding), _plain(dilation), groups, "zeros",
            lambda t, w: function(t, w, None, stride, padding, output_padding, groups, dilation),
            transposed=True, output_padding=_plain(output_padding),
        )  # fmt: skip


def _plain(value: Any) -> Any:
    """What torch takes as a list of one, or a ``torch.Size``, as an int or a tuple."""
    if isinstance(value, (str, int)):
        return value
    given = tuple(value)
    return given[0] if len(given) == 1 else given


for _axes in (1, 2, 3):
    _conv(_axes)
    _conv_transpose(_axes)


# ---- normalisation by constants ------------------------------------------------------------------


def _normalised(x: Value, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Value:
    scale = 1.0 / torch.sqrt(finite("running_var", var) + eps)
    if weight is not None:
        scale = scale * finite("weight", weight)
    finite("running_mean", mean)
    finite("bias", 0.0 if bias is None else bias)
    shape = (-1, *[1] * (x.sample.dim() - 2))
    factor = scale.reshape(shape)
    magnitudes = factor.abs()
    found = affine(
        x, lambda t: t * factor, float(magnitudes.max()) if magnitudes.numel() else 0.0,
        absolute=lambda t: t * magnitudes, method="largest scale of a channel", shifted=True,
    )  # fmt: skip
    return refolded(found, x, factor)


# torch's own function of that name takes its arguments in another order.
@rule("batch_norm", spaces=(F,))
def _batch_norm(
    x: Value, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: Any = 0.1, eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    if training or running_mean is None:
        raise ValueError(
            "normalises by the statistics of its input, which has no useful bound; call eval() "
            "first, on a layer that tracks running statistics"
        )
    return _normalised(x, running_mean, running_var, weight, bias, eps)


@rule("instance_norm", spaces=(F,))
def _instance_norm(
    x: Value, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
    *_: Any,
) -> Value:  # fmt: skip
    if use_input_stats:
        raise ValueError(
            "normalises by the statistics of its input, which has no useful bound; only a layer "
            "with track_running_stats=True in evaluation has one"
        )
    return _normalised(x, running_mean, running_var, weight, bias, eps)
