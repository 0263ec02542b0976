"""Every operator in plain torch: the tests' oracle, and what runs where no native kernel does.

The functions have the signatures of the operators in ``csrc/library.cpp``; the operators' schemas
are inferred from these type hints where the native library is missing. They are written to be read
against the papers, not to be fast. Matrices are ``(..., m, n)``, float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

__all__ = [
    "bjorck",
    "bjorck_backward",
    "foreach_orthogonalize",
    "foreach_orthogonalize_backward",
    "foreach_spectral_normalize",
    "foreach_spectral_normalize_backward",
    "frobenius_normalize",
    "frobenius_normalize_backward",
    "l2_norm_pool2d",
    "l2_norm_pool2d_backward",
    "largest_use",
    "orthogonalize",
    "orthogonalize_backward",
    "power_iteration",
    "power_iteration_backward",
    "scaled_avg_pool2d",
    "scaled_avg_pool2d_backward",
    "sort_pairs",
    "sort_pairs_backward",
    "max_min",
    "max_min_backward",
    "spectral_bjorck",
    "spectral_bjorck_backward",
    "spectral_bound",
    "spectral_normalize",
    "spectral_normalize_backward",
    "symbol_exceeds",
    "symbol_scores",
]

GRADIENT_FLOOR = 1e-4
"""Singular values below this fraction of the largest count as that in the polar factor's gradient,
which is unbounded in theory."""


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u.unsqueeze(-1) * v.unsqueeze(-2)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1))


def _matvec(w: Tensor, x: Tensor) -> Tensor:
    return (w @ x.unsqueeze(-1)).squeeze(-1)


def _each(x: Tensor) -> Tensor:
    """A scalar a matrix, ready to multiply matrices."""
    return x[..., None, None]


def _divisor(sigma: Tensor, eps: float) -> Tensor:
    """sigma, which may be negative where u and v are stale, kept away from zero."""
    return torch.where(sigma.abs() < eps, eps, sigma)


def _in_range(w: Tensor) -> tuple[Tensor, Tensor]:
    """Huge matrices divided by a power of two, so that no square overflows, and what undoes it."""
    if w.numel() == 0:
        return w, w.new_ones(w.shape[:-2])
    largest = w.detach().abs().amax((-2, -1))
    huge = (largest > 1e6) & torch.isfinite(largest)
    unit = torch.where(huge, torch.exp2(torch.floor(torch.log2(largest))), torch.ones_like(largest))
    return w / _each(unit), unit


def _largest_singular_value(w: Tensor) -> Tensor:
    """NaN for a matrix that is not finite, where torch raises; 0 for one without elements."""
    if min(w.shape[-2:]) == 0:
        return w.new_zeros(w.shape[:-2])
    finite = torch.isfinite(w).all(-1).all(-1)
    norm = torch.linalg.matrix_norm(torch.where(_each(finite), w, torch.zeros_like(w)), ord=2)
    return torch.where(finite, norm, torch.full_like(norm, math.nan))


# ---- power iteration and spectral normalisation --------------------------------------------------


def power_iteration(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``u <- Wv/|Wv|, v <- Wᵀu/|Wᵀu|``; sigma = uᵀWv.

    Products that vanish or are not finite leave u and v alone.
    """
    if not 0 <= n_iterations < 2**31:  # as the kernels say it
        raise ValueError(f"n_iterations must be in [0, 2^31), got {n_iterations}")
    weight, unit = _in_range(weight)
    u = u.clone(memory_format=torch.contiguous_format)
    if v is None:
        v = _matvec(weight.mT, u)
        norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        even = torch.full_like(v, 1 / math.sqrt(max(1, v.shape[-1])))
        v = torch.where((norm > eps) & torch.isfinite(norm), v / norm.clamp_min(eps), even)
    else:
        v = v.clone(memory_format=torch.contiguous_format)
    if n_iterations == 0:
        return (u * _matvec(weight, v)).sum(-1) * unit, u, v
    sigma = u.new_zeros(u.shape[:-1])
    stopped = torch.zeros(u.shape[:-1], dtype=torch.bool, device=u.device)
    for _ in range(n_iterations):
        t = _matvec(weight, v)
        s = _matvec(weight.mT, t)
        t_norm = torch.linalg.vector_norm(t, dim=-1)
        s_norm = torch.linalg.vector_norm(s, dim=-1)
        new = torch.where(t_norm > eps, s_norm / t_norm, t_norm)
        sigma = torch.where(stopped, sigma, new)
        stopped = stopped | ~((t_norm > eps) & (s_norm > 0) & torch.isfinite(new))
        keep = stopped.unsqueeze(-1)
        u = torch.where(keep, u, t / t_norm.unsqueeze(-1))
        v = torch.where(keep, v, s / s_norm.unsqueeze(-1))
    return sigma * unit, u, v


