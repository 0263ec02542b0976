"""Arguments for :mod:`benchmarks.fuzz`: valid ones of every function, and ways to spoil them."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lipfuse.ops
from lipfuse import _native

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path += [str(p) for p in (TESTS, TESTS / "ops") if str(p) not in sys.path]

from op_cases import CASES  # noqa: E402, valid arguments of most operators are with the tests

Arguments = list[Any]
REFUSALS = (ValueError, TypeError, RuntimeError, NotImplementedError)

INTEGERS = (
    *(-(2**63), -(2**31) - 1, -3, -1, 0, 1, 2, 3, 5, 16, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64),
)
# Those which say how often to do something: any number that is allowed is done.
COUNTS = (-(2**63), -1, 0, 1, 2, 7, 30, 2**31, 2**32 + 1, 2**63 - 1)
FLOATS = (0.0, -0.0, -1.0, 1e-300, 1e-12, 0.5, 1.0, 3.0, 1e30, 1e300, math.inf, -math.inf, math.nan)
VALUES = (0.0, -1.0, 1e-45, 1e-30, 1e20, 3e38, math.inf, -math.inf, math.nan)
SIZES = (0, 0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64)
DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8),
    *(torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8),
)
OTHERS: tuple[Any, ...] = (None, "text", b"bytes", True, 1.5, 7, [], [1], [[1.0]], {}, object())


@dataclass
class Draw:
    """Chance, which a case's number determines."""

    random: random.Random

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def of(self, choices: Any) -> Any:
        return self.random.choice(choices)

    def shape(self, most: int = 5) -> tuple[int, ...]:
        """Of a tensor that is not large, often a degenerate one."""
        sizes = [self.of(SIZES) for _ in range(self.random.randint(0, most))]
        while math.prod(sizes) > 2**16:
            sizes[self.random.randrange(len(sizes))] = 1
        return tuple(sizes)


def described(x: Any) -> str:
    """An argument as the command shows it."""
    if isinstance(x, Tensor):
        stride = tuple(x.stride()) if x.layout is torch.strided else x.layout
        return f"{type(x).__name__} {tuple(x.shape)} {stride} {x.dtype} {x.device}"
    if isinstance(x, np.ndarray):
        return f"array {x.shape} {x.strides} {x.dtype} {x.flags.aligned}"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(described, x))}]"
    return repr(x)


# ---- valid arguments -----------------------------------------------------------------------------


def _weight(draw: Draw) -> Tensor:
    """A matrix or a batch of some, now and then one that all threads are worth."""
    if draw.chance(0.05):
        return torch.randn(draw.of([(130, 97), (64, 200), (40, 12, 9), (3, 70, 70)])).double()
    shape = [draw.of(SIZES[2:]) for _ in range(draw.of((2, 2, 2, 3, 4)))]
    while math.prod(shape) > 4096:
        shape[draw.random.randrange(len(shape))] = 2
    return torch.randn(shape, dtype=torch.float64)


def _floating(draw: Draw) -> torch.dtype:
    return draw.of(DTYPES[:4])  # type: ignore[no-any-return]


def _sort_pairs(draw: Draw) -> Arguments:
    shape = list(draw.shape(4)) or [4]
    dim = draw.random.randrange(len(shape))
    shape[dim] += shape[dim] % 2
    x = torch.randn(shape).to(_floating(draw))
    return [x, draw.of((dim, dim - len(shape))), 1.0, draw.chance(0.5)]


def _sort_pairs_backward(draw: Draw) -> Arguments:
    x, dim, scale, _ = _sort_pairs(draw)
    return [torch.randn_like(x), torch.ops.lipfuse.sort_pairs(x, dim, scale, True)[1], dim, scale]


def _max_min(draw: Draw) -> Arguments:
    shape = list(draw.shape(4)) or [4]
    dim = draw.random.randrange(-len(shape), len(shape))
    return [torch.randn(shape).to(_floating(draw)), dim, 1.0, draw.chance(0.5)]


