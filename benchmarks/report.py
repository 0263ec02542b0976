"""The tables and the pictures of the documentation, from the committed records.

Pages have tables between two comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
A test compares pages and pictures with the records. Pictures are of the first run alone; some
tables show those of other processors.

    python -m benchmarks.report                        # from those in benchmarks/results
    python -m benchmarks.report RUN.json --races RACES.json --other OTHER.json --avx2 THIRD.json
    python -m benchmarks.report --check                # changes nothing, says what is out of date
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.records import AVX2, HALF, OTHER, RACES, ROOT, RUN, digest
from benchmarks.tables import TABLES, Sources, relative

_END = "<!-- end of table -->"
_PLACE = re.compile(r"<!-- table: ([a-z ]+) -->\n.*?" + re.escape(_END), re.DOTALL)


def fill(text: str, sources: Sources) -> str:
    """A page with its tables as the records have them.

    Raises:
        ValueError: if it asks for a table that there is not, or does not say where one ends.
    """
    opened, ended = text.count("<!-- table: "), text.count(_END)
    if opened != ended or opened != len(_PLACE.findall(text)):
        raise ValueError(f"{opened} tables begin and {ended} end, each needs a line of its own")

    def place(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {name} -->\n\n{TABLES[name](sources)}\n\n{_END}"

    return _PLACE.sub(place, text)


def pages() -> list[Path]:
    """The pages that have tables."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if "<!-- table: " in page.read_text(encoding="utf-8")]


def out_of_date(sources: Sources, images: Path = plots.IMAGES) -> list[Path]:
    """The pages and pictures that do not show what the records have."""
    found = [
        page for page in pages() if fill(text := page.read_text(encoding="utf-8"), sources) != text
    ]
    made_from = digest(sources.run_path, sources.races_path)
    pictures = [images / f"{name}.png" for name in plots.PLOTS]
    return found + [p for p in pictures if not p.is_file() or plots.drawn_from(p) != made_from]


def main(argv: Sequence[str] | None = None) -> int:
    """Writes tables and pictures.

    Args:
        argv: the command line's arguments; those of the process if not given.

    Returns:
        0, or with ``--check`` 1 if something is out of date.
    """
    p = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("run", nargs="?", type=Path, default=RUN, help="of python -m benchmarks --json")
    p.add_argument("--races", type=Path, default=RACES, help="of benchmarks.time_to_accuracy")
    p.add_argument("--other", type=Path, default=OTHER, help="a run on another processor")
    p.add_argument("--avx2", type=Path, default=AVX2, help="a run on one without AVX-512")
    p.add_argument("--half", type=Path, default=HALF, help="a run on one that halves AVX-512")
    p.add_argument("--check", action="store_true", help="write nothing")
    a = p.parse_args(argv)
    try:
        sources = Sources.of(a.run, a.races, a.other, a.avx2, a.half)
    except (OSError, ValueError) as error:
        p.error(str(error))
    if importlib.util.find_spec("matplotlib") is None:
        p.error("the pictures need matplotlib: pip install matplotlib")
    stale = out_of_date(sources)
    if a.check:
        for path in stale:
            print(f"out of date: {relative(path)}")
        return 1 if stale else 0
    for page in pages():
        page.write_text(fill(page.read_text(encoding="utf-8"), sources), encoding="utf-8")
        print(f"tables written to {relative(page)}")
    for picture in plots.draw(sources):
        print(f"drawn: {relative(picture)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
