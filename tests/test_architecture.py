"""Who may import whom: docs/architecture.md against the code."""

from __future__ import annotations

import graphlib
import importlib.util
from collections import defaultdict

import architecture

_ROWS = architecture.rows()
_ROW_OF = {module: i for i, (_, modules) in enumerate(_ROWS) for module in modules}


def test_every_module_stands_in_one_row() -> None:
    listed = [module for _, modules in _ROWS for module in modules]
    assert len(listed) == len(set(listed))
    existing = {architecture.unit(module) for module in architecture.modules()}
    assert set(listed) == existing | architecture.COMPILED


def test_modules_import_downwards() -> None:
    upwards = [
        f"{a} ({_ROWS[_ROW_OF[architecture.unit(a)]][0]}) imports {b}"
        for a, b in sorted(architecture.imports())
        if _ROW_OF[architecture.unit(b)] < _ROW_OF[architecture.unit(a)]
    ]
    assert upwards == []


def test_nothing_imports_in_a_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for importing, imported in architecture.edges():
        graph[importing].add(imported)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_parts_of_the_native_side_include_what_they_may() -> None:
    parts = architecture.parts()
    forbidden = {
        f"{part} includes {target}": lines
        for (part, target), lines in architecture.includes().items()
        if target not in {part, "system", *parts[part][1]}
    }
    assert forbidden == {}


def test_every_pattern_fits_a_file_and_every_file_a_pattern() -> None:
    files = [p.relative_to(architecture.NATIVE) for p in architecture.NATIVE.rglob("*.*")]
    assert {architecture.part_of(f.as_posix()) for f in files} == set(architecture.parts())
    for patterns, _ in architecture.parts().values():
        for pattern in patterns:
            assert any(f.match(pattern) for f in files), pattern


def test_what_a_part_may_include_exists() -> None:
    known = {*architecture.parts(), *architecture.EXTERNAL}
    for name, (_, allowed) in architecture.parts().items():
        assert allowed <= known, name


def test_the_picture_is_that_of_the_tables() -> None:
    """Otherwise: python docs/pictures.py architecture."""
    path = architecture.ROOT / "docs" / "site" / "diagram.py"
    spec = importlib.util.spec_from_file_location("diagram", path)
    assert spec is not None and spec.loader is not None
    diagram = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagram)
    drawn = (architecture.ROOT / "docs" / "images" / "architecture.svg").read_text()
    assert drawn == diagram.architecture_svg()
