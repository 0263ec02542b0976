from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import lipfuse
from lipfuse import __main__ as cli
from lipfuse import info


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(argv) == 0
        printed = capsys.readouterr().out
        for command in ("info", "demo", "bench", "certify"):
            assert command in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == lipfuse.__version__


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "'trian'" in capsys.readouterr().err


def test_a_command_without_a_module_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli._COMMANDS, "later", ("lipfuse.no_such_module", "something", "yet"))
    assert cli.main(["later", "--fast"]) == 2
    assert "later is not available yet" in capsys.readouterr().err
    monkeypatch.setitem(cli._COMMANDS, "later", ("no_such_package.module", "something", "here"))
    assert cli.main(["later"]) == 2
    assert "later is not available here" in capsys.readouterr().err


def test_a_module_that_fails_to_import_is_not_called_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    path = os.path.join(tmp_path, "needs_something.py")
    with open(path, "w") as file:
        file.write("import no_such_package_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli._COMMANDS, "later", ("needs_something", "something", "yet"))
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        cli.main(["later"])


def test_arguments_status_and_interrupt_pass_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: list[str]) -> int:
        if argv == ["stop"]:
            raise KeyboardInterrupt
        return 7 if argv == ["a", "b"] else 1

    monkeypatch.setattr(info, "main", command)
    assert cli.main(["info", "a", "b"]) == 7
    assert cli.main(["info", "stop"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_info_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    rows = info.collect()
    for name in ("lipfuse", "torch", "Python", "platform", "native library", "threads"):
        assert rows[name]
        assert any(line.startswith(name) for line in printed.splitlines())
    if rows["native library"] == "loaded" and "kernels module" not in rows:
        for name in ("compiler", "compiler flags", "instruction set", "CUDA built for"):
            assert rows[name]
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows


def _native(**members: object) -> SimpleNamespace:
    return SimpleNamespace(**{"loaded": True, "reason": "", "kernels": None, **members})


def _raise() -> dict[str, str]:
    raise RuntimeError("of another age")


@pytest.mark.parametrize(
    ("native", "name", "text"),
    [
        (_native(loaded=False, reason="no compiler"), "native library", "no compiler"),
        (_native(loaded=False), "native library", "no known reason"),
        (_native(), "kernels module", "this version of Python"),
        (_native(kernels=SimpleNamespace(build_info=_raise)), "kernels module", "of another age"),
        (
            _native(kernels=SimpleNamespace(build_info=dict, cpu_features=dict)),
            "instruction set",
            "unknown",
        ),
        (
            _native(
                kernels=SimpleNamespace(build_info=lambda: {"version": "0"}, cpu_features=dict)
            ),
            "warning",
            "built from lipfuse 0",
        ),
    ],
)
def test_info_survives_whatever_is_broken(
    monkeypatch: pytest.MonkeyPatch, native: SimpleNamespace, name: str, text: str
) -> None:
    monkeypatch.setitem(sys.modules, "lipfuse._native", native)  # type: ignore[arg-type]
    monkeypatch.setattr(lipfuse, "_native", native, raising=False)
    assert text in info.collect()[name]


def test_as_a_module_and_without_the_native_library() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lipfuse", "info", "--json"],
        env={**os.environ, "LIPFUSE_NATIVE": "skip"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["native library"] == "not loaded: LIPFUSE_NATIVE=skip"