def _max_min_backward(draw: Draw) -> Arguments:
    x, dim, scale, _ = _max_min(draw)
    parts, signs = torch.ops.lipfuse.max_min(x, dim, scale, True)
    return [torch.randn_like(parts), signs, dim, scale]


def _pool(draw: Draw) -> Arguments:
    x = torch.randn([draw.of(SIZES[:12]) for _ in range(draw.of((2, 3, 4, 4, 5)))])
    if x.dim() == 4 and draw.chance(0.3):
        x = x.to(memory_format=torch.channels_last)
    kernel = [draw.random.randint(1, 4) for _ in range(2)]
    return [x.to(_floating(draw)), *kernel, draw.chance(0.5), draw.of((1.0, 0.5, 2.0))]


def _l2_backward(draw: Draw) -> Arguments:
    arguments = _pool(draw)
    return [torch.randn_like(torch.ops.lipfuse.l2_norm_pool2d(*arguments)), *arguments]


def _average_backward(draw: Draw) -> Arguments:
    x, *settings = _pool(draw)
    grad = torch.randn_like(torch.ops.lipfuse.scaled_avg_pool2d(x, *settings))
    return [grad, x.shape[-2], x.shape[-1], *settings]


def _symbol(draw: Draw) -> Arguments:
    batch, n, terms, frequencies = (draw.of((0, 1, 1, 2, 3, 5, 9, 17)) for _ in range(4))
    shapes = [(batch, n, n, terms)] * 2 + [(terms, frequencies)] * 2
    dtype = draw.of((torch.float32, torch.float64))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def _scores(draw: Draw) -> Arguments:
    arguments = _symbol(draw)
    return [*arguments, torch.randn(arguments[0].shape[1]).to(arguments[0].dtype), 3]


def _exceeds(draw: Draw) -> Arguments:
    arguments = _symbol(draw)
    return [*arguments, torch.rand(arguments[0].shape[0]).to(arguments[0].dtype)]


def _symbol_bound(draw: Draw) -> Arguments:
    taps = [draw.random.randint(1, 3) for _ in range(draw.random.randint(1, 2))]
    shape = (*draw.shape(1), draw.of((0, 1, 3)), draw.of((0, 1, 4)), math.prod(taps))
    samples = [draw.random.randint(1, 9) for _ in taps]
    return [torch.randn(shape, dtype=draw.of((torch.float32, torch.float64))), taps, samples]


def _evaluate(draw: Draw) -> Arguments:
    return [[torch.randn(2, 2)], 1.0, draw.of((None, [2, 2])), "no module"]


_FURTHER: dict[str, Callable[[Draw], Arguments]] = {
    "sort_pairs": _sort_pairs,
    "sort_pairs_backward": _sort_pairs_backward,
    "max_min": _max_min,
    "max_min_backward": _max_min_backward,
    "l2_norm_pool2d": _pool,
    "l2_norm_pool2d_backward": _l2_backward,
    "scaled_avg_pool2d": _pool,
    "scaled_avg_pool2d_backward": _average_backward,
    "symbol_scores": _scores,
    "symbol_exceeds": _exceeds,
    "symbol_bound": _symbol_bound,
    "evaluate": _evaluate,
}


def _of_case(case: Any) -> Callable[[Draw], Arguments]:
    def make(draw: Draw) -> Arguments:
        dtype = draw.of((torch.float32, torch.float64))
        return list(case.arguments(_weight(draw), dtype))

    return make


OPERATORS = {case.name: _of_case(case) for case in CASES} | _FURTHER


def _matrix(draw: Draw, rows: int | None = None) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(draw.random.getrandbits(32))
    shape = (draw.of(SIZES) if rows is None else rows, draw.of(SIZES))
    return generator.standard_normal(shape).astype(draw.of((np.float32, np.float64)))


