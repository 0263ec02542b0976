"""What was found to leak in deel-torchlip 1.0.5, as measurements that run on either library.

Layers, arguments and defaults have the same names in both. Norms are largest singular values, in
float64, of the matrix that a layer produces column by column in float32, divided by the constant
that it promises; "worst" is after Adam has moved the parameter so as to make it as large as it can.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import math
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import peers

TESTS = Path(__file__).resolve().parent.parent / "tests"
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))

import tools  # noqa: E402, what judges must not be ours, and is with the tests
from leak_cases import FIRST_FORWARD, GEOMETRIES, TRANSPOSED, Geometry  # noqa: E402


@dataclass(frozen=True)
class Library:
    """One of the two.

    Attributes:
        name: for messages.
        nn: its layers.
        package: what ``import *`` is tried on.
    """

    name: str
    nn: Any
    package: str


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        text: the case.
        recorded: what was measured on the peer.
        measure: runs it; returns a norm over the promised constant, or whether the defect shows.
        defect: whether it is the latter, and what it is called.
        least: a norm that must be reached: that a bound is kept is not all.
    """

    text: str
    recorded: str
    measure: Callable[[Library], float]
    defect: str = ""
    least: float = 0.0


# ---- what measurements share ---------------------------------------------------------------------


def original(layer: Any) -> nn.Parameter:
    """The parameter that a layer's weight is computed from, in both libraries."""
    parameter: nn.Parameter = layer.parametrizations.weight.original
    return parameter


def norm(layer: Any, shape: tuple[int, ...]) -> float:
    """Its exact operator norm as it stands; NaN if an element is."""
    matrix = tools.dense(layer, shape)
    return tools.largest_singular_value(matrix) if bool(matrix.isfinite().all()) else math.nan


def largest(values: Sequence[float]) -> float:
    """The largest; NaN if there is one."""
    return math.nan if any(math.isnan(v) for v in values) else max(values)


def worst(layer: nn.Module, shape: tuple[int, ...], steps: int = 150) -> float:
    """The norm after an adversary has moved the parameter, in training and in evaluation."""
    optimizer = torch.optim.Adam([original(layer)], lr=0.05)
    found = [norm(layer, shape)]
    for step in range(steps):
        matrix = tools.dense(layer, shape)
        if not bool(matrix.isfinite().all()):
            return math.nan
        direction = torch.linalg.svd(matrix, full_matrices=False)[2][0].float().reshape(1, *shape)
        loss = -(layer(direction) - layer(torch.zeros_like(direction))).norm()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            found.append(norm(layer, shape))
    found.append(norm(layer.eval(), shape))
    return largest(found)


