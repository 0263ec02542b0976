"""torch.compile and torch.export of whole networks: one graph, the losses of eager code."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from typing import Any

import every_layer
import pytest
import torch
from every_layer import METHODS
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn
from lipfuse import _native, ops

SIZE = 6  # of the images; batches have other sizes, so that no two symbols are taken for one


def network(method: str) -> nn.Module:
    settings = METHODS[method]
    return lnn.Sequential(
        lnn.SpectralConv2d(1, 4, 3, stride=2, padding=1, groups=1, **settings),
        lnn.GroupSort2(),
        nn.Flatten(),
        lnn.SpectralLinear(36, 8, **settings),
        lnn.FrobeniusLinear(8, 3, disjoint_neurons=False),
        k_coef_lip=2.0,
    )


def train(model: nn.Module, forward: Any, batches: list[int]) -> list[float]:
    """The losses of a step on each batch; from the second on, nothing may be compiled anew."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step, count in enumerate(batches):
        x = torch.randn(count, 1, SIZE, SIZE, generator=generator)
        y = torch.randint(0, 3, (count,), generator=generator)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            loss = nn.functional.cross_entropy(forward(x) * 4, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_trains_alike(method: str, backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = network(method)
    twin = copy.deepcopy(model)
    batches = [5, 5, 7, 11, 4, 5]
    expected = train(model, model, batches)
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend=backend)
    found = train(twin, compiled, batches)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected[0] != expected[1]
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)
    # And in evaluation.
    x = torch.randn(5, 1, SIZE, SIZE)
    model.eval(), twin.eval()
    twin.load_state_dict(model.state_dict())
    assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_in_one_graph_trains_like_eager_code(method: str) -> None:
    assert_trains_alike(method, "aot_eager")


def test_a_network_trains_under_inductor() -> None:
    assert_trains_alike("polar", "inductor")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_export(method: str, training: bool) -> None:
    """In training mode, too: deel-torchlip breaks the graph two or three times a layer."""
    model = network(method).train(training)
    x = torch.randn(5, 1, SIZE, SIZE)
    twin = copy.deepcopy(model)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(twin, (x,), dynamic_shapes=({0: batch},))
    exported = program.module()
    for count in (5, 3):
        y = torch.randn(count, 1, SIZE, SIZE)
        assert torch.allclose(exported(y), model(y), atol=1e-5)


def test_every_layer_is_in_the_table() -> None:
    missing = [k.__name__ for k in every_layer.types_of_layers() if not every_layer.entered(k)]
    assert not missing


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_in_one_graph_for_all_batches(training: bool) -> None:
    """Values and gradients of eager code, and nothing compiled anew from batch to batch."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = every_layer.Together().train(training)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, count in enumerate((5, 7, 11)):
        batch = every_layer.inputs(count, step)
        with (
            torch.set_grad_enabled(training),
            torch.compiler.set_stance("fail_on_recompile" if step else "default"),
        ):
            found, expected = compiled(*batch), model(*batch)
        every_layer.assert_same(found, expected, 1e-4)
        if training:
            for outputs in (found, expected):
                sum(x.tanh().sum() for x in outputs).backward()
        with torch.no_grad():
            for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
                if training:
                    assert torch.allclose(a.grad, b.grad, rtol=1e-2, atol=1e-3), name
                    a.sub_(a.grad, alpha=0.1)
                    a.grad = b.grad = None
                else:
                    a.mul_(-1.5)
        twin.load_state_dict(model.state_dict())


def test_every_loss_in_one_graph_for_all_batches() -> None:
    torch._dynamo.reset()
    kinds = [getattr(lnn, name) for name in lnn.__all__]
    kinds = [kind for kind in kinds if getattr(kind, "__module__", "") == lnn.HKRLoss.__module__]
    if torch.__version__ < "2.13":  # compiles its own cross_entropy anew for each batch size
        kinds.remove(lnn.TauCrossEntropyLoss)
    needed = {"alpha": 0.5, "tau": 2.0}
    losses = []
    for kind in kinds:
        names = inspect.signature(kind).parameters.values()
        losses.append(kind(**{p.name: needed[p.name] for p in names if p.default is p.empty}))

    def together(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([loss(logits, labels) for loss in losses])

    compiled = torch.compile(together, fullgraph=True, dynamic=True, backend="aot_eager")
    twin = copy.deepcopy(losses)
    for step, count in enumerate((6, 9, 12)):
        logits = torch.randn(count, 3, requires_grad=True)
        labels = torch.zeros(count, 3)
        labels[torch.arange(count), torch.arange(count) % 3] = 1.0
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            found = compiled(logits, labels)
        expected = torch.stack([loss(logits, labels) for loss in twin])
        weights = torch.linspace(1, 2, len(kinds))
        for a, b in zip(
            torch.autograd.grad((found * weights).sum(), logits),
            torch.autograd.grad((expected * weights).sum(), logits),
            strict=True,
        ):
            assert torch.allclose(a, b, atol=1e-6)
        assert torch.allclose(found, expected, atol=1e-6)
    assert len(kinds) >= 11


def test_compiled_inference_computes_a_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew for a changed one; each copy, and each layer of the same shape, for itself."""
    torch._dynamo.reset()
    calls: list[int] = []
    foreach = ops.orthogonalize

    def counted(weight: Tensor, *rest: Any) -> Any:
        calls.append(len(weight))
        return foreach(weight, *rest)

    model: Any = nn.Sequential(lnn.SpectralLinear(6, 6), lnn.SpectralLinear(6, 6)).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="inductor")
        x = torch.randn(3, 6)
        expected = twin(x)
        monkeypatch.setattr(ops, "orthogonalize", counted)
        for _ in range(3):
            assert torch.allclose(compiled(x), expected, atol=1e-6)
        assert len(calls) == 2
        raw = model[0].parametrizations.weight.original
        raw.normal_()
        twin[0].parametrizations.weight.original.copy_(raw)
        assert not torch.allclose(compiled(x), expected, atol=1e-2)
        assert len(calls) == 3
        assert torch.allclose(compiled(x), twin(x), atol=1e-6)
        raw[0, 0] = torch.nan
        with pytest.raises(ValueError, match="must be finite"):
            compiled(x)
    # Where a gradient is wanted, there is one.
    twin_grad = torch.autograd.grad(twin(x).sum(), twin[0].parametrizations.weight.original)[0]
    model.load_state_dict(twin.state_dict())
    (grad,) = torch.autograd.grad(compiled(x).sum(), raw)
    assert torch.allclose(grad, twin_grad, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 8), (2, 6, 4, 3)], ids=str)
