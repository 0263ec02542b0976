"""Autograd's nodes in C++: what they do is what those in Python do, to the last bit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn

import lipfuse.nn as lnn
from lipfuse import _native
from lipfuse.ops import _define
from lipfuse.parametrizations import spectral_norm

nodes: Any = _native.nodes
orthogonalize: Any = sys.modules["lipfuse.ops.orthogonalize"]
needs_nodes = pytest.mark.skipif(
    nodes is None, reason=f"no nodes for this torch: {_native.no_nodes}"
)

Settings = tuple[Any, ...]
Node = Callable[..., Tensor]


def python_node(name: str, file: str, function: str, setup: str = "_setup_weight") -> Node:
    """The node that other versions of torch use."""
    ops: Any = sys.modules[f"lipfuse.ops.{file}"]
    rule = getattr(ops, function), getattr(ops, setup), ops._backward_weight
    return _define.short_cut(name, *rule)


def general(file: str, function: str) -> Node:
    ops: Any = sys.modules[f"lipfuse.ops.{file}"]
    found: Node = getattr(ops, function)
    return found


PYTHON: dict[str, Node] = {
    "orthogonal_weight": python_node("orthogonal_weight", "orthogonalize", "_normalise_weight"),
    "spectral_weight": python_node("spectral_weight", "power_iteration", "_advance"),
    "frobenius_weight": python_node(
        "frobenius_weight", "frobenius_normalize", "_normalize_weight", "_setup"
    ),
    "sort_pairs": general("sort_pairs", "_sorted_pairs"),
    "max_min": general("max_min", "_parts"),
    "l2_norm_pool2d": general("l2_norm_pool2d", "_call"),
    "scaled_avg_pool2d": general("scaled_avg_pool2d", "_call"),
}
NATIVE = {name: getattr(nodes, name, PYTHON[name]) for name in PYTHON}
SAVED = {
    "orthogonal_weight": 4,
    "spectral_weight": 5,
    "frobenius_weight": 3,
    "sort_pairs": 1,
    "max_min": 1,
    "l2_norm_pool2d": 1,
    "scaled_avg_pool2d": 0,
}
both = pytest.mark.parametrize("kind", [PYTHON, NATIVE], ids=["Python", "native"])
every_name = pytest.mark.parametrize("name", list(PYTHON))


def settings_of(name: str, input: Tensor) -> Settings:
    if name == "orthogonal_weight":
        return 1, 1e-4, 1e-3, 0.7, False
    if name == "spectral_weight":
        return *vectors(input), 1, 1e-12
    if name == "frobenius_weight":
        return 1e-12, 0.7, input.dim() - 1
    if name in ("sort_pairs", "max_min"):
        return 1 - input.dim(), 0.7
    return 2, 2, True, 0.7


def vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    u, v = tools.start(weight.detach().flatten(1))
    return u.clone(), v.clone()


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=dtype))


# ---- the same numbers ----------------------------------------------------------------------------


def value_and_gradient(call: Node, input: Tensor, settings: Settings) -> list[Tensor]:
    out = call(input, *settings)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out, *torch.autograd.grad(out, input, grad)]


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
        assert found[0].shape == weight.shape
        assert tools.equal_bits(found, expected), (shape, groups)


@needs_nodes
@pytest.mark.parametrize("tangent", [False, True])
def test_lists_of_orthogonal_weights_are_equal(tangent: bool) -> None:
    weights = [parameter(*shape) for shape in ((5, 5), (6, 2, 3, 3), (7, 4), (4, 7))]
    arguments = [1, 2, 1, 1], [1.0, 0.5, 2.0, 1.0], 1e-4, 1e-3, tangent
    results = []
    for call in (nodes.orthogonal_weights, orthogonalize._foreach_by_python):
        out = call(weights, *arguments)
        assert [o.shape for o in out] == [w.shape for w in weights]
        grads = [torch.randn(o.shape, generator=torch.Generator().manual_seed(2)) for o in out]
        results.append([*out, *torch.autograd.grad(out, weights, grads)])
        # Some of them alone: the others have no gradient, not one of zeros.
        out = call(weights, *arguments)
        some = torch.autograd.grad(out[1:3], weights, grads[1:3], allow_unused=True)
        assert [g is None for g in some] == [True, False, False, True]
        results[-1] += [g for g in some if g is not None]
        out = call(weights, *arguments)
        (grad,) = torch.autograd.grad(out[0].square().sum(), weights[:1], create_graph=True)
        with pytest.raises(NotImplementedError, match="has no derivative of its own"):
            grad.sum().backward()
    assert tools.equal_bits(*results)


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


@needs_nodes
def test_frobenius_weights_are_equal() -> None:
    for shape in ((5, 3), (6, 2, 3, 3)):
        for dims in range(1, len(shape) + 1):
            weight = parameter(*shape)
            settings = (1e-12, 0.7, dims)
            found = value_and_gradient(nodes.frobenius_weight, weight, settings)
            expected = value_and_gradient(PYTHON["frobenius_weight"], weight, settings)
            assert tools.equal_bits(found, expected), (shape, dims)


@needs_nodes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_activations_and_pools_are_equal(dtype: torch.dtype) -> None:
    for shape in ((4, 6), (3, 4, 5, 7)):
        x = torch.randn(shape).to(dtype).requires_grad_()
        last = x.detach().clone()
        if len(shape) == 4:
            last = last.to(memory_format=torch.channels_last)
        settings: list[tuple[str, Settings]] = [
            (name, (dim, scale))
            for name in ("sort_pairs", "max_min")
            for dim, scale in ((1 - len(shape), 1.0), (1 - len(shape), 0.3))
        ]
        if len(shape) == 4:
            settings += [
                (name, (*kernel, ceil_mode, scale))
                for name in ("l2_norm_pool2d", "scaled_avg_pool2d")
                for kernel, ceil_mode, scale in (((2, 2), False, 1.0), ((3, 2), True, 0.3))
            ]
        for name, rest in settings:
            for input in (x, last.requires_grad_()):
                found = value_and_gradient(NATIVE[name], input, rest)
                expected = value_and_gradient(PYTHON[name], input, rest)
                assert tools.equal_bits(found, expected), (name, shape, rest)
                strides = [[t.stride() for t in result] for result in (found, expected)]
                assert strides[0] == strides[1]


@every_name
@both
def test_any_layout_of_input_and_gradient(kind: dict[str, Node], name: str) -> None:
    plain = parameter(6, 2, 4, 4)
    last = nn.Parameter(plain.detach().to(memory_format=torch.channels_last))
    grads = []
    for input in (plain, last):
        out = kind[name](input, *settings_of(name, input))
        grads.append(torch.autograd.grad(out.sum(), input)[0])  # of a single number, expanded
    assert torch.allclose(*grads, atol=1e-6)


@needs_nodes
@every_name
def test_empty_tensors(name: str) -> None:
    for shape in ((0, 2, 4, 4), (4, 0, 4, 4), (0, 0, 2, 2)):
        outcomes = []
        for kind in (PYTHON, NATIVE):
            input = parameter(*shape)
            try:
                settings = settings_of(name, input)
                outcomes.append([t.shape for t in value_and_gradient(kind[name], input, settings)])
            except RuntimeError as error:
                outcomes.append([str(error)])
        assert outcomes[0] == outcomes[1], shape


# ---- the same place in the graph -----------------------------------------------------------------


@every_name
@both
def test_changes_before_the_backward_are_an_error(kind: dict[str, Node], name: str) -> None:
    input = parameter(4, 2, 4, 4)
    settings = settings_of(name, input)
    out = kind[name](input, *settings)
    with torch.no_grad():
        input.mul_(2)
    if name in ("sort_pairs", "max_min", "scaled_avg_pool2d"):  # they do not keep it
        out.sum().backward()
        kind[name](input, *settings).mul_(2).sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    if name != "l2_norm_pool2d":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kind[name](input, *settings).mul_(2).sum().backward()


@every_name
@both
def test_a_second_backward_needs_the_graph(kind: dict[str, Node], name: str) -> None:
    input = parameter(4, 2, 4, 4)
    out = kind[name](input, *settings_of(name, input)).sum()
    first = torch.autograd.grad(out, input, retain_graph=True)
    assert tools.equal_bits(first, torch.autograd.grad(out, input))
    if SAVED[name]:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            out.backward()


@both
def test_second_derivatives_are_refused_where_there_are_none(kind: dict[str, Node]) -> None:
    weight = parameter(4, 3, dtype=torch.float64)
    name = "orthogonal_weight"
    out = kind[name](weight, *settings_of(name, weight))
    (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no derivative of its own"):
        grad.sum().backward()


@pytest.mark.parametrize("name", [name for name in PYTHON if name != "orthogonal_weight"])
@both
def test_second_derivatives_are_right_elsewhere(kind: dict[str, Node], name: str) -> None:
    shapes = ((4, 2, 3, 3), (4, 6)) if "pool" not in name else ((2, 2, 3, 4),)
    for shape in shapes:
        input = parameter(*shape, dtype=torch.float64)
        settings = settings_of(name, input)

        def call(x: Tensor, settings: Settings = settings) -> Tensor:
            if name == "spectral_weight":
                u, v, _, eps = settings
                settings = u.clone(), v.clone(), 0, eps
            return kind[name](x, *settings)

        assert torch.autograd.gradcheck(call, input)
        assert torch.autograd.gradgradcheck(call, input)


@every_name
@both
def test_saved_tensors_go_through_hooks(kind: dict[str, Node], name: str) -> None:
    input = parameter(6, 2, 4, 4)
    expected = value_and_gradient(kind[name], input, settings_of(name, input))
    packed, unpacked = [], []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x.clone()

    def unpack(x: Tensor) -> Tensor:
        unpacked.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        found = value_and_gradient(kind[name], input, settings_of(name, input))
    assert tools.equal_bits(found, expected)
    assert len(packed) == len(unpacked) == SAVED[name]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="freed memory is kept")
@pytest.mark.parametrize("name", [name for name, saved in SAVED.items() if saved])
@both
def test_hooks_that_raise_leave_nothing_behind(kind: dict[str, Node], name: str) -> None:
    """As in a checkpoint, whose recomputation ends where all is there that it has to save."""
    input = parameter(256, 4, 16, 16)  # 1 MiB
    settings = settings_of(name, input)

    def refuse(_: Tensor) -> Tensor:
        raise ValueError("enough")

    def attempt(times: int) -> None:
        with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
            for _ in range(times):
                with pytest.raises(ValueError, match="enough"):
                    kind[name](input, *settings)

    attempt(5)
    gc.collect()
    before = resident()
    attempt(30)
    gc.collect()
    assert resident() - before < 12 << 20


@every_name
@both
def test_batches_of_gradients(kind: dict[str, Node], name: str) -> None:
    input = parameter(4, 2, 4, 4)
    out = kind[name](input, *settings_of(name, input))
    grads = torch.randn(3, *out.shape)
    (found,) = torch.autograd.grad(out, input, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, input, g, retain_graph=True)[0] for g in grads]
    assert torch.allclose(found, torch.stack(one_by_one), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in PYTHON if "weight" in name])
def test_forward_mode_is_refused_alike(name: str) -> None:
    import torch.autograd.forward_ad as fw

    layer: Any = {
        "orthogonal_weight": lnn.SpectralLinear,
        "spectral_weight": lambda *size: spectral_norm(nn.Linear(*size)),
        "frobenius_weight": lnn.FrobeniusLinear,
    }[name](4, 3)
    step, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    with fw.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        step(fw.make_dual(original, torch.ones_like(original)))


@needs_nodes
@every_name
@both
def test_bad_tensors_are_an_error_without_a_back_trace(kind: dict[str, Node], name: str) -> None:
    settings = settings_of(name, parameter(4, 3))
    with pytest.raises(RuntimeError, match="lipfuse: ") as caught:
        kind[name](nn.Parameter(torch.randn(4, 3) * 1j), *settings)
    assert "frame #" not in str(caught.value)


@every_name
@both
def test_threads_do_not_wait_for_each_other(kind: dict[str, Node], name: str) -> None:
    inputs = [parameter(8, 2, 4, 4) for _ in range(3)]
    settings = [[settings_of(name, x) for x in inputs] for _ in range(20)]
    expected = [value_and_gradient(kind[name], x, settings_of(name, x)) for x in inputs]
    found: dict[int, list[Tensor]] = {}

    def run(i: int) -> None:
        for each in settings:
            found[i] = value_and_gradient(kind[name], inputs[i], each[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        assert tools.equal_bits(found[i], expected[i])


# ---- which are used ------------------------------------------------------------------------------


@needs_nodes
def test_layers_go_by_them() -> None:
    x = torch.randn(2, 2, 6, 6, requires_grad=True)
    for name, out in (
        ("OrthogonalWeight", lnn.SpectralLinear(3, 4).weight),
        ("OrthogonalWeight", lnn.SpectralConv2d(4, 4, 3, groups=2).weight),
        ("SpectralWeight", spectral_norm(nn.Conv2d(2, 4, 3)).weight),
        ("FrobeniusWeight", lnn.FrobeniusConv2d(2, 4, 3).weight),
        ("SortPairs", lnn.GroupSort2()(x)),
        ("MaxMin", lnn.MaxMin()(x)),
        ("L2NormPool2d", lnn.ScaledL2NormPool2d(2)(x)),
        ("ScaledAvgPool2d", lnn.ScaledAvgPool2d(2)(x)),
    ):
        assert name in out.grad_fn.name(), name


def frames_of_ours(call: Callable[[], Any]) -> list[str]:
    """The functions of this package that Python runs meanwhile."""
    ours, found = str(Path(lnn.__file__).parent.parent), []

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            found.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@needs_nodes
def test_operators_reach_python_only_for_a_gradient() -> None:
    """Compiled code calls operators, past the nodes, and wants none."""
    op = torch.ops.lipfuse
    w, x = torch.randn(4, 4), torch.randn(2, 4)
    scales, groups = [1.0, 1.0], [1, 1]
    q, saved, info = op.orthogonalize(w, 1e-4, 1.0, True)
    qs, kept, infos = op.foreach_orthogonalize([w, w], groups, scales, 1e-4, True)
    swapped = op.sort_pairs(x, 1, 1.0, True)[1]
    calls: dict[str, Callable[..., Any]] = {
        "orthogonalize": lambda w: op.orthogonalize(w, 1e-4, 1.0, True)[0],
        "its backward": lambda g: op.orthogonalize_backward(g, w, q, saved, info, 1e-4, 1.0, False),
        "sort_pairs": lambda w: op.sort_pairs(w, 1, 1.0, True)[0],
        "sort_pairs_backward": lambda g: op.sort_pairs_backward(g[:2], swapped, 1, 1.0),
        "several": lambda w: op.foreach_orthogonalize([w, w], groups, scales, 1e-4, True)[0][1],
        "their backward": lambda g: op.foreach_orthogonalize_backward(
            [g, g], [w, w], qs, kept, infos, groups, scales, 1e-4, False
        )[0],
    }
    for name, call in calls.items():
        given = torch.randn(4, 4)
        assert frames_of_ours(lambda: call(given)) == [], name  # noqa: B023
        given.requires_grad_()
        with torch.no_grad():
            assert frames_of_ours(lambda: call(given)) == [], name  # noqa: B023
        assert call(given).requires_grad, name
    # Lists among which one tensor wants a gradient; others come first.
    one = torch.randn(4, 4, requires_grad=True)
    assert op.foreach_orthogonalize([w, one], groups, scales, 1e-4, True)[0][1].requires_grad


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


def test_which_builds_of_torch_are_the_same() -> None:
    for a, b, same in (
        ("2.13.0+cpu", "2.13.0+cu130", True),
        ("2.13.0", "2.13.0+rocm7.1", True),
        ("2.13.0+cpu", "2.13.1+cpu", False),
        ("2.13.0a0+git1111111", "2.13.0a0+git2222222", False),
        ("2.13.0a0+git1111111", "2.13.0a0+git1111111", True),
        ("2.13.0", "2.13.0a0+git1111111", False),
    ):
        assert _native.same_torch(a, b) is same, (a, b)


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
    assert nodes is not None or "was built for" in _native.no_nodes or "=0" in _native.no_nodes
