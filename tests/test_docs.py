"""The pages in docs/ are run: their examples, their links, and the commands that they name."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import lipfuse

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
# Those for whoever reads the repository, too.
EVERYWHERE = [*(DOCS / page for page in PAGES), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
EVERYWHERE.append(ROOT / "benchmarks" / "README.md")


@pytest.mark.parametrize("name", [page for page in PAGES if "/" not in page])
def test_examples_run_one_after_the_other(
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}, example {number}", "exec"), names)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = DOCS / name
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


# Where there is a folder before it; patterns are fine.
FILE = re.compile(r"`((?:src|csrc|tests|benchmarks|docs|examples|packaging)/[\w./*-]+)`")


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page: Path) -> None:
    for name in FILE.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        assert any(ROOT.glob(name.rstrip("/"))), name


# ---- commands ------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The lines of blocks without a language or of the shell, and of indented ones."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh|shell|bash|console)?\n(.*?)^```", text, re.M | re.S)
    unfenced = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    blocks += re.findall(r"(?:^ {4}.*\n)+", unfenced, re.M)
    blocks += re.findall(r"`((?:python|make|bash) [^`]+)`", text)
    return [line.strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in commands(page):
        if match := re.match(r"make ([a-z]+)", line):
            assert re.search(rf"^{match[1]}:", makefile, re.M), line
        elif match := re.match(r"(?:bash )?(\.ci/\w+|packaging/\S+\.sh)", line):
            assert (ROOT / match[1]).is_file(), line
        elif match := re.match(r"python -m (\S+)(?: (\w+))?", line):
            module, command = match.groups()
            assert importlib.util.find_spec(module) is not None, line
            if module == "lipfuse" and command:
                assert command in importlib.import_module("lipfuse.__main__")._COMMANDS, line
            if module == "benchmarks" and command:
                assert (ROOT / "benchmarks" / f"{command}.py").is_file(), line


def test_commands_are_found() -> None:
    """So that the test above does not pass for want of any."""
    found = [line for page in EVERYWHERE for line in commands(page)]
    for start in ("make docs", "python -m lipfuse info", "python -m benchmarks", "bash .ci/run"):
        assert any(line.startswith(start) for line in found), start


# ---- the reference -------------------------------------------------------------------------------

REFERENCE = re.findall(
    r"^::: (\S+)$", "\n".join(p.read_text() for p in (DOCS / "api").glob("*.md")), re.M
)
MODULES = ["", "nn", "functional", "parametrizations", "certification", "convert", "metrics"]
MODULES += ["optim", "regularizers", "tensor_parallel"]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    path = f"lipfuse.{module}".rstrip(".")
    public = importlib.import_module(path).__all__
    # Modules have pages; constants and names of another page stand there.
    elsewhere = {"HALF", "functional", "vanilla_model"} if module else {"__version__"}
    names = {n for n in public if not (not module and n in MODULES)} - elsewhere
    assert {f"{path}.{name}" for name in names} <= set(REFERENCE)


def test_what_is_in_the_reference_exists_once() -> None:
    assert len(REFERENCE) == len(set(REFERENCE))
    for name in REFERENCE:
        path, attribute = name.rsplit(".", 1)
        owner = lipfuse if path == "lipfuse" else importlib.import_module(path)
        assert hasattr(owner, attribute), name
        assert getattr(owner, attribute).__doc__, name


def test_the_citation_is_of_this_version() -> None:
    for file, pattern in (("CITATION.cff", "version: {}\n"), ("README.md", "version = {{{}}}")):
        assert pattern.format(lipfuse.__version__) in (ROOT / file).read_text()
