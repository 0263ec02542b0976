"""The singular values of every layer, as the linear map that it is.

A convolution's are those of the operator on images of a given size, not those of its kernel. All
are computed in float64, from the weights that a layer uses in evaluation.
"""

from __future__ import annotations

import copy
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
from .export import vanilla_model
from .nn.activation import GroupSort, HouseHolder, LPReLU, MaxMin
from .nn.downsampling import InvertibleDownSampling
from .nn.module import LipschitzModule
from .nn.upsampling import InvertibleUpSampling

__all__ = ["compute_layer_sv", "compute_model_sv", "layer_singular_values"]

_Bounds = tuple[float, float]
_Rules = Mapping[type[nn.Module], Callable[[Any], _Bounds]]

# A full decomposition is made where the smaller side is at most this, and the matrix fits.
_MOST_VALUES = 1024
_MOST_ELEMENTS = 2**22

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


# ---- layers as operators -------------------------------------------------------------------------


def _label(layer: nn.Module) -> str:
    name: str = parametrize.type_before_parametrizations(layer).__name__
    return name


def _plain(layer: nn.Module) -> nn.Module:
    """A copy in float64 that computes what the layer computes in evaluation."""
    if isinstance(layer, LipschitzModule) or parametrize.is_parametrized(layer):
        plain = vanilla_model(layer, in_place=False)
    else:
        # Weights that a hook has computed are no leaves, which torch does not copy.
        attributes = [t for m in layer.modules() for t in m.__dict__.values()]
        computed = [t for t in attributes if isinstance(t, Tensor) and not t.is_leaf]
        plain = copy.deepcopy(layer, {id(t): t.detach().clone() for t in computed})
    tensors = [t for t in (*plain.parameters(), *plain.buffers()) if t.is_floating_point()]
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise ValueError(f"layer must be finite, got {_label(layer)} with NaN or infinite elements")
    plain = plain.double().eval().requires_grad_(False)
    if isinstance(plain, nn.Linear) and plain._forward_pre_hooks:
        plain(torch.zeros(plain.in_features).to(tensors[0].device).double())  # computes the weight
    return plain


