"""accelerate: the same model, the same outputs, the same parameters, on fused operators."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import deel.torchlip as torchlip
import orthogonium.layers as ortho
import orthogonium.layers.conv.AOC as ortho_conv
import orthogonium.reparametrizers as params
import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, spectral_norm

import lipfuse
import lipfuse.nn as lnn
from lipfuse.convert import Report
from lipfuse.nn._weighted import WeightedModule

Make = Callable[[], nn.Module]
SAME = 1e-5


def rows(report: Report) -> dict[str, Any]:
    return {row.name: row for row in report}


def random_weights(module: nn.Module, spread: float = 0.3) -> None:
    """Away from where layers start, where every singular value is the same."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1 and "Orthogonal()" in str(module):
                # torch reads signs from the diagonal
                noise = noise.tril(-1)
            if name.endswith(("weight.original", "weight_orig")):
                parameter.add_(spread * parameter.std() * noise)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * noise)


def settle(module: Any) -> None:
    """Their power iterations converge, their cached weights become fresh."""
    modes = [m.training for m in module.modules()]
    module.train()
    with torch.no_grad():
        for _ in range(300):
            for part in module.modules():
                if "parametrizations" in part._modules and hasattr(part, "weight"):
                    part.weight  # noqa: B018
    for part, mode in zip(module.modules(), modes):
        part.training = mode


