"""Peak memory of normalising one large weight, each contender in a process of its own.

The child imports its contender, builds the layer, runs everything once on a tiny weight (code that
is loaded lazily, thread pools) and once the product of the full size in torch, and allocates the
weight and the incoming gradient. Then it hands free memory back, resets the kernel's high-water
mark of its resident memory, calls forward and backward a few times, and reports how far the mark
has risen: whatever the call allocates is counted, through torch or not, and what the allocator
keeps between calls too. Where the mark cannot be reset (no Linux), the rise of ``ru_maxrss`` stands
in, which can only be smaller.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipfuse
from benchmarks import peers
from benchmarks.runner import Contender, Session, Statistics, Target, show_bytes, summarise

QUESTION = "peak memory of forward and backward of one orthogonal weight"

SIZE, QUICK_SIZE = 1024, 512
CALLS = 4
NOTHING, OURS, TANGENT = "a copy of the weight", "lipfuse", "lipfuse, tangent"
BJORCK, DEEL, ORTHOGONIUM = "lipfuse, method='bjorck'", "deel-torchlip", "orthogonium"
NAMES = (OURS, TANGENT, BJORCK, DEEL, ORTHOGONIUM, NOTHING)


def _tangent(n: int) -> nn.Module:
    layer = nn.Linear(n, n, bias=False)
    return lipfuse.parametrizations.orthogonal(layer, backward="tangent")


def _builder(name: str) -> tuple[Callable[[int], nn.Module] | None, str]:
    """What makes an n x n layer, or why nothing does."""
    ours = lipfuse.nn.SpectralLinear
    if name == OURS:
        return lambda n: ours(n, n, bias=False), ""
    if name == TANGENT:
        return _tangent, ""
    if name == BJORCK:
        return lambda n: ours(n, n, bias=False, method="bjorck"), ""
    module, reason = peers.deel() if name == DEEL else peers.orthogonium()
    if module is None:
        return None, reason
    if name == DEEL:
        return lambda n: module.SpectralLinear(n, n, bias=False), ""
    return lambda n: module.OrthoLinear(n, n, bias=False), ""


def _work(name: str, n: int) -> Callable[[], None]:
    """Forward and backward of the weight; the gradient of the last call is gone before the next."""
    grad = peers.matrix("gaussian", n, n, seed=1)
    w = peers.matrix("near", n, n)
    if name == NOTHING:
        parameter = w.requires_grad_()

        def copy() -> None:
            parameter.grad = None
            torch.autograd.backward(parameter.clone(), grad)

        return copy
    build, reason = _builder(name)
    if build is None:
        raise RuntimeError(reason)
    layer: Any = build(n).train()
    original: Tensor = layer.parametrizations.weight.original
    with torch.no_grad():
        original.copy_(w)

    def call() -> None:
        original.grad = None
        torch.autograd.backward(layer.weight, grad)

    return call


def _status(key: str) -> int | None:
    """A line of /proc/self/status, in bytes."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _trim() -> None:
    """Hands back what the allocator keeps for later: using it again would not show as a rise."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def child(name: str, n: int, threads: int) -> dict[str, Any]:
    """Runs in the child: how far the peak rises above what was there before, in bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _work(name, 8)()
    a, b = torch.randn(n, n), torch.randn(n, n)
    torch.mm(a, b)
    del a, b
    call = _work(name, n)
    _trim()
    exact = _reset_peak()
    before = (_status("VmRSS") if exact else None) or _maxrss()
    for _ in range(CALLS):
        call()
    after = (_status("VmHWM") if exact else None) or _maxrss()
    return {"bytes": max(0, after - before), "exact": exact}


def _measure(name: str, n: int, threads: int) -> int | str:
    """Bytes, from a child process, or why there are none."""
    root = Path(__file__).resolve().parent.parent
    paths = [str(root), str(Path(lipfuse.__file__).resolve().parent.parent)]
    paths += [p for p in (os.environ.get("PYTHONPATH"),) if p]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name, str(n), str(threads)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}"
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def run(session: Session) -> None:
    """One size; a few processes each, in turn."""
    quick = session.settings.quick
    n = QUICK_SIZE if quick else SIZE
    case = f"{n}x{n}"
    if not session.wants(case):
        return
    names = (OURS, DEEL) if quick else NAMES
    contenders = []
    found: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Statistics | str] = {}
    for name in names:
        reason = "" if name == NOTHING else _builder(name)[1]
        size = float(4 * n * n)
        contenders.append(
            Contender(
                name,
                facts=lambda name=name, size=size: {  # type: ignore[misc]
                    "x weight": summarise(found[name]).median / size
                },
                ours=name.startswith("lipfuse"),
            )
        )
        if reason:
            results[name] = reason
    for _ in range(2 if quick else 3):
        for name in names:
            if name in results:
                continue
            got = _measure(name, n, session.settings.threads)
            if isinstance(got, str):
                if name.startswith("lipfuse"):
                    raise RuntimeError(f"{name}: {got}")
                results[name] = got
            else:
                found[name].append(float(got))
    for name in names:
        if name not in results:
            results[name] = summarise(found[name])
    session.report(
        case,
        contenders,
        results,
        ours=OURS,
        targets=[Target.within(OURS, DEEL, 0.4)],
        about={"shape": [n, n], "calls": CALLS},
        unit="bytes",
        show=show_bytes,
    )


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
