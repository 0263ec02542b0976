"""Operators under autocast, half precision, torch.func and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tools
import torch
from op_cases import CASES, Case
from torch import Tensor
from torch.autograd import forward_ad

import lipfuse.functional as F
from lipfuse import _native, nn, ops

Function = Callable[..., Tensor]

U = tools.unit((5,), 1)
BATCH = 3


def _vector(w: Tensor) -> Tensor:
    return U.to(torch.float64 if w.dtype is torch.float64 else torch.float32)


FUNCTIONS: dict[str, Function] = {
    "power_iteration": lambda w: F.power_iteration(w, _vector(w), n_iterations=3)[0] * 2,
    "spectral_normalize": lambda w: F.spectral_normalize(w, _vector(w), n_iterations=3)[0],
    "bjorck": lambda w: F.bjorck(w / 3),
    "spectral_bjorck": lambda w: F.spectral_bjorck(w, _vector(w), n_iterations=3)[0],
    "orthogonalize": lambda w: F.orthogonalize(w, tol=1e-5),
    "orthogonalize tangent": lambda w: F.orthogonalize(w, tol=1e-5, backward="tangent"),
    "frobenius_normalize": lambda w: F.frobenius_normalize(w, 1),
    "spectral_norm_bound": lambda w: F.spectral_norm_bound(w) * w.float().sum(),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
differentiable_twice = ["power_iteration", "spectral_normalize", "frobenius_normalize"]


def weight(seed: int = 0) -> Tensor:
    return tools.matrix("near", (5, 4), seed).float()


def eager_gradient(function: Function, w: Tensor, grad: Tensor) -> Tensor:
    x = w.detach().clone().requires_grad_()
    out = function(x)
    return torch.autograd.grad(out, x, grad.expand_as(out).to(out.dtype))[0]


# ---- precision -----------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    """Normalised in half precision, a weight would be 0.4 % too large."""
    function, w, grad = FUNCTIONS[name], weight(), torch.randn(5, 4)
    with torch.autocast("cpu", dtype):
        inside = function(w)
        inside_grad = eager_gradient(function, w, grad if inside.dim() else grad[0, 0])
    outside = function(w)
    assert inside.dtype is torch.float32
    assert torch.equal(inside, outside)
    outside_grad = eager_gradient(function, w, grad if outside.dim() else grad[0, 0])
    # The factors around the operators, not the operators, may round in another order.
    assert torch.allclose(inside_grad, outside_grad, atol=1e-6)


@every_function
def test_autocast_leaves_float64_alone(name: str) -> None:
    w = weight().double()
    with torch.autocast("cpu", torch.bfloat16):
        inside = FUNCTIONS[name](w)
    if name == "spectral_norm_bound":
        assert torch.allclose(inside.double(), FUNCTIONS[name](w).double())
    else:
        assert inside.dtype is torch.float64
        assert torch.equal(inside, FUNCTIONS[name](w))


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    if name == "bjorck":
        functions: tuple[Function, Function] = (F.bjorck, F.bjorck)
        w = (weight() / 3).to(dtype)
    else:
        functions = (FUNCTIONS[name], FUNCTIONS[name])
        w = weight().to(dtype)
    half, full = functions[0](w), functions[1](w.float())
    if name == "power_iteration":  # sigma is rounded before the factor of 2
        assert half.dtype is dtype
        assert torch.allclose(half.float(), full, rtol=float(torch.finfo(dtype).eps))
    elif name == "spectral_norm_bound":
        assert half.dtype is torch.float32
        assert torch.equal(half, full)
    else:
        assert half.dtype is dtype
        assert torch.equal(half, full.to(dtype))
    x = w.clone().requires_grad_()
    functions[0](x).sum().backward()
    assert x.grad is not None and x.grad.dtype is dtype and x.grad.isfinite().all()


# ---- torch.func ----------------------------------------------------------------------------------


@every_function
def test_func_grad(name: str) -> None:
    function, w = FUNCTIONS[name], weight()
    grad = torch.randn(5, 4)

    def loss(x: Tensor) -> Tensor:
        out = function(x)
        return (out * (grad if out.dim() else grad[0, 0])).sum()

    found = torch.func.grad(loss)(w)
    out = function(w)
    expected = eager_gradient(function, w, grad if out.dim() else grad[0, 0])
    assert torch.allclose(found, expected, atol=1e-6)


@every_function
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap(name: str, dim: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Without torch's warning that it falls back to a loop."""
    function = FUNCTIONS[name]
    batch = torch.stack([weight(i) for i in range(BATCH)])
    found = torch.vmap(function, in_dims=dim)(batch.movedim(0, dim))
    assert "performance drop" not in capfd.readouterr().err
    expected = torch.stack([function(w) for w in batch])
    assert torch.allclose(found, expected, atol=1e-6)