def trained(layer: nn.Module, size: int, lr: float, steps: int = 30) -> None:
    """A few Adam steps towards something large."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    for _ in range(steps):
        x = torch.randn(32, size)
        loss = (layer(x) - 10.0 * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def refused(make: Callable[[], object]) -> bool:
    """Whether building something raises, whatever it raises."""
    try:
        make()
    except Exception:
        return True
    return False


# ---- the measurements ----------------------------------------------------------------------------


def worst_of(geometry: Geometry) -> Callable[[Library], float]:
    return lambda library: worst(geometry.made(library.nn), geometry.shape)


def first_forward(library: Library) -> float:
    found = []
    for channels in FIRST_FORWARD:
        layer = library.nn.SpectralConvTranspose2d(*channels, 4, stride=2)
        found.append(norm(layer, (channels[0], 2, 2)))
    return largest(found)


def small_weights(spectral_only: bool) -> Callable[[Library], float]:
    def measure(library: Library) -> float:
        settings = {"eps_bjorck": None} if spectral_only else {}
        layer = library.nn.SpectralLinear(16, 16, **settings)
        with torch.no_grad():
            original(layer).mul_(5e-4)
        return largest([norm(layer, (16,)) for _ in range(4)])

    return measure


def while_training(library: Library) -> float:
    found = []
    for lr in (1e-3, 1e-2, 1e-1):
        layer = library.nn.SpectralLinear(128, 128, eps_bjorck=None)
        trained(layer, 128, lr)
        found.append(norm(layer, (128,)))
    return largest(found)


def after_a_step(library: Library) -> float:
    found = []
    for lr in (1e-3, 1e-2, 1e-1):
        layer = library.nn.SpectralLinear(128, 128, eps_bjorck=None)
        trained(layer, 128, lr)
        trained(layer, 128, lr, steps=1)
        found.append(norm(layer.eval(), (128,)))
    return largest(found)


def after_loading(library: Library) -> float:
    layer = library.nn.SpectralLinear(128, 128, eps_bjorck=None)
    state = layer.state_dict()
    drawn = torch.randn_like(state["parametrizations.weight.original"])
    layer.load_state_dict({**state, "parametrizations.weight.original": drawn})
    return norm(layer.eval(), (128,))


def after_assigning(library: Library) -> float:
    layer = library.nn.SpectralLinear(256, 256, eps_bjorck=None)
    layer.weight = torch.randn(256, 256)
    return norm(layer.eval(), (256,))


def container(k: float, *parts: Any) -> Callable[[Library], float]:
    """A Sequential of linear layers with those constants, over the constant of the whole."""

    def measure(library: Library) -> float:
        layers: list[nn.Module] = []
        for part in parts:
            if part is None:
                layers.append(library.nn.FullSort())
            else:
                layers.append(library.nn.SpectralLinear(8, 8, k_coef_lip=part))
        model = library.nn.Sequential(*layers, k_coef_lip=k)
        for _ in range(20):
            model(torch.randn(4, 8))
        return slope(model.eval(), (8,)) / k

    return measure


def slope(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest norm of the Jacobian at a few points."""
    found = []
    for _ in range(5):
        x = torch.randn(1, *shape)
        jacobian = torch.autograd.functional.jacobian(model, x, vectorize=False)
        found.append(tools.largest_singular_value(jacobian.reshape(-1, x.numel())))
    return largest(found)


def prelu(library: Library) -> float:
    layer = library.nn.LPReLU(init=-3.0, k_coef_lip=0.5)
    return slope(layer, (4,)) / 0.5


def ignored(library: Library) -> float:
    """How far layers are from the constant that they were given, either way."""
    found = []
    for layer, shape in (
        (library.nn.InvertibleDownSampling(2, 3.0), (2, 4, 4)),
        (library.nn.InvertibleUpSampling(2, 3.0), (4, 2, 2)),
        (library.nn.HouseHolder(4, 3.0), (4,)),
    ):
        ratio = slope(layer, shape) / 3.0
        found.append(max(ratio, 1.0 / ratio))
    return largest(found)


def pool(make: Callable[[Any], nn.Module], size: int) -> Callable[[Library], float]:
    def measure(library: Library) -> float:
        try:
            layer = make(library.nn)
        except (TypeError, ValueError):
            return 0.0  # refused
        return slope(layer, (1, size, size))

    return measure


