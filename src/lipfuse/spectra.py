"""The singular values of every layer, as the linear map that it is.

A convolution's are those of the operator on images of a given size, not those of its kernel. All
are computed in float64, from the weights that a layer uses in evaluation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._checks import check_positive_int
from ._lanczos import extreme_singular_values
from ._modes import evaluating
from ._operators import LayerOperator, label, plain_copy
from .nn.activation import GroupSort, HouseHolder, LPReLU, MaxMin
from .nn.downsampling import InvertibleDownSampling
from .nn.module import LipschitzModule
from .nn.upsampling import InvertibleUpSampling

__all__ = ["compute_layer_sv", "compute_model_sv", "layer_singular_values"]

_Bounds = tuple[float, float]
_Rules = Mapping[type[nn.Module], Callable[[Any], _Bounds]]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _UnknownLayerError(TypeError):
    """Nothing is known of such a layer."""


class _NoShapeError(ValueError):
    """A layer's singular values depend on the shape of its input, which was not given."""


# ---- all of them --------------------------------------------------------------------------------


def _operator_of(plain: nn.Module, layer: nn.Module, input_shape: object) -> LayerOperator:
    if input_shape is None:
        raise _NoShapeError(
            f"input_shape must be given for {label(layer)}, the shape of one input without the "
            "batch dimension: its singular values depend on it"
        )
    operator = LayerOperator(plain, _checked_shape(input_shape), label(layer))
    if not operator.is_affine():
        raise _UnknownLayerError(
            f"layer must be linear or one that bounds are known for, got {label(layer)}; "
            "name its smallest and largest singular value in supplementary_type2sv"
        )
    return operator


