"""Lattices of many pairs: one after the other (`OneByOne`), or, where compiled loops know psi in closed form, in flat arrays that
they plan, walk and read in one call each, which holds no lock (`Together`). What one pair gives does not depend on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime import pair_lattices
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.fourier import Series
from elbotree.runtime.frames import Axis
from elbotree.runtime.pair_lattices import DEGREE, SPREAD, BLaw, PairLattice, folded, step_table, too_far

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

MAX_MODES = 8e6  # of the series of a pair; beyond it the engine says so instead of making the plan


@dataclass(frozen=True)
class Need:
    """What a lattice was made for: the product of two series, with what is left out adding at most tol."""

    s: Series
    r: Series
    tol: float


class Sum(NamedTuple):
    """The product of two series on the lattice of a pair, by its place in the set."""

    pair: int
    s: Series
    r: Series


class OneByOne:
    """The lattices of pairs, each an object of its own. Raises UnsupportedError where one has too many modes or points."""

    def __init__(self, shared: BLaw, axes: Sequence[tuple[Axis, Axis]], needs: Sequence[Sequence[Need]]) -> None:
        self._each = [made_for(shared, pair, of) for pair, of in zip(axes, needs, strict=True)]

    @property
    def bytes(self) -> int:
        """Memory that plans and sums made so far take."""
        return sum(lattice.bytes for lattice in self._each)

    def errors(self, sums: Sequence[Sum]) -> Array:
        """What each lattice leaves out of the sum, infinite where it has too few modes; nothing is walked yet."""
        return np.array([self._error(self._each[one.pair], one) for one in sums], dtype=np.float64)

    def _error(self, lattice: PairLattice, one: Sum) -> float:
        if lattice.box[0] < one.s.P or lattice.box[1] < one.r.P:
            return np.inf
        return lattice.error(_product(one.s, one.r, lattice.box))

    def values(self, sums: Sequence[Sum], ahead: bool) -> tuple[Array, Array]:
        """E of each, (..,), and `errors`; `ahead`: `parts` comes next."""
        values = np.zeros(len(sums))
        for place, one in enumerate(sums):
            lattice = self._each[one.pair]
            lattice.make(ahead)
            values[place] = lattice.value(_product(one.s, one.r, lattice.box))
        return values, self.errors(sums)

    def parts(self, sums: Sequence[Sum]) -> tuple[Array, Array]:
        """What `BLaw.with_F` makes E of each times F from, (.., m + n2 + 2), and `errors`."""
        lattices = [self._each[one.pair] for one in sums]
        parts = [x.parts(_product(one.s, one.r, x.box)) for one, x in zip(sums, lattices, strict=True)]
        return np.array(parts), self.errors(sums)


@dataclass(frozen=True)
class _Walked:
    """Sums over the frequencies of b, flat, as `walk_pairs` of the compiled loops makes them, and where those of each pair are."""

    places: NDArray[np.int64]
    starts: NDArray[np.int64]
    X: ComplexArray
    terms: Array
    by_source: ComplexArray
    by_k: ComplexArray

    @property
    def sums(self) -> tuple[ComplexArray, Array, ComplexArray, ComplexArray]:
        return self.X, self.terms, self.by_source, self.by_k

    @property
    def bytes(self) -> int:
        return self.starts.nbytes + sum(x.nbytes for x in self.sums)


class Together:
    """The same in flat arrays; only where `shared.at_once`."""

    def __init__(self, shared: BLaw, axes: Sequence[tuple[Axis, Axis]], needs: Sequence[Sequence[Need]]) -> None:
        self._shared = shared
        met = {id(axis): axis for pair in axes for axis in pair}
        number = {key: place for place, key in enumerate(met)}
        # every axis twice: sheared where that helps, and never sheared
        sides = [shared.side(axis, shear) for shear in (True, False) for axis in met.values()]
        self._pairs = np.array([[number[id(a)], number[id(b)]] for a, b in axes])
        self._boxes = np.array([_box(of) for of in needs])
        self._at = np.append(0, np.cumsum((2 * self._boxes[:, 0] + 1) * (self._boxes[:, 1] + 1)))
        count, size, m = len(axes), int(self._at[-1]), len(shared.costs)
        self._limits, self._wanted = np.zeros(size, dtype=np.int64), np.zeros(size)
        self._slack, self._merged = np.zeros(size), np.zeros((count, m), dtype=np.bool_)
        self._plans = np.zeros((count, 6), dtype=np.int64)
        self._steps, self._loads, self._phases, shifts, plain = (
            np.array([getattr(side, name) for side in sides]) for name in ("step", "sources", "psi", "shift", "plain")
        )
        asked, series = _flat([Sum(n, need.s, need.r) for n, of in enumerate(needs) for need in of])
        sizes, tols = np.abs(series), np.array([min(need.tol for need in of) for of in needs])
        noise = plain @ shared.law.noise @ plain.T
        table = step_table(int(self._boxes.max()) + 1)

        def plan(which: NDArray[np.intp]) -> None:
            _loops().plan_pairs(
                which, self._pairs, self._boxes, asked, sizes, tols, noise, shifts, self._loads,
                (
                    shared.tail, shared.by_monomial, shared.weak.usable, shared.costs, table, shared.norm, shared.unit, SPREAD,
                    DEGREE,
                ),
                self._at, self._limits, self._wanted, self._slack, self._merged, self._plans, missed,
            )  # fmt: skip

        missed = np.zeros(count)
        plan(np.arange(count))
        far = np.nonzero(shifts[self._pairs].any(axis=1) & too_far(missed, tols))[0]
        if len(far):
            self._pairs[far] += len(met)
            plan(far)
        self._apart = np.count_nonzero(~self._merged, axis=1)
        large = np.nonzero(self._plans[:, 5] * (1.0 + self._apart) > pair_lattices.MAX_POINTS)[0]
        if len(large):
            made_for(shared, axes[large[0]], needs[large[0]])  # says why
        self._walked: _Walked | None = None

    @property
    def bytes(self) -> int:
        """Memory that plans and sums made so far take."""
        plans = self._limits.nbytes + self._wanted.nbytes + self._slack.nbytes
        return plans + (0 if self._walked is None else self._walked.bytes)

    def errors(self, sums: Sequence[Sum]) -> Array:
        """What each lattice leaves out of the sum, infinite where it has too few modes; nothing is walked yet."""
        found = np.zeros(len(sums))
        asked, series = _flat(sums)
        _loops().errors_of_sums(asked, np.abs(series), self._boxes, self._at, self._slack, SPREAD, found)
        return found

    def values(self, sums: Sequence[Sum], ahead: bool) -> tuple[Array, Array]:
        """E of each, (..,), and `errors`; `ahead`: `parts` comes next."""
        return self._read(sums, self._walk(ahead), 0)[:2]

    def parts(self, sums: Sequence[Sum]) -> tuple[Array, Array]:
        """What `BLaw.with_F` makes E of each times F from, (.., m + n2 + 2), and `errors`."""
        values, errors, slopes, shares = self._read(sums, self._walk(True), len(sums))
        pairs = self._pairs[[one.pair for one in sums]]
        omega = shares[:, 0, None] * self._steps[pairs[:, 0]] + shares[:, 1, None] * self._steps[pairs[:, 1]]
        omega += np.multiply.outer(shares[:, 2], self._shared.b_step)
        return np.concatenate([slopes, omega, shares[:, 3:], values[:, None]], axis=1), errors

    def _read(self, sums: Sequence[Sum], walked: _Walked, with_F: int) -> tuple[Array, Array, Array, Array]:
        """What `read_pairs` of the compiled loops finds: values, errors, and for the first `with_F` slopes and shares."""
        count, (asked, series) = len(sums), _flat(sums)
        found = np.zeros(count), np.zeros(count), np.zeros((with_F, len(self._shared.costs))), np.zeros((with_F, 4))
        _loops().read_pairs(
            asked, series, np.abs(series), self._pairs, self._boxes, self._plans, self._at, self._limits, self._slack, SPREAD,
            self._merged, self._loads, self._shared.weak.parts, self._shared.b_modes, walked.places, walked.starts, walked.sums,
            *found,
        )  # fmt: skip
        return found

    def _walk(self, vectors: bool) -> _Walked:
        """The sums over b of all lattices, for X alone or for all that vectors need; made once."""
        if self._walked is not None and (self._walked.by_k.size > 0 or not vectors):
            return self._walked
        shared, transform = self._shared, self._shared.transform
        assert transform is not None
        modes, points = self._plans[:, 1] * self._plans[:, 2], self._plans[:, 5]
        sizes = [modes * (2 if vectors else 1), *(of * vectors for of in (2 * points, self._apart * modes, modes))]
        x, t, e, k = (int(of.sum()) for of in sizes)
        places = np.stack([np.cumsum(of) - of for of in sizes], axis=1)
        made = _Walked(
            places,
            np.zeros(len(self._limits), dtype=np.int64),
            np.zeros(x, dtype=np.complex128),
            np.zeros(t),
            np.zeros(e, dtype=np.complex128),
            np.zeros(k, dtype=np.complex128),
        )
        furthest = np.abs(self._loads[self._pairs]) * (self._boxes + 1)[:, :, None]  # of the phase of each source
        reach = float(furthest.sum(axis=1).max(initial=0.0))
        reach += float(np.abs(shared.along).max(initial=0.0)) * shared.b_modes
        steps = np.array([*self._steps, shared.b_step])
        _loops().walk_pairs(
            self._pairs, self._plans, self._at, self._limits, self._wanted, self._merged,
            (steps @ shared.law.noise @ steps.T, self._loads, self._phases),
            (shared.along, shared.weak.parts, shared.b_modes),
            (transform.pieces, transform.step, transform.hi - transform.lo), shared.sources(reach),
            made.places, made.starts, made.sums,
        )  # fmt: skip
        self._walked = made
        return made


LatticeSet = OneByOne | Together


def lattices_of(shared: BLaw, axes: Sequence[tuple[Axis, Axis]], needs: Sequence[Sequence[Need]]) -> LatticeSet:
    """Lattices of pairs of axes, each of which serves all of its needs: a function of the needs, not of who made it before.

    Raises UnsupportedError where their series have too many modes together, or a lattice too many points.
    """
    return (Together if shared.at_once else OneByOne)(shared, axes, needs)


def made_for(shared: BLaw, axes: tuple[Axis, Axis], needs: Sequence[Need]) -> PairLattice:
    """The lattice of one pair."""
    box = _box(needs)
    weights = np.maximum.reduce([np.abs(_product(need.s, need.r, box)) for need in needs])
    return PairLattice(shared, *axes, weights, min(need.tol for need in needs))


def check_modes(box: tuple[int, int]) -> None:
    """Raises UnsupportedError where two series, cut at these modes, have too many together."""
    if (2.0 * box[0] + 1) * (box[1] + 1) > MAX_MODES:
        raise UnsupportedError(
            f"the series of a pair of encoder parameters would need {2 * box[0] + 1:,} x {box[1] + 1:,} modes: a posterior mean "
            "changes too fast on the range of its parameter; loosen tol, raise input.noise_std, or make the encoder's rows smaller"
        )


def _box(needs: Sequence[Need]) -> tuple[int, int]:
    """P and Q that hold all needs of a pair."""
    box = max(need.s.P for need in needs), max(need.r.P for need in needs)
    check_modes(box)
    return box


def _product(s: Series, r: Series, box: tuple[int, int]) -> ComplexArray:
    """The product of two series, on a box of modes with one of each (n, -n)."""
    return folded(s.grown(box[0]), r.grown(box[1])[box[1] :])


def _flat(sums: Sequence[Sum]) -> tuple[NDArray[np.int64], ComplexArray]:
    """The sums as compiled loops take them: which pair, and where its two series begin, p = -P..P and q = 0..Q, with P and Q; and
    all series, each once."""
    met: dict[int, Series] = {}
    starts: dict[int, int] = {}
    end = 0
    for one in sums:
        for series in (one.s, one.r):
            if id(series) not in met:
                met[id(series)], starts[id(series)] = series, end
                end += len(series.coefficients)
    asked = [(one.pair, starts[id(one.s)], one.s.P, starts[id(one.r)] + one.r.P, one.r.P) for one in sums]
    return np.array(asked, dtype=np.int64).reshape(-1, 5), np.concatenate([s.coefficients for s in met.values()])


def _loops() -> Any:
    """The compiled loops; numba takes half a second to import, which small problems need not pay."""
    from elbotree.runtime import pair_loops

    return pair_loops
