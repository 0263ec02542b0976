"""Losses for Lipschitz networks, as modules.

The formulas stand with the functions in :mod:`lipfuse.functional`. Targets are one-hot, or one
column for two classes; positive entries belong to the class, whether the others are 0 or -1.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from .. import functional as F
from .._checks import (
    check_bool,
    check_choice,
    check_in_range,
    check_positive,
)
from ..functional.loss import REDUCTIONS, _check_classes, _mixed, _sign

__all__ = [
    "CategoricalHingeLoss",
    "HKRLoss",
    "HKRMulticlassLoss",
    "HingeMarginLoss",
    "HingeMulticlassLoss",
    "KRLoss",
    "KRMulticlassLoss",
    "LseHKRMulticlassLoss",
    "NegKRLoss",
    "SoftHKRMulticlassLoss",
    "TauBCEWithLogitsLoss",
    "TauCrossEntropyLoss",
]


def _check_alpha(alpha: object) -> float:
    """Return alpha in [0, 1]; its older meaning, a weight from 0 on, is still understood."""
    value = check_in_range("alpha", alpha, 0.0, math.inf)
    if value <= 1.0:
        return value
    replacement = value / (value + 1.0)
    warnings.warn(
        f"alpha must be in [0, 1], the share of the hinge; alpha={alpha!r} is taken as the hinge's "
        f"weight relative to the KR term and replaced by alpha / (1 + alpha) = {replacement:g}",
        FutureWarning,
        stacklevel=3,
    )
    return replacement


def _check_true_values(true_values: object) -> None:
    if true_values is not None:
        raise ValueError(
            "true_values must be None, since the sign of the target tells the classes apart, "
            f"got {true_values!r}"
        )


class _Loss(nn.Module):
    """What the losses share: the reduction, and a readable ``repr``."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    def extra_repr(self) -> str:
        shown = ("alpha", "min_margin", "penalty", "temperature", "multi_gpu", "reduction")
        settings = {key: self.__dict__[key] for key in shown if key in self.__dict__}
        return ", ".join(f"{key}={value!r}" for key, value in settings.items())


class KRLoss(_Loss):
    r"""Kantorovich-Rubinstein estimate of the distance between a class and the rest.

    Args:
        multi_gpu: whether targets come from
            :func:`lipfuse.functional.process_labels_for_multi_gpu`.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.
        true_values: no longer used: ``None``.

    Shape:
        - Input and target: :math:`(N, 1)` or :math:`(N, C)`; of the target, the sign counts.
        - Output: a scalar, or :math:`(N)` for ``"none"``.

    Raises:
        TypeError: if ``multi_gpu`` is not a bool.
        ValueError: if ``reduction`` is unknown or ``true_values`` not ``None``.

    See also :func:`lipfuse.functional.kr_loss`. It grows with the distance: minimise
    :class:`NegKRLoss`.
    """

    def __init__(
        self, multi_gpu: bool = False, reduction: str = "mean", true_values: None = None
    ) -> None:
        super().__init__(reduction)
        self.multi_gpu: bool = check_bool("multi_gpu", multi_gpu)
        _check_true_values(true_values)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.apply_reduction(F.kr_loss(input, target, self.multi_gpu), self.reduction)


class NegKRLoss(_Loss):
    r"""The negative of :class:`KRLoss`, to be minimised.

    Args:
        multi_gpu: as for :class:`KRLoss`.
        reduction: as for :class:`KRLoss`.
        true_values: as for :class:`KRLoss`.

    Shape:
        As for :class:`KRLoss`.

    Raises:
        TypeError: as for :class:`KRLoss`.
        ValueError: as for :class:`KRLoss`.
    """

    def __init__(
        self, multi_gpu: bool = False, reduction: str = "mean", true_values: None = None
    ) -> None:
        super().__init__(reduction)
        self.multi_gpu: bool = check_bool("multi_gpu", multi_gpu)
        _check_true_values(true_values)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.apply_reduction(F.neg_kr_loss(input, target, self.multi_gpu), self.reduction)


