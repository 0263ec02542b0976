"""Running a network on a stand-in for its input, and noting what it does to it."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, Optional

import torch
from torch import Tensor, nn

from .arguments import (
    distance,
    each,
    in_float64,
    sample_of,
    size,
    stand_ins_in,
    twin_of,
    values_in,
)
from .modules import computing_weights_exactly, is_leaf, kind_of, restore_buffers, where_is
from .rules import ATTRIBUTES, IN_PLACE, METADATA, REFUSED, RULES, name_of
from .stand_in import StandIn
from .values import Value, unbounded

__all__ = [
    "ModuleRule",
    "Row",
    "Tracer",
]

_OVERWRITTEN = (
    "a tensor whose memory an in-place operation has overwritten through another view of it; make "
    "the operation out of place"
)

# What a module may be replaced by: takes the module and its input, returns a value.
ModuleRule = Callable[[nn.Module, Value], Value]


@dataclass(frozen=True)
class Row:
    """What happened in one module, or in one operation of a module that has others in it."""

    name: str
    layer: str
    own: Optional[float]
    value: Value
    method: str


@dataclass
class _Frame:
    """A call of a module that is under way."""

    name: str
    module: nn.Module
    inputs: list[Value] = field(default_factory=list)
    done: list[Value] = field(default_factory=list)


class Tracer:
    """One run of a network on stand-ins.

    Args:
        model: the network.
        module_rules: by exact class, modules whose ``forward`` is not to be looked into.
    """

    def __init__(
        self, model: nn.Module, module_rules: Callable[[nn.Module], Optional[ModuleRule]]
    ) -> None:
        self._model = model
        self._module_rules = module_rules
        self._frames: list[_Frame] = []
        self._live: list[weakref.ref[StandIn]] = []
        self._refused: Optional[Exception] = None
        self._thread = threading.get_ident()
        self._distance = 0.0
        self.rows: list[Row] = []

    def run(self, sample: Tensor, twin: Tensor) -> Optional[Value]:
        """Trace the network.

        Args:
            sample, twin: two inputs, each with a batch dimension of 1.

        Returns:
            The output's value; None if the output does not depend on the input.

        Raises:
            TypeError: for something that has no known bound.
            ValueError: for a setting without a bound, or an input that the network cannot take.
        """
        start = Value(1.0)
        start.op, start.sample, start.twin = "input", sample, twin
        self._distance = distance(sample, twin)
        with torch.no_grad(), self._watching():
            output = self._followed(self.wrap(start))
        if self._refused is not None:
            # The model has caught it, and gone a way that it goes for no real input.
            raise self._refused
        if type(output) is not StandIn:
            if isinstance(output, Tensor):
                return None
            raise TypeError(
                f"the model must return one tensor to be certified, got {type(output).__name__}"
            )
        if output.stale:
            raise ValueError(f"the model returns {_OVERWRITTEN}")
        return output.of

    def _followed(self, stand_in: StandIn) -> Any:
        try:
            return self._model(stand_in)
        except _Refusal as refusal:
            raise refusal.error from refusal.__cause__
        except Exception as error:
            if self._refused is not None:
                raise self._refused from error
            raise TypeError(
                f"{self.here()} cannot be followed: {error} (certify runs a model on a stand-in "
                "for its input; register a bound for the module with "
                "lipfuse.certification.register, or write it with functions of torch)"
            ) from error

    # ---- modules ------------------------------------------------------------------------------

    def here(self) -> str:
        """The module that is being run."""
        if not self._frames:
            return "the model"
        return where_is(self._frames[-1].name, self._frames[-1].module)

    def refuse(
        self, kind: type[Exception], why: str, cause: Optional[Exception] = None
    ) -> NoReturn:
        """Raise an error that names the module being run."""
        self._refused = kind(f"{self.here()}: {why}")
        raise _Refusal(self._refused) from cause

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Hooks on all modules, and stand-ins for the ``forward`` of those that have a rule."""
        with contextlib.ExitStack() as stack:
            for name, module in self._model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    raise TypeError(
                        f"{where_is(name, module)} is compiled by torch.jit and cannot be looked "
                        "into; certify it as it was before"
                    )
                before = functools.partial(self._enter, name)
                stack.callback(
                    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove
                )
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
                replacement = self._module_rules(module)
                if replacement is not None and "forward" not in module.__dict__:
                    original: Any = module.forward
                    call = functools.partial(self._call_rule, module, replacement, original)
                    object.__setattr__(module, "forward", call)
                    stack.callback(object.__delattr__, module, "forward")
            stack.enter_context(computing_weights_exactly(self._model))
            if "torch._dynamo" in sys.modules:
                # What is compiled runs as it was written.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.callback(restore_buffers, [(m, dict(m._buffers)) for m in self._model.modules()])
            yield

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return  # somebody else's call of the same model
        traced = stand_ins_in((args, kwargs))
        self._frames.append(_Frame(name, module, inputs=[t.of for t in traced]))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            # Before it counts this batch.
            self.refuse(ValueError, "normalises by the batch in training mode; call eval() first")

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        frame = self._frames.pop()
        if not is_leaf(module) or type(output) is not StandIn:
            return
        value = output.of
        own = 1.0 if not frame.done else None
        if frame.done and len(frame.inputs) == 1:
            single = frame.done[0].own if len(frame.done) == 1 else None
            before = frame.inputs[0].bound
            own = value.bound / before if 0.0 < before < math.inf else math.inf
            own = own if single is None else min(own, single)
        value.bound  # noqa: B018, it settles how it is obtained
        method = "; ".join(_methods_between(frame.inputs, value))
        self.rows.append(Row(frame.name, kind_of(module).__name__, own, value, method))

    def _call_rule(
        self,
        module: nn.Module,
        replacement: ModuleRule,
        original: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not stand_ins_in((args, kwargs)):
            return original(*args, **kwargs)
        if len(args) != 1 or kwargs:
            self.refuse(TypeError, "takes one argument to be certified")
        value = self.unwrap(args[0])
        try:
            result = replacement(module, value)
        except (TypeError, ValueError) as error:
            self.refuse(type(error), str(error), error)
        result.op, result.arguments = kind_of(module).__name__, (value,)
        result.sample = self._sample(original, (value.sample,), {})
        result.twin = self._sample(original, (value.twin,), {})
        return self._finish(result)

    # ---- functions ----------------------------------------------------------------------------

    def wrap(self, value: Value) -> StandIn:
        """A stand-in for a value."""
        traced = StandIn(self, value)
        self._live.append(weakref.ref(traced))
        return traced

    def unwrap(self, traced: StandIn) -> Value:
        """The value, if nothing has overwritten the memory it is in."""
        if traced.stale:
            self.refuse(ValueError, f"uses {_OVERWRITTEN}")
        return traced.of

    def call(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A function of torch, at least one of whose arguments is a stand-in."""
        target = args[0] if args else None

        def opened(x: Any) -> Any:
            return self.unwrap(x) if type(x) is StandIn else x

        args, kwargs = each(opened, tuple(args)), each(opened, kwargs)
        name = name_of(function)
        if name in METADATA and not values_in((args[1:], kwargs)):
            return function(*each(sample_of, args), **kwargs)
        if name in ("__get__", "__set__"):
            return self._attribute(function, args[0])
        if function not in RULES:
            self._refuse_function(function)
        canonical, rule = RULES[function]
        if kwargs.get("out") is not None:
            self.refuse(TypeError, f"{canonical} with out= is not supported; assign its result")
        in_place = function in IN_PLACE or bool(kwargs.get("inplace"))
        if in_place and not isinstance(args[0], Value):
            self.refuse(TypeError, f"{canonical} overwrites a tensor of the model's own")
        try:
            result = rule(*args, **kwargs)
        except (TypeError, ValueError, NotImplementedError) as error:
            self.refuse(type(error), f"{canonical} {error}", error)
        both = []
        for pick in (sample_of, twin_of):
            given = each(pick, args)
            if in_place:
                given = (given[0].clone(), *given[1:])
            both.append(self._sample(function, given, each(pick, kwargs)))
        if isinstance(result, Value):
            return self._one(result, canonical, args, both, target if in_place else None)
        outputs = [
            self._one(part, canonical, (*args, index), list(pair), None)
            for index, (part, *pair) in enumerate(zip(result, *both))
        ]
        # Names and all: torch.return_types.sort and the like.
        return type(both[0])(outputs)

    def _one(
        self,
        value: Optional[Value],
        canonical: str,
        args: tuple[Any, ...],
        both: list[Any],
        target: Optional[StandIn],
    ) -> StandIn:
        """An output of a function; what it overwrites, if anything."""
        if value is None or not (isinstance(both[0], Tensor) and both[0].is_floating_point()):
            why = f"the result of {canonical} is not continuous"
            value = unbounded(tuple(values_in(args)), why)
        if not value.op:
            value.op, value.arguments = canonical, args
        value.sample, value.twin = both
        if value.slope is not None and value.shape != value.parents[0].shape:
            self.refuse(ValueError, f"{canonical} of tensors of different shapes")
        finished = self._finish(value)
        if target is None:
            return finished
        self._overwrite(target, finished)
        return target

    def _attribute(self, access: Any, value: Value) -> Any:
        """What does not depend on elements; transposes and aliases."""
        name = access.__self__.__name__
        if name_of(access) == "__set__":
            self.refuse(TypeError, f"assigns to the attribute {name} of a tensor")
        if name in ATTRIBUTES:
            return getattr(value.sample, name)
        if name in ("data", "real"):
            return self.wrap(value)
        if name in ("T", "mT"):
            axes = list(range(value.sample.dim()))
            axes = axes[::-1] if name == "T" else [*axes[:-2], *axes[:-3:-1]]
            return self.call(torch.permute, (self.wrap(value), axes), {})
        self.refuse(TypeError, f"no bound is known for the attribute {name} of a tensor")

    def _finish(self, value: Value) -> StandIn:
        if value.reason and not value.reason.startswith(("module '", "the model")):
            value.reason = f"{self.here()}: {value.reason}"
        self._check(value)
        if self._frames:
            frame = self._frames[-1]
            frame.done.append(value)
            if not is_leaf(frame.module) and (value.method or value.own != 1.0):
                self.rows.append(Row(frame.name, value.op, value.own, value, value.method))
        return self.wrap(value)

    def _check(self, value: Value) -> None:
        """Hold what is claimed of a value against the two concrete ones.

        Coarsely: it is to find what is wrong, not what is rounded.
        """
        if not (isinstance(value.sample, Tensor) and value.sample.is_floating_point()):
            return
        tolerance = 1024.0 * torch.finfo(value.sample.dtype).eps
        scale = size(value.sample, value.twin)
        moved, allowed = distance(value.sample, value.twin), value.rule_bound * self._distance
        if moved > allowed + tolerance * scale:
            self.refuse(
                ValueError,
                f"{value.op} moved by {moved:.6g} where its bound allows {allowed:.6g}: what is "
                f"known of it ({value.method}) is wrong",
            )
        if value.forward is not None:
            found = value.forward(
                *[in_float64(p.sample) - in_float64(p.twin) for p in value.parents]
            )
            exact = in_float64(value.sample) - in_float64(value.twin)
            for parent in value.parents:
                scale += max(1.0, value.own or 1.0) * size(parent.sample, parent.twin)
            if found.shape != exact.shape or float((found - exact).norm()) > tolerance * scale:
                self.refuse(ValueError, f"{value.op} does not compute what is known of it")

    def _overwrite(self, target: StandIn, result: StandIn) -> None:
        memory = _memory_of(target.of)
        for reference in self._live:
            other = reference()
            if other is not None and other is not target and _memory_of(other.of) == memory:
                other.stale = True
        target.of = result.of

    def _sample(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        try:
            return function(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            # What torch says of sizes that do not fit, most of the time.
            self.refuse(ValueError, f"does not take an input of this shape: {error}", error)

    def _refuse_function(self, function: Callable[..., Any]) -> NoReturn:
        name = name_of(function)
        why = REFUSED.get(function)
        if why is not None:
            # Operators have names that nobody has written.
            self.refuse(TypeError, why if name.startswith("__") else f"{name} {why}")
        self.refuse(
            TypeError,
            f"no bound is known for {name}; if there is one, put it into a module of its own and "
            "give it to lipfuse.certification.register",
        )


class _Refusal(BaseException):
    """Carries an error out of the model, past what the model itself catches or wraps."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _methods_between(inputs: list[Value], output: Value) -> list[str]:
    """How the bound of a module's output follows from those of its inputs."""
    seen = {id(value) for value in inputs}
    methods: dict[str, None] = {}

    def visit(value: Value) -> None:
        if id(value) not in seen:
            seen.add(id(value))
            for parent in value.parents:
                visit(parent)
            methods[value.method] = None

    visit(output)
    methods.pop("", None)
    return list(methods)


def _memory_of(value: Value) -> Optional[int]:
    if not isinstance(value.sample, Tensor):
        return None
    return value.sample.untyped_storage()._cdata
