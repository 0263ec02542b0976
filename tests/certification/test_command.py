"""``python -m lipfuse certify``, and what it is willing to load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lipfuse
import lipfuse.nn as lnn
from lipfuse.__main__ import main


def run(*arguments: object) -> int:
    return main(["certify", *map(str, arguments)])


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()
    torch.save(model, tmp_path / "model.pt")
    return tmp_path / "model.pt", model


def test_a_table_and_json(
    plain: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    file, model = plain
    certificate = lipfuse.certify(model, (1, 4, 4))
    for shape in ("1,4,4", "1x4x4"):
        assert run(file, "--input-shape", shape) == 0
        assert capsys.readouterr().out == certificate.table() + "\n"
    assert run(file, "--input-shape", "1,4,4", "--json") == 0
    assert json.loads(capsys.readouterr().out) == certificate.to_dict()


def test_what_cannot_be_certified(
    tmp_path: Path, plain: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    file, model = plain
    assert run(file, "--input-shape", "2,4,4") == 1
    assert "module '0' (Conv2d)" in capsys.readouterr().err
    torch.save(model.train(), file)
    assert run(file, "--input-shape", "1,4,4") == 1
    assert "call eval() first" in capsys.readouterr().err
    assert run(file, "--input-shape", "1,4,4", "--eval") == 0
    for wrong in ("1,x", "", "0,4", "1;4"):
        with pytest.raises(SystemExit):
            run(file, "--input-shape", wrong)
        assert "shape like 1,28,28" in capsys.readouterr().err


class Mischief:
    """Unpickled, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_nothing_is_run_without_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, trace = tmp_path / "model.pt", tmp_path / "trace"
    model = nn.Linear(2, 2)
    model.mischief = Mischief(str(trace))
    torch.save(model, file)
    assert run(file, "--input-shape", "2") == 1
    error = capsys.readouterr().err
    assert "--trust" in error and "any code" in error and "pathlib" in error
    assert not trace.exists()
    run(file, "--input-shape", "2", "--trust")
    assert trace.exists(), "the trap works"


def test_layers_with_code_of_their_own_need_trust(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = lnn.Sequential(lnn.SpectralLinear(4, 4), lnn.GroupSort2(), lnn.SpectralLinear(4, 2))
    exported = lipfuse.vanilla_model(layers, in_place=False)
    for model, name in ((layers, "lipfuse.nn"), (exported, "graph_module")):
        torch.save(model, tmp_path / "model.pt")
        assert run(tmp_path / "model.pt", "--input-shape", "4") == 1
        assert name in capsys.readouterr().err
        assert run(tmp_path / "model.pt", "--input-shape", "4", "--trust") == 0
        assert f"at most {lipfuse.certify(model, (4,)).lipschitz:.9g}" in capsys.readouterr().out


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.pt"
    for content, text in (
        (nn.Linear(2, 2).state_dict(), "dictionary"), (torch.ones(2), "not a model"),
    ):  # fmt: skip
        torch.save(content, file)
        for extra in ([], ["--trust"]):
            assert run(file, "--input-shape", "2", *extra) == 1
            assert text in capsys.readouterr().err
    file.write_text("hello")
    assert run(file, "--input-shape", "2") == 1 and str(file) in capsys.readouterr().err
    assert run(file, "--input-shape", "2", "--trust") == 1 and str(file) in capsys.readouterr().err
    assert run(tmp_path / "none.pt", "--input-shape", "2") == 1
    assert "cannot be read" in capsys.readouterr().err


def test_in_a_process_of_its_own(plain: tuple[Path, nn.Module]) -> None:
    file, model = plain
    found = subprocess.run(
        [sys.executable, "-m", "lipfuse", "certify", str(file), "--input-shape", "1,4,4", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout)["lipschitz"] == lipfuse.certify(model, (1, 4, 4)).lipschitz
