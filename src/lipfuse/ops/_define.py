"""How an operator becomes one: schema, kernels for every device, fake version, autograd, autocast.

The native library defines the schemas and the CPU (and CUDA) kernels when it is loaded. The
functions of :mod:`lipfuse.reference` serve every other device, and define the schemas too where
there is no native library, so that everything above the operators is the same in both cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipfuse import _native, reference

_library = torch.library.Library("lipfuse", "FRAGMENT")


def define(name: str, fake: Callable[..., Any]) -> Any:
    """Registers the operator ``lipfuse::name`` and returns its overload.

    Args:
        name: of the function in :mod:`lipfuse.reference`.
        fake: takes the same arguments, returns empty tensors of the right shapes.
    """
    function = getattr(reference, name)
    if not _native.loaded:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lipfuse::{name}", fake, lib=_library)
    return getattr(torch.ops.lipfuse, name).default


def differentiable(
    op: Any,
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    auxiliary: tuple[int, ...],
) -> Callable[..., Any]:
    """Registers the gradient of ``op``; returns the function to call it by.

    Eager code goes through a :class:`torch.autograd.Function` of its own, which costs half of what
    the generic registration does; compilers and function transforms see the operator.

    Args:
        setup: ``(ctx, inputs, output)``, saves what the backward needs.
        backward: ``(ctx, *grads)`` to the gradients of all inputs.
        auxiliary: the outputs without a gradient.
    """
    name = op._schema.name
    torch.library.register_autograd(name, backward, setup_context=setup, lib=_library)
    for device in ("cpu", "cuda"):
        # Normalisation loses its guarantee in half precision: it always runs in float32.
        torch.library.register_autocast(name, device, torch.float32, lib=_library)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*inputs)
            setup(ctx, inputs, output)
            ctx.mark_non_differentiable(*(output[i] for i in auxiliary))
            ctx.set_materialize_grads(False)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    Direct.__name__ = Direct.__qualname__ = "".join(p.title() for p in name.split("::")[1].split("_"))
    apply = Direct.apply

    def call(*inputs: Any) -> Any:
        weight: Tensor = inputs[0]
        if (
            weight.requires_grad
            and torch.is_grad_enabled()
            and type(weight) in (Tensor, torch.nn.Parameter)
            and not torch.compiler.is_compiling()
            and torch._C._functorch.peek_interpreter_stack() is None
            and not torch.is_autocast_enabled(weight.device.type)
        ):
            return apply(*inputs)
        return op(*inputs)

    return call


def once_differentiable(op: Any) -> None:
    """Makes a second differentiation of a backward operator fail in words, not silently."""
    name = op._schema.name

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"{name} has no derivative of its own: the second derivative of this normalisation is"
            " not available. Gradient penalties on a network's inputs do not need it; for a"
            " penalty on parameters' gradients use lipfuse.reference."
        )

    torch.library.register_autograd(name, refuse, lib=_library)
