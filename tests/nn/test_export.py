"""Export: the same outputs, own tensors, and no trace of the package."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tools
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import lipfuse.nn as lnn
from lipfuse.export import plain_conv, plain_function, plain_linear, vanilla_model


class Normalised(nn.Module):
    """A parametrization whose result depends on the mode, as power iteration's does."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (5.0 if self.training else 1.0) / weight.norm()


class LipschitzLinear(nn.Linear, lnn.LipschitzModule):
    """What a Lipschitz layer of this package looks like to the export."""

    def __init__(self, *args: Any, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        lnn.LipschitzModule.__init__(self, k_coef_lip)
        parametrize.register_parametrization(self, "weight", Normalised())

    def vanilla_export(self) -> nn.Module:
        return plain_linear(self)


LipschitzLinear.__module__ = "lipfuse.nn.linear"


class Net(nn.Module):
    """Layers at all depths, one of them used twice, one held in an ordinary list."""

    def __init__(self) -> None:
        super().__init__()
        self.down = lnn.InvertibleDownSampling(2, k_coef_lip=0.5)
        self.stem = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = lnn.GroupSort2()
        self.blocks = nn.ModuleList([lnn.Sequential(self.act, nn.Identity(), k_coef_lip=2.0)])
        self.head = nn.ModuleDict(
            {"pool": lnn.ScaledL2NormPool2d(2), "deep": nn.Sequential(lnn.FullSort())}
        )
        self.linear = LipschitzLinear(6 * 4, 3)
        self.in_a_list = [self.linear]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(self.down(x))))
        for block in self.blocks:
            x = block(x)
        x = self.head["deep"](self.head["pool"](x))
        return self.in_a_list[0](x.flatten(1))


def kinds(model: nn.Module) -> set[str]:
    """The packages that the classes of all modules, and those they derive from, belong to."""
    bases = (base for module in model.modules() for base in type(module).__mro__)
    return {base.__module__.partition(".")[0] for base in bases} - {"builtins"}


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_computes_the_same_and_the_model_is_left_alone(training: bool) -> None:
    torch.manual_seed(0)
    model = Net().train(training)
    model.norm.eval()  # a flag of its own
    x = torch.randn(3, 1, 8, 8)
    before = model(x)
    plain = vanilla_model(model, in_place=False)
    assert "lipfuse" not in kinds(plain) and "lipfuse" in kinds(model)
    assert torch.equal(model(x), before)
    assert plain.training == training and not plain.norm.training
    assert plain.linear.training == training and plain.act.training == training
    assert all(m.training == training for m in model.modules() if m is not model.norm)
    # The exported weight is that of evaluation, in whichever mode the model is.
    torch.testing.assert_close(plain(x), copy.deepcopy(model).eval()(x))
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    for tensor in plain.state_dict().values():
        assert tensor.untyped_storage().data_ptr() not in own


def test_in_place_conversion_reaches_every_reference() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(3, 1, 8, 8)
    before, act, linear, stem = model(x), model.act, model.linear, model.stem
    assert vanilla_model(model) is model
    assert kinds(model) <= {"torch", __name__.partition(".")[0]}
    torch.testing.assert_close(model(x), before)
    assert model.act is act and isinstance(act, torch.fx.GraphModule)
    assert type(linear) is nn.Linear and model.in_a_list[0] is linear
    assert model.stem is stem


@pytest.mark.parametrize("in_place", [True, False])
def test_a_module_used_twice_stays_one_module(in_place: bool) -> None:
    plain = vanilla_model(Net(), in_place=in_place)
    assert plain.blocks[0][0] is plain.act
    for shared in (LipschitzLinear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 4))):
        inner = nn.Sequential(shared, lnn.MaxMin())
        model = nn.Sequential(inner, nn.Sequential(shared), shared)
        plain = vanilla_model(model, in_place=in_place)
        assert plain[0][0] is plain[1][0] is plain[2]
        assert type(plain[2]) is nn.Linear


