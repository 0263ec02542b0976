"""The end-to-end demonstration: ``python -m lipfuse demo``.

One subject a file: `data` → `model` → `training` → `attack` and `evaluation` → `timing`,
`export_proof` → `report` and `plots`; `settings` has the knobs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration.

    Args:
        argv: the command line's arguments; those of the process if not given.

    Returns:
        The exit status: 0 if everything ran and no certificate was broken.
    """
    # Here, so that `import lipfuse.demo` costs nothing and --help answers at once.
    from lipfuse.demo.settings import parse

    settings = parse(argv)
    from lipfuse.demo.data import DigitsNotFoundError
    from lipfuse.demo.evaluation import UnsoundCertificateError
    from lipfuse.demo.export_proof import ExportError
    from lipfuse.demo.run import run

    try:
        run(settings)
    except (DigitsNotFoundError, UnsoundCertificateError, ExportError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0