def overlapping_maxima(library: Library) -> float:
    """Whether a container takes them for 1-Lipschitz without a word."""
    silent = False
    for layer in (nn.MaxPool2d((2, 3), stride=(3, 1)), nn.MaxPool2d(2, 2, dilation=2)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            library.nn.Sequential(layer)
        silent |= not caught
    return float(silent)


def disjoint_neurons(library: Library) -> float:
    """The worst single output; as a map they are sqrt(n)-Lipschitz by construction."""
    layer = library.nn.FrobeniusLinear(16, 16)
    worst(layer, (16,), steps=50)
    rows = tools.dense(layer.train(), (16,)).norm(dim=1)
    return float(rows.max())


def convolution_on_an_axis(library: Library) -> float:
    """That it may reach its constant: constant signals through a kernel of ones."""
    layer = library.nn.SpectralConv1d(1, 1, 3)
    with torch.no_grad():
        original(layer).fill_(1.0)
    for _ in range(10):
        layer(torch.zeros(1, 1, 40))
    return norm(layer, (1, 40))


def bjorck_gradient(library: Library) -> float:
    """Its gradient over that of the same iterations by autograd; 1 is right."""
    layer = library.nn.SpectralLinear(16, 16, bias=False)
    if library.name == "lipfuse":
        layer = library.nn.SpectralLinear(16, 16, bias=False, method="bjorck")
    with torch.no_grad():
        original(layer).normal_()
    for _ in range(30):
        layer(torch.zeros(1, 16))  # power iteration settles
    grad = torch.randn(16, 16)
    (found,) = torch.autograd.grad((layer.weight * grad).sum(), original(layer))
    w = original(layer).detach().double().requires_grad_()
    exact = tools.plain_bjorck(w / torch.linalg.matrix_norm(w.detach(), 2), 0.5, 15)
    (expected,) = torch.autograd.grad((exact * grad).sum(), w)
    # What the division by the norm takes away is the same in both, to first order.
    u, _, vh = torch.linalg.svd(w.detach())
    outer = torch.outer(u[:, 0], vh[0])
    expected = expected - (expected * w.detach()).sum() / (w.detach() * outer).sum() * outer
    return float(found.norm() / expected.norm())


def stale_in_evaluation(library: Library) -> float:
    """How far the weight in evaluation is from that of the parameter, after a step of size one."""
    layer = library.nn.SpectralLinear(16, 16, bias=False).eval()
    layer(torch.randn(2, 16))
    with torch.no_grad():
        original(layer).add_(torch.randn(16, 16))
    exact = tools.polar_factor(original(layer).detach())
    return float(tools.relative_error(layer.weight.detach(), exact) > 1e-3)


def zero_weight(library: Library) -> float:
    """Whether NaN stays once the weight has recovered, and comes from a row of zeros."""
    layer = library.nn.SpectralLinear(8, 8)
    with torch.no_grad():
        good = original(layer).clone()
        original(layer).zero_()
        layer(torch.randn(2, 8))
        original(layer).copy_(good)
    recovered = bool(layer(torch.randn(2, 8)).isfinite().all())
    frobenius = library.nn.FrobeniusLinear(8, 3)
    with torch.no_grad():
        original(frobenius)[1] = 0.0
    return float(not (recovered and bool(frobenius(torch.randn(2, 8)).isfinite().all())))


def empty_window(library: Library) -> float:
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    library.nn.ScaledL2NormPool2d(2)(x).sum().backward()
    assert x.grad is not None
    return float(not bool(x.grad.isfinite().all()))


def half_precision(library: Library) -> float:
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        layer = library.nn.SpectralLinear(64, 64)
        for _ in range(10):
            layer(torch.randn(4, 64))
        layer = layer.to(dtype).eval()
        found.append(tools.largest_singular_value(layer.weight))
    return largest(found)


def under_autocast(library: Library) -> float:
    """Twenty layers, each multiplied by its rounded weight."""
    product = torch.eye(32, dtype=torch.float64)
    for _ in range(20):
        layer = library.nn.SpectralLinear(32, 32).eval()
        with torch.autocast("cpu", torch.bfloat16):
            weight = layer.weight
        product = weight.detach().bfloat16().double() @ product
    return tools.largest_singular_value(product)


def senseless_settings(library: Library) -> float:
    layers = library.nn
    accepted = [
        not refused(make)
        for make in (
            lambda: layers.SpectralLinear(4, 4, k_coef_lip=-1.0),
            lambda: layers.SpectralLinear(4, 4, k_coef_lip=0.0),
            lambda: layers.SpectralLinear(4, 4, k_coef_lip=math.nan),
            lambda: layers.SpectralLinear(4, 4, eps_spectral=-1.0),
            lambda: layers.SpectralLinear(4, 4, eps_bjorck=-1.0),
            lambda: layers.SpectralLinear(-4, 4),
            lambda: layers.SpectralConv2d(0, 4, 3),
            lambda: layers.ScaledAvgPool2d(0),
        )
    ]
    return float(sum(accepted))


def foreign_checkpoint(library: Library) -> float:
    """Whether a layer takes what was saved by one of other settings without a word."""
    pairs = [
        (library.nn.SpectralLinear(4, 4, k_coef_lip=2.0), library.nn.SpectralLinear(4, 4)),
        (library.nn.SpectralConv2d(2, 3, 3, stride=2), library.nn.SpectralConv2d(2, 3, 3)),
    ]
    silent = False
    for saved, layer in pairs:
        silent |= not refused(functools.partial(layer.load_state_dict, saved.state_dict()))
    return float(silent)


def pickling(library: Library) -> float:
    layer = library.nn.SpectralLinear(4, 4)
    ways = (lambda: pickle.loads(pickle.dumps(layer)), lambda: torch.save(layer, io.BytesIO()))
    return float(any(map(refused, ways)))


def whole_graph(library: Library) -> float:
    layer = library.nn.SpectralLinear(8, 8).train()
    x = torch.randn(2, 8)
    logging.disable(logging.CRITICAL)  # torch prints the graph that it fails on
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            failed = refused(lambda: torch.export.export(layer, (x,), strict=False))
    finally:
        logging.disable(logging.NOTSET)
    return float(failed)


def stacked(library: Library) -> float:
    layers = [library.nn.SpectralLinear(4, 4).train() for _ in range(2)]
    base = copy.deepcopy(layers[0]).to("meta")
    parameters = {
        n: torch.stack([dict(m.named_parameters())[n].detach() for m in layers])
        for n, _ in layers[0].named_parameters()
    }
    buffers = {
        n: torch.stack([dict(m.named_buffers())[n] for m in layers])
        for n, _ in layers[0].named_buffers()
    }
    x = torch.randn(3, 4)
    call = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))
    return float(refused(lambda: call(parameters, buffers)))


