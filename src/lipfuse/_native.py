"""Loads the native libraries, once, and says what came of it."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

kernels: ModuleType | None = None
"""The pybind11 module ``lipfuse._kernels``, or None where it was not built."""
nodes: ModuleType | None = None
"""The module ``lipfuse._nodes``, or None where there is none for this version of torch."""
no_nodes = "no native library"
"""Why there is none."""
loaded = False
"""Whether the native operators are registered."""
reason = ""
"""Why they are not; empty if they are."""


def _library() -> Path | None:
    for suffix in (".so", ".dylib", ".dll"):
        path = Path(__file__).with_name("lipfuse_ops" + suffix)
        if path.is_file():
            return path
    return None


def _load_nodes() -> None:
    global nodes, no_nodes
    if os.environ.get("LIPFUSE_NODES") == "0":
        no_nodes = "LIPFUSE_NODES=0"
    elif importlib.util.find_spec("lipfuse._nodes") is None:
        no_nodes = "lipfuse._nodes was not built"
    else:
        try:
            from lipfuse import _nodes
        except ImportError:  # a symbol is missing
            no_nodes = "lipfuse._nodes was built for another torch"
            return
        # What stands behind the headers of torch changes from one version to the next.
        if same_torch(_nodes.torch_version, torch.__version__):
            nodes, no_nodes = _nodes, ""
        else:
            no_nodes = f"lipfuse._nodes was built for torch {_nodes.torch_version}"


def same_torch(a: str, b: str) -> bool:
    """Whether two builds of torch are of the same source: of a release, for whatever devices."""
    released = r"(\d+\.\d+\.\d+)(\+(cpu|cu\d+|rocm[\d.]+|xpu))?"
    first, second = re.fullmatch(released, a), re.fullmatch(released, b)
    return first[1] == second[1] if first and second else a == b


def _load() -> None:
    global kernels, loaded, reason
    wanted = os.environ.get("LIPFUSE_NATIVE", "auto")
    if wanted == "skip":
        reason = "LIPFUSE_NATIVE=skip"
    elif (path := _library()) is None:
        reason = "none was built (it takes a C++17 compiler, cmake and torch >= 2.11)"
    else:
        try:
            torch.ops.load_library(str(path))
            loaded = True
        except (OSError, RuntimeError) as error:
            reason = f"the native library does not load: {error}"
    if loaded:
        try:
            from lipfuse import _kernels

            kernels = _kernels
        except ImportError:
            # Built for another version of Python: the operators do not depend on it.
            kernels = None
        _load_nodes()
    elif wanted != "skip":
        warnings.warn(
            f"lipfuse runs on plain torch, much slower than on its own operators: {reason}."
            " Reinstall with LIPFUSE_NATIVE=require to see why the build fails, or set"
            " LIPFUSE_NATIVE=skip to silence this warning.",
            RuntimeWarning,
            stacklevel=2,
        )
    if wanted == "require" and not loaded:
        sys.tracebacklimit = 0
        raise ImportError(f"LIPFUSE_NATIVE=require, but {reason}")


_load()
