"""Orthogonal convolutions: parameters to orthogonal kernel, and their gradients back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import lipfuse
from benchmarks import peers
from benchmarks.runner import Contender, Session, Target
from benchmarks.weights import product

QUESTION = "forward and backward of one orthogonal convolution's kernel"

# (in_channels, out_channels, kernel_size, stride, groups), the ratio to orthogonium's wanted
CASES: dict[str, tuple[tuple[int, int, int, int, int], float | None]] = {
    "64x64 3x3": ((64, 64, 3, 1, 1), 3),
    "128x128 3x3 stride 2": ((128, 128, 3, 2, 1), 3),
    "64x64 3x3 groups 4": ((64, 64, 3, 1, 4), 3),
    "256x256 3x3": ((256, 256, 3, 1, 1), 3),
    "32x32 5x5": ((32, 32, 5, 1, 1), 3),
    "16x64 3x3": ((16, 64, 3, 1, 1), None),
    "64x128 2x2 stride 2": ((64, 128, 2, 2, 1), None),
}
QUICK = list(CASES)[:3]

OURS, GAUSSIAN, ORTHOGONIUM = "lipfuse", "lipfuse, gaussian factors", "orthogonium"
SIZE = 12  # of the images whose singular values are computed, a multiple of all strides


def deviation(kernel: Tensor, stride: int, groups: int, size: int = SIZE) -> float:
    """The largest distance of a singular value from 1 on circular padding, in float64.

    A convolution is diagonal in Fourier space; a stride adds up the frequencies that it can no
    longer tell apart, which makes their matrices one wide one.
    """
    worst = 0.0
    for part in kernel.detach().double().chunk(groups):
        symbol = torch.fft.fft2(part, s=(size, size)).permute(2, 3, 0, 1)
        period = size // stride
        wide = symbol.reshape(stride, period, stride, period, *part.shape[:2])
        wide = wide.permute(1, 3, 4, 0, 2, 5).flatten(3) / stride
        worst = max(worst, float((torch.linalg.svdvals(wide) - 1).abs().max()))
    return worst


def _raw(layer: nn.Module) -> Iterator[Tensor]:
    """The matrices that a layer's kernel is computed from, whoever made it; of a model, all."""
    for name, p in layer.named_parameters():
        # Not biases, and not the vectors of orthogonium's power iterations.
        if ".original" in name and min(p.shape[-2:]) > 1:
            # A kernel is one matrix a row of outputs; two or more leading dimensions are a batch.
            strided = p.dim() == 4 and p.shape[-1] == p.shape[-2] < 8
            yield p.flatten(1) if strided else p


def fill(layer: nn.Module, kind: str) -> None:
    """Gives every matrix that kernels or weights are computed from the spectrum named."""
    with torch.no_grad():
        for at, raw in enumerate(_raw(layer)):
            matrices = raw.reshape(-1, *raw.shape[-2:])
            for i, m in enumerate(matrices):
                m.copy_(peers.matrix(kind, *m.shape, seed=97 * at + i))


def _contender(
    name: str, layer: nn.Module, grad: Tensor, stride: int, groups: int, **more: Any
) -> Contender:
    any_layer: Any = layer.train()
    parameters = list(layer.parameters())
    with torch.no_grad():
        for _ in range(10):  # orthogonium's power iterations carry their vectors on
            any_layer.weight  # noqa: B018

    def call() -> None:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(any_layer.weight, grad)

    def facts() -> dict[str, float]:
        with torch.no_grad():
            return {"max |σ-1|": deviation(any_layer.weight, stride, groups)}

    return Contender(name, call, facts=facts, **more)


def _ours(shape: tuple[int, int, int, int, int]) -> Any:
    inputs, outputs, kernel, stride, groups = shape
    return lipfuse.nn.OrthoConv2d(inputs, outputs, kernel, stride, groups=groups)


def run(session: Session) -> None:
    """All shapes."""
    aoc, reason = peers.find("orthogonium.layers.conv.AOC")
    for case, (shape, wanted) in CASES.items():
        if not session.wants(case) or (session.settings.quick and case not in QUICK):
            continue
        torch.manual_seed(0)
        inputs, outputs, kernel, stride, groups = shape
        grad = torch.randn(outputs, inputs // groups, kernel, kernel)
        layer, other = _ours(shape), _ours(shape)
        fill(layer, "near")
        fill(other, "gaussian")
        plan = layer.parametrizations.weight[0].plan
        rows, c = plan.rows, plan.channels
        # Every block multiplies all coefficients there are; the gradient does so twice.
        sizes, products = list(plan.taps), 0
        for axis in plan.axes:
            products += math.prod(sizes)
            sizes[axis] += 1
        unit = f"torch.mm, {rows} x {c} x {c}"
        floor = ((3.0 * products * groups, unit),) if products else ()
        contenders = [
            _contender(OURS, layer, grad, stride, groups, ours=True, floor=floor),
            _contender(GAUSSIAN, other, grad, stride, groups, ours=True),
        ]
        if aoc is None:
            contenders.append(Contender(ORTHOGONIUM, None, reason))
        else:
            peer = aoc.AdaptiveOrthoConv2d(
                inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups
            )
            fill(peer, "near")
            contenders.append(_contender(ORTHOGONIUM, peer, grad, stride, groups))
        session.compare(
            case,
            [*contenders, product(unit, rows, c)],
            ours=OURS,
            targets=[Target.faster(ORTHOGONIUM, OURS, wanted or 1)],
            about={"shape": list(shape)},
            work=2.0 * rows * c * c,
        )