def _two_matrices(draw: Draw) -> Arguments:
    a = _matrix(draw)
    b = _matrix(draw, a.shape[1]).astype(a.dtype)
    return [a, a.T, True] if draw.chance(0.3) else [a, b, False]


def _array_and_vector(draw: Draw) -> Arguments:
    a = _matrix(draw)
    return [a, np.ones(a.shape[1], a.dtype), 2, 1e-12]


def _axis(draw: Draw) -> Arguments:
    mode = draw.of(("zeros", "circular", "reflect", "replicate", "symmetric"))
    kernel, stride, dilation = (draw.random.randint(1, 4) for _ in range(3))
    before, after = (draw.random.randint(0, 3) for _ in range(2))
    return [kernel, stride, before, after, dilation, mode, draw.of((0, 1, 4, 9))]


KERNELS: dict[str, Callable[[Draw], Arguments]] = {
    "matmul": _two_matrices,
    "power_iteration": _array_and_vector,
    "bjorck": lambda draw: [_matrix(draw), 0.5, 5, 1e-3],
    "orthogonalize": lambda draw: [_matrix(draw), 1e-4],
    "largest_use": _axis,
    "select_instruction_set": lambda draw: [draw.of(("generic", "avx2", "avx512", "amx"))],
    "cpu_features": lambda draw: [],
    "build_info": lambda draw: [],
}


# ---- ways to spoil them --------------------------------------------------------------------------


def _layout(draw: Draw, x: Tensor) -> Tensor:
    """The same shape in memory of another kind; values may be others."""
    kind = draw.random.randrange(7)
    if kind == 0 and x.dim() >= 2:
        return x.mT.contiguous().mT
    if kind == 1:
        return x.new_ones(()).expand(x.shape)
    if kind == 2 and x.dim() in (4, 5):
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=last)
    if kind == 3:  # overlapping rows
        steps = [1] * x.dim()
        return x.new_ones(sum(x.shape) + 1).as_strided(x.shape, steps)
    if kind == 4:  # strides that do not matter, huge
        steps = [2**40 if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)]
        return x.as_strided(x.shape, steps)
    if kind == 5:  # every second element of something larger, from the fourth on
        large = x.new_ones([2 * n + 4 for n in x.shape])
        return large[tuple(slice(4, 2 * n + 4, 2) for n in x.shape)]
    order = list(range(x.dim()))
    draw.random.shuffle(order)
    return x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])


def _reshaped(draw: Draw, x: Tensor) -> Tensor:
    kind = draw.random.randrange(5)
    if kind == 0:
        return x.new_ones(draw.shape())
    if kind == 1:
        return x.unsqueeze(0)
    if kind == 2 and x.dim():
        return x[:0]
    if kind == 3 and x.dim():
        return x.narrow(draw.random.randrange(x.dim()), 0, 0)
    # Empty, of sizes whose product is no int64.
    huge = draw.of(((0, 2**40, 2**40), (0, 2**62, 4), (2**40, 0, 2**40)))
    empty = x.new_empty(0).as_strided(huge, (1,) * len(huge))
    return empty if draw.chance(0.3) else x.flatten()


def _valued(draw: Draw, x: Tensor) -> Tensor:
    value = draw.of(VALUES)
    if x.dtype is torch.bool or not (x.is_floating_point() or x.is_complex()):
        return torch.full_like(x, int(draw.of(INTEGERS[2:10])))
    if draw.chance(0.5) and x.numel():
        flat = x.clone().flatten()
        flat[draw.random.randrange(flat.numel())] = value
        return flat.reshape(x.shape)
    return torch.full_like(x, value)


def _of_another_kind(draw: Draw, x: Tensor) -> Any:
    kind = draw.random.randrange(7)
    if kind == 0:
        return x.to("meta")
    if kind == 1:
        return x.to_sparse()
    if kind == 2:
        return torch.nn.Parameter(x) if x.is_floating_point() else x
    if kind == 3:
        return x.detach().requires_grad_(x.is_floating_point())
    if kind == 4 and x.dtype is torch.float32:
        return x.to_mkldnn()
    if kind == 5 and x.is_floating_point():
        return torch._neg_view(x)
    return x.numpy()


