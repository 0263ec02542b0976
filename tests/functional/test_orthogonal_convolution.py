"""The product of an orthogonal kernel's factors, against the polynomial it stands for."""

from __future__ import annotations

import cmath

import pytest
import tools
import torch
from torch import Tensor

from lipfuse.functional.orthogonal_convolution import (
    KernelPlan,
    _product,
    _to_kernel,
    compose_kernel,
    plan_kernel,
)

# (in_channels, out_channels, kernel_size, stride, groups)
Case = tuple[int, int, tuple[int, int], tuple[int, int], int]
CASES: list[Case] = [
    (4, 4, (3, 3), (1, 1), 1),
    (6, 3, (2, 4), (1, 1), 1),
    (4, 10, (3, 2), (1, 1), 2),
    (3, 5, (3, 4), (2, 2), 1),
    (2, 13, (3, 3), (2, 1), 1),
    (4, 6, (2, 2), (2, 2), 2),
]


def made(case: Case) -> KernelPlan:
    inputs, outputs, kernel, stride, groups = case
    return plan_kernel(inputs, outputs, kernel, stride, (1, 1), groups)


def drawn(plan: KernelPlan) -> list[Tensor]:
    """Orthonormal factors, in float64."""
    found = []
    for (height, width), count in zip(plan.shapes, plan.counts):
        found.append(tools.polar_factor(torch.randn(count, height // count, width)).flatten(0, 1))
    return found


def monomials(z: complex, w: complex, size: tuple[int, int]) -> Tensor:
    rows = [[z**i * w**j for j in range(size[1])] for i in range(size[0])]
    return torch.tensor(rows, dtype=torch.complex128)


def at(plan: KernelPlan, factors: list[Tensor], z: complex, w: complex) -> Tensor:
    """The product for numbers z and w, ``(groups, rows, columns)``."""
    core = factors[0].reshape(plan.groups, plan.rows, *plan.taps, plan.channels)
    x = torch.einsum("grijc,ij->grc", core.to(torch.complex128), monomials(z, w, plan.taps))
    for t, axis in enumerate(plan.axes):
        v = factors[1].reshape(-1, plan.groups, plan.channels, plan.channels // 2)[t]
        x = x + ((z, w)[axis] - 1) * x @ (v @ v.mT).to(x.dtype)
    return x[..., : plan.columns]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_is_the_product(
    case: Case,
) -> None:
    plan = made(case)
    factors = drawn(plan)
    kernel = compose_kernel(factors[0], factors[1] if plan.axes else None, plan)
    inputs, outputs, size, _, groups = case
    assert kernel.shape == (outputs, inputs // groups, *size) and kernel.is_contiguous()
    for angles in ((0.0, 0.0), (1.3, -0.4), (3.1, 2.0)):
        z, w = (cmath.exp(1j * a) for a in angles)
        symbol = torch.einsum("ocij,ij->oc", kernel.to(torch.complex128), monomials(z, w, size))
        symbol = symbol.unflatten(0, (groups, -1))
        expected = at(plan, factors, z, w)
        assert torch.allclose(symbol, expected.mT if plan.transposed else expected, atol=1e-12)


def test_blocks_enlarge_nothing_and_forgive_small_errors() -> None:
    """The Newton step on the projectors: the singular values of V may be off by 1e-3."""
    plan = plan_kernel(4, 4, (2, 2))
    core, blocks = drawn(plan)
    for scale, least in ((1 + 1e-3, 1 - 1e-4), (1 - 1e-3, 1 - 1e-4), (0.5, 0), (0, 1 - 1e-9)):
        kernel = compose_kernel(core, blocks * scale, plan)
        symbols = torch.fft.fft2(kernel, s=(8, 8)).permute(2, 3, 0, 1)
        values = torch.linalg.svdvals(symbols)
        assert least <= float(values.min()) and float(values.max()) <= 1 + 1e-12


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_gradient_is_that_of_the_product_along_orthonormal_matrices(
    case: Case,
) -> None:
    plan = made(case)
    core, blocks = (f.requires_grad_() for f in drawn(plan))
    grad = torch.randn_like(compose_kernel(core, blocks, plan))
    mine = torch.autograd.grad(compose_kernel(core, blocks, plan), (core, blocks), grad)
    plain = _to_kernel(_product(core, blocks, plan)[0], plan)
    its = torch.autograd.grad(plain, (core, blocks), grad)
    assert torch.allclose(mine[0], its[0], atol=1e-12)
    v, g, h = (
        x.detach().reshape(-1, plan.channels, blocks.shape[1]) for x in (blocks, mine[1], its[1])
    )
    # The projector of V does not depend on the basis, and the Newton step not on V's lengths.
    assert torch.allclose(v.mT @ g, g.mT @ v, atol=1e-12)
    assert torch.allclose(g - v @ (v.mT @ g), h, atol=1e-12)


def test_plans() -> None:
    assert plan_kernel(8, 4, (3, 3)) == KernelPlan(1, 4, 8, (1, 1), (0, 1, 0, 1), 8, False)
    assert plan_kernel(4, 8, (3, 3)) == KernelPlan(1, 4, 8, (1, 1), (0, 1, 0, 1), 8, True)
    assert plan_kernel(4, 40, (3, 4), (2, 2)).shapes == ((40, 40), (30, 5))
    assert plan_kernel(8, 8, (2, 2), (2, 2), groups=2).shapes == ((8, 16),)
    assert plan_kernel(8, 8, (1, 4), groups=2).counts == (2, 6)
    # A stride that shares a factor with the dilation is a smaller stride on every other pixel.
    assert plan_kernel(8, 8, (3, 3), (4, 2), (2, 2)).taps == (2, 1)
