"""Expectations E[g(c_j) h(c_k)] and E[g(c_j) h(c_k) F] of pairs of features.

A function g on [lo, hi], where c_j lives, is a straight line plus what is left, r = g - line, which takes the same value
at both ends: posterior means saturate or grow linearly, so that r repeats smoothly and its Fourier series dies out with no
padding. Products with a line need no lattice of the pair, since a line in c_j is linear in F = (f, 1):

    E[g h] = E[r_g r_h] + <e_g, E[h F]> + <e_h, E[g F]> - e_g^T E[F F^T] e_h,      line_g = <e_g, F>.

Pairs need less accuracy each than single sums do, there being so many of them: they have ranges and frequencies of their
own, made for the tolerance that pairs have.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime import rings
from elbotree.runtime.blas import one_thread
from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.executors import Crew, Elsewhere, Threads
from elbotree.runtime.fourier import PADS, Period, Series, Spectrum, finite
from elbotree.runtime.frames import Axis, Coordinate
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.pair_blocks import KEPT_BYTES, Answer, Asked, Block, LawData, Pair, Workbench
from elbotree.runtime.pair_lattices import BLaw
from elbotree.runtime.pair_sets import Need, check_modes
from elbotree.runtime.psi_transform import PsiTransform
from elbotree.runtime.rings import Ranges

Array = NDArray[np.float64]

_TAIL_SHARE = 0.004  # of a pair's tolerance, for what lies outside the ranges: such errors may all have one sign
_POINT = 3e-9  # seconds, of a lattice point and source, about
_MANY = 48  # modes a side from which on windowed periods are tried too
_SIDE = 12  # features a side of a block, at most
_SIDES = 6  # blocks a side, at least, where features suffice


@dataclass(frozen=True)
class _Range:
    """Where a coordinate lives, `lo` to `hi`, the mass that may lie outside, and the wider ranges beyond."""

    coordinate: Coordinate
    lo: float
    hi: float
    outside: float
    wider: Ranges


class Part:
    """What is left of an integrand after its line, on an axis, with its series."""

    def __init__(self, axis: Axis, spectrum: Spectrum, outside: float, beyond: float) -> None:
        self.axis, self.spectrum = axis, spectrum
        self.size = max(1.0, spectrum.largest)
        self.outside = 5 * outside  # the mass outside, and aliases
        self.beyond = max(beyond, spectrum.largest)  # how large the function is there, `rings.root`
        self._series: dict[tuple[int, float], Series] = {}

    def series(self, sigma: float, tol: float) -> Series:
        """r's series for noise of at least sigma, cut at tol; both are rounded down a little, so that pairs share them."""
        level = math.floor(math.log(sigma) * 20) if sigma > 0 else -10_000
        fine = 2.0 ** math.floor(math.log2(tol))
        key = (level, fine)
        if key not in self._series:
            self._series[key] = self.spectrum.cut(math.exp(level / 20) if sigma > 0 else 0.0, fine)
        return self._series[key]


@dataclass(frozen=True)
class PairTerm:
    """E[r_g r_h] as a sum on a pair's lattice, whose axes go by number. Its error has two parts: `tail`, what lies outside the
    ranges, may have the same sign for all pairs; `dropped`, what is left out of series, has not, nor has the lattice's own."""

    pair: Pair
    asked: Asked
    tail: float
    dropped: float


Task = tuple[int, int, float]  # g's number, h's number, tolerance


class _Law:
    """The law of f(x1) at one level: for what is made here, for the workbench of this process, and as it travels."""

    def __init__(self, output: OutputLaw, compiled: bool) -> None:
        self.output, self._compiled = output, compiled
        self.owner = uuid4().hex  # tells the numbers of these axes from another engine's; no number depends on it

    def _parts(self) -> tuple[LinearLaw, PsiTransform | None, Array, Array, bool]:
        return self.output.lattice_law, self.output.transform, self.output.u, self.output.w, self._compiled

    @cached_property
    def bench(self) -> Workbench:
        return Workbench(BLaw(*self._parts()))

    @cached_property
    def data(self) -> LawData:
        return LawData.of(*self._parts())


