"""Orthogonal convolutions: all singular values of the dense map, and what every layer does."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn
from lipfuse import ops

Setting = tuple[int, int, Any, dict[str, Any]]

# (in_channels, out_channels, kernel_size, further settings); square, wide and tall kernels
SETTINGS: list[Setting] = [
    (4, 4, 3, {}),
    (5, 3, 2, {}),
    (2, 5, 3, {}),
    (1, 4, 3, {}),
    (3, 4, (1, 4), {}),
    (4, 4, (5, 2), {"dilation": (1, 2)}),
    (4, 6, 1, {}),
    (4, 4, 3, {"stride": 2}),
    (2, 3, 3, {"stride": 3}),
    (2, 18, 3, {"stride": 3}),
    (2, 13, 4, {"stride": 2}),  # two of three inner channels remain
    (2, 9, 3, {"stride": (1, 2)}),
    (3, 2, 5, {"stride": (3, 2)}),
    (4, 3, 1, {"stride": 2}),  # not every pixel is read
    (3, 12, (2, 3), {"stride": (3, 2)}),
    (4, 4, 3, {"stride": 2, "dilation": 3}),
    (2, 4, 2, {"stride": 3, "dilation": 2}),
    (4, 3, 3, {"stride": 2, "dilation": 2}),
    (4, 8, 3, {"groups": 2}),
    (6, 6, 3, {"groups": 3, "stride": 2}),
    (4, 16, 2, {"groups": 4, "stride": 2}),
]
every_setting = pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda s: f"{s[0]}-{s[1]}-{s[2]}-{s[3]}"
)
some_settings = pytest.mark.parametrize(
    "setting", [SETTINGS[i] for i in (0, 2, 10, 12, 18)], ids=lambda s: f"{s[0]}-{s[1]}-{s[2]}"
)


def made(setting: Setting, **more: Any) -> lnn.OrthoConv2d:
    inputs, outputs, kernel, rest = setting
    return lnn.OrthoConv2d(inputs, outputs, kernel, **{**rest, **more})


def adjoint(layer: lnn.OrthoConv2d, **more: Any) -> lnn.OrthoConvTranspose2d:
    """The transposed layer of the same settings, with the same factors and no bias."""
    new = lnn.OrthoConvTranspose2d(
        layer.out_channels,
        layer.in_channels,
        layer.kernel_size,
        layer.stride,
        **{"padding_mode": layer.padding_mode, "groups": layer.groups, "bias": False, **more},
        dilation=layer.dilation,
        k_coef_lip=layer.k_coef_lip,
        dtype=factors(layer)[0].dtype,
    ).train(layer.training)
    with torch.no_grad():
        for mine, its in zip(factors(new), factors(layer), strict=True):
            mine.copy_(its)
    return new


def factors(layer: Any) -> list[nn.Parameter]:
    return list(layer.parametrizations.weight.parameters(recurse=False))


def size_for(setting: Setting) -> tuple[int, int, int]:
    return setting[0], 6, 12


@torch.no_grad()
def normal(w: Tensor) -> None:
    nn.init.normal_(w, std=7.0)


@torch.no_grad()
def deficient(w: Tensor) -> None:
    """A tiny matrix of rank 1."""
    w.copy_(1e-3 * torch.randn(len(w), 1) * torch.randn(w.shape[1]))


HOSTILE: list[Callable[[Tensor], Any]] = [normal, deficient]


# ---- the map -------------------------------------------------------------------------------------


@every_setting
def test_every_singular_value_is_k(setting: Setting) -> None:
    """Orthonormal rows or columns, whichever there are fewer of; at the start and far from it."""
    k = 0.7
    for draw in (None, normal):
        layer = made(setting, k_coef_lip=k)
        for w in factors(layer) if draw else []:
            draw(w)  # type: ignore[misc]
        for training, error in ((True, 1e-4), (False, 1e-6)):
            layer.train(training)
            values = torch.linalg.svdvals(tools.dense(layer, size_for(setting)))
            assert len(values) and float(values.min()) >= k * (1 - error)
            assert float(values.max()) <= k * (1 + min(error, 1e-5))


@every_setting
def test_transposed_is_the_exact_adjoint(setting: Setting) -> None:
    layer = made(setting, k_coef_lip=1.3, bias=False)
    size = size_for(setting)
    matrix = tools.dense(layer, size)
    twin = adjoint(layer)
    out = tuple(layer(torch.zeros(1, *size)).shape[1:])
    assert twin(torch.zeros(2, *out)).shape == (2, *size)
    assert torch.equal(tools.dense(twin, out), matrix.mT)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@every_setting
def test_parts_of_the_map_are_no_larger(setting: Setting, padding_mode: str) -> None:
    """Zero padding and less padding, sizes that are no multiples, and parameters at their worst."""
    reach = max(d * (k - 1) for k, d in zip(*(_pair(setting, n) for n in ("kernel", "dilation"))))
    paddings: list[Any] = ["valid", "same"]
    if padding_mode == "zeros":
        paddings += [1, reach + 1]
    for draw in HOSTILE:
        for padding in paddings:
            layer = made(setting, padding=padding, padding_mode=padding_mode)
            for w in factors(layer):
                draw(w)
            size = (setting[0], max(7, reach + 2), max(5, reach + 1))
            if padding_mode == "circular" and padding == "same":
                size = size_for(setting)
            assert tools.operator_norm(layer, size) <= 1 + 1e-5


def _pair(setting: Setting, name: str) -> tuple[int, int]:
    value = setting[2] if name == "kernel" else setting[3].get(name, 1)
    return value if isinstance(value, tuple) else (value, value)


@pytest.mark.parametrize("stride, padding, more", [(1, 1, 0), (2, 1, 1), (2, 0, 0), (3, 2, (2, 1))])
def test_transposed_paddings(stride: int, padding: int, more: Any) -> None:
    """The adjoint of zero padding, for every size that leads to the same number of outputs."""
    layer = lnn.OrthoConv2d(
        3, 4, 4, stride, padding if stride > 1 else "valid", bias=False, padding_mode="zeros"
    )
    padding = 0 if stride == 1 else padding
    twin = adjoint(layer, padding=padding, output_padding=0 if stride == 1 else more)
    plain = twin.vanilla_export()
    assert type(plain) is nn.ConvTranspose2d
    x = torch.randn(2, 4, 3, 2)
    out = twin(x)
    assert torch.allclose(plain(x), out, atol=1e-6)
    size = tuple(out.shape[1:])
    assert torch.allclose(tools.dense(twin, (4, 3, 2)), tools.dense(layer, size).mT, atol=1e-6)
    assert twin(x, output_size=list(size[1:])).shape == out.shape
    circular = adjoint(layer, padding="same", padding_mode="circular")
    assert circular(x).shape[-2:] == (3 * stride, 2 * stride)
    assert circular(x, output_size=[3 * stride, 2 * stride]).shape[-2:] == (3 * stride, 2 * stride)


def test_deep_networks_keep_the_norm_of_gradients() -> None:
    layers = [
        (lnn.OrthoConv2d(8, 8, 3, 2 if i == 5 else 1, groups=1 + i % 2), lnn.GroupSort2())
        for i in range(10)
    ]
    model = lnn.Sequential(*(m for pair in layers for m in pair))
    x = torch.randn(4, 8, 8, 8, requires_grad=True)
    for _ in range(2):
        out = model(x)
        grad = torch.randn_like(out)
        (back,) = torch.autograd.grad(out, x, grad)
        ratio = back.flatten(1).norm(dim=1) / grad.flatten(1).norm(dim=1)
        assert float((ratio - 1).abs().max()) <= 1e-3
        model.eval()


def test_start_is_orthogonal_and_seeded() -> None:
    layers = []
    for _ in range(2):
        torch.manual_seed(3)
        layers.append(lnn.OrthoConv2d(4, 6, 3, groups=2))
    for a, b in zip(*(layer.state_dict().values() for layer in layers)):
        assert torch.equal(a, b)
    layer = layers[0]
    assert layer.bias is not None and not layer.bias.any()
    core, blocks = factors(layer)
    for w, count in ((core, 2), (blocks, 8)):
        matrices = w.detach().reshape(count, -1, w.shape[-1])
        small = min(matrices.shape[1:])
        gram = matrices @ matrices.mT if matrices.shape[1] == small else matrices.mT @ matrices
        assert torch.allclose(gram, torch.eye(small).expand_as(gram), atol=1e-6)
    before = blocks.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(blocks, before)


# ---- gradients -----------------------------------------------------------------------------------


@some_settings
def test_gradient_against_differences(setting: Setting) -> None:
    layer = made(setting, dtype=torch.float64).eval()
    with torch.no_grad():
        for w in factors(layer):
            w.add_(0.2 * torch.randn_like(w))
    grad = torch.randn_like(layer.weight)
    layer.weight.backward(grad)
    for w in factors(layer):
        direction = tools.unit((w.numel(),)).reshape(w.shape)
        values = []
        with torch.no_grad():
            for h in (1e-5, -1e-5):
                w.add_(h * direction)
                values.append(float((layer.weight * grad).sum()))
                w.sub_(h * direction)
        slope = (values[0] - values[1]) / 2e-5
        assert w.grad is not None
        assert float((w.grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@some_settings
def test_gradients_in_training_are_those_of_evaluation(setting: Setting) -> None:
    layer = made(setting)
    with torch.no_grad():
        for w in factors(layer):
            w.add_(0.1 * torch.randn_like(w))
    exact = copy.deepcopy(layer).double().eval()
    grad = torch.randn_like(layer.weight)
    layer.weight.backward(grad)
    exact.weight.backward(grad.double())
    for mine, its in zip(factors(layer), factors(exact), strict=True):
        assert mine.grad is not None and its.grad is not None
        assert tools.relative_error(mine.grad, its.grad) <= 2e-3


def test_penalties_on_inputs_work_and_on_parameters_are_refused() -> None:
    layer = lnn.OrthoConv2d(4, 4, 3)
    x = torch.randn(2, 4, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(w.grad is not None and w.grad.any() for w in factors(layer))
    (slope,) = torch.autograd.grad(layer(x).tanh().sum(), factors(layer)[1], create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"once_differentiable|second"):
        slope.square().sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_zero_and_recovery(training: bool) -> None:
    layer = lnn.OrthoConv2d(4, 4, 3, groups=2).train(training)
    x = torch.randn(2, 4, 4, 4)
    core, blocks = factors(layer)
    with torch.no_grad():
        core[:2].zero_()  # one group only
        blocks[:4].zero_()
    out = layer(x)
    assert not out[:, :2].any() and out[:, 2:].any()
    out.sum().backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in factors(layer))
    with torch.no_grad():
        core[:2].normal_()
        blocks[:4].normal_()
    values = torch.linalg.svdvals(tools.dense(layer, (4, 4, 4)))
    assert float((values - 1).abs().max()) <= 1e-4


@pytest.mark.parametrize("which", [0, 1])
def test_nan_raises_in_evaluation(which: int) -> None:
    layer = lnn.OrthoConv2d(4, 4, 3)
    x = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        factors(layer)[which][1, 1] = math.nan
    assert layer(x).isnan().any()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="weight must be finite"):
            layer.eval()(x)


# ---- what every layer does -----------------------------------------------------------------------


def test_constant_can_be_set() -> None:
    layer = lnn.OrthoConv2d(4, 4, 2, k_coef_lip=2.0)
    for k in (2.0, 0.25):
        layer.k_coef_lip = k
        for training in (True, False):
            norm = tools.operator_norm(layer.train(training), (4, 4, 4))
            assert norm == pytest.approx(k, rel=1e-5)
    model = lnn.Sequential(lnn.OrthoConv2d(4, 4, 3), lnn.OrthoConvTranspose2d(4, 4, 3))
    model.k_coef_lip = 9.0
    assert tools.operator_norm(model, (4, 4, 4)) == pytest.approx(9, rel=1e-4)
    assert "k_coef_lip=3" in repr(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@some_settings
def test_other_precisions(setting: Setting, dtype: torch.dtype) -> None:
    layer = made(setting, dtype=dtype, bias=False)
    for training in (True, False):
        weight = layer.train(training).weight
        assert weight.dtype is dtype
        weight.sum().backward()
        exact = copy.deepcopy(layer).vanilla_export().double()
        assert tools.operator_norm(exact, size_for(setting)) <= 1 + 1e-5
        for w in factors(layer):
            assert w.grad is not None and w.grad.dtype is dtype and w.grad.isfinite().all()


def test_autocast() -> None:
    layer = lnn.OrthoConv2d(4, 4, 3)
    twin = copy.deepcopy(layer)
    x, grad = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        weight = layer.weight
        out.backward(grad.bfloat16())  # under it, as careless code has it
        assert lnn.OrthoConvTranspose2d(4, 4, 3)(x).dtype is torch.bfloat16
    assert out.dtype is torch.bfloat16 and weight.dtype is torch.float32
    expected = twin(x)
    expected.backward(grad)
    assert torch.allclose(out.float(), expected, atol=0.05)
    # Room for what rounding the weight adds, and no rounding before.
    assert torch.allclose(weight * (1 + 2**-7), twin.weight, atol=1e-6)
    for mine, its in zip(factors(layer), factors(twin), strict=True):
        assert mine.grad is not None and its.grad is not None
        assert mine.grad.dtype is torch.float32
        assert tools.relative_error(mine.grad, its.grad) <= 0.05


LAYERS: list[Callable[[], Any]] = [
    lambda: lnn.OrthoConv2d(4, 6, 3, 2, k_coef_lip=2.0),
    lambda: lnn.OrthoConv2d(4, 4, 2, 2, 0, bias=False, padding_mode="zeros"),
    lambda: lnn.OrthoConvTranspose2d(4, 6, 3, 2, groups=2),
    lambda: lnn.OrthoConvTranspose2d(4, 4, 2, bias=False, padding_mode="zeros"),
]
every_layer = pytest.mark.parametrize("make", LAYERS, ids=[str(i) for i in range(len(LAYERS))])


def used(layer: Any) -> Any:
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    layer(torch.randn(1, 4, 4, 4))
    return layer


@every_layer
def test_copies_and_checkpoints(make: Callable[[], Any]) -> None:
    layer, x = used(make()), torch.randn(2, 4, 4, 6)
    fresh = make()
    fresh.load_state_dict(layer.state_dict())
    for training in (True, False):
        expected = layer.train(training)(x)
        for twin in (*(copied(layer) for copied in tools.COPIES.values()), fresh):
            twin.train(training)
            assert torch.equal(twin(x), expected)
            assert twin.k_coef_lip == layer.k_coef_lip
            assert not set(twin.parameters()) & set(layer.parameters())


@every_layer
def test_export(make: Callable[[], Any]) -> None:
    layer, x = used(make()).eval(), torch.randn(2, 4, 4, 6)
    plain = layer.vanilla_export()
    assert not plain.training
    assert torch.allclose(plain(x), layer(x), atol=1e-6)
    assert torch.allclose(plain(x[0]), layer(x[0]), atol=1e-6)
    text = pickle.dumps(plain)
    assert b"lipfuse" not in text
    assert torch.allclose(pickle.loads(text)(x), layer(x), atol=1e-6)
    kinds = {n: p.requires_grad for n, p in plain.named_parameters()}
    assert kinds == ({"weight": True} if layer.bias is None else {"weight": True, "bias": True})
    model = lipfuse.vanilla_model(nn.Sequential(copy.deepcopy(layer)))
    assert torch.allclose(model(x), layer(x), atol=1e-6)


@every_layer
def test_compiles_in_one_graph(make: Callable[[], Any]) -> None:
    torch._dynamo.reset()
    layer = used(make())
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        layer.train(training), twin.train(training)
        x = torch.randn(2, 4, 4, 6)
        assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    layer.train(), twin.train()
    with torch.no_grad():
        for w, v in zip(layer.parameters(), twin.parameters(), strict=True):
            w.add_(0.1 * torch.randn_like(w))
            v.copy_(w)
    for model, forward in ((layer, layer), (twin, compiled)):
        model.zero_grad()
        forward(x).square().mean().backward()
    for w, v in zip(layer.parameters(), twin.parameters(), strict=True):
        assert w.grad is not None and v.grad is not None
        assert torch.allclose(v.grad, w.grad, atol=1e-5)


def test_vmap_over_stacked_factors() -> None:
    layers = [lnn.OrthoConv2d(4, 4, 3) for _ in range(3)]
    names = [n for n, _ in layers[0].named_parameters()]
    stacked = {
        n: torch.stack([dict(m.named_parameters())[n].detach() for m in layers]) for n in names
    }
    x = torch.randn(2, 4, 4, 4)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layers[0], parameters, (x,)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, layer in enumerate(layers):
        layer(x).square().sum().backward()
        for name, p in layer.named_parameters():
            assert p.grad is not None
            assert torch.allclose(grads[name][i], p.grad, atol=2e-4)


def test_one_native_call_a_layer_and_a_fused_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    foreach = ops.foreach_orthogonalize

    def counted(weights: Any, *rest: Any) -> Any:
        calls.append(len(weights))
        return foreach(weights, *rest)

    monkeypatch.setattr(ops, "foreach_orthogonalize", counted)
    monkeypatch.setattr(ops, "orthogonalize", None)
    layer = lnn.OrthoConv2d(4, 8, 3, groups=2)
    x = torch.randn(2, 4, 4, 4)
    layer(x)
    assert calls == [2]
    model = nn.Sequential(layer, lnn.OrthoConvTranspose2d(8, 2, 2, 2), lnn.SpectralConv2d(2, 2, 1))
    twin = copy.deepcopy(model)
    monkeypatch.undo()
    lipfuse.fuse(twin)
    expected = model(x)
    expected.square().sum().backward()
    calls.clear()
    monkeypatch.setattr(ops, "foreach_orthogonalize", counted)
    out = twin(x)
    assert calls == [4]
    out.square().sum().backward()
    assert torch.allclose(out, expected, atol=1e-5)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-4)


def test_retraction() -> None:
    layer = lnn.OrthoConv2d(4, 3, 3, 2)
    with torch.no_grad():
        for w in factors(layer):
            w.add_(0.3 * torch.randn_like(w))
    before = layer.weight.detach().clone()
    lipfuse.optim.retract_(layer)
    assert torch.allclose(layer.weight, before, atol=2e-4)
    core, blocks = (w.detach() for w in factors(layer))
    assert torch.allclose(core @ core.mT, torch.eye(3), atol=1e-5)
    v = blocks.reshape(2, 4, 2)
    assert torch.allclose(v.mT @ v, torch.eye(2).expand(2, 2, 2), atol=1e-5)


def test_a_kernel_without_blocks_can_be_assigned() -> None:
    layer = lnn.OrthoConv2d(2, 4, 2, 2)
    kernel = lnn.OrthoConv2d(2, 4, 2, 2).eval().weight.detach()
    layer.weight = kernel  # type: ignore[assignment]
    assert torch.allclose(layer.weight, kernel, atol=1e-5)
    with pytest.raises(ValueError, match=r"weight must not be assigned.*got \(2, 2, 3, 3\)"):
        lnn.OrthoConv2d(2, 2, 3).weight = torch.randn(2, 2, 3, 3)  # type: ignore[assignment]


# ---- what is refused -----------------------------------------------------------------------------


def errors() -> list[Any]:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = []
    for name in ("in_channels", "out_channels", "groups"):
        cases.append(({name: 0}, ValueError, f"{name} must be.*>= 1, got 0"))
        cases.append(({name: 2.0}, TypeError, f"{name} must be.*>= 1, got 2.0"))
    for name, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        allowed = f"{name} must be an integer >= {least} or a pair of them, got "
        cases.append(({name: (1, least - 1)}, ValueError, allowed))
        cases.append(({name: (1, 1.0)}, TypeError, allowed))
    cases += [
        ({"groups": 3}, ValueError, "in_channels must be a multiple of groups=3, got 4"),
        ({"groups": 4}, ValueError, "out_channels must be a multiple of groups=4, got 6"),
        ({"bias": 1}, TypeError, "bias must be True or False, got 1"),
        ({"k_coef_lip": 0}, ValueError, "k_coef_lip must be a positive finite number, got 0"),
        ({"k_coef_lip": math.nan}, ValueError, "k_coef_lip must be a positive finite number"),
        (
            {"padding_mode": "reflect"},
            ValueError,
            "padding_mode must be one of 'circular', 'zeros', got 'reflect'",
        ),
    ]
    return [pytest.param(*c, id=str(c[0])) for c in cases]


@pytest.mark.parametrize("kind", [lnn.OrthoConv2d, lnn.OrthoConvTranspose2d])
@pytest.mark.parametrize("arguments, error, message", errors())
def test_errors_of_both(
    kind: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        kind(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments})
    assert caught.type is error


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 4, 3, 1, "full"), "padding must be one of 'valid', 'same', got 'full'"),
        ((4, 4, 3, 1, (1, 2)), r"padding must be at most \(1, 1\) with .*got \(1, 2\)"),
        ((4, 4, 2, (1, 2)), r"padding='same' must have an even .* got \(1, 1\) with"),
        # No orthogonal convolution: more outputs than pixels read.
        ((4, 5, 1, 2), r"out_channels must be at most 4 for in_channels=4, kernel_size=\(1, 1\)"),
        ((4, 13, (2, 3), (2, 3), 0, 2), r"out_channels must be at most 12 for.*got 13"),
        # Nothing but shifts.
        ((2, 2, 3, 1, 1, 1, 2), r"kernel_size must be \(1, 1\) for in_channels=2.*got \(3, 3\)"),
        ((1, 4, 3, 2), r"kernel_size must be \(2, 2\) for in_channels=1.*got \(3, 3\)"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lnn.OrthoConv2d(*arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"padding": "valid"}, "padding must be one of 'same', got 'valid'"),
        ({"output_padding": 1}, "output_padding must be 0 with padding='same'"),
        ({"output_padding": (0, 2), "padding": 1}, r"output_padding must be less than stride"),
        ({"padding": 2}, r"2 padding - output_padding must be \(1, 1\), got \(4, 4\)"),
        ({"padding": (1, 0)}, r"2 padding - output_padding must be \(1, 1\), got \(2, 0\)"),
    ],
)
def test_errors_of_the_transposed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lnn.OrthoConvTranspose2d(4, 4, 3, 2, **arguments)


def test_sizes_that_cannot_be_wrapped_around() -> None:
    layer = lnn.OrthoConv2d(4, 4, 3, (1, 2))
    with pytest.raises(ValueError, match=r"multiples of stride=\(1, 2\).*got \(5, 5\)"):
        layer(torch.randn(1, 4, 5, 5))
    assert layer(torch.randn(1, 4, 5, 6)).shape == (1, 4, 5, 3)
    assert lnn.OrthoConv2d(4, 4, 2, 2, 0)(torch.randn(1, 4, 5, 5)).shape == (1, 4, 2, 2)
    twin = lnn.OrthoConvTranspose2d(4, 4, 3, 2)
    for size in ([5, 4], [3, 4]):
        with pytest.raises(ValueError, match=r"output_size|padding and output_padding"):
            twin(torch.randn(1, 4, 2, 2), output_size=size)
    with pytest.raises(ValueError, match="output_size must have 2 elements"):
        twin(torch.randn(1, 4, 2, 2), output_size=[4])
    with pytest.raises(ValueError, match=r"input must be large enough for outputs of 4 pixels"):
        lnn.OrthoConvTranspose2d(4, 4, 9)(torch.randn(1, 4, 3, 3))
