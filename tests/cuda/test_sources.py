"""What the CUDA sources must not do, and what they assume of torch: found without a GPU."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch
from host_model import ROOT

SOURCES = sorted(p for p in (ROOT / "csrc" / "cuda").iterdir() if p.suffix != ".md")
ENQUEUED = {"cudaMemsetAsync", "cudaLaunchKernelEx"}
"""Calls of the runtime that put work on a stream, and only there."""
ASKED = {
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    "cudaGetErrorString",
}
"""Calls that neither wait nor enqueue."""


def code(path: Path) -> str:
    """Without comments and strings."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\])*"', '""', text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_nothing_waits_allocates_or_copies(path):
    """Scratch comes from torch's allocator, results stay on the device, nobody waits for it.

    With these calls alone there is no host synchronisation, and a stream can be captured.
    """
    text = code(path)
    called = set(re.findall(r"\b(cu(?:da)?[A-Z]\w*)\s*\(", text))
    assert called <= ENQUEUED | ASKED, called - ENQUEUED - ASKED
    for word in ("<<<", "malloc", ".item(", "is_nonzero", ".cpu(", "printf("):
        if path.name != "host_execution.h":
            assert word not in text.lower(), word


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".cpp"], ids=lambda p: p.name)
def test_every_operator_makes_its_device_the_current_one(path):
    """Each has a Scope: device guard, current stream, scratch memory from the allocator."""
    text = code(path)
    names = re.findall(r"TORCH_BOX\(&(\w+)\)", text)
    assert names
    for name in names:
        body = text[re.search(rf"\b{name}\(", text).end() :]
        assert re.search(r"const Scope scope\(|return backward\(", body.split("\n}\n")[0]), name
    launches = ("scope.stream()", "pool_tensors<", "pooled<")
    everything = sum(text.count(launch) for launch in launches)
    assert everything >= len([n for n in names if "bjorck_backward" not in n])


def test_kernels_and_launches_use_the_stream_of_the_scope():
    for path in SOURCES:
        if path.suffix in (".cu", ".cuh"):
            text = code(path)
            assert text.count("cudaLaunchConfig_t") == len(
                re.findall(
                    r"config\.stream = (?:queue|static_cast<cudaStream_t>\(s\.stream\));", text
                )
            )


def test_torch_has_the_setting_that_products_respect():
    """The operators look it up by these names, and take float32 for float32 where they fail."""
    text = (ROOT / "csrc" / "cuda" / "operators.h").read_text()
    names = re.findall(r'__asm__\(\s*"(\w+)"\)', text)
    assert len(names) == 2
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    context, allows = (getattr(library, name) for name in names)
    context.restype, allows.restype = ctypes.c_void_p, ctypes.c_bool
    allows.argtypes = [ctypes.c_void_p]
    before = torch.get_float32_matmul_precision()
    try:
        for setting, expected in (("highest", False), ("high", True)):
            torch.set_float32_matmul_precision(setting)
            assert allows(context()) is expected
    finally:
        torch.set_float32_matmul_precision(before)
