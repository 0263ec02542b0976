"""Whole training steps: forward, loss, backward, optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lipfuse
from benchmarks import peers
from benchmarks.ortho_conv import fill
from benchmarks.runner import Call, Contender, Session, Target

QUESTION = "whole training steps, constrained and not"

BARE, PLAIN, SORTED = "plain, no activation", "plain, ReLU", "plain, GroupSort2, L2 pool"
DEEL = "deel-torchlip"
DEEL_SORTED = "plain, deel-torchlip's GroupSort2, L2 pool"
OURS, FUSED = "lipfuse", "lipfuse, fuse"
RETRACTED, BOTH = "lipfuse, retract_", "lipfuse, fuse, retract_"
ORTHOGONIUM, ORTHO = "orthogonium", "lipfuse, OrthoConv2d, fuse"
"""Convolutions of these are orthogonal; orthogonium's by its AOC. It has no GroupSort2 of
neighbours and no L2 pooling, and gets ours."""
NAMES = (
    *(BARE, PLAIN, SORTED, DEEL_SORTED, DEEL, ORTHOGONIUM),
    *(ORTHO, OURS, FUSED, RETRACTED, BOTH),
)
QUICK = (BARE, PLAIN, SORTED, DEEL_SORTED, DEEL, FUSED, BOTH)
"""Of the slowest network, a quick run measures these."""
LEARNING_RATE = 1e-4
"""Small, so that the weights stay where they start: all contenders work on the same spectra."""


@dataclass(frozen=True)
class Kit:
    """The layers a network is built from."""

    linear: Callable[[int, int], nn.Module]
    conv: Callable[[int, int], nn.Module]
    activation: Callable[[], nn.Module]
    pool: Callable[[], nn.Module]


def _plain_conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def kit_of(layers: Any) -> Kit:
    """Of lipfuse or deel-torchlip: the names are the same."""
    return Kit(
        layers.SpectralLinear,
        lambda inputs, outputs: layers.SpectralConv2d(inputs, outputs, 3, padding=1),
        layers.GroupSort2,
        lambda: layers.ScaledL2NormPool2d((2, 2)),
    )


def _l2_pool() -> nn.Module:
    return lipfuse.nn.ScaledL2NormPool2d((2, 2))


KITS: dict[str, Kit] = {
    # What is left of a step without activations and normalisation; the pool averages.
    BARE: Kit(nn.Linear, _plain_conv, nn.Identity, lambda: nn.AvgPool2d(2)),
    PLAIN: Kit(nn.Linear, _plain_conv, nn.ReLU, lambda: nn.AvgPool2d(2)),
    SORTED: Kit(nn.Linear, _plain_conv, lipfuse.nn.GroupSort2, _l2_pool),
    OURS: kit_of(lipfuse.nn),
    ORTHO: Kit(
        lipfuse.nn.SpectralLinear,
        lambda inputs, outputs: lipfuse.nn.OrthoConv2d(inputs, outputs, 3, padding=1),
        lipfuse.nn.GroupSort2,
        _l2_pool,
    ),
}


def kit(name: str) -> tuple[Kit | None, str]:
    """Of a contender, or None and why there is none."""
    if name == ORTHOGONIUM:
        linear, reason = peers.orthogonium()
        aoc, reason_of_aoc = peers.find("orthogonium.layers.conv.AOC")
        if linear is None or aoc is None:
            return None, reason or reason_of_aoc

        def conv(inputs: int, outputs: int) -> nn.Module:
            layer: nn.Module = aoc.AdaptiveOrthoConv2d(
                inputs, outputs, 3, padding=1, padding_mode="zeros"
            )
            return layer

        return Kit(linear.OrthoLinear, conv, lipfuse.nn.GroupSort2, _l2_pool), ""
    if name in (DEEL, DEEL_SORTED):
        torchlip, reason = peers.deel()
        if torchlip is None:
            return None, reason
        theirs = kit_of(torchlip)
        if name == DEEL:
            return theirs, ""
        return Kit(nn.Linear, _plain_conv, theirs.activation, theirs.pool), ""
    return KITS.get(name, KITS[OURS]), ""


def mlp(kit: Kit) -> nn.Sequential:
    """784-512-512-256-10."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((784, 512), (512, 512), (512, 256)):
        layers += [kit.linear(inputs, outputs), kit.activation()]
    return nn.Sequential(*layers, kit.linear(256, 10))


