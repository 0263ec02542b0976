"""Export to plain PyTorch: the same map, without this package.

A layer is exported as the ``torch.nn`` class it derives from where that class computes the same,
and as a ``torch.fx.GraphModule`` of plain torch functions where ``torch.nn`` has no such layer.
Neither needs this package to be pickled, loaded or run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ._modes import evaluating

__all__ = ["plain_conv", "plain_function", "plain_linear", "plain_module", "vanilla_model"]

_CONVOLUTIONS: tuple[type[Any], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[type[Any], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


# ---- building plain modules -------------------------------------------------------------------


def plain_function(name: str, function: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    """Turn a function of one tensor, made of plain torch functions, into a module.

    The function is traced symbolically: it may read sizes, but not branch on them, since the module
    has to serve every batch and image size.

    Args:
        name: the class name that the module's ``repr`` shows.
        function: the function.

    Returns:
        A module without parameters, which can be pickled and loaded wherever torch is.
    """
    return plain_module(name, nn.Module(), function)


def plain_module(
    name: str,
    tensors: nn.Module,
    function: Callable[..., Tensor],
    inputs: tuple[str, ...] = ("input",),
) -> fx.GraphModule:
    """Turn a function of tensors and of a module's parameters into a module that owns the latter.

    Args:
        name: the class name that the module's ``repr`` shows.
        tensors: a module whose parameters the function takes after its inputs, in their order. The
            result holds these very parameters.
        function: the function; see :func:`plain_function`.
        inputs: the names of its inputs.

    Returns:
        A module with the parameters of ``tensors``, under their names.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    nodes = [graph.placeholder(key) for key in inputs]
    nodes += [graph.get_attr(key) for key, _ in tensors.named_parameters(recurse=False)]
    arguments = [fx.Proxy(node, tracer) for node in nodes]
    output: Any = function(*arguments)
    graph.output(output.node)
    module = fx.GraphModule(tensors, graph, class_name=name)
    # Where unpickling looks for the name; otherwise a loaded module would show up as GraphModule.
    module.__dict__["_graphmodule_cls_name"] = name
    return module


@contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation and off autograd and autocast while a weight is read.

    Evaluation because a weight parametrization may be inexact, or advance its state, in training.
    """
    device = next((p.device.type for p in module.parameters()), "cpu")
    full_precision = (
        torch.autocast(device, enabled=False)
        if torch.amp.is_autocast_available(device)
        else nullcontext()
    )
    with evaluating(module), torch.no_grad(), full_precision:
        yield


def _copied(value: Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=requires_grad)


def _fill(layer: Any, module: Any) -> None:
    """Copy weight, bias and training flag of ``module`` to ``layer``, a plain one on meta."""
    # The weight may be computed from parameters of any name; the bias may be parametrized too.
    # Frozen means that nothing which makes up the weight is trained.
    bias_names = {"bias"} | {
        name for name, _ in module.named_parameters() if name.startswith("parametrizations.bias.")
    }
    of_weight = [p for name, p in module.named_parameters() if name not in bias_names]
    of_bias = [p for name, p in module.named_parameters() if name in bias_names]
    with _at_rest(module):
        layer.weight = _copied(module.weight, any(p.requires_grad for p in of_weight))
        if module.bias is not None:
            layer.bias = _copied(module.bias, any(p.requires_grad for p in of_bias))
    layer.training = module.training


def plain_linear(module: nn.Linear) -> nn.Linear:
    """The ``torch.nn.Linear`` that computes what ``module`` computes in evaluation.

    Args:
        module: a linear layer, whose ``weight`` may be parametrized or otherwise computed.

    Returns:
        A plain layer with copies of the current weight and bias, on their device and in their
        dtype, with the training flag of ``module``; its parameters require a gradient if those
        that they come from do.

    Raises:
        TypeError: if ``module`` is not a ``torch.nn.Linear``.
    """
    if not isinstance(module, nn.Linear):
        raise TypeError(f"module must be a torch.nn.Linear, got {type(module).__name__}")
    # On meta: no memory, no initialisation, no random number drawn.
    layer = nn.Linear(
        module.in_features, module.out_features, bias=module.bias is not None, device="meta"
    )
    _fill(layer, module)
    return layer


def plain_conv(module: nn.Module) -> nn.Module:
    """The ``torch.nn`` convolution that computes what ``module`` computes in evaluation.

    Args:
        module: a ``Conv1d/2d/3d`` or ``ConvTranspose1d/2d/3d``, whose ``weight`` may be
            parametrized or otherwise computed.

    Returns:
        A plain layer of the same kind and settings; the rest as for :func:`plain_linear`.

    Raises:
        TypeError: if ``module`` is not a convolution.
        ValueError: if its ``padding_mode`` is none that ``torch.nn`` knows.
    """
    source: Any = module
    settings: dict[str, Any] = {}
    for kind in _CONVOLUTIONS + _TRANSPOSED:
        if isinstance(module, kind):
            break
    else:
        raise TypeError(f"module must be a torch.nn convolution, got {type(module).__name__}")
    if kind in _TRANSPOSED:
        settings["output_padding"] = source.output_padding
    layer: nn.Module = kind(
        source.in_channels,
        source.out_channels,
        source.kernel_size,
        stride=source.stride,
        padding=source.padding,
        dilation=source.dilation,
        groups=source.groups,
        bias=source.bias is not None,
        padding_mode=source.padding_mode,
        device="meta",
        **settings,
    )
    _fill(layer, module)
    return layer


# ---- converting models ------------------------------------------------------------------------


def vanilla_model(
    model: nn.Module, in_place: bool = True, new_module: nn.Module | None = None
) -> nn.Module:
    """Convert every Lipschitz layer of a model into a plain PyTorch one.

    Any module that has a ``vanilla_export`` method is replaced by its result, wherever it is nested
    and the root included. In all others, ``torch.nn.utils.parametrize`` parametrizations are
    removed and the weight they give in evaluation stays. A module that is used in several places
    stays one module. The result needs this package neither to run nor to be loaded by
    ``torch.load``.

    Args:
        model: the model.
        in_place: if true, ``model`` itself becomes the plain model: every layer object, the root
            too, changes its class and contents, so that all references to it stay valid. Optimizers
            that hold the old parameters do not follow. If false, ``model`` is left as it is and a
            copy is returned.
        new_module: a module to receive the converted children of ``model`` under their names; it is
            then returned in place of the root. Kept for compatibility with deel-torchlip.

    Returns:
        The plain model. Training flags, dtypes, devices and ``requires_grad`` are kept. The
        weights are those of evaluation, whichever mode the model is in.

    Raises:
        TypeError: if ``model`` is not a module, or holds a layer of this package that has no plain
            counterpart.

    Example:
        >>> import torch
        >>> from lipfuse import nn
        >>> vanilla = nn.Sequential(nn.InvertibleDownSampling(2)).vanilla_export()
        >>> vanilla
        Sequential(
          (0): PixelUnshuffle(downscale_factor=2)
        )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    if new_module is not None and not isinstance(new_module, nn.Module):
        raise TypeError(f"new_module must be a torch.nn.Module or None, got {new_module!r}")
    # With new_module, the model is only read.
    plain = model if in_place and new_module is None else copy.deepcopy(model)
    _Conversion(plain).run()
    _refuse_remains(plain)
    if new_module is None:
        return plain
    for name, child in plain.named_children():
        setattr(new_module, name, child)
    return new_module


