"""Registrars for torch.nn.utils.parametrize: on torch's modules, alone, chained and removed."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

import lipfuse.functional as F
import lipfuse.nn as lnn
import lipfuse.parametrizations as P

MODULES: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(6, 4),
    "wide Linear": lambda: nn.Linear(4, 9, bias=False),
    "Conv1d": lambda: nn.Conv1d(3, 5, 3),
    "Conv2d": lambda: nn.Conv2d(2, 4, 3, padding=1),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
}
INPUTS: dict[str, tuple[int, ...]] = {
    "Linear": (2, 6),
    "wide Linear": (2, 4),
    "Conv1d": (2, 3, 8),
    "Conv2d": (2, 2, 6, 6),
    "ConvTranspose2d": (2, 4, 3, 3),
}
every_module = pytest.mark.parametrize("name", MODULES)

REGISTRARS: dict[
    str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], type[nn.Module]]
] = {
    "spectral": (P.spectral_norm, P.remove_spectral_norm, P.SpectralNorm),
    "bjorck": (P.bjorck_norm, P.remove_bjorck_norm, P.BjorckNorm),
    "orthogonal": (P.orthogonal, P.remove_orthogonal, P.Orthogonal),
    "frobenius": (P.frobenius_norm, P.remove_frobenius_norm, P.FrobeniusNorm),
    "lconv": (P.lconv_norm, P.remove_lconv_norm, P.LConvNorm),
}


# ---- as torch's spectral_norm --------------------------------------------------------------------


def pair(name: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, on the same weight and with the same u and v."""
    ours = MODULES[name]()
    theirs = copy.deepcopy(ours)
    P.spectral_norm(ours, **settings)
    torch_spectral_norm(theirs, **settings)
    theirs.load_state_dict(ours.state_dict())  # the keys are torch's, too
    return ours, theirs


@every_module
@pytest.mark.parametrize(
    "settings", [{}, {"n_power_iterations": 3}, {"dim": 1}, {"dim": -1}], ids=str
)
def test_spectral_norm_is_torchs(name: str, settings: dict[str, Any]) -> None:
    """Values, gradients and the way u and v advance, through training steps and in evaluation."""
    ours, theirs = pair(name, **settings)
    x = torch.randn(INPUTS[name])
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, theirs)]
    for step in range(6):
        if step == 4:
            ours.eval(), theirs.eval()
        outputs = []
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            out = module(x)
            optimizer.zero_grad()
            out.square().sum().backward()
            optimizer.step()
            outputs.append(out)
        assert torch.allclose(*outputs, rtol=1e-4, atol=1e-5)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("register", [P.bjorck_norm, P.orthogonal, P.frobenius_norm])
def test_a_vector_has_no_singular_values(register: Any) -> None:
    layer = nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got 'bias' of shape \(5,\)"):
        register(layer, "bias")
    assert not parametrize.is_parametrized(layer)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["u", "v"])
def test_vectors_on_another_device_are_an_error(name: str, training: bool) -> None:
    """Those of the meta device would make the weight one of it, with nothing in its memory."""
    layer: Any = P.spectral_norm(nn.Linear(3, 5)).train(training)
    step = layer.parametrizations.weight[0]
    setattr(step, f"_{name}", getattr(step, f"_{name}").to("meta"))
    with pytest.raises(ValueError, match=f"{name} must be on cpu like the weight, got meta"):
        layer(torch.ones(2, 3))


def test_spectral_norm_of_a_vector_is_torchs() -> None:
    ours, theirs = nn.Linear(3, 5), nn.Linear(3, 5)
    theirs.load_state_dict(ours.state_dict())
    P.spectral_norm(ours, "bias")
    torch_spectral_norm(theirs, "bias")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for module in (ours, theirs):
        module.eval()
        with torch.no_grad():
            module.parametrizations.bias.original.copy_(torch.arange(5.0))
    assert torch.allclose(ours.bias, theirs.bias)


