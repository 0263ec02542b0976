"""Linear layers as operators on inputs of one shape, in float64."""

from __future__ import annotations

import copy
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .export import vanilla_model
from .nn.module import LipschitzModule

__all__ = ["LayerOperator", "label", "plain_copy"]

# A full decomposition is made where the smaller side is at most this, and the matrix fits.
_MOST_VALUES = 1024
_MOST_ELEMENTS = 2**22


def label(layer: nn.Module) -> str:
    """The name of the layer's type, whatever parametrizations it has."""
    name: str = parametrize.type_before_parametrizations(layer).__name__
    return name


def plain_copy(layer: nn.Module) -> nn.Module:
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
        raise ValueError(f"layer must be finite, got {label(layer)} with NaN or infinite elements")
    plain = plain.double().eval().requires_grad_(False)
    if isinstance(plain, nn.Linear) and plain._forward_pre_hooks:
        plain(torch.zeros(plain.in_features).to(tensors[0].device).double())  # computes the weight
    return plain


class LayerOperator:
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

    def singular_values(self) -> Optional[Tensor]:
        """All of them, in descending order; None if the operator is too large to decompose."""
        strides = self._circulant_strides()
        if strides is not None:
            return self._circulant_values(strides)
        fits = self.rows * self.columns <= _MOST_ELEMENTS
        if fits and min(self.rows, self.columns) <= _MOST_VALUES:
            return torch.linalg.svdvals(self._dense())
        return None

    def _dense(self) -> Tensor:
        identity = torch.eye(self.columns, dtype=torch.float64, device=self.zero.device)
        parts = identity.split(max(1, _MOST_ELEMENTS // max(self.columns, self.rows, 1)))
        return torch.cat([self.apply(part) for part in parts]).mT

    def _circulant_strides(self) -> Optional[tuple[int, ...]]:
        """The strides of a convolution that commutes with shifts, or None if it does not."""
        conv: Any = self.plain
        if not isinstance(conv, nn.modules.conv._ConvNd) or conv.padding_mode != "circular":
            return None
        sizes, outputs = self.shape[1:], self.constant.shape[2:]
        strides = tuple(conv.stride)
        fits = all(n == m * s for n, m, s in zip(sizes, outputs, strides))
        return strides if fits and len(sizes) == len(strides) else None

    def _circulant_values(self, strides: tuple[int, ...]) -> Tensor:
        """Of a circular convolution, from one small matrix for each frequency.

        Shifting the input by the stride shifts the output by one: on the input's phases, taken as
        channels, it is a circulant matrix of blocks, and the Fourier transform makes its blocks
        independent (Sedghi, Gupta, Long, arXiv 1805.10408, for a stride of 1).
        """
        inside = torch.ones((self.shape[0], *strides)).nonzero()
        impulses = self.zero.expand(len(inside), *self.shape).clone()
        impulses[(torch.arange(len(inside)), *inside.T)] = 1
        responses = self.apply(impulses).reshape(-1, *self.constant.shape[1:])
        blocks = torch.fft.fftn(responses, dim=tuple(range(2, responses.dim())))
        blocks = blocks.flatten(2).permute(2, 1, 0)
        return torch.linalg.svdvals(blocks).flatten().sort(descending=True).values
