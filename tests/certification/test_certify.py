"""The bound of a network: never below what its dense Jacobian shows, and close where it can be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn
from lipfuse import certification


def jacobian_norm(model: nn.Module, x: Tensor) -> float:
    """The largest singular value of the dense Jacobian of one sample, in float64."""
    x = x.double()[None]
    jacobian = torch.autograd.functional.jacobian(model, x, vectorize=True)
    return tools.largest_singular_value(jacobian.reshape(-1, x.numel()))


def steepest(model: nn.Module, shape: tuple[int, ...], tries: int = 6) -> float:
    """A lower bound of the constant: Jacobians at random points, and distances of random pairs."""
    exact = copy.deepcopy(lipfuse.vanilla_model(model, in_place=False)).double().eval()
    found = 0.0
    for i in range(tries):
        scale = 10.0 ** (i % 3 - 1)
        x, y = scale * torch.randn(2, *shape, dtype=torch.float64)
        found = max(found, jacobian_norm(exact, x))
        with torch.no_grad():
            gap = (exact(x[None]) - exact(y[None])).norm() / (x - y).norm()
        found = max(found, float(gap))
    return found


# ---- single operations ---------------------------------------------------------------------------

IMAGE = (4, 5, 6)
LINEAR: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(7, 5), (7,)),
    "Linear on vectors of vectors": (lambda: nn.Linear(7, 5), (3, 7)),
    "Flatten": (nn.Flatten, IMAGE),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 2)), IMAGE),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d((2, 1, 0, 3)), IMAGE),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d(3), (2, 5)),
    "CircularPad3d": (lambda: nn.CircularPad3d(1), (1, 3, 2, 4)),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, -2, 0, 1)), IMAGE),
    "ConstantPad1d": (lambda: nn.ConstantPad1d(2, -3.0), (2, 5)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "AvgPool2d ceil": (lambda: nn.AvgPool2d(3, 2, ceil_mode=True), IMAGE),
    "AvgPool2d divisor": (lambda: nn.AvgPool2d(2, 1, divisor_override=1), IMAGE),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, 1, count_include_pad=False, padding=1), (2, 7)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(1), (2, 7)),
    "nearest": (lambda: nn.Upsample(scale_factor=(2.0, 1.5)), IMAGE),
    "bilinear": (lambda: nn.Upsample(size=(7, 9), mode="bilinear"), IMAGE),
    "bilinear down": (
        lambda: nn.Upsample(size=(3, 4), mode="bilinear", align_corners=True),
        IMAGE,
    ),
    "bicubic": (lambda: nn.Upsample(size=(8, 9), mode="bicubic"), IMAGE),
    "trilinear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), (1, 2, 3, 3)),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), (1, 4, 6)),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "Unfold": (lambda: nn.Unfold(3, stride=2, padding=1), IMAGE),
    "Fold": (lambda: nn.Fold((4, 4), 3), (9, 4)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 3, 3, padding=1), IMAGE),
    "Conv2d same, groups": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same", groups=2), IMAGE),
    "Conv2d circular": (lambda: nn.Conv2d(4, 3, 3, padding=2, padding_mode="circular"), IMAGE),
    "Conv2d reflect": (
        lambda: nn.Conv2d(4, 3, 3, stride=2, padding=2, padding_mode="reflect"),
        IMAGE,
    ),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2, dilation=2), (1, 4, 3, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), (2, 5)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, groups=2),
        IMAGE,
    ),
    "BatchNorm2d": (lambda: _with_statistics(nn.BatchNorm2d(4)), IMAGE),
    "InstanceNorm1d": (
        lambda: _with_statistics(nn.InstanceNorm1d(2, affine=True, track_running_stats=True)),
        (2, 7),
    ),
    "x - mean": (lambda: Function(lambda x: x - x.mean((2, 3), keepdim=True)), IMAGE),
    "mean": (lambda: Function(lambda x: x.mean(2)), IMAGE),
    "sum": (lambda: Function(lambda x: torch.sum(x, dim=(1, 3), keepdim=True)), IMAGE),
    "power of one": (lambda: Function(lambda x: x**1), (6,)),
    "cumsum": (lambda: Function(lambda x: x.cumsum(1)), (6,)),
    "repeat": (lambda: Function(lambda x: x.repeat(1, 3)), (6,)),
    "expand": (lambda: Function(lambda x: x[:, None].expand(-1, 4, -1)), (6,)),
    "fancy index": (lambda: Function(lambda x: x[:, [0, 0, 2, 0]]), (6,)),
    "slices": (lambda: Function(lambda x: x[..., 1::2, None, :3]), IMAGE),
    "chunks swapped": (lambda: Function(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), IMAGE),
    "copies side by side": (lambda: Function(lambda x: torch.cat([x, x[:, :2]], 1)), (6,)),
    "unbind and stack": (lambda: Function(lambda x: torch.stack([*x.unbind(1)], -1)), IMAGE),
    "x + x": (lambda: Function(lambda x: x + x), (6,)),
    "x - x": (lambda: Function(lambda x: x - x), (6,)),
    "residual": (lambda: Residual(nn.Linear(6, 6)), (6,)),
    "broadcast sum": (lambda: Function(lambda x: x[:, :1] + 2.0 * x - torch.ones(6)), (6,)),
    "products with constants": (
        lambda: Function(lambda x: (3.0 * x * torch.arange(-2.0, 4.0) / 5.0)[:, :5]),
        (6,),
    ),
    "matmul": (lambda: Function(lambda x: x @ torch.arange(12, dtype=x.dtype).view(6, 2)), (6,)),
    "masks": (
        lambda: Function(
            lambda x: torch.where(torch.arange(6) > 2, x, -x).masked_fill(torch.arange(6) > 4, 2.0)
        ),
        (6,),
    ),
    "two linear layers": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5)), (6,)),
    "convolution and normalisation": (
        lambda: nn.Sequential(nn.Conv2d(4, 3, 2), _with_statistics(nn.BatchNorm2d(3))),
        IMAGE,
    ),
    "symmetric pad and convolution": (
        lambda: lnn.SpectralConv2d(
            4, 3, 3, padding=(2, 1), padding_mode="symmetric"
        ).vanilla_export(),
        IMAGE,
    ),
}


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _with_statistics(norm: Any) -> nn.Module:
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.weight)
    return norm.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_have_their_own_norm(name: str) -> None:
    make, shape = LINEAR[name]
    model = make().eval()
    certificate = lipfuse.certify(model, shape)
    exact = copy.deepcopy(model).double()
    norm = jacobian_norm(exact, torch.randn(shape))
    assert norm <= certificate.lipschitz * (1 + 1e-12)
    assert certificate.lipschitz <= norm * (1 + 1e-4) + 1e-12
    assert 0 <= certificate.margin * certificate.lipschitz < 1e-8
    # Each output by itself, too.
    jacobian = torch.autograd.functional.jacobian(exact, torch.zeros(1, *shape).double())
    rows = jacobian.reshape(-1, math.prod(shape))
    assert (rows.norm(dim=1) <= certificate.outputs * (1 + 1e-12)).all()
    if certificate.pairs is not None:
        differences = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        assert (differences <= certificate.pairs * (1 + 1e-12)).all()


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.3), nn.LeakyReLU(-2.5), nn.ELU(), nn.ELU(1.7), nn.SELU(),
    nn.CELU(0.5), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.Tanh(),
    nn.Softplus(), nn.Softplus(2.0, 30.0), nn.Softsign(), nn.Softshrink(), nn.Tanhshrink(),
    nn.LogSigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.Threshold(0.5, 0.5),
    nn.RReLU(-3.0, -1.0).eval(), nn.PReLU(init=-1.4), nn.Dropout(), nn.AlphaDropout(),
    nn.Identity(), Function(torch.sin), Function(torch.erf),
    Function(lambda x: x.clamp(-1, 2).abs()),
    Function(lambda x: torch.where(x > 0.5, x, 0.5)),
    Function(lambda x: torch.max(x, torch.zeros(1, 1))), lnn.LPReLU(k_coef_lip=0.5),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_have_their_largest_slope(activation: nn.Module) -> None:
    activation.eval()
    bound = lipfuse.certify(activation, (1,)).lipschitz
    x = torch.linspace(-40, 40, 400_001).double()[:, None].requires_grad_()
    exact = copy.deepcopy(lipfuse.vanilla_model(activation, in_place=False)).double()
    (slopes,) = torch.autograd.grad(exact(x).sum(), x)
    largest = float(slopes.abs().max())
    assert largest * (1 - 1e-7) <= bound <= largest * (1 + 3e-4)


def _reflected(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """HouseHolder's formula with normals that are not of unit length."""
    sine, cosine = scale.to(x.dtype), 0.0 * scale.to(x.dtype)
    twice = 2.0 * F.relu(x * sine - y * cosine)
    return torch.cat((x - twice * sine, y + twice * cosine), 1)


