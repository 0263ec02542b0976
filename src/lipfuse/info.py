"""What is installed, and what of it is in use: ``python -m lipfuse info``."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

import torch

import lipfuse

__all__ = ["collect", "main"]

_UNKNOWN = "unknown"


def _native() -> dict[str, str]:
    """The native side. Never raises: this is what people run when something is broken."""
    try:
        from lipfuse import _native
    except Exception as error:
        return {"native library": f"not loaded: {type(error).__name__}: {error}"}
    if not _native.loaded:
        return {"native library": f"not loaded: {_native.reason or 'for no known reason'}"}
    rows = {"native library": "loaded"}
    kernels: Any = getattr(_native, "kernels", None)
    if kernels is None:
        rows["kernels module"] = "not loaded: it was not built for this version of Python"
        return rows
    try:
        build = dict(kernels.build_info())
        features = dict(kernels.cpu_features())
    except Exception as error:
        rows["kernels module"] = f"broken: {type(error).__name__}: {error}"
        return rows
    available = ", ".join(features.get("available", ())) or _UNKNOWN
    rows["compiler"] = build.get("compiler") or _UNKNOWN
    rows["compiler flags"] = build.get("flags") or "none"
    rows["built for torch"] = f"{build.get('torch_target') or _UNKNOWN} and later"
    rows["autograd nodes"] = _nodes()
    rows["instruction set"] = f"{features.get('selected') or _UNKNOWN} (available: {available})"
    rows["CUDA built for"] = build.get("cuda_architectures") or "nothing: CPU only"
    if build.get("version", lipfuse.__version__) != lipfuse.__version__:
        rows["warning"] = (
            f"the native library was built from lipfuse {build['version']}: build it again"
        )
    return rows


def _nodes() -> str:
    """Where autograd's nodes for eager code come from."""
    from lipfuse import _native

    nodes: Any = getattr(_native, "nodes", None)
    if nodes is None:
        return f"Python ({getattr(_native, 'no_nodes', _UNKNOWN)})"
    return f"native, built for torch {nodes.torch_version}"


def _devices() -> str:
    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def collect() -> dict[str, str]:
    """Everything that a bug report should say, as pairs of a name and a value."""
    return {
        "lipfuse": lipfuse.__version__,
        "torch": torch.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        **_native(),
        "CUDA devices": _devices(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count() or _UNKNOWN} processors",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print it, as lines or as JSON.

    Args:
        argv: the command line's arguments; those of the process if not given.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lipfuse info",
        description="Versions, how the native library was built, and what of it is in use.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    rows = collect()
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        width = max(map(len, rows)) + 2
        for name, value in rows.items():
            print(f"{name:<{width}}{value}")
    return 0
