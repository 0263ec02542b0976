"""What a run of the demo found out: as a table for people, as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import lipfuse
from lipfuse.certification import Certificate
from lipfuse.demo.evaluation import Robustness
from lipfuse.demo.export_proof import ExportProof
from lipfuse.demo.progress import clock
from lipfuse.demo.settings import Settings
from lipfuse.demo.training import History

__all__ = ["Results", "table", "write_json"]


@dataclass(frozen=True)
class Results:
    """One run. Accuracies in [0, 1], times in seconds."""

    settings: Settings
    history: History
    held_out: int
    clean_accuracy: float
    robustness: list[Robustness]
    certificate: Certificate
    lipschitz_bound: float
    largest_jacobian_norm: float
    step_seconds: dict[str, float]
    export: ExportProof


def _environment() -> dict[str, str]:
    return {
        "lipfuse": lipfuse.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def write_json(results: Results, file: Path) -> None:
    """Write all of it, with the versions it was made by."""
    plain = dataclasses.replace(results, certificate=results.certificate.to_dict())  # type: ignore[arg-type]
    content = {**dataclasses.asdict(plain), "environment": _environment()}
    file.write_text(json.dumps(content, indent=2, default=str) + "\n")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _times(results: Results) -> list[str]:
    reference = results.step_seconds["constrained"]
    return [
        f"  {name:<26}{1e3 * seconds:8.2f} ms"
        + ("" if name == "constrained" else f"   constrained takes {reference / seconds:.2f}x")
        for name, seconds in results.step_seconds.items()
    ]


def table(results: Results) -> str:
    """What a run ends with."""
    settings = results.settings
    shown = [row for row in results.robustness if row.radius in settings.radii]
    lines = [
        f"{results.held_out:,} held-out digits, pixels in [0, 1]",
        "",
        f"  clean accuracy{results.clean_accuracy:21.1%}",
        "",
        "  L2 radius           " + "".join(f"{row.radius:10g}" for row in shown),
        "  certified accuracy  " + "".join(f"{row.certified:10.1%}" for row in shown),
        "  accuracy under PGD  " + "".join(f"{row.attacked:10.1%}" for row in shown),
        "",
        "  certified: by every competitor's margin over how steep their difference can be",
        f"  PGD: {settings.attack_steps} steps, {settings.attack_restarts} restarts, on the margin;"
        " no certificate was broken by it",
        "",
        f"Lipschitz constant   at most {results.lipschitz_bound:.8f}, at least "
        f"{results.largest_jacobian_norm:.8f}",
        "  at most: lipfuse.certify, in float64; confirmed to "
        f"{results.export.lipschitz_difference:.0e} by the singular values that another",
        f"  process computes without lipfuse, and all {results.held_out:,} radii to "
        f"{results.export.radius_difference:.0e}",
        f"  at least: largest norm of the dense Jacobian at {settings.jacobian_images} held-out"
        " digits, in float64",
        "",
        f"Training step, batch of {settings.batch_size}, {_count(settings.threads, 'thread')}, "
        f"median of {settings.timing_steps}",
        *_times(results),
        f"  training took {clock(results.history.seconds)} for {_count(settings.epochs, 'epoch')}",
        "",
        f"Export   {results.export.file} holds modules of "
        f"{', '.join(results.export.packages_of_its_modules)} only;",
        "  loaded in a process that cannot import lipfuse, its logits differ by at most "
        f"{results.export.largest_difference:.1e}",
    ]
    return "\n".join(lines)
