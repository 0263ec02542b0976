"""The convolution's own norm: never below the dense matrix's, and how far above at most."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lipfuse.functional as LF
from lipfuse import _proof
from lipfuse.functional import _conv_cover
from lipfuse.functional._conv_axis import Axis
from lipfuse.functional.convolution import PADDING_MODES

NUMPY_MODES: dict[str, Any] = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}


def dense(weight: Tensor, input_shape: tuple[int, ...], **settings: Any) -> Tensor:
    """The convolution's matrix; padding that torch does not know in one dimension is numpy's."""
    axes, groups = weight.dim() - 2, settings.get("groups", 1)
    transposed = settings.pop("transposed", False)
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    size = channels * math.prod(input_shape)
    x = torch.eye(size, dtype=torch.float64).reshape(size, channels, *input_shape)
    if transposed:
        function: Any = getattr(F, f"conv_transpose{axes}d")
        return function(x, weight.double(), **settings).reshape(size, -1).mT
    mode, padding = settings.pop("padding_mode", "zeros"), settings.pop("padding", 0)
    if padding == "same":
        spans = [(k - 1) * settings.get("dilation", 1) for k in weight.shape[2:]]
        pads = [(s // 2, s - s // 2) for s in spans]
    else:
        pads = [(p, p) for p in (padding if isinstance(padding, tuple) else (padding,) * axes)]
    widths = [(0, 0), (0, 0), *pads]
    padded = np.pad(x.numpy(), widths, **({"mode": NUMPY_MODES[mode]} if mode != "zeros" else {}))
    function = getattr(F, f"conv{axes}d")
    return function(torch.from_numpy(padded), weight.double(), **settings).reshape(size, -1).mT


def truth(weight: Tensor, input_shape: tuple[int, ...], **settings: Any) -> float:
    return float(torch.linalg.matrix_norm(dense(weight, input_shape, **settings), 2))


def kernel(kind: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "low-pass":
        return torch.ones(shape, dtype=torch.float64)
    if kind == "high-pass":
        signs = [torch.tensor([(-1.0) ** i for i in range(k)]) for k in shape[2:]]
        product = torch.ones(())
        for sign in signs:
            product = product.unsqueeze(-1) * sign
        return product.double().expand(shape).clone()
    assert kind == "one tap"
    w = torch.zeros(shape, dtype=torch.float64)
    w[(0,) * len(shape)] = 1
    return w


KINDS = ["random", "low-pass", "high-pass", "one tap"]

# (weight, input_shape, settings): one of each kind of axis and of each way to be odd.
CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 3), (13,), {"padding": 1}),
    ((3, 2, 4), (12,), {"stride": 2, "padding": 2, "padding_mode": "circular"}),
    ((2, 2, 5), (11,), {"padding": 3, "padding_mode": "circular"}),
    ((2, 2, 3), (11,), {"stride": 2, "padding": 2, "padding_mode": "circular"}),
    ((2, 2, 3, 3), (7, 6), {"padding": 1, "stride": 2}),
    ((2, 1, 3, 2), (7, 6), {"dilation": 2, "stride": 3, "padding": (2, 0)}),
    ((4, 2, 3, 3), (6, 5), {"padding": "same", "groups": 2, "padding_mode": "reflect"}),
    ((1, 2, 4, 3), (6, 7), {"padding": "same", "padding_mode": "symmetric"}),
    ((2, 1, 3, 3), (5, 9), {"padding": (4, 1), "padding_mode": "replicate", "stride": (2, 1)}),
    ((2, 1, 5, 3), (2, 3), {"padding": 2, "padding_mode": "circular"}),
    ((2, 1, 5, 5), (3, 2), {"padding": 2}),
    ((2, 2, 2, 2), (6, 6), {"stride": 3}),
    ((3, 1, 2, 3, 2), (4, 4, 3), {"padding": 1, "stride": (1, 2, 1)}),
    ((1, 2, 2, 2, 3), (3, 4, 4), {"padding": (1, 0, 1), "padding_mode": "reflect"}),
    ((2, 3, 4), (7,), {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1}),
    ((2, 2, 3, 3), (4, 5), {"transposed": True, "stride": 3, "dilation": 2, "padding": 3}),
    ((4, 1, 2, 3), (4, 4), {"transposed": True, "groups": 2, "output_padding": 1, "dilation": 2}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}")
def test_bounds_and_estimate_enclose_the_norm(case: Any) -> None:
    """By the matrix itself, by frequencies and covers, and for inputs of every size."""
    shape, input_shape, settings = case
    for seed, kind in enumerate(KINDS):
        weight = kernel(kind, shape, seed)
        exact = truth(weight, input_shape, **settings)
        arguments: dict[str, Any] = {**settings, "input_shape": (9, *input_shape)}
        tight = float(LF.conv_spectral_norm(weight, **arguments))
        assert exact * (1 - 1e-12) <= tight <= exact * (1 + 1e-6)
        for max_size in (1, 40):
            bound = float(LF.conv_spectral_norm(weight, **arguments, max_size=max_size))
            assert bound >= exact * (1 - 1e-12), max_size
        estimate = float(LF.conv_spectral_norm(weight, **arguments, bound="estimate"))
        assert exact * 0.999 <= estimate <= exact * (1 + 1e-12)
        arguments["input_shape"] = None
        free = float(LF.conv_spectral_norm(weight, **arguments))
        assert free >= exact * (1 - 1e-12)
        assert float(LF.conv_spectral_norm(weight, **arguments, bound="estimate")) <= free


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_at_most_five_per_cent_above_for_3x3_on_16x16(mode: str, stride: int) -> None:
    for kind, padding in itertools.product(KINDS, (1, 2, 0)):
        weight = kernel(kind, (2, 1, 3, 3), padding)
        settings: dict[str, Any] = {"stride": stride, "padding": padding, "padding_mode": mode}
        exact = truth(weight, (16, 16), **settings)
        # As for a kernel of many channels: no matrix of the convolution's own size.
        few = {"max_size": 1} if mode == "zeros" or not padding else {}
        for limit in ({}, few):
            found = float(LF.conv_spectral_norm(weight, **settings, input_shape=(16, 16), **limit))
            assert exact * (1 - 1e-12) <= found <= 1.05 * exact, (kind, padding)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "symmetric", "circular"])
def test_a_cover_is_tight_for_larger_inputs(mode: str) -> None:
    """Corners of at most 16 pixels a side instead of the whole image of 27."""
    for kind, padding in (("random", 1), ("low-pass", 2), ("high-pass", 1)):
        weight = kernel(kind, (1, 1, 3, 3))
        settings: dict[str, Any] = {"padding": padding, "padding_mode": mode}
        exact = truth(weight, (27, 25), **settings)
        arguments = {**settings, "input_shape": (27, 25)}
        found = float(LF.conv_spectral_norm(weight, **arguments, max_size=256))
        loose = float(LF.conv_spectral_norm(weight, **arguments, max_size=1))
        assert exact * (1 - 1e-12) <= found <= 1.05 * exact, (kind, padding, found / exact)
        assert found <= loose


@pytest.mark.parametrize("mode", ["reflect", "replicate", "symmetric", "circular"])
def test_the_inside_of_a_cover_does_not_feel_padding(mode: str) -> None:
    for kernel_size, stride, padding, dilation in ((3, 1, 1, 1), (5, 1, 2, 1), (3, 2, 2, 2)):
        length = 23
        outputs = (length + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
        axis = Axis(kernel_size, stride, padding, padding, dilation, mode, length, outputs)
        ends = _conv_cover._Ends.of(axis)
        for t, j in itertools.product(range(outputs), range(kernel_size)):
            if any(not 0 <= axis.place(t, i) < length for i in range(kernel_size)):
                pixel = axis.pixel(t, j)
                assert pixel < ends.left or pixel >= length - ends.right
        assert ends.left + ends.right < length / 2


def test_bounds_for_every_size_are_tight_for_large_inputs() -> None:
    for settings in (
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "stride": 2, "transposed": True},
    ):
        weight = kernel("random", (2, 2, 3, 3), 3)
        free = float(LF.conv_spectral_norm(weight, **settings))  # type: ignore[arg-type]
        at_40 = LF.conv_spectral_norm(weight, **settings, input_shape=(40, 40), bound="estimate")  # type: ignore[arg-type]
        assert 1 <= free / float(at_40) <= 1.02, settings


def test_random_settings() -> None:
    """Never below, whatever the setting."""
    generator = np.random.default_rng(5)

    def draw(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    done = 0
    while done < 60:
        axes = draw(1, 2)
        shape = [draw(1, 4) for _ in range(axes)]
        lengths = tuple(draw(2, 16 if axes == 1 else 6) for _ in range(axes))
        transposed = draw(0, 3) == 0
        settings: dict[str, Any] = {
            "stride": tuple(draw(1, 3) for _ in shape),
            "dilation": tuple(draw(1, 3) for _ in shape),
            "padding": tuple(draw(0, 2) for _ in shape),
            "groups": draw(1, 2),
        }
        if transposed:
            settings["transposed"] = True
        else:
            settings["padding_mode"] = PADDING_MODES[draw(0, 4)]
        weight = kernel("random", (settings["groups"] * 2, draw(1, 2), *shape), done)
        limit = draw(1, 60)
        try:
            found = LF.conv_spectral_norm(weight, **settings, input_shape=lengths, max_size=limit)
        except ValueError:  # too small to be padded so far, or to have an output
            continue
        exact = truth(weight, lengths, **settings)
        assert float(found) >= exact * (1 - 1e-12), (settings, lengths, weight.shape)
        done += 1


# ---- between samples -----------------------------------------------------------------------------


def turning(taps: list[int], angle: float) -> Tensor:
    """Rotations by a multiple of the angle at these taps: a symbol that peaks at that frequency."""
    w = torch.zeros(2, 2, max(taps) + 1, dtype=torch.float64)
    for t in taps:
        c, s = math.cos(t * angle), math.sin(t * angle)
        w[:, :, t] = torch.tensor([[c, -s], [s, c]], dtype=w.dtype)
    return w


def test_a_peak_between_samples_is_covered() -> None:
    """Halfway between two of 128 samples, where the inequality for polynomials is sharp."""
    halfway = math.pi / 128
    full = float(LF.conv_spectral_norm(turning([0, 1, 2], halfway)))
    assert 3 <= full <= 3.003
    sharp = float(LF.conv_spectral_norm(turning([0, 2], halfway)))
    assert 2 <= sharp <= 2 + 1e-8
    largest_sample = 2 * math.cos(halfway)
    assert largest_sample < 1.9995  # what samples alone would have said


def test_proofs_do_not_rely_on_the_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvalues that come out too small by any factor only cost time and tightness."""
    weight = kernel("random", (3, 3, 3, 3))
    honest = float(LF.conv_spectral_norm(weight))
    exact_values = torch.linalg.eigvalsh
    for factor in (1 - 1e-6, 0.9, 0.1, 0.0):

        def less(matrices: Tensor, factor: float = factor) -> Tensor:
            return exact_values(matrices) * factor

        monkeypatch.setattr(_proof.torch.linalg, "eigvalsh", less)
        assert float(LF.conv_spectral_norm(weight)) >= honest * (1 - 1e-8), factor


