"""The polar factor: orthonormal as promised, never above one; its gradient for every spectrum."""

from __future__ import annotations

import math

import pytest
import tools
import torch
from torch import Tensor

import lipfuse.functional as F
from lipfuse import _native, ops, reference

op = torch.ops.lipfuse.orthogonalize
TOLERANCES = [
    (torch.float32, 1e-2),
    (torch.float32, 1e-4),
    (torch.float32, 1e-7),
    (torch.float64, 1e-7),
]


def rounding(w: Tensor) -> float:
    """What rounding may leave of ‖I - QᵀQ‖: a few units in the last place a direction.

    Where the tolerance is out of reach, Q is divided by its proven bound, which is as far above 1.
    """
    return 5 * torch.finfo(w.dtype).eps * min(w.shape[-2:])


def residual(q: Tensor) -> Tensor:
    q = q.double()
    gram = q @ q.mT if q.shape[-2] < q.shape[-1] else q.mT @ q
    return torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1], dtype=torch.float64))


# ---- the value -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tol", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", tools.BENIGN)
def test_orthonormal_to_the_tolerance_and_the_polar_factor(
    kind: str, dtype: torch.dtype, tol: float, isa: str
) -> None:
    for shape in tools.SHAPES:
        w = tools.matrix(kind, shape).to(dtype)
        q, _, info = op(w, tol, 1.0, False)
        assert (residual(q) <= tol + rounding(w)).all(), shape
        assert (info[..., 2] <= tol + rounding(w)).all(), shape
        exact = tools.polar_factor(w)
        plain = reference.orthogonalize(w, tol, 1.0, False)[0]
        # What a change of W in its last place does to the factor.
        sensitivity = torch.finfo(dtype).eps * float(torch.linalg.cond(w.double()).max())
        tools.assert_as_good_as_plain(q, plain, exact, slack=tol + sensitivity)


