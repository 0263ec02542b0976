"""Convolutions of every kind: their exact norm for every setting, and their arguments."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import tools
import torch
from every_layer import METHODS
from tools import original
from torch import nn

import lipfuse.functional as F
import lipfuse.nn as lnn

every_method = pytest.mark.parametrize("method", METHODS)

Setting = tuple[int, int, Any, dict[str, Any]]
# (in_channels, out_channels, kernel_size, further settings): deel-torchlip's leaks, and more
SETTINGS: list[Setting] = [
    (2, 4, 3, {}),
    (3, 2, 3, {"padding": 1}),
    (1, 5, (2, 4), {"padding": "same"}),
    (2, 3, 3, {"stride": 2, "padding": 1}),
    (2, 3, 2, {"stride": 2}),
    (2, 3, 3, {"stride": (1, 3)}),
    (2, 3, 3, {"stride": 3, "dilation": 3}),
    (2, 3, 3, {"stride": 2, "dilation": 2}),
    (1, 2, 4, {"stride": 4, "dilation": 2, "padding": 3}),
    (2, 3, 3, {"dilation": (2, 1), "padding": "same"}),
    (2, 3, 3, {"padding": 2, "padding_mode": "circular"}),
    (2, 3, (5, 3), {"padding": (4, 2), "padding_mode": "circular", "stride": 2}),
    (2, 3, 3, {"padding": 1, "padding_mode": "reflect"}),
    (2, 3, 5, {"padding": 2, "padding_mode": "reflect"}),
    (2, 3, 5, {"padding": 2, "padding_mode": "replicate"}),
    (2, 3, 3, {"padding": 4, "padding_mode": "replicate", "stride": 2}),
    (2, 3, 3, {"padding": (2, 0), "padding_mode": "symmetric"}),
    (2, 3, 5, {"padding": "same", "padding_mode": "symmetric", "stride": 1}),
    (4, 6, 3, {"padding": 1, "groups": 2}),
    (4, 4, 3, {"padding": 1, "groups": 4}),
    (1, 1, 1, {}),
    (3, 5, 1, {"stride": 2}),
]
OTHERS: dict[str, list[Setting]] = {
    "SpectralConv1d": [
        (2, 3, 3, {}),  # deel-torchlip: never above 0.577
        (3, 2, 5, {"stride": 2, "padding": 2}),
        (2, 3, 3, {"stride": 3, "dilation": 3}),
        (2, 3, 4, {"padding": "same"}),
        (2, 3, (3,), {"padding": 2, "padding_mode": "circular"}),
        (2, 3, 5, {"padding": 2, "padding_mode": "reflect", "stride": 2}),
        (2, 3, 5, {"padding": (2,), "padding_mode": "replicate"}),
        (2, 3, 5, {"padding": 2, "padding_mode": "symmetric"}),
        (2, 4, 3, {"padding": 0, "padding_mode": "symmetric", "groups": 2}),
    ],
    "SpectralConv3d": [
        (1, 3, 2, {}),
        (2, 3, (1, 2, 3), {"padding": (0, 1, 1), "stride": (1, 2, 1)}),
        (1, 2, 2, {"stride": 2, "dilation": 2, "padding": 1}),
        (2, 2, 2, {"padding": 1, "padding_mode": "replicate", "groups": 2}),
        (1, 2, (3, 1, 2), {"padding": (1, 0, 2), "padding_mode": "symmetric"}),
    ],
    "SpectralConvTranspose1d": [
        (3, 2, 3, {}),
        (3, 2, 4, {"stride": 2, "padding": 1}),
        (2, 1, 3, {"stride": 2, "dilation": 2, "output_padding": 1}),
        (2, 2, 3, {"stride": 1, "dilation": 3, "padding": 1, "output_padding": 2}),
    ],
    "SpectralConvTranspose2d": [
        (3, 2, 2, {"stride": 2}),  # deel-torchlip, spectral only: 1.89 and 1.83
        (3, 2, 4, {"stride": 2}),
        (4, 1, 3, {"padding": 1}),
        (1, 4, (2, 3), {"stride": (1, 3), "padding": (1, 0), "output_padding": (0, 2)}),
        (2, 3, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
        (2, 3, 3, {"stride": 3, "dilation": 3}),
        (2, 1, 3, {"dilation": 2, "output_padding": 1}),
        (4, 6, 3, {"stride": 2, "groups": 2}),
        (4, 4, 2, {"groups": 4, "bias": False}),
        (5, 1, 1, {"stride": 2}),
    ],
    "SpectralConvTranspose3d": [
        (2, 1, 2, {"stride": 2}),
        (3, 2, (1, 3, 2), {"stride": (1, 2, 1), "padding": (0, 1, 0), "output_padding": (0, 1, 0)}),
    ],
}
CASES: list[tuple[str, Setting]] = [
    *(("SpectralConv2d", s) for s in SETTINGS),
    *((kind, s) for kind, settings in OTHERS.items() for s in settings),
]
SPACE = {"1d": (11,), "2d": (9, 8), "3d": (4, 5, 4)}


def named(case: Any) -> str:
    return case if isinstance(case, str) else f"{case[0]}-{case[1]}-{case[2]}-{case[3]}"


every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=named)
every_case = pytest.mark.parametrize("kind, setting", CASES, ids=named)


def made(setting: Setting, kind: str = "SpectralConv2d", **more: Any) -> lnn.SpectralConv2d:
    inputs, outputs, kernel, rest = setting
    layer: lnn.SpectralConv2d = getattr(lnn, kind)(inputs, outputs, kernel, **rest, **more)
    return layer


def shape_for(setting: Setting, kind: str) -> tuple[int, ...]:
    size = SPACE[kind[-2:]]
    if "Transpose" in kind:  # their outputs are larger
        size = tuple(n // 2 + 1 for n in size)
    return (setting[0], *size)


def low_pass(layer: nn.Module) -> None:
    """A kernel that adds up its window: as bad as can be for most settings."""
    with torch.no_grad():
        original(layer).copy_(1 + 1e-3 * torch.randn_like(original(layer)))


@every_case
@every_method
def test_norm_is_at_most_k(method: str, kind: str, setting: Setting) -> None:
    """At the start, for random kernels and for low-pass ones; in training, then in evaluation."""
    k = 0.7
    for seed, draw in enumerate((None, nn.init.normal_, low_pass)):
        torch.manual_seed(seed)
        layer = made(setting, kind, k_coef_lip=k, **METHODS[method])
        if draw is low_pass:
            low_pass(layer)
        elif draw is not None:
            draw(original(layer))
        for training in (True, True, False):
            layer.train(training)
            assert tools.operator_norm(layer, shape_for(setting, kind)) <= k * (1 + 1e-5)


@pytest.mark.parametrize("size", [(9, 9), (7, 12), (3, 5)], ids=str)
def test_the_bound_is_reached(size: tuple[int, int]) -> None:
    """It is no looser than it has to be: low-pass kernels come close for large enough inputs."""
    layer = lnn.SpectralConv2d(1, 1, 3, padding=1, padding_mode="replicate").eval()
    low_pass(layer)
    norm = tools.operator_norm(layer, (1, *size))
    assert 0.3 <= norm <= 1 + 1e-5
    full = lnn.SpectralConv2d(1, 1, 2, stride=2).eval()  # windows side by side: exactly 1
    low_pass(full)
    assert tools.operator_norm(full, (1, 8, 8)) == pytest.approx(1, abs=1e-5)


def test_each_group_is_normalised_on_its_own() -> None:
    """In deel-torchlip all groups share one norm."""
    for method, settings in METHODS.items():
        layer = lnn.SpectralConv2d(4, 6, 2, stride=2, groups=2, **settings).eval()
        with torch.no_grad():
            original(layer)[:3] *= 100
            original(layer)[3:] *= 0.01
        for half in (layer.weight[:3], layer.weight[3:]):
            assert tools.largest_singular_value(half.flatten(1)) == pytest.approx(1, abs=2e-3), (
                method
            )


@every_method
def test_is_a_torch_convolution_with_its_weight(method: str) -> None:
    for kind, setting in CASES:
        if setting[3].get("padding_mode") == "symmetric":
            continue
        layer = made(setting, kind, **METHODS[method]).eval()
        torch_kind = getattr(nn, kind.removeprefix("Spectral"))
        plain = torch_kind(setting[0], setting[1], setting[2], **setting[3])
        with torch.no_grad():
            plain.weight.copy_(layer.weight)
            if layer.bias is not None:
                layer.bias.copy_(torch.randn(setting[1]))
                plain.bias.copy_(layer.bias)
        x = torch.randn(2, *shape_for(setting, kind))
        assert isinstance(layer, torch_kind)
        assert torch.equal(layer(x), plain(x))
        assert layer(x[0]).shape == plain(x[0]).shape
        assert layer.weight.shape == plain.weight.shape
        exported = layer.vanilla_export()
        assert type(exported) is torch_kind and torch.equal(exported(x), plain(x))


def test_the_norm_of_a_transposed_convolution_is_reached() -> None:
    """Windows side by side: the polar factor keeps every length; overlapping ones are close."""
    side = lnn.SpectralConvTranspose2d(3, 2, 2, stride=2).eval()
    assert tools.operator_norm(side, (3, 4, 4)) == pytest.approx(1, abs=1e-5)
    over = lnn.SpectralConvTranspose1d(1, 1, 4, stride=2).eval()
    low_pass(over)
    assert tools.operator_norm(over, (1, 12)) >= 0.95


def test_output_size_of_a_transposed_convolution() -> None:
    layer = lnn.SpectralConvTranspose2d(3, 2, 3, stride=2, padding=1, k_coef_lip=0.5).eval()
    low_pass(layer)
    for size in (7, 8):
        grown = lambda x: layer(x, output_size=[size, size])  # noqa: B023, E731
        assert grown(torch.zeros(1, 3, 4, 4)).shape[-1] == size
        assert tools.operator_norm(grown, (3, 4, 4)) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("padding", [(2, 0), (0, 3), 2, "same", "valid", (3, 1)], ids=str)
def test_symmetric_padding(padding: Any) -> None:
    """Against numpy's; deel-torchlip's has the wrong width."""
    kernel = (4, 3)
    layer = lnn.SpectralConv2d(2, 3, kernel, padding=padding, padding_mode="symmetric").eval()
    x = torch.randn(2, 2, 6, 7)
    pads = {"same": [(1, 2), (1, 1)], "valid": [(0, 0), (0, 0)]}.get(
        padding, [(p, p) for p in ((padding,) * 2 if isinstance(padding, int) else padding)]
    )
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), *pads], mode="symmetric"))
    expected = nn.functional.conv2d(padded, layer.weight, layer.bias)
    found = layer(x)
    assert torch.allclose(found, expected, atol=1e-6)
    exported = layer.vanilla_export()
    assert torch.allclose(exported(x), expected, atol=1e-6)
    assert layer.padding_mode == "symmetric"  # the export left it alone


def test_factor_and_k() -> None:
    for kind, setting in CASES:
        layer = made(setting, kind, k_coef_lip=2.0).eval()
        rest = {n: v for n, v in setting[3].items() if n not in ("groups", "bias")}
        transposed = {"transposed": True} if "Transpose" in kind else {}
        factor = F.conv_factor(layer.kernel_size, **rest, **transposed)
        groups = setting[3].get("groups", 1)
        for half in layer.weight.chunk(groups):
            norm = tools.largest_singular_value(half.flatten(1))
            assert norm == pytest.approx(2 * factor, rel=1e-5)
        layer.k_coef_lip = 0.5
        assert tools.largest_singular_value(
            layer.weight.chunk(groups)[0].flatten(1)
        ) == pytest.approx(0.5 * factor, rel=1e-5)


@every_method
def test_groups_start_orthogonal(method: str) -> None:
    layer = lnn.SpectralConv2d(4, 6, 3, groups=2, **METHODS[method])
    for half in original(layer).detach().chunk(2):
        w = half.flatten(1)
        assert torch.allclose(w @ w.T, torch.eye(3), atol=1e-5)
    assert layer.bias is not None and not layer.bias.any()
    assert lnn.SpectralConv2d(4, 6, 3, bias=False).bias is None


@every_method
@pytest.mark.parametrize("training", [True, False])
def test_gradients_zero_and_recovery(method: str, training: bool) -> None:
    layer = lnn.SpectralConv2d(2, 4, 3, groups=2, **METHODS[method]).train(training)
    x = torch.randn(2, 2, 6, 6)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    with torch.no_grad():
        original(layer)[:2].zero_()  # one group only
    out = layer(x)
    assert not out[:, :2].any() and out[:, 2:].any()
    out.sum().backward()
    assert original(layer).grad.isfinite().all()  # type: ignore[union-attr]
    with torch.no_grad():
        original(layer)[:2].normal_()
    for _ in range(30):
        layer(x)
    norm = tools.largest_singular_value(layer.weight[:2].flatten(1))
    assert norm == pytest.approx(F.conv_factor(3), rel=2e-3)


@every_method
def test_nan_raises_in_evaluation(method: str) -> None:
    layer = lnn.SpectralConv2d(2, 4, 3, **METHODS[method]).eval()
    with torch.no_grad():
        original(layer)[0, 0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="weight must be finite"):
        layer(torch.randn(1, 2, 5, 5))


def test_channels_last_changes_no_value() -> None:
    for groups in (1, 2):
        layer = lnn.SpectralConv2d(4, 6, 3, padding=1, groups=groups)
        x = torch.randn(2, 4, 7, 7)
        expected = layer(x)
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = layer(x.to(memory_format=torch.channels_last))
        assert torch.allclose(found, expected, atol=1e-5)
        found.sum().backward()
        assert original(layer).grad is not None
        # Not a copy of the weight is drawn anew, but the weight.
        before = original(layer).detach().clone()
        layer.reset_parameters()
        assert not torch.equal(original(layer), before)
        w = original(layer).detach()[: 6 // groups].flatten(1)
        assert torch.allclose(w @ w.T, torch.eye(len(w)), atol=1e-5)


# ---- unconstrained, and by the Frobenius norm ----------------------------------------------------


@pytest.mark.parametrize("kind", ["PadConv1d", "PadConv2d", "PadConv3d"])
@pytest.mark.parametrize("mode", ["zeros", "circular", "symmetric"])
@pytest.mark.parametrize("padding", [0, 1, 2, "same"])
def test_padded_convolutions(kind: str, mode: str, padding: Any) -> None:
    """torch's, and with numpy's symmetric padding; bias, groups, dilation and copies as there."""
    layer = getattr(lnn, kind)(2, 4, 3, 1, padding, 2, 2, padding_mode=mode)
    assert not list(layer.buffers()) and set(layer.state_dict()) == {"weight", "bias"}
    x = torch.randn(2, 2, *(n + 1 for n in SPACE[kind[-2:]]))
    if mode == "symmetric":
        width = 2 if padding == "same" else padding
        pads = [(0, 0), (0, 0)] + [(width, width)] * (x.dim() - 2)
        given = torch.from_numpy(np.pad(x.numpy(), pads, mode="symmetric"))
        mode, padding = "zeros", 0
    else:
        given = x
    torch_kind = getattr(nn, kind.removeprefix("Pad"))
    plain = torch_kind(2, 4, 3, 1, padding, 2, 2, padding_mode=mode)
    plain.load_state_dict(layer.state_dict())
    found = layer(x)
    assert torch.allclose(found, plain(given), atol=1e-6)
    assert torch.allclose(layer(x[0]), found[0], atol=1e-6)
    assert torch.equal(layer.vanilla_export()(x), found)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), found)
    assert isinstance(layer, torch_kind) and not isinstance(layer, lnn.LipschitzModule)


def test_symmetric_padding_by_more_than_there_is() -> None:
    for layer in (
        lnn.PadConv1d(1, 1, 3, padding=5, padding_mode="symmetric"),
        F.SymmetricPad(5, True),
    ):
        with pytest.raises(
            ValueError, match=r"padding must not be larger.*\(1, 1, 4\), got \(5, 5\)"
        ):
            layer(torch.zeros(1, 1, 4))
        assert layer(torch.zeros(1, 1, 5)).shape[-1] in (13, 15)


@every_setting
def test_frobenius_norm_is_at_most_k(setting: Setting) -> None:
    k = 1.7
    layer = made(setting, "FrobeniusConv2d", k_coef_lip=k)
    for draw in (None, nn.init.normal_, nn.init.ones_):
        if draw:
            draw(original(layer))
        for training in (True, False):
            layer.train(training)
            assert float(layer.weight.detach().norm()) == pytest.approx(k * layer._factor, rel=1e-5)
            assert tools.operator_norm(layer, (setting[0], 9, 8)) <= k * (1 + 1e-5)
    exported = layer.vanilla_export()
    x = torch.randn(2, setting[0], 9, 8)
    assert torch.allclose(exported(x), layer(x), atol=1e-6)
    layer.k_coef_lip = 0.5
    assert float(layer.weight.detach().norm()) == pytest.approx(0.5 * layer._factor, rel=1e-5)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x)) and twin.k_coef_lip == 0.5


def test_frobenius_is_spectral_for_one_output_channel() -> None:
    layer = lnn.FrobeniusConv2d(3, 1, 3, padding=1).eval()
    spectral = lnn.SpectralConv2d(3, 1, 3, padding=1).eval()
    with torch.no_grad():
        original(spectral).copy_(original(layer).normal_())
    assert torch.allclose(layer.weight, spectral.weight, atol=1e-6)


SYMMETRIC: Setting = (2, 3, 3, {"padding": (2, 0), "padding_mode": "symmetric"})


@pytest.mark.parametrize("kind", ["SpectralConv2d", "FrobeniusConv2d", *OTHERS])
def test_copies_and_compilation(kind: str) -> None:
    """One graph in training and evaluation, the outputs and gradients of eager code."""
    setting = OTHERS[kind][1] if kind in OTHERS else SYMMETRIC
    layer = made(setting, kind, k_coef_lip=0.5)
    x = torch.randn(2, *shape_for(setting, kind))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x)) and twin.k_coef_lip == 0.5
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        layer.train(training), twin.train(training)
        assert torch.allclose(compiled(x), layer(x), atol=1e-5)
        for model in (compiled, layer):
            model.zero_grad()
            model(x).square().sum().backward()
        assert torch.allclose(original(twin).grad, original(layer).grad, atol=1e-4)  # type: ignore[arg-type]


# ---- arguments -----------------------------------------------------------------------------------


CONSTRAINED = ["SpectralConv2d", "FrobeniusConv2d", *OTHERS]
UNCONSTRAINED = ["PadConv1d", "PadConv2d", "PadConv3d"]


def errors() -> list[Any]:
    positive = "a positive finite number"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = []
    for name in ("in_channels", "out_channels", "groups"):
        for value in (0, -2):
            cases.append(({name: value}, ValueError, f"{name} must be.*>= 1, got {value}"))
        for wrong in (2.0, True, None):
            cases.append(({name: wrong}, TypeError, f"{name} must be.*>= 1, got {wrong!r}"))
    for name, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        allowed = f"{name} must be an integer >= {least} or "
        for bad in (least - 1, (1, least - 1), (1, 1, 1, 1), ()):
            cases.append(({name: bad}, ValueError, allowed))
        for bad in (1.5, True, None, (1, 1.0)):
            cases.append(({name: bad}, TypeError, allowed))
    for value in (0, -1, math.nan, math.inf):
        cases.append(
            ({"k_coef_lip": value}, ValueError, f"k_coef_lip must be {positive}, got {value}")
        )
    for name, value in itertools.product(("eps_bjorck", "eps_spectral"), (0, -1, math.nan, 1e9)):
        allowed = rf"{name} must be a finite number in \(0, 1\], got "
        cases.append(({name: value}, ValueError, allowed))
    cases += [
        ({"groups": 3}, ValueError, "in_channels must be a multiple of groups=3, got 4"),
        ({"groups": 4}, ValueError, "out_channels must be a multiple of groups=4, got 6"),
        ({"padding": "full"}, ValueError, "padding must be one of 'valid', 'same', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, r"padding='same' must have a stride of 1"),
        (
            {"padding_mode": "mirror"},
            ValueError,
            "padding_mode must be one of 'zeros', .*'symmetric', got 'mirror'",
        ),
        ({"bias": None}, TypeError, "bias must be True or False, got None"),
        ({"method": "svd"}, ValueError, "method must be one of 'polar', 'bjorck', got 'svd'"),
    ]
    return [pytest.param(*c, id=str(c[0])) for c in cases]


@pytest.mark.parametrize("arguments, error, message", errors())
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """The same for every class that has these arguments."""
    for kind in CONSTRAINED + UNCONSTRAINED:
        layer = getattr(lnn, kind)
        if not set(arguments) <= set(inspect.signature(layer).parameters):
            assert kind in UNCONSTRAINED or kind == "FrobeniusConv2d"
            continue
        expected, text = error, message
        if "Transpose" in kind:
            if isinstance(arguments.get("padding"), str):
                expected, text = TypeError, "padding must be an integer >= 0"
            elif "padding_mode" in arguments:
                text = "padding_mode must be one of 'zeros', got 'mirror'"
        with pytest.raises(expected, match=text) as caught:
            layer(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments})
        assert caught.type is expected


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"output_padding": 1}, ValueError),
        ({"output_padding": 3, "stride": 2, "dilation": 3}, ValueError),
        ({"output_padding": -1}, ValueError),
        ({"output_padding": None}, TypeError),
        ({"output_padding": (0, 0, 0, 0)}, ValueError),
        ({"padding_mode": "circular", "padding": 1}, ValueError),
        ({"padding": "same"}, TypeError),
    ],
    ids=str,
)
def test_errors_of_transposed_convolutions(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    name = next(iter(arguments))
    for kind in (k for k in OTHERS if "Transpose" in k):
        with pytest.raises(error, match=f"^{name} must be"):
            getattr(lnn, kind)(4, 6, 3, **arguments)


def test_signature_is_deel_torchlips() -> None:
    layer = lnn.SpectralConv2d(4, 6, 3, 2, 1, 1, 2, True, "zeros", 2.0, 1e-3, 1e-3)
    assert layer.k_coef_lip == 2.0 and layer.groups == 2 and layer.stride == (2, 2)
    assert layer(torch.randn(1, 4, 8, 8)).shape == (1, 6, 4, 4)
