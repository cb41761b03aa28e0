"""Expectations E[g(c_j) h(c_k)] and E[g(c_j) h(c_k) F] of pairs of features.

A function g on [lo, hi], where c_j lives, is a straight line plus what is left, r = g - line, which takes the same value
at both ends: posterior means saturate or grow linearly, so that r repeats smoothly and its Fourier series dies out with no
padding. Products with a line need no lattice of the pair, since a line in c_j is linear in F = (f, 1):

    E[g h] = E[r_g r_h] + <e_g, E[h F]> + <e_h, E[g F]> - e_g^T E[F F^T] e_h,      line_g = <e_g, F>.

Pairs need less accuracy each than single sums do, there being so many of them: they have ranges and frequencies of their
own, made for the tolerance that pairs have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.fourier import PADS, Period, Series, Spectrum, finite
from elbotree.runtime.frames import Axis, Coordinate
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.pair_lattices import BLaw, PairLattice

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

_TAIL_SHARE = 0.004  # of a pair's tolerance, for what lies outside the ranges: such errors may all have one sign
_MANY = 48  # modes a side from which on windowed periods are tried too
_KEPT_BYTES = 1 << 30  # sums of pairs are kept for the next expectation on the same pair up to this much memory


@dataclass(frozen=True)
class _Range:
    """Where a coordinate lives, and the mass that may lie outside."""

    coordinate: Coordinate
    lo: float
    hi: float
    outside: float


class Part:
    """What is left of an integrand after its line, on an axis, with its series."""

    def __init__(self, axis: Axis, spectrum: Spectrum, outside: float) -> None:
        self.axis, self.spectrum = axis, spectrum
        self.size = max(1.0, spectrum.largest)
        self.tail = 5 * spectrum.largest * outside  # adds to E[r h] per unit of max |h|: its own mass, and aliases
        self._series: dict[tuple[int, float], Series] = {}

    def series(self, sigma: float, tol: float) -> Series:
        """r's series for noise of at least sigma, cut at tol; both are rounded down a little, so that pairs share them."""
        level = int(np.floor(np.log(sigma) * 20)) if sigma > 0 else -10_000
        fine = float(2.0 ** np.floor(np.log2(tol)))
        key = (level, fine)
        if key not in self._series:
            self._series[key] = self.spectrum.cut(float(np.exp(level / 20)) if sigma > 0 else 0.0, fine)
        return self._series[key]


@dataclass(frozen=True)
class PairTerm:
    """E[r_g r_h] as a sum on a pair's lattice. Its error has two parts: `tail`, what lies outside the ranges, may have the same
    sign for all pairs; `error`, what is left out of series and sums, has not."""

    lattice: PairLattice
    coefficients: ComplexArray
    tail: float
    error: float
    with_F: bool  # whether sums with F will be asked for too, so that the lattice is walked for them at once

    def value(self) -> float:
        """E[r_g r_h]."""
        self.lattice.make(self.with_F)
        return self.lattice.value(self.coefficients)

    def F(self) -> Array:
        """E[r_g r_h F], (n2 + 1,)."""
        return np.append(self.lattice.vector(self.coefficients), self.lattice.value(self.coefficients))


