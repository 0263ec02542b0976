#!/usr/bin/env bash
# On a machine with a GPU: builds, tests on CUDA, compute-sanitizer over every kernel, benchmarks.
# Nothing is downloaded: it takes the Python, torch (2.11 or later), nvcc, cmake, ninja, pybind11 and
# pytest that are there, and the peers to compare with from wheels that came along.
#
#   benchmarks/gpu.sh [OUTPUT_FOLDER]
#
# PYTHON=python3.12 names the Python, BUDGET=540 the seconds for all, WHEELS the folder of the peers'
# wheels (default: wheels/ in the root of the repository). Leaves report.json, table.txt and the
# logs. Without a GPU it goes as far as it can, runs the same tests and benchmarks on the processor
# to find mistakes in them, says what did not run, and exits with 3.
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
(out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
lines = [f"{name:22} {result:34} {t:>4} s" for name, result, t in steps]
for target in report.get("benchmark", {}).get("targets", []):
    bound = target["at_least"] or target["at_most"]
    words = "at least" if target["at_least"] else "at most"
    ratio = "open" if target["ratio"] is None else f"{target['ratio']:.2f}"
    verdict = {True: "met", False: "MISSED", None: "open"}[target["met"]]
    claim = f"{target['case']}: {target['text']}"
    lines.append(f"{claim[:78]:78} {ratio:>7}  {words} {bound:g}  {verdict}")
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
grep -q 'Compiling entry function' "$out/build.log" &&
    step spills 30 "$python" benchmarks/check_spills.py "$out/build.log"
export PYTHONPATH=$package:$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}
export LIPFUSE_NATIVE=require
step loads 60 "$python" -c 'import lipfuse, torch
torch.ops.lipfuse.frobenius_normalize(torch.ones(2, 3), 1e-12, 1.0)
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("lipfuse::")]
missing = sorted(n for n in names if has(n, "CPU") and not has(n, "CUDA"))
print("on the processor only:", *missing)
# Of evaluation alone, and MaxMin, which torch expresses there.
assert all("symbol" in n or "max_min" in n for n in missing), missing
print(torch.__version__, sum(has(n, "CUDA") for n in names), "operators with CUDA kernels")' || finish

# ---- peers ---------------------------------------------------------------------------------------
wheels=${WHEELS:-$root/wheels}
if compgen -G "$wheels/*.whl" >/dev/null; then
    step peers 60 "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade \
        --target "$out/peers" "$wheels"/*.whl
    export PYTHONPATH=$PYTHONPATH:$out/peers
fi

# ---- the device ----------------------------------------------------------------------------------
tests=("$python" -m pytest -q -p no:cacheprovider tests/cuda/test_device.py)
kernels=("$python" tests/cuda/gpu_kernels.py)
bench=("$python" -m benchmarks.cuda)
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    for name in tests memcheck racecheck benchmark; do skip "$name" "no CUDA device"; done
    step tests-on-processor 150 env LIPFUSE_TEST_DEVICE=cpu "${tests[@]}"
    step kernels-on-processor 60 "${kernels[@]}" --device cpu
    step benchmark-on-processor 150 "${bench[@]}" --device cpu --quick
    finish
fi
step tests 150 "${tests[@]}"
if command -v compute-sanitizer >/dev/null; then
    # The caching allocator would hide what lies outside of a buffer inside of its blocks.
    step memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool memcheck --error-exitcode 9 "${kernels[@]}"
    step racecheck 90 compute-sanitizer --tool racecheck --error-exitcode 9 "${kernels[@]}"
else
    skip memcheck "compute-sanitizer was not found"
    skip racecheck "compute-sanitizer was not found"
fi
step benchmark 240 "${bench[@]}" --json "$out/benchmark.json"
finish