def test_the_root_is_converted_too() -> None:
    x = torch.randn(2, 4)
    for make, kind in (
        (lambda: LipschitzLinear(4, 4), nn.Linear),
        (lambda: lnn.Sequential(LipschitzLinear(4, 4), lnn.GroupSort2()), nn.Sequential),
        (lambda: lnn.GroupSort2(), torch.fx.GraphModule),
        (lambda: lnn.InvertibleUpSampling(2), nn.PixelShuffle),
    ):
        model = make().eval()
        twin = vanilla_model(model, in_place=False)
        assert isinstance(twin, kind) and "lipfuse" not in kinds(twin)
        assert "lipfuse" in kinds(model)
        if kind is not nn.PixelShuffle:
            torch.testing.assert_close(twin(x), model(x))
        assert vanilla_model(model) is model
        assert isinstance(model, kind) and "lipfuse" not in kinds(model)
        if kind is not nn.PixelShuffle:
            torch.testing.assert_close(model(x), twin(x))
        # What became plain in place is whole: it can be copied, saved, and converted again.
        copied = copy.deepcopy(model)
        loaded = pickle.loads(pickle.dumps(vanilla_model(model)))
        assert str(loaded) == str(model)
        for other in (copied, loaded):
            if kind is not nn.PixelShuffle:
                torch.testing.assert_close(other(x), model(x))


def test_new_module_receives_the_children_and_the_model_is_left_alone() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = LipschitzLinear(2, 2), lnn.FullSort()

    model, target = Holder(), nn.Module()
    assert vanilla_model(model, True, target) is target
    assert type(target.first) is nn.Linear and isinstance(target.second, torch.fx.GraphModule)
    assert isinstance(model.first, LipschitzLinear)


def test_sequential_exports_itself() -> None:
    linear = nn.Linear(4, 4)
    with pytest.warns(UserWarning, match="cannot vouch"):
        model = lnn.Sequential(linear, lnn.GroupSort2(), lnn.Sequential(lnn.MaxMin()))
    plain = model.eval().vanilla_export()
    x = torch.randn(2, 4)
    assert type(plain) is nn.Sequential and type(plain[2]) is nn.Sequential
    torch.testing.assert_close(plain(x), model(x))
    assert plain[0] is not model[0] and not plain.training


