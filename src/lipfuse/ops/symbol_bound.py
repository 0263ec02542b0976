"""The largest norm of a convolution's symbol. Kernels: ``csrc/cpu/symbol.cpp``.

The operator is put together in Python from few large steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lipfuse._proof import Stack, cholesky_margin, exceeds, prove_largest
from lipfuse.ops._define import define, once_differentiable

# Elements of the Gram matrices that are in memory at a time.
_CHUNK = 1 << 22
# Beyond, rounding in float32 would be more than a per cent of the bound.
_LARGEST_SINGLE = 256
# Beyond, the triangles of all lanes leave the cache, and blocked factorisations are quicker.
_LARGEST_WAVE = 512
_EPS64 = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class _Grid:
    """Frequencies, one of each opposite pair, and how they turn the taps of a kernel."""

    waves: Tensor
    """(frequencies, taps), complex: the phases of the taps."""
    cosines: Tensor
    """(terms, frequencies): of the differences of two taps, one of each opposite pair."""
    sines: Tensor
    first: Tensor
    """Pairs of taps with such a difference: their first tap,"""
    second: Tensor
    """their second,"""
    term: Tensor
    """and the difference."""


@lru_cache(maxsize=64)
def _grid(
    taps: tuple[int, ...], samples: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> _Grid:
    axes = [torch.arange(n, dtype=torch.float64) * (2 * math.pi / n) for n in samples]
    # The opposite of a frequency beyond pi on the first axis is there as well.
    axes[0] = axes[0][: samples[0] // 2 + 1]
    angles = torch.cartesian_prod(*axes).reshape(-1, len(samples))
    places = list(itertools.product(*(range(k) for k in taps)))
    pairs = {
        (i, j): tuple(q - p for p, q in zip(a, b))
        for i, a in enumerate(places)
        for j, b in enumerate(places)
    }
    zero = (0,) * len(taps)
    # Zero comes first; of two opposite differences, one is the later.
    differences = sorted({d for d in pairs.values() if d >= zero})
    number = {d: i for i, d in enumerate(differences)}
    kept = [(i, j, number[d]) for (i, j), d in pairs.items() if d >= zero]
    first, second, term = torch.tensor(kept, device=device).unbind(1)
    turned = angles @ torch.tensor(places, dtype=torch.float64).mT
    waves = torch.polar(torch.ones_like(turned), turned).to(device, dtype.to_complex())
    apart = torch.tensor(differences, dtype=torch.float64) @ angles.mT
    cosines, sines = apart.cos().to(device, dtype), apart.sin().to(device, dtype)
    return _Grid(waves, cosines, sines, first, second, term)


class _Symbols:
    """The Gram matrices of the symbols of kernels, one for each frequency and kernel.

    With R_d the sum of W_t' W_s over all pairs of taps d apart, that of the frequency theta is
    R_0 + sum over d of (R_d + R_d') cos(d theta) + i (R_d - R_d') sin(d theta).
    """

    def __init__(self, weight: Tensor, grid: _Grid) -> None:
        self.owners, m, self.size, taps = weight.shape
        self.count = grid.cosines.shape[1]
        self._cosines, self._sines = grid.cosines, grid.sines
        n, terms = self.size, len(grid.cosines)
        taps_first = weight.double().permute(0, 3, 1, 2).contiguous()
        pairs = taps_first[:, grid.first].mT @ taps_first[:, grid.second]
        sums = pairs.new_zeros(self.owners, terms, n, n).index_add_(1, grid.term, pairs)
        even, odd = sums + sums.mT, sums - sums.mT
        even[:, 0] /= 2
        # Every element of a Gram matrix is off by at most the unit roundoff for each operation
        # (half as much again for complex ones): in float64 the products summed over rows and pairs,
        # in this precision the terms, their cosines and the rounding of what they multiply.
        eps = torch.finfo(weight.dtype).eps
        late = torch.linalg.vector_norm((even.abs() + odd.abs()).sum(1), dim=(1, 2))
        early = torch.linalg.vector_norm(taps_first.abs().sum(1), dim=(1, 2)).square()
        self.error = 1.5 * ((terms + 8) * eps * late + (m + taps + 8) * _EPS64 * early)
        self._even, self._odd = even.to(weight.dtype), odd.to(weight.dtype)
        # A term after the other for each element.
        self._by_element = tuple(
            x.permute(0, 2, 3, 1).contiguous() for x in (self._even, self._odd)
        )

    def at(self, which: Tensor) -> Tensor:
        frequency, owner = which // self.owners, which % self.owners
        c, s = self._cosines.mT[frequency], self._sines.mT[frequency]
        if self.owners == 1:
            even, odd = c @ self._even[0].flatten(1), s @ self._odd[0].flatten(1)
        else:
            even = (c.unsqueeze(1) @ self._even[owner].flatten(2)).squeeze(1)
            odd = (s.unsqueeze(1) @ self._odd[owner].flatten(2)).squeeze(1)
        return torch.complex(even, odd).reshape(len(which), self.size, self.size)

    def exceeds(self, which: Tensor, bound: Tensor) -> Tensor:
        if self.size <= _LARGEST_WAVE and len(which) > self.count * self.owners // 16:
            # All at once is quicker than many one by one.
            parts = [
                _exceeds(*self._by_element, *some, bound).flatten() for some in self._frequencies()
            ]
            return torch.cat(parts)[which] != 0
        parts = [
            exceeds(self.at(p), bound[p % self.owners])
            for p in which.split(max(1, _CHUNK // self.size**2))
        ]
        return torch.cat(parts)

    def scores(self, start: Tensor, steps: int) -> Tensor:
        start = start.to(self._even)
        if self.size <= _LARGEST_WAVE:
            parts = [
                _scores(*self._by_element, *some, start, steps).flatten()
                for some in self._frequencies()
            ]
            return torch.cat(parts)
        every = torch.arange(self.count * self.owners, device=self._even.device)
        parts = [
            Stack(self.at(p).unsqueeze(1)).scores(start, steps)
            for p in every.split(max(1, _CHUNK // self.size**2))
        ]
        return torch.cat(parts)

    def _frequencies(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As many frequencies at a time as memory should hold where there is no kernel."""
        most = max(1, _CHUNK // (self.owners * self.size**2))
        return zip(self._cosines.split(most, 1), self._sines.split(most, 1))


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
    axes = len(taps)
    if not (
        weight.is_floating_point() and axes and axes == len(samples) and min(*samples, *taps) > 0
    ):
        raise ValueError("weight must be real, taps and samples positive, one for each axis")
    if math.prod(taps) != count or math.prod(samples) >= 2**31:
        raise ValueError(
            f"taps must have the product {count}, samples one below 2**31, got {taps} and {samples}"
        )
    w = weight.reshape(math.prod(batch), m, n, count)
    # Rounding is part of the bound, and grows with n.
    if n > _LARGEST_SINGLE:
        w = w.double()
    eps = torch.finfo(w.dtype).eps
    size = w.abs().amax((1, 2, 3)) if w.numel() else w.new_zeros(len(w))
    finite = torch.isfinite(size)
    # Powers of two, so that no square leaves the range.
    unit = torch.exp2(torch.floor(torch.log2(torch.where(finite & (size > 0), size, 1.0))))
    w = torch.where(finite[:, None, None, None], w / unit[:, None, None, None], 0.0)
    grid = _grid(tuple(taps), tuple(samples), w.dtype, weight.device)
    if w.numel():
        symbols = _Symbols(w, grid)
        error = symbols.error.to(w.dtype)
        found = prove_largest(symbols, torch.zeros_like(error))
        bound, wave, vector = found.bound, grid.waves[found.index], found.vector
    else:
        bound = error = w.new_zeros(len(w))
        wave, vector = grid.waves[:1].expand(len(w), -1), grid.waves.new_zeros(len(w), n)
    bound = (bound * (1 + cholesky_margin(n, w.dtype)) + error).sqrt() * (1 + 4 * eps) * unit
    bound = torch.where(finite, bound, math.nan).reshape(batch)
    patches = torch.view_as_real(vector[:, :, None] * wave[:, None, :])
    return bound.to(weight.dtype), patches.to(weight.dtype).reshape(*batch, n * count, 2)


def _fake(weight: Tensor, taps: Sequence[int], samples: Sequence[int]) -> tuple[Tensor, Tensor]:
    *batch, _, n, count = weight.shape
    return weight.new_empty(batch), weight.new_empty(*batch, n * count, 2)


def _fake_of_all(even: Tensor, odd: Tensor, cosines: Tensor, sines: Tensor, *rest: Any) -> Tensor:
    return even.new_empty(cosines.shape[1], even.shape[0])


def _fake_flags(*arguments: Any) -> Tensor:
    return _fake_of_all(*arguments).to(torch.uint8)


_scores = define("symbol_scores", _fake_of_all)
_exceeds = define("symbol_exceeds", _fake_flags)
_bound = once_differentiable(define("symbol_bound", _fake, _symbol_bound))


def symbol_bound(weight: Tensor, taps: list[int], samples: list[int]) -> tuple[Tensor, Tensor]:
    """Bounds and the waves that come closest; no gradient."""
    with torch.no_grad():
        bound, patches = _bound(weight.detach(), taps, samples)
    return bound, patches
