"""Rules for functions of single elements, and for softmax and its kin."""

from __future__ import annotations

import math
from typing import Any, Optional

from torch import Tensor

from .norms import up
from .rules import constant, rule, words
from .values import Value, affine, elementwise, nonlinear, unbounded

__all__: list[str] = []

# Largest slopes, rounded up. GELU's is at sqrt(2): Φ(√2) + √2 φ(√2).
_LARGEST_SLOPES = {
    "gelu": 0.5 * (1.0 + math.erf(1.0)) + math.exp(-1.0) / math.sqrt(math.pi),
    "gelu tanh": 1.128993069,
    "silu": 1.099839321,
    "mish": 1.088498162,
    "selu": 1.0507009873554805 * 1.6732632423543773,
    "hardswish": 1.5,
    "hardsigmoid": 1.0 / 6.0,
    "sigmoid": 0.25,
}


def _sloped(name: str, slope: float) -> None:
    method = "largest slope" if slope != 1.0 else "slopes in [-1, 1]"

    @rule(name)
    def _(x: Value, *args: Any, **kwargs: Any) -> Value:
        return elementwise(x, up(slope) if slope not in (0.25, 1.0, 1.5) else slope, method)


for _name in words(
    "relu relu6 logsigmoid softsign tanh tanhshrink abs absolute sin cos atan arctan erf "
    "asinh arcsinh softshrink"
):
    # erf's largest slope is 2 / sqrt(pi).
    _sloped(_name, 2.0 / math.sqrt(math.pi) if _name == "erf" else 1.0)
for _name in ("silu", "mish", "selu", "hardswish", "hardsigmoid", "sigmoid"):
    _sloped(_name, _LARGEST_SLOPES[_name])


@rule("__abs__")
def _abs(x: Value) -> Value:
    return elementwise(x, 1.0, "slopes in [-1, 1]")


@rule("gelu")
def _gelu(x: Value, approximate: str = "none") -> Value:
    key = "gelu" if approximate == "none" else "gelu tanh"
    return elementwise(x, up(_LARGEST_SLOPES[key], 8), "largest slope")


def _two_slopes(x: Value, slope: float, other: float = 1.0) -> Value:
    if not math.isfinite(slope):
        raise ValueError(f"must have a finite slope, got {slope}")
    return elementwise(x, max(abs(other), abs(slope)), "larger of the two slopes")


@rule("leaky_relu")
def _leaky_relu(x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return _two_slopes(x, float(negative_slope))


@rule("prelu")
def _prelu(x: Value, weight: Tensor) -> Value:
    if isinstance(weight, Value):
        return unbounded((x, weight), "a slope that depends on the input")
    # A sum, unlike a maximum, lets no NaN through.
    slopes = constant(weight)
    return _two_slopes(x, float(slopes.abs().max() + 0.0 * slopes.sum()))


@rule("rrelu")
def _rrelu(
    x: Value, lower: float = 0.125, upper: float = 1.0 / 3, training: bool = False,
    inplace: bool = False,
) -> Value:  # fmt: skip
    if training:
        raise ValueError("draws its slope at random in training mode; call eval() first")
    return _two_slopes(x, (lower + upper) / 2)


@rule("elu")
def _elu(x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return _two_slopes(x, float(alpha))


@rule("celu")
def _celu(x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    if not alpha > 0:
        return unbounded((x,), f"celu with alpha={alpha} has no bounded slope")
    return elementwise(x, 1.0, "slopes in [0, 1]")


@rule("softplus")
def _softplus(x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    # Above its threshold it becomes the identity, by a step of log(1 + exp(-threshold)) / beta.
    if not beta > 0 or threshold < 20:
        raise ValueError(
            "must have beta > 0 and a threshold of 20 or more to be continuous up to "
            f"rounding, got beta={beta} and threshold={threshold}"
        )
    return elementwise(x, 1.0, "slopes in [0, 1], and a step of 2e-9 at its threshold")


@rule("hardtanh", "clamp", "clip", "clamp_min", "clamp_max")
def _clamped(x: Value, *bounds: Any, **kwargs: Any) -> Value:
    given = [*bounds, *kwargs.values()]
    if any(isinstance(bound, Value) for bound in given):
        return unbounded((x,), "is cut off at a value that depends on the input")
    return elementwise(x, 1.0, "cut off at constants")


@rule("threshold")
def _threshold(x: Value, threshold: float, value: float, inplace: bool = False) -> Value:
    if threshold != value:
        return unbounded((x,), f"jumps from {value} to {threshold} at its threshold")
    return elementwise(x, 1.0, "slopes 0 and 1")


# ---- softmax -------------------------------------------------------------------------------------


@rule("softmax", "softmin")
def _softmax(x: Value, *args: Any, **kwargs: Any) -> Value:
    # The Jacobian diag(p) - ppᵀ has row sums 2 p (1 - p) of absolute values.
    return nonlinear(x, 0.5, "the norm of diag(p) - ppᵀ is at most 1/2")


@rule("log_softmax")
def _log_softmax(x: Value, dim: Optional[int] = None, *args: Any, **kwargs: Any) -> Value:
    if dim is None:
        raise ValueError("must name its dim to be bounded")
    # The Jacobian I - 1pᵀ is a projection of norm sqrt(n) |p|.
    count = x.shape[dim]
    return nonlinear(x, up(math.sqrt(count)), f"the norm of I - 1pᵀ, at most the root of {count}")


# ---- dropout -------------------------------------------------------------------------------------


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
      "feature_dropout")  # fmt: skip
def _dropout(x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    if training and p != 0.0:
        raise ValueError(f"drops elements at random in training mode (p={p}); call eval() first")
    return affine(x, lambda t: t, moves=True)
