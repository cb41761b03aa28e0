"""What all tests share: numpy raises where it would only warn.

Of underflow too: where a number may vanish (exp(-x^2 / 2) far out is 0 to within the least float64, in ours and in scipy's, and
every error estimate has an absolute part that is larger), the place says so, by `runtime.float_range.vanishing` or by
np.errstate(under="ignore"). What depends on numbers that small (rare events) works in logarithms.
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


@pytest.fixture(autouse=True)
def arithmetic_raises() -> Iterator[None]:
    """np.errstate(all="raise") around every test."""
    with np.errstate(all="raise"):
        yield


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families and activations that a test registers are forgotten after it."""
    from elbotree.derivation import activations, families
    from elbotree.runtime import models

    for module, name in ((families, "_registry"), (activations, "_registry"), (models, "_RULES")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


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
