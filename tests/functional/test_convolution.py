"""The corrective factor: counted right for every setting, and as small as it can be."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import tools
import torch

import lipfuse.functional as F
from lipfuse import _native, reference
from lipfuse.functional.convolution import PADDING_MODES
from lipfuse.reference.largest_use import count_on

NUMPY_MODES: dict[str, str] = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}
COUNTERS = {"reference": reference.largest_use}
if _native.kernels is not None:
    COUNTERS["native"] = _native.kernels.largest_use


def patches(
    length: int, kernel: int, stride: int, before: int, after: int, dilation: int, mode: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The operator P that pads a line of that length and extracts patches, as a dense matrix.

    Padding is numpy's, of the identity, so that nothing is counted by hand.
    """
    eye = np.eye(length)
    widths = ((before, after), (0, 0))
    padded = np.pad(eye, widths) if mode == "zeros" else np.pad(eye, widths, mode=NUMPY_MODES[mode])  # type: ignore[call-overload]
    span = dilation * (kernel - 1) + 1
    starts = range(0, len(padded) - span + 1, stride)
    rows = [padded[start + j * dilation] for start in starts for j in range(kernel)]
    return np.array(rows).reshape(-1, length)


def admits(mode: str, length: int, before: int, after: int) -> bool:
    """Whether torch pads a line of that length so far."""
    most = max(before, after)
    if mode == "reflect":
        return most < length
    return mode not in ("circular", "symmetric") or most <= length


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("counter", COUNTERS)
def test_the_count_is_the_squared_norm_of_the_patches(counter: str, mode: str) -> None:
    """PᵀP is diagonal, and its largest element the count: for every setting and length."""
    count = COUNTERS[counter]
    settings = itertools.product(range(1, 6), (1, 2, 3), (0, 1, 2), (1, 2, 3), range(1, 9))
    for kernel, stride, padding, dilation, length in settings:
        before, after = padding, padding
        if not admits(mode, length, before, after):
            continue
        p = patches(length, kernel, stride, before, after, dilation, mode)
        gram = p.T @ p
        assert not (gram - np.diag(np.diag(gram))).any()
        exact = int(gram.max()) if len(p) else 0
        found = count(kernel, stride, before, after, dilation, mode, length)
        assert found == exact, (kernel, stride, padding, dilation, length)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("counter", COUNTERS)
def test_without_a_length_it_is_the_worst_of_all_lengths(counter: str, mode: str) -> None:
    count = COUNTERS[counter]
    for kernel, stride, dilation in itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2, 3)):
        for before, after in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 3)):
            worst = 0
            for length in range(1, 41):
                if admits(mode, length, before, after):
                    p = patches(length, kernel, stride, before, after, dilation, mode)
                    worst = max(worst, int(p.sum(0).max()) if len(p) else 0)
            found = count(kernel, stride, before, after, dilation, mode)
            assert found == worst, (kernel, stride, dilation, before, after)


@pytest.mark.skipif(_native.kernels is None, reason="lipfuse._kernels was not built")
def test_native_and_reference_count_alike() -> None:
    native = COUNTERS["native"]
    generator = np.random.default_rng(0)
    for _ in range(2000):
        kernel, stride, dilation = (int(generator.integers(1, 9)) for _ in range(3))
        before, after = (int(generator.integers(0, 7)) for _ in range(2))
        mode = PADDING_MODES[int(generator.integers(5))]
        length = int(generator.integers(0, 30))
        arguments = (kernel, stride, before, after, dilation, mode, length)
        assert native(*arguments) == reference.largest_use(*arguments), arguments


