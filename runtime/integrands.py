"""What a generated kernel asks an expectation of: a function of one feature's encoder parameters c_j."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Integrand:
    """A smooth function g of (some of) the encoder parameters c_j = C_j f + bias_j of one feature.

    feature       the feature j (0-based) whose c_j it is a function of
    uses          which of the t coordinates of c_j it depends on, ascending; () for a constant
    value         g as a vectorised function of those coordinates, one array argument each, in the order of `uses`
    coefficients  (g0, g1, g2, ...) when g is a polynomial in its single coordinate, lowest degree first; a constant
                  is (g0,) with uses (); None otherwise. Polynomials up to degree 2 need moments only, no lattice.
    label         what it stands for, for messages ("K[3]", "s[0]")
    """

    feature: int
    uses: tuple[int, ...]
    value: Callable[..., Array]
    coefficients: tuple[float, ...] | None = None
    label: str = ""

    @staticmethod
    def constant(feature: int, number: float, label: str = "") -> Integrand:
        """The integrand that does not depend on c_j."""
        return Integrand(feature, (), lambda: np.float64(number), (float(number),), label)  # type: ignore[arg-type,return-value]
