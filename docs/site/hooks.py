"""What mkdocs does beyond its plugins: formulae become MathML, which browsers draw by themselves."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)


def _mathml(display: str) -> Any:
    def replace(match: re.Match[str]) -> str:
        formula = convert(html.unescape(match[1]).strip(), display=display)
        return f'<div class="formula">{formula}</div>' if display == "block" else formula

    return replace


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of every page."""
    return _INLINE.sub(_mathml("inline"), _BLOCK.sub(_mathml("block"), content))
