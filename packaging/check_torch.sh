#!/usr/bin/env bash
# Whether a wheel works with another torch: bash packaging/check_torch.sh [VERSION]
#
# In an environment of its own with that torch the wheel is installed as it is, whichever torch it
# was built with; it is imported, and the core of the tests runs on it, away from the checkout. What
# pip installs with torch for GPUs takes some gigabytes. Without a version: with the torch of PYTHON.
#
#   WHEEL         by default the one in dist/
#   PYTHON        what makes the environment: the Python that the wheel is for
#   ENVIRONMENT   a virtual environment to use instead; torch in it, if of that version, is kept
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=${1:-}
WHEEL=$(realpath "${WHEEL:-$(echo dist/*.whl)}")
PYTHON=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')
CORE=(tests/native tests/ops tests/nn tests/functional tests/certification tests/distributed
      tests/test_compile.py tests/test_func.py
      tests/test_fusion.py tests/test_leaks.py tests/test_mixed_precision.py
      tests/test_normalize_once.py tests/test_optim.py tests/test_parametrizations.py)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "$VERSION" ]; then
    environment=${ENVIRONMENT:-$work/environment}
    [ -x "$environment/bin/python" ] || "$PYTHON" -m venv "$environment"
    PYTHON=$environment/bin/python
    has=$("$PYTHON" -c 'import torch; print(torch.__version__.split("+")[0])' 2>/dev/null || true)
    [ "$has" = "$VERSION" ] || "$PYTHON" -m pip install -q "torch==$VERSION"
    "$PYTHON" -m pip install -q numpy 'pytest>=8' 'hypothesis>=6.100' 'pytest-timeout>=2.3'
fi
"$PYTHON" -m pip install -q --no-deps --target "$work/site" "$WHEEL"
export PYTHONPATH=$work/site OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

cp -r tests pyproject.toml "$work/"
cd "$work"
"$PYTHON" - <<'CHECK'
import torch
import lipfuse
from lipfuse import _native

assert _native.loaded, _native.reason
print("torch", torch.__version__, "lipfuse", lipfuse.__file__)
CHECK
"$PYTHON" -m lipfuse info
"$PYTHON" -m pytest -q -p no:cacheprovider "${CORE[@]}"
