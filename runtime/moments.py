"""Expectations of polynomials of b = <y, u> + theta, as kernels of an affine psi ask for them (U2, U3 with psi(b) = k b + m).
An engine that knows the law of y in closed form answers from its mean and covariance; any other takes the polynomial as
the function that it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.estimates import Estimate
from elbotree.runtime.expectations import Expectations
from elbotree.runtime.output_law import OutputLaw

Array = NDArray[np.float64]

_ROUNDING = 32 * float(np.finfo(np.float64).eps)


def of_polynomial(
    law: Expectations, coefficients: Sequence[float], *, along: Array | None = None, centre: Array | None = None
) -> Estimate:
    """E[g(b)], g = g0 + g1 b + g2 b^2; or with `along` (n2,) E[<y - centre, along> (g0 + g1 b)].

    The error is that of rounding where the engine knows the moments of y, and the engine's own otherwise.
    """
    output = getattr(law, "output", None)
    if not isinstance(output, OutputLaw):
        return law.of_b(partial(_value, tuple(coefficients)), along=along, centre=centre)
    g0, g1, g2 = (*coefficients, 0.0, 0.0)[:3]
    covariance, u = output.y.covariance(), output.u
    b = float(output.y.mean @ u + output.layer.threshold)
    if along is None:
        terms = [g0, g1 * b, g2 * b**2, g2 * float(u @ covariance @ u)]
    else:
        shift = float((output.y.mean - (0.0 if centre is None else centre)) @ along)
        terms = [shift * g0, shift * g1 * b, g1 * float(along @ covariance @ u)]
    return Estimate.of(sum(terms), _ROUNDING * sum(map(abs, terms)))


def _value(coefficients: tuple[float, ...], b: Array) -> Array:
    return np.asarray(np.polynomial.polynomial.polyval(b, coefficients))