POOLS: dict[str, tuple[nn.Module, tuple[int, ...], float]] = {
    "MaxPool2d overlapping": (nn.MaxPool2d(3, 1), (1, 6, 6), 3.0),
    "MaxPool2d padded": (nn.MaxPool2d(3, 2, 1), (1, 6, 6), 2.0),
    "MaxPool2d dilated": (nn.MaxPool2d(2, 2, dilation=2), (1, 6, 6), 2.0),
    "MaxPool2d oblong": (nn.MaxPool2d((2, 3), (3, 1)), (1, 6, 6), math.sqrt(3)),
    "MaxPool1d disjoint": (nn.MaxPool1d(2, ceil_mode=True), (2, 5), 1.0),
    "MaxPool3d": (nn.MaxPool3d(2, 1), (1, 3, 2, 2), math.sqrt(2)),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((3, 1)), (1, 4, 4), math.sqrt(2)),
    "LPPool2d": (nn.LPPool2d(2, 2), (1, 4, 4), 1.0),
    "LPPool2d overlapping": (nn.LPPool2d(2, 2, 1), (1, 5, 5), 2.0),
    "LPPool1d, 4-norms": (nn.LPPool1d(4, 3), (1, 9), 1.0),
    "LPPool2d cut off": (nn.LPPool2d(2, 2, ceil_mode=True), (1, 3, 3), 2.0),
    "sort": (Function(lambda x: x.sort(1, descending=True).values), (5,), 1.0),
    "topk": (Function(lambda x: x.topk(2, dim=1)[0]), (5,), 1.0),
    "largest": (Function(lambda x: x.max(1, keepdim=True)[0] + x.amax(1, True)), (5,), 2.0),
    "norm": (Function(lambda x: x.norm(dim=1, keepdim=True)), (5,), 1.0),
    "root of squares": (Function(lambda x: (x.square().sum(1) + 0.1).sqrt()), (5,), 1.0),
    "root of overlapping squares": (
        Function(lambda x: F.avg_pool1d(x[:, None].square(), 2, 1).mul(6.0).sqrt()),
        (5,),
        math.sqrt(6.0),
    ),
    "reflection by a long vector": (
        Function(lambda x: _reflected(x[:, :2], x[:, 2:], torch.tensor([1.0, 2.0]))),
        (4,),
        7.0,
    ),
    "Softmax": (nn.Softmax(1), (2,), 0.5),
    "LogSoftmax": (nn.LogSoftmax(1), (4,), 2.0),
    "logsumexp": (Function(lambda x: x.logsumexp(1)), (4,), 1.0),
    "larger of two": (Function(lambda x: torch.maximum(x, -2 * x)), (3,), math.sqrt(5)),
    "smallest and largest": (
        Function(lambda x: torch.cat((x.min(1, True)[0], x.max(1, True)[0]), 1)),
        (4,),
        1.0,
    ),
    "smallest and largest of one": (
        Function(lambda x: torch.stack((x.amin(1), x.amax(1)), 1)),
        (1,),
        math.sqrt(2),
    ),
    "smallest and largest of different": (
        Function(lambda x: torch.stack((x.amin(1), (3.0 * x).amax(1)), 1)),
        (1,),
        math.sqrt(10),
    ),
    "CReLU": (Function(lambda x: torch.cat((F.relu(x), F.relu(-x)), 1)), (4,), 1.0),
}


