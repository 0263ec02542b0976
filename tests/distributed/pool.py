"""Real processes in a gloo group, started once for all tests, that run functions on request."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 60.0
"""Seconds until a process that does not answer is given up: one that waits for the others."""


def _serve(rank: int, size: int, rendezvous: str, requests: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    # A group for each number of processes: the first so many ranks.
    groups = {n: dist.new_group(list(range(n))) for n in range(1, size + 1)}
    while (request := requests.recv()) is not None:
        function, count, arguments = request
        try:
            torch.manual_seed(0)
            requests.send(("done", function(groups[count], *arguments)))
        except BaseException:
            requests.send(("failed", traceback.format_exc()))
    dist.destroy_process_group()


class Pool:
    """``size`` processes with a rank each.

    Args:
        size: how many.
        folder: an empty one, where they find each other.
    """

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._requests: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (rank, size, str(folder / "rendezvous"), theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._requests.append(ours)
            self._processes.append(process)

    def run(self, count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """``function(group, *arguments)`` in the first ``count`` processes.

        Args:
            count: of processes; ``group`` is the process group of these.
            function: one of a module, by whose name the processes find it.
            arguments: sent to them.

        Returns:
            What each of them returns.

        Raises:
            AssertionError: with the traceback of the first process that failed.
        """
        chosen = self._requests[:count]
        for request in chosen:
            request.send((function, count, arguments))
        answers = []
        for rank, request in enumerate(chosen):
            assert request.poll(PATIENCE), f"process {rank} does not answer"
            answers.append(request.recv())
        for rank, (outcome, result) in enumerate(answers):
            assert outcome == "done", f"process {rank} failed:\n{result}"
        return [result for _, result in answers]

    def close(self) -> None:
        for request in self._requests:
            request.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
