"""Converting a model that was built with deel-torchlip, orthogonium or torch's parametrizations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as _TorchHook
from torch.optim import Optimizer

from .. import ops
from .._checkpoint import WeightChain
from .._checks import check_bool
from ..parametrizations import FrobeniusNorm, LipschitzWeight, SpectralNorm
from ..parametrizations._computed import shorten
from ..parametrizations.weight import as_matrices
from .chains import (
    Unknown,
    Weight,
    evaluated,
    is_known,
    qualified_name,
    read,
    relative_change,
)
from .hook import SpectralNormHook
from .layers import (
    PACKAGES,
    PADDING,
    PLAIN,
    SEQUENTIAL,
    WEIGHTED,
    become,
    convert_container,
    package_of,
)
from .report import Report, Row

__all__ = ["accelerate"]

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
_SAME = 1e-5
"""Largest relative change of a weight that counts as none."""


def accelerate(
    model: nn.Module,
    *,
    strict: bool = True,
    optimizer: Union[Optimizer, Sequence[Optimizer], None] = None,
) -> Report:
    """Converts the layers of a model to those of this package, in place.

    Converted are the layers of deel-torchlip 1.0.5, ``OrthoLinear``, ``UnitNormLinear`` and the RKO
    convolutions of orthogonium 0.0.4, and in any module the parametrizations of both and torch's
    ``spectral_norm`` (hook and parametrization) and ``orthogonal``, wherever they are nested.
    Neither package is imported.

    Every module object stays where it is and keeps its parameters, the very same objects, with its
    hooks, training flag, device and dtype; an optimizer goes on with them. Where the parameter of a
    weight is not the matrix that is made orthogonal (torch's ``orthogonal``; Cholesky, QR and
    exponential in orthogonium), it is set to that matrix, and what an optimizer remembers of it
    belongs to other coordinates: pass the optimizer, and that is forgotten.

    Weights are compared before anything changes: in evaluation they are the same to 1e-5, in the
    spectral norm. Where deel-torchlip would serve a weight from before the last optimizer step, it
    is the weight of the current parameter; the report says so.

    Args:
        model: the model; changed in place.
        strict: whether layers stay as they are that do not compute what they promise: whose
            constant is exceeded, or whose iteration has not converged. Otherwise they are converted
            as well, their function changes, and they keep their promise.
        optimizer: the optimizer or optimizers of the model, if there are any. Their state of
            parameters that were set anew is dropped, and parameters that are not in use any more
            are taken out.

    Returns:
        What was converted to what, what was not, and why; ``print`` shows a table.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: if the model is wrapped for distributed training, or holds one that is: its
            wrapper keeps lists of buffers and parameters. Convert it first.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if type(module).__name__ in _WRAPPERS:
            raise ValueError(
                f"model must be converted before it is wrapped, got a {type(module).__name__}"
            )
    check_bool("strict", strict)
    optimizers: list[Optimizer] = []
    if optimizer is not None:
        optimizers += optimizer if isinstance(optimizer, Iterable) else (optimizer,)
    for item in optimizers:
        if not isinstance(item, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer or several, got {type(item).__name__}"
            )
    before = set(model.parameters())
    known = {p for item in optimizers for group in item.param_groups for p in group["params"]}
    conversion = _Conversion(model, strict, known)
    report = conversion.run()
    gone = before - set(model.parameters())
    for item in optimizers:
        for parameter in conversion.set_anew | gone:
            item.state.pop(parameter, None)
        for group in item.param_groups:
            group["params"] = [p for p in group["params"] if p not in gone]
    return report


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules but those that make up a parametrization, each once."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if parametrize.is_parametrized(module):
            inside.update(module.parametrizations.modules())
        yield name, module