def test_compiled_inference_sorts_within_the_compilers_loops(shape: tuple[int, ...]) -> None:
    """Without a gradient torch's operations, with one the kernel: the same values, also for NaN."""
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    sort = lnn.GroupSort2(k_coef_lip=0.5)
    compiled = torch.compile(sort, fullgraph=True, backend=backend)
    x = torch.randn(shape)
    x[0, 2], x[-1, 0] = torch.nan, x[-1, 1]
    expected = sort(x)
    with torch.no_grad():
        found = compiled(x)
    assert torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)
    assert len(graphs) == 1 and "lipfuse" not in graphs[0]
    if _native.kernels is not None:
        compiled(x.requires_grad_())
        assert len(graphs) == 2 and "lipfuse" in graphs[1]


def test_exports_have_the_normalised_weights_folded_in() -> None:
    """torch.export and torch.jit.trace of every layer's export: plain torch, for all batches."""
    model = every_layer.Together().eval()
    plain = lipfuse.vanilla_model(model, in_place=False)
    batch = torch.export.Dim("batch", min=2)
    example = every_layer.inputs(5)
    shapes = (tuple({0: batch} for _ in example),)
    program = torch.export.export(plain, example, dynamic_shapes=shapes)
    assert not any("lipfuse" in str(node.target) for node in program.graph.nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(plain, example)
    assert "lipfuse" not in str(traced.inlined_graph)
    with torch.no_grad():
        for count in (5, 3):
            x = every_layer.inputs(count, 1)
            every_layer.assert_same(program.module()(*x), model(*x), 1e-5)
            every_layer.assert_same(traced(*x), model(*x), 1e-5)


def test_export_of_every_layer_as_it_is() -> None:
    """With the operators in the graph, which computes the weights from the parameters."""
    model = every_layer.Together().eval()
    example = every_layer.inputs(5)
    shapes = (tuple({0: torch.export.Dim("batch", min=2)} for _ in example),)
    program = torch.export.export(model, example, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    x = every_layer.inputs(3, 1)
    with torch.no_grad():
        every_layer.assert_same(loaded(*x), model(*x), 1e-5)


def test_compiled_gradient_penalty_is_refused_or_right() -> None:
    """Double backward is not what compiled graphs do; it must not be wrong silently."""
    torch._dynamo.reset()
    layer = lnn.SpectralLinear(6, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 6, requires_grad=True)

    def penalty(forward: Any) -> Tensor:
        (slope,) = torch.autograd.grad(forward(x).tanh().sum(), x, create_graph=True)
        return slope.square().sum()

    penalty(layer).backward()
    original: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
    expected = original.grad.clone()
    original.grad = None
    refused = ""
    try:
        penalty(compiled).backward()
    except RuntimeError as error:
        refused = str(error)
    assert "double backward" in refused or torch.allclose(original.grad, expected, atol=1e-5)
