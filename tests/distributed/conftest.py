"""The processes that all tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pool import Pool

SIZE = 4


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    processes = Pool(SIZE, tmp_path_factory.mktemp("processes"))
    yield processes
    processes.close()