@pytest.mark.parametrize("name", POOLS)
def test_other_operations(name: str) -> None:
    model, shape, constant = POOLS[name]
    bound = lipfuse.certify(model, shape).lipschitz
    assert bound == pytest.approx(constant, rel=1e-6)
    assert steepest(model, shape, 12) <= bound
    if "Pool" in name:
        # One large element is what all its windows see.
        x = torch.zeros(shape, dtype=torch.float64)
        best = 0.0
        for i in range(x.numel()):
            x.view(-1)[i] = 1.0
            best = max(best, jacobian_norm(model, x))
            x.view(-1)[i] = 0.0
        assert best >= constant * (1 - 1e-6)


# ---- Lipschitz layers ----------------------------------------------------------------------------

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "MaxMin": (lambda: lnn.MaxMin(k_coef_lip=0.5), (4, 3), 0.5),
    "MaxMin, last": (lambda: lnn.MaxMin(dim=-1), (4, 3), 1.0),
    "GroupSort": (lambda: lnn.GroupSort(3, k_coef_lip=2.0), (6, 2), 2.0),
    "GroupSort2": (lnn.GroupSort2, (6, 2, 2), 1.0),
    "FullSort": (lambda: lnn.FullSort(k_coef_lip=1.5), (5,), 1.5),
    "HouseHolder": (lambda: lnn.HouseHolder(6, theta_initializer="normal"), (6, 2), 1.0),
    "LPReLU": (lambda: lnn.LPReLU(init=3.0, k_coef_lip=2.0), (4,), 2.0),
    "ScaledAvgPool2d": (lambda: lnn.ScaledAvgPool2d(2, k_coef_lip=2.0), (2, 4, 6), 2.0),
    "ScaledAvgPool2d, cut": (lambda: lnn.ScaledAvgPool2d(2, ceil_mode=True), (2, 3, 5), 1.0),
    "ScaledAvgPool2d, 8": (lambda: lnn.ScaledAvgPool2d(2, divisor_override=8), (2, 4, 4), 0.5),
    "ScaledAdaptiveAvgPool2d": (lambda: lnn.ScaledAdaptiveAvgPool2d(1), (2, 3, 5), 1.0),
    "ScaledL2NormPool2d": (lambda: lnn.ScaledL2NormPool2d(2, ceil_mode=True), (2, 3, 5), 1.0),
    "ScaledL2NormPool2d, k": (lambda: lnn.ScaledL2NormPool2d(2, k_coef_lip=3.0), (2, 4, 4), 3.0),
    "ScaledAdaptativeL2NormPool2d": (lnn.ScaledAdaptativeL2NormPool2d, (2, 3, 5), 1.0),
    "InvertibleDownSampling": (lambda: lnn.InvertibleDownSampling(2, 0.5), (2, 4, 4), 0.5),
    "InvertibleUpSampling": (lambda: lnn.InvertibleUpSampling(2, 2.0), (4, 2, 3), 2.0),
    "SpectralLinear": (lambda: lnn.SpectralLinear(9, 7, k_coef_lip=2.0), (9,), 2.0),
    "FrobeniusLinear": (lambda: lnn.FrobeniusLinear(9, 1, disjoint_neurons=False), (9,), 1.0),
    "LayerCentering": (lambda: lnn.LayerCentering(2, k_coef_lip=2.0), (2, 3, 4), 2.0),
    "BatchLipNorm": (lambda: lnn.BatchLipNorm(3), (3, 4), 1.0),
    "ScaleBiasLayer": (lambda: lnn.ScaleBiasLayer(-2.0, 3), (3, 4), 2.0),
    "Sequential": (lambda: lnn.Sequential(nn.ReLU(), nn.Flatten(), k_coef_lip=3.0), (2, 3), 3.0),
    "Sequential of Sequential": (
        lambda: lnn.Sequential(
            lnn.Sequential(lnn.SpectralLinear(6, 6), lnn.FullSort()),
            lnn.SpectralLinear(6, 6),
            k_coef_lip=4.0,
        ),
        (6,),
        4.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_lipschitz_layers_and_their_exports(name: str, exported: bool) -> None:
    make, shape, constant = LAYERS[name]
    layer = make()
    model = lipfuse.vanilla_model(layer, in_place=False) if exported else layer
    bound = lipfuse.certify(model, shape).lipschitz
    assert bound == pytest.approx(constant, rel=1e-5)
    assert steepest(layer, shape) <= bound * (1 + 1e-12)
    assert layer.training, "it is left as it was"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"padding": 1},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "symmetric", "stride": 2},
    ],
    ids=str,
)
def test_convolutions_are_bounded_tighter_than_they_promise(settings: dict[str, Any]) -> None:
    layer = lnn.SpectralConv2d(3, 8, 3, k_coef_lip=2.0, **settings)
    exported = lipfuse.certify(layer.vanilla_export(), (3, 6, 6)).lipschitz
    bound = lipfuse.certify(layer, (3, 6, 6)).lipschitz
    norm = tools.operator_norm(copy.deepcopy(layer).eval(), (3, 6, 6))
    assert norm * (1 - 1e-6) <= bound <= norm * (1 + 1e-4) <= 2.0 + 1e-3
    assert exported == pytest.approx(bound, rel=1e-6)


