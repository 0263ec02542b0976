"""``python -m lipfuse certify``: the certificate of a saved model."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .certifying import certify

__all__ = ["UnusableFileError", "load_model", "main"]


class UnusableFileError(RuntimeError):
    """The file holds no model, or none that may be loaded."""


def _harmless() -> list[Any]:
    """The modules of torch.nn: all that a file may name which is loaded without trust."""
    found = [kind for kind in vars(nn).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, nn.Module)]


def load_model(file: Path, trusted: bool = False) -> nn.Module:
    """Load a model that was written by ``torch.save(model, file)``.

    A file that holds a whole model is a program: loading it may run anything. Without trust, only
    modules of ``torch.nn`` and tensors are put together, by torch's restricted loader.

    Args:
        file: the file.
        trusted: load whatever is in it.

    Raises:
        UnusableFileError: if it cannot be read, needs trust, or holds something else.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            model = torch.load(file, map_location="cpu", weights_only=not trusted)
    except OSError as error:
        raise UnusableFileError(f"{file} cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        if trusted:
            raise UnusableFileError(f"{file} holds no model: {error}") from error
        raise UnusableFileError(_why_it_needs_trust(file)) from error
    except Exception as error:  # whatever the program in it raises
        raise UnusableFileError(f"{file} cannot be loaded: {error}") from error
    if isinstance(model, dict):
        raise UnusableFileError(
            f"{file} holds a dictionary, weights perhaps: save the model itself, "
            "torch.save(lipfuse.vanilla_model(model, in_place=False), file)"
        )
    if not isinstance(model, nn.Module):
        raise UnusableFileError(f"{file} holds a {type(model).__name__}, not a model")
    return model


def _why_it_needs_trust(file: Path) -> str:
    try:
        with torch.serialization.safe_globals(_harmless()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:
        names = []  # not even a file of torch's
    listed = ", ".join(sorted(names)) or "something that torch's restricted loader does not know"
    return (
        f"{file} holds more than modules of torch.nn and tensors: {listed}. Loading it could run "
        "any code; if you have written it yourself, or trust who has, add --trust"
    )


def _shape(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"\d+([,x]\d+)*", text)
    shape = tuple(map(int, re.split("[,x]", text))) if found else ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape like 1,28,28")
    return shape


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lipfuse certify",
        description="Bound the Lipschitz constant of a model saved by torch.save(model, file), "
        "layer by layer and in total, in the L2 norm and in float64.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the file")
    parser.add_argument(
        "--input-shape",
        type=_shape,
        required=True,
        metavar="C,H,W",
        help="of one sample, without the batch dimension",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--eval", action="store_true", help="switch the model to evaluation mode first"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a file that could run any code while it is loaded, as one with layers in it "
        "that are not from torch.nn; only for files from those you trust",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the command line's arguments; those of the process if not given.

    Returns:
        0; 1 if there is no model in the file, or no certificate for it.
    """
    arguments = _parser().parse_args(argv)
    try:
        model = load_model(arguments.model, arguments.trust)
        if arguments.eval:
            model.eval()
        certificate = certify(model, arguments.input_shape)
    except (UnusableFileError, TypeError, ValueError) as error:
        print(f"certify: {error}", file=sys.stderr)
        return 1
    print(certificate.to_json() if arguments.json else certificate.table())
    return 0
