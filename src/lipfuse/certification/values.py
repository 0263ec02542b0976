"""What is known of a value inside a network: how far it moves when the input does.

Every value has a bound of its Lipschitz constant as a function of the network's *input*. A value
that is affine in an earlier one also remembers that map, so that a whole linear part of a network,
branches included, can be bounded as the one map that it is: from its *source*, the last value
before it that is not linear, or from its *root*, the last one that is not made of another without
weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from .linear_map import LinearMap
from .norms import EPS, Norm, up

__all__ = ["Map", "Value", "affine", "elementwise", "merged", "nonlinear", "times", "unbounded"]

Map = Callable[..., Tensor]

# Of the outputs, for which every single row is wanted.
_ROWS_ELEMENTS = 2**25


def times(constant: float, bound: float) -> float:
    """Their product, rounded up; nothing at all times infinity is nothing."""
    return 0.0 if constant == 0.0 else up(constant * bound)


class Value:
    """A tensor that depends on the network's input.

    Attributes:
        op: the canonical name of the operation that made it, and ``arguments`` what it was given:
            what patterns are recognised by.
        own: the Lipschitz constant of that operation alone, or None if it has several arguments.
        method: how that is known; empty where elements are only moved.
        parents: the values that it is computed from.
        sample: one concrete value, for shapes and dtypes, and ``twin``: another one, that of the
            second input. What is claimed of the value is held against the two.
        reason: why there is no finite bound, where there is none.
        shifted: whether a constant that may be negative was added since the source.
        slope: the Lipschitz constant of a function that acts on every element by itself.
        forward: the linear part, if that is what it is, on float64 tensors on the CPU.
        margin: what of the bound is for rounding, relative to it, about.
        rescaled: for a layer with weights, its norm if its output channels were scaled.
    """

    def __init__(
        self,
        rule_bound: float,
        parents: tuple[Value, ...] = (),
        *,
        own: Optional[float] = None,
        method: str = "",
        forward: Optional[Map] = None,
        absolute: Optional[Map] = None,
        weighted: bool = False,
        loose: bool = False,
        shifted: bool = False,
        moves: bool = False,
        slope: Optional[float] = None,
        reason: str = "",
        margin: float = 0.0,
    ) -> None:
        self.op = ""
        self.arguments: tuple[Any, ...] = ()
        self.sample: Any = None
        self.twin: Any = None
        self.rule_bound = rule_bound
        self.parents = parents
        self.own = own
        self.method: str = method
        self.reason: str = reason or next((p.reason for p in parents if p.reason), "")
        self.slope = slope
        self.rescaled: Optional[Callable[[Tensor], Norm]] = None
        self.margin: float = margin + max((p.margin for p in parents), default=0.0) + 4.0 * EPS
        self._bound: Optional[float] = None
        # With the absolute value of every coefficient: the same function if none is negative.
        self.forward = forward
        self.absolute: Map | None = absolute or forward
        self._moves = moves
        sources = {id(p.source): p.source for p in parents} if forward is not None else {}
        linear = len(sources) == 1
        self.source: Value = next(iter(sources.values())) if linear else self
        # Whether the linear part so far has more than one factor, so that it can be worth while to
        # bound it as a whole.
        counted = len(parents) > 1 or not moves
        before = max((p._factors for p in parents), default=0) if linear else 0
        self._factors: int = before + counted if linear else 0
        self._gains = linear and counted and (len(parents) > 1 or before > 0 or loose)
        # The nearest value of which this is made without weights.
        roots = {id(p.root): p.root for p in parents} if linear and not weighted else {}
        self.root: Value = next(iter(roots.values())) if len(roots) == 1 else self
        self.shifted: bool = linear and (shifted or any(p.shifted for p in parents))

    @property
    def shape(self) -> torch.Size:
        shape: torch.Size = self.sample.shape
        return shape

    @property
    def bound(self) -> float:
        """The Lipschitz constant with respect to the network's input, from above."""
        if self._bound is None:
            self._bound = self.rule_bound
            if self._gains or (self._factors > 0 and self._leaves_out()):
                self._settle()
        return self._bound

    def _leaves_out(self) -> bool:
        return self.sample.numel() < max(p.sample.numel() for p in self.parents)

    def _settle(self) -> None:
        """Lower the bound to what the linear part as a whole has, where it can be had cheaply."""
        candidates: list[tuple[Value, Norm]] = []
        exact = False
        if self.root is not self:
            since_root = LinearMap(self.root, self)
            candidates.append((self.root, since_root.norm_of_magnitudes()))
            exact = since_root.is_nonnegative()
            if not exact:
                candidates.append((self.root, since_root.norm_as_matrix()))
        if not exact or (self.source is not self.root and candidates[0][1].bound > 1.0 + 1e-9):
            candidates.append((self.source, LinearMap(self.source, self).norm_as_matrix()))
        for start, norm in candidates:
            bound = times(norm.bound, start.bound)
            if bound < (self.rule_bound if self._bound is None else self._bound):
                self._bound = bound
                self.margin = start.margin + norm.margin
                self.method = norm.method

    # ---- single elements ----------------------------------------------------------------------

    def rows(self) -> Optional[tuple[Tensor, Tensor]]:
        """The map from the source, a row an element, and how wrong each row's norm may be.

        None where it would be too large, or the value is not linear in an earlier one.
        """
        linear = LinearMap(self.source, self)
        inputs, outputs = linear.size()
        if self.source is self or not 0 < inputs * outputs <= _ROWS_ELEMENTS:
            return None
        return linear.matrix()

    def elements(self) -> Tensor:
        """A bound for every element on its own, in the shape of the value."""
        whole = torch.full(tuple(self.shape), self.bound, dtype=torch.float64)
        single: Optional[Tensor] = None
        if self.slope is not None:
            single = up(self.slope) * self.parents[0].elements()
        elif self.forward is not None and self._moves and self._factors == 0:
            single = self.forward(*[parent.elements() for parent in self.parents])
        elif (found := self.rows()) is not None:
            matrix, error = found
            lengths = matrix.norm(dim=1) * up(1.0, matrix.shape[1] + 4.0) + error
            single = (lengths * up(self.source.bound, 4.0)).reshape(self.shape)
        return whole if single is None else torch.minimum(whole, single)


