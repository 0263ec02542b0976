"""Normalising one weight: parameter to orthogonal weight, and its gradient back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipfuse
from benchmarks import peers
from benchmarks.runner import Call, Contender, Session, Target
from lipfuse import _native

QUESTION = "forward and backward of one orthogonal weight"

SHAPES = [(n, n) for n in (32, 64, 128, 256, 512, 1024)] + [(64, 576), (128, 1152), (256, 2304)]
QUICK = [(32, 32), (64, 64), (256, 256), (512, 512), (128, 1152)]
MAPS = ("cayley", "matrix_exp", "householder")

# How many products each way needs at least for a weight that is nearly orthogonal, counted as
# (m x n x n, n x n x n) on the smaller side n, symmetric results at half price.
# Forward: the Gram matrix and the result; three symmetric products for the polynomial between them.
FORWARD = (1.5, 1.5)
# QᵀG, Q times something; between them the linear solve, a symmetric congruence.
EXACT = (2.0, 1.5)
# Outside the column space: G H⁻¹, and A H⁻¹.
EXACT_TALL = (3.0, 2.5)
TANGENT = (2.0, 0.0)

DEEL, ORTHOGONIUM, COMPILED = "deel-torchlip", "orthogonium", "compiled Björck"
OURS, OURS_TANGENT, OURS_BJORCK = "lipfuse", "lipfuse, tangent", "lipfuse, method='bjorck'"
BIG, SMALL = "torch.mm, m x n x n", "torch.mm, n x n x n"
OWN = "native product, n x n x n, 1 thread"
AUTOGRAD = "torch, a product with 1"

# Ratio to deel-torchlip's layer weight that is wanted: exact, and with the tangent gradient.
WANTED: dict[str, tuple[float, float | None]] = {
    "32x32": (12, None),
    "64x64": (12, None),
    "128x128": (8, None),
    "256x256": (5, None),
    "512x512": (4, 6),
    "1024x1024": (4, 6),
    "64x576": (8, None),
    "128x1152": (8, None),
    "256x2304": (8, None),
    "256x256 gaussian": (4, None),
}


def floor(rows: int, columns: int, tangent: bool) -> tuple[tuple[float, str], ...]:
    """The least work for a nearly orthogonal weight, in products."""
    square = rows == columns
    backward = TANGENT if tangent else (EXACT if square else EXACT_TALL)
    big, small = FORWARD[0] + backward[0], FORWARD[1] + backward[1]
    return ((big + small, SMALL),) if square else ((big, BIG), (small, SMALL))


def step(weight: Callable[[], Tensor], parameter: Tensor, grad: Tensor) -> Call:
    """Computes the weight, and the parameter's gradient from the weight's."""

    def call() -> None:
        parameter.grad = None
        torch.autograd.backward(weight(), grad)

    return call


def _error(weight: Callable[[], Tensor]) -> Callable[[], dict[str, float]]:
    def facts() -> dict[str, float]:
        with torch.no_grad():
            return {"‖QᵀQ-I‖": peers.orthogonality_error(weight())}

    return facts


def of_layer(
    name: str,
    layer: nn.Module,
    w: Tensor,
    grad: Tensor,
    *,
    warm: int = 30,
    ours: bool = False,
    floor: tuple[tuple[float, str], ...] = (),
) -> Contender:
    """The weight of a layer in training, whose parameter is set to ``w``.

    Args:
        warm: how often the weight is computed before: power iterations carry their vectors on.
    """
    any_layer: Any = layer.train()
    parameter = any_layer.parametrizations.weight.original
    with torch.no_grad():
        parameter.copy_(w)
        for _ in range(warm):
            any_layer.weight  # noqa: B018

    def weight() -> Tensor:
        result: Tensor = any_layer.weight
        return result

    call = step(weight, parameter, grad)
    return Contender(name, call, facts=_error(weight), ours=ours, floor=floor)


def _of_function(
    name: str,
    function: Callable[[Tensor], Tensor],
    w: Tensor,
    grad: Tensor,
    *,
    ours: bool = False,
    floor: tuple[tuple[float, str], ...] = (),
) -> Contender:
    parameter = w.clone().requires_grad_()

    def weight() -> Tensor:
        return function(parameter)

    call = step(weight, parameter, grad)
    return Contender(name, call, facts=_error(weight), ours=ours, floor=floor)


def _torch_map(name: str, w: Tensor, grad: Tensor) -> Contender:
    """torch's orthogonal parametrization.

    It cannot start from a weight that is not orthogonal and takes the orthogonal one beside it; its
    parameters are then moved a little, so that the maps have to work as they do within training.
    """
    layer: Any = nn.Linear(w.shape[1], w.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(w)
    parametrizations.orthogonal(layer, orthogonal_map=name)
    parameter = layer.parametrizations.weight.original
    with torch.no_grad():
        parameter.add_(torch.randn_like(parameter).tril_(-1), alpha=0.1 / max(w.shape) ** 0.5)
    layer.train()

    def weight() -> Tensor:
        result: Tensor = layer.weight
        return result

    return Contender(map_name(name), step(weight, parameter, grad), facts=_error(weight))


def map_name(name: str) -> str:
    """Of a contender."""
    return f"torch orthogonal, {name}"


def _predicted(name: str, rows: int, columns: int, limit: float) -> float:
    """Seconds a call, from a quarter of the size: to tell what takes minutes without running it."""
    if max(rows, columns) < 512:
        return 0.0
    w = peers.matrix("near", max(1, rows // 4), max(1, columns // 4))
    contender = _torch_map(name, w, torch.randn_like(w))
    assert contender.call is not None
    least = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        contender.call()
        least = min(least, time.perf_counter() - start)
        if least > limit:
            break
    return 64 * least


def torch_maps(w: Tensor, grad: Tensor, limit: float) -> list[Contender]:
    """torch's orthogonal parametrization by each of its maps; too slow ones are only named."""
    found = []
    for name in MAPS:
        seconds = _predicted(name, w.shape[0], w.shape[1], limit)
        # A small size pays for overhead too: it predicts too much rather than too little.
        if seconds > 2 * limit:
            reason = f"about {seconds:.0f} s a call from a quarter of its size, too slow"
            found.append(Contender(map_name(name), None, reason))
        else:
            found.append(_torch_map(name, w, grad))
    return found


