"""Padding by the mirror image, the edge included, which ``torch.nn`` does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor, fx, nn

from .._checks import check_bool, check_int_or_tuple, check_tensor
from ..export import plain_function

__all__ = ["SymmetricPad", "symmetric_pad"]


def _mirrored(input: Tensor, padding: Sequence[int]) -> Tensor:
    """Without a branch on the input's size, for tracing."""
    for i, (before, after) in enumerate(zip(padding[::2], padding[1::2])):
        axis = -1 - i
        # An empty slice where nothing is to be added.
        size = input.shape[axis]
        parts = [
            input.narrow(axis, 0, before).flip(axis),
            input,
            input.narrow(axis, size - after, after).flip(axis),
        ]
        input = torch.cat(parts, axis)
    return input


def symmetric_pad(input: Tensor, padding: Sequence[int]) -> Tensor:
    """Pads the last dimensions by their mirror image, the edge included.

    Args:
        input: a tensor with at least as many dimensions as are padded.
        padding: (before, after) of the last dimension, then of the one before it and so on, as for
            ``torch.nn.functional.pad``.

    Returns:
        The padded tensor.

    Raises:
        ValueError: if a dimension is smaller than what is to be added to it.
    """
    if any(p > input.shape[-1 - i // 2] for i, p in enumerate(padding)):
        raise ValueError(
            f"padding must not be larger than the input of shape {tuple(input.shape)}, "
            f"got {tuple(padding)}"
        )
    return _mirrored(input, padding)


class SymmetricPad(nn.Module):
    """Pads images, or lines, by their mirror image, the edge included.

    Pixels near the edge appear more than once: this module alone is not 1-Lipschitz.

    Args:
        pad: one number for all sides; one an axis, vertical first; or (left, right, top, bottom).
        onedim: pad the last dimension only, as for ``Conv1d``.

    Shape:
        ``(*, H, W)`` to ``(*, H + top + bottom, W + left + right)``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range; for inputs smaller than the
            padding.
    """

    def __init__(self, pad: Union[int, Sequence[int]], onedim: bool = False) -> None:
        super().__init__()
        axes = 1 if check_bool("onedim", onedim) else 2
        if isinstance(pad, (tuple, list)) and len(pad) == 2 * axes:
            self.pad: tuple[int, ...] = check_int_or_tuple("pad", pad, 2 * axes, minimum=0)
        else:
            sizes = check_int_or_tuple("pad", pad, axes, minimum=0)
            self.pad = tuple(size for size in reversed(sizes) for _ in range(2))
        self.onedim = onedim

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, min_dim=len(self.pad) // 2, floating=False)
        return symmetric_pad(x, self.pad)

    def vanilla_export(self) -> fx.GraphModule:
        """The same in plain torch functions."""
        padding = self.pad
        plain = plain_function("SymmetricPad", lambda x: _mirrored(x, padding))
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return f"pad={self.pad}"
