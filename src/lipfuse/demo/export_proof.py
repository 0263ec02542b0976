"""Proof that the exported model needs nothing but torch: load and run it where we are not.

A second Python process refuses every import of this package, loads the file, runs it on images it
reads from disk, and reports how far its logits are from those of the model that was trained.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["ExportError", "ExportProof", "prove_export"]

TOLERANCE = 1e-5

_SCRIPT = """
import json
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lipfuse":
            raise ImportError(name + " must not be needed here")
        return None


sys.meta_path.insert(0, Refuse())

import torch

model_file, sample_file = sys.argv[1:]
model = torch.load(model_file, weights_only=False)
sample = torch.load(sample_file, weights_only=True)
with torch.no_grad():
    difference = (model(sample["images"]) - sample["logits"]).abs().max().item()
try:
    import lipfuse
except ImportError:
    pass
else:
    raise SystemExit("lipfuse could be imported")
loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "lipfuse")
assert not loaded, loaded
modules = sorted({type(module).__module__.partition(".")[0] for module in model.modules()})
print(json.dumps({"difference": difference, "modules": modules}))
"""


class ExportError(RuntimeError):
    """The exported model could not be used without this package, or computes something else."""


@dataclass(frozen=True)
class ExportProof:
    """What the second process saw."""

    file: str
    largest_difference: float
    packages_of_its_modules: list[str]


def prove_export(plain: nn.Module, file: Path, images: Tensor, logits: Tensor) -> ExportProof:
    """Save the exported model and check the file in a process that cannot import this package.

    Args:
        plain: the exported model.
        file: where it is saved.
        images: images to compare on.
        logits: what the original model says to them.

    Raises:
        ExportError: if loading fails, or a logit differs by more than 1e-5.
    """
    torch.save(plain, file)
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.pt"
        torch.save({"images": images, "logits": logits}, sample)
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(file.resolve()), str(sample)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode != 0:
        raise ExportError(f"{file} could not be loaded without lipfuse:\n{run.stderr}")
    seen = json.loads(run.stdout)
    if not seen["difference"] <= TOLERANCE:
        raise ExportError(
            f"the logits of {file} differ by {seen['difference']:.3g}, more than {TOLERANCE:g}"
        )
    return ExportProof(file.name, seen["difference"], seen["modules"])
