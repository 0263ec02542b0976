"""Radii: exact where the decision's boundary is known, and never beyond it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn


def distances(weight: Tensor, logits: Tensor, winners: Tensor) -> Tensor:
    """The exact distance of a linear classifier's inputs to the boundary, 0 beyond it."""
    rows = weight.double()
    gaps = logits.gather(1, winners[:, None]) - logits
    lengths = torch.linalg.vector_norm(rows[winners][:, None] - rows[None], dim=2)
    found: Tensor = (gaps / lengths).nan_to_num(nan=math.inf).amin(dim=1)
    return found.clamp_min(0.0)


def test_of_a_linear_classifier_the_radius_is_the_distance() -> None:
    """All competitors count: the runner-up need not be the nearest one."""
    model = nn.Linear(6, 4).double()
    with torch.no_grad():
        model.weight[3] *= 10.0
    x = torch.randn(200, 6).double()
    logits = model(x)
    certificate = lipfuse.certify(model, (6,))
    winners = logits.argmax(1)
    exact = distances(model.weight.detach(), logits.detach(), winners)
    radii = certificate.radius(logits)
    assert (radii <= exact).all() and torch.allclose(radii, exact, rtol=1e-9)
    runner_up = logits.topk(2).indices[:, 1]
    gap = logits.topk(2).values.diff(dim=1).abs()[:, 0]
    lengths = (model.weight[winners] - model.weight[runner_up]).norm(dim=1)
    assert (radii < gap / lengths * 0.99).any()
    labels = torch.randint(4, (200,))
    right = labels == winners
    assert torch.equal(certificate.radius(logits, labels)[right], radii[right])
    assert (certificate.radius(logits, labels)[~right] == 0).all() and right.any()
    assert certificate.radius(logits[0]).shape == ()
    assert certificate.radius(logits[0], labels[0]) == certificate.radius(logits, labels)[0]


def test_disjoint_neurons_are_each_on_their_own() -> None:
    """margin / 2, not margin / sqrt 2: the outputs together have sqrt(n) times the constant."""
    model = nn.Sequential(lnn.FrobeniusLinear(5, 3), nn.Identity())
    weight: Any = model[0].weight
    with torch.no_grad():
        # The rows point the opposite way: then margin / 2 is exact.
        weight = torch.tensor([[1.0], [-1.0], [1.0]]) * torch.eye(1, 5)
        model[0].parametrizations.weight.original.copy_(weight)  # type: ignore[union-attr, operator]
    certificate = lipfuse.certify(model, (5,))
    assert certificate.lipschitz == pytest.approx(math.sqrt(3), rel=1e-6)
    assert torch.allclose(certificate.outputs, torch.ones(3).double(), rtol=1e-6)
    logits = torch.tensor([[1.0, -1.0, -3.0], [-2.0, 1.0, -2.0]])
    assert certificate.radius(logits).tolist() == pytest.approx([1.0, 1.5], rel=1e-6)
    # The same behind a function of each output: no row to look at, the sum of two constants.
    bent = lipfuse.certify(nn.Sequential(model, nn.Tanh()), (5,))
    assert bent.radius(logits).tolist() == pytest.approx([1.0, 1.5], rel=1e-6)
    assert bent.pairs is not None and float(bent.pairs.max()) == pytest.approx(2.0, rel=1e-6)


def test_outputs_together() -> None:
    """Behind a sort, only that they move together is known: margin over sqrt 2."""
    model = lnn.Sequential(lnn.SpectralLinear(6, 4), lnn.FullSort(), k_coef_lip=2.0)
    certificate = lipfuse.certify(model, (6,))
    radius = certificate.radius(torch.tensor([0.0, 1.0, 5.0, 2.0]))
    assert radius == pytest.approx(3.0 / (2.0 * math.sqrt(2)), rel=1e-5)


def test_a_linear_layer_behind_a_network() -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.LogSoftmax(1)
    )
    certificate = lipfuse.certify(model.double(), (6,))
    before = torch.linalg.matrix_norm(model[0].weight, 2)  # type: ignore[arg-type]
    x = torch.randn(50, 6).double()
    logits = model(x)
    winners = logits.argmax(1)
    expected = distances(model[3].weight.detach(), logits.detach(), winners) / before  # type: ignore[arg-type, operator]
    assert torch.allclose(certificate.radius(logits), expected, rtol=1e-8)
    assert (certificate.radius(logits) <= expected).all()


