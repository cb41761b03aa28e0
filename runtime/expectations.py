"""What a generated kernel asks of an engine: the `Expectations` protocol. The spectral engine, the paper's grid and
plain sampling implement it; nothing numeric lives here.

Notation: x1 ~ P1, y = A x1 + d, b = <y, u> + theta, f = y + w psi(b), c_j = C_j f + bias_j in R^t, and F = (f, 1) in
R^(n2+1). Every method returns an `Estimate`, its error an estimate of the absolute error. `Integrand`s know their
feature j and which coordinates of c_j they use; `centre` (n2,) is zero when left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.estimates import Estimate
from elbotree.runtime.integrands import Integrand

Array = NDArray[np.float64]


class Expectations(Protocol):
    """Expectations over x1 ~ P1, as the leaves of the loss (figure 2) and of its gradient need them."""

    def norm_y(self, centre: Array) -> Estimate:
        """E |y - centre|^2, a scalar (U1)."""
        ...

    def of_b(self, g: Callable[[Array], Array], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        """E[g(b)], or with `along` (n2,) E[<y - centre, along> g(b)]; a scalar (U2, U3).

        g maps arrays to arrays and is smooth between the breaks of psi.
        """
        ...

    def of_c(
        self,
        gs: Sequence[Integrand],
        *,
        weights: Array,
        along: Array | None = None,
        centre: Array | None = None,
    ) -> Estimate:
        """sum_i weights[i] E[g_i(c)], or with `along` (len(gs), n2) sum_i weights[i] E[<f - centre, along[i]> g_i(c)].

        A scalar (R1, S1, T2). gs is a flat list; weights has its length.
        """
        ...

    def of_cc(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        """sum_jk weights[j, k] E[g_j(c) h_k(c)], a scalar (T3); weights (len(gs), len(hs)), not always symmetric."""
        ...

    def of_c_F(self, gs: Sequence[Integrand], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        """E[g_i(c) F], or with `along` E[<f - centre, along[i]> g_i(c) F]; shape (len(gs), n2 + 1)."""
        ...

    def of_cc_F(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        """Row i: sum_k weights[i, k] E[g_i(c) h_k(c) F]; shape (len(gs), n2 + 1). gs may repeat features."""
        ...
