"""Normalisation shared by the ranks of a process group, and of weights that are sharded.

Ranks that train the same model normalise the same weights: each needs all of them, and each would
compute all of them. Here every rank normalises its part and the results are exchanged.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Optional, cast

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from .ops.orthogonalize import gradients, normalise

__all__ = ["assign", "check_process_group", "cost", "is_sharded", "orthogonalize_shared", "whole"]

# torch 2.13 renamed them.
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def check_process_group(process_group: Any) -> None:
    """Raises a TypeError unless it is a group of torch.distributed that this process is in."""
    allowed = "a torch.distributed.ProcessGroup that this process is in"
    if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise TypeError(f"process_group must be None or {allowed}, got {process_group!r}")


# ---- who computes what ---------------------------------------------------------------------------


def cost(rows: int, columns: int, count: int = 1) -> float:
    """The work of normalising ``count`` matrices, forward and backward, in multiplications.

    Proportional to the products with the smaller side; small matrices cost what a pass over their
    memory does.
    """
    small = min(rows, columns)
    return count * rows * columns * (small + 64.0)


def assign(costs: Sequence[float], ranks: int) -> list[int]:
    """Which rank takes which item: the most expensive first, each to the rank with least to do.

    The busiest rank has at most 4/3 of what it would have in the best assignment (Graham, 1969).
    Every rank finds the same answer.
    """
    loads = [0.0] * ranks
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        owners[i] = rank
        loads[rank] += costs[i]
    return owners


@functools.cache
def _plan(shapes: tuple[tuple[int, ...], ...], groups: tuple[int, ...], ranks: int) -> list[int]:
    costs = []
    for shape, count in zip(shapes, groups):
        size = 1
        for n in shape:
            size *= n
        costs.append(cost(shape[0] // count, size // shape[0], count))
    return assign(costs, ranks)


# ---- exchange ------------------------------------------------------------------------------------


class _Exchange:
    """Lists of tensors, some of each rank, as equal pieces of one flat buffer."""

    def __init__(self, like: Sequence[Tensor], owners: Sequence[int], group: Any) -> None:
        self.group, self.ranks, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        self.shapes = [x.shape for x in like]
        self.of_rank = [[i for i, o in enumerate(owners) if o == r] for r in range(self.ranks)]
        self.mine = self.of_rank[self.rank]
        sizes = [sum(self.shapes[i].numel() for i in some) for some in self.of_rank]
        self.piece = max(sizes)
        self.empty: Callable[[int], Tensor] = like[0].new_empty

    def _flat(self, tensors: dict[int, Optional[Tensor]], some: list[int], out: Tensor) -> None:
        at = 0
        for i in some:
            size = self.shapes[i].numel()
            tensor = tensors[i]
            if tensor is None:
                out[at : at + size].zero_()
            else:
                out[at : at + size].view(self.shapes[i]).copy_(tensor)
            at += size
        out[at:].zero_()

    def gather(self, mine: Sequence[Tensor]) -> list[Tensor]:
        """All tensors, from each rank's own."""
        piece, everything = self.empty(self.piece), self.empty(self.piece * self.ranks)
        self._flat(dict(zip(self.mine, mine)), self.mine, piece)
        _gather(everything, piece, group=self.group)
        out: list[Optional[Tensor]] = [None] * len(self.shapes)
        for r, some in enumerate(self.of_rank):
            at = r * self.piece
            for i in some:
                size = self.shapes[i].numel()
                # Copies of their own: slices would keep each other alive, and share a version.
                out[i] = everything[at : at + size].view(self.shapes[i]).clone()
                at += size
        return cast("list[Tensor]", out)

    def average(self, tensors: Sequence[Optional[Tensor]]) -> list[Tensor]:
        """The means over all ranks of this rank's own part; a tensor that is None counts as 0."""
        everything, piece = self.empty(self.piece * self.ranks), self.empty(self.piece)
        table = dict(enumerate(tensors))
        for r, some in enumerate(self.of_rank):
            self._flat(table, some, everything[r * self.piece : (r + 1) * self.piece])
        # Divided before: the sum of many large gradients could overflow.
        _scatter(piece, everything.div_(self.ranks), group=self.group)
        out, at = [], 0
        for i in self.mine:
            size = self.shapes[i].numel()
            out.append(piece[at : at + size].view(self.shapes[i]))
            at += size
        return out


class _Shared(torch.autograd.Function):
    """Like the foreach operator of one process, but each rank keeps and computes only its part."""

    @staticmethod
    def forward(
        ctx: Any,
        groups: list[int],
        scales: list[float],
        tol: float,
        tangent: bool,
        process_group: Any,
        save: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ranks = dist.get_world_size(process_group)
        owners = _plan(tuple(tuple(w.shape) for w in weights), tuple(groups), ranks)
        exchange = _Exchange(weights, owners, process_group)
        mine = exchange.mine
        own = ([groups[i] for i in mine], [scales[i] for i in mine])
        results: list[Tensor] = []
        if mine:
            results, kept = normalise([weights[i] for i in mine], *own, tol, save)
            if save:
                ctx.save_for_backward(*kept)
        ctx.arguments = (exchange, *own, tol, tangent)
        ctx.set_materialize_grads(False)
        return tuple(exchange.gather(results))

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Any:
        exchange, groups, scales, tol, tangent = ctx.arguments
        averages = exchange.average(grads)
        own: list[Tensor] = []
        if averages:
            found = gradients(averages, ctx.saved_tensors, groups, scales, tol, tangent)
            own = cast("list[Tensor]", found)  # a gradient for every average
        return None, None, None, None, None, None, *exchange.gather(own)


def orthogonalize_shared(
    weights: Sequence[Tensor],
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    tangent: bool,
    process_group: Any,
) -> list[Tensor]:
    """The foreach operator for polar factors, its work shared by the ranks of a process group.

    Every rank has to call it with weights of the same values, and to run its backward as often. All
    get the same results, to the bit, and the *averages* over the ranks of the gradients: what data
    parallel training wants, and what averaging once more does not change.
    """
    save = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
    arguments = (list(groups), list(scales), tol, tangent, process_group, save)
    return list(_Shared.apply(*arguments, *weights))


# ---- sharded weights -----------------------------------------------------------------------------


def is_sharded(weight: Tensor) -> bool:
    """Whether it is a DTensor."""
    if type(weight) in ops.ORDINARY:
        return False
    # Without importing it, which takes a while.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(weight, module.DTensor)


def whole(compute: Callable[[Tensor], Tensor], weight: Any) -> Tensor:
    """``compute`` of the whole of a sharded weight, sharded in the same way; differentiable.

    A norm is one of the whole matrix. Every rank of the mesh computes it.
    """
    from torch.distributed.tensor import DTensor, Replicate

    mesh = weight.device_mesh
    everywhere = [Replicate()] * mesh.ndim
    gathered = weight.redistribute(placements=everywhere).to_local(grad_placements=everywhere)
    computed = DTensor.from_local(compute(gathered), mesh, everywhere, run_check=False)
    return computed.redistribute(placements=weight.placements)
