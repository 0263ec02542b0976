"""The functional API: arguments checked, any strides, differentiable."""

from __future__ import annotations

from .activation import (
    full_sort,
    group_sort,
    group_sort_2,
    householder,
    lipschitz_prelu,
    max_min,
)
from .conv_norm import conv_spectral_norm
from .convolution import conv_factor
from .gradient_penalty import gradient_penalty
from .loss import (
    apply_reduction,
    categorical_hinge_loss,
    hinge_margin_loss,
    hinge_multiclass_loss,
    hkr_loss,
    hkr_multiclass_loss,
    kr_loss,
    kr_loss_multi_gpu,
    kr_loss_standard,
    lse_hkr_multiclass_loss,
    neg_kr_loss,
    process_labels_for_multi_gpu,
    tau_bce_with_logits_loss,
    tau_cross_entropy_loss,
)
from .normalization import (
    bjorck,
    foreach_orthogonalize,
    foreach_spectral_normalize,
    frobenius_normalize,
    orthogonalize,
    power_iteration,
    spectral_bjorck,
    spectral_norm_bound,
    spectral_normalize,
)
from .padding import SymmetricPad
from .pooling import l2_norm_pool2d, scaled_avg_pool2d

__all__ = [
    "SymmetricPad",
    "apply_reduction",
    "bjorck",
    "categorical_hinge_loss",
    "conv_factor",
    "conv_spectral_norm",
    "foreach_orthogonalize",
    "foreach_spectral_normalize",
    "frobenius_normalize",
    "full_sort",
    "gradient_penalty",
    "group_sort",
    "group_sort_2",
    "hinge_margin_loss",
    "hinge_multiclass_loss",
    "hkr_loss",
    "hkr_multiclass_loss",
    "householder",
    "kr_loss",
    "kr_loss_multi_gpu",
    "kr_loss_standard",
    "l2_norm_pool2d",
    "lipschitz_prelu",
    "lse_hkr_multiclass_loss",
    "max_min",
    "neg_kr_loss",
    "orthogonalize",
    "power_iteration",
    "process_labels_for_multi_gpu",
    "scaled_avg_pool2d",
    "spectral_bjorck",
    "spectral_norm_bound",
    "spectral_normalize",
    "tau_bce_with_logits_loss",
    "tau_cross_entropy_loss",
]
