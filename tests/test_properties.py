"""What every public function of the functional API, the metrics and the penalties keeps to.

A table has, for each function, arguments over a range of shapes, settings and values, and what has
to be true of the result. All of them leave their arguments alone, give the same again, do not care
how memory lies, and refuse wrong arguments in words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tools
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipfuse.functional as F
from lipfuse import metrics, regularizers

few = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclasses.dataclass
class Call:
    """Positional arguments, and what has to be true of the result."""

    arguments: tuple[Any, ...]
    check: Callable[[Any], None]


Draw = Callable[..., Any]
CASES: dict[str, Callable[[Draw], Call]] = {}
# Classes, and what takes its settings by name only.
CALLED: dict[str, Callable[..., Any]] = {
    "SymmetricPad": lambda x, pad: F.SymmetricPad(pad)(x),
    "RobustnessMetric": lambda *arguments: _metric(*arguments),
    "gradient_penalty": lambda f, x, y, k: F.gradient_penalty(
        f, x, y, target=k, reduction="none", generator=torch.Generator().manual_seed(0)
    ),
    "power_iteration": lambda w, u, n: F.power_iteration(w, u, n_iterations=n),
    "spectral_normalize": lambda w, u, n, k: F.spectral_normalize(w, u, n_iterations=n, scale=k),
    "foreach_spectral_normalize": lambda ws, us, n, k: F.foreach_spectral_normalize(
        ws, us, n_iterations=n, scales=k
    ),
    "spectral_bjorck": lambda w, u, n, k: F.spectral_bjorck(w, u, max_iterations=n, scale=k),
    "bjorck": lambda w, beta, n: F.bjorck(w, beta=beta, max_iterations=n),
    "orthogonalize": lambda w, k: F.orthogonalize(w, scale=k),
    "foreach_orthogonalize": lambda ws, k: F.foreach_orthogonalize(ws, scales=k),
    "frobenius_normalize": lambda w, dim, k: F.frobenius_normalize(w, dim, scale=k),
    "group_sort": lambda x, n, dim, k: F.group_sort(x, n, dim, scale=k),
    "kernel_orthogonality": lambda w, n: regularizers.kernel_orthogonality(w, groups=n),
    "conv_orthogonality": lambda w, s: regularizers.conv_orthogonality(w, stride=s),
}


def case(*names: str) -> Callable[[Callable[..., Call]], Callable[..., Call]]:
    """Enters the cases of functions; of several, each is told its name."""

    def enter(make: Callable[..., Call]) -> Callable[..., Call]:
        for name in names:
            CASES[name] = (lambda draw, n=name: make(draw, n)) if len(names) > 1 else make
        return make

    return enter


def function(name: str) -> Callable[..., Any]:
    found: Callable[..., Any]
    for module in (F, metrics, regularizers):
        if hasattr(module, name):
            found = CALLED.get(name) or getattr(module, name)
            return found
    raise KeyError(name)


# ---- what arguments are drawn from ---------------------------------------------------------------

constants = st.sampled_from([0.25, 1.0, 3.0])
sizes = st.integers(1, 5)


def drawn(draw: Draw, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Ordinary values, tiny and large ones, ties, or zeros."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["plain", "plain", "tiny", "large", "ties", "zero"]))
    factor = {"tiny": 1e-6, "large": 1e4, "zero": 0.0}.get(kind, 1.0)
    return ((2 * x).round() if kind == "ties" else x * factor).to(dtype)


def weight(draw: Draw, kinds: list[str] = tools.BENIGN) -> Tensor:
    shape = draw(st.sampled_from([(1, 1), (1, 5), (4, 1), (3, 3), (9, 4), (4, 17), (2, 5, 3)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return tools.matrix(draw(st.sampled_from(kinds)), shape, draw(st.integers(0, 99))).to(dtype)


def start(w: Tensor) -> Tensor:
    return tools.unit(tuple(w.shape[:-1])).to(w.dtype)


def labels(draw: Draw, n: int, classes: int) -> tuple[Tensor, Tensor]:
    """Indices, and one-hot or, for one output, 0 and 1."""
    index = torch.tensor(
        draw(st.lists(st.integers(0, max(classes, 2) - 1), min_size=n, max_size=n))
    )
    one_hot = index.unsqueeze(1) if classes == 1 else nn.functional.one_hot(index, classes)
    return index, one_hot


def close(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    for x, y in zip(tools.flat(a), tools.flat(b), strict=True):
        assert x.shape == y.shape
        assert torch.allclose(
            x.double(), y.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )


def shrinks(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, k: float) -> None:
    """Two inputs, one in each sample, come no more than k times further apart."""
    apart = (f(x) - f(y)).flatten(1).norm(dim=1)
    assert bool((apart <= k * (x - y).flatten(1).norm(dim=1) * (1 + 1e-9) + 1e-14).all())


# ---- activations, pools, pads --------------------------------------------------------------------


@case("max_min", "full_sort", "group_sort_2")
def _activation(draw: Draw, name: str) -> Call:
    shape = (draw(sizes), 2 * draw(sizes), *draw(st.sampled_from([(), (3,), (2, 3)])))
    x, y = drawn(draw, *shape), drawn(draw, *shape)

    def check(out: Tensor) -> None:
        shrinks(function(name), x, y, 1.0)
        if name == "max_min":
            first, second = out.chunk(2, 1)
            close(first - second, x)
        else:
            close(out.sort(1).values, x.sort(1).values)

    return Call((x,), check)


@case("group_sort")
def _group_sort(draw: Draw) -> Call:
    size, groups, k = draw(sizes), draw(sizes), draw(constants)
    dim = draw(st.sampled_from([1, 2, -1]))
    shape = [2, 3, 3]
    shape[dim] = size * groups
    x, y = drawn(draw, *shape), drawn(draw, *shape)

    def check(out: Tensor) -> None:
        shrinks(lambda z: F.group_sort(z, size, dim, scale=k), x, y, k)
        parts = torch.unflatten(out.movedim(dim, -1), -1, (groups, size))
        expected = torch.unflatten(x.movedim(dim, -1), -1, (groups, size)).sort(-1).values
        close(parts, k * expected)

    return Call((x, size, dim, k), check)


@case("householder")
def _householder(draw: Draw) -> Call:
    n, rest = draw(sizes), draw(st.sampled_from([(), (3,)]))
    x, y = drawn(draw, 3, 2 * n, *rest), drawn(draw, 3, 2 * n, *rest)
    theta = drawn(draw, n)

    def check(out: Tensor) -> None:
        shrinks(lambda z: F.householder(z, theta), x, y, 1.0)
        close(out.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))

    return Call((x, theta), check)


@case("lipschitz_prelu")
def _prelu(draw: Draw) -> Call:
    n, k = draw(sizes), draw(constants)
    x, y, slope = drawn(draw, 3, n), drawn(draw, 3, n), drawn(draw, draw(st.sampled_from([1, n])))
    return Call((x, slope, k), lambda _: shrinks(lambda z: F.lipschitz_prelu(z, slope, k), x, y, k))


@case("scaled_avg_pool2d", "l2_norm_pool2d")
def _pool(draw: Draw, name: str) -> Call:
    kernel, ceil, k = (draw(st.integers(1, 3)), draw(st.integers(1, 3))), draw(st.booleans()), 2.0
    shape = (2, draw(sizes), draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    x, y = drawn(draw, *shape), drawn(draw, *shape)

    def check(out: Tensor) -> None:
        shrinks(lambda z: function(name)(z, kernel, ceil, k), x, y, k)
        for i, j in itertools.product(range(out.shape[2]), range(out.shape[3])):
            rows, cols = (slice(a * b, (a + 1) * b) for a, b in zip((i, j), kernel, strict=True))
            w = x[:, :, rows, cols].flatten(2)
            value = w.norm(dim=2) if name[0] == "l" else w.sum(2) / math.sqrt(w.shape[2])
            close(out[:, :, i, j], k * value)

    return Call((x, kernel, ceil, k), check)


@case("SymmetricPad")
def _symmetric_pad(draw: Draw) -> Call:
    x = drawn(draw, 2, 3, 4)
    left, right, top, bottom = pad = tuple(draw(st.integers(0, 3)) for _ in range(4))
    widths = [(0, 0), (top, bottom), (left, right)]
    expected = torch.from_numpy(np.pad(x.numpy(), widths, mode="symmetric"))
    return Call((x, pad), lambda out: close(out, expected, 0.0))


# ---- weights -------------------------------------------------------------------------------------


@case("power_iteration")
def _power_iteration(draw: Draw) -> Call:
    w, n = weight(draw, tools.SPECTRA), draw(st.integers(0, 4))
    truth = torch.linalg.matrix_norm(w.double(), 2)

    def check(result: Any) -> None:
        sigma, u, v = (x.double() for x in result)
        assert bool((sigma <= truth * (1 + 1e-5)).all())
        for x in (u, v) if bool((truth > 1e-3).all()) and n else ():
            close(x.norm(dim=-1), torch.ones(x.shape[:-1]), 1e-5)
        further = F.power_iteration(w, start(w), n_iterations=n + 5)[0].double()
        assert bool((further >= sigma * (1 - 1e-5) - 1e-12).all())  # it comes from below

    return Call((w, start(w), n), check)


@case("spectral_normalize", "foreach_spectral_normalize")
def _spectral_normalize(draw: Draw, name: str) -> Call:
    n, k = draw(st.integers(0, 3)), draw(constants)
    weights = [weight(draw, tools.SPECTRA) for _ in range(1 if name[0] == "s" else 3)]

    def check_one(w: Tensor, result: Any) -> None:
        out, sigma, _, _ = result
        close(out.double() * sigma.double()[..., None, None], k * w.double(), 1e-4)

    if name[0] == "s":
        (w,) = weights
        return Call((w, start(w), n, k), lambda result: check_one(w, result))
    # A weight is one matrix: its first dimension, and the others.
    weights = [w.to(torch.float32) for w in weights]
    us = [tools.unit((len(w),)).float() for w in weights]

    def check(results: Any) -> None:
        for i, w in enumerate(weights):
            flat = w.flatten(1)
            check_one(flat, (results[0][i].flatten(1), *(r[i] for r in results[1:])))

    return Call((weights, us, n, k), check)


@case("spectral_bjorck")
def _spectral_bjorck(draw: Draw) -> Call:
    w, n, k = weight(draw), draw(st.integers(0, 4)), draw(constants)

    def check(result: Any) -> None:
        if n == 0:
            close(result, F.spectral_normalize(w, start(w), scale=k))
        else:
            assert tools.largest_singular_value(result[0]) <= k * (1 + 1e-5)
        parameter = w.clone().requires_grad_()
        out = F.spectral_bjorck(parameter, start(w), max_iterations=n, scale=k)[0]
        (gradient,) = torch.autograd.grad(out.square().sum(), parameter)
        assert bool(gradient.isfinite().all())

    return Call((w, start(w), n, k), check)


@case("bjorck")
def _bjorck(draw: Draw) -> Call:
    w, beta = weight(draw, tools.SPECTRA), draw(st.sampled_from([0.1, 0.5]))
    norm = torch.linalg.matrix_norm(w.double(), 2)[..., None, None].clamp_min(1.0)
    w = (w.double() / norm).to(w.dtype)
    before = torch.linalg.svdvals(w.double())

    def check(out: Tensor) -> None:
        after = torch.linalg.svdvals(out.double())
        assert bool((after <= 1 + 1e-6).all() and (after >= before - 1e-6).all())

    return Call((w, beta, draw(st.integers(0, 6))), check)


def _is_polar(w: Tensor, out: Tensor, k: float) -> None:
    assert out.dtype == w.dtype
    values = torch.linalg.svdvals(out.double()) / k
    assert bool((values <= 1 + 1e-5 + 1e-6).all() and (values >= 1 - 2e-4).all())
    close(out.double(), k * tools.polar_factor(w), 2e-3)


@case("orthogonalize")
def _orthogonalize(draw: Draw) -> Call:
    w, k = weight(draw), draw(constants)

    def check(out: Tensor) -> None:
        _is_polar(w, out, k)
        close(F.orthogonalize(w * 1e-3, scale=k), out, 2e-3)  # the same for every multiple
        close(F.orthogonalize(w.mT, scale=k).mT, out, 2e-3)

    return Call((w, k), check)


@case("foreach_orthogonalize")
def _foreach_orthogonalize(draw: Draw) -> Call:
    dtype, k = draw(st.sampled_from([torch.float32, torch.float64])), draw(constants)
    weights = [weight(draw).to(dtype) for _ in range(draw(st.integers(1, 3)))]

    def check(out: list[Tensor]) -> None:
        for w, q in zip(weights, out, strict=True):
            _is_polar(w.flatten(1), q.flatten(1), k)

    return Call((weights, k), check)


@case("frobenius_normalize")
def _frobenius_normalize(draw: Draw) -> Call:
    w, k = drawn(draw, 3, draw(sizes), draw(sizes)), draw(constants)
    dim = draw(st.sampled_from([None, 0, -1, (1, 2)]))
    dims = (0, 1, 2) if dim is None else dim

    def check(out: Tensor) -> None:
        norms = torch.linalg.vector_norm(out, dim=dims, keepdim=True)
        there = torch.linalg.vector_norm(w, dim=dims, keepdim=True) > 0
        close(norms, k * there)

    return Call((w, dim, k), check)


@case("spectral_norm_bound")
def _spectral_norm_bound(draw: Draw) -> Call:
    w = weight(draw, tools.SPECTRA)
    truth = torch.linalg.matrix_norm(w.double(), 2)

    def check(bound: Tensor) -> None:
        assert bool((bound.double() >= truth).all())
        assert bool((bound.double() <= truth * (1 + 3e-3)).all())

    return Call((w,), check)


# ---- convolutions --------------------------------------------------------------------------------


@case("conv_factor", "conv_spectral_norm")
def _convolution(draw: Draw, name: str) -> Call:
    kernel, stride, dilation = (draw(st.integers(1, 3)) for _ in range(3))
    padding, groups = draw(st.integers(0, 2)), draw(st.sampled_from([1, 2]))
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    shape = (2 * groups, draw(st.integers(7, 9)), draw(st.integers(7, 9)))
    known = shape[1:] if draw(st.booleans()) else None
    settings_ = {"groups": groups, "padding_mode": mode, "bias": False, "dtype": torch.float64}
    conv = nn.Conv2d(shape[0], 2, kernel, stride, padding, dilation, **settings_)  # type: ignore[arg-type]
    w = conv.weight.detach()
    truth = tools.operator_norm(conv, shape)
    if name == "conv_factor":
        matrix = max(tools.largest_singular_value(part.flatten(1)) for part in w.chunk(groups))
        settings_of_axes = (kernel, stride, padding, dilation, mode, known)
        return Call(settings_of_axes, lambda f: _at_most(truth * f, matrix * (1 + 1e-9)))

    def check(bound: Tensor) -> None:
        _at_most(truth, float(bound) * (1 + 1e-12))
        arguments = (w, stride, padding, dilation, groups, mode, shape[1:], "estimate")
        _at_most(float(F.conv_spectral_norm(*arguments)), truth * (1 + 1e-9))  # type: ignore[arg-type]

    return Call((w, stride, padding, dilation, groups, mode, known), check)


def _at_most(a: float, b: float) -> None:
    assert a <= b


# ---- losses --------------------------------------------------------------------------------------

MINE = ("hinge_margin_loss", "hinge_multiclass_loss", "categorical_hinge_loss")


@case(*MINE, "kr_loss", "neg_kr_loss", "kr_loss_standard", "lse_hkr_multiclass_loss")
def _loss(draw: Draw, name: str) -> Call:
    classes = draw(st.integers(2 if name[:3] in ("lse", "cat") else 1, 4))
    n = draw(sizes)
    x, (_, y) = drawn(draw, n, classes), labels(draw, n, classes)

    def check(losses: Tensor) -> None:
        assert losses.shape == (n,) and bool(losses.isfinite().all())
        order = torch.arange(n).flip(0)
        close(function(name)(x[order], y[order]), losses[order])  # no order of samples
        close(function(name)(x, 2 * y - 1), losses)  # labels -1 and 1 say the same
        if name in MINE:
            assert bool((losses >= 0).all())
        if "kr_loss" in name:
            sign = -1.0 if name[0] == "n" else 1.0
            close(losses, sign * F.kr_loss_multi_gpu(x, F.process_labels_for_multi_gpu(y.double())))

    return Call((x, y), check)


@case("kr_loss_multi_gpu", "process_labels_for_multi_gpu")
def _processed(draw: Draw, name: str) -> Call:
    n, classes = draw(sizes), draw(st.integers(1, 4))
    x, (_, y) = drawn(draw, n, classes), labels(draw, n, classes)
    weights = F.process_labels_for_multi_gpu(y.double())
    if name[0] == "k":
        return Call((x, weights), lambda losses: close(losses, F.kr_loss(x, y)))

    def check(processed: Tensor) -> None:
        assert bool(((processed > 0) == (y > 0)).all())
        for column, column_y in zip(processed.T, y.T, strict=True):
            for present in (column[column_y > 0], column[column_y <= 0]):
                if len(present):
                    assert float(present.abs().sum()) == pytest.approx(n, rel=1e-6)

    return Call((y,), check)


@case("hkr_loss", "hkr_multiclass_loss")
def _hkr(draw: Draw, name: str) -> Call:
    n, classes, alpha = draw(sizes), draw(st.integers(2, 4)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    x, (_, y) = drawn(draw, n, classes), labels(draw, n, classes)
    hinge = F.hinge_multiclass_loss if "multi" in name else F.hinge_margin_loss
    expected = alpha * hinge(x, y) - (1 - alpha) * F.kr_loss(x, y)
    return Call((x, y, alpha), lambda losses: close(losses, expected))


@case("tau_cross_entropy_loss", "tau_bce_with_logits_loss")
def _tau(draw: Draw, name: str) -> Call:
    n, classes, tau = draw(sizes), draw(st.integers(2, 4)), draw(constants)
    x, (index, y) = drawn(draw, n, classes), labels(draw, n, classes)
    plain: Any = nn.functional.cross_entropy
    target = index
    if "bce" in name:
        plain, target = nn.functional.binary_cross_entropy_with_logits, y.double()
    return Call((x, target, tau), lambda loss: close(loss, plain(tau * x, target) / tau))


@case("apply_reduction")
def _reduction(draw: Draw) -> Call:
    x, reduction = (
        drawn(draw, draw(sizes), 2),
        draw(st.sampled_from(["mean", "sum", "none", "auto"])),
    )
    expected = {"sum": x.sum(), "none": x}.get(reduction, x.mean())
    return Call((x, reduction), lambda out: close(out, expected))


@case("gradient_penalty")
def _gradient_penalty(draw: Draw) -> Call:
    n, k = draw(sizes), draw(constants)
    x, y, slope = drawn(draw, n, 3), drawn(draw, n, 3), drawn(draw, 3)
    expected = (slope.norm() - k).square().expand(n)
    return Call((lambda z: z @ slope, x, y, k), lambda out: close(out, expected))


# ---- metrics -------------------------------------------------------------------------------------


def _metric(x: Tensor, y: Tensor, epsilon: float, lip: float) -> Tensor:
    whole, parts = (metrics.RobustnessMetric((epsilon,), lip) for _ in range(2))
    whole.update(x, y)
    other = metrics.RobustnessMetric((epsilon,), lip)
    parts.update(x[:1], y[:1])
    other.update(x[1:], y[1:])
    parts.merge(other)
    close(*(torch.tensor(list(m.compute().values()), dtype=torch.float64) for m in (whole, parts)))
    return torch.tensor(list(whole.compute().values()), dtype=torch.float64)


@case("certified_radii", "average_certified_radius", "certified_accuracy", "RobustnessMetric")
def _certified(draw: Draw, name: str) -> Call:
    n, classes, lip = draw(st.integers(2, 6)), draw(st.integers(2, 4)), draw(constants)
    epsilon = draw(st.sampled_from([0.0, 0.1, 1.0]))
    x, (y, _) = drawn(draw, n, classes), labels(draw, n, classes)
    right = x.gather(1, y[:, None]).squeeze(1)
    others = x.scatter(1, y[:, None], -math.inf).amax(1)
    radii = ((right - others) / (math.sqrt(2) * lip)).clamp_min(0)
    accuracy, mean = (radii > epsilon).double().mean(), radii.mean()
    summary = torch.stack([(radii > 0).double().mean(), accuracy, mean])
    if name == "certified_radii":
        return Call((x, y, lip), lambda out: close(out, radii))
    if name == "average_certified_radius":
        return Call((x, y, lip), lambda out: close(torch.tensor(out).double(), mean, 1e-6))
    if name == "certified_accuracy":
        return Call((x, y, epsilon, lip), lambda out: close(torch.tensor(out), accuracy, 1e-6))
    return Call((x, y, epsilon, lip), lambda out: close(out, summary))


# ---- penalties -----------------------------------------------------------------------------------


@case("kernel_orthogonality")
def _kernel_orthogonality(draw: Draw) -> Call:
    groups = draw(st.sampled_from([1, 2]))
    w = torch.stack([weight(draw).double().reshape(-1, 1)[:1].expand(2, 3) for _ in range(groups)])
    w = (w + drawn(draw, groups, 2, 3)).flatten(0, 1)
    parts = [p @ p.mT - torch.eye(2).double() for p in w.chunk(groups)]
    expected = torch.stack(parts).square().sum()

    def check(out: Tensor) -> None:
        close(out, expected)
        q = tools.polar_factor(torch.randn(2, 3))
        close(regularizers.kernel_orthogonality(q), torch.zeros(()), 1e-20)

    return Call((w, groups), check)


@case("conv_orthogonality")
def _conv_orthogonality(draw: Draw) -> Call:
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    rows, channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 5
    w = drawn(draw, rows, channels, kernel)
    if float(w.abs().max()) > 100:
        w = w * 1e-4
    conv = nn.Conv1d(channels, rows, kernel, stride, padding=kernel - 1, bias=False)
    conv.padding_mode = "circular"
    conv.weight = nn.Parameter(w)
    # On a circle of 5 outputs: as many as there are shifts.
    full = nn.functional.pad(
        torch.eye(channels * stride * outputs).double().reshape(-1, channels, stride * outputs),
        (0, kernel - 1),
        mode="circular",
    )
    matrix = nn.functional.conv1d(full, w, stride=stride).flatten(1).mT
    gram = matrix @ matrix.mT if rows <= channels * stride else matrix.mT @ matrix
    expected = (gram - torch.eye(len(gram)).double()).square().sum() / outputs
    return Call((w, stride), lambda out: close(out, expected, 1e-7))


@case("orthogonality")
def _orthogonality(draw: Draw) -> Call:
    model = nn.Sequential(nn.Linear(3, draw(sizes)), nn.Conv1d(1, 2, 3), nn.ReLU()).double()
    expected = regularizers.kernel_orthogonality(model[0].weight)  # type: ignore[arg-type]
    expected = expected + regularizers.conv_orthogonality(model[1].weight)  # type: ignore[arg-type]
    return Call((model,), lambda out: close(out, expected))


# ---- what holds for all --------------------------------------------------------------------------


def mapped(arguments: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(mapped(a, change) for a in arguments)
    return change(arguments) if isinstance(arguments, Tensor) else arguments


def scattered(x: Tensor) -> Tensor:
    """The same values, every second one of something larger."""
    large = torch.full([2 * n for n in x.shape], 7, dtype=x.dtype)
    view = large[tuple(slice(0, None, 2) for _ in x.shape)]
    return view.copy_(x)


def tensors(result: Any) -> list[Tensor]:
    return [torch.tensor(result)] if isinstance(result, (int, float)) else tools.flat(result)


def test_all_functions_are_here() -> None:
    assert set(CASES) == {*F.__all__, *metrics.__all__, *regularizers.__all__}


@pytest.mark.parametrize("name", CASES)
@few
@given(data=st.data())
def test_function(name: str, data: Any) -> None:
    torch.manual_seed(0)
    call, f = CASES[name](data.draw), function(name)
    kept = mapped(call.arguments, lambda x: x.clone())
    result = f(*call.arguments)
    call.check(result)
    given_, before = ([x for x in a if isinstance(x, Tensor)] for a in (call.arguments, kept))
    assert tools.equal_bits(given_, before)
    assert tools.equal_bits(tensors(f(*call.arguments)), tensors(result))
    close(tensors(f(*mapped(call.arguments, scattered))), tensors(result), 1e-4)


WRONG: list[Any] = ["text", object(), [], {}, math.nan, -1, 2**70, torch.ones(3, dtype=torch.int64)]


@pytest.mark.parametrize("name", CASES)
@few
@given(data=st.data())
def test_wrong_arguments_are_refused_in_words(name: str, data: Any) -> None:
    """Or taken, where they happen to be right."""
    arguments = list(CASES[name](data.draw).arguments)
    at = data.draw(st.integers(0, len(arguments) - 1))
    number = type(arguments[at]) is float
    arguments[at] = data.draw(st.sampled_from(WRONG))
    # NaN is no setting; anything else may be one, but is not anything else's exception.
    refused = pytest.raises((TypeError, ValueError), match=r".")
    never = number and isinstance(arguments[at], float)
    with refused if never else contextlib.suppress(TypeError, ValueError):
        function(name)(*arguments)
