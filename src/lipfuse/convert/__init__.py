"""From and to other packages: models by :func:`accelerate`, checkpoints by the other functions."""

from __future__ import annotations

from .._checkpoint import CheckpointError
from .acceleration import accelerate
from .deel import to_deel_state_dict
from .report import Report, Row

__all__ = ["CheckpointError", "Report", "Row", "accelerate", "to_deel_state_dict"]
