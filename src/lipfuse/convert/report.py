"""What :func:`lipfuse.accelerate` did, for people and for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

__all__ = ["Report", "Row"]

_WIDTH = 100


@dataclass(frozen=True)
class Row:
    """One layer, or one parametrized tensor of it.

    Args:
        name: in ``model.named_modules()``; "" is the model itself.
        before: what it was.
        after: what it has become; None if it was left as it is.
        note: why it was left, or what to know about the conversion.
        change: of the weight in evaluation, in the spectral norm and relative to it; None where
            nothing was compared, because nothing can differ.
    """

    name: str
    before: str
    after: Optional[str] = None
    note: str = ""
    change: Optional[float] = None


@dataclass(frozen=True)
class Report:
    """All rows, in the order of ``model.named_modules()``; prints as a table.

    Args:
        rows: one for each layer, or parametrized tensor, that was looked at.
    """

    rows: tuple[Row, ...]

    @property
    def converted(self) -> tuple[Row, ...]:
        """What has become something else."""
        return tuple(row for row in self.rows if row.after is not None)

    @property
    def left(self) -> tuple[Row, ...]:
        """What could not be converted, each with the reason as its note."""
        return tuple(row for row in self.rows if row.after is None)

    @property
    def change(self) -> float:
        """The largest change of a weight; 0 if no weight was compared."""
        return max((row.change for row in self.rows if row.change is not None), default=0.0)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "nothing to convert"
        table = [("layer", "was", "is", "change")]
        for row in self.rows:
            change = "" if row.change is None else f"{row.change:.1e}"
            table.append((row.name or "(the model)", row.before, row.after or "left", change))
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = []
        notes = ["", *(row.note for row in self.rows)]
        for cells, note in zip(table, notes, strict=True):
            lines.append("  ".join(c.ljust(w) for c, w in zip(cells, widths)).rstrip())
            lines += textwrap.wrap(note, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        lines.append(f"{len(self.converted)} converted, {len(self.left)} left as they are")
        return "\n".join(lines)
