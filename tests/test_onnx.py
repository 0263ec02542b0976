"""ONNX: exported models, run by onnxruntime, with the normalised weights folded in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import every_layer
import onnxruntime
import torch
from torch import Tensor, nn

import lipfuse
import lipfuse.nn as lnn


def exported(model: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            model, example, dynamo=True, dynamic_shapes=shapes, verbose=False
        ).model_proto


def run(proto: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [x.name for x in session.get_inputs()]
    feed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    return [torch.from_numpy(x) for x in session.run(None, feed)]


def test_every_layer() -> None:
    model = every_layer.Together().eval()
    plain = lipfuse.vanilla_model(model, in_place=False)
    batch = torch.export.Dim("batch", min=2)
    example = every_layer.inputs(5)
    proto = exported(plain, example, (tuple({0: batch} for _ in example),))
    assert {node.domain for node in proto.graph.node} == {""}
    x = every_layer.inputs(3, 1)
    with torch.no_grad():
        every_layer.assert_same(run(proto, x), model(*x), 1e-5)


def test_a_trained_network() -> None:
    """The weights of evaluation, of which the ONNX file is made up: nothing is left to compute."""
    model: Any = lnn.Sequential(
        lnn.SpectralConv2d(1, 8, 3, padding=1, padding_mode="symmetric"),
        lnn.GroupSort2(),
        lnn.ScaledL2NormPool2d(2),
        lnn.SpectralConv2d(8, 8, 3, stride=2, padding=1, groups=2),
        lnn.MaxMin(),
        lnn.ScaledAvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        lnn.SpectralLinear(64, 16),
        lnn.FullSort(),
        lnn.FrobeniusLinear(16, 3),
        k_coef_lip=2.0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(3):
        loss = model(torch.randn(8, 1, 12, 12)).square().sum().neg()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    example = torch.randn(5, 1, 12, 12)
    proto = exported(model.vanilla_export(), (example,), ({0: torch.export.Dim("batch", min=2)},))
    sizes = sorted(tuple(x.dims) for x in proto.graph.initializer if len(x.dims) >= 2)
    assert {(3, 16), (8, 1, 3, 3), (8, 4, 3, 3), (16, 64)} <= set(sizes)
    x = torch.randn(7, 1, 12, 12)
    with torch.no_grad():
        assert torch.allclose(run(proto, [x])[0], model(x), atol=1e-5)
