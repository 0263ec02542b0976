"""The rules of docs/architecture.md, and who imports whom in fact."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lipfuse"
NATIVE = ROOT / "csrc"
PAGE = ROOT / "docs" / "architecture.md"
COMPILED = {path.stem for path in PACKAGE.glob("*.pyi")}
"""The modules that are not written in Python."""


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading of the page."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ---- Python --------------------------------------------------------------------------------------


def rows() -> list[tuple[str, list[str]]]:
    """The rows of the Python side from top to bottom, with their modules."""
    return [(row[0], _names(row[1])) for row in table("The Python side")]


def modules() -> dict[str, Path]:
    """Every module, ``nn.linear``, and its file; packages are ``nn``, the whole is ``__init__``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join(parts)] = path
    return found


def imports() -> set[tuple[str, str]]:
    """Pairs of modules of which the first imports the second, also within functions."""
    known = modules()
    pairs = set()
    for name, path in known.items():
        package = path.parent.relative_to(PACKAGE.parent).parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) + 1 - node.level] if node.level else ()
                stem = ".".join((*base, *filter(None, [node.module])))
                targets = [f"{stem}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in targets:
                if target.split(".")[0] == "lipfuse":
                    pairs.add((name, _module(target, known)))
    return {(a, b) for a, b in pairs if a != b}


def _module(target: str, known: dict[str, Path]) -> str:
    """The module that ``lipfuse.nn.linear.SpectralLinear`` lives in."""
    parts = target.split(".")[1:]
    if parts and parts[0] in COMPILED:
        return parts[0]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


def unit(module: str) -> str:
    """What the table lists: the module or package directly in ``lipfuse``."""
    return module.split(".")[0]


def edges() -> set[tuple[str, str]]:
    """Imports among what the table lists."""
    return {(unit(a), unit(b)) for a, b in imports() if unit(a) != unit(b)}


# ---- C++ -----------------------------------------------------------------------------------------

EXTERNAL = {
    "torch": r"(torch|c10|ATen)/",
    "pybind11": r"(pybind11/|Python\.h)",
    "CUDA": r"(cuda|cub/|thrust/|cooperative_groups|nv/|mma\.h)",
}


def parts() -> dict[str, tuple[list[str], set[str]]]:
    """The parts of the native side: patterns of files, and what they may include."""
    return {
        name: (_names(files), set(filter(None, re.split(r",\s*", allowed))))
        for name, files, allowed, *_ in table("The native side")
    }


def part_of(file: str) -> str:
    """The part whose pattern fits a file in csrc best."""
    fitting = [
        (("*" not in pattern, not pattern.endswith("/*")), name)
        for name, (patterns, _) in parts().items()
        for pattern in patterns
        if PurePosixPath(file).match(pattern)
    ]
    if not fitting:
        raise LookupError(f"csrc/{file} belongs to no part of docs/architecture.md")
    return max(fitting)[1]


def includes() -> dict[tuple[str, str], list[str]]:
    """What each part includes, other parts and libraries, with the lines that do."""
    found = defaultdict(list)
    for path in sorted(p for p in NATIVE.rglob("*") if p.is_file()):
        file = path.relative_to(NATIVE).as_posix()
        for quote, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M):
            beside, above = (path.parent / name).resolve(), (NATIVE / name).resolve()
            inside = next((p for p in (beside, above) if quote == '"' and p.is_file()), None)
            if inside is not None:
                target = part_of(inside.relative_to(NATIVE.resolve()).as_posix())
            else:
                target = next((k for k, p in EXTERNAL.items() if re.match(p, name)), "system")
            found[part_of(file), target].append(f"csrc/{file}: {name}")
    return found