def test_a_pad_of_its_own_counts_as_part_of_a_large_convolution() -> None:
    """Too large to be written out, the pad alone has norm 2, and the two together 1."""
    layer = lnn.SpectralConv2d(2, 16, 3, padding=1, padding_mode="symmetric")
    plain = layer.vanilla_export()
    assert isinstance(plain, nn.Sequential)
    assert lipfuse.certify(plain[0], (2, 24, 24)).lipschitz == pytest.approx(2.0)
    assert lipfuse.certify(plain, (2, 24, 24)).lipschitz <= 1 + 1e-5


def test_weights_count_as_they_are_not_as_they_are_meant() -> None:
    """A promise that was broken behind the layer's back is noticed."""
    layer = lnn.SpectralLinear(6, 6)
    parametrization: Any = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    parametrization.scale = 7.0
    assert layer.k_coef_lip == 1.0
    assert lipfuse.certify(layer, (6,)).lipschitz == pytest.approx(7.0)


# ---- networks ------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block as ResNets have it, in-place ReLU and all."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = _with_statistics(nn.BatchNorm2d(out))
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = _with_statistics(nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class Net(nn.Module):
    """Checks shapes, asks what it is given, and uses functions as well as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != 3:
            raise ValueError("an image is needed")
        x = F.max_pool2d(F.silu(self.stem(x)), 3, stride=2, padding=1)
        x = self.blocks(x)
        x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return self.head(x)


class Mean(nn.Module):
    """A learnt mean of the input and of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = lnn.Sequential(lnn.SpectralConv1d(4, 4, 3, padding=1), lnn.GroupSort2())
        self.join = lnn.LipResidual()

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.branch(x))


