"""Draws of a feature beta ~ Q'(. | c) from uniform numbers, where the algebra has no closed form for them: tables of
masses, and distribution functions inverted by quadrature. A sampler is a function (u, *c) of arrays that broadcast
against each other: for u uniform on (0, 1) its value is a draw. Which one a family has, its generated kernels say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from elbotree.runtime.posteriors import (
    Array,
    Function,
    Law,
    Panels,
    Standardised,
    TiltedLaw,
    chunks,
    components,
    resolved,
    rows_of,
    rule,
)
from elbotree.runtime.priors import Normal, Prior

Sampler = Callable[..., Array]

_STEPS = 80  # of the search for one point: bisection alone ends within 60
_ROUNDING = 4e-15  # of a panel's place


def of_masses(points: Sequence[float], masses: Function) -> Sampler:
    """The sampler of a law on finitely many points, from its masses as a function of c: P(beta = points[i]) = masses(*c)[i]."""
    return partial(_from_table, np.asarray(points, dtype=np.float64), masses)


def _from_table(points: Array, masses: Function, u: ArrayLike, *c: ArrayLike) -> Array:
    shape, (uniform, *parameters) = rows_of((u, *c))
    table = np.broadcast_arrays(*masses(*parameters), uniform)[:-1]
    below = np.cumsum(np.stack(table[:-1]), axis=0)
    return np.asarray(points[(uniform >= below).sum(axis=0)].reshape(shape))


def of_law(law: Law) -> Sampler:
    """The sampler of a law with a density: the point below which it has the mass u."""

    def draw(u: ArrayLike, *c: ArrayLike) -> Array:
        shape, (uniform, *parameters) = rows_of((u, *c))
        found = np.empty(len(uniform))
        for chosen in chunks(np.arange(len(found))):
            found[chosen] = _inverse(law.standardised(*(row[chosen] for row in parameters)), uniform[chosen])
        return np.clip(found, *law.support).reshape(shape)

    return draw


def of_tilted(law: TiltedLaw) -> Sampler:
    """The sampler of a tilted law: u chooses an atom or a component of its base, and what is left of u a point of it."""

    def draw(u: ArrayLike, c: ArrayLike) -> Array:
        shape, (uniform, tilt) = rows_of((u, c))
        found = np.empty(len(uniform))
        for chosen in chunks(np.arange(len(found))):
            found[chosen] = _tilted(law, uniform[chosen], tilt[chosen])
        return found.reshape(shape)

    return draw


def _tilted(law: TiltedLaw, u: Array, c: Array) -> Array:
    found = np.full(len(u), np.nan)
    left = u.copy()
    waiting = np.ones(len(u), dtype=bool)
    for mass, part in _shares(law, c):
        here = waiting & (left < mass)
        rows = np.flatnonzero(here)
        found[rows] = _of_part(law, part, left[rows] / mass[rows], c[rows])
        waiting &= ~here
        left = left - mass
    for row in np.flatnonzero(waiting):  # rounding left u beyond the sum of all masses: the middle of the heaviest
        one = c[row : row + 1]
        _, heaviest = max(_shares(law, one), key=lambda pair: float(pair[0][0]))
        found[row] = _of_part(law, heaviest, np.array([0.5]), one)[0]
    return found


def _shares(law: TiltedLaw, c: Array) -> list[tuple[Array, float | Prior]]:
    """The probability of each atom and of each continuous component for every c."""
    total = law.base.log_partition(c, law.precision)
    found: list[tuple[Array, float | Prior]] = []
    for weight, part in components(law.base):
        for point, mass in zip(*part.atoms, strict=True):
            if mass > 0:
                exponent = np.log(weight * mass) + c * point - 0.5 * law.precision * point**2
                found.append((np.exp(exponent - total), float(point)))
        if part.continuous_weight > 0:
            found.append((weight * np.exp(part.log_partition(c, law.precision) - total), part))
    return found


def _of_part(law: TiltedLaw, part: float | Prior, u: Array, c: Array) -> Array:
    if not isinstance(part, Prior):
        return np.full(len(u), part)
    if isinstance(part, Normal):
        spread = np.sqrt(part.log_partition(c, law.precision, 2))
        return np.asarray(part.log_partition(c, law.precision, 1) + spread * special.ndtri(u))
    return np.clip(_inverse(law.component(part, c), u), *part.support) if len(u) else np.empty(0)


def _inverse(laws: Standardised, u: Array) -> Array:
    """beta with the mass u below it, one law a row: the panel that holds it, then Newton's steps kept within a bracket."""

    def integrand(z: Array, i: NDArray[np.intp]) -> tuple[Array, Array]:
        density = laws.density(z, i)
        return density, density

    panels, masses = resolved(integrand, laws.panels)
    panel, wanted = _panel_of(panels, masses, u)
    low, high, row = panels.low[panel], panels.high[panel], panels.row[panel]
    start, z = low.copy(), low + (high - low) * np.clip(wanted / np.maximum(masses[panel], 1e-300), 0.0, 1.0)
    live = np.arange(len(u))
    for _ in range(_STEPS):
        below = rule(integrand, Panels(start[live], z[live], row[live], laws.panels.rows))[0]
        excess = below - wanted[live]
        slope = laws.density(z[live][:, None], row[live])[:, 0]
        low[live] = np.where(excess < 0, z[live], low[live])
        high[live] = np.where(excess < 0, high[live], z[live])
        with np.errstate(divide="ignore", invalid="ignore"):
            step = z[live] - excess / slope
        inside = (step > low[live]) & (step < high[live])
        following = np.where(inside, step, 0.5 * (low[live] + high[live]))
        moved = np.abs(following - z[live])
        z[live] = following
        live = live[moved > _ROUNDING * (np.abs(following) + 1.0)]
        if not len(live):
            break
    return np.asarray(laws.centre + laws.spread * z)


def _panel_of(panels: Panels, masses: Array, u: Array) -> tuple[NDArray[np.intp], Array]:
    """For each row the panel in which the mass u is reached, and how much of it is left from that panel's low end on."""
    total = np.zeros(panels.rows)
    np.add.at(total, panels.row, masses)
    first = np.searchsorted(panels.row, np.arange(panels.rows))
    ends = np.searchsorted(panels.row, np.arange(panels.rows), side="right")
    panel, wanted = first.copy(), u * total
    live = np.arange(panels.rows)
    while len(live):  # at most as many turns as a row has panels, some tens
        further = (wanted[live] > masses[panel[live]]) & (panel[live] + 1 < ends[live])
        live = live[further]
        wanted[live] -= masses[panel[live]]
        panel[live] += 1
    return panel, wanted
