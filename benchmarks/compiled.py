"""Whole training steps and inference under torch.compile, against our own eager code.

The same networks of torch.nn alone show what compiling costs and gains by itself.
"""

from __future__ import annotations

import hashlib
import types
from pathlib import Path

import torch
from torch import nn

import lipfuse
from benchmarks import steps
from benchmarks.runner import Call, Contender, Session, Target
from benchmarks.steps import Kit

QUESTION = "torch.compile against eager code, training and inference"

EAGER, FUSED = "eager", "eager, fuse"
COMPILED, BOTH = "torch.compile", "torch.compile, fuse"
PLAIN, PLAIN_COMPILED = "torch.nn, eager", "torch.nn, torch.compile"


def small_mlp(kit: Kit) -> nn.Sequential:
    """Four layers of 64: the calls cost more than what they compute."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [kit.linear(64, 64), kit.activation()]
    return nn.Sequential(*layers, kit.linear(64, 10))


NETWORKS = {
    "MLP 64-64-64-64-64-10, batch 64": (small_mlp, (64, 64)),
    "MLP 784-512-512-256-10, batch 128": (steps.mlp, (128, 784)),
    "CNN 28x28, batch 32": (steps.small_cnn, (32, 1, 28, 28)),
}


class Compiled(nn.Module):
    """A model under ``torch.compile``, with code of its own.

    torch keeps what it has compiled with a function's code and tries one after the other: models
    that take turns with the code of ``nn.Sequential`` would wait for each other's guards.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def call(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = model(x)
            return out

        code = call.__code__.replace()  # a copy
        apart = types.FunctionType(code, call.__globals__, "call", None, call.__closure__)
        self._call = torch.compile(apart, fullgraph=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._call(x)
        return out


def _inference(model: nn.Module, x: torch.Tensor) -> Call:
    model.eval()

    def call() -> None:
        with torch.no_grad():
            model(x)

    return call


def _version() -> str:
    """Of the package's code. torch keeps what it has compiled on disk, and finds it by the graph:
    what lipfuse says of its operators, such as which layouts they take, is not in there."""
    files = sorted(Path(lipfuse.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def run(session: Session) -> None:
    """All networks, in training and in evaluation."""
    with torch.compiler.config.patch(cache_key_tag=_version()):  # type: ignore[attr-defined]
        _run(session)


def _run(session: Session) -> None:
    for title, (build, shape) in NETWORKS.items():
        for mode in ("training", "inference"):
            case = f"{title}, {mode}"
            if not session.wants(case):
                continue
            torch.compiler.reset()
            torch.manual_seed(0)
            x = torch.randn(shape)
            labels = torch.randint(10, (shape[0],))
            contenders = []
            for name in (EAGER, FUSED, COMPILED, BOTH, PLAIN, PLAIN_COMPILED):
                plain = name in (PLAIN, PLAIN_COMPILED)
                model: nn.Module = build(steps.KITS[steps.PLAIN if plain else steps.OURS])
                steps.set_weights(model)
                if name in (FUSED, BOTH):
                    lipfuse.fuse(model)
                compiled = name in (COMPILED, BOTH, PLAIN_COMPILED)
                if compiled:
                    model = Compiled(model)
                if mode == "training":
                    call = steps.training_step(model, x, labels)
                else:
                    call = _inference(model, x)
                contenders.append(Contender(name, call, ours=not plain, slow_start=compiled))
            session.compare(
                case,
                contenders,
                ours=COMPILED,
                targets=(
                    Target.within(COMPILED, EAGER, 1.1),
                    Target.within(BOTH, FUSED, 1.1),
                ),
                patience=60.0,
                about={"shape": list(shape)},
            )
