from __future__ import annotations

import io
import shutil
from os import terminal_size

import pytest

from lipfuse.demo.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (75.2, "1:15"), (3600, "60:00"), (-1, "0:00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("total", [1, 3, 10, 997])
def test_plain_lines_elsewhere(total: int) -> None:
    stream = io.StringIO()
    progress = Progress(total, "work", stream)
    for step in range(total):
        progress.step(f"loss {step}")
    lines = stream.getvalue().splitlines()
    assert len(lines) == min(total, 10)
    assert "\r" not in stream.getvalue()
    assert lines[-1].startswith("work 100 %") and "done in" in lines[-1]
    assert all("left" in line for line in lines[:-1])


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_a_bar_on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: terminal_size((columns, 24)))
    stream = Terminal()
    progress = Progress(5, "work", stream)
    for _ in range(5):
        progress.step("loss 0.1")
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    drawn = text.rstrip("\n").split("\r")[1:]
    assert all(len(line) < columns for line in drawn), "a line that wraps cannot be drawn over"
    if columns >= 80:
        assert "█" in drawn[-1] and "done in" in drawn[-1]
