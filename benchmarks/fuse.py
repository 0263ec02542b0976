"""Many weights: layer by layer, and all in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import lipfuse
from benchmarks import peers
from benchmarks.runner import Call, Contender, Session, Target
from benchmarks.weights import SMALL, floor, product

QUESTION = "24 orthogonal layers, one by one or by lipfuse.fuse"

CASES: dict[str, list[int]] = {
    "8 each of 64, 128, 256": [64] * 8 + [128] * 8 + [256] * 8,
    "24 of 64": [64] * 24,
    "24 of 128": [128] * 24,
    "24 of 256": [256] * 24,
}
BATCH = 8
EACH, FUSED, FOREACH, DEEL = "one by one", "lipfuse.fuse", "foreach_orthogonalize", "deel-torchlip"


class Weights(nn.Module):
    """Returns the weights of its layers: nothing but their normalisation."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self) -> list[Tensor]:
        layers: Any = self.layers
        return [layer.weight for layer in layers]


class Chains(nn.Module):
    """One chain of layers a size, each on an input of its own."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: dict[int, Tensor]) -> list[Tensor]:
        states = dict(inputs)
        layers: Any = self.layers
        for layer in layers:
            states[layer.in_features] = layer(states[layer.in_features])
        return list(states.values())


def _layers(kind: Any, sizes: Sequence[int]) -> list[nn.Module]:
    layers = []
    for i, n in enumerate(sizes):
        layer = kind(n, n)
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(peers.matrix("near", n, n, seed=i))
            for _ in range(30 if kind is not lipfuse.nn.SpectralLinear else 0):
                layer.weight  # noqa: B018
        layers.append(layer.train())
    return layers


def _weights_step(model: nn.Module, grads: list[Tensor]) -> Call:
    def call() -> None:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(model(), grads)

    return call


def _model_step(model: nn.Module, inputs: dict[int, Tensor], grads: list[Tensor]) -> Call:
    def call() -> None:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(model(inputs), grads)

    return call


def _foreach(sizes: Sequence[int], grads: list[Tensor]) -> Contender:
    function = getattr(lipfuse.functional, "foreach_orthogonalize", None)
    if function is None:
        return Contender(FOREACH, None, "not in this version of lipfuse")
    parameters = [peers.matrix("near", n, n, seed=i).requires_grad_() for i, n in enumerate(sizes)]

    def call() -> None:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(list(function(parameters)), grads)

    return Contender(FOREACH, call, ours=True)


def run(session: Session) -> None:
    """The weights alone, then with a small batch."""
    ours = lipfuse.nn.SpectralLinear
    torchlip, reason = peers.deel()
    cases = list(CASES.items())
    for name, sizes in cases[:1] if session.settings.quick else cases:
        yardsticks = [product(f"{SMALL}, n = {n}", n, n) for n in sorted(set(sizes))]
        least = tuple(
            (floor(n, n, False)[0][0] * sizes.count(n), f"{SMALL}, n = {n}")
            for n in sorted(set(sizes))
        )
        # The floor is that of one core after the other or of all together: torch.mm uses them all.
        for part in ("weights", f"model, batch {BATCH}"):
            case = f"{name}: {part}"
            if not session.wants(case):
                continue
            torch.manual_seed(0)
            alone = part == "weights"
            inputs = {n: torch.randn(BATCH, n) for n in dict.fromkeys(sizes)}
            if alone:
                grads = [peers.matrix("gaussian", n, n, seed=100 + i) for i, n in enumerate(sizes)]
            else:
                grads = [torch.randn(BATCH, n) for n in inputs]

            def entry(
                label: str,
                layers: list[nn.Module],
                fused: bool = False,
                mine: bool = True,
                alone: bool = alone,
                inputs: dict[int, Tensor] = inputs,
                grads: list[Tensor] = grads,
                least: tuple[tuple[float, str], ...] = least,
            ) -> Contender:
                model = Weights(layers) if alone else Chains(layers)
                if fused:
                    lipfuse.fuse(model)
                step = _weights_step(model, grads) if alone else _model_step(model, inputs, grads)
                return Contender(label, step, ours=mine, floor=least if mine and alone else ())

            contenders = [
                entry(FUSED, _layers(ours, sizes), fused=True),
                entry(EACH, _layers(ours, sizes)),
            ]
            if alone:
                contenders.append(_foreach(sizes, grads))
            if torchlip is None:
                contenders.append(Contender(DEEL, None, reason))
            else:
                contenders.append(entry(DEEL, _layers(torchlip.SpectralLinear, sizes), mine=False))
            session.compare(
                case,
                [*contenders, *yardsticks],
                ours=FUSED,
                targets=[Target.faster(EACH, FUSED, 2.0)] if name == cases[0][0] else [],
                about={"sizes": sizes, "batch": None if alone else BATCH},
            )
