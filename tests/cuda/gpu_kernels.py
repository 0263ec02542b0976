"""Every CUDA operator: once, for compute-sanitizer, or timed with CUDA events: see gpu.sh."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import lipfuse  # noqa: F401  (registers the operators)

ops = torch.ops.lipfuse


def weight(*shape: int) -> Tensor:
    """Nearly orthogonal, as in training."""
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(*shape[:-2], max(shape[-2:]), max(shape[-2:])))[0]
    q = q[..., : shape[-2], : shape[-1]] * 1.1
    return q.contiguous().cuda()


def vectors(w: Tensor) -> tuple[Tensor, Tensor]:
    u = torch.ones(w.shape[:-1], device="cuda") / w.shape[-2] ** 0.5
    v = torch.ones((*w.shape[:-2], w.shape[-1]), device="cuda") / w.shape[-1] ** 0.5
    return u, v


def every(w: Tensor) -> None:
    """Every operator and its backward."""
    u, v = vectors(w)
    u, v = u.to(w.dtype), v.to(w.dtype)
    n = ops.spectral_normalize(w, u, v, 2, 1e-12, 0.7)
    ops.power_iteration(w, u, None, 2, 1e-12)
    ops.spectral_normalize_backward(w, n[1], *n, 1e-12, 0.7)
    ops.power_iteration_backward(n[1], n[2], n[3])
    c = ops.spectral_bjorck(w, u, v, 2, 1e-12, 0.5, 4, 1e-3, 0.7, True)
    ops.spectral_bjorck_backward(w, *c[1:], 1e-12, 0.5, 0.7)
    b = ops.bjorck(n[0], 0.5, 4, 1e-3, True)
    ops.bjorck_backward(w, b[1], b[2], 0.5)
    q = ops.orthogonalize(w, 1e-4, 1.0, True)
    ops.orthogonalize_backward(w, w, *q, 1e-4, 1.0, False)
    ops.orthogonalize_backward(w, w, *q, 1e-4, 1.0, True)
    f = ops.frobenius_normalize(w, 1e-12, 1.0)
    ops.frobenius_normalize_backward(w, *f, 1e-12, 1.0)


def milliseconds(function: Callable[[], object], samples: int = 25) -> float:
    """Median of a few samples, each long enough for the clock."""
    for _ in range(3):
        function()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    repeats = max(1, min(50, int(2 / max(begin.elapsed_time(end), 1e-3))))
    times = []
    for _ in range(samples):
        begin.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / repeats)
    return statistics.median(times)


def polar_step(w: Tensor) -> None:
    out = ops.orthogonalize(w, 1e-4, 1.0, True)
    ops.orthogonalize_backward(w, w, *out, 5e-4, 1.0, False)


def plain_polar_step(w: Tensor, iterations: int = 5) -> None:
    """Björck of five steps and its gradient in plain torch, without a stop to wait for."""
    x = w.detach().requires_grad_()
    y = x
    for _ in range(iterations):
        y = (
            1.5 * y - 0.5 * y @ (y.mT @ y)
            if y.shape[-2] >= y.shape[-1]
            else 1.5 * y - 0.5 * (y @ y.mT) @ y
        )
    y.backward(w)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--once", action="store_true")
    p.add_argument("--json", type=Path)
    arguments = p.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 3
    if arguments.once:
        # One block, one block with scratch in global memory, a team of blocks; wide and tall.
        for shape in [(2, 24, 40), (2, 40, 24), (1, 92, 92), (1, 130, 140)]:
            for dtype in (torch.float32, torch.float64):
                every(weight(*shape).to(dtype))
        torch.cuda.synchronize()
        print("every operator ran")
        return 0
    rows = []
    for shape in [
        (64, 64),
        (128, 128),
        (256, 256),
        (512, 512),
        (64, 576),
        (256, 2304),
        (20, 64, 576),
    ]:
        w = weight(*shape)
        ours, plain = (
            milliseconds(lambda w=w: polar_step(w)),
            milliseconds(lambda w=w: plain_polar_step(w)),
        )
        rows.append({"name": f"polar+gradient {shape}", "lipfuse_ms": ours, "torch_ms": plain})
    size = torch.cuda.get_device_properties(0).L2_cache_size
    for n in (512, 4096, 8192):
        w = torch.randn(n, n, device="cuda")
        u, v = vectors(w)
        ours = milliseconds(lambda w=w, u=u, v=v: ops.power_iteration(w, u, v, 4, 1e-12))
        copy = milliseconds(lambda w=w: w.clone()) / 2  # reads and writes: half is a reading
        rows.append(
            {
                "name": f"4 power iterations {n}x{n}",
                "lipfuse_ms": ours,
                "torch_ms": None,
                "share_of_copy_bandwidth": 4 * copy / ours,
                "above_l2": n * n * 4 > size,
            }
        )
    report = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "rows": rows}
    for row in rows:
        print(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