class Pairs:
    """The pairs of an encoder's features on the law of f(x1); sums are made once and kept while memory allows.

    gradients: sums with F will be asked for, so that lattices are made for them from the start.
    """

    def __init__(self, output: OutputLaw, encoder: Encoder, compiled: bool, gradients: bool) -> None:
        self._output, self._encoder = output, encoder
        self._compiled, self._gradients = compiled, gradients
        self._laws: dict[int, tuple[OutputLaw, BLaw]] = {}
        self._ranges: dict[tuple[int, int, int], _Range] = {}
        self._axes: dict[tuple[int, int, int, int], Axis] = {}
        self._parts: dict[tuple[int, int, bool, int], tuple[Integrand, Part]] = {}
        self._lattices: dict[tuple[int, int], PairLattice] = {}

    @staticmethod
    def level(tol: float) -> int:
        """Decimal digits that ranges and frequencies are made for, so that pairs of like tolerances share them."""
        return max(1, int(np.ceil(-np.log10(tol))))

    def _law(self, level: int) -> tuple[OutputLaw, BLaw]:
        if level not in self._laws:
            out = self._output.at(_tol(level))
            self._laws[level] = out, BLaw(out.lattice_law, out.transform, out.u, out.w, self._compiled)
        return self._laws[level]

    # ------------------------------------------------------------------ one function

    def _range(self, g: Integrand, level: int) -> _Range:
        """The range of g's coordinate; the first function that asks says how large functions of it get."""
        if len(g.uses) != 1:
            raise UnsupportedError(
                f"{g.label or 'a posterior mean'} of encoder[{g.feature}] depends on {len(g.uses)} encoder parameters, so that a "
                "pair would need a lattice in more than 3 dimensions; the spectral method covers posterior means that "
                "depend on one"
            )
        key = (g.feature, g.uses[0], level)
        if key not in self._ranges:
            q = self._encoder[g.feature]
            coordinate = self._law(level)[0].coordinate(q.C[g.uses[0]], float(q.bias[g.uses[0]]))
            size = 1.0
            for _ in range(3):
                outside = _TAIL_SHARE * _tol(level) / size
                lo, hi = coordinate.bounds(float(np.log(outside)))
                size = max(size, float(np.abs(finite(_name(g), g.value, np.linspace(lo, hi, 33))).max()))
            self._ranges[key] = _Range(coordinate, lo, hi, outside)
        return self._ranges[key]

    def _slope(self, g: Integrand, level: int) -> float:
        """The slope of the line through g's values at the ends of its range."""
        where = self._range(g, level)
        ends = finite(_name(g), g.value, np.array([where.lo, where.hi]))
        return float(ends[1] - ends[0]) / (where.hi - where.lo)

    def line(self, g: Integrand, level: int) -> Array:
        """e_g with line_g(c) = <e_g, F>, (n2 + 1,); lines are 0 in the middle of the range."""
        where, slope = self._range(g, level), self._slope(g, level)
        q, r = self._encoder[g.feature], g.uses[0]
        return np.append(slope * q.C[r], slope * (float(q.bias[r]) - 0.5 * (where.lo + where.hi)))

    def _part(self, g: Integrand, level: int, line: bool, sigma: float) -> Part:
        """g less its line when `line`, whole otherwise, on an axis that suits noise of this size."""
        where = self._range(g, level)
        little = (
            0
            if sigma >= 0.6 * where.coordinate.sigma > 0
            else -1
            if sigma == 0.0
            else int(np.floor(np.log(sigma))) + 1000
        )
        key = (id(g), level, line, little)
        if key not in self._parts:
            # the integrand is kept beside its part, so that its id stays taken
            self._parts[key] = g, self._made(g, level, line, little, sigma)
        return self._parts[key][1]

    def _made(self, g: Integrand, level: int, line: bool, little: int, sigma: float) -> Part:
        where, tol = self._range(g, level), _tol(level)
        slope, middle = self._slope(g, level) if line else 0.0, 0.5 * (where.lo + where.hi)

        def rest(c: Array) -> Array:
            return np.asarray(g.value(c) - slope * (c - middle))

        key = (g.feature, g.uses[0], level, little)
        axis = self._axes.get(key)
        if axis is not None:
            return Part(axis, Spectrum(rest, axis.period, 0.1 * tol, _name(g)), where.outside)
        found = [Spectrum(rest, Period(where.lo, where.hi, 0.0), 0.1 * tol, _name(g))]
        if found[0].cut(sigma, 0.1 * tol).P > _MANY or found[0].cut(sigma, 0.1 * tol).dropped > tol:
            # not smooth enough at the wrap for so little noise: windows may need fewer modes
            found += [Spectrum(rest, Period(where.lo, where.hi, pad), 0.1 * tol, _name(g)) for pad in PADS if pad > 0.0]
        spectrum = min(found, key=lambda made: made.cost(sigma, 0.1 * tol))
        axis = self._axes[key] = Axis(where.coordinate, spectrum.period)
        return Part(axis, spectrum, where.outside)

    # ------------------------------------------------------------------ two functions

    def term(
        self, g: Integrand, h: Integrand, tol: float, level: int, lines: tuple[bool, bool] = (True, True)
    ) -> PairTerm:
        """E[r_g r_h] to about tol, the functions taken without their lines where `lines` says so."""
        if (h.feature, h.uses) < (g.feature, g.uses):
            g, h, lines = h, g, lines[::-1]  # one lattice a pair, whichever of the two comes first
        out, shared = self._law(level)
        c, d = self._range(g, level).coordinate, self._range(h, level).coordinate
        cross = float(c.v @ out.lattice_law.noise @ d.v)
        of_c, of_d = _given(c.sigma, d.sigma, cross), _given(d.sigma, c.sigma, cross)
        a, b = self._part(g, level, lines[0], of_c), self._part(h, level, lines[1], of_d)
        key = (id(a.axis), id(b.axis))
        lattice = self._lattices.get(key)
        s, r = a.series(of_c, tol / (8 * b.size)), b.series(of_d, tol / (8 * a.size))
        if (
            lattice is None
            or lattice.box[0] < s.P
            or lattice.box[1] < r.P
            or lattice.error(_product(s, r, lattice.box)) > 0.5 * tol
        ):
            lattice = self._lattices[key] = self._made_lattice(a, b, of_c, of_d, tol, shared, lattice)
        product = _product(s, r, lattice.box)
        tail = a.tail * b.size + b.tail * a.size + out.b_error * a.size * b.size
        return PairTerm(
            lattice, product, tail, s.dropped * b.size + r.dropped * a.size + lattice.error(product), self._gradients
        )

    def _made_lattice(
        self, a: Part, b: Part, of_c: float, of_d: float, tol: float, shared: BLaw, known: PairLattice | None
    ) -> PairLattice:
        """A lattice for r_a r_b, and for what the one before it was for. Where sums with F come next, derivatives will want
        modes a little further out."""
        sharper = 8 if self._gradients else 1
        s, r = a.series(of_c, tol / (8 * sharper * b.size)), b.series(of_d, tol / (8 * sharper * a.size))
        box, tol = (s.P, r.P), 0.5 * tol / sharper
        weights = np.abs(_product(s, r, box))
        if known is not None:
            box, tol = (max(s.P, known.box[0]), max(r.P, known.box[1])), min(tol, known.tol)
            weights = np.maximum(_grown(weights, *box), _grown(known.weights, *box))
        return PairLattice(shared, a.axis, b.axis, weights, tol)

    def forecast(self, terms: Sequence[PairTerm], count: int) -> tuple[float, float]:
        """Seconds on one core and bytes for `count` pairs, of which these are a fair choice."""
        seconds = sum(term.lattice.seconds() for term in terms) / len(terms) * (2.0 if self._gradients else 1.0)
        memory = sum(term.lattice.memory(self._gradients) for term in terms) / len(terms)
        return seconds * count, min(memory * count, max(_KEPT_BYTES, memory))

    def forget(self) -> None:
        """Drop sums, should they take too much memory: the newest, since who goes through all pairs again begins with the
        oldest."""
        total = sum(lattice.bytes for lattice in self._lattices.values())
        while len(self._lattices) > 1 and total > _KEPT_BYTES:
            total -= self._lattices.popitem()[1].bytes


def _tol(level: int) -> float:
    return max(10.0**-level, 2e-15)


def _name(g: Integrand) -> str:
    """What messages call an integrand."""
    return f"{g.label or 'an integrand'} of encoder[{g.feature}]"


def _product(s: Series, r: Series, box: tuple[int, int]) -> ComplexArray:
    """The product of two series, on a box of modes with one of each (n, -n)."""
    out = np.multiply.outer(s.grown(box[0]), r.grown(box[1])[box[1] :])
    out *= 2.0
    out[: box[0], 0] = 0.0
    out[box[0], 0] *= 0.5
    return np.asarray(out)


def _grown(box: Array, P: int, Q: int) -> Array:
    """A box of modes (2p + 1, q + 1) as part of one of (2P + 1, Q + 1)."""
    p = P - box.shape[0] // 2
    return np.pad(box, ((p, p), (0, Q + 1 - box.shape[1])))


def _given(own: float, other: float, cross: float) -> float:
    """Standard deviation of one Gaussian given another: their own ones and their covariance."""
    if own == 0.0 or other == 0.0:
        return own
    return float(np.sqrt(max(0.0, own**2 - (cross / other) ** 2)))
