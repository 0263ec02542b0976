"""How large a model's Lipschitz constant is *at least*: what a search over inputs finds.

Every number here is the slope between two inputs, or the norm of the Jacobian at one, and so never
above the true constant but for the rounding of the model's arithmetic. None of them is a bound:
elsewhere the model may be steeper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ._checks import (
    check_bool,
    check_choice,
    check_positive,
    check_positive_int,
    check_tensor,
)
from ._modes import evaluating

__all__ = [
    "evaluate_lip_const",
    "evaluate_lip_const_attack",
    "evaluate_lip_const_jacobian_norm",
    "evaluate_lip_const_noise_norm",
]

_OPTIONS = ("num_noisy_samples", "epsilon_noise", "num_iterations", "step_size", "double_attack")

# Steps that turn each random perturbation towards what the model stretches most.
_NOISE_REFINEMENTS = 10
# Elements of the Jacobians held at once.
_MOST_ELEMENTS = 2**25
# How far apart the attack's two points start, relative to the larger of the input's norm and 1.
_ATTACK_RADIUS = 0.1


# ---- what all methods share ----------------------------------------------------------------------


def _check(
    model: object, x: object, disjoint_neurons: object, options: dict[str, Any]
) -> tuple[nn.Module, Tensor, bool]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inputs = check_tensor("x", x, min_dim=1)
    if not inputs.numel():
        raise ValueError(f"x must have at least one element, got shape {tuple(inputs.shape)}")
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"unknown option {name!r}; there are {', '.join(_OPTIONS)}")
    return model, inputs.detach(), check_bool("disjoint_neurons", disjoint_neurons)


@contextmanager
def _untouched(model: nn.Module, x: Tensor) -> Iterator[None]:
    """In evaluation and with gradients; mode, flags and random state are as before afterwards."""
    devices = [x.device] if x.is_cuda else []
    with (
        torch.random.fork_rng(devices),
        evaluating(model, frozen=True),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    """``(N, out)``, whatever the shape of one output."""
    y: Any = model(x)
    if not isinstance(y, Tensor) or y.dim() == 0 or y.shape[0] != x.shape[0]:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"model must return a tensor of {x.shape[0]} outputs for {x.shape[0]} inputs, got {got}"
        )
    return y.reshape(y.shape[0], -1)


def _start(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs at the inputs themselves, which have to be finite."""
    with torch.no_grad():
        outputs = _outputs(model, x)
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model must give finite outputs for x, got NaN or infinite ones")
    return outputs


def _each(values: Tensor, like: Tensor) -> Tensor:
    """One value a sample, broadcast over the sample's dimensions."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _unit(x: Tensor) -> Tensor:
    return x / _each(_norms(x).clamp_min(torch.finfo(x.dtype).tiny), x)


def _climb(
    model: nn.Module, x: Tensor, delta: Tensor, iterations: int, disjoint: bool, step: float
) -> tuple[Tensor, Tensor]:
    r"""The steepest slope found from each x, and the perturbation that has it.

    The direction of the perturbation moves by power iteration, :math:`\delta \gets
    J(x + \delta)^\top (f(x + \delta) - f(x))`, which for an affine model is that of its matrix and
    increases the slope at every step. Where it does not, for a bent model, only half the way
    to the new direction is tried, and so on. The length grows or shrinks by the fraction ``step``,
    as the slope wants it.
    """
    start = _start(model, x)
    best = x.new_zeros(x.shape[0])
    best_delta, best_gradient = delta, torch.zeros_like(delta)
    share = torch.ones_like(best)
    candidate = delta
    for _ in range(iterations + 1):
        moved = (x + candidate).requires_grad_()
        difference = _outputs(model, moved) - start
        size = difference.abs().amax(1) if disjoint else torch.linalg.vector_norm(difference, dim=1)
        gradient = _gradient(size, moved)
        # What was added, not what was meant to be: the two differ by rounding.
        actual = moved.detach() - x
        length = _norms(actual)
        slope = torch.where(length > 0, size.detach() / length, 0.0).nan_to_num(0.0, 0.0)
        better = slope > best
        chosen = _each(better, x)
        best = torch.where(better, slope, best)
        best_delta = torch.where(chosen, candidate, best_delta)
        best_gradient = torch.where(chosen, gradient, best_gradient)
        share = torch.where(better, 1.0, share / 2)
        part = _each(share, x)
        turned = (1 - part) * _unit(best_delta) + part * _unit(best_gradient)
        turned = torch.where(_each(_norms(turned) > 0, x), turned, best_delta)
        # The slope's derivative along the perturbation, times its length over the slope.
        along = (best_gradient * best_delta).flatten(1).sum(1)
        longer = along > best * _norms(best_delta)
        factor = torch.where(longer, 1 + step * share, 1 / (1 + step * share))
        candidate = _unit(turned) * _each(_norms(best_delta) * factor, x)
    return best, best_delta


def _gradient(values: Tensor, x: Tensor, again: bool = False) -> Tensor:
    """Of the sum of values: 0 where the model does not depend on x."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=again, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


