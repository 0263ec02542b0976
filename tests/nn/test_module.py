"""The base class and the container: k is what it says, whatever is done to the layers."""

from __future__ import annotations

import copy
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn

import lipfuse.nn as lnn


class Gain(nn.Module, lnn.LipschitzModule):
    """A layer of exactly its constant: it multiplies by k."""

    def __init__(self, k_coef_lip: float = 1.0) -> None:
        nn.Module.__init__(self)
        lnn.LipschitzModule.__init__(self, k_coef_lip)

    def forward(self, input: Tensor) -> Tensor:
        return input * self.k_coef_lip

    def vanilla_export(self) -> nn.Module:
        return nn.Identity()


class StoredGain(Gain):
    """A layer that keeps its scale elsewhere, and follows k through the hook."""

    def __init__(self, k_coef_lip: float = 1.0) -> None:
        super().__init__(k_coef_lip)
        self.register_buffer("scale", torch.tensor(self.k_coef_lip, dtype=torch.float64))

    def _apply_k(self, k: float) -> None:
        self.scale.fill_(k)

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale


def gain(module: nn.Module) -> float:
    """The constant of a network of gains and sorts, which keep the norm: exact, at any point."""
    x = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(1, 4)
    with torch.no_grad():
        return float(module(x).norm() / x.norm())


# ---- LipschitzModule ---------------------------------------------------------------------------


def test_the_base_class_asks_for_an_export() -> None:
    class Incomplete(nn.Module, lnn.LipschitzModule):
        pass

    with pytest.raises(TypeError, match="vanilla_export"):
        Incomplete()


@pytest.mark.parametrize("kind", [Gain, StoredGain])
def test_k_is_read_set_and_followed(kind: type[Gain]) -> None:
    layer = kind(3.0)
    assert layer.k_coef_lip == layer._coefficient_lip == gain(layer) == 3.0
    layer.k_coef_lip = 2  # an int is a number
    assert gain(layer) == 2.0 and isinstance(layer.k_coef_lip, float)
    layer._coefficient_lip = 0.5
    assert layer.k_coef_lip == gain(layer) == 0.5


def test_the_hook_does_not_run_before_the_layer_is_built() -> None:
    calls: list[float] = []

    class Watched(Gain):
        def _apply_k(self, k: float) -> None:
            calls.append(k)

    layer = Watched(2.0)
    assert calls == []
    layer.k_coef_lip = 3.0
    with pytest.raises(ValueError, match="k_coef_lip"):
        layer.k_coef_lip = -3.0
    assert calls == [3.0] and layer.k_coef_lip == 3.0


# ---- sharing k out -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.1, 0.3, 1.0, 3.0, 8.0, 10.0])
@pytest.mark.parametrize("built_with", [1.0, 5.0])
def test_the_whole_is_k_whatever_its_layers_were_built_with(k: float, built_with: float) -> None:
    layers = [Gain(built_with), lnn.FullSort(), nn.Identity(), StoredGain(built_with)]
    model = lnn.Sequential(*layers, k_coef_lip=k)
    assert model.k_coef_lip == k
    assert gain(model) == pytest.approx(k)
    assert layers[0].k_coef_lip == pytest.approx(k ** (1 / 3))
    model.k_coef_lip = 2 * k
    assert gain(model) == pytest.approx(2 * k)


@pytest.mark.parametrize("k", [0.3, 1.0, 3.0])
def test_containers_inside_count_once_and_share_out_their_part(k: float) -> None:
    inner = lnn.Sequential(Gain(), lnn.Sequential(Gain(7.0), Gain()), k_coef_lip=9.0)
    model = lnn.Sequential(Gain(), inner, k_coef_lip=k)
    assert gain(model) == pytest.approx(k)
    assert model[0].k_coef_lip == pytest.approx(k ** (1 / 2))
    assert inner.k_coef_lip == pytest.approx(k ** (1 / 2))
    assert inner[0].k_coef_lip == pytest.approx(k ** (1 / 4))
    assert inner[1][1].k_coef_lip == pytest.approx(k ** (1 / 8))


def test_an_ordered_dict_names_the_layers() -> None:
    model = lnn.Sequential(OrderedDict(first=Gain(), act=nn.ReLU(), last=Gain()), k_coef_lip=4.0)
    assert [name for name, _ in model.named_children()] == ["first", "act", "last"]
    assert model.first.k_coef_lip == 2.0


