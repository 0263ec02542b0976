"""Layers that subtract means or add a bias, and the residual connection: their constants."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipfuse.nn as lnn

Lipschitz = Callable[..., float]


@pytest.mark.parametrize("k", [1.0, 0.3, 2.5])
@pytest.mark.parametrize(
    "dim, shape",
    [((-2, -1), (2, 3, 4, 2)), ([2, 3], (2, 3, 4, 2)), (1, (4, 3)), ((1, 2), (2, 3, 5))],
    ids=str,
)
def test_layer_centering(
    k: float, dim: Any, shape: tuple[int, ...], lipschitz_at: Lipschitz
) -> None:
    layer = lnn.LayerCentering(3, dim, k_coef_lip=k).double()
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    x = torch.randn(shape, dtype=torch.float64)
    bias = layer.bias.view(1, 3, *[1] * (len(shape) - 2))  # type: ignore[union-attr]
    expected = k * (x - x.mean(dim, keepdim=True)) + bias
    exported = layer.vanilla_export()
    for twin in (layer, layer.eval(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.allclose(twin(x), expected)
    assert lipschitz_at(layer, x) == pytest.approx(k, rel=1e-12)
    assert torch.allclose(exported(x), expected) and not type(exported).__module__.startswith("lip")
    bare = lnn.LayerCentering(3, dim, bias=False)
    assert bare.bias is None and torch.allclose(bare(x), x - x.mean(dim, keepdim=True))
    assert torch.allclose(bare.vanilla_export()(x), bare(x))
    shared = lnn.LayerCentering(dim=dim).double()
    assert torch.allclose(shared(x), bare(x))
    layer.k_coef_lip = 0.7
    assert lipschitz_at(layer, x) == pytest.approx(0.7, rel=1e-12)


@pytest.mark.parametrize("scalar", [1.0, -2.5, 0.5, 0, torch.tensor([3.0])], ids=str)
def test_scale_bias(scalar: Any, lipschitz_at: Lipschitz) -> None:
    layer = lnn.ScaleBiasLayer(scalar, 3).double()
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    for shape in ((4, 3), (2, 3, 2, 2), (2, 3, 4)):  # one layer for all ranks
        x = torch.randn(shape, dtype=torch.float64)
        bias = layer.bias.view(1, 3, *[1] * (len(shape) - 2))  # type: ignore[union-attr]
        expected = x * float(scalar) + bias
        for twin in (layer, layer.vanilla_export(), copy.deepcopy(layer)):
            assert torch.allclose(twin(x), expected)
        assert lipschitz_at(layer, x) == pytest.approx(abs(float(scalar)))
    assert float(layer.get_scaling()) == abs(float(scalar))
    assert layer.scaling == (abs(float(scalar)) > 1)
    bare = lnn.ScaleBiasLayer(scalar, bias=False)
    assert torch.equal(bare(x), x * float(scalar))
    assert torch.equal(bare.vanilla_export()(x), bare(x))


def test_containers_know_which_of_them_are_one_lipschitz(recwarn: pytest.WarningsRecorder) -> None:
    lnn.Sequential(
        lnn.ScaleBiasLayer(0.5),
        lnn.BatchLipNorm(2, normalize=False),
        lnn.BatchCentering(2),
        lnn.LayerCentering(2),
    )
    assert not recwarn.list
    for layer in (lnn.ScaleBiasLayer(-2.0), lnn.BatchLipNorm(2)):
        with pytest.warns(UserWarning, match="cannot vouch"):
            lnn.Sequential(layer)
    with pytest.warns(UserWarning, match="cannot vouch"):
        lnn.Sequential(lnn.PadConv2d(1, 1, 3))


# ---- residual ------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, k: float) -> None:
        super().__init__()
        self.branch = lnn.SpectralLinear(4, 4)
        self.mix = lnn.LipResidual(k_coef_lip=k)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, self.branch(x))


@pytest.mark.parametrize("k", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("alpha", [0.0, -3.0, 1.5, 60.0, -60.0, math.inf])
def test_residual(k: float, alpha: float, lipschitz_at: Lipschitz) -> None:
    block = Block(k).double().eval()
    with torch.no_grad():
        block.mix.alpha.fill_(alpha)
    x, y = torch.randn(2, 3, 4, dtype=torch.float64)
    share = float(torch.sigmoid(torch.tensor(alpha, dtype=torch.float64)))
    assert torch.allclose(block.mix(x, y), k * (share * x + (1 - share) * y))
    # The worst branch: the identity, for which the bound is reached.
    assert lipschitz_at(lambda x: block.mix(x, x), x) == pytest.approx(k, rel=1e-9)
    assert lipschitz_at(block, x) <= k * (1 + 1e-9)
    assert lipschitz_at(lambda z: block.mix(z[:3], z[3:]), torch.cat([x, y])) <= k * (1 + 1e-9)
    exported = block.mix.vanilla_export()
    assert torch.allclose(exported(x, y), block.mix(x, y))
    model = pickle.loads(pickle.dumps(lnn.vanilla_model(block, in_place=False)))
    assert torch.allclose(model(x), block(x))
    block.train()(x).sum().backward()
    assert block.mix.alpha.grad is not None


def test_residual_compiled() -> None:
    torch._dynamo.reset()
    layer = lnn.LipResidual(k_coef_lip=0.5)
    x, y = torch.randn(2, 3, 4)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, y), layer(x, y))


# ---- arguments -----------------------------------------------------------------------------------

Case = tuple[Callable[[], Any], type[Exception], str]
ERRORS: list[Case] = [
    (lambda: lnn.LayerCentering(0), ValueError, "num_features must be an integer >= 1, got 0"),
    (lambda: lnn.LayerCentering(3, "last"), TypeError, "dim must be an integer or a tuple"),
    (lambda: lnn.LayerCentering(3, ()), TypeError, "dim must be an integer or a tuple"),
    (lambda: lnn.LayerCentering(3, (1.0,)), TypeError, "dim must be an integer or a tuple"),  # type: ignore[arg-type]
    (lambda: lnn.LayerCentering(3, bias="yes"), TypeError, "bias must be True or False"),  # type: ignore[arg-type]
    (lambda: lnn.LayerCentering(3, k_coef_lip=0), ValueError, "k_coef_lip must be.*got 0"),
    (
        lambda: lnn.LayerCentering(3)(torch.zeros(4, 3)),
        ValueError,
        r"dim must not name the batch, dimension 0, got \(-2, -1\) for x of shape \(4, 3\)",
    ),
    (lambda: lnn.LayerCentering(3, 2)(torch.zeros(4, 3)), ValueError, "dim must name dimensions"),
    (lambda: lnn.LayerCentering(3, (1, -1))(torch.zeros(4, 3)), ValueError, "each.*once"),
    (
        lambda: lnn.LayerCentering(3)(torch.zeros(2, 1, 4, 4)),
        ValueError,
        r"x must have num_features=3 channels in dimension 1, got \(2, 1, 4, 4\)",
    ),
    (lambda: lnn.LayerCentering(3, 1)(torch.zeros(3)), ValueError, "x must have at least 2"),
    (lambda: lnn.ScaleBiasLayer(math.nan), ValueError, "scalar must be a finite number, got nan"),
    (lambda: lnn.ScaleBiasLayer("1"), TypeError, "scalar must be a finite number, got '1'"),  # type: ignore[arg-type]
    (lambda: lnn.ScaleBiasLayer(torch.ones(2)), TypeError, "scalar must be a finite number"),
    (lambda: lnn.ScaleBiasLayer(1.0, -1), ValueError, "num_features must be"),
    (lambda: lnn.ScaleBiasLayer(1.0, 3, 1), TypeError, "bias must be True or False"),  # type: ignore[arg-type]
    (lambda: lnn.ScaleBiasLayer(1.0, 3)(torch.zeros(2, 1)), ValueError, "x must have num_feat"),
    (lambda: lnn.LipResidual(k_coef_lip=math.inf), ValueError, "k_coef_lip must be.*got inf"),
    (lambda: lnn.LipResidual(0.0), TypeError, r"device must be a torch\.device, .* got 0\.0"),
    (
        lambda: lnn.LipResidual("cpux"),
        ValueError,
        "device must be .* got 'cpux': Expected one of cpu",
    ),
    (
        lambda: lnn.LipResidual()(torch.zeros(2, 1, 4), torch.zeros(2, 3, 4)),
        ValueError,
        r"y must have the shape of x, \(2, 1, 4\), got \(2, 3, 4\)",
    ),
    (lambda: lnn.LipResidual()(torch.zeros(2).int(), torch.zeros(2)), TypeError, "x must have"),
    (lambda: lnn.LipResidual()(torch.zeros(2), 1.0), TypeError, "y must be a torch"),
]


@pytest.mark.parametrize("call, error, message", ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error
