"""What the tests of the front door share: a small problem that evaluates in well under a second."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

# what `elbotree example` prints
PROBLEM: dict[str, Any] = json.loads(files("elbotree").joinpath("example.json").read_text(encoding="utf-8"))


@pytest.fixture
def form() -> dict[str, Any]:
    """The problem's JSON form, to be changed at will."""
    return copy.deepcopy(PROBLEM)


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    """The problem as a file."""
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(PROBLEM))
    return path
