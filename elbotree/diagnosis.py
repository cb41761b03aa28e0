"""What `elbotree doctor` finds out: versions, threads, extras, and whether a small problem still gives the twelve
numbers that are known for it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from typing import Any

PACKAGES = ("elbotree", "numpy", "scipy", "sympy", "networkx", "safetensors", "click", "rich")
EXTRAS = {"sklearn": "sklearn", "plots": "matplotlib"}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

#: A problem whose twelve numbers can be had without any of this package's numerics: x1 = (2 alpha, 0) + noise with
#: alpha a fair coin makes b a mixture of two normals, and all else one-dimensional integrals, done at 30 digits.
PROBLEM: dict[str, Any] = {
    "format": "elbotree-problem/1",
    "layer": {"A": [[1.0, 0.0], [0.0, 1.0]], "w": [0.5, 1.0], "u": [1.0, 0.0], "psi": "relu", "threshold": -0.8},
    "input": {"B": [[2.0], [0.0]], "noise_std": 0.5, "priors": [{"kind": "bernoulli", "p": 0.5}]},
    "model": {"B": [[2.0], [1.0]], "noise_std": 0.5, "priors": [{"kind": "bernoulli", "p": 0.5}]},
    "encoder": [{"family": "bernoulli", "C": [[3.0, 0.0]], "bias": [-3.0]}],
}
REFERENCE = {
    "L": 3.25479064559416,
    "R1": 0.509727306208962,
    "R2": 0.451582705289455,
    "R3": 2.29348063409574,
    "S1": 0.259488145707522,
    "S2": 0.887252171340348,
    "T1": 4.890926640388,
    "T2": -6.37528281784098,
    "T3": 2.37160834879333,
    "U1": 2.5,
    "U2": 1.33218544150978,
    "U3": 1.05874119887823,
}


def diagnose() -> dict[str, Any]:
    """The findings, as JSON shows them; under "self-check" stands whether every number is right within 1e-7."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "extras": {name: "yes" if importlib.util.find_spec(module) else "no" for name, module in EXTRAS.items()},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {name: os.environ.get(name, "unset") for name in THREADS},
        "self-check": self_check(),
    }


def self_check() -> dict[str, Any]:
    """Evaluate the stored problem and compare all twelve terms with the stored numbers."""
    import elbotree

    start = time.perf_counter()
    values = elbotree.evaluate(elbotree.Problem.from_dict(PROBLEM), tol=1e-8)
    worst = max(abs(values[name].value - known) / max(1.0, abs(known)) for name, known in REFERENCE.items())
    return {"passed": worst <= 1e-7, "worst": worst, "seconds": round(time.perf_counter() - start, 3)}
