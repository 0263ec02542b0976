r"""Losses for Lipschitz networks, one value for each sample.

The outputs of a 1-Lipschitz network are distances: a margin is a certificate. These losses ask for
margins, and by the Kantorovich-Rubinstein duality for outputs of the classes that lie as far apart
as the constraint lets them,

.. math::
    W_1(\mu, \nu) = \sup_{\mathrm{Lip}(f) \le 1}
    \mathbb{E}_{x \sim \mu} f(x) - \mathbb{E}_{x \sim \nu} f(x).

Labels may be given as 0 and 1 or as -1 and 1: only their sign counts. All functions reduce the last
dimension, the classes; :func:`apply_reduction` reduces the batch.

References:
    M. Serrurier, F. Mamalet, A. Gonzalez-Sanz, T. Boissin, J.-M. Loubes, E. del Barrio,
    *Achieving robustness in classification using optimal transport with hinge regularization*,
    CVPR 2021.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from .._checks import check_choice, check_in_range, check_positive, check_tensor

__all__ = [
    "apply_reduction",
    "categorical_hinge_loss",
    "hinge_margin_loss",
    "hinge_multiclass_loss",
    "hkr_loss",
    "hkr_multiclass_loss",
    "kr_loss",
    "kr_loss_multi_gpu",
    "kr_loss_standard",
    "lse_hkr_multiclass_loss",
    "neg_kr_loss",
    "process_labels_for_multi_gpu",
    "tau_bce_with_logits_loss",
    "tau_cross_entropy_loss",
]

REDUCTIONS = ("mean", "sum", "none", "auto")


def apply_reduction(val: Tensor, reduction: str) -> Tensor:
    """Reduce the losses of a batch.

    Args:
        val: the losses, of any shape.
        reduction: ``"mean"`` (or ``"auto"``, which is the same), ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``val`` itself for ``"none"``.

    Raises:
        TypeError: if ``val`` is not a tensor, or has no mean.
        ValueError: if ``reduction`` is none of these.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_tensor("val", val, floating=reduction in ("mean", "auto"))
    if reduction == "none":
        return val
    return val.sum() if reduction == "sum" else val.mean()


def _check_pair(input: Tensor, target: Tensor) -> Tensor:
    """The target in the shape of the input, which has at least the dimension of the classes."""
    check_tensor("input", input, min_dim=1)
    check_tensor("target", target, floating=False)
    if target.numel() != input.numel():
        hint = ""
        if target.dim() == input.dim() - 1 and not target.is_floating_point():
            hint = (
                "; class indices have to be one-hot encoded: "
                f"torch.nn.functional.one_hot(target, {input.shape[-1]})"
            )
        raise ValueError(
            f"target must have as many elements as input, of shape {tuple(input.shape)}, "
            f"got shape {tuple(target.shape)}{hint}"
        )
    return target.reshape(input.shape)


def _check_classes(input: Tensor, target: Tensor) -> Tensor:
    target = _check_pair(input, target)
    if input.dim() < 2 or input.shape[-1] < 2:
        raise ValueError(
            f"input must have shape (N, C) with at least 2 classes C, got {tuple(input.shape)}"
        )
    return target


