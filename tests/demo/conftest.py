"""The digits, once for all tests of the demo."""

from __future__ import annotations

import pytest

from lipfuse.demo.data import Digits, DigitsNotFoundError, load_digits


@pytest.fixture(scope="session")
def digits() -> Digits:
    try:
        return load_digits()
    except DigitsNotFoundError as error:
        pytest.skip(str(error))
