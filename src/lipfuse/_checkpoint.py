"""What a checkpoint says about the layer it belongs to, so that it cannot change its function.

A weight alone does not tell the stride, the dilation or the Lipschitz constant that it was trained
with. Layers with a normalised weight therefore put their settings into ``state_dict()`` as a small
tensor, and compare them when they load one. It is no buffer: nothing is broadcast or averaged, and
checkpoints without it (of deel-torchlip, or older ones) load as well.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .functional.convolution import PADDING_MODES, padding_of_axes
from .parametrizations import FrobeniusNorm, LipschitzWeight

__all__ = ["CheckpointError", "WeightChain", "deel_factor"]

_MARK = 1957.0
"""What a record begins with. Otherwise it is noise: some code perturbs or redraws whole states."""
_VERSION = 1.0
_KEY = "_extra_state"
_OF_OPERATOR = ", divided by the operator's norm"
# Their places are what checkpoints hold: new ones go to the end.
_NORMALISATIONS = (
    "orthonormal",
    "spectral",
    "frobenius",
    "frobenius of each output",
    "another",
    "orthonormal" + _OF_OPERATOR,
    "spectral" + _OF_OPERATOR,
)
_STALE = 1e-4
"""Relative difference from which deel-torchlip's cached weight is worth a warning."""

Settings = dict[str, tuple[float, ...]]


class CheckpointError(RuntimeError, ValueError):
    """A checkpoint was made with other settings than those of the layer it is loaded into.

    A RuntimeError, as ``load_state_dict`` raises, and a ValueError, as everything in this package
    that names a setting and its value.

    Args:
        args: the message, which names the setting, both values and the layer.
    """


def deel_factor(kernel_size: tuple[int, ...], stride: tuple[int, ...]) -> float:
    """What deel-torchlip 1.0.5 multiplies a convolution's weight by."""
    uses = math.prod(math.ceil(k / s) for k, s in zip(kernel_size, stride))
    return 1 / uses if len(kernel_size) == 1 else 1 / math.sqrt(uses)


