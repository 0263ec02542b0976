"""How tight the bounds of a convolution's own norm are, and what a layer pays for one in training.

The truth is the largest singular value of the dense matrix in float64 where that is small enough,
else what Lanczos' iteration on the operator reaches in 400 products, which is below the truth: the
ratio shown is then too large, if anything.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipfuse
from benchmarks.layers import layer_step
from benchmarks.runner import Call, Contender, Session

QUESTION = "bounds of a convolution's own norm: how tight, and the price of dividing by one"

MODES = ("zeros", "circular", "reflect", "replicate", "symmetric")
KERNELS = ("random", "low-pass", "one tap")
DENSE = 1100
"""Elements of an input up to which the dense matrix is decomposed."""
TIGHT: list[tuple[int, int, int]] = [(2, 16, 1), (2, 16, 2), (1, 32, 1), (16, 32, 1), (16, 32, 2)]
TIGHT += [(64, 16, 1), (64, 32, 1)]
"""Channels, size of the input, stride."""
QUICK: list[tuple[int, int, int]] = [(2, 16, 1), (2, 16, 2)]
COST: list[tuple[int, int, int]] = [(16, 32, 64), (64, 32, 64), (128, 16, 64), (256, 8, 64)]
"""Channels, size of the input, batch."""


def _kernel(kind: str, channels: int) -> Tensor:
    torch.manual_seed(0)
    shape = (channels, channels, 3, 3)
    if kind == "random":
        return torch.randn(shape, dtype=torch.float64)
    if kind == "low-pass":
        return 1 + 0.1 * torch.randn(shape, dtype=torch.float64)
    kernel = torch.zeros(shape, dtype=torch.float64)
    kernel[:, :, 0, 2] = torch.eye(channels)
    return kernel


def _truth(weight: Tensor, size: int, stride: int, mode: str) -> float:
    channels = weight.shape[1]
    if channels * size**2 > DENSE:
        return float(_norm(weight, size, stride, mode, bound="estimate", n_iterations=400))
    x = torch.eye(channels * size**2, dtype=torch.float64).reshape(-1, channels, size, size)
    if mode == "symmetric":  # a border of one pixel, the edge: that of replicate
        mode = "replicate"
    x = F.pad(x, (1, 1, 1, 1), mode={"zeros": "constant"}.get(mode, mode))
    y = F.conv2d(x, weight, stride=stride).flatten(1)
    return float(torch.linalg.matrix_norm(y, 2))


def _norm(weight: Tensor, size: int, stride: int, mode: str, **more: Any) -> Tensor:
    shape = (size, size) if size else None
    norm = lipfuse.functional.conv_spectral_norm
    return norm(weight, stride, 1, 1, 1, mode, shape, **more)


def tightness(channels: int, size: int, stride: int, mode: str) -> dict[str, Any]:
    """One line: by what part bounds exceed the truth, the worst of the kernels; time of a bound."""
    worst: dict[str, float] = {}
    seconds = 0.0
    for kind in KERNELS:
        weight = _kernel(kind, channels)
        truth = _truth(weight, size, stride, mode)
        settings = (3, stride, 1, 1, mode, (size, size))
        factor = 1 / lipfuse.functional.conv_factor(*settings)
        matrix = float(torch.linalg.matrix_norm(weight.flatten(1), 2))
        started = time.perf_counter()
        bound = float(_norm(weight, size, stride, mode))
        seconds = max(seconds, time.perf_counter() - started)
        found = {
            "factor": matrix * factor,
            "every size": float(_norm(weight, 0, stride, mode)),
            "frequencies": float(_norm(weight, size, stride, mode, max_size=1)),
            "bound": bound,
        }
        for name, value in found.items():
            worst[name] = max(worst.get(name, 0.0), value / truth - 1)
    about = {"padding_mode": mode, "stride": stride, "channels": channels, "size": size}
    return {**about, **worst, "seconds": seconds}


def signal(normalization: Any, layers: int = 8) -> dict[str, Any]:
    """What reaches the end of a chain of 16-channel convolutions, as they are drawn."""
    torch.manual_seed(0)
    kind = lipfuse.nn.SpectralConv2d
    chain = [
        kind(16, 16, 3, padding=1, bias=False, normalization=normalization).eval()
        for _ in range(layers)
    ]
    x = torch.randn(4, 16, 32, 32)
    with torch.no_grad():
        y = nn.Sequential(*chain)(x)
        norms = [float(_norm(c.weight, 32, 1, "zeros", bound="estimate")) for c in chain]
    return {
        "normalization": normalization,
        "layers": layers,
        "smallest norm of a layer": min(norms),
        "product of the norms": math.prod(norms),
        "norm of white noise kept": float(y.norm() / x.norm()),
    }


def _weight_step(layer: Any, grad: Tensor) -> Call:
    parameter = layer.parametrizations.weight.original

    def call() -> None:
        parameter.grad = None
        layer.weight.backward(grad)

    return call


def _cost(session: Session, channels: int, size: int, batch: int) -> None:
    name = f"{channels} channels, 3x3, {size}x{size}, batch {batch}"
    if not session.wants(name):
        return
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size).requires_grad_()
    g = torch.randn(batch, channels, size, size)
    weight_g = torch.randn(channels, channels, 3, 3)
    drift = 0.02 * torch.randn(channels, channels, 3, 3)
    contenders = []
    settings: dict[str, dict[str, Any]] = {
        "factor": {},
        "operator": {"normalization": "operator"},
        "operator, raw": {"normalization": "operator", "eps_bjorck": None},
    }
    for label, more in settings.items():
        torch.manual_seed(1)
        layer: Any = lipfuse.nn.SpectralConv2d(channels, channels, 3, padding=1, **more)
        with torch.no_grad():  # where training has it: nearly orthonormal, as a matrix
            layer.parametrizations.weight.original.add_(drift)
        contenders.append(Contender(f"weight: {label}", _weight_step(layer, weight_g), ours=True))
        contenders.append(Contender(f"layer: {label}", layer_step(layer, x, g), ours=True))
    plain = nn.Conv2d(channels, channels, 3, padding=1)
    contenders.append(Contender("layer: torch.nn.Conv2d", layer_step(plain, x, g)))
    session.compare(name, contenders, ours="weight: factor", about={"channels": channels})


def run(session: Session) -> None:
    """Ratios of bounds to the truth; the signal through eight layers; the price of a step."""
    quick = session.settings.quick
    lines = [
        tightness(channels, size, stride, mode)
        for channels, size, stride in (QUICK if quick else TIGHT)
        for mode in MODES
        if session.wants(f"{channels} channels, {size}x{size}, stride {stride}, {mode}")
    ]
    if lines:
        title = "3x3, a border of one pixel: bound / truth - 1, the worst of three kernels"
        session.rows(title, list(lines[0]), lines)
    if session.wants("eight layers"):
        found = [signal(n) for n in ("factor", "operator")]
        session.rows("eight layers of 16 channels, 3x3, zeros around", list(found[0]), found)
    for channels, size, batch in COST[:1] if quick else COST:
        _cost(session, channels, size, batch)
