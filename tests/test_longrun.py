"""The long training in short, and that it finds what it is for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks" / "longrun.py").is_file():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import longrun  # noqa: E402


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    with tools.threads(1):
        assert longrun.main(["--steps", "300", "--every", "30", "--lr", "1"]) == 0
    printed = capsys.readouterr().out
    assert "300 steps" in printed and "layers above their constant: 0" in printed
    assert all(name in printed for name in longrun.LAYERS)


class Off(nn.Module):
    """Something times the identity."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * (weight.nan_to_num() * 0 + torch.eye(4))


@pytest.mark.parametrize(("factor", "failed"), [(1.0, False), (1.0001, True), (float("nan"), True)])
def test_a_layer_that_is_off_is_found(
    factor: float, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer: Any = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Off(factor))
    layer.k_coef_lip = 1.0
    monkeypatch.setattr(longrun, "LAYERS", {"careless": (lambda: layer, (4,))})
    outcome = longrun.run(3, 1e-3, 1)
    assert outcome.failed is failed
    assert (outcome.exceeded == ["careless"]) is failed
    assert ("EXCEEDS" in outcome.report()) is failed
