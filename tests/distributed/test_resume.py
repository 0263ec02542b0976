"""The example under torchrun: a process is killed, all start again, and the curve is the same."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pool import Pool

EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed.py"
STEPS, EVERY, KILLED_AT = 8, 3, 5

if not EXAMPLE.is_file():
    pytest.skip("needs the checkout", allow_module_level=True)


def uninterrupted(group: Any, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("distributed_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    settings = argparse.Namespace(folder=folder, steps=STEPS, every=EVERY, kill_rank=-1, kill_at=-1)
    example.train(settings, group)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "losses.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def test_a_killed_rank_comes_back(pool: Pool, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    pool.run(2, uninterrupted, calm)
    expected = losses(calm)
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))
    assert expected[-1][1] < expected[0][1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    command += [str(EXAMPLE), "--folder", str(killed), "--steps", str(STEPS)]
    command += ["--every", str(EVERY), "--kill-rank", "1", "--kill-at", str(KILLED_AT)]
    package = str(Path(importlib.import_module("lipfuse").__file__ or "").parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = launcher.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)  # and what it has started
        raise
    assert launcher.returncode == 0, said[-3000:]
    assert "exitcode: -9" in said
    found = losses(killed)
    # Up to the kill, then again from the last checkpoint.
    first = [step for step, _ in found[: -(STEPS - EVERY)]]
    assert first == list(range(1, len(first) + 1)) and EVERY <= len(first) <= KILLED_AT + 1
    assert [step for step, _ in found[-(STEPS - EVERY) :]] == list(range(EVERY + 1, STEPS + 1))
    for step, loss in found:
        assert loss == pytest.approx(expected[step - 1][1], rel=1e-6)
