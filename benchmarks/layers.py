"""One layer in training: its weight and what it does with a batch, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.ortho_conv import fill
from benchmarks.runner import Call, Contender, Session, Target

QUESTION = "forward and backward of one layer with a batch"

OURS, PLAIN, DEEL = "lipfuse", "torch.nn", "deel-torchlip"
ORTHOGONIUM, AOC = "orthogonium", "orthogonium AOC"
_MODULES = {
    OURS: "lipfuse.nn",
    PLAIN: "torch.nn",
    DEEL: "deel.torchlip",
    ORTHOGONIUM: "orthogonium.layers.linear",
    AOC: "orthogonium.layers.conv.AOC",
}


@dataclass(frozen=True)
class Layer:
    """One layer by each library: the name of its class there, and the same arguments for all."""

    shape: tuple[int, ...]
    arguments: tuple[int, ...]
    classes: dict[str, str]
    more: dict[str, Any]
    targets: tuple[Target, ...] = ()


def _spectral(kind: str) -> dict[str, str]:
    return {OURS: f"Spectral{kind}", PLAIN: kind, DEEL: f"Spectral{kind}"}


CASES = {
    "SpectralLinear 512, batch 128": Layer(
        (128, 512),
        (512, 512),
        {**_spectral("Linear"), ORTHOGONIUM: "OrthoLinear"},
        {},
        (Target.faster(DEEL, OURS, 1), Target.faster(ORTHOGONIUM, OURS, 1)),
    ),
    "SpectralConv2d 64 channels, 3x3, 16x16, batch 16": Layer(
        (16, 64, 16, 16),
        (64, 64, 3),
        _spectral("Conv2d"),
        {"padding": 1},
        (Target.faster(DEEL, OURS, 1),),
    ),
    "SpectralConvTranspose2d 64 to 32 channels, 2x2, stride 2, 16x16, batch 16": Layer(
        (16, 64, 16, 16),
        (64, 32, 2),
        _spectral("ConvTranspose2d"),
        {"stride": 2},
        (Target.faster(DEEL, OURS, 1),),
    ),
    "OrthoConv2d 64 channels, 3x3, 16x16, batch 16": Layer(
        (16, 64, 16, 16),
        (64, 64, 3),
        {OURS: "OrthoConv2d", PLAIN: "Conv2d", AOC: "AdaptiveOrthoConv2d"},
        {"padding": 1, "padding_mode": "zeros"},
        (Target.faster(AOC, OURS, 1),),
    ),
    "FrobeniusLinear 512 to 10, batch 128": Layer(
        (128, 512),
        (512, 10),
        {OURS: "FrobeniusLinear", PLAIN: "Linear", DEEL: "FrobeniusLinear"},
        {},
        (Target.faster(DEEL, OURS, 1),),
    ),
}


def layer_step(layer: nn.Module, x: Tensor, grad: Tensor) -> Call:
    """Forward and backward of a layer, with the gradient of its input."""

    def call() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(grad)

    return call


def _contender(library: str, about: Layer) -> Contender:
    module, reason = peers.find(_MODULES[library])
    if module is None:
        return Contender(library, None, reason)
    build: Callable[..., nn.Module] = getattr(module, about.classes[library])
    torch.manual_seed(0)
    x = torch.randn(about.shape).requires_grad_()
    layer = build(*about.arguments, **about.more).train()
    fill(layer, "near")
    with torch.no_grad():
        for _ in range(30):  # peers' power iterations settle
            y = layer(x)
    return Contender(library, layer_step(layer, x, torch.randn_like(y)), ours=library == OURS)


def run(session: Session) -> None:
    """All layers; `torch.nn` is the one without a constraint."""
    for case, about in CASES.items():
        if session.wants(case):
            session.compare(
                case,
                [_contender(library, about) for library in about.classes],
                ours=OURS,
                targets=about.targets,
                about={"shape": list(about.shape)},
            )