class Pairs:
    """The pairs of an encoder's features on the law of f(x1).

    What all pairs share, axes and series, is made here and in order; lattices are made and walked by threads, or by an
    executor where one is given, block by block (`pair_blocks`). gradients: sums with F will be asked for, so that lattices are
    made for them from the start.
    """

    def __init__(
        self,
        output: OutputLaw,
        encoder: Encoder,
        compiled: bool,
        gradients: bool,
        threads: int,
        executor: Executor | None,
    ) -> None:
        self._output, self._encoder = output, encoder
        self._compiled, self.gradients, self._threads = compiled, gradients, threads
        self._elsewhere = None if executor is None else Elsewhere(executor)
        self._laws: dict[int, _Law] = {}
        self._ranges: dict[tuple[int, int, int], _Range] = {}
        self._noisy: dict[int, Array] = {}
        self._axes: dict[tuple[int, int, int, int], Axis] = {}
        self._numbers: dict[int, int] = {}
        self._travelling: list[Axis] = []
        self._parts: dict[tuple[int, int, bool, int], tuple[Integrand, Part]] = {}
        self._needs: dict[Pair, tuple[Need, ...]] = {}

    @property
    def crew(self) -> Crew:
        """Who walks lattices; threads only where the loops are compiled, which hold no lock."""
        return self._elsewhere or Threads(self._threads if self._compiled else 1)

    @staticmethod
    def level(tol: float) -> int:
        """Decimal digits that ranges and frequencies are made for, so that pairs of like tolerances share them."""
        return max(1, int(np.ceil(-np.log10(tol))))

    def _law(self, level: int) -> _Law:
        if level not in self._laws:
            self._laws[level] = _Law(self._output.at(_tol(level)), self._compiled)
        return self._laws[level]

    # ------------------------------------------------------------------ one function

    def _range(self, g: Integrand, level: int) -> _Range:
        """The range of g's coordinate; the first function that asks says how large functions of it get."""
        if len(g.uses) != 1:
            raise UnsupportedError(
                f"{g.label or 'a posterior mean'} of encoder[{g.feature}] depends on {len(g.uses)} encoder parameters, so that a "
                f"pair would need a lattice in more than 3 dimensions ({self._would_take(g, level)}); the spectral method covers "
                "posterior means that depend on one"
            )
        key = (g.feature, g.uses[0], level)
        if key not in self._ranges:
            q = self._encoder[g.feature]
            coordinate = self._law(level).output.coordinate(q.C[g.uses[0]], float(q.bias[g.uses[0]]))
            size, outside = 1.0, 0.0
            for _ in range(3):
                wanted = _TAIL_SHARE * _tol(level) / size
                if 0.9 * outside <= wanted <= outside:
                    break
                outside = wanted
                wider = coordinate.ranges(float(np.log(outside)))
                size = max(size, rings.root(rings.largest(_name(g), g.value, wider)))
            self._ranges[key] = _Range(coordinate, *wider.first, outside, wider)
        return self._ranges[key]

    def _would_take(self, g: Integrand, level: int) -> str:
        """What a pair of two functions like this one would cost on a lattice over all their parameters and b."""
        out, q, tol = self._law(level).output, self._encoder[g.feature], _tol(level)
        modes = 1.0
        for r in g.uses:
            coordinate = out.coordinate(q.C[r], float(q.bias[r]))
            lo, hi = coordinate.ranges(float(np.log(_TAIL_SHARE * tol))).first
            sigma = max(coordinate.sigma, 1e-6 * (hi - lo))
            modes *= 1 + np.sqrt(-2 * np.log(tol)) / sigma * (hi - lo) / np.pi
        sums = 0.5 * modes**2
        points = sums * (1 if out.transform is None else 2 * out.transform.modes + 1) * max(1, len(out.y.priors))
        return f"about {points:.0e} points, {points * _POINT:.0e} s and {16 * sums / 2**30:.0e} GiB a pair"

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
            else math.floor(math.log(sigma)) + 1000
        )
        key = (id(g), level, line, little)
        if key not in self._parts:
            # the integrand is kept beside its part, so that its id stays taken
            self._parts[key] = g, self._made(g, level, line, little, sigma)
        return self._parts[key][1]

    def _made(self, g: Integrand, level: int, line: bool, little: int, sigma: float) -> Part:
        where, tol = self._range(g, level), _tol(level)
        noise = where.coordinate.sigma
        slope, middle = self._slope(g, level) if line else 0.0, 0.5 * (where.lo + where.hi)

        def rest(c: Array) -> Array:
            return np.asarray(g.value(c) - slope * (c - middle))

        key = (g.feature, g.uses[0], level, little)
        beyond = rings.root(rings.largest(_name(g), rest, where.wider))
        axis = self._axes.get(key)
        if axis is not None:
            return Part(axis, Spectrum(rest, axis.period, 0.1 * tol, _name(g), noise), where.outside, beyond)
        found = [Spectrum(rest, Period(where.lo, where.hi, 0.0), 0.1 * tol, _name(g), noise)]
        plain = found[0].cut(sigma, 0.1 * tol)
        if plain.P > _MANY or plain.error > tol:
            # not smooth enough at the wrap for so little noise: windows may need fewer modes
            found += [
                Spectrum(rest, Period(where.lo, where.hi, pad), 0.1 * tol, _name(g), noise) for pad in PADS if pad > 0.0
            ]
        spectrum = min(found, key=lambda made: made.cost(sigma, 0.1 * tol)) if len(found) > 1 else found[0]
        axis = self._axes[key] = Axis(where.coordinate, spectrum.period)
        self._numbers[id(axis)] = len(self._travelling)
        self._travelling.append(axis.travelling())
        return Part(axis, spectrum, where.outside, beyond)

    # ------------------------------------------------------------------ two functions

    def term(
        self,
        g: Integrand,
        h: Integrand,
        tol: float,
        level: int,
        lines: tuple[bool, bool] = (True, True),
        row: int | None = None,
        weight: float = 1.0,
    ) -> PairTerm:
        """E[r_g r_h] to about tol, the functions taken without their lines where `lines` says so; with `row`, weight times
        E[r_g r_h F], to be added to that row of its block."""
        if (h.feature, h.uses) < (g.feature, g.uses):
            g, h, lines = h, g, lines[::-1]  # one lattice a pair, whichever of the two comes first
        out = self._law(level).output
        c, d = self._range(g, level).coordinate, self._range(h, level).coordinate
        if id(d) not in self._noisy:
            self._noisy[id(d)] = out.lattice_law.noise @ d.v
        cross = float(c.v @ self._noisy[id(d)])
        of_c, of_d = _given(c.sigma, d.sigma, cross), _given(d.sigma, c.sigma, cross)
        a, b = self._part(g, level, lines[0], of_c), self._part(h, level, lines[1], of_d)
        s, r = a.series(of_c, tol / (8 * b.size)), b.series(of_d, tol / (8 * a.size))
        # where sums with F come next, derivatives will want modes a little further out
        sharper = 2 if self.gradients else 1
        wide = (s, r) if sharper == 1 else (a.series(of_c, tol / (16 * b.size)), b.series(of_d, tol / (16 * a.size)))
        check_modes((wide[0].P, wide[1].P))
        need = Need(*wide, 0.5 * tol / sharper)
        tail = (a.outside + b.outside + out.b_error) * a.beyond * b.beyond
        pair = self._numbers[id(a.axis)], self._numbers[id(b.axis)]
        return PairTerm(pair, Asked(s, r, 0.5 * tol, need, row, weight), tail, s.error * b.size + r.error * a.size)

    # ------------------------------------------------------------------ blocks of pairs

    def tiles(self, gs: Sequence[Integrand], hs: Sequence[Integrand], tasks: Sequence[Task]) -> list[list[Task]]:
        """The tasks in blocks: of the coordinates in order, some by some, so that the functions of few travel with the pairs of
        many. How they are cut depends on how many coordinates there are, and on nothing else."""
        at = {(g.feature, g.uses) for g in (*(gs[i] for i, _, _ in tasks), *(hs[k] for _, k, _ in tasks))}
        side = min(_SIDE, max(2, -(-len(at) // _SIDES)))
        number = {key: place // side for place, key in enumerate(sorted(at))}
        found: dict[Pair, list[Task]] = {}
        for task in tasks:
            one, two = number[gs[task[0]].feature, gs[task[0]].uses], number[hs[task[1]].feature, hs[task[1]].uses]
            found.setdefault((min(one, two), max(one, two)), []).append(task)
        return [found[tile] for tile in sorted(found)]

    def _block(self, terms: Sequence[PairTerm]) -> Block:
        by_pair: dict[Pair, list[tuple[int, Asked]]] = {}
        for place, term in enumerate(terms):
            by_pair.setdefault(term.pair, []).append((place, term.asked))
        axes = {number: self._travelling[number] for pair in by_pair for number in pair}
        pairs = tuple((pair, self._needs.get(pair, ()), tuple(asks)) for pair, asks in by_pair.items())
        rows = 1 + max((term.asked.row for term in terms if term.asked.row is not None), default=-1)
        return Block(axes, pairs, len(terms), rows, self.gradients and self.crew.ahead, not self.gradients)

    @contextmanager
    def walked(
        self, level: int, terms: Iterable[Sequence[PairTerm]]
    ) -> Iterator[Iterator[tuple[Sequence[PairTerm], Answer]]]:
        """Blocks of terms (made in their order, as they are asked for) with what was found, in the same order. They are under way
        from the start where an executor walks them, and given up where the context ends early."""
        made: deque[Sequence[PairTerm]] = deque()

        def blocks() -> Iterator[Block]:
            for block in terms:
                made.append(block)
                yield self._block(block)

        with one_thread(), self.crew.walk(self._law(level), blocks()) as walk:
            yield ((self._taken(made.popleft(), answer), answer) for answer in walk)

    def _taken(self, terms: Sequence[PairTerm], answer: Answer) -> Sequence[PairTerm]:
        """The terms, the needs of lattices that grew being remembered."""
        for term, grew in zip(terms, answer.grew, strict=True):
            if grew:
                self._needs[term.pair] = (*self._needs.get(term.pair, ()), term.asked.need)
        return terms

    def forecast(self, level: int, terms: Sequence[PairTerm], count: int) -> tuple[float, float]:
        """Seconds on one core and bytes a process for `count` pairs, of which these are a fair choice."""
        seconds, memory = self.crew.forecast(self._law(level), self._block(terms), self.gradients)
        return seconds * (2.0 if self.gradients else 1.0) * count, min(memory * count, max(KEPT_BYTES, memory))


def _tol(level: int) -> float:
    return max(10.0**-level, 2e-15)


def _name(g: Integrand) -> str:
    """What messages call an integrand."""
    return f"{g.label or 'an integrand'} of encoder[{g.feature}]"


def _given(own: float, other: float, cross: float) -> float:
    """Standard deviation of one Gaussian given another: their own ones and their covariance."""
    if own == 0.0 or other == 0.0:
        return own
    return math.sqrt(max(0.0, own**2 - (cross / other) ** 2))
