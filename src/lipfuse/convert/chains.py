"""What the parametrizations of torch, deel-torchlip and orthogonium compute from a weight.

Their classes are recognised by module and name, so that none of these packages is imported.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Optional

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import ops
from ..parametrizations import FrobeniusNorm, LipschitzWeight, Orthogonal
from ..parametrizations.weight import as_matrices

__all__ = [
    "Unknown",
    "Weight",
    "evaluated",
    "is_known",
    "qualified_name",
    "read",
    "relative_change",
]


class Unknown(Exception):
    """Why something cannot be converted."""


def qualified_name(module: nn.Module) -> str:
    """Of the class that the module had before its first parametrization."""
    kind = parametrize.type_before_parametrizations(module)
    return f"{kind.__module__}.{kind.__qualname__}"


_TORCH = "torch.nn.utils.parametrizations."
_DEEL = "deel.torchlip."
_ORTHOGONIUM = "orthogonium.reparametrizers."

_SPECTRAL = _TORCH + "_SpectralNorm"
_ORTHOGONAL = _TORCH + "_Orthogonal"
_COEFFICIENT = _DEEL + "modules.module._LipschitzCoefMultiplication"
_POWER = _ORTHOGONIUM + "BatchedPowerIteration"
_IDENTITY = _ORTHOGONIUM + "BatchedIdentity"
_RKO = "orthogonium.layers.conv.AOC.rko_conv.RKOParametrizer"
_BJORCK = (
    _DEEL + "utils.bjorck_norm._BjorckNorm",
    _ORTHOGONIUM + "BatchedBjorckOrthogonalization",
)
# Orthogonal matrices in coordinates of their own: not the polar factor of the parameter.
_OTHER_MAPS = (
    _ORTHOGONAL,
    _ORTHOGONIUM + "BatchedCholeskyOrthogonalization",
    _ORTHOGONIUM + "BatchedQROrthogonalization",
    _ORTHOGONIUM + "BatchedExponentialOrthogonalization",
)
_FROBENIUS: dict[str, Callable[[Any], Optional[int]]] = {
    _DEEL + "utils.frobenius_norm._FrobeniusNorm": lambda step: step.dim_norm,
    _ORTHOGONIUM + "L2Normalize": lambda step: step.dim,
}
_FACTORS: dict[str, Callable[[Any], float]] = {
    _DEEL + "utils.lconv_norm._LConvNorm": lambda step: step.lconv_coefficient,
    _COEFFICIENT: lambda step: step._coef,
}


@dataclass(frozen=True)
class Weight:
    """What a chain of parametrizations computes.

    Args:
        kind: the polar factor, W over an estimate of its spectral norm, or over Frobenius norms.
        scale: what it is multiplied by, Lipschitz constant and convolution's factor together.
        coefficient: the Lipschitz constant in it.
        groups: so many matrices are normalised each on its own.
        each: of Frobenius norms: one for every output.
        coordinates: whether the parameter is the matrix that is normalised; otherwise it has to be
            set to the result, and an optimizer's moments do not belong to it any more.
        batched: the last two dimensions are the matrix, those before a batch.
        eps_spectral, eps_bjorck: deel-torchlip's, where it has any.
    """

    kind: Literal["polar", "spectral", "frobenius"]
    scale: float = 1.0
    coefficient: float = 1.0
    groups: int = 1
    each: bool = False
    coordinates: bool = True
    batched: bool = False
    eps_spectral: float = 1e-3
    eps_bjorck: Optional[float] = None

    def step(self, original: Tensor) -> nn.Module:
        """The one step of ours that computes this.

        Raises:
            ValueError: if the scale is not positive.
        """
        if self.kind == "frobenius":
            return FrobeniusNorm(self.each, self.scale)
        if self.batched:
            return Orthogonal(batched=True)
        method: Any = "polar" if self.kind == "polar" else "spectral"
        return LipschitzWeight(original, method=method, scale=self.scale, groups=self.groups)


def is_known(step: nn.Module) -> bool:
    """Whether it is one of those that :func:`read` knows, or of their packages."""
    name = qualified_name(step)
    return name in (_SPECTRAL, _ORTHOGONAL) or name.startswith((_DEEL, "orthogonium."))


def _has_hooks(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


def _steps(chain: Any) -> list[tuple[str, Any]]:
    """Names and modules; orthogonium's RKO parametrization after those inside it."""
    found: list[tuple[str, Any]] = []
    for step in chain:
        if any(_has_hooks(part) for part in step.modules()):
            raise Unknown(f"there is a hook on its parametrization {type(step).__name__}")
        name = qualified_name(step)
        parts = [step.pi, step.bjorck] if name == _RKO else []
        found += [(qualified_name(part), part) for part in parts] + [(name, step)]
    return found


