"""What the normalised layers of a model are doing: spectra, iterations, bounds and times."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import ops
from ._checks import check_positive_int
from ._measurement import measure
from .parametrizations import FrobeniusNorm, LipschitzWeight, SpectralNorm
from .reference import GRADIENT_FLOOR

__all__ = ["Monitor", "monitor"]

# By how much more than k a bound may be before it is worth a warning.
_TOLERANCE = 1e-3
# Parametrizations whose result is as good as their estimate of the spectral norm.
_ESTIMATES = (SpectralNorm, torch.nn.utils.parametrizations._SpectralNorm)


class Monitor(dict[str, float]):
    """What :func:`monitor` returns: a dict of floats that can be brought up to date.

    ::

        writer.add_scalars("lipschitz", lipfuse.monitor(model), step)

        with lipfuse.monitor(model, every=100) as stats:
            for x, y in loader:
                ...  # as without it
                progress.set_postfix(stats.summary())

    Args:
        model, every, callback: as of :func:`monitor`.

    Raises:
        TypeError, ValueError: as :func:`monitor`.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 1,
        callback: Optional[Callable[[dict[str, float], int], object]] = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable or None, got {callback!r}")
        self.every: int = check_positive_int("every", every)
        self._model, self._callback = model, callback
        self._calls = 0
        self._warned: set[tuple[str, str]] = set()
        self._handle: Any = None
        self.refresh()

    def refresh(self) -> Monitor:
        """Measures all layers now, each on its own.

        Returns:
            The monitor itself.

        Raises:
            ValueError: if the model has no parametrized tensor.
        """
        found: dict[str, float] = {}
        some = False
        for path, module in self._model.named_modules():
            if not parametrize.is_parametrized(module):
                continue
            chains: Any = module.parametrizations
            for tensor, chain in chains.items():
                some = True
                name = path or parametrize.type_before_parametrizations(module).__name__
                name = name if tensor == "weight" else f"{name}.{tensor}"
                values = measure(module, chain)
                self._warn(name, chain, values)
                found.update({f"{name}/{key}": value for key, value in values.items()})
        if not some:
            raise ValueError(
                "model must have at least one parametrized tensor, "
                f"{type(self._model).__name__} has none"
            )
        self.clear()
        self.update(found)
        return self

    def summary(self) -> dict[str, float]:
        """The worst of all layers, few enough for a progress bar.

        Returns:
            ``"bound"``: the largest bound relative to its k; ``"parameter_min"`` and
            ``"parameter_max"``: over all layers; ``"iterations"``: the most; ``"time_ms"``: of all
            layers together.
        """
        of: dict[str, list[float]] = {}
        for name, value in self.items():
            path, _, key = name.rpartition("/")
            if key == "bound":
                value /= self.get(f"{path}/k_coef_lip", 1.0)
            of.setdefault(key, []).append(value)
        kinds: dict[str, Callable[[list[float]], float]] = {
            "bound": _worst,
            "parameter_min": lambda values: -_worst([-v for v in values]),
            "parameter_max": _worst,
            "iterations": _worst,
            "time_ms": math.fsum,
        }
        return {key: kind(of[key]) for key, kind in kinds.items() if key in of}

    def _warn(self, name: str, chain: Any, values: dict[str, float]) -> None:
        """Once for each layer and reason."""
        low, high = values.get("parameter_min", 1.0), values.get("parameter_max", 1.0)
        last = chain[len(chain) - 1]
        exact = isinstance(last, (LipschitzWeight, FrobeniusNorm)) and "k_coef_lip" in values
        if not math.isfinite(high):
            kind = "the parameter has NaN or infinite elements"
            advice = "go back to the last checkpoint and lower the learning rate or clip gradients"
        elif exact and not _holds(values["bound"], values["k_coef_lip"], chain):
            kind = f"its Lipschitz bound exceeds k_coef_lip={values['k_coef_lip']:g}"
            advice = f"it is {values['bound']:.6g}, an error of lipfuse: please report it"
        elif isinstance(last, _ESTIMATES) and not _holds(values["weight_max"], 1.0, chain):
            kind = "its spectral norm exceeds 1: power iteration has not converged"
            advice = (
                f"it is {values['weight_max']:.4g}; raise n_power_iterations, or use a layer of "
                "lipfuse.nn, which divides by a proven bound"
            )
        elif low <= GRADIENT_FLOOR * high and "residual" in values:
            kind = "the parameter is close to losing rank, where the gradient is cut off"
            advice = (
                "lower the learning rate, or keep the parameter orthonormal with "
                "lipfuse.optim.retract_(model) after each optimizer step"
            )
        else:
            return
        if (name, kind) not in self._warned:
            self._warned.add((name, kind))
            spectrum = f"singular values of the parameter {low:.3g} to {high:.3g}"
            warnings.warn(f"{name}: {kind} ({spectrum}): {advice}", stacklevel=5)

    # ---- while a model is trained ----------------------------------------------------------------

    def __enter__(self) -> Monitor:
        if self._handle is not None:
            raise RuntimeError("this monitor is in use already")
        self._calls = 0
        self._handle = self._model.register_forward_hook(_Hook(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        self._handle = None

    def _note_call(self) -> None:
        self._calls += 1
        if self._calls % self.every == 0:
            self.refresh()
            if self._callback is not None:
                self._callback(dict(self), self._calls)

    # Copied or pickled, it is what it looks like: a dict of floats, without the model.
    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class _Hook:
    """The forward hook of a model that is being monitored; of no effect in copies of the model."""

    def __init__(self, owner: Optional[Monitor] = None) -> None:
        self._owner = owner

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if (
            self._owner is not None
            and module.training
            and not torch.compiler.is_compiling()
            and not ops.transforming()
        ):
            self._owner._note_call()

    def __reduce__(self) -> Any:
        return _Hook, ()


def _holds(value: float, limit: float, chain: Any) -> bool:
    """To the accuracy in training and the rounding of the weight's dtype; NaN is not for here."""
    parts = [p for p in chain.parameters() if p.is_floating_point()]
    rounding = max((torch.finfo(p.dtype).eps for p in parts), default=0.0)
    return not value > limit * (1 + _TOLERANCE + 2 * rounding)


def _worst(values: list[float]) -> float:
    """The largest; NaN if one is."""
    return math.nan if any(v != v for v in values) else max(values)


def monitor(
    model: nn.Module,
    *,
    every: int = 1,
    callback: Optional[Callable[[dict[str, float], int], object]] = None,
) -> Monitor:
    """Measures every normalised layer of a model, once or while it is trained.

    The result is a dict of floats, for each layer under its path in the model:

    - ``parameter_min``, ``parameter_max``: the extreme singular values of the parameter;
    - ``weight_min``, ``weight_max``: those of the weight that the layer multiplies by, which for a
      convolution hold its corrective factor;
    - ``bound``: a proven upper bound of the layer's Lipschitz constant (of each output on its own
      for disjoint neurons), for inputs of every size; ``k_coef_lip``: what the layer promises;
    - ``iterations``: of the normalisation: the stages of the polar factor, Björck's steps, or
      those of power iteration; what a chain has of them is added up;
    - ``residual``: how far the polar factor is from orthonormal, in the Frobenius norm;
    - ``time_ms``: of the normalisation on its own: forward and backward in training mode, what a
      forward costs in evaluation. :func:`lipfuse.fuse` does better than their sum.

    Everything is measured on copies: neither parameters, gradients, random state nor the vectors of
    power iteration change. A call costs some singular value decompositions; there is no cost
    between calls, and none for a model that is not monitored.

    As a context manager it measures again at each ``every``-th call of the model in training, and
    leaves nothing behind.

    Args:
        model: a module with normalised layers, or tensors with other parametrizations.
        every: in a ``with`` block, how many training forwards apart measurements are.
        callback: in a ``with`` block, called after each measurement as ``callback(stats, calls)``
            with a plain dict and the number of training forwards so far.

    Returns:
        The measurements as a :class:`Monitor`, which is a dict.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, or a model that has no
            parametrized tensor.

    Warns:
        UserWarning: once for each layer and reason, with what to do: a parameter that is not
            finite or about to lose rank, a spectral norm that is more than it should be.
    """
    return Monitor(model, every, callback)