def _compiled(gaussian: bool, w: Tensor, grad: Tensor) -> Contender:
    """Björck's iteration in plain torch, compiled.

    A nearly orthogonal weight needs five iterations and nothing before them; a random one is
    divided by its spectral norm first, from vectors that have converged, and needs fifteen.
    """
    wide = w.shape[0] <= w.shape[1]
    v = torch.linalg.svd(w, full_matrices=False)[2][0].clone() if gaussian else w[0]

    def bjorck(x: Tensor) -> Tensor:
        if gaussian:
            with torch.no_grad():
                a = nn.functional.normalize(x @ v, dim=0)
                b = nn.functional.normalize(x.mT @ a, dim=0)
            x = x / (a @ x @ b)
        for _ in range(15 if gaussian else 5):
            x = 1.5 * x - 0.5 * ((x @ x.mT) @ x if wide else x @ (x.mT @ x))
        return x

    name = f"{COMPILED}-{15 if gaussian else 5}"
    contender = _of_function(name, torch.compile(bjorck, dynamic=False), w, grad)
    return replace(contender, slow_start=True)


def contenders(w: Tensor, kind: str, session: Session) -> list[Contender]:
    """All that make the weight ``w`` orthogonal."""
    rows, columns = w.shape
    grad = peers.matrix("gaussian", rows, columns, seed=1)
    near = kind == "near"
    nothing: tuple[tuple[float, str], ...] = ()

    def layer(**arguments: Any) -> nn.Module:
        return lipfuse.nn.SpectralLinear(columns, rows, bias=False, **arguments)

    def tangent(x: Tensor) -> Tensor:
        return lipfuse.functional.orthogonalize(x, backward="tangent")

    exact_floor = floor(rows, columns, False) if near else nothing
    tangent_floor = floor(rows, columns, True) if near else nothing
    found = [
        of_layer(OURS, layer(), w, grad, ours=True, floor=exact_floor),
        _of_function(OURS_TANGENT, tangent, w, grad, ours=True, floor=tangent_floor),
        of_layer(OURS_BJORCK, layer(method="bjorck"), w, grad, ours=True),
    ]
    torchlip, reason = peers.deel()
    if torchlip is None:
        found.append(Contender(DEEL, None, reason))
    else:
        # Its default is to have a bias; it plays no part here.
        found.append(of_layer(DEEL, torchlip.SpectralLinear(columns, rows), w, grad))
    linear, reason = peers.orthogonium()
    if linear is None:
        found.append(Contender(ORTHOGONIUM, None, reason))
    else:
        # Three power iterations a call.
        found.append(of_layer(ORTHOGONIUM, linear.OrthoLinear(columns, rows), w, grad, warm=10))
    found += torch_maps(w, grad, session.settings.patience)
    if session.settings.quick:
        name = f"{COMPILED}-{5 if near else 15}"
        found.append(Contender(name, None, "compiling takes too long for a quick run"))
    else:
        found.append(_compiled(not near, w, grad))
    n = min(rows, columns)
    found += [product(BIG, max(rows, columns), n)] if rows != columns else []
    return [*found, product(SMALL, n, n), own_product(n), autograd(w, grad)]


