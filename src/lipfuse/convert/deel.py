"""Checkpoints in the format of deel-torchlip. Those in its format are loaded by the layers."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from .._checkpoint import WeightChain, deel_factor
from .._checks import check_bool
from ..parametrizations import LipschitzWeight
from .chains import qualified_name

__all__ = ["to_deel_state_dict"]

_LAYERS = frozenset(
    {
        "lipfuse.nn.linear.SpectralLinear",
        "lipfuse.nn.linear.FrobeniusLinear",
        "lipfuse.nn.conv.SpectralConv1d",
        "lipfuse.nn.conv.SpectralConv2d",
        "lipfuse.nn.conv_transpose.SpectralConvTranspose2d",
        "lipfuse.nn.conv.FrobeniusConv2d",
    }
)


def to_deel_state_dict(model: nn.Module, *, strict: bool = True) -> OrderedDict[str, Tensor]:
    """The state of a model as deel-torchlip 1.0.5 writes it.

    The model of deel-torchlip that is built in the same way loads it with ``strict=True``, and in
    evaluation computes the same to 1e-5. The other direction needs no function: ``load_state_dict``
    of the layers here takes deel-torchlip's checkpoints as they are.

    Args:
        model: a model with layers of :mod:`lipfuse.nn`; left as it is.
        strict: whether to refuse layers that deel-torchlip's of the same arguments would turn into
            another function. Otherwise their parameters are written all the same.

    Returns:
        Names and tensors. Parameters and buffers share their memory with the model's, as in
        ``state_dict()``.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: for a layer with a normalised weight that deel-torchlip does not have, and with
            ``strict`` for one with which it would compute something else, by name; for a weight
            that is not finite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_bool("strict", strict)
    additions: dict[str, dict[str, Tensor]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        chains: Any = module._modules.get("parametrizations")
        for tensor, chain in chains.items() if isinstance(chains, nn.ModuleDict) else ():
            if isinstance(chain, WeightChain):
                prefix = f"{name}.parametrizations.{tensor}.".removeprefix(".")
                additions[prefix] = _state(name or "the model", module, chain, strict)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in model.state_dict().items():
        of = next((prefix for prefix in additions if key.startswith(prefix)), None)
        if of is None or key == of + "original":
            state[key] = value
        if of is not None and key == of + "original":
            state.update({of + name: x for name, x in additions[of].items()})
    return state


def _state(name: str, layer: Any, chain: WeightChain, strict: bool) -> dict[str, Tensor]:
    """What their layer keeps besides the parameter."""
    kind = qualified_name(layer)
    step: Any = chain[0]
    if kind not in _LAYERS:
        raise ValueError(f"{name} must be a layer that deel-torchlip has, got {kind}")
    if strict:
        _check_function(name, layer, step)
    if not isinstance(step, LipschitzWeight):
        return {}
    original = chain.original.detach()
    training = step.training
    try:
        with torch.no_grad(), torch.autocast(original.device.type, enabled=False):
            normalised = step.eval()(original) / step.scale
    finally:
        step.train(training)
    transposed = getattr(layer, "transposed", False)
    u, v = _leading_vectors(original.movedim(1 if transposed else 0, 0).flatten(1))
    vectors = {"0._u": u.to(original.dtype), "0._v": v.to(original.dtype)}
    return vectors if step.method == "spectral" else {**vectors, "1._w_bjorck": normalised}


def _check_function(name: str, layer: Any, step: Any) -> None:
    if getattr(step, "groups", 1) > 1:
        raise ValueError(
            f"{name} must have one group, got groups={step.groups}: deel-torchlip normalises all "
            "groups by one norm"
        )
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return
    if getattr(step, "method", "") == "spectral" and layer.transposed:
        raise ValueError(
            f"{name} must be normalised with eps_bjorck, got eps_bjorck=None: deel-torchlip takes "
            "the spectral norm of another matrix for transposed convolutions"
        )
    if getattr(step, "operator", None) is not None:
        raise ValueError(
            f"{name} must have normalization='factor', got normalization='operator': "
            "deel-torchlip divides no convolution by its own norm"
        )
    ours, k = float(layer._factor), float(layer.k_coef_lip)  # type: ignore[arg-type]
    theirs = deel_factor(tuple(layer.kernel_size), tuple(layer.stride))
    if not math.isclose(ours, theirs, rel_tol=1e-6):
        raise ValueError(
            f"{name} must have a corrective factor that deel-torchlip knows, got {ours:.6g} where "
            f"it takes {theirs:.6g}: strict=False writes its parameters, for a layer that is built "
            f"there with k_coef_lip={k * ours / theirs:.6g}"
        )


def _leading_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors of the largest singular value, in float64."""
    w = matrix.double()
    wide = w.shape[0] < w.shape[1]
    x = torch.linalg.eigh(w @ w.mT if wide else w.mT @ w)[1][:, -1]
    y = w.mT @ x if wide else w @ x
    y = y / torch.linalg.vector_norm(y).clamp_min(torch.finfo(y.dtype).tiny)
    return (x, y) if wide else (y, x)