def _balanced(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """N / (number of positives) where the label is positive, -N / (number of others) elsewhere."""
    positive = labels > 0
    total = labels.shape[0]
    # Not in the input's dtype: float16 counts exactly to 2048 only, and ends at 65504.
    count = positive.sum(0).to(torch.promote_types(dtype, torch.float32))
    # The factor of an absent class is infinite, and no sample's.
    return torch.where(positive, total / count, total / (count - total)).to(dtype)


def process_labels_for_multi_gpu(labels: Tensor) -> Tensor:
    """Weigh the labels of a whole batch before it is split between devices.

    The Kantorovich-Rubinstein loss divides by the number of samples of each class, which a device
    that sees a part of the batch does not know. Process the labels of the whole batch, split them
    with the inputs, and use the losses with ``multi_gpu=True``.

    Args:
        labels: shape ``(N, 1)``, or ``(N, C)`` one-hot; positive for a class and not elsewhere.

    Returns:
        ``N / N_positive`` where a label is positive and ``-N / N_other`` elsewhere, each counted
        over the batch; in the dtype of ``labels`` if that is floating-point, or the default one.

    Raises:
        TypeError: if ``labels`` is not a tensor.
        ValueError: if it has no dimension.
    """
    check_tensor("labels", labels, min_dim=1, floating=False)
    dtype = labels.dtype if labels.is_floating_point() else torch.get_default_dtype()
    return _balanced(labels, dtype)


def kr_loss(input: Tensor, target: Tensor, multi_gpu: bool = False) -> Tensor:
    r"""Kantorovich-Rubinstein estimate of the distance between a class and the rest.

    The mean over the batch of what this returns is, for each output, the mean over the positive
    samples minus the mean over the others; averaged over the outputs.

    Args:
        input: the network's outputs, ``(N, 1)`` or ``(N, C)``.
        target: labels of the same number of elements, positive for a class and not elsewhere; or,
            with ``multi_gpu``, what :func:`process_labels_for_multi_gpu` returned.
        multi_gpu: whether ``target`` has been processed for the whole batch.

    Returns:
        Tensor of shape ``(N,)``. To be maximised: see :func:`neg_kr_loss`.

    Raises:
        TypeError: if an argument is not a tensor, or ``input`` not floating-point.
        ValueError: if the numbers of elements differ.
    """
    target = _check_pair(input, target)
    weight = target.to(input.dtype) if multi_gpu else _balanced(target, input.dtype)
    return (input * weight).mean(-1)


def kr_loss_standard(input: Tensor, target: Tensor) -> Tensor:
    """:func:`kr_loss` of labels, ``multi_gpu=False``: the same shapes and errors."""
    return kr_loss(input, target)


def kr_loss_multi_gpu(input: Tensor, target: Tensor) -> Tensor:
    """:func:`kr_loss` of what :func:`process_labels_for_multi_gpu` made of labels.

    Shapes and errors are those of ``kr_loss(..., multi_gpu=True)``.
    """
    return kr_loss(input, target, multi_gpu=True)


def neg_kr_loss(input: Tensor, target: Tensor, multi_gpu: bool = False) -> Tensor:
    """The negative of :func:`kr_loss`, to be minimised.

    Args:
        input: as for :func:`kr_loss`.
        target: as for :func:`kr_loss`.
        multi_gpu: as for :func:`kr_loss`.

    Returns:
        Tensor of shape ``(N,)``.

    Raises:
        TypeError: as for :func:`kr_loss`.
        ValueError: as for :func:`kr_loss`.
    """
    return -kr_loss(input, target, multi_gpu=multi_gpu)


def _sign(target: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(target > 0, 1.0, -1.0).to(dtype)


def _hinge(input: Tensor, target: Tensor, min_margin: float) -> Tensor:
    """How far each output is from half the margin on its own side of zero."""
    min_margin = check_positive("min_margin", min_margin)
    return torch_functional.relu(min_margin / 2.0 - _sign(target, input.dtype) * input)


def hinge_margin_loss(input: Tensor, target: Tensor, min_margin: float = 1.0) -> Tensor:
    r"""Hinge loss with a margin :math:`m` between the classes: half of it on either side of zero.

    .. math:: \max(0,\; m/2 - y f(x)), \quad y = \pm 1

    Args:
        input: the network's outputs, ``(N, 1)`` or ``(N, C)``.
        target: labels of the same number of elements, of which the sign counts.
        min_margin: the margin :math:`m`: positive.

    Returns:
        Tensor of shape ``(N,)``: the mean over the outputs.

    Raises:
        TypeError: if an argument is not a tensor, or ``input`` not floating-point.
        ValueError: if the numbers of elements differ, or ``min_margin`` is not positive.
    """
    target = _check_pair(input, target)
    return _hinge(input, target, min_margin).mean(-1)


def _mixed(alpha: float, hinge: Tensor | None, kr: Tensor | None) -> Tensor:
    """Return alpha hinge - (1 - alpha) kr, of which a part that counts nothing may be missing."""
    if kr is None:
        assert hinge is not None
        return hinge
    return -kr if hinge is None else alpha * hinge - (1.0 - alpha) * kr


def hkr_loss(
    input: Tensor,
    target: Tensor,
    alpha: float,
    min_margin: float = 1.0,
    multi_gpu: bool = False,
) -> Tensor:
    r"""Hinge-regularised Kantorovich-Rubinstein loss for one output, or several on their own.

    .. math:: \alpha\,\mathrm{hinge} - (1 - \alpha)\,\mathrm{KR}

    Args:
        input: as for :func:`kr_loss`.
        target: as for :func:`kr_loss`.
        alpha: weight of the hinge, in [0, 1].
        min_margin: the margin of the hinge: positive.
        multi_gpu: as for :func:`kr_loss`.

    Returns:
        Tensor of shape ``(N,)``.

    Raises:
        TypeError: as for :func:`kr_loss`.
        ValueError: as for :func:`kr_loss`; or if ``alpha`` is not in [0, 1], or ``min_margin`` not
            positive.
    """
    alpha = check_in_range("alpha", alpha, 0.0, 1.0)
    hinge = hinge_margin_loss(input, target, min_margin) if alpha > 0.0 else None
    kr = kr_loss(input, target, multi_gpu=multi_gpu) if alpha < 1.0 else None
    return _mixed(alpha, hinge, kr)


def hinge_multiclass_loss(input: Tensor, target: Tensor, min_margin: float = 1.0) -> Tensor:
    r"""Hinge loss of each class against the rest.

    The one true class weighs as much as all others together: its hinge counts :math:`C - 1` times.
    Every output is compared with zero, not with another output as in the usual multi-class hinge.

    Args:
        input: the network's outputs, ``(N, C)``.
        target: one-hot labels of the same shape, of which the sign counts.
        min_margin: the margin: positive; half of it on either side of zero.

    Returns:
        Tensor of shape ``(N,)``: the mean over the classes.

    Raises:
        TypeError: if an argument is not a tensor, or ``input`` not floating-point.
        ValueError: if the numbers of elements differ, or ``min_margin`` is not positive.
    """
    target = _check_pair(input, target)
    hinge = _hinge(input, target, min_margin)
    return torch.where(target > 0, hinge * (target.shape[-1] - 1.0), hinge).mean(-1)


def hkr_multiclass_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.0,
    min_margin: float = 1.0,
    multi_gpu: bool = False,
) -> Tensor:
    r"""Hinge-regularised Kantorovich-Rubinstein loss of each class against the rest.

    .. math:: \alpha\,\mathrm{hinge} - (1 - \alpha)\,\mathrm{KR}

    Args:
        input: the network's outputs, ``(N, C)``.
        target: one-hot labels, or with ``multi_gpu`` processed ones.
        alpha: weight of the hinge, in [0, 1].
        min_margin: the margin of the hinge: positive.
        multi_gpu: as for :func:`kr_loss`.

    Returns:
        Tensor of shape ``(N,)``.

    Raises:
        TypeError: as for :func:`kr_loss`.
        ValueError: as for :func:`kr_loss`; or if ``alpha`` is not in [0, 1], or ``min_margin`` not
            positive.

    See also :func:`hinge_multiclass_loss`.
    """
    alpha = check_in_range("alpha", alpha, 0.0, 1.0)
    hinge = hinge_multiclass_loss(input, target, min_margin) if alpha > 0.0 else None
    kr = kr_loss(input, target, multi_gpu=multi_gpu) if alpha < 1.0 else None
    return _mixed(alpha, hinge, kr)


def lse_hkr_multiclass_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    penalty: float = 1.0,
    min_margin: float = 1.0,
) -> Tensor:
    r"""Hinge-regularised KR loss of the true class against a soft maximum of the others.

    With the outputs :math:`f_j` of the wrong classes and
    :math:`t = 2 \log(C - 1) / (\mathrm{penalty} \cdot m)`,

    .. math::
        s = \frac1t \log \sum_j e^{t f_j}, \qquad \max_j f_j \le s \le \max_j f_j
        + \tfrac12\,\mathrm{penalty}\cdot m,

    .. math::
        \alpha\,[\max(0, m/2 - f_y) + \max(0, m/2 + s)] - (1 - \alpha)\,(f_y - s).

    Args:
        input: the network's outputs, ``(N, C)`` with at least two classes.
        target: one-hot labels with one positive entry for each sample.
        alpha: weight of the hinge, in [0, 1].
        penalty: how far the soft maximum may lie above the maximum, in half margins: positive.
        min_margin: the margin :math:`m`: positive.

    Returns:
        Tensor of shape ``(N,)``.

    Raises:
        TypeError: if an argument is not a tensor, or ``input`` not floating-point.
        ValueError: if the shapes do not match, there are fewer than two classes, or a parameter is
            out of range.
    """
    target = _check_classes(input, target)
    alpha = check_in_range("alpha", alpha, 0.0, 1.0)
    half = check_positive("min_margin", min_margin) / 2.0
    classes = input.shape[-1]
    # A single wrong class is its own soft maximum at every t; log(1) = 0 would divide by zero.
    t = math.log(max(classes - 1, 2)) / (half * check_positive("penalty", penalty))
    positive = target > 0
    of_class = torch.where(positive, input, 0.0).sum(-1)
    others = torch.where(positive, -torch.inf, input)
    soft_max = torch.logsumexp(t * others, dim=-1) / t
    relu = torch_functional.relu
    hinge = relu(half - of_class) + relu(half + soft_max) if alpha > 0.0 else None
    kr = of_class - soft_max if alpha < 1.0 else None
    return _mixed(alpha, hinge, kr)


