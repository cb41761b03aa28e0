"""Lattice sums over two encoder parameters and b: where nearly all time of the loss and its gradient goes.

For modes (p, q) of the pair (c_j, c_k) and frequencies k of b, with base_l from `PsiTransform`,

    X_l(p, q) = sum_k base_l(p, q, k) exp(-omega^T Sigma omega / 2) prod_i phi_i(p A_i + q B_i + k b_i).

Three things keep the sum small. Modes: only those whose coefficients times the Gaussian factor matter. Frequencies:
each mode walks |k| only as far as its own weight asks. Sources: all that see (p, q) weakly are one polynomial
(`weak_sources`), with the remainder of its Taylor series in the error bound; the others are multiplied one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.frames import ROUNDOFF, Axis
from elbotree.runtime.psi_transform import PsiTransform, waves
from elbotree.runtime.weak_sources import ORDERS, WeakSources

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

MAX_POINTS = 3e9  # lattice points times sources of one pair; beyond it the engine says so instead of starting
_BLOCK = 200_000  # lattice points that the numpy walk holds at once
_COMPILE_FROM = 100_000  # points from which a lattice is walked by compiled loops even where the others are not
# Modes turn independently of one another: what is left out of them adds up like independent errors, of which this many
# standard deviations are counted.
SPREAD = 3.0
_HIGHEST = 8  # degree of the merged polynomial: rounding grows as steps^degree
# nanoseconds: of a pair; of a point, for itself, a wave of a source, a table look-up, a degree of the polynomial
_PREPARED, _WALK, _WAVE, _TABLE, DEGREE = 2e5, 4.5, 1.3, 7.0, 0.6
_NUMPY = 25.0  # how many times longer the numpy walk takes

# the monomials |p|^c |q|^d, c + d < ORDERS, by degree
_C, _D = (np.array(x) for x in zip(*[(c, m - c) for m in range(ORDERS) for c in range(m + 1)], strict=True))
_STARTS = np.array([m * (m + 1) // 2 for m in range(ORDERS)])
_BINOMIAL = np.array([float(comb(c + d, c)) for c, d in zip(_C, _D, strict=True)])


@lru_cache(maxsize=1024)
def _steps(count: int, degree: int) -> Array:
    """sum of binomial(i, d) over d <= degree, for i = 0..count - 1."""
    return np.array([float(sum(comb(i, d) for d in range(degree + 1))) for i in range(count)])


@lru_cache(maxsize=64)
def step_table(count: int) -> Array:
    """`_steps` of each degree from 2 on, (.., count)."""
    return np.array([_steps(count, d) for d in range(2, _HIGHEST + 1)])


@lru_cache(maxsize=1024)
def _amplification(first: int, shape: tuple[int, int]) -> Array:
    """How much the steps from mode to mode amplify rounding, for each degree from 2 on and each mode of a box that begins at
    p = first: a relative error of the difference of order d enters binomial(steps, d) times."""
    count = max(abs(first), shape[0] + first) + shape[0]
    p = np.abs(first + np.arange(shape[0]))
    over = [np.add.outer(_steps(count, d)[p], _steps(shape[1], d)) for d in range(2, _HIGHEST + 1)]
    return 1 + np.array(over) / 8


@lru_cache(maxsize=16)
def _exponents(m: int) -> tuple[Array, Array]:
    """0..m, and the binomials of m."""
    return np.arange(m + 1.0)[:, None], np.array([float(comb(m, a)) for a in range(m + 1)])[:, None]


def _loads(m: int, A: Array, B: Array) -> Array:
    """binomial(m, a) A^a B^(m - a) for a = 0..m, (m + 1, len(A))."""
    a, binomials = _exponents(m)
    return np.asarray(binomials * A**a * B ** (m - a))


class BLaw:
    """What all pairs share: the law of y, psi against b, the Gaussian factor over b and the expansions of the sources."""

    def __init__(self, law: LinearLaw, transform: PsiTransform | None, u: Array, w: Array, compiled: bool) -> None:
        self.law, self.transform, self.u, self.w, self.compiled = law, transform, u, w, compiled
        self.b_step, self.b_modes = np.zeros(len(w)), 0
        if transform is not None:
            # sheared lattices reach a little further than the noise in b itself
            modes = transform.modes + transform.modes // 4 + 2
            self.transform = PsiTransform(
                transform.psi, transform.bbar, transform.lo, transform.hi, modes, transform.tol
            )
            self.b_step, self.b_modes = u * transform.step, modes
        k = np.arange(-self.b_modes, self.b_modes + 1)
        self.over_k: Array = np.exp(-0.5 * k**2 * float(self.b_step @ law.noise @ self.b_step))
        self.norm = float(np.sqrt(np.sum(self.over_k**2)))  # sum_k |base phi| <= norm, since sum_k |base_0|^2 <= 1
        beyond = self.over_k[self.b_modes :] ** 2
        # sum over |k| > l of |base phi|, by Cauchy and Schwarz
        self.tail: Array = np.sqrt(np.maximum(2 * (beyond[::-1].cumsum()[::-1] - beyond), 0.0))
        self.unit = 2 * ROUNDOFF * self.norm
        self.along = self.b_step @ law.loadings
        self.weak = WeakSources(law, self.b_step, self.b_modes, self.over_k)
        self.costs = np.array([_TABLE if p.waves is None else _WAVE * len(p.waves) for p in law.priors])
        # what |p A|^c |q B|^d of a source is multiplied by in a bound on its part of the exponent
        self.by_monomial: Array = np.zeros((ORDERS, ORDERS, len(law.priors)))
        self.by_monomial[_C, _D] = _BINOMIAL[:, None] * np.where(self.weak.usable, self.weak.sizes[_C + _D], 0.0)
        self._sides: dict[tuple[int, bool], tuple[Axis, _Side]] = {}

    def merge(
        self, A: Array, B: Array, weight: Array, first: int, budget: float
    ) -> tuple[int, NDArray[np.bool_], Array]:
        """Which sources to merge and into what degree, so that the remainder adds at most `budget` to a sum with these
        absolute weights (rows, Q + 1), p from `first` on; and a bound on the remainder's exponent for each mode."""
        exponents = np.arange(ORDERS)
        p_powers = np.abs(first + np.arange(weight.shape[0])).astype(float)[:, None] ** exponents
        q_powers = np.arange(weight.shape[1]).astype(float)[:, None] ** exponents
        moments = self.norm * SPREAD * np.sqrt((p_powers**2).T @ weight**2 @ q_powers**2)
        parts = self.by_monomial[_C, _D] * (np.abs(A) ** exponents[:, None])[_C] * (np.abs(B) ** exponents[:, None])[_D]
        by_degree = np.add.reduceat(parts * moments[_C, _D][:, None], _STARTS, axis=0)
        by_degree[:, ~self.weak.usable] = np.inf  # also where the pair does not see it: there is no log phi_i to add
        beyond = by_degree[::-1].cumsum(axis=0)[::-1]  # beyond[m]: degrees m and up
        # what each degree from 2, that of the noise, leaves out, with the geometric tail of what the table does not hold
        left = beyond[3 : _HIGHEST + 2] + by_degree[-1]
        order = np.argsort(left, axis=1)
        fits = np.cumsum(np.take_along_axis(left, order, axis=1), axis=1) <= budget
        costs = DEGREE * np.arange(2, _HIGHEST + 1) + (self.costs[order] * ~fits).sum(axis=1)
        rounding = np.sqrt(np.einsum("drq,rq->d", _amplification(first, weight.shape) ** 2, weight**2))
        costs[1:][self.unit * rounding[1:] > 0.2 * budget] = np.inf
        best = int(np.argmin(costs))
        degree = best + 2
        merged = np.zeros(len(A), dtype=bool)
        merged[order[best][fits[best]]] = True
        table = np.zeros((ORDERS, ORDERS))
        high = _STARTS[degree + 1]  # monomials stand by degree
        table[_C[high:], _D[high:]] = parts[high:] @ merged
        return degree, merged, p_powers @ table @ q_powers.T

    def with_F(self, parts: Array) -> Array:
        """E[.. F], F = (f, 1), of sums over a pair's lattice with coefficients c, or of combinations of such, from the sums' parts:
        (.., m + n2 + 2) of Im c times the sources' derivatives, Im c times the frequencies in y, Re c times psi's sums, and the
        value Re c X."""
        m = len(self.costs)
        sources, omega, of_psi, values = np.split(parts, [m, m + len(self.w), m + len(self.w) + 1], axis=1)
        f = sources @ self.law.loadings.T - omega @ self.law.noise + values * self.law.mean + of_psi * self.w
        return np.concatenate([f, values], axis=1)

    @property
    def at_once(self) -> bool:
        """Whether many pairs can be walked in one call: the loops are compiled, and know psi in closed form."""
        return self.compiled and self.transform is not None and self.transform.psi.pieces is not None

    def sources(self, reach: float) -> tuple[Any, ...]:
        """The sources as the compiled loops take them, for phases up to `reach`."""
        _, *sources = self.law.flat(self.b_step, self.b_modes, float(2.0 ** np.ceil(np.log2(max(reach, 1e-6)))))
        return tuple(sources)

    def side(self, axis: Axis, shear: bool = True) -> _Side:
        """An axis as the lattice's pairs see it, sheared where that helps and `shear` allows it; made once."""
        key = id(axis), shear
        if key not in self._sides:
            self._sides[key] = axis, _Side.of(self, axis, shear)
        return self._sides[key][1]


