"""Builds the native libraries with CMake and Ninja; everything else stands in pyproject.toml.

Environment:
    LIPFUSE_NATIVE   "auto" (default: without a working compiler the package is installed without
                     its native library and runs on plain torch), "require", or "skip"
    LIPFUSE_CUDA     "0" leaves the CUDA kernels out even where nvcc is found
    LIPFUSE_SANITIZE sanitizers to build with, e.g. "address,undefined"
    CMAKE_ARGS       further arguments for CMake
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "src/lipfuse/__init__.py").read_text())[1]
# Building needs torch's headers. Inside an isolated build the environment's own torch is hidden
# from import but not from the file system; a second one, gigabytes large, is fetched only where
# there is none.
PINNED_TORCH = "torch==2.13.0"


def find_torch() -> Path | None:
    """The folder of the torch package to build against."""
    own = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    places = [Path(p) for p in (*sys.path, *own)]
    for place in places:
        if (place / "torch" / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return place / "torch"
    return None


class CMakeBuild(build_ext):
    """Configures and builds all native targets once and installs them into the package."""

    def run(self) -> None:
        mode = os.environ.get("LIPFUSE_NATIVE", "auto")
        if mode not in ("auto", "require", "skip"):
            sys.exit(f"LIPFUSE_NATIVE must be 'auto', 'require' or 'skip', got {mode!r}")
        if mode == "skip":
            print("lipfuse: LIPFUSE_NATIVE=skip, installing without the native library")
            return
        try:
            self.build_native()
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            if mode == "require":
                raise
            print(
                f"lipfuse: no native library could be built ({error}); "
                "installing without it, on plain torch",
                file=sys.stderr,
            )

    def build_native(self) -> None:
        torch_dir = find_torch()
        if torch_dir is None:
            raise RuntimeError("torch >= 2.11 with its headers was not found")
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake was not found")
        package = Path(self.get_ext_fullpath("lipfuse._kernels")).parent.resolve()
        package.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        # The cache keeps the path of a cmake, ninja or torch of an isolated build that is gone.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        arguments = [
            f"-DLIPFUSE_TORCH_DIR={torch_dir}",
            f"-DLIPFUSE_VERSION={VERSION}",
            f"-DLIPFUSE_CUDA={'OFF' if os.environ.get('LIPFUSE_CUDA') == '0' else 'ON'}",
            f"-DLIPFUSE_SANITIZE={os.environ.get('LIPFUSE_SANITIZE', '')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={package}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        if shutil.which("ninja"):
            arguments.append("-GNinja")
        try:
            import pybind11

            arguments.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        except ImportError:
            print("lipfuse: pybind11 was not found, building without lipfuse._kernels")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), *arguments], check=True)
        # One that could not be built again would otherwise stay, of other sources.
        for folder in (build, package):
            for old in folder.glob("_nodes.*.so"):
                old.unlink()
        command = [cmake, "--build", str(build), "--parallel", jobs]
        if subprocess.run([*command, "--target", "all", "_nodes"]).returncode:
            subprocess.run(command, check=True)
            print("lipfuse: built without lipfuse._nodes, which makes small layers quicker")
        subprocess.run([cmake, "--install", str(build)], check=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.get_ext_fullpath("lipfuse._kernels")).parent
        return [str(p) for p in package.glob("*") if p.suffix in (".so", ".dylib", ".pyd", ".dll")]


setup(
    ext_modules=[Extension("lipfuse._kernels", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=[] if find_torch() else [PINNED_TORCH],
)
