#!/usr/bin/env bash
# On a machine with a GPU: builds, tests on CUDA, compute-sanitizer over every kernel, benchmark.
# Nothing is downloaded: it takes the Python, torch (2.11 or later), nvcc, cmake, ninja and pybind11
# that are there.
#
#   benchmarks/gpu.sh [OUTPUT_FOLDER]
#
# PYTHON=python3.12 names the Python, BUDGET=540 the seconds for all. Leaves report.json, table.txt
# and the logs. Without a GPU it goes as far as it can, says what did not run, and exits with 3.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-${OUT:-$root/build/gpu}}
python=${PYTHON:-python3}
budget=${BUDGET:-540}
mkdir -p "$out"
out=$(cd "$out" && pwd)
steps=$out/steps.tsv
: >"$steps"
failed=0
skipped=0

left() { echo $((budget - SECONDS)); }

# step NAME SECONDS COMMAND...: runs it with a time limit, notes how it went.
step() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    (($(left) < limit)) && limit=$(left)
    if ((limit < 5)); then
        printf '%s\tskipped: no time left\t0\n' "$name" >>"$steps"
        echo "== $name: skipped, no time left"
        skipped=1
        return 1
    fi
    echo "== $name"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    if ((code == 0)); then
        printf '%s\tok\t%d\n' "$name" $((SECONDS - begin)) >>"$steps"
        tail -n 3 "$out/$name.log"
    else
        printf '%s\tfailed (%d)\t%d\n' "$name" $code $((SECONDS - begin)) >>"$steps"
        failed=1
        tail -n 30 "$out/$name.log"
    fi
    return $code
}

skip() {
    printf '%s\tskipped: %s\t0\n' "$1" "$2" >>"$steps"
    echo "== $1: skipped, $2"
    skipped=1
}

finish() {
    "$python" - "$out" <<'END'
import json, sys
from pathlib import Path

out = Path(sys.argv[1])
steps = [line.split("\t") for line in (out / "steps.tsv").read_text().splitlines()]
report = {"steps": {name: {"result": result, "seconds": int(t)} for name, result, t in steps}}
measured = out / "benchmark.json"
if measured.is_file():
    report["benchmark"] = json.loads(measured.read_text())
(out / "report.json").write_text(json.dumps(report, indent=1))
lines = [f"{name:22} {result:28} {t:>4} s" for name, result, t in steps]
for row in report.get("benchmark", {}).get("rows", []):
    ratio = f"{row['torch_ms'] / row['lipfuse_ms']:.1f}x" if row["torch_ms"] else "-"
    lines.append(f"{row['name']:44} {row['lipfuse_ms']:9.4f} ms {ratio:>8}")
text = "\n".join(lines)
(out / "table.txt").write_text(text + "\n")
print(text)
END
    echo "report: $out/report.json"
    if ((failed)); then exit 1; fi
    if ((skipped)); then exit 3; fi
    exit 0
}

cd "$root" || exit 1
for tool in cmake ninja nvcc g++; do
    command -v "$tool" >/dev/null || { skip build "$tool was not found"; finish; }
done

# ---- build, in a tree of its own -----------------------------------------------------------------
build=$out/tree
torch_dir=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent)') || exit 1
pybind=$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())' 2>/dev/null || true)
# Native code for the GPU at hand is enough here, and quicker to build.
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
package=$out/package
mkdir -p "$package"
cp -r src/lipfuse "$package/"
rm -f "$package"/lipfuse/*.so
step configure 60 cmake -S "$root" -B "$build" -GNinja -DLIPFUSE_TORCH_DIR="$torch_dir" \
    -DPython_EXECUTABLE="$(command -v "$python")" ${pybind:+-Dpybind11_DIR="$pybind"} \
    -DCMAKE_INSTALL_PREFIX="$package/lipfuse" ${arch:+-DCMAKE_CUDA_ARCHITECTURES="$arch"} || finish
step build "${BUILD_LIMIT:-240}" cmake --build "$build" --verbose --parallel "$(nproc)" || finish
step install 30 cmake --install "$build" || finish
# An incremental build reports nothing for what it did not compile.
grep -q 'Compiling entry function' "$out/build.log" && step spills 30 "$python" benchmarks/check_spills.py "$out/build.log"
export PYTHONPATH=$package:$root/tests${PYTHONPATH:+:$PYTHONPATH}
export LIPFUSE_NATIVE=require
step loads 60 "$python" -c 'import lipfuse, torch; torch.ops.lipfuse.frobenius_normalize(torch.ones(2, 3), 1e-12, 1.0)
print(torch.__version__, [n for n in ("bjorck", "orthogonalize", "power_iteration")
      if torch._C._dispatch_has_kernel_for_dispatch_key("lipfuse::" + n, "CUDA")])' || finish

# ---- the device ----------------------------------------------------------------------------------
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    for name in tests memcheck racecheck benchmark; do skip "$name" "no CUDA device"; done
    finish
fi
step tests 150 "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_device.py
# The caching allocator would hide what lies outside of a buffer inside of its blocks.
sanitize=("$python" tests/cuda/gpu_kernels.py --once)
if command -v compute-sanitizer >/dev/null; then
    step memcheck 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool memcheck --error-exitcode 9 "${sanitize[@]}"
    step racecheck 90 compute-sanitizer --tool racecheck --error-exitcode 9 "${sanitize[@]}"
else
    skip memcheck "compute-sanitizer was not found"
    skip racecheck "compute-sanitizer was not found"
fi
step benchmark 100 "$python" tests/cuda/gpu_kernels.py --json "$out/benchmark.json"
finish
