"""The argument checks: what passes comes back typed, what does not is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tools
import torch

from lipfuse import _checks as checks


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: checks.check_positive("k", 2), 2.0),
        (lambda: checks.check_positive("k", np.float32(0.5)), 0.5),
        (lambda: checks.check_positive("k", 5e-324), 5e-324),
        (lambda: checks.check_finite("k", -3), -3.0),
        (lambda: checks.check_positive_int("n", np.int64(3)), 3),
        (lambda: checks.check_positive_int("n", 0, minimum=0), 0),
        (lambda: checks.check_in_range("a", 1, 0, 1), 1.0),
        (lambda: checks.check_in_range("a", 1e300, 0, math.inf), 1e300),
        (lambda: checks.check_int_or_pair("p", 3), (3, 3)),
        (lambda: checks.check_int_or_pair("p", [0, np.int32(2)], 0), (0, 2)),
        (lambda: checks.check_bool("b", np.True_), True),
        (lambda: checks.check_choice("c", "x", ("x", "y")), "x"),
        (lambda: checks.check_choice("c", None, (None, 1)), None),
        (lambda: checks.check_device("d", "cpu:1"), torch.device("cpu", 1)),
        (lambda: checks.check_device("d", torch.device("meta")), torch.device("meta")),
        (lambda: checks.check_device("d", None), None),
        (lambda: checks.check_dim("dim", -1, 3), 2),
        (lambda: checks.check_dim("dim", 0, 3), 0),
    ],
)
def test_what_is_allowed_comes_back_in_its_type(call: Callable[[], Any], expected: Any) -> None:
    value = call()
    assert value == expected and type(value) is type(expected)


def test_tensors_come_back_as_they_are() -> None:
    x = torch.ones(2, 3)
    assert checks.check_tensor("x", x, min_dim=2) is x
    assert checks.check_tensor("x", x.int(), floating=False).dtype == torch.int32
    checks.check_same("x", x, "y", x.double(), dtype=False)


scalar = torch.tensor(1.0)
BAD: list[tools.Refusal] = [
    *[
        (lambda v=v: checks.check_positive("k", v), error, ["k must be a positive finite number"])
        for v, error in [
            (0, ValueError),
            (-0.0, ValueError),
            (-1.5, ValueError),
            (math.nan, ValueError),
            (math.inf, ValueError),
            (True, TypeError),
            (None, TypeError),
            ("1", TypeError),
            (1j, TypeError),
            (scalar, TypeError),
            (np.True_, TypeError),
        ]
    ],
    (lambda: checks.check_positive("k", scalar), TypeError, ["shape ()", "torch.float32"]),
    (lambda: checks.check_finite("k", math.nan), ValueError, ["k", "nan", "finite"]),
    (lambda: checks.check_finite("k", -math.inf), ValueError, ["k", "-inf", "finite"]),
    (lambda: checks.check_positive_int("n", 0), ValueError, ["n", "0", ">= 1"]),
    (lambda: checks.check_positive_int("n", 2.0), TypeError, ["n", "2.0", "integer"]),
    (lambda: checks.check_positive_int("n", True), TypeError, ["n", "True", "integer"]),
    (lambda: checks.check_positive_int("n", 1, minimum=2), ValueError, ["n", "1", ">= 2"]),
    (lambda: checks.check_in_range("a", 1.1, 0, 1), ValueError, ["a", "1.1", "[0, 1]"]),
    (lambda: checks.check_in_range("a", -0.1, 0, 1), ValueError, ["a", "-0.1", "[0, 1]"]),
    (lambda: checks.check_in_range("a", math.nan, 0, 1), ValueError, ["a", "nan", "[0, 1]"]),
    (lambda: checks.check_in_range("a", math.inf, 0, math.inf), ValueError, ["inf", "[0, inf)"]),
    (lambda: checks.check_in_range("a", 0, 0, 1, low_open=True), ValueError, ["0", "(0, 1]"]),
    (lambda: checks.check_in_range("a", 1, 0, 1, high_open=True), ValueError, ["1", "[0, 1)"]),
    (lambda: checks.check_in_range("a", True, 0, 1), TypeError, ["a", "True"]),
    (lambda: checks.check_int_or_pair("p", 0), ValueError, ["p", "0", ">= 1"]),
    (lambda: checks.check_int_or_pair("p", (1, 2, 3)), ValueError, ["p", "(1, 2, 3)", "pair"]),
    (lambda: checks.check_int_or_pair("p", (1, True)), TypeError, ["p", "(1, True)", "integer"]),
    (lambda: checks.check_int_or_pair("p", 1.0), TypeError, ["p", "1.0", "integer"]),
    (lambda: checks.check_bool("b", 1), TypeError, ["b", "1", "True or False"]),
    (lambda: checks.check_choice("c", "z", ("x", "y")), ValueError, ["c", "'z'", "'x', 'y'"]),
    (lambda: checks.check_choice("c", True, (1, 2)), ValueError, ["c", "True", "1, 2"]),
    (lambda: checks.check_choice("c", scalar, ("x",)), ValueError, ["c", "shape ()", "'x'"]),
    (lambda: checks.check_tensor("x", [1]), TypeError, ["x", "[1]", "torch.Tensor"]),
    (lambda: checks.check_tensor("x", scalar.int()), TypeError, ["x", "int32", "floating"]),
    (lambda: checks.check_tensor("x", scalar + 1j), TypeError, ["x", "complex64", "floating"]),
    (lambda: checks.check_tensor("x", scalar, min_dim=2), ValueError, ["x", "()", "at least 2"]),
    (lambda: checks.check_device("d", 0.0), TypeError, ["d", "0.0", "torch.device"]),
    (lambda: checks.check_device("d", True), TypeError, ["d", "True", "torch.device"]),
    (lambda: checks.check_device("d", "cpu:x"), ValueError, ["d", "'cpu:x'", "torch.device"]),
    (lambda: checks.check_dim("dim", 3, 3), ValueError, ["dim", "3", "[-3, 2]"]),
    (lambda: checks.check_dim("dim", -4, 3), ValueError, ["dim", "-4", "[-3, 2]"]),
    (lambda: checks.check_dim("dim", True, 3), TypeError, ["dim", "True", "integer"]),
    (
        lambda: checks.check_same("u", scalar.double(), "w", scalar),
        TypeError,
        ["u", "float64", "w", "float32"],
    ),
    (
        lambda: checks.check_same("u", scalar, "w", scalar.to("meta")),
        ValueError,
        ["u", "cpu", "w", "meta"],
    ),
]


test_what_is_not_allowed_is_named = tools.refusals(BAD)
