r"""What a classifier's decisions are provably worth: certified radii, and averages over a data set.

A decision holds for every perturbation whose Euclidean norm is smaller than its certified radius,
if the constant given is a bound of the network's Lipschitz constant: that of all logits together,
or, with ``disjoint_neurons``, of each logit on its own. With the margin :math:`m`, the true class's
logit less the largest other one,

.. math:: r = \frac{m}{\sqrt2\,L} \quad\text{or}\quad \frac{m}{2\,L},

since the difference of two logits changes by at most :math:`\sqrt2 L` times as much as the input if
they are Lipschitz together, and :math:`2L` times if each is on its own. A network with one output
decides by its sign, :math:`r = \pm f / L`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import check_bool, check_in_range, check_positive, check_tensor

__all__ = [
    "RobustnessMetric",
    "average_certified_radius",
    "certified_accuracy",
    "certified_radii",
]


def _signed_margins(logits: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
    """``(N,)`` margins in float64, negative for wrong decisions; whether there are several classes.

    The subtraction of two numbers in lower precision would round a margin up as often as down.
    """
    check_tensor("logits", logits, min_dim=1)
    check_tensor("labels", labels, floating=False)
    if logits.dim() > 2:
        raise ValueError(f"logits must have shape (N,) or (N, C), got {tuple(logits.shape)}")
    values = logits.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("logits must be finite, got NaN or infinite elements")
    n = logits.shape[0]
    if logits.dim() == 1 or logits.shape[1] == 1:
        if labels.numel() != n or labels.dim() not in (1, logits.dim()):
            raise ValueError(f"labels must have shape ({n},), got {tuple(labels.shape)}")
        return torch.where(labels.reshape(n) > 0, values.reshape(n), -values.reshape(n)), False
    true = _true_class(labels, n, logits.shape[1]).to(values.device).unsqueeze(1)
    of_class = values.gather(1, true).squeeze(1)
    others = values.scatter(1, true, -math.inf)
    return of_class - others.amax(1), True


def _true_class(labels: Tensor, n: int, classes: int) -> Tensor:
    if labels.shape == (n, classes):
        positive = labels > 0
        if not bool((positive.sum(1) == 1).all()):
            raise ValueError("labels must have one positive entry in each row if they are one-hot")
        return positive.to(torch.int64).argmax(1)
    if labels.shape != (n,):
        raise ValueError(
            f"labels must have shape ({n},), or ({n}, {classes}) if one-hot, "
            f"got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers for {classes} classes, got {labels.dtype}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels must be in [0, {classes - 1}], got {int(labels.min())} to {int(labels.max())}"
        )
    return labels.to(torch.int64)


def certified_radii(
    logits: Tensor,
    labels: Tensor,
    lip_const: float = 1.0,
    disjoint_neurons: bool = False,
    negative_robustness: bool = False,
) -> Tensor:
    """The radius around each input within which its right decision cannot change.

    Args:
        logits: ``(N, C)`` of a network with C > 1 classes; ``(N,)`` or ``(N, 1)`` of one that
            decides by a sign. Finite.
        labels: class indices ``(N,)`` or one-hot ``(N, C)``; for a sign 0 and 1, or -1 and 1.
        lip_const: a bound of the network's Lipschitz constant, positive.
        disjoint_neurons: the bound is one of each logit on its own, as for a
            :class:`lipfuse.nn.FrobeniusLinear` with disjoint neurons at the end. Of no account for
            a sign.
        negative_robustness: what a wrong decision gets: minus the radius within which it stays
            wrong, or 0.

    Returns:
        ``(N,)``, float64, without gradient.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.
    """
    margins, several = _signed_margins(logits, labels)
    constant = check_positive("lip_const", lip_const)
    check_bool("disjoint_neurons", disjoint_neurons)
    check_bool("negative_robustness", negative_robustness)
    if several:
        constant *= 2.0 if disjoint_neurons else math.sqrt(2.0)
    radii = margins / constant
    return radii if negative_robustness else radii.clamp_min(0.0)


def certified_accuracy(
    logits: Tensor,
    labels: Tensor,
    epsilon: float = 36 / 255,
    lip_const: float = 1.0,
    disjoint_neurons: bool = False,
) -> float:
    """The fraction of inputs that are decided rightly whatever a perturbation of that size does.

    Args:
        logits, labels, lip_const, disjoint_neurons: as for :func:`certified_radii`.
        epsilon: the perturbation's Euclidean norm, not negative; 0 gives the accuracy, in which a
            tie counts as wrong.

    Returns:
        A number in [0, 1]; NaN if there are no inputs.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.
    """
    epsilon = check_in_range("epsilon", epsilon, 0.0, math.inf)
    radii = certified_radii(logits, labels, lip_const, disjoint_neurons)
    return float((radii > epsilon).double().mean())


def average_certified_radius(
    logits: Tensor,
    labels: Tensor,
    lip_const: float = 1.0,
    disjoint_neurons: bool = False,
    negative_robustness: bool = False,
) -> float:
    """The mean of :func:`certified_radii`, wrong decisions included.

    Args:
        logits, labels, lip_const, disjoint_neurons, negative_robustness: as for
            :func:`certified_radii`.

    Returns:
        A number; NaN if there are no inputs.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.
    """
    radii = certified_radii(logits, labels, lip_const, disjoint_neurons, negative_robustness)
    return float(radii.mean())


class RobustnessMetric:
    """Accuracy, certified accuracies and the average certified radius over many batches.

    ::

        metric = RobustnessMetric(epsilons=(0.1, 0.5))
        for images, labels in loader:
            metric.update(model(images), labels)
        metric.compute()  # {"accuracy": ..., "certified@0.1": ..., "average_radius": ...}

    Args:
        epsilons: perturbation sizes for certified accuracies, none negative.
        lip_const, disjoint_neurons, negative_robustness: as for :func:`certified_radii`.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range.
    """

    def __init__(
        self,
        epsilons: Sequence[float] = (36 / 255,),
        lip_const: float = 1.0,
        disjoint_neurons: bool = False,
        negative_robustness: bool = False,
    ) -> None:
        if not isinstance(epsilons, (tuple, list)):
            raise TypeError(f"epsilons must be a tuple or list of numbers, got {epsilons!r}")
        self.epsilons: tuple[float, ...] = tuple(
            check_in_range("epsilons", e, 0.0, math.inf) for e in epsilons
        )
        self._names = ["accuracy", *(f"certified@{epsilon:.4g}" for epsilon in self.epsilons)]
        if len(set(self._names)) != len(self._names):
            raise ValueError(f"epsilons must differ in four digits, got {self.epsilons}")
        self.lip_const: float = check_positive("lip_const", lip_const)
        self.disjoint_neurons: bool = check_bool("disjoint_neurons", disjoint_neurons)
        self.negative_robustness: bool = check_bool("negative_robustness", negative_robustness)
        self.reset()

    def reset(self) -> None:
        """Forgets all batches."""
        self.count: int = 0
        self._radius = 0.0
        self._above = [0] * (1 + len(self.epsilons))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            logits, labels: as for :func:`certified_radii`.
        """
        radii = certified_radii(
            logits, labels, self.lip_const, self.disjoint_neurons, self.negative_robustness
        )
        self.count += radii.numel()
        self._radius += float(radii.sum())
        for i, epsilon in enumerate((0.0, *self.epsilons)):
            self._above[i] += int((radii > epsilon).sum())

    def merge(self, other: RobustnessMetric) -> None:
        """Adds what another metric with the same settings has seen, on another rank, say.

        Raises:
            TypeError: if it is not such a metric.
            ValueError: if its settings are others.
        """
        if not isinstance(other, RobustnessMetric):
            raise TypeError(f"other must be a RobustnessMetric, got {type(other).__name__}")
        if other._settings() != self._settings():
            raise ValueError(f"other must have the settings of {self!r}, got {other!r}")
        self.count += other.count
        self._radius += other._radius
        self._above = [a + b for a, b in zip(self._above, other._above)]

    def compute(self) -> dict[str, float]:
        """The averages so far.

        Returns:
            ``"accuracy"``, ``"certified@<epsilon>"`` for each of them, ``"average_radius"``; NaN
            before the first batch.
        """
        n = self.count or math.nan
        fractions = {name: above / n for name, above in zip(self._names, self._above)}
        return {**fractions, "average_radius": self._radius / n}

    def _settings(self) -> tuple[object, ...]:
        return self.epsilons, self.lip_const, self.disjoint_neurons, self.negative_robustness

    def __repr__(self) -> str:
        return (
            f"RobustnessMetric(epsilons={self.epsilons}, lip_const={self.lip_const:g}, "
            f"disjoint_neurons={self.disjoint_neurons}, "
            f"negative_robustness={self.negative_robustness})"
        )
