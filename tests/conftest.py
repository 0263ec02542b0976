"""Fixtures of all tests: instruction sets, seeds, threads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lipfuse
from lipfuse import _native

# One thread unless a test asks for two (tools.threads): tests share the machine with others, and
# matrices of this size gain nothing.
torch.set_num_threads(1)

# What torch has compiled it keeps on disk and finds by the graph, in which nothing says how the
# operators' layouts, fake versions and gradients are written now.
_SOURCES = sorted(Path(lipfuse.__file__).parent.rglob("*.py"))
torch.compiler.config.cache_key_tag = hashlib.sha256(
    b"".join(path.read_bytes() for path in _SOURCES)
).hexdigest()

if _native.kernels is None:
    INSTRUCTION_SETS = ["plain torch"]
else:
    INSTRUCTION_SETS = list(_native.kernels.cpu_features()["available"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this processor in turn, for everything native in the process."""
    name: str = request.param
    kernels = _native.kernels
    if kernels is None:
        yield name
        return
    before = kernels.cpu_features()["selected"]
    kernels.select_instruction_set(name)
    try:
        yield name
    finally:
        kernels.select_instruction_set(before)
