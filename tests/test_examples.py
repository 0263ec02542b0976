"""The scripts of examples/ that write a plot: they run, and what they check can fail."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import tools
import torch
from torch import nn

import lipfuse
import lipfuse.nn as lnn

NAMES = ("wasserstein", "hkr_binary", "robust_digits", "wgan_critic", "convert_model")


def test_the_makefile_runs_all_of_them_and_the_list_has_them() -> None:
    root = Path(__file__).parents[1]
    if not (root / "Makefile").is_file():
        pytest.skip("needs the checkout")
    found = re.search(r"^EXAMPLES := (.*)$", (root / "Makefile").read_text(), re.M)
    assert found is not None and found[1].split() == list(NAMES)
    listed = re.findall(r"^\| \[`(\w+)\.py`\]", (root / "examples" / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(p.stem for p in (root / "examples").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_quick_run(name: str, tmp_path: Path) -> None:
    """Passes its own check and writes a picture of some size."""
    tools.example(f"{name}.py").main(["--quick", "--output", str(tmp_path)])
    picture = (tmp_path / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    if name == "convert_model":
        plain = torch.load(tmp_path / "converted.pt", weights_only=False)
        assert not any(type(m).__module__.startswith("lipfuse") for m in plain.modules())


def certify_too_little(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """A certificate of a fifth of the true constant."""
    found = lipfuse.certification.certify(model, shape)
    smaller = None if found.pairs is None else found.pairs / 5
    return dataclasses.replace(found, lipschitz=found.lipschitz / 5, pairs=smaller)


def changing(model: nn.Module, **settings: Any) -> Any:
    report = lipfuse.convert.accelerate(model, **settings)
    with torch.no_grad():
        model[7].bias.add_(1e-3)  # type: ignore[index, union-attr, operator]
    return report


@pytest.mark.parametrize(
    ("name", "patches", "message"),
    [
        # Hardly trained; or trained, and something is wrong.
        ("wasserstein", {"train": lambda t, case, steps: t(case, 3)}, "not within 2 %: two Gau"),
        ("hkr_binary", {"certify": certify_too_little}, "a certified radius is too large"),
        ("hkr_binary", {"train": lambda t, steps: t(1)}, "98 % should be right"),
        ("robust_digits", {"certify": certify_too_little}, "within their certified radius"),
        ("wgan_critic", {"train": lambda t, steps, points: t(1, points)}, "from real ones"),
        (
            "wgan_critic",
            {
                "train": lambda t, steps, points: t(1, points),
                "exact_distance": lambda d, a, b: d(a, b) / 50,
            },
            "above the exact",
        ),
        ("convert_model", {"accelerate": changing}, "has changed the model"),
    ],
)
def test_its_check_fails_where_it_should(
    name: str,
    patches: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = tools.example(f"{name}.py")
    for attribute, patch in patches.items():
        if hasattr(module, attribute):
            before = getattr(module, attribute)
            monkeypatch.setattr(module, attribute, lambda *a, p=patch, b=before: p(b, *a))
        else:
            monkeypatch.setattr(lipfuse, attribute, patch)
    if name == "robust_digits":
        model = lnn.Sequential(nn.Flatten(), lnn.SpectralLinear(784, 10)).eval()
        monkeypatch.setattr(module, "train", lambda digits, temperature, epochs: model)
    if name == "convert_model":
        monkeypatch.setattr(module, "train", lambda *_: 1.0)
    with pytest.raises(SystemExit, match=message):
        module.main(["--quick", "--output", str(tmp_path)])
