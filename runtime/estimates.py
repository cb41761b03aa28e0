"""A number with its error: what every expectation returns, and the arithmetic that carries the error along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value (scalar or array) with an estimate of its absolute error, of the same shape.

    Errors add linearly, |a| times for a factor a, so that the error of a sum covers the worst case:
    error(x + y) = error(x) + error(y), error(a x) = |a| error(x).
    """

    value: Array
    error: Array

    def __str__(self) -> str:
        """The value and its error, which has two digits."""
        error = np.array2string(np.asarray(self.error), formatter={"float_kind": lambda x: f"{x:.1e}"})
        return f"{self.value} ± {error}"

    @staticmethod
    def of(value: float | Array, error: float | Array = 0.0) -> Estimate:
        """Make an estimate; a scalar error is broadcast to the value's shape."""
        v = np.asarray(value, dtype=np.float64)
        return Estimate(v, np.broadcast_to(np.asarray(error, dtype=np.float64), v.shape))

    def __add__(self, other: Estimate | float) -> Estimate:
        if not isinstance(other, Estimate):
            return Estimate(self.value + other, self.error)
        return Estimate(self.value + other.value, self.error + other.error)

    __radd__ = __add__

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, self.error)

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self + (-other)

    def __mul__(self, factor: float | Array) -> Estimate:
        return Estimate(self.value * factor, self.error * np.abs(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Array) -> Estimate:
        return Estimate(self.value / divisor, self.error / np.abs(divisor))

    def sum(self) -> Estimate:
        """The sum of all entries; their errors add."""
        return Estimate(np.asarray(self.value.sum()), np.asarray(self.error.sum()))
