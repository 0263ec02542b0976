"""The demonstration from beginning to end."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lipfuse.certification import certify
from lipfuse.demo.data import Digits, load_digits
from lipfuse.demo.evaluation import assess, in_float64, jacobian_norms
from lipfuse.demo.export_proof import prove_export
from lipfuse.demo.model import build_constrained, build_unconstrained
from lipfuse.demo.plots import (
    PlotsUnavailableError,
    plot_digits,
    plot_robustness,
    plot_training,
)
from lipfuse.demo.report import Results, table, write_json
from lipfuse.demo.settings import Settings
from lipfuse.demo.timing import step_times
from lipfuse.demo.training import build_loss, train
from lipfuse.export import vanilla_model

__all__ = ["run"]


@contextmanager
def _reproducible(settings: Settings) -> Iterator[None]:
    """Seed and pin down everything random, and put torch back as it was afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)


def _time_steps(model: nn.Module, digits: Digits, settings: Settings) -> dict[str, float]:
    size = min(settings.batch_size, len(digits.train_labels))
    models = {
        "constrained": copy.deepcopy(model),
        "unconstrained": build_unconstrained(settings.width, settings.depth, "groupsort"),
        "unconstrained, with ReLU": build_unconstrained(settings.width, settings.depth, "relu"),
    }
    return step_times(
        models,
        digits.train_images[:size],
        digits.train_labels[:size],
        build_loss(settings),
        steps=settings.timing_steps,
    )


def run(settings: Settings) -> Results:
    """Train, certify, attack, time, export; print the table and write the files.

    Raises:
        DigitsNotFoundError: if the digits are not installed.
        UnsoundCertificateError: if the attack breaks a certificate.
        ExportError: if the exported model cannot be used without this package.
    """
    digits = load_digits()
    settings.output.mkdir(parents=True, exist_ok=True)
    with _reproducible(settings):
        model = build_constrained(settings.width, settings.depth)
        history = train(model, digits, settings)

        plain = vanilla_model(model, in_place=False)
        assert isinstance(plain, nn.Sequential)
        with torch.no_grad():
            logits = model(digits.test_images)
        certificate = certify(plain, digits.test_images.shape[1:])
        export = prove_export(
            plain, settings.output / "model.pt", digits.test_images, logits, certificate
        )
        images, labels = digits.test_images, digits.test_labels
        assessment = assess(
            plain,
            images,
            labels,
            sorted({*settings.radii, *settings.plot_radii}),
            certificate,
            steps=settings.attack_steps,
            restarts=settings.attack_restarts,
            seed=settings.seed,
        )
        # Spread over the held-out images, which are in no particular order.
        every = max(len(images) // settings.jacobian_images, 1)
        chosen = images[::every][: settings.jacobian_images]
        jacobian = jacobian_norms(in_float64(plain), chosen.double())

        results = Results(
            settings=settings,
            history=history,
            held_out=len(labels),
            clean_accuracy=(assessment.certified > 0).double().mean().item(),
            robustness=assessment.rows,
            certificate=certificate,
            lipschitz_bound=certificate.lipschitz,
            largest_jacobian_norm=jacobian.max().item(),
            step_seconds=_time_steps(model, digits, settings),
            export=export,
        )
    print("\n" + table(results) + "\n")
    written = ["model.pt", "results.json"]
    write_json(results, settings.output / "results.json")
    try:
        plot_training(history, settings.output / "training.png")
        plot_robustness(results.clean_accuracy, assessment, settings.output / "robustness.png")
        with torch.no_grad():
            predictions = plain(assessment.points).argmax(dim=1)
        plot_digits(images, labels, predictions, assessment, settings.output / "digits.png")
        written += ["training.png", "robustness.png", "digits.png"]
    except PlotsUnavailableError as error:
        print(f"No plots: {error}")
    print(f"Written to {settings.output}: {', '.join(written)}")
    return results
