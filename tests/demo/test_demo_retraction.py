"""The demo's network, trained with its parameters on the manifold: lipfuse.optim.retract_."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from lipfuse.demo.data import Digits
from lipfuse.demo.model import build_constrained
from lipfuse.demo.settings import Settings
from lipfuse.demo.training import train
from lipfuse.optim import retract_


def test_the_demo_trains_as_well(digits: Digits) -> None:
    settings = Settings(epochs=8)
    reached = {}
    for retracted in (False, True):
        torch.manual_seed(0)
        model = build_constrained(settings.width, settings.depth)

        def retract(*_: Any, model: nn.Module = model, wanted: bool = retracted) -> None:
            if wanted:
                retract_(model)

        retract()
        handle = register_optimizer_step_post_hook(retract)
        try:
            reached[retracted] = train(model, digits, settings).test_certified[-1]
        finally:
            handle.remove()
    assert reached[False] >= 0.85
    assert reached[True] >= reached[False] - 0.02
