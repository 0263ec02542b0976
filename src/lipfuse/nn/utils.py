"""What deel-torchlip has in ``utils``, under the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_positive, check_tensor
from ..evaluation import (
    evaluate_lip_const,
    evaluate_lip_const_attack,
    evaluate_lip_const_jacobian_norm,
    evaluate_lip_const_noise_norm,
)
from ..parametrizations import (
    bjorck_norm,
    frobenius_norm,
    lconv_norm,
    remove_bjorck_norm,
    remove_frobenius_norm,
    remove_lconv_norm,
)

__all__ = [
    "bjorck_norm",
    "evaluate_lip_const",
    "evaluate_lip_const_attack",
    "evaluate_lip_const_jacobian_norm",
    "evaluate_lip_const_noise_norm",
    "frobenius_norm",
    "lconv_norm",
    "remove_bjorck_norm",
    "remove_frobenius_norm",
    "remove_lconv_norm",
    "sqrt_with_gradeps",
]


class _SqrtWithGradEps(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, eps: float) -> Tensor:
        return input.sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.eps = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (root,) = ctx.saved_tensors
        return grad / (2 * (root + ctx.eps)), None


def sqrt_with_gradeps(input: Tensor, eps: float = 1e-6) -> Tensor:
    r"""The square root, with a finite gradient at 0.

    .. math:: y = \sqrt{x}, \qquad \bar x = \frac{\bar y}{2\,(\sqrt{x} + \epsilon)}

    Args:
        input: any shape, floating point; NaN where negative, as ``torch.sqrt``.
        eps: positive.

    Returns:
        A tensor of the shape and dtype of ``input``; can be differentiated twice.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range.
    """
    check_tensor("input", input)
    check_positive("eps", eps)
    out: Tensor = _SqrtWithGradEps.apply(input, eps)
    return out