def test_one_output() -> None:
    model = nn.Sequential(lnn.SpectralLinear(6, 1, k_coef_lip=2.0))
    certificate = lipfuse.certify(model, (6,))
    logits = torch.tensor([[1.0], [-3.0], [0.0]])
    for given in (logits, logits[:, 0]):
        assert certificate.radius(given).tolist() == pytest.approx([0.5, 1.5, 0.0], rel=1e-6)
        for labels in ([1, 0, 1], [1, -1, -1], [1.0, 0.0, 1.0]):
            found = certificate.radius(given, torch.tensor(labels))
            assert found.tolist() == pytest.approx([0.5, 1.5, 0.0], rel=1e-6)
        assert certificate.radius(given, torch.tensor([0, 1, 0])).tolist() == [0.0, 0.0, 0.0]
    assert certificate.radius(torch.tensor(-3.0)) == pytest.approx(1.5, rel=1e-6)
    assert certificate.radius(logits, logit_error=0.25).tolist() == pytest.approx([0.25, 1.25, 0])


def test_the_networks_own_rounding() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    certificate = lipfuse.certify(model, (2,))
    logits = torch.tensor([[3.0, 1.0]])
    assert certificate.radius(logits, logit_error=0.1) == pytest.approx(1.6 / math.sqrt(2))
    assert certificate.radius(logits, logit_error=9.0) == 0.0


def test_many_outputs_need_no_table_of_pairs() -> None:
    model = nn.Linear(3, 1500)
    certificate = lipfuse.certify(model, (3,))
    assert certificate.pairs is None and certificate.to_dict()["pairs"] is None
    x = torch.randn(4, 3)
    logits = model(x).double()
    exact = distances(model.weight.detach(), logits.detach(), logits.argmax(1))
    radii = certificate.radius(logits)
    assert (radii > 0).all() and (radii <= exact).all()


def test_what_can_never_change() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    certificate = lipfuse.certify(model, (3,))
    assert certificate.radius(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).tolist() == [math.inf, 0.0]


def test_arguments() -> None:
    several = lipfuse.certify(nn.Linear(3, 4), (3,))
    one = lipfuse.certify(nn.Linear(3, 1), (3,))
    image = lipfuse.certify(nn.Conv2d(1, 2, 1), (1, 4, 4))
    logits = torch.randn(5, 4)
    for certificate, wrong in (
        (several, torch.randn(5, 3)), (several, torch.randn(2, 5, 4)), (one, torch.randn(5, 2)),
        (image, torch.randn(5, 32)), (several, torch.tensor([math.nan, 1, 2, 3])),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="logits must"):
            certificate.radius(wrong)
    with pytest.raises(TypeError, match="logits"):
        several.radius(logits.long())
    with pytest.raises(TypeError, match="logits"):
        several.radius([1.0])  # type: ignore[arg-type]
    for labels, error in (
        (torch.tensor([0, 1]), ValueError), (torch.full((5,), 4), ValueError),
        (torch.full((5,), -1), ValueError), (torch.zeros(5), TypeError), ([0] * 5, TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match="labels"):
            several.radius(logits, labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels"):
        one.radius(torch.randn(2, 1), torch.tensor([2, 3]))
    for error_bound in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="logit_error"):
            several.radius(logits, logit_error=error_bound)


def test_table_and_json() -> None:
    model = nn.Sequential(nn.Flatten(), lnn.SpectralLinear(6, 4), lnn.GroupSort2(), nn.Linear(4, 3))
    certificate = lipfuse.certify(model, (2, 3))
    table = str(certificate)
    for text in (
        "SpectralLinear",
        "GroupSort2",
        "sorts",
        "2x3 -> 3",
        f"{certificate.lipschitz:.9g}",
    ):
        assert text in table
    found = json.loads(certificate.to_json())
    assert found == json.loads(json.dumps(certificate.to_dict()))
    assert found["lipschitz"] == certificate.lipschitz and found["input_shape"] == [2, 3]
    assert [row["layer"] for row in found["layers"]] == [
        "Flatten", "SpectralLinear", "GroupSort2", "Linear",
    ]  # fmt: skip
    assert found["layers"][1]["name"] == "1" and found["layers"][1]["shape"] == [4]
    product = math.prod(row.bound for row in certificate.layers if row.bound is not None)
    assert certificate.lipschitz == pytest.approx(product)
    with pytest.raises(AttributeError):
        certificate.lipschitz = 0.1  # type: ignore[misc]
