"""Which layer of ours stands for which of theirs, and how one becomes the other in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .. import nn as ours
from ..nn._weighted import compute_weights
from .chains import Unknown, Weight, qualified_name

__all__ = [
    "PACKAGES",
    "PADDING",
    "PLAIN",
    "SEQUENTIAL",
    "WEIGHTED",
    "become",
    "convert_container",
    "package_of",
]

PACKAGES = ("deel", "orthogonium")
_DEEL = "deel.torchlip.modules."
_ORTHOGONIUM = "orthogonium.layers."
SEQUENTIAL = _DEEL + "module.Sequential"
PADDING = "deel.torchlip.functional.SymmetricPad"
"""A part of their convolutions."""


def package_of(module: nn.Module) -> str:
    """The first part of the qualified name of its class."""
    return qualified_name(module).partition(".")[0]


# ---- layers with a normalised weight -------------------------------------------------------------

# A builder gets the layer, what its weight is, and whether outputs have to stay as they are.
_BuildWeighted = Callable[[Any, Weight, bool], nn.Module]


def _settings(layer: Any, weight: Weight) -> dict[str, Any]:
    """What all constructors take. On meta: no memory, no random number is drawn."""
    original = layer.parametrizations.weight.original
    settings = {
        "bias": layer.bias is not None,
        "k_coef_lip": weight.coefficient,
        "device": "meta",
        "dtype": original.dtype,
    }
    if weight.kind != "frobenius":
        settings["eps_spectral"] = weight.eps_spectral
        if weight.kind == "spectral":
            settings["eps_bjorck"] = None
        elif weight.eps_bjorck is not None:
            settings["eps_bjorck"] = weight.eps_bjorck
    return settings


def _linear(layer: Any, weight: Weight, strict: bool) -> nn.Module:
    sizes = (layer.in_features, layer.out_features)
    if weight.kind == "frobenius":
        each = weight.each
        return ours.FrobeniusLinear(*sizes, disjoint_neurons=each, **_settings(layer, weight))
    return ours.SpectralLinear(*sizes, **_settings(layer, weight))


def _convolution(kind: type[nn.Module], layer: Any, weight: Weight, **settings: Any) -> nn.Module:
    kernel = tuple(layer.parametrizations.weight.original.shape[2:])
    if kernel != tuple(layer.kernel_size):
        raise Unknown(f"its kernel is {kernel}, but its kernel_size {tuple(layer.kernel_size)}")
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
        **{"padding": layer.padding, "padding_mode": layer.padding_mode, **settings},
        **_settings(layer, weight),
    )


def _padding(layer: Any, strict: bool) -> dict[str, Any]:
    """deel-torchlip's convolutions pad symmetrically in a module of their own."""
    padding, mode = layer.old_padding, layer.old_padding_mode.lower()
    sides = padding if isinstance(padding, (tuple, list)) else (padding,)
    if mode == "symmetric" and 0 in sides and strict:
        raise Unknown(f"with padding={padding!r} it pads by the whole input where it should by 0")
    return {"padding": padding, "padding_mode": mode}


def _padded(kind: type[nn.Module]) -> _BuildWeighted:
    def build(layer: Any, weight: Weight, strict: bool) -> nn.Module:
        return _convolution(kind, layer, weight, **_padding(layer, strict))

    return build


def _plainly(kind: type[nn.Module]) -> _BuildWeighted:
    def build(layer: Any, weight: Weight, strict: bool) -> nn.Module:
        extra = {"output_padding": layer.output_padding} if layer.transposed else {}
        return _convolution(kind, layer, weight, **extra)

    return build


WEIGHTED: dict[str, _BuildWeighted] = {
    _DEEL + "linear.SpectralLinear": _linear,
    _DEEL + "linear.FrobeniusLinear": _linear,
    _DEEL + "conv.SpectralConv1d": _padded(ours.SpectralConv1d),
    _DEEL + "conv.SpectralConv2d": _padded(ours.SpectralConv2d),
    _DEEL + "conv.FrobeniusConv2d": _padded(ours.FrobeniusConv2d),
    _DEEL + "conv.SpectralConvTranspose2d": _plainly(ours.SpectralConvTranspose2d),
    _ORTHOGONIUM + "linear.ortho_linear.OrthoLinear": _linear,
    _ORTHOGONIUM + "linear.ortho_linear.UnitNormLinear": _linear,
    _ORTHOGONIUM + "conv.AOC.rko_conv.RKOConv2d": _plainly(ours.SpectralConv2d),
    _ORTHOGONIUM + "conv.AOC.rko_conv.RkoConvTranspose2d": _plainly(ours.SpectralConvTranspose2d),
}
"""By the qualified name of their class: what builds ours, with the constant of ``weight``."""


