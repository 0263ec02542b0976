"""Single normalisations, modules for :mod:`torch.nn.utils.parametrize`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import (
    check_bool,
    check_choice,
    check_dim,
    check_in_range,
    check_positive,
    check_positive_int,
)
from ..distributed import is_sharded, whole
from ..functional.normalization import (
    bjorck,
    frobenius_normalize,
    orthogonalize,
    spectral_normalize,
)
from .weight import HALF, Method, as_matrices, can_look_at, headroom, recomputing, unit_vectors

__all__ = ["BjorckNorm", "FrobeniusNorm", "LConvNorm", "Orthogonal", "SpectralNorm"]


class SpectralNorm(nn.Module):
    """W / sigma by warm-started power iteration, as ``torch.nn.utils.parametrizations`` has it.

    Sigma is an estimate from below: the norm of W / sigma is at least 1, see
    :func:`lipfuse.parametrizations.spectral_norm`. The buffers ``_u`` and ``_v`` advance at every
    forward in training. A vector is divided by its Euclidean norm, and has no buffers.

    Args:
        weight: to start from, of at least 1 dimension.
        n_power_iterations: a training forward, positive.
        dim: of the output channels.
        eps: norms below count as this, positive.

    Raises:
        ValueError: if an argument is out of range.
    """

    _u: Tensor
    _v: Tensor

    def __init__(
        self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.n_power_iterations: int = check_positive_int("n_power_iterations", n_power_iterations)
        self.eps: float = check_positive("eps", eps)
        if weight.dim() < 1:
            raise ValueError(f"weight must have at least 1 dimension, got {weight.dim()}")
        self.dim: int = check_dim("dim", dim, weight.dim())
        if weight.dim() == 1:
            return
        with torch.no_grad():
            w = as_matrices(weight.movedim(self.dim, 0))
            w = w.float() if w.dtype in HALF else w
            u = unit_vectors((w.shape[0],), w)
            # A good start, as torch does it.
            _, _, u, v = spectral_normalize(w, u, n_iterations=15, eps=eps)
        self.register_buffer("_u", u)
        self.register_buffer("_v", v)

    def forward(self, weight: Tensor) -> Tensor:
        if is_sharded(weight):
            return whole(self.forward, weight)
        if weight.dim() == 1:
            return frobenius_normalize(weight, eps=self.eps)
        moved = weight.movedim(self.dim, 0) if self.dim else weight
        buffers = self._buffers  # where the module would look last
        u, v = buffers["_u"], buffers["_v"]
        assert u is not None and v is not None
        advancing = self.training and not recomputing()
        n = self.n_power_iterations if advancing else 0
        if self.training and weight.dtype == u.dtype and weight.dtype not in HALF:
            # Also to compute it again for a checkpoint, which wants the same tensors saved.
            out = ops.spectral_weight(moved, u, v, n, self.eps)
        else:
            w = as_matrices(moved)
            out, _, new_u, new_v = spectral_normalize(w, u, v, n_iterations=n, eps=self.eps)
            if advancing:
                torch._foreach_copy_((u, v), (new_u.detach(), new_v.detach()))
            out = out.reshape(moved.shape)
        return out.movedim(0, self.dim) if self.dim else out

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"n_power_iterations={self.n_power_iterations}, dim={self.dim}, eps={self.eps:g}"


class BjorckNorm(nn.Module):
    """Björck's iteration on the weight as a matrix of ``weight.shape[0]`` rows.

    Args:
        eps: stop once a step is shorter, positive.
        beta: in (0, 0.5].
        max_iterations: positive.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, eps: float = 1e-3, beta: float = 0.5, max_iterations: int = 15) -> None:
        super().__init__()
        self.eps: float = check_positive("eps", eps)
        self.beta: float = check_in_range("beta", beta, 0.0, 0.5, low_open=True)
        self.max_iterations: int = check_positive_int("max_iterations", max_iterations)

    def forward(self, weight: Tensor) -> Tensor:
        if is_sharded(weight):
            return whole(self.forward, weight)
        w = as_matrices(weight)
        out = bjorck(w, beta=self.beta, max_iterations=self.max_iterations, eps=self.eps)
        return out.reshape(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}, beta={self.beta:g}, max_iterations={self.max_iterations}"


class Orthogonal(nn.Module):
    """The polar factor of the weight as a matrix of ``weight.shape[0]`` rows.

    Args:
        tol, backward: as for :func:`lipfuse.functional.orthogonalize`.
        batched: of every matrix in the last two dimensions instead, as torch's ``orthogonal`` has
            it.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        tol: float = 1e-4,
        backward: Literal["exact", "tangent"] = "exact",
        batched: bool = False,
    ) -> None:
        super().__init__()
        self.tol: float = check_positive("tol", tol)
        self.backward: Literal["exact", "tangent"] = check_choice(
            "backward", backward, ("exact", "tangent")
        )
        self.batched: bool = check_bool("batched", batched)

    def forward(self, weight: Tensor) -> Tensor:
        if is_sharded(weight):
            return whole(self.forward, weight)
        w = weight if self.batched else as_matrices(weight)
        if w.dim() >= 2 and w.dtype in (torch.float32, torch.float64):
            # By the shortest way, as the layers have it: the checks take as long as a small weight.
            out = ops.orthogonal_weight(w, self.tol, 1.0, self.backward == "tangent")
        else:
            out = orthogonalize(w, tol=self.tol, backward=self.backward)
        return out if w is weight else out.reshape(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"tol={self.tol:g}, backward={self.backward!r}"


class FrobeniusNorm(nn.Module):
    """The weight over its Frobenius norm, or every output neuron over its own.

    Args:
        disjoint_neurons: each output neuron, ``weight[i]``, on its own.
        scale: the norm that they have then, positive.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range.
    """

    method: Method = "frobenius"

    def __init__(self, disjoint_neurons: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.disjoint_neurons: bool = check_bool("disjoint_neurons", disjoint_neurons)
        self.scale: float = check_positive("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        if is_sharded(weight):
            return whole(self.forward, weight)
        if not self.training and can_look_at(weight) and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                "weight must be finite to be normalised outside training, "
                f"got a weight of shape {tuple(weight.shape)} with NaN or infinite elements"
            )
        scale = self.scale * headroom(weight)
        count = weight.dim() - 1 if self.disjoint_neurons else weight.dim()
        if count > 0 and weight.dtype in (torch.float32, torch.float64):
            # By the shortest way: with a small weight, the checks would cost as much as the work.
            return ops.frobenius_normalize(weight, 1e-12, scale, count)
        dims = tuple(range(1, weight.dim())) if self.disjoint_neurons else None
        return frobenius_normalize(weight, dims, scale=scale)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"disjoint_neurons={self.disjoint_neurons}, scale={self.scale:g}"


class LConvNorm(nn.Module):
    """The weight times a convolution's corrective factor.

    Args:
        factor: what :func:`lipfuse.functional.conv_factor` gives for the convolution, positive.

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor: float = check_positive("factor", factor)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"