def broadcast_bytes(library: Library) -> float:
    """Bytes of buffers over bytes of parameters: what DDP sends in every step besides gradients."""
    layer = library.nn.SpectralLinear(256, 256)
    buffers = sum(b.numel() for b in layer.buffers())
    return buffers / sum(p.numel() for p in layer.parameters())


def shared_export(library: Library) -> float:
    layer = library.nn.SpectralLinear(4, 4)
    layer(torch.randn(1, 4))
    plain = layer.eval().vanilla_export()
    of_the_layer = {t.data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    return float(any(p.data_ptr() in of_the_layer for p in plain.parameters()))


def evaluated(library: Library) -> float:
    """Whether asking for the constant changes the model's mode, or says less than it is."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).train()
    truth = slope(model, (6,))
    if library.name == "lipfuse":
        import lipfuse

        said = lipfuse.certify(model, (6,)).lipschitz
    else:
        utilities = peers.find("deel.torchlip.utils")[0]
        with contextlib.redirect_stdout(io.StringIO()):
            found = utilities.evaluate_lip_const(model, torch.randn(8, 6), "noise_norm")
        said = float(torch.as_tensor(found).max())
    return float(not model.training or said < truth * (1 - 1e-6))


def star_import(library: Library) -> float:
    return float(refused(lambda: exec(f"from {library.package} import *", {})))


def weaker_groups(library: Library) -> float:
    """The norm of a group whose weights are a thousand times smaller: its own is 1."""
    layer = library.nn.SpectralConv2d(4, 4, 2, stride=2, groups=2)
    with torch.no_grad():
        original(layer)[2:] *= 1e-3
    for _ in range(20):
        layer(torch.randn(1, 4, 6, 6))
    layer.eval()
    return norm(lambda x: layer(x)[:, 2:], (4, 6, 6))


def removal(library: Library) -> float:
    layer = library.nn.SpectralLinear(4, 4)
    if library.name == "lipfuse":
        from lipfuse.parametrizations import remove_bjorck_norm as remove
    else:
        remove = peers.find("deel.torchlip.utils")[0].remove_bjorck_norm
    return float(refused(lambda: remove(layer)))


CASES: list[Case] = [
    Case("ConvTranspose2d(3, 64, 4, stride=2) and others, first training forward",
         "NaN", first_forward),
    Case("Linear(16, 16), weights times 5e-4, four forwards, spectral only", "8 to 3e4",
         small_weights(True)),
    Case("Linear(16, 16), weights times 5e-4, four forwards", "NaN", small_weights(False)),
    *(Case(g.text, g.recorded, worst_of(g)) for g in GEOMETRIES.values() if g.text),
    *(Case(g.text, g.recorded, worst_of(g)) for g in TRANSPOSED.values()),
    Case("Linear(128, 128) spectral only, Adam 1e-3 to 1e-1, in training", "1.014", while_training),
    Case("the same in evaluation, after one more step", "1.019 to 1.231", after_a_step),
    Case("the same after loading N(0, 1) weights", "1.53", after_loading),
    Case("m.weight = randn(256, 256), then eval, spectral only", "33.6", after_assigning),
    Case("Sequential(SpectralLinear, SpectralLinear, k_coef_lip=10), over 10", "0.1",
         container(10.0, 1.0, 1.0), least=0.99),
    Case("Sequential(SpectralLinear, SpectralLinear, k_coef_lip=0.1), over 0.1", "10",
         container(0.1, 1.0, 1.0)),
    Case("Sequential(SpectralLinear(k=5), SpectralLinear(k=5)), k=1", "25",
         container(1.0, 5.0, 5.0)),
    Case("Sequential(SpectralLinear, FullSort, SpectralLinear, k_coef_lip=8), over 8", "0.25",
         container(8.0, 1.0, None, 1.0), least=0.99),
    Case("LPReLU(k_coef_lip=0.5), over 0.5", "k ignored", prelu),
    Case("InvertibleDown/UpSampling, HouseHolder with k=3: factor off", "3", ignored),
    Case("ScaledAvgPool2d(2, divisor_override=1)", "4.0",
         pool(lambda n: n.ScaledAvgPool2d(2, divisor_override=1), 4)),
    Case("ScaledAvgPool2d(2, ceil_mode) on 3x3", "2.0",
         pool(lambda n: n.ScaledAvgPool2d(2, ceil_mode=True), 3)),
    Case("ScaledL2NormPool2d(2, ceil_mode) on 3x3", "2.0",
         pool(lambda n: n.ScaledL2NormPool2d(2, ceil_mode=True), 3)),
    Case("MaxPool2d((2, 3), stride=(3, 1)), MaxPool2d(2, 2, dilation=2)",
         "accepted as 1-Lipschitz", overlapping_maxima, defect="accepted"),
    Case("FrobeniusLinear(16, 16), disjoint neurons: each output", "1 (as a map 4.0)",
         disjoint_neurons),
    Case("SpectralConv1d, kernel 3: what it can reach", "0.577", convolution_on_an_axis,
         least=0.9),
    Case("Björck's gradient over autograd's, random W", "27 to 49", bjorck_gradient, least=0.9),
    Case("weight in evaluation after a step of size 1", "stale by 59 %", stale_in_evaluation,
         defect="stale"),
    Case("zero weight that recovers; a zero row in FrobeniusLinear", "NaN for ever", zero_weight,
         defect="NaN"),
    Case("gradient of L2 pooling in a window of zeros", "", empty_window, defect="not finite"),
    Case("bfloat16 and float16 weights", "1.0047, 1.0006", half_precision),
    Case("20 layers under autocast", "1.018", under_autocast),
    Case("settings without sense (k < 0, k = 0, NaN, ...), of 8", "accepted", senseless_settings,
         defect="accepted"),
    Case("a checkpoint of k=2 in a layer of k=1, of stride 2 in one of 1", "1.5x and 2x, silently",
         foreign_checkpoint, defect="silently"),
    Case("remove_bjorck_norm on the library's own layer", "RuntimeError", removal,
         defect="raises"),
    Case("pickle, torch.save(module)", "raises", pickling, defect="raises"),
    Case("torch.export in training mode", "fails", whole_graph, defect="fails"),
    Case("vmap over stacked modules", "refused", stacked, defect="refused"),
    Case("bytes of buffers, which DDP broadcasts, over those of parameters", "1",
         broadcast_bytes, defect="sent"),
    Case("vanilla_export shares its storage with the layer", "yes", shared_export,
         defect="shared"),
    Case("asking for the constant changes the mode, or says too little", "both", evaluated,
         defect="yes"),
    Case("from deel.torchlip import *", "AttributeError", star_import, defect="raises"),
    Case("the weaker of two groups", "share one norm", weaker_groups, least=0.99),
]  # fmt: skip
