r"""The container that shares a constant among its layers."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from torch import nn

from .._checks import check_positive
from ..export import plain_function, vanilla_model
from .module import LipschitzModule
from .scaling import ScaledLipschitzModule

__all__ = ["Sequential"]

_SequentialT = TypeVar("_SequentialT", bound="Sequential")

# What a product of per-layer constants may exceed the promised one by: the rounding of k ** (1/n)
# and of the product, with room for a few thousand layers.
_ROUNDING = 1e-12

_ONE_LIPSCHITZ: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    # Permutations of the elements, or such with constants added.
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    # Element-wise, with a slope in [-1, 1]. GELU, SiLU, Mish and SELU are not among them.
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.LogSigmoid,
    nn.Sigmoid,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    # The Jacobian of softmax is diag(p) - p p^T, whose norm is at most 1/2.
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


def _windows_are_disjoint(pool: nn.Module, axes: int) -> bool:
    """Whether no input element is in two windows of the pooling layer.

    Windows i and i' share an element if (i - i') stride = (j' - j) dilation for two taps j, j' of
    the kernel, whose smallest solution is j' - j = stride / gcd(stride, dilation).
    """
    settings: Any = pool
    kernel = _per_axis(settings.kernel_size, axes)
    stride = _per_axis(settings.stride, axes)
    dilation = _per_axis(getattr(settings, "dilation", 1), axes)
    return all(k * math.gcd(s, d) <= s for k, s, d in zip(kernel, stride, dilation, strict=True))


_POOLING_AXES: dict[type[nn.Module], int] = {
    nn.MaxPool1d: 1,
    nn.MaxPool2d: 2,
    nn.MaxPool3d: 3,
    nn.AvgPool1d: 1,
    nn.AvgPool2d: 2,
    nn.AvgPool3d: 3,
}


def _is_one_lipschitz(module: nn.Module) -> bool:
    """Whether a module from ``torch.nn`` is known to be 1-Lipschitz with its settings.

    Exact types only: a subclass may compute something else.
    """
    kind = type(module)
    if kind in _ONE_LIPSCHITZ:
        return True
    if isinstance(module, ScaledLipschitzModule) and not isinstance(module, LipschitzModule):
        return not module.scaling
    if kind in _POOLING_AXES:
        # Maximum and mean are 1-Lipschitz on each window, and disjoint windows share no input.
        plain = not getattr(module, "return_indices", False)
        plain = plain and getattr(module, "divisor_override", None) is None
        return plain and _windows_are_disjoint(module, _POOLING_AXES[kind])
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        return abs(module.negative_slope) <= 1.0
    if isinstance(module, nn.ELU) and kind is nn.ELU:
        return 0.0 <= module.alpha <= 1.0
    if isinstance(module, nn.CELU) and kind is nn.CELU:
        return module.alpha > 0.0
    if isinstance(module, nn.Dropout) and kind is nn.Dropout:
        return module.p == 0.0
    if isinstance(module, nn.Sequential) and kind is nn.Sequential:
        return all(_is_one_lipschitz(child) for child in module)
    return False


class Sequential(nn.Sequential, LipschitzModule):
    r"""A ``torch.nn.Sequential`` that is ``k_coef_lip``-Lipschitz as a whole.

    The constant is shared out evenly: each of the :math:`n` Lipschitz layers is set to
    :math:`k^{1/n}`, whatever constant it was built with. A ``Sequential`` inside counts as one
    layer and shares its part out in the same way. This is done again whenever layers are appended,
    inserted, replaced or deleted, and whenever ``k_coef_lip`` is set. A layer that stands in
    several places counts once for each place, and gets the smallest of its parts. Without any
    Lipschitz layer, the container scales its output by ``k_coef_lip`` itself.

    Parts may be moved between layers afterwards (``model[0].k_coef_lip = 2.0`` beside
    ``model[2].k_coef_lip = 0.5``); ``forward`` raises if their product is more than the container
    has promised.

    Slices, ``a + b`` and ``a * n`` hold the *same* layers, as in ``torch.nn``, and leave them as
    they are: such a container promises the product of what its layers promise at any time, and
    layers added to it later keep their own constants. Setting ``k_coef_lip`` on it makes it an
    ordinary one, and changes the shared layers.

    Args:
        *args: the layers, or one ``OrderedDict`` of them, as for ``torch.nn.Sequential``.
        k_coef_lip: the Lipschitz constant of the whole: positive and finite.

    Raises:
        TypeError: if ``k_coef_lip`` is not a number, or a layer not a module.
        ValueError: if ``k_coef_lip`` is not positive and finite.

    Warns:
        UserWarning: if a layer is neither a Lipschitz layer nor a ``torch.nn`` module known to be
            1-Lipschitz with its settings; the constant of the whole then leaves it out.

    Example:
        >>> from lipfuse import nn
        >>> model = nn.Sequential(nn.MaxMin(), nn.FullSort(), k_coef_lip=4.0)
        >>> model[0].k_coef_lip
        2.0
    """

    # Whether the parts are shared out by this container; False for slices, sums and multiples.
    _shares_out: bool = True
    # False while the constructor adds the first layers: it shares out once, at its end.
    _built: bool = False

    def __init__(self, *args: Any, k_coef_lip: float = 1.0) -> None:
        k = check_positive("k_coef_lip", k_coef_lip)
        nn.Sequential.__init__(self, *args)
        LipschitzModule.__init__(self, k)
        self._built = True
        self._share_out()
        self._warn_of_unknown(self._modules.items())

    @classmethod
    def _of_shared(cls, named: Iterable[tuple[str, nn.Module]]) -> Sequential:
        """A container that takes its constant from its layers, instead of giving them theirs."""
        new = Sequential()
        new._shares_out = False
        for name, module in named:
            nn.Module.add_module(new, name, module)
        return new

    # ---- the constant -------------------------------------------------------------------------

    def _lipschitz_layers(self) -> list[LipschitzModule]:
        # By place, not by identity: a layer that is applied twice counts twice.
        return [m for m in self._modules.values() if isinstance(m, LipschitzModule)]

    def _product(self) -> float:
        product = 1.0
        for module in self._modules.values():
            if isinstance(module, LipschitzModule):
                product *= module.k_coef_lip
        return product

    @property
    def k_coef_lip(self) -> float:
        """The Lipschitz constant of the whole; setting it shares it out anew."""
        return self._k if self._shares_out else self._product()

    @k_coef_lip.setter
    def k_coef_lip(self, value: float) -> None:
        self._k = check_positive("k_coef_lip", value)
        self._shares_out = True
        self._share_out()

    def _parts(self, k: float, parts: dict[LipschitzModule, float]) -> None:
        """Note the part of every layer below, the smallest where one stands in several places."""
        layers = self._lipschitz_layers()
        for layer in layers:
            part = k ** (1.0 / len(layers))
            parts[layer] = min(part, parts.get(layer, math.inf))
            if isinstance(layer, Sequential):
                layer._parts(parts[layer], parts)

    def _share_out(self) -> None:
        if not (self._built and self._shares_out):
            return
        parts: dict[LipschitzModule, float] = {}
        self._parts(self._k, parts)
        for layer, part in parts.items():
            if isinstance(layer, Sequential):
                layer._k = part
                layer._shares_out = True
            else:
                layer.k_coef_lip = part

    def _warn_of_unknown(self, named: Iterable[tuple[str, nn.Module | None]]) -> None:
        unknown = [
            f"({name}): {module}"
            for name, module in named
            if module is not None
            and not isinstance(module, LipschitzModule)
            and not _is_one_lipschitz(module)
        ]
        if unknown:
            warnings.warn(
                f"lipfuse.nn.Sequential promises a Lipschitz constant of {self.k_coef_lip:g}, but "
                "cannot vouch for these layers, which are neither Lipschitz layers nor known to "
                f"be 1-Lipschitz with their settings: {'; '.join(unknown)}",
                stacklevel=3,
            )

    # ---- changes of the layers ----------------------------------------------------------------

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(name, module)
        if self._built:
            self._share_out()
            self._warn_of_unknown([(name, module)])

    def insert(self: _SequentialT, index: int, module: nn.Module) -> _SequentialT:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {module!r}")
        super().insert(index, module)
        self._share_out()
        self._warn_of_unknown([(str(index), module)])
        return self

    # Replacing and deleting, by index too, end here in torch.nn.
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self._built and isinstance(value, nn.Module):
            self._share_out()
            self._warn_of_unknown([(name, value)])

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._share_out()

    @overload  # type: ignore[override]
    def __getitem__(self, idx: slice) -> Sequential: ...

    @overload
    def __getitem__(self, idx: int) -> nn.Module: ...

    def __getitem__(self, idx: slice | int) -> Sequential | nn.Module:
        if isinstance(idx, slice):
            return self._of_shared(list(self._modules.items())[idx])
        return super().__getitem__(idx)

    def __add__(self, other: nn.Sequential) -> Sequential:
        if not isinstance(other, nn.Sequential):
            raise TypeError(f"only a Sequential can be added to a Sequential, got {other!r}")
        return self._of_shared((str(i), layer) for i, layer in enumerate([*self, *other]))

    def __mul__(self, other: int) -> Sequential:
        # The parent checks the factor; its result is a plain container of the same layers.
        return self._of_shared(super().__mul__(other)._modules.items())

    # ---- forward and export -------------------------------------------------------------------

    def forward(self, input: Any) -> Any:
        """Apply the layers in turn.

        Raises:
            ValueError: if the constants of the layers multiply to more than ``k_coef_lip``,
                because one was set on a layer, or by another container that holds it too.
        """
        scale = self._output_scale()
        for module in self:
            input = module(input)
        return input if scale == 1.0 else input * scale

    def _output_scale(self) -> float:
        """What to multiply the output by: 1 unless there is no Lipschitz layer to carry k."""
        if not self._shares_out:
            return 1.0
        product, found = 1.0, False
        for module in self._modules.values():
            if isinstance(module, LipschitzModule):
                product *= module.k_coef_lip
                found = True
        if not found:
            return self._k
        if product > self._k * (1.0 + _ROUNDING):
            raise ValueError(
                f"the layers' k_coef_lip multiply to {product:g}, but their Sequential promises "
                f"k_coef_lip={self._k:g}: lower the layers' constants, or set the container's "
                "k_coef_lip, which shares it out anew"
            )
        return 1.0

    def _vanilla_container(self) -> Callable[[], nn.Sequential]:
        """Return what builds the plain container once the children have become plain."""
        # Now, while the children still have their constants.
        scale = self._output_scale()

        def build() -> nn.Sequential:
            plain = nn.Sequential(OrderedDict(self._modules))
            if scale != 1.0:
                plain.add_module("scale", plain_function("Scale", lambda input: input * scale))
            plain.training = self.training
            return plain

        return build

    def vanilla_export(self) -> nn.Sequential:
        """The same map as a ``torch.nn.Sequential`` of plain layers, which are copies.

        Returns:
            A ``torch.nn.Sequential``. Layers that are not Lipschitz layers are deep-copied; a layer
            that stands in several places is one layer in the copy as well.
        """
        plain = vanilla_model(self, in_place=False)
        assert isinstance(plain, nn.Sequential)
        return plain

    def extra_repr(self) -> str:
        return self._k_repr()
