"""A residual connection that adds no gain."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, fx, nn

from .._checks import check_device, check_tensor
from ..export import plain_module
from .module import LipschitzModule

__all__ = ["LipResidual"]


class LipResidual(nn.Module, LipschitzModule):
    r"""A learnt mean of an input and of what a 1-Lipschitz branch made of it, times k.

    .. math:: \mathrm{out} = k\,\bigl(\alpha\,x + (1 - \alpha)\,y\bigr), \qquad
              \alpha = \mathrm{sigmoid}(a)

    For :math:`y = f(x)` with a 1-Lipschitz f it is k-Lipschitz in x: a convex combination of two
    1-Lipschitz maps. As a map of the pair (x, y) it is k-Lipschitz, too. If f is L-Lipschitz, the
    whole is :math:`k\,(\alpha + (1 - \alpha) L)`-Lipschitz.

    Args:
        device, dtype: of the parameter a, which starts at 0 and is learnt.
        k_coef_lip: the Lipschitz constant, positive.

    Shape:
        ``forward(x, y)`` takes two tensors of the same shape and returns one.

    Raises:
        TypeError: if x or y is not a floating-point tensor, or ``device`` not a device: the first
            argument is not an initial value of a.
        ValueError: if the shapes differ: broadcasting would repeat the smaller one, and with it
            its gain; if ``k_coef_lip`` is not positive and finite, or
            torch knows no such ``device``.
    """

    def __init__(
        self,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        k_coef_lip: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)
        LipschitzModule.__init__(self, k_coef_lip)
        self.alpha: nn.Parameter = nn.Parameter(
            torch.zeros((), device=check_device("device", device), dtype=dtype)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check_tensor("x", x)
        check_tensor("y", y)
        if x.shape != y.shape:
            raise ValueError(f"y must have the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
        return _mixed(x, y, self.alpha, self._k)

    def vanilla_export(self) -> fx.GraphModule:
        k = self._k
        tensors = nn.Module()
        tensors.alpha = nn.Parameter(
            self.alpha.detach().clone(), requires_grad=self.alpha.requires_grad
        )
        plain = plain_module(
            "LipResidual", tensors, lambda x, y, alpha: _mixed(x, y, alpha, k), inputs=("x", "y")
        )
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return self._k_repr()


def _mixed(x: Tensor, y: Tensor, alpha: Tensor, k: float) -> Tensor:
    share = torch.sigmoid(alpha)
    mean = share * x + (1 - share) * y
    return mean if k == 1.0 else mean * k
