"""Checkpoints say which settings they were made with; those of deel-torchlip load, and are written.

A checkpoint that would change the function of the layer it is loaded into raises.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import deel.torchlip as torchlip
import pytest
import torch
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn
from lipfuse.convert import CheckpointError, to_deel_state_dict

RECORD = "parametrizations.weight._extra_state"
WEIGHT = "parametrizations.weight.original"

Make = Callable[..., nn.Module]
CONV: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
KINDS: dict[str, tuple[Make, dict[str, Any]]] = {
    "linear": (lnn.SpectralLinear, {"in_features": 5, "out_features": 3}),
    "frobenius": (lnn.FrobeniusLinear, {"in_features": 5, "out_features": 3}),
    "conv1d": (lnn.SpectralConv1d, CONV),
    "conv2d": (lnn.SpectralConv2d, CONV),
    "frobenius2d": (lnn.FrobeniusConv2d, CONV),
    "transposed": (lnn.SpectralConvTranspose2d, CONV),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def layer(kind: str, **settings: Any) -> nn.Module:
    make, usual = KINDS[kind]
    return make(**{**usual, **settings})


def original(module: nn.Module) -> Tensor:
    found: Tensor = module.get_parameter(WEIGHT)
    return found


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    found: dict[str, Any] = torch.load(buffer, weights_only=True)
    return found


# ---- our own -------------------------------------------------------------------------------------

# (kind, settings of the checkpoint, settings of the layer, what the message says of each)
MISMATCHES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("linear", {"k_coef_lip": 2.0}, {}, "k_coef_lip=2", "k_coef_lip=1"),
    ("linear", {"eps_bjorck": None}, {}, "'spectral'", "'orthonormal'"),
    ("linear", {}, {"eps_bjorck": None}, "'orthonormal'", "'spectral'"),
    ("frobenius", {"disjoint_neurons": False}, {}, "'frobenius'", "'frobenius of each output'"),
    ("conv1d", {"stride": 2}, {"stride": 3}, "stride=2", "stride=3"),
    ("conv2d", {"stride": 2}, {}, r"stride=\(2, 2\)", r"stride=\(1, 1\)"),
    ("conv2d", {"stride": (1, 2)}, {"stride": (2, 1)}, r"stride=\(1, 2\)", r"stride=\(2, 1\)"),
    ("conv2d", {"dilation": 2}, {}, r"dilation=\(2, 2\)", r"dilation=\(1, 1\)"),
    ("conv2d", {"padding": 1}, {}, r"padding=\(1, 1\)", r"padding=\(0, 0\)"),
    (
        "conv2d",
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "symmetric"},
        "'circular'",
        "'symmetric'",
    ),
    ("frobenius2d", {"dilation": 2}, {}, r"dilation=\(2, 2\)", r"dilation=\(1, 1\)"),
    ("transposed", {"stride": 2}, {}, r"stride=\(2, 2\)", r"stride=\(1, 1\)"),
    (
        "transposed",
        {"stride": 2, "output_padding": 1},
        {"stride": 2},
        r"output_padding=\(1, 1\)",
        r"output_padding=\(0, 0\)",
    ),
]


@pytest.mark.parametrize(("kind", "saved", "wanted", "was", "is_"), MISMATCHES)
@pytest.mark.parametrize("strict", [True, False])
def test_other_settings_raise(
    kind: str, saved: dict[str, Any], wanted: dict[str, Any], was: str, is_: str, strict: bool
) -> None:
    state = reloaded({f"0.{k}": v for k, v in layer(kind, **saved).state_dict().items()})
    model = nn.Sequential(layer(kind, **wanted))
    before = original(model[0]).clone()
    with pytest.raises(
        CheckpointError, match=f"made with .*{was}, but 0 has .*{is_}; .*0.{RECORD}"
    ):
        model.load_state_dict(state, strict=strict)
    assert torch.equal(original(model[0]), before)
    assert issubclass(CheckpointError, RuntimeError)
    assert issubclass(CheckpointError, ValueError)
    # Whoever wants the weights alone can have them.
    del state[f"0.{RECORD}"]
    if "eps_bjorck" not in {**saved, **wanted}:
        model.load_state_dict(state)
        assert torch.equal(original(model[0]), state[f"0.{WEIGHT}"])


def test_another_kernel_or_kind_raises() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer("conv2d").load_state_dict(layer("conv2d", kernel_size=5).state_dict())
    with pytest.raises(ValueError, match="another kind of layer"):
        layer("conv2d").load_state_dict(layer("linear").state_dict())
    with pytest.raises(ValueError, match="transposed=1"):
        layer("conv2d").load_state_dict(layer("transposed").state_dict())


@every_kind
def test_the_same_settings_load(kind: str) -> None:
    source, target = layer(kind, k_coef_lip=0.3), layer(kind, k_coef_lip=0.3)
    state = source.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())  # as safetensors needs them
    for changed in (
        reloaded(state),
        {key: value for key, value in state.items() if key != RECORD},  # of an older version
        {key: value.half() for key, value in state.items()},
        {key: value.bfloat16() for key, value in state.items()},
        {key: 0.9 * value + 0.1 * value for key, value in state.items()},  # averaged
    ):
        nn.init.zeros_(original(target))
        target.load_state_dict(changed)
        assert torch.allclose(original(target), original(source), atol=4e-3)


def test_what_is_no_record_is_none() -> None:
    """Code that redraws or perturbs all tensors of a state does not know about records."""
    module = layer("conv2d")
    for _ in range(20):
        module.load_state_dict({k: torch.randn_like(v) for k, v in module.state_dict().items()})
    state = module.state_dict()
    state[RECORD] = torch.tensor([float(state[RECORD][0]), 7.0])
    with pytest.raises(ValueError, match="of a version that is not known"):
        module.load_state_dict(state)
    state[RECORD] = "a string"
    with pytest.raises(ValueError, match="must be a tensor of settings, got 'a string'"):
        module.load_state_dict(state)


def test_the_record_follows_the_layer() -> None:
    module = layer("conv2d", stride=2)
    states = [copy.deepcopy(module).state_dict(), pickle.loads(pickle.dumps(module)).state_dict()]
    for state in states:
        assert torch.equal(state[RECORD], module.state_dict()[RECORD])
    module.k_coef_lip = 3.0  # type: ignore[assignment]
    with pytest.raises(ValueError, match="k_coef_lip=1, but the layer has k_coef_lip=3"):
        module.load_state_dict(states[0])
    container = lnn.Sequential(layer("linear"), layer("linear", in_features=3), k_coef_lip=4.0)
    with pytest.raises(ValueError, match="k_coef_lip=2, but 0 has k_coef_lip=1"):
        nn.Sequential(*(layer("linear") for _ in range(2))).load_state_dict(container.state_dict())


@every_kind
def test_it_is_no_buffer(kind: str) -> None:
    """Nothing is broadcast or averaged, and whole states can stand in for parameters."""
    module = layer(kind)
    assert not list(module.buffers())
    x = torch.randn((2, 5) if "linear" in kind or kind == "frobenius" else (2, 4, 6, 6))
    x = x[..., 0] if kind == "conv1d" else x
    other = layer(kind)
    expected, own = other(x), module(x)
    found = torch.func.functional_call(module, other.state_dict(), (x,))
    assert torch.equal(found, expected)
    assert torch.equal(module(x), own)
    average = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    average.update_parameters(module)
    module.load_state_dict(average.module.state_dict())
    assert torch.equal(module(x), own)


# ---- deel-torchlip's -----------------------------------------------------------------------------


def network(layers: Any) -> nn.Module:
    """Every layer with a checkpoint of its own kind, nested; ``layers`` is theirs or ours."""
    first = layers.Sequential(
        layers.SpectralConv2d(3, 4, 3, padding=1, bias=False),
        layers.GroupSort2(),
        layers.FrobeniusConv2d(4, 6, 3),
        layers.HouseHolder(6),
        layers.SpectralConvTranspose2d(6, 4, 2, stride=2),
        layers.LPReLU(),
    )
    second = layers.Sequential(
        nn.Flatten(),
        layers.SpectralLinear(400, 8, k_coef_lip=1.7),
        layers.FullSort(),
        layers.SpectralLinear(8, 6, eps_bjorck=None),
        layers.FrobeniusLinear(6, 3, disjoint_neurons=False),
    )
    if layers is lnn:  # theirs leaves the constants of its layers alone
        second[1].k_coef_lip, second._shares_out = 1.7, False
    return nn.ModuleDict({"first": first, "second": second})


def called(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model["second"](model["first"](x))
    return out


def train(model: Any, steps: int = 5) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        called(model, torch.randn(4, 3, 7, 7)).square().sum().backward()
        optimizer.step()


def settle(model: Any) -> None:
    """Lets their power iterations converge and their cached weights become fresh."""
    with torch.no_grad():
        for _ in range(200):
            for module in model.modules():
                if "parametrizations" in module._modules:
                    module.weight  # noqa: B018


def test_theirs_load_and_compute_the_same() -> None:
    theirs, ours = network(torchlip), network(lnn)
    x = torch.randn(5, 3, 7, 7)
    for trained in (False, True):
        if trained:
            train(theirs)
        settle(theirs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours.load_state_dict(reloaded(theirs.state_dict()), strict=True)
        with torch.no_grad():
            expected = called(theirs.eval(), x)
            assert float((called(ours.eval(), x) - expected).abs().max()) <= 1e-5
        theirs.train()


def test_ours_are_written_in_their_format() -> None:
    ours, theirs = network(lnn), network(torchlip)
    train(ours)
    modes = [m.training for m in ours.modules()]
    state = to_deel_state_dict(ours)
    assert [m.training for m in ours.modules()] == modes
    assert state.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(reloaded(state), strict=True)
    x = torch.randn(5, 3, 7, 7)
    with torch.no_grad():
        expected = called(ours.eval(), x)
        assert float((called(theirs.eval(), x) - expected).abs().max()) <= 1e-5
        # And their training starts from the same function.
        assert float((called(theirs.train(), x) - expected).abs().max()) <= 1e-4
    again = network(lnn)
    again.load_state_dict(state)
    assert torch.equal(called(again.eval(), x), called(ours.eval(), x))


def test_theirs_of_another_normalisation_raise() -> None:
    both, alone = torchlip.SpectralLinear(5, 3), torchlip.SpectralLinear(5, 3, eps_bjorck=None)
    with pytest.raises(CheckpointError, match="by the spectral norm alone"):
        lnn.SpectralLinear(5, 3).load_state_dict(alone.state_dict())
    with pytest.raises(CheckpointError, match="and Björck's iteration"):
        lnn.SpectralLinear(5, 3, eps_bjorck=None).load_state_dict(both.state_dict())
    for state in (both.state_dict(), alone.state_dict()):
        with pytest.raises(CheckpointError, match="'frobenius of each output'"):
            lnn.FrobeniusLinear(5, 3).load_state_dict(state, strict=False)
    for eps in (1e-3, None):
        factor = torchlip.SpectralConv2d(3, 4, 3, eps_bjorck=eps).state_dict()
        target = lnn.SpectralConv2d(3, 4, 3, eps_bjorck=eps, normalization="operator")
        with pytest.raises(CheckpointError, match="by the convolution's corrective factor"):
            target.load_state_dict(factor)
    grouped = torchlip.SpectralConv2d(4, 4, 3, groups=2)
    with pytest.raises(CheckpointError, match="by one norm for all groups"):
        lnn.SpectralConv2d(4, 4, 3, groups=2).load_state_dict(grouped.state_dict())
    transposed = torchlip.SpectralConvTranspose2d(4, 4, 3, eps_bjorck=None)
    with pytest.raises(CheckpointError, match="the spectral norm of another matrix"):
        lnn.SpectralConvTranspose2d(4, 4, 3, eps_bjorck=None).load_state_dict(
            transposed.state_dict()
        )


def test_where_theirs_computes_something_else_it_is_said() -> None:
    for eps in ({}, {"eps_bjorck": None}):
        leaking: dict[str, Any] = {"stride": 2, "dilation": 2, **eps}
        theirs = torchlip.SpectralConv2d(2, 3, 3, **leaking)
        with pytest.warns(UserWarning, match="breaks its constant"):
            lnn.SpectralConv2d(2, 3, 3, **leaking).load_state_dict(theirs.state_dict())
        theirs = torchlip.SpectralConv1d(2, 3, 3, **eps)
        with pytest.warns(UserWarning, match="is less than allowed"):
            lnn.SpectralConv1d(2, 3, 3, **eps).load_state_dict(theirs.state_dict())
    stale = torchlip.SpectralLinear(5, 3)
    with torch.no_grad():
        original(stale).add_(torch.randn(3, 5))
    ours = lnn.SpectralLinear(5, 3).eval()
    with pytest.warns(UserWarning, match="from before the last optimizer step"):
        ours.load_state_dict(stale.state_dict())
    expected = stale.train().weight  # which renews their cached weight
    assert torch.allclose(ours.weight, expected, atol=1e-4)  # type: ignore[arg-type]


def test_the_checkpoint_of_before_a_conversion() -> None:
    """Also where the layer's constant, or what shares one norm, is what keeps the function."""
    for make in (
        lambda: torchlip.SpectralConv1d(2, 3, 3),
        lambda: torchlip.SpectralConv2d(4, 4, 3, groups=2),
        lambda: torchlip.SpectralConvTranspose2d(4, 3, 2, stride=2),
    ):
        module = make().eval()
        state = module.state_dict()
        twin = make()
        lipfuse.accelerate(twin)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            twin.load_state_dict(state, strict=True)
        shape = (2, module.in_channels, 6, 6)[: module.weight.dim()]
        x = torch.randn(shape)
        assert torch.allclose(twin.eval()(x), module(x), atol=1e-5)
    # With vectors of our own, theirs of the transposed convolution are of another matrix.
    ours = lnn.SpectralConvTranspose2d(4, 3, 2, stride=2, method="bjorck")
    ours.load_state_dict(state)
    assert torch.allclose(ours.eval()(x), module(x), atol=1e-5)


