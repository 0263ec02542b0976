"""compute_layer_sv, compute_model_sv and layer_singular_values against the dense operator."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipfuse.nn as lnn
from lipfuse import _operators, compute_layer_sv, compute_model_sv, layer_singular_values
from lipfuse._lanczos import extreme_singular_values


def exact(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    return torch.linalg.svdvals(tools.dense(layer.eval(), shape))


OPERATORS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(2, 3, 3, stride=2, padding=1, groups=1), (2, 5, 6)),
    (nn.Conv2d(2, 4, 3, dilation=2, groups=2, bias=False), (2, 6, 6)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
    (nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular"), (3, 7)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", groups=1), (2, 4, 5)),
    (nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="circular", groups=2), (2, 6, 4)),
    (nn.Conv2d(1, 2, (3, 2), stride=(2, 1), padding=(1, 0), padding_mode="circular"), (1, 4, 5)),
    (nn.Conv3d(1, 2, 2, stride=2), (1, 4, 2, 4)),
    (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (3, 3, 3)),
    (lnn.SpectralConv2d(2, 4, 3, padding=1, padding_mode="symmetric", k_coef_lip=2.0), (2, 4, 4)),
    (lnn.ScaledAvgPool2d(2), (1, 4, 4)),
    (nn.AvgPool2d(3, stride=1), (1, 4, 4)),
]


@pytest.mark.parametrize("layer, shape", OPERATORS, ids=lambda x: type(x).__name__)
def test_operators(layer: nn.Module, shape: tuple[int, ...], monkeypatch: Any) -> None:
    layer.train()
    state = [t.clone() for t in layer.state_dict().values()]
    values = exact(layer, shape)
    layer.train()
    found = layer_singular_values(layer, input_shape=shape)
    assert found.shape == values.shape
    assert found.dtype is torch.float64
    assert torch.allclose(found, values, atol=2e-6)
    low, high = compute_layer_sv(layer, input_shape=list(shape))
    assert (low, high) == (float(found[-1]), float(found[0]))
    # The same without a decomposition.
    monkeypatch.setattr(_operators, "_MOST_VALUES", 1)
    monkeypatch.setattr(_operators.LayerOperator, "_circulant_strides", lambda _: None)
    ends = compute_layer_sv(layer, input_shape=shape)
    assert ends == pytest.approx((low, high), abs=1e-8)
    with pytest.raises(ValueError, match="input_shape must be smaller to decompose"):
        layer_singular_values(layer, input_shape=shape)
    assert layer.training
    assert tools.equal_bits(state, list(layer.state_dict().values()))


def test_linear_layers() -> None:
    hooked = torch.nn.utils.spectral_norm(nn.Linear(5, 3))
    hooked(torch.randn(2, 5))
    for layer in (
        nn.Linear(5, 3),
        lnn.SpectralLinear(5, 3, k_coef_lip=2.0),
        lnn.FrobeniusLinear(5, 3),
        parametrizations.spectral_norm(nn.Linear(5, 3)),
        parametrizations.orthogonal(nn.Linear(5, 3)),
        hooked,
    ):
        found = layer_singular_values(layer)
        assert torch.allclose(found, exact(layer, (5,)), atol=1e-6)
        low, high = compute_layer_sv(layer)
        assert (low, high) == (float(found[-1]), float(found[0]))


def test_a_large_circular_convolution_is_exact() -> None:
    """Decomposed at a size whose dense matrix would have 67 million elements."""
    layer = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    values = layer_singular_values(layer, input_shape=(8, 32, 32))
    assert values.shape == (8 * 32 * 32,)
    # The sum of squares is the squared Frobenius norm of the operator.
    assert float(values.square().sum()) == pytest.approx(
        1024 * float(layer.weight.detach().double().square().sum()), rel=1e-9
    )
    low, high = compute_layer_sv(layer, input_shape=(8, 32, 32))
    assert (low, high) == (float(values[-1]), float(values[0]))


@pytest.mark.parametrize("kind", [*tools.BENIGN, "deficient", "zero"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 5), (50, 50)])
def test_lanczos_stays_inside_and_converges(kind: str, shape: tuple[int, int]) -> None:
    w = tools.matrix(kind, shape)
    values = torch.linalg.svdvals(w)
    low, high = extreme_singular_values(w.mv, w.mT.mv, *shape)
    assert high == pytest.approx(float(values[0]), rel=1e-9, abs=1e-12)
    assert low == pytest.approx(float(values[-1]), abs=1e-9 * max(1.0, float(values[0])))


def test_lanczos_of_nothing_and_of_nan() -> None:
    w = torch.full((3, 4), math.nan, dtype=torch.float64)
    assert all(math.isnan(x) for x in extreme_singular_values(w.mv, w.mT.mv, 3, 4))
    assert extreme_singular_values(w.mv, w.mT.mv, 0, 4) == (0.0, 0.0)


def test_lanczos_is_cut_off_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipfuse._lanczos._MOST_STEPS", 12)
    monkeypatch.setattr("lipfuse._lanczos._MOST_ELEMENTS", 1)
    w = tools.matrix("wide", (200, 150))
    values = torch.linalg.svdvals(w)
    low, high = extreme_singular_values(w.mv, w.mT.mv, 200, 150)
    assert 0.99 * float(values[0]) <= high <= float(values[0]) * (1 + 1e-12)
    assert float(values[-1]) * (1 - 1e-12) <= low < 0.5 * high


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.unused = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) + self.conv(input=x[:, :, :3])[:, :, :1]


def test_a_model() -> None:
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))  # type: ignore[union-attr]
        norm.weight.copy_(torch.tensor([-1.0, 3.0]))
    model = nn.Sequential(
        Residual(),
        norm,
        lnn.GroupSort2(k_coef_lip=0.5),
        nn.LeakyReLU(0.2),
        lnn.LPReLU(init=-3.0),
        lnn.ScaledL2NormPool2d(2, k_coef_lip=3.0),
        nn.Dropout(),
        nn.Flatten(),
        nn.Softmax(-1),
        lnn.SpectralLinear(8, 4),
    )
    with pytest.warns(UserWarning, match=r"0\.unused \(Conv2d, which.*8 \(Softmax\)") as caught:
        found = compute_model_sv(model, input_shape=(2, 4, 4))
    assert len(caught) == 1
    assert list(found) == ["0.conv", "0.unused", *map(str, range(1, 10))]
    both = [compute_layer_sv(model[0].conv, input_shape=(2, n, 4)) for n in (3, 4)]
    assert found["0.conv"] == (min(b[0] for b in both), max(b[1] for b in both))
    assert math.isnan(found["0.unused"][0]) and math.isnan(found["8"][1])
    assert found["1"] == pytest.approx((0.5, 6.0), rel=1e-4)
    assert found["2"] == (0.5, 0.5)
    assert found["3"] == (pytest.approx(0.2), 1.0)
    assert found["4"] == (1.0, 1.0)
    assert found["5"] == (0.0, 3.0)
    assert found["6"] == found["7"] == (1.0, 1.0)
    assert found["9"] == pytest.approx((1.0, 1.0), abs=1e-6)
    assert model.training and not model[0].conv._forward_pre_hooks


def test_supplementary_types_come_first() -> None:
    model = nn.Sequential(Residual(), nn.ReLU(), nn.Softmax(-1))
    rules: Any = {Residual: lambda m: (0, 2 + m.conv.stride[0]), nn.Module: lambda m: (1, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The nearest type counts, and the layers inside one that is known are not asked.
        assert compute_model_sv(model, {Residual: rules[Residual], nn.Softmax: rules[nn.Module]})
        found = compute_model_sv(model[0], rules)
        assert compute_layer_sv(model[1], rules) == (1.0, 1.0)
    assert found == {"": (0.0, 3.0)}
    broken: Any = {nn.ReLU: lambda: (0, 1)}  # an error in such a function is not hidden
    with pytest.raises(TypeError, match="positional argument"):
        compute_model_sv(nn.Sequential(nn.ReLU()), broken)


def test_a_parametrized_container_hides_nothing() -> None:
    class Container(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))
            self.layer = nn.Linear(2, 2)

    model = parametrizations.orthogonal(Container(), "scale")
    assert list(compute_model_sv(model)) == ["layer"]


def test_errors() -> None:
    conv, shape = nn.Conv2d(2, 3, 3), (2, 5, 5)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: compute_layer_sv(conv), ValueError, "input_shape must be given for Conv2d"),
        (lambda: compute_layer_sv(3), TypeError, "layer must be a torch.nn.Module, got int"),
        (
            lambda: layer_singular_values(nn.ReLU(), input_shape=shape),
            TypeError,
            "layer must be li",
        ),
        (lambda: compute_layer_sv(nn.Softmax(-1), input_shape=(3,)), TypeError, "supplementary_ty"),
        (lambda: compute_layer_sv(conv, input_shape=(3, 5, 5)), ValueError, "must fit Conv2d, got"),
        (lambda: compute_layer_sv(conv, input_shape=5), TypeError, "input_shape must be a tuple"),
        (lambda: compute_layer_sv(conv, input_shape=(2, 0)), ValueError, "input_shape must be an"),
        (lambda: compute_layer_sv(nn.BatchNorm1d(2, track_running_stats=False)), TypeError, "stat"),
        (lambda: compute_model_sv([conv]), TypeError, "model must be a torch.nn.Module, got list"),
        (lambda: compute_model_sv(nn.Sequential(conv)), ValueError, "input_shape must be given"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    nan = nn.Linear(2, 2)
    nn.init.constant_(nan.weight, math.nan)
    with pytest.raises(ValueError, match="layer must be finite, got Linear with NaN"):
        compute_layer_sv(nan)
