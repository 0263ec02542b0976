"""Layers of a type share a class, and nothing else: one layer's changes are its own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lipfuse.nn as lnn
import lipfuse.parametrizations as P


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Own(lnn.SpectralLinear):
    """A user's layer."""


def layers(count: int = 2, kind: Any = lnn.SpectralLinear) -> list[Any]:
    made = [kind(5, 4) for _ in range(count)]
    for layer in made:
        nn.init.normal_(layer.bias)
    return made


def test_one_class_for_each_type() -> None:
    a, b = layers()
    assert type(a) is type(b)
    assert type(layers(1, Own)[0]) is not type(a) is not type(lnn.SpectralConv2d(2, 3, 1))
    for layer, kind in ((a, lnn.SpectralLinear), (layers(1, Own)[0], Own)):
        assert parametrize.type_before_parametrizations(layer) is kind
        assert type(layer).__name__ == f"Parametrized{kind.__name__}"
        assert type(copy.deepcopy(layer)) is type(pickle.loads(pickle.dumps(layer))) is type(layer)


def test_a_parametrized_bias_is_that_of_one_layer() -> None:
    a, b = layers()
    x = torch.randn(3, 5)
    expected = a(x) + a.bias, b(x)
    parametrize.register_parametrization(a, "bias", Double())
    assert torch.allclose(a(x), expected[0]) and torch.equal(b(x), expected[1])
    assert isinstance(b.bias, nn.Parameter) and "bias" in b.state_dict()
    assert "parametrizations.bias.original" in a.state_dict()
    b.bias = nn.Parameter(torch.zeros(4))
    assert torch.equal(b.bias, torch.zeros(4)) and torch.allclose(a(x), expected[0])
    del b.bias
    assert not hasattr(b, "bias")
    b.register_parameter("bias", None)
    assert b(x).shape == (3, 4)
    (new,) = layers(1)  # the class has the property by now
    assert torch.allclose(
        torch.compile(new, backend="aot_eager", fullgraph=True)(x), new(x), atol=1e-6
    )
    parametrize.remove_parametrizations(a, "bias")
    assert isinstance(a.bias, nn.Parameter) and torch.allclose(a(x), expected[0])


def test_a_removed_normalisation_is_that_of_one_layer() -> None:
    a, b = layers()
    weight = a.weight.detach().clone()
    parametrize.remove_parametrizations(a, "weight")
    assert type(a) is lnn.SpectralLinear and torch.equal(a.weight, weight)
    nn.init.normal_(b.parametrizations.weight.original)
    assert torch.linalg.matrix_norm(b.weight.detach(), 2) <= 1 + 1e-5
    twin = pickle.loads(pickle.dumps(a))
    assert type(twin) is lnn.SpectralLinear and torch.equal(twin.weight, weight)
    # And back.
    P.orthogonal(a)
    assert torch.allclose(a.weight, weight, atol=1e-6)
    assert torch.equal(pickle.loads(pickle.dumps(a)).weight, a.weight)
    P.remove_orthogonal(a)
    assert type(a) is lnn.SpectralLinear


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_chain_and_hooks_are_honoured() -> None:
    a, b = layers()
    expected = a.weight.detach() * 2
    parametrize.register_parametrization(a, "weight", Double())
    assert torch.equal(a.weight, expected)
    seen: list[Any] = []
    b.parametrizations.weight.register_forward_pre_hook(lambda *_: seen.append("before"))
    b.parametrizations.weight[0].register_forward_hook(lambda *_: seen.append("after"))
    b.parametrizations.weight[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    b(torch.randn(1, 5)).sum().backward()
    assert seen == ["before", "after", "backward"]
    (c,) = layers(1)
    c.parametrizations.weight.register_full_backward_pre_hook(lambda *_: seen.append("first"))
    c(torch.randn(1, 5)).sum().backward()
    assert seen[-1] == "first"


def test_cached_keeps_layers_apart() -> None:
    a, b = layers()
    with parametrize.cached():
        first = a.weight
        assert a.weight is first and b.weight is not first
        assert torch.equal(
            b.weight, b.parametrizations.weight[0](b.parametrizations.weight.original)
        )
    assert a.weight is not first


@pytest.mark.parametrize("parametrized_bias", [False, True])
def test_unpickling_where_no_such_layer_was_made_yet(
    parametrized_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = layers(1, Own)
    if parametrized_bias:
        parametrize.register_parametrization(a, "bias", Double())
    stored = pickle.dumps(a)
    monkeypatch.delattr(Own, "_class_with_computed_weight")
    twin = pickle.loads(stored)
    assert type(twin) is not type(a) and type(twin) is type(layers(1, Own)[0])
    x = torch.randn(3, 5)
    assert torch.equal(twin(x), a(x))
    assert twin.state_dict().keys() == a.state_dict().keys()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"eps_bjorck": None}, {"method": "bjorck"}],
    ids=["polar", "spectral", "bjorck"],
)
def test_ensembles_are_stacked_by_torch(settings: dict[str, Any], training: bool) -> None:
    """torch.func.stack_module_state, which wants one class: values and gradients under vmap."""
    members = [lnn.SpectralLinear(5, 4, **settings).train(training) for _ in range(3)]
    for member in members:
        nn.init.normal_(member.parametrizations.weight.original)  # type: ignore[union-attr]
    parameters, buffers = torch.func.stack_module_state(members)  # type: ignore[arg-type]
    base = copy.deepcopy(members[0]).to("meta")
    x = torch.randn(2, 5)

    def loss(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (p, b), (x,)).tanh().square().sum()

    gradients, values = torch.vmap(torch.func.grad_and_value(loss))(
        parameters, {n: b.clone() for n, b in buffers.items()}
    )
    for i, member in enumerate(members):
        expected = member(x).tanh().square().sum()
        expected.backward()
        assert torch.allclose(values[i], expected, rtol=1e-4)
        for name, parameter in member.named_parameters():
            assert torch.allclose(gradients[name][i], parameter.grad, rtol=1e-2, atol=1e-3)
