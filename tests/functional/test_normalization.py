"""The functional API of the normalisations: arguments, shapes, dtypes, dimensions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tools
import torch
from torch import Tensor

import lipfuse.functional as F

W = torch.randn(4, 3)
U, V = torch.randn(4), torch.randn(3)
POSITIVE = "a positive finite number"
BAD_POSITIVE: list[Any] = [0, -1.0, math.nan, math.inf, -math.inf]
NO_NUMBER: list[Any] = [None, "1", True, torch.tensor(1.0), 1j]


def calls() -> list[Any]:
    """(function, type of the error, the argument's name, its value as shown, what is allowed)."""
    cases: list[tuple[Callable[..., Any], type[Exception], str, str, str]] = []
    with_vectors = {
        "power_iteration": F.power_iteration,
        "spectral_normalize": F.spectral_normalize,
        "spectral_bjorck": F.spectral_bjorck,
    }
    alone = {
        "bjorck": F.bjorck,
        "orthogonalize": F.orthogonalize,
        "spectral_norm_bound": F.spectral_norm_bound,
        "frobenius_normalize": F.frobenius_normalize,
    }

    def add(
        function: Callable[..., Any], error: type[Exception], name: str, shown: Any, allowed: str
    ) -> None:
        cases.append((function, error, name, str(shown), allowed))

    def bind(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
        return lambda: function(*args, **kwargs)

    for f in [*with_vectors.values(), *alone.values()]:
        rest = (U,) if f in with_vectors.values() else ()
        add(bind(f, [[1.0]], *rest), TypeError, "weight", "[[1.0]]", "torch.Tensor")
        add(bind(f, W.long(), *rest), TypeError, "weight", "torch.int64", "floating-point")
        add(bind(f, W.cfloat(), *rest), TypeError, "weight", "complex", "floating-point")
        few = torch.tensor(1.0) if f is F.frobenius_normalize else W[0]
        least = "1 dim" if f is F.frobenius_normalize else "2 dim"
        add(bind(f, few, *rest), ValueError, "weight", tuple(few.shape), least)
    for f in with_vectors.values():
        add(bind(f, W, None), TypeError, "u", "None", "tensor")
        add(bind(f, W, [1.0]), TypeError, "u", "[1.0]", "torch.Tensor")
        add(bind(f, W, U.long()), TypeError, "u", "int64", "floating-point")
        add(bind(f, W, U[:3]), ValueError, "u", "(3,)", r"\(4,\)")
        add(bind(f, W, U[None]), ValueError, "u", "(1, 4)", r"\(4,\)")
        add(bind(f, W[None], U), ValueError, "u", "(4,)", r"\(1, 4\)")
        add(bind(f, W, U, V[:2]), ValueError, "v", "(2,)", r"\(3,\)")
        add(bind(f, W, U, [1.0]), TypeError, "v", "[1.0]", "torch.Tensor")
        add(bind(f, W, U.to("meta")), ValueError, "u", "meta", "on cpu")
        for value in (-1, -100):
            add(bind(f, W, U, n_iterations=value), ValueError, "n_iterations", value, ">= 0")
        for value in (1.5, True, None, "1"):
            add(bind(f, W, U, n_iterations=value), TypeError, "n_iterations", repr(value), ">= 0")

    def positive(name: str, f: Callable[..., Any], *args: Any) -> None:
        for value in BAD_POSITIVE:
            add(bind(f, *args, **{name: value}), ValueError, name, repr(value), POSITIVE)
        for value in NO_NUMBER:
            add(bind(f, *args, **{name: value}), TypeError, name, "", POSITIVE)

    for f in with_vectors.values():
        positive("eps", f, W, U)
    positive("scale", F.spectral_normalize, W, U)
    positive("scale", F.spectral_bjorck, W, U)
    positive("eps_bjorck", F.spectral_bjorck, W, U)
    positive("eps", F.bjorck, W)
    positive("tol", F.orthogonalize, W)
    positive("scale", F.orthogonalize, W)
    positive("eps", F.frobenius_normalize, W)
    positive("scale", F.frobenius_normalize, W)
    positive("tol", F.foreach_orthogonalize, [W])
    for f, args in ((F.bjorck, (W,)), (F.spectral_bjorck, (W, U))):
        for value in (0, 0.0, -0.1, 0.51, 2, math.nan, math.inf):
            add(bind(f, *args, beta=value), ValueError, "beta", value, r"\(0, 0.5\]")
        for value in NO_NUMBER:
            add(bind(f, *args, beta=value), TypeError, "beta", "", r"\(0, 0.5\]")
        add(bind(f, *args, max_iterations=-1), ValueError, "max_iterations", -1, ">= 0")
        add(bind(f, *args, max_iterations=1.0), TypeError, "max_iterations", 1.0, ">= 0")
    add(bind(F.spectral_norm_bound, W, squarings=-1), ValueError, "squarings", -1, ">= 0")
    add(bind(F.spectral_norm_bound, W, squarings=1.5), TypeError, "squarings", 1.5, ">= 0")
    for value in ("fast", None, 1, ["exact"]):
        allowed = "'exact', 'tangent'"
        add(bind(F.orthogonalize, W, backward=value), ValueError, "backward", repr(value), allowed)
        add(
            bind(F.foreach_orthogonalize, [W], backward=value),
            ValueError,
            "backward",
            repr(value),
            allowed,
        )
    for value in (2, -3, (0, 2)):
        shown = value[1] if isinstance(value, tuple) else value
        add(bind(F.frobenius_normalize, W, value), ValueError, "dim", shown, r"\[-2, 1\]")
    for value in (1.0, "0", True, (0, None)):
        add(bind(F.frobenius_normalize, W, value), TypeError, "dim", "", r"\[-2, 1\]")
    add(bind(F.frobenius_normalize, W, ()), ValueError, "dim", "none", "at least one")
    add(bind(F.foreach_orthogonalize, W), TypeError, "weights", "Tensor", "list or tuple")
    add(bind(F.foreach_orthogonalize, [W, W[0]]), ValueError, r"weights\[1\]", "(3,)", "2 dim")
    add(bind(F.foreach_orthogonalize, [W, 1]), TypeError, r"weights\[1\]", "1", "torch.Tensor")
    add(
        bind(F.foreach_orthogonalize, [W], scales=[1.0, 1.0]),
        ValueError,
        "scales",
        "2",
        "1 elements",
    )
    add(bind(F.foreach_orthogonalize, [W], scales=-1), ValueError, "scales", "-1", POSITIVE)
    add(bind(F.foreach_orthogonalize, [W], scales=None), TypeError, "scales", "None", POSITIVE)
    several = F.foreach_spectral_normalize
    add(bind(several, [W], []), ValueError, "us", "0", "1 elements")
    add(bind(several, [W], [U], []), ValueError, "vs", "0", "1 elements")
    add(bind(several, [W, W], [U, U], [V]), ValueError, "vs", "1", "2 elements")
    add(bind(several, [W], U[None]), TypeError, "us", "Tensor", "list or tuple")
    add(bind(several, [W], None), TypeError, "us", "NoneType", "list or tuple")
    add(bind(several, [W, W], [U, U[:3]]), ValueError, r"us\[1\]", "(3,)", r"\(4,\)")
    add(bind(several, [W, W], [U, U], [V, U]), ValueError, r"vs\[1\]", "(4,)", r"\(3,\)")
    add(bind(several, [W, W], [U, U], [V, None]), TypeError, r"vs\[1\]", "None", "torch.Tensor")
    add(bind(several, [], [], n_iterations=-1), ValueError, "n_iterations", -1, ">= 0")
    return [pytest.param(*c, id=f"{i}-{c[2]}-{c[3]}") for i, c in enumerate(cases)]


@pytest.mark.parametrize("call, error, name, shown, allowed", calls())
def test_errors_name_the_argument_its_value_and_what_is_allowed(
    call: Callable[[], Any], error: type[Exception], name: str, shown: str, allowed: str
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    message = str(caught.value)
    assert re.match(rf"{name}\b|{name} ", message), message
    assert shown in message
    assert re.search(allowed, message), message


def test_numbers_of_numpy_are_numbers() -> None:
    out = F.spectral_normalize(
        W, U, n_iterations=np.int64(2), eps=np.float32(1e-6), scale=np.float64(2)
    )
    assert torch.allclose(out[0], F.spectral_normalize(W, U, n_iterations=2, eps=1e-6, scale=2)[0])
    assert torch.equal(F.bjorck(W / 4, beta=np.float64(0.25)), F.bjorck(W / 4, beta=0.25))


# ---- shapes and dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_results_have_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    w, u = W.to(dtype), U.to(dtype)
    for result in (
        F.power_iteration(w, u),
        F.spectral_normalize(w, u),
        F.spectral_bjorck(w, u),
        F.bjorck(w / 4),
        F.orthogonalize(w),
        F.frobenius_normalize(w),
    ):
        assert all(x.dtype is dtype for x in tools.flat(result))
    # u and v may be of another precision: they follow the weight.
    assert F.spectral_normalize(w, U.double(), V.float())[2].dtype is dtype


@pytest.mark.parametrize(
    "shape", [(4, 3), (1, 1), (0, 4, 3), (2, 5, 4, 3), (0, 3), (3, 0)], ids=str
)
def test_shapes_of_the_results(shape: tuple[int, ...]) -> None:
    w = tools.matrix("near", shape).float().requires_grad_()
    u = torch.ones(shape[:-1])
    sigma, left, right = F.power_iteration(w, u)
    assert sigma.shape == shape[:-2] and left.shape == shape[:-1]
    assert right.shape == (*shape[:-2], shape[-1])
    for out in (
        F.spectral_normalize(w, u)[0],
        F.spectral_bjorck(w, u)[0],
        F.bjorck(w),
        F.orthogonalize(w),
        F.orthogonalize(w, backward="tangent"),
        F.frobenius_normalize(w),
    ):
        assert out.shape == shape
        w.grad = None
        out.sum().backward()
        assert w.grad is not None and w.grad.shape == shape and w.grad.isfinite().all()
    assert F.spectral_norm_bound(w).shape == shape[:-2]


def test_arguments_are_not_changed_and_results_are_new() -> None:
    u, v, w = U.clone(), V.clone(), W.clone()
    out, _, new_u, new_v = F.spectral_normalize(w, u, v, n_iterations=5)
    new_u.zero_(), new_v.zero_(), out.zero_()
    F.power_iteration(w, u, v, n_iterations=0)[1].zero_()
    F.orthogonalize(w).zero_()
    F.bjorck(w, max_iterations=0).zero_()
    assert torch.equal(u, U) and torch.equal(v, V) and torch.equal(w, W)


def test_any_layout() -> None:
    w = tools.matrix("near", (2, 6, 4)).float()
    u = torch.ones(2, 6)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.spectral_normalize(x, u)[0],
        lambda x: F.spectral_bjorck(x, u)[0],
        F.bjorck,
        F.orthogonalize,
        lambda x: F.frobenius_normalize(x, (0, 2)),
        F.spectral_norm_bound,
    ]
    for layout in tools.LAYOUTS.values():
        for function in functions:
            assert torch.equal(function(layout(w)), function(w))


# ---- dimensions of frobenius_normalize -----------------------------------------------------------


@pytest.mark.parametrize(
    "dim",
    [None, 0, 1, 2, -1, -3, (0,), (1, 2), (2, 1), (0, 2), [0, 1], (-1, 0), (0, 1, 2), (1, 1)],
    ids=str,
)
def test_frobenius_along_dimensions(dim: Any) -> None:
    w = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    dims = tuple(range(3)) if dim is None else (dim,) if isinstance(dim, int) else tuple(set(dim))
    expected = 0.7 * w / w.square().sum(dims, keepdim=True).sqrt()
    found = F.frobenius_normalize(w, dim, scale=0.7)
    assert torch.allclose(found, expected, rtol=1e-13)
    grad = torch.randn_like(found)
    gradients = [torch.autograd.grad(x, w, grad)[0] for x in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-13)


@pytest.mark.parametrize(
    "shape, dim", [((0, 3), 1), ((0, 3), 0), ((3, 0), 1), ((3, 0), None), ((0,), 0)]
)
def test_frobenius_of_nothing(shape: tuple[int, ...], dim: Any) -> None:
    w = torch.zeros(shape, requires_grad=True)
    out = F.frobenius_normalize(w, dim)
    assert out.shape == shape
    out.sum().backward()
    assert w.grad is not None and w.grad.shape == shape


# ---- lists ---------------------------------------------------------------------------------------


def test_foreach_orthogonalize_takes_mixed_weights() -> None:
    """Of several dtypes, convolutions, empty ones; each result as from a call of its own."""
    ws = [
        tools.matrix("near", (8, 8)).float(),
        tools.matrix("near", (6, 18)).reshape(6, 2, 3, 3),
        torch.zeros(0, 4),
        tools.matrix("near", (5, 4)).bfloat16(),
        torch.zeros(4, 0, 3, 3),
    ]
    scales = [1.0, 0.5, 1.0, 2.0, 1.0]
    for backward in ("exact", "tangent"):
        for w in ws:
            w.requires_grad_()
        together = F.foreach_orthogonalize(ws, backward=backward, scales=scales)  # type: ignore[arg-type]
        for w, scale, found in zip(ws, scales, together, strict=True):
            assert found.dtype is w.dtype and found.shape == w.shape
            if not w.numel():
                continue
            one = F.orthogonalize(w.flatten(1), backward=backward, scale=scale)  # type: ignore[arg-type]
            assert torch.allclose(found, one.reshape(w.shape), atol=1e-6)
            grad = torch.randn_like(w)
            pair = [
                torch.autograd.grad(x, w, grad, retain_graph=True)[0]
                for x in (found, one.reshape(w.shape))
            ]
            assert torch.allclose(pair[0].float(), pair[1].float(), atol=1e-4)
    assert F.foreach_orthogonalize([]) == []


def test_many_are_refused_before_any_of_them_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F.normalization.ops, "spectral_normalize")
    with pytest.raises(ValueError, match=r"us\[1\]"):
        F.foreach_spectral_normalize([W, W], [U, V])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_foreach_spectral_normalize_is_one_by_one(dtype: torch.dtype) -> None:
    ws = [
        tools.matrix("near", (8, 6)).to(dtype),
        tools.matrix("near", (4, 18)).to(dtype).reshape(4, 2, 3, 3),
    ]
    us = [tools.unit((8,)).float(), tools.unit((4,)).float()]
    out, sigmas, new_us, new_vs = F.foreach_spectral_normalize(ws, us, n_iterations=3, scales=0.5)
    for i, w in enumerate(ws):
        one = F.spectral_normalize(w.flatten(1), us[i], n_iterations=3, scale=0.5)
        assert torch.equal(out[i].flatten(1), one[0]) and out[i].shape == w.shape
        assert torch.equal(sigmas[i], one[1])
        assert torch.equal(new_us[i], one[2]) and torch.equal(new_vs[i], one[3])
