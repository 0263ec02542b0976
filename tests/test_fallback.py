"""Where no native library was built: the reference does the work, and says so once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lipfuse
import lipfuse.nn as lnn

PACKAGE = Path(lipfuse.__file__).parent
TESTS = Path(__file__).parent

TRAINING = """
import torch, lipfuse, lipfuse.nn as lnn
from torch import nn

def train():
    torch.manual_seed(0)
    models = [
        lnn.Sequential(
            lnn.SpectralConv2d(1, 4, 3, padding=1, groups=1, **settings),
            lnn.GroupSort2(),
            lnn.ScaledL2NormPool2d(2),
            nn.Flatten(),
            lnn.SpectralLinear(36, 8, **settings),
            lnn.FullSort(),
            lnn.FrobeniusLinear(8, 3),
        )
        for settings in ({}, {"method": "bjorck"}, {"eps_bjorck": None})
    ]
    losses = []
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(5):
            x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(step))
            y = torch.arange(8) % 3
            loss = nn.functional.cross_entropy(model(x) * 4, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        losses.append(model.eval()(x).square().sum().item())
        losses.append(model.vanilla_export()(x).square().sum().item())
    return losses
"""


def run(
    code: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, on another copy of the package if a path is given."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LIPFUSE_")}
    env.update(environment, OMP_NUM_THREADS="1")
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code], env=env, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def without_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a build without a compiler leaves it."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(
        PACKAGE,
        root / "lipfuse",
        ignore=shutil.ignore_patterns("*.so", "*.dylib", "*.dll", "*.pyd", "__pycache__"),
    )
    return root


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """The losses of this process."""
    namespace: dict[str, object] = {}
    exec(TRAINING, namespace)
    losses: list[float] = namespace["train"]()  # type: ignore[operator]
    return losses


def losses_of(result: subprocess.CompletedProcess[str]) -> list[float]:
    assert result.returncode == 0, result.stderr
    return [float(x) for x in result.stdout.split("losses")[1].split()]


def test_without_libraries(without_libraries: Path, expected: list[float]) -> None:
    """It imports, warns exactly once and says what to do, and trains to the same losses."""
    code = (
        TRAINING
        + "from lipfuse import _native\n"
        + "assert not _native.loaded and _native.kernels is None, _native\n"
        + f"assert lipfuse.__file__.startswith({str(without_libraries)!r}), lipfuse.__file__\n"
        + "print('losses', *train())\n"
    )
    result = run(code, without_libraries)
    assert losses_of(result) == pytest.approx(expected, rel=2e-3)
    assert result.stderr.count("RuntimeWarning") == 1
    assert "none was built" in result.stderr
    assert "LIPFUSE_NATIVE=require" in result.stderr


def test_skip_is_silent(expected: list[float]) -> None:
    code = (
        TRAINING
        + "from lipfuse import _native\n"
        + "assert not _native.loaded and _native.reason == 'LIPFUSE_NATIVE=skip'\n"
        + "print('losses', *train())\n"
    )
    result = run(code, LIPFUSE_NATIVE="skip")
    assert losses_of(result) == pytest.approx(expected, rel=2e-3)
    assert "lipfuse runs on plain torch" not in result.stderr


def test_require_raises(without_libraries: Path) -> None:
    result = run("import lipfuse", without_libraries, LIPFUSE_NATIVE="require")
    assert result.returncode != 0
    assert "ImportError: LIPFUSE_NATIVE=require, but none was built" in result.stderr


def test_a_library_that_does_not_load(without_libraries: Path, tmp_path: Path) -> None:
    """Broken, or built for something else: the reason is in the warning, and all goes on."""
    shutil.copytree(without_libraries / "lipfuse", tmp_path / "lipfuse")
    (tmp_path / "lipfuse" / "lipfuse_ops.so").write_bytes(b"not a library")
    code = "import lipfuse.nn as n, torch; print(n.SpectralLinear(3, 2)(torch.ones(1, 3)).shape)"
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "torch.Size([1, 2])" in result.stdout
    assert result.stderr.count("RuntimeWarning") == 1
    assert "does not load" in result.stderr
    assert run("import lipfuse", tmp_path, LIPFUSE_NATIVE="require").returncode != 0


def test_without_the_module_on_numpy_arrays(without_libraries: Path, tmp_path: Path) -> None:
    """Built for another version of Python: the operators do not depend on it."""
    from lipfuse import _native

    if not _native.loaded:
        pytest.skip("no native library")
    shutil.copytree(without_libraries / "lipfuse", tmp_path / "lipfuse")
    for library in (*PACKAGE.glob("lipfuse_ops.*"), *PACKAGE.glob("liblipfuse_kernels.*")):
        shutil.copy(library, tmp_path / "lipfuse")
    code = (
        "import lipfuse.nn as n, torch\n"
        "from lipfuse import _native\n"
        "assert _native.loaded and _native.kernels is None\n"
        "print(n.SpectralConv2d(2, 3, 3)(torch.ones(1, 2, 5, 5)).shape)"
    )
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "RuntimeWarning" not in result.stderr


def test_operators_without_libraries(without_libraries: Path) -> None:
    """opcheck, gradcheck, schemas, transforms and edge cases hold for the reference as well.

    Its numbers are what the native operators are compared with, so these are the tests that are
    not comparisons.
    """
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", "not inductor"]
    # Activations and pools look at themselves without the library.
    others = ("test_sort_pairs.py", "test_pooling_operators.py")
    files = [str(f) for f in sorted((TESTS / "ops").glob("test_*.py")) if f.name not in others]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env={
            **os.environ,
            "LIPFUSE_NATIVE": "skip",
            "PYTHONPATH": str(without_libraries),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]


def test_modules_saved_with_the_libraries_load_without(
    without_libraries: Path, tmp_path: Path
) -> None:
    """A checkpoint does not depend on how the package was built."""
    torch.manual_seed(0)
    model = lnn.Sequential(lnn.SpectralLinear(6, 8), nn.Flatten(), lnn.SpectralLinear(8, 3)).eval()
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import torch\n"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "x = torch.linspace(-1, 1, 12).reshape(2, 6)\n"
        "print('losses', *model(x).flatten().tolist())\n"
    )
    found = losses_of(run(code, without_libraries))
    assert found == pytest.approx(model(x).flatten().tolist(), abs=1e-5)
