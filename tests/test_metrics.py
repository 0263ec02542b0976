"""Certified radii and their averages, against attacks that know the network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lipfuse.metrics import (
    RobustnessMetric,
    average_certified_radius,
    certified_accuracy,
    certified_radii,
)

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.5], [1.0, 1.0, 0.0], [5.0, 0.0, -1.0]])
LABELS = torch.tensor([0, 1, 0, 2])
MARGINS = torch.tensor([2.0, 0.5, 0.0, -6.0]).double()


@pytest.mark.parametrize("disjoint, factor", [(False, math.sqrt(2)), (True, 2.0)])
def test_several_classes(disjoint: bool, factor: float) -> None:
    signed = MARGINS / (factor * 3.0)
    one_hot = torch.nn.functional.one_hot(LABELS, 3)
    for labels in (LABELS, LABELS.int(), one_hot, one_hot * 2 - 1, one_hot.bool()):
        found = certified_radii(LOGITS, labels, 3.0, disjoint, negative_robustness=True)
        assert torch.allclose(found, signed)
    assert torch.allclose(certified_radii(LOGITS, LABELS, 3.0, disjoint), signed.clamp_min(0))


def test_a_sign() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0])
    signed = torch.tensor([1.0, 0.5, -0.25, 0.0]).double()
    for shape in ((4,), (4, 1)):
        for labels in ([1, 0, 0, 1], [1, -1, -1, 1], [True, False, False, True], [1.0, -1, -1, 1]):
            given = torch.tensor(labels).reshape(shape)
            found = certified_radii(logits.reshape(shape), given, 2.0, True, True)
            assert torch.equal(found, signed)
    assert certified_accuracy(logits, torch.tensor([1, 0, 0, 1]), 0.75, 2.0) == 0.25


@pytest.mark.parametrize("disjoint", [False, True])
def test_radii_are_sound_and_cannot_be_larger(disjoint: bool) -> None:
    """The attack on a linear network that moves two logits apart as fast as its bound allows."""
    c = 4
    weight = torch.eye(c).double()
    if disjoint:  # each logit 1-Lipschitz on its own, two of them opposite
        weight[1] = -weight[0]
    x = torch.randn(50, c).double()
    labels = torch.zeros(50, dtype=torch.int64)
    radii = certified_radii(x @ weight.T, labels, 1.0, disjoint)
    tight = 0
    for point, radius in zip(x, radii, strict=True):
        if radius > 0:
            directions = weight[1:] - weight[:1]
            directions = directions / directions.norm(dim=1, keepdim=True)
            for size, wanted in ((0.999, True), (1.001, False)):
                moved = point + size * radius * directions
                right = (moved @ weight.T).argmax(1) == 0
                if wanted:
                    assert bool(right.all())
                else:
                    tight += int(not bool(right.all()))
    assert tight > 0


def test_averages() -> None:
    root = math.sqrt(2)
    assert certified_accuracy(LOGITS, LABELS, 0.0) == 0.5  # a tie is not right
    assert certified_accuracy(LOGITS, LABELS, 0.5 / root) == 0.25  # only smaller perturbations
    assert certified_accuracy(LOGITS, LABELS, 0.5 / root - 1e-9) == 0.5
    assert certified_accuracy(LOGITS, LABELS) == 0.5
    assert average_certified_radius(LOGITS, LABELS) == pytest.approx(2.5 / root / 4)
    signed = average_certified_radius(LOGITS, LABELS, negative_robustness=True)
    assert signed == pytest.approx(-3.5 / root / 4)
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert math.isnan(certified_accuracy(*nothing))


def test_the_subtraction_does_not_round() -> None:
    logits = torch.tensor([[1.0, 2.0**-12]], dtype=torch.bfloat16)
    found = certified_radii(logits, torch.tensor([0]))
    assert float(found) == pytest.approx((1 - 2.0**-12) / math.sqrt(2), rel=1e-12)


def test_the_metric_accumulates() -> None:
    logits, labels = torch.randn(30, 5, requires_grad=True), torch.randint(5, (30,))
    options: dict[str, Any] = {"lip_const": 0.5, "disjoint_neurons": True}
    metric = RobustnessMetric((0.25, 1.0), **options, negative_robustness=True)
    assert all(math.isnan(v) for v in metric.compute().values())
    other = RobustnessMetric([0.25, 1], **options, negative_robustness=True)
    for part in (slice(0, 7), slice(7, 7), slice(7, 20)):
        metric.update(logits[part], labels[part])
    other.update(logits[20:], labels[20:])
    metric.merge(other)
    found = metric.compute()
    assert list(found) == ["accuracy", "certified@0.25", "certified@1", "average_radius"]
    assert metric.count == 30
    for name, epsilon in (("accuracy", 0.0), ("certified@0.25", 0.25), ("certified@1", 1.0)):
        assert found[name] == pytest.approx(certified_accuracy(logits, labels, epsilon, **options))
    mean = average_certified_radius(logits, labels, **options, negative_robustness=True)
    assert found["average_radius"] == pytest.approx(mean)
    metric.reset()
    assert metric.count == 0
    assert "disjoint_neurons=True" in repr(metric)


def test_errors() -> None:
    def radii(logits: Any = LOGITS, labels: Any = LABELS, **options: Any) -> Tensor:
        return certified_radii(logits, labels, **options)

    metric = RobustnessMetric()
    nan = torch.full((4, 3), math.nan)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: radii([1.0]), TypeError, "logits must be a torch.Tensor"),
        (lambda: radii(LABELS), TypeError, "logits must have a real floating-point dtype"),
        (lambda: radii(torch.zeros(2, 3, 4)), ValueError, r"logits must have shape \(N,\) or"),
        (lambda: radii(nan), ValueError, "logits must be finite"),
        (lambda: radii(labels=LABELS[:3]), ValueError, r"labels must have shape \(4,\), or \(4, 3"),
        (lambda: radii(labels=LABELS.float()), TypeError, "labels must be integers for 3 classes"),
        (lambda: radii(labels=LABELS + 1), ValueError, r"labels must be in \[0, 2\], got 1 to 3"),
        (lambda: radii(labels=LABELS - 1), ValueError, r"labels must be in \[0, 2\], got -1 to 1"),
        (lambda: radii(labels=torch.ones(4, 3)), ValueError, "one positive entry in each row"),
        (
            lambda: radii(LOGITS[:, 0], LABELS[:2]),
            ValueError,
            r"labels must have shape \(4,\), got",
        ),
        (lambda: radii(lip_const=0.0), ValueError, "lip_const must be a positive finite number"),
        (lambda: radii(disjoint_neurons=1), TypeError, "disjoint_neurons must be True or False"),
        (lambda: radii(negative_robustness=0), TypeError, "negative_robustness must be True"),
        (lambda: certified_accuracy(LOGITS, LABELS, -0.1), ValueError, "epsilon must be"),
        (lambda: RobustnessMetric(0.1), TypeError, "epsilons must be a tuple or list"),
        (lambda: RobustnessMetric([0.1, -1]), ValueError, "epsilons must be"),
        (lambda: RobustnessMetric([0.1, 0.10000001]), ValueError, "epsilons must differ"),
        (lambda: metric.merge(RobustnessMetric(lip_const=2.0)), ValueError, "settings of"),
        (lambda: metric.merge(3), TypeError, "other must be a RobustnessMetric, got int"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