def _checked_shape(input_shape: object) -> tuple[int, ...]:
    if not isinstance(input_shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple or list of ints, got {input_shape!r}")
    return tuple(check_positive_int("input_shape", n) for n in input_shape)


def _batch_norm_scales(layer: Any) -> Tensor:
    if layer.running_var is None:
        raise _UnknownLayerError(
            f"{label(layer)} without running statistics is not linear in evaluation"
        )
    scales = (layer.running_var.detach().double() + layer.eps).rsqrt()
    if layer.weight is not None:
        scales = scales * layer.weight.detach().double()
    return scales.abs()


def _check_layer(layer: object) -> nn.Module:
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a torch.nn.Module, got {type(layer).__name__}")
    return layer


def layer_singular_values(
    layer: nn.Module, *, input_shape: Optional[Sequence[int]] = None
) -> Tensor:
    """All singular values of a linear layer, in descending order.

    Args:
        layer: a linear layer, from ``torch.nn``, :mod:`lipfuse.nn` or elsewhere, parametrized or
            not; a bias is left out. Not changed.
        input_shape: the shape of one input, without the batch dimension; not needed for
            ``torch.nn.Linear`` and its kind.

    Returns:
        float64, as many as the smaller of input and output has elements: of the dense operator, or
        of the Fourier blocks of a circular convolution at any size.

    Raises:
        TypeError: if ``layer`` is no module or not linear.
        ValueError: if ``input_shape`` is missing or does not fit, or the operator is too large to
            decompose (:func:`compute_layer_sv` gives the extremes).
    """
    plain = plain_copy(_check_layer(layer))
    if isinstance(plain, nn.Linear):
        return torch.linalg.svdvals(plain.weight)
    operator = _operator_of(plain, layer, input_shape)
    values = operator.singular_values()
    if values is None:
        raise ValueError(
            f"input_shape must be smaller to decompose {label(layer)}, a {operator.rows} x "
            f"{operator.columns} operator for inputs of shape {operator.shape}; compute_layer_sv "
            "gives the extremes"
        )
    return values


# ---- extremes ------------------------------------------------------------------------------------


def _scaled(layer: LipschitzModule) -> _Bounds:
    return layer.k_coef_lip, layer.k_coef_lip


def _identity(layer: nn.Module) -> _Bounds:
    return 1.0, 1.0


def _of_slopes(below: Any, above: float = 1.0) -> _Bounds:
    """Of an activation with such slopes below and above zero."""
    sizes = [abs(float(slope)) for slope in torch.as_tensor(below).flatten()] + [above]
    return min(sizes), max(sizes)


def _lprelu(layer: LPReLU) -> _Bounds:
    k = layer.k_coef_lip
    return _of_slopes(layer.weight.detach().clamp(-k, k), min(1.0, k))


_KNOWN: dict[type[nn.Module], Callable[[Any], _Bounds]] = {
    # Rearrangements, whatever the shape.
    nn.Identity: _identity,
    nn.Flatten: _identity,
    nn.Unflatten: _identity,
    nn.PixelShuffle: _identity,
    nn.PixelUnshuffle: _identity,
    nn.ChannelShuffle: _identity,
    nn.modules.dropout._DropoutNd: _identity,
    InvertibleDownSampling: _scaled,
    InvertibleUpSampling: _scaled,
    # Wherever the derivative exists, a permutation or reflection in each group.
    MaxMin: _scaled,
    GroupSort: _scaled,
    HouseHolder: _scaled,
    LPReLU: _lprelu,
    nn.PReLU: lambda layer: _of_slopes(layer.weight.detach()),
    nn.LeakyReLU: lambda layer: _of_slopes(layer.negative_slope),
    nn.ReLU: lambda layer: (0.0, 1.0),
    nn.ReLU6: lambda layer: (0.0, 1.0),
    nn.Hardtanh: lambda layer: (0.0, 1.0),
    nn.Softplus: lambda layer: (0.0, 1.0),
    nn.Tanh: lambda layer: (0.0, 1.0),
    nn.Sigmoid: lambda layer: (0.0, 0.25),
}


def _rule(layer: nn.Module, rules: _Rules) -> Optional[Callable[[Any], _Bounds]]:
    """That of the layer's type, or else of the nearest type that it derives from."""
    return next((rules[kind] for kind in type(layer).__mro__ if kind in rules), None)


def compute_layer_sv(
    layer: nn.Module,
    supplementary_type2sv: Optional[_Rules] = None,
    *,
    input_shape: Optional[Sequence[int]] = None,
) -> tuple[float, float]:
    """The smallest and the largest singular value of a layer, or bounds of them.

    Exact for linear layers that :func:`layer_singular_values` can decompose. Larger ones are
    searched by the Lanczos iteration from inside: the largest is never above the truth and
    usually equal to it, the smallest never below. For batch normalisation, the scales of
    evaluation; for activations, the bounds of what their Jacobian has; for other layers of
    :mod:`lipfuse.nn`, 0 and their constant.

    Args:
        layer: a module; not changed.
        supplementary_type2sv: for types of layers, functions from such a layer to (smallest,
            largest); they come before what is known here.
        input_shape: the shape of one input, without the batch dimension; not needed for
            ``torch.nn.Linear`` and its kind, batch normalisation and activations.

    Returns:
        ``(smallest, largest)``.

    Raises:
        TypeError: if ``layer`` is no module, or nothing is known of its type.
        ValueError: if ``input_shape`` is missing or does not fit.
    """
    _check_layer(layer)
    for rules in (supplementary_type2sv or {}, _KNOWN):
        rule = _rule(layer, rules)
        if rule is not None:
            smallest, largest = rule(layer)
            return float(smallest), float(largest)
    if isinstance(layer, _BATCH_NORMS):
        return _ends(_batch_norm_scales(layer))
    plain = plain_copy(layer)
    if isinstance(plain, nn.Linear):
        return _ends(torch.linalg.svdvals(plain.weight))
    try:
        operator = _operator_of(plain, layer, input_shape)
    except _UnknownLayerError:
        if isinstance(layer, LipschitzModule):
            return 0.0, layer.k_coef_lip
        raise
    values = operator.singular_values()
    if values is not None:
        return _ends(values)
    return extreme_singular_values(
        lambda x: operator.apply(x)[0],
        operator.adjoint,
        operator.rows,
        operator.columns,
        device=operator.zero.device,
    )


def _ends(values: Tensor) -> _Bounds:
    return (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)


def _input_shapes(
    model: nn.Module, leaves: Mapping[str, nn.Module], input_shape: Sequence[int]
) -> dict[nn.Module, list[tuple[int, ...]]]:
    """The shapes that each leaf is called with in a forward of the model."""
    shapes: dict[nn.Module, list[tuple[int, ...]]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if given and tuple(given[0].shape[1:]) not in shapes.setdefault(module, []):
            shapes[module].append(tuple(given[0].shape[1:]))

    handles = [leaf.register_forward_pre_hook(note, with_kwargs=True) for leaf in leaves.values()]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros((1, *_checked_shape(input_shape)), dtype=like.dtype).to(like.device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def compute_model_sv(
    model: nn.Module,
    supplementary_type2sv: Optional[_Rules] = None,
    *,
    input_shape: Optional[Sequence[int]] = None,
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest singular value of every layer of a model.

    Args:
        model: a module; not changed. Its layers are the modules in it that hold no others, and
            those of a type in ``supplementary_type2sv``.
        supplementary_type2sv: as for :func:`compute_layer_sv`.
        input_shape: the shape of one input of the model, without the batch dimension. A forward
            pass in evaluation finds the shapes that its layers see; not needed where none of them
            depends on it.

    Returns:
        ``{name: (smallest, largest)}`` in the order of ``named_modules``. A layer that is called
        with several shapes has the extremes over them; one of which nothing is known has NaN, and a
        warning names it.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if ``input_shape`` is missing where a layer needs it, or does not fit.

    Warns:
        UserWarning: for layers of which nothing is known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rules = supplementary_type2sv or {}
    leaves: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if parametrize.is_parametrized(module):
            inside.append(f"{name}.parametrizations" if name else "parametrizations")
        children = [key for key, _ in module.named_children() if key != "parametrizations"]
        if not children or _rule(module, rules) is not None:
            leaves[name] = module
            inside.append(f"{name}." if name else "")
    shapes = {} if input_shape is None else _input_shapes(model, leaves, input_shape)
    result: dict[str, _Bounds] = {}
    unknown = []
    for name, leaf in leaves.items():
        given = shapes.get(leaf, [None] if input_shape is None else [])
        try:
            # A layer that the forward never calls may still be one whose shape is of no account.
            pairs = [compute_layer_sv(leaf, rules, input_shape=s) for s in given or [None]]
        except _UnknownLayerError:
            unknown.append(f"{name or 'the model'} ({label(leaf)})")
            pairs = [(math.nan, math.nan)]
        except _NoShapeError:
            if input_shape is None:
                raise
            unknown.append(f"{name} ({label(leaf)}, which the forward pass does not call)")
            pairs = [(math.nan, math.nan)]
        result[name] = (min(low for low, _ in pairs), max(high for _, high in pairs))
    if unknown:
        warnings.warn(
            f"no singular values are known for {', '.join(unknown)}: add functions that give their "
            "smallest and largest to supplementary_type2sv, {type: function of the layer}",
            stacklevel=2,
        )
    return result
