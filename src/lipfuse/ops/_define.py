"""How an operator becomes one: schema, kernels for every device, fake version, autograd, autocast.

The native library defines the schemas and the CPU (and CUDA) kernels when it is loaded. The
functions of :mod:`lipfuse.reference` serve every other device, and define the schemas too where
there is no native library, so that everything above the operators is the same in both cases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import torch
from torch import Tensor

from lipfuse import _native, reference
from lipfuse.ops._layout import FLOATING

_library = torch.library.Library("lipfuse", "FRAGMENT")

ORDINARY = (Tensor, torch.nn.Parameter)
"""The types of tensors without a will of their own; subclasses may be distributed or fake."""


def define(
    name: str, fake: Callable[..., Any], function: Optional[Callable[..., Any]] = None
) -> Any:
    """Registers the operator ``lipfuse::name`` and returns its overload.

    Args:
        name: of the function in :mod:`lipfuse.reference`.
        fake: takes the same arguments, returns empty tensors of the right shapes.
        function: of an operator that has no native version, instead.
    """
    only = function is not None
    function = function or getattr(reference, name)
    if only or not _native.loaded:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, _in_full_precision(function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"lipfuse::{name}", _refusing(fake), lib=_library)
    op = getattr(torch.ops.lipfuse, name).default
    # Memory of any layout will do: without this, compiled code copies channels_last images. The
    # stable ABI, where the native library defines its schemas, cannot say so.
    op.tags.append(torch.Tag.flexible_layout)
    return op


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def _in_full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps autocast off the matrix products of a reference: a backward may run under it."""
    function = _refusing(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return function(*arguments)

    return call


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments that do not fit are a RuntimeError, as in the kernels, whatever Python says."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ArithmeticError, AttributeError, LookupError, MemoryError) as error:
            text = f"lipfuse: arguments that do not fit: {type(error).__name__}: {error}"
            raise RuntimeError(text) from error

    return call


def transforming() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def wants_gradient(weight: Tensor) -> bool:
    """Whether to save what a backward needs; inside a transform, nothing can tell."""
    return (torch.is_grad_enabled() and weight.requires_grad) or transforming()


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; it does not know the meta device."""
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return False  # told without the name of the device, which takes longer than all the rest
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast for the tensor's device: products of a normalisation, say."""
    return torch.autocast(x.device.type, enabled=False) if under_autocast(x) else nullcontext()


def _transformable(
    name: str,
    call: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    auxiliary: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """``call`` for ``torch.func``, which refuses the gradients that operators register.

    ``call`` is called again one transform further down. ``vmap`` only adds a leading dimension:
    every operator works on batches.
    """

    def forward(*inputs: Any) -> Any:
        return call(*inputs)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup(ctx, inputs, output)
        if auxiliary:
            ctx.mark_non_differentiable(*(output[i] for i in auxiliary))
        ctx.set_materialize_grads(False)

    def vmap(info: Any, in_dims: tuple[Optional[int], ...], *inputs: Any) -> Any:
        def leading(x: Any, dim: Optional[int]) -> Any:
            if not isinstance(x, Tensor) or _is_missing(x):
                return x
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        output = call(*map(leading, inputs, in_dims))
        if isinstance(output, Tensor):
            return output, 0
        return output, tuple(None if _is_missing(x) else 0 for x in output)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    function: Any = type(_title(name), (torch.autograd.Function,), members)
    apply: Callable[..., Any] = function.apply
    return apply


def _is_missing(x: Tensor) -> bool:
    """Whether it stands for what was not saved for the backward, and has no batch dimensions."""
    return x.shape == (0,)


def goes_direct(weight: Tensor, autocast: bool = True) -> bool:
    """Whether this is plain eager code that wants a gradient."""
    return (
        weight.requires_grad
        and torch.is_grad_enabled()
        and type(weight) in ORDINARY
        and not transforming()
        and torch.autograd.forward_ad._current_level < 0
        # Of what a transform has left behind, the dispatcher finds the tensor that is to have the
        # gradient.
        and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
        and not (autocast and under_autocast(weight))
    )


def below_autograd() -> Any:
    """For calling a backward operator: past autograd, unless it is differentiated again."""
    return nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd()


def _direct(
    name: str,
    function: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    auxiliary: tuple[int, ...],
    first_only: bool = False,
) -> Any:
    """The quickest way to give ``function`` a gradient in eager code.

    With ``first_only`` only its first output, which spares autograd the others.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = function(*inputs)
            setup(ctx, inputs, output)
            ctx.set_materialize_grads(False)
            if first_only:
                return output[0]
            ctx.mark_non_differentiable(*(output[i] for i in auxiliary))
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            if torch.is_grad_enabled():  # to be differentiated again
                return backward(ctx, *grads)
            refuse_forward_mode(f"{name}_backward", grads)
            with torch._C._AutoDispatchBelowAutograd():
                return backward(ctx, *grads)

    Direct.__name__ = Direct.__qualname__ = _title(name)
    return Direct


def _applied_directly(function: Any) -> Callable[..., Any]:
    """How to apply it where :func:`goes_direct` says yes.

    ``function.apply`` looks for transforms and default arguments first, which takes almost as long
    as the rest.
    """
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply
    return apply


def short_cut(
    name: str,
    function: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """The first output of ``function``, for weights that :func:`goes_direct` says yes to."""
    return _applied_directly(_direct(name, function, setup, backward, (), first_only=True))


def native_node(name: str, again: Callable[..., Any]) -> Optional[Callable[..., Any]]:
    """The node of this name in ``csrc/autograd``, if there are any for this version of torch."""
    found: Optional[Callable[..., Any]] = getattr(_native.nodes, name, None)
    if found is not None:
        getattr(_native.nodes, name + "_again")(again)
    return found


def node(
    name: str, *rule: Callable[..., Any], again: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """The short cut of this name and rule, without the interpreter if possible.

    Args:
        again: ``(grad, *saved, *settings)``, the gradient where it is to be differentiated again.
    """
    return native_node(name, again) or short_cut(name, *rule)


def by_node(
    name: str, call: Callable[..., Tensor], again: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """``call``, or the node of this name if there is one, and :func:`goes_direct` says yes."""
    native = native_node(name, again)
    if native is None:
        return call

    def quickly(*inputs: Any) -> Tensor:
        if not torch.compiler.is_compiling() and goes_direct(inputs[0], autocast=False):
            return native(*inputs)
        return call(*inputs)

    return quickly


def devices_with_kernels(op: Any) -> frozenset[str]:
    """The types of the devices for which the native library has a kernel of ``op``."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = ("CPU", "CUDA")
    return frozenset(key.lower() for key in names if has(op._schema.name, key))


def is_plain(input: Tensor) -> bool:
    """Whether this is eager code on an ordinary tensor, without transforms."""
    return (
        type(input) in ORDINARY
        and not torch.compiler.is_compiling()
        and not transforming()
        and torch._C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def is_worth_an_operator(input: Tensor) -> bool:
    """Whether a layer that torch can express well is better off with an operator of its own.

    Torch's operations know every transform, forward mode and export. Compiled, they are fused, but
    into several times the operators' time on a processor: those are kept there.
    """
    return in_compiled_code() if torch.compiler.is_compiling() else is_plain(input)


def in_compiled_code() -> bool:
    """Whether a compiler is making code that will run here, without transforms."""
    return torch.compiler.is_compiling() and _to_run_here()


def takes(op: Any) -> Callable[[Tensor], bool]:
    """Says of tensors whether a layer's ``op`` has a kernel for them, and nothing needs torch's."""
    devices = devices_with_kernels(op)

    def taken(input: Tensor) -> bool:
        return (
            input.device.type in devices and is_worth_an_operator(input) and input.dtype in FLOATING
        )

    return taken


@torch.compiler.assume_constant_result
def _to_run_here() -> bool:
    """The rest of it, as it is while a compiler reads the code.

    The compiler itself takes the absence of a transform for an object, and that of torch 2.11 takes
    all code for exported.
    """
    return not (torch.compiler.is_exporting() or transforming())


def quick(op: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, or ``op`` without the way through autograd where the first argument needs none."""

    def quickly(*inputs: Any) -> Any:
        first = inputs[0]
        if (first.requires_grad and torch.is_grad_enabled()) or not is_plain(first):
            return call(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    return quickly


def _title(name: str) -> str:
    return "".join(part.title() for part in name.rpartition("::")[2].split("_"))


def _register(op: Any, with_gradient: Callable[..., Any]) -> None:
    """Makes ``with_gradient`` what autograd calls for ``op`` where a gradient is wanted.

    Without the native nodes, compiled code comes by here for every call of an operator, wanting
    none: torch's own registration, which treats both cases alike, takes twice the time.
    """
    below, redispatch = torch._C._after_autograd_keyset, op.redispatch

    def kernel(keys: Any, *inputs: Any) -> Any:
        refuse_forward_mode(op._schema.name, inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return with_gradient(*inputs)
        return redispatch(keys & below, *inputs)

    _library.impl(op._schema.name, kernel, "Autograd", with_keyset=True)
    _pass_on_without_gradient(op)


def refuse_forward_mode(name: str, inputs: Iterable[Any]) -> None:
    """Raises where one of them is a dual number: without its tangent the derivative were zero."""
    if torch.autograd.forward_ad._current_level < 0:
        return
    for x in inputs:
        if isinstance(x, Tensor) and torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{name} has no forward-mode derivative: use reverse mode, or lipfuse.reference."
            )


def _pass_on_without_gradient(op: Any) -> None:
    """Spares calls that want no gradient the way through Python, if there are native nodes."""
    if _native.nodes is not None:
        _native.nodes.pass_on_without_gradient(op._schema.name)


def differentiable(
    op: Any,
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    auxiliary: tuple[int, ...],
    autocast: bool = True,
) -> Callable[..., Any]:
    """Registers the gradient of ``op``; returns the function to call it by.

    Eager code goes through a :class:`torch.autograd.Function` of its own, transforms of
    ``torch.func`` through another, and compilers see the operator.

    Args:
        setup: ``(ctx, inputs, output)``, saves what the backward needs.
        backward: ``(ctx, *grads)`` to the gradients of all inputs.
        auxiliary: the outputs without a gradient.
        autocast: whether autocast turns the arguments into float32; activations stay as they are.
    """
    name = op._schema.name
    function = _direct(name, op, setup, backward, auxiliary)
    _register(op, function.apply)
    direct = _applied_directly(function)
    for device in ("cpu", "cuda") if autocast else ():
        # Normalisation loses its guarantee in half precision: it always runs in float32.
        torch.library.register_autocast(name, device, torch.float32, lib=_library)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*inputs)
        if transforming():
            return transformed(*inputs)
        return (direct if goes_direct(inputs[0], autocast) else op)(*inputs)

    transformed = _transformable(name, call, setup, backward, auxiliary)
    return call


def with_gradient(
    name: str,
    function: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    auxiliary: tuple[int, ...],
) -> Callable[..., Any]:
    """``function`` of a weight with another gradient than its own; arguments as above."""
    direct = _applied_directly(_direct(name, function, setup, backward, auxiliary))

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return plain(*inputs)
        if transforming():
            return transformed(*inputs)
        return (direct if goes_direct(inputs[0], autocast=False) else plain)(*inputs)

    plain = _transformable(name, function, setup, backward, auxiliary)
    transformed = _transformable(name, call, setup, backward, auxiliary)
    return call


def once_differentiable(op: Any) -> Callable[..., Any]:
    """Makes a second differentiation of a backward operator fail in words, not silently.

    Returns the function to call it by.
    """
    name = op._schema.name

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"{name} has no derivative of its own: the second derivative of this normalisation is"
            " not available. Gradient penalties on a network's inputs do not need it; for a"
            " penalty on parameters' gradients use lipfuse.reference."
        )

    if any(isinstance(argument.type, torch.ListType) for argument in op._schema.arguments):
        torch.library.register_autograd(name, refuse, lib=_library)  # it knows lists of tensors
        _pass_on_without_gradient(op)
    else:
        _register(op, _direct(name, op, lambda ctx, inputs, output: None, refuse, ()).apply)

    def call(*inputs: Any) -> Any:
        if not torch.compiler.is_compiling() and transforming():
            return transformed(*inputs)
        return op(*inputs)

    transformed = _transformable(name, call, lambda ctx, inputs, output: None, refuse)
    return call
