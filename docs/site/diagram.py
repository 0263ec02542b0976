"""The picture of docs/architecture.md, written out as SVG from that page's tables."""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

import architecture

_TOP, _ROW, _GAP = 44, 66, 14
_STYLE = (
    "<style>text{font-family:system-ui,Helvetica,Arial,sans-serif;fill:#222}"
    ".t{font-size:15px;font-weight:600}.m{font-size:12px;font-family:ui-monospace,Menlo,monospace}"
    ".s{font-size:12px;fill:#666}.h{font-size:16px;font-weight:600;fill:#3f51b5}"
    "rect{fill:#f4f5fb;stroke:#9fa8da}.x{fill:#fff;stroke:#e0a060}"
    "path{fill:none;stroke:#7986cb}.d{stroke:#e07b00;stroke-dasharray:5 4}</style>"
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    ' orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#7986cb;stroke:none"/></marker></defs>'
)


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def _box(x: float, y: float, w: float, h: float, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<rect{mark} x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6"/>'


def _arrow(d: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<path{mark} d="{d}" marker-end="url(#a)"/>'


def _direct(pairs: set[Any]) -> list[Any]:
    """The pairs (a, b) without those that lead from a to b by way of another."""
    nodes = {node for pair in pairs for node in pair}
    reach = set(pairs)
    for c in nodes:
        reach |= {(a, b) for a in nodes for b in nodes if {(a, c), (c, b)} <= reach}
    return sorted(p for p in pairs if not any({(p[0], c), (c, p[1])} <= reach for c in nodes))


def _python_side(x: float, width: float) -> tuple[list[str], dict[str, float]]:
    rows = architecture.rows()
    row_of = {module: i for i, (_, modules) in enumerate(rows) for module in modules}
    out, middle, y = [_text(x, 26, "src/lipfuse", "h")], [], float(_TOP)
    for name, modules in rows:
        lines = textwrap.wrap("  ".join(modules), 50)
        height = 30 + 16 * len(lines)
        out += [_box(x, y, width, height), _text(x + 12, y + 20, name, "t")]
        out += [_text(x + 12, y + 38 + 16 * i, line, "m") for i, line in enumerate(lines)]
        middle.append((y, height))
        y += height + _GAP
    pairs = {(row_of[a], row_of[b]) for a, b in architecture.edges() if row_of[a] != row_of[b]}
    for a, b in _direct(pairs):
        bend = x - 22 * (b - a - 1)
        start, end = middle[a][0] + middle[a][1], middle[b][0]
        if b == a + 1:
            out.append(_arrow(f"M{x + width / 2:g} {start:g}V{end:g}"))
        else:
            start, end = start - 10, end + 10
            curve = f"C{bend:g} {start:g} {bend:g} {end:g} {x:g} {end:g}"
            out.append(_arrow(f"M{x:g} {start:g}{curve}"))
    return out, {name: y0 + h / 2 for (name, _), (y0, h) in zip(rows, middle)}


_PLACES = {
    "schemas": (0, 0, 2),
    "autograd's nodes": (0, 2, 1),
    "CUDA operators": (1, 0, 1),
    "CPU operators": (1, 1, 1),
    "numpy module": (1, 2, 1),
    "CUDA kernels": (2, 0, 1),
    "CPU kernels": (2, 1, 2),
    "algorithms": (3, 0, 3),
}


def _native_side(x: float) -> tuple[list[str], dict[str, tuple[float, float, float, float]]]:
    parts = architecture.parts()
    if set(parts) != set(_PLACES):
        raise ValueError(f"_PLACES must name the parts of docs/architecture.md: {sorted(parts)}")
    wide, high, gap, step = 172, 88, 22, 150
    out, at = [_text(x, 26, "csrc", "h")], {}
    for name, (row, column, span) in _PLACES.items():
        left, top = x + column * (wide + gap), _TOP + row * step
        width = span * wide + (span - 1) * gap
        at[name] = (left, top, width, high)
        patterns, allowed = parts[name]
        out += [_box(left, top, width, high), _text(left + 10, top + 20, name, "t")]
        lines = textwrap.wrap("  ".join(patterns), 22 * span + 2 * (span - 1))[:4]
        out += [_text(left + 10, top + 38 + 15 * i, line, "m") for i, line in enumerate(lines)]
        for i, library in enumerate(sorted(allowed & set(architecture.EXTERNAL))):
            size = 14 + 7 * len(library)
            out.append(_box(left + width - size - 6, top + high - 25 - 22 * i, size, 19, "x"))
            label = left + width - size / 2 - 6
            out.append(_text(label, top + high - 11.5 - 22 * i, library, "s", "middle"))
    included = {p for p in architecture.includes() if set(p) <= set(parts) and p[0] != p[1]}
    for a, b in _direct(included):
        (x0, y0, w0, h0), (x1, y1, w1, h1) = at[a], at[b]
        if y0 == y1:
            out.append(_arrow(f"M{x0 + w0:g} {y0 + h0 / 2:g}L{x1:g} {y1 + h1 / 2:g}"))
        else:
            middle = (max(x0, x1) + min(x0 + w0, x1 + w1)) / 2
            out.append(_arrow(f"M{middle:g} {y0 + h0:g}L{middle:g} {y1:g}"))
    return out, at


def architecture_svg() -> str:
    """The picture of docs/architecture.md."""
    left, width, right = 30.0, 410.0, 560.0
    rows, middle = _python_side(left, width)
    boxes, at = _native_side(right)
    edge = left + width
    x0, y0, _, h0 = at["schemas"]
    x1, y1, w1, h1 = at["numpy module"]
    bottom = at["algorithms"][1] + at["algorithms"][3]
    turn, around = edge + 86, x1 + w1 + 24
    links = [
        _arrow(f"M{edge:g} {middle['operators']:g}H{turn:g}V{y0 + h0 / 2:g}H{x0:g}", "d"),
        _text(edge + 8, middle["operators"] - 8, "torch.ops", "s"),
        _arrow(
            f"M{edge:g} {middle['ground']:g}H{turn - 12:g}V{bottom + 24:g}H{around:g}"
            f"V{y1 + h1 / 2:g}H{x1 + w1:g}",
            "d",
        ),
        _text(edge + 8, middle["ground"] - 8, "loads", "s"),
    ]
    height = max(middle["ground"] + 56, bottom + 40)
    parts = [*links, *rows, *boxes]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {around + 16:g} {height:g}">{_STYLE}'
        + "\n".join(parts)
        + "</svg>\n"
    )
