"""Gauss-Legendre panels in b = <y, u> + theta, split at psi's breaks: the one place where psi is sampled.

An integrand here is exp(i nu(b)) times a smooth factor, where the phase nu turns by at most `frequency` per unit of b
besides what psi adds. A rule of N nodes on a panel of length l integrates e^{i nu b} to rounding error as soon as 2 N
passes nu l / 2 by a few: N = nu l / 4 + 14 + 3 (nu l / 2)^(1/3). Panels on which psi is not yet resolved are halved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import roots_legendre

from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.float_range import vanishing

Array = NDArray[np.float64]

_MAX_PANELS = 400
_INSET = 1e-9  # of a panel's length
_NOWHERE: Array = np.empty(0)
MOST_TURNS = 4e5  # radians of one integrand: a hundred thousand nodes


@lru_cache(maxsize=256)
def gauss_legendre(nodes: int) -> tuple[Array, Array]:
    """Nodes and weights of the N-point rule on [-1, 1]."""
    x, w = roots_legendre(nodes)  # banded: several times faster than numpy's companion matrix
    return x, w


@lru_cache(maxsize=64)
def _legendre_tail(nodes: int) -> Array:
    """The functionals (2, N) that give the last two Legendre coefficients of a function from its node values."""
    x, w = gauss_legendre(nodes)
    degrees = np.arange(nodes - 2, nodes)
    return np.asarray((np.polynomial.legendre.legvander(x, nodes - 1)[:, -2:].T * w) * (degrees + 0.5)[:, None])


@vanishing
def _resolved(values: Array | NDArray[np.complex128], nodes: int, tol: float) -> bool:
    """Whether a function with these node values has a Legendre series that has died out, as far as rounding shows."""
    scale = max(1.0, float(np.abs(values).max()))
    return bool(np.abs(_legendre_tail(nodes) @ values).max() <= max(tol, 1e-15 * (20 + nodes)) * scale)


@lru_cache(maxsize=64)
def _barycentric(nodes: int) -> Array:
    """The weights of the barycentric formula on these nodes, (N,)."""
    x, w = gauss_legendre(nodes)
    return np.asarray((-1.0) ** np.arange(nodes) * np.sqrt((1.0 - x**2) * w))


@vanishing
def _met(
    f: Callable[[Array], Array | NDArray[np.complex128]],
    values: Array | NDArray[np.complex128],
    places: Array,
    z: Array,
    tol: float,
) -> bool:
    """Whether f's values at places inside a panel, at z in [-1, 1], are what its nodes lead to: a step between the last node and
    the end, for one, is seen by no node of either panel."""
    apart = z[:, None] - gauss_legendre(len(values))[0]
    shares = _barycentric(len(values)) / np.where(apart == 0.0, 1e-300, apart)
    off = np.abs((shares @ values) / shares.sum(axis=1) - f(places))
    return bool(off.max() <= max(1e-10, 100 * tol) * max(1.0, float(np.abs(values).max())))


def panels(
    lo: float,
    hi: float,
    breaks: Sequence[float],
    frequency: float,
    resolve: Sequence[Callable[[Array], Array | NDArray[np.complex128]]],
    tol: float,
    what: str = "psi",
    places: Array = _NOWHERE,
) -> tuple[Array, Array]:
    """Nodes and weights on [lo, hi] that integrate every function of `resolve` times e^{i frequency b} to about tol.

    breaks: points at which a panel ends. resolve: functions (of node arrays) whose Legendre series must have died
    out on each panel; a panel where one has not is halved, at most 400 panels in all. what: what the message calls them.
    places: points, ascending, at which they must be what the nodes lead to, as they must be at the ends of panels.
    Raises UnsupportedError when that is not enough (the function is not piecewise smooth at any resolution tried), and for
    frequency (hi - lo) beyond 4e5.
    """
    if not frequency * (hi - lo) <= MOST_TURNS:
        raise UnsupportedError(
            f"b ranges from {lo:.3g} to {hi:.3g}, and what is integrated over it turns {frequency * (hi - lo):.3g} radians there; "
            f"the limit is {MOST_TURNS:.0e}, so bring b's numbers nearer to 1, or raise input.noise_std"
        )
    ends = [lo, *sorted({b for b in breaks if lo < b < hi}), hi]
    known = set(ends)
    todo = list(reversed(list(pairwise(ends))))
    nodes: list[Array] = []
    weights: list[Array] = []
    count = 0
    while todo:
        a, b = todo.pop()
        half = 0.5 * (b - a)
        turn = frequency * half
        n = int(np.ceil(0.5 * turn + 14 + 3 * turn ** (1 / 3)))
        check = n + int(0.5 * turn)  # a series dies out only after `turn` terms, twice as many as the rule needs nodes
        if check > 600:
            middle = 0.5 * (a + b)
            todo += [(middle, b), (a, middle)]
            continue
        trial = 0.5 * (a + b) + half * gauss_legendre(check)[0]
        inset = [_INSET * (b - a) if end in known else 0.0 for end in (a, b)]  # f may jump at a break
        within = places[np.searchsorted(places, a, side="right") : np.searchsorted(places, b)]
        within = np.concatenate([[a + inset[0]], within, [b - inset[1]]])
        z = (within - 0.5 * (a + b)) / half
        if half > 1e-12 * (abs(a) + abs(b)) and not all(
            _resolved(values := f(trial), check, tol) and _met(f, values, within, z, tol) for f in resolve
        ):
            count += 1
            if count > _MAX_PANELS:
                raise UnsupportedError(
                    f"{what} is not smooth enough near b = {0.5 * (a + b):.6g}: {_MAX_PANELS} halvings of the quadrature "
                    "panels did not resolve it; write its kinks and jumps with where, max, min, abs, sign or "
                    "heaviside, so that panels can be split there, or, where psi has none, bring b's numbers nearer to 1: "
                    "large against the spread of b they leave too few digits"
                )
            middle = 0.5 * (a + b)
            todo += [(middle, b), (a, middle)]
            continue
        x, w = gauss_legendre(n)
        nodes.append(0.5 * (a + b) + half * x)
        weights.append(half * w)
    return np.concatenate(nodes), np.concatenate(weights)