CANNOT: dict[str, tuple[nn.Module, str]] = {
    "groups": (lnn.SpectralConv2d(4, 4, 3, groups=2), "have one group, got groups=2"),
    "dilation": (lnn.SpectralConv2d(2, 3, 3, stride=2, dilation=2), "got 0.333333 .* takes 0.5"),
    "one axis": (lnn.SpectralConv1d(2, 3, 3), "k_coef_lip=1.73205"),
    "transposed": (lnn.SpectralConvTranspose2d(2, 3, 3, eps_bjorck=None), "got eps_bjorck=None"),
    "own norm": (
        lnn.SpectralConv2d(2, 3, 3, normalization="operator"),
        "have normalization='factor', got normalization='operator'",
    ),
    "three axes": (lnn.SpectralConv3d(2, 3, 3), "be a layer that deel-torchlip has"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_they_would_turn_into_something_else(name: str) -> None:
    module, message = CANNOT[name]
    with pytest.raises(ValueError, match=f"^there must .*{message}"):
        to_deel_state_dict(nn.ModuleDict({"there": module}))


def test_written_with_another_constant() -> None:
    """As the message of the strict case says."""
    ours = lnn.SpectralConv1d(2, 3, 3, k_coef_lip=2.0).eval()
    theirs = torchlip.SpectralConv1d(2, 3, 3, k_coef_lip=2.0 * 3**0.5)
    theirs.load_state_dict(to_deel_state_dict(ours, strict=False))
    x = torch.randn(2, 2, 9)
    assert torch.allclose(theirs.eval()(x), ours(x), atol=1e-5)


def test_arguments() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        to_deel_state_dict(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strict must be True or False, got 1"):
        to_deel_state_dict(nn.Linear(2, 2), strict=1)  # type: ignore[arg-type]
    with torch.no_grad():
        broken = lnn.SpectralLinear(3, 3)
        original(broken).fill_(float("nan"))
    with pytest.raises(ValueError, match="weight must be finite"):
        to_deel_state_dict(broken)
    plain = nn.Linear(2, 2)
    assert to_deel_state_dict(plain).keys() == plain.state_dict().keys()
    assert lipfuse.convert.CheckpointError is CheckpointError


def test_another_way_to_divide_is_another_function() -> None:
    """By the operator's norm or by the counted factor: the same parameter, another convolution."""
    by_operator = lnn.SpectralConv2d(2, 3, 3, normalization="operator")
    by_factor = lnn.SpectralConv2d(2, 3, 3)
    for source, target in [(by_operator, by_factor), (by_factor, by_operator)]:
        with pytest.raises(ValueError, match="operator's norm"):
            target.load_state_dict(source.state_dict())
    twin = lnn.SpectralConv2d(2, 3, 3, normalization="operator")
    twin.load_state_dict(by_operator.state_dict())
    x = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(twin.eval()(x), by_operator.eval()(x))
