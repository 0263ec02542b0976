from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lipfuse.nn as lnn
from lipfuse.demo.evaluation import (
    UnsoundCertificateError,
    assess,
    bound_layers,
    check_attack,
    jacobian_norms,
    total_bound,
)
from lipfuse.demo.model import build_constrained
from lipfuse.export import vanilla_model


def _orthonormal_classifier() -> tuple[nn.Linear, Tensor, Tensor]:
    """Orthonormal rows: margin / sqrt(2) is then the exact distance to the boundary."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(12, 3).double().requires_grad_(False)
    square = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    model.weight.copy_(torch.linalg.qr(square)[0][:3])
    model.bias.copy_(-0.5 * model.weight.sum(dim=1))  # so that every class occurs
    images = 0.5 + 0.08 * torch.randn(60, 12, generator=generator, dtype=torch.float64)
    return model, images, model(images).argmax(dim=1)


def _assess(model: nn.Module, images: Tensor, labels: Tensor, lipschitz: float) -> list[float]:
    outcome = assess(
        model, images, labels, [0.02, 0.05, 0.1], lipschitz, steps=60, restarts=2, seed=0
    )
    for row in outcome.rows:
        assert row.certified <= row.attacked
    assert not ((outcome.certified > 0) & (outcome.broken_at < outcome.certified)).any()
    return [row.attacked - row.certified for row in outcome.rows]


def test_certificate_and_attack_meet_where_the_bound_is_tight() -> None:
    model, images, labels = _orthonormal_classifier()
    assert max(_assess(model, images, labels, 1.0)) <= 0.02


def test_understated_bounds_are_found_out() -> None:
    """The alarm that the demo relies on goes off: here the true constant is 3, not 1."""
    model, images, labels = _orthonormal_classifier()
    model.weight.mul_(3)
    with pytest.raises(UnsoundCertificateError, match="further than a Lipschitz bound"):
        _assess(model, images, labels, 1.0)
    _assess(model, images, labels, 3.0)


def test_check_attack_measures_the_distance_itself() -> None:
    model, images, labels = _orthonormal_classifier()
    direction = model.weight[1] - model.weight[0]
    logits = model(images)
    # Those whose nearest boundary is the one that the direction points at.
    chosen = (labels == 0) & (logits[:, 1] > logits[:, 2])
    assert chosen.any()
    away = images[chosen] + 0.1 * direction / direction.norm()
    check_attack(model, images[chosen], labels[chosen], away, 1.0)
    with pytest.raises(UnsoundCertificateError):
        check_attack(model, images[chosen], labels[chosen], away, 0.99)


def test_wrong_images_count_as_broken_and_uncertified() -> None:
    model, images, labels = _orthonormal_classifier()
    wrong = (labels + 1) % 3
    outcome = assess(model, images, wrong, [0.1], 1.0, steps=3, restarts=1, seed=0)
    assert outcome.rows[0].certified == outcome.rows[0].attacked == 0
    assert (outcome.broken_at == 0).all()


def test_bounds_of_an_exported_network() -> None:
    torch.manual_seed(0)
    model = build_constrained(width=32, depth=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    plain = vanilla_model(model, in_place=False)
    assert isinstance(model, nn.Sequential) and isinstance(plain, nn.Sequential)
    bounds = bound_layers(model, plain)
    names = ["Flatten", *["SpectralLinear", "GroupSort2"] * 2, "SpectralLinear"]
    assert [bound.layer for bound in bounds] == names
    assert total_bound(bounds) <= 1.00001
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    norms = jacobian_norms(plain.double(), images)
    assert norms.shape == (5,)
    assert (norms <= total_bound(bounds)).all()
    assert (norms > 0.9).all(), "orthogonal layers keep the gradient's norm"


def test_bounds_see_what_the_weights_are() -> None:
    """Measured, not believed: a layer that is not 1-Lipschitz is not called so."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        plain[1].weight.copy_(torch.eye(3, 4) * torch.tensor([[1.0], [7.0], [2.0]]))
    assert total_bound(bound_layers(plain, plain)) == pytest.approx(7.0)
    assert jacobian_norms(plain.double(), torch.rand(2, 4).double()).tolist() == [7.0, 7.0]
    scaled = nn.Sequential(lnn.GroupSort2(k_coef_lip=3.0))
    exported = vanilla_model(scaled, in_place=False)
    assert isinstance(exported, nn.Sequential)
    assert total_bound(bound_layers(scaled, exported)) == 3.0


def test_no_bound_is_made_up() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=1))
    with pytest.raises(TypeError, match="Softmax"):
        bound_layers(model, model)
