from collections.abc import Callable

from torch import Tensor

torch_version: str

def orthogonal_weight(
    weight: Tensor, groups: int, tol: float, solve_tol: float, scale: float, tangent: bool
) -> Tensor: ...
def spectral_weight(
    weight: Tensor, u: Tensor, v: Tensor, iterations: int, eps: float
) -> Tensor: ...
def differentiate_spectral_weight_by(function: Callable[..., Tensor]) -> None: ...