def read(chain: Any) -> Weight:
    """What a parametrization list computes.

    Raises:
        Unknown: if it is none of those known, with the reason.
    """
    if not chain.is_tensor:
        raise Unknown("its weight is made of several parameters")
    if chain.original.is_complex():
        raise Unknown("its weight is complex")
    try:
        return _read(_steps(chain), chain.original.dim())
    except AttributeError as error:
        raise Unknown(f"its parametrization is not of the version known: {error}") from None


def _read(steps: list[tuple[str, Any]], ndim: int) -> Weight:
    kind: Any = None
    values: dict[str, Any] = {}
    scale = coefficient = 1.0
    scaled = spectral = False
    for name, step in steps:
        if name in _FACTORS:
            factor, scaled = float(_FACTORS[name](step)), True
            scale *= factor
            coefficient *= factor if name == _COEFFICIENT else 1.0
        elif kind is not None and name == _RKO:
            scale, scaled, values["groups"] = float(step.scale), True, int(step.groups)
        elif kind is not None or scaled:
            raise Unknown(_unknown(steps))
        elif name == _SPECTRAL and not spectral:
            spectral, values["eps_spectral"] = True, float(step.eps)
        elif name in _BJORCK:
            kind, values["eps_bjorck"] = "polar", getattr(step, "eps", None)
        elif name in _OTHER_MAPS:
            kind, values["coordinates"] = "polar", False
            values["batched"] = name == _ORTHOGONAL and ndim > 2
        elif name in _FROBENIUS and not spectral:
            kind, values["each"] = "frobenius", _each(_FROBENIUS[name](step), ndim)
        elif name not in (_POWER, _IDENTITY):
            raise Unknown(_unknown(steps))
    if kind is None and not spectral:
        raise Unknown(_unknown(steps))
    return Weight(kind or "spectral", scale, coefficient, **values)


def _unknown(steps: list[tuple[str, Any]]) -> str:
    names = ", ".join(name.rpartition(".")[2] for name, _ in steps)
    return f"its parametrization is not one of those known: {names}"


def _each(dim: Optional[int], ndim: int) -> bool:
    if dim is None:
        return False
    if ndim != 2 or dim not in (1, -1):
        raise Unknown(f"its norms are taken along dimension {dim} of {ndim}")
    return True


def evaluated(chain: Any, training: bool) -> Tensor:
    """The weight that a chain gives, by copies of its steps: their state does not advance."""
    weight: Tensor = chain.original.detach()
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        for step in chain:
            weight = copy.deepcopy(step).train(training)(weight)
    return weight.detach()


def relative_change(old: Tensor, new: Tensor) -> float:
    """Of a weight, in the spectral norm: a bound of it, over the norm of the old weight.

    Tensors of more than two dimensions are matrices of ``shape[0]`` rows. Infinite if one of them
    has elements that are not finite.
    """
    old, new = as_matrices(old.double()), as_matrices(new.double())
    if not old.numel():
        return 0.0
    if not bool(torch.isfinite(old).all() and torch.isfinite(new).all()):
        return math.inf
    size, gap = float(ops.spectral_bound(old, 8)), float(ops.spectral_bound(new - old, 8))
    return gap / size if size > 0 else (math.inf if gap > 0 else 0.0)