def _geometry(layer: nn.Module) -> Settings:
    """What besides the weight makes up a convolution's function; nothing for other layers."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return {}
    padding = padding_of_axes(layer.padding, layer.kernel_size, layer.dilation)
    # Of an orthogonal transposed convolution, whose two ends may differ.
    padding = getattr(layer, "_ends", padding)
    return {
        "transposed": (float(layer.transposed),),
        "stride": tuple(map(float, layer.stride)),
        "padding": tuple(float(p) for pair in padding for p in pair),
        "dilation": tuple(map(float, layer.dilation)),
        "output_padding": tuple(map(float, layer.output_padding)),
        "groups": (float(layer.groups),),
        "padding_mode": (float(PADDING_MODES.index(layer.padding_mode)),),
    }


def _shown(name: str, values: tuple[float, ...]) -> str:
    """A setting as its argument is written."""
    if name in ("padding_mode", "normalisation"):
        names = PADDING_MODES if name == "padding_mode" else _NORMALISATIONS
        index = round(values[0])
        text = repr(names[index]) if 0 <= index < len(names) else "one that is not known here"
        return f"{name}={text}"
    if name == "padding" and values[::2] == values[1::2]:
        values = values[::2]  # as much before as after
    numbers = [f"{v:.6g}" for v in values]
    return f"{name}={numbers[0] if len(numbers) == 1 else '(' + ', '.join(numbers) + ')'}"


class WeightChain(parametrize.ParametrizationList):
    """The parametrization list of a normalised weight; its checkpoints carry the layer's settings.

    Made from torch's own list by :meth:`adopt`, which keeps the object.
    """

    geometry: Settings
    factor: float
    converted: bool

    @staticmethod
    def adopt(
        layer: nn.Module, name: str = "weight", factor: float = 1.0, converted: bool = False
    ) -> None:
        """Makes a layer's parametrization list one of these.

        Args:
            layer: whose ``name`` is parametrized by one step.
            name: of the tensor.
            factor: what k is multiplied by in the step's scale.
            converted: whether the scale is that of the layer this one was made of.
        """
        chain: Any = layer.parametrizations[name]  # type: ignore[index]
        chain.__class__ = WeightChain
        chain.geometry = _geometry(layer) if name == "weight" else {}
        chain.factor = factor
        chain.converted = converted

    def settings(self) -> Optional[Settings]:
        """By name, in the order in which they are saved; None if there are further steps."""
        if len(self) != 1:
            return None
        step: Any = self[0]
        kind = "another"
        if isinstance(step, LipschitzWeight):
            kind = "spectral" if step.method == "spectral" else "orthonormal"
            kind += _OF_OPERATOR if step.operator is not None else ""
        elif isinstance(step, FrobeniusNorm):
            kind = "frobenius of each output" if step.disjoint_neurons else "frobenius"
        return {
            "normalisation": (float(_NORMALISATIONS.index(kind)),),
            "normalised groups": (float(getattr(step, "groups", 1)),),
            "k_coef_lip": (getattr(step, "scale", 1.0) / self.factor,),
            **self.geometry,
        }

    # Read by state_dict(). There is no set_extra_state: it would make the entry compulsory.
    def get_extra_state(self) -> Tensor:
        settings = self.settings() or {}
        return torch.tensor([_MARK, _VERSION, *itertools.chain(*settings.values())])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # torch hands every module a dictionary of its own, so that entries can be taken out.
        settings = self.settings()
        record = state_dict.pop(prefix + _KEY, None)
        if settings is not None and record is not None:
            self._compare(settings, record, prefix)
        foreign, cached = False, None
        if settings is not None and isinstance(self[0], (LipschitzWeight, FrobeniusNorm)):
            recorded = record is not None
            foreign, cached = self._without_foreign(settings, state_dict, prefix, recorded)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if foreign:
            self._warn_of_another_factor()
        if cached is not None:
            self._warn_of_differences(cached)

    def _compare(self, settings: Settings, record: Any, prefix: str) -> None:
        where = prefix.rsplit(".parametrizations.", 1)[0].removesuffix(".") or "the layer"
        where = "the layer" if where.startswith("parametrizations.") else where
        hint = f"; to load the weights alone, remove {prefix}{_KEY} from the checkpoint"
        if not isinstance(record, Tensor) or record.dim() != 1 or record.is_meta:
            raise CheckpointError(f"{prefix}{_KEY} must be a tensor of settings, got {record!r}")
        # Checkpoints may have been rounded to half precision, or averaged.
        accuracy = 1e-5
        if record.is_floating_point():
            accuracy = max(accuracy, 2 * torch.finfo(record.dtype).eps)
        found = [float(v) for v in record]
        if len(found) < 2 or not math.isclose(found[0], _MARK, rel_tol=accuracy):
            return
        if not math.isclose(found[1], _VERSION, rel_tol=accuracy):
            raise CheckpointError(f"{prefix}{_KEY} is of a version that is not known here{hint}")
        if len(found) != 2 + sum(map(len, settings.values())):
            raise CheckpointError(
                f"the checkpoint was made with another kind of layer than {where}, which has "
                f"{', '.join(_shown(n, v) for n, v in settings.items())}{hint}"
            )
        at = 2
        for name, values in settings.items():
            others = tuple(found[at : at + len(values)])
            at += len(values)
            if not all(math.isclose(v, o, rel_tol=accuracy) for v, o in zip(values, others)):
                raise CheckpointError(
                    f"the checkpoint was made with {_shown(name, others)}, but {where} has "
                    f"{_shown(name, values)}{hint}"
                )

    def _without_foreign(
        self, settings: Settings, state_dict: dict[str, Any], prefix: str, recorded: bool
    ) -> tuple[bool, Optional[Tensor]]:
        """Takes out what only deel-torchlip keeps.

        Returns:
            Whether the checkpoint seems to be one of theirs, and its cached weight, if any.

        Raises:
            CheckpointError: if it was normalised in another way.
        """
        step: Any = self[0]
        cached: Optional[Tensor] = state_dict.pop(prefix + "1._w_bjorck", None)
        vectors = [prefix + name for name in ("0._u", "0._v") if prefix + name in state_dict]
        method = step.method if isinstance(step, LipschitzWeight) else "frobenius"
        # Ours with vectors and without a record are older ones, which nothing tells from theirs.
        foreign = cached is not None or (bool(vectors) and not recorded)
        theirs = None
        if foreign and getattr(step, "operator", None) is not None:
            theirs = "by the convolution's corrective factor"
        elif cached is not None and method in ("spectral", "frobenius"):
            theirs = "by spectral norm and Björck's iteration"
        elif cached is None and vectors and not recorded and method in ("polar", "frobenius"):
            theirs = "by the spectral norm alone"
        elif not recorded and vectors and method == "spectral" and self.geometry:
            if self.geometry["transposed"][0]:
                theirs = "by the spectral norm of another matrix"
        elif cached is not None and step.groups > 1:
            theirs = "by one norm for all groups: accelerate their model to keep its function"
        if theirs is not None:
            raise CheckpointError(
                f"{prefix}original must have been normalised as this layer does it "
                f"({_shown('normalisation', settings['normalisation'])}), got a "
                f"checkpoint normalised {theirs}"
            )
        own = step.state_dict(prefix=prefix + "0.")
        for key in vectors:
            if key not in own:
                del state_dict[key]
            elif cached is not None and own[key].shape != state_dict[key].shape:
                state_dict[key] = own[key]  # theirs are of another matrix
        return foreign, cached

    def _warn_of_another_factor(self) -> None:
        """Of a convolution that deel-torchlip's multiplies by another number."""
        if self.geometry and not self.converted:
            kernel = tuple(self.original.shape[2:])
            theirs = deel_factor(kernel, tuple(int(s) for s in self.geometry["stride"]))
            if not math.isclose(theirs, self.factor, rel_tol=1e-6):
                warnings.warn(
                    f"deel-torchlip multiplies this convolution by {theirs:.4g}, which "
                    f"{'breaks its constant' if theirs > self.factor else 'is less than allowed'};"
                    f" here it is {self.factor:.4g}: outputs differ from those of its model",
                    stacklevel=2,
                )

    def _warn_of_differences(self, cached: Tensor) -> None:
        """Of an orthonormal weight whose evaluation differs from deel-torchlip's."""
        step: Any = self[0]
        comparable = cached.shape == self.original.shape and not self.original.is_meta
        if not comparable or not bool(torch.isfinite(self.original).all()):
            return
        training = step.training
        try:
            step.eval()
            with torch.no_grad():
                ours = step(self.original).double() / step.scale
        finally:
            step.train(training)
        gap = torch.linalg.vector_norm(ours - cached.to(ours))
        if not float(gap) <= _STALE * float(torch.linalg.vector_norm(ours)):
            warnings.warn(
                "deel-torchlip's cached evaluation weight in this checkpoint does not belong to "
                "its parameter: it is from before the last optimizer step, or had not converged. "
                "Here the parameter counts: outputs differ by as much",
                stacklevel=2,
            )
