"""The gradient penalty: Lipschitz by persuasion, to compare with layers that are so by design."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor

from .._checks import check_bool, check_choice, check_positive, check_same, check_tensor
from .loss import REDUCTIONS, apply_reduction

__all__ = ["gradient_penalty"]


def gradient_penalty(
    function: Callable[[Tensor], Tensor],
    input: Tensor,
    other: Optional[Tensor] = None,
    *,
    target: float = 1.0,
    one_sided: bool = False,
    reduction: str = "mean",
    generator: Optional[torch.Generator] = None,
) -> Tensor:
    r"""How far the slope of a critic is from what it should be, at some points, squared.

    .. math::
        (\|\nabla f(\hat x)\|_2 - k)^2, \qquad \hat x = t x + (1 - t) y, \quad t \sim U(0, 1),

    or with ``one_sided`` :math:`\max(0, \|\nabla f(\hat x)\|_2 - k)^2`, which leaves slopes below k
    alone. Add it, times a weight (10 is customary), to the loss of a critic.

    It is a soft constraint: it holds the slope down where it is looked at, and promises nothing
    elsewhere. :func:`lipfuse.certify` says what such a network's constant really is.

    Args:
        function: the critic: takes ``(N, *)``, returns one number a sample, ``(N)`` or ``(N, 1)``.
            Samples must not influence each other, as they do in batch normalisation.
        input: x, floating point, ``(N, *)`` with N at least 1.
        other: y, of the same shape, dtype and device; without, the slope is taken at x itself.
        target: k, positive.
        one_sided: whether smaller slopes are free.
        reduction: ``"mean"`` (or ``"auto"``, which is the same), ``"sum"`` or ``"none"``.
        generator: where t is drawn from.

    Returns:
        A scalar, or ``(N)`` for ``reduction="none"``; its gradient with respect to the critic's
        parameters goes through :math:`\nabla f`, which has to be differentiable.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    Reference:
        Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, equation 3;
        one-sided: Petzka et al., arXiv 1709.08894.
    """
    check_tensor("input", input, min_dim=1)
    if input.shape[0] == 0:
        raise ValueError(f"input must have at least one sample, got shape {tuple(input.shape)}")
    target = check_positive("target", target)
    check_bool("one_sided", one_sided)
    check_choice("reduction", reduction, REDUCTIONS)
    point = input.detach()
    if other is not None:
        check_tensor("other", other)
        check_same("other", other, "input", input)
        if other.shape != input.shape:
            raise ValueError(
                f"other must have the shape of input, {tuple(input.shape)}, "
                f"got {tuple(other.shape)}"
            )
        shape = (input.shape[0], *[1] * (input.dim() - 1))
        t = torch.rand(shape, generator=generator, dtype=input.dtype, device=input.device)
        point = torch.lerp(other.detach(), point, t)
    with torch.enable_grad():
        point = point.clone().requires_grad_()
        values = function(point)
        check_tensor("function's result", values)
        if values.shape not in (input.shape[:1], (input.shape[0], 1)):
            raise ValueError(
                f"function must return one number a sample, ({input.shape[0]},) or "
                f"({input.shape[0]}, 1), got shape {tuple(values.shape)}"
            )
        slopes: tuple[Tensor, ...] = torch.autograd.grad(
            values.sum(), point, create_graph=True, materialize_grads=True
        )
        excess = torch.linalg.vector_norm(slopes[0].flatten(1), dim=1) - target
        if one_sided:
            excess = excess.clamp_min(0.0)
        return apply_reduction(excess.square(), reduction)
