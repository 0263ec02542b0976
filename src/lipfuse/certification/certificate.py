"""What :func:`lipfuse.certify` returns."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from .._checks import check_finite, check_tensor
from .norms import up

__all__ = ["Certificate", "LayerBound"]

# Of what is printed and written as JSON, pairs of outputs included.
_MOST_PAIRS = 100


@dataclass(frozen=True)
class LayerBound:
    """One module, or one operation of a module that has others in it.

    Args:
        name, layer, bound, total, method, shape: the attributes of these names, not checked.

    Attributes:
        name: the module's qualified name.
        layer: its class, or the operation.
        bound: an upper bound of its own Lipschitz constant, for the input it gets here; None if it
            has several inputs.
        total: one for everything up to it, as a function of the network's input.
        method: how the bound was obtained.
        shape: of its output, without the batch dimension.
    """

    name: str
    layer: str
    bound: Optional[float]
    total: float
    method: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""A proven upper bound of a network's Lipschitz constant in the Euclidean norm.

    For any two inputs, :math:`\|f(x) - f(y)\| \le L\,\|x - y\|`: f is what the network computes in
    evaluation from one sample, in exact arithmetic, with the weights as they are stored. How far
    the network's own arithmetic is from that can be accounted for in :meth:`radius`.

    Args:
        lipschitz, layers, input_shape, output_shape, outputs, pairs, margin: the attributes of
            these names, not checked: :func:`certify` computes them.

    Attributes:
        lipschitz: L.
        layers: how it comes about, in the order of the computation.
        input_shape: of one sample.
        output_shape: of what the network makes of it.
        outputs: a bound for every single output, flattened.
        pairs: ``(n, n)``, a bound for the difference of any two of n outputs; None if the network
            has one output, or makes images, or has so many outputs that only ``outputs`` and
            ``lipschitz`` are used.
        margin: what rounding in the computation of L is allowed for, relative to L and at most.
    """

    lipschitz: float
    layers: tuple[LayerBound, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    outputs: Tensor
    pairs: Optional[Tensor]
    margin: float

    def radius(
        self, logits: Tensor, labels: Optional[Tensor] = None, *, logit_error: float = 0.0
    ) -> Tensor:
        r"""The L2 radius within which no perturbation changes the decision.

        With several outputs, :math:`\min_j\, (z_y - z_j) / L_{yj}` over all competitors j, where
        :math:`L_{yj}` bounds the slope of :math:`z_y - z_j`: the smallest of
        :math:`\sqrt 2\,L` (all outputs together), :math:`L_y + L_j` (each on its own), and
        :math:`L'\,\|w_y - w_j\|` where the last layer is linear, with rows w, behind an
        L'-Lipschitz network. With one output, whose sign decides, :math:`|z| / L`.

        Args:
            logits: ``(N, n)``, or ``(n,)`` for one sample; ``(N,)`` too if there is one output.
            labels: the classes that ought to win, ``(N,)`` or a scalar; for one output 0 or -1, or
                1. The radius is 0 where another one does. Without, the decision counts, right or
                wrong.
            logit_error: how far a logit that the network computes may be from its exact value,
                here and within the radius: what its own rounding does.

        Returns:
            Radii in float64, ``(N,)``, or a scalar for one sample; infinite where nothing can
            change the decision.

        Raises:
            TypeError, ValueError: for arguments of the wrong kind or shape, or not finite.
        """
        check_tensor("logits", logits, min_dim=0)
        error = check_finite("logit_error", logit_error)
        if error < 0.0:
            raise ValueError(f"logit_error must not be negative, got {error}")
        count = self.outputs.numel()
        z = logits.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(z).all()):
            raise ValueError("logits must be finite, got NaN or infinite elements")
        if count == 1:
            single = z.dim() == 0
            fits = z.dim() <= 1 or (z.dim() == 2 and z.shape[1] == 1)
        else:
            single = z.dim() == 1
            fits = z.dim() in (1, 2) and z.shape[-1] == count
        if not fits or len([n for n in self.output_shape if n != 1]) > 1:
            raise ValueError(
                f"logits must have shape (N, {count}) for a network whose output has shape "
                f"{self.output_shape}, got {tuple(logits.shape)}"
            )
        z = z.reshape(-1, count)
        classes = _check_labels(labels, z)
        radii = self._binary(z, classes, error) if count == 1 else self._multi(z, classes, error)
        return radii[0] if single else radii

    def _binary(self, z: Tensor, classes: Optional[Tensor], error: float) -> Tensor:
        z = z[:, 0]
        margins = z.abs() if classes is None else torch.where(classes > 0, z, -z)
        return _divided(margins - 2.0 * error, torch.as_tensor(self.lipschitz))

    def _multi(self, z: Tensor, classes: Optional[Tensor], error: float) -> Tensor:
        winners = z.argmax(dim=1) if classes is None else classes
        own = z.gather(1, winners[:, None])
        # Each of the two logits may be off, here and at the end of the perturbation.
        margins = own - z - 4.0 * error
        slopes = self.slopes(winners)
        radii = _divided(margins, slopes)
        radii.scatter_(1, winners[:, None], math.inf)
        return radii.amin(dim=1)

    def slopes(self, classes: Tensor) -> Tensor:
        """Bounds of how steep the differences of outputs are.

        Args:
            classes: y, integers of shape ``(N,)``.

        Returns:
            ``(N, n)`` in float64: of output y less each output j; 0 for j = y.
        """
        y = classes.cpu()
        if self.pairs is not None:
            return self.pairs[y]
        slopes = self.outputs[y][:, None] + self.outputs[None]
        slopes = slopes.clamp_max(up(math.sqrt(2.0) * self.lipschitz, 4))
        return slopes.scatter_(1, y[:, None], 0.0)

    # ---- for people and programs --------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain Python; the bounds of pairs only for up to 100 outputs."""
        pairs = self.pairs
        return {
            "lipschitz": self.lipschitz,
            "margin": self.margin,
            "norm": "L2",
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "layers": [{**asdict(b), "shape": list(b.shape)} for b in self.layers],
            "outputs": self.outputs.tolist(),
            "pairs": None if pairs is None or len(pairs) > _MOST_PAIRS else pairs.tolist(),
        }

    def to_json(self, indent: Optional[int] = 2) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def table(self) -> str:
        """For people to read."""
        head = ("name", "layer", "own bound", "bound so far", "how")
        rows = [
            (
                bound.name or "(model)",
                bound.layer,
                "" if bound.bound is None else f"{bound.bound:.9g}",
                f"{bound.total:.9g}",
                bound.method,
            )
            for bound in self.layers
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]

        def line(row: tuple[str, ...]) -> str:
            cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
            cells += [row[2].rjust(widths[2]), row[3].rjust(widths[3]), row[4]]
            return "  ".join(cells).rstrip()

        end = [
            "",
            f"Lipschitz constant of {_shape(self.input_shape)} -> {_shape(self.output_shape)}: "
            f"at most {self.lipschitz:.9g} in the L2 norm",
            f"computed in float64; {self.margin:.1e} of it is the margin for rounding",
        ]
        if self.outputs.numel() > 1:
            single = float(self.outputs.max())
            end.append(f"each output on its own: at most {single:.9g}")
        if self.pairs is not None:
            end.append(f"the difference of two outputs: at most {float(self.pairs.max()):.9g}")
        return "\n".join([line(head), *map(line, rows), *end])

    def __str__(self) -> str:
        return self.table()


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def _divided(margins: Tensor, slopes: Tensor) -> Tensor:
    """Margins over slopes, rounded down; nothing where there is no margin."""
    radii = margins.clamp_min(0.0) * (1.0 - 2.0**-49) / slopes
    constant = torch.where(margins > 0, math.inf, 0.0).to(radii.dtype)
    return torch.where(slopes > 0, radii, constant)


def _check_labels(labels: Optional[Tensor], z: Tensor) -> Optional[Tensor]:
    if labels is None:
        return None
    check_tensor("labels", labels, floating=False)
    found = labels.detach().cpu().reshape(-1)
    if found.shape[0] != z.shape[0]:
        raise ValueError(f"labels must have {z.shape[0]} elements, got {tuple(labels.shape)}")
    if z.shape[1] == 1:
        if not bool(((found == 0) | (found == 1) | (found == -1)).all()):
            raise ValueError("labels of a network with one output must be -1, 0 or 1")
        return found
    if found.is_floating_point():
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    found = found.long()
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < z.shape[1]:
        raise ValueError(f"labels must be in [0, {z.shape[1] - 1}]")
    return found