class _Operator:
    """A layer without its constant part, on inputs of one shape, in float64."""

    def __init__(self, plain: nn.Module, shape: tuple[int, ...], name: str) -> None:
        self.plain, self.shape = plain, shape
        like: Tensor = next((p for p in plain.parameters()), torch.empty(0))
        self.zero = torch.zeros((1, *shape), dtype=torch.float64, device=like.device)
        with torch.no_grad():
            try:
                self.constant = plain(self.zero)
            except (RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"input_shape must fit {name}, got {shape}: {str(error).splitlines()[0]}"
                ) from error
        self.rows, self.columns = self.constant.numel(), self.zero.numel()

    def apply(self, x: Tensor) -> Tensor:
        """``(N, columns)`` to ``(N, rows)``."""
        with torch.no_grad():
            y: Tensor = self.plain(x.reshape(-1, *self.shape)) - self.constant
        return y.flatten(1)

    def adjoint(self, y: Tensor) -> Tensor:
        """``(rows,)`` to ``(columns,)``."""
        with torch.enable_grad():
            x = self.zero.clone().requires_grad_()
            output = self.plain(x)
            (gradient,) = torch.autograd.grad(output, x, y.reshape(output.shape))
        return gradient.flatten()

    def is_affine(self) -> bool:
        """Whether a random combination of random inputs is mapped to that of the outputs."""
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, self.columns, dtype=torch.float64, generator=generator).to(self.zero)
        values = self.apply(torch.stack((x, y, 0.7 * x - 1.3 * y)))
        gap = values[2] - (0.7 * values[0] - 1.3 * values[1])
        return bool(gap.abs().max() <= 1e-9 * values.abs().max()) if gap.numel() else True

    def dense(self) -> Tensor:
        identity = torch.eye(self.columns, dtype=torch.float64, device=self.zero.device)
        parts = identity.split(max(1, _MOST_ELEMENTS // max(self.columns, self.rows, 1)))
        return torch.cat([self.apply(part) for part in parts]).mT

    def is_small(self) -> bool:
        fits = self.rows * self.columns <= _MOST_ELEMENTS
        return fits and min(self.rows, self.columns) <= _MOST_VALUES


def _circulant_strides(plain: nn.Module, operator: _Operator) -> Optional[tuple[int, ...]]:
    """The strides of a convolution that commutes with shifts, or None if it does not."""
    if not isinstance(plain, _CONVOLUTIONS) or plain.padding_mode != "circular":
        return None
    sizes, strides = operator.shape[1:], tuple(plain.stride)
    outputs = operator.constant.shape[2:]
    fits = all(n == m * s for n, m, s in zip(sizes, outputs, strides))
    return strides if fits and len(sizes) == len(strides) else None


def _circulant_values(operator: _Operator, strides: tuple[int, ...]) -> Tensor:
    """Of a circular convolution, from one small matrix for each frequency.

    Shifting the input by the stride shifts the output by one: on the input's phases, taken as
    channels, it is a circulant matrix of blocks, and the Fourier transform makes its blocks
    independent (Sedghi, Gupta, Long, arXiv 1805.10408, for a stride of 1).
    """
    channels, sizes = operator.shape[0], operator.shape[1:]
    inside = torch.zeros((channels, *strides), dtype=torch.float64, device=operator.zero.device)
    impulses = []
    for index in torch.ones_like(inside).nonzero().tolist():
        impulse = torch.zeros_like(operator.zero)
        impulse[(0, *index)] = 1
        impulses.append(impulse)
    outputs = operator.constant.shape[1:]
    responses = operator.apply(torch.cat(impulses)).reshape(-1, *outputs)
    axes = tuple(range(2, 2 + len(sizes)))
    blocks = torch.fft.fftn(responses, dim=axes).flatten(2).permute(2, 1, 0)
    return torch.linalg.svdvals(blocks).flatten().sort(descending=True).values


def _batch_norm_scales(layer: Any) -> Tensor:
    if layer.running_var is None:
        raise TypeError(f"{_label(layer)} without running statistics is not linear in evaluation")
    scales = (layer.running_var.detach().double() + layer.eps).rsqrt()
    if layer.weight is not None:
        scales = scales * layer.weight.detach().double()
    return scales.abs()


def _operator_of(plain: nn.Module, layer: nn.Module, input_shape: object) -> _Operator:
    if input_shape is None:
        raise ValueError(
            f"input_shape must be given for {_label(layer)}, the shape of one input without the "
            "batch dimension: its singular values depend on it"
        )
    operator = _Operator(plain, _checked_shape(input_shape), _label(layer))
    if not operator.is_affine():
        raise TypeError(
            f"layer must be linear or one that bounds are known for, got {_label(layer)}; "
            "name its smallest and largest singular value in supplementary_type2sv"
        )
    return operator


def _checked_shape(input_shape: object) -> tuple[int, ...]:
    if not isinstance(input_shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple or list of ints, got {input_shape!r}")
    return tuple(check_positive_int("input_shape", n) for n in input_shape)


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
    plain = _plain(_check_layer(layer))
    if isinstance(plain, nn.Linear):
        return torch.linalg.svdvals(plain.weight)
    operator = _operator_of(plain, layer, input_shape)
    strides = _circulant_strides(plain, operator)
    if strides is not None:
        return _circulant_values(operator, strides)
    if not operator.is_small():
        raise ValueError(
            f"input_shape must be smaller to decompose {_label(layer)}, a {operator.rows} x "
            f"{operator.columns} operator at {operator.shape} (at most {_MOST_VALUES} singular "
            f"values, {_MOST_ELEMENTS} elements); compute_layer_sv gives the extremes"
        )
    return torch.linalg.svdvals(operator.dense())


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
    plain = _plain(layer)
    if isinstance(plain, nn.Linear):
        return _ends(torch.linalg.svdvals(plain.weight))
    try:
        operator = _operator_of(plain, layer, input_shape)
    except TypeError:
        if isinstance(layer, LipschitzModule):
            return 0.0, layer.k_coef_lip
        raise
    strides = _circulant_strides(plain, operator)
    if strides is not None:
        return _ends(_circulant_values(operator, strides))
    if operator.is_small():
        return _ends(torch.linalg.svdvals(operator.dense()))
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

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            seen = shapes.setdefault(module, [])
            shape = tuple(args[0].shape[1:])
            if shape not in seen:
                seen.append(shape)

    handles = [leaf.register_forward_pre_hook(note) for leaf in leaves.values()]
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
        except TypeError:
            unknown.append(f"{name or 'the model'} ({_label(leaf)})")
            pairs = [(math.nan, math.nan)]
        except ValueError:
            if input_shape is None or given:
                raise
            unknown.append(f"{name} ({_label(leaf)}, which the forward pass does not call)")
            pairs = [(math.nan, math.nan)]
        result[name] = (min(low for low, _ in pairs), max(high for _, high in pairs))
    if unknown:
        warnings.warn(
            f"no singular values are known for {', '.join(unknown)}: add functions that give their "
            "smallest and largest to supplementary_type2sv, {type: function of the layer}",
            stacklevel=2,
        )
    return result
