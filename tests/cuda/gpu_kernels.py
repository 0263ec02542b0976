"""Every CUDA kernel once, for compute-sanitizer: ``python tests/cuda/gpu_kernels.py``.

Sizes are small, since sanitizers are slow, but reach every way of working: one block with all in
shared memory, scratch in global memory, teams of blocks, blocks that share the depth of a tile.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

import lipfuse  # noqa: F401  (registers the operators)

ops = torch.ops.lipfuse


def weight(device: str, *shape: int) -> Tensor:
    """Nearly orthogonal, as in training."""
    torch.manual_seed(0)
    n = max(shape[-2:])
    q = torch.linalg.qr(torch.randn(*shape[:-2], n, n))[0] * 1.1
    return q[..., : shape[-2], : shape[-1]].contiguous().to(device)


def vectors(w: Tensor) -> tuple[Tensor, Tensor]:
    u = w.new_full(w.shape[:-1], w.shape[-2] ** -0.5)
    v = w.new_full((*w.shape[:-2], w.shape[-1]), w.shape[-1] ** -0.5)
    return u, v


def normalisations(w: Tensor) -> None:
    """Every normalisation and its backward."""
    u, v = vectors(w)
    n = ops.spectral_normalize(w, u, v, 2, 1e-12, 0.7)
    ops.power_iteration(w, u, None, 2, 1e-12)
    ops.spectral_normalize_backward(w, n[1], *n, 1e-12, 0.7)
    ops.power_iteration_backward(n[1], n[2], n[3])
    c = ops.spectral_bjorck(w, u, v, 2, 1e-12, 0.5, 3, 1e-3, 0.7, True)
    ops.spectral_bjorck_backward(w, *c[1:], 1e-12, 0.5, 0.7)
    b = ops.bjorck(n[0], 0.5, 3, 1e-3, True)
    ops.bjorck_backward(w, b[1], b[2], 0.5)
    q = ops.orthogonalize(w, 1e-4, 1.0, True)
    ops.orthogonalize_backward(w, w, *q, 1e-4, 1.0, False)
    ops.orthogonalize_backward(w, w, *q, 1e-4, 1.0, True)
    f = ops.frobenius_normalize(w, 1e-12, 1.0)
    ops.frobenius_normalize_backward(w, *f, 1e-12, 1.0)
    ops.spectral_bound(w, 3)


def together(ws: list[Tensor]) -> None:
    """Weights of different sizes in one launch."""
    groups, scales = [1] * len(ws), [0.9] * len(ws)
    q, roots, info = ops.foreach_orthogonalize(ws, groups, scales, 1e-4, True)
    ops.foreach_orthogonalize_backward(ws, ws, q, roots, info, groups, scales, 1e-4, False)
    us, vs = map(list, zip(*map(vectors, ws), strict=True))
    n = ops.foreach_spectral_normalize(ws, us, vs, 2, 1e-12, scales)
    ops.foreach_spectral_normalize_backward(ws, None, *n, 1e-12, scales)


def layers(x: Tensor) -> None:
    """Activations and pools, and their backward."""
    for dim in (1, 3):
        out, flags = ops.sort_pairs(x, dim, 1.0, True)
        ops.sort_pairs_backward(out, flags, dim, 1.0)
    for kernel, ceil in (((2, 2), False), ((3, 2), True)):
        mean = ops.scaled_avg_pool2d(x, *kernel, ceil, 1.0)
        ops.scaled_avg_pool2d_backward(mean, *x.shape[-2:], *kernel, ceil, 1.0)
        norm = ops.l2_norm_pool2d(x, *kernel, ceil, 1.0)
        ops.l2_norm_pool2d_backward(norm, x, *kernel, ceil, 1.0)


def main() -> int:
    """3 where there is no GPU."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--device", default="cuda")
    device = p.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device")
        return 3
    for dtype in (torch.float32, torch.float64):
        for shape in [(2, 24, 40), (1, 92, 80), (1, 130, 140)]:
            normalisations(weight(device, *shape).to(dtype))
        sizes = [(8, 8), (70, 300), (40, 9), (130, 66)]
        together([weight(device, *s).to(dtype) for s in sizes])
    # Rows of a warp each, of all threads, and longer than what these keep in registers.
    for columns in (600, 3000, 6500):
        w = torch.randn(9, columns, device=device)
        ops.power_iteration(w, *vectors(w), 2, 1e-12)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for shape in [(2, 8, 6, 8), (2, 6, 5, 6), (3, 2, 7, 8)]:
            x = torch.randn(shape, device=device).to(dtype)
            layers(x)
            layers(x.contiguous(memory_format=torch.channels_last))
    if device == "cuda":
        torch.cuda.synchronize()
    print("every kernel ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
