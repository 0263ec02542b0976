"""Lipschitz activation layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from .. import functional as F
from .._checks import check_finite, check_positive_int, check_tensor
from ..export import plain_function, plain_module
from .module import LipschitzModule, _join_repr

__all__ = ["FullSort", "GroupSort", "GroupSort2", "HouseHolder", "LPReLU", "MaxMin"]


def _scaled(output: Tensor, k: float) -> Tensor:
    return output if k == 1.0 else output * k


class MaxMin(nn.Module, LipschitzModule):
    r"""The positive and the negative part of the input, one after the other, times k.

    Args:
        dim: the dimension that doubles. ``None``: the channels, which are dimension 1, or 0 for an
            input of one dimension.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, *)` or :math:`(C)`.
        - Output: :math:`(N, 2C, *)` or :math:`(2C)`.

    Raises:
        TypeError: if ``dim`` is neither an integer nor ``None``, or ``k_coef_lip`` not a number.
        ValueError: if ``k_coef_lip`` is not positive and finite; for inputs without such a ``dim``.

    See also :func:`lipfuse.functional.max_min`.
    """

    def __init__(self, dim: int | None = None, k_coef_lip: float = 1.0) -> None:
        nn.Module.__init__(self)
        LipschitzModule.__init__(self, k_coef_lip)
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            raise TypeError(f"dim must be an integer or None, got {dim!r}")
        self._dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.max_min(input, self._dim, scale=self._k)

    def vanilla_export(self) -> nn.Module:
        dim, k = self._dim, self._k

        def max_min(input: Tensor) -> Tensor:
            # Without a dim, the channels are dimension 1, or 0 if it is the only one.
            # torch's minimum, unlike Python's, can be traced. It is untyped.
            sym_min: Any = torch.sym_min
            axis = sym_min(1, input.dim() - 1) if dim is None else dim
            parts = (torch_functional.relu(input), torch_functional.relu(-input))
            return _scaled(torch.cat(parts, dim=axis), k)

        plain = plain_function("MaxMin", max_min)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr("" if self._dim is None else f"dim={self._dim}", self._k_repr())


class GroupSort(nn.Module, LipschitzModule):
    r"""Sort groups of neighbouring channels in ascending order, times k.

    Args:
        group_size: how many channels are sorted together; it must divide their number. ``None``, or
            more than there are, sorts them all.
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, *)`.
        - Output: as the input.

    Raises:
        TypeError: if ``group_size`` is neither an integer nor ``None``, or ``k_coef_lip`` not a
            number.
        ValueError: if ``group_size`` or ``k_coef_lip`` is not positive, or the latter not finite;
            for inputs whose channels are no multiple of ``group_size``.

    Example:
        >>> import torch
        >>> from lipfuse import nn
        >>> nn.GroupSort(2)(torch.tensor([[3.0, 1.0, 2.0, 4.0]]))
        tensor([[1., 3., 2., 4.]])

    References:
        C. Anil, J. Lucas, R. Grosse, *Sorting out Lipschitz function approximation*, ICML 2019.

    See also :func:`lipfuse.functional.group_sort`.
    """

    def __init__(self, group_size: int | None = None, k_coef_lip: float = 1.0) -> None:
        nn.Module.__init__(self)
        LipschitzModule.__init__(self, k_coef_lip)
        if group_size is not None:
            group_size = check_positive_int("group_size", group_size)
        self.group_size = group_size

    def forward(self, input: Tensor) -> Tensor:
        # In dimension 1 always: check here, since the function takes any dimension.
        check_tensor("input", input, min_dim=2)
        return F.group_sort(input, self.group_size, scale=self._k)

    def vanilla_export(self) -> nn.Module:
        plain = plain_function(type(self).__name__, _plain_sort(self.group_size, self._k))
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(f"group_size={self.group_size}", self._k_repr())


def _plain_sort(group_size: int | None, k: float) -> Callable[[Tensor], Tensor]:
    """GroupSort without branches on the input's size, for tracing.

    ONNX has no stable sort; which of two equal numbers comes first does not show in their values.
    """

    def sort_pairs(input: Tensor) -> Tensor:
        pairs = torch.unflatten(input, 1, ((input.shape[1] + 1) // 2, -1))
        first, last = pairs.select(2, 0), pairs.select(2, -1)
        swap = first > last
        low, high = torch.where(swap, last, first), torch.where(swap, first, last)
        # A lone channel is its own partner, and must not come out twice.
        together = torch.stack((low, high), 2).flatten(1, 2)
        return _scaled(together.narrow(1, 0, input.shape[1]), k)

    def sort_groups(input: Tensor) -> Tensor:
        # Rounded up, since fewer channels than that are one group.
        count = (input.shape[1] + size - 1) // size
        groups = torch.unflatten(input, 1, (count, -1))
        return _scaled(torch.sort(groups, dim=2)[0].flatten(1, 2), k)

    def sort_all(input: Tensor) -> Tensor:
        return _scaled(torch.sort(input, dim=1)[0], k)

    if group_size is None:
        return sort_all
    size = group_size
    return sort_pairs if group_size == 2 else sort_groups


class GroupSort2(GroupSort):
    r"""Sort pairs of neighbouring channels in ascending order, times k.

    Args:
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, *)` with even :math:`C`.
        - Output: as the input.

    Raises:
        TypeError: if ``k_coef_lip`` is not a number.
        ValueError: if it is not positive and finite; for inputs with an odd number of channels.

    See also :class:`GroupSort` and :func:`lipfuse.functional.group_sort_2`.
    """

    def __init__(self, k_coef_lip: float = 1.0) -> None:
        super().__init__(group_size=2, k_coef_lip=k_coef_lip)

    def extra_repr(self) -> str:
        return self._k_repr()


class FullSort(GroupSort):
    r"""Sort all channels in ascending order, times k.

    Args:
        k_coef_lip: the Lipschitz constant: positive and finite.

    Shape:
        - Input: :math:`(N, C, *)`.
        - Output: as the input.

    Raises:
        TypeError: if ``k_coef_lip`` is not a number.
        ValueError: if it is not positive and finite.

    See also :class:`GroupSort` and :func:`lipfuse.functional.full_sort`.
    """

    def __init__(self, k_coef_lip: float = 1.0) -> None:
        super().__init__(group_size=None, k_coef_lip=k_coef_lip)

    def extra_repr(self) -> str:
        return self._k_repr()


class LPReLU(nn.PReLU, LipschitzModule):
    r"""PReLU with a learnt slope that is held within k.

    .. math::
        \mathrm{out} = \min(1, k)\,\max(x, 0) + \min(\max(a, -k), k)\,\min(x, 0)

    Args:
        num_parameters: 1, or the number of channels: the number of slopes :math:`a` to learn.
        init: the initial value of :math:`a`.
        k_coef_lip: the Lipschitz constant: positive and finite.
        device: where the parameter lives.
        dtype: the parameter's dtype.

    Shape:
        - Input: :math:`(N, C, *)`, or any shape for a single slope.
        - Output: as the input.

    Raises:
        TypeError: if ``num_parameters`` is not an integer, or another argument not a number.
        ValueError: if ``num_parameters`` is not positive, ``init`` not finite, or ``k_coef_lip``
            not positive and finite.

    See also :func:`lipfuse.functional.lipschitz_prelu`.
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        k_coef_lip: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive_int("num_parameters", num_parameters)
        check_finite("init", init)
        nn.PReLU.__init__(self, num_parameters, init, device=device, dtype=dtype)
        LipschitzModule.__init__(self, k_coef_lip)

    def forward(self, input: Tensor) -> Tensor:
        return F.lipschitz_prelu(input, self.weight, self._k)

    def vanilla_export(self) -> nn.Module:
        k = min(self._k, 1.0)
        plain = nn.PReLU(self.num_parameters, device="meta")
        # As forward does it: k < 1 scales the output of a PReLU whose slope is relative to k.
        slope = (self.weight.detach() / k).clamp(-self._k / k, self._k / k)
        plain.weight = nn.Parameter(slope.clone(), requires_grad=self.weight.requires_grad)
        if k == 1.0:
            plain.training = self.training
            return plain
        scaled = plain_module(
            "LPReLU", plain, lambda input, weight: torch_functional.prelu(input, weight) * k
        )
        scaled.training = self.training
        return scaled

    def extra_repr(self) -> str:
        return _join_repr(super().extra_repr(), self._k_repr())


_THETA_INITIALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
    "normal": nn.init.normal_,
}


class HouseHolder(nn.Module, LipschitzModule):
    r"""Reflect pairs of channels that lie on the far side of a learnt line, times k.

    Args:
        channels: the number of channels, even. Channel :math:`i` is paired with
            :math:`i + C/2`.
        k_coef_lip: the Lipschitz constant: positive and finite.
        theta_initializer: the angles to start from: a number for all of them, ``"zeros"``,
            ``"ones"`` or ``"normal"``; ``None`` means :math:`\pi/2`.
        device: where the parameter lives.
        dtype: the parameter's dtype.

    Shape:
        - Input: :math:`(N, C, *)`; ``forward`` takes the dimension of the channels as ``axis``.
        - Output: as the input.

    Raises:
        TypeError: if ``channels`` is not an integer, or ``k_coef_lip`` not a number.
        ValueError: if ``channels`` is not positive and even, ``theta_initializer`` unknown, or
            ``k_coef_lip`` not positive and finite; for inputs with another number of channels.

    References:
        S. Singla, S. Singla, S. Feizi, *Improved deterministic l2 robustness on CIFAR-10 and
        CIFAR-100*, ICLR 2022.

    See also :func:`lipfuse.functional.householder`.
    """

    def __init__(
        self,
        channels: int,
        k_coef_lip: float = 1.0,
        theta_initializer: float | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        LipschitzModule.__init__(self, k_coef_lip)
        check_positive_int("channels", channels)
        if channels % 2 != 0:
            raise ValueError(f"channels must be an even integer >= 2, got {channels!r}")
        self.theta: nn.Parameter = nn.Parameter(
            torch.empty(channels // 2, device=device, dtype=dtype)
        )
        with torch.no_grad():
            if theta_initializer is None:
                self.theta.fill_(0.5 * math.pi)
            elif isinstance(theta_initializer, str):
                if theta_initializer not in _THETA_INITIALIZERS:
                    raise ValueError(
                        "theta_initializer must be a number, None or one of "
                        f"{', '.join(map(repr, _THETA_INITIALIZERS))}, got {theta_initializer!r}"
                    )
                _THETA_INITIALIZERS[theta_initializer](self.theta)
            else:
                self.theta.fill_(check_finite("theta_initializer", theta_initializer))

    def forward(self, z: Tensor, axis: int = 1) -> Tensor:
        return _scaled(F.householder(z, self.theta, axis), self._k)

    def vanilla_export(self) -> nn.Module:
        k = self._k

        def reflect(input: Tensor, theta: Tensor) -> Tensor:
            # Channels last, so that the angles broadcast whatever the rank is.
            moved = input.movedim(1, -1)
            sine, cosine = torch.sin(0.5 * theta), torch.cos(0.5 * theta)
            x = moved.narrow(-1, 0, theta.shape[0])
            y = moved.narrow(-1, theta.shape[0], theta.shape[0])
            twice = 2.0 * torch_functional.relu(x * sine - y * cosine)
            parts = (x - twice * sine, y + twice * cosine)
            return _scaled(torch.cat(parts, dim=-1).movedim(-1, 1), k)

        tensors = nn.Module()
        tensors.theta = nn.Parameter(
            self.theta.detach().clone(), requires_grad=self.theta.requires_grad
        )
        plain = plain_module("HouseHolder", tensors, reflect)
        plain.training = self.training
        return plain

    def extra_repr(self) -> str:
        return _join_repr(f"channels={2 * self.theta.numel()}", self._k_repr())