CHANGES: dict[str, Callable[[lnn.Sequential], Any]] = {
    "append": lambda m: m.append(Gain(5.0)),
    "insert": lambda m: m.insert(1, Gain(5.0)),
    "insert-first": lambda m: m.insert(0, lnn.Sequential(Gain(5.0), Gain(5.0))),
    "extend": lambda m: m.extend([Gain(5.0), nn.ReLU(), Gain(5.0)]),
    "iadd": lambda m: m.__iadd__(nn.Sequential(Gain(5.0), Gain(5.0))),
    "imul": lambda m: m.__imul__(3),
    "add_module": lambda m: m.add_module("extra", Gain(5.0)),
    "register_module": lambda m: m.register_module("extra", Gain(5.0)),
    "replace": lambda m: m.__setitem__(0, Gain(5.0)),
    "replace-by-plain": lambda m: m.__setitem__(0, nn.ReLU()),
    "replace-attribute": lambda m: setattr(m, "0", Gain(5.0)),
    "delete": lambda m: m.__delitem__(0),
    "delete-slice": lambda m: m.__delitem__(slice(0, 2)),
    "delete-attribute": lambda m: delattr(m, "0"),
    "pop": lambda m: m.pop(0),
    "delete-all": lambda m: m.__delitem__(slice(None)),
    "new-attribute": lambda m: setattr(m, "extra", Gain(5.0)),
}


