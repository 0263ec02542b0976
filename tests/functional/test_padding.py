"""Symmetric padding against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lipfuse.functional as F


@pytest.mark.parametrize(
    "pad, onedim, widths",
    [
        (0, False, ((0, 0), (0, 0))),
        (2, False, ((2, 2), (2, 2))),
        ((1, 3), False, ((1, 1), (3, 3))),
        ([4, 0], False, ((4, 4), (0, 0))),
        ((1, 2, 3, 0), False, ((3, 0), (1, 2))),
        (3, True, ((0, 0), (3, 3))),
        ((3,), True, ((0, 0), (3, 3))),
        ((0, 5), True, ((0, 0), (0, 5))),
    ],
    ids=str,
)
def test_is_numpys(pad: Any, onedim: bool, widths: Any) -> None:
    layer = F.SymmetricPad(pad, onedim)
    exported = layer.vanilla_export()
    for leading in ((), (2,), (2, 3)):
        x = torch.randn(*leading, 4, 5)
        expected = torch.from_numpy(
            np.pad(x, [(0, 0)] * len(leading) + [*widths], mode="symmetric")
        )
        for found in (layer(x), exported(x)):
            assert torch.equal(found, expected)
    assert type(exported).__module__.partition(".")[0] == "torch"


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"pad": -1}, ValueError, "pad must be an integer >= 0"),
        ({"pad": (1, 2, 3)}, ValueError, "pad must be an integer >= 0"),
        ({"pad": (1, 2), "onedim": True}, None, ""),
        ({"pad": (1, 2, 3, 4), "onedim": True}, ValueError, "pad must be an integer >= 0"),
        ({"pad": 1.0}, TypeError, "pad must be an integer >= 0"),
        ({"pad": "same"}, TypeError, "pad must be an integer >= 0"),
        ({"pad": 1, "onedim": 1}, TypeError, "onedim must be True or False"),
    ],
    ids=str,
)
def test_errors(arguments: dict[str, Any], error: Any, message: str) -> None:
    if error is None:
        assert F.SymmetricPad(**arguments).pad == (1, 2)
        return
    with pytest.raises(error, match=message):
        F.SymmetricPad(**arguments)


def test_errors_of_the_input() -> None:
    with pytest.raises(ValueError, match="padding must not be larger"):
        F.SymmetricPad((1, 3))(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="x must have at least 1"):
        F.SymmetricPad(1, onedim=True)(torch.tensor(1.0))
    with pytest.raises(TypeError, match="x must be a torch"):
        F.SymmetricPad(1)([1.0])