def test_spectral_norm_in_evaluation_after_the_sign_flipped() -> None:
    """sigma = uᵀWv is negative for stale u and v; torch divides by it all the same."""
    ours, theirs = pair("Linear")
    for module in (ours, theirs):
        module(torch.randn(2, 6))
        module.eval()
        with torch.no_grad():
            module.parametrizations.weight.original.neg_()  # type: ignore[union-attr]
    theirs.load_state_dict(ours.state_dict())
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-5)


def test_spectral_norm_starts_converged_and_does_not_draw_u_and_v_in_evaluation() -> None:
    layer = P.spectral_norm(nn.Linear(30, 20))
    assert tools.largest_singular_value(layer.weight) == pytest.approx(1, rel=0.02)
    layer.eval()
    before = [b.clone() for b in layer.buffers()]
    layer(torch.randn(2, 30))
    assert tools.equal_bits(before, list(layer.buffers()))


# ---- values --------------------------------------------------------------------------------------


@every_module
def test_values(name: str) -> None:
    plain = MODULES[name]()
    w = plain.weight.detach()
    x = torch.randn(INPUTS[name])

    bjorck = P.bjorck_norm(copy.deepcopy(plain), eps=1e-4)
    assert torch.equal(bjorck.weight, F.bjorck(w.flatten(1), eps=1e-4).reshape(w.shape))
    for backward in ("exact", "tangent"):
        orthogonal = P.orthogonal(copy.deepcopy(plain), tol=1e-5, backward=backward)
        expected = F.orthogonalize(w.flatten(1), tol=1e-5).reshape(w.shape)
        assert torch.equal(orthogonal.weight, expected)
    whole = P.frobenius_norm(copy.deepcopy(plain), disjoint_neurons=False)
    assert torch.allclose(whole.weight, w / w.norm(), rtol=1e-5)
    rows = P.frobenius_norm(copy.deepcopy(plain))
    assert torch.allclose(rows.weight.flatten(1).norm(dim=1), torch.ones(len(w)), rtol=1e-5)
    for module in (bjorck, orthogonal, whole, rows):
        module(x).sum().backward()
        gradient = module.parametrizations.weight.original.grad
        assert gradient is not None and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvTranspose2d"])
def test_lconv_norm_takes_the_settings_of_the_module(name: str) -> None:
    plain = MODULES[name]()
    module = P.lconv_norm(copy.deepcopy(plain))
    settings: Any = plain
    factor = F.conv_factor(
        settings.kernel_size,
        settings.stride,
        0 if "Transpose" in name else settings.padding,
        settings.dilation,
        settings.padding_mode,
    )
    assert torch.allclose(module.weight, plain.weight * factor)


CONVOLUTIONS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(2, 3, 3, stride=3, dilation=3, padding=2),
    lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"),
    lambda: nn.Conv2d(2, 3, 5, padding=2, padding_mode="reflect"),
    lambda: nn.Conv2d(2, 3, (2, 4), padding="same", padding_mode="replicate"),
    lambda: nn.ConvTranspose2d(3, 2, 4, stride=2),
    lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1, dilation=2),
    lambda: nn.ConvTranspose2d(2, 5, 2, stride=2),
]