def test_known_factors() -> None:
    """DESIGN 3.4: ceil(k gcd(s, d) / s) uses an axis for zero padding and long inputs."""
    for kernel, stride, dilation in itertools.product(range(1, 8), range(1, 5), range(1, 5)):
        uses = math.ceil(kernel * math.gcd(stride, dilation) / stride)
        assert F.conv_factor((kernel,), stride, 0, dilation) == pytest.approx(uses**-0.5)
    assert F.conv_factor(3) == pytest.approx(1 / 3)
    assert F.conv_factor((3,)) == pytest.approx(3**-0.5)
    assert F.conv_factor(3, stride=3, dilation=3) == pytest.approx(1 / 3)  # deel-torchlip: 1
    assert F.conv_factor(3, stride=2, dilation=2) == pytest.approx(1 / 3)
    assert F.conv_factor(4, stride=2) == pytest.approx(0.5)
    assert F.conv_factor((2, 3, 4)) == pytest.approx(24**-0.5)
    assert F.conv_factor(3, padding=5) == pytest.approx(1 / 3)  # zeros are not uses
    assert F.conv_factor(3, padding=1, padding_mode="reflect") < 1 / 3
    assert F.conv_factor(3, padding=1, padding_mode="circular") == pytest.approx(1 / 3)
    # Smaller inputs have fewer uses.
    assert F.conv_factor(5, input_shape=(8, 3, 2, 2)) == F.conv_factor(5, input_shape=(2, 2)) == 1
    assert F.conv_factor(5, padding=2, input_shape=(2, 2)) == pytest.approx(0.5)
    assert F.conv_factor(5, padding="same", input_shape=[1, 16, 16]) == pytest.approx(0.2)


def test_numbers_of_numpy_lists_and_words() -> None:
    assert F.conv_factor(np.int64(3), np.int32(2)) == F.conv_factor(3, 2)  # type: ignore[arg-type]
    assert F.conv_factor([3, 3], [2, 1], [1, 0], [1, 2]) == F.conv_factor(
        (3, 3), (2, 1), (1, 0), (1, 2)
    )
    assert F.conv_factor(3, padding="valid", padding_mode="reflect") == F.conv_factor(3)
    # An even kernel is padded by one more behind, as torch does it.
    for mode in PADDING_MODES:
        uses = max(int(patches(n, 4, 1, 1, 2, 1, mode).sum(0).max()) for n in range(3, 30))
        assert F.conv_factor((4,), padding="same", padding_mode=mode) == pytest.approx(uses**-0.5)
    shape = torch.randn(1, 2, 4, 4).shape
    assert F.conv_factor(3, input_shape=shape) == F.conv_factor(3, input_shape=(4, 4))


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 3, "dilation": 3, "padding": 2},
        {"kernel_size": 3, "stride": 2, "dilation": 2},
        {"kernel_size": (4, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 5, "padding": 2, "padding_mode": "reflect", "stride": 2},
        {"kernel_size": 5, "padding": 2, "padding_mode": "replicate"},
        {"kernel_size": (2, 4), "padding": "same", "padding_mode": "replicate"},
        {"kernel_size": (1, 1), "stride": 2},
    ],
    ids=str,
)
def test_two_axes_against_torch_and_reached(settings: dict[str, Any]) -> None:
    """Counts multiply over axes: by torch's own convolution, for a kernel that reaches the bound.

    With the filters (1, 0, ...), (0, 1, ...), ... the convolution is P itself.
    """
    kernel = settings["kernel_size"]
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    conv = torch.nn.Conv2d(1, height * width, bias=False, **settings).double()
    with torch.no_grad():
        conv.weight.copy_(torch.eye(height * width).reshape(-1, 1, height, width))
    norm = tools.operator_norm(conv, (1, 9, 10))
    with_shape = F.conv_factor(**settings, input_shape=(9, 10))
    assert norm * with_shape == pytest.approx(1, rel=1e-12)
    assert norm * F.conv_factor(**settings) <= 1 + 1e-12


def test_the_transposed_convolution_is_an_adjoint() -> None:
    """Against torch's own, exactly where the input's size is given, for kernels that reach it."""
    axes = itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1, 3), (1, 2, 3), (0, 1, 2), (1, 3, 5))
    for k, s, p, d, o, n in axes:
        if o >= max(s, d) or (n - 1) * s - 2 * p + d * (k - 1) + o + 1 < 1:
            continue
        conv = torch.nn.ConvTranspose1d(k, 1, k, s, p, o, dilation=d, bias=False).double()
        with torch.no_grad():
            conv.weight.copy_(torch.eye(k).reshape(k, 1, k))
        norm = tools.operator_norm(conv, (k, n))
        exact = F.conv_factor((k,), s, p, d, input_shape=(n,), transposed=True, output_padding=o)
        assert max(1, norm) * exact == pytest.approx(1, rel=1e-12), (k, s, p, d, o, n)
        assert exact >= F.conv_factor((k,), s, p, d, transposed=True, output_padding=o)
        assert F.conv_factor((k,), s, p, d, transposed=True) == F.conv_factor((k,), s, 0, d)
    # Counts multiply over axes.
    assert F.conv_factor((4, 2, 3), (2, 2, 1), 1, transposed=True) == pytest.approx(6**-0.5)