def power_iteration_backward(grad_sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """d sigma / dW = u vᵀ."""
    return _each(grad_sigma) * _outer(u, v)


def spectral_normalize(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``scale W / sigma`` (Miyato et al., 2018)."""
    sigma, u, v = power_iteration(weight, u, v, n_iterations, eps)
    out = weight * _each(scale / _divisor(sigma, eps))
    return out.contiguous(), sigma, u, v


def spectral_normalize_backward(
    grad: Tensor,
    grad_sigma: Optional[Tensor],
    normalized: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    eps: float,
    scale: float,
) -> Tensor:
    """``(c G - <G, Ŵ> u vᵀ) / sigma + g_sigma u vᵀ``."""
    divisor = _divisor(sigma, eps)
    along = torch.where(sigma.abs() < eps, 0.0, -_inner(grad, normalized) / divisor)
    if grad_sigma is not None:
        along = along + grad_sigma
    return _each(scale / divisor) * grad + _each(along) * _outer(u, v)


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def foreach_spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int,
    eps: float,
    scales: Sequence[float],
) -> tuple[list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    """:func:`spectral_normalize` of weights ``(out, ...)``, each a matrix; ``vs`` may be empty."""
    results = [
        spectral_normalize(_as_matrix(w), u, vs[i] if vs else None, n_iterations, eps, scales[i])
        for i, (w, u) in enumerate(zip(weights, us))
    ]
    out = [r[0].reshape(w.shape) for r, w in zip(results, weights)]
    return (
        out,
        torch.stack([r[1] for r in results]),
        [r[2] for r in results],
        [r[3] for r in results],
    )


def foreach_spectral_normalize_backward(
    grads: Sequence[Tensor],
    grad_sigmas: Optional[Tensor],
    normalized: Sequence[Tensor],
    sigmas: Tensor,
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    eps: float,
    scales: Sequence[float],
) -> list[Tensor]:
    out = []
    for i, (g, w) in enumerate(zip(grads, normalized)):
        grad_sigma = None if grad_sigmas is None else grad_sigmas[i]
        flat = (_as_matrix(g), grad_sigma, _as_matrix(w), sigmas[i], us[i], vs[i])
        out.append(spectral_normalize_backward(*flat, eps, scales[i]).reshape(g.shape))
    return out


# ---- Björck --------------------------------------------------------------------------------------


def _gram(w: Tensor) -> Tensor:
    return w.mT @ w if w.shape[-2] >= w.shape[-1] else w @ w.mT


def _times(w: Tensor, s: Tensor) -> Tensor:
    """W times a matrix of its smaller side, whichever that is."""
    return w @ s if w.shape[-2] >= w.shape[-1] else s @ w


def bjorck(
    weight: Tensor, beta: float, max_iterations: int, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``W <- (1 + beta) W - beta W WᵀW`` until a step is shorter than ``eps`` (Björck & Bowie)."""
    w = weight.clone(memory_format=torch.contiguous_format)
    batch = w.shape[:-2]
    steps = torch.zeros(batch, dtype=torch.int64, device=w.device)
    running = torch.ones(batch, dtype=torch.bool, device=w.device)
    history = w.new_zeros((*batch, max_iterations, *w.shape[-2:]) if save else (0,))
    for k in range(max_iterations):
        if save:
            history[..., k, :, :] = w
        new = (1 + beta) * w - beta * _times(w, _gram(w))
        change = torch.linalg.vector_norm(new - w, dim=(-2, -1))
        w = torch.where(_each(running), new, w)
        steps = steps + running.to(steps.dtype)
        running = running & ~(change < eps)
    return w, history, steps


def bjorck_backward(grad: Tensor, history: Tensor, steps: Tensor, beta: float) -> Tensor:
    """Exact adjoint: ``G <- (1 + beta) G - beta (G WᵀW + W (GᵀW + WᵀG))``, last step first."""
    g = grad.clone(memory_format=torch.contiguous_format)
    batched = g.dim() + 1 == history.dim()
    for k in range(history.shape[-3] - 1 if batched else -1, -1, -1):
        w = history[..., k, :, :]
        if w.shape[-2] >= w.shape[-1]:
            new = g @ (w.mT @ w) + w @ (g.mT @ w + w.mT @ g)
        else:
            new = (w @ w.mT) @ g + (g @ w.mT + w @ g.mT) @ w
        g = torch.where(_each(steps > k), (1 + beta) * g - beta * new, g)
    return g


def spectral_bjorck(
    weight: Tensor,
    u: Tensor,
    v: Optional[Tensor],
    n_iterations: int,
    eps: float,
    beta: float,
    max_iterations: int,
    eps_bjorck: float,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The chain of a layer: W / sigma, guarded against divergence, Björck, times ``scale``.

    The second result holds sigma and the factor by which the guard shrank the weight, ``(..., 2)``.
    """
    sigma, u, v = power_iteration(weight, u, v, n_iterations, eps)
    w = weight * _each(1 / _divisor(sigma, eps))
    bound = _largest_singular_value(_gram(w))
    diverges = (bound > 0.98 * (1 + 1 / beta)) & torch.isfinite(bound)
    shrink = torch.where(diverges, bound.clamp_min(1e-30).rsqrt(), torch.ones_like(bound))
    q, history, steps = bjorck(w * _each(shrink), beta, max_iterations, eps_bjorck, save)
    return q * scale, torch.stack((sigma, shrink), -1), u, v, history, steps


def spectral_bjorck_backward(
    grad: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    history: Tensor,
    steps: Tensor,
    eps: float,
    beta: float,
    scale: float,
) -> Tensor:
    g = bjorck_backward(grad * scale, history, steps, beta)
    norm, shrink = sigma[..., 0], sigma[..., 1]
    first = history[..., 0, :, :] if history.dim() == g.dim() + 1 else g
    divisor = _divisor(norm, eps)
    along = torch.where(norm.abs() < eps, 0.0, -_inner(g, first) / divisor)
    return _each(shrink / divisor) * g + _each(along) * _outer(u, v)


# ---- the polar factor ----------------------------------------------------------------------------


def orthogonalize(
    weight: Tensor, tol: float, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The polar factor U Vᵀ of W = U S Vᵀ, by singular value decomposition.

    Singular values that rounding cannot tell from zero are left below one. ``info`` holds, in
    float64: the smallest and largest singular value of W, ‖I - QᵀQ‖_F, an upper bound of the
    largest singular value of Q, and the number of stages (0: none were needed).
    """
    m, n = weight.shape[-2:]
    small = min(m, n)
    if small == 0:
        info = weight.new_zeros((*weight.shape[:-2], 5), dtype=torch.float64)
        empty = (*weight.shape[:-2], 0, 0) if save and m != n else (0,)
        return weight.clone(), weight.new_zeros(empty), info
    finite = torch.isfinite(weight).all(-1).all(-1)
    safe = torch.where(_each(finite), weight, torch.zeros_like(weight))
    u, s, vh = torch.linalg.svd(safe, full_matrices=False)
    largest = s[..., :1]
    cut = 8 * torch.finfo(weight.dtype).eps * math.sqrt(small) * largest
    kept = torch.where(s > cut, torch.ones_like(s), s / cut.clamp_min(torch.finfo(s.dtype).tiny))
    kept = torch.where(largest > 0, kept, torch.zeros_like(kept))
    q = (u * kept.unsqueeze(-2)) @ vh
    q = torch.where(_each(finite), q, torch.full_like(q, math.nan))
    root = weight.new_zeros((0,))
    if save and m != n:
        basis = vh.mT if m > n else u
        # Bounded like the rest of the gradient.
        least = (GRADIENT_FLOOR * largest).clamp_min(torch.finfo(s.dtype).tiny)
        inverse = kept / torch.maximum(s, least)
        root = (basis * inverse.unsqueeze(-2)) @ basis.mT
    residual = torch.linalg.vector_norm(1 - kept.double() ** 2, dim=-1)
    info = torch.stack(
        (
            s[..., -1].double(),
            s[..., 0].double(),
            residual,
            1 + small * torch.finfo(weight.dtype).eps * torch.ones_like(residual),
            torch.zeros_like(residual),
        ),
        -1,
    )
    return (q * scale).contiguous(), root.contiguous(), info


def orthogonalize_backward(
    grad: Tensor,
    weight: Tensor,
    orthogonal: Tensor,
    inverse_root: Tensor,
    info: Tensor,
    tol: float,
    scale: float,
    tangent: bool,
) -> Tensor:
    """With A = QᵀG and H = QᵀW: HK + KH = A - Aᵀ, then ``Q K + (G - Q A) H⁻¹``."""
    m, n = weight.shape[-2:]
    if min(m, n) == 0:
        return grad.clone()
    if m < n:
        flipped = orthogonalize_backward(
            grad.mT, weight.mT, orthogonal.mT, inverse_root, info, tol, scale, tangent
        )
        return flipped.mT.contiguous()
    q, g = orthogonal / scale, grad * scale
    a = q.mT @ g
    skew = a - a.mT
    if tangent:
        return (q @ skew / 2 + (g - q @ a)).contiguous()
    h = q.mT @ weight
    h = (h + h.mT) / 2
    values, basis = torch.linalg.eigh(h)
    values = torch.maximum(values, GRADIENT_FLOOR * values.amax(-1, keepdim=True).clamp_min(0))
    pairs = values.unsqueeze(-1) + values.unsqueeze(-2)
    pairs = torch.where(pairs > 0, pairs, torch.full_like(pairs, math.inf))
    k = basis @ ((basis.mT @ skew @ basis) / pairs) @ basis.mT
    out = q @ k
    if m != n:
        out = out + (g - q @ a) @ inverse_root
    return out.contiguous()


def _as_groups(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def foreach_orthogonalize(
    weights: Sequence[Tensor],
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    save: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """:func:`orthogonalize` of weights ``(out, ...)``, each as ``groups`` matrices."""
    results = [
        orthogonalize(_as_groups(w, g), tol, s, save) for w, g, s in zip(weights, groups, scales)
    ]
    out = [q.reshape(w.shape) for (q, _, _), w in zip(results, weights)]
    return out, [r for _, r, _ in results], torch.cat([i for _, _, i in results])


def foreach_orthogonalize_backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    orthogonal: Sequence[Tensor],
    inverse_roots: Sequence[Tensor],
    info: Tensor,
    groups: Sequence[int],
    scales: Sequence[float],
    tol: float,
    tangent: bool,
) -> list[Tensor]:
    out: list[Tensor] = []
    row = 0
    for grad, w, q, root, g, s in zip(grads, weights, orthogonal, inverse_roots, groups, scales):
        parts = (_as_groups(grad, g), _as_groups(w, g), _as_groups(q, g))
        one = orthogonalize_backward(*parts, root, info[row : row + g], tol, s, tangent)
        out.append(one.reshape(w.shape))
        row += g
    return out


# ---- Frobenius normalisation and bounds ----------------------------------------------------------


def frobenius_normalize(weight: Tensor, eps: float, scale: float) -> tuple[Tensor, Tensor]:
    """Rows of the last dimension divided by their Euclidean norm; zero rows stay zero."""
    norm = torch.linalg.vector_norm(weight, dim=-1)
    return (weight * (scale / norm.clamp_min(eps)).unsqueeze(-1)).contiguous(), norm


def frobenius_normalize_backward(
    grad: Tensor, normalized: Tensor, norm: Tensor, eps: float, scale: float
) -> Tensor:
    """``(c G - <G, Ŵ> Ŵ / c) / ‖W‖``."""
    clamped = norm.clamp_min(eps)
    along = torch.where(norm < eps, 0.0, -(grad * normalized).sum(-1) / (scale * clamped))
    return (scale / clamped).unsqueeze(-1) * grad + along.unsqueeze(-1) * normalized


def spectral_bound(weight: Tensor, squarings: int) -> Tensor:
    """An upper bound of the spectral norm: here the norm itself, with a margin for rounding."""
    margin = 1 + 4 * math.sqrt(min(weight.shape[-2:])) * torch.finfo(weight.dtype).eps
    return _largest_singular_value(weight) * margin


def _symbol_grams(even: Tensor, odd: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """sum over terms of even cos + i odd sin, ``(frequencies, batch, n, n)``."""
    real = torch.einsum("bijt,tf->fbij", even, cosines)
    return torch.complex(real, torch.einsum("bijt,tf->fbij", odd, sines))


def symbol_scores(
    even: Tensor, odd: Tensor, cosines: Tensor, sines: Tensor, start: Tensor, steps: int
) -> Tensor:
    """The norm of S x after power iteration, for the Gram matrices S of convolutions' symbols.

    S is the sum over terms of even cos + i odd sin, with ``even`` and ``odd``
    ``(batch, n, n, terms)``, ``cosines`` and ``sines`` ``(terms, frequencies)``; the result is
    ``(frequencies, batch)``.
    """
    grams = _symbol_grams(even, odd, cosines, sines)
    x = start.to(grams).expand(grams.shape[:-1]).unsqueeze(-1)
    norm = even.new_zeros(grams.shape[:2])
    for _ in range(steps):
        length = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        x = grams @ torch.where(length > 0, x / length, 0.0)
        norm = torch.linalg.vector_norm(x, dim=(-2, -1))
    return norm


def symbol_exceeds(
    even: Tensor, odd: Tensor, cosines: Tensor, sines: Tensor, thresholds: Tensor
) -> Tensor:
    """0 where no eigenvalue of such a matrix exceeds its threshold ``(batch,)``, else 1 (uint8)."""
    grams = _symbol_grams(even, odd, cosines, sines)
    shifted = torch.diag_embed(thresholds.unsqueeze(-1).expand(grams.shape[1:3])) - grams
    return (torch.linalg.cholesky_ex(shifted).info != 0).to(torch.uint8)


# ---- activations and pools -----------------------------------------------------------------------


def _laid_out_as(like: Tensor, values: Tensor) -> Tensor:
    """The values in the memory format of ``like``: its strides if it is dense."""
    return torch.empty_like(like).copy_(values)


def _exchanged(input: Tensor, swap: Tensor, dim: int, scale: float) -> Tensor:
    first, second = torch.unflatten(input, dim, (-1, 2)).unbind(dim if dim < 0 else dim + 1)
    low, high = torch.where(swap, second, first), torch.where(swap, first, second)
    pairs = torch.stack((low, high), dim if dim < 0 else dim + 1)
    return pairs.flatten(dim - 1 if dim < 0 else dim, dim if dim < 0 else dim + 1) * scale


def sort_pairs(input: Tensor, dim: int, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    """Pairs (0, 1), (2, 3), ... along ``dim`` in ascending order, and which of them were swapped.

    Comparing with NaN is false: such a pair stays as it is.
    """
    if input.shape[dim] == 0:
        return input.clone(), input.new_empty(input.shape if save else 0, dtype=torch.bool)
    pairs = torch.unflatten(input, dim, (-1, 2))
    first, second = pairs.unbind(dim if dim < 0 else dim + 1)
    swap = first > second
    out = _laid_out_as(input, _exchanged(input, swap, dim, scale))
    return out, swap if save else swap.new_empty(0)


def sort_pairs_backward(grad: Tensor, swapped: Tensor, dim: int, scale: float) -> Tensor:
    """The Jacobian is a symmetric permutation matrix: the same pairs are swapped."""
    if grad.shape[dim] == 0:
        return grad.clone()
    return _exchanged(grad, swapped, dim, scale)


def max_min(input: Tensor, dim: int, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    """``scale`` times the positive and the negative part, one after the other along ``dim``.

    With them which there are of each number: 1 for the positive part, plus 2 for the negative one.
    A comparison with NaN is false: it has both.
    """
    up, down = ~(input <= 0), ~(input >= 0)
    parts = (torch.where(up, input, 0.0), torch.where(down, -input, 0.0))
    signs = up.to(torch.uint8) + 2 * down.to(torch.uint8)
    return torch.cat(parts, dim) * scale, signs if save else signs.new_empty(0)


def max_min_backward(grad: Tensor, signs: Tensor, dim: int, scale: float) -> Tensor:
    """The gradients of the parts that there are; they oppose each other."""
    size = signs.shape[dim]
    first, second = grad.split(size, dim) if size else (grad, grad)
    up, down = (signs & 1) != 0, (signs & 2) != 0
    return (torch.where(up, first, 0.0) - torch.where(down, second, 0.0)) * scale


def windows_of(input: Tensor, kernel: tuple[int, int], ceil_mode: bool) -> Tensor:
    """``(..., rows, kernel, columns, kernel)``, with zeros beyond the border."""
    for axis, k in ((-2, kernel[0]), (-1, kernel[1])):
        size = input.shape[axis]
        count = -(-size // k) if ceil_mode else size // k
        missing = max(0, count * k - size)
        input = input.narrow(axis, 0, min(size, count * k))
        pad = (0, missing) if axis == -1 else (0, 0, 0, missing)
        input = torch.nn.functional.pad(input, pad)
    height, width = input.shape[-2:]
    shape = (height // kernel[0], kernel[0], width // kernel[1], kernel[1])
    return input.reshape(*input.shape[:-2], *shape)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """The adjoint of :func:`windows_of`."""
    image = windows.flatten(-2).flatten(-3, -2)
    # A negative pad cuts off what lies beyond the border.
    missing = (0, width - image.shape[-1], 0, height - image.shape[-2])
    return torch.nn.functional.pad(image, missing)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_norm_pool2d(
    input: Tensor, kernel_height: int, kernel_width: int, ceil_mode: bool, scale: float
) -> Tensor:
    """``scale`` times the Euclidean norm of windows side by side."""
    windows = windows_of(_widened(input), (kernel_height, kernel_width), ceil_mode)
    return ((windows * windows).sum((-3, -1)).sqrt() * scale).to(input.dtype)


def l2_norm_pool2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel_height: int,
    kernel_width: int,
    ceil_mode: bool,
    scale: float,
) -> Tensor:
    """``scale g x / norm``; zero where the norm is too small for squares to have digits."""
    wide = _widened(input)
    windows = windows_of(wide, (kernel_height, kernel_width), ceil_mode)
    norm = (windows * windows).sum((-3, -1)).sqrt()
    large = norm >= 1024.0 * math.sqrt(torch.finfo(norm.dtype).tiny)
    ratio = torch.where(large, _widened(grad) * scale / torch.where(large, norm, 1.0), 0.0)
    values = from_windows(windows * ratio.unsqueeze(-1).unsqueeze(-3), *input.shape[-2:])
    return _laid_out_as(input, values.to(input.dtype))


def _window_factors(
    like: Tensor, height: int, width: int, kernel: tuple[int, int], ceil_mode: bool, scale: float
) -> Tensor:
    ones = torch.ones((1, height, width), dtype=torch.float64, device=like.device)
    counts = windows_of(ones, kernel, ceil_mode).sum((-3, -1))
    return (scale / counts.sqrt()).to(like.dtype)


def scaled_avg_pool2d(
    input: Tensor, kernel_height: int, kernel_width: int, ceil_mode: bool, scale: float
) -> Tensor:
    """``scale`` times the sum of each window over the root of its size."""
    kernel, wide = (kernel_height, kernel_width), _widened(input)
    height, width = input.shape[-2:]
    factors = _window_factors(wide, height, width, kernel, ceil_mode, scale)
    return (windows_of(wide, kernel, ceil_mode).sum((-3, -1)) * factors).to(input.dtype)


def scaled_avg_pool2d_backward(
    grad: Tensor,
    height: int,
    width: int,
    kernel_height: int,
    kernel_width: int,
    ceil_mode: bool,
    scale: float,
) -> Tensor:
    """The adjoint: each element gets its window's gradient, scaled."""
    kernel, wide = (kernel_height, kernel_width), _widened(grad)
    values = wide * _window_factors(wide, height, width, kernel, ceil_mode, scale)
    spread = values.unsqueeze(-1).unsqueeze(-3)
    shape = (*values.shape[:-1], kernel_height, values.shape[-1], kernel_width)
    windows = spread.expand(*shape)
    return from_windows(windows, height, width).to(grad.dtype)


# ---- the convolution's corrective factor ---------------------------------------------------------


def _pixel_at(p: int, n: int, mode: str) -> int:
    if 0 <= p < n:
        return p
    if mode == "zeros":
        return -1
    if mode == "replicate":
        return 0 if p < 0 else n - 1
    if mode == "circular":
        return p % n
    if mode == "reflect":
        if n == 1:
            return 0
        r = p % (2 * (n - 1))
        return r if r < n else 2 * (n - 1) - r
    r = p % (2 * n)
    return r if r < n else 2 * n - 1 - r


def _count_on(
    n: int, kernel: int, stride: int, before: int, after: int, dilation: int, mode: str
) -> int:
    span, uses = dilation * (kernel - 1) + 1, [0] * n
    for start in range(0, n + before + after - span + 1, stride):
        for j in range(kernel):
            pixel = _pixel_at(start + j * dilation - before, n, mode)
            if pixel >= 0:
                uses[pixel] += 1
    return max(uses)


def largest_use(
    kernel: int, stride: int, before: int, after: int, dilation: int, mode: str, length: int = 0
) -> int:
    """How often a convolution uses one pixel of an axis at most; ``length`` 0: of any length.

    Raises:
        ValueError: where counting would take minutes.
    """
    size = dilation * kernel + before + after + stride * dilation
    lengths = 1 if length or mode == "zeros" else 2 * size
    if size >= 1e9 or lengths * 3 * size * (1 + kernel / stride) >= 1e10:
        raise ValueError(
            "kernel, stride, padding and dilation are too large to count the uses of a pixel"
        )
    span = dilation * (kernel - 1) + 1
    reach = 2 * (span + before + after) + 2 * stride * dilation + 2
    shortest = 1
    if mode == "reflect":
        shortest = max(before, after) + 1
    elif mode in ("circular", "symmetric"):
        shortest = max(1, before, after)
    # Beyond this length both ends are independent of each other, and further pixels only repeat the
    # pattern of the stride.
    longest = reach + shortest
    if length:
        if length > longest:
            length = longest + (length - longest) % stride
        return _count_on(length, kernel, stride, before, after, dilation, mode)
    if mode == "zeros":  # more pixels between zeros are in more windows
        shortest = longest
    return max(
        _count_on(n, kernel, stride, before, after, dilation, mode)
        for n in range(shortest, longest + 1)
    )