@every_function
def test_vmap_of_gradients(name: str) -> None:
    """Per-sample gradients, an ensemble's gradients."""
    function = FUNCTIONS[name]
    batch = torch.stack([weight(i) for i in range(BATCH)])
    grad = torch.randn(5, 4)

    def loss(x: Tensor) -> Tensor:
        out = function(x)
        return (out * (grad if out.dim() else grad[0, 0])).sum()

    found = torch.vmap(torch.func.grad(loss))(batch)
    expected = torch.stack([torch.func.grad(loss)(w) for w in batch])
    assert torch.allclose(found, expected, atol=1e-6)
    # The other way about: a gradient of a sum over the batch.
    found = torch.func.grad(lambda x: torch.vmap(loss)(x).sum())(batch)
    assert torch.allclose(found, expected, atol=1e-6)
    # And with ordinary autograd around vmap.
    leaf = batch.clone().requires_grad_()
    torch.vmap(loss)(leaf).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, expected, atol=1e-6)


def test_vmap_over_the_vectors_too() -> None:
    batch = torch.stack([weight(i) for i in range(BATCH)])
    us = tools.unit((BATCH, 5), 3).float()
    found = torch.vmap(lambda w, u: F.spectral_normalize(w, u, n_iterations=2))(batch, us)
    expected = F.spectral_normalize(batch, us, n_iterations=2)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    # One weight, many starts.
    found = torch.vmap(lambda u: F.power_iteration(batch[0], u)[0])(us)
    expected = torch.stack([F.power_iteration(batch[0], u)[0] for u in us])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", differentiable_twice)
def test_func_hessian_vector_product(name: str) -> None:
    function, w = FUNCTIONS[name], weight().double()
    direction = tools.matrix("gaussian", (5, 4), 3)

    def loss(x: Tensor) -> Tensor:
        return function(x).tanh().square().sum()

    found = torch.func.grad(lambda x: (torch.func.grad(loss)(x) * direction).sum())(w)
    x = w.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (expected,) = torch.autograd.grad((first * direction).sum(), x)
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize(
    "name", sorted(set(FUNCTIONS) - set(differentiable_twice) - {"spectral_norm_bound"})
)
def test_func_refuses_second_derivatives_in_words(name: str) -> None:
    def loss(x: Tensor) -> Tensor:
        return FUNCTIONS[name](x).tanh().square().sum()

    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(weight())


def test_jacobians() -> None:
    w = tools.matrix("near", (4, 3))

    def function(x: Tensor) -> Tensor:
        return F.orthogonalize(x, tol=1e-9)

    by_func = torch.func.jacrev(function)(w)
    by_autograd = torch.autograd.functional.jacobian(function, w)
    assert torch.allclose(by_func, by_autograd, atol=1e-9)


# ---- torch.compile -------------------------------------------------------------------------------


def run(function: Function, w: Tensor) -> tuple[Tensor, Tensor]:
    x = w.detach().clone().requires_grad_()
    out = function(x)
    grad = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@every_function
def test_compiles_without_a_graph_break(name: str) -> None:
    """Forward and backward, with the values of eager code."""
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    for seed in range(2):
        for found, expected in zip(
            run(compiled, weight(seed)), run(FUNCTIONS[name], weight(seed)), strict=True
        ):
            assert torch.allclose(found, expected, atol=1e-6)


def test_compiles_with_inductor_for_changing_sizes() -> None:
    """All of them in one graph, and one graph for all sizes."""
    torch._dynamo.reset()

    def together(w: Tensor) -> Tensor:
        # Sizes are symbols here, so u cannot be a constant.
        u = torch.ones(w.shape[0])
        u = u / u.norm()
        results: list[Any] = [
            F.power_iteration(w, u, n_iterations=2)[0],
            F.spectral_normalize(w, u, n_iterations=2)[0],
            F.bjorck(w / 3),
            F.spectral_bjorck(w, u, n_iterations=2)[0],
            F.orthogonalize(w, tol=1e-5),
            F.frobenius_normalize(w, 1),
        ]
        return torch.stack([r.tanh().sum() for r in results])

    compiled = torch.compile(together, fullgraph=True, dynamic=True)
    for shape in [(5, 4), (9, 7), (12, 8)]:
        w = tools.matrix("near", shape).float()
        with torch.compiler.set_stance("default" if shape == (5, 4) else "fail_on_recompile"):
            found = run(compiled, w)
        for a, b in zip(found, run(together, w), strict=True):
            assert torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "spectral_norm_bound"])
