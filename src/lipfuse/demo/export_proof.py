"""Proof that the exported model needs nothing but torch: load, run and bound it where we are not.

A second Python process refuses every import of this package, loads the file, runs it on images it
reads from disk, and reports how far its logits are from those of the model that was trained. It
also computes the network's Lipschitz bound and the radii of its decisions anew, in float64 and
from singular values, for the certificate to be held against.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipfuse.certification import Certificate

__all__ = ["ExportError", "ExportProof", "prove_export"]

TOLERANCE = 1e-5
# How far bound and radii may be from what the other process computes.
CERTAINTY = 1e-8

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

# ---- the bound and the radii, layer by layer, in float64

model = model.double()


# What a module multiplies by, if it otherwise only puts neighbours into order.
def scale_of_a_sort(module, size):
    x = torch.randn(1000, size, dtype=torch.float64)
    y = module(x)
    k = y.abs().max() / x.abs().max()
    pairs = x.reshape(1000, -1, 2).sort(dim=2).values.reshape(1000, size)
    if not torch.allclose(y, k * pairs, rtol=1e-12, atol=0):
        raise SystemExit(f"{module} does not sort pairs")
    return float(k)


before, bound, size = 1.0, 1.0, None
with torch.no_grad():
    for module in model:
        if type(module) is torch.nn.Linear:
            before, last, size = bound, module.weight, module.out_features
            bound *= float(torch.linalg.svdvals(last)[0])
        elif type(module) is not torch.nn.Flatten:
            bound *= scale_of_a_sort(module, size)
    assert module.weight is last, "the last layer is not linear"
    logits = model(sample["images"].double())
    radii = []
    for z in logits:
        y = int(z.argmax())
        gaps = [(z[y] - z[j], before * (last[y] - last[j]).norm()) for j in range(len(z)) if j != y]
        radii.append(min(float(gap / slope) for gap, slope in gaps))
print(json.dumps({"difference": difference, "modules": modules, "bound": bound, "radii": radii}))
"""


class ExportError(RuntimeError):
    """The exported model could not be used without this package, or computes something else."""


@dataclass(frozen=True)
class ExportProof:
    """What the second process saw."""

    file: str
    largest_difference: float
    packages_of_its_modules: list[str]
    lipschitz_difference: float
    radius_difference: float


def prove_export(
    plain: nn.Module, file: Path, images: Tensor, logits: Tensor, certificate: Certificate
) -> ExportProof:
    """Save the exported model and check the file in a process that cannot import this package.

    Args:
        plain: the exported model.
        file: where it is saved.
        images: images to compare on.
        logits: what the original model says to them.
        certificate: that of the exported model, a chain of linear layers and sorts of pairs.

    Raises:
        ExportError: if loading fails, a logit differs by more than 1e-5, or the certificate is not
            what singular values say.
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
    exact = copy.deepcopy(plain).double()
    with torch.no_grad():
        radii = certificate.radius(exact(images.double()))
    # The certificate has a margin for rounding: it may only be the more careful of the two.
    excess = certificate.lipschitz / seen["bound"] - 1.0
    short = float((torch.tensor(seen["radii"], dtype=torch.float64) - radii).abs().max())
    if not (abs(excess) <= CERTAINTY and short <= CERTAINTY):
        raise ExportError(
            f"the certificate says {certificate.lipschitz:.12g} for {file}, singular values "
            f"{seen['bound']:.12g}; radii differ by up to {short:.3g}"
        )
    return ExportProof(file.name, seen["difference"], seen["modules"], excess, short)