def tau_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    tau: float,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross entropy at an inverse temperature :math:`\tau`, over :math:`\tau`.

    .. math:: \frac1\tau\,\mathrm{CE}(\tau f(x), y)

    The outputs of a Lipschitz network cannot grow to make a softmax confident; :math:`\tau` trades
    accuracy (large) for robustness (small). Dividing keeps the gradient's size.

    Args:
        input: the network's outputs, ``(N, C, *)`` or ``(C)``.
        target: class indices, ``(N, *)`` or a scalar; or class probabilities of the input's shape.
        tau: the inverse temperature: positive.
        weight: as for ``torch.nn.functional.cross_entropy``.
        ignore_index: as for ``torch.nn.functional.cross_entropy``.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.
        label_smoothing: as for ``torch.nn.functional.cross_entropy``.

    Returns:
        A scalar, or the losses of shape ``(N, *)`` for ``"none"``.

    Raises:
        TypeError: if an argument is not a tensor, or ``input`` not floating-point.
        ValueError: if ``tau`` is not positive, ``reduction`` unknown, or ``label_smoothing`` not
            in [0, 1].

    References:
        L. Bethune, T. Boissin, M. Serrurier, F. Mamalet, C. Friedrich, A. Gonzalez-Sanz, *Pay
        attention to your loss: understanding misconceptions about 1-Lipschitz neural networks*,
        NeurIPS 2022.
    """
    check_tensor("input", input, min_dim=1)
    check_tensor("target", target, floating=False)
    tau = check_positive("tau", tau)
    check_choice("reduction", reduction, REDUCTIONS)
    label_smoothing = check_in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    of_classes = input.shape == target.shape
    loss = torch_functional.cross_entropy(
        input * tau,
        target.to(input.dtype if of_classes else torch.int64),
        weight=weight,
        ignore_index=ignore_index,
        reduction="mean" if reduction == "auto" else reduction,
        label_smoothing=label_smoothing,
    )
    return loss / tau


def tau_bce_with_logits_loss(
    input: Tensor,
    target: Tensor,
    tau: float,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    r"""Binary cross entropy of logits at an inverse temperature :math:`\tau`, over :math:`\tau`.

    .. math:: \frac1\tau\,\mathrm{BCE}(\tau f(x), y)

    Args:
        input: the network's outputs, of any shape.
        target: labels of the same shape, of which the sign counts.
        tau: the inverse temperature: positive.
        weight: as for ``torch.nn.functional.binary_cross_entropy_with_logits``.
        reduction: ``"mean"`` (or ``"auto"``), ``"sum"`` or ``"none"``.
        pos_weight: as for ``torch.nn.functional.binary_cross_entropy_with_logits``.

    Returns:
        A scalar, or the losses in the shape of ``input`` for ``"none"``.

    Raises:
        TypeError: if an argument is not a tensor, or ``input`` not floating-point.
        ValueError: if ``tau`` is not positive, the shapes differ, or ``reduction`` is unknown.

    See also :func:`tau_cross_entropy_loss`.
    """
    check_tensor("input", input)
    check_tensor("target", target, floating=False)
    tau = check_positive("tau", tau)
    check_choice("reduction", reduction, REDUCTIONS)
    if input.shape != target.shape:
        raise ValueError(
            f"target must have the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    loss = torch_functional.binary_cross_entropy_with_logits(
        input * tau,
        (target > 0).to(input.dtype),
        weight=weight,
        reduction="mean" if reduction == "auto" else reduction,
        pos_weight=pos_weight,
    )
    return loss / tau


def categorical_hinge_loss(input: Tensor, target: Tensor, min_margin: float = 1.0) -> Tensor:
    r"""Hinge loss of the true class against the largest of the others.

    .. math:: \max(0,\; m - (f_y - \max_{j \ne y} f_j))

    Args:
        input: the network's outputs, ``(N, C)``.
        target: one-hot labels, of which the sign counts.
        min_margin: the margin :math:`m`: positive.

    Returns:
        Tensor of shape ``(N,)``.

    Raises:
        TypeError: if an argument is not a tensor, or ``input`` not floating-point.
        ValueError: if the numbers of elements differ, or ``min_margin`` is not positive.
    """
    target = _check_pair(input, target)
    min_margin = check_positive("min_margin", min_margin)
    positive = target > 0
    of_class = torch.where(positive, input, 0.0).sum(-1)
    largest = torch.where(positive, -torch.inf, input).amax(-1)
    return torch_functional.relu(min_margin - (of_class - largest))
