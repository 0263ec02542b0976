"""How fast, how small, how accurate and how safe lipfuse is; see README.md."""

import importlib.util
import sys
from pathlib import Path

# In a checkout where the package is not installed.
if importlib.util.find_spec("lipfuse") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
