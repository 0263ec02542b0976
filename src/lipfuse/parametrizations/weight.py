"""The weight of a Lipschitz layer, computed by one fused module."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any, Literal, Optional

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_choice, check_positive, check_positive_int
from ..distributed import is_sharded, whole
from ..functional._conv_symbol import ConvOperator
from ..functional.normalization import _HALF as HALF
from ..ops import as_matrices

__all__ = ["HALF", "ComputedWeight", "LipschitzWeight", "as_matrices"]

TRAINING_TOL = 1e-4
"""Accuracy of the polar factor in training: of ‖I - QᵀQ‖ in the Frobenius norm."""
EVAL_TOL = 1e-7
"""Accuracy of the polar factor outside training, where it is computed in float64."""


def unit_vectors(size: Sequence[int], like: Tensor) -> Tensor:
    """Random unit vectors, in the precision the weight is normalised in."""
    dtype = torch.float32 if like.dtype in HALF else like.dtype
    x = torch.randn(size, dtype=dtype, device=like.device)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _singular_vectors(weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Where power iteration starts, for each of the matrices."""
    w = as_matrices(weight.detach(), groups)
    return unit_vectors(w.shape[:-1], w), unit_vectors((*w.shape[:-2], w.shape[-1]), w)


def headroom(weight: Tensor) -> float:
    """What rounding the result to half precision may add to a singular value."""
    dtype = weight.dtype
    if ops.under_autocast(weight):
        dtype = torch.get_autocast_dtype(weight.device.type)
    return 1 / (1 + torch.finfo(dtype).eps) if dtype in HALF else 1.0


def can_look_at(weight: Tensor) -> bool:
    """Whether there are values to decide on: not in a graph being made, not inside a transform."""
    return not (
        torch.compiler.is_compiling()
        or ops.transforming()
        or weight.is_meta
        or torch._C._get_tracing_state() is not None
    )


def _identical(kept: Tensor, parameter: Tensor) -> bool:
    return (
        type(parameter) in ops.ORDINARY
        and (parameter.dtype, parameter.device) == (kept.dtype, kept.device)
        and torch.equal(kept, parameter)
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
    # Copies of the parameters as lipfuse.optim.retract_ left them, if it left them orthonormal.
    _rest: Optional[tuple[Tensor, ...]] = None
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

    def rest(self, parameters: Sequence[Tensor]) -> None:
        """The parameters are orthonormal while they equal these, which nobody else may change."""
        self.__dict__["_rest"] = tuple(parameters)  # past torch's search for parameters

    def at_rest(self, *parameters: Tensor) -> bool:
        """Whether the parameters are their own polar factors, and all of this is training."""
        if torch.compiler.is_compiling() or self._rest is None or not self.training:
            return False
        if not can_look_at(parameters[0]):
            return False
        # Compared, since no version counter tells of an edit through ``.data``.
        if all(map(_identical, self._rest, parameters)):
            return True
        self._rest = None
        return False

    def _resting(self, *parameters: Tensor) -> Tensor:
        weights, groups, scales = zip(*self.polar_factors(*parameters))
        return self.assemble(ops.orthonormal_weights(weights, groups, scales))

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
            again: Optional[Tensor] = None if hooks is None else given
        else:
            again = self._given_again if recomputing() else None
        if again is not self._given_again:  # setting a module's attribute takes a microsecond
            self._given_again = again
        return again if given is None else given

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
        at_hand = can_look_at(first)
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
            if can_look_at(w) and not bool(torch.isfinite(w).all()):
                raise ValueError(
                    "weight must be finite to be normalised outside training, "
                    f"got a weight of shape {tuple(w.shape)} with NaN or infinite elements"
                )
        return self._to_full_accuracy(scale, *(w.double() for w in parameters))

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_kept": None, "_given_again": None, "_rest": None}
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
        self.scale: float = check_positive("scale", scale)
        self.groups: int = check_positive_int("groups", groups)
        self.eps_spectral: float = check_positive("eps_spectral", eps_spectral)
        self.eps_bjorck: float = check_positive("eps_bjorck", eps_bjorck)
        self.backward: Literal["exact", "tangent"] = check_choice(
            "backward", backward, ("exact", "tangent")
        )
        u = v = None
        if method != "polar":
            w = as_matrices(weight.detach(), groups)
            u, v = (
                unit_vectors(tuple(w.shape[:-1]), w),
                unit_vectors((*w.shape[:-2], w.shape[-1]), w),
            )
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
        if self.operator is None:
            return weight
        finished = self._finish(as_matrices(weight, self.groups), self.scale * headroom(weight))
        return finished.reshape(weight.shape)

    def forward(self, weight: Tensor) -> Tensor:
        if self.given or self._given_again is not None:
            handed_out = self._handed_out()
            if handed_out is not None:
                return handed_out
        if not torch.compiler.is_compiling() and self._rest is not None and self.at_rest(weight):
            return self._resting(weight)
        if (
            self.training
            and type(weight) is nn.Parameter
            and weight.dtype is torch.float32
            and self.method == "polar"
            and self.operator is None
            and not ops.under_autocast(weight)
            and weight.numel()
        ):  # the common case, without the steps it does not need
            tangent = self.backward == "tangent"
            return ops.orthogonal_weight(weight, TRAINING_TOL, self.scale, tangent, self.groups)
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
        kept_u, kept_v = self._u, self._v
        assert kept_u is not None and kept_v is not None
        u, v = kept_u.to(w.dtype), kept_v.to(w.dtype)
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
                kept_u.copy_(u)
                kept_v.copy_(v)
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
            self._u, self._v = _singular_vectors(weight, self.groups)
        self.method = "spectral"
        self._kept = self._rest = None

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
