from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import lipfuse.nn as lnn
from lipfuse.certification import certify
from lipfuse.demo.export_proof import ExportError, prove_export
from lipfuse.demo.model import build_constrained
from lipfuse.export import vanilla_model


def test_a_plain_model_is_proven(tmp_path: Path) -> None:
    model = build_constrained(width=16, depth=1).eval()
    images = torch.rand(6, 1, 28, 28)
    with torch.no_grad():
        logits = model(images)
    plain = vanilla_model(model, in_place=False)
    certificate = certify(plain, (1, 28, 28))
    proof = prove_export(plain, tmp_path / "model.pt", images, logits, certificate)
    assert proof.largest_difference <= 1e-5
    assert proof.packages_of_its_modules == ["torch"]
    assert abs(proof.lipschitz_difference) <= 1e-9 and proof.radius_difference <= 1e-8
    with pytest.raises(ExportError, match="differ by"):
        prove_export(plain, tmp_path / "model.pt", images, logits + 2e-5, certificate)
    with pytest.raises(ExportError, match="differ by"):
        prove_export(plain, tmp_path / "model.pt", images, logits * float("nan"), certificate)


def test_a_model_that_needs_this_package_is_not(tmp_path: Path) -> None:
    model = nn.Sequential(lnn.GroupSort2())
    images = torch.rand(2, 4)
    with pytest.raises(ExportError, match="must not be needed here"):
        prove_export(model, tmp_path / "model.pt", images, model(images), certify(model, (4,)))


@pytest.mark.parametrize("part", ["lipschitz", "pairs"])
def test_a_certificate_that_promises_too_much_is_found_out(tmp_path: Path, part: str) -> None:
    plain = vanilla_model(build_constrained(width=8, depth=1), in_place=False)
    images = torch.rand(3, 1, 28, 28)
    certificate = certify(plain, (1, 28, 28))
    wrong = dataclasses.replace(certificate, **{part: getattr(certificate, part) * (1 - 1e-6)})
    with torch.no_grad(), pytest.raises(ExportError, match="the certificate says"):
        prove_export(plain, tmp_path / "model.pt", images, plain(images), wrong)
