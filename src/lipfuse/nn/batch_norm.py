r"""Batch normalisation by a single factor, and by none: centering.

Batch normalisation divides each channel by its own deviation, which makes a network as steep as the
least varying channel asks for. Here a layer only subtracts means, which is 1-Lipschitz, or divides
all channels by one factor, which is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from .._checks import check_bool, check_positive, check_positive_int
from ..parametrizations.weight import recomputing
from .centering import (
    along_channels,
    channel_bias,
    check_channels,
    check_dims,
    dims_of,
    plain_scale_bias,
)
from .module import LipschitzModule, _join_repr
from .scaling import ScaledLipschitzModule, SharedLipFactory

__all__ = ["BatchCentering", "BatchCentering2d", "BatchLipNorm"]


class BatchLipNorm(nn.Module, ScaledLipschitzModule):
    r"""Batch normalisation by the one factor that the most varying channel needs.

    .. math::
        y_c = s\,(x_c - \mathrm{E}[x_c]) + \beta_c, \qquad
        s = 1 / \sqrt{\max\nolimits_c \mathrm{Var}[x_c]}

    A variance below ``eps`` counts as 1, so that :math:`s \le 1/\sqrt{\mathrm{eps}}`. In training
    mean and variance are those of the batch, over all dimensions but the channels; in evaluation
    they are means over the batches seen since the last evaluation, in which all earlier ones
    count as one more. Before any training the layer is the identity.

    **Its constant.** This is no layer with a constant of one's choice. In evaluation it is exactly
    :meth:`get_scaling_factor`-Lipschitz. In training every sample is scaled by the factor of its
    batch, ``get_scaling_factor(training=True)``; the map from batch to batch, in which the samples
    move the statistics too, has the norm :math:`\sqrt{\sum_c \mathrm{Var}[x_c]} / \max_c
    \mathrm{Var}[x_c]`, up to :math:`\sqrt C` times that. Certify in evaluation only. A
    :class:`SharedLipFactory` multiplies the factors of a network.

    Args:
        num_features: the number of channels.
        dim: the dimensions of the statistics: None, or all but the channels by their numbers.
        centering: whether to subtract the mean. If not, the variance is taken around 0.
        bias: whether to add a learnable bias.
        normalize: whether to scale. If not, the layer is 1-Lipschitz: :class:`BatchCentering`.
        factory: where to register the layer's factor.
        eps: positive.
        device, dtype: of the bias and of the running statistics, as in ``torch.nn``.

    Shape:
        ``(N, C, *)`` to the same. In half precision, statistics are taken in float32.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name; for inputs with
            another number of channels, or, in training, a single value a channel.

    Note:
        Under ``torch.distributed`` a batch is normalised by its own process's statistics, and the
        running ones are means over all processes.
    """

    bias: Optional[nn.Parameter]
    running_sum_bmean: Tensor
    running_num_batches: Tensor
    running_sum_bmeansq: Tensor
    running_mean_sample_per_batches: Tensor
    total_num_samples: Tensor

    # The variances of the last training batch, with their graph, for get_scaling.
    _batch_var: Optional[Tensor] = None
    # Whether there may be several batches to reduce to their mean in evaluation.
    _unreduced: bool

    def __init__(
        self,
        num_features: int = 1,
        dim: Optional[Sequence[int]] = None,
        centering: bool = True,
        bias: bool = True,
        normalize: bool = True,
        factory: Optional[SharedLipFactory] = None,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        nn.Module.__init__(self)
        self.num_features: int = check_positive_int("num_features", num_features)
        self.dim: tuple[int, ...] | None = None if dim is None else check_dims(dim)
        self.centering: bool = check_bool("centering", centering)
        self.normalize: bool = check_bool("normalize", normalize)
        self.eps: float = check_positive("eps", eps)
        self.register_parameter("bias", channel_bias(num_features, bias, device, dtype))
        ScaledLipschitzModule.__init__(self, scaling=normalize, factory=factory)
        self._unreduced = True

        def zeros(*size: int, of: Optional[torch.dtype] = dtype) -> Tensor:
            return torch.zeros(size, device=device, dtype=of)

        # Names and meaning as in deel-torchlip's checkpoints.
        self.register_buffer("running_sum_bmean", zeros(num_features))
        self.register_buffer("running_num_batches", zeros(1, of=torch.long))
        if normalize:
            self.register_buffer("running_sum_bmeansq", zeros(num_features))
            self.register_buffer("running_mean_sample_per_batches", zeros(1))
            self.register_buffer("total_num_samples", zeros(1))

    # ---- running statistics ----------------------------------------------------------------------

    @torch.no_grad()
    def reset_states(self) -> None:
        """Forgets the running statistics."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    @torch.no_grad()
    def update_running_values(self) -> None:
        """Reduces the batches seen to their mean, which then counts as one batch."""
        batches = self.running_num_batches.clamp(min=1)
        self.running_sum_bmean.div_(batches)
        if self.normalize:
            self.running_sum_bmeansq.div_(batches)
            renew = (batches > 1) | (self.total_num_samples == 0)
            self.total_num_samples.copy_(
                torch.where(renew, self.running_mean_sample_per_batches, self.total_num_samples)
            )
            self.running_mean_sample_per_batches.div_(batches)
        self.running_num_batches.clamp_(max=1)
        self._unreduced = False

    @torch.no_grad()
    def _add_batch(self, mean: Tensor, meansq: Optional[Tensor], elements: int) -> None:
        parts = [mean] if meansq is None else [mean, meansq]
        numbers = torch.cat([*parts, mean.new_ones(1)]).detach()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(numbers, op=dist.ReduceOp.SUM)
        sums, count = numbers[:-1], numbers[-1:]
        self.running_sum_bmean.add_(sums[: len(mean)])
        self.running_num_batches.add_(count.to(torch.long))
        if meansq is not None:
            self.running_sum_bmeansq.add_(sums[len(mean) :])
            self.running_mean_sample_per_batches.add_(elements * count)
        self._unreduced = True

    def _running_mean(self) -> Tensor:
        return self.running_sum_bmean / self.running_num_batches.clamp(min=1)

    def _variance(self, training: bool) -> Tensor:
        if training:
            if self._batch_var is None:
                raise RuntimeError(
                    "the factor of training must be asked for after a forward in training"
                )
            var = self._batch_var
        else:
            samples = torch.where(
                self.total_num_samples == 0,
                self.running_mean_sample_per_batches,
                self.total_num_samples,
            )
            meansq = self.running_sum_bmeansq / self.running_num_batches.clamp(min=1)
            var = meansq - self._running_mean().square()
            var = var * (samples / (samples - 1).clamp(min=1))
        return torch.where(var < self.eps, 1.0, var)

    def get_scaling(self, training: bool = False) -> Tensor:
        """The factor :math:`s`: that of evaluation, or of the last training batch.

        Raises:
            RuntimeError: if ``training`` before any forward in training.
        """
        if not self.normalize:
            return self.running_sum_bmean.new_ones(())
        return self._variance(training).max().rsqrt()

    # ---- forward and export ----------------------------------------------------------------------

    def _batch_statistics(self, x: Tensor) -> Tensor:
        """The mean of the batch; its variance is kept for ``get_scaling``."""
        dims = [d for d in range(x.dim()) if d != 1]
        elements = x.numel() // x.shape[1]
        if (elements < 2 and self.normalize) or elements < 1:
            least = "2 values" if self.normalize else "1 value"
            raise ValueError(
                f"x must have at least {least} a channel in training, got {tuple(x.shape)}"
            )
        mean = x.mean(dims) if self.centering else x.new_zeros(x.shape[1])
        meansq = None
        if self.normalize:
            # Around the mean, where the difference of two large numbers would lose all digits.
            square = (x - along_channels(mean, x)).square().mean(dims)
            self._batch_var = square * (elements / (elements - 1))
            meansq = square + mean.square()
        if not recomputing():  # under activation checkpointing: each batch counts once
            self._add_batch(mean, meansq, elements)
        return mean

    def _gain(self) -> Union[Tensor, float, None]:
        return self.get_scaling(self.training) if self.normalize else None

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.num_features, shared=False)
        if self.dim is not None and dims_of(x, self.dim) != set(range(x.dim())) - {1}:
            raise ValueError(
                f"dim must be None or name all dimensions but the channels, 1, got {self.dim} "
                f"for x of shape {tuple(x.shape)}"
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training:
            mean = self._batch_statistics(wide)
        else:
            if self._unreduced:
                self.update_running_values()
            mean = self._running_mean()
        y = wide - along_channels(mean, x)
        gain = self._gain()
        if gain is not None:
            y = y * gain
        if self.bias is not None:
            y = y + along_channels(self.bias, x)
        return y.to(x.dtype)

    @torch.no_grad()
    def vanilla_export(self) -> fx.GraphModule:
        """What the layer is in evaluation: a number times the input plus a bias."""
        scale = float(self.get_scaling_factor())
        shift = -self._running_mean() * scale
        if self.bias is not None:
            shift = shift + self.bias
        trained = self.bias is not None and self.bias.requires_grad
        return plain_scale_bias(self, scale, shift, trained)

    # What belongs to the last batch is not copied: tensors with a graph cannot be.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batch_var": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._unreduced = True

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, centering={self.centering}, bias={self.bias is not None}, "
            f"normalize={self.normalize}, eps={self.eps:g}"
        )


