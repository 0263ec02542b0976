"""lipfuse.monitor: what it reports is true, and measuring changes nothing."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import lipfuse
import lipfuse.nn as lnn
from lipfuse import _measurement, _native
from lipfuse import parametrizations as ours


def model_of_all_kinds() -> nn.Sequential:
    return nn.Sequential(
        lnn.SpectralConv2d(2, 4, 3, padding=1, groups=2, k_coef_lip=2.0),
        lnn.GroupSort2(),
        nn.Flatten(),
        lnn.SpectralLinear(36, 8, method="bjorck"),
        lnn.SpectralLinear(8, 6, eps_bjorck=None),
        lnn.FrobeniusLinear(6, 5),
        parametrizations.orthogonal(nn.Linear(5, 4)),
        ours.bjorck_norm(ours.spectral_norm(nn.Linear(4, 4), n_power_iterations=3)),
    )


def drifted() -> Any:
    model = model_of_all_kinds()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model(torch.randn(2, 2, 3, 3))  # power iteration has looked at it
    return model


def snapshot(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in (*model.state_dict().values(), torch.get_rng_state())]


@pytest.mark.parametrize("training", [True, False])
def test_what_it_reports(training: bool) -> None:
    model = drifted().train(training)
    stats = lipfuse.monitor(model)
    assert all(type(value) is float for value in stats.values())
    names = {"0": 2, "3": 1, "4": 1, "5": 1, "6": 1, "7": 1}
    assert {key.rpartition("/")[0] for key in stats} == set(names)
    for name, groups in names.items():
        layer = model[int(name)]
        parameter = layer.parametrizations.weight.original.detach().double()
        state = snapshot(model)
        weight = layer.weight.detach().double()
        model.load_state_dict(dict(zip(model.state_dict(), state)))
        for tensor, kind in ((parameter, "parameter"), (weight, "weight")):
            values = torch.linalg.svdvals(tensor.reshape(groups, tensor.shape[0] // groups, -1))
            assert stats[f"{name}/{kind}_min"] == pytest.approx(float(values.min()), abs=1e-5)
            assert stats[f"{name}/{kind}_max"] == pytest.approx(float(values.max()), abs=1e-5)
        shape = (2, 6, 6) if name == "0" else (layer.in_features,)
        true = tools.operator_norm(layer, shape)
        if name == "5":
            true = float(weight.norm(dim=1).max())  # of each output on its own
        # A convolution's corrective factor is safe, not tight.
        most = 2.0 if name == "0" else true
        assert true * (1 - 1e-6) <= stats[f"{name}/bound"] <= most * 1.001
        assert stats[f"{name}/time_ms"] > 0
    assert [stats[f"{n}/k_coef_lip"] for n in ("0", "3", "4", "5")] == [2.0, 1.0, 1.0, 1.0]
    assert "6/k_coef_lip" not in stats and "6/iterations" not in stats
    assert stats["4/iterations"] == (2 if training else 100)
    if _native.loaded:
        assert 1 <= stats["0/iterations"] <= 4
        assert 1 <= stats["3/iterations"] <= 15
        assert stats["7/iterations"] >= 1 + 3 * training
    assert 0 <= stats["0/residual"] <= (1e-4 if training else 1e-7)


def test_the_summary_is_the_worst_of_all_layers() -> None:
    stats = lipfuse.monitor(drifted())
    summary = stats.summary()
    assert list(summary) == ["bound", "parameter_min", "parameter_max", "iterations", "time_ms"]
    of = {key: [v for k, v in stats.items() if k.endswith(f"/{key}")] for key in summary}
    assert summary["bound"] == pytest.approx(max(of["bound"][0] / 2, *of["bound"][1:]))
    assert summary["parameter_min"] == min(of["parameter_min"])
    assert summary["parameter_max"] == max(of["parameter_max"])
    assert summary["iterations"] == max(of["iterations"])
    assert summary["time_ms"] == pytest.approx(sum(of["time_ms"]))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training: bool) -> None:
    model, x = drifted().train(training), torch.randn(2, 2, 3, 3)
    lipfuse.fuse(model)
    model(x).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    before = snapshot(model)
    with torch.inference_mode():
        lipfuse.monitor(model)
    with lipfuse.monitor(model):
        output = model(x)  # warms power iteration up as it always does
        after = snapshot(model)
    assert model.training is training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    if not training:
        assert tools.equal_bits(before, after)
    # The same forward without a monitor.
    model.load_state_dict(dict(zip(model.state_dict(), before)))
    assert torch.equal(model(x), output)
    assert tools.equal_bits(snapshot(model), after)


def test_while_a_model_is_trained() -> None:
    model, x = drifted(), torch.randn(2, 2, 3, 3)
    hooks = dict(model._forward_hooks)
    seen: list[tuple[dict[str, float], int]] = []
    with lipfuse.monitor(model, every=2, callback=lambda *call: seen.append(call)) as stats:
        at_first = dict(stats)
        for _ in range(5):
            with torch.no_grad():
                model[3].parametrizations.weight.original.mul_(1.5)
            model(x)
        model.eval()(x)
        model.train()
        model[0](x)
        with pytest.raises(RuntimeError, match="in use already"):
            stats.__enter__()
    assert [calls for _, calls in seen] == [2, 4]
    assert all(type(values) is dict for values, _ in seen)
    assert seen[-1][0] == dict(stats)
    assert stats["3/parameter_max"] == pytest.approx(1.5**4 * at_first["3/parameter_max"])
    assert dict(model._forward_hooks) == hooks
    stats.refresh()
    assert stats["3/parameter_max"] == pytest.approx(1.5**5 * at_first["3/parameter_max"])


def test_copies_are_plain() -> None:
    model = drifted()[:6]  # torch's own parametrized layers refuse to be pickled
    calls: list[int] = []
    with lipfuse.monitor(model, callback=lambda _, n: calls.append(n)) as stats:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            twin(torch.randn(2, 2, 3, 3))
        assert calls == []
        for same in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
            assert type(same) is dict
            assert same == stats


def test_large_matrices_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = drifted()
    before = lipfuse.monitor(model)
    monkeypatch.setattr(_measurement, "_MOST_VALUES", 1)
    after = lipfuse.monitor(model)
    for key, value in before.items():
        if key.endswith(("_min", "_max")):
            assert after[key] == pytest.approx(value, abs=1e-6)


def test_a_single_layer_and_other_tensors() -> None:
    stats = lipfuse.monitor(lnn.SpectralLinear(3, 2))
    assert "SpectralLinear/bound" in stats
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    stats = lipfuse.monitor(layer)
    assert "Linear/weight_max" in stats and "Linear/parameter_max" not in stats
    layer = nn.Linear(3, 2)
    parametrize.register_parametrization(layer, "bias", ours.LConvNorm(0.5))
    assert next(iter(lipfuse.monitor(layer))) == "Linear.bias/parameter_min"


def test_warnings_come_once_and_say_what_to_do() -> None:
    model: Any = nn.Sequential(
        lnn.SpectralLinear(4, 4),
        lnn.SpectralLinear(4, 4),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        lnn.SpectralLinear(4, 4, dtype=torch.bfloat16),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lipfuse.monitor(lnn.SpectralLinear(4, 4, dtype=torch.float16))
        stats = lipfuse.monitor(model)
    with torch.no_grad():
        model[0].parametrizations.weight.original[0, 0] = math.nan
        model[1].parametrizations.weight.original[:, 0] = 0.0
        model[2].parametrizations.weight.original.copy_(torch.randn(4, 4))
    model.eval()[2].parametrizations.weight[0]._u.copy_(tools.unit((4,)))
    with pytest.warns(UserWarning, match="singular values of the parameter") as caught:
        stats.refresh().refresh()
    told = sorted(str(w.message) for w in caught)
    assert [t[:30] for t in told] == [
        "0: the parameter has NaN or in",
        "1: the parameter is close to l",
        "2: its spectral norm exceeds 1",
    ]
    advice = ("lower the learning rate", "lipfuse.optim.retract_(model)", "n_power_iterations")
    assert all(a in t for a, t in zip(advice, told, strict=True))
    assert math.isnan(stats["0/parameter_max"])
    assert math.isnan(stats.summary()["parameter_min"])


def test_a_broken_promise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the package breaks one: hence a step that does."""
    layer = lnn.SpectralLinear(4, 4, k_coef_lip=2.0)
    layer._parametrization.scale = 2.1
    with pytest.warns(UserWarning, match=r"exceeds k_coef_lip=2 .*it is 2\.1.*please report"):
        lipfuse.monitor(layer)


