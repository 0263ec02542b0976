"""The loss functions against formulas written sample by sample, and their errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import tools
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lipfuse.functional as F


def labels_and_outputs(seed: int, samples: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, max(classes, 2), (samples,), generator=generator)
    if classes == 1:
        return outputs, labels.unsqueeze(1), labels
    return outputs, torch.nn.functional.one_hot(labels, classes), labels


def kr_by_classes(outputs: Tensor, target: Tensor) -> float:
    """Mean over the outputs of mean over the class minus mean over the rest, where both exist."""
    total = 0.0
    for output, column in zip(outputs.T, target.T, strict=True):
        of_class, others = output[column > 0], output[column <= 0]
        total += float(of_class.mean()) if len(of_class) else 0.0
        total -= float(others.mean()) if len(others) else 0.0
    return total / outputs.shape[1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 9),
    classes=st.integers(1, 5),
    minus_one=st.booleans(),
    as_float=st.booleans(),
)
def test_kr_loss_is_the_difference_of_the_means(
    seed: int, samples: int, classes: int, minus_one: bool, as_float: bool
) -> None:
    outputs, target, _ = labels_and_outputs(seed, samples, classes)
    given_target = torch.where(target > 0, 1, -1) if minus_one else target
    if as_float:
        given_target = given_target.double()
    losses = F.kr_loss(outputs, given_target)
    assert losses.shape == (samples,) and losses.dtype == outputs.dtype
    assert float(losses.mean()) == pytest.approx(kr_by_classes(outputs, target))
    assert torch.equal(F.neg_kr_loss(outputs, given_target), -losses)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), samples=st.integers(2, 12), parts=st.integers(1, 4))
def test_a_batch_split_between_devices_adds_up(seed: int, samples: int, parts: int) -> None:
    outputs, target, _ = labels_and_outputs(seed, samples, 3)
    processed = F.process_labels_for_multi_gpu(target.double())
    assert torch.equal(processed > 0, target > 0)
    whole = F.hkr_multiclass_loss(outputs, target, 0.7)
    pieces = [
        F.hkr_multiclass_loss(output, labels, 0.7, multi_gpu=True)
        for output, labels in zip(outputs.chunk(parts), processed.chunk(parts), strict=True)
    ]
    torch.testing.assert_close(torch.cat(pieces), whole)
    whole = F.hkr_loss(outputs, target, 0.2)
    piece = F.hkr_loss(outputs[:2], processed[:2], 0.2, multi_gpu=True)
    torch.testing.assert_close(piece, whole[:2])
    torch.testing.assert_close(
        F.neg_kr_loss(outputs, processed, True), F.neg_kr_loss(outputs, target)
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 5),
    margin=st.floats(0.1, 3.0),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    penalty=st.floats(0.2, 2.0),
    minus_one=st.booleans(),
)
def test_each_sample_by_its_formula(
    seed: int, classes: int, margin: float, alpha: float, penalty: float, minus_one: bool
) -> None:
    outputs, target, labels = labels_and_outputs(seed, 6, classes)
    if minus_one:
        target = torch.where(target > 0, 1, -1)
    kr = F.kr_loss(outputs, target)
    binary = F.hinge_margin_loss(outputs, target, margin)
    multi = F.hinge_multiclass_loss(outputs, target, margin)
    mixed = F.hkr_loss(outputs, target, alpha, margin)
    mixed_multi = F.hkr_multiclass_loss(outputs, target, alpha, margin)
    lse = F.lse_hkr_multiclass_loss(outputs, target, alpha, penalty, margin)
    categorical = F.categorical_hinge_loss(outputs, target, margin)
    for i, (row, label) in enumerate(zip(outputs.tolist(), labels.tolist(), strict=True)):
        hinges = [
            max(0.0, margin / 2 - (value if j == label else -value)) for j, value in enumerate(row)
        ]
        assert float(binary[i]) == pytest.approx(sum(hinges) / classes)
        weighted = (classes - 1) * hinges[label] + sum(hinges) - hinges[label]
        assert float(multi[i]) == pytest.approx(weighted / classes)
        assert float(mixed[i]) == pytest.approx(
            alpha * float(binary[i]) - (1 - alpha) * float(kr[i])
        )
        assert float(mixed_multi[i]) == pytest.approx(
            alpha * float(multi[i]) - (1 - alpha) * float(kr[i])
        )
        others = [value for j, value in enumerate(row) if j != label]
        assert float(categorical[i]) == pytest.approx(max(0.0, margin - row[label] + max(others)))
        soft = others[0]
        if classes > 2:
            t = math.log(classes - 1) / (margin * penalty / 2)
            top = max(others)
            soft = top + math.log(sum(math.exp(t * (value - top)) for value in others)) / t
            assert top - 1e-9 <= soft <= top + penalty * margin / 2 + 1e-9
        expected = alpha * (max(0.0, margin / 2 - row[label]) + max(0.0, margin / 2 + soft))
        expected -= (1 - alpha) * (row[label] - soft)
        assert float(lse[i]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("tau", [0.1, 1.0, 20.0])
def test_temperature_losses_are_torch_losses_of_scaled_outputs(tau: float) -> None:
    outputs, target, labels = labels_and_outputs(0, 7, 4)
    wanted = torch.nn.functional.cross_entropy(tau * outputs, labels, reduction="none") / tau
    for given_target in (labels, labels.int(), target, target.float(), target.bool()):
        losses = F.tau_cross_entropy_loss(outputs, given_target, tau, reduction="none")
        torch.testing.assert_close(losses, wanted)
        assert losses.dtype == outputs.dtype
    smoothed = F.tau_cross_entropy_loss(outputs, target, tau, label_smoothing=0.2)
    torch.testing.assert_close(
        smoothed,
        torch.nn.functional.cross_entropy(tau * outputs, labels, label_smoothing=0.2) / tau,
    )
    binary = torch.nn.functional.binary_cross_entropy_with_logits(tau * outputs, target.double())
    for given_target in (target, torch.where(target > 0, 1.0, -1.0)):
        torch.testing.assert_close(
            F.tau_bce_with_logits_loss(outputs, given_target, tau), binary / tau
        )


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kr": F.kr_loss,
    "neg_kr": F.neg_kr_loss,
    "hinge_margin": F.hinge_margin_loss,
    "hkr": lambda x, y: F.hkr_loss(x, y, 0.8),
    "hinge_multiclass": F.hinge_multiclass_loss,
    "hkr_multiclass": lambda x, y: F.hkr_multiclass_loss(x, y, 0.8),
    "lse": lambda x, y: F.lse_hkr_multiclass_loss(x, y, 0.8),
    "tau_ce": lambda x, y: F.tau_cross_entropy_loss(x, y, 3.0, reduction="none"),
    "tau_bce": lambda x, y: F.tau_bce_with_logits_loss(x, y, 3.0, reduction="none"),
    "categorical": F.categorical_hinge_loss,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_and_classes_that_are_absent(name: str) -> None:
    outputs, target, _ = labels_and_outputs(3, 5, 4)
    outputs.requires_grad_()
    function = FUNCTIONS[name]
    assert torch.autograd.gradcheck(lambda x: function(x, target), (outputs,))
    assert torch.autograd.gradgradcheck(lambda x: function(x, target) ** 2, (outputs,))
    only_one_class = torch.zeros_like(target)
    only_one_class[:, 2] = 1
    losses = function(outputs, only_one_class)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert losses.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_narrow_dtypes_stay_close(name: str, dtype: torch.dtype) -> None:
    outputs, target, _ = labels_and_outputs(4, 5, 4)
    outputs = outputs.to(dtype)
    losses = FUNCTIONS[name](outputs, target)
    assert losses.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    wanted = FUNCTIONS[name](outputs.double(), target)
    torch.testing.assert_close(losses.double(), wanted, rtol=tolerance, atol=tolerance)


def test_labels_are_counted_exactly_in_half_precision() -> None:
    # Of 4097, one is not in the class: float16 would take their share for 1, and the rest for 0.
    labels = torch.ones(4097, 1, dtype=torch.float16)
    labels[0] = 0.0
    processed = F.process_labels_for_multi_gpu(labels)
    assert processed.dtype == torch.float16
    assert processed[0].item() == -4096.0 and processed[1].item() == 1.0
    # 70000 is beyond float16.
    processed = F.process_labels_for_multi_gpu(labels[1:2].expand(70000, 1))
    assert (processed == 1.0).all()


def test_integer_labels_are_processed_in_the_default_dtype() -> None:
    processed = F.process_labels_for_multi_gpu(torch.tensor([[1], [0], [0]]))
    torch.testing.assert_close(processed, torch.tensor([[3.0], [-1.5], [-1.5]]))


def test_targets_of_another_shape_but_as_many_elements_fit() -> None:
    outputs = torch.randn(6, 1)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.equal(F.hkr_loss(outputs, labels, 0.5), F.hkr_loss(outputs, labels[:, None], 0.5))
    strided = labels.repeat_interleave(2)[::2]
    assert torch.equal(F.kr_loss(outputs, strided), F.kr_loss(outputs, labels))


def test_reductions() -> None:
    x = torch.randn(5)
    assert F.apply_reduction(x, "none") is x
    assert torch.equal(F.apply_reduction(x, "sum"), x.sum())
    assert torch.equal(F.apply_reduction(x, "mean"), x.mean())
    assert torch.equal(F.apply_reduction(x, "auto"), x.mean())


x, y = torch.ones(3, 4), torch.ones(3, 4)
index = torch.tensor([0, 1, 2])
BAD: list[tools.Refusal] = [
    (lambda: F.apply_reduction(x, "max"), ValueError, ["reduction", "'max'", "'mean'"]),
    (lambda: F.kr_loss(x, index), ValueError, ["target", "(3,)", "(3, 4)", "one_hot(target, 4)"]),
    (lambda: F.kr_loss(x, torch.ones(3, 5)), ValueError, ["target", "(3, 5)", "(3, 4)"]),
    (lambda: F.kr_loss(x.int(), y), TypeError, ["input", "int32", "floating-point"]),
    (lambda: F.kr_loss(x, [1]), TypeError, ["target", "[1]", "torch.Tensor"]),
    (lambda: F.hinge_margin_loss(x, y, 0.0), ValueError, ["min_margin", "0.0", "positive"]),
    (lambda: F.hinge_multiclass_loss(x, y, math.nan), ValueError, ["min_margin", "nan"]),
    (lambda: F.hkr_loss(x, y, 1.5), ValueError, ["alpha", "1.5", "[0, 1]"]),
    (lambda: F.hkr_loss(x, y, -0.5), ValueError, ["alpha", "-0.5", "[0, 1]"]),
    (lambda: F.hkr_multiclass_loss(x, y, math.nan), ValueError, ["alpha", "nan", "[0, 1]"]),
    (lambda: F.hkr_multiclass_loss(x, y, "1"), TypeError, ["alpha", "'1'"]),
    (lambda: F.lse_hkr_multiclass_loss(x[:, :1], y[:, :1]), ValueError, ["input", "(3, 1)"]),
    (lambda: F.lse_hkr_multiclass_loss(x, y, penalty=0), ValueError, ["penalty", "0"]),
    (lambda: F.tau_cross_entropy_loss(x, y, 0.0), ValueError, ["tau", "0.0", "positive"]),
    (lambda: F.tau_cross_entropy_loss(x, y, math.inf), ValueError, ["tau", "inf"]),
    (
        lambda: F.tau_cross_entropy_loss(x, y, 1.0, label_smoothing=2.0),
        ValueError,
        ["label_smoothing", "2.0", "[0, 1]"],
    ),
    (lambda: F.tau_bce_with_logits_loss(x, index, 1.0), ValueError, ["target", "(3,)", "(3, 4)"]),
    (
        lambda: F.tau_bce_with_logits_loss(x, y, 1.0, reduction="avg"),
        ValueError,
        ["reduction", "'avg'"],
    ),
    (lambda: F.categorical_hinge_loss(x, y, -1), ValueError, ["min_margin", "-1"]),
    (lambda: F.process_labels_for_multi_gpu([1]), TypeError, ["labels", "[1]"]),
]


test_bad_arguments_are_named = tools.refusals(BAD)