@pytest.mark.parametrize("size", [3, 90])
def test_prove_largest(size: int) -> None:
    """Several owners, one of them zero, above and below a bound from elsewhere."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(20, 3, size, size, generator=generator, dtype=torch.complex128)
    factors[:, 1] = 0
    grams = factors @ factors.mH
    exact = torch.linalg.eigvalsh(grams)[..., -1]
    family = _proof.Stack(grams)
    found = _proof.prove_largest(family, torch.zeros(3, dtype=torch.float64))
    assert torch.all(found.bound >= exact.amax(0) * (1 - 1e-14))
    assert torch.allclose(found.bound, exact.amax(0), rtol=1e-5)
    assert torch.equal(found.index[[0, 2]], exact.argmax(0)[[0, 2]])
    chosen = grams[found.index, torch.arange(3)]
    rayleigh = (found.vector.conj() * (chosen @ found.vector.unsqueeze(-1)).squeeze(-1)).sum(-1)
    assert torch.allclose(rayleigh.real, exact.amax(0), rtol=1e-3)
    enough = exact.amax(0) * 1.5 + 1
    kept = _proof.prove_largest(family, enough)
    assert torch.equal(kept.bound, enough) and not kept.value.any()


# ---- gradients -----------------------------------------------------------------------------------

GRADIENTS: list[dict[str, Any]] = [
    {"padding": 1, "padding_mode": "circular", "input_shape": (7, 6), "max_size": 1},
    {"padding": 1, "stride": 2},
    {"padding": 1, "input_shape": (6, 5), "max_size": 1},
    {"padding": 1, "padding_mode": "reflect", "input_shape": (5, 5)},
    {"padding": 1, "padding_mode": "replicate"},
    {"stride": 2, "transposed": True, "input_shape": (3, 4), "max_size": 1},
    {"groups": 2, "padding": 1, "dilation": 2},
    {"padding": 1, "padding_mode": "symmetric", "input_shape": (5, 6), "bound": "estimate"},
    {"padding": 1, "bound": "estimate"},
    {"stride": 2, "transposed": True, "input_shape": (3, 4), "bound": "estimate"},
]


@pytest.mark.parametrize("settings", GRADIENTS, ids=str)
def test_gradient(settings: dict[str, Any]) -> None:
    for shape in ((2, 3, 3, 3), (4, 2, 2, 3)):
        weight = kernel("random", shape, 4).requires_grad_()
        more = {"n_iterations": 200} if "bound" in settings else {}
        norm = LF.conv_spectral_norm(weight, **settings, **more)
        (gradient,) = torch.autograd.grad(norm, weight)
        # The norm is homogeneous: Euler's relation.
        along = float((gradient * weight.detach()).sum())
        assert along == pytest.approx(norm.item(), rel=1e-6)
        direction = kernel("random", shape, 9)
        step = 1e-5

        ends = [
            float(LF.conv_spectral_norm(weight.detach() + t * direction, **settings, **more))
            for t in (step, -step)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-3)


def test_gradient_where_a_cover_decides() -> None:
    """That of the piece that decides, scaled: the rest of the bound hardly moves."""
    weight = kernel("random", (1, 1, 3, 3), 1).requires_grad_()
    settings: dict[str, Any] = {
        "padding": 1, "padding_mode": "reflect", "input_shape": (24, 24), "max_size": 150
    }  # fmt: skip
    norm = LF.conv_spectral_norm(weight, **settings)
    (gradient,) = torch.autograd.grad(norm, weight)
    direction = kernel("random", weight.shape, 9)
    step = 1e-5
    ends = [
        float(LF.conv_spectral_norm(weight.detach() + s * step * direction, **settings))
        for s in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.1)


# ---- types and arguments -------------------------------------------------------------------------


def test_precisions_and_extremes() -> None:
    weight = kernel("random", (3, 2, 3, 3))
    exact = float(LF.conv_spectral_norm(weight))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        low = weight.to(dtype)
        norm = LF.conv_spectral_norm(low)
        assert norm.dtype == torch.float32 and norm.shape == ()
        of_same = float(LF.conv_spectral_norm(low.double()))
        assert of_same <= float(norm) <= of_same * (1 + 2e-7)  # rounded up, once
    for scale in (1e-300, 1e-30, 1e30, 1e150):
        assert float(LF.conv_spectral_norm(weight * scale)) == pytest.approx(
            exact * scale, rel=1e-9
        )
    zero = torch.zeros(3, 2, 3, 3, requires_grad=True)
    for bound in ("upper", "estimate"):
        norm = LF.conv_spectral_norm(zero, padding=1, input_shape=(5, 5), bound=bound)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(norm, zero)
        assert norm.item() == 0 and not gradient.any()
    for shape in ((0, 2, 3, 3), (2, 0, 3, 3)):
        assert float(LF.conv_spectral_norm(torch.zeros(shape))) == 0
    assert LF.conv_spectral_norm(weight).requires_grad is False


def test_layers_of_torch_and_channels_last() -> None:
    conv = torch.nn.Conv2d(2, 4, 3, 2, 1, padding_mode="circular").to(
        memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    norm = LF.conv_spectral_norm(
        conv.weight,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
        [1, 2, 8, 8],
    )
    assert norm.requires_grad
    exact = truth(conv.weight.detach(), (8, 8), stride=2, padding=1, padding_mode="circular")
    assert norm.item() == pytest.approx(exact, rel=1e-6)


def errors() -> list[Any]:
    w = torch.ones(4, 2, 3, 3)
    nan = w.clone()
    nan[0, 0, 0, 0] = math.nan
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"weight": [1.0]}, TypeError, "weight must be a torch.Tensor"),
        ({"weight": w.long()}, TypeError, "weight must have a real floating-point dtype"),
        ({"weight": w[0, 0]}, ValueError, "weight must have at least 3 dim"),
        ({"weight": torch.ones(1, 1, 1, 1, 1, 1)}, ValueError, "weight must have 3, 4 or 5 dim"),
        ({"weight": torch.ones(1, 1, 0, 2)}, ValueError, "weight must have a kernel of at least"),
        ({"weight": nan}, ValueError, "weight must be finite"),
        ({"stride": 0}, ValueError, "stride must be an integer >= 1"),
        ({"stride": (1, 2, 3)}, ValueError, "stride must be an integer >= 1"),
        ({"dilation": 1.5}, TypeError, "dilation must be an integer >= 1"),
        ({"padding": -1}, ValueError, "padding must be an integer >= 0"),
        ({"padding": "full"}, ValueError, "padding must be one of 'valid', 'same', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' must have a stride of 1"),
        ({"groups": 3}, ValueError, "groups must divide the weight's first dimension 4, got 3"),
        ({"groups": True}, TypeError, "groups must be an integer"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of 'zeros'"),
        ({"bound": "lower"}, ValueError, "bound must be one of 'upper', 'estimate', got 'lower'"),
        ({"input_shape": 8}, TypeError, "input_shape must be a tuple or list"),
        ({"input_shape": (8,)}, ValueError, "input_shape must have at least 2 elements"),
        ({"input_shape": (2, 8)}, ValueError, r"input_shape must be large enough .*\(2, 8\)"),
        (
            {"input_shape": (2, 8), "padding": 2, "padding_mode": "reflect"},
            ValueError,
            "input_shape must be large enough for reflect padding",
        ),
        ({"transposed": 1}, TypeError, "transposed must be True or False"),
        (
            {"transposed": True, "padding_mode": "circular"},
            ValueError,
            "padding_mode must be 'zeros' if transposed, got 'circular'",
        ),
        ({"transposed": True, "padding": "same"}, ValueError, "padding must be .*'same'"),
        ({"transposed": True, "output_padding": 1}, ValueError, "output_padding must be smaller"),
        ({"output_padding": 1}, ValueError, "output_padding must be 0 unless transposed"),
        ({"n_iterations": 0}, ValueError, "n_iterations must be an integer >= 1"),
        ({"max_size": 0}, ValueError, "max_size must be an integer >= 1"),
    ]
    return [pytest.param(*c, id=f"{i}-{next(iter(c[0]))}") for i, c in enumerate(cases)]


@pytest.mark.parametrize("arguments, error, message", errors())
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        LF.conv_spectral_norm(**{"weight": torch.ones(4, 2, 3, 3), **arguments})
    assert caught.type is error
    assert re.search(message, str(caught.value)), str(caught.value)
