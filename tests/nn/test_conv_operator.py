"""Convolutions divided by their own norm: never above k, close to it, and as usable as before."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import tools
import torch
from every_layer import METHODS
from tools import original
from torch import Tensor, nn

import lipfuse
import lipfuse.functional as F
import lipfuse.nn as lnn
from lipfuse.functional._conv_symbol import ConvOperator
from lipfuse.parametrizations import remove_lconv_norm

every_method = pytest.mark.parametrize("method", METHODS)

CIRCULAR, SYMMETRIC = {"padding_mode": "circular"}, {"padding_mode": "symmetric"}
# Layer, arguments, size of the input, and how much of k has to be used at least.
Setting = tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...], float]
SETTINGS: list[Setting] = [
    (lnn.SpectralConv1d, (3, 2, 5), {"padding": 2}, (40,), 0.96),
    (lnn.SpectralConv2d, (2, 3, 3), {"padding": 1}, (13, 12), 0.93),
    (lnn.SpectralConv2d, (2, 3, 3), {"padding": 1, **CIRCULAR}, (12, 12), 0.96),
    (lnn.SpectralConv2d, (2, 3, 3), {"stride": 2, "padding": 1}, (16, 15), 0.92),
    (lnn.SpectralConv2d, (4, 2, 2), {"stride": 2}, (8, 8), 0.999),
    (lnn.SpectralConv2d, (2, 2, 3), {"stride": 3, "dilation": 3, "padding": 3}, (21, 24), 0.8),
    (lnn.SpectralConv2d, (4, 4, 3), {"groups": 4, "padding": "same"}, (12, 14), 0.93),
    (lnn.SpectralConv2d, (4, 6, 3), {"groups": 2, "padding": (1, 0)}, (10, 10), 0.9),
    (lnn.SpectralConv2d, (2, 2, 3), {"padding": 1, "padding_mode": "reflect"}, (3, 9), 0.3),
    (lnn.SpectralConv2d, (2, 2, 3), {"padding": 2, "padding_mode": "replicate"}, (7, 8), 0.25),
    (lnn.SpectralConv2d, (1, 2, (2, 4)), {"padding": "same", **SYMMETRIC}, (7, 8), 0.3),
    (lnn.SpectralConv2d, (1, 2, 3), {"stride": 2, "padding": 1, **CIRCULAR}, (7, 9), 0.3),
    (lnn.SpectralConv3d, (1, 2, (2, 1, 3)), {"padding": 1}, (5, 3, 9), 0.8),
    (lnn.SpectralConvTranspose1d, (2, 3, 4), {"stride": 2, "padding": 1}, (20,), 0.95),
    (lnn.SpectralConvTranspose2d, (3, 2, 3), {"stride": 2, "output_padding": 1}, (8, 8), 0.9),
    (lnn.SpectralConvTranspose2d, (2, 4, 2), {"stride": 2, "groups": 2}, (4, 4), 0.999),
]  # fmt: skip
every_setting = pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda s: f"{s[0].__name__}-{s[1]}-{s[2]}"
)


def made(setting: Setting, **more: Any) -> Any:
    kind, arguments, rest, _, _ = setting
    return kind(*arguments, **rest, normalization="operator", **more)


def conv(**more: Any) -> lnn.SpectralConv2d:
    return lnn.SpectralConv2d(3, 4, 3, padding=1, normalization="operator", **more)


# ---- the guarantee -------------------------------------------------------------------------------


@every_setting
@every_method
def test_never_above_k_and_close_to_it(method: str, setting: Setting) -> None:
    """Fresh, random and low-pass kernels; in training from the first forward on, in evaluation."""
    k = 0.7
    shape = (setting[1][0], *setting[3])
    for seed, draw in enumerate(("orthogonal", "normal", "low-pass")):
        torch.manual_seed(seed)
        layer = made(setting, k_coef_lip=k, **METHODS[method])
        with torch.no_grad():
            if draw == "normal":
                original(layer).normal_(0, 30)
            elif draw == "low-pass":
                original(layer).copy_(1 + 1e-3 * torch.randn_like(original(layer)))
        norms = []
        for training in (True, False):
            layer.train(training)
            norms.append(tools.operator_norm(layer, shape))
        assert max(norms) <= k * (1 + 1e-6)
        assert min(norms) >= k * setting[4]
        if method != "bjorck":  # which has not converged after 15 iterations in training
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_ascent_on_the_gain_does_not_find_a_leak() -> None:
    """Steps that maximise the layer's own norm, in training; no power iteration to outrun."""
    for setting in (SETTINGS[1], SETTINGS[3], SETTINGS[8], SETTINGS[14]):
        torch.manual_seed(0)
        layer = made(setting, eps_bjorck=None)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
        x = torch.randn(1, setting[1][0], *setting[3])
        worst = 0.0
        for _ in range(12):
            optimizer.zero_grad()
            y = layer(x) - layer(torch.zeros_like(x))
            (-y.norm()).backward()
            # A step of power iteration on the inputs.
            z = x.clone().requires_grad_()
            x = torch.autograd.grad(layer(z), z, y.detach())[0]
            x = x / x.norm()
            worst = max(worst, tools.operator_norm(layer, tuple(x.shape[1:])))
            optimizer.step()
        assert worst <= 1 + 1e-6