@pytest.mark.parametrize("make", CONVOLUTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_spectral_norm_and_lconv_norm_make_a_convolution_one_lipschitz(
    make: Callable[[], nn.Module], seed: int
) -> None:
    """A chain as deel-torchlip's layers have it, judged by the dense operator."""
    torch.manual_seed(seed)
    module = P.lconv_norm(P.spectral_norm(make(), n_power_iterations=200, dim=0))
    module(torch.randn(1, module.in_channels, 7, 7))  # type: ignore[arg-type]
    norm = tools.operator_norm(module, (int(module.in_channels), 7, 6))  # type: ignore[arg-type]
    assert norm <= 1 + 1e-5


def test_spectral_norm_before_bjorck_norm_is_the_chain() -> None:
    layer = P.bjorck_norm(P.spectral_norm(nn.Linear(20, 12)))
    for _ in range(20):
        layer(torch.randn(2, 20))
    values = torch.linalg.svdvals(layer.weight.detach())
    assert values.max() <= 1 + 1e-5 and values.min() >= 0.99


# ---- removal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REGISTRARS)
@pytest.mark.parametrize("name", ["Linear", "Conv2d"])
def test_removing_the_only_one_leaves_its_result(name: str, kind: str) -> None:
    register, remove, parametrization = REGISTRARS[kind]
    module = MODULES[name]()
    if kind == "lconv" and name == "Linear":
        with pytest.raises(TypeError, match="module must be a convolution"):
            register(module)
        assert not parametrize.is_parametrized(module)
        return
    original_class = type(module)
    assert register(module) is module
    assert isinstance(module.parametrizations.weight[0], parametrization)  # type: ignore[index, union-attr]
    module.eval()
    expected = module.weight.detach().clone()  # type: ignore[operator]
    assert remove(module) is module
    assert type(module) is original_class
    assert not parametrize.is_parametrized(module)
    assert isinstance(module.weight, nn.Parameter)
    assert torch.equal(module.weight, expected)
    module(torch.randn(INPUTS[name])).sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize("order", list(itertools.permutations(["spectral", "bjorck", "lconv"])))
@pytest.mark.parametrize("removed", ["spectral", "bjorck", "lconv"])
def test_removing_one_of_a_chain_leaves_the_others(order: tuple[str, ...], removed: str) -> None:
    module = nn.Conv2d(2, 4, 3)
    parameter = module.weight.detach().clone()
    for kind in order:
        REGISTRARS[kind][0](module)
    module.eval()
    REGISTRARS[removed][1](module)
    left = [k for k in order if k != removed]
    chain: Any = module.parametrizations.weight  # type: ignore[union-attr]
    assert [type(p) for p in chain] == [REGISTRARS[k][2] for k in left]
    assert torch.equal(chain.original, parameter)
    again = nn.Conv2d(2, 4, 3)
    with torch.no_grad():
        again.weight.copy_(parameter)
    for kind in left:
        REGISTRARS[kind][0](again)
    again.load_state_dict(module.state_dict())
    again.eval()
    assert torch.equal(module.weight, again.weight)
    module.train()
    module(torch.randn(1, 2, 5, 5)).sum().backward()
    assert chain.original.grad is not None
    for kind in left:
        REGISTRARS[kind][1](module)
    assert not parametrize.is_parametrized(module)


@pytest.mark.parametrize("kind", REGISTRARS)
def test_removing_what_is_not_there(kind: str) -> None:
    _, remove, parametrization = REGISTRARS[kind]
    layers = [nn.Linear(3, 2), torch_spectral_norm(nn.Linear(3, 2)), lnn.MaxMin()]
    layers += [lnn.SpectralLinear(3, 2, eps_bjorck=None)]
    for module in layers:
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(ValueError, match=f"no {parametrization.__name__} to remove"):
            remove(module)
        assert module.state_dict().keys() == before.keys()
        module(torch.randn(1, 3))


def test_on_the_layers_of_this_package() -> None:
    """Their own normalisation stays the last word on what was parametrized besides it."""
    layer = lnn.FrobeniusLinear(6, 4)
    expected = layer.weight.detach().clone()
    P.remove_frobenius_norm(layer)
    # Nothing holds a constant any longer, and nothing promises one.
    assert type(layer) is nn.Linear and isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, expected)
    layer(torch.randn(2, 6)).sum().backward()
    layer = lnn.SpectralLinear(6, 4)
    P.spectral_norm(layer, "bias")
    with torch.no_grad():
        layer.parametrizations.bias.original.fill_(3.0)
    layer(torch.randn(2, 6))
    assert float(layer.bias.detach().norm()) == pytest.approx(1, rel=1e-5)
    P.remove_spectral_norm(layer, "bias")
    assert isinstance(layer.bias, nn.Parameter)
    assert tools.largest_singular_value(layer.weight) == pytest.approx(1, abs=1e-5)
    # And the other layers have not lost theirs.
    assert tools.largest_singular_value(lnn.SpectralLinear(6, 4).weight) == pytest.approx(
        1, abs=1e-5
    )


CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "SpectralConv1d": (lambda **k: lnn.SpectralConv1d(2, 3, 3, **k), (2, 9)),
    "SpectralConv2d": (lambda **k: lnn.SpectralConv2d(2, 3, 3, padding=1, **k), (2, 7, 7)),
    "SpectralConvTranspose2d": (lambda **k: lnn.SpectralConvTranspose2d(3, 2, 3, **k), (3, 5, 5)),
    "FrobeniusConv2d": (lambda **k: lnn.FrobeniusConv2d(2, 3, 3, padding=1, **k), (2, 7, 7)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_removing_the_factor_of_a_layer_leaves_a_larger_constant(name: str) -> None:
    """deel-torchlip: RuntimeError."""
    make, shape = CONVOLUTIONS[name]
    layer = make(k_coef_lip=0.5)
    before = layer.weight.detach().clone()
    assert P.remove_lconv_norm(layer) is layer
    factor = layer._factor
    assert factor < 1 and torch.allclose(layer.weight * factor, before, atol=1e-6)
    assert layer.k_coef_lip == pytest.approx(0.5 / factor)
    with torch.no_grad():
        layer.parametrizations.weight.original.fill_(1.0)
    for training in (True, False):
        norm = tools.operator_norm(layer.train(training), shape)
        assert 0.5 < norm <= layer.k_coef_lip * (1 + 1e-5)
    with pytest.raises(ValueError, match="no LConvNorm to remove"):
        P.remove_lconv_norm(layer)
    # A container that promised less notices.
    model = lnn.Sequential(make())
    P.remove_lconv_norm(model[0])
    with pytest.raises(ValueError, match="but their Sequential promises"):
        model(torch.zeros(1, *shape))


@pytest.mark.parametrize("method", ["polar", "bjorck"])
def test_removing_bjorck_from_a_layer_leaves_the_spectral_norm(method: Any) -> None:
    """deel-torchlip: RuntimeError."""
    for layer, rows in (
        (lnn.SpectralLinear(6, 4, k_coef_lip=2.0, method=method), 4),
        (lnn.SpectralConvTranspose2d(4, 6, 2, 2, groups=2, k_coef_lip=2.0, method=method), 2),
    ):
        parameter: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
        nn.init.normal_(parameter)
        assert P.remove_bjorck_norm(layer) is layer and layer.k_coef_lip == 2.0
        assert set(layer.state_dict()) >= {"parametrizations.weight.0._u"}
        for training in (True, True, False):
            layer.train(training)
            for w, p in zip(layer.weight.split(rows), parameter.split(rows)):
                values = torch.linalg.svdvals(w.detach().flatten(1))
                assert values.max() <= 2 * (1 + 1e-5) and values.min() < 1.9
                assert torch.allclose(w / w.norm(), p / p.norm(), atol=1e-6)
        with pytest.raises(ValueError, match="no BjorckNorm to remove"):
            P.remove_bjorck_norm(layer)
        assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


def test_removing_the_frobenius_norm_of_a_convolution() -> None:
    layer = lnn.FrobeniusConv2d(2, 3, 3, padding=2, padding_mode="symmetric")
    x = torch.randn(1, 2, 5, 5)
    expected = layer(x)
    P.remove_frobenius_norm(layer)
    assert type(layer) is lnn.PadConv2d and torch.allclose(layer(x), expected, atol=1e-6)
    assert not isinstance(layer, lnn.LipschitzModule)


# ---- what torch.nn.utils.parametrize offers ------------------------------------------------------


def test_another_name_than_weight() -> None:
    cell = nn.RNNCell(4, 5)
    for name in ("weight_ih", "weight_hh"):
        P.orthogonal(cell, name)
        values = torch.linalg.svdvals(getattr(cell, name).detach())
        assert torch.allclose(values, torch.ones_like(values), atol=1e-4)
    cell(torch.randn(2, 4)).sum().backward()
    P.remove_orthogonal(cell, "weight_ih")
    assert parametrize.is_parametrized(cell, "weight_hh")
    with pytest.raises(
        ValueError, match="name must be that of a parameter of RNNCell, got 'weigth'"
    ):
        P.orthogonal(cell, "weigth")
    with pytest.raises(ValueError, match="got 'bias'"):
        P.spectral_norm(nn.Linear(3, 2, bias=False), "bias")


def test_assignment_goes_to_the_parameter() -> None:
    w = torch.randn(4, 6)
    for kind, (register, _, _) in REGISTRARS.items():
        if kind == "lconv":
            layer, w = register(nn.Conv2d(2, 4, 3)), torch.randn(4, 2, 3, 3)
        else:
            layer = register(nn.Linear(6, 4))
        layer.weight = w  # type: ignore[assignment]
        assert torch.equal(layer.parametrizations.weight.original, w)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "kinds", [("spectral",), ("spectral", "bjorck"), ("orthogonal",), ("frobenius",)]
)
def test_state_dict_round_trip(kinds: tuple[str, ...]) -> None:
    def made() -> nn.Module:
        module: nn.Module = nn.Linear(6, 4)
        for kind in kinds:
            module = REGISTRARS[kind][0](module)
        return module

    first, second = made(), made()
    for _ in range(3):
        first(torch.randn(2, 6))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer))
    x = torch.randn(2, 6)
    assert torch.equal(first(x), second(x))
    assert torch.equal(first(x), second(x))  # u and v advance alike
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_cached_computes_once() -> None:
    """Two uses inside parametrize.cached share one weight and one advance of u and v."""
    layer = P.spectral_norm(nn.Linear(6, 4))
    with parametrize.cached():
        first = layer.weight
        u = layer.parametrizations.weight[0]._u.clone()  # type: ignore[index, union-attr]
        assert layer.weight is first
        assert torch.equal(u, layer.parametrizations.weight[0]._u)  # type: ignore[index, union-attr]
    assert layer.weight is not first
    spectral = lnn.SpectralLinear(6, 4)
    with parametrize.cached():
        assert spectral.weight is spectral.weight
    assert spectral.weight is not spectral.weight


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("kind", REGISTRARS)
def test_weights_take_a_shorter_way_unless_more_is_asked_for(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the calls of torch's modules; hooks, further steps and the cache are honoured."""
    register, remove, _ = REGISTRARS[kind]
    layer: Any = register(nn.Conv2d(2, 4, 3))
    chain = layer.parametrizations.weight
    expected = chain()
    with monkeypatch.context() as m:
        m.delattr(parametrize.ParametrizationList, "forward")
        assert torch.allclose(layer.weight, expected, rtol=1e-2)
    twin: Any = copy.deepcopy(layer)
    nn.init.normal_(twin.parametrizations.weight.original)
    with parametrize.cached():
        assert layer.weight is layer.weight
        assert not torch.equal(layer.weight, twin.weight)
    seen: list[str] = []
    hook = chain[0].register_forward_hook(lambda *_: seen.append("called"))
    layer.weight  # noqa: B018
    assert seen == ["called"]
    hook.remove()
    expected = 2 * layer.eval().weight
    parametrize.register_parametrization(layer, "weight", Double())
    assert torch.allclose(layer.weight, expected)
    remove(layer)
    assert torch.equal(layer.weight, 2 * layer.parametrizations.weight.original)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    for kind, (register, _, _) in REGISTRARS.items():
        module = (
            nn.Conv2d(2, 4, 3, dtype=dtype) if kind == "lconv" else nn.Linear(6, 4, dtype=dtype)
        )
        register(module)
        weight: Any = module.weight
        assert weight.dtype is dtype
        weight.sum().backward()


def errors() -> list[Any]:
    positive = "a positive finite number"
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: P.spectral_norm(nn.Linear(3, 2), n_power_iterations=0),
            ValueError,
            "n_power_iterations must be.*>= 1, got 0",
        ),
        (
            lambda: P.spectral_norm(nn.Linear(3, 2), n_power_iterations=1.5),
            TypeError,
            "n_power_iterations must be.*got 1.5",
        ),
        (
            lambda: P.spectral_norm(nn.Linear(3, 2), eps=0),
            ValueError,
            f"eps must be {positive}, got 0",
        ),
        (
            lambda: P.spectral_norm(nn.Linear(3, 2), dim=2),
            ValueError,
            r"dim must be.*\[-2, 1\].*got 2",
        ),
        (
            lambda: P.spectral_norm(nn.Linear(3, 2), dim=-3),
            ValueError,
            r"dim must be.*\[-2, 1\].*got -3",
        ),
        (lambda: P.spectral_norm(nn.Linear(3, 2), dim="0"), TypeError, "dim must be.*got '0'"),
        (
            lambda: P.bjorck_norm(nn.Linear(3, 2), eps=float("nan")),
            ValueError,
            f"eps must be {positive}, got nan",
        ),
        (lambda: P.BjorckNorm(beta=0.6), ValueError, r"beta must be.*\(0, 0.5\].*got 0.6"),
        (lambda: P.BjorckNorm(max_iterations=0), ValueError, "max_iterations must be.*>= 1, got 0"),
        (
            lambda: P.orthogonal(nn.Linear(3, 2), tol=-1),
            ValueError,
            f"tol must be {positive}, got -1",
        ),
        (
            lambda: P.orthogonal(nn.Linear(3, 2), backward="fast"),
            ValueError,
            "backward must be one of 'exact', 'tangent', got 'fast'",
        ),
        (
            lambda: P.frobenius_norm(nn.Linear(3, 2), disjoint_neurons=1),
            TypeError,
            "disjoint_neurons must be True or False, got 1",
        ),
        (lambda: P.LConvNorm(0.0), ValueError, f"factor must be {positive}, got 0.0"),
        (
            lambda: P.lconv_norm(nn.Linear(3, 2)),
            TypeError,
            "module must be a convolution of torch.nn, got Linear",
        ),
        (
            lambda: P.LipschitzWeight(torch.ones(2, 2), method="svd"),
            ValueError,
            "method must be one of .*'polar'.*got 'svd'",
        ),
        (
            lambda: P.LipschitzWeight(torch.ones(2, 2), scale=0),
            ValueError,
            f"scale must be {positive}, got 0",
        ),
        (
            lambda: P.LipschitzWeight(torch.ones(2, 2), groups=0),
            ValueError,
            "groups must be.*>= 1, got 0",
        ),
        (
            lambda: P.LipschitzWeight(torch.ones(2, 2), eps_bjorck=-1),
            ValueError,
            f"eps_bjorck must be {positive}, got -1",
        ),
        (
            lambda: P.LipschitzWeight(torch.ones(2, 2), eps_spectral=-1),
            ValueError,
            f"eps_spectral must be {positive}, got -1",
        ),
    ]  # type: ignore[arg-type]
    return [pytest.param(*c, id=c[2][:30]) for c in cases]


@pytest.mark.parametrize("call, error, message", errors())
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 2)])
def test_spectral_norm_has_the_derivatives_of_the_plain_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    norm = P.SpectralNorm(weight.detach())

    def derivatives(out: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(out, weight, grad, create_graph=True)
        return out, first, *torch.autograd.grad(first.square().sum(), (weight, grad))

    found = derivatives(norm(weight))
    sigma = torch.einsum("i,ij,j", norm._u, weight.flatten(1), norm._v)
    for ours, plain in zip(found, derivatives(weight / sigma)):
        torch.testing.assert_close(ours, plain)