@dataclass(frozen=True)
class _Side:
    """One axis of a pair, a unit of its mode: its frequency in y, orthogonal to u in the metric of the noise (`plain`) and as the
    lattice takes it (`step`), the phases of the sources, center, theta and alpha of `PsiTransform.rows`, and how far its
    frequency moves the center of k.

    The orthogonal one makes the Gaussian factor one over (p, q) times one over k. The row itself sees fewer sources, and is
    taken where it does: the lattice is then sheared. Where the center moves further than there are frequencies, sheared lattices
    miss their tolerance, and pairs are made without (`too_far`).
    """

    plain: Array
    step: Array
    sources: Array
    psi: Array
    shift: float

    @staticmethod
    def of(shared: BLaw, axis: Axis, shear: bool) -> _Side:
        c, delta = axis.coordinate, axis.delta
        v, theta = c.v, c.theta
        rows = [c.v, c.v + c.theta * shared.u]
        seen = [np.abs(row @ shared.law.loadings) for row in rows]
        rest = [float(x.sum() - x.max(initial=0.0)) for x in seen]  # of all sources but its own feature
        shift = 0.0
        if shear and shared.transform is not None and rest[1] < rest[0]:
            v, theta, shift = rows[1], 0.0, delta * c.theta / shared.transform.step
        psi = delta * np.array([c.center - axis.period.middle, theta, c.kappa])
        return _Side(delta * c.v, delta * v, delta * (v @ shared.law.loadings), psi, shift)