def test_of_every_size() -> None:
    """One kernel, inputs from 1 pixel to many, for every padding mode."""
    for mode, stride in itertools.product(("zeros", "circular", "reflect", "symmetric"), (1, 2)):
        layer = lnn.SpectralConv1d(
            2, 2, 3, stride=stride, padding=1, padding_mode=mode, normalization="operator"
        ).eval()
        for size in (1, 2, 3, 4, 5, 8, 13, 64):
            if mode != "reflect" or size > 1:
                assert tools.operator_norm(layer, (2, size)) <= 1 + 1e-6, (mode, stride, size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions(dtype: torch.dtype) -> None:
    layer = conv(dtype=dtype)
    for training in (True, False):
        weight = layer.train(training).weight
        assert weight.dtype == dtype
        norm = float(F.conv_spectral_norm(weight.detach().double(), padding=1))
        assert 0.95 <= norm <= 1.03
        plain = nn.Conv2d(3, 4, 3, padding=1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            plain.weight.copy_(weight)
        assert tools.operator_norm(plain, (3, 14, 14)) <= 1 + 1e-6
    if dtype != torch.float64:
        layer = conv()
        with torch.autocast("cpu", dtype=dtype):
            weight = layer.weight.to(dtype).double()
        assert F.conv_spectral_norm(weight, padding=1, input_shape=(20, 20)).item() <= 1 + 1e-6


def test_signal_kept_through_eight_layers() -> None:
    """What the factor costs, and what is left of it: 16 channels, 3x3, zeros around, as drawn."""

    def network(normalization: Any) -> nn.Sequential:
        torch.manual_seed(0)
        layers = (
            lnn.SpectralConv2d(16, 16, 3, padding=1, bias=False, normalization=normalization)
            for _ in range(8)
        )
        return nn.Sequential(*layers).eval()

    torch.manual_seed(1)
    x = torch.randn(4, 16, 32, 32)
    norms, kept = {}, {}
    for normalization in ("factor", "operator"):
        model = network(normalization)
        norms[normalization] = math.prod(
            F.conv_spectral_norm(layer.weight, padding=1, input_shape=(32, 32)).item()  # type: ignore[arg-type]
            for layer in model
        )
        kept[normalization] = (model(x).norm() / x.norm()).item()
    assert norms["factor"] < 0.05
    assert 0.85 < norms["operator"] <= 1.1  # the upper bound is itself a per cent above, a layer
    assert kept["operator"] > 20 * kept["factor"]


# ---- the bound as a function ---------------------------------------------------------------------


def operator_of(setting: Setting) -> tuple[ConvOperator, tuple[int, ...], int]:
    layer = made(setting)
    operator = layer.parametrizations.weight[0].operator
    assert isinstance(operator, ConvOperator)
    return operator, tuple(original(layer).shape), layer.groups


@every_setting
def test_samples_at_fewer_frequencies_agree_with_conv_spectral_norm(setting: Setting) -> None:
    """The same bound of every size by other code, up to what fewer samples cost."""
    operator, shape, groups = operator_of(setting)
    rest = {n: v for n, v in setting[2].items() if n != "output_padding"}
    if "Transpose" in setting[0].__name__:
        rest["transposed"] = True
    torch.manual_seed(3)
    weight = torch.randn(shape, dtype=torch.float64)
    matrices = weight.reshape(groups, -1, math.prod(shape[1:]))
    weight = weight / torch.linalg.matrix_norm(matrices, 2).max()
    expected = float(F.conv_spectral_norm(weight, **rest))
    found = operator.norm(weight.reshape(groups, -1, *shape[1:]))
    assert found.shape == (groups,)
    assert expected * (1 - 1e-9) <= float(found.max()) <= expected * 1.05


@pytest.mark.parametrize("index", [0, 1, 3, 6, 13])
def test_gradient_of_the_division(index: int) -> None:
    operator, shape, groups = operator_of(SETTINGS[index])
    torch.manual_seed(5)
    w = torch.randn(groups, shape[0] // groups, math.prod(shape[1:]), dtype=torch.float64)
    w = (w / torch.linalg.matrix_norm(w, 2)[:, None, None]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: operator.divided(x, 0.7), w, atol=1e-4)


def test_zero_recovers_and_nan_raises() -> None:
    for settings in METHODS.values():
        layer = lnn.SpectralConv2d(4, 4, 3, groups=2, normalization="operator", **settings)
        x = torch.randn(2, 4, 6, 6)
        with torch.no_grad():
            original(layer)[:2].zero_()
        out = layer(x)
        assert not out[:, :2].any() and out[:, 2:].any()
        out.square().sum().backward()
        assert original(layer).grad.isfinite().all()  # type: ignore[union-attr]
        with torch.no_grad():
            original(layer)[:2].normal_()
        for _ in range(30):
            layer(x)
        assert 0.9 <= tools.operator_norm(layer, (4, 16, 16)) <= 1 + 1e-6
        with torch.no_grad():
            original(layer)[0, 0, 0, 0] = math.nan
        assert layer.weight[:2].isnan().any() and layer.weight[2:].isfinite().all()
        layer.eval()
        with pytest.raises(ValueError, match="weight must be finite"):
            layer(x)


# ---- as usable as with the factor ----------------------------------------------------------------


def test_checkpoints_constants_copies_and_export() -> None:
    layer, other = conv(), lnn.SpectralConv2d(3, 4, 3, padding=1)
    with pytest.raises(ValueError, match="operator's norm"):  # it would be another function
        other.load_state_dict(layer.state_dict())
    layer.eval()
    x = torch.randn(2, 3, 8, 8)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
        assert "normalization='operator'" in repr(twin)
    exported = layer.vanilla_export()
    assert type(exported) is nn.Conv2d and torch.allclose(exported(x), expected, atol=1e-6)
    before = layer.weight.detach()
    layer.k_coef_lip = 3.0
    assert torch.allclose(layer.weight, 3 * before)
    assert layer.normalization == "operator" and other.normalization == "factor"
    with pytest.raises(ValueError, match="no LConvNorm to remove"):
        remove_lconv_norm(layer)


def test_fused() -> None:
    torch.manual_seed(0)
    model = lnn.Sequential(
        conv(), lnn.GroupSort2(), lnn.SpectralConv2d(4, 4, 3, groups=2), k_coef_lip=2.0
    )
    x = torch.randn(2, 3, 8, 8)
    out = model(x)
    out.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    lipfuse.fuse(model)
    fused = model(x)
    fused.square().sum().backward()
    assert torch.allclose(fused, out, atol=1e-5)
    for p, g in zip(model.parameters(), gradients):
        assert p.grad is not None and torch.allclose(p.grad, g, rtol=1e-3, atol=1e-4)


def test_compiled_whole_and_mapped() -> None:
    layer = conv(eps_bjorck=None)
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(lambda z: layer(z), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-4)
    compiled(x).sum().backward()
    assert original(layer).grad is not None
    operator = layer.parametrizations.weight[0].operator  # type: ignore[union-attr, index]
    weights = torch.randn(3, 1, 4, 27) / 10

    def divided(w: Tensor) -> Tensor:
        result: Tensor = operator.divided(w, 1.0)  # type: ignore[union-attr]
        return result

    each = torch.stack([divided(w) for w in weights])
    assert torch.allclose(torch.func.vmap(divided)(weights), each, atol=1e-6)


def test_arguments() -> None:
    for kind in (lnn.SpectralConv2d, lnn.SpectralConvTranspose2d):
        for wrong in ("norm", None, 1):
            with pytest.raises(
                ValueError, match="normalization must be one of 'factor', 'operator'"
            ):
                kind(2, 2, 3, normalization=wrong)  # type: ignore[arg-type]