class Calls(list[str]):
    """A hook that can be pickled."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.append(type(module).__name__)


# ---- every layer ---------------------------------------------------------------------------------

# name: (what makes it, shape of an input, what it becomes)
LAYERS: dict[str, tuple[Make, tuple[int, ...], type[nn.Module]]] = {
    "SpectralLinear": (lambda: torchlip.SpectralLinear(5, 7), (5,), lnn.SpectralLinear),
    "SpectralLinear k": (
        lambda: torchlip.SpectralLinear(7, 5, bias=False, k_coef_lip=2.5),
        (7,),
        lnn.SpectralLinear,
    ),
    "SpectralLinear, spectral": (
        lambda: torchlip.SpectralLinear(6, 4, eps_bjorck=None),
        (6,),
        lnn.SpectralLinear,
    ),
    "FrobeniusLinear": (
        lambda: torchlip.FrobeniusLinear(6, 4, k_coef_lip=0.5),
        (6,),
        lnn.FrobeniusLinear,
    ),
    "FrobeniusLinear, whole": (
        lambda: torchlip.FrobeniusLinear(6, 4, disjoint_neurons=False),
        (6,),
        lnn.FrobeniusLinear,
    ),
    "SpectralConv1d": (
        lambda: torchlip.SpectralConv1d(2, 3, 3, stride=2, padding=1),
        (2, 9),
        lnn.SpectralConv1d,
    ),
    "SpectralConv2d": (
        lambda: torchlip.SpectralConv2d(3, 4, (3, 2), stride=(2, 1), padding=1, k_coef_lip=0.7),
        (3, 6, 5),
        lnn.SpectralConv2d,
    ),
    "SpectralConv2d, groups": (
        lambda: torchlip.SpectralConv2d(4, 6, 3, groups=2),
        (4, 5, 5),
        lnn.SpectralConv2d,
    ),
    "SpectralConv2d, groups, spectral": (
        lambda: torchlip.SpectralConv2d(4, 6, 3, groups=2, eps_bjorck=None),
        (4, 5, 5),
        lnn.SpectralConv2d,
    ),
    "SpectralConv2d, symmetric": (
        lambda: torchlip.SpectralConv2d(2, 3, 5, padding=2, padding_mode="symmetric"),
        (2, 6, 5),
        lnn.SpectralConv2d,
    ),
    "FrobeniusConv2d": (
        lambda: torchlip.FrobeniusConv2d(2, 3, 3, padding=1),
        (2, 5, 5),
        lnn.FrobeniusConv2d,
    ),
    "SpectralConvTranspose2d": (
        lambda: torchlip.SpectralConvTranspose2d(3, 4, 2, stride=2),
        (3, 4, 3),
        lnn.SpectralConvTranspose2d,
    ),
    "OrthoLinear": (lambda: ortho.linear.OrthoLinear(6, 4), (6,), lnn.SpectralLinear),
    "OrthoLinear, pass through": (
        lambda: ortho.linear.OrthoLinear(4, 6, True, params.BJORCK_PASS_THROUGH_ORTHO_PARAMS),
        (4,),
        lnn.SpectralLinear,
    ),
    "OrthoLinear, QR": (
        lambda: ortho.linear.OrthoLinear(6, 4, True, params.QR_ORTHO_PARAMS),
        (6,),
        lnn.SpectralLinear,
    ),
    "UnitNormLinear": (lambda: ortho.linear.UnitNormLinear(6, 4), (6,), lnn.FrobeniusLinear),
    "RKOConv2d": (
        lambda: ortho_conv.RKOConv2d(4, 6, 2, stride=2, padding=0, groups=2),
        (4, 6, 6),
        lnn.SpectralConv2d,
    ),
    "RKOConv2d, same": (
        lambda: ortho_conv.RKOConv2d(3, 6, 3, padding="same", bias=False),
        (3, 6, 5),
        lnn.SpectralConv2d,
    ),
    "RkoConvTranspose2d": (
        lambda: ortho_conv.RkoConvTranspose2d(8, 3, 2, stride=2),
        (8, 3, 3),
        lnn.SpectralConvTranspose2d,
    ),
    "orthogonal, matrix_exp": (
        lambda: parametrizations.orthogonal(nn.Linear(5, 5)),
        (5,),
        nn.Linear,
    ),
    "orthogonal, cayley": (
        lambda: parametrizations.orthogonal(nn.Linear(7, 5), orthogonal_map="cayley"),
        (7,),
        nn.Linear,
    ),
    "orthogonal, householder": (
        lambda: parametrizations.orthogonal(
            nn.Linear(4, 6), orthogonal_map="householder", use_trivialization=False
        ),
        (4,),
        nn.Linear,
    ),
    "orthogonal, a batch": (
        lambda: parametrizations.orthogonal(nn.Conv2d(2, 3, 3)),
        (2, 5, 5),
        nn.Conv2d,
    ),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 4)), (5,), nn.Linear),
    "spectral_norm, transposed": (
        lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(3, 4, 3), n_power_iterations=2),
        (3, 4, 4),
        nn.ConvTranspose2d,
    ),
    "hook": (lambda: spectral_norm(nn.Linear(5, 4)), (5,), nn.Linear),
    "hook, transposed": (
        lambda: spectral_norm(nn.ConvTranspose2d(3, 4, 3), n_power_iterations=2),
        (3, 4, 4),
        nn.ConvTranspose2d,
    ),
    "registrars": (
        lambda: torchlip.utils.bjorck_norm(parametrizations.spectral_norm(nn.Linear(6, 4))),
        (6,),
        nn.Linear,
    ),
    "registrars, conv": (
        lambda: torchlip.utils.lconv_norm(parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))),
        (2, 5, 5),
        nn.Conv2d,
    ),
    "PadConv1d": (
        lambda: torchlip.PadConv1d(2, 3, 3, padding=2, padding_mode="symmetric"),
        (2, 7),
        lnn.PadConv1d,
    ),
    "PadConv2d": (
        lambda: torchlip.PadConv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2),
        (4, 5, 6),
        lnn.PadConv2d,
    ),
    "LayerCentering": (lambda: torchlip.LayerCentering(4), (4, 3, 5), lnn.LayerCentering),
    "BatchCentering": (lambda: torchlip.BatchCentering(4), (4, 3, 5), lnn.BatchCentering),
    "BatchLipNorm": (lambda: torchlip.BatchLipNorm(4, bias=False), (4, 5), lnn.BatchLipNorm),
    "BatchLipNorm, uncentred": (
        lambda: torchlip.BatchLipNorm(4, centering=False, eps=1e-3),
        (4,),
        lnn.BatchLipNorm,
    ),
    "ScaleBiasLayer": (lambda: torchlip.ScaleBiasLayer(0.3, 4), (4, 3), lnn.ScaleBiasLayer),
    "MaxMin": (lambda: torchlip.MaxMin(k_coef_lip=2.0), (4, 3), lnn.MaxMin),
    "GroupSort": (lambda: torchlip.GroupSort(3, k_coef_lip=2.0), (6, 2), lnn.GroupSort),
    "GroupSort2": (lambda: torchlip.GroupSort2(), (6, 3, 2), lnn.GroupSort2),
    "FullSort": (lambda: torchlip.FullSort(k_coef_lip=0.5), (6,), lnn.FullSort),
    "LPReLU": (lambda: torchlip.LPReLU(4, k_coef_lip=1.5), (4, 3), lnn.LPReLU),
    "HouseHolder": (lambda: torchlip.HouseHolder(4), (4, 3), lnn.HouseHolder),
    "HouseHolder k": (lambda: torchlip.HouseHolder(4, k_coef_lip=3.0), (4, 3), lnn.HouseHolder),
    "InvertibleDownSampling": (
        lambda: torchlip.InvertibleDownSampling(2, k_coef_lip=3.0),
        (2, 4, 6),
        lnn.InvertibleDownSampling,
    ),
    "InvertibleUpSampling": (
        lambda: torchlip.InvertibleUpSampling(2),
        (4, 3, 2),
        lnn.InvertibleUpSampling,
    ),
    "ScaledAvgPool2d": (
        lambda: torchlip.ScaledAvgPool2d((2, 3), k_coef_lip=0.5),
        (2, 4, 6),
        lnn.ScaledAvgPool2d,
    ),
    "ScaledAvgPool2d, divisor": (
        lambda: torchlip.ScaledAvgPool2d(2, divisor_override=7),
        (2, 4, 6),
        lnn.ScaledAvgPool2d,
    ),
    "ScaledAdaptiveAvgPool2d": (
        lambda: torchlip.ScaledAdaptiveAvgPool2d((1, 1), k_coef_lip=2.0),
        (2, 4, 6),
        lnn.ScaledAdaptiveAvgPool2d,
    ),
    "ScaledL2NormPool2d": (
        lambda: torchlip.ScaledL2NormPool2d(2, k_coef_lip=2.0),
        (2, 4, 6),
        lnn.ScaledL2NormPool2d,
    ),
    "ScaledAdaptativeL2NormPool2d": (
        lambda: torchlip.ScaledAdaptativeL2NormPool2d(),
        (2, 4, 6),
        lnn.ScaledAdaptativeL2NormPool2d,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str) -> None:
    make, shape, kind = LAYERS[name]
    module = make()
    random_weights(module)
    settle(module)
    x = torch.randn(3, *shape, requires_grad=True)
    for _ in range(2):  # running statistics, and hooks' weights
        module(3 * x + 1)
    module.eval()
    expected = module(x)
    # Without orthogonium's vectors, which are parameters.
    parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
    calls = Calls()
    module.register_forward_hook(calls)
    module.mine = "still here"  # type: ignore[assignment]
    before = torch.get_rng_state()
    report = lipfuse.accelerate(module)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(report) == 1 and not report.left, str(report)
    if kind.__module__.startswith("lipfuse"):
        assert parametrize.type_before_parametrizations(module) is kind
        assert report.rows[0].after == f"lipfuse {kind.__name__}"
        assert not {"_coefficient_lip", "scaling", "old_padding"} & module.__dict__.keys()
        again = pickle.loads(pickle.dumps(module))
        assert float((again(x) - expected).detach().abs().max()) <= SAME
    assert isinstance(module, kind)
    assert float((module(x) - expected).detach().abs().max()) <= SAME
    assert len(calls) == 1 and module.mine == "still here"
    assert not any(m.training for m in module.modules())
    found = dict(module.named_parameters())
    assert found.keys() == parameters.keys()
    assert all(found[key] is parameters[key] for key in found)
    assert len(lipfuse.accelerate(module)) == 0  # nothing is left to do
    # It trains, and gives all parameters a gradient.
    module.train()
    module(x).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


# As maps: disjoint neurons are constrained each on its own.
DISJOINT = ("FrobeniusLinear", "UnitNormLinear")
CONSTRAINED = [n for n in LAYERS if issubclass(LAYERS[n][2], WeightedModule) and n not in DISJOINT]


@pytest.mark.parametrize("name", CONSTRAINED)
def test_converted_layers_keep_their_constant(name: str) -> None:
    """Judged by the exact matrix, with weights driven far away."""
    make, shape, _ = LAYERS[name]
    layer: Any = make()
    settle(layer)
    lipfuse.accelerate(layer)
    for spread in (0.0, 3.0):
        random_weights(layer, spread)
        for training in (True, False):
            layer.train(training)
            assert tools.operator_norm(layer, shape) <= layer.k_coef_lip * (1 + 1e-5)


def test_a_residual_connection_and_a_shared_factory() -> None:
    factory = torchlip.SharedLipFactory()
    model: Any = nn.ModuleDict(
        {
            "one": torchlip.BatchLipNorm(4, factory=factory),
            "two": torchlip.BatchLipNorm(4, factory=factory),
            "residual": torchlip.LipResidual(),
        }
    )
    with torch.no_grad():
        model["residual"].alpha.fill_(0.7)
    x, y = 3 * torch.randn(6, 4), torch.randn(6, 4)
    model["two"](model["one"](x))
    model.eval()

    def outputs() -> list[Tensor]:
        out = [model["residual"](x, y), model["two"](model["one"](x))]
        return [*out, factory.get_current_product_value(False).reshape(())]

    expected = outputs()
    assert not lipfuse.accelerate(model).left
    for found, wanted in zip(outputs(), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    assert type(factory) is lnn.SharedLipFactory and model["one"].factory is factory
    assert factory.modules == [model["one"], model["two"]]


# ---- models --------------------------------------------------------------------------------------


class Model(nn.Module):
    """Layers in containers, in attributes, twice, and beside others."""

    def __init__(self) -> None:
        super().__init__()
        shared = torchlip.SpectralLinear(6, 6)
        self.body = torchlip.Sequential(torchlip.SpectralLinear(4, 6), torchlip.FullSort(), shared)
        self.blocks = nn.ModuleList([nn.ModuleDict({"again": shared}), torchlip.GroupSort2()])
        self.other = nn.Linear(6, 6)
        self.head = torchlip.FrobeniusLinear(6, 2)
        self.norm = parametrizations.spectral_norm(nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        blocks: Any = self.blocks
        x = blocks[1](blocks[0]["again"](self.body(x)))
        out: Tensor = self.norm(self.head(self.other(x)))
        return out


def test_a_model_in_training_goes_on() -> None:
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randn(8, 4)

    def step() -> float:
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    losses = [step() for _ in range(20)]
    settle(model)
    model.other.eval()
    modes = {name: m.training for name, m in model.named_modules() if "param" not in name}
    objects = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    state = copy.deepcopy(optimizer.state_dict())
    values = {name: p.clone() for name, p in parameters.items()}
    expected = copy.deepcopy(model).eval()(x)

    report = lipfuse.accelerate(model, optimizer=optimizer)
    assert not report.left and report.change <= SAME, str(report)
    assert "body.2" in rows(report) and "blocks.0.again" not in rows(report)  # one module, one row
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in after)
    assert all(torch.equal(after[name], values[name]) for name in after)
    assert {n: m.training for n, m in model.named_modules() if "param" not in n} == modes
    for name, module in model.named_modules():
        if "param" not in name:
            assert module is objects[name]
    assert isinstance(model.body, lnn.Sequential) and model.body.k_coef_lip == 1.0
    assert type(model.other) is nn.Linear
    assert not any("deel" in type(m).__module__ for m in model.modules())
    kept = optimizer.state_dict()
    assert kept["param_groups"] == state["param_groups"]
    for number, moments in state["state"].items():
        for name, value in moments.items():
            assert torch.equal(kept["state"][number][name], value)
    with torch.no_grad():
        assert float((copy.deepcopy(model).eval()(x) - expected).abs().max()) <= SAME
    losses += [step() for _ in range(60)]
    assert losses[20] <= losses[19] * 1.01
    assert losses[-1] < losses[20]


def test_vectors_are_taken_over() -> None:
    for layer in (
        torchlip.SpectralLinear(5, 6, eps_bjorck=None),
        parametrizations.spectral_norm(nn.Conv2d(2, 3, 2)),
    ):
        u, v = (layer.get_buffer(f"parametrizations.weight.0._{name}") for name in "uv")
        assert not lipfuse.accelerate(layer).left
        assert layer.get_buffer("parametrizations.weight.0._u") is u
        assert layer.get_buffer("parametrizations.weight.0._v") is v


def test_spectral_norm_trains_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parametrization and hook: the same steps, to rounding, and the same vectors."""
    for make in (parametrizations.spectral_norm, spectral_norm):
        first: Any = nn.Sequential(make(nn.Linear(5, 6)), nn.Tanh(), make(nn.Conv1d(6, 3, 1)))
        twin = copy.deepcopy(first)
        lipfuse.accelerate(twin)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (first, twin)]
        for _ in range(5):
            x = torch.randn(6, 5)
            for model, optimizer in zip((first, twin), optimizers, strict=True):
                optimizer.zero_grad()
                hidden = model[1](model[0](x))
                # Two forwards before one backward, as a critic does it.
                loss = model[2](hidden[..., None]).square().sum() - model[2](hidden.mT[None]).sum()
                loss.backward()
                optimizer.step()
        states = first.state_dict(), twin.state_dict()
        assert states[0].keys() == states[1].keys()
        for a, b in zip(states[0].values(), states[1].values(), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        twin.load_state_dict(states[0])
        if make is parametrizations.spectral_norm:  # past torch's modules
            with monkeypatch.context() as m:
                m.delattr(parametrize.ParametrizationList, "forward")
                twin[0](x)
        else:
            expected = pickle.loads(pickle.dumps(twin)).eval()[0](x)
            remove_spectral_norm(twin[0])
            assert torch.allclose(twin[0](x), expected, atol=1e-6)
            assert not twin[0]._forward_pre_hooks


def test_coordinates_that_change() -> None:
    """The same parameter holds the matrix itself; what the optimizer knew of it is forgotten."""
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    weight: Tensor = model[0].weight.detach().clone()  # type: ignore[operator, union-attr]
    parameter = model[0].parametrizations.weight.original  # type: ignore[union-attr]
    twin, unaware = copy.deepcopy(model), copy.deepcopy(model)
    report = lipfuse.accelerate(model, optimizer=[optimizer])
    note = report.rows[0].note
    assert "remembered of it was dropped" in note and "pass the optimizer" not in note
    now = model[0].parametrizations.weight.original  # type: ignore[union-attr]
    assert now is parameter and now.grad is None
    assert torch.allclose(now, weight, atol=1e-6)
    assert now not in optimizer.state and len(optimizer.state) == 3
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert optimizer.state[now]["step"] == 1
    other = torch.optim.SGD(unaware[1].parameters(), lr=0.1)  # does not have it
    assert "pass the optimizer" in lipfuse.accelerate(unaware, optimizer=other).rows[0].note
    x = torch.randn(3, 4)
    assert torch.allclose(unaware(x), twin(x), atol=1e-5)
    # With other uses, it cannot be set.
    tied = nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.Linear(3, 3))
    tied[1].weight = tied[0].parametrizations.weight.original  # type: ignore[union-attr]
    assert "has other uses" in lipfuse.accelerate(tied).left[0].note


