"""The fuzz run in short, and that it finds what it is for."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks" / "fuzz.py").is_file():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import fuzz, fuzz_arguments  # noqa: E402
from lipfuse import _native  # noqa: E402


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = fuzz.main(["--seed", "7", "--seconds", "60", "--calls", "600"])
    printed = capsys.readouterr().out
    assert found == 0, printed
    assert "600 calls" in printed and "0 crashes" in printed


def test_every_operator_is_called() -> None:
    names = {
        name.removeprefix("lipfuse::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("lipfuse::")
    }
    assert names == set(fuzz_arguments.OPERATORS)
    if _native.kernels is not None:
        offered = {n for n in dir(_native.kernels) if not n.startswith("_")}
        assert offered == set(fuzz_arguments.KERNELS)


@pytest.mark.parametrize("name", fuzz_arguments.OPERATORS)
def test_arguments_are_valid_before_they_are_spoiled(name: str) -> None:
    """Otherwise nothing would get past the first check."""
    function = getattr(torch.ops.lipfuse, name).default
    for seed in range(5):
        arguments = fuzz_arguments.OPERATORS[name](fuzz_arguments.Draw(random.Random(seed)))
        if name == "evaluate":  # there is no such module
            with pytest.raises(ValueError, match="module"):
                function(*arguments)
        else:
            function(*arguments)


def test_a_case_is_determined_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        assert fuzz.main(["--seed", "3", "--case", "12"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "lipfuse." in printed[0] or "_kernels." in printed[0]


@pytest.mark.parametrize(("what", "said"), [("abort", "ends with -6"), ("hang", "hangs")])
def test_a_crash_and_a_hang_are_seen(
    what: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_PATIENCE", 1.0)
    code = "import os, time; os.abort()" if what == "abort" else "import time; time.sleep(60)"
    progress = tmp_path / "progress"
    progress.write_bytes((41).to_bytes(8, "little"))
    process = fuzz.subprocess.Popen([sys.executable, "-c", code], stderr=fuzz.subprocess.DEVNULL)
    last, wrong = fuzz._watch(process, progress, 41)
    assert last == 41 and wrong.startswith(said)


def test_an_exception_of_another_kind_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(draw: Any) -> Any:
        return "broken", {}.__getitem__, ["no such key"]

    monkeypatch.setattr(fuzz_arguments, "target", broken)
    record = fuzz.Record()
    fuzz.one_call(0, 5, record)
    assert record.failures == ["case 5, broken: KeyError: 'no such key'"]
    assert "1 crashes" in record.report()
