"""Normalisation shared by processes, under two minutes: ``python -m benchmarks.distributed``.

For 1, 2 and 4 processes of one thread each, connected by gloo: the weights of a model normalised,
forward and backward,

    alone     by every process for itself, ``lipfuse.fuse(model)``
    shared    by all together, ``lipfuse.fuse(model, process_group=...)``
    exchange  what of it is sending and receiving: the same buffers, nothing computed

A time is that of the slowest process, the median over the repetitions. More processes than cores
get in each other's way: there, ``shared`` compares with ``alone`` of the same row only. The model
on paper for many machines is in docs/distributed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.__main__ import find_lipfuse

PROCESSES = (1, 2, 4)
MODELS: dict[str, list[tuple[int, int]]] = {
    "12 of 256x256": [(256, 256)] * 12,
    "8 of 512x512": [(512, 512)] * 8,
    "4 of 1024x1024": [(1024, 1024)] * 4,
    "a transformer block of width 512": [(1536, 512), (512, 512), (2048, 512), (512, 2048)],
}


class Weights(nn.Module):
    """Returns the weights of its layers: nothing but their normalisation."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        import lipfuse.nn as lnn

        self.layers = nn.ModuleList(lnn.SpectralLinear(n, m) for m, n in shapes)
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers:
            # As training leaves them: near their polar factor.
            original: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
            noise = torch.randn(original.shape, generator=generator)
            original.data.add_(noise, alpha=0.15 / max(original.shape) ** 0.5)

    def forward(self) -> list[Tensor]:
        layers: Any = self.layers
        return [layer.weight for layer in layers]


def _step(model: nn.Module) -> Callable[[], None]:
    parameters = [p for n, p in model.named_parameters() if n.endswith("original")]
    grads = [torch.randn(p.shape) for p in parameters]

    def step() -> None:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(model(), grads)

    return step


def _exchange(model: nn.Module) -> Callable[[], None]:
    """The three exchanges of a shared step: weights, gradients there, and back."""
    from lipfuse import distributed

    weights = [p.detach() for n, p in model.named_parameters() if n.endswith("original")]
    owners = distributed.assign(
        [distributed.cost(w.shape[0], w.shape[1]) for w in weights], dist.get_world_size()
    )
    exchange = distributed.Exchange(weights, owners, dist.group.WORLD)
    mine = [weights[i] for i in exchange.mine]

    def step() -> None:
        exchange.gather(mine)
        exchange.gather(exchange.average(weights))

    return step


def _time(step: Callable[[], None], seconds: float) -> float:
    """The median over repetitions of the slowest process's time."""
    times = []
    step()
    start = time.perf_counter()
    count = torch.tensor(0)
    while True:
        dist.barrier()
        begin = time.perf_counter()
        step()
        spent = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        times.append(float(spent))
        # All decide alike.
        count.fill_(int(time.perf_counter() - start < seconds or len(times) < 3))
        dist.all_reduce(count, dist.ReduceOp.MIN)
        if not count:
            return statistics.median(times)


def _measure(rank: int, size: int, rendezvous: str, results: str, seconds: float) -> None:
    find_lipfuse()
    import lipfuse

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    found = {}
    for name, shapes in MODELS.items():
        alone = lipfuse.fuse(Weights(shapes))
        shared = lipfuse.fuse(Weights(shapes), process_group=dist.group.WORLD)
        found[name] = {
            "alone": _time(_step(alone), seconds),
            "shared": _time(_step(shared), seconds),
            "exchange": _time(_exchange(shared), seconds),
        }
    if rank == 0:
        Path(results).write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.5,
        help="of each of 36 measurements, each of three repetitions at least (default: %(default)s,"
        " under two minutes in all on 2 cores)",
    )
    parser.add_argument("--json", type=Path, help="write the record there")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"torch {torch.__version__}, {cores} cores, one thread a process, milliseconds")
    record: dict[str, Any] = {"torch": torch.__version__, "cores": cores, "seconds": {}}
    for size in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results"
            rendezvous = Path(folder) / "rendezvous"
            mp.spawn(
                _measure, (size, str(rendezvous), str(results), arguments.seconds), nprocs=size
            )
            record["seconds"][size] = json.loads(results.read_text())
    for name in MODELS:
        print(f"\n{name}\n  processes    alone   shared  exchange  alone / shared")
        for size in PROCESSES:
            t = record["seconds"][size][name]
            over = "  (more than cores)" if cores and size > cores else ""
            print(
                f"  {size:9d} {1e3 * t['alone']:8.2f} {1e3 * t['shared']:8.2f} "
                f"{1e3 * t['exchange']:9.2f} {t['alone'] / t['shared']:15.2f}{over}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