def errors() -> list[Any]:
    """(arguments, type of the error, the argument's name, what is allowed)."""
    cases: list[tuple[dict[str, Any], type[Exception], str, str]] = []
    for name, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        start = {} if name == "kernel_size" else {"kernel_size": 3}
        for value in (least - 1, -3, (3, least - 1)):
            cases.append(({**start, name: value}, ValueError, name, f">= {least}"))
        for value in (2.5, True, None, (3, 1.0), (1, True)):
            cases.append(({**start, name: value}, TypeError, name, f">= {least}"))
        if name != "kernel_size":
            for value in ((1, 1, 1), (1,), ()):
                cases.append(({**start, name: value}, ValueError, name, "a pair of them"))
    cases += [
        ({"kernel_size": "3"}, TypeError, "kernel_size", ">= 1"),
        ({"kernel_size": ()}, ValueError, "kernel_size", "at least one"),
        ({"kernel_size": 3, "padding": "full"}, ValueError, "padding", "'valid', 'same'"),
        ({"kernel_size": 3, "padding_mode": "mirror"}, ValueError, "padding_mode", "'symmetric'"),
        ({"kernel_size": 3, "padding_mode": None}, ValueError, "padding_mode", "'zeros'"),
        ({"kernel_size": 3, "input_shape": (8,)}, ValueError, "input_shape", "at least 2"),
        ({"kernel_size": 3, "input_shape": (8, 0)}, ValueError, "input_shape", ">= 1"),
        ({"kernel_size": 3, "input_shape": (8, 8.0)}, TypeError, "input_shape", ">= 1"),
        ({"kernel_size": 3, "transposed": 1}, TypeError, "transposed", "True or False"),
        ({"kernel_size": 3, "output_padding": 1}, ValueError, "output_padding", "transposed"),
        ({"kernel_size": 3, "input_shape": 8}, TypeError, "input_shape", "tuple or list"),
    ]
    return [pytest.param(*c, id=f"{i}-{c[2]}") for i, c in enumerate(cases)]


def test_a_transposed_convolution_has_fewer_settings() -> None:
    for bad in ({"padding": "same"}, {"padding_mode": "circular"}, {"output_padding": -1}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(bad))} must be"):
            F.conv_factor(3, transposed=True, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments, error, name, allowed", errors())
def test_errors_name_the_argument_its_value_and_what_is_allowed(
    arguments: dict[str, Any], error: type[Exception], name: str, allowed: str
) -> None:
    with pytest.raises(error) as caught:
        F.conv_factor(**arguments)
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith(name + " "), message
    assert re.search(allowed, message), message
    value = arguments[name]
    shown = [repr(value)] if not isinstance(value, tuple) else [repr(value), *map(repr, value)]
    assert any(s in message for s in shown) or "got none" in message


# ---- what is not counted one by one --------------------------------------------------------------


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_long_axes_are_counted_as_shorter_ones(counter: str, mode: str) -> None:
    for k, s, d, before, after in itertools.product((1, 3), (1, 2, 3), (1, 2), (0, 2), (0, 1)):
        count = COUNTERS[counter]
        for n in (40, 61, 62, 63):
            expected = count_on(n, k, s, before, after, d, mode)
            assert count(k, s, before, after, d, mode, n) == expected
        # Without a length, the largest of them.
        lengths = range(max(before, after) + 1, 64)
        most = max(count_on(n, k, s, before, after, d, mode) for n in lengths)
        assert count(k, s, before, after, d, mode, 0) >= most


def test_absurd_sizes_are_counted_or_refused() -> None:
    assert F.conv_factor(3, padding=1, input_shape=(10**9, 2 * 10**9)) == pytest.approx(1 / 3)
    assert F.conv_factor((1024,), stride=512) == pytest.approx(0.5**0.5)
    for arguments in [(2**30,), (3, 1, 2**30), (3, 2**30, 0, 2**30)]:
        with pytest.raises(ValueError, match="too large"):
            F.conv_factor(*arguments, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"below 2\*\*31"):
        F.conv_factor(2**40)
