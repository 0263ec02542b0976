"""The parametrization of orthogonal convolutions: their kernel, from the factors it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_positive
from ..distributed import is_sharded, whole
from ..functional.orthogonal_convolution import KernelPlan, compose_kernel
from ..parametrizations.weight import EVAL_TOL, HALF, TRAINING_TOL, ComputedWeight, headroom


class OrthogonalKernel(ComputedWeight):
    """A kernel whose convolution has all singular values at ``scale``, from unconstrained factors.

    Its parameters are matrices of ``plan.shapes``, a strided one and the block convolutions'; their
    polar factors are multiplied out.

    Args:
        plan: the shapes, of :func:`lipfuse.functional.orthogonal_convolution.plan_kernel`.
        scale: the convolution's singular values, positive.
    """

    # torch asks for the parameters through right_inverse; later, somebody assigns a weight.
    _registered = False

    def __init__(self, plan: KernelPlan, scale: float = 1.0) -> None:
        super().__init__()
        self.plan = plan
        self.scale = check_positive("scale", scale)

    def polar_factors(self, *parameters: Tensor) -> list[tuple[Tensor, int, float]]:
        # Only the first carries the scale.
        scales = (self.scale * headroom(parameters[0]), 1.0)
        return list(zip(parameters, self.plan.counts, scales))

    def assemble(self, factors: list[Tensor]) -> Tensor:
        core, *blocks = factors
        return compose_kernel(core, blocks[0] if blocks else None, self.plan)

    def forward(self, core: Tensor, blocks: Optional[Tensor] = None) -> Tensor:
        if self.given or self._given_again is not None:
            handed_out = self._handed_out()
            if handed_out is not None:
                return handed_out
        parameters = (core,) if blocks is None else (core, blocks)
        if any(map(is_sharded, parameters)):
            return whole(self.forward, *parameters)
        if self.at_rest(*parameters):
            return self._resting(*parameters)
        if not self.training:
            return self._exactly(self.scale * headroom(core), *parameters).to(core.dtype)
        full = [p.float() if p.dtype in HALF else p for p in parameters]
        factors = self.polar_factors(*parameters)
        results = ops.foreach_orthogonalize(
            full, [f[1] for f in factors], [f[2] for f in factors], TRAINING_TOL
        )
        return self.assemble(results).to(core.dtype)

    def _to_full_accuracy(self, scale: float, *parameters: Tensor) -> Tensor:
        counts = list(self.plan.counts)
        scales = [scale, 1.0][: len(counts)]
        return self.assemble(ops.foreach_orthogonalize(parameters, counts, scales, EVAL_TOL))

    def _shape(self, *parameters: Tensor) -> Sequence[int]:
        return self.plan.kernel_shape

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The factors of a kernel: known for kernels without block convolutions.

        Raises:
            ValueError: if the kernel is larger than the stride.
        """
        plan = self.plan
        if not self._registered:
            self._registered = True
            return tuple(weight.new_empty(shape) for shape in plan.shapes)
        if plan.axes:
            raise ValueError(
                "weight must not be assigned where kernel_size is larger than stride: it is made "
                f"of parametrizations.weight.original0 and original1, got {tuple(weight.shape)}"
            )
        shape = (weight.shape[0], weight.shape[1], -1)
        return (weight.reshape(shape).mT.reshape(plan.shapes[0]),)

    @torch.no_grad()
    def draw(self, *parameters: Tensor) -> None:
        """Fills the parameters with orthogonal matrices."""
        for parameter, count in zip(parameters, self.plan.counts):
            # Half precision has no QR decomposition.
            shape = (count, parameter.shape[0] // count, parameter.shape[1])
            drawn = torch.empty(shape, dtype=torch.float32, device=parameter.device)
            for matrix in drawn:
                nn.init.orthogonal_(matrix)
            parameter.copy_(drawn.flatten(0, 1))

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, blocks={len(self.plan.axes)}"
