"""One example of arguments for every operator, for the tests that all operators have to pass."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Optional

import tools
import torch
from torch import Tensor

from lipfuse import reference

Arguments = tuple[Any, ...]


def _vectors(w: Tensor) -> tuple[Tensor, Tensor]:
    u = tools.unit(tuple(w.shape[:-1]), 1)
    v = tools.unit((*w.shape[:-2], w.shape[-1]), 2)
    return u, v


def _gradient(w: Tensor, seed: int = 5) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.randn(w.shape, dtype=torch.float64)


def _normalised(w: Tensor) -> Tensor:
    """Within the reach of Björck's iteration: singular values of at most 1.5."""
    if not w.numel():
        return w
    norm = torch.linalg.matrix_norm(w, ord=2)[..., None, None]
    return torch.where(norm > 1.5, w * 1.5 / norm, w)


def _converged(w: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors of the largest singular value."""
    if not w.numel():
        return _vectors(w)
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    return u[..., 0], vh[..., 0, :]


def _power_iteration(w: Tensor) -> Arguments:
    return (w, *_vectors(w), 2, 1e-12)


def _power_iteration_backward(w: Tensor) -> Arguments:
    batch = w.shape[:-2]
    grad = torch.linspace(-1, 2, math.prod(batch), dtype=w.dtype).reshape(batch)
    return (grad, *_vectors(w))


def _spectral_normalize(w: Tensor) -> Arguments:
    u, _ = _vectors(w)
    return (w, u, None, 2, 1e-12, 0.7)


def _spectral_normalize_backward(w: Tensor) -> Arguments:
    u, v = _vectors(w)
    out, sigma, u, v = reference.spectral_normalize(w, u, v, 2, 1e-12, 0.7)
    return (_gradient(w), torch.full_like(sigma, 0.3), out, sigma, u, v, 1e-12, 0.7)


def _bjorck(w: Tensor) -> Arguments:
    return (_normalised(w), 0.5, 4, 0.0, True)


def _bjorck_backward(w: Tensor) -> Arguments:
    _, history, steps = reference.bjorck(_normalised(w), 0.5, 4, 0.0, True)
    return (_gradient(w), history, steps, 0.5)


def _spectral_bjorck(w: Tensor) -> Arguments:
    return (w, *_converged(w), 2, 1e-12, 0.5, 4, 0.0, 0.7, True)


def _spectral_bjorck_backward(w: Tensor) -> Arguments:
    _, sigma, u, v, history, steps = reference.spectral_bjorck(*_spectral_bjorck(w))
    return (_gradient(w), sigma, u, v, history, steps, 1e-12, 0.5, 0.7)


def _orthogonalize(w: Tensor) -> Arguments:
    return (w, 1e-5, 0.7, True)


def _orthogonalize_backward(w: Tensor, tangent: bool = False) -> Arguments:
    q, root, info = reference.orthogonalize(w, 1e-5, 0.7, True)
    return (_gradient(w), w, q, root, Exact(info), 1e-5, 0.7, tangent)


def _foreach(w: Tensor) -> Arguments:
    # Rows shared out over two weights of different kinds; the second in two groups.
    w = w.reshape(-1, w.shape[-1])
    other = torch.cat([w, w.flip(0) + 0.1])
    return ([w, other], [1, 2], [0.7, 1.5], 1e-5, True)


def _foreach_backward(w: Tensor) -> Arguments:
    weights, groups, scales, tol, save = _foreach(w)
    q, roots, info = reference.foreach_orthogonalize(weights, groups, scales, tol, save)
    return (
        [_gradient(x) for x in weights],
        weights,
        q,
        roots,
        Exact(info),
        groups,
        scales,
        tol,
        False,
    )


def _foreach_spectral(w: Tensor) -> Arguments:
    w = w.reshape(-1, w.shape[-1])
    ws = [w, torch.cat([w, w.flip(0) + 0.1])]
    pairs = [_vectors(x) for x in ws]
    return (ws, [u for u, _ in pairs], [v for _, v in pairs], 2, 1e-12, [0.7, 1.5])


def _foreach_spectral_backward(w: Tensor) -> Arguments:
    ws, us, vs, steps, eps, scales = _foreach_spectral(w)
    out, sigmas, us, vs = reference.foreach_spectral_normalize(ws, us, vs, steps, eps, scales)
    grads = [_gradient(x) for x in ws]
    return (grads, torch.full_like(sigmas, 0.3), out, sigmas, us, vs, eps, scales)


def _frobenius_normalize(w: Tensor) -> Arguments:
    return (w, 1e-12, 0.7)


def _frobenius_normalize_backward(w: Tensor) -> Arguments:
    out, norm = reference.frobenius_normalize(w, 1e-12, 0.7)
    return (_gradient(w), out, norm, 1e-12, 0.7)


def _spectral_bound(w: Tensor) -> Arguments:
    return (w, 10)


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator of ``torch.ops.lipfuse``, with arguments made from a float64 weight."""

    name: str
    make: Callable[..., Arguments]
    # What an output may differ by from the reference beyond rounding, relative; None: not compared.
    slack: tuple[Optional[float], ...]
    # Arguments (by index) of an optional gradient.
    differentiable: tuple[int, ...] = ()

    @property
    def op(self) -> Any:
        return getattr(torch.ops.lipfuse, self.name).default

    @property
    def reference(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(reference, self.name)
        return function

    def arguments(self, weight: Tensor, dtype: torch.dtype) -> Arguments:
        """Those for the weight in that precision, what is derived from it being exact."""
        return cast(self.make(weight.to(dtype).double()), dtype)


@dataclasses.dataclass(frozen=True)
class Exact:
    """A tensor that stays float64 whatever the weight is: ``info`` of the polar factor."""

    tensor: Tensor


def cast(arguments: Any, dtype: torch.dtype) -> Any:
    """Float tensors to a precision."""
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(cast(a, dtype) for a in arguments)
    if isinstance(arguments, Exact):
        return arguments.tensor
    if isinstance(arguments, Tensor) and arguments.is_floating_point():
        return arguments.to(dtype)
    return arguments


_SOLVE = 1e-4  # the accuracy asked of the linear solve above, with room
_FACTOR = 2e-5

CASES = [
    Case("power_iteration", _power_iteration, (0, 0, 0), (0,)),
    Case("power_iteration_backward", _power_iteration_backward, (0,)),
    Case("spectral_normalize", _spectral_normalize, (0, 0, 0, 0), (0,)),
    Case("spectral_normalize_backward", _spectral_normalize_backward, (0,)),
    Case("bjorck", _bjorck, (0, 0, 0), (0,)),
    Case("bjorck_backward", _bjorck_backward, (0,)),
    Case("spectral_bjorck", _spectral_bjorck, (0, 0, 0, 0, 0, 0), (0,)),
    Case("spectral_bjorck_backward", _spectral_bjorck_backward, (0,)),
    Case("orthogonalize", _orthogonalize, (_FACTOR, 1e-4, None), (0,)),
    Case("orthogonalize_backward", _orthogonalize_backward, (_SOLVE,)),
    Case("foreach_orthogonalize", _foreach, (_FACTOR, _FACTOR, 1e-4, 1e-4, None)),
    Case("foreach_orthogonalize_backward", _foreach_backward, (_SOLVE, _SOLVE)),
    Case("foreach_spectral_normalize", _foreach_spectral, (0,) * 7),
    Case("foreach_spectral_normalize_backward", _foreach_spectral_backward, (0, 0)),
    Case("frobenius_normalize", _frobenius_normalize, (0, 0), (0,)),
    Case("frobenius_normalize_backward", _frobenius_normalize_backward, (0,)),
    Case("spectral_bound", _spectral_bound, (2e-3,)),
]


def valid(case: Case, outputs: Any) -> list[Tensor]:
    """The tensors of a result; Björck's history is not defined beyond its last step."""
    tensors = tools.flat(outputs)
    if case.name in ("bjorck", "spectral_bjorck"):
        history, steps = tensors[-2:]
        index = torch.arange(history.shape[-3]) if history.dim() > 2 else torch.zeros(0)
        ran = (index < steps[..., None])[..., None, None]
        tensors[-2] = torch.where(ran, history, torch.zeros_like(history))
    return tensors


@functools.cache
def example(
    name: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Arguments, list[Tensor], list[Tensor]]:
    """Arguments, and what the reference makes of them in their precision and in float64."""
    case = BY_NAME[name]
    arguments = case.arguments(tools.matrix(kind, shape), dtype)
    plain = valid(case, case.reference(*arguments))
    exact = valid(case, case.reference(*cast(arguments, torch.float64)))
    return arguments, plain, exact


BY_NAME = {case.name: case for case in CASES}
