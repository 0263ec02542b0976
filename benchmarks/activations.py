"""Activations and pooling: one pass over memory each, or many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lipfuse
from benchmarks import peers
from benchmarks.runner import Call, Contender, Session, Target

QUESTION = "forward and backward of activations and pooling"

SHAPE = (128, 64, 32, 32)
QUICK_SHAPE = (32, 64, 32, 32)
COPY = "copy of the input"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def _step(module: nn.Module, x: Tensor, grad: Tensor) -> Call:
    def call() -> None:
        x.grad = None
        module(x).backward(grad)

    return call


def _contenders(modules: dict[str, Any], x: Tensor, reason: str) -> list[Contender]:
    found = []
    for name, module in modules.items():
        if module is None:
            found.append(Contender(name, None, reason))
            continue
        with torch.no_grad():
            # The gradient comes in the layout that the output went out in.
            grad = torch.randn_like(module(x))
        found.append(Contender(name, _step(module, x, grad), ours=name.startswith("lipfuse")))
    out = torch.empty_like(x.detach())
    source = x.detach().clone()
    found.append(Contender(COPY, lambda: out.copy_(source), yardstick=True))
    return found


def run(session: Session) -> None:
    """Both layouts."""
    torchlip, reason = peers.deel()
    ours = lipfuse.nn
    shape = QUICK_SHAPE if session.settings.quick else SHAPE
    for name, layout in FORMATS.items():
        torch.manual_seed(0)
        x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
        case = f"activations, {name}"
        if session.wants(case):
            modules = {
                "lipfuse GroupSort2": ours.GroupSort2(),
                "ReLU": nn.ReLU(),
                "lipfuse MaxMin": ours.MaxMin(),
                "deel-torchlip GroupSort2": torchlip.GroupSort2() if torchlip else None,
            }
            session.compare(
                case,
                _contenders(modules, x, reason),
                ours="ReLU",
                targets=[Target.within("lipfuse GroupSort2", "ReLU", 1.3)],
                about={"shape": list(shape), "layout": name},
            )
        case = f"pooling 2x2, {name}"
        if session.wants(case):
            modules = {
                "lipfuse ScaledL2NormPool2d": ours.ScaledL2NormPool2d((2, 2)),
                "lipfuse ScaledAvgPool2d": ours.ScaledAvgPool2d((2, 2)),
                "AvgPool2d": nn.AvgPool2d((2, 2)),
                "deel-torchlip ScaledL2NormPool2d": (
                    torchlip.ScaledL2NormPool2d((2, 2)) if torchlip else None
                ),
                "deel-torchlip ScaledAvgPool2d": (
                    torchlip.ScaledAvgPool2d((2, 2)) if torchlip else None
                ),
            }
            session.compare(
                case,
                _contenders(modules, x, reason),
                ours="AvgPool2d",
                targets=[
                    Target.within("lipfuse ScaledL2NormPool2d", "AvgPool2d", 1.3),
                    Target.within("lipfuse ScaledAvgPool2d", "AvgPool2d", 1.3),
                ],
                about={"shape": list(shape), "layout": name},
            )