def test_a_tensor_that_a_transform_left_behind(name: str) -> None:
    """It is what it wraps, and goes back to it."""
    w, kept = weight().requires_grad_(), []

    def keeps(x: Tensor) -> Tensor:
        kept.append(x)
        return x.sum()

    torch.func.grad(keeps)(w)
    assert kept[0] is not w
    found, expected = FUNCTIONS[name](kept[0]), FUNCTIONS[name](w)
    assert torch.equal(found, expected)
    for result in (found, expected):
        result.sum().backward()
    gradients = torch.autograd.grad(FUNCTIONS[name](w).sum(), w)
    assert w.grad is not None and torch.allclose(w.grad, 2 * gradients[0])


def test_export_of_a_normalisation() -> None:
    """torch.export keeps the operator in its graph."""

    class Normalise(torch.nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return F.orthogonalize(w)

    program = torch.export.export(Normalise(), (weight(),))
    targets = [str(n.target) for n in program.graph.nodes]
    assert any("lipfuse.orthogonalize" in t for t in targets)
    assert torch.equal(program.module()(weight(2)), F.orthogonalize(weight(2)))


def test_operators_run_on_meta_tensors() -> None:
    w = torch.empty(5, 4, device="meta", requires_grad=True)
    out, info = ops.orthogonalize(w, 1e-4, 1.0)
    assert out.device.type == "meta" and out.shape == (5, 4) and info.shape == (5,)


# ---- forward mode --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("trained", [False, True], ids=["alone", "with reverse mode"])
def test_forward_mode_is_refused_in_words(case: Case, trained: bool) -> None:
    """Nobody gets the result without its tangent, which would be a derivative of zero."""
    if _native.nodes is None and case.name.startswith("foreach"):
        pytest.skip("torch registers operators of lists itself; functions refuse before")

    def dual(x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(map(dual, x))
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
            return x
        return forward_ad.make_dual(x.detach().requires_grad_(trained), torch.ones_like(x))

    arguments = case.arguments(tools.matrix("near", (4, 4)), torch.float64)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"forward|jvp"):
        case.op(*dual(arguments))


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "spectral_norm_bound"])  # a constant
@pytest.mark.parametrize("trained", [False, True], ids=["alone", "with reverse mode"])
def test_functions_refuse_forward_mode(name: str, trained: bool) -> None:
    with forward_ad.dual_level():
        w = forward_ad.make_dual(weight().requires_grad_(trained), torch.ones(5, 4))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"forward|jvp"):
            FUNCTIONS[name](w)
        with pytest.raises((NotImplementedError, RuntimeError), match=r"forward|jvp"):
            F.foreach_orthogonalize([w])


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in differentiable_twice])
def test_incoming_gradients_with_a_tangent_are_refused(name: str) -> None:
    """Of a graph that was made before: its backward is below autograd, where tangents are lost."""
    w = weight().requires_grad_()
    functions = [FUNCTIONS[name], lambda x: F.foreach_orthogonalize([x])[0]]
    for out in [function(w) for function in functions if name != "spectral_norm_bound"]:
        with forward_ad.dual_level():
            grad = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
            with pytest.raises((NotImplementedError, RuntimeError), match=r"forward|jvp"):
                torch.autograd.grad(out, w, grad)


def test_layers_refuse_forward_mode_of_their_parameters() -> None:
    layer = nn.SpectralLinear(4, 4)
    with forward_ad.dual_level():
        w = forward_ad.make_dual(torch.eye(4), torch.ones(4, 4))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"forward|jvp"):
            torch.func.functional_call(
                layer, {"parametrizations.weight.original": w}, (torch.ones(2, 4),)
            )


def test_inputs_of_a_layer_may_be_dual() -> None:
    """Its weight is a constant then, and the Jacobian of a network is within its constant."""
    model = nn.Sequential(nn.SpectralLinear(4, 6), nn.GroupSort2(), nn.FrobeniusLinear(6, 1))
    x = torch.randn(3, 4)
    with forward_ad.dual_level():
        out = model(forward_ad.make_dual(x, torch.ones_like(x)))
        tangent = forward_ad.unpack_dual(out).tangent
    assert tangent is not None
    (grad,) = torch.autograd.grad(model(x.requires_grad_()).sum(), x)
    assert torch.allclose(tangent.squeeze(1), grad.sum(1), atol=1e-5)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            found = torch.func.jvp(model, (x.detach(),), (torch.ones_like(x),))[1]
        assert torch.allclose(found, tangent, atol=1e-5)
