"""The command line: ``python -m lipfuse <command>``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

import lipfuse

__all__ = ["main"]

# The module whose `main(argv)` runs a command, what it does, and when there may be no such module.
_COMMANDS = {
    "info": ("lipfuse.info", "versions, and how the native library was built and runs", "at all"),
    "demo": ("lipfuse.demo", "train, certify, attack and export a classifier of digits", "at all"),
    "bench": (
        "benchmarks.__main__",
        "speed on this machine, against the peers installed",
        "outside the root of a source checkout",
    ),
    "certify": ("lipfuse.certification.command", "the certificate of a saved model", "at all"),
}


def _find(module_name: str) -> Callable[[Sequence[str]], int] | None:
    """The `main` of a command's module; None where there is no such module, or none in it."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only the command itself, or its package, may be absent; what it imports may not.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        return None
    return getattr(module, "main", None)


def _usage() -> str:
    lines = ["usage: python -m lipfuse [--version] COMMAND [--help] ...", "", "commands:"]
    lines += [f"  {name:<9}{summary}" for name, (_, summary, _) in _COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its name and its arguments; those of the process if not given.

    Returns:
        The exit status: that of the command; 2 if there is none of that name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(lipfuse.__version__)
        return 0
    if name not in _COMMANDS:
        print(f"lipfuse: there is no command {name!r}\n{_usage()}", file=sys.stderr)
        return 2
    module_name, _, absent = _COMMANDS[name]
    command = _find(module_name)
    if command is None:
        print(f"lipfuse: {name} is not available {absent}", file=sys.stderr)
        return 2
    try:
        return command(rest)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
