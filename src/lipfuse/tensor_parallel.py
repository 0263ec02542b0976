"""Tensor parallelism for layers whose weight is computed.

torch's styles replace a linear layer's ``weight`` by a sharded one. Of a layer of
:mod:`lipfuse.nn`, they have to shard the parameter that its weight is computed from.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.utils import parametrize

__all__ = ["Normalized"]


class Normalized(ParallelStyle):
    """One of torch's styles for linear layers, for a linear layer with a normalised weight.

    ::

        from torch.distributed.tensor.parallel import (
            ColwiseParallel, RowwiseParallel, parallelize_module
        )

        parallelize_module(model, mesh, {
            "0": Normalized(ColwiseParallel()),
            "2": Normalized(RowwiseParallel()),
        })

    The norm is that of the whole weight: every rank gathers it, normalises it, and keeps its part.

    Args:
        style: ``ColwiseParallel`` or ``RowwiseParallel``, with their settings.

    Raises:
        TypeError: if ``style`` is no ``ParallelStyle``; when it is applied, if the layer is no
            ``torch.nn.Linear`` with a ``weight`` that is computed from one parameter.
    """

    def __init__(self, style: ParallelStyle) -> None:
        super().__init__()
        if not isinstance(style, ParallelStyle):
            raise TypeError(f"style must be a torch ParallelStyle, got {style!r}")
        self.style = style

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer: Any = module
        computed = isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight")
        if not computed or not layer.parametrizations.weight.is_tensor:
            raise TypeError(
                "Normalized must be applied to a linear layer whose weight is computed from one "
                f"parameter, got {parametrize.type_before_parametrizations(module).__name__}"
            )
        chain = layer.parametrizations.weight
        # The style sees an ordinary layer with the same parameters.
        bare = nn.Linear(layer.in_features, layer.out_features, device="meta")
        bare.weight, bare.bias = chain.original, layer.bias
        self.style._apply(bare, device_mesh)
        chain.original, layer.bias = bare.weight, bare.bias
        # How it brings inputs and outputs into the layouts wanted.
        for before in bare._forward_pre_hooks.values():
            layer.register_forward_pre_hook(before)
        for after in bare._forward_hooks.values():
            layer.register_forward_hook(after)
        return module
