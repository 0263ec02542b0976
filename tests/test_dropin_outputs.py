"""With equal weights, the outputs of deel-torchlip's layers, in training and evaluation.

Wherever theirs are right; what is wrong there is shown to be so, each by what is different.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import deel.torchlip as theirs
import pytest
import torch
from deel.torchlip import functional as their_functional
from torch import Tensor, nn

import lipfuse.nn as ours

TOLERANCE = 1e-4


def originals(layer: nn.Module) -> list[Tensor]:
    """What is learnt: the parameter of a computed weight, the bias and so on."""
    return list(dict(layer.named_parameters()).values())


def near_orthogonal(weight: Tensor) -> None:
    """Singular values such as training leaves them, with a gap below the first."""
    with torch.no_grad():
        rows = weight.shape[0]
        u, s, vh = torch.linalg.svd(torch.randn(rows, weight[0].numel()), full_matrices=False)
        values = torch.linspace(1.1, 0.9, len(s))
        values[0] = 1.4
        weight.copy_(((u * values) @ vh).reshape(weight.shape))


def pair(name: str, *arguments: Any, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """Their layer and ours with the same parameters; theirs has iterated for a while."""
    layer = getattr(theirs, name)(*arguments, **settings)
    twin = getattr(ours, name)(*arguments, **settings)
    with torch.no_grad():
        for parameter in originals(layer):
            if parameter.dim() > 1:
                near_orthogonal(parameter)
            elif parameter.dim() == 1:
                parameter.normal_()
    with torch.no_grad():
        for mine, other in zip(originals(twin), originals(layer), strict=True):
            assert mine.shape == other.shape
            mine.copy_(other)
    for _ in range(40 if hasattr(layer, "parametrizations") else 0):
        _ = layer.weight  # power iteration
    return layer, twin


def assert_equal(layer: nn.Module, twin: nn.Module, *inputs: Tensor, factor: float = 1.0) -> None:
    """In training and in evaluation; ``factor``: what theirs is too small by."""
    for training in (True, False):
        layer.train(training), twin.train(training)
        expected, found = layer(*inputs) * factor, twin(*inputs)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=TOLERANCE * float(expected.abs().max()))
        assert float(expected.detach().abs().max()) > 0


# ---- layers with weights -------------------------------------------------------------------------

MATRICES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("SpectralLinear", (8, 8), {}, (8,)),
    ("SpectralLinear", (5, 12), {"k_coef_lip": 2.5}, (5,)),
    ("SpectralLinear", (12, 5), {"bias": False}, (12,)),
    ("SpectralLinear", (12, 5), {"eps_bjorck": None, "k_coef_lip": 0.5}, (12,)),
    ("FrobeniusLinear", (6, 3), {}, (6,)),
    ("FrobeniusLinear", (6, 3), {"disjoint_neurons": False, "k_coef_lip": 3.0}, (6,)),
    ("SpectralConv2d", (2, 5, 3), {"padding": 1}, (2, 7, 6)),
    ("SpectralConv2d", (3, 4, (2, 4)), {"stride": 2, "k_coef_lip": 2.0}, (3, 8, 9)),
    ("SpectralConv2d", (2, 3, 3), {"eps_bjorck": None, "padding": "same"}, (2, 6, 6)),
    ("SpectralConv2d", (2, 3, 3), {"padding": 1, "padding_mode": "circular"}, (2, 6, 6)),
    ("SpectralConv2d", (2, 3, 5), {"padding": 2, "padding_mode": "circular"}, (2, 9, 8)),
    ("SpectralConv1d", (2, 4, 3), {"stride": 3}, (2, 12)),
    ("SpectralConv1d", (4, 2, 1), {"k_coef_lip": 2.0}, (4, 5)),
    ("FrobeniusConv2d", (2, 3, 3), {"padding": 1, "k_coef_lip": 2.0}, (2, 6, 6)),
    ("FrobeniusConv2d", (2, 4, 3), {"groups": 2}, (2, 6, 6)),
    ("SpectralConvTranspose2d", (4, 2, 2), {"stride": 2}, (4, 4, 3)),
    ("SpectralConvTranspose2d", (12, 2, 3), {"padding": 1, "k_coef_lip": 0.5}, (12, 4, 4)),
    ("SpectralConvTranspose2d", (3, 1, 4), {"stride": 2, "padding": 1}, (3, 5, 5)),
]


@pytest.mark.parametrize("name, arguments, settings, shape", MATRICES)
def test_weighted_layers(
    name: str, arguments: tuple[Any, ...], settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer, twin = pair(name, *arguments, **settings)
    assert_equal(layer, twin, torch.randn(3, *shape))


def test_the_factor_of_one_axis() -> None:
    """Theirs lacks the root, and loses the more of the signal the larger the kernel is."""
    layer, twin = pair("SpectralConv1d", 2, 4, 3, padding=1, bias=False)
    assert_equal(layer, twin, torch.randn(3, 2, 9), factor=math.sqrt(3))


def test_where_their_factor_is_too_large_ours_is_not() -> None:
    """The same kernels apart from the corrective factor: theirs ignores padding and dilation."""
    cases: list[tuple[int, dict[str, Any]]] = [
        (3, {"stride": 3, "dilation": 3}),
        (3, {"padding": 2, "padding_mode": "circular"}),
        (3, {"padding": 1, "padding_mode": "reflect"}),
        (5, {"padding": 2, "padding_mode": "replicate"}),
    ]
    for kernel, settings in cases:
        layer, twin = pair("SpectralConv2d", 2, 3, kernel, **settings)
        ratio = twin.weight / layer.weight  # type: ignore[operator]
        assert float(ratio.std()) < 1e-3 and float(ratio.mean()) < 0.99, settings


@pytest.mark.parametrize("name, axes", [("PadConv1d", 1), ("PadConv2d", 2)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular", "symmetric"])
@pytest.mark.parametrize("padding", [1, 2])
def test_padded_convolutions(name: str, axes: int, mode: str, padding: int) -> None:
    layer, twin = pair(name, 2, 4, 3, padding=padding, padding_mode=mode, groups=2)
    assert_equal(layer, twin, torch.randn(3, 2, *(7, 6)[:axes]))


# ---- layers without ------------------------------------------------------------------------------

IMAGES = (3, 4, 6, 6)
WITHOUT: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("ScaledAvgPool2d", (2,), {"k_coef_lip": 2.0}, IMAGES),
    ("ScaledAvgPool2d", ((2, 3),), {}, IMAGES),
    ("ScaledAdaptiveAvgPool2d", ((1, 1),), {"k_coef_lip": 2.0}, IMAGES),
    ("ScaledL2NormPool2d", ((3, 2),), {"k_coef_lip": 2.0}, IMAGES),
    ("ScaledAdaptativeL2NormPool2d", (), {"k_coef_lip": 2.0}, IMAGES),
    ("InvertibleDownSampling", (2,), {}, IMAGES),
    ("InvertibleUpSampling", (2,), {}, IMAGES),
    ("MaxMin", (), {"k_coef_lip": 2.0}, IMAGES),
    ("MaxMin", (3,), {}, IMAGES),
    ("GroupSort", (4,), {"k_coef_lip": 2.0}, IMAGES),
    ("GroupSort2", (), {"k_coef_lip": 2.0}, IMAGES),
    ("FullSort", (), {}, (5, 8)),
    ("LPReLU", (), {}, IMAGES),
    ("LPReLU", (4,), {"init": -3.0, "k_coef_lip": 2.0}, IMAGES),
    ("HouseHolder", (4,), {}, IMAGES),
    ("HouseHolder", (8,), {"theta_initializer": 0.3}, (5, 8)),
    ("LayerCentering", (4,), {}, IMAGES),
    ("LayerCentering", (8,), {"dim": 1}, (5, 8)),
    ("LayerCentering", (), {"bias": False}, IMAGES),
    ("ScaleBiasLayer", (-2.5, 4), {}, IMAGES),
    ("ScaleBiasLayer", (0.5,), {"bias": False}, (5, 8)),
]


@pytest.mark.parametrize("name, arguments, settings, shape", WITHOUT)
def test_other_layers(
    name: str, arguments: tuple[Any, ...], settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer, twin = pair(name, *arguments, **settings)
    assert_equal(layer, twin, torch.randn(shape))


def test_residual_connections() -> None:
    layer, twin = pair("LipResidual")
    for alpha in (0.0, 1.3):
        for module in (layer, twin):
            nn.init.constant_(module.alpha, alpha)  # type: ignore[arg-type]
        assert_equal(layer, twin, torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize("name", ["BatchCentering", "BatchLipNorm"])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"centering": False}], ids=str)
def test_batch_normalisation(name: str, shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    """Outputs, buffers and gradients through several rounds of training and evaluation."""
    if "centering" in settings and name == "BatchCentering":
        settings = {"normalize": False} | settings
        name = "BatchLipNorm"
    layer, twin = pair(name, 3, **settings)
    for steps in (1, 3, 2, 0, 1):
        for _ in range(steps):
            x = torch.randn(shape) * (0.5 + torch.rand(())) + torch.randn(())
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            layer.train(), twin.train()
            outputs = layer(inputs[0]), twin(inputs[1])
            assert torch.allclose(*outputs, atol=TOLERANCE)
            gradients = [torch.autograd.grad(y.tanh().sum(), i)[0] for y, i in zip(outputs, inputs)]
            assert torch.allclose(*gradients, atol=TOLERANCE)
        layer.eval(), twin.eval()
        for _ in range(2):
            x = torch.randn(shape)
            assert torch.allclose(layer(x), twin(x), atol=TOLERANCE)
        found = twin.state_dict()
        for key, value in layer.state_dict().items():
            assert torch.allclose(found[key], value, atol=TOLERANCE), key
        assert torch.allclose(
            layer.get_scaling_factor(),
            twin.get_scaling_factor(),
            rtol=TOLERANCE,  # type: ignore[operator]
        )


def test_a_state_dict_of_theirs_is_one_of_ours() -> None:
    layer, twin = pair("BatchLipNorm", 3)
    for _ in range(3):
        layer(torch.randn(8, 3))
    twin.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(4, 3)
    assert torch.allclose(twin.eval()(x), layer.eval()(x), atol=TOLERANCE)


# ---- where theirs are not right ------------------------------------------------------------------


def test_broadcasting_in_theirs_repeats_a_channel(lipschitz: Callable[..., float]) -> None:
    """Ours refuse: see their tests."""
    x = torch.randn(1, 1, 3, 3)
    assert lipschitz(theirs.LayerCentering(4), x) == pytest.approx(2, rel=1e-4)
    residual = theirs.LipResidual()
    with torch.no_grad():
        residual.alpha.fill_(10.0)
    big = torch.zeros(1, 4, 3, 3)
    assert lipschitz(lambda x: residual(x, big), x) == pytest.approx(2, rel=1e-3)


@pytest.fixture
def lipschitz() -> Callable[..., float]:
    def norm(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
        jacobian = torch.autograd.functional.jacobian(function, x).reshape(-1, x.numel())
        return float(torch.linalg.matrix_norm(jacobian, 2))

    return norm


def test_what_else_is_broken_in_theirs() -> None:
    x = torch.randn(4, 3)
    # Means over the batch, which other samples move, in evaluation, too.
    layer = theirs.LayerCentering(3).eval()
    assert not torch.allclose(layer(x)[:1], layer(x[:1]))
    # One layer, two ranks.
    for name in ("ScaleBiasLayer", "BatchCentering"):
        layer, twin = (getattr(m, name)(num_features=3) for m in (theirs, ours))
        layer(torch.randn(4, 3, 2, 2)), twin(torch.randn(4, 3, 2, 2))
        assert twin(x).shape == x.shape
        if name == "ScaleBiasLayer":
            assert layer(x).shape == (1, 3, 4, 3)
        else:
            with pytest.raises(IndexError, match="Dimension out of range"):
                layer(x)
    # A copy of a model in training.
    layer, twin = pair("BatchLipNorm", 3)
    with torch.enable_grad():
        for module in (layer, twin):
            module(nn.functional.linear(x, nn.Parameter(torch.eye(3))))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)
    copy.deepcopy(twin)
    # Symmetric padding by nothing.
    assert theirs.PadConv1d(1, 1, 1, padding_mode="symmetric")(torch.zeros(1, 1, 4)).shape[-1] != 4
    # A factory of different layers.
    factory = theirs.SharedLipFactory()
    theirs.LipschitzModule.__init__(theirs.MaxMin(), 2.0, factory)
    with pytest.raises(TypeError):
        factory.get_current_product_value(True)


# ---- functions and losses ------------------------------------------------------------------------


def test_functions() -> None:
    x = torch.randn(6, 4)
    labels = torch.randint(0, 2, (6, 4)).float()
    labels[0], labels[1] = 0.0, 1.0
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("max_min", (x,)),
        ("group_sort", (x, 2)),
        ("group_sort_2", (x,)),
        ("full_sort", (x,)),
        ("lipschitz_prelu", (x, torch.tensor([3.0]), 1.0)),
        ("apply_reduction", (x, "auto")),
        ("kr_loss", (x, labels)),
        ("kr_loss_standard", (x, labels)),
        ("kr_loss_multi_gpu", (x, labels)),
        ("neg_kr_loss", (x, labels)),
        ("hinge_margin_loss", (x, labels, 0.7)),
        ("hkr_loss", (x, labels, 0.3, 0.7)),
        ("hinge_multiclass_loss", (x, labels, 0.7)),
        ("hkr_multiclass_loss", (x, labels, 0.3, 0.7)),
        ("process_labels_for_multi_gpu", (labels,)),
    ]
    for name, arguments in calls:
        expected = getattr(their_functional, name)(*arguments)
        assert torch.allclose(getattr(ours.functional, name)(*arguments), expected, atol=1e-5), name
    for pad, onedim in itertools.product((1, 3), (True, False)):
        expected = their_functional.SymmetricPad(pad, onedim)(x.view(2, 1, 3, 4))
        assert torch.equal(ours.functional.SymmetricPad(pad, onedim)(x.view(2, 1, 3, 4)), expected)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("KRLoss", {}),
        ("NegKRLoss", {"reduction": "sum"}),
        ("HingeMarginLoss", {"min_margin": 0.5}),
        ("HKRLoss", {"alpha": 0.3}),
        ("KRMulticlassLoss", {}),
        ("HingeMulticlassLoss", {"min_margin": 0.5}),
        ("HKRMulticlassLoss", {"alpha": 0.3}),
        ("SoftHKRMulticlassLoss", {"alpha": 0.3, "temperature": 2.0}),
        ("LseHKRMulticlassLoss", {"alpha": 0.3, "temperature": 2.0}),
        ("TauCrossEntropyLoss", {"tau": 3.0}),
        ("TauBCEWithLogitsLoss", {"tau": 3.0}),
        ("CategoricalHingeLoss", {"min_margin": 0.5}),
    ],
)
def test_losses(name: str, settings: dict[str, Any]) -> None:
    losses = [getattr(module, name)(**settings) for module in (theirs, ours)]
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(8, 4)
        labels = nn.functional.one_hot(torch.randint(0, 4, (8,)), 4).float()
        inputs = [x.clone().requires_grad_() for _ in losses]
        values = [loss(i, labels) for loss, i in zip(losses, inputs)]
        assert torch.allclose(values[0].float(), values[1], atol=1e-5)  # theirs: float64 for tau
        gradients = [torch.autograd.grad(v.sum(), i)[0] for v, i in zip(values, inputs)]
        assert torch.allclose(*gradients, atol=1e-5)