class Dense(nn.Module):
    """Concatenations that share all that was before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 * (i + 1), 4) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, torch.tanh(layer(x))], -1)
        return x


class Heads(nn.Module):
    """Two branches of their own; a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 5)
        self.left = nn.Sequential(nn.ELU(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        twice = self.shared(F.relu(self.shared(x)))
        return torch.hstack((self.left(x), self.left(-twice)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Net, (3, 8, 8)),
    "learnt mean": (Mean, (4, 6)),
    "dense": (Dense, (4,)),
    "heads": (Heads, (5,)),
    "Lipschitz": (
        lambda: lnn.Sequential(
            lnn.SpectralConv2d(1, 4, 3, padding=1),
            lnn.MaxMin(),
            lnn.ScaledL2NormPool2d(2),
            lnn.SpectralConv2d(8, 4, 3, padding=1, padding_mode="circular"),
            lnn.HouseHolder(4),
            nn.Flatten(),
            lnn.FrobeniusLinear(64, 3),
        ),
        (1, 8, 8),
    ),
    "mixed": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(), nn.Linear(8, 4),
            lnn.GroupSort2(), nn.LogSoftmax(1),
        ).eval(),
        (6,),
    ),
    "traced": (lambda: torch.fx.symbolic_trace(Dense()), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    model = make().eval()
    state = copy.deepcopy(model.state_dict())
    certificate = lipfuse.certify(model, shape)
    assert steepest(model, shape) <= certificate.lipschitz < 100
    assert certificate.lipschitz == lipfuse.certify(model, shape).lipschitz
    assert tools.equal_bits(list(state.values()), list(model.state_dict().values()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())
    named = {row.name for row in certificate.layers}
    leaves = {n for n, m in model.named_modules() if not list(m.children())}
    if name == "residual":
        assert leaves <= named and "blocks.0" in named
        assert certificate.layers[-1].total == certificate.lipschitz


@pytest.mark.parametrize("seed", range(30))
def test_random_programs(seed: int) -> None:
    """Operations drawn at random, on whatever was computed before: the bound holds."""
    torch.manual_seed(seed)
    size = 6
    matrix, shift = torch.randn(size, size).double(), torch.randn(size).double()
    conv = torch.randn(1, 1, 3).double()
    single: list[Callable[[Tensor], Tensor]] = [
        lambda x: x @ matrix,
        lambda x: F.linear(x, matrix, shift) / 3,
        lambda x: F.conv1d(F.pad(x[:, None], (1, 1), "circular"), conv)[:, 0],
        torch.tanh,
        F.gelu,
        lambda x: F.leaky_relu(x, -1.5),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x.sort(1)[0],
        lambda x: x.flip(1) - shift,
        lambda x: torch.cat([F.relu(x[:, :3]), F.relu(-x[:, :3])], 1),
        lambda x: x.reshape(-1, 2, 3).transpose(1, 2).flatten(1) * shift,
        lambda x: F.max_pool1d(x[:, None], 3, 1, 1)[:, 0],
        lambda x: (x.view(-1, 3, 2).square().sum(2).sqrt()).repeat(1, 2),
        lambda x: x[:, [0, 0, 1, 2, 5, 5]],
        lambda x: F.softmax(x, 1),
    ]
    double: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, y: x + y,
        lambda x, y: torch.sub(x, y, alpha=0.5),
        lambda x, y: torch.cat([x[:, ::2], y[:, 1::2]], 1),
        torch.maximum,
        lambda x, y: torch.stack([x, y], 2).mean(2),
        lambda x, y: torch.where(shift > 0, x, y),
    ]
    choices = torch.randint(1000, (8, 4)).tolist()

    def program(x: Tensor) -> Tensor:
        values = [x]
        for kind, which, i, j in choices:
            a, b = values[i % len(values)], values[j % len(values)]
            if kind % 3:
                values.append(single[which % len(single)](a))
            else:
                values.append(double[which % len(double)](a, b))
        return values[-1] + 0.1 * values[-2]

    model = Function(program)
    model.register_buffer("dtype", torch.zeros(1).double())
    certificate = lipfuse.certify(model, (size,))
    for i in range(6):
        x = 10.0 ** (i % 3 - 1) * torch.randn(1, size).double()
        jacobian = torch.autograd.functional.jacobian(model, x).reshape(size, size)
        assert tools.largest_singular_value(jacobian) <= certificate.lipschitz
        assert (jacobian.norm(dim=1) <= certificate.outputs).all()
        assert certificate.pairs is not None
        assert (torch.cdist(jacobian, jacobian) <= certificate.pairs + 1e-9).all()


def test_functions_of_one_name_with_other_arguments() -> None:
    """The bound is that of the function called, not of one that is called the same."""
    norm: Any = _with_statistics(nn.BatchNorm1d(3))
    mask = torch.tensor([True, False, True])
    cases: list[tuple[Callable[[Tensor], Tensor], float]] = [
        (lambda x: F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias), 0),
        (lambda x: x.where(mask, 0.0 * x), 1.0),
        (lambda x: torch.where(mask, x, 2.0 * x), 2.0),
        (lambda x: x.unfold(1, 2, 1), math.sqrt(2)),
        (lambda x: F.unfold(x[:, None, None], (1, 3)), 1.0),
        (lambda x: torch.rsub(x, 1.0, alpha=2.0), 2.0),
        (lambda x: 1.0 - 2.0 * x, 2.0),
        (lambda x: torch.permute(x, (0, 1)).permute(0, 1), 1.0),
    ]
    expected = float(
        (norm.weight.detach().double().abs() / (norm.running_var.double() + 1e-5).sqrt()).max()
    )
    for function, constant in cases:
        found = lipfuse.certify(Function(function), (3,)).lipschitz
        assert found == pytest.approx(constant or expected, rel=1e-6)
    order = (norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, 1e-5, False)
    with pytest.raises(TypeError, match="batch_norm"):
        lipfuse.certify(Function(lambda x: torch.batch_norm(x, *order)), (3,))


def test_half_precision_and_double() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
        bound = lipfuse.certify(model, (6,)).lipschitz
        weights = [model[i].weight for i in (0, 2)]
        assert bound == pytest.approx(
            math.prod(tools.largest_singular_value(w) for w in weights),  # type: ignore[arg-type]
            rel=1e-9,
        )


def test_wrappers_are_looked_through() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    expected = lipfuse.certify(model, (6,)).lipschitz
    assert lipfuse.certify(nn.DataParallel(model), (6,)).lipschitz == expected
    assert lipfuse.certify(torch.compile(model), (6,)).lipschitz == expected  # type: ignore[arg-type]
    inside = nn.Sequential(torch.compile(model))  # type: ignore[arg-type]
    assert lipfuse.certify(inside, (6,)).lipschitz == expected


def test_other_parametrizations() -> None:
    """What torch normalises by power iteration counts as it is in evaluation, and stays so."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    old = nn.utils.spectral_norm(nn.Linear(8, 8))
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    for module in (layer, old, orthogonal):
        module(torch.randn(2, 8))
        state = copy.deepcopy(module.state_dict())
        bound = lipfuse.certify(module, (8,)).lipschitz
        assert tools.equal_bits(list(state.values()), list(module.state_dict().values()))
        assert module.training
        module.eval()(torch.randn(2, 8))
        weight: Any = module.weight
        assert bound == pytest.approx(tools.largest_singular_value(weight), rel=1e-9)


def test_large_layers_are_proven_not_decomposed() -> None:
    weight = torch.randn(1100, 1030)
    layer = nn.Linear(1030, 1100)
    with torch.no_grad():
        layer.weight.copy_(weight)
    row = lipfuse.certify(layer, (1030,)).layers[0]
    sigma = tools.largest_singular_value(weight)
    assert sigma <= row.total <= sigma * 1.005 and "proven" in row.method


def test_zero_constant_and_empty_networks() -> None:
    linear = nn.Linear(4, 3)
    nn.init.zeros_(linear.weight)
    assert lipfuse.certify(linear, (4,)).lipschitz == 0.0
    assert lipfuse.certify(Function(lambda x: torch.ones(len(x), 2)), (4,)).lipschitz == 0.0
    assert lipfuse.certify(nn.Sequential(), (4,)).lipschitz == 1.0
    steep = Function(lambda x: 0.0 * x.square())
    assert lipfuse.certify(steep, (4,)).lipschitz == 0.0


def test_registered_modules() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(3.0 * x.numpy()).flatten(1)

    with pytest.raises(TypeError, match=r"module '0' \(Own\): numpy reads elements"):
        lipfuse.certify(nn.Sequential(Own()), (2, 3))
    seen: list[Any] = []

    def rule(module: Own, input_shape: tuple[int, ...]) -> tuple[float, str]:
        seen.append((module, input_shape))
        return 3.0, "by thinking"

    certification.register(Own, rule)
    try:
        model = nn.Sequential(nn.Identity(), Own(), nn.Linear(6, 2))
        certificate = lipfuse.certify(model, (2, 3))
        assert seen == [(model[1], (2, 3))]
        assert certificate.layers[1].bound == 3.0 and certificate.layers[1].method == "by thinking"
        assert certificate.lipschitz == pytest.approx(
            3.0 * tools.largest_singular_value(model[2].weight)  # type: ignore[arg-type]
        )
        certification.register(Own, lambda module, shape: 2.9)
        with pytest.raises(ValueError, match=r"'1' \(Own\): Own moved by .* is wrong"):
            lipfuse.certify(model, (2, 3))
        for wrong, error in ((-1.0, ValueError), (math.inf, ValueError), ("a", TypeError)):
            certification.register(Own, lambda module, shape: wrong)  # type: ignore[return-value, arg-type] # noqa: B023
            with pytest.raises(error, match="'1'"):
                lipfuse.certify(model, (2, 3))
    finally:
        certification.unregister(Own)
    with pytest.raises(ValueError, match="Own"):
        certification.unregister(Own)
    with pytest.raises(TypeError, match="kind"):
        certification.register(Own(), rule)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rule"):
        certification.register(Own, 3.0)  # type: ignore[arg-type]
