"""The host's model of a GPU, built once; the operators' cases of tests/ops."""

from __future__ import annotations

import sys
from pathlib import Path

import host_model
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops"))


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    return host_model.build()
