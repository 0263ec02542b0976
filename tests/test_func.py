"""torch.func and activation checkpointing on whole networks."""

from __future__ import annotations

import copy
from typing import Any

import every_layer
import pytest
import torch
from every_layer import METHODS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lipfuse
import lipfuse.nn as lnn
from lipfuse.parametrizations import bjorck_norm, frobenius_norm, orthogonal, spectral_norm

every_method = pytest.mark.parametrize("method", METHODS)


def network(method: str) -> Any:
    settings = METHODS[method]
    model = lnn.Sequential(
        lnn.SpectralConv2d(1, 4, 3, padding=1, **settings),
        lnn.GroupSort2(),
        lnn.ScaledL2NormPool2d(2),
        lnn.SpectralConv2d(4, 4, 3, stride=2, padding=1, groups=2, **settings),
        lnn.MaxMin(),
        nn.Flatten(),
        lnn.SpectralLinear(8, 8, **settings),
        lnn.FullSort(),
        lnn.FrobeniusLinear(8, 3, disjoint_neurons=False),
        k_coef_lip=2.0,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("training", [True, False])
@every_method
def test_an_ensemble_of_networks(method: str, training: bool) -> None:
    """stack_module_state, functional_call, vmap of gradients: those of each member alone."""
    members = [network(method).train(training) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    x = torch.randn(5, 1, 4, 4)

    def loss(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (p, b), (x,)).tanh().square().sum()

    copied = {n: b.clone() for n, b in buffers.items()}
    gradients, values = torch.vmap(torch.func.grad_and_value(loss))(parameters, copied)
    for i, member in enumerate(members):
        expected = member(x).tanh().square().sum()
        expected.backward()
        assert torch.allclose(values[i], expected, rtol=1e-3)
        for name, parameter in member.named_parameters():
            assert torch.allclose(gradients[name][i], parameter.grad, rtol=2e-2, atol=2e-3), name
        for name, buffer in member.named_buffers():  # advanced in place, as alone
            assert torch.allclose(copied[name][i], buffer, atol=1e-4), name


@every_method
def test_jacobians_and_per_sample_gradients(method: str) -> None:
    model = network(method).eval()
    x = torch.randn(3, 1, 4, 4)
    found = torch.func.jacrev(model)(x)
    assert torch.allclose(found, torch.autograd.functional.jacobian(model, x), atol=1e-5)
    parameters = dict(model.named_parameters())

    def loss(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, p, (sample[None],)).square().sum()

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        model.zero_grad()
        model(sample[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(gradients[name][i], parameter.grad, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers(reentrant: bool) -> None:
    """Computed again in the backward: the same gradients."""
    model = every_layer.Together()
    twin = copy.deepcopy(model)
    for name, layer, other, x in zip(
        every_layer.LAYERS, model.layers, twin.layers, every_layer.inputs(4), strict=True
    ):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = checkpoint(layer, a, use_reentrant=reentrant)
        assert isinstance(out, Tensor)
        out.tanh().sum().backward()
        other(b).tanh().sum().backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name  # type: ignore[arg-type]
        for p, q in zip(layer.parameters(), other.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-4), name  # type: ignore[arg-type]
        for c, d in zip(layer.buffers(), other.buffers(), strict=True):
            assert torch.equal(c, d), name  # one step of power iteration, not two


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("register", [spectral_norm, bjorck_norm, orthogonal, frobenius_norm])
def test_checkpointed_parametrizations(register: Any, reentrant: bool) -> None:
    for layer, x in (
        (nn.Linear(6, 4), torch.randn(3, 6)),
        (nn.Conv2d(2, 4, 3), torch.randn(3, 2, 5, 5)),
        (nn.ConvTranspose2d(2, 4, 3), torch.randn(3, 2, 5, 5)),
    ):
        layer = register(layer)
        twin = copy.deepcopy(layer)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        checkpoint(layer, a, use_reentrant=reentrant).tanh().sum().backward()  # type: ignore[union-attr]
        twin(b).tanh().sum().backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-5)  # type: ignore[arg-type]
        for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]
        for c, d in zip(layer.buffers(), twin.buffers(), strict=True):
            assert torch.equal(c, d)


def test_checkpointed_segments_of_a_fused_network() -> None:
    """Recomputed after the forward has ended, when nothing is handed out any more."""
    model = network("polar")
    twin = copy.deepcopy(model)

    class Segmented(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Sequential(*model[:4]), nn.Sequential(*model[4:])

        def forward(self, x: Tensor) -> Any:
            return self.rest(checkpoint(self.first, x, use_reentrant=False))

    segmented = lipfuse.fuse(Segmented())
    for _ in range(2):
        x, y = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
        for m in (segmented, twin):
            m.zero_grad()
            (m(x).square().sum() + m(y).tanh().sum()).backward()
        for (name, a), b in zip(model.named_parameters(), twin.named_parameters(), strict=True):
            assert torch.allclose(a.grad, b[1].grad, rtol=1e-3, atol=1e-3), name
            with torch.no_grad():
                a.sub_(a.grad, alpha=0.1)
                b[1].copy_(a)
    assert torch.allclose(copy.deepcopy(segmented)(x), segmented(x))
