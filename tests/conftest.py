"""Fixtures of all tests: instruction sets, seeds, threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lipfuse import _native

# One thread unless a test asks for two (tools.threads): tests share the machine with others, and
# matrices of this size gain nothing.
torch.set_num_threads(1)

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
