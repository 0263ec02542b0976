"""The operators and layers on a GPU, against float64 on the CPU, and how they behave as GPU work.

Where there is no GPU, LIPFUSE_TEST_DEVICE=cpu runs what does not need one on the processor: the
tests themselves are then tested.
"""

from __future__ import annotations

import os

import pytest
import tools
import torch
from op_cases import CASES, cast, valid
from torch import Tensor, nn

import lipfuse
from lipfuse import functional, reference
from lipfuse.ops import orthogonalize as polar

DEVICE = os.environ.get("LIPFUSE_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
pytestmark = pytest.mark.skipif(
    not DEVICE, reason="no CUDA device: torch.cuda.is_available() is False"
)
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="only a GPU has streams and graphs")

ops = torch.ops.lipfuse
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# One block in shared memory, scratch in global memory, teams of blocks, blocks that share the depth
# of a tile, many matrices.
SHAPES = [
    (1, 1),
    (1, 9),
    (16, 16),
    (64, 64),
    (90, 90),
    (3, 17, 29),
    (64, 576),
    (576, 64),
    (128, 1152),
    (200, 312),
    (2, 256, 256),
    (300, 8, 9),
]
SHAPED = pytest.mark.parametrize("shape", SHAPES, ids=str)
EMPTY = [(0, 4, 3), (3, 0), (0, 0)]


def to_device(value, dtype=None):
    """Tensors in arguments of an operator, lists of them included."""
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(v, dtype) for v in value)
    if not isinstance(value, Tensor):
        return value
    return value.to(DEVICE, dtype if dtype and value.is_floating_point() else value.dtype)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.device.type == DEVICE and actual.shape == expected.shape
    if not expected.numel():
        return
    error = (actual.cpu().double() - expected.double()).abs().max()
    assert float(error) <= tolerance * max(float(expected.abs().max()), 1e-6)


def accuracy(dtype: torch.dtype) -> float:
    return 1e-9 if dtype is torch.float64 else 2e-4


def unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def vectors(w: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return unit(draw(*w.shape[:-1])), unit(draw(*w.shape[:-2], w.shape[-1]))


# ---- operators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(4, 4), (2, 5, 3), (40, 66)], ids=str)
@DTYPES
def test_every_operator(case, shape, dtype):
    arguments = case.arguments(tools.matrix("near", shape), dtype)
    exact = valid(case, case.reference(*cast(arguments, torch.float64)))
    found = case.op(*to_device(arguments))
    flat = tools.flat(found)
    if case.name in ("bjorck", "spectral_bjorck"):
        flat = valid(case, [t.cpu() for t in flat])
        flat = [t.to(DEVICE) for t in flat]
    for slack, actual, expected in zip(case.slack, flat, exact, strict=True):
        if slack is not None:
            close(actual, expected, slack + 20 * accuracy(dtype))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_opcheck(case):
    arguments = to_device(case.arguments(tools.matrix("near", (6, 9)), torch.float32))
    torch.library.opcheck(case.op, arguments)


@DTYPES
@SHAPED
def test_spectral_normalize(shape, dtype):
    w = tools.matrix("gaussian", shape).to(dtype).double()
    u, v = vectors(w)
    for start in (v, None):
        given = (w, u, start, 2, 1e-12, 0.7)
        exact = reference.spectral_normalize(*given)
        for a, e in zip(ops.spectral_normalize(*to_device(given, dtype)), exact, strict=True):
            close(a, e, accuracy(dtype) * 5)


@DTYPES
@SHAPED
def test_bjorck(shape, dtype):
    w, g = tools.matrix("near", shape), tools.matrix("gaussian", shape, 1)
    # No early stop: which step is the last could otherwise differ by rounding.
    out, _, steps = ops.bjorck(*to_device((w, 0.5, 5, 0.0, True), dtype))
    exact, kept, count = reference.bjorck(w, 0.5, 5, 0.0, True)
    close(out, exact, accuracy(dtype))
    assert (steps.cpu() == count).all()
    back = (g, kept, count, 0.5)
    found = ops.bjorck_backward(*to_device(back, dtype))
    close(found, reference.bjorck_backward(*back), accuracy(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("kind", ["near", "wide"])
@SHAPED
def test_orthogonalize(shape, dtype, kind):
    w, g = tools.matrix(kind, shape), tools.matrix("gaussian", shape, 1)
    out, saved, info = ops.orthogonalize(*to_device((w, 1e-4, 0.9, True), dtype))
    exact, exact_saved, exact_info = reference.orthogonalize(w, 1e-4, 0.9, True)
    # Of a wide spectrum the processor's rational stages lose more than the device's polynomials.
    accuracy = 5e-3 if kind == "wide" and DEVICE == "cpu" else 2e-4
    assert float(torch.linalg.matrix_norm(out.cpu().double() - exact).max()) < accuracy
    largest = torch.linalg.matrix_norm(out.cpu().double(), ord=2) / 0.9
    assert bool((largest <= info[..., 3].cpu() * (1 + 1e-6)).all())
    given = (*to_device((g, w), dtype), out, saved, info, 1e-5, 0.9, False)
    expected = reference.orthogonalize_backward(
        g, w, exact, exact_saved, exact_info, 1e-5, 0.9, False
    )
    close(ops.orthogonalize_backward(*given), expected, 3e-3 if kind == "near" else 0.05)
    if kind == "near":  # by the factor, of whose gradient 20 times the tolerance is asked
        given = (*to_device((g, w), dtype), out, saved, info, 2e-3, 0.9, False)
        assert min(shape[-2:]) < 2 or bool((saved[..., -min(shape[-2:]), 0] > 0).all())
        close(ops.orthogonalize_backward(*given), expected, 3e-3)


def test_large_and_tall():
    for shape in [(1024, 1024), (512, 4608)]:
        w = to_device(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        out, _, info = ops.orthogonalize(w, 1e-3, 1.0, True)
        gram = out.double() @ out.double().mT
        gram.diagonal(dim1=-2, dim2=-1).sub_(1)
        assert float(torch.linalg.matrix_norm(gram)) < 1.1e-3
        assert float(info[2]) < 1e-3


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty(shape):
    w = to_device(torch.zeros(shape))
    u, v = to_device(torch.zeros(shape[:-1])), to_device(torch.zeros((*shape[:-2], shape[-1])))
    assert ops.orthogonalize(w, 1e-4, 1.0, True)[0].shape == shape
    assert ops.spectral_normalize(w, u, v, 2, 1e-12, 1.0)[0].shape == shape
    assert ops.bjorck(w, 0.5, 4, 1e-3, True)[0].shape == shape
    assert ops.frobenius_normalize(w, 1e-12, 1.0)[0].shape == shape


def test_hostile_weights():
    w = to_device(tools.matrix("gaussian", (5, 24, 40)).float())
    w[0] = 0
    w[1, 2, 3] = float("nan")
    w[2, 12:] = w[2, :12]
    w[3] *= 1e-20
    w[4] *= 1e15
    out, _, _ = ops.orthogonalize(w, 1e-4, 1.0, True)
    assert (out[0] == 0).all() and out[1].isnan().all()
    assert (torch.linalg.matrix_norm(out[2:].cpu().double(), ord=2) < 1.0001).all()
    u, v = (to_device(x.float()) for x in vectors(w.cpu()))
    sigma, new_u, new_v = ops.power_iteration(w, u, v, 3, 1e-12)
    assert sigma[0] == 0 and sigma[1].isnan() and sigma[4].isfinite()
    assert (new_u[:2] == u[:2]).all() and (new_v[:2] == v[:2]).all()
    bound = ops.spectral_bound(w[2:], 10).cpu().double()
    exact = torch.linalg.matrix_norm(w[2:].cpu().double(), ord=2)
    assert bool(((bound >= exact) & (bound < 1.002 * exact)).all())


WEIGHT, LEFT, RIGHT = torch.ones(6, 4), torch.ones(6), torch.ones(4)
HISTORY, ROOT, INFO = torch.ones(3, 6, 4), torch.eye(4), torch.ones(5, dtype=torch.float64)
# More of them, for the processor: tests/ops/test_arguments.py
REFUSED = [
    ("power_iteration", (WEIGHT, LEFT, RIGHT[:3], 1, 1e-12), "v must have 4"),
    ("power_iteration", (WEIGHT, LEFT, RIGHT, 2**32 + 1, 1e-12), "n_iterations must be in"),
    ("power_iteration_backward", (RIGHT[:0], LEFT, RIGHT), "grad_sigma must have 1"),
    (
        "spectral_normalize_backward",
        (WEIGHT, None, WEIGHT, LEFT[:1], RIGHT, RIGHT, 1e-12, 1.0),
        "u must have 6",
    ),
    ("bjorck", (WEIGHT, 0.5, -1, 1e-3, True), "max_iterations must be in"),
    ("bjorck_backward", (WEIGHT, HISTORY, torch.tensor(3).int(), 0.5), "steps must be int64"),
    (
        "spectral_bjorck_backward",
        (WEIGHT, LEFT[:2], LEFT, RIGHT, HISTORY[:0], torch.tensor(0), 1e-12, 0.5, 1.0),
        "first iterate",
    ),
    ("orthogonalize", (WEIGHT, -1.0, 1.0, False), "tol must not be negative"),
    (
        "orthogonalize_backward",
        (WEIGHT, WEIGHT, WEIGHT, ROOT, INFO[:4], 1e-4, 1.0, False),
        "info must have 5",
    ),
    ("foreach_orthogonalize", ([WEIGHT], [4], [1.0], 1e-4, False), "groups divide"),
    (
        "foreach_orthogonalize_backward",
        ([WEIGHT[:2]], [WEIGHT], [WEIGHT], [ROOT], INFO[None], [1], [1.0], 1e-4, False),
        "must have 24",
    ),
    ("frobenius_normalize_backward", (WEIGHT, WEIGHT, LEFT[:2], 1e-12, 1.0), "norm must have 6"),
    ("spectral_bound", (WEIGHT, -1), "squarings must be in"),
]


@pytest.mark.parametrize(
    "name, arguments, message", REFUSED, ids=[f"{n}: {m}" for n, _, m in REFUSED]
)
def test_what_a_kernel_would_read_beyond_its_end_is_refused(name, arguments, message):
    with pytest.raises((RuntimeError, ValueError), match=message):
        getattr(ops, name)(*to_device(arguments))


@needs_cuda
def test_arguments_of_another_device_are_refused():
    w, u = to_device((WEIGHT, LEFT))
    for weight, left in ((w, u.cpu()), (w.cpu(), u)):
        with pytest.raises(RuntimeError, match="device"):
            ops.power_iteration(weight, left, None, 1, 1e-12)


# ---- many weights --------------------------------------------------------------------------------

NETWORK = [
    (64, 3, 3, 3),
    (64, 64, 3, 3),
    (128, 64, 3, 3),
    (128, 1152),
    (10, 128),
    (8, 8),
    (12, 2, 5),
]


@pytest.mark.parametrize("copies", [1, 10])
def test_a_network_in_one_launch(copies):
    """And more weights than one launch takes."""
    shapes = NETWORK * copies
    ws = [
        to_device(tools.matrix("near", (s[0], int(torch.tensor(s[1:]).prod())), i % 7).float())
        .reshape(s)
        .requires_grad_()
        for i, s in enumerate(shapes)
    ]
    scales = [1.0 + 0.1 * (i % 3) for i in range(len(ws))]
    together = functional.foreach_orthogonalize(ws, scales=scales)
    grads = [torch.randn_like(w) for w in ws]
    found = torch.autograd.grad(together, ws, grads)
    for w, out, scale, g, grad in zip(ws, together, scales, grads, found, strict=True):
        alone, _ = polar(w.flatten(1), 1e-4, scale)
        assert torch.allclose(out.flatten(1), alone, atol=2e-5)
        (expected,) = torch.autograd.grad(alone, w, g.flatten(1))
        assert tools.relative_error(grad.cpu(), expected.cpu()) < 2e-3


def test_spectral_norms_in_one_launch():
    ws = [to_device(torch.randn(s)).requires_grad_() for s in NETWORK]
    us = [unit(to_device(torch.randn(w.shape[0]))) for w in ws]
    out, sigmas, _, _ = functional.foreach_spectral_normalize(ws, us, n_iterations=3)
    loss = sum((o * o).sum() for o in out) + sum(s.square() for s in sigmas)
    found = torch.autograd.grad(loss, ws)
    for w, u, o, s, grad in zip(ws, us, out, sigmas, found, strict=True):
        alone = functional.spectral_normalize(w.flatten(1), u, n_iterations=3)
        assert torch.allclose(o.flatten(1), alone[0], rtol=1e-4, atol=1e-6)
        single = (alone[0] * alone[0]).sum() + alone[1].square()
        (expected,) = torch.autograd.grad(single, w)
        assert tools.relative_error(grad.cpu(), expected.cpu()) < 1e-3
        assert torch.allclose(s, alone[1], rtol=1e-5)


# ---- layers --------------------------------------------------------------------------------------

ELEMENTS = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@ELEMENTS
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 6, 7, 9), (1, 2, 1, 1)], ids=str)
def test_activations_and_pools(dtype, format, shape):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    given = to_device(x).contiguous(memory_format=format)
    out, flags = ops.sort_pairs(given, 1, 0.7, True)
    exact, exact_flags = reference.sort_pairs(x, 1, 0.7, True)
    close(out, exact, ROUNDING[dtype])
    assert torch.equal(flags.cpu(), exact_flags) and out.stride() == given.stride()
    back = ops.sort_pairs_backward(out, flags, 1, 0.7)
    close(back, reference.sort_pairs_backward(exact, exact_flags, 1, 0.7), 2 * ROUNDING[dtype])
    for kernel in ((2, 2), (3, 2)):
        for ceil in (False, True):
            for name in ("scaled_avg_pool2d", "l2_norm_pool2d"):
                pooled = getattr(ops, name)(given, *kernel, ceil, 0.7)
                exact = getattr(reference, name)(x, *kernel, ceil, 0.7)
                close(pooled, exact, 2 * ROUNDING[dtype])
                g = torch.randn(exact.shape, dtype=torch.float64).to(dtype)
                size = x.shape[-2:] if name == "scaled_avg_pool2d" else (x,)
                arguments = (g, *size, *kernel, ceil, 0.7)
                found = getattr(ops, name + "_backward")(*to_device(arguments))
                expected = getattr(reference, name + "_backward")(*arguments)
                close(found, expected, 2 * ROUNDING[dtype])


def network(channels: int = 16) -> nn.Module:
    layers = lipfuse.nn
    torch.manual_seed(0)
    return nn.Sequential(
        layers.SpectralConv2d(3, channels, 3, padding=1),
        layers.GroupSort2(),
        layers.ScaledL2NormPool2d((2, 2)),
        layers.SpectralConv2d(channels, 2 * channels, 3, padding=1),
        layers.GroupSort2(),
        layers.ScaledAvgPool2d((2, 2)),
        nn.Flatten(),
        layers.SpectralLinear(2 * channels * 16, 64),
        layers.GroupSort2(),
        layers.SpectralLinear(64, 10),
    )


@pytest.mark.parametrize("fused", [False, True])
def test_a_training_step_is_the_one_of_the_cpu(fused):
    x, gradients = torch.randn(4, 3, 16, 16), []
    for device in ("cpu", DEVICE):
        model = network().to(device).train()
        if fused:
            lipfuse.fuse(model)
        loss = model(x.to(device)).square().sum()
        loss.backward()
        gradients.append([float(loss.detach()), *(p.grad.cpu() for p in model.parameters())])
    assert abs(gradients[0][0] - gradients[1][0]) < 1e-3 * abs(gradients[0][0])
    for a, b in zip(gradients[0][1:], gradients[1][1:], strict=True):
        assert tools.relative_error(b, a) < 5e-3


@needs_cuda
def test_the_users_precision_is_respected():
    """In both settings the certificate holds; gradients are as precise as the setting allows."""
    w = torch.randn(200, 300, device="cuda", requires_grad=True)
    g, before = torch.randn_like(w), torch.get_float32_matmul_precision()
    found = {}
    try:
        for setting in ("highest", "high"):
            torch.set_float32_matmul_precision(setting)
            out = functional.orthogonalize(w, tol=1e-4)
            (grad,) = torch.autograd.grad(out, w, g)
            found[setting] = out.detach().cpu().double(), grad.cpu().double()
    finally:
        torch.set_float32_matmul_precision(before)
    exact = reference.orthogonalize(w.detach().cpu().double(), 1e-4, 1.0, False)[0]
    for out, grad in found.values():
        assert float(torch.linalg.matrix_norm(out - exact)) < 2e-3
        gram = out @ out.mT - torch.eye(200)
        assert float(torch.linalg.matrix_norm(gram)) < 1.1e-4
        assert tools.relative_error(grad, found["highest"][1]) < 1e-2


# ---- as GPU work ---------------------------------------------------------------------------------


def everything(w: Tensor, u: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    """Every operator once."""
    n = ops.spectral_normalize(w, u, v, 2, 1e-12, 0.7)
    c = ops.spectral_bjorck(w, u, v, 2, 1e-12, 0.5, 6, 1e-3, 0.7, True)
    b = ops.bjorck(n[0], 0.5, 6, 1e-3, True)
    q = ops.orthogonalize(w, 1e-4, 1.0, True)
    f = ops.frobenius_normalize(w, 1e-12, 1.0)
    image = g.reshape(1, 2, -1, g.shape[-1])
    s = ops.sort_pairs(image, 1, 1.0, True)
    norm = ops.l2_norm_pool2d(image, 2, 2, False, 1.0)
    mean = ops.scaled_avg_pool2d(image, 2, 2, False, 1.0)
    return [
        *n,
        *c,
        *b,
        *q,
        *f,
        *s,
        norm,
        mean,
        ops.spectral_bound(w, 4),
        ops.spectral_normalize_backward(g, None, *n, 1e-12, 0.7),
        ops.power_iteration_backward(n[1], n[2], n[3]),
        ops.spectral_bjorck_backward(g, *c[1:], 1e-12, 0.5, 0.7),
        ops.bjorck_backward(g, b[1], b[2], 0.5),
        ops.orthogonalize_backward(g, w, *q, 1e-4, 1.0, False),
        ops.frobenius_normalize_backward(g, *f, 1e-12, 1.0),
        ops.sort_pairs_backward(image, s[1], 1, 1.0),
        ops.l2_norm_pool2d_backward(norm, image, 2, 2, False, 1.0),
        ops.scaled_avg_pool2d_backward(mean, *image.shape[-2:], 2, 2, False, 1.0),
    ]


def example(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    w = tools.matrix("near", shape)
    values = (w, *vectors(w), tools.matrix("gaussian", shape, 3))
    return tuple(to_device(x.float()) for x in values)


def comparable(results: list[Tensor]) -> list[Tensor]:
    """Without the history, whose part beyond the steps taken is never written."""
    return [r for r in results if r.dim() < 4 or r.shape[-3] != 6]


BEHAVED = pytest.mark.parametrize("shape", [(4, 32, 48), (1, 160, 200)], ids=str)


@BEHAVED
def test_same_bits_every_time(shape):
    arguments = example(shape)
    first, again = (comparable(everything(*arguments)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@needs_cuda
@BEHAVED
def test_no_synchronisation(shape):
    arguments = example(shape)
    everything(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@BEHAVED
def test_any_stream_and_graphs(shape):
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
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for a, b, c in zip(expected, again, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@needs_cuda
@pytest.mark.parametrize("fused", [False, True])
def test_a_whole_training_step_in_a_graph(fused):
    """Forward, loss, backward and optimizer, without synchronisation and as a graph."""
    model = network().cuda().train()
    if fused:
        lipfuse.fuse(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=True)
    x, labels = torch.randn(8, 3, 16, 16, device="cuda"), torch.arange(8, device="cuda")
    losses = []

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            losses.append(step().detach().clone())
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses.append(step().detach().clone())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(20):
        graph.replay()
        losses.append(loss.detach().clone())
    torch.cuda.synchronize()
    assert float(losses[-1]) < float(losses[0])
    for module in model:
        if hasattr(module, "parametrizations"):
            w = module.weight.detach().flatten(1).double()
            assert float(torch.linalg.matrix_norm(w, ord=2)) < 1.0001


@pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.device_count() < 2, reason="one CUDA device only"
)
def test_another_device():
    w = tools.matrix("near", (16, 24)).float()
    out = ops.orthogonalize(w.to("cuda:1"), 1e-4, 1.0, False)[0]
    assert out.device.index == 1 and torch.cuda.current_device() == 0
    close(out, reference.orthogonalize(w.double(), 1e-4, 1.0, False)[0], 2e-4)
    with pytest.raises(RuntimeError, match="device"):
        ops.orthogonalize_backward(
            w.cuda(), w.to("cuda:1"), out, out, out.double(), 1e-4, 1.0, False
        )
