"""What all tests share: numpy raises where it would only warn of overflow, division by zero and invalid operations.

Underflow is among them in the tests of `_UNDERFLOW_TOO`: where a number may vanish there, the place says so
(`runtime.float_range.vanishing`). Elsewhere many tests call what is inside: exp(-x^2 / 2) far out is 0 to within the least float64,
in ours and in scipy's logsumexp, and every error estimate has an absolute part that is larger. What depends on numbers that small
(rare events) works in logarithms. `runtime.float_range` lets it pass for all that people call, which
`tests/stress/test_float64.py` tries under np.errstate(all="raise").
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator

import numpy as np
import pytest

_MODULES = {
    "cluster": "distributed",
    "mpi": "mpi4py",
    "mpi-test": "mpi4py",
    "plots": "matplotlib",
    "sklearn": "sklearn",
}  # of extras not named as what they install
_INSTALLED = [name for name in os.environ.get("ELBOTREE_EXTRAS", "").split(",") if name]


_UNDERFLOW_TOO = {
    f"test_{name}.py"
    for name in (
        "priors",
        "fourier",
        "characteristic",
        "quadrature",
        "psi_transform",
        "posteriors",
        "bounds",
        "gradient",
    )
}


@pytest.fixture(autouse=True)
def arithmetic_raises(request: pytest.FixtureRequest) -> Iterator[None]:
    """np.errstate(over="raise", divide="raise", invalid="raise") around every test, all="raise" where that is tried."""
    under = "raise" if request.path.name in _UNDERFLOW_TOO else None
    with np.errstate(over="raise", divide="raise", invalid="raise", under=under):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips for want of an extra fails where ELBOTREE_EXTRAS says that the extra is there (make extras)."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        words = [word for name in _INSTALLED for word in (name, _MODULES.get(name, name))]
        if any(re.search(rf"\b{word}\b", reason) for word in words):
            report.outcome, report.longrepr = (
                "failed",
                f"{item.nodeid} skipped although its extra is installed: {reason}",
            )
    return report