@pytest.mark.parametrize("k", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("change", CHANGES)
def test_changing_the_layers_leaves_the_whole_at_k(change: str, k: float) -> None:
    model = lnn.Sequential(Gain(), StoredGain(), Gain(), k_coef_lip=k)
    CHANGES[change](model)
    assert model.k_coef_lip == k
    assert gain(model) == pytest.approx(k)
    # The copy made from a changed container shares out as the original does.
    twin = copy.deepcopy(model)
    twin.append(Gain())
    assert gain(twin) == pytest.approx(k)


@pytest.mark.parametrize("k", [0.3, 1.0, 3.0])
def test_a_container_without_lipschitz_layers_scales_by_itself(k: float) -> None:
    x = torch.tensor([[-1.0, 2.0]])
    assert torch.equal(lnn.Sequential(nn.ReLU(), k_coef_lip=k)(x), k * x.relu())
    assert torch.equal(lnn.Sequential(k_coef_lip=k)(x), k * x)
    model = lnn.Sequential(Gain(), lnn.Sequential(nn.Identity()), k_coef_lip=k)
    assert gain(model) == pytest.approx(k)
    exported = lnn.Sequential(nn.ReLU(), k_coef_lip=k).vanilla_export()
    assert torch.equal(exported(x), k * x.relu())


@pytest.mark.parametrize("k", [0.1, 1.0, 10.0])
def test_a_layer_in_several_places_never_takes_the_whole_beyond_k(k: float) -> None:
    shared = Gain()
    twice = lnn.Sequential(shared, shared, k_coef_lip=k)
    assert gain(twice) == pytest.approx(k)
    for model in (
        lnn.Sequential(Gain(), shared, lnn.Sequential(Gain(), shared), k_coef_lip=k),
        lnn.Sequential(lnn.Sequential(Gain(), shared), shared, Gain(), k_coef_lip=k),
    ):
        assert gain(model) <= k * (1 + 1e-12)
        assert gain(model) >= min(k, 1.0) ** 2


def test_parts_can_be_moved_between_layers_but_not_enlarged() -> None:
    model = lnn.Sequential(Gain(), Gain(), Gain())
    model[0].k_coef_lip = 4.0
    with pytest.raises(ValueError, match="multiply to 4, but their Sequential promises") as caught:
        gain(model)
    assert "k_coef_lip=1" in str(caught.value)
    with pytest.raises(ValueError, match="multiply to 4"):
        model.vanilla_export()
    model[2].k_coef_lip = 0.25
    assert gain(model) == pytest.approx(1.0)
    model.k_coef_lip = 1.0
    assert model[0].k_coef_lip == model[2].k_coef_lip == 1.0


def test_rounding_of_the_parts_is_not_taken_for_a_violation() -> None:
    for n in (3, 7, 49, 1000):
        for k in (0.1, 0.7, 3.3, 1e6):
            model = lnn.Sequential(*[Gain() for _ in range(n)], k_coef_lip=k)
            assert gain(model) == pytest.approx(k)


# ---- slices, sums and multiples ----------------------------------------------------------------


@pytest.mark.parametrize("k", [0.1, 8.0])
def test_a_slice_leaves_the_layers_as_they_are(k: float) -> None:
    model = lnn.Sequential(Gain(), nn.ReLU(), Gain(), Gain(), k_coef_lip=k)
    features = model[:-1]
    assert isinstance(features, lnn.Sequential) and len(features) == 3
    assert features[0] is model[0]
    assert gain(model) == pytest.approx(k)
    assert features.k_coef_lip == pytest.approx(k ** (2 / 3)) == pytest.approx(gain(features))
    # Nor does anything that is done to the slice short of setting its constant.
    features.append(Gain(3.0))
    assert features[-1].k_coef_lip == 3.0
    assert features.k_coef_lip == pytest.approx(3.0 * k ** (2 / 3)) == pytest.approx(gain(features))
    del features[0]
    copy.deepcopy(features).insert(0, Gain())
    assert gain(model) == pytest.approx(k)
    # A slice of a slice, and what pop takes out, are the same.
    assert model[1:][1:].k_coef_lip == pytest.approx(k ** (2 / 3))
    taken = model.pop(slice(0, 3))
    assert isinstance(taken, lnn.Sequential) and gain(model) == pytest.approx(k)


def test_a_slice_whose_constant_is_set_shares_it_out_and_the_original_notices() -> None:
    model = lnn.Sequential(Gain(), Gain(), Gain())
    features = model[:2]
    features.k_coef_lip = 4.0
    assert gain(features) == pytest.approx(4.0)
    assert [layer.k_coef_lip for layer in features] == [2.0, 2.0]
    with pytest.raises(ValueError, match="multiply to 4"):
        gain(model)
    features.append(Gain())
    assert gain(features) == pytest.approx(4.0)


def test_a_slice_inside_another_container_takes_its_part() -> None:
    features = lnn.Sequential(Gain(), Gain())[:1]
    model = lnn.Sequential(features, Gain(), k_coef_lip=9.0)
    assert features.k_coef_lip == pytest.approx(3.0)
    features.append(Gain(5.0))
    assert features.k_coef_lip == pytest.approx(3.0)
    assert gain(model) == pytest.approx(9.0)


def test_sums_and_multiples_keep_what_their_layers_promise() -> None:
    first = lnn.Sequential(Gain(), Gain(), k_coef_lip=4.0)
    second = lnn.Sequential(Gain(), k_coef_lip=3.0)
    total = first + second
    assert isinstance(total, lnn.Sequential)
    assert total.k_coef_lip == pytest.approx(12.0) == pytest.approx(gain(total))
    thrice = second * 3
    assert isinstance(thrice, lnn.Sequential)
    assert thrice.k_coef_lip == pytest.approx(27.0) == pytest.approx(gain(thrice))
    assert gain(2 * second) == pytest.approx(9.0)
    assert gain(first) == pytest.approx(4.0) and gain(second) == pytest.approx(3.0)
    with pytest.raises(TypeError, match="Sequential"):
        first + Gain()


# ---- what cannot be vouched for ----------------------------------------------------------------

KNOWN: list[nn.Module] = [
    nn.Identity(),
    nn.Flatten(),
    nn.Unflatten(1, (1, 2)),
    nn.ChannelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.ConstantPad2d(1, 5.0),
    nn.ZeroPad2d(1),
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(),
    nn.Hardsigmoid(),
    nn.LogSigmoid(),
    nn.Sigmoid(),
    nn.Softshrink(),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.CELU(0.3),
    nn.ELU(1.0),
    nn.LeakyReLU(-1.0),
    nn.Softmax(1),
    nn.Softmin(1),
    nn.Softmax2d(),
    nn.Dropout(0.0),
    nn.MaxPool2d(2),
    nn.MaxPool2d((2, 3), stride=(2, 4)),
    nn.MaxPool2d(2, stride=3, dilation=2),
    nn.MaxPool2d(2, stride=2, dilation=3),
    nn.MaxPool2d(2, padding=1, ceil_mode=True),
    nn.AvgPool2d(2, ceil_mode=True),
    nn.AvgPool2d(2, padding=1, count_include_pad=False),
    nn.Sequential(nn.ReLU(), nn.Sequential(nn.Flatten())),
]
UNKNOWN: list[nn.Module] = [
    nn.Linear(8, 8),
    nn.BatchNorm2d(2),
    nn.GELU(),
    nn.SELU(),
    nn.LogSoftmax(1),
    nn.ELU(2.0),
    nn.CELU(-0.5),
    nn.LeakyReLU(-1.5),
    nn.Dropout(0.5),
    nn.MaxPool2d(3, stride=2),
    nn.MaxPool2d((2, 3), stride=(3, 1)),
    nn.MaxPool2d(2, 2, dilation=2),
    nn.MaxPool2d(2, return_indices=True),
    nn.AvgPool2d(3, stride=1),
    nn.AvgPool2d(2, divisor_override=1),
    nn.Sequential(nn.ReLU(), nn.GELU()),
    type("MyReLU", (nn.ReLU,), {})(),
]


@pytest.mark.parametrize("layer", KNOWN, ids=repr)
def test_known_layers_are_one_lipschitz_indeed(
    layer: nn.Module, lipschitz_at: Callable[..., float], largest_gain: Callable[..., float]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lnn.Sequential(Gain(), layer).append(layer)
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 4.0):
        x = scale * torch.randn(1, 2, 6, 6)
        assert lipschitz_at(layer, x) <= 1 + 1e-9
        assert largest_gain(layer, [(x.double(), torch.randn_like(x).double())]) <= 1 + 1e-9


@pytest.mark.parametrize("layer", UNKNOWN, ids=repr)
def test_other_layers_give_one_clear_warning(layer: nn.Module) -> None:
    with pytest.warns(UserWarning, match="cannot vouch for") as caught:
        model = lnn.Sequential(nn.ReLU(), layer, nn.Tanh(), k_coef_lip=2.0)
    assert len(caught) == 1
    assert f"(1): {layer}" in str(caught[0].message)
    assert caught[0].filename == __file__
    for change in (
        lambda: model.append(layer),
        lambda: model.insert(0, layer),
        lambda: model.__setitem__(0, layer),
    ):
        with pytest.warns(UserWarning, match="cannot vouch for") as caught:
            change()
        assert len(caught) == 1


def test_several_unknown_layers_share_one_warning() -> None:
    with pytest.warns(UserWarning, match="cannot vouch for") as caught:
        lnn.Sequential(nn.GELU(), nn.ReLU(), nn.SELU())
    assert len(caught) == 1
    assert "(0): GELU" in str(caught[0].message) and "(2): SELU" in str(caught[0].message)


def test_overlapping_pools_do_gain(lipschitz_at: Callable[..., float]) -> None:
    # Why they are not known: a large element counts once for each window it is in.
    for pool, row in (
        (nn.MaxPool2d((2, 3), stride=(3, 1)), 3),
        (nn.MaxPool2d(2, 2, dilation=2), 2),
    ):
        x = torch.zeros(1, 1, 6, 6)
        x[..., row, 2] = 1.0
        assert lipschitz_at(pool, x) > 1.4


# ---- the rest ----------------------------------------------------------------------------------


def test_copies_and_pickles_stay_lipschitz() -> None:
    model = lnn.Sequential(StoredGain(), lnn.Sequential(Gain(), Gain()), k_coef_lip=8.0)
    for copied in tools.COPIES.values():
        twin = copied(model)
        assert gain(twin) == pytest.approx(8.0)
        twin.k_coef_lip = 2.0
        twin.append(Gain())
        assert gain(twin) == pytest.approx(2.0)
    assert gain(model) == pytest.approx(8.0)


def test_repr_shows_k() -> None:
    assert repr(lnn.Sequential(nn.ReLU())) == "Sequential(\n  k_coef_lip=1\n  (0): ReLU()\n)"
    assert "k_coef_lip=3" in repr(lnn.Sequential(nn.ReLU(), k_coef_lip=3.0))


def test_a_compiled_container_follows_k() -> None:
    model = lnn.Sequential(Gain(), lnn.Sequential(Gain(), lnn.FullSort()), k_coef_lip=8.0)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert gain(compiled) == pytest.approx(8.0)
    model.k_coef_lip = 2.0
    assert gain(compiled) == pytest.approx(2.0)


BAD: list[tools.Refusal] = [
    *[
        (lambda k=k: lnn.Sequential(Gain(), k_coef_lip=k), error, ["k_coef_lip", "positive finite"])
        for k, error in [
            (0.0, ValueError),
            (-2.0, ValueError),
            (math.nan, ValueError),
            (math.inf, ValueError),
            ("2", TypeError),
            (True, TypeError),
        ]
    ],
    (lambda: setattr(lnn.Sequential(Gain()), "k_coef_lip", -1), ValueError, ["k_coef_lip", "-1"]),
    (lambda: lnn.Sequential(Gain()).insert(0, "relu"), TypeError, ["module", "'relu'"]),
    (lambda: lnn.Sequential("relu"), TypeError, ["Module"]),
]


test_bad_arguments_are_named = tools.refusals(BAD)
