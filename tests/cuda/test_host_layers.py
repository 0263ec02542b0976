"""Sorted pairs and pools on the host's model of a GPU, in every precision and layout."""

from __future__ import annotations

import pytest
import torch
from host_model import random, start
from torch import Tensor

from lipfuse import reference

ELEMENTS = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def run(programs, op, dtype, shape, tensors, parameters, outputs):
    """Arrays as they lie in memory; ``outputs`` are their (elements, dtype)."""
    name = str(dtype).removeprefix("torch.")
    arrays = [t.contiguous().view(torch.uint8).numpy() for t in tensors]
    done = start(programs["memory"], op, name, shape, arrays, parameters, resident=2)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    found, at, data = [], 0, bytearray(done.stdout)
    for count, kind in outputs:
        found.append(torch.frombuffer(data, dtype=kind, count=count, offset=at))
        at += count * kind.itemsize
    assert at == len(data)
    return found, done.stderr.decode()


def tensor(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(random(seed, *shape)).to(dtype)


def close(found: Tensor, expected: Tensor) -> None:
    found, wanted = found.double(), expected.reshape(-1).double()
    assert bool((found.isnan() == wanted.isnan()).all())
    error = (found - wanted).nan_to_num().abs().max()
    assert float(error) <= ROUNDING[expected.dtype] * float(wanted.nan_to_num().abs().max())


# ---- pairs ---------------------------------------------------------------------------------------


# Neighbours, with a rest that is no whole pack; rows of whole packs, and others; arrays that do not
# begin at a multiple of 16 bytes.
@ELEMENTS
@pytest.mark.parametrize("rows, inner", [(1, 1), (837, 1), (3, 48), (5, 7)])
@pytest.mark.parametrize("offset", [0, 1])
def test_sort_pairs(programs, dtype, rows, inner, offset):
    x = tensor(0, rows, 2, inner, dtype=dtype)
    x[0, 0, 0] = x[-1, 1, -1] = float("nan")
    scale, pairs = 0.75, rows * inner
    shape = (rows, 1, inner)
    exact, flags = reference.sort_pairs(x, 1, scale, True)
    (out, swapped), said = run(
        programs,
        "sort_pairs",
        dtype,
        shape,
        [x],
        [scale, 1, offset],
        [(2 * pairs, dtype), (pairs, torch.uint8)],
    )
    packs = offset == 0 and (inner == 1 or inner % (16 // dtype.itemsize) == 0)
    assert f"packs: {int(packs)}" in said
    close(out, exact)
    assert torch.equal(swapped, flags.reshape(-1))
    (alone,), _ = run(
        programs, "sort_pairs", dtype, shape, [x], [scale, 0, offset], [(2 * pairs, dtype)]
    )
    assert torch.equal(alone.nan_to_num(), out.nan_to_num())
    g = tensor(1, rows, 2, inner, dtype=dtype)
    (back,), _ = run(
        programs,
        "sort_pairs",
        dtype,
        shape,
        [g, flags],
        [scale, 2, offset],
        [(2 * pairs, dtype)],
    )
    close(back, reference.sort_pairs_backward(g, flags, 1, scale))


# ---- pools ---------------------------------------------------------------------------------------


# (images, channels, height, width, kernel, ceil): two columns at a time, whole packs of channels,
# neither; windows that are cut off, what is left beyond the last one, one window for all.
CASES = [
    (3, 1, 8, 10, (2, 2), 0),
    (3, 1, 7, 9, (2, 2), 1),
    (2, 1, 7, 10, (2, 2), 0),
    (2, 8, 5, 6, (2, 2), 1),
    (2, 16, 4, 7, (3, 2), 0),
    (2, 3, 7, 8, (2, 3), 1),
    (1, 1, 5, 5, (5, 5), 0),
    (2, 1, 3, 4, (1, 4), 0),
]


@ELEMENTS
@pytest.mark.parametrize("op", ["scaled_avg_pool2d", "l2_norm_pool2d"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pools(programs, dtype, op, case):
    images, channels, height, width, (kh, kw), ceil = case
    x = tensor(0, images, channels, height, width, dtype=dtype)
    x[0, 0, :kh, :kw] = 0  # a window whose norm vanishes
    exact = getattr(reference, op)(x, kh, kw, bool(ceil), 0.75)
    g = tensor(1, *exact.shape, dtype=dtype)
    norm = op == "l2_norm_pool2d"
    if norm:
        expected = reference.l2_norm_pool2d_backward(g, x, kh, kw, bool(ceil), 0.75)
    else:
        expected = reference.scaled_avg_pool2d_backward(g, height, width, kh, kw, bool(ceil), 0.75)
    last = torch.channels_last

    def memory(t: Tensor) -> Tensor:
        return t.to(memory_format=last).permute(0, 2, 3, 1)

    shape, parameters = (images, height, width), [kh, kw, ceil, 0.75, channels]
    (out,), said = run(
        programs, op, dtype, shape, [memory(x)], [*parameters, 0], [(exact.numel(), dtype)]
    )
    whole = channels % (16 // dtype.itemsize) == 0
    two = channels == 1 and kw == 2 and width % 2 == 0
    assert f"vectors: {1 if whole else 2 if two else 0}" in said
    close(out, memory(exact))
    given = [memory(x), memory(g)] if norm else [memory(g)]
    (back,), _ = run(programs, op, dtype, shape, given, [*parameters, 1], [(x.numel(), dtype)])
    close(back, memory(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_as_torch_does(programs, dtype):
    """Every number of 16 bits, widened, scaled and rounded again."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[~x.isnan()]
    x = torch.cat([x, x[: len(x) % 2]])
    pairs = x.view(-1, 2, 1)
    exact = (pairs.float().sort(1).values * 0.3).to(dtype)
    (out,), _ = run(
        programs,
        "sort_pairs",
        dtype,
        (len(pairs), 1, 1),
        [pairs],
        [0.30000001192092896, 0, 0],
        [(len(x), dtype)],
    )
    assert torch.equal(out.float(), exact.reshape(-1).float())
