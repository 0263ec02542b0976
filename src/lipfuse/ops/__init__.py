"""The operators, one file each: typed calls, fake versions, gradients, autocast.

Importing this package registers them under ``torch.ops.lipfuse``.
"""

from lipfuse.ops._define import (
    ORDINARY,
    full_precision,
    in_compiled_code,
    transforming,
    under_autocast,
)
from lipfuse.ops._layout import as_matrices
from lipfuse.ops.bjorck import bjorck, spectral_bjorck
from lipfuse.ops.evaluate import evaluate, name_for
from lipfuse.ops.foreach_spectral_normalize import foreach_spectral_normalize
from lipfuse.ops.frobenius_normalize import frobenius_normalize
from lipfuse.ops.orthogonalize import (
    foreach_orthogonalize,
    orthogonal_weight,
    orthogonalize,
    orthonormal_weights,
    retractions,
)
from lipfuse.ops.power_iteration import power_iteration, spectral_normalize, spectral_weight
from lipfuse.ops.spectral_bound import spectral_bound
from lipfuse.ops.symbol_bound import symbol_bound

__all__ = [
    "ORDINARY",
    "as_matrices",
    "bjorck",
    "evaluate",
    "foreach_orthogonalize",
    "foreach_spectral_normalize",
    "frobenius_normalize",
    "full_precision",
    "in_compiled_code",
    "name_for",
    "orthogonal_weight",
    "orthogonalize",
    "orthonormal_weights",
    "power_iteration",
    "retractions",
    "spectral_bjorck",
    "spectral_bound",
    "spectral_normalize",
    "spectral_weight",
    "symbol_bound",
    "transforming",
    "under_autocast",
]
