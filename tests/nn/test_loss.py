"""The loss modules: they are the functions, with settings checked once."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable

import pytest
import tools
import torch
from torch import Tensor, nn

import lipfuse.functional as F
import lipfuse.nn as lnn

torch.manual_seed(0)
outputs = 2 * torch.randn(7, 4)
labels = torch.randint(0, 4, (7,))
target = torch.nn.functional.one_hot(labels, 4)
processed = F.process_labels_for_multi_gpu(target.float())

# A loss, its targets, and what it computes for each sample.
LOSSES: list[tuple[Callable[..., nn.Module], Tensor, Tensor]] = [
    (lnn.KRLoss, target, F.kr_loss(outputs, target)),
    (lambda **k: lnn.KRLoss(True, **k), processed, F.kr_loss(outputs, target)),
    (lnn.NegKRLoss, target, F.neg_kr_loss(outputs, target)),
    (lambda **k: lnn.NegKRLoss(True, **k), processed, F.neg_kr_loss(outputs, target)),
    (lambda **k: lnn.HingeMarginLoss(0.5, **k), target, F.hinge_margin_loss(outputs, target, 0.5)),
    (lambda **k: lnn.HKRLoss(0.7, 0.5, **k), target, F.hkr_loss(outputs, target, 0.7, 0.5)),
    (
        lambda **k: lnn.HKRLoss(0.7, 0.5, True, **k),
        processed,
        F.hkr_loss(outputs, target, 0.7, 0.5),
    ),
    (lnn.KRMulticlassLoss, target, F.kr_loss(outputs, target)),
    (lambda **k: lnn.KRMulticlassLoss(True, **k), processed, F.kr_loss(outputs, target)),
    (
        lambda **k: lnn.HingeMulticlassLoss(0.5, **k),
        target,
        F.hinge_multiclass_loss(outputs, target, 0.5),
    ),
    (
        lambda **k: lnn.HKRMulticlassLoss(0.7, 0.5, **k),
        target,
        F.hkr_multiclass_loss(outputs, target, 0.7, 0.5),
    ),
    (
        lambda **k: lnn.HKRMulticlassLoss(0.7, 0.5, True, **k),
        processed,
        F.hkr_multiclass_loss(outputs, target, 0.7, 0.5),
    ),
    (
        lambda **k: lnn.LseHKRMulticlassLoss(0.7, 2.0, 0.5, 0.3, **k),
        target,
        F.lse_hkr_multiclass_loss(2.0 * outputs, target, 0.7, 0.5, 0.3),
    ),
    (
        lambda **k: lnn.TauCrossEntropyLoss(3.0, label_smoothing=0.1, **k),
        labels,
        F.tau_cross_entropy_loss(outputs, labels, 3.0, label_smoothing=0.1, reduction="none"),
    ),
    (
        lambda **k: lnn.TauCrossEntropyLoss(3.0, **k),
        target,
        F.tau_cross_entropy_loss(outputs, labels, 3.0, reduction="none"),
    ),
    (
        lambda **k: lnn.TauBCEWithLogitsLoss(3.0, pos_weight=torch.tensor(2.0), **k),
        target,
        F.tau_bce_with_logits_loss(
            outputs, target, 3.0, pos_weight=torch.tensor(2.0), reduction="none"
        ),
    ),
    (
        lambda **k: lnn.CategoricalHingeLoss(0.5, **k),
        target,
        F.categorical_hinge_loss(outputs, target, 0.5),
    ),
]


@pytest.mark.parametrize(("make", "given_target", "expected"), LOSSES)
def test_modules_are_their_functions(
    make: Callable[..., nn.Module], given_target: Tensor, expected: Tensor
) -> None:
    torch.testing.assert_close(make()(outputs, given_target), expected.mean())
    for reduction, reduced in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.mean()),
        ("auto", expected.mean()),
    ):
        loss = make(reduction=reduction)
        for twin in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            torch.testing.assert_close(twin(outputs, given_target), reduced)


def soft_hkr(
    outputs: Tensor, target: Tensor, alpha: float, margin: float, temperature: float, mean: float
) -> list[float]:
    """Sample by sample, from the definition; ``mean`` is the running mean of the sizes."""
    sharpness = min(max(temperature * margin / max(mean, margin), 0.005), 250.0)
    losses = []
    for row, label in zip(outputs.tolist(), target.argmax(1).tolist(), strict=True):
        wrong = [j for j in range(len(row)) if j != label]
        total = sum(math.exp(sharpness * row[j]) for j in wrong)
        loss = alpha * max(0.0, margin / 2 - row[label]) - (1 - alpha) * row[label]
        for j in wrong:
            weight = math.exp(sharpness * row[j]) / total
            loss += weight * (alpha * max(0.0, margin / 2 + row[j]) + (1 - alpha) * row[j])
        losses.append(loss)
    return losses


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("margin", [0.2, 3.0])
def test_soft_hkr_follows_its_definition_and_its_running_mean(alpha: float, margin: float) -> None:
    loss = lnn.SoftHKRMulticlassLoss(alpha, margin, 0.9, 2.0, reduction="none")
    mean = margin
    for scale in (1.0, 5.0, 0.1):
        x = scale * outputs
        mean = 0.9 * mean + 0.1 * float(x.abs().mean())
        expected = soft_hkr(x, target, alpha, margin, 2.0, mean)
        torch.testing.assert_close(loss(x, target), torch.tensor(expected))
        torch.testing.assert_close(loss.current_mean, torch.tensor([mean]))
    seen = float(loss.current_mean)
    mean = 0.9 * seen + 0.1 * float(outputs.abs().mean())
    expected = soft_hkr(outputs, target, alpha, margin, 2.0, mean)
    torch.testing.assert_close(loss.eval()(outputs, target), torch.tensor(expected))
    assert float(loss.current_mean) == seen


def test_soft_hkr_keeps_its_running_mean_in_the_checkpoint() -> None:
    loss = lnn.SoftHKRMulticlassLoss()
    loss(9 * outputs, target)
    twin = lnn.SoftHKRMulticlassLoss()
    twin.load_state_dict(loss.state_dict())
    assert torch.equal(twin(outputs, target), loss(outputs, target))
    assert not torch.equal(twin.current_mean, lnn.SoftHKRMulticlassLoss().current_mean)


def test_soft_hkr_differentiates_in_any_dtype() -> None:
    loss = lnn.SoftHKRMulticlassLoss(0.8).eval()
    x = outputs.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (x,))
    for dtype in (torch.float16, torch.bfloat16):
        value = loss(outputs.to(dtype), target)
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), loss(x, target), rtol=0.03, atol=0.03)
    # A row that is positive throughout has no wrong class, and still no NaN.
    everything = torch.ones_like(target)
    with torch.autograd.set_detect_anomaly(True):
        (gradient,) = torch.autograd.grad(loss(x, everything), x)
    assert gradient.isfinite().all()


def test_training_with_a_loss_separates_two_classes() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 2) + torch.tensor([[2.0, 0.0]]) * (torch.arange(64) % 2)[:, None]
    y = (torch.arange(64) % 2)[:, None]
    layer = nn.Linear(2, 1)
    loss = lnn.HKRLoss(0.9, 1.0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss(layer(x), y).backward()
        optimizer.step()
    assert ((layer(x) > 0).int() == y).float().mean() > 0.8


@pytest.mark.parametrize(
    "make",
    [lnn.HKRLoss, lnn.HKRMulticlassLoss, lnn.SoftHKRMulticlassLoss, lnn.LseHKRMulticlassLoss],
)
def test_an_alpha_in_the_older_meaning_is_converted_with_a_warning(
    make: Callable[..., nn.Module],
) -> None:
    with pytest.warns(FutureWarning, match=r"alpha=10.0 .* 0.909") as caught:
        loss = make(10.0)
    assert len(caught) == 1 and caught[0].filename == __file__
    torch.testing.assert_close(loss(outputs, target), make(10 / 11)(outputs, target))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(1.0)
        make(0)
    for alpha in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha must be a finite number"):
            make(alpha)
    with pytest.raises(TypeError, match="alpha"):
        make("0.5")


def test_arguments_stand_in_the_order_that_users_of_deel_torchlip_know() -> None:
    orders = {
        "KRLoss": "multi_gpu reduction true_values",
        "NegKRLoss": "multi_gpu reduction true_values",
        "HingeMarginLoss": "min_margin reduction",
        "HKRLoss": "alpha min_margin multi_gpu reduction true_values",
        "KRMulticlassLoss": "multi_gpu reduction",
        "HingeMulticlassLoss": "min_margin reduction",
        "HKRMulticlassLoss": "alpha min_margin multi_gpu reduction",
        "SoftHKRMulticlassLoss": "alpha min_margin alpha_mean temperature reduction",
        "LseHKRMulticlassLoss": "alpha temperature penalty min_margin reduction",
        "TauCrossEntropyLoss": (
            "tau weight size_average ignore_index reduce reduction label_smoothing"
        ),
        "TauBCEWithLogitsLoss": "tau weight size_average reduce reduction pos_weight",
        "CategoricalHingeLoss": "min_margin reduction",
    }
    for name, order in orders.items():
        assert list(inspect.signature(getattr(lnn, name)).parameters) == order.split()


def test_repr_shows_the_settings() -> None:
    assert (
        repr(lnn.HKRLoss(0.5)) == "HKRLoss(alpha=0.5, min_margin=1.0, multi_gpu=False, "
        "reduction='mean')"
    )
    assert repr(lnn.TauCrossEntropyLoss(2)) == "TauCrossEntropyLoss(tau=2.0, reduction='mean')"


BAD: list[tools.Refusal] = [
    (lambda: lnn.KRLoss(reduction="max"), ValueError, ["reduction", "'max'", "'mean'"]),
    (lambda: lnn.KRLoss(multi_gpu=1), TypeError, ["multi_gpu", "1", "True or False"]),
    (lambda: lnn.KRLoss(true_values=(0, 1)), ValueError, ["true_values", "(0, 1)", "None"]),
    (lambda: lnn.NegKRLoss(true_values=(0, 1)), ValueError, ["true_values", "(0, 1)", "None"]),
    (lambda: lnn.HKRLoss(0.5, true_values=(0, 1)), ValueError, ["true_values", "None"]),
    (lambda: lnn.HingeMarginLoss(0), ValueError, ["min_margin", "0", "positive"]),
    (lambda: lnn.HKRLoss(0.5, -1.0), ValueError, ["min_margin", "-1.0", "positive"]),
    (lambda: lnn.HKRMulticlassLoss(0.5, math.nan), ValueError, ["min_margin", "nan"]),
    (lambda: lnn.HingeMulticlassLoss("1"), TypeError, ["min_margin", "'1'"]),
    (lambda: lnn.SoftHKRMulticlassLoss(alpha_mean=2.0), ValueError, ["alpha_mean", "2.0"]),
    (lambda: lnn.SoftHKRMulticlassLoss(temperature=0.0), ValueError, ["temperature", "0.0"]),
    (lambda: lnn.LseHKRMulticlassLoss(penalty=-1.0), ValueError, ["penalty", "-1.0"]),
    (lambda: lnn.LseHKRMulticlassLoss(temperature=True), TypeError, ["temperature", "True"]),
    (lambda: lnn.TauCrossEntropyLoss(0.0), ValueError, ["tau", "0.0", "positive"]),
    (lambda: lnn.TauCrossEntropyLoss(1.0, reduction="avg"), ValueError, ["reduction", "'avg'"]),
    (lambda: lnn.TauBCEWithLogitsLoss(math.inf), ValueError, ["tau", "inf", "positive"]),
    (lambda: lnn.CategoricalHingeLoss(None), TypeError, ["min_margin", "None"]),
    (
        lambda: lnn.SoftHKRMulticlassLoss()(outputs, labels),
        ValueError,
        ["target", "(7,)", "one_hot(target, 4)"],
    ),
]


test_bad_arguments_are_named = tools.refusals(BAD)