# ---- layers without one --------------------------------------------------------------------------

_Build = Callable[[Any, bool], nn.Module]


def _k(build: Callable[[Any, float], nn.Module]) -> _Build:
    """Of layers that honour their constant."""
    return lambda layer, strict: build(layer, layer._coefficient_lip)


def _ignoring_k(build: Callable[[Any, float], nn.Module]) -> _Build:
    """Of layers that are 1-Lipschitz whatever constant they are given."""

    def converted(layer: Any, strict: bool) -> nn.Module:
        k = layer._coefficient_lip
        if k >= 1.0:
            return build(layer, 1.0)
        if strict:
            raise Unknown(f"it ignores k_coef_lip={k:g}: its constant is 1")
        return build(layer, k)

    return converted


def _prelu(layer: Any, strict: bool) -> nn.Module:
    k = layer._coefficient_lip
    if k < 1.0 and strict:
        raise Unknown(f"its slope for positive inputs is 1, more than k_coef_lip={k:g}")
    return ours.LPReLU(layer.num_parameters, k_coef_lip=k, device="meta")


def _windows(build: Callable[[Any, float], nn.Module]) -> _Build:
    def converted(layer: Any, strict: bool) -> nn.Module:
        if layer.ceil_mode and strict:
            raise Unknown("with ceil_mode=True its constant is exceeded at the border")
        return build(layer, layer._coefficient_lip)

    return converted


def _pad_conv(kind: type[nn.Module]) -> _Build:
    def build(layer: Any, strict: bool) -> nn.Module:
        return kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            device="meta",
            **_padding(layer, strict),
        )

    return build


def _layer_centering(layer: Any, strict: bool) -> nn.Module:
    features = 1 if layer.bias is None else layer.bias.numel()
    if 0 in layer.dim:
        raise Unknown(f"its mean, over dimensions {tuple(layer.dim)}, is one of several samples")
    return ours.LayerCentering(features, layer.dim, layer.bias is not None, "meta")


def _batch_norm(kind: Any, *names: str) -> _Build:
    def build(layer: Any, strict: bool) -> nn.Module:
        dim = layer.dim  # theirs fills it in at the first call
        if dim is not None and sorted(dim) != [0, *range(2, len(dim) + 1)]:
            raise Unknown(f"its statistics, over dimensions {tuple(dim)}, are not one a channel")
        settings = {name: getattr(layer, name) for name in names}
        new: nn.Module = kind(
            layer.num_features, bias=layer.bias is not None, device="meta", **settings
        )
        return new

    return build


