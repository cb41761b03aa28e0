"""What the tests of the front door share: a small problem that evaluates in well under a second."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

PROBLEM: dict[str, Any] = {
    "format": "elbotree-problem/1",
    "layer": {"A": [[1.0, 0.2], [0.0, 0.9]], "w": [0.3, -0.6], "u": [0.8, 0.5], "psi": "relu", "threshold": 0.1},
    "input": {
        "B": [[1.0, 0.2], [-0.3, 1.1]],
        "noise_std": 0.5,
        "priors": [{"kind": "bernoulli", "p": 0.3}, {"kind": "normal", "mean": 0.0, "std": 0.7}],
    },
    "model": {
        "B": [[1.0, 0.1], [0.2, 0.8]],
        "noise_std": 0.6,
        "priors": [{"kind": "bernoulli", "p": 0.4}, {"kind": "normal", "mean": 0.0, "std": 1.0}],
    },
    "encoder": [
        {"family": "bernoulli", "C": [[1.5, 0.2]], "bias": [-0.4]},
        {"family": "normal", "C": [[0.1, 0.7]], "std": 0.5},
    ],
}


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
