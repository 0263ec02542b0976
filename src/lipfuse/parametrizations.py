"""Modules for :mod:`torch.nn.utils.parametrize`, and functions that register and remove them.

Each registrar takes a module and returns it, as those of ``torch.nn.utils.parametrizations`` do.
The layers of :mod:`lipfuse.nn` use one fused module, :class:`LipschitzWeight`, instead of a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any, Literal, Optional, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import ops
from ._checks import (
    check_bool,
    check_choice,
    check_dim,
    check_in_range,
    check_positive,
    check_positive_int,
)
from .distributed import is_sharded, whole
from .functional import convolution
from .functional._conv_symbol import ConvOperator
from .functional.normalization import _HALF as HALF
from .functional.normalization import (
    bjorck,
    frobenius_normalize,
    orthogonalize,
    spectral_normalize,
)

__all__ = [
    "HALF",
    "BjorckNorm",
    "FrobeniusNorm",
    "LConvNorm",
    "LipschitzWeight",
    "Orthogonal",
    "SpectralNorm",
    "bjorck_norm",
    "frobenius_norm",
    "lconv_norm",
    "orthogonal",
    "remove_bjorck_norm",
    "remove_frobenius_norm",
    "remove_lconv_norm",
    "remove_orthogonal",
    "remove_spectral_norm",
    "spectral_norm",
]

_M = TypeVar("_M", bound=nn.Module)

TRAINING_TOL = 1e-4
"""Accuracy of the polar factor in training: of ‖I - QᵀQ‖ in the Frobenius norm."""
EVAL_TOL = 1e-7
"""Accuracy of the polar factor outside training, where it is computed in float64."""


def as_matrices(weight: Tensor, groups: int = 1) -> Tensor:
    """A weight ``(out, in / groups, k...)`` as ``groups`` matrices, or as one."""
    if groups == 1:
        return weight if weight.dim() == 2 else weight.flatten(1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _unit(size: tuple[int, ...], like: Tensor) -> Tensor:
    """Random unit vectors, in the precision the weight is normalised in."""
    dtype = torch.float32 if like.dtype in HALF else like.dtype
    x = torch.randn(size, dtype=dtype, device=like.device)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def headroom(weight: Tensor) -> float:
    """What rounding the result to half precision may add to a singular value."""
    dtype = weight.dtype
    if ops.under_autocast(weight):
        dtype = torch.get_autocast_dtype(weight.device.type)
    return 1 / (1 + torch.finfo(dtype).eps) if dtype in HALF else 1.0


def _can_look_at(weight: Tensor) -> bool:
    """Whether there are values to decide on: not in a graph being made, not inside a transform."""
    return not (
        torch.compiler.is_compiling()
        or ops.transforming()
        or weight.is_meta
        or torch._C._get_tracing_state() is not None
    )


def recomputing() -> bool:
    """Whether a backward is running: activation checkpointing then calls the forward again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class ComputedWeight(nn.Module):
    """A weight computed from parameters: quickly in training, otherwise to full accuracy.

    Outside training it is computed from the current parameters in float64, and parameters that are
    not finite raise a ValueError. Gradients are kept in both modes.
    """

    scale: float
    backward: Literal["exact", "tangent"] = "exact"
    # What lipfuse.fuse computed for this forward, by the thread that runs it; never kept beyond it.
    given: Optional[dict[int, Tensor]] = None
    # The same, of the last forward inside torch.utils.checkpoint, which asks for it once more.
    _given_again: Optional[Tensor] = None
    # What was computed last outside training, with copies of all it was computed from.
    _kept: Optional[tuple[tuple[Tensor, ...], float, Tensor]] = None

    def __init__(self) -> None:
        super().__init__()
        self._name = ops.name_for(self)

    def polar_factors(self, *parameters: Tensor) -> list[tuple[Tensor, int, float]]:
        """The matrices whose polar factors the weight is made of in training.

        Returns:
            For each: a parameter, how many matrices below each other it is, and what their polar
            factors are multiplied by. Nothing, if the weight is computed in another way.
        """
        return []

    def assemble(self, factors: list[Tensor]) -> Tensor:
        """The weight from its polar factors, as :meth:`polar_factors` lists them."""
        raise NotImplementedError

    def hand_out(self, weight: Tensor) -> None:
        """Takes what :func:`lipfuse.fuse` computed, for the forward that this thread begins."""
        # One step of the interpreter each: several threads may run one model.
        self.__dict__.setdefault("given", {})[get_ident()] = weight

    def take_back(self) -> None:
        """This thread's forward has ended."""
        if self.given:
            self.given.pop(get_ident(), None)

    def _handed_out(self) -> Optional[Tensor]:
        """What :func:`lipfuse.fuse` has computed for this thread, if anything."""
        given = self.given.get(get_ident()) if self.given else None
        if given is not None:
            hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
            self._given_again = None if hooks is None else given
        elif self._given_again is not None and not recomputing():
            self._given_again = None
        return self._given_again if given is None else given

    def _to_full_accuracy(self, scale: float, *parameters: Tensor) -> Tensor:
        """The weight in float64, from finite parameters in float64."""
        raise NotImplementedError

    def _shape(self, *parameters: Tensor) -> Sequence[int]:
        """Of the weight."""
        return parameters[0].shape

    def _exactly(self, scale: float, *parameters: Tensor) -> Tensor:
        first = parameters[0]
        if (any(p.requires_grad for p in parameters) and torch.is_grad_enabled()) or first.is_cuda:
            return self._checked(scale, *parameters)
        if ops.in_compiled_code():
            return ops.evaluate(parameters, scale, self._shape(*parameters), self._name)
        at_hand = _can_look_at(first)
        return (self.evaluated if at_hand else self._checked)(scale, *parameters)

    def evaluated(self, scale: float, *parameters: Tensor) -> Tensor:
        """The result, from memory where the parameters are those of the last time."""
        # Inference calls this for every batch. Comparing the whole parameter with that of last time
        # costs little beside computing, and unlike a version counter it cannot be fooled.
        kept = self._kept
        if (
            kept is None
            or kept[1] != scale
            or any(a.dtype != b.dtype or not torch.equal(a, b) for a, b in zip(kept[0], parameters))
        ):
            result = self._checked(scale, *parameters).to(parameters[0].dtype)
            kept = self._kept = (tuple(p.detach().clone() for p in parameters), scale, result)
        return kept[2].clone()

    def _checked(self, scale: float, *parameters: Tensor) -> Tensor:
        for w in parameters:
            if _can_look_at(w) and not bool(torch.isfinite(w).all()):
                raise ValueError(
                    "weight must be finite to be normalised outside training, "
                    f"got a weight of shape {tuple(w.shape)} with NaN or infinite elements"
                )
        return self._to_full_accuracy(scale, *(w.double() for w in parameters))

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_kept": None, "_given_again": None}
        state.pop("given", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._name = ops.name_for(self)

    def train(self, mode: bool = True) -> ComputedWeight:
        self._kept = None
        return super().train(mode)


Method = Literal["polar", "bjorck", "spectral", "frobenius"]


class LipschitzWeight(ComputedWeight):
    r"""The normalised weight of a Lipschitz layer: no singular value above ``scale``.

    Args:
        weight: ``(out, in / groups, k...)``; taken as ``groups`` matrices, each normalised on its
            own.
        method: ``"polar"``, the polar factor: all singular values are ``scale``. ``"bjorck"``, the
            classic chain of power iteration and Björck's iteration while training, its limit
            otherwise. ``"spectral"``, the weight over a proven bound of its spectral norm.
        scale: the largest singular value, positive.
        groups: of a convolution.
        eps_spectral: Björck's chain only: accuracy wanted of the spectral norm; more power
            iterations for smaller values.
        eps_bjorck: Björck's chain: when to stop the iteration.
        backward: of the polar factor, ``"exact"`` or ``"tangent"``.
        operator: of a convolution whose own norm is to be ``scale``, instead of that of the weight
            as a matrix.
    """

    _u: Optional[Tensor]
    _v: Optional[Tensor]

    def __init__(
        self,
        weight: Tensor,
        *,
        method: Method = "polar",
        scale: float = 1.0,
        groups: int = 1,
        eps_spectral: float = 1e-3,
        eps_bjorck: float = 1e-3,
        backward: Literal["exact", "tangent"] = "exact",
        operator: Optional[ConvOperator] = None,
    ) -> None:
        super().__init__()
        self.operator = operator
        self.method: Method = check_choice("method", method, ("polar", "bjorck", "spectral"))
        self.scale = check_positive("scale", scale)
        self.groups = check_positive_int("groups", groups)
        self.eps_spectral = check_positive("eps_spectral", eps_spectral)
        self.eps_bjorck = check_positive("eps_bjorck", eps_bjorck)
        self.backward = check_choice("backward", backward, ("exact", "tangent"))
        u = v = None
        if method != "polar":
            w = as_matrices(weight.detach(), groups)
            u, v = _unit(tuple(w.shape[:-1]), w), _unit((*w.shape[:-2], w.shape[-1]), w)
        # The names that torch's spectral_norm and deel-torchlip use in their checkpoints.
        self.register_buffer("_u", u)
        self.register_buffer("_v", v)

    def polar_factors(self, *parameters: Tensor) -> list[tuple[Tensor, int, float]]:
        if self.method != "polar":
            return []
        (weight,) = parameters
        return [(weight, self.groups, self._own_scale(self.scale * headroom(weight)))]

    def assemble(self, factors: list[Tensor]) -> Tensor:
        (weight,) = factors
        finished = self._finish(as_matrices(weight, self.groups), self.scale * headroom(weight))
        return finished.reshape(weight.shape)

    def forward(self, weight: Tensor) -> Tensor:
        if self.given or self._given_again is not None:
            handed_out = self._handed_out()
            if handed_out is not None:
                return handed_out
        if (
            self.training
            and type(weight) is nn.Parameter
            and weight.dtype is torch.float32
            and weight.dim() == 2
            and self.method == "polar"
            and not ops.under_autocast(weight)
            and weight.numel()
        ):  # the common case, without the steps it does not need
            tangent = self.backward == "tangent"
            return ops.orthogonal_weight(weight, TRAINING_TOL, self.scale, tangent)
        if is_sharded(weight):
            return whole(self.forward, weight)
        w = as_matrices(weight, self.groups)
        if w.numel() == 0:
            return weight
        scale = self.scale * headroom(weight)
        if self.training:
            out = self._training_step(w.float() if w.dtype in HALF else w, scale)
        else:
            out = self._exactly(scale, w)
        return out.to(weight.dtype).reshape(weight.shape)

    def _own_scale(self, scale: float) -> float:
        """The largest singular value of the weight itself, before :meth:`_finish`."""
        return scale if self.operator is None else 1.0

    def _finish(self, normalised: Tensor, scale: float) -> Tensor:
        """The matrices divided by the norm of their convolution, if that is to be ``scale``."""
        return normalised if self.operator is None else self.operator.divided(normalised, scale)

    def _checked(self, scale: float, *parameters: Tensor) -> Tensor:
        exact = super()._checked(self._own_scale(scale), *parameters)
        if self.operator is not None:
            # By the very bound of training, which is computed in its precision.
            dtype = parameters[0].dtype
            exact = exact.to(torch.float32 if dtype in HALF else dtype)
        return self._finish(exact, scale)

    def _training_step(self, w: Tensor, scale: float) -> Tensor:
        return self._finish(self._step(w, self._own_scale(scale)), scale)

    def _step(self, w: Tensor, scale: float) -> Tensor:
        if self.method == "polar":
            return ops.orthogonal_weight(w, TRAINING_TOL, scale, self.backward == "tangent")
        assert self._u is not None and self._v is not None
        u, v = self._u.to(w.dtype), self._v.to(w.dtype)
        again = recomputing()  # from where the forward arrived, to the same result
        if self.method == "bjorck":
            # Björck's iteration forgives an estimate that is 70 % too small, and the operator
            # notices a worse one, so that few iterations do.
            iterations = 0 if again else 2 if self.eps_spectral >= 1e-3 else 5
            out, _, u, v = ops.spectral_bjorck(
                w, u, v, iterations, 1e-12, 0.5, 15, self.eps_bjorck, scale
            )
        else:
            out, u, v = self._divided(w, u, v, 0 if again else 2, scale)
        if not again:
            with torch.no_grad():
                self._u.copy_(u)
                self._v.copy_(v)
        return out

    def _divided(
        self, w: Tensor, u: Tensor, v: Tensor, iterations: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weight over a proven bound; the gradient is that of division by uᵀWv."""
        out, sigma, u, v = ops.spectral_normalize(w, u, v, iterations, 1e-12, scale)
        bound = ops.spectral_bound(w, 8)
        # At most 1; where the weight vanishes both are 0 and the quotient is of no account.
        shrink = torch.where(bound > 0, sigma.detach() / bound.clamp_min(1e-37), 1.0).clamp_max(1.0)
        return out * shrink[..., None, None], u, v

    def _to_full_accuracy(self, scale: float, *parameters: Tensor) -> Tensor:
        (exact,) = parameters
        if self.method != "spectral":
            return ops.orthogonalize(exact, EVAL_TOL, scale, self.backward == "tangent")[0]
        assert self._u is not None and self._v is not None
        return self._divided(exact, self._u.double(), self._v.double(), 100, scale)[0]

    def without_bjorck(self, weight: Tensor) -> None:
        """From now on, the weight is only divided by a bound of its spectral norm."""
        if self._u is None:
            w = as_matrices(weight.detach(), self.groups)
            self._u = _unit(tuple(w.shape[:-1]), w)
            self._v = _unit((*w.shape[:-2], w.shape[-1]), w)
        self.method = "spectral"
        self._kept = None

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Any weight may be assigned; what is used is its normalisation."""
        return weight

    def extra_repr(self) -> str:
        parts = [f"method={self.method!r}", f"scale={self.scale:g}"]
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.operator is not None:
            parts.append("normalization='operator'")
        return ", ".join(parts)


# ---- single normalisations -----------------------------------------------------------------------


class SpectralNorm(nn.Module):
    """W / sigma by warm-started power iteration, as ``torch.nn.utils.parametrizations`` has it.

    The buffers ``_u`` and ``_v`` advance at every forward in training. A vector is divided by its
    Euclidean norm, and has no buffers.

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
        self.n_power_iterations = check_positive_int("n_power_iterations", n_power_iterations)
        self.eps = check_positive("eps", eps)
        if weight.dim() < 1:
            raise ValueError(f"weight must have at least 1 dimension, got {weight.dim()}")
        self.dim = check_dim("dim", dim, weight.dim())
        if weight.dim() == 1:
            return
        with torch.no_grad():
            w = self._matrix(weight)
            w = w.float() if w.dtype in HALF else w
            u = _unit((w.shape[0],), w)
            # A good start, as torch does it.
            _, _, u, v = spectral_normalize(w, u, n_iterations=15, eps=eps)
        self.register_buffer("_u", u)
        self.register_buffer("_v", v)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.dim, 0).flatten(1)

    def forward(self, weight: Tensor) -> Tensor:
        if is_sharded(weight):
            return whole(self.forward, weight)
        if weight.dim() == 1:
            return frobenius_normalize(weight, eps=self.eps)
        w = weight if weight.dim() == 2 and self.dim == 0 else self._matrix(weight)
        advancing = self.training and not recomputing()
        n = self.n_power_iterations if advancing else 0
        if advancing and w.dtype == self._u.dtype and w.dtype not in HALF:
            out = ops.spectral_weight(w, self._u, self._v, n, self.eps)
        else:
            out, _, u, v = spectral_normalize(w, self._u, self._v, n_iterations=n, eps=self.eps)
            if advancing:
                torch._foreach_copy_((self._u, self._v), (u.detach(), v.detach()))
        if w is weight:
            return out
        moved = weight.movedim(self.dim, 0).shape
        return out.reshape(moved).movedim(0, self.dim)

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
        self.eps = check_positive("eps", eps)
        self.beta = check_in_range("beta", beta, 0.0, 0.5, low_open=True)
        self.max_iterations = check_positive_int("max_iterations", max_iterations)

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
        self.tol = check_positive("tol", tol)
        self.backward: Literal["exact", "tangent"] = check_choice(
            "backward", backward, ("exact", "tangent")
        )
        self.batched = check_bool("batched", batched)

    def forward(self, weight: Tensor) -> Tensor:
        if is_sharded(weight):
            return whole(self.forward, weight)
        w = weight if self.batched else as_matrices(weight)
        return orthogonalize(w, tol=self.tol, backward=self.backward).reshape(weight.shape)

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
        self.disjoint_neurons = check_bool("disjoint_neurons", disjoint_neurons)
        self.scale = check_positive("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        if is_sharded(weight):
            return whole(self.forward, weight)
        if not self.training and _can_look_at(weight) and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                "weight must be finite to be normalised outside training, "
                f"got a weight of shape {tuple(weight.shape)} with NaN or infinite elements"
            )
        dims = tuple(range(1, weight.dim())) if self.disjoint_neurons else None
        return frobenius_normalize(weight, dims, scale=self.scale * headroom(weight))

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
        self.factor = check_positive("factor", factor)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"


# ---- registrars ----------------------------------------------------------------------------------


def _kind_of(module: nn.Module) -> str:
    name: str = parametrize.type_before_parametrizations(module).__name__
    return name


def _weight_of(module: nn.Module, name: str) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"name must be that of a parameter of {_kind_of(module)}, got {name!r}")
    return weight


def _register(module: _M, name: str, parametrization: nn.Module) -> _M:
    # `unsafe` skips torch's trial of right_inverse, which here is a projection, not an inverse.
    parametrize.register_parametrization(module, name, parametrization, unsafe=True)
    return module


def _remove(module: _M, name: str, kind: type[nn.Module]) -> _M:
    """Takes every parametrization of that kind off; the others and the parameter stay."""
    # The layers of lipfuse.nn have one parametrization for the whole chain.
    own: Any = getattr(module, "_remove_from_weight", None)
    if own is not None and name == "weight" and own(kind):
        return module
    if not parametrize.is_parametrized(module, name):
        raise ValueError(f"{name} of {_kind_of(module)} has no {kind.__name__} to remove")
    chain: Any = module.parametrizations[name]  # type: ignore[index]
    kept = [p for p in chain if not isinstance(p, kind)]
    if len(kept) == len(chain):
        raise ValueError(f"{name} of {_kind_of(module)} has no {kind.__name__} to remove")
    if not kept:
        parametrize.remove_parametrizations(module, name)
        return module
    original = chain.original
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    setattr(module, name, original)
    for p in kept:
        _register(module, name, p)
    return module


def spectral_norm(
    module: _M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: Optional[int] = None,
) -> _M:
    """Divides a weight by its spectral norm at every forward; arguments as torch's.

    Args:
        module: the module, changed in place.
        name: of the parameter.
        n_power_iterations: a training forward.
        eps: positive.
        dim: of the output channels; 0, or 1 for transposed convolutions, if None.

    Returns:
        The module.

    Raises:
        ValueError: if the module has no tensor of that name, or an argument is out of range.
    """
    weight = _weight_of(module, name)
    if dim is None:
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        dim = 1 if isinstance(module, transposed) else 0
    return _register(module, name, SpectralNorm(weight, n_power_iterations, dim, eps))


def bjorck_norm(module: _M, name: str = "weight", eps: float = 1e-3) -> _M:
    """Applies Björck's iteration to a weight at every forward; normalise it spectrally before.

    Args:
        module: the module, changed in place.
        name: of the parameter.
        eps: stop once a step is shorter, positive.

    Returns:
        The module.

    Raises:
        ValueError: if the module has no tensor of that name, or ``eps`` is not positive.
    """
    _weight_of(module, name)
    return _register(module, name, BjorckNorm(eps))


def orthogonal(
    module: _M,
    name: str = "weight",
    *,
    tol: float = 1e-4,
    backward: Literal["exact", "tangent"] = "exact",
) -> _M:
    """Replaces a weight by its polar factor at every forward.

    Args:
        module: the module, changed in place.
        name: of the parameter.
        tol, backward: as for :func:`lipfuse.functional.orthogonalize`.

    Returns:
        The module.

    Raises:
        ValueError: if the module has no tensor of that name, or an argument is out of range.
    """
    _weight_of(module, name)
    return _register(module, name, Orthogonal(tol, backward))


def frobenius_norm(module: _M, name: str = "weight", disjoint_neurons: bool = True) -> _M:
    """Divides a weight by its Frobenius norm at every forward, or each output neuron by its own.

    Args:
        module: the module, changed in place.
        name: of the parameter.
        disjoint_neurons: each output neuron on its own.

    Returns:
        The module.

    Raises:
        ValueError: if the module has no tensor of that name.
    """
    _weight_of(module, name)
    return _register(module, name, FrobeniusNorm(disjoint_neurons))


def lconv_norm(module: _M, name: str = "weight") -> _M:
    """Multiplies a convolution's weight by its corrective factor, from the module's own settings.

    After :func:`spectral_norm` with ``dim=0``, for a transposed convolution too, this makes the
    convolution 1-Lipschitz, as far as the estimate of the spectral norm has converged.

    Args:
        module: a ``ConvNd`` or ``ConvTransposeNd``, changed in place.
        name: of the parameter.

    Returns:
        The module.

    Raises:
        TypeError: if the module is no convolution.
        ValueError: if the module has no tensor of that name.
    """
    _weight_of(module, name)
    return _register(module, name, LConvNorm(factor_of(module)))


def factor_of(module: nn.Module) -> float:
    """The corrective factor of a ``torch.nn`` convolution, for inputs of every size."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        raise TypeError(f"module must be a convolution of torch.nn, got {_kind_of(module)}")
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return convolution.conv_factor(
        module.kernel_size,
        module.stride,
        module.padding,  # type: ignore[arg-type]
        module.dilation,
        module.padding_mode,
        transposed=transposed,
    )


def remove_spectral_norm(module: _M, name: str = "weight") -> _M:
    """Undoes :func:`spectral_norm`.

    If it is the only parametrization, the weight becomes a parameter with the value it has;
    otherwise the others stay, and are computed from the parameter alone.

    Args:
        module: the module, changed in place.
        name: of the parameter.

    Returns:
        The module.

    Raises:
        ValueError: if there is nothing to undo.
    """
    return _remove(module, name, SpectralNorm)


def remove_bjorck_norm(module: _M, name: str = "weight") -> _M:
    """Undoes :func:`bjorck_norm`; arguments and errors as for :func:`remove_spectral_norm`.

    The spectral layers of :mod:`lipfuse.nn` then only divide by a bound of the spectral norm, and
    keep their constant.
    """
    return _remove(module, name, BjorckNorm)


def remove_orthogonal(module: _M, name: str = "weight") -> _M:
    """Undoes :func:`orthogonal`; arguments and errors as for :func:`remove_spectral_norm`."""
    return _remove(module, name, Orthogonal)


def remove_frobenius_norm(module: _M, name: str = "weight") -> _M:
    """Undoes :func:`frobenius_norm`; arguments and errors as for :func:`remove_spectral_norm`.

    The Frobenius layers of :mod:`lipfuse.nn` become the unconstrained layers that they derive from,
    ``torch.nn.Linear`` or :class:`lipfuse.nn.PadConv2d`, since nothing holds their constant then.
    """
    return _remove(module, name, FrobeniusNorm)


def remove_lconv_norm(module: _M, name: str = "weight") -> _M:
    """Undoes :func:`lconv_norm`; arguments and errors as for :func:`remove_spectral_norm`.

    The kernel of a convolution of :mod:`lipfuse.nn` is then larger by the corrective factor, and
    its ``k_coef_lip`` with it.
    """
    return _remove(module, name, LConvNorm)
