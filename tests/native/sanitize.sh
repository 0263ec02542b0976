#!/usr/bin/env bash
# The native code under sanitizers: bash tests/native/sanitize.sh [SECONDS of fuzzing]
#
#   AddressSanitizer, UndefinedBehaviorSanitizer   the tests of kernels and operators, and a fuzz run,
#                                                  on libraries built with them
#   ThreadSanitizer                                team.cpp: teams of threads on the real algorithms
#
# PYTHON has to be one with torch and the requirements of the build and of the tests; CXX a GCC or
# Clang. Everything is built under build/, apart from the package in use. Any finding ends the run.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=$(command -v "${PYTHON:-python3}")
CXX=${CXX:-c++}
PATH=$(dirname "$PYTHON"):$PATH
OUT=$PWD/build/sanitized

echo "==== ThreadSanitizer"
mkdir -p "$OUT"
"$CXX" -std=c++17 -O2 -g -pthread -fsanitize=thread -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wno-psabi \
    -Icsrc tests/native/team.cpp csrc/cpu/dispatch.cpp csrc/cpu/kernels_generic.cpp -o "$OUT/team"
TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1" "$OUT/team"

echo "==== AddressSanitizer, UndefinedBehaviorSanitizer: build"
cmake=("-DLIPFUSE_SANITIZE=address,undefined" -DLIPFUSE_CUDA=OFF "-DPython_EXECUTABLE=$PYTHON"
    "-DLIPFUSE_TORCH_DIR=$("$PYTHON" -c 'import os, torch; print(os.path.dirname(torch.__file__))')"
    "-Dpybind11_DIR=$("$PYTHON" -m pybind11 --cmakedir)" "-DCMAKE_CXX_FLAGS_RELEASE=-O2"
    "-DCMAKE_INSTALL_PREFIX=$OUT/package/lipfuse" "-DCMAKE_CXX_COMPILER=$(command -v "$CXX")")
cmake -S . -B "$OUT/cmake" -GNinja "${cmake[@]}" >/dev/null
cmake --build "$OUT/cmake" --target all _nodes
rm -rf "$OUT/package"
mkdir -p "$OUT/package"
cp -r src/lipfuse "$OUT/package/"
rm -f "$OUT/package/lipfuse"/*.so
cmake --install "$OUT/cmake" >/dev/null

# Python itself is not instrumented: the runtime has to be there before it, and what it never frees
# is no finding.
runtime=$("$CXX" -print-file-name=libasan.so)
[ "$runtime" != libasan.so ] || runtime=$("$CXX" -print-file-name=libclang_rt.asan-$(uname -m).so)
sanitized() {
    env LD_PRELOAD="$runtime $("$CXX" -print-file-name=libstdc++.so.6)" PYTHONMALLOC=malloc \
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0 \
        UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 LIPFUSE_NATIVE=require \
        PYTHONPATH="$OUT/package" "$PYTHON" "$@"
}

echo "==== the library in use is the one with sanitizers"
sanitized - <<'PY'
import lipfuse
from lipfuse import _kernels, _native

assert _native.loaded, _native.reason
print(lipfuse.__file__, open(f"/proc/self/maps").read().count("libasan") > 0)
PY

echo "==== tests"
sanitized -m pytest -q -p no:cacheprovider -p no:xdist -o timeout=0 tests/native tests/ops

echo "==== fuzz"
sanitized -m benchmarks.fuzz --seconds "${1:-60}"
