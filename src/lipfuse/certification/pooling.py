"""Rules for pools and for changes of resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .norms import matrix_norm, nonnegative_norm, up
from .rules import rule
from .values import Map, Value, affine, nonlinear, unbounded

__all__: list[str] = []

_Size = Union[int, Sequence[int]]


def _per_axis(value: _Size, axes: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return given * axes if len(given) == 1 else given


# ---- means ---------------------------------------------------------------------------------------


def _mean_of_windows(name: str, **fixed: Any) -> None:
    function: Map = getattr(F, name)

    @rule(name)
    def _(x: Value, *args: Any, **kwargs: Any) -> Value:
        def forward(t: Tensor) -> Tensor:
            return function(t, *args, **kwargs)

        norm = nonnegative_norm(forward, x.shape)
        return affine(x, forward, norm, method="norm of the windows' means")


for _axes in (1, 2, 3):
    _mean_of_windows(f"avg_pool{_axes}d")
    _mean_of_windows(f"adaptive_avg_pool{_axes}d")


@rule("interpolate")
def _interpolate(x: Value, *args: Any, **kwargs: Any) -> Value:
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "nearest")
    if mode == "bicubic":
        return _bicubic(x, *args, **kwargs)

    def forward(t: Tensor) -> Tensor:
        return F.interpolate(t, *args, **kwargs)

    return affine(x, forward, nonnegative_norm(forward, x.shape), method=f"norm of {mode}")


def _bicubic(x: Value, *args: Any, **kwargs: Any) -> Value:
    """Weights of both signs, but rows and columns apart: the norms of the two axes multiply."""
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    settings = {**dict(zip(names, args)), **kwargs}
    height, width = x.shape[2:]
    # Every row (column) in turn, constant along the other axis, where weights sum up to 1.
    rows = torch.eye(height, dtype=torch.float64)[:, None, :, None].expand(-1, 1, -1, width)
    columns = torch.eye(width, dtype=torch.float64)[:, None, None].expand(-1, 1, height, -1)
    vertical = F.interpolate(rows, **settings)[:, 0, :, 0]
    horizontal = F.interpolate(columns, **settings)[:, 0, 0]
    norm = matrix_norm(vertical).bound * matrix_norm(horizontal).bound
    return nonlinear(x, up(norm, 64), "norm of bicubic, an axis at a time")


# ---- maxima --------------------------------------------------------------------------------------


def _largest_count(windows: Callable[[Tensor], Tensor], x: Value) -> float:
    """How many windows the most used element is in; ``windows`` sums each of them up."""
    with torch.enable_grad():
        ones = torch.ones(tuple(x.shape), dtype=torch.float64, requires_grad=True)
        (uses,) = torch.autograd.grad(windows(ones).sum(), ones)
    return float(uses.max()) if uses.numel() else 0.0


def _sums(axes: int, dims: int, kernel: _Size, stride: Any, padding: _Size, dilation: _Size,
          ceil_mode: bool) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """The sum of every window of a pool."""
    kernels, dilations = _per_axis(kernel, axes), _per_axis(dilation, axes)
    strides = kernels if not stride else _per_axis(stride, axes)
    pads = _per_axis(padding, axes)

    def sums(t: Tensor) -> Tensor:
        # One axis at a time: a window is the product of its axes' windows.
        for axis in range(axes):
            position = dims - axes + axis
            size = t.shape[position]
            k, s, p, d = kernels[axis], strides[axis], pads[axis], dilations[axis]
            span = d * (k - 1) + 1
            count = (size + 2 * p - span + (s - 1 if ceil_mode else 0)) // s + 1
            if ceil_mode and (count - 1) * s >= size + p:
                count -= 1  # a window must begin inside
            index = torch.arange(count)[:, None] * s + torch.arange(k)[None] * d - p
            inside = (index >= 0) & (index < size)
            taken = t.movedim(position, -1)[..., index.clamp(0, size - 1)] * inside
            t = taken.sum(-1).movedim(-1, position)
        return t

    return sums


def _max_pool(axes: int) -> None:
    @rule(f"max_pool{axes}d")
    def pool(
        x: Value, kernel_size: _Size, stride: Any = None, padding: _Size = 0, dilation: _Size = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        sums = _sums(axes, x.sample.dim(), kernel_size, stride, padding, dilation, ceil_mode)
        count = _largest_count(sums, x)
        value = nonlinear(x, up(math.sqrt(count)), f"maxima; an element is in {count:g} windows")
        return (value, None) if return_indices else value

    @rule(f"max_pool{axes}d_with_indices")
    def _(x: Value, *args: Any, **kwargs: Any) -> Any:
        return pool(x, *args, **{**kwargs, "return_indices": True})


def _adaptive_max_pool(axes: int) -> None:
    @rule(f"adaptive_max_pool{axes}d")
    def pool(x: Value, output_size: Any, return_indices: bool = False) -> Any:
        count = 1
        for axis, wanted in enumerate(_per_axis(output_size, axes)):
            size = x.shape[x.sample.dim() - axes + axis]
            outputs = size if wanted is None else wanted
            uses = [0] * size
            for j in range(outputs):
                for i in range(j * size // outputs, -(-(j + 1) * size // outputs)):
                    uses[i] += 1
            count *= max(uses)
        value = nonlinear(x, up(math.sqrt(count)), f"maxima; an element is in {count} windows")
        return (value, None) if return_indices else value

    @rule(f"adaptive_max_pool{axes}d_with_indices")
    def _(x: Value, output_size: Any, return_indices: bool = True) -> Any:
        return pool(x, output_size, True)


for _axes in (1, 2, 3):
    _max_pool(_axes)
    _adaptive_max_pool(_axes)


def _lp_pool(axes: int) -> None:
    @rule(f"lp_pool{axes}d")
    def _(
        x: Value, norm_type: float, kernel_size: _Size, stride: Any = None,
        ceil_mode: bool = False,
    ) -> Value:  # fmt: skip
        sums = _sums(axes, x.sample.dim(), kernel_size, stride, 0, 1, ceil_mode)
        if norm_type == math.inf:
            constant = math.sqrt(_largest_count(sums, x))
            return nonlinear(x, up(constant, 4), "maxima of absolute values")
        if norm_type < 2 or norm_type % 2 != 0:
            return unbounded((x,), f"a pool of order {norm_type} has no bounded slope")
        area = math.prod(_per_axis(kernel_size, axes))

        # torch takes the sum of p-th powers in a window that the border cuts off for that of a full
        # one: m times as much. And a p-norm is at most the 2-norm.
        def weighted(t: Tensor) -> Tensor:
            sizes = sums(torch.ones_like(t)).detach()
            return sums(t) * (area / sizes) ** (2.0 / norm_type)

        constant = math.sqrt(_largest_count(weighted, x))
        return nonlinear(x, up(constant, 64), f"{norm_type:g}-norms of windows")


for _axes in (1, 2, 3):
    _lp_pool(_axes)
