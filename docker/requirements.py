# ruff: noqa: INP001 - a script, not a package
"""Prints what an extra of pyproject.toml needs, one requirement a line: `python requirements.py EXTRA`.

The images install this list in a layer of its own, so that a change of the source, or of a tool's settings in
pyproject.toml, does not install everything anew.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(extra: str) -> list[str]:
    """The distribution's own requirements and those of `extra`, with extras that name the distribution unfolded."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, wanted = set(project["dependencies"]), [extra]
    while wanted:
        for requirement in project["optional-dependencies"][wanted.pop()]:
            if own := re.fullmatch(rf"{project['name']}\[(.+)\]", requirement):
                wanted += own[1].split(",")
            else:
                found.add(requirement)
    return sorted(found)


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in requirements(sys.argv[1]))
