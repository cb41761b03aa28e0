"""What all tests share: numpy raises where it would only warn of overflow, division by zero and invalid operations.

Underflow is not among them: exp(-x^2 / 2) far out is 0 to within the least float64, in hundreds of places, and every error
estimate has an absolute part that is larger. What depends on numbers that small (rare events) works in logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def arithmetic_raises() -> Iterator[None]:
    """np.errstate(over="raise", divide="raise", invalid="raise") around every test."""
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        yield
