"""Batch normalisation by one factor: its true constant in both modes, its running statistics."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipfuse.nn as lnn

SHAPES = [(6, 3), (4, 3, 5), (3, 3, 4, 2), (2, 3, 2, 3, 2)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def batch(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Channels of different means and deviations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    c = shape[1]
    view = (1, c, *[1] * (len(shape) - 2))
    return x * torch.linspace(0.3, 0.1, c).view(view) + torch.arange(1.0, c + 1).view(view)


def trained(layer: lnn.BatchLipNorm, shape: tuple[int, ...], steps: int = 3) -> lnn.BatchLipNorm:
    layer = layer.double().train()
    for step in range(steps):
        layer(batch(shape, step))
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def variances(x: Tensor, centering: bool = True) -> Tensor:
    flat = x.movedim(1, 0).flatten(1)
    mean = flat.mean(1, keepdim=True) if centering else 0.0
    return (flat - mean).square().sum(1) / (flat.shape[1] - 1)


# ---- the constant --------------------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("centering", [True, False])
def test_the_factor_is_the_constant_in_evaluation(
    shape: tuple[int, ...], centering: bool, lipschitz_at: Callable[..., float]
) -> None:
    layer = trained(lnn.BatchLipNorm(3, centering=centering), shape).eval()
    factor = float(layer.get_scaling_factor())
    x = batch(shape, 9)
    assert lipschitz_at(layer, x) == pytest.approx(factor, rel=1e-12)
    assert factor > 2 or not centering  # not the trivial one
    # The statistics are no part of the map: each sample passes on its own.
    assert torch.allclose(layer(x)[:1], layer(x[:1]))


@every_shape
@pytest.mark.parametrize("centering", [True, False])
def test_the_map_from_batch_to_batch_in_training(
    shape: tuple[int, ...], centering: bool, lipschitz_at: Callable[..., float]
) -> None:
    """The norm that the docstring states: more than the factor, since samples move statistics."""
    layer = lnn.BatchLipNorm(3, centering=centering).double()
    x = batch(shape, 1)
    found = lipschitz_at(copy.deepcopy(layer), x)
    layer(x)
    factor = float(layer.get_scaling_factor(training=True))
    var = variances(x, centering)
    assert factor == pytest.approx(float(var.max()) ** -0.5, rel=1e-12)
    bound = float(var.sum().sqrt() / var.max())
    assert found == pytest.approx(bound, rel=1e-9)
    assert factor * 1.01 <= bound <= math.sqrt(3) * factor


@every_shape
@pytest.mark.parametrize("k", [1.0, 0.3, 2.5])
def test_centering_is_k_lipschitz_in_both_modes(
    shape: tuple[int, ...], k: float, lipschitz_at: Callable[..., float]
) -> None:
    layer = trained(lnn.BatchCentering(3, k_coef_lip=k), shape)
    x = batch(shape, 5)
    for training in (True, False):
        layer.train(training)
        assert lipschitz_at(copy.deepcopy(layer), x) == pytest.approx(k, rel=1e-12)
        assert float(layer.get_scaling_factor()) == pytest.approx(k)
    layer.k_coef_lip = 3.0
    assert lipschitz_at(layer, x) == pytest.approx(3.0, rel=1e-12)


def test_the_product_of_a_network_is_its_constant(lipschitz_at: Callable[..., float]) -> None:
    factory = lnn.SharedLipFactory()
    with pytest.warns(UserWarning, match="cannot vouch"):
        model = lnn.Sequential(
            lnn.SpectralLinear(4, 3),
            lnn.BatchLipNorm(3, factory=factory),
            lnn.GroupSort(3),
            lnn.SpectralLinear(3, 3),
            lnn.BatchLipNorm(3, factory=factory, bias=False),
            lnn.BatchCentering(3),
        ).double()
    for seed in range(4):
        model(batch((8, 4), seed))
    assert len(factory.modules) == 2
    in_training = factory.get_current_product_value(training=True)
    assert in_training.requires_grad and float(in_training.detach()) > 1
    model.eval()
    product = float(factory.get_current_product_value(training=False))
    assert product > 1
    for seed in range(5):
        assert lipschitz_at(model, batch((1, 4), seed)) <= product * (1 + 1e-9)


# ---- statistics ----------------------------------------------------------------------------------


def test_values() -> None:
    layer = lnn.BatchLipNorm(3).double()
    x = batch((5, 3, 2, 2))
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    bias = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    mean = x.mean((0, 2, 3), keepdim=True)
    expected = (x - mean) / variances(x).max().sqrt() + bias
    assert torch.allclose(layer(x), expected)
    # One batch seen: evaluation does the same with it.
    assert torch.allclose(layer.eval()(x), expected)
    assert torch.allclose(layer(x), expected)
    assert torch.allclose(layer(x[:1]), expected[:1])


def test_before_any_training_it_is_the_identity() -> None:
    for layer in (lnn.BatchLipNorm(3), lnn.BatchCentering(3), lnn.BatchLipNorm(3, normalize=False)):
        x = torch.randn(4, 3)
        assert torch.equal(layer.eval()(x), x)
        assert float(layer.get_scaling_factor()) == 1
        with pytest.raises(RuntimeError, match="after a forward in training"):
            lnn.BatchLipNorm(3).get_scaling_factor(training=True)


def test_small_variances_and_large_means() -> None:
    """A constant channel counts as one of variance 1; a large mean does not eat the variance."""
    layer = lnn.BatchLipNorm(2)
    x = torch.randn(64, 2) * 0.1
    x[:, 1] = 5.0
    assert torch.allclose(layer(x), x - x.mean(0))
    assert float(layer.get_scaling_factor(True)) == 1
    x = torch.randn(64, 2) * 0.1 + 1000.0
    assert float(layer(x).detach().std(0).max()) == pytest.approx(1, rel=1e-3)
    zeros = layer(torch.zeros(4, 2))
    assert not zeros.any()
    zeros.sum().backward()
    assert layer.bias.grad.isfinite().all()  # type: ignore[union-attr]


def test_evaluation_reduces_what_was_seen_to_one_batch() -> None:
    layer = lnn.BatchCentering(1, bias=False).double()
    for value in (1.0, 2.0, 6.0):
        layer(torch.full((4, 1), value, dtype=torch.float64))
    assert layer.running_num_batches.tolist() == [3]
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert float(layer.eval()(x)) == -3.0
    assert layer.running_num_batches.tolist() == [1]
    assert layer.running_sum_bmean.tolist() == [3.0]
    assert float(layer(x)) == -3.0
    layer.train()(torch.full((4, 1), 5.0, dtype=torch.float64))
    assert float(layer.eval()(x)) == -4.0
    layer.reset_states()
    assert float(layer(x)) == 0


def test_the_statistics_of_several_processes_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process normalises by its own batch, and remembers the mean of all."""
    x, y = batch((4, 3), 0), batch((4, 3), 1)
    alone = [lnn.BatchLipNorm(3).double() for _ in range(2)]
    outputs = [layer(part) for layer, part in zip(alone, (x, y))]
    both = lnn.BatchLipNorm(3).double()
    both(x), both(y)

    sent: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t, op: sent.append(t.clone()))
    other = lnn.BatchLipNorm(3).double()
    other(y)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t, op: t.add_(sent[0]))
    layer = lnn.BatchLipNorm(3).double()
    assert torch.equal(layer(x), outputs[0])
    for name, buffer in layer.named_buffers():
        assert torch.allclose(buffer, both.get_buffer(name)), name


