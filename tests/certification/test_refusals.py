"""What has no bound is refused, by the name of the module that it is in; nothing slips through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipfuse


class Inner(nn.Module):
    """Calls a function where the tests look for its name."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def inside(function: Callable[[Tensor], Any]) -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Sequential(Inner(function)))


NAN = nn.Linear(3, 3)
nn.init.constant_(NAN.bias, math.nan)

MODULES: dict[str, tuple[nn.Module, type[Exception], str]] = {
    "Dropout in training": (nn.Dropout(0.2), ValueError, r"\(Dropout\).*training mode.*eval"),
    "Dropout2d in training": (nn.Dropout2d(), ValueError, r"\(Dropout2d\).*eval"),
    "RReLU in training": (nn.RReLU(), ValueError, r"\(RReLU\).*eval"),
    "BatchNorm in training": (nn.BatchNorm1d(3), ValueError, r"\(BatchNorm1d\).*eval"),
    "BatchNorm without statistics": (
        nn.BatchNorm1d(3, track_running_stats=False).eval(), ValueError, r"BatchNorm1d.*running",
    ),
    "InstanceNorm": (nn.InstanceNorm1d(3), ValueError, r"\(InstanceNorm1d\).*statistics"),
    "LayerNorm": (nn.LayerNorm(3), TypeError, r"\(LayerNorm\).*statistic"),
    "GroupNorm": (nn.GroupNorm(1, 3), TypeError, r"\(GroupNorm\).*statistic"),
    "attention": (
        nn.TransformerEncoderLayer(3, 1, batch_first=True), TypeError,
        r"self_attn' \(MultiheadAttention\)",
    ),
    "LSTM": (nn.LSTM(3, 3), TypeError, r"\(LSTM\)"),
    "Embedding": (nn.Embedding(3, 2), TypeError, r"\(Embedding\).*index"),
    "Bilinear": (nn.Bilinear(3, 3, 2), TypeError, "input2"),
    "GLU": (nn.GLU(2), TypeError, r"\(GLU\)"),
    "Hardshrink": (nn.Hardshrink(), ValueError, r"\(Hardshrink\).*not continuous"),
    "Threshold": (nn.Threshold(1.0, 0.0), ValueError, "jumps"),
    "CELU": (nn.CELU(-1.0), ValueError, "no bounded slope"),
    "Softplus": (nn.Softplus(1, 2), ValueError, "threshold=2"),
    "slope": (nn.LeakyReLU(math.nan), ValueError, "finite slope"),
    "odd norms": (nn.LPPool1d(3, 2), ValueError, "order 3"),
    "random windows": (nn.FractionalMaxPool2d(2, 2), TypeError, "random"),
    "NaN": (NAN, ValueError, "bias with NaN"),
    "two arguments": (nn.PairwiseDistance(), TypeError, "cannot be followed"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules_without_a_bound(name: str) -> None:
    module, error, text = MODULES[name]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    model = nn.Sequential(nn.Identity(), nn.Sequential(module))
    with pytest.raises(error, match=text) as raised:
        lipfuse.certify(model, (4, 4, 4) if "windows" in name else (3, 3))
    assert "'1.0" in str(raised.value)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]) or name == "NaN"
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code() -> None:
    script = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"'1' .*compiled by torch\.jit"):
        lipfuse.certify(nn.Sequential(nn.Identity(), script), (3,))
    function = torch.jit.trace(lambda x: 3.0 * x, torch.ones(3))
    with pytest.raises(TypeError, match=r"'1\.0' "):
        lipfuse.certify(inside(function), (3,))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "product": (lambda x: x * torch.sigmoid(x), "multiplies two values"),
    "matrix product": (lambda x: x @ x, "multiplies two values"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "multiplies values"),
    "square": (lambda x: x**2, "power 2"),
    "quotient": (lambda x: 1.0 / x, "near zero"),
    "normalised": (lambda x: F.normalize(x), "statistic"),
    "exp": (lambda x: x.exp(), "no bounded slope"),
    "root": (lambda x: x.abs().sqrt(), "unbounded at zero"),
    "root of squares less something": (lambda x: (x.square().sum(2) - 1.0).sqrt(), "unbounded"),
    "choice": (lambda x: torch.where(x > 0, x, x + 1.0), "comparison"),
    "mask": (lambda x: x * (x > 0), "multiplies two values"),
    "index": (lambda x: x[:, x.argmax(1)], "index that depends"),
    "argmax": (lambda x: x.argmax(1).float(), "not continuous"),
    "rounding": (lambda x: x.round(), "not continuous"),
    "cast": (lambda x: x.long().float(), "not continuous"),
    "branch": (lambda x: x if x.sum() > 0 else -x, "takes a decision"),
    "loop": (lambda x: x * int(x.max()), "reads elements"),
    "item": (lambda x: x * x.mean().item(), "reads elements"),
    "membership": (lambda x: x if 0.0 in x else -x, "reads elements"),
    "numpy": (lambda x: torch.from_numpy(x.numpy()), "reads elements"),
    "assignment": (lambda x: x.__setitem__(0, 1.0), "assigns"),
    "overwritten weights": (lambda x: torch.ones(3, 3).add_(x), "overwrites"),
    "out": (lambda x: torch.add(x, 1.0, out=torch.empty(0)), "out="),
    "constants made of elements": (lambda x: x.new_tensor(x), "no bound is known"),
    "noise": (lambda x: x + torch.rand_like(x), "random"),
    "weights from the input": (lambda x: F.linear(torch.ones(1, 3), x[0]), "depend"),
    "infinity": (lambda x: x * math.inf, "constant with NaN or infinite"),
    "two outputs": (lambda x: (x, x), "one tensor"),
    "unknown": (lambda x: torch.fft.fft(x).real, "no bound is known for fft_fft"),
    "determinant": (lambda x: torch.linalg.det(x), "no bound is known for"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_without_a_bound(name: str) -> None:
    function, text = FUNCTIONS[name]
    with pytest.raises((TypeError, ValueError), match=text) as raised:
        lipfuse.certify(inside(function), (3, 3))
    if name != "two outputs":
        assert "module '1.0' (Inner)" in str(raised.value)


def test_a_refusal_cannot_be_caught_by_the_model() -> None:
    """It would go a way that it never goes for a real input."""

    def forward(x: Tensor) -> Tensor:
        try:
            return 100.0 * x.exp().double().item() * x
        except Exception:
            return x

    with pytest.raises((TypeError, ValueError), match="reads elements"):
        lipfuse.certify(inside(forward), (3,))

    def bare(x: Tensor) -> Tensor:
        try:
            return 100.0 * x if x.sum() > 0 else x
        except:  # noqa: E722
            return x

    with pytest.raises(TypeError, match="takes a decision"):
        lipfuse.certify(inside(bare), (3,))


def test_what_the_model_asks_of_a_tensor_is_answered_as_for_one() -> None:
    def forward(x: Tensor) -> Tensor:
        assert isinstance(x, torch.Tensor) and torch.is_tensor(x) and hasattr(x, "numpy")
        assert x.shape == (len(x), 3) and x.size(1) == 3 and x.dim() == x.ndim == 2
        assert x.dtype is torch.float32 and x.device.type == "cpu" and x.numel() == 3 * len(x)
        assert x.is_floating_point() and not hasattr(x, "no_such_thing")
        first, *_ = x.T
        return x.new_ones(3) * x + torch.zeros_like(x) + first[:, None]

    assert lipfuse.certify(inside(forward), (3,)).lipschitz == pytest.approx(2.524, abs=1e-3)


def test_a_model_that_tells_stand_ins_from_tensors_is_found_out() -> None:
    model = inside(lambda x: x if type(x) is Tensor else 0.1 * x)
    with pytest.raises(ValueError, match="compute the same"):
        lipfuse.certify(model, (3,))


def test_samples_must_not_mix() -> None:
    for mixed in (lambda x: x - x.mean(0), lambda x: torch.softmax(x, 0), lambda x: x.sort(0)[0]):
        with pytest.raises(ValueError, match="one by one"):
            lipfuse.certify(inside(mixed), (3,))


def test_in_place_operations_are_followed_or_refused() -> None:
    """What a name stands for afterwards is what has been written there."""

    def sound(x: Tensor) -> Tensor:
        y = 1.0 * x
        y.mul_(3.0)
        y += y
        return F.relu(y, inplace=True) + y

    assert lipfuse.certify(inside(sound), (3,)).lipschitz == pytest.approx(12.0)

    def view(x: Tensor) -> Tensor:
        y = 1.0 * x
        part = y[:, :2]
        part *= 5.0
        return y

    def base(x: Tensor) -> Tensor:
        y = 1.0 * x
        part = y.view(-1)
        y *= 5.0
        return part

    for hidden in (view, base):
        with pytest.raises(ValueError, match="in-place"):
            lipfuse.certify(inside(hidden), (3,))


def test_arguments() -> None:
    linear = nn.Linear(3, 2)
    with pytest.raises(TypeError, match="model must be"):
        lipfuse.certify(lambda x: x, (3,))  # type: ignore[arg-type]
    for shape, error in ((3, TypeError), ("3", TypeError), ((3.0,), TypeError), ((0,), ValueError)):
        with pytest.raises(error, match="input_shape"):
            lipfuse.certify(linear, shape)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="input of this shape"):
        lipfuse.certify(linear, (4,))
    with pytest.raises(ValueError, match="meta"):
        lipfuse.certify(nn.Linear(3, 2, device="meta"), (3,))


def test_functions_of_lipfuse() -> None:
    """They look at shapes and dtypes only, and end in functions of torch."""
    for function in (
        lipfuse.functional.group_sort_2,
        lipfuse.functional.full_sort,
        lipfuse.functional.max_min,
        lambda x: lipfuse.functional.householder(x, torch.arange(2.0)),
        lambda x: lipfuse.functional.scaled_avg_pool2d(x.reshape(-1, 1, 2, 2), 2).flatten(1),
        lambda x: lipfuse.functional.l2_norm_pool2d(x.reshape(-1, 1, 2, 2), 2).flatten(1),
    ):
        assert lipfuse.certify(inside(function), (4,)).lipschitz == pytest.approx(1.0)
