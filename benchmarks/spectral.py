"""Spectral normalisation against torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipfuse
from benchmarks import peers
from benchmarks.runner import Contender, Session, Target
from benchmarks.weights import of_layer

QUESTION = "forward and backward of one weight divided by its spectral norm"

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
QUICK = (64, 512, 1024)
TORCH, OURS, BOUND = "torch spectral_norm", "lipfuse spectral_norm", "lipfuse, proven bound"
COPY = "copy of W"
LARGEST_BOUND = 1024
"""Proving the bound takes seconds above this size; it is no rival of one power iteration."""

# The least that has to pass through memory, in copies of W (a reading and a writing): W once for
# the iteration and once for the division, which writes; G and the result for their product; G once
# more for the gradient, which is written.
FLOOR = ((3.5, COPY),)


def _linear(register: Callable[[nn.Module], nn.Module], n: int) -> nn.Module:
    return register(nn.Linear(n, n, bias=False))


def _largest(layer: Any) -> Callable[[], dict[str, float]]:
    """How far the largest singular value of the result is from 1."""

    def facts() -> dict[str, float]:
        with torch.no_grad():
            weight: Tensor = layer.weight
            return {"|sigma-1|": abs(float(torch.linalg.matrix_norm(weight.double(), 2)) - 1)}

    return facts


def run(session: Session) -> None:
    """All sizes."""
    for n in QUICK if session.settings.quick else SIZES:
        case = f"{n}x{n}"
        if not session.wants(case):
            continue
        torch.manual_seed(0)
        # Of a large random matrix the time is the same, and there is no decomposition to wait for.
        w = peers.matrix("near" if n <= 512 else "gaussian", n, n)
        grad = peers.matrix("gaussian", n, n, seed=1)
        out = torch.empty_like(w)
        layers = {
            OURS: _linear(lipfuse.parametrizations.spectral_norm, n),
            BOUND: lipfuse.nn.SpectralLinear(n, n, bias=False, eps_bjorck=None),
            TORCH: _linear(parametrizations.spectral_norm, n),
        }
        contenders = []
        for name, layer in layers.items():
            if name == BOUND and n > LARGEST_BOUND:
                contenders.append(Contender(name, None, f"left out above n = {LARGEST_BOUND}"))
                continue
            contender = of_layer(
                name,
                layer,
                w,
                grad,
                warm=3 if name == BOUND else 30,
                ours=name != TORCH,
                floor=FLOOR if name == OURS else (),
            )
            # A decomposition of the larger ones would take longer than all the rest.
            facts = _largest(layer) if n <= 512 else None
            contenders.append(replace(contender, facts=facts))
        copy = Contender(COPY, lambda out=out, w=w: out.copy_(w), yardstick=True)  # type: ignore[misc]
        wanted = 3.0 if n <= 512 else 1.8
        session.compare(
            case,
            [*contenders, copy],
            ours=OURS,
            targets=[Target.faster(TORCH, OURS, wanted)],
            about={"shape": [n, n]},
        )
