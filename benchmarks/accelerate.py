"""A model built from deel-torchlip's layers, before and after one call of lipfuse.accelerate."""

from __future__ import annotations

import torch
from torch import nn

import lipfuse
from benchmarks import peers, steps
from benchmarks.runner import Contender, Session, Target

QUESTION = "training steps of a deel-torchlip model, as it is and after lipfuse.accelerate"

BEFORE, AFTER, FUSED = "deel-torchlip", "after accelerate", "after accelerate and fuse"
CASES = {
    "CNN 28x28, batch 32": (steps.small_cnn, (32, 1, 28, 28)),
    "six convolutions 32x32, batch 16": (steps.six_convs, (16, 3, 32, 32)),
}


def _contender(name: str, model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Contender:
    with torch.no_grad():
        for _ in range(30):  # its power iterations settle
            for layer in model.children():
                getattr(layer, "weight", None)
    if name != BEFORE:
        report = lipfuse.accelerate(model)
        if report.left:
            raise RuntimeError(f"not everything was converted:\n{report}")
    if name == FUSED:
        lipfuse.fuse(model)
    return Contender(name, steps.training_step(model, x, labels), ours=name != BEFORE)


def run(session: Session) -> None:
    """Forward, cross-entropy, backward and Adam; the same raw weights for all."""
    torchlip, reason = peers.deel()
    for case, (build, shape) in CASES.items():
        if not session.wants(case):
            continue
        torch.manual_seed(0)
        x, labels = torch.randn(shape), torch.randint(10, (shape[0],))
        contenders = []
        for name in (BEFORE, AFTER, FUSED):
            if torchlip is None:
                contenders.append(Contender(name, None, reason))
                continue
            model = build(steps.kit_of(torchlip))
            steps.set_weights(model)
            contenders.append(_contender(name, model, x, labels))
        session.compare(
            case,
            contenders,
            ours=AFTER,
            targets=(Target.faster(BEFORE, AFTER, 2.0),),
            patience=5.0,
            about={"shape": list(shape), "optimizer": f"Adam, lr {steps.LEARNING_RATE:g}"},
        )