# ---- the methods ---------------------------------------------------------------------------------


def evaluate_lip_const_jacobian_norm(
    model: nn.Module, x: Tensor, disjoint_neurons: bool = False, **kwargs: Any
) -> float:
    """The largest norm of the exact Jacobian at the inputs: an empirical lower bound.

    Costs one backward pass for each element of an output.

    Args:
        model: takes a batch; evaluated in evaluation mode. Its mode, its gradients and the random
            state are left as they are.
        x: inputs ``(N, ...)``, of the model's dtype and device.
        disjoint_neurons: of each output element on its own, rather than of all of them together.
        **kwargs: options of the other methods, which this one does not need.

    Returns:
        The largest norm over the batch.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or shape, and for a model that does
            not return one finite tensor with the batch first.
    """
    model, x, disjoint = _check(model, x, disjoint_neurons, kwargs)
    largest = 0.0
    with _untouched(model, x):
        for sample in _chunks(model, x):
            inputs = sample.clone().requires_grad_()
            outputs = _outputs(model, inputs)
            rows = [
                _gradient(column, inputs, again=True).flatten(1) for column in outputs.unbind(1)
            ]
            if not rows:
                continue
            # Where a derivative is not finite, as that of a root at 0, others have to do.
            jacobians = torch.stack(rows, 1).double().nan_to_num(0.0, 0.0, 0.0)
            if disjoint:
                norms = torch.linalg.vector_norm(jacobians, dim=2)
            else:
                wide = jacobians.shape[1] < jacobians.shape[2]
                gram = jacobians @ jacobians.mT if wide else jacobians.mT @ jacobians
                norms = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()
            largest = max(largest, float(norms.max()))
    return largest


