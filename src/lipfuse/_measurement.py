"""One normalised layer, measured on copies of what it is made of."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import ops
from ._lanczos import extreme_singular_values
from .functional._conv_symbol import ConvOperator
from .nn._orthogonal_kernel import OrthogonalKernel
from .nn.module import LipschitzModule
from .ops.orthogonalize import INFO
from .parametrizations import FrobeniusNorm, LipschitzWeight
from .parametrizations.registrars import factor_of
from .parametrizations.weight import as_matrices

__all__ = ["measure"]

# Matrices of a larger smaller side are searched, not decomposed.
_MOST_VALUES = 512
_SQUARINGS = 8


class _Recorder(TorchDispatchMode):
    """Notes what the operators of one normalisation report."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "lipfuse::orthogonalize":
            info = out[2].reshape(-1, len(INFO)).amax(0)
            self._add(float(info[INFO.index("stages")]))
            self.found["residual"] = float(info[INFO.index("residual")])
        elif name in ("lipfuse::bjorck", "lipfuse::spectral_bjorck"):
            self._add(float(out[-1].max()))
        elif name in ("lipfuse::power_iteration", "lipfuse::spectral_normalize"):
            self._add(float(args[3]))
        return out

    def _add(self, iterations: float) -> None:
        self.found["iterations"] = self.found.get("iterations", 0.0) + iterations


def _matrices(module: nn.Module, chain: Any, tensor: Tensor) -> Tensor:
    """A weight as the matrices that are normalised."""
    if tensor.dim() < 2:
        return tensor.reshape(1, -1)
    first = chain[0]
    conv = isinstance(module, nn.modules.conv._ConvNd)
    groups: Any = first.groups if isinstance(first, LipschitzWeight) else 1
    if groups == 1 and conv:
        groups = module.groups
    return as_matrices(tensor, groups)


def _extremes(matrices: Tensor) -> tuple[float, float]:
    """Over all matrices of a batch, in float64; NaN where one is not finite."""
    x = matrices.detach().double()
    if not bool(torch.isfinite(x).all()):
        return math.nan, math.nan
    if min(x.shape[-2:]) <= _MOST_VALUES:
        values = torch.linalg.svdvals(x)
        return float(values.min()), float(values.max())
    ends = []
    for w in x.reshape(-1, *x.shape[-2:]):
        ends.append(extreme_singular_values(w.mv, w.mT.mv, w.shape[0], w.shape[1], device=w.device))
    return min(low for low, _ in ends), max(high for _, high in ends)


def _run(steps: list[Any], originals: list[Tensor]) -> Any:
    value: Any = steps[0](*originals)
    for step in steps[1:]:
        value = step(value)
    return value


def _timed(module: nn.Module, steps: list[Any], originals: list[Tensor], backward: bool) -> float:
    """Milliseconds of one normalisation."""
    device = originals[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        weight = _run(steps, originals)
        if backward and weight.requires_grad:
            torch.autograd.grad(weight, originals, torch.ones_like(weight), allow_unused=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode(False)
def measure(module: nn.Module, chain: Any) -> dict[str, float]:
    """What :func:`lipfuse.monitor` reports of one parametrized tensor.

    Args:
        module: the layer.
        chain: one of its ``parametrizations``.

    Returns:
        The values by the last part of their keys.
    """
    parts = [chain.original] if chain.is_tensor else [o for _, o in chain.named_parameters()]
    training = bool(chain.training)
    originals = [p.detach().clone() for p in parts]
    values: dict[str, float] = {}
    if chain.is_tensor and originals[0].numel():
        low, high = _extremes(_matrices(module, chain, originals[0]))
        values.update(parameter_min=low, parameter_max=high)
        if not math.isfinite(high):
            return values
    if not all(o.numel() for o in originals):
        return values
    # Copies, since a normalisation in training advances what it starts from next time.
    steps = [copy.deepcopy(step) for step in chain]
    originals = [o.requires_grad_(o.is_floating_point()) for o in originals]
    recorder = _Recorder()
    with torch.enable_grad(), recorder:
        weight = _run(steps, originals).detach()
    matrices = _matrices(module, chain, weight)
    low, high = _extremes(matrices)
    values.update(weight_min=low, weight_max=high, bound=_bound(module, chain, weight, matrices))
    if isinstance(module, LipschitzModule):
        values["k_coef_lip"] = module.k_coef_lip
    values.update(recorder.found)
    if not training:
        _timed(module, steps, originals, False)  # fills what evaluation keeps from call to call
    values["time_ms"] = _timed(module, steps, originals, training)
    return values


def _bound(module: nn.Module, chain: Any, weight: Tensor, matrices: Tensor) -> float:
    last = chain[len(chain) - 1]
    exact = weight.double()
    if isinstance(last, FrobeniusNorm) and last.disjoint_neurons:
        return float(torch.linalg.vector_norm(exact.flatten(1), dim=1).max())
    bound = float(ops.spectral_bound(matrices.double().contiguous(), _SQUARINGS).max())
    if not isinstance(module, nn.modules.conv._ConvNd) or bound == 0 or bound != bound:
        return bound
    kernel: Any = module.kernel_size
    channels = min(module.in_channels, module.out_channels) // module.groups
    settings: tuple[Any, Any, str, int, float]
    if isinstance(last, OrthogonalKernel):
        # Wherever its ends are, it is a part of the convolution of an infinite plane, or that of a
        # circle. The adjoint has the same norm.
        settings = ((0,) * len(kernel), module.dilation, "zeros", channels, math.inf)
    else:
        most = 1 / factor_of(module)
        settings = (module.padding, module.dilation, module.padding_mode, channels, most)
    operator = ConvOperator(kernel, module.stride, *settings)
    # It wants matrices no larger than 1.
    unit = (exact / bound).reshape(module.groups, weight.shape[0] // module.groups, -1, *kernel)
    return bound * float(operator.norm(unit).max())