class HingeMarginLoss(_Loss):
    r"""Hinge loss with a margin between the classes, half of it on either side of zero.

    .. math:: \max(0,\; m/2 - y f(x)), \quad y = \pm 1

    Args:
        min_margin: the margin: positive.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.

    Shape:
        As for :class:`KRLoss`.

    Raises:
        TypeError: if ``min_margin`` is not a number.
        ValueError: if it is not positive, or ``reduction`` unknown.

    See also :func:`lipfuse.functional.hinge_margin_loss`.
    """

    def __init__(self, min_margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.min_margin: float = check_positive("min_margin", min_margin)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = F.hinge_margin_loss(input, target, self.min_margin)
        return F.apply_reduction(loss, self.reduction)


class HKRLoss(_Loss):
    r"""Hinge-regularised Kantorovich-Rubinstein loss, for one output or several on their own.

    .. math:: \alpha\,\mathrm{hinge} - (1 - \alpha)\,\mathrm{KR}

    The two are :class:`HingeMarginLoss` and :class:`KRLoss`.

    Args:
        alpha: weight of the hinge, in [0, 1]. Larger values are taken in their older meaning, with
            a warning: they become ``alpha / (1 + alpha)``.
        min_margin: the margin of the hinge: positive.
        multi_gpu: as for :class:`KRLoss`.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.
        true_values: no longer used: ``None``.

    Shape:
        As for :class:`KRLoss`.

    Raises:
        TypeError: if a parameter has the wrong type.
        ValueError: if ``alpha`` is negative, ``min_margin`` not positive, ``reduction`` unknown or
            ``true_values`` not ``None``.

    References:
        M. Serrurier et al., *Achieving robustness in classification using optimal transport with
        hinge regularization*, CVPR 2021.

    See also :func:`lipfuse.functional.hkr_loss`.
    """

    def __init__(
        self,
        alpha: float,
        min_margin: float = 1.0,
        multi_gpu: bool = False,
        reduction: str = "mean",
        true_values: None = None,
    ) -> None:
        super().__init__(reduction)
        self.alpha: float = _check_alpha(alpha)
        self.min_margin: float = check_positive("min_margin", min_margin)
        self.multi_gpu: bool = check_bool("multi_gpu", multi_gpu)
        _check_true_values(true_values)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = F.hkr_loss(input, target, self.alpha, self.min_margin, self.multi_gpu)
        return F.apply_reduction(loss, self.reduction)


class KRMulticlassLoss(_Loss):
    r"""Kantorovich-Rubinstein estimate of each class against the rest, averaged over the classes.

    Args:
        multi_gpu: as for :class:`KRLoss`.
        reduction: as for :class:`KRLoss`.

    Shape:
        - Input and target: :math:`(N, C)`, the target one-hot; of it, the sign counts.
        - Output: a scalar, or :math:`(N)` for ``"none"``.

    Raises:
        TypeError: as for :class:`KRLoss`.
        ValueError: as for :class:`KRLoss`.
    """

    def __init__(self, multi_gpu: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.multi_gpu: bool = check_bool("multi_gpu", multi_gpu)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.apply_reduction(F.kr_loss(input, target, self.multi_gpu), self.reduction)


class HingeMulticlassLoss(_Loss):
    r"""Hinge loss of each class against the rest, averaged over the classes.

    Args:
        min_margin: the margin: positive.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.

    Shape:
        As for :class:`KRMulticlassLoss`.

    Raises:
        TypeError: if ``min_margin`` is not a number.
        ValueError: if it is not positive, or ``reduction`` unknown.

    See also :func:`lipfuse.functional.hinge_multiclass_loss`.
    """

    def __init__(self, min_margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.min_margin: float = check_positive("min_margin", min_margin)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = F.hinge_multiclass_loss(input, target, self.min_margin)
        return F.apply_reduction(loss, self.reduction)


class HKRMulticlassLoss(_Loss):
    r"""Hinge-regularised Kantorovich-Rubinstein loss of each class against the rest.

    .. math:: \alpha\,\mathrm{hinge} - (1 - \alpha)\,\mathrm{KR}

    The two are :class:`HingeMulticlassLoss` and :class:`KRMulticlassLoss`.

    Args:
        alpha: as for :class:`HKRLoss`.
        min_margin: the margin of the hinge: positive.
        multi_gpu: as for :class:`KRLoss`.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.

    Shape:
        As for :class:`KRMulticlassLoss`.

    Raises:
        TypeError: if a parameter has the wrong type.
        ValueError: if ``alpha`` is negative, ``min_margin`` not positive or ``reduction`` unknown.

    References:
        M. Serrurier et al., *Achieving robustness in classification using optimal transport with
        hinge regularization*, CVPR 2021.

    See also :func:`lipfuse.functional.hkr_multiclass_loss`.
    """

    def __init__(
        self,
        alpha: float,
        min_margin: float = 1.0,
        multi_gpu: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.alpha: float = _check_alpha(alpha)
        self.min_margin: float = check_positive("min_margin", min_margin)
        self.multi_gpu: bool = check_bool("multi_gpu", multi_gpu)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = F.hkr_multiclass_loss(input, target, self.alpha, self.min_margin, self.multi_gpu)
        return F.apply_reduction(loss, self.reduction)


class SoftHKRMulticlassLoss(_Loss):
    r"""Hinge-regularised KR loss of the true class against a softmax mean of the others.

    With the weights :math:`p_j` of a softmax over the wrong classes at an inverse temperature
    :math:`T`, and :math:`p_y = 1`, :math:`s_j = \pm f_j` positive for the true class only,

    .. math:: \sum_j p_j \bigl[\alpha \max(0, m/2 - s_j) - (1 - \alpha)\, s_j\bigr].

    :math:`T` is ``temperature * m`` over the running mean of :math:`|f|`, so that the softmax stays
    as sharp while the outputs grow. The mean moves with every ``forward`` in training; in
    evaluation it is used with the batch's share, but stays.

    Args:
        alpha: as for :class:`HKRLoss`.
        min_margin: the margin :math:`m`: positive.
        alpha_mean: the share of the past in the running mean, in [0, 1].
        temperature: larger values put more weight on the largest wrong output: positive.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.

    Shape:
        As for :class:`KRMulticlassLoss`, with at least two classes.

    Raises:
        TypeError: if a parameter has the wrong type.
        ValueError: if a parameter is out of range or ``reduction`` unknown.

    References:
        M. Serrurier, F. Mamalet, T. Fel, L. Bethune, T. Boissin, *On the explainable properties of
        1-Lipschitz neural networks: an optimal transport perspective*, NeurIPS 2023.
    """

    current_mean: Tensor

    def __init__(
        self,
        alpha: float = 0.9,
        min_margin: float = 1.0,
        alpha_mean: float = 0.99,
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.alpha: float = _check_alpha(alpha)
        self.min_margin: float = check_positive("min_margin", min_margin)
        self.alpha_mean: float = check_in_range("alpha_mean", alpha_mean, 0.0, 1.0)
        self.temperature: float = check_positive("temperature", temperature)
        # float32 whatever the default dtype is: a share of 0.01 must not be lost to rounding.
        start = torch.tensor([self.min_margin], dtype=torch.float32)
        self.register_buffer("current_mean", start)

    @torch.no_grad()
    def _inverse_temperature(self, input: Tensor) -> Tensor:
        seen = input.abs().mean().to(self.current_mean.dtype)
        mean = self.alpha_mean * self.current_mean + (1.0 - self.alpha_mean) * seen
        if self.training:
            # In place: the buffer stays the one that the state dict and other ranks know.
            self.current_mean.copy_(mean.clamp(0.005, 1000.0))
        sharpness = self.temperature * self.min_margin / mean.clamp(self.min_margin, 20000.0)
        return sharpness.clamp(0.005, 250.0).to(input.dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        positive = _check_classes(input, target) > 0
        # The lowest finite number, not -inf, which would be NaN in rows without a wrong class.
        lowest = torch.finfo(input.dtype).min
        sharpness = self._inverse_temperature(input)
        weights = torch.softmax(torch.where(positive, lowest, sharpness * input), dim=-1)
        weights = torch.where(positive, 1.0, weights)
        signed = input * _sign(target.reshape(input.shape), input.dtype)
        hinge = None
        if self.alpha > 0.0:
            violation = torch_functional.relu(self.min_margin / 2.0 - signed)
            hinge = (violation * weights).sum(-1)
        kr = (signed * weights).sum(-1) if self.alpha < 1.0 else None
        return F.apply_reduction(_mixed(self.alpha, hinge, kr), self.reduction)


class LseHKRMulticlassLoss(_Loss):
    r"""Hinge-regularised KR loss of the true class against a soft maximum of the others.

    Args:
        alpha: as for :class:`HKRLoss`.
        temperature: what the outputs are multiplied by first: positive.
        penalty: how far the soft maximum may lie above the maximum, in half margins: positive.
        min_margin: the margin: positive.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.

    Shape:
        As for :class:`KRMulticlassLoss`, with at least two classes.

    Raises:
        TypeError: if a parameter has the wrong type.
        ValueError: if a parameter is out of range or ``reduction`` unknown.

    See also :func:`lipfuse.functional.lse_hkr_multiclass_loss`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        temperature: float = 1.0,
        penalty: float = 1.0,
        min_margin: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.alpha: float = _check_alpha(alpha)
        self.temperature: float = check_positive("temperature", temperature)
        self.penalty: float = check_positive("penalty", penalty)
        self.min_margin: float = check_positive("min_margin", min_margin)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        scaled = input * self.temperature
        loss = F.lse_hkr_multiclass_loss(scaled, target, self.alpha, self.penalty, self.min_margin)
        return F.apply_reduction(loss, self.reduction)


def _torch_reduction(reduction: str) -> str:
    check_choice("reduction", reduction, REDUCTIONS)
    return "mean" if reduction == "auto" else reduction


class TauCrossEntropyLoss(nn.CrossEntropyLoss):
    r"""Cross entropy at an inverse temperature :math:`\tau`, over :math:`\tau`.

    .. math:: \frac1\tau\,\mathrm{CE}(\tau f(x), y)

    Args:
        tau: the inverse temperature: positive. Large values favour accuracy, small robustness.
        weight: as for ``torch.nn.CrossEntropyLoss``.
        size_average: as for ``torch.nn.CrossEntropyLoss``; deprecated there.
        ignore_index: as for ``torch.nn.CrossEntropyLoss``.
        reduce: as for ``torch.nn.CrossEntropyLoss``; deprecated there.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.
        label_smoothing: as for ``torch.nn.CrossEntropyLoss``.

    Shape:
        - Input: :math:`(N, C, *)` or :math:`(C)`.
        - Target: class indices :math:`(N, *)`, or probabilities in the input's shape.
        - Output: a scalar, or :math:`(N, *)` for ``"none"``.

    Raises:
        TypeError: if a parameter has the wrong type.
        ValueError: if ``tau`` is not positive, ``label_smoothing`` not in [0, 1] or ``reduction``
            unknown.

    See also :func:`lipfuse.functional.tau_cross_entropy_loss`.
    """

    def __init__(
        self,
        tau: float,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=_torch_reduction(reduction),
            label_smoothing=check_in_range("label_smoothing", label_smoothing, 0.0, 1.0),
        )
        self.tau: float = check_positive("tau", tau)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.tau_cross_entropy_loss(
            input,
            target,
            self.tau,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
        )

    def extra_repr(self) -> str:
        return f"tau={self.tau!r}, reduction={self.reduction!r}"


class TauBCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    r"""Binary cross entropy of logits at an inverse temperature :math:`\tau`, over :math:`\tau`.

    .. math:: \frac1\tau\,\mathrm{BCE}(\tau f(x), y)

    Args:
        tau: the inverse temperature: positive.
        weight: as for ``torch.nn.BCEWithLogitsLoss``.
        size_average: as for ``torch.nn.BCEWithLogitsLoss``; deprecated there.
        reduce: as for ``torch.nn.BCEWithLogitsLoss``; deprecated there.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.
        pos_weight: as for ``torch.nn.BCEWithLogitsLoss``.

    Shape:
        - Input and target: any, the same; of the target, the sign counts.
        - Output: a scalar, or the input's shape for ``"none"``.

    Raises:
        TypeError: if a parameter has the wrong type.
        ValueError: if ``tau`` is not positive or ``reduction`` unknown.

    See also :func:`lipfuse.functional.tau_bce_with_logits_loss`.
    """

    def __init__(
        self,
        tau: float,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(
            weight=weight,
            size_average=size_average,
            reduce=reduce,
            reduction=_torch_reduction(reduction),
            pos_weight=pos_weight,
        )
        self.tau: float = check_positive("tau", tau)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.tau_bce_with_logits_loss(
            input, target, self.tau, self.weight, self.reduction, self.pos_weight
        )

    def extra_repr(self) -> str:
        return f"tau={self.tau!r}, reduction={self.reduction!r}"


class CategoricalHingeLoss(_Loss):
    r"""Hinge loss of the true class against the largest of the others.

    .. math:: \max(0,\; m - (f_y - \max_{j \ne y} f_j))

    Args:
        min_margin: the margin between the two outputs: positive.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.

    Shape:
        As for :class:`KRMulticlassLoss`.

    Raises:
        TypeError: if ``min_margin`` is not a number.
        ValueError: if it is not positive, or ``reduction`` unknown.

    See also :func:`lipfuse.functional.categorical_hinge_loss`.
    """

    def __init__(self, min_margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.min_margin: float = check_positive("min_margin", min_margin)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = F.categorical_hinge_loss(input, target, self.min_margin)
        return F.apply_reduction(loss, self.reduction)