def test_errors() -> None:
    layer = lnn.SpectralLinear(2, 2)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: lipfuse.monitor([layer]), TypeError, "model must be a torch.nn.Module, got list"),
        (lambda: lipfuse.monitor(nn.Linear(2, 2)), ValueError, "at least one parametrized tensor"),
        (lambda: lipfuse.monitor(layer, every=0), ValueError, "every must be an integer >= 1"),
        (lambda: lipfuse.monitor(layer, callback=3), TypeError, "callback must be callable or"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    "layer",
    [
        lnn.SpectralConv2d(3, 4, 3, padding=1, normalization="operator"),
        lnn.SpectralConv2d(4, 6, 3, 2, padding=1, groups=2, normalization="operator"),
        lnn.SpectralConvTranspose2d(3, 2, 3, stride=2, normalization="operator"),
        lnn.OrthoConv2d(3, 4, 3, stride=2),
        lnn.OrthoConv2d(4, 6, 2, groups=2, padding_mode="zeros"),
        lnn.OrthoConvTranspose2d(4, 3, 3),
    ],
)
def test_the_bound_of_a_convolution_is_that_of_its_own_norm(layer: Any) -> None:
    """Which the layer is divided by, or has to be: not that of its weight as a matrix."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = lipfuse.monitor(layer)
    (bound,) = (value for key, value in stats.items() if key.endswith("/bound"))
    true = tools.operator_norm(layer, (layer.in_channels, 6, 6))
    assert true * (1 - 1e-5) <= bound <= 1.02


@pytest.mark.parametrize(
    "layer, shown",
    [
        (lnn.SpectralLinear(3, 2), "k_coef_lip=1, method='polar'"),
        (lnn.OrthoConv2d(3, 2, 1, k_coef_lip=0.5), "k_coef_lip=0.5\n"),
        (lnn.SpectralLinear(3, 2, method="bjorck"), "k_coef_lip=1, method='bjorck'"),
        (lnn.SpectralConv2d(1, 1, 1, eps_bjorck=None, k_coef_lip=2.0), "2, method='spectral'"),
        (lnn.FrobeniusLinear(3, 2, k_coef_lip=0.5), "k_coef_lip=0.5, method='frobenius'"),
        (
            ours.spectral_norm(nn.Linear(2, 2)),
            "SpectralNorm(n_power_iterations=1, dim=0, eps=1e-12)",
        ),
        (ours.bjorck_norm(nn.Linear(2, 2)), "BjorckNorm(eps=0.001, beta=0.5, max_iterations=15)"),
        (ours.orthogonal(nn.Linear(2, 2)), "Orthogonal(tol=0.0001, backward='exact')"),
    ],
)
def test_every_layer_shows_its_constant_and_method(layer: nn.Module, shown: str) -> None:
    assert shown in repr(layer)