def _chunks(model: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """The inputs in parts whose Jacobians fit in memory."""
    outputs = _start(model, x).shape[1]
    return x.split(max(1, _MOST_ELEMENTS // max(1, x[0].numel() * outputs)))


def evaluate_lip_const_noise_norm(
    model: nn.Module,
    x: Tensor,
    disjoint_neurons: bool = False,
    num_noisy_samples: int = 10,
    epsilon_noise: float = 1.0,
    **kwargs: Any,
) -> float:
    """The steepest slope between inputs and their noisy copies: an empirical lower bound.

    Noise alone hardly ever points where a model of many inputs is steep, so each perturbation is
    then turned, at the same length, by a few steps of power iteration.

    Args:
        model, x, disjoint_neurons: as for :func:`evaluate_lip_const_jacobian_norm`.
        num_noisy_samples: noisy copies of each input, positive.
        epsilon_noise: standard deviation of the Gaussian noise, positive.
        **kwargs: options of the other methods.

    Returns:
        The steepest slope over the batch.

    Raises:
        TypeError, ValueError: as for :func:`evaluate_lip_const_jacobian_norm`.
    """
    model, x, disjoint = _check(model, x, disjoint_neurons, kwargs)
    samples = check_positive_int("num_noisy_samples", num_noisy_samples)
    deviation = check_positive("epsilon_noise", epsilon_noise)
    largest = 0.0
    with _untouched(model, x):
        for _ in range(samples):
            noise = deviation * torch.randn_like(x)
            slopes, _ = _climb(model, x, noise, _NOISE_REFINEMENTS, disjoint, 0.0)
            largest = max(largest, float(slopes.max()))
    return largest


def evaluate_lip_const_attack(
    model: nn.Module,
    x: Tensor,
    disjoint_neurons: bool = False,
    num_iterations: int = 100,
    step_size: float = 0.01,
    double_attack: bool = False,
    **kwargs: Any,
) -> float:
    """The steepest slope that an ascent from each input finds: an empirical lower bound.

    Args:
        model, x, disjoint_neurons: as for :func:`evaluate_lip_const_jacobian_norm`.
        num_iterations: steps of the ascent, positive.
        step_size: by what fraction the perturbation may grow or shrink in a step, positive. Its
            direction needs no step size.
        double_attack: whether to attack again from the worst points found, so that both ends of the
            steepest slope are searched for; twice the time.
        **kwargs: options of the other methods.

    Returns:
        The steepest slope over the batch.

    Raises:
        TypeError, ValueError: as for :func:`evaluate_lip_const_jacobian_norm`.
    """
    model, x, disjoint = _check(model, x, disjoint_neurons, kwargs)
    iterations = check_positive_int("num_iterations", num_iterations)
    step = check_positive("step_size", step_size)
    check_bool("double_attack", double_attack)
    with _untouched(model, x):
        delta = _unit(torch.randn_like(x)) * _each(_ATTACK_RADIUS * _norms(x).clamp_min(1.0), x)
        slopes, worst = _climb(model, x, delta, iterations, disjoint, step)
        if double_attack:
            again, _ = _climb(model, x + worst, -worst, iterations, disjoint, step)
            slopes = torch.maximum(slopes, again)
    return float(slopes.max())


_METHODS: dict[str, Callable[..., float]] = {
    "jacobian_norm": evaluate_lip_const_jacobian_norm,
    "noise_norm": evaluate_lip_const_noise_norm,
    "attack": evaluate_lip_const_attack,
}


def evaluate_lip_const(
    model: nn.Module,
    x: Optional[Tensor] = None,
    evaluation_type: Union[str, list[str]] = "jacobian_norm",
    disjoint_neurons: bool = False,
    input_shape: Optional[Sequence[int]] = None,
    expected_value: Optional[float] = None,
    **kwargs: Any,
) -> float:
    """An empirical lower bound of a model's Lipschitz constant: what a search over inputs finds.

    The constant itself may be larger; see :func:`lipfuse.certify` for a bound from above.

    Args:
        model: takes a batch; evaluated in evaluation mode. Its mode, its gradients and the random
            state are left as they are, so that the same seed gives the same number.
        x: inputs ``(N, ...)``, of the model's dtype and device. If None, ``input_shape`` is needed
            and standard normal inputs are drawn.
        evaluation_type: ``"jacobian_norm"`` (the Jacobian at the inputs), ``"noise_norm"`` (slopes
            to noisy copies), ``"attack"`` (an ascent), ``"all"``, or a list of them: the largest.
        disjoint_neurons: of each output element on its own, rather than of all of them together.
        input_shape: the shape of x, with the batch dimension, where x is None.
        expected_value: raise if more is found. What rounding in the model's dtype may add is
            allowed for.
        **kwargs: options of the methods: ``num_noisy_samples`` and ``epsilon_noise`` of
            :func:`evaluate_lip_const_noise_norm`, ``num_iterations``, ``step_size`` and
            ``double_attack`` of :func:`evaluate_lip_const_attack`.

    Returns:
        The largest slope found.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range, by name.
        AssertionError: if the slope exceeds ``expected_value``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    given = [evaluation_type] if isinstance(evaluation_type, str) else list(evaluation_type)
    for kind in given:
        check_choice("evaluation_type", kind, (*_METHODS, "all"))
    if not given:
        raise ValueError(f"evaluation_type must name at least one of {', '.join(_METHODS)}")
    limit = None if expected_value is None else check_positive("expected_value", expected_value)
    if x is None:
        x = _drawn(model, input_shape)
    names = list(_METHODS) if "all" in given else given
    found = max(_METHODS[name](model, x, disjoint_neurons, **kwargs) for name in names)
    if limit is not None and found > limit * (1 + 64 * torch.finfo(x.dtype).eps):
        raise AssertionError(
            f"the Lipschitz constant is at least {found:.7f} (found by {', '.join(names)}), "
            f"more than the expected {limit:.7g}"
        )
    return found


def _drawn(model: nn.Module, input_shape: Optional[Sequence[int]]) -> Tensor:
    """Normal inputs on the model's device and in its dtype; the random state stays."""
    if input_shape is None:
        raise ValueError("input_shape must be given where x is None, with the batch dimension")
    if not isinstance(input_shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple or list of ints, got {input_shape!r}")
    shape = [check_positive_int("input_shape", n) for n in input_shape]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.random.fork_rng([]):
        return torch.randn(shape).to(like)