@pytest.mark.parametrize("dtype, tol", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", tools.SPECTRA)
def test_no_singular_value_above_one(kind: str, dtype: torch.dtype, tol: float, isa: str) -> None:
    """By more than 1e-5 and rounding, whatever the matrix: the guarantee of the layers."""
    for shape in tools.SHAPES:
        for seed, scale in [(0, 1.0), (1, 0.2)]:
            w = tools.matrix(kind, shape, seed).to(dtype)
            q, _, info = op(w, tol, scale, False)
            assert q.isfinite().all()
            norms = torch.linalg.matrix_norm(q.double(), ord=2) / scale
            assert (norms <= 1 + 1e-5 + rounding(w)).all(), (shape, float(norms.max()))
            assert (norms <= info[..., 3] + 2 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "scale",
    [1e-30, 1e-20, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 10.0, 1e3, 1e6, 1e7, 1e20, 1e30],
)
def test_size_of_the_weight_does_not_matter(scale: float, dtype: torch.dtype, isa: str) -> None:
    for shape in [(1, 1), (1, 9), (9, 1), (8, 8), (30, 20), (16, 144)]:
        for kind in ("near", "orthogonal", "gaussian"):
            w = (tools.matrix(kind, shape) * scale).to(dtype)
            q, _, _ = op(w, 1e-4, 1.0, False)
            assert q.isfinite().all(), (shape, kind)
            assert tools.largest_singular_value(q) <= 1 + 1e-5 + rounding(w), (shape, kind)
            assert residual(q) <= 1e-4 + rounding(w), (shape, kind)
            assert float((q.double() - tools.polar_factor(w)).norm()) <= 2e-4, (shape, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ill_conditioned_directions(dtype: torch.dtype, isa: str) -> None:
    """What stands clear of rounding is brought to 1, the rest no further."""
    for shape in [(7, 7), (16, 16), (37, 23), (23, 37), (13, 101)]:
        for kind in ("log", "deficient"):
            w = tools.matrix(kind, shape).to(dtype)
            q, _, _ = op(w, 1e-4, 1.0, False)
            u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
            values = torch.einsum("mi,mn,in->i", u, q.double(), vh)
            clear = s > 3e-3 * s[0]
            assert ((values[clear] - 1).abs() <= 1e-3).all(), (shape, kind)
            # What is left of the others has lost its direction.
            assert (values.abs() <= 1 + 1e-5 + rounding(w)).all()


@pytest.mark.parametrize(
    "dtype, tol", [(torch.float32, 1e-4), (torch.float64, 1e-8), (torch.float64, 1e-12)], ids=str
)
def test_what_is_not_null_becomes_one(dtype: torch.dtype, tol: float, isa: str) -> None:
    """Dead rows and equal ones leave the other singular values alone."""
    for seed in range(60):
        n, aspect = (3, 5, 16, 33, 64, 100)[seed % 6], (1, 2, 3)[seed % 3]
        w = torch.randn(n, n * aspect, generator=torch.Generator().manual_seed(seed)).to(dtype)
        lost = max(1, n // 3)
        w[:lost] = 0 if seed % 2 else w[-1]
        rank = n - lost
        values = torch.linalg.svdvals(op(w, tol, 1.0, False)[0].double())
        assert float(values[0]) <= 1 + 1e-5 + rounding(w), seed
        below = 2e-5 if dtype == torch.float32 else 2 * tol
        assert float(values[rank - 1]) >= 1 - below - rounding(w), seed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subnormal_weights(dtype: torch.dtype, isa: str) -> None:
    """What decays for long ends there, and is still a matrix."""
    tiny = torch.finfo(dtype).tiny
    for size in (tiny / 4, tiny / 64):
        w = size * torch.eye(5, dtype=dtype)
        assert float((op(w, 1e-4, 1.0, False)[0] - torch.eye(5, dtype=dtype)).norm()) < 1e-3
        bound = float(torch.ops.lipfuse.spectral_bound(w, 10).max())
        assert size <= bound <= 1.5 * size


def test_scale_multiplies_the_result() -> None:
    for shape in tools.SHAPES:
        w = tools.matrix("near", shape)
        q, root, info = op(w, 1e-7, 1.0, True)
        scaled, root_scaled, info_scaled = op(w, 1e-7, 3.0, True)
        assert torch.allclose(scaled, 3 * q, rtol=1e-14)
        assert torch.equal(root, root_scaled) and torch.equal(info, info_scaled)


def test_info_tells_the_spectrum() -> None:
    """The ends of W's spectrum, as good as the gradient's solver needs them; the proven bound."""
    for shape in [(8, 8), (37, 23), (23, 37), (2, 12, 9)]:
        w = tools.matrix("near", shape)
        values = torch.linalg.svdvals(w)
        q, _, info = op(w, 1e-7, 1.0, False)
        low, high, residual_found, bound, _ = info.unbind(-1)
        assert torch.allclose(high, values[..., 0], rtol=0.35)
        assert torch.allclose(low, values[..., -1], rtol=0.5)
        assert torch.allclose(residual_found, residual(q), atol=1e-10)
        assert (torch.linalg.matrix_norm(q, ord=2) <= bound * (1 + 1e-15)).all()


@pytest.mark.skipif(_native.kernels is None, reason="plain torch has no stages")
@pytest.mark.parametrize(
    "shape, low, high, stages",
    [((n, n), 0.88, 1.45, 1) for n in (64, 256, 512, 768, 1024)]
    + [((48, 432), 0.86, 1.45, 1), ((48, 432), 0.5, 1.45, 2)],
    ids=str,
)
def test_no_more_stages_than_the_spectrum_takes(
    shape: tuple[int, int], low: float, high: float, stages: int
) -> None:
    """Each costs a product of the whole weight and one on the smaller side at the least."""
    n = min(shape)
    left, right = (torch.linalg.qr(tools.matrix("gaussian", (m, n), m))[0] for m in shape)
    w = ((left * torch.linspace(low, high, n, dtype=torch.float64)) @ right.mT).float()
    q, _, info = op(w, 1e-4, 1.0, False)
    assert info[4] == stages
    assert residual(q) <= 1e-4 + rounding(w)


@pytest.mark.skipif(_native.kernels is None, reason="plain torch does not measure")
@pytest.mark.parametrize("low", [0.35, 0.5, 0.88])
@pytest.mark.parametrize(
    "shape",
    [(4000, 2), (32, 96), (576, 64), (128, 1152), (256, 600), (20000, 4), (20000, 16)],
    ids=str,
)
def test_residual_of_a_tall_weight_is_no_illusion(
    shape: tuple[int, int], low: float, isa: str
) -> None:
    """It comes from products on the smaller side, of which rounding is allowed for."""
    n = min(shape)
    left, right = (torch.linalg.qr(tools.matrix("gaussian", (m, n), m))[0] for m in shape)
    w = ((left * torch.linspace(low, 1, n, dtype=torch.float64)) @ right.mT).float()
    q, _, info = op(w, 1e-4, 1.0, False)
    assert residual(q) <= 1.2 * info[2] + torch.finfo(torch.float32).eps * math.sqrt(n)
    assert torch.linalg.matrix_norm(q.double(), ord=2) <= info[3]


def test_one_matrix_does_not_touch_its_neighbours() -> None:
    w = tools.matrix("near", (4, 9, 6)).float()
    alone = op(w, 1e-4, 1.0, False)[0]
    bad = w.clone()
    bad[0], bad[1, 2, 3], bad[2, 0, 0] = 0, math.nan, math.inf
    q = op(bad, 1e-4, 1.0, False)[0]
    assert not q[0].any()
    assert q[1].isnan().all() and q[2].isnan().all()
    assert torch.equal(q[3], alone[3])


# ---- the gradient --------------------------------------------------------------------------------

WELL_CONDITIONED = [s for s in tools.SHAPES if min(s[-2:]) > 1] + [(1, 7), (7, 1), (1, 1), (40, 40)]


def gradients(w: Tensor, g: Tensor, tol: float, scale: float = 1.0) -> Tensor:
    w = w.clone().requires_grad_()
    out, _ = ops.orthogonalize(w, tol, scale)
    return torch.autograd.grad(out, w, g)[0]


@pytest.mark.parametrize(
    "dtype, tol, allowed",
    [
        (torch.float32, 1e-4, 1e-3),
        (torch.float32, 1e-6, 5e-5),
        (torch.float64, 1e-4, 1e-3),
        (torch.float64, 1e-7, 2e-6),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["near", "orthogonal"])
def test_gradient_near_the_orthonormal_matrices(
    kind: str, dtype: torch.dtype, tol: float, allowed: float, isa: str
) -> None:
    """Where training happens."""
    for shape in WELL_CONDITIONED:
        w = tools.matrix(kind, shape).to(dtype)
        g = tools.matrix("gaussian", shape, 9).to(dtype)
        exact = tools.polar_gradient(w, g)
        size = max(float(exact.norm()), 1e-2 * float(g.norm()))  # a column's may vanish
        assert float((gradients(w, g, tol).double() - exact).norm()) <= allowed * size, shape


@pytest.mark.parametrize("tol", [1e-8, 1e-12])
@pytest.mark.parametrize("spread", [1e-9, 1e-7, 1e-5, 5e-4, 1e-2])
def test_gradient_as_close_to_orthonormal_as_a_weight_may_be(
    spread: float, tol: float, isa: str
) -> None:
    """What tells such a weight from a multiple of an orthonormal one is not lost."""
    for shape in [(8, 8), (40, 40), (200, 200), (30, 12), (24, 64)]:
        orthonormal = tools.matrix("orthogonal", shape)
        w = 1.3 * orthonormal + spread * tools.matrix("gaussian", shape, 3) / math.sqrt(min(shape))
        g = tools.matrix("gaussian", shape, 9)
        exact = tools.polar_gradient(w, g)
        found = gradients(w, g, tol)
        assert float((found - exact).norm()) <= max(20 * tol, 1e-12) * float(exact.norm()), shape


@pytest.mark.parametrize(
    "dtype, tol, allowed",
    [
        (torch.float32, 1e-4, 5e-3),
        (torch.float64, 1e-4, 5e-3),
        (torch.float64, 1e-7, 1e-5),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["gaussian", "wide"])
def test_gradient_of_wide_spectra(
    kind: str, dtype: torch.dtype, tol: float, allowed: float, isa: str
) -> None:
    """At initialisation, after a large step: singular values over two or three decades.

    In float32 the reference value is as far off as a solve in float32 makes it.
    """
    for shape in [*WELL_CONDITIONED, (64, 64), (100, 100)]:
        w = tools.matrix(kind, shape).to(dtype)
        g = tools.matrix("gaussian", shape, 9).to(dtype)
        exact = tools.polar_gradient(w, g)
        q, root, info = reference.orthogonalize(w, tol, 1.0, True)
        plain = reference.orthogonalize_backward(g, w, q, root, info, tol, 1.0, False)
        size = max(float(exact.norm()), 1e-2 * float(g.norm() / w.norm()))
        rough = float((plain.double() - exact).norm())
        found = float((gradients(w, g, tol).double() - exact).norm())
        assert found <= allowed * size + 3 * rough, shape


def graded(shape: tuple[int, int], condition: float, few: bool) -> Tensor:
    """Singular values from 1 to 1 / condition: in equal ratios, or the last three alone small."""
    n = min(shape)
    values = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    if few:
        values[:-3], values[-3:] = 1.0, 1 / condition
    left = torch.linalg.qr(tools.matrix("gaussian", (shape[0], n), 3))[0]
    right = torch.linalg.qr(tools.matrix("gaussian", (shape[1], n), 4))[0]
    return (left * values) @ right.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("few", [False, True], ids=["graded", "few small"])
@pytest.mark.parametrize("condition", [3.0, 30.0, 300.0, 1e3, 3e3, 9e3])
def test_gradient_of_ill_conditioned_weights(
    condition: float, few: bool, dtype: torch.dtype, isa: str
) -> None:
    """As exact as any, as long as no singular value is below 1e-4 of the largest.

    In float32 Q itself is known to the condition number times rounding, in any method. Of a few
    small values among equal ones, how much of that is lost differs from one order of summation to
    another, and the reference has only one.
    """
    known = 10 * condition * torch.finfo(dtype).eps if few else 0.0
    for shape in [(8, 8), (33, 33), (100, 100), (192, 192), (96, 64), (64, 300)]:
        w = graded(shape, condition, few).to(dtype)
        g = tools.matrix("gaussian", shape, 9).to(dtype)
        exact = tools.polar_gradient(w, g)
        q, saved, info = reference.orthogonalize(w, 1e-4, 1.0, True)
        plain = reference.orthogonalize_backward(g, w, q, saved, info, 1e-4, 1.0, False)
        rough = float((plain.double() - exact).norm())
        found = float((gradients(w, g, 1e-4).double() - exact).norm())
        assert found <= (2e-3 + known) * float(exact.norm()) + 6 * rough, shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", tools.HOSTILE)
def test_gradient_is_bounded_where_a_singular_value_vanishes(
    kind: str, dtype: torch.dtype, isa: str
) -> None:
    """By that of a singular value 1e-4 times the largest, as the docstring says."""
    for shape in tools.SHAPES:
        w = tools.matrix(kind, shape).to(dtype)
        g = tools.matrix("gaussian", shape, 9).to(dtype)
        grad = gradients(w, g, 1e-4)
        assert grad.isfinite().all()
        largest = tools.largest_singular_value(w)
        steepest = 1 / (reference.GRADIENT_FLOOR * largest) if largest else 0.0
        assert float(grad.double().norm()) <= 3 * steepest * float(g.double().norm()), shape


def test_gradient_just_above_the_floor(isa: str) -> None:
    """Where a skew part is missing, too, and the largest singular value is overestimated."""
    w = torch.zeros(6, 5, dtype=torch.float64)
    w.diagonal().copy_(torch.tensor([1.0, *[1.05e-4] * 4]))
    g = torch.zeros_like(w)
    g[5, 4] = 1
    assert float(gradients(w, g, 1e-6)[5, 4]) == pytest.approx(1 / 1.05e-4, rel=1e-6)


@pytest.mark.parametrize("least", [0.0, 1e-6])
def test_gradient_is_bounded_where_its_skew_part_vanishes(least: float, isa: str) -> None:
    """A weight that is not square has the part outside of its column space all the same."""
    for seed in range(12):
        for shape in [(40, 33), (33, 40), (64, 32)]:
            n = min(shape)
            values = torch.ones(n, dtype=torch.float64)
            values[-1] = least
            left = torch.linalg.qr(tools.matrix("gaussian", (shape[0], n), seed))[0]
            right = torch.linalg.qr(tools.matrix("gaussian", (shape[1], n), seed + 1))[0]
            w = ((left * values) @ right.mT).float()
            q, _ = ops.orthogonalize(w, 1e-4, 1.0)
            for g in (torch.zeros_like(w), q, w):
                grad = gradients(w, g, 1e-4)
                assert float(grad.norm()) <= 1.5 / reference.GRADIENT_FLOOR * float(g.norm())
            assert not gradients(w, torch.zeros_like(w), 1e-4).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3)], ids=str)
def test_gradient_of_what_is_not_finite_is_nan(value: float, shape: tuple[int, int]) -> None:
    w = tools.matrix("near", shape).float()
    w[0, 0] = value
    assert gradients(w, torch.ones(shape), 1e-4).isnan().all()


def test_zero_has_no_gradient_and_recovers(isa: str) -> None:
    """Zero stays zero; one step away from it the result is orthonormal again."""
    for shape in [(5, 5), (7, 4), (4, 7), (1, 1)]:
        w = torch.zeros(shape, requires_grad=True)
        out, _ = ops.orthogonalize(w, 1e-4, 1.0)
        assert not out.any()
        out.backward(torch.ones(shape))
        assert w.grad is not None and not w.grad.any()
        with torch.no_grad():
            w += 1e-3 * torch.randn(shape)
        assert residual(ops.orthogonalize(w, 1e-4, 1.0)[0].detach()) <= 1e-4 + rounding(w)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 2), (2, 4), (2, 3, 2)], ids=str)