PLAIN: dict[str, _Build] = {
    _DEEL + "activation.MaxMin": _k(lambda m, k: ours.MaxMin(m._dim, k)),
    _DEEL + "activation.GroupSort": _k(lambda m, k: ours.GroupSort(m.group_size, k)),
    _DEEL + "activation.GroupSort2": _k(lambda m, k: ours.GroupSort2(k)),
    _DEEL + "activation.FullSort": _k(lambda m, k: ours.FullSort(k)),
    _DEEL + "activation.LPReLU": _prelu,
    _DEEL + "activation.HouseHolder": _ignoring_k(
        lambda m, k: ours.HouseHolder(2 * m.theta.numel(), k, device="meta")
    ),
    _DEEL + "downsampling.InvertibleDownSampling": _ignoring_k(
        lambda m, k: ours.InvertibleDownSampling(m.downscale_factor, k)
    ),
    _DEEL + "upsampling.InvertibleUpSampling": _ignoring_k(
        lambda m, k: ours.InvertibleUpSampling(m.upscale_factor, k)
    ),
    _DEEL + "pooling.ScaledAvgPool2d": _windows(
        lambda m, k: ours.ScaledAvgPool2d(
            m.kernel_size,
            m.stride,
            m.padding,
            m.ceil_mode,
            m.count_include_pad,
            m.divisor_override,
            k,
        )
    ),
    _DEEL + "pooling.ScaledL2NormPool2d": _windows(
        lambda m, k: ours.ScaledL2NormPool2d(m.kernel_size, m.stride, m.ceil_mode, k)
    ),
    _DEEL + "pooling.ScaledAdaptiveAvgPool2d": _k(
        lambda m, k: ours.ScaledAdaptiveAvgPool2d(m.output_size, k)
    ),
    _DEEL + "pooling.ScaledAdaptativeL2NormPool2d": _k(
        lambda m, k: ours.ScaledAdaptativeL2NormPool2d(m.output_size, k)
    ),
    _DEEL + "unconstrained.PadConv1d": _pad_conv(ours.PadConv1d),
    _DEEL + "unconstrained.PadConv2d": _pad_conv(ours.PadConv2d),
    _DEEL + "normalization.LayerCentering": _layer_centering,
    _DEEL + "normalization.BatchCentering": _batch_norm(ours.BatchCentering),
    _DEEL + "normalization.BatchLipNorm": _batch_norm(
        ours.BatchLipNorm, "centering", "normalize", "eps"
    ),
    _DEEL + "normalization.ScaleBiasLayer": lambda m, strict: ours.ScaleBiasLayer(
        m.scalar, m.num_features, m.bias is not None, "meta"
    ),
    _DEEL + "residual.LipResidual": lambda m, strict: ours.LipResidual("meta"),
}
"""By the qualified name of their class: what builds ours."""


# ---- the change itself ---------------------------------------------------------------------------

_INTERNALS = frozenset(nn.Module().__dict__)
_THEIRS = {
    "deel": {"_coefficient_lip", "factory", "scaling", "scalingFactor"}
    | {"old_padding", "old_padding_mode", "pad"}
    | {"_batch_mean", "_batch_meansq", "_batch_count", "local_num_elements", "_first"},
    "orthogonium": {"scale"},
}


def become(module: nn.Module, new: nn.Module) -> None:
    """Gives ``module`` the class and settings of ``new``; its tensors, hooks and mode stay its own.

    Attributes that others have set on it stay as well. References to it remain valid.
    """
    dropped = _THEIRS[package_of(module)]
    factory = module.__dict__.get("factory")
    state = {key: v for key, v in module.__dict__.items() if key not in dropped}
    state.update({key: v for key, v in new.__dict__.items() if key not in _INTERNALS})
    if "old_padding" in module.__dict__:
        state["_modules"].pop("pad", None)
    # nn.Module intercepts attribute access, and the class has to go first.
    object.__setattr__(module, "__class__", parametrize.type_before_parametrizations(new))
    module.__dict__.clear()
    module.__dict__.update(state)
    if "parametrizations" in module._modules:
        compute_weights(module)
    if factory is not None:  # it holds nothing but its layers, which remain the same objects
        factory.__class__ = ours.SharedLipFactory
        module.factory = factory


def convert_container(module: Any, strict: bool) -> str:
    """Converts deel-torchlip's Sequential, whose layers have become what they become.

    Returns:
        What to know about its constant.

    Raises:
        Unknown: if it has to stay as it is.
    """
    children = list(module._modules.values())
    if any(b.__module__.partition(".")[0] == "deel" for c in children for b in type(c).__mro__):
        raise Unknown("it holds layers that were not converted")
    promised = float(module._coefficient_lip)
    layers = [child for child in children if isinstance(child, ours.LipschitzModule)]
    product = math.prod(layer.k_coef_lip for layer in layers)
    part = promised ** (1 / len(layers)) if layers else 1.0
    even = all(math.isclose(layer.k_coef_lip, part, rel_tol=1e-9) for layer in layers)
    new = ours.Sequential()
    note = ""
    if layers and even:
        new._k = promised
    elif product > promised and not strict:
        note = f"its layers' constants, {product:.6g} together, were shared out anew"
    else:
        # The constant is the product of what its layers promise.
        new._shares_out = False
        if not math.isclose(product, promised, rel_tol=1e-9):
            note = f"k_coef_lip is the product of its layers', {product:.6g}, not {promised:g}"
    become(module, new)
    if new._shares_out and not even:
        module.k_coef_lip = promised
    return note
