r"""Normalisations of weights: spectral, Björck, polar factor, Frobenius.

A weight is a matrix or a batch of matrices, ``(..., m, n)``. Half precision is normalised in
float32 and cast back; float64 stays float64; under autocast everything runs in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Optional, Union

import torch
from torch import Tensor

from .. import ops
from .._checks import (
    check_choice,
    check_dim,
    check_in_range,
    check_positive,
    check_positive_int,
    check_tensor,
)
from ..ops.foreach_spectral_normalize import takes as _in_one_launch

__all__ = [
    "bjorck",
    "foreach_orthogonalize",
    "foreach_spectral_normalize",
    "frobenius_normalize",
    "orthogonalize",
    "power_iteration",
    "spectral_bjorck",
    "spectral_norm_bound",
    "spectral_normalize",
]

_HALF = (torch.float16, torch.bfloat16)


def _check_weight(weight: Tensor, min_dim: int = 2) -> Tensor:
    """The weight in the precision it is normalised in."""
    check_tensor("weight", weight, min_dim=min_dim)
    return weight.float() if weight.dtype in _HALF else weight


def _check_vector(name: str, value: Tensor, weight: Tensor, size: int) -> Tensor:
    check_tensor(name, value)
    expected = (*weight.shape[:-2], size)
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{name} must have shape {expected} for a weight of shape {tuple(weight.shape)}, "
            f"got {tuple(value.shape)}"
        )
    if value.device != weight.device:
        raise ValueError(f"{name} must be on {weight.device} like the weight, got {value.device}")
    return value.to(weight.dtype)


def _check_vectors(
    weight: Tensor, u: Tensor, v: Optional[Tensor], n_iterations: int, eps: float
) -> tuple[Tensor, Optional[Tensor]]:
    check_positive_int("n_iterations", n_iterations, minimum=0)
    eps = check_positive("eps", eps)
    if u is None:
        raise TypeError("u must be a tensor, got None")
    left = _check_vector("u", u, weight, weight.shape[-2])
    return left, None if v is None else _check_vector("v", v, weight, weight.shape[-1])


def power_iteration(
    weight: Tensor,
    u: Tensor,
    v: Optional[Tensor] = None,
    *,
    n_iterations: int = 1,
    eps: float = 1e-12,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The largest singular value by power iteration, one reading of the weight an iteration.

    .. math::
        v \leftarrow W^\top u / \|W^\top u\|, \qquad u \leftarrow W v / \|W v\|, \qquad
        \sigma = u^\top W v

    :math:`\sigma` approaches the spectral norm from below: it is an estimate, not a bound. Its
    gradient holds u and v constant, :math:`\partial\sigma/\partial W = u v^\top`. A product that
    vanishes or is not finite leaves u and v as they were.

    Args:
        weight: ``(..., m, n)``, floating point.
        u: ``(..., m)``, the left vector to start from; not changed.
        v: ``(..., n)``, the right vector to start from; made from ``u`` if missing.
        n_iterations: how often; 0 evaluates sigma for the vectors given.
        eps: products shorter than this count as zero.

    Returns:
        ``(sigma, u, v)`` of shapes ``(...)``, ``(..., m)``, ``(..., n)``: new tensors in the dtype
        of ``weight``. Half precision is computed in float32.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape, device or range.

    Reference:
        Miyato et al., "Spectral Normalization for GANs", arXiv 1802.05957, algorithm 1.
    """
    w = _check_weight(weight)
    left, right = _check_vectors(w, u, v, n_iterations, eps)
    sigma, left, right = ops.power_iteration(w, left, right, n_iterations, eps)
    return sigma.to(weight.dtype), left.to(weight.dtype), right.to(weight.dtype)