# ---- plain layers ------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "1d": (lambda **k: nn.Conv1d(4, 6, 3, 2, 1, 2, groups=2, **k), (9,)),
    "2d": (lambda **k: nn.Conv2d(4, 6, (3, 1), (1, 2), "valid", padding_mode="zeros", **k), (9, 8)),
    "2d-circular": (
        lambda **k: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", **k),
        (5, 5),
    ),
    "2d-same": (lambda **k: nn.Conv2d(4, 6, 3, padding="same", **k), (5, 5)),
    "3d": (lambda **k: nn.Conv3d(4, 2, 2, **k), (3, 4, 3)),
    "transposed-1d": (lambda **k: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, **k), (5,)),
    "transposed-2d": (lambda **k: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, **k), (5, 4)),
    "transposed-3d": (lambda **k: nn.ConvTranspose3d(4, 2, 2, dilation=2, **k), (3, 3, 2)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_plain_convolution_of_a_parametrized_one(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    make, size = CONVOLUTIONS[name]
    module = make(bias=bias, dtype=torch.float64)
    kind = type(module)
    parametrize.register_parametrization(module, "weight", Normalised())
    module.eval()
    plain = plain_conv(module)
    assert type(plain) is kind and not plain.training
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(plain(x), module(x))
    converted = vanilla_model(nn.Sequential(module), in_place=False)[0]
    assert type(converted) is kind
    torch.testing.assert_close(converted(x), module(x))
    assert list(dict(converted.named_parameters())) == ["weight", "bias"][: 1 + bias]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_plain_linear_of_a_parametrized_one(dtype: torch.dtype, bias: bool) -> None:
    module = nn.Linear(5, 3, bias=bias, dtype=dtype)
    parametrize.register_parametrization(module, "weight", Normalised())
    state = torch.get_rng_state()
    plain = plain_linear(module)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is initialised at random
    assert plain.training and module.training and module.parametrizations.weight[0].training
    module.parametrizations.weight[0].eval()  # a flag of its own is put back as well
    plain_linear(module)
    assert module.training and not module.parametrizations.weight[0].training
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    assert not own & {p.untyped_storage().data_ptr() for p in plain.parameters()}
    assert plain.weight.dtype == dtype and (plain.bias is not None) == bias
    torch.testing.assert_close(plain.weight, module.eval().weight)
    assert plain.weight.is_leaf and isinstance(plain.weight, nn.Parameter)


def test_frozen_stays_frozen() -> None:
    module = nn.Linear(5, 3)
    parametrize.register_parametrization(module, "weight", Normalised())
    module.parametrizations.weight.original.requires_grad_(False)
    for plain in (plain_linear(module), vanilla_model(module, in_place=False)):
        assert not plain.weight.requires_grad and plain.bias.requires_grad
    module.parametrizations.weight.original.requires_grad_(True)
    module.bias.requires_grad_(False)
    for plain in (plain_linear(module), vanilla_model(module, in_place=False)):
        assert plain.weight.requires_grad and not plain.bias.requires_grad


def test_weights_are_read_in_full_precision_under_autocast() -> None:
    class Product(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight @ torch.eye(weight.shape[1])

    module = nn.Linear(4, 4)
    parametrize.register_parametrization(module, "weight", Product())
    weight = module.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain_linear(module).weight, weight)
        assert torch.equal(vanilla_model(module).weight, weight)


def test_any_parametrized_module_becomes_plain_and_its_copies_live_on() -> None:
    # remove_parametrizations would take the property off the class that both copies share.
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        parametrizations.weight_norm(nn.Linear(4, 4)),
        parametrizations.orthogonal(nn.Linear(4, 4)),
        parametrizations.spectral_norm(nn.Bilinear(4, 4, 2)),
    )
    x = torch.randn(3, 4)
    plain = vanilla_model(model, in_place=False)
    assert [type(layer) for layer in plain] == [nn.Linear] * 3 + [nn.Bilinear]
    model.eval()
    for ours, theirs in zip(plain, model, strict=True):
        arguments = (x, x) if isinstance(ours, nn.Bilinear) else (x,)
        torch.testing.assert_close(ours(*arguments), theirs(*arguments))
        assert isinstance(ours.weight, nn.Parameter) and ours.weight.requires_grad


def test_a_parameter_shared_by_two_parametrized_layers_is_read_for_each() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    for layer in (first, second):
        parametrize.register_parametrization(layer, "weight", Normalised())
    second.parametrizations.weight.original = first.parametrizations.weight.original
    model = nn.Sequential(first, second).eval()
    weight = first.weight.detach().clone()
    vanilla_model(model)
    assert torch.equal(first.weight, weight) and torch.equal(second.weight, weight)
    assert first.weight is not second.weight


def test_a_parametrization_that_returns_its_input_gives_no_alias() -> None:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    original = layer.parametrizations.weight.original
    vanilla_model(layer)
    assert layer.weight.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()


def test_a_class_of_ones_own_keeps_its_forward() -> None:
    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2.0 * super().forward(input)

    layer = parametrizations.spectral_norm(Doubling(4, 4)).eval()
    x = torch.randn(2, 4)
    expected = layer(x)
    plain = vanilla_model(layer)
    assert type(plain) is Doubling
    torch.testing.assert_close(plain(x), expected)


def test_what_has_no_plain_counterpart_is_named() -> None:
    class Odd(nn.Module):
        pass

    Odd.__module__ = "lipfuse.nn.odd"
    with pytest.raises(TypeError, match=r"Odd \(at '1'\) has no plain PyTorch counterpart"):
        vanilla_model(nn.Sequential(nn.ReLU(), Odd()))


def test_a_function_with_a_branch_on_its_input_cannot_be_exported() -> None:
    with pytest.raises(Exception, match="control flow"):
        plain_function("Branch", lambda x: x if x.sum() > 0 else -x)


test_bad_arguments_are_named = tools.refusals(
    [
        (lambda: vanilla_model("net"), TypeError, ["model", "'net'", "torch.nn.Module"]),
        (lambda: vanilla_model(nn.ReLU(), True, "net"), TypeError, ["new_module", "'net'"]),
        (lambda: plain_linear(nn.ReLU()), TypeError, ["module", "ReLU", "Linear"]),
        (lambda: plain_conv(nn.Linear(1, 1)), TypeError, ["module", "Linear", "convolution"]),
    ]
)


# ---- without the package -----------------------------------------------------------------------

ELSEWHERE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lipfuse":
            raise ImportError("lipfuse must not be needed")
sys.meta_path.insert(0, Refuse())
import torch
model, x, y, gradient = torch.load(sys.argv[1], weights_only=False)
for batch in (x, torch.cat((x, x))):
    assert model(batch).shape[0] == batch.shape[0]
x.requires_grad_()
torch.testing.assert_close(model(x), y)
torch.testing.assert_close(torch.autograd.grad(model(x).sum(), x)[0], gradient)
torch.testing.assert_close(model.train()(x), y)
torch.save(model, sys.argv[1])
assert "lipfuse" not in sys.modules
print("loaded elsewhere")
"""


def test_the_export_loads_and_runs_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lnn.Sequential(
        lnn.InvertibleDownSampling(2),
        lnn.InvertibleUpSampling(2, k_coef_lip=2.0),
        lnn.MaxMin(),
        lnn.GroupSort2(),
        lnn.GroupSort(3),
        lnn.LPReLU(12),
        lnn.LPReLU(k_coef_lip=0.5),
        lnn.HouseHolder(12),
        lnn.ScaledAvgPool2d(2),
        lnn.ScaledAvgPool2d((1, 2), ceil_mode=True),
        lnn.ScaledL2NormPool2d(2, ceil_mode=True),
        lnn.Sequential(lnn.FullSort(), nn.Dropout(0.0)),
        lnn.Sequential(lnn.ScaledAdaptativeL2NormPool2d(), lnn.ScaledAdaptiveAvgPool2d((1, 1))),
        nn.Flatten(),
        LipschitzLinear(12, 5),
        lnn.Sequential(nn.Identity()),
        k_coef_lip=3.0,
    ).eval()
    x = torch.randn(3, 6, 8, 12, requires_grad=True)
    y = model(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    plain = model.vanilla_export()
    path = tmp_path / "model.pt"
    torch.save((plain, x.detach(), y.detach(), gradient), path)
    assert b"lipfuse" not in path.read_bytes()
    # In a directory of its own: the package must not be found through the working directory.
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded elsewhere" in done.stdout


def test_the_export_can_be_saved_after_conversion_in_place() -> None:
    model = Net().eval()
    x = torch.randn(2, 1, 8, 8)
    expected = model(x)
    vanilla_model(model)
    buffer = io.BytesIO()
    torch.save(model.blocks, buffer)
    assert b"lipfuse" not in buffer.getvalue()
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)


def test_the_export_can_be_compiled() -> None:
    model = lnn.Sequential(lnn.GroupSort2(), lnn.ScaledL2NormPool2d(2), k_coef_lip=2.0)
    plain = model.vanilla_export()
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        x = torch.randn(batch, 4, 4, 4)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [0.5, 3.0])
def test_networks_of_normalised_layers_are_exported_at_full_accuracy(
    k: float, training: bool
) -> None:
    torch.manual_seed(0)
    model = lnn.Sequential(
        lnn.SpectralConv2d(2, 4, 3, padding=1),
        lnn.GroupSort2(),
        lnn.ScaledL2NormPool2d(2),
        nn.Flatten(),
        lnn.SpectralLinear(36, 10),
        lnn.FullSort(),
        lnn.FrobeniusLinear(10, 1),
        k_coef_lip=k,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.train(training)
    plain = vanilla_model(model, in_place=False).double()
    assert kinds(plain) <= {"torch"}
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(plain, x).reshape(1, -1)
    # One output behind orthogonal layers: little of the constant is lost to the layers' rest.
    assert 0.1 * k < torch.linalg.matrix_norm(jacobian, 2) <= k * (1 + 1e-5)
    torch.testing.assert_close(plain(x).float(), model.eval()(x.float()), rtol=1e-4, atol=1e-5)
