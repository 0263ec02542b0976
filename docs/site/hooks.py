"""What mkdocs does beyond its plugins: formulae become MathML, which browsers draw."""

from __future__ import annotations

import html
import logging
import re
from typing import Any

from latex2mathml.converter import convert

_log = logging.getLogger("mkdocs.hooks.lipfuse")
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_NAME = re.compile(r"(\\(?:cos|exp|log|max|min|sin|sup)) +(?=[\\\w])")
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)


def _mathml(display: str) -> Any:
    def replace(match: re.Match[str]) -> str:
        # TeX spaces names of functions by itself.
        source = _NAME.sub(r"\1\\, ", html.unescape(match[1]).strip())
        formula = convert(source, display=display)
        return f'<div class="formula">{formula}</div>' if display == "block" else formula

    return replace


_TYPE_VARIABLE = re.compile(r"\b_M\b")  # "the type of the module given"
# What a reader must not see: markup that nobody translated.
_ROLE = r":(?:func|class|math|mod|meth|data):"
_LEFT = re.compile(rf"arithmatex|{_ROLE}|\.\. math::|``|\$\\|\\[a-z]{{3,}}")
_CODE = re.compile(r"<pre.*?</pre>|<annotation.*?</annotation>", re.S)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of every page."""
    content = _INLINE.sub(_mathml("inline"), _BLOCK.sub(_mathml("block"), content))
    content = _TYPE_VARIABLE.sub("Module", content)
    for left in _LEFT.finditer(_CODE.sub("", content)):
        around = left.string[max(0, left.start() - 60) : left.end() + 60]
        _log.warning("%s: markup is left: %s", page.file.src_uri, " ".join(around.split()))
    return content
