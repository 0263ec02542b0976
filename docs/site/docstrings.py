"""Docstrings in reStructuredText become Markdown: roles, formulae, blocks of code."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")
_API = Path(__file__).parents[1] / "api"
_FORMULA = re.compile(r":math:`([^`]+)`")
_DISPLAY = re.compile(r"^( *)\.\. math::(.*)\n((?:\1 +\S.*\n|\s*\n)*)", re.M)
_LITERAL = re.compile(r"^( *)(.*)::\n\n((?:\1 +.*\n|\s*\n)+)", re.M)


def _documented() -> dict[str, list[str]]:
    """The names on the API's pages, each with the full ones that end in it."""
    found: dict[str, list[str]] = {}
    for page in sorted(_API.glob("*.md")):
        for path in re.findall(r"^::: (\S+)$", page.read_text(), re.M):
            found.setdefault(path.rpartition(".")[2], []).append(path)
    return found


_NAMES = _documented()


def _link(match: re.Match[str]) -> str:
    """The name in code, linked to where it is described if there is one such place."""
    name = match[1]
    paths = [p for p in _NAMES.get(name.rpartition(".")[2], []) if f".{p}".endswith(f".{name}")]
    return f"[`{name}`][{paths[0]}]" if len(paths) == 1 else f"`{name}`"


def _display(match: re.Match[str]) -> str:
    indent, first, rest = match.groups()
    formula = " ".join(line.strip() for line in (first, *rest.splitlines())).strip()
    return f"\n{indent}$$ {formula} $$\n\n"


def _literal(match: re.Match[str]) -> str:
    indent, words, code = match.groups()
    body = textwrap.indent(textwrap.dedent(code).strip("\n"), indent)
    before = f"{indent}{words}:\n" if words else ""
    return f"{before}\n{indent}```python\n{body}\n{indent}```\n\n"


def to_markdown(text: str) -> str:
    """A docstring's text with what Markdown has instead of reStructuredText's markup."""
    text = _DISPLAY.sub(_display, text + "\n")
    text = _LITERAL.sub(_literal, text)
    text = re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text)
    text = _FORMULA.sub(lambda m: "$" + " ".join(m[1].split()) + "$", text)
    return _ROLE.sub(_link, text)


class Docstrings(Extension):
    """Loaded by mkdocstrings (mkdocs.yml)."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
