"""The table of leaks: every case holds for ours, and one that leaks is called so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import lipfuse.nn as lnn

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks" / "leaks.py").is_file():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import leaks  # noqa: E402
from benchmarks.leak_measurements import CASES, Library  # noqa: E402

OURS = Library("lipfuse", lnn, "lipfuse")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_ours_holds(case: Any) -> None:
    row = leaks.run_case(case, OURS, None)
    assert not row.exceeded, row.ours
    assert row.theirs == (case.recorded or "not recorded")


class Careless(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 1.01 * weight


def careless(*arguments: int, **settings: Any) -> nn.Module:
    """A linear layer that promises what it does not keep, parametrized as the peer's are."""
    layer = nn.Linear(*arguments[:2])
    nn.init.orthogonal_(layer.weight)
    parametrize.register_parametrization(layer, "weight", Careless(), unsafe=True)
    return layer


@pytest.mark.parametrize(
    "text", ["in training", "after loading", "without sense", "pickle", "checkpoint"]
)
def test_a_leak_is_called_one(text: str) -> None:
    layers = SimpleNamespace(
        SpectralLinear=careless,
        SpectralConv2d=lambda *a, **k: careless(4, 4),
        ScaledAvgPool2d=lambda *a, **k: nn.Identity(),
    )
    for case in CASES:
        if text in case.text and "export" not in case.text:
            row = leaks.run_case(case, Library("careless", layers, "torch"), None)
            assert row.exceeded, row
            assert "LEAKS" in leaks.report([row], "recorded")


def test_a_peer_that_raises_is_a_result_and_json_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Library("broken", SimpleNamespace(), "torch")
    monkeypatch.setattr(leaks, "libraries", lambda: (OURS, broken, "broken, here"))
    assert leaks.main(["--case", "pickle", "--json", str(tmp_path / "rows.json")]) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["theirs"] == "raises AttributeError" and not row["exceeded"]
    assert "1 cases; lipfuse leaks in 0" in capsys.readouterr().out
