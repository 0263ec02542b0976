"""condense: the normalised weights in the parameters, the same model."""

from __future__ import annotations

from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import lipfuse
import lipfuse.nn as lnn
from lipfuse import parametrizations as ours

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "polar": (lambda: lnn.SpectralLinear(6, 4, k_coef_lip=3.0), (6,)),
    "bjorck": (lambda: lnn.SpectralLinear(6, 4, method="bjorck"), (6,)),
    "spectral": (lambda: lnn.SpectralLinear(6, 4, eps_bjorck=None, k_coef_lip=0.5), (6,)),
    "frobenius": (lambda: lnn.FrobeniusLinear(6, 4, k_coef_lip=2.0), (6,)),
    "conv": (lambda: lnn.SpectralConv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "half": (lambda: lnn.SpectralLinear(6, 4, dtype=torch.bfloat16), (6,)),
    "torch spectral": (lambda: parametrizations.spectral_norm(nn.Linear(6, 4)), (6,)),
    "torch orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 4)), (6,)),
    "chain": (
        lambda: ours.bjorck_norm(
            ours.spectral_norm(nn.Linear(6, 4, dtype=torch.float64), n_power_iterations=50)
        ),
        (6,),
    ),
    "conv chain": (
        lambda: ours.lconv_norm(ours.spectral_norm(nn.Conv2d(2, 3, 3), n_power_iterations=50)),
        (2, 5, 5),
    ),
}


def drift(layer: Any) -> None:
    """Away from orthonormal, as training does it."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if "original" in name:
                p.copy_(p + 0.3 * torch.randn_like(p))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_the_function_stays_and_the_parameter_is_normal(name: str, training: bool) -> None:
    build, shape = LAYERS[name]
    layer = build()
    drift(layer)
    _ = layer.weight  # vectors of power iteration follow the parameter
    chain = layer.parametrizations.weight
    x = torch.randn(3, *shape).to(layer.bias.dtype)
    before = layer.eval()(x).double()
    parameters = dict(layer.named_parameters())
    memory = {key: p.data_ptr() for key, p in parameters.items()}
    layer.train(training)
    assert lipfuse.condense(layer) is layer
    assert layer.training is training
    eps = torch.finfo(x.dtype).eps
    # Power iteration that has not converged, Björck's iteration that stopped by its tolerance.
    tolerance = max(100 * eps, 1e-5 if name in ("torch spectral", "chain") else 0.0)
    assert torch.allclose(layer.eval()(x).double(), before, atol=tolerance)
    # The optimizer's parameters, in the same memory.
    assert all(layer.get_parameter(key) is p for key, p in parameters.items())
    assert {key: p.data_ptr() for key, p in parameters.items()} == memory
    if name in ("polar", "bjorck", "spectral", "conv", "half", "chain"):
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        w = chain.original.detach().double().reshape(groups, layer.weight.shape[0] // groups, -1)
        assert tools.largest_singular_value(w) == pytest.approx(1, abs=tolerance)
    elif name == "frobenius":
        assert torch.allclose(chain.original.norm(dim=1), torch.ones(4))
    else:
        return
    # Then there is nothing left to do.
    once = [p.detach().clone() for p in layer.parameters()]
    lipfuse.condense(layer)
    for p, q in zip(layer.parameters(), once, strict=True):
        assert torch.allclose(p, q, atol=tolerance)


class Cubed(nn.Module):
    """Its inverse is not one."""

    def forward(self, w: Tensor) -> Tensor:
        return w**3

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


class WithoutInverse(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.clamp(-1, 1)


@pytest.mark.parametrize("step", [Cubed(), WithoutInverse(), ours.LConvNorm(0.5)])
def test_what_cannot_be_condensed_is_left_alone(step: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 3), lnn.SpectralLinear(3, 3), nn.Linear(3, 3))
    parametrize.register_parametrization(model[0], "weight", step, unsafe=True)
    drift(model)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    lipfuse.condense(model)
    changed = [key for key, p in model.named_parameters() if not torch.equal(p, before[key])]
    assert changed == ["1.parametrizations.weight.original"]


def test_several_originals() -> None:
    layer = parametrizations.weight_norm(nn.Linear(5, 3))
    drift(layer)
    x = torch.randn(2, 5)
    before = layer(x)
    lipfuse.condense(layer)
    assert torch.allclose(layer(x), before, atol=1e-6)


def test_zero_and_rank_deficient_weights_keep_their_function() -> None:
    for matrix in (torch.zeros(4, 4), tools.matrix("deficient", (4, 4)).float()):
        layer: Any = lnn.SpectralLinear(4, 4)
        layer.weight = matrix
        before = layer.eval().weight.clone()
        lipfuse.condense(layer)
        assert torch.allclose(layer.weight, before, atol=1e-5)


def test_training_goes_on() -> None:
    model = lnn.Sequential(lnn.SpectralLinear(4, 8), lnn.GroupSort2(), lnn.SpectralLinear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.register_step_post_hook(lambda *_: lipfuse.condense(model))
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    losses = []
    for _ in range(20):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        w = model[0].parametrizations.weight.original.detach()  # type: ignore[union-attr]
        assert torch.allclose(w.mT @ w, torch.eye(4), atol=1e-5)
    assert losses[-1] < 0.9 * losses[0]


def test_errors_before_anything_changes() -> None:
    with pytest.raises(TypeError, match="model must be a torch"):
        lipfuse.condense([])  # type: ignore[type-var]
    with pytest.raises(ValueError, match="at least one parametrized tensor, Linear has none"):
        lipfuse.condense(nn.Linear(2, 2))
    for broken in (lnn.SpectralLinear(3, 3), parametrizations.spectral_norm(nn.Linear(3, 3))):
        model: Any = nn.Sequential(lnn.SpectralLinear(3, 3), broken)
        drift(model)
        with torch.no_grad():
            model[1].parametrizations.weight.original[0, 0] = torch.nan
        before = model[0].parametrizations.weight.original.detach().clone()
        with pytest.raises(ValueError, match="finite"):
            lipfuse.condense(model)
        assert torch.equal(model[0].parametrizations.weight.original, before)
