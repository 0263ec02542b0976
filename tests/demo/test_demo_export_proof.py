from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lipfuse.nn as lnn
from lipfuse.demo.export_proof import ExportError, prove_export
from lipfuse.demo.model import build_constrained
from lipfuse.export import vanilla_model


def test_a_plain_model_is_proven(tmp_path: Path) -> None:
    model = build_constrained(width=16, depth=1).eval()
    images = torch.rand(6, 1, 28, 28)
    with torch.no_grad():
        logits = model(images)
    plain = vanilla_model(model, in_place=False)
    proof = prove_export(plain, tmp_path / "model.pt", images, logits)
    assert proof.largest_difference <= 1e-5
    assert proof.packages_of_its_modules == ["torch"]
    with pytest.raises(ExportError, match="differ by"):
        prove_export(plain, tmp_path / "model.pt", images, logits + 2e-5)
    with pytest.raises(ExportError, match="differ by"):
        prove_export(plain, tmp_path / "model.pt", images, logits * float("nan"))


def test_a_model_that_needs_this_package_is_not(tmp_path: Path) -> None:
    model = nn.Sequential(lnn.GroupSort2())
    images = torch.rand(2, 4)
    with pytest.raises(ExportError, match="must not be needed here"):
        prove_export(model, tmp_path / "model.pt", images, model(images))
