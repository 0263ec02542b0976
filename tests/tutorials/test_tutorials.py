"""Two of the tasks that deel-torchlip's documentation teaches, run with theirs and with ours.

The scripts are written for deel-torchlip. One line of theirs is changed, the import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deel.torchlip")

THEIRS, OURS = "from deel import torchlip\n", "import lipfuse.nn as torchlip\n"


def both(name: str) -> tuple[dict[str, float], dict[str, float]]:
    """The results with their package and with ours."""
    source = (Path(__file__).parent / name).read_text()
    assert source.count(THEIRS) == 1
    found = []
    for text in (source, source.replace(THEIRS, OURS)):
        names: dict[str, Any] = {}
        exec(compile(text, name, "exec"), names)
        found.append(names["result"])
    print(name, *found)  # seen with pytest -s
    return found[0], found[1]


def test_wasserstein_distance_of_images() -> None:
    theirs, ours = both("wasserstein_images.py")
    for result in (theirs, ours):
        assert 0.97 * result["exact"] <= result["distance"] <= 1.0001 * result["exact"]
        assert result["export"] <= 1e-5
    assert ours["distance"] == pytest.approx(theirs["distance"], rel=0.01)


def test_binary_classifier_of_digits() -> None:
    theirs, ours = both("zero_or_eight.py")
    assert min(theirs["accuracy"], ours["accuracy"]) >= 0.97
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.015)
    assert ours["radius"] >= 0.95 * theirs["radius"]
    assert ours["distance"] >= 0.95 * theirs["distance"]