def product(name: str, m: int, n: int) -> Contender:
    """torch's own m x n x n product, without allocating."""
    a, b, out = torch.randn(m, n), torch.randn(n, n), torch.empty(m, n)
    return Contender(name, lambda: torch.mm(a, b, out=out), yardstick=True)


def autograd(w: Tensor, grad: Tensor) -> Contender:
    """The least that torch's autograd takes for any weight: that of a product with 1."""
    parameter = w.clone().requires_grad_()
    return Contender(AUTOGRAD, step(lambda: parameter * 1, parameter, grad), yardstick=True)


def own_product(n: int) -> Contender:
    """The native kernel's n x n x n product, on one thread.

    Where it is quicker than torch's, a figure below its floor is no mistake: the floor is counted
    in torch's products, which are then not the best that the processor can do.
    """
    kernels = _native.kernels
    if kernels is None:
        return Contender(OWN, None, "no native kernels", yardstick=True)
    a, b = torch.randn(n, n).numpy(), torch.randn(n, n).numpy()
    return Contender(OWN, lambda: kernels.matmul(a, b), yardstick=True)


def targets(case: str, rows: int, columns: int, kind: str) -> list[Target]:
    """What is wanted of this case."""
    exact, tangent = WANTED[case]
    found = [Target.faster(DEEL, OURS, exact)]
    if tangent is not None:
        found.append(Target.faster(DEEL, OURS_TANGENT, tangent))
    found.append(Target.faster(ORTHOGONIUM, OURS, 1))
    maps = tuple(map_name(m) for m in MAPS)
    found.append(Target.faster(maps, OURS, 1, f"best of torch orthogonal / {OURS}"))
    found.append(Target.faster(f"{COMPILED}-{5 if kind == 'near' else 15}", OURS, 1))
    if min(rows, columns) >= 256 and kind == "near":
        found.append(Target("lipfuse / its floor", (OURS,), "floor", at_most=1.3))
    return found


def run(session: Session) -> None:
    """All shapes."""
    shapes = QUICK if session.settings.quick else SHAPES
    cases = [(rows, columns, "near") for rows, columns in shapes] + [(256, 256, "gaussian")]
    for rows, columns, kind in cases:
        case = f"{rows}x{columns}" + ("" if kind == "near" else f" {kind}")
        if not session.wants(case):
            continue
        torch.manual_seed(0)
        w = peers.matrix(kind, rows, columns)
        n = min(rows, columns)
        session.compare(
            case,
            contenders(w, kind, session),
            ours=OURS,
            targets=targets(case, rows, columns, kind),
            about={"shape": [rows, columns], "spectrum": kind},
            work=2.0 * rows * columns * n,
        )
        # Compiled code is kept by shape; the next shape has its own.
        torch.compiler.reset()
