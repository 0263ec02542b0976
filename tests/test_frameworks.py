"""What people keep models in and train them with: copies, files, averages, loops, Lightning."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import every_layer
import pytest
import safetensors.torch
import tools
import torch
from torch import nn

import lipfuse
import lipfuse.nn as lnn


def through_a_state_dict(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin = every_layer.Together()
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    return twin.train(model.training)


WAYS = {**tools.COPIES, "state_dict": through_a_state_dict}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_copies_of_every_layer(way: str, fused: bool) -> None:
    """Same outputs in both modes, tensors of their own, and they train on."""
    model = every_layer.Together()
    if fused:
        lipfuse.fuse(model)
    x = every_layer.inputs(3)
    model(*x)  # power iterations are worth keeping
    for training in (True, False):
        model.train(training)
        twin = WAYS[way](model)
        expected = copy.deepcopy(model)(*x)
        every_layer.assert_same(twin(*x), expected, 1e-6)
        own = {p.data_ptr() for p in model.parameters()}
        assert not any(p.data_ptr() in own for p in twin.parameters())
    before = model(*x)
    sum(out.square().sum() for out in twin.train()(*x)).backward()
    with torch.no_grad():
        for p in twin.parameters():
            p.sub_(p.grad)
    every_layer.assert_same(model(*x), before, 0.0)


def test_safetensors(tmp_path: Path) -> None:
    """Parameters and buffers, by the names of the state dict; and a plain export's."""
    model = every_layer.Together().eval()
    twin = every_layer.Together().eval()
    x = every_layer.inputs(3)
    path = str(tmp_path / "model.safetensors")
    safetensors.torch.save_model(model, path)
    assert safetensors.torch.load_model(twin, path) == (set(), [])
    every_layer.assert_same(twin(*x), model(*x), 1e-6)
    assert set(safetensors.torch.load_file(path)) == set(model.state_dict())
    network = lnn.Sequential(lnn.SpectralLinear(6, 4), lnn.MaxMin(), lnn.SpectralLinear(8, 2))
    plain = network.vanilla_export()
    safetensors.torch.save_model(plain, path)
    other = nn.Sequential(nn.Linear(6, 4), lnn.MaxMin().vanilla_export(), nn.Linear(8, 2))
    safetensors.torch.load_model(other, path)
    assert torch.allclose(other(x[0]), network.eval()(x[0]), atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_moving_averages_and_their_update_of_statistics(fused: bool) -> None:
    """swa_utils: averages parameters, and runs the data through the result once."""
    model: Any = nn.Sequential(
        lnn.SpectralLinear(6, 8), nn.BatchNorm1d(8), lnn.FullSort(), lnn.SpectralLinear(8, 3)
    )
    if fused:
        lipfuse.fuse(model)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
        seen.append(model[0].parametrizations.weight.original.detach().clone())
    averaged: Any = average.module
    mean = torch.stack(seen).mean(0)
    assert torch.allclose(averaged[0].parametrizations.weight.original, mean, atol=1e-6)
    torch.optim.swa_utils.update_bn([torch.randn(8, 6) for _ in range(3)], average)
    assert averaged[1].running_mean.abs().sum() > 0
    for layer, size in ((averaged[0], 6), (averaged[3], 8)):
        for training in (True, False):
            assert tools.operator_norm(layer.train(training), (size,)) <= 1 + 1e-5


# ---- the examples --------------------------------------------------------------------------------


def test_plain_loop() -> None:
    found = tools.example("loop.py").main(["--epochs", "2"])
    assert found["accuracy"] >= 0.8
    assert 0.3 <= found["certified"] <= found["accuracy"]


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    """Trains under bfloat16 autocast with accumulation; its checkpoint is the same network."""
    lightning_digits = tools.example("lightning_digits.py")
    module, trainer = lightning_digits.main(["--epochs", "1", "--folder", str(tmp_path)])
    assert float(trainer.callback_metrics["accuracy"]) >= 0.7
    path = trainer.checkpoint_callback.best_model_path
    twin = lightning_digits.Classifier.load_from_checkpoint(path)
    x = torch.rand(4, 1, 28, 28)
    assert torch.allclose(twin.eval()(x), module.eval()(x), atol=1e-5)
    for layer, size in ((module.network[3], 16 * 14 * 14), (module.network[5], 64)):
        weight = layer.weight
        assert tools.largest_singular_value(weight) <= 1 + 1e-5
        assert weight.shape[1] == size