# ---- how values are made -------------------------------------------------------------------------


def affine(
    parent: Value,
    forward: Map,
    norm: float = 1.0,
    *,
    absolute: Optional[Map] = None,
    method: str = "",
    weighted: bool = False,
    loose: bool = False,
    shifted: bool = False,
    moves: bool = False,
    margin: float = 0.0,
) -> Value:
    """A linear map of one value, plus a constant.

    Args:
        parent: its argument.
        forward: the map without its constant, made of operations that ``torch.vmap`` knows.
        norm: an upper bound of its norm.
        absolute: the map with its coefficients' absolute values; None if none is negative.
        method: how the norm is known.
        weighted: whether the coefficients are a layer's weights.
        loose: whether ``norm`` may be well above the map's norm.
        shifted: whether the constant may be negative.
        moves: whether elements are only moved or left out.
        margin: what of ``norm`` is for rounding, relative to it.
    """
    return Value(
        times(norm, parent.bound),
        (parent,),
        own=norm,
        method=method,
        forward=forward,
        absolute=absolute,
        weighted=weighted,
        loose=loose,
        shifted=shifted,
        moves=moves,
        margin=margin,
    )


def merged(
    parents: tuple[Value, ...],
    forward: Map,
    bound: float,
    *,
    absolute: Optional[Map] = None,
    method: str = "",
    shifted: bool = False,
    moves: bool = False,
) -> Value:
    """A linear map of several values, plus a constant, with a bound for when they have no source
    in common; the other arguments are those of :func:`affine`.
    """
    return Value(
        up(bound, len(parents)),
        parents,
        method=method,
        forward=forward,
        absolute=absolute,
        shifted=shifted,
        moves=moves,
    )


def nonlinear(parent: Value, constant: float, method: str) -> Value:
    """A map with a known Lipschitz constant."""
    return Value(times(constant, parent.bound), (parent,), own=constant, method=method)


def elementwise(parent: Value, constant: float, method: str) -> Value:
    """A function of every single element, of that Lipschitz constant."""
    value = nonlinear(parent, constant, method)
    value.slope = constant
    return value


def unbounded(parents: tuple[Value, ...], reason: str) -> Value:
    """A map without a Lipschitz constant: an error only if the output needs it."""
    return Value(math.inf, parents, reason=reason)