class _Conversion:
    """One conversion. Everything is read and compared before anything changes."""

    def __init__(self, model: nn.Module, strict: bool, known: set[nn.Parameter]) -> None:
        """``known``: the parameters of the optimizers that were given."""
        self.strict = strict
        self.known = known
        self.set_anew: set[nn.Parameter] = set()
        self._rows: dict[tuple[str, str], Row] = {}
        self._steps: list[Callable[[], None]] = []
        self._containers: list[tuple[str, nn.Module]] = []
        modules = set(model.modules())
        self._uses: Counter[Tensor] = Counter(
            p for m in modules for p in m._parameters.values() if p is not None
        )
        for name, module in _layers(model):
            self._plan(name, module)

    def run(self) -> Report:
        for step in self._steps:
            step()
        # Inner ones first: what a container promises follows from its layers.
        for name, module in reversed(self._containers):
            before = _short(SEQUENTIAL)
            try:
                note = convert_container(module, self.strict)
            except Unknown as error:
                self._note(name, "", before, note=str(error))
            else:
                self._note(name, "", before, after=_short(qualified_name(module)), note=note)
        return Report(tuple(self._rows.values()))

    def _note(self, name: str, tensor: str, before: str, **values: Any) -> None:
        self._rows[name, tensor] = Row(name, before, **values)

    def _plan(self, name: str, module: nn.Module) -> None:
        kind = qualified_name(module)
        short = _short(kind)
        for hook in module._forward_pre_hooks.values():
            if type(hook) is _TorchHook and _is_real(hook, getattr(module, f"{hook.name}_orig")):
                self._swap(hook, SpectralNormHook)
                before = f"{short}, {hook.name} by the hook spectral_norm"
                self._note(name, hook.name, before, after="the same, fused")
        if parametrize.is_parametrized(module):
            for tensor in module.parametrizations:  # type: ignore[union-attr]
                self._plan_weight(name, module, tensor)
        elif kind in PLAIN:
            try:
                new = PLAIN[kind](module, self.strict)
            except (Unknown, ValueError, TypeError) as error:
                self._note(name, "", short, note=str(error))
                return
            self._steps.append(lambda: become(module, new))
            self._note(name, "", short, after=_short(qualified_name(new)))
        elif kind == SEQUENTIAL:
            self._note(name, "", short)  # for its place in the report
            self._containers.append((name, module))
        elif package_of(module) in PACKAGES and kind != PADDING:
            loss = ".modules.loss." in kind
            note = "a loss, which stays what it is" if loss else "lipfuse has nothing in its place"
            self._note(name, "", short, note=note)

    def _swap(self, thing: object, kind: type) -> None:
        self._steps.append(lambda: setattr(thing, "__class__", kind))

    # ---- weights ------------------------------------------------------------------------------

    def _plan_weight(self, name: str, module: Any, tensor: str) -> None:
        chain: Any = module.parametrizations[tensor]
        if any(package_of(step) == "lipfuse" for step in chain):
            return
        kind = qualified_name(module)
        build = WEIGHTED.get(kind) if tensor == "weight" else None
        before = _short(kind)
        if build is None:
            before += f", {tensor} by {qualified_name(chain[-1]).rpartition('.')[2].lstrip('_')}"
        # Where nothing more can be done, or is asked for: it computes the same as before.
        original = getattr(chain, "original", None)
        estimates = [s for s in chain if type(s) is _SpectralNorm and _is_real(s, original)]
        reason = ""
        try:
            weight = read(chain)
            if weight.kind != "spectral" or build is not None:
                layer = None if build is None else build(module, weight, self.strict)
                after, note, change = self._prepare(module, tensor, weight, layer)
                self._note(name, tensor, before, after=after, note=note, change=change)
                return
        except (Unknown, RuntimeError, TypeError, ValueError) as error:
            reason = str(error)  # of theirs, too: a Cholesky decomposition may fail
        if estimates:
            for step in estimates:
                self._swap(step, SpectralNorm)
            self._steps.append(lambda: shorten(module, tensor))
            self._note(name, tensor, before, after="the same, fused", note=reason)
        elif package_of(module) in PACKAGES or any(map(is_known, chain)):
            self._note(name, tensor, before, note=reason)

    def _prepare(
        self, module: Any, tensor: str, weight: Weight, layer: Any
    ) -> tuple[str, str, Optional[float]]:
        """Plans the change of one weight: what it becomes, a note, the change in evaluation.

        Raises:
            Unknown: if it has to stay as it is.
        """
        chain: Any = module.parametrizations[tensor]
        original: Tensor = chain.original
        notes = []
        scale = weight.scale
        factor = 1.0 if layer is None else layer._factor
        if layer is not None:
            weight, note = self._with_factor(weight, layer)
            notes.append(note)
        step: Any = weight.step(original.to("meta"))
        if isinstance(step, LipschitzWeight):
            _take_vectors(step, chain[0], original)
        change = None
        value = None
        if not original.is_meta:
            old = evaluated(chain, training=False)
            if not weight.coordinates:
                value = old / scale
                if self._uses[original] > 1:
                    raise Unknown("its parameter, which has to be set anew, has other uses")
            change, note = self._compare(chain, weight, step, old, value, scale)
            notes.append(note)
        elif not weight.coordinates:
            raise Unknown("its parameter has no values: it is on the meta device")

        def apply() -> None:
            chain._modules.clear()
            chain._modules["0"] = step.train(chain.training)
            if value is not None:
                with torch.no_grad():
                    original.copy_(value)
                original.grad = None
                if isinstance(original, nn.Parameter):
                    self.set_anew.add(original)
            if layer is None:
                shorten(module, tensor)
            else:
                become(module, layer)
            if isinstance(step, (FrobeniusNorm, LipschitzWeight)):
                same = math.isclose(step.scale, scale)
                WeightChain.adopt(module, tensor, factor, converted=same)

        self._steps.append(apply)
        after = _KINDS[weight.kind] if layer is None else _short(qualified_name(layer))
        if value is not None:
            notes.append(
                "its parameter was set to the matrix itself"
                + (
                    ", and what the optimizer remembered of it was dropped"
                    if original in self.known
                    else ": pass the optimizer to accelerate, if it has already made steps"
                )
            )
        return after, "; ".join(filter(None, notes)), change

    def _with_factor(self, weight: Weight, layer: Any) -> tuple[Weight, str]:
        """Shares the scale out into the factor of our layer and a Lipschitz constant."""
        promised, factor = weight.coefficient, layer._factor
        k, note = weight.scale / factor, ""
        if math.isclose(k, promised, rel_tol=1e-6):
            k = promised
        elif k > promised:
            if self.strict:
                raise Unknown(
                    f"its weight is multiplied by {weight.scale:.4g}, where {promised * factor:.4g}"
                    f" is allowed: it can be {k:.4g}-Lipschitz, and promises {promised:g}"
                )
            note = f"it could be {k:.4g}-Lipschitz: its weight is now {promised / k:.4g} of that"
            k = promised
        else:
            note = f"k_coef_lip is {k:.4g}, not {promised:g}: it multiplies by so much less"
        layer._k = k
        return replace(weight, scale=k * factor), note

    def _compare(
        self,
        chain: Any,
        weight: Weight,
        step: Any,
        old: Tensor,
        value: Optional[Tensor],
        scale: float,
    ) -> tuple[float, str]:
        """The change of the weight in evaluation, and what to know about it.

        Its scale, that was ``scale``, may have been changed on purpose.
        """
        ratio = weight.scale / scale
        with torch.no_grad(), torch.autocast(old.device.type, enabled=False):
            new = step.eval()(chain.original.detach() if value is None else value)
        allowed = max(_SAME, 4 * torch.finfo(old.dtype).eps)
        change = relative_change(old, new)
        off = change if ratio == 1.0 else relative_change(ratio * old, new)
        if off <= allowed:
            return change, ""
        if weight.kind == "polar" and weight.coordinates:
            fresh = relative_change(ratio * evaluated(chain, training=True), new)
            if fresh <= allowed:
                return change, (
                    "in evaluation it used a weight from before the last change of its parameter; "
                    "it is now that of the parameter"
                )
        if weight.kind == "spectral":
            norm = float(ops.spectral_bound(as_matrices(old.double()), 8).max()) / scale
            reason = f"its estimate of the spectral norm is off: its weight's norm is {norm:.6g} of"
            reason += " what it should be"
        else:
            reason = f"its iteration has not converged: its weight is {off:.1g} from what it "
            reason += "tends to"
        if self.strict:
            raise Unknown(reason)
        return change, reason