def test_gradcheck(shape: tuple[int, ...]) -> None:
    w = tools.matrix("near", shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.orthogonalize(x, tol=1e-12, scale=0.7), w)


def test_gradient_of_a_scaled_factor() -> None:
    for shape in [(6, 6), (9, 4), (4, 9)]:
        w, g = tools.matrix("near", shape), tools.matrix("gaussian", shape, 9)
        found = gradients(w, g, 1e-7, scale=0.3)
        assert tools.relative_error(found, 0.3 * tools.polar_gradient(w, g)) <= 1e-5


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e3, 1e20])
@pytest.mark.parametrize("kind", ["near", "orthogonal"])
def test_gradient_scales_inversely_with_the_weight(kind: str, scale: float) -> None:
    for shape in [(6, 6), (9, 4), (4, 9)]:
        w = tools.matrix(kind, shape)
        g = tools.matrix("gaussian", shape, 9)
        found = gradients((w * scale).float(), g.float(), 1e-4).double() * scale
        assert tools.relative_error(found, tools.polar_gradient(w, g)) <= 2e-3


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (2, 5, 3)], ids=str)
def test_tangent_gradient(shape: tuple[int, ...], isa: str) -> None:
    """Q (A - Aᵀ) / 2 + (G - QA) with A = QᵀG: the projection of G to the tangent space at Q."""
    w = tools.matrix("near", shape).requires_grad_()
    g = tools.matrix("gaussian", shape, 9)
    out = F.orthogonalize(w, tol=1e-7, backward="tangent", scale=0.7)
    (found,) = torch.autograd.grad(out, w, g)
    q = tools.polar_factor(w.detach())
    if shape[-2] < shape[-1]:
        q, g, found = q.mT, g.mT, found.mT
    a = q.mT @ g
    expected = 0.7 * (q @ (a - a.mT) / 2 + (g - q @ a))
    assert tools.relative_error(found, expected) <= 1e-6
    # Tangent: QᵀX is skew.
    x = q.mT @ found
    assert float((x + x.mT).norm()) <= 1e-6 * float(x.norm())


