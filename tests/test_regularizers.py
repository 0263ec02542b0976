"""Orthogonality penalties against the dense operators that they speak about."""

from __future__ import annotations

from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipfuse.nn as lnn
from lipfuse.regularizers import conv_orthogonality, kernel_orthogonality, orthogonality


def distance(a: Tensor) -> Tensor:
    gram = a @ a.mT if a.shape[0] <= a.shape[1] else a.mT @ a
    return (gram - torch.eye(len(gram), dtype=a.dtype)).square().sum()


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 2, 3, 3), (12, 2, 2), (0, 3)])
def test_kernels(shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, dtype=torch.float64)
    assert float(kernel_orthogonality(w)) == pytest.approx(float(distance(w.flatten(1))))


def test_groups_add_up() -> None:
    w = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    for penalty in (kernel_orthogonality, conv_orthogonality):
        parts = [float(penalty(part)) for part in w.split(2)]
        assert float(penalty(w, groups=3)) == pytest.approx(sum(parts))


# Out, in, kernel, stride, dilation, groups; with fewer rows than columns, and the other way round.
CONVOLUTIONS = [
    (4, 3, (3, 3), 1, 1, 1),
    (2, 4, (3, 2), 2, 1, 1),
    (16, 3, (3, 3), 2, 1, 1),
    (8, 4, (3, 3), 2, 2, 2),
    (20, 4, (2, 2), 2, 3, 2),
    (3, 2, (4, 4), 3, 1, 1),
    (4, 4, (5,), 2, 3, 2),
    (2, 1, (2, 2, 2), 1, 1, 1),
]


@pytest.mark.parametrize("out, channels, kernel, stride, dilation, groups", CONVOLUTIONS)
def test_convolutions_are_judged_as_operators(
    out: int, channels: int, kernel: tuple[int, ...], stride: int, dilation: int, groups: int
) -> None:
    """Exactly the distance of the circular convolution's dense matrix, for each output pixel."""
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
    layer = kind(channels, out, kernel, stride, dilation=dilation, groups=groups, bias=False)
    layer = layer.double()
    reach = [dilation * (k - 1) for k in kernel]
    # As many outputs along each axis as there are shifts, at least.
    sizes = [stride * (2 * (r // stride) + 1) for r in reach]

    def circular(x: Tensor) -> Tensor:
        for axis, r in enumerate(reach):
            x = torch.cat((x, x.narrow(axis + 2, 0, r)), axis + 2)
        return layer(x)

    inputs = torch.eye(channels * torch.Size(sizes).numel(), dtype=torch.float64)
    with torch.no_grad():
        outputs = circular(inputs.reshape(-1, channels, *sizes))
    dense = outputs.flatten(1).mT
    pixels = outputs[0, 0].numel()
    found = conv_orthogonality(layer.weight, stride=stride, dilation=dilation, groups=groups)
    assert float(found.detach()) == pytest.approx(float(distance(dense)) / pixels)


def test_an_orthonormal_kernel_need_not_be_an_orthogonal_convolution() -> None:
    w = tools.polar_factor(tools.matrix("gaussian", (4, 18))).reshape(4, 2, 3, 3)
    assert float(kernel_orthogonality(w)) <= 1e-20
    assert float(conv_orthogonality(w)) > 0.1
    delta = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    delta[:, :, 1, 2] = tools.polar_factor(tools.matrix("gaussian", (3, 3)))
    assert float(conv_orthogonality(delta)) <= 1e-20


@pytest.mark.parametrize("penalty", [kernel_orthogonality, conv_orthogonality])
@pytest.mark.parametrize("shape", [(2, 3, 2), (5, 1, 2)])
def test_gradients(penalty: Any, shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty, w)
    assert torch.autograd.gradgradcheck(penalty, w)


def test_a_model() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4),
        nn.Sequential(nn.Conv2d(2, 4, 3, stride=(2, 1), groups=2), nn.ReLU()),
        nn.ConvTranspose2d(2, 4, 3, stride=2),
        lnn.SpectralLinear(3, 3),
        parametrizations.orthogonal(nn.Linear(2, 2)),
    )
    conv: Any = model[1][0]  # type: ignore[index]
    up: Any = model[2]
    linear = kernel_orthogonality(model[0].weight)  # type: ignore[arg-type]
    operators = conv_orthogonality(conv.weight, stride=(2, 1), groups=2)
    operators = operators + conv_orthogonality(up.weight, stride=2)
    kernels = kernel_orthogonality(conv.weight, groups=2) + kernel_orthogonality(up.weight)
    assert torch.allclose(orthogonality(model), linear + operators)
    assert torch.allclose(orthogonality(model, conv="kernel"), linear + kernels)


def test_training_makes_a_convolution_orthogonal() -> None:
    layer = nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular", bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss = orthogonality(layer)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) <= 1e-4
    values = torch.linalg.svdvals(tools.dense(layer, (4, 6, 6)))
    assert float((values - 1).abs().max()) <= 0.02


def test_errors() -> None:
    w = torch.randn(4, 2, 3)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: kernel_orthogonality(torch.randn(3)), ValueError, "weight must have at least 2"),
        (lambda: kernel_orthogonality(w.long()), TypeError, "weight must have a real floating"),
        (
            lambda: kernel_orthogonality(w, groups=3),
            ValueError,
            "groups must divide the 4 channels",
        ),
        (lambda: conv_orthogonality(w, groups=0), ValueError, "groups must be an integer >= 1"),
        (lambda: conv_orthogonality(w[0]), ValueError, "weight must have 3 to 5 dimensions"),
        (lambda: conv_orthogonality(w, stride=0), ValueError, "stride must be an integer >= 1"),
        (lambda: conv_orthogonality(w, dilation=(1, 1)), ValueError, "dilation must be an int or"),
        (lambda: orthogonality([w]), TypeError, "model must be a torch.nn.Module, got list"),
        (lambda: orthogonality(nn.ReLU()), ValueError, "at least one linear layer or convolution"),
        (lambda: orthogonality(nn.Linear(1, 1), conv="x"), ValueError, "conv must be one of"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