class BatchCentering(BatchLipNorm, LipschitzModule):
    r"""Subtract the mean of the batch from each channel, times k: a projection, k-Lipschitz.

    .. math:: y_c = k\,(x_c - \mathrm{E}[x_c]) + \beta_c

    In evaluation the mean is the running one, and the layer a translation, times k. Mean and
    buffers are those of :class:`BatchLipNorm`.

    Args:
        num_features: the number of channels.
        dim: None, or all dimensions but the channels by their numbers.
        bias: whether to add a learnable bias.
        device, dtype: of the bias and of the running mean, as in ``torch.nn``.
        k_coef_lip: the Lipschitz constant, positive.

    Shape:
        ``(N, C, *)`` to the same.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or range, by name; for inputs with
            another number of channels.
    """

    def __init__(
        self,
        num_features: int = 1,
        dim: Optional[Sequence[int]] = None,
        bias: bool = True,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        k_coef_lip: float = 1.0,
    ) -> None:
        BatchLipNorm.__init__(
            self, num_features, dim, bias=bias, normalize=False, device=device, dtype=dtype
        )
        LipschitzModule.__init__(self, k_coef_lip)

    def get_scaling(self, training: bool = False, update: bool = True) -> Tensor:
        """The layer's constant."""
        return LipschitzModule.get_scaling(self, training)

    def _gain(self) -> Optional[float]:
        return None if self._k == 1.0 else self._k

    def extra_repr(self) -> str:
        return _join_repr(f"{self.num_features}, bias={self.bias is not None}", self._k_repr())


BatchCentering2d = BatchCentering
