"""``lipfuse.certify``: from a network to its certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from .._checks import check_positive_int
from . import (  # noqa: F401, they fill the table of rules
    activations,
    arithmetic,
    pooling,
    refusals,
    selection,
    structure,
    weighted,
)
from .certificate import Certificate, LayerBound
from .layers import rule_for
from .modules import computing_weights_exactly
from .norms import up
from .tracing import Tracer
from .values import Value

__all__ = ["certify"]

# Pairs of outputs are bounded one by one up to so many outputs.
_MOST_PAIRED_OUTPUTS = 1024
# How far two ways of computing the same outputs may differ, relative to the largest of them.
_SAME = {torch.float64: 1e-6, torch.float32: 1e-3}
_SAME_HALF = 0.05


def certify(model: nn.Module, input_shape: Sequence[int]) -> Certificate:
    r"""Prove an upper bound of a network's Lipschitz constant.

    The network is run once on a stand-in for its input, which follows every operation, whatever the
    ``forward`` looks like: chains, residual and parallel branches, concatenations. Each operation
    has a proven bound; layers with weights are bounded by the norm of the weights they multiply by,
    not by what they promise. Bounds are put together as functions of the network's input: in a
    chain they multiply, a sum of branches has the sum of their bounds, values side by side the root
    of the sum of squares. A part that is linear is also bounded as the one matrix that it is, if
    that is small enough. All in float64, with a margin for rounding in each step.

    Args:
        model: made of layers of ``lipfuse.nn``, of ``torch.nn`` modules and torch functions that
            have a Lipschitz constant, and of modules that were given to
            :func:`lipfuse.certification.register`. It is left as it is. Layers whose weight is
            computed count by the weight that they have in evaluation.
        input_shape: of one sample, without the batch dimension.

    Returns:
        The certificate of what the model computes from one sample.

    Raises:
        TypeError: if the model is no module, or has something in it for which no bound is known:
            the message names the module.
        ValueError: if a module has no bound with its settings (dropout or batch normalisation in
            training mode, say) or for what it is used (a product of two values that depend on the
            input), if weights are not finite, if the model cannot take such an input, or mixes the
            samples of a batch.

    Example:
        >>> import lipfuse
        >>> from lipfuse import nn
        >>> model = nn.Sequential(nn.SpectralLinear(8, 4), nn.GroupSort2(), k_coef_lip=2.0)
        >>> certificate = lipfuse.certify(model, (8,))
        >>> f"{certificate.lipschitz:.4f}"
        '2.0000'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(input_shape, (tuple, list, torch.Size)):
        raise TypeError(f"input_shape must be a tuple or list of ints, got {input_shape!r}")
    shape = tuple(check_positive_int("input_shape", n) for n in input_shape)
    model = _unwrapped(model)
    sample = _samples(model, shape)
    tracer = Tracer(model, rule_for)
    output = tracer.run(sample[:1], sample[1:])
    if output is None:
        return _of_a_constant(model, shape, sample)
    if not math.isfinite(output.bound):
        raise ValueError(output.reason or "the bound is infinite")
    _check_one_by_one(model, sample, output.sample)
    # Decisions are taken on vectors; of images, single elements are of no interest.
    is_vector = sum(n > 1 for n in output.shape) <= 1
    whole = torch.full((output.sample.numel(),), output.bound, dtype=torch.float64)
    outputs = output.elements().reshape(-1) if is_vector else whole
    layers = tuple(
        LayerBound(
            row.name,
            row.layer,
            row.own,
            row.value.bound,
            row.method or ("moves elements only" if row.own == 1.0 else ""),
            tuple(row.value.shape[1:]),
        )
        for row in tracer.rows
    )
    return Certificate(
        lipschitz=output.bound,
        layers=layers,
        input_shape=shape,
        output_shape=tuple(output.shape[1:]),
        outputs=outputs,
        pairs=_pairs(output, outputs) if is_vector else None,
        margin=output.margin,
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """What compilation and parallel training wrap."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _samples(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Two random samples, where and in the dtype in which the model works."""
    tensors = [*model.parameters(), *model.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    if like.is_meta:
        raise ValueError("model must have weights to be certified, got parameters on meta")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return drawn.to(like.device, like.dtype)


def _check_one_by_one(model: nn.Module, samples: Tensor, alone: Tensor) -> None:
    """The certificate is about samples one by one: they must not depend on each other.

    And what was followed must be what the model computes.
    """
    tolerance = _SAME.get(alone.dtype, _SAME_HALF)
    with torch.no_grad(), computing_weights_exactly(model):
        again = model(samples[:1])
        try:
            together = model(samples)[:1]
        except (RuntimeError, ValueError, IndexError):
            together = again  # it takes single samples only
    scale = tolerance * float(alone.double().abs().max()) if alone.numel() else 0.0

    def differ(other: Tensor) -> bool:
        if other.shape != alone.shape:
            return True
        return bool(((other - alone).double().abs() > scale).any())

    if differ(again):
        raise ValueError("model must compute the same each time to be certified")
    if differ(together):
        raise ValueError(
            "model must treat the samples of a batch one by one to be certified: its output for a "
            "sample depends on what else is in the batch"
        )


def _of_a_constant(model: nn.Module, shape: tuple[int, ...], sample: Tensor) -> Certificate:
    with torch.no_grad(), computing_weights_exactly(model):
        output = model(sample[:1])
    return Certificate(
        lipschitz=0.0,
        layers=(),
        input_shape=shape,
        output_shape=tuple(output.shape[1:]),
        outputs=torch.zeros(output[:1].numel(), dtype=torch.float64),
        pairs=None,
        margin=0.0,
    )


def _pairs(output: Value, outputs: Tensor) -> Optional[Tensor]:
    """A bound for the difference of any two outputs."""
    count = outputs.numel()
    if not 1 < count <= _MOST_PAIRED_OUTPUTS:
        return None
    together = up(math.sqrt(2.0) * output.bound, 4)
    pairs = (outputs[:, None] + outputs[None]).clamp_max(together)
    # It takes the same from all outputs.
    while output.op == "log_softmax" and max(output.shape) == count:
        output = output.parents[0]
    found = output.rows()
    if found is not None:
        matrix, error = found
        lengths = torch.cdist(matrix, matrix, compute_mode="donot_use_mm_for_euclid_dist")
        lengths = lengths * up(1.0, matrix.shape[1] + 8.0) + error[:, None] + error[None]
        pairs = torch.minimum(pairs, lengths * up(output.source.bound, 4))
    return pairs.fill_diagonal_(0.0)
