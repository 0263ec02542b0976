"""The operators on a GPU against the same operators on the CPU, and how they behave as GPU work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lipfuse  # noqa: F401  (registers the operators)
from lipfuse import reference

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"
)

ops = torch.ops.lipfuse
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# One block in shared memory, scratch in global memory, teams of blocks, many matrices.
SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (16, 16),
    (64, 64),
    (90, 90),
    (3, 17, 29),
    (64, 576),
    (576, 64),
    (128, 128),
    (200, 312),
    (2, 256, 256),
    (300, 8, 9),
    (512, 1152),
    (0, 4, 3),
    (3, 0),
    (0, 0),
]
BATCHED = pytest.mark.parametrize("shape", SHAPES, ids=str)


def matrix(shape: tuple[int, ...], low: float = 0.88, high: float = 1.45, seed: int = 0) -> Tensor:
    """Float64, singular values in [low, high]."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    if not w.numel():
        return w
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    s = torch.linspace(high, low, s.shape[-1], dtype=torch.float64).expand_as(s)
    return (u * s.unsqueeze(-2)) @ vh


def gaussian(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(w: Tensor) -> tuple[Tensor, Tensor]:
    u, v = gaussian(tuple(w.shape[:-1]), 1), gaussian((*w.shape[:-2], w.shape[-1]), 2)
    return u / u.norm(dim=-1, keepdim=True), v / v.norm(dim=-1, keepdim=True)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.is_cuda and actual.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = (
        float((actual.cpu().double() - expected.double()).abs().max()) if expected.numel() else 0.0
    )
    assert error <= tolerance * max(scale, 1e-30), (error, scale)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-9 if dtype is torch.float64 else 2e-4


def on_gpu(*values: object, dtype: torch.dtype) -> list[object]:
    return [
        v.to("cuda", dtype if v.is_floating_point() else v.dtype) if isinstance(v, Tensor) else v
        for v in values
    ]


@DTYPES
@BATCHED
def test_spectral_normalize(shape, dtype):
    w = gaussian(shape, 0).to(dtype).double()
    u, v = vectors(w)
    for start in (v, None):
        given = on_gpu(w, u, start, 2, 1e-12, 0.7, dtype=dtype)
        out = ops.spectral_normalize(*given)
        exact = reference.spectral_normalize(w, u, start, 2, 1e-12, 0.7)
        for a, e in zip(out, exact, strict=True):
            close(a, e, tolerance(dtype) * 5)
        power = ops.power_iteration(*given[:5])
        for a, e in zip(power, exact[1:], strict=True):
            close(a, e, tolerance(dtype) * 5)
    g, gs = gaussian(shape, 5), gaussian(tuple(w.shape[:-2]), 6)
    back = (g, gs, *exact, 1e-12, 0.7)
    close(
        ops.spectral_normalize_backward(*on_gpu(*back, dtype=dtype)),
        reference.spectral_normalize_backward(*back),
        tolerance(dtype) * 5,
    )
    close(
        ops.power_iteration_backward(*on_gpu(gs, *exact[2:], dtype=dtype)),
        reference.power_iteration_backward(gs, *exact[2:]),
        tolerance(dtype),
    )


@DTYPES
@pytest.mark.parametrize(
    "shape", [(5,), (3, 1), (64, 576), (1, 2_000_000), (0, 3), (3, 0)], ids=str
)
def test_frobenius_normalize(shape, dtype):
    w, g = gaussian(shape, 0), gaussian(shape, 1)
    exact = reference.frobenius_normalize(w, 1e-12, 0.5)
    for a, e in zip(
        ops.frobenius_normalize(*on_gpu(w, 1e-12, 0.5, dtype=dtype)), exact, strict=True
    ):
        close(a, e, tolerance(dtype))
    back = (g, *exact, 1e-12, 0.5)
    close(
        ops.frobenius_normalize_backward(*on_gpu(*back, dtype=dtype)),
        reference.frobenius_normalize_backward(*back),
        tolerance(dtype),
    )


@DTYPES
@BATCHED
def test_bjorck(shape, dtype):
    w, g = matrix(shape), gaussian(shape, 1)
    # No early stop: which step is the last could otherwise differ by rounding.
    out, _, steps = ops.bjorck(*on_gpu(w, 0.5, 5, 0.0, True, dtype=dtype))
    exact, kept, count = reference.bjorck(w, 0.5, 5, 0.0, True)
    close(out, exact, tolerance(dtype))
    assert (steps.cpu() == count).all()
    back = (g, kept, count, 0.5)
    close(
        ops.bjorck_backward(*on_gpu(*back, dtype=dtype)),
        reference.bjorck_backward(*back),
        tolerance(dtype) * 10,
    )
    assert (
        ops.bjorck(*on_gpu(w, 0.5, 25, 1e-3, False, dtype=dtype))[2].max() < 25
        if w.numel()
        else True
    )


@DTYPES
@BATCHED
def test_spectral_bjorck(shape, dtype):
    w, g = matrix(shape), gaussian(shape, 1)
    u, v = vectors(w)
    arguments = (w, u, v, 30, 1e-12, 0.5, 5, 0.0, 0.7, True)
    out = ops.spectral_bjorck(*on_gpu(*arguments, dtype=dtype))
    exact = reference.spectral_bjorck(*arguments)
    close(out[0], exact[0], tolerance(dtype) * 5)
    close(out[1], exact[1], tolerance(dtype) * 5)
    back = (g, *exact[1:], 1e-12, 0.5, 0.7)
    close(
        ops.spectral_bjorck_backward(*on_gpu(*back, dtype=dtype)),
        reference.spectral_bjorck_backward(*back),
        tolerance(dtype) * 10,
    )


@DTYPES
@pytest.mark.parametrize("low, high", [(0.88, 1.45), (0.02, 4.0)])
@BATCHED
def test_orthogonalize(shape, dtype, low, high):
    w, g = matrix(shape, low, high), gaussian(shape, 1)
    save = w.shape[-2] != w.shape[-1]
    out, root, info = ops.orthogonalize(*on_gpu(w, 1e-4, 0.9, True, dtype=dtype))
    exact, exact_root, _ = reference.orthogonalize(w, 1e-4, 0.9, True)
    assert (
        out.shape == exact.shape and root.shape == exact_root.shape and info.dtype == torch.float64
    )
    if not w.numel():
        return
    error = torch.linalg.matrix_norm(out.cpu().double() - exact)
    assert float(error.max()) < 2e-4
    largest = torch.linalg.matrix_norm(out.cpu().double(), ord=2) / 0.9
    assert bool((largest <= info[..., 3].cpu() * (1 + 1e-6)).all())
    gradient = ops.orthogonalize_backward(
        *on_gpu(g, w, dtype=dtype), out, root, info, 1e-5, 0.9, False
    )
    expected = reference.orthogonalize_backward(
        g, w, exact, exact_root, info.cpu(), 1e-5, 0.9, False
    )
    close(gradient, expected, 3e-3 * max(1.0, high / low / 10) if save or low < 0.5 else 1e-3)


def test_hostile_weights():
    w = gaussian((5, 24, 40), 0).float().cuda()
    w[0] = 0
    w[1, 2, 3] = float("nan")
    w[2, 12:] = w[2, :12]
    w[3] *= 1e-20
    w[4] *= 1e25
    out, _, _ = ops.orthogonalize(w, 1e-4, 1.0, True)
    assert (out[0] == 0).all() and out[1].isnan().all()
    assert (torch.linalg.matrix_norm(out[2:].double(), ord=2) < 1.0001).all()
    u, v = (x.float().cuda() for x in vectors(w.cpu()))
    sigma, new_u, new_v = ops.power_iteration(w, u, v, 3, 1e-12)
    assert sigma[0] == 0 and sigma[1].isnan() and sigma[4].isfinite()
    assert (new_u[:2] == u[:2]).all() and (new_v[:2] == v[:2]).all()


def everything(w: Tensor, u: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    """Every operator once."""
    n = ops.spectral_normalize(w, u, v, 2, 1e-12, 0.7)
    c = ops.spectral_bjorck(w, u, v, 2, 1e-12, 0.5, 6, 1e-3, 0.7, True)
    b = ops.bjorck(n[0], 0.5, 6, 1e-3, True)
    q = ops.orthogonalize(w, 1e-4, 1.0, True)
    f = ops.frobenius_normalize(w, 1e-12, 1.0)
    return [
        *n,
        *c,
        *b,
        *q,
        *f,
        ops.spectral_normalize_backward(g, None, *n, 1e-12, 0.7),
        ops.power_iteration_backward(n[1], n[2], n[3]),
        ops.spectral_bjorck_backward(g, *c[1:], 1e-12, 0.5, 0.7),
        ops.bjorck_backward(g, b[1], b[2], 0.5),
        ops.orthogonalize_backward(g, w, *q, 1e-4, 1.0, False),
        ops.frobenius_normalize_backward(g, *f, 1e-12, 1.0),
    ]


def example(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    w = matrix(shape)
    return tuple(x.float().cuda() for x in (w, *vectors(w), gaussian(shape, 3)))


def comparable(results: list[Tensor]) -> list[Tensor]:
    """Without the history, whose part beyond the steps taken is never written."""
    return [r for r in results if r.dim() < 4 or r.shape[-3] != 6]


@pytest.mark.parametrize("shape", [(4, 32, 48), (1, 160, 200)], ids=str)
def test_no_synchronisation(shape):
    arguments = example(shape)
    everything(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [(4, 32, 48), (1, 160, 200)], ids=str)
def test_same_bits_every_time_on_any_stream_and_in_a_graph(shape):
    arguments = example(shape)
    expected = comparable(everything(*arguments))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        again = comparable(everything(*arguments))
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = comparable(everything(*arguments))
    graph.replay()
    torch.cuda.synchronize()
    for a, b, c in zip(expected, again, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_another_device():
    w = matrix((16, 24)).float()
    out = ops.orthogonalize(w.to("cuda:1"), 1e-4, 1.0, False)[0]
    assert out.device.index == 1 and torch.cuda.current_device() == 0
    close(out, reference.orthogonalize(w.double(), 1e-4, 1.0, False)[0], 2e-4)