def test_tangent_is_exact_on_the_orthonormal_matrices() -> None:
    for shape in [(6, 6), (9, 4), (4, 9)]:
        w = tools.matrix("orthogonal", shape).requires_grad_()
        g = tools.matrix("gaussian", shape, 9)
        (found,) = torch.autograd.grad(F.orthogonalize(w, tol=1e-7, backward="tangent"), w, g)
        assert tools.relative_error(found, tools.polar_gradient(w.detach(), g)) <= 1e-6


@pytest.mark.parametrize("backward", ["exact", "tangent"])
def test_a_second_derivative_is_refused_in_words(backward: str) -> None:
    w = tools.matrix("near", (4, 3)).requires_grad_()
    out = F.orthogonalize(w, backward=backward)  # type: ignore[arg-type]
    (first,) = torch.autograd.grad(out.tanh().square().sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        first.sum().backward()


def test_training_from_a_random_start_reaches_the_nearest_orthonormal_map() -> None:
    """The gradient leads somewhere: a Procrustes problem with a known solution."""
    target = tools.polar_factor(tools.matrix("gaussian", (8, 8), 3))
    if torch.linalg.det(target) < 0:
        target[0] *= -1
    w = torch.eye(8, dtype=torch.float64) + 0.1 * tools.matrix("gaussian", (8, 8), 4)
    w = w.requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.05)
    for _ in range(300):
        loss = (F.orthogonalize(w) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) <= 1e-4


def test_matrices_of_small_integers(isa: str) -> None:
    """Their null spaces hold vectors of ones and signs, which an estimate must not start from."""
    for shape in [(4, 2), (4, 4), (6, 4), (3, 3), (33, 20)]:
        cases = [torch.ones(shape), torch.ones(shape).tril(), torch.eye(*shape)]
        for _ in range(20):
            rank = int(torch.randint(1, min(shape), ()))
            left, right = (
                torch.randint(-1, 2, (shape[0], rank)),
                torch.randint(-1, 2, (rank, shape[1])),
            )
            cases.append((left @ right).float())
        for w in cases:
            q, _, info = op(w, 1e-4, 1.0, False)
            assert q.isfinite().all() and info.isfinite().all(), w
            assert float(torch.linalg.matrix_norm(q.double(), ord=2)) <= 1 + 1e-5 + float(
                rounding(w)
            )
