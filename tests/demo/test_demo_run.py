"""The whole demo, in a hurry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lipfuse.demo import main
from lipfuse.demo.data import Digits
from lipfuse.demo.evaluation import UnsoundCertificateError
from lipfuse.demo.model import build_constrained, build_unconstrained
from lipfuse.demo.settings import Settings
from lipfuse.demo.timing import step_times
from lipfuse.demo.training import build_loss, learning_rate_factor, train

ACCURACIES = ("clean_accuracy", "robustness", "lipschitz_bound", "largest_jacobian_norm")


def _run(folder: Path, *extra: str) -> dict[str, Any]:
    assert main(["--quick", "--output", str(folder), *extra]) == 0
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_end_to_end_and_reproducible(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    first = _run(tmp_path / "first")
    printed = capsys.readouterr().out
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()

    for heading in ("clean accuracy", "certified accuracy", "accuracy under PGD", "Export"):
        assert heading in printed
    assert "\r" not in printed, "a bar that redraws itself is for terminals"
    for name in ("training.png", "robustness.png", "digits.png"):
        assert (tmp_path / "first" / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "first" / "model.pt").is_file()

    assert first["clean_accuracy"] > 0.7, "two epochs are enough to be far from guessing"
    assert [row["radius"] for row in first["robustness"]] == [0.1, 0.25, 0.5, 1.0]
    for row in first["robustness"]:
        assert row["certified"] <= row["attacked"] <= first["clean_accuracy"]
    assert first["largest_jacobian_norm"] <= first["lipschitz_bound"] <= 1.00001
    assert first["export"]["packages_of_its_modules"] == ["torch"]
    assert first["export"]["largest_difference"] <= 1e-5
    assert len(first["step_seconds"]) == 3

    second = _run(tmp_path / "second")
    assert {key: first[key] for key in ACCURACIES} == {key: second[key] for key in ACCURACIES}
    assert first["history"]["loss"] == second["history"]["loss"]


def test_the_seed_matters_and_is_all_that_does() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 1, 28, 28, generator=generator), torch.arange(40) % 10
    few = Digits(images, labels, images, labels)

    def losses(seed: int) -> list[float]:
        torch.manual_seed(5)  # the same weights: what differs is the order and the distortion
        settings = Settings(epochs=2, batch_size=10, seed=seed)
        return train(build_constrained(16, 1), few, settings).loss

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_hkr_runs_too(digits: Digits, tmp_path: Path) -> None:
    results = _run(tmp_path, "--loss", "hkr", "--epochs", "1", "--depth", "1")
    assert results["settings"]["loss"] == "hkr" and results["settings"]["epochs"] == 1
    assert results["clean_accuracy"] > 0.5


def test_a_broken_certificate_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(settings: Settings) -> None:
        raise UnsoundCertificateError("image 3")

    monkeypatch.setattr("lipfuse.demo.run.run", broken)
    assert main(["--quick"]) == 1
    assert "image 3" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["tau-ce", "hkr"])
def test_losses_reward_the_margin(loss: Any) -> None:
    loss_of = build_loss(Settings(loss=loss, min_margin=2.0))
    labels = torch.arange(10)
    right = 2 * torch.eye(10) - 1
    barely = 0.01 * right
    assert loss_of(3 * right, labels) < loss_of(right, labels) < loss_of(barely, labels)
    assert loss_of(barely, labels) < loss_of(-barely, labels)


def test_learning_rate_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] < 0.3 and max(factors) > 0.95 and factors[-1] < 1e-12
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_a_batch_larger_than_the_data_is_cut(digits: Digits) -> None:
    few = Digits(
        digits.train_images[:50],
        digits.train_labels[:50],
        digits.test_images[:20],
        digits.test_labels[:20],
    )
    model = build_unconstrained(8, 1, "relu")
    history = train(model, few, Settings(epochs=1, batch_size=1000))
    assert len(history.loss) == 1 and not model.training


def test_step_times_are_positive_and_complete() -> None:
    models = {"a": build_unconstrained(8, 1, "relu"), "b": build_unconstrained(8, 1, "groupsort")}
    seconds = step_times(
        models,
        torch.rand(4, 1, 28, 28),
        torch.arange(4),
        torch.nn.functional.cross_entropy,
        steps=3,
        warm_up=1,
    )
    assert set(seconds) == {"a", "b"} and min(seconds.values()) > 0
