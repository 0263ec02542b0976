from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipfuse.demo.attack import l2_pgd, margins, project


def _linear(seed: int, classes: int = 2, pixels: int = 30) -> tuple[torch.nn.Linear, Tensor]:
    """A linear classifier and images in the middle of the pixel range."""
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(pixels, classes).double().requires_grad_(False)
    model.weight.copy_(torch.randn(classes, pixels, generator=generator, dtype=torch.float64))
    model.bias.copy_(-0.5 * model.weight.sum(dim=1))  # so that every class occurs
    images = 0.5 + 0.05 * torch.randn(40, pixels, generator=generator, dtype=torch.float64)
    return model, images


def test_margins() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margins(logits, torch.tensor([1, 2])).tolist() == [2.0, -2.0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 5])
def test_reaches_the_exact_distance_to_the_boundary(seed: int, classes: int) -> None:
    """Of a linear classifier the distance is known: the margin over the difference of weights."""
    model, images = _linear(seed, classes)
    logits = model(images)
    labels = logits.argmax(dim=1)
    rows = model.weight
    gaps = logits.gather(1, labels[:, None]) - logits
    lengths = torch.linalg.vector_norm(rows[labels][:, None] - rows[None], dim=2)
    distance = (gaps / lengths).nan_to_num(nan=float("inf")).amin(dim=1)
    radius = distance.median().item()
    attacked = l2_pgd(model, images, labels, radius, steps=100, restarts=5)
    assert attacked.min() > 0 and attacked.max() < 1, "the pixel range must not matter here"
    broken = margins(model(attacked), labels) <= 0
    assert not broken[distance > radius * 1.001].any()
    assert broken[distance < radius * 0.99].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stays_in_the_ball_and_in_the_pixel_range(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 1, 6, 6, generator=generator, dtype=dtype).round(decimals=1)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4)
    ).to(dtype)
    labels = model(images).argmax(dim=1)
    for radius in (0.01, 0.5, 3.0):
        attacked = l2_pgd(model, images, labels, radius, steps=10, generator=generator)
        assert attacked.min() >= 0 and attacked.max() <= 1
        distance = torch.linalg.vector_norm((attacked.double() - images).flatten(1), dim=1)
        assert distance.max() <= radius
        assert (margins(model(attacked), labels) <= margins(model(images), labels)).all()


def test_every_image_has_a_radius_of_its_own() -> None:
    model, images = _linear(0)
    labels = model(images).argmax(dim=1)
    radii = torch.linspace(0.01, 1.0, len(images), dtype=torch.float64)
    attacked = l2_pgd(model, images, labels, radii, steps=5)
    distance = torch.linalg.vector_norm(attacked - images, dim=1)
    assert (distance <= radii).all() and (distance >= 0.99 * radii).all()
    with pytest.raises(ValueError, match="radius"):
        l2_pgd(model, images, labels, radii - 0.01)


def test_projection_leaves_what_is_inside_alone() -> None:
    images = torch.full((2, 4), 0.5)
    delta = torch.tensor([[0.1, 0.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0]])
    expected = torch.tensor([[0.1, 0.0, 0.0, 0.0], [0.15, 0.2, 0.0, 0.0]])
    torch.testing.assert_close(project(delta, images, 0.25), expected)
    assert torch.equal(project(torch.full((1, 1), 9.0), torch.ones(1, 1), 2.0), torch.zeros(1, 1))


def test_more_restarts_are_never_weaker() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(30, 20, generator=generator, dtype=torch.float64)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3)
    ).double()
    labels = model(images).argmax(dim=1)

    def worst(restarts: int) -> Tensor:
        seeded = torch.Generator().manual_seed(5)
        attacked = l2_pgd(model, images, labels, 0.7, steps=8, restarts=restarts, generator=seeded)
        return margins(model(attacked), labels)

    assert (worst(4) <= worst(1) + 1e-12).all()


def test_a_constant_model_does_no_harm() -> None:
    images = torch.full((3, 4), 0.5)
    attacked = l2_pgd(
        lambda x: x.sum(1, keepdim=True) * torch.zeros(2), images, torch.zeros(3).long(), 0.5
    )
    assert attacked.isfinite().all()


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_refuses_a_radius_that_is_not_positive(radius: float) -> None:
    with pytest.raises(ValueError, match="radius"):
        l2_pgd(torch.nn.Linear(2, 2), torch.rand(1, 2), torch.zeros(1).long(), radius)
