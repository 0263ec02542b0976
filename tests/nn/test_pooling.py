"""Pooling and resampling layers: the constant, what would break it, and the export."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

import pytest
import tools
import torch
from torch import nn

import lipfuse.nn as lnn

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "avg": lambda **k: lnn.ScaledAvgPool2d(2, **k),
    "avg-oblong": lambda **k: lnn.ScaledAvgPool2d((2, 3), (2, 3), **k),
    "avg-ceil": lambda **k: lnn.ScaledAvgPool2d((2, 3), ceil_mode=True, **k),
    "avg-global": lambda **k: lnn.ScaledAdaptiveAvgPool2d((1, 1), **k),
    "l2": lambda **k: lnn.ScaledL2NormPool2d(2, **k),
    "l2-oblong": lambda **k: lnn.ScaledL2NormPool2d((3, 2), (3, 2), **k),
    "l2-ceil": lambda **k: lnn.ScaledL2NormPool2d((3, 2), ceil_mode=True, **k),
    "l2-global": lambda **k: lnn.ScaledAdaptativeL2NormPool2d(**k),
    "down": lambda **k: lnn.InvertibleDownSampling(2, **k),
    "up": lambda **k: lnn.InvertibleUpSampling(2, **k),
}
# Sizes that the windows do not fill, but for the resampling layers.
SIZES: dict[str, tuple[int, int]] = {"down": (4, 6), "up": (3, 2)}


def image(name: str, *leading: int) -> torch.Tensor:
    return torch.randn(*leading, 4, *SIZES.get(name, (5, 7)))


@pytest.mark.parametrize("k", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", LAYERS)
def test_the_constant_is_k_and_reached(
    name: str,
    k: float,
    lipschitz_at: Callable[..., float],
    largest_gain: Callable[..., float],
) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](k_coef_lip=k)
    assert lipschitz_at(layer, image(name, 1)) == pytest.approx(k, rel=1e-12)
    assert lipschitz_at(layer, 0 * image(name, 1)) <= k * (1 + 1e-12)
    pairs = [(image(name, 1).double(), image(name, 1).double()) for _ in range(20)]
    assert largest_gain(layer, pairs) <= k * (1 + 1e-12)


@pytest.mark.parametrize("size", [(3, 3), (3, 4), (5, 5), (1, 1), (2, 7)])
@pytest.mark.parametrize("kernel", [2, 3, (2, 3), (4, 1)])
def test_cut_off_windows_do_not_gain(
    kernel: int | tuple[int, int], size: tuple[int, int], lipschitz_at: Callable[..., float]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, *size)
    for layer in (
        lnn.ScaledAvgPool2d(kernel, ceil_mode=True),
        lnn.ScaledL2NormPool2d(kernel, ceil_mode=True),
    ):
        assert lipschitz_at(layer, x) == pytest.approx(1.0, rel=1e-12)
        assert layer(x).shape == nn.AvgPool2d(kernel, ceil_mode=True)(x).shape


def test_a_larger_divisor_lowers_the_constant(lipschitz_at: Callable[..., float]) -> None:
    for ceil_mode in (False, True):
        layer = lnn.ScaledAvgPool2d(2, divisor_override=5, ceil_mode=ceil_mode)
        assert lipschitz_at(layer, torch.randn(1, 1, 5, 5)) == pytest.approx(4 / 5)
    same = lnn.ScaledAvgPool2d(2, divisor_override=4)
    x = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(same(x), lnn.ScaledAvgPool2d(2)(x))


def test_values_are_scaled_torch_pooling_where_windows_are_full() -> None:
    x = torch.randn(2, 3, 6, 12)
    pairs: list[tuple[nn.Module, torch.Tensor]] = [
        (lnn.ScaledAvgPool2d((2, 3)), nn.AvgPool2d((2, 3))(x) * math.sqrt(6)),
        (lnn.ScaledAdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(1)(x) * math.sqrt(72)),
        (lnn.ScaledL2NormPool2d((2, 3)), nn.LPPool2d(2, (2, 3))(x)),
        (lnn.ScaledAdaptativeL2NormPool2d(), nn.LPPool2d(2, (6, 12))(x)),
    ]
    for layer, expected in pairs:
        torch.testing.assert_close(layer(x), expected)
    assert torch.equal(lnn.InvertibleDownSampling(3)(x), nn.PixelUnshuffle(3)(x))
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(lnn.InvertibleUpSampling(2)(x), nn.PixelShuffle(2)(x))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_resampling_layers_undo_each_other(factor: int) -> None:
    down, up = lnn.InvertibleDownSampling(factor), lnn.InvertibleUpSampling(factor)
    for shape in [(2, 3, 6, 12), (3, 6, 12), (0, 3, 6, 12)]:
        x = torch.randn(shape)
        assert down(x).shape == (*shape[:-3], 3 * factor**2, 6 // factor, 12 // factor)
        assert torch.equal(up(down(x)), x)


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch_passes_in_both_directions(name: str) -> None:
    x = image(name, 0).requires_grad_()
    y = LAYERS[name](k_coef_lip=0.5)(x)
    assert y.shape[0] == 0
    assert y.shape[1:] == LAYERS[name]()(image(name, 2)).shape[1:]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_dtypes_layouts_and_ranks(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](k_coef_lip=0.5)
    x = image(name, 2)
    y = layer(x.double())
    tolerance = 4 * torch.finfo(dtype).eps
    for twin in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat((x, x), 1)[:, :4],
    ):
        ours = layer(twin.to(dtype))
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), y, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer(x[0].to(dtype)).double(), y[0], rtol=tolerance, atol=tolerance)
    assert torch.equal(layer(x[:1].expand(2, -1, -1, -1)), layer(x[:1]).expand(2, -1, -1, -1))


@pytest.mark.parametrize("k", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("name", LAYERS)
def test_export_computes_the_same_whatever_the_size_and_dtype(name: str, k: float) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](k_coef_lip=k).eval()
    plain = layer.vanilla_export()
    assert not plain.training
    assert all(type(m).__module__.startswith("torch.") for m in plain.modules())
    x = image(name, 3)
    # The last one has squares beyond float16.
    for twin in (x, x.double(), x[0], torch.cat((x, x), -1), x.bfloat16(), (500 * x).half()):
        tolerance = 16 * torch.finfo(twin.dtype).eps
        torch.testing.assert_close(plain(twin), layer(twin), rtol=tolerance, atol=tolerance)


def test_export_to_torch_nn_where_it_has_the_same() -> None:
    assert type(lnn.InvertibleDownSampling(2).vanilla_export()) is nn.PixelUnshuffle
    assert type(lnn.InvertibleUpSampling(2).vanilla_export()) is nn.PixelShuffle


@pytest.mark.parametrize("name", ["l2", "l2-ceil", "l2-global"])
def test_exported_l2_pooling_has_finite_gradients_at_zero(name: str) -> None:
    plain = LAYERS[name]().vanilla_export()
    x = torch.zeros(1, 1, 5, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(plain(x).sum(), x, create_graph=True)
    assert (gradient == 0).all()
    (second,) = torch.autograd.grad((gradient * torch.randn_like(x)).sum(), x)
    assert (second == 0).all()


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_keep_k(name: str) -> None:
    layer = LAYERS[name](k_coef_lip=0.5)
    x = image(name, 2)
    for copied in tools.COPIES.values():
        twin = copied(layer)
        assert twin.k_coef_lip == 0.5
        assert torch.equal(twin(x), layer(x))


def test_a_new_k_takes_effect_at_once() -> None:
    for name, make in LAYERS.items():
        layer, x = make(), image(name, 2)
        before = layer(x)
        layer.k_coef_lip = 4.0
        torch.testing.assert_close(layer(x), 4.0 * before)


def test_repr_shows_k() -> None:
    assert repr(lnn.ScaledAvgPool2d(2)) == "ScaledAvgPool2d(kernel_size=2, k_coef_lip=1)"
    assert (
        repr(lnn.ScaledL2NormPool2d((2, 3), ceil_mode=True, k_coef_lip=0.5))
        == "ScaledL2NormPool2d(kernel_size=(2, 3), ceil_mode=True, k_coef_lip=0.5)"
    )
    assert (
        repr(lnn.ScaledAdaptiveAvgPool2d(1, 2.0))
        == "ScaledAdaptiveAvgPool2d(output_size=1, k_coef_lip=2)"
    )
    assert (
        repr(lnn.InvertibleDownSampling(2))
        == "InvertibleDownSampling(downscale_factor=2, k_coef_lip=1)"
    )


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_stack_computes_and_differentiates_the_same() -> None:
    # With the default backend, which had a wrong gradient for cut-off average windows.
    torch.manual_seed(0)
    stack = lnn.Sequential(
        lnn.ScaledL2NormPool2d(2), lnn.ScaledAvgPool2d(2, ceil_mode=True), k_coef_lip=2.0
    )
    compiled = torch.compile(stack, fullgraph=True)
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    torch.testing.assert_close(compiled(x), stack(x))
    (ours,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(stack(x).square().sum(), x)
    torch.testing.assert_close(ours, wanted)


def down(*shape: int) -> torch.Tensor:
    return lnn.InvertibleDownSampling(2)(torch.ones(shape))


def up(*shape: int) -> torch.Tensor:
    return lnn.InvertibleUpSampling(2)(torch.ones(shape))


avg, l2 = lnn.ScaledAvgPool2d, lnn.ScaledL2NormPool2d
BAD: list[tools.Refusal] = [
    (lambda: avg(2, stride=1), ValueError, ["stride", "1", "(2, 2)"]),
    (lambda: avg((2, 3), stride=2), ValueError, ["stride", "2", "(2, 3)"]),
    (lambda: avg(2, padding=1), ValueError, ["padding", "1", "0"]),
    (lambda: avg(2, padding=(0, 1)), ValueError, ["padding", "(0, 1)", "0"]),
    (lambda: avg(2, divisor_override=1), ValueError, ["divisor_override", "1", "4"]),
    (lambda: avg(2, divisor_override=True), TypeError, ["divisor_override", "True"]),
    (lambda: avg(0), ValueError, ["kernel_size", "0", ">= 1"]),
    (lambda: avg(2.0), TypeError, ["kernel_size", "2.0", "integer"]),
    (lambda: avg((2, 2, 2)), ValueError, ["kernel_size", "(2, 2, 2)", "pair"]),
    (lambda: avg(2, ceil_mode=1), TypeError, ["ceil_mode", "1", "True or False"]),
    (lambda: avg(2, k_coef_lip=0.0), ValueError, ["k_coef_lip", "0.0", "positive"]),
    (lambda: avg(2)(torch.ones(4, 4)), ValueError, ["input", "(4, 4)", "(N, C, H, W)"]),
    (lambda: avg(3)(torch.ones(1, 2, 2)), ValueError, ["input", "2 x 2", "3 x 3"]),
    (lambda: l2(2, stride=3), ValueError, ["stride", "3", "(2, 2)"]),
    (lambda: l2(2, k_coef_lip=float("nan")), ValueError, ["k_coef_lip", "nan"]),
    (lambda: l2(2, ceil_mode="yes"), TypeError, ["ceil_mode", "'yes'"]),
    (lambda: lnn.ScaledAdaptiveAvgPool2d((2, 1)), ValueError, ["output_size", "(2, 1)", "(1, 1)"]),
    (lambda: lnn.ScaledAdaptiveAvgPool2d(None), TypeError, ["output_size", "None"]),
    (lambda: lnn.ScaledAdaptativeL2NormPool2d(2), ValueError, ["output_size", "2", "(1, 1)"]),
    (lambda: lnn.ScaledAdaptativeL2NormPool2d(k_coef_lip=-1.0), ValueError, ["k_coef_lip", "-1"]),
    (lambda: lnn.InvertibleDownSampling(0), ValueError, ["kernel_size", "0", ">= 1"]),
    (lambda: lnn.InvertibleDownSampling((2, 2)), TypeError, ["kernel_size", "(2, 2)", "integer"]),
    (lambda: down(3, 4, 5), ValueError, ["input", "(3, 4, 5)", "height", "kernel_size=2"]),
    (lambda: down(1, 3, 5, 4), ValueError, ["input", "(1, 3, 5, 4)", "multiples"]),
    (lambda: down(0, 3, 5, 4), ValueError, ["input", "(0, 3, 5, 4)", "multiples"]),
    (lambda: down(4, 4), ValueError, ["input", "(4, 4)", "3 dim"]),
    (lambda: up(6, 4, 4), ValueError, ["input", "(6, 4, 4)", "channels", "kernel_size**2=4"]),
    (lambda: up(0, 2, 4, 4), ValueError, ["input", "(0, 2, 4, 4)", "multiple of"]),
    (lambda: lnn.InvertibleUpSampling(-1), ValueError, ["kernel_size", "-1", ">= 1"]),
    (lambda: lnn.InvertibleUpSampling(2, k_coef_lip="1"), TypeError, ["k_coef_lip", "'1'"]),
]


test_bad_arguments_are_named = tools.refusals(BAD)
