"""Weights as matrices; memory layouts of results, as ``csrc/cpu/layout.h`` and ``pooling.h``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def merged(tensor: Tensor, dims: int) -> Tensor:
    """The last ``dims`` dimensions as one.

    By an operation that torch knows of batches of gradients, unlike ``flatten``.
    """
    if dims == 1:
        return tensor
    if tensor.numel() == 0:
        return tensor.flatten(-dims)
    return tensor.reshape(*tensor.shape[: tensor.dim() - dims], -1)


def as_matrices(weight: Tensor, groups: int = 1) -> Tensor:
    """A weight ``(out, in / groups, k...)`` as ``groups`` matrices; 0: it is a batch of them."""
    if groups > 1:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if groups == 0:
        return weight
    return merged(weight, weight.dim() - 1) if weight.dim() > 1 else weight.flatten(1)


def shaped_like(result: Tensor, weight: Tensor) -> Tensor:
    """A result that nobody else holds in the shape of the weight it is of."""
    if result.shape == weight.shape:
        return result
    out: Tensor = torch.ops.aten._unsafe_view.default(result, weight.shape)
    return out


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill a stretch of memory, in whatever order of the dimensions."""
    step = 1
    order = sorted((i for i in range(len(shape)) if shape[i] != 1), key=lambda i: strides[i])
    for i in order:
        if strides[i] != step:
            return False
        step *= shape[i]
    return True


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides, step = [0] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i] = step
        step *= max(1, shape[i])
    return strides


def doubled_strides(tensor: Tensor, dim: int) -> tuple[list[int], list[int]]:
    """The strides of a tensor and of one of twice its size along ``dim``, both dense.

    The order of the dimensions is that of the tensor's strides, unless they leave it open: where
    there is a single element along ``dim``, its stride must be a place among the others'.
    """
    shape, strides, dim = list(tensor.shape), list(tensor.stride()), dim % tensor.dim()
    dense = tensor.numel() > 0 and is_dense(shape, strides)
    if dense and shape[dim] == 1:
        places = [s * n for s, n in zip(strides, shape, strict=True) if n > 1]
        dense = strides[dim] == 1 or strides[dim] in places
    if dense:
        inner = strides[dim]
        return strides, [2 * s if i != dim and s >= inner else s for i, s in enumerate(strides)]
    twice = [2 * n if i == dim else n for i, n in enumerate(shape)]
    return contiguous_strides(shape), contiguous_strides(twice)


def _channels_last_strides(shape: Sequence[int]) -> list[int]:
    channels, height, width = (max(1, n) for n in shape[-3:])
    strides = [1, channels * width, channels]
    return [channels * height * width, *strides] if len(shape) == 4 else strides


def _matches(tensor: Tensor, strides: Sequence[int]) -> bool:
    pairs = zip(tensor.shape, tensor.stride(), strides, strict=True)
    return all(size == 1 or have == want for size, have, want in pairs)


def empty_image(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Channels last if ``like`` is, and not contiguous as well; else contiguous."""
    last = (
        like.dim() in (3, 4)
        and not _matches(like, contiguous_strides(like.shape))
        and _matches(like, _channels_last_strides(like.shape))
    )
    # One channel that is last is not told from contiguous by the kernels.
    strides = _channels_last_strides(shape) if last and like.shape[-3] != 1 else None
    if strides is None:
        return like.new_empty(shape)
    return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)
