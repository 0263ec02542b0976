"""Functions that put the normalisations on a module's weight, and take them off.

Each takes a module and returns it, as those of ``torch.nn.utils.parametrizations`` do.
"""

from __future__ import annotations

from typing import Any, Literal, Optional, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..functional import convolution
from ._computed import shorten
from .modules import BjorckNorm, FrobeniusNorm, LConvNorm, Orthogonal, SpectralNorm

__all__ = [
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


def _kind_of(module: nn.Module) -> str:
    name: str = parametrize.type_before_parametrizations(module).__name__
    return name


def _weight_of(module: nn.Module, name: str, least_dims: int = 0) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"name must be that of a parameter of {_kind_of(module)}, got {name!r}")
    if weight.dim() < least_dims:
        raise ValueError(
            f"name must be that of a parameter of at least {least_dims} dimensions, "
            f"got {name!r} of shape {tuple(weight.shape)}"
        )
    return weight


def _register(module: _M, name: str, parametrization: nn.Module) -> _M:
    # `unsafe` skips torch's trial of right_inverse, which here is a projection, not an inverse.
    parametrize.register_parametrization(module, name, parametrization, unsafe=True)
    shorten(module, name)
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
    r"""Divides a weight by an estimate of its spectral norm at every forward; arguments as torch's.

    The divisor :math:`\sigma = u^\top W v` approaches the spectral norm from below: it is an
    estimate, not a bound. So the norm of the result, :math:`\|W\| / \sigma`, is never below 1, and
    above it until the power iteration has converged; in evaluation as well, which keeps the u and v
    of training. Like torch's, this guarantees no Lipschitz constant:
    :class:`lipfuse.nn.SpectralLinear` with ``eps_bjorck=None`` divides by a proven bound, and
    :func:`lipfuse.certify` bounds the norm that a weight has.

    Args:
        module: the module, changed in place.
        name: of the parameter.
        n_power_iterations: a training forward; more of them bring sigma closer.
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
        ValueError: if the module has no tensor of that name and two dimensions or more, or ``eps``
            is not positive.
    """
    _weight_of(module, name, 2)
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
        ValueError: if the module has no tensor of that name and two dimensions or more, or an
            argument is out of range.
    """
    _weight_of(module, name, 2)
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
        TypeError: if ``disjoint_neurons`` is not a bool.
        ValueError: if the module has no tensor of that name, or none with outputs of their own.
    """
    parametrization = FrobeniusNorm(disjoint_neurons)
    _weight_of(module, name, 2 if disjoint_neurons else 0)
    return _register(module, name, parametrization)


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