def test_vectors_of_orthogonium_leave_the_optimizer() -> None:
    model = nn.Sequential(ortho.linear.OrthoLinear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 6
    lipfuse.accelerate(model, optimizer=optimizer)
    kept = optimizer.param_groups[0]["params"]
    assert [id(p) for p in kept] == [id(p) for p in model.parameters()]


# ---- what their layers do not keep ---------------------------------------------------------------

# name: (what makes it, input shape, the reason, the constant it is to have)
BROKEN: dict[str, tuple[Make, tuple[int, ...], str, float]] = {
    "dilation": (
        lambda: torchlip.SpectralConv2d(2, 3, 3, stride=2, dilation=2, k_coef_lip=2.0),
        (2, 8, 7),
        "multiplied by 1, where 0.6667 is allowed: it can be 3-Lipschitz, and promises 2",
        2.0,
    ),
    "reflect": (
        lambda: torchlip.SpectralConv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        (2, 5, 4),
        "is allowed",
        1.0,
    ),
    "symmetric": (
        lambda: torchlip.SpectralConv2d(2, 3, 5, padding=(2, 0), padding_mode="symmetric"),
        (2, 5, 6),
        "pads by the whole input",
        1.0,
    ),
    "LPReLU": (lambda: torchlip.LPReLU(k_coef_lip=0.5), (6,), "slope for positive inputs", 0.5),
    "HouseHolder": (
        lambda: torchlip.HouseHolder(6, k_coef_lip=0.5),
        (6,),
        "it ignores k_coef_lip=0.5",
        0.5,
    ),
    "QR, reflect": (
        lambda: ortho_conv.RKOConv2d(
            2, 4, 3, padding=1, padding_mode="reflect", ortho_params=params.QR_ORTHO_PARAMS
        ),
        (2, 5, 4),
        "is allowed",
        1.0,
    ),
    "transposed": (
        lambda: torchlip.SpectralConvTranspose2d(1, 16, 4, stride=2),
        (1, 4, 4),
        "has not converged",
        1.0,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_promises(name: str) -> None:
    make, shape, reason, k = BROKEN[name]
    module = make().eval()
    state = copy.deepcopy(module.state_dict())
    kind = type(module)
    report = lipfuse.accelerate(module)
    if "the same, fused" in (report.rows[0].after or ""):  # only what estimates the norm
        assert reason in report.rows[0].note
    else:
        assert reason in report.left[0].note and not report.converted
    assert type(module) is kind
    assert tools.equal_bits(list(state.values()), list(module.state_dict().values()))
    module = make().eval()
    report = lipfuse.accelerate(module, strict=False)
    assert not report.left and isinstance(module, lnn.LipschitzModule)
    assert module.k_coef_lip == k
    if "conv" in name or len(shape) == 3:
        random_weights(module, 3.0)
        assert tools.operator_norm(module, shape) <= k * (1 + 1e-5)


def test_an_estimate_that_is_off() -> None:
    """Its function stays; unless its promise is wanted."""
    layer = torchlip.SpectralLinear(16, 16, eps_bjorck=None).eval()
    random_weights(layer, 1.0)
    x = torch.randn(3, 16)
    expected = layer(x)
    assert tools.operator_norm(layer, (16,)) > 1.01
    loose, held = copy.deepcopy(layer), copy.deepcopy(layer)
    report = lipfuse.accelerate(loose)
    assert report.rows[0].after == "the same, fused" and "estimate" in report.rows[0].note
    assert torch.allclose(loose(x), expected, atol=1e-6)
    report = lipfuse.accelerate(held, strict=False)
    assert report.rows[0].change > 0.01 and "estimate" in report.rows[0].note
    assert tools.operator_norm(held, (16,)) <= 1 + 1e-5


def test_a_stale_weight() -> None:
    """After an optimizer step theirs evaluates the weight of before; ours that of the parameter."""
    layer = torchlip.SpectralLinear(6, 6)
    layer(torch.randn(2, 6)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.3).step()
    layer.eval()
    fresh = copy.deepcopy(layer).train()
    settle(fresh)
    report = lipfuse.accelerate(layer)
    row = report.rows[0]
    assert row.after == "lipfuse SpectralLinear" and "before the last change" in row.note
    assert row.change is not None and row.change > 1e-3
    x = torch.randn(3, 6)
    assert torch.allclose(layer(x), fresh.eval()(x), atol=1e-5)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("constants", "k", "expected", "promise"),
    [
        ((1.0, 1.0), 1.0, 1.0, 1.0),
        ((2.0, 2.0), 4.0, 4.0, 4.0),
        ((1.0, 1.0), 10.0, 1.0, 1.0),
        ((5.0, 5.0), 1.0, 25.0, 1.0),
    ],
)
def test_containers(
    constants: tuple[float, ...], k: float, expected: float, promise: float, strict: bool
) -> None:
    """Theirs do not share anything out among weights; what is converted says what it computes."""
    model = torchlip.Sequential(
        *(torchlip.SpectralLinear(4, 4, k_coef_lip=c) for c in constants), k_coef_lip=k
    ).eval()
    settle(model)
    outer: Any = nn.Sequential(model)
    found = tools.operator_norm(outer, (4,))
    assert found == pytest.approx(expected, rel=1e-4)
    report = lipfuse.accelerate(outer, strict=strict)
    assert isinstance(outer[0], lnn.Sequential)
    wanted = expected if strict else promise
    assert outer[0].k_coef_lip == pytest.approx(wanted)
    assert tools.operator_norm(outer, (4,)) == pytest.approx(wanted, rel=1e-5)
    note = rows(report)["0"].note
    assert bool(note) is not math.isclose(expected, k)


def test_a_container_of_what_was_left() -> None:
    class Own(torchlip.SpectralLinear):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = 2 * super().forward(x)
            return out

    own = Own(4, 4).eval()
    model = torchlip.Sequential(own, torchlip.FullSort())
    x = torch.randn(2, 4)
    expected = model(x)
    report = lipfuse.accelerate(model)
    assert "layers that were not converted" in rows(report)[""].note
    # Of a subclass, whose forward may be anything, only the weight is taken over.
    assert rows(report)["0"].after == "polar factor, fused" and isinstance(own, Own)
    assert torch.allclose(model(x), expected, atol=1e-5)


# ---- what is left alone --------------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_what_is_not_known_stays() -> None:
    extended = torchlip.SpectralLinear(4, 4)
    parametrize.register_parametrization(extended, "weight", Doubled())
    hooked = torchlip.SpectralLinear(4, 4)
    hooked.parametrizations.weight[1].register_forward_hook(lambda *args: None)
    broken = torchlip.SpectralLinear(4, 4)
    with torch.no_grad():
        broken.parametrizations.weight.original[0, 0] = math.nan
    own = nn.Linear(4, 4)
    parametrize.register_parametrization(own, "weight", Doubled())
    model = nn.ModuleDict(
        {
            "loss": torchlip.KRLoss(),
            "bcop": ortho_conv.AdaptiveOrthoConv2d(4, 4, 3),
            "own": own,
            "complex": parametrizations.spectral_norm(nn.Linear(3, 3, dtype=torch.complex64)),
            "weight_norm": parametrizations.weight_norm(nn.Linear(3, 3)),
            "pool": torchlip.ScaledAvgPool2d(2, divisor_override=1),
            "ceil": torchlip.ScaledL2NormPool2d(2, ceil_mode=True),
        }
    )
    reasons = {
        "loss": "a loss, which stays what it is",
        "complex": "its weight is complex",
        "bcop": "BCOPTrivializer",
        "pool": "divisor_override must be None or at least the window's size",
        "ceil": "ceil_mode=True",
    }
    found = {row.name: row.note for row in lipfuse.accelerate(model).rows}
    assert found.keys() == reasons.keys()
    for name, note in found.items():
        assert reasons[name] in note
    for module, reason in (
        (extended, "not one of those known: _SpectralNorm, _BjorckNorm, Doubled"),
        (hooked, "there is a hook on its parametrization _BjorckNorm"),
        (broken, "weight must be finite"),
    ):
        kind = type(module)
        row = lipfuse.accelerate(module).rows[0]
        assert reason in row.note and row.after == "the same, fused"
        assert type(module) is kind


def test_dtypes_and_meta() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        layer = torchlip.SpectralLinear(6, 4, eps_bjorck=None).to(dtype)
        polar = torchlip.SpectralConv2d(2, 4, 3).to(dtype).eval()
        x = torch.randn(2, 2, 5, 5, dtype=dtype)
        expected = polar(x)
        for module in (layer, polar):
            assert not lipfuse.accelerate(module).left
            assert all(p.dtype is dtype for p in module.parameters())
        tolerance = max(1e-5, 4 * torch.finfo(dtype).eps)
        assert float((polar(x) - expected).detach().abs().max()) <= tolerance
    with torch.device("meta"):
        # Björck's iteration looks at its values: what comes before it can be built without any.
        hollow = torchlip.FrobeniusLinear(6, 4)
    report = lipfuse.accelerate(hollow)
    assert report.rows[0].after == "lipfuse FrobeniusLinear" and report.rows[0].change is None
    assert hollow.parametrizations.weight.original.is_meta


def test_neither_package_is_imported() -> None:
    code = (
        "import sys, torch, lipfuse; lipfuse.accelerate(torch.nn.Linear(2, 2));"
        "sys.exit(any(name.split('.')[0] in ('deel', 'orthogonium') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report() -> None:
    report = lipfuse.accelerate(Model())
    text = str(report)
    assert "body.0" in text and "lipfuse SpectralLinear" in text
    assert text.endswith(f"{len(report)} converted, 0 left as they are")
    assert [row.name for row in report] == [
        "body",
        "body.0",
        "body.1",
        "body.2",
        "blocks.1",
        "head",
        "norm",
    ]
    assert str(lipfuse.accelerate(nn.Linear(2, 2))) == "nothing to convert"
    left = lipfuse.accelerate(torchlip.KRLoss())
    assert "(the model)" in str(left) and "    a loss, which stays" in str(left)


def test_arguments() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        lipfuse.accelerate(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strict must be True or False, got 1"):
        lipfuse.accelerate(nn.Linear(2, 2), strict=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer .* got str"):
        lipfuse.accelerate(nn.Linear(2, 2), optimizer=["adam"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer .* got int"):
        lipfuse.accelerate(nn.Linear(2, 2), optimizer=0)  # type: ignore[arg-type]
    wrapper = type("DistributedDataParallel", (nn.Sequential,), {})
    with pytest.raises(ValueError, match="before it is wrapped, got a DistributedDataParallel"):
        lipfuse.accelerate(nn.Sequential(wrapper(torchlip.SpectralLinear(2, 2))))
