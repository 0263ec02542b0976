"""Autograd's nodes in C++: what they do is what those in Python do, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn

from lipfuse import _native
from lipfuse.ops import _define, orthogonal_weight, spectral_weight

nodes: Any = _native.nodes
needs_nodes = pytest.mark.skipif(
    nodes is None, reason=f"no nodes for this torch: {_native.no_nodes}"
)

Settings = tuple[Any, ...]
Weight = Callable[..., Tensor]


def python_node(name: str) -> Weight:
    """The node that other versions of torch use."""
    file = {"orthogonal_weight": "orthogonalize", "spectral_weight": "power_iteration"}[name]
    ops: Any = sys.modules[f"lipfuse.ops.{file}"]
    function = {"orthogonalize": "_normalise_weight", "power_iteration": "_advance"}[file]
    return _define.short_cut(name, getattr(ops, function), ops._setup_weight, ops._backward_weight)


PYTHON = {name: python_node(name) for name in ("orthogonal_weight", "spectral_weight")}
NATIVE = {name: getattr(nodes, name, PYTHON[name]) for name in PYTHON}
both = pytest.mark.parametrize("kind", [PYTHON, NATIVE], ids=["Python", "native"])
every_name = pytest.mark.parametrize("name", list(PYTHON))


def settings_of(name: str, weight: Tensor) -> Settings:
    if name == "orthogonal_weight":
        return 1, 1e-4, 1e-3, 0.7, False
    return *vectors(weight), 1, 1e-12


def vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    u, v = tools.start(weight.detach().flatten(1))
    return u.clone(), v.clone()


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=dtype))


# ---- the same numbers ----------------------------------------------------------------------------


def value_and_gradient(call: Weight, weight: Tensor, settings: Settings) -> list[Tensor]:
    out = call(weight, *settings)
    assert out.shape == weight.shape
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad(out, weight, grad)]


@needs_nodes
@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_weights_are_equal(dtype: torch.dtype, tangent: bool) -> None:
    cases = [
        ((5, 5), 1),
        ((7, 4), 1),
        ((4, 7), 0),
        ((2, 3, 6, 4), 0),
        ((6, 2, 3, 3), 1),
        ((6, 2, 3, 3), 2),
        ((6, 2, 5), 3),
        ((4, 2, 3), 2),
    ]
    for shape, groups in cases:
        weight = parameter(*shape, dtype=dtype)
        settings = (groups, 1e-4, 1e-3, 0.7, tangent)
        found = value_and_gradient(nodes.orthogonal_weight, weight, settings)
        expected = value_and_gradient(PYTHON["orthogonal_weight"], weight, settings)
        assert tools.equal_bits(found, expected), (shape, groups)


@needs_nodes
def test_spectral_weights_and_their_vectors_are_equal() -> None:
    for shape in ((5, 5), (7, 4), (6, 2, 3, 3)):
        weight = parameter(*shape)
        results = []
        for call in (nodes.spectral_weight, PYTHON["spectral_weight"]):
            u, v = vectors(weight)
            before = u._version, v._version
            results.append([*value_and_gradient(call, weight, (u, v, 2, 1e-12)), u, v])
            assert u._version > before[0] and v._version > before[1]
        assert tools.equal_bits(*results), shape


@every_name
@both
def test_any_layout_of_weight_and_gradient(kind: dict[str, Weight], name: str) -> None:
    plain = parameter(6, 2, 3, 3)
    last = nn.Parameter(plain.detach().to(memory_format=torch.channels_last))
    grads = []
    for weight in (plain, last):
        out = kind[name](weight, *settings_of(name, weight))
        grads.append(torch.autograd.grad(out.sum(), weight)[0])  # of a single number, expanded
    assert torch.allclose(*grads, atol=1e-6)


@needs_nodes
def test_layers_go_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for weight in (parameter(4, 3), parameter(4, 3, 2, 2)):
        out = orthogonal_weight(weight, 1e-4, 1.0, groups=1)
        assert "OrthogonalWeight" in out.grad_fn.name()  # type: ignore[union-attr]
        out = spectral_weight(weight, *vectors(weight), 1, 1e-12)
        assert "SpectralWeight" in out.grad_fn.name()  # type: ignore[union-attr]


# ---- the same place in the graph -----------------------------------------------------------------


@every_name
@both
def test_changes_before_the_backward_are_an_error(kind: dict[str, Weight], name: str) -> None:
    weight = parameter(4, 3)
    call = lambda: kind[name](weight, *settings_of(name, weight))  # noqa: E731
    out = call()
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        call().mul_(2).sum().backward()


@every_name
@both
def test_a_second_backward_needs_the_graph(kind: dict[str, Weight], name: str) -> None:
    weight = parameter(4, 3)
    out = kind[name](weight, *settings_of(name, weight))
    first = torch.autograd.grad(out.sum(), weight, retain_graph=True)
    assert tools.equal_bits(first, torch.autograd.grad(out.sum(), weight))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.sum().backward()


@both
def test_second_derivatives_are_refused_or_right(kind: dict[str, Weight]) -> None:
    weight = parameter(4, 3, dtype=torch.float64)
    name = "orthogonal_weight"
    out = kind[name](weight, *settings_of(name, weight))
    (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no derivative of its own"):
        grad.sum().backward()

    weight = parameter(4, 3, dtype=torch.float64)
    u, v = vectors(weight)
    for shape in ((4, 3), (4, 3, 1, 1)):
        x = weight.detach().reshape(shape).requires_grad_()
        assert torch.autograd.gradgradcheck(
            lambda w: kind["spectral_weight"](w, u.clone(), v.clone(), 0, 1e-12), x
        )


@every_name
@both
def test_saved_tensors_go_through_hooks(kind: dict[str, Weight], name: str) -> None:
    weight = parameter(6, 3)
    expected = value_and_gradient(kind[name], weight, settings_of(name, weight))
    packed, unpacked = [], []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x.clone()

    def unpack(x: Tensor) -> Tensor:
        unpacked.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        found = value_and_gradient(kind[name], weight, settings_of(name, weight))
    assert tools.equal_bits(found, expected)
    assert len(packed) == len(unpacked) == (4 if name == "orthogonal_weight" else 5)


@every_name
@both
def test_batches_of_gradients(kind: dict[str, Weight], name: str) -> None:
    weight = parameter(4, 3)
    out = kind[name](weight, *settings_of(name, weight))
    grads = torch.randn(3, 4, 3)
    (found,) = torch.autograd.grad(out, weight, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, weight, g, retain_graph=True)[0] for g in grads]
    assert torch.allclose(found, torch.stack(one_by_one), atol=1e-6)


@needs_nodes
@every_name
@both
def test_bad_tensors_are_an_error_without_a_back_trace(kind: dict[str, Weight], name: str) -> None:
    bad = nn.Parameter(torch.randn(4, 3).to(torch.bfloat16))
    settings = settings_of(name, parameter(4, 3))
    with pytest.raises(RuntimeError, match="lipfuse: ") as caught:
        kind[name](bad, *settings)
    assert "frame #" not in str(caught.value)


@every_name
@both
def test_threads_do_not_wait_for_each_other(kind: dict[str, Weight], name: str) -> None:
    weights = [parameter(24, 24) for _ in range(3)]
    expected = [value_and_gradient(kind[name], w, settings_of(name, w)) for w in weights]
    found: dict[int, list[Tensor]] = {}

    def run(i: int) -> None:
        for _ in range(20):
            settings = settings_of(name, weights[i])
            found[i] = value_and_gradient(kind[name], weights[i], settings)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        assert tools.equal_bits(found[i], expected[i])


# ---- which are used ------------------------------------------------------------------------------


@needs_nodes
def test_those_of_another_torch_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "nodes", None)
    monkeypatch.setattr(_native, "no_nodes", "")
    monkeypatch.setattr(_native, "torch", SimpleNamespace(__version__="2.12.9+cpu"))
    _native._load_nodes()
    assert _native.nodes is None and "was built for torch" in _native.no_nodes
    monkeypatch.setattr(_native, "torch", torch)
    _native._load_nodes()
    assert _native.nodes is nodes and _native.no_nodes == ""


def test_they_can_be_switched_off() -> None:
    code = "from lipfuse import _native; print(_native.loaded, _native.nodes, _native.no_nodes)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LIPFUSE_NODES": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = "True None LIPFUSE_NODES=0" if _native.loaded else "False None no native library"
    assert done.stdout.strip() == wanted


@pytest.mark.skipif(not _native.loaded, reason="no native library")
def test_a_build_for_this_torch_has_them() -> None:
    """Whoever builds here gets them; a wheel has those of one version."""
    assert nodes is not None or "built for torch" in _native.no_nodes or "=0" in _native.no_nodes
