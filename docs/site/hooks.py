"""What mkdocs does beyond its plugins: formulae become MathML, which browsers draw."""

from __future__ import annotations

import html
import itertools
import logging
import re
from typing import Any

from latex2mathml.converter import convert

_log = logging.getLogger("mkdocs.hooks.lipfuse")
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_NAME = re.compile(r"(\\(?:cos|exp|log|max|min|sin|sup)) +(?=[\\\w])")
_BARS = [re.compile(rf"(?<!\\left)(?<!\\right){bar}") for bar in (r"\\\|", r"(?<!\\)\|")]
_TALL = re.compile(r'stretchy="true"(?= fence="true" form="\w+">&#x0(?:007C|2016);)')
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)


def _paired(source: str) -> str:
    """Bars as opening and closing fences: browsers space one between letters like an operator."""
    for bar in _BARS:
        sides = itertools.cycle((r"\left", r"\right"))
        if len(bar.findall(source)) % 2 == 0:
            source = bar.sub(lambda match, sides=sides: next(sides) + match[0], source)
    return source


def _mathml(display: str) -> Any:
    def replace(match: re.Match[str]) -> str:
        # TeX spaces names of functions by itself.
        source = _NAME.sub(r"\1\\, ", html.unescape(match[1]).strip())
        # Browsers make bars taller than what is between them, and darker than brackets.
        formula = _TALL.sub('stretchy="false"', convert(_paired(source), display=display))
        return f'<div class="formula">{formula}</div>' if display == "block" else formula

    return replace


_TYPE_VARIABLE = re.compile(r"\b_M\b")  # "the type of the module given"
# What a reader must not see: markup that nobody translated.
_ROLE = r":(?:func|class|math|mod|meth|data):"
_LEFT = re.compile(rf"arithmatex|{_ROLE}|\.\. math::|``|\$\\|\$<math|\\[a-z]{{3,}}")
_CODE = re.compile(r"<pre.*?</pre>|<annotation.*?</annotation>", re.S)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of every page."""
    content = _INLINE.sub(_mathml("inline"), _BLOCK.sub(_mathml("block"), content))
    content = _TYPE_VARIABLE.sub("Module", content)
    for left in _LEFT.finditer(_CODE.sub("", content)):
        around = left.string[max(0, left.start() - 60) : left.end() + 60]
        _log.warning("%s: markup is left: %s", page.file.src_uri, " ".join(around.split()))
    return content
