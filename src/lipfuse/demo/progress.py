"""A progress bar on a terminal; plain lines, fewer of them, anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import TextIO

__all__ = ["Progress", "clock"]

_PLAIN_LINES = 10
_REDRAW_SECONDS = 0.1
# The time left follows the pace of so many steps: the first ones are often slow.
_PACE_STEPS = 200


def clock(seconds: float) -> str:
    """``75.2`` as ``1:15``."""
    whole = round(max(seconds, 0.0))
    return f"{whole // 60}:{whole % 60:02d}"


class Progress:
    """Shows how far a loop has come, with the time left at the present pace.

    Args:
        total: how many steps there will be.
        label: what the loop does.
        stream: where to write; a bar that redraws itself only if that is a terminal.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self._total = max(total, 1)
        self._label = label
        self._stream = stream if stream is not None else sys.stdout
        self._live = self._stream.isatty()
        self._done = 0
        self._lines = 0
        self._drawn = 0.0
        self._started = time.monotonic()
        self._recent = deque([self._started], maxlen=_PACE_STEPS + 1)

    def step(self, note: str) -> None:
        """One step done; ``note`` is what to show beside it."""
        self._done += 1
        now = time.monotonic()
        self._recent.append(now)
        last = self._done >= self._total
        if self._live:
            if last or now - self._drawn >= _REDRAW_SECONDS:
                self._drawn = now
                self._stream.write("\r" + self._bar(note, now) + ("\n" if last else ""))
                self._stream.flush()
        elif self._done * _PLAIN_LINES >= (self._lines + 1) * self._total:
            self._lines = self._done * _PLAIN_LINES // self._total
            self._stream.write(self._line(note, now) + "\n")
            self._stream.flush()

    def _left(self, now: float) -> str:
        if self._done >= self._total:
            return f"done in {clock(now - self._started)}"
        pace = (now - self._recent[0]) / (len(self._recent) - 1)
        return f"{clock(pace * (self._total - self._done))} left"

    def _line(self, note: str, now: float) -> str:
        return f"{self._label} {100 * self._done // self._total:3d} %  {note}  {self._left(now)}"

    def _bar(self, note: str, now: float) -> str:
        columns = shutil.get_terminal_size().columns
        tail = f" {note}  {self._left(now)}"
        room = max(min(columns - len(self._label) - len(tail) - 4, 40), 4)
        filled = room * self._done // self._total
        line = f"{self._label} [{'█' * filled}{'·' * (room - filled)}]{tail}"
        # A line that wraps could not be drawn over; one that has grown shorter must be wiped.
        return line[: columns - 1].ljust(columns - 1)