def small_cnn(kit: Kit) -> nn.Sequential:
    """For 28x28 images: two pairs of convolutions of 16 and 32 channels, two linear layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32)):
        layers += [kit.conv(inputs, outputs), kit.activation()]
        layers += [kit.conv(outputs, outputs), kit.activation(), kit.pool()]
    layers += [nn.Flatten(), kit.linear(32 * 7 * 7, 64), kit.activation(), kit.linear(64, 10)]
    return nn.Sequential(*layers)


def six_convs(kit: Kit) -> nn.Sequential:
    """For 32x32 images: 3-64-64-128-128-256-256, pooled after every second, one linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256)):
        layers += [kit.conv(inputs, outputs), kit.activation()]
        layers += [kit.conv(outputs, outputs), kit.activation(), kit.pool()]
    return nn.Sequential(*layers, nn.Flatten(), kit.linear(256 * 4 * 4, 10))


@dataclass(frozen=True)
class Network:
    """What is trained, on which batch, and what is wanted of it."""

    build: Callable[[Kit], nn.Sequential]
    shape: tuple[int, ...]
    targets: tuple[Target, ...]


NETWORKS = {
    "MLP 784-512-512-256-10, batch 128": Network(
        mlp, (128, 784), (Target.faster(DEEL, FUSED, 4.0),)
    ),
    "CNN 28x28, batch 128": Network(
        small_cnn, (128, 1, 28, 28), (Target.faster(DEEL, FUSED, 2.2),)
    ),
    "six convolutions 32x32, batch 16": Network(
        six_convs,
        (16, 3, 32, 32),
        (
            Target.faster(DEEL, FUSED, 2.3),
            Target.within(FUSED, PLAIN, 1.35),
            Target.within(BOTH, PLAIN, 1.15),
        ),
    ),
}


def set_weights(model: nn.Module) -> None:
    """The same raw weights for every contender, with singular values as training leaves them."""
    found = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for seed, layer in enumerate(found):
        chain: Any = getattr(layer, "parametrizations", None)
        weight: Tensor = layer.weight if chain is None else chain.weight.original
        rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
        with torch.no_grad():
            weight.copy_(peers.matrix("near", rows, columns, seed).reshape(weight.shape))
            if layer.bias is not None:
                layer.bias.zero_()


def training_step(model: nn.Module, x: Tensor, labels: Tensor, retract: bool = False) -> Call:
    """Forward, cross-entropy, backward and Adam; then the retraction, if there is one."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loss_of = nn.CrossEntropyLoss()
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(x), labels).backward()
        optimizer.step()
        if retract:
            lipfuse.optim.retract_(model)

    return step


def contender(
    name: str, build: Callable[[Kit], nn.Sequential], x: Tensor, labels: Tensor
) -> Contender:
    """The training step of a network built from the layers of that name."""
    layers, reason = kit(name)
    if layers is None:
        return Contender(name, None, reason)
    model = build(layers)
    if name in (ORTHOGONIUM, ORTHO):
        fill(model, "near")
    else:
        set_weights(model)
    retract = name in (RETRACTED, BOTH)
    if retract:
        lipfuse.optim.retract_(model)
    if name in (FUSED, BOTH, ORTHO):
        lipfuse.fuse(model)
    if name in (DEEL, ORTHOGONIUM):
        with torch.no_grad():
            for _ in range(30):  # their power iterations settle
                for layer in model:
                    getattr(layer, "weight", None)
    step = training_step(model, x, labels, retract)
    return Contender(name, step, ours=name.startswith("lipfuse"))


def run(session: Session) -> None:
    """All networks."""
    quick = session.settings.quick
    for case, network in NETWORKS.items():
        if not session.wants(case):
            continue
        torch.manual_seed(0)
        x = torch.randn(network.shape)
        labels = torch.randint(10, (network.shape[0],))
        contenders = []
        for name in NAMES:
            if name == ORTHO and network.build is mlp:
                continue  # it has no convolutions: the same as without
            if quick and network.build is six_convs and name not in QUICK:
                contenders.append(Contender(name, None, "left out of quick runs"))
                continue
            contenders.append(contender(name, network.build, x, labels))
        session.compare(
            case,
            contenders,
            ours=FUSED,
            targets=network.targets,
            patience=5.0,
            about={"shape": list(network.shape), "optimizer": f"Adam, lr {LEARNING_RATE:g}"},
        )
