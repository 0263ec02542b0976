"""No attack beats a certificate: a small edition of ``python -m benchmarks.attacks``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipfuse

ROOT = Path(__file__).resolve().parent.parent.parent
if not (ROOT / "benchmarks" / "attacks.py").is_file():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import attacks  # noqa: E402


def blobs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of three classes: a bright spot in one of three places, and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.4 * torch.rand(count, 1, 8, 8, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, 2 * label : 2 * label + 3, 3:6] += 0.5
    return images.clamp(0, 1), labels


@pytest.mark.parametrize("network", attacks.NETWORKS)
def test_pgd_never_beats_a_certificate(network: str) -> None:
    torch.manual_seed(0)
    images, labels = blobs(400)
    model = attacks.NETWORKS[network](8, 3, 32)
    attacks.train(model, images, labels, epochs=4, seed=0, distort=False)
    assert (model(images).argmax(1) == labels).double().mean() > 0.6
    outcome = attacks.judge(network, 0, model, images[:150], steps=15, restarts=2)
    assert outcome.broken == outcome.exceeded == 0
    assert outcome.certified > 100 and outcome.radius > 0.01
    assert 0.05 < outcome.tightest <= 1.0
    assert "sound" in attacks.report([outcome]).splitlines()


def test_a_wrong_certificate_is_found_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
    images, _ = blobs(60)
    right = lipfuse.certify(model, (1, 8, 8))
    assert right.pairs is not None
    for factor, wrong in ((1.0, False), (0.9, True)):
        certificate = dataclasses.replace(right, pairs=factor * right.pairs)
        _, found = attacks.assault(model, certificate, images, steps=30, restarts=1, seed=0)
        assert bool(found["broken"].any()) is wrong
        assert bool(found["exceeded"].any()) is wrong
        assert found["share"].max() > 0.99
