"""Every operator in plain torch: the tests' oracle, and what runs where no native kernel does.

The functions have the signatures of the operators in ``csrc/library.cpp``; the operators' schemas
are inferred from their type hints where the native library is missing. They are written to be read
against the papers, not to be fast. Matrices are ``(..., m, n)``, float32 or float64.
"""

from lipfuse.reference._images import from_windows, windows_of
from lipfuse.reference.bjorck import (
    bjorck,
    bjorck_backward,
    spectral_bjorck,
    spectral_bjorck_backward,
)
from lipfuse.reference.foreach_spectral_normalize import (
    foreach_spectral_normalize,
    foreach_spectral_normalize_backward,
)
from lipfuse.reference.frobenius_normalize import (
    frobenius_normalize,
    frobenius_normalize_backward,
)
from lipfuse.reference.l2_norm_pool2d import l2_norm_pool2d, l2_norm_pool2d_backward
from lipfuse.reference.largest_use import largest_use, pixel_at
from lipfuse.reference.max_min import max_min, max_min_backward
from lipfuse.reference.orthogonalize import (
    GRADIENT_FLOOR,
    foreach_orthogonalize,
    foreach_orthogonalize_backward,
    orthogonalize,
    orthogonalize_backward,
)
from lipfuse.reference.power_iteration import (
    power_iteration,
    power_iteration_backward,
    spectral_normalize,
    spectral_normalize_backward,
)
from lipfuse.reference.scaled_avg_pool2d import scaled_avg_pool2d, scaled_avg_pool2d_backward
from lipfuse.reference.sort_pairs import sort_pairs, sort_pairs_backward
from lipfuse.reference.spectral_bound import spectral_bound
from lipfuse.reference.symbol_bound import symbol_exceeds, symbol_scores

__all__ = [
    "GRADIENT_FLOOR",
    "bjorck",
    "bjorck_backward",
    "foreach_orthogonalize",
    "foreach_orthogonalize_backward",
    "foreach_spectral_normalize",
    "foreach_spectral_normalize_backward",
    "frobenius_normalize",
    "frobenius_normalize_backward",
    "from_windows",
    "l2_norm_pool2d",
    "l2_norm_pool2d_backward",
    "largest_use",
    "max_min",
    "max_min_backward",
    "orthogonalize",
    "orthogonalize_backward",
    "pixel_at",
    "power_iteration",
    "power_iteration_backward",
    "scaled_avg_pool2d",
    "scaled_avg_pool2d_backward",
    "sort_pairs",
    "sort_pairs_backward",
    "spectral_bjorck",
    "spectral_bjorck_backward",
    "spectral_bound",
    "spectral_normalize",
    "spectral_normalize_backward",
    "symbol_exceeds",
    "symbol_scores",
    "windows_of",
]
