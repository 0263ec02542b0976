"""Print the requirements of one purpose: build, or an extra of pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
purpose = sys.argv[1]
if purpose == "build":
    requirements = project["build-system"]["requires"]
else:
    requirements = project["project"]["optional-dependencies"][purpose]
print("\n".join(requirements))
