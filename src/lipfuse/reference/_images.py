"""What the operators on activations share."""

from __future__ import annotations

import torch
from torch import Tensor


def laid_out_as(like: Tensor, values: Tensor) -> Tensor:
    """The values in the memory format of ``like``: its strides if it is dense."""
    return torch.empty_like(like).copy_(values)


def widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def windows_of(input: Tensor, kernel: tuple[int, int], ceil_mode: bool) -> Tensor:
    """``(..., rows, kernel, columns, kernel)``, with zeros beyond the border."""
    for axis, k in ((-2, kernel[0]), (-1, kernel[1])):
        size = input.shape[axis]
        count = -(-size // k) if ceil_mode else size // k
        missing = max(0, count * k - size)
        input = input.narrow(axis, 0, min(size, count * k))
        pad = (0, missing) if axis == -1 else (0, 0, 0, missing)
        input = torch.nn.functional.pad(input, pad)
    height, width = input.shape[-2:]
    shape = (height // kernel[0], kernel[0], width // kernel[1], kernel[1])
    return input.reshape(*input.shape[:-2], *shape)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """The adjoint of :func:`windows_of`."""
    image = windows.flatten(-2).flatten(-3, -2)
    # A negative pad cuts off what lies beyond the border.
    missing = (0, width - image.shape[-1], 0, height - image.shape[-2])
    return torch.nn.functional.pad(image, missing)
