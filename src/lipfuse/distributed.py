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
from .ops.orthogonalize import SOLVE, gradients, normalise

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


class Exchange:
    """Lists of tensors, some of each rank, in one flat buffer.

    Each rank's tensors are a piece of it, and pieces have one size, that of the largest. Where this
    would be wasteful (many more ranks than tensors, say), the tensors lie one after the other and
    are exchanged by adding up, which sends twice as much as there is.

    Args:
        like: tensors of the shapes, dtype and device of those to exchange.
        owners: the rank that computes each.
        group: the process group.
    """

    def __init__(self, like: Sequence[Tensor], owners: Sequence[int], group: Any) -> None:
        self._group, self._ranks = group, dist.get_world_size(group)
        rank = dist.get_rank(group)
        self.mine: list[int] = [i for i, owner in enumerate(owners) if owner == rank]
        self._shapes = [x.shape for x in like]
        sizes = [shape.numel() for shape in self._shapes]
        of_rank = [0] * self._ranks
        for owner, size in zip(owners, sizes):
            of_rank[owner] += size
        piece = max(of_rank)
        self._in_pieces = piece * self._ranks <= 2 * sum(sizes)
        ends = [r * piece if self._in_pieces else 0 for r in range(self._ranks)]
        self._at = []
        for owner, size in zip(owners, sizes):
            end = owner if self._in_pieces else 0
            self._at.append(ends[end])
            ends[end] += size
        self._size = piece * self._ranks if self._in_pieces else sum(sizes)
        self._piece = slice(rank * piece, (rank + 1) * piece)
        self._zeros: Callable[[int], Tensor] = like[0].new_zeros

    def _part(self, buffer: Tensor, i: int) -> Tensor:
        size = self._shapes[i].numel()
        return buffer[self._at[i] : self._at[i] + size].view(self._shapes[i])

    def gather(self, mine: Sequence[Tensor]) -> list[Tensor]:
        """All tensors, from each rank's own."""
        buffer = self._zeros(self._size)
        for i, x in zip(self.mine, mine):
            self._part(buffer, i).copy_(x)
        if self._in_pieces:
            _gather(buffer, buffer[self._piece].clone(), group=self._group)
        else:
            dist.all_reduce(buffer, group=self._group)
        # Copies of their own: parts of one buffer would keep each other alive.
        return [self._part(buffer, i).clone() for i in range(len(self._shapes))]

    def average(self, tensors: Sequence[Optional[Tensor]]) -> list[Tensor]:
        """The means over all ranks of this rank's own part; a tensor that is None counts as 0."""
        buffer = self._zeros(self._size)
        for i, x in enumerate(tensors):
            if x is not None:
                self._part(buffer, i).copy_(x)
        buffer.div_(self._ranks)  # before: the sum of many large gradients could overflow
        if self._in_pieces:
            piece = buffer[self._piece].clone()
            _scatter(piece, buffer, group=self._group)
            buffer[self._piece] = piece
        else:
            dist.all_reduce(buffer, group=self._group)
        return [self._part(buffer, i).clone() for i in self.mine]


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
        exchange = Exchange(weights, owners, process_group)
        mine = exchange.mine
        own = ([groups[i] for i in mine], [scales[i] for i in mine])
        results: list[Tensor] = []
        if mine:
            keep = save and not tangent
            results, kept = normalise([weights[i] for i in mine], *own, tol, keep)
            if save:
                ctx.save_for_backward(*kept)
        ctx.arguments = (exchange, *own, SOLVE * tol, tangent)
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


def whole(compute: Callable[..., Tensor], *weights: Any) -> Tensor:
    """``compute`` of the whole of sharded weights, sharded as the first of them; differentiable.

    A norm is one of the whole matrix. Every rank of the mesh computes it.
    """
    from torch.distributed.tensor import DTensor, Replicate

    mesh = weights[0].device_mesh
    everywhere = [Replicate()] * mesh.ndim
    gathered = [
        weight.redistribute(placements=everywhere).to_local(grad_placements=everywhere)
        for weight in weights
    ]
    computed = DTensor.from_local(compute(*gathered), mesh, everywhere, run_check=False)
    return computed.redistribute(placements=weights[0].placements)
