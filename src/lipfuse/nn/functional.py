"""The functional API under the name that it has in deel-torchlip, for imports from there."""

from __future__ import annotations

from ..functional import *  # noqa: F403
from ..functional import __all__ as __all__