class _Conversion:
    """One conversion in place. Everything is read before anything changes.

    A layer that stands in several places would otherwise be plain already when the second of its
    containers looks at it. For the same reason it is converted once, and stays one layer.
    """

    def __init__(self, root: nn.Module) -> None:
        # The modules themselves, not their ids, which could be used again for new objects.
        self._seen: set[nn.Module] = set()
        self._steps: list[Callable[[], None]] = []
        self._plan(root)

    def run(self) -> None:
        for step in self._steps:
            step()

    def _plan(self, module: nn.Module) -> None:
        if module in self._seen:
            return
        self._seen.add(module)
        container: Any = getattr(module, "_vanilla_container", None)
        export: Any = getattr(module, "vanilla_export", None)
        if callable(container):
            build: Callable[[], nn.Module] = container()
            self._plan_children(module)
            self._steps.append(lambda: _become(module, build()))
        elif callable(export):
            plain: nn.Module = export()
            self._steps.append(lambda: _become(module, plain))
        else:
            if parametrize.is_parametrized(module):
                self._steps.append(_removal_of_parametrizations(module))
            self._plan_children(module)

    def _plan_children(self, module: nn.Module) -> None:
        for name, child in module.named_children():
            if not (name == "parametrizations" and parametrize.is_parametrized(module)):
                self._plan(child)


def _become(module: nn.Module, plain: nn.Module) -> None:
    """Give ``module`` the class and contents of ``plain``: every reference to it follows."""
    if plain is module:
        return
    # nn.Module intercepts attribute access, and the class has to go first: setting it on a plain
    # object is only allowed between classes of the same layout, and should fail before any damage.
    object.__setattr__(module, "__class__", type(plain))
    module.__dict__.clear()
    module.__dict__.update(plain.__dict__)


def _removal_of_parametrizations(module: nn.Module) -> Callable[[], None]:
    """Read each parametrized tensor; return what leaves it there as a plain one.

    ``parametrize.remove_parametrizations`` is not used: it takes the property off the class, which
    a deep copy shares with its original, and writes the result into the old parameter, which other
    modules may share.
    """
    parametrized: Any = module.parametrizations
    values: dict[str, tuple[Tensor, bool, bool]] = {}
    for name, chain in parametrized.items():
        originals = [p for key, p in chain.named_parameters(recurse=False) if "original" in key]
        with _at_rest(module):
            value = getattr(module, name).detach().clone()
        values[name] = (value, bool(originals), any(p.requires_grad for p in originals))

    def remove() -> None:
        plain_class = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        object.__setattr__(module, "__class__", plain_class)
        others = list(module._parameters)
        for name, (value, is_parameter, requires_grad) in values.items():
            if is_parameter:
                parameter = nn.Parameter(value, requires_grad=requires_grad)
                module.register_parameter(name, parameter)
            else:
                module.register_buffer(name, value)
        for name in others:  # weight before bias, as in a module that never was parametrized
            module._parameters[name] = module._parameters.pop(name)

    return remove


def _refuse_remains(model: nn.Module) -> None:
    package = __name__.partition(".")[0]
    for name, module in model.named_modules():
        # The bases too: a parametrized layer's class is made on the fly, in no module of its own.
        if any(base.__module__.partition(".")[0] == package for base in type(module).__mro__):
            raise TypeError(
                f"{type(module).__name__} (at '{name}') has no plain PyTorch counterpart to export"
            )