def _spoiled_tensor(draw: Draw, x: Tensor) -> Any:
    way = draw.of((_layout, _layout, _reshaped, _reshaped, _valued, _of_another_kind, None))
    return x.to(draw.of(DTYPES)) if way is None else way(draw, x)


def _spoiled_array(draw: Draw, x: np.ndarray[Any, Any]) -> Any:
    kind = draw.random.randrange(10)
    if kind == 0:
        return x[::-1, ::-1] if x.ndim == 2 else x[::-1]
    if kind == 1:
        return np.broadcast_to(x.dtype.type(1), x.shape)
    if kind == 2:  # misaligned
        return np.frombuffer(b"0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)
    if kind == 3:  # strides that no element's size divides
        packed = np.zeros(x.shape, [("a", "i1"), ("b", x.dtype)])
        return packed["b"]
    if kind == 4:
        return x.astype(draw.of(("f2", "f4", "f8", "i8", "c16", "O", ">f4", "S4", "?", "g")))
    if kind == 5:
        return np.asfortranarray(x)
    if kind == 6:
        return np.full_like(x, draw.of(VALUES))
    if kind == 7:
        return np.ones(draw.shape(), x.dtype)
    if kind == 8:
        return np.lib.stride_tricks.as_strided(x, x.shape, (0,) * x.ndim)
    return x.tolist()


def spoiled(draw: Draw, x: Any, counts: bool) -> Any:
    """Something in the place of a valid argument; a number that counts stays a moderate one."""
    if draw.chance(0.08):
        return draw.of(OTHERS)
    if isinstance(x, Tensor):
        return _spoiled_tensor(draw, x)
    if isinstance(x, np.ndarray):
        return _spoiled_array(draw, x)
    if isinstance(x, bool):
        return not x
    if isinstance(x, int):
        return draw.of(COUNTS if counts else INTEGERS)
    if isinstance(x, float):
        return draw.of(FLOATS)
    if isinstance(x, list) and x:
        x = list(x)
        kind = draw.random.randrange(4)
        if kind == 0:
            return x[:-1]
        if kind == 1:
            return [*x, x[0]]
        at = draw.random.randrange(len(x))
        x[at] = spoiled(draw, x[at], counts)
        return x
    return draw.of(OTHERS)


# Arguments that say how often to do something, or how large a grid is.
_COUNTING = ("n_iterations", "max_iterations", "squarings", "steps", "samples", "taps")


def target(draw: Draw) -> tuple[str, Callable[..., Any], Arguments]:
    """What to call, and with what."""
    native: types.ModuleType | None = _native.kernels
    if native is not None:
        native.select_instruction_set(draw.of(native.cpu_features()["available"]))
    if native is not None and draw.chance(0.25):
        name = draw.of(sorted(KERNELS))
        function, arguments = getattr(native, name), KERNELS[name](draw)
        counting = [name in ("power_iteration", "bjorck")] * len(arguments)
        name = f"_kernels.{name}"
    else:
        assert lipfuse.ops.evaluate  # registers them
        name = draw.of(sorted(OPERATORS))
        function, arguments = getattr(torch.ops.lipfuse, name).default, OPERATORS[name](draw)
        counting = [a.name in _COUNTING for a in function._schema.arguments]
        name = f"torch.ops.lipfuse.{name}"
    for _ in range(draw.of((0, 1, 1, 1, 2, 3))):
        if arguments:
            at = draw.random.randrange(len(arguments))
            with contextlib.suppress(Exception):  # there are not all kinds of all tensors
                arguments[at] = spoiled(draw, arguments[at], counting[at])
    if draw.chance(0.03):
        arguments = arguments[:-1]
    return name, function, arguments
