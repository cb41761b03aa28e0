"""The oldest versions that pyproject.toml allows, as pip takes them: `python -m tests.oldest sklearn test`.

Prints name==bound for each requirement of the package, and of the extras that are named. What `make oldest` installs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest(extras: list[str]) -> list[str]:
    """The lower bounds. ValueError for a requirement that has none."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    found = []
    for requirement in wanted:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lower bound of the form name>=version")
        found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    print(*oldest(sys.argv[1:]), sep="\n")
