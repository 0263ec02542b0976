from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from lipfuse.certification import Certificate, certify
from lipfuse.demo.evaluation import (
    UnsoundCertificateError,
    assess,
    check_attack,
    jacobian_norms,
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


def _scaled(certificate: Certificate, factor: float) -> Certificate:
    """A certificate that says something else."""
    assert certificate.pairs is not None
    return dataclasses.replace(
        certificate,
        lipschitz=factor * certificate.lipschitz,
        outputs=factor * certificate.outputs,
        pairs=factor * certificate.pairs,
    )


def _assess(
    model: nn.Module, images: Tensor, labels: Tensor, certificate: Certificate
) -> list[float]:
    outcome = assess(
        model, images, labels, [0.02, 0.05, 0.1], certificate, steps=60, restarts=2, seed=0
    )
    for row in outcome.rows:
        assert row.certified <= row.attacked
    assert not ((outcome.certified > 0) & (outcome.broken_at < outcome.certified)).any()
    return [row.attacked - row.certified for row in outcome.rows]


def test_certificate_and_attack_meet_where_the_bound_is_tight() -> None:
    model, images, labels = _orthonormal_classifier()
    assert max(_assess(model, images, labels, certify(model, (12,)))) <= 0.02


def test_understated_bounds_are_found_out() -> None:
    """The alarm that the demo relies on goes off: here the true constant is 3, not 1."""
    model, images, labels = _orthonormal_classifier()
    model.weight.mul_(3)
    certificate = certify(model, (12,))
    assert certificate.lipschitz == pytest.approx(3.0)
    with pytest.raises(UnsoundCertificateError, match="further than the certificate allows"):
        _assess(model, images, labels, _scaled(certificate, 1 / 3))
    _assess(model, images, labels, certificate)


def test_check_attack_measures_the_distance_itself() -> None:
    model, images, labels = _orthonormal_classifier()
    direction = model.weight[1] - model.weight[0]
    logits = model(images)
    # Those whose nearest boundary is the one that the direction points at.
    chosen = (labels == 0) & (logits[:, 1] > logits[:, 2])
    assert chosen.any()
    away = images[chosen] + 0.1 * direction / direction.norm()
    certificate = certify(model, (12,))
    check_attack(model, images[chosen], labels[chosen], away, certificate)
    with pytest.raises(UnsoundCertificateError):
        check_attack(model, images[chosen], labels[chosen], away, _scaled(certificate, 0.99))


def test_wrong_images_count_as_broken_and_uncertified() -> None:
    model, images, labels = _orthonormal_classifier()
    wrong = (labels + 1) % 3
    outcome = assess(
        model, images, wrong, [0.1], certify(model, (12,)), steps=3, restarts=1, seed=0
    )
    assert outcome.rows[0].certified == outcome.rows[0].attacked == 0
    assert (outcome.broken_at == 0).all()


def test_the_jacobian_stays_below_the_certificate() -> None:
    torch.manual_seed(0)
    model = build_constrained(width=32, depth=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    plain = vanilla_model(model, in_place=False)
    certificate = certify(plain, (1, 28, 28))
    names = ["Flatten", *["Linear", "GroupSort2"] * 2, "Linear"]
    assert [bound.layer for bound in certificate.layers] == names
    assert certificate.lipschitz <= 1.00001
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    norms = jacobian_norms(plain.double(), images)
    assert norms.shape == (5,)
    assert (norms <= certificate.lipschitz).all()
    assert (norms > 0.9).all(), "orthogonal layers keep the gradient's norm"
