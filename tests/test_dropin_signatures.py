"""Every public name of deel-torchlip exists here, with its arguments, their order and defaults.

deel-torchlip is introspected as it is installed. What is different stands in a list below with the
reason for it, and the lists have to be exact: a difference that is gone fails as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import types
from typing import Any, NamedTuple

import deel.torchlip
import pytest

import lipfuse.functional
import lipfuse.nn

# Where the names of their modules are to be found here: the first place that has them. All others
# are in lipfuse.nn.
PLACES = {
    "deel.torchlip.functional": ["lipfuse.nn.functional"],
    "deel.torchlip.init": ["lipfuse.nn.init"],
    "deel.torchlip.normalizers": ["lipfuse.nn.normalizers"],
    "deel.torchlip.utils": ["lipfuse.nn.utils", "lipfuse.parametrizations"],
}

# Names that do not exist here, or elsewhere only.
ABSENT = {
    "SqrtEpsGrad": "an implementation detail of sqrt_with_gradeps",
    "computePoolScalingFactor": "an implementation detail of the pools; wrong for lists",
    "compute_lconv_coef": "ignores dilation and padding mode, and for an input shape is an average "
    "count, not a bound: lipfuse.functional.conv_factor",
    "compute_lconv_coef_1d": "lacks the root: lipfuse.functional.conv_factor",
    "DEFAULT_BJORK_DETACH": "from which iteration on theirs drops a part of the gradient; ours is "
    "exact",
}

# Arguments that come after theirs: only at the end, or by keyword.
DEVICE_AND_DTYPE = "device and dtype, where torch.nn has them"
METHOD = "method, by keyword: how the weight is normalised"
OWN_K = "k_coef_lip, by keyword: theirs is 1"
CONVOLUTION = ("method", "normalization")
ADDED: dict[str, tuple[tuple[str, ...], str]] = {
    "BatchCentering": (("device", "dtype", "k_coef_lip"), f"{DEVICE_AND_DTYPE}; {OWN_K}"),
    "BatchCentering2d": (("device", "dtype", "k_coef_lip"), f"{DEVICE_AND_DTYPE}; {OWN_K}"),
    "BatchLipNorm": (("device", "dtype"), DEVICE_AND_DTYPE),
    "FrobeniusConv2d": (("device", "dtype"), DEVICE_AND_DTYPE),
    "FrobeniusLinear": (("device", "dtype"), DEVICE_AND_DTYPE),
    "HouseHolder": (("device", "dtype"), DEVICE_AND_DTYPE),
    "LPReLU": (("device", "dtype"), DEVICE_AND_DTYPE),
    "LayerCentering": (("device", "dtype", "k_coef_lip"), f"{DEVICE_AND_DTYPE}; {OWN_K}"),
    "LayerCentering2d": (("device", "dtype", "k_coef_lip"), f"{DEVICE_AND_DTYPE}; {OWN_K}"),
    "LipResidual": (("device", "dtype", "k_coef_lip"), f"{DEVICE_AND_DTYPE}; {OWN_K}"),
    "PadConv1d": (("device", "dtype"), DEVICE_AND_DTYPE),
    "PadConv2d": (("device", "dtype"), DEVICE_AND_DTYPE),
    "ScaleBiasLayer": (("device", "dtype"), DEVICE_AND_DTYPE),
    "SpectralConv1d": (("device", "dtype", *CONVOLUTION), f"{DEVICE_AND_DTYPE}; {METHOD}"),
    "SpectralConv2d": (("device", "dtype", *CONVOLUTION), f"{DEVICE_AND_DTYPE}; {METHOD}"),
    "SpectralConvTranspose2d": (CONVOLUTION, METHOD),
    "SpectralLinear": (("device", "dtype", "method"), f"{DEVICE_AND_DTYPE}; {METHOD}"),
    "group_sort": (("scale",), "by keyword: multiplies in the same pass"),
    "max_min": (("scale",), "by keyword: multiplies in the same pass"),
}

# (name, argument): their default, ours, the reason.
DEFAULTS: dict[tuple[str, str], tuple[Any, Any, str]] = {
    (name, "dim"): ([-2, -1], (-2, -1), "a list as a default is shared by all layers")
    for name in ("LayerCentering", "LayerCentering2d")
}


class Name(NamedTuple):
    name: str
    module: str
    value: Any


def public_names() -> list[Name]:
    """Classes, functions and numbers that deel-torchlip defines, each once."""
    names: dict[str, Name] = {}
    package = deel.torchlip
    modules = [package] + [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("_"):
                continue
            if isinstance(value, (type, types.FunctionType)):
                if not value.__module__.startswith("deel"):
                    continue
                home = value.__module__
            elif isinstance(value, (int, float, str)):
                home = module.__name__
            else:
                continue
            names.setdefault(name, Name(name, home, value))
    return list(names.values())


NAMES = public_names()
every_name = pytest.mark.parametrize("name", NAMES, ids=lambda n: n.name)


def here(name: Name) -> Any:
    """The value of the same name here, or None."""
    places = next((p for m, p in PLACES.items() if name.module.startswith(m)), ["lipfuse.nn"])
    for place in places:
        if importlib.util.find_spec(place) is not None:
            value = getattr(importlib.import_module(place), name.name, None)
            if value is not None:
                return value
    return None


def arguments(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def same_default(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    return isinstance(a, (int, float)) is isinstance(b, (int, float)) and bool(a == b)


def test_there_is_something_to_compare() -> None:
    found = {n.name for n in NAMES}
    assert len(found) > 60
    # What cannot be imported from their package by the names in __all__ does not exist.
    exported = set(deel.torchlip.__all__)
    assert exported - found == {"LipschitzPReLU", "ScaledL2NormPooling2D"}
    assert set(ABSENT) | set(ADDED) | {n for n, _ in DEFAULTS} <= found


@every_name
def test_the_same_name_and_arguments(name: Name) -> None:
    ours = here(name)
    if name.name in ABSENT:
        assert ours is None, f"{name.name} exists: take it off the list"
        return
    assert ours is not None, f"{name.name} of {name.module} is missing"
    if not callable(name.value):
        assert same_default(ours, name.value)
        return
    assert isinstance(ours, type) is isinstance(name.value, type)
    theirs_arguments, our_arguments = arguments(name.value), arguments(ours)
    count = len(theirs_arguments)
    assert list(our_arguments)[:count] == list(theirs_arguments)
    added, _ = ADDED.get(name.name, ((), ""))
    assert tuple(our_arguments)[count:] == added
    for key in added:
        parameter = our_arguments[key]
        assert key in ("device", "dtype") or parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
    for key, theirs in theirs_arguments.items():
        assert our_arguments[key].kind is theirs.kind, key
        pair = theirs.default, our_arguments[key].default
        if (name.name, key) in DEFAULTS:
            assert pair == DEFAULTS[name.name, key][:2]
        else:
            assert same_default(*pair), key


# Classes of which forward alone is compared.
ONLY_FORWARD = {
    "SoftHKRMulticlassLoss": "its other methods are the steps of the computation",
    "LseHKRMulticlassLoss": "its other methods are the steps of the computation",
}


def methods(kind: type) -> dict[str, Any]:
    """The public methods that their class, or one that it derives from, defines itself."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("deel"):
            found.update(
                (n, f)
                for n, f in vars(base).items()
                if isinstance(f, (types.FunctionType, staticmethod)) and not n.startswith("_")
            )
    return found


@pytest.mark.parametrize(
    "name", [n for n in NAMES if isinstance(n.value, type)], ids=lambda n: n.name
)
def test_the_same_methods(name: Name) -> None:
    if name.name in ABSENT:
        return
    ours = here(name)
    for method, theirs in methods(name.value).items():
        if name.name in ONLY_FORWARD and method != "forward":
            continue
        found = getattr(ours, method, None)
        assert callable(found), method
        keys = list(arguments(theirs))
        assert list(arguments(found))[: len(keys)] == keys, method


def test_submodules_can_be_imported_under_their_names() -> None:
    """``from deel.torchlip.functional import kr_loss`` becomes ``from lipfuse.nn.functional``."""
    from lipfuse.nn import functional

    assert functional.kr_loss is lipfuse.functional.kr_loss
    assert importlib.import_module("lipfuse.nn.functional") is functional
    assert set(functional.__all__) == set(lipfuse.functional.__all__)