def too_far(missed: Array | float, tol: Array | float) -> Any:
    """Whether a plan misses so much more than tol that frequencies of b must have been too few for its shear: plans are made to
    miss tol at most, but for rounding."""
    return missed > 2.0 * tol


def missed(parts: Array) -> float:
    """What is left out of a sum whose modes may each miss as much as `parts` says: `SPREAD` standard deviations of modes that turn
    independently, or the sum over all of them, a bound, where that is less."""
    return min(float(parts.sum()), float(SPREAD * np.sqrt((parts**2).sum())))


@dataclass(frozen=True)
class _Plan:
    """Which modes of a box a lattice walks, how far along k, and with which sources merged.

    first (row, column 0 of the walked part), limits and walked (rows, columns): how far |k| goes, -1 for modes left out, and
    which modes are wanted; degree and merged (m,): of the polynomial; slack (2P + 1, Q + 1): what may be missing per unit of
    |coefficient|.
    """

    first: int
    limits: NDArray[np.int64]
    walked: Array
    degree: int
    merged: NDArray[np.bool_]
    slack: Array


def _plan(shared: BLaw, one: _Side, two: _Side, weights: Array, tol: float) -> _Plan:
    """The plan by which a sum with these absolute weights misses at most tol."""
    P, Q = weights.shape[0] // 2, weights.shape[1] - 1
    plain = np.array([one.plain, two.plain])
    noise = plain @ shared.law.noise @ plain.T
    if shared.compiled:
        from elbotree.runtime import pair_loops

        plan_pair: Any = pair_loops.plan_pair
        return _Plan(
            *plan_pair(
                weights, noise, np.array([one.shift, two.shift]), tol, shared.tail, one.sources, two.sources,
                shared.by_monomial, shared.weak.usable, shared.costs, step_table(max(P, Q) + 1), shared.norm,
                shared.unit, SPREAD, DEGREE,
            )
        )  # fmt: skip
    p, q = np.arange(-P, P + 1)[:, None], np.arange(Q + 1)[None, :]
    gauss = np.exp(-0.5 * (noise[0, 0] * p**2 + noise[1, 1] * q**2 + 2 * noise[0, 1] * p * q))
    gauss *= (q > 0) | (p >= 0)
    size = weights * gauss
    off_center = np.ceil(np.abs(p * one.shift + q * two.shift)).astype(np.int64)
    # the smallest weights that add up to at most a quarter of tol are not walked
    flat = np.sort(size, axis=None)
    least = flat[min(int(np.searchsorted(SPREAD * np.sqrt(np.cumsum(flat**2)), 0.25 * tol)), len(flat) - 1)]
    walked = (size >= least) & (gauss > 0)
    count = max(1, int(walked.sum()))
    with np.errstate(divide="ignore"):
        allowed = np.where(walked, 0.25 * tol / (SPREAD * count**0.5 * np.maximum(size, 1e-300)), np.inf)
    limits = len(shared.tail) - np.searchsorted(shared.tail[::-1], allowed, side="right")
    limits = np.where(walked, np.minimum(limits + off_center, shared.b_modes), -1)
    # a step in q multiplies what stands at the last one: no mode may walk further than those before it
    limits = np.maximum.accumulate(limits[:, ::-1], axis=1)[:, ::-1]
    rows = np.nonzero(limits[:, 0] >= 0)[0]
    columns = int((limits >= 0).sum(axis=1).max(initial=1))
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (P, P)
    part = slice(first, last + 1), slice(columns)
    inner = np.ascontiguousarray(limits[part], dtype=np.int64)
    whole = size[part] * (inner >= 0)
    for _ in range(61):
        degree, merged, remainder = shared.merge(one.sources, two.sources, whole, first - P, 0.25 * tol)
        if np.all(remainder[inner >= 0] <= 1.0):
            break
        tol *= 0.1  # far from the origin, where weights are small, the series must not run away either
    tail = shared.tail[np.maximum(inner - off_center[part], 0)]
    rounding = shared.unit * _amplification(first - P, inner.shape)[degree - 2]
    missing = gauss[part] * (tail + shared.norm * np.expm1(np.minimum(remainder, 1.0)) + rounding)
    slack = gauss.copy()
    slack[part] = np.where(inner >= 0, missing, gauss[part])
    walked_part = np.where((inner >= 0) & (gauss[part] > 0), 1.0, 0.0)
    return _Plan(first, inner, walked_part, degree, merged, slack)


