"""The stand-in for a tensor that depends on the input of a network.

It has a shape and a dtype, but no elements. Functions of torch hand themselves over through
``__torch_function__`` and are looked up in the table of rules. Whatever goes another way, a kernel
of somebody's extension for instance, ends in torch's dispatcher, which calls
``__torch_dispatch__``: that refuses. So nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Optional

from torch import Tensor

from .rules import REFUSED, find
from .values import Value

if TYPE_CHECKING:
    from .tracing import Tracer

__all__ = ["StandIn"]


class StandIn(Tensor):
    """See the module's docstring.

    Attributes:
        tracer: the run that it belongs to.
        of: what is known of the tensor.
        stale: whether the memory it stands for was overwritten behind its back.
    """

    tracer: Tracer
    of: Value
    stale: bool

    @staticmethod
    def __new__(cls, tracer: Tracer, value: Value) -> StandIn:
        sample = value.sample
        make: Any = Tensor._make_wrapper_subclass
        made: StandIn = make(
            cls,
            sample.size(),
            strides=sample.stride(),
            dtype=sample.dtype,
            device=sample.device,
            layout=sample.layout,
        )
        made.tracer, made.of, made.stale = tracer, value, False
        return made

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Optional[dict[str, Any]] = None,
    ) -> Any:
        return _tracer_in((args, kwargs)).call(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Optional[dict[str, Any]] = None,
    ) -> Any:
        _tracer_in((args, kwargs)).refuse(
            TypeError,
            f"calls {function} in a way that cannot be followed; register a bound for the module "
            "with lipfuse.certification.register",
        )


def _tracer_in(arguments: Any) -> Tracer:
    """That of the first stand-in among the arguments."""
    stack = [arguments]
    while stack:
        item = stack.pop()
        if type(item) is StandIn:
            return item.tracer
        if isinstance(item, (tuple, list)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
    raise TypeError("stand-ins may be in tuples, lists and dicts only")


def _refuse(why: str, *names: str) -> None:
    for name in names:
        for function in find(name):
            REFUSED[function] = why


_READING = "elements that depend on the input: what follows has no bound"
_refuse(
    f"reads {_READING}",
    *("item", "tolist", "numpy", "__array__", "equal", "allclose", "is_nonzero", "__int__"),
    *("__float__", "__complex__", "__index__", "__contains__", "__dlpack__", "data_ptr"),
)
_refuse(f"takes a decision by {_READING}; branch on shapes only", "__bool__")
_refuse(
    "assigns to elements of a tensor; use torch.where, torch.cat or a mask",
    *("__setitem__", "copy_", "fill_", "zero_", "scatter", "scatter_", "index_put", "index_put_"),
    *("index_fill", "index_fill_", "index_add", "index_add_", "masked_scatter", "resize_", "set_"),
)
