"""The largest norm of a convolution's symbol. In plain torch: its work is large matrix products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lipfuse._proof import cholesky_margin, prove_largest
from lipfuse.ops._define import define, once_differentiable

# Elements of the Gram matrices that are in memory at a time.
_CHUNK = 1 << 22
# Beyond, float32's rounding would be a per cent of the bound.
_LARGEST_SINGLE = 128


@lru_cache(maxsize=64)
def _grid(
    taps: tuple[int, ...], samples: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies, one of each opposite pair: the phases of the taps and of their differences.

    Returns:
        ``(frequencies, taps)`` and ``(frequencies, differences)``, complex, and the difference of
        every pair of taps.
    """
    axes = [torch.arange(n, dtype=torch.float64) * (2 * math.pi / n) for n in samples]
    # The opposite of a frequency beyond pi on the first axis is there as well.
    axes[0] = axes[0][: samples[0] // 2 + 1]
    angles = torch.cartesian_prod(*axes).reshape(-1, len(samples))
    places = list(itertools.product(*(range(k) for k in taps)))
    pairs = [tuple(q - p for p, q in zip(a, b)) for a in places for b in places]
    differences = sorted(set(pairs))
    number = {d: i for i, d in enumerate(differences)}

    def phases(of: Sequence[Sequence[int]]) -> Tensor:
        turned = angles @ torch.tensor(of, dtype=torch.float64).mT
        return torch.polar(torch.ones_like(turned), turned).to(dtype.to_complex()).to(device)

    index = torch.tensor([number[p] for p in pairs], device=device)
    return phases(places), phases(differences), index


def _symbol_bound(
    weight: Tensor, taps: Sequence[int], samples: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The largest singular value of sum_t W_t exp(i t theta) over a grid of theta, from above.

    Args:
        weight: ``(..., m, n, taps)``: the matrices W_t of each convolution, float32 or float64.
        taps: how many on each axis.
        samples: how many frequencies on each axis.

    Returns:
        Bounds ``(...)``, NaN for a weight that is not finite, and ``(..., n * taps, 2)``: the real
        and imaginary part of what the weight meets in the wave that comes closest.
    """
    *batch, m, n, count = weight.shape
    w = weight.reshape(-1, m, n, count)
    # Rounding is part of the bound, and grows with n.
    if n > _LARGEST_SINGLE:
        w = w.double()
    eps = torch.finfo(w.dtype).eps
    size = w.abs().amax((1, 2, 3)) if w.numel() else w.new_zeros(len(w))
    finite = torch.isfinite(size)
    # Powers of two, so that no square leaves the range.
    unit = torch.exp2(torch.floor(torch.log2(torch.where(finite & (size > 0), size, 1.0))))
    w = torch.where(finite[:, None, None, None], w / unit[:, None, None, None], 0.0)
    waves, phases, pairs = _grid(tuple(taps), tuple(samples), w.dtype, weight.device)
    flat = w.reshape(len(w), m, n * count)
    products = (flat.mT @ flat).reshape(len(w), n, count, n, count).permute(2, 4, 0, 1, 3)
    sums = w.new_zeros(phases.shape[1], len(w) * n * n)
    sums.index_add_(0, pairs, products.reshape(count**2, -1))
    sums = sums.to(phases.dtype)
    bound = w.new_zeros(len(w))
    value, at = torch.zeros_like(bound), torch.zeros_like(bound, dtype=torch.int64)
    vector = sums.new_zeros(len(w), n)
    most = max(1, _CHUNK // max(1, sums.shape[1]))
    for first in range(0, len(phases) if w.numel() else 0, most):
        grams = phases[first : first + most] @ sums
        found = prove_largest(grams.reshape(-1, len(w), n, n), bound)
        higher = found.value > value
        bound = found.bound
        value = torch.where(higher, found.value, value)
        at = torch.where(higher, found.index + first, at)
        vector = torch.where(higher[:, None], found.vector, vector)
    # Every element of a Gram matrix is off by at most the unit roundoff for each of the products
    # summed over rows, taps and differences (complex: half as much again), and for the phases.
    operations = m + count + phases.shape[1] + 16
    absolute = torch.linalg.vector_norm(w.abs().sum(-1), dim=(1, 2)).square()
    error = 1.5 * operations * eps * absolute
    bound = (bound * (1 + cholesky_margin(n, w.dtype)) + error).sqrt() * (1 + 4 * eps) * unit
    bound = torch.where(finite, bound, math.nan).reshape(batch)
    patches = torch.view_as_real(vector[:, :, None] * waves[at][:, None, :])
    return bound.to(weight.dtype), patches.to(weight.dtype).reshape(*batch, n * count, 2)


def _fake(weight: Tensor, taps: Sequence[int], samples: Sequence[int]) -> tuple[Tensor, Tensor]:
    *batch, _, n, count = weight.shape
    return weight.new_empty(batch), weight.new_empty(*batch, n * count, 2)


_bound = once_differentiable(define("symbol_bound", _fake, _symbol_bound))


def symbol_bound(weight: Tensor, taps: list[int], samples: list[int]) -> tuple[Tensor, Tensor]:
    """Bounds and the waves that come closest; no gradient."""
    with torch.no_grad():
        bound, patches = _bound(weight.detach(), taps, samples)
    return bound, patches