def folded(s: ComplexArray, r: ComplexArray) -> ComplexArray:
    """The coefficients of a product of two series, s (2P + 1,) and r (Q + 1,), on a box of modes with one of each (n, -n)."""
    P = len(s) // 2
    out = np.multiply.outer(s, r)
    out *= 2.0
    out[:P, 0] = 0.0
    out[P, 0] *= 0.5
    return np.asarray(out)


class PairLattice:
    """The sums of one pair, on a box of modes p = -P..P, q = 0..Q with one of each (n, -n).

    weights (2P + 1, Q + 1): bounds on the absolute coefficients of the functions to come; what is left out adds at most
    tol to a sum with such coefficients. `slack` says, per unit of |coefficient|, how much it really may be.
    """

    def __init__(self, shared: BLaw, a: Axis, b: Axis, weights: Array, tol: float) -> None:
        self.shared, self.law = shared, shared.law
        self.weights, self.tol = weights, tol
        one, two = shared.side(a), shared.side(b)
        plan = _plan(shared, one, two, weights, tol)
        if (one.shift or two.shift) and too_far(missed(weights * plan.slack), tol):
            one, two = shared.side(a, shear=False), shared.side(b, shear=False)
            plan = _plan(shared, one, two, weights, tol)
        self.limits, self._walked, self.slack = plan.limits, plan.walked, plan.slack
        self.degree, self.merged = plan.degree, plan.merged
        rows, columns = self.limits.shape
        self.first = plan.first - weights.shape[0] // 2
        self._part = slice(plan.first, plan.first + rows), slice(columns)
        self.reach = int(self.limits.max(initial=0))
        self._V = np.array([one.step, two.step])
        self.A, self.B = one.sources, two.sources
        walked = (2 * self.limits + 1).clip(min=0)
        self.points = int(walked.sum())
        self._starts = (np.cumsum(walked) - walked.ravel()).reshape(walked.shape)  # of each mode's terms
        self.compiled = shared.compiled or self.points > _COMPILE_FROM
        if self.points * (1.0 + int((~self.merged).sum())) > MAX_POINTS:
            raise UnsupportedError(
                f"an expectation over a pair of encoder parameters would need {self.points:.2g} lattice points for "
                f"{int((~self.merged).sum())} sources, about {self.seconds():.0f} s a pair; loosen tol, raise input.noise_std, or "
                "use fewer encoder parameters per integrand"
            )
        self._phases: Array = np.stack([one.psi, two.psi], axis=1)
        self._sums: tuple[ComplexArray, Array, ComplexArray, ComplexArray] | None = None

    @property
    def box(self) -> tuple[int, int]:
        """P and Q."""
        return self.weights.shape[0] // 2, self.weights.shape[1] - 1

    def seconds(self) -> float:
        """About how long the walk takes on one core."""
        each = _WALK + DEGREE * self.degree + float(self.shared.costs[~self.merged].sum())
        return 1e-9 * (_PREPARED + self.points * each * (1.0 if self.compiled else _NUMPY))

    def memory(self, vectors: bool) -> int:
        """Bytes that the sums take."""
        powers, rows, columns, _, E = self._shape(vectors)
        return 16 * (rows * columns * (powers + E + 1) + (self.points if vectors else 0))

    # ------------------------------------------------------------------ sums

    def make(self, vectors: bool) -> None:
        """Walk the lattice now: for X alone, or for all that vectors need."""
        if not self.made(vectors):
            self._sums = self._walk_compiled(vectors) if self.compiled else self._walk(vectors)

    def made(self, vectors: bool) -> bool:
        """Whether `make` has nothing left to do."""
        return self._sums is not None and (self._sums[1].size > 0 or not vectors)

    @property
    def bytes(self) -> int:
        """Memory that the boxes and the sums made so far take."""
        boxes = self.weights.nbytes + self.slack.nbytes + self.limits.nbytes + self._walked.nbytes + self._starts.nbytes
        return int(boxes + (0 if self._sums is None else sum(x.nbytes for x in self._sums)))

    def _shape(self, vectors: bool) -> tuple[int, int, int, int, int]:
        """powers, rows, columns, K, and the number of sources that are not merged."""
        rows, columns = self.limits.shape
        return (
            2 if vectors and self.shared.transform is not None else 1,
            rows,
            columns,
            2 * self.reach + 1,
            int((~self.merged).sum()),
        )

    def _noise(self) -> ComplexArray:
        """The coefficient of p^a q^b in the exponent of the noise, for |k| <= reach, (R + 1, R + 1, K)."""
        k = np.arange(-self.reach, self.reach + 1)
        out = np.zeros((self.degree + 1, self.degree + 1, len(k)), dtype=np.complex128)
        steps = np.array([*self._V, self.shared.b_step])
        noise = steps @ self.law.noise @ steps.T
        out[0, 0] = -0.5 * noise[2, 2] * k**2
        out[1, 0] = -noise[0, 2] * k
        out[0, 1] = -noise[1, 2] * k
        out[2, 0] = -0.5 * noise[0, 0]
        out[1, 1] = -noise[0, 1]
        out[0, 2] = -0.5 * noise[1, 1]
        return out

    def _monomials(self) -> ComplexArray:
        """The same for the noise and the merged sources."""
        out = self._noise()
        begin = self.shared.b_modes - self.reach
        A, B = self.A[self.merged], self.B[self.merged]
        for m in range(self.degree + 1):
            index = np.arange(m + 1)
            c = self.shared.weak.coefficients[m, self.merged, begin : begin + out.shape[2]]
            out[index, m - index] += (_loads(m, A, B) @ c.view(np.float64)).view(np.complex128)
        return out

    def _base(self, rows: slice, powers: int) -> ComplexArray:
        """What the walk sums against, (powers, rows, Q + 1, K)."""
        p = self.first + np.arange(rows.start, rows.stop)
        q = np.arange(self.limits.shape[1])
        center, theta, alpha = (np.add.outer(p * x, q * y).ravel() for x, y in self._phases)
        transform = self.shared.transform
        if transform is None:
            return np.asarray(np.exp(1j * center)).reshape(1, len(p), len(q), 1)
        full = transform.rows(center, theta, alpha, powers)
        middle = transform.modes
        part = full[:, :, middle - self.reach : middle + self.reach + 1]
        return part.reshape(powers, len(p), len(q), part.shape[-1])

    def _walk(self, vectors: bool) -> tuple[ComplexArray, Array, ComplexArray, ComplexArray]:
        """X, and for vectors the terms (real and imaginary parts of those that are walked, mode by mode), the sums with phi_e' and
        with k, in numpy: the reference of the compiled walk."""
        powers, rows, columns, K, E = self._shape(vectors)
        X = np.zeros((powers, rows, columns), dtype=np.complex128)
        kept = (rows, columns, K) if vectors else (0, 0, 0)
        terms = np.zeros(kept, dtype=np.complex128)
        by_source = np.zeros((E, *X.shape[1:]), dtype=np.complex128)
        by_k = np.zeros(X.shape[1:], dtype=np.complex128)
        k = np.arange(-self.reach, self.reach + 1)
        q = np.arange(columns)
        explicit = np.nonzero(~self.merged)[0]
        S, R = self._monomials(), self.degree + 1
        height = max(1, _BLOCK // (columns * K))
        for start in range(0, rows, height):
            block = slice(start, min(start + height, rows))
            p = self.first + np.arange(block.start, block.stop)
            over_p = np.tensordot(np.vander(p, R, increasing=True).astype(np.complex128), S, axes=1)  # (rows, b, k)
            exponent = np.matmul(np.vander(q, R, increasing=True).astype(np.complex128), over_p)
            phi = waves(exponent.imag) * (np.exp(np.minimum(exponent.real, 50.0)) * self._walked[block][:, :, None])
            phi[np.abs(k) > self.limits[block][:, :, None]] = 0.0
            prefix = [phi]
            factors = []
            for e in explicit:
                t = np.add.outer(np.add.outer(p * self.A[e], q * self.B[e]), k * self.shared.along[e])
                prior = self.law.priors[e]
                turn = np.exp(-1j * prior.mean() * t)
                value = turn * prior.cf(t, 0)
                slope = turn * prior.cf(t, 1) - 1j * prior.mean() * value if vectors else value
                factors.append((value, slope))
                prefix.append(prefix[-1] * value)
            base = self._base(block, powers)
            X[:, block] = np.einsum("lnqk,nqk->lnq", base, prefix[-1])
            if not vectors:
                continue
            terms[block] = base[0] * prefix[-1]
            by_k[block] = terms[block] @ k
            after = base[0]
            for i in range(E - 1, -1, -1):
                by_source[i, block] = (prefix[i] * factors[i][1] * after).sum(axis=-1)
                after = after * factors[i][0]
        walked = terms[self._inside()] if vectors else np.zeros(0, dtype=np.complex128)
        return X, np.stack([walked.real, walked.imag]), by_source, by_k

    def _inside(self) -> NDArray[np.bool_]:
        """Which frequencies each mode walks, (rows, Q + 1, K)."""
        return np.asarray(np.abs(np.arange(-self.reach, self.reach + 1)) <= self.limits[:, :, None])

    def _walk_compiled(self, vectors: bool) -> tuple[ComplexArray, Array, ComplexArray, ComplexArray]:
        """The same by compiled loops."""
        from elbotree.runtime import pair_loops

        walk_pair: Any = pair_loops.walk_pair
        powers, rows, columns, _, E = self._shape(vectors)
        out = (
            np.zeros((powers, rows, columns), dtype=np.complex128),
            np.zeros((2, self.points if vectors else 0)),
            np.zeros((E, rows, columns), dtype=np.complex128),
            np.zeros((rows, columns), dtype=np.complex128),
        )
        shared = self.shared
        explicit = np.nonzero(~self.merged)[0]
        furthest = max(abs(self.first), abs(rows - 1 + self.first))
        reach = float((furthest * np.abs(self.A[explicit]) + columns * np.abs(self.B[explicit])).max(initial=0.0))
        reach += float(np.abs(shared.along[explicit]).max(initial=0.0)) * shared.b_modes
        sources = list(shared.sources(reach))
        inside = slice(shared.b_modes - self.reach, shared.b_modes + self.reach + 1)
        sources[4] = np.ascontiguousarray(sources[4][:, :, inside])  # rotations over k
        transform = shared.transform
        pieces, step, length = np.zeros((0, 4)), 1.0, 1.0
        base = np.zeros((0, rows, 0, 0), dtype=np.complex128)
        if transform is not None and transform.psi.pieces is not None:
            pieces, step, length = transform.pieces, transform.step, transform.hi - transform.lo
        else:
            base = np.ascontiguousarray(self._base(slice(0, rows), powers))
        walk_pair(
            self._noise(), np.nonzero(self.merged)[0], self.A, self.B, shared.weak.parts, shared.b_modes - self.reach,
            self.first, self.limits, self._walked, explicit, shared.along, tuple(sources),
            (self._phases, pieces, step, length, base), (*out[:2], self._starts, *out[2:]),
        )  # fmt: skip
        return out

    # ------------------------------------------------------------------ what a function of the pair asks

    def error(self, coefficients: ComplexArray) -> float:
        """What the lattice leaves out of, or gets wrong in, a sum with these coefficients: see `missed`."""
        return missed(np.abs(coefficients) * self.slack)

    def value(self, coefficients: ComplexArray) -> float:
        """Re sum coefficients X: E of the function with this double Fourier series, (2P + 1, Q + 1) and one of each (n, -n)."""
        self.make(False)
        assert self._sums is not None
        return float(np.sum(coefficients[self._part] * self._sums[0][0]).real)

    def vector(self, coefficients: ComplexArray) -> Array:
        """The same of E[f ..], (n2,)."""
        return self.shared.with_F(self.parts(coefficients)[None])[0, :-1]

    def parts(self, coefficients: ComplexArray) -> Array:
        """What `BLaw.with_F` makes E[f ..] from, (m + n2 + 2,).

        E[y e^{..}] takes -i phi_i' prod_{l != i} phi_l from each source: for the merged ones phi_i' / phi_i is the derivative
        of the polynomial, whose monomials meet sums over the modes that all sources share.
        """
        self.make(True)
        assert self._sums is not None
        X, terms, by_source, by_k = self._sums
        c = coefficients[self._part]
        p, q = (self.first + np.arange(c.shape[0])).astype(float), np.arange(c.shape[1]).astype(float)
        sources = self._merged_slopes(c, terms)
        sources[~self.merged] = np.tensordot(by_source, c, axes=2).imag
        sum_p, sum_q = np.sum(c * X[0] * p[:, None]), np.sum(c * X[0] * q)
        omega = np.array([sum_p, sum_q]) @ self._V + np.sum(c * by_k) * self.shared.b_step
        of_psi = 0.0 if self.shared.transform is None else np.sum(c * X[1]).real
        return np.concatenate([sources, omega.imag, [of_psi, self.value(coefficients)]])

    def _merged_slopes(self, c: ComplexArray, terms: Array) -> Array:
        """Im of the sum over modes of c sum_k terms phi_i' / phi_i for the merged sources, 0 for the others, (m,)."""
        out = np.zeros(len(self.law.priors))
        weak, R, begin = self.shared.weak, self.degree, self.shared.b_modes - self.reach
        if self.compiled:
            from elbotree.runtime import pair_loops

            merged_slopes: Any = pair_loops.merged_slopes
            chosen = np.nonzero(self.merged)[0]
            merged_slopes(
                np.ascontiguousarray(c),
                terms,
                self._starts,
                self.limits,
                self.first,
                R,
                chosen,
                self.A,
                self.B,
                weak.parts,
                begin,
                out,
            )
            return out
        p, q = (self.first + np.arange(c.shape[0])).astype(float), np.arange(c.shape[1]).astype(float)
        weighted = c[:, None, :] * np.vander(q, R + 1, increasing=True).T[None]
        inside = self._inside()
        of_mode = np.zeros(inside.shape, dtype=np.complex128)
        of_mode[inside] = terms[0] + 1j * terms[1]
        over_q = np.matmul(weighted, of_mode)  # (rows, b, K)
        W = np.tensordot(np.vander(p, R + 1, increasing=True).astype(np.complex128), over_q, axes=(0, 0))  # (a, b, K)
        A, B = self.A[self.merged], self.B[self.merged]
        for m in range(R + 1):
            slopes = (m + 1) * weak.coefficients[m + 1, self.merged, begin : begin + inside.shape[2]]
            met = slopes @ np.stack([W[a, m - a] for a in range(m + 1)], axis=1)
            out[self.merged] += np.einsum("ia,ai->i", met, _loads(m, A, B)).imag
        return out
