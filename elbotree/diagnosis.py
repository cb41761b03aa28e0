"""What `elbotree doctor` finds out: versions, threads, extras, and whether a few problems still give the
numbers that are known for them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
from importlib.resources import files
from typing import Any

PACKAGES = ("elbotree", "numpy", "scipy", "numba", "sympy", "networkx", "safetensors", "click", "rich")
EXTRAS = {"sklearn": "sklearn", "torch": "torch", "onnx": "onnx", "plots": "matplotlib", "cluster": "distributed"}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

#: The self-check evaluates at this tolerance, and no term may be further than that from the stored number.
TOL = 1e-6


def diagnose() -> dict[str, Any]:
    """The findings, as JSON shows them; under "self-check" stands whether every number is right within `TOL`."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "extras": {name: "yes" if importlib.util.find_spec(module) else "no" for name, module in EXTRAS.items()},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {name: os.environ.get(name, "unset") for name in THREADS},
        "self-check": self_check(),
    }


def references() -> list[dict[str, Any]]:
    """Problems and their twelve terms by an oracle that shares no code with this package (tests/reference/selfcheck.py
    writes the file)."""
    found: list[dict[str, Any]] = json.loads(files("elbotree").joinpath("selfcheck.json").read_text(encoding="utf-8"))
    return found


def self_check() -> dict[str, Any]:
    """Evaluate the stored problems and compare all twelve terms of each with the stored numbers."""
    import elbotree

    problems = []
    for known in references():
        values = elbotree.evaluate(elbotree.Problem.from_dict(known["problem"]), tol=TOL)
        off = [abs(values[name].value - number) / max(1.0, abs(number)) for name, number in known["terms"].items()]
        problems.append({"name": known["name"], "worst": max(off), "seconds": values.seconds})
    return {"passed": all(part["worst"] <= TOL for part in problems), "allowed": TOL, "problems": problems}