_KINDS = {
    "polar": "polar factor, fused",
    "frobenius": "Frobenius norm, fused",
    "spectral": "spectral norm, fused",
}


def _short(name: str) -> str:
    """Package and class."""
    package, _, rest = name.partition(".")
    return f"{package} {rest.rpartition('.')[2]}"


def _is_real(norm: Any, weight: Any) -> bool:
    """Whether our operator takes a weight and the eps of a spectral norm of torch."""
    return norm.eps > 0 and isinstance(weight, Tensor) and weight.is_floating_point()


def _take_vectors(step: LipschitzWeight, theirs: Any, original: Tensor) -> None:
    """Takes over the vectors of torch's power iteration, where ours has any."""
    if step._u is None or step._v is None:
        return
    if theirs.dim == 0:
        # The same tensors, unless ours are to be of higher precision.
        step._u, step._v = theirs._u.to(step._u.dtype), theirs._v.to(step._v.dtype)
        return
    # Theirs, for a transposed convolution, are those of another matrix.
    m, n = step._u.shape[-1], step._v.shape[-1]
    u, v = (torch.full((k,), k**-0.5, dtype=step._u.dtype, device=original.device) for k in (m, n))
    if not original.is_meta:
        with torch.no_grad():
            matrix = original.detach().reshape(m, n).to(u.dtype)
            _, u, v = ops.power_iteration(matrix, u, v, 30, 1e-12)
    step._u, step._v = u, v