def test_the_gradient_is_that_of_the_formula() -> None:
    layer = lnn.BatchLipNorm(3).double()
    x = batch((4, 3, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: copy.deepcopy(layer)(x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: copy.deepcopy(layer)(x), (x,))


# ---- as a module ---------------------------------------------------------------------------------


@every_shape
def test_export_copies_and_checkpoints(shape: tuple[int, ...]) -> None:
    layers: list[Any] = [
        lnn.BatchLipNorm(3),
        lnn.BatchLipNorm(3, centering=False, bias=False),
        lnn.BatchCentering(3, k_coef_lip=0.5),
    ]
    for fresh in layers:
        layer = trained(copy.deepcopy(fresh), shape)
        x = batch(shape, 7)
        layer(x.clone().requires_grad_())  # leaves a graph behind
        before = {n: b.clone() for n, b in layer.named_buffers()}
        plain = layer.vanilla_export()
        assert all(torch.equal(b, before[n]) for n, b in layer.named_buffers())
        assert plain.training and layer.training
        twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        loaded = fresh.double()
        loaded.load_state_dict(layer.state_dict(), strict=True)
        expected = layer.eval()(x)
        for twin in (*twins, loaded):
            assert torch.allclose(twin.eval()(x), expected)
        assert torch.allclose(plain(x), expected)
        assert all(not type(m).__module__.startswith("lipfuse") for m in plain.modules())
        buffer = io.BytesIO()
        torch.save(plain, buffer)


def test_resuming_keeps_what_was_seen() -> None:
    """deel-torchlip forgets the loaded statistics in its first training batch."""
    layer = trained(lnn.BatchLipNorm(3), (6, 3))
    resumed = lnn.BatchLipNorm(3).double()
    resumed.load_state_dict(layer.state_dict())
    for model in (layer, resumed):
        model(batch((6, 3), 8))
    assert torch.equal(layer.eval()(batch((6, 3))), resumed.eval()(batch((6, 3))))


def test_half_precision_is_computed_in_float32() -> None:
    layer = lnn.BatchLipNorm(3)
    x = 300 * torch.randn(64, 3)  # squares overflow in float16
    expected = copy.deepcopy(layer)(x)
    found = layer(x.half())
    assert found.dtype is torch.float16 and torch.allclose(found.float(), expected, atol=5e-3)
    assert layer.running_sum_bmean.dtype is torch.float32


def test_a_compiled_layer_is_one_graph() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(
        lnn.BatchLipNorm(3),
        lnn.LayerCentering(3, dim=1),
        lnn.ScaleBiasLayer(0.5, 3),
        lnn.BatchCentering(3),
    )
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(4):
        model.train(step < 3), twin.train(step < 3)
        x = batch((5, 3), step).float()
        with torch.compiler.set_stance("fail_on_recompile" if step in (1, 2) else "default"):
            found = compiled(x)
        assert torch.allclose(found, model(x), atol=1e-5)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    program = torch.export.export(model.eval(), (x,))
    assert torch.allclose(program.module()(x), model(x), atol=1e-6)


# ---- arguments -----------------------------------------------------------------------------------

Case = tuple[Callable[[], Any], type[Exception], str]
ERRORS: list[Case] = [
    (lambda: lnn.BatchLipNorm(0), ValueError, "num_features must be an integer >= 1, got 0"),
    (lambda: lnn.BatchLipNorm(True), TypeError, "num_features must be.*got True"),
    (lambda: lnn.BatchCentering(2.0), TypeError, "num_features must be.*got 2.0"),  # type: ignore[arg-type]
    (lambda: lnn.BatchLipNorm(3, eps=0), ValueError, "eps must be a positive finite number, got 0"),
    (lambda: lnn.BatchLipNorm(3, eps=math.nan), ValueError, "eps must be.*got nan"),
    (lambda: lnn.BatchLipNorm(3, dim="all"), TypeError, "dim must be.*got 'all'"),
    (lambda: lnn.BatchLipNorm(3, dim=()), TypeError, r"dim must be.*got \(\)"),
    (lambda: lnn.BatchLipNorm(3, dim=(0, 1.0)), TypeError, "dim must be"),  # type: ignore[arg-type]
    (lambda: lnn.BatchLipNorm(3, centering=1), TypeError, "centering must be True or False"),  # type: ignore[arg-type]
    (lambda: lnn.BatchLipNorm(3, bias=None), TypeError, "bias must be True or False"),  # type: ignore[arg-type]
    (lambda: lnn.BatchLipNorm(3, normalize="no"), TypeError, "normalize must be"),  # type: ignore[arg-type]
    (lambda: lnn.BatchLipNorm(3, factory=[]), TypeError, r"factory must be.*got \[\]"),  # type: ignore[arg-type]
    (
        lambda: lnn.BatchLipNorm(3, normalize=False, factory=lnn.SharedLipFactory()),
        ValueError,
        "factory must be None where scaling is False",
    ),
    (lambda: lnn.BatchCentering(3, k_coef_lip=-1.0), ValueError, "k_coef_lip must be.*got -1.0"),
    (
        lambda: lnn.BatchLipNorm(3)(torch.zeros(4, 1)),
        ValueError,
        r"x must have num_features=3 channels in dimension 1, got \(4, 1\)",
    ),
    (lambda: lnn.BatchLipNorm()(torch.zeros(4, 3)), ValueError, "x must have num_features=1"),
    (lambda: lnn.BatchLipNorm(3)(torch.zeros(3)), ValueError, "x must have at least 2 dim"),
    (lambda: lnn.BatchLipNorm(3)(torch.zeros(2, 3).int()), TypeError, "x must have a real float"),
    (
        lambda: lnn.BatchLipNorm(3)(torch.zeros(1, 3)),
        ValueError,
        r"x must have at least 2 values a channel in training, got \(1, 3\)",
    ),
    (lambda: lnn.BatchCentering(3)(torch.zeros(0, 3)), ValueError, "at least 1 value a channel"),
    (
        lambda: lnn.BatchLipNorm(3, dim=(0,))(torch.zeros(2, 3, 2)),
        ValueError,
        r"dim must be None or name all dimensions but the channels, 1, got \(0,\)",
    ),
    (lambda: lnn.BatchLipNorm(3, dim=(0, 5))(torch.zeros(2, 3, 2)), ValueError, "dim must name"),
    (lambda: lnn.BatchLipNorm(3, dim=(0, 2, -1))(torch.zeros(2, 3, 2)), ValueError, "each.*once"),
]


@pytest.mark.parametrize("call, error, message", ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error


def test_dimensions_may_be_named() -> None:
    for dim in ((0, 2, 3), (0, -2, -1), [0, 3, 2]):
        x = batch((3, 3, 4, 2))
        found = lnn.BatchLipNorm(3, dim).double()(x)
        assert torch.equal(found, lnn.BatchLipNorm(3).double()(x))
    # A layer serves inputs of several ranks.
    layer = lnn.BatchCentering(3)
    assert layer(torch.randn(4, 3)).dim() == 2 and layer(torch.randn(4, 3, 2, 2)).dim() == 4