def spectral_normalize(
    weight: Tensor,
    u: Tensor,
    v: Optional[Tensor] = None,
    *,
    n_iterations: int = 1,
    eps: float = 1e-12,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The weight over its spectral norm, :math:`\hat W = c\, W / \sigma`, by power iteration.

    The gradient with u and v held constant is :math:`(c\,G - \langle G, \hat W\rangle u v^\top) /
    \sigma`, and can be differentiated again. Where sigma is below ``eps`` the divisor is ``eps``,
    so that a zero weight stays zero.

    Args:
        weight, u, v, n_iterations, eps: as for :func:`power_iteration`.
        scale: c, positive.

    Returns:
        ``(normalized, sigma, u, v)``: the first in the shape of ``weight``, the others as those of
        :func:`power_iteration`, all in the dtype of ``weight``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape, device or range.

    Reference:
        Miyato et al., "Spectral Normalization for GANs", arXiv 1802.05957, equations 8 to 12.
    """
    w = _check_weight(weight)
    left, right = _check_vectors(w, u, v, n_iterations, eps)
    scale = check_positive("scale", scale)
    out, sigma, left, right = ops.spectral_normalize(w, left, right, n_iterations, eps, scale)
    dtype = weight.dtype
    return out.to(dtype), sigma.to(dtype), left.to(dtype), right.to(dtype)


def bjorck(
    weight: Tensor, *, beta: float = 0.5, max_iterations: int = 15, eps: float = 1e-3
) -> Tensor:
    r"""Björck's orthonormalisation, :math:`W \leftarrow (1 + \beta) W - \beta W W^\top W`.

    Stops once :math:`\|W_{k+1} - W_k\|_F` is below ``eps``. The gradient is the exact adjoint of
    the iterations that ran. Converges to the polar factor for singular values in
    :math:`(0, \sqrt{1 + 1/\beta})`; larger ones diverge: divide by the spectral norm first, or call
    :func:`orthogonalize`, which takes any matrix.

    Args:
        weight: ``(..., m, n)``, floating point.
        beta: step length, in (0, 0.5].
        max_iterations: at most so many steps; 0 returns the weight.
        eps: positive.

    Returns:
        A tensor of the shape and dtype of ``weight``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    Reference:
        Björck & Bowie, SIAM J. Numer. Anal. 8 (1971); Anil et al., arXiv 1811.05381, equation 5.
    """
    w = _check_weight(weight)
    beta = check_in_range("beta", beta, 0.0, 0.5, low_open=True)
    check_positive_int("max_iterations", max_iterations, minimum=0)
    eps = check_positive("eps", eps)
    out, _ = ops.bjorck(w, beta, max_iterations, eps)
    return out.to(weight.dtype)


def spectral_bjorck(
    weight: Tensor,
    u: Tensor,
    v: Optional[Tensor] = None,
    *,
    n_iterations: int = 1,
    eps: float = 1e-12,
    beta: float = 0.5,
    max_iterations: int = 15,
    eps_bjorck: float = 1e-3,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spectral normalisation, Björck's iteration and a scale as one operator.

    The classic chain of a Lipschitz layer. An estimate of sigma that is too small for Björck to
    converge is noticed by a rigorous bound, and the weight shrunk by it first.

    Args:
        weight, u, v, n_iterations, eps: as for :func:`power_iteration`.
        beta, max_iterations, eps_bjorck: as for :func:`bjorck`.
        scale: what the result is multiplied by (the convolution's factor times k), positive.

    Returns:
        ``(normalized, sigma, u, v)`` as those of :func:`spectral_normalize`.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape, device or range.
    """
    w = _check_weight(weight)
    left, right = _check_vectors(w, u, v, n_iterations, eps)
    beta = check_in_range("beta", beta, 0.0, 0.5, low_open=True)
    check_positive_int("max_iterations", max_iterations, minimum=0)
    eps_bjorck = check_positive("eps_bjorck", eps_bjorck)
    scale = check_positive("scale", scale)
    if max_iterations == 0:  # the operator's gradient begins with the first iterate, which it keeps
        return spectral_normalize(weight, u, v, n_iterations=n_iterations, eps=eps, scale=scale)
    out, sigma, left, right = ops.spectral_bjorck(
        w, left, right, n_iterations, eps, beta, max_iterations, eps_bjorck, scale
    )
    dtype = weight.dtype
    return out.to(dtype), sigma.to(dtype), left.to(dtype), right.to(dtype)


def orthogonalize(
    weight: Tensor,
    *,
    tol: float = 1e-4,
    backward: Literal["exact", "tangent"] = "exact",
    scale: float = 1.0,
) -> Tensor:
    r"""The polar factor :math:`Q = W (W^\top W)^{-1/2}`: orthonormal columns, or rows if m < n.

    What Björck's iteration converges to, for every matrix and at any scale, from polynomials of the
    Gram matrix that fit its spectrum. :math:`\|I - Q^\top Q\|_F \le` ``tol`` (or what rounding
    leaves, about :math:`n\,\epsilon / 2`) is measured, with an allowance for rounding, not assumed;
    no singular value exceeds 1 by more than 1e-5 and rounding. Singular values of W that rounding
    cannot tell from zero stay below 1; zero stays zero; NaN or infinity make the whole result NaN.

    The exact gradient is that of the polar factor itself: with :math:`A = Q^\top G`,
    :math:`H = Q^\top W` and K the solution of :math:`HK + KH = A - A^\top`,

    .. math:: \bar W = Q K + (G - Q A) H^{-1}.

    K is found to 20 times ``tol``, relative to its norm; of a weight that is not square, the second
    term is as exact as Q is orthonormal: to ``tol`` times the ratio of singular values. The
    gradient is unbounded where a singular value tends to 0: those below 1e-4 of the largest count
    as about that. The tangent gradient takes :math:`H = I`,
    :math:`\bar W = Q (A - A^\top) / 2 + (G - Q A)`: the gradient projected to the tangent space of
    the orthonormal matrices, exact where W is one. A second derivative is not available and
    says so.

    Args:
        weight: ``(..., m, n)``, floating point.
        tol: what :math:`\|I - Q^\top Q\|_F` may be, positive.
        backward: ``"exact"`` or ``"tangent"``.
        scale: what Q is multiplied by, positive.

    Returns:
        ``scale * Q``, of the shape and dtype of ``weight``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    Reference:
        Amsel et al., "The Polar Express", arXiv 2505.16932, for the polynomials.
    """
    w = _check_weight(weight)
    tol = check_positive("tol", tol)
    check_choice("backward", backward, ("exact", "tangent"))
    scale = check_positive("scale", scale)
    out, _ = ops.orthogonalize(w, tol, scale, backward == "tangent")
    return out.to(weight.dtype)


def _check_weights(weights: Sequence[Tensor], scales: Union[float, Sequence[float]]) -> list[float]:
    if isinstance(weights, Tensor) or not isinstance(weights, (list, tuple)):
        raise TypeError(f"weights must be a list or tuple of tensors, got {type(weights).__name__}")
    for i, w in enumerate(weights):
        check_tensor(f"weights[{i}]", w, min_dim=2)
    given = list(scales) if isinstance(scales, (list, tuple)) else [scales] * len(weights)
    if len(given) != len(weights):
        raise ValueError(
            f"scales must be a number or have {len(weights)} elements, got {len(given)}"
        )
    return [check_positive("scales", s) for s in given]


def _check_one_each(
    name: str, vectors: Sequence[Tensor], matrices: Sequence[Tensor], dim: int
) -> list[Tensor]:
    """One vector a matrix, of its size along ``dim``, in the precision it is normalised in."""
    if isinstance(vectors, Tensor) or not isinstance(vectors, (list, tuple)):
        raise TypeError(f"{name} must be a list or tuple of tensors, got {type(vectors).__name__}")
    if len(vectors) != len(matrices):
        raise ValueError(f"{name} must have {len(matrices)} elements, got {len(vectors)}")
    return [
        _check_vector(f"{name}[{i}]", x, w, w.shape[dim])
        for i, (x, w) in enumerate(zip(vectors, matrices))
    ]


def foreach_orthogonalize(
    weights: Sequence[Tensor],
    *,
    tol: float = 1e-4,
    backward: Literal["exact", "tangent"] = "exact",
    scales: Union[float, Sequence[float]] = 1.0,
) -> list[Tensor]:
    """:func:`orthogonalize` of many weights in one native call, forward and backward.

    Args:
        weights: tensors ``(out, ...)``, each taken as one matrix of ``out`` rows.
        tol, backward: as for :func:`orthogonalize`.
        scales: what the results are multiplied by, one number or one a weight; positive.

    Returns:
        One tensor a weight, of its shape and dtype.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, length or range.
    """
    each = _check_weights(weights, scales)
    tol = check_positive("tol", tol)
    check_choice("backward", backward, ("exact", "tangent"))
    full = [w.float() if w.dtype in _HALF else w for w in weights]
    out: list[Optional[Tensor]] = [None] * len(full)
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, w in enumerate(full):
        if w.numel():
            kinds.setdefault((w.dtype, w.device), []).append(i)
        else:
            out[i] = weights[i].clone()
    for indices in kinds.values():
        results = ops.foreach_orthogonalize(
            [full[i] for i in indices],
            [1] * len(indices),
            [each[i] for i in indices],
            tol,
            backward == "tangent",
        )
        for i, result in zip(indices, results):
            out[i] = result.to(weights[i].dtype)
    return [o for o in out if o is not None]


def foreach_spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Optional[Sequence[Tensor]] = None,
    *,
    n_iterations: int = 1,
    eps: float = 1e-12,
    scales: Union[float, Sequence[float]] = 1.0,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """:func:`spectral_normalize` of many weights; on CUDA in one launch, forward and backward.

    Args:
        weights: tensors ``(out, ...)``, each taken as one matrix of ``out`` rows.
        us, vs: the vectors of each, ``(out,)`` and ``(rest,)``.
        n_iterations, eps: as for :func:`spectral_normalize`.
        scales: what the results are multiplied by, one number or one a weight; positive.

    Returns:
        Lists ``(normalized, sigmas, us, vs)``.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, length or range.
    """
    each = _check_weights(weights, scales)
    check_positive_int("n_iterations", n_iterations, minimum=0)
    eps = check_positive("eps", eps)
    matrices = [_check_weight(w.flatten(1)) for w in weights]
    left = _check_one_each("us", us, matrices, -2)
    right = None if vs is None else _check_one_each("vs", vs, matrices, -1)
    if _in_one_launch(weights):
        return ops.foreach_spectral_normalize(weights, left, right or [], n_iterations, eps, each)
    found: tuple[list[Tensor], ...] = ([], [], [], [])
    for i, (w, matrix) in enumerate(zip(weights, matrices)):
        v = None if right is None else right[i]
        out, *others = ops.spectral_normalize(matrix, left[i], v, n_iterations, eps, each[i])
        for results, x in zip(found, (out.reshape(w.shape), *others)):
            results.append(x.to(w.dtype))
    normalized, sigmas, us, vs = found
    return normalized, sigmas, us, vs


def frobenius_normalize(
    weight: Tensor,
    dim: Union[int, Sequence[int], None] = None,
    *,
    eps: float = 1e-12,
    scale: float = 1.0,
) -> Tensor:
    r"""The weight over its Euclidean norm, :math:`c\, W / \|W\|_F`, as a whole or along dimensions.

    Where the norm is below ``eps`` the divisor is ``eps``, so that zero stays zero.

    Args:
        weight: of any shape, floating point.
        dim: the dimensions that make up one vector; all of them if None.
        eps: positive.
        scale: c, positive.

    Returns:
        A tensor of the shape and dtype of ``weight``. Can be differentiated twice.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range.
    """
    w = _check_weight(weight, min_dim=1)
    eps = check_positive("eps", eps)
    scale = check_positive("scale", scale)
    if dim is None:
        dims = list(range(w.dim()))
    else:
        given = list(dim) if isinstance(dim, (tuple, list)) else [dim]
        dims = sorted({check_dim("dim", d, w.dim()) for d in given})
        if not dims:
            raise ValueError("dim must name at least one dimension, got none")
    order = [d for d in range(w.dim()) if d not in dims] + dims
    # Views cost more than the division of a small weight: only where they are needed.
    in_place = order == sorted(order)
    moved = w if in_place else w.permute(order)
    out = ops.frobenius_normalize(moved, eps, scale, len(dims))
    if not in_place:
        out = out.permute([order.index(d) for d in range(w.dim())])
    return out.to(weight.dtype)


def spectral_norm_bound(weight: Tensor, *, squarings: int = 10) -> Tensor:
    r"""An upper bound of the largest singular value, never below it.

    A Krylov estimate that a Cholesky factorisation proves, else Gram iteration,
    :math:`\|(W^\top W)^{2^t}\|_F^{1/2^{t+1}}`, whichever is smaller. Rounding is included.

    Args:
        weight: ``(..., m, n)``, floating point.
        squarings: t, at least 0.

    Returns:
        Bounds of shape ``(...)``, without a gradient; float32 for half precision.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range.

    Reference:
        Delattre et al., "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
        Iteration", ICML 2023.
    """
    w = _check_weight(weight)
    check_positive_int("squarings", squarings, minimum=0)
    return ops.spectral_bound(w, squarings)
