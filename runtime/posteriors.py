"""Expectations over beta ~ Q'(. | c) of one feature, by quadrature, where the algebra has no closed form: cross-entropy
against a prior without one, the log ratio of two priors, and a prior's score. Also the small vocabulary that generated
kernels are written in (piece, polynomial, bind) and two stable functions. Expectations over x are the engines' work.

Everything is vectorised over c. Panels of Gauss-Legendre nodes are halved until two resolutions agree; they end at the
prior's breakpoints, and start fine around the components of a mixture so that a narrow one is not missed.
Derivatives in c or a parameter are taken on the law alone, d/dc E_Q[h] = E_Q[h d log q / dc]: h needs no derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from elbotree.runtime.errors import InputError, ToleranceError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.priors import Mixture, Normal, Prior, SpikeSlab

Array = NDArray[np.float64]
Function = Callable[..., Array]
#: h(beta, atom): a function of beta, on the continuous part of a law (False) or on its atoms (True)
OfBeta = Callable[[Array, bool], Array]
Pieces = tuple[Integrand, ...]

bind = partial

_NODES = 20
_TOL = 1e-14  # of E|h|, per panel: the sum over panels stays below 1e-12
_LEVELS = 60
_MAX_PANELS = 4_000_000  # panels in all for a whole chunk of c values; for fewer values fewer, in proportion
_SOME_PANELS = 200_000  # that any call may take
_CHUNK = 4096  # c values at a time, so that nodes stay in cache and memory is bounded


# -- stable functions ----------------------------------------------------------------------------------------------


def log_softplus(x: ArrayLike) -> Array:
    """log log(1 + e^x), elementwise; tends to x as x -> -inf, where softplus itself vanishes."""
    x = np.asarray(x, dtype=np.float64)
    low = x < -30.0
    far = x - 0.5 * np.exp(np.minimum(x, 0.0))
    return np.asarray(np.where(low, far, np.log(np.logaddexp(0.0, np.where(low, 0.0, x)))), dtype=np.float64)


def _in_deviations(x: ArrayLike, s: ArrayLike) -> Array:
    """x / s for s >= 0, kept within +-1e150 so that a vanishing s neither divides by zero nor overflows when squared."""
    x, s = np.asarray(x, dtype=np.float64), np.asarray(s, dtype=np.float64)
    return np.asarray(np.clip(x / np.maximum(s, 1e-150), -1e150, 1e150))


def folded_slope(x: ArrayLike, s: ArrayLike) -> Array:
    """d/dx E|x + s Z| = 2 Phi(x / s) - 1, Z standard normal, elementwise."""
    return np.asarray(special.erf(_in_deviations(x, s) * np.sqrt(0.5)))


def folded_spread(x: ArrayLike, s: ArrayLike) -> Array:
    """d/ds E|x + s Z| = 2 phi(x / s), elementwise."""
    return np.asarray(np.sqrt(2 / np.pi) * np.exp(-0.5 * np.minimum(_in_deviations(x, s) ** 2, 1400.0)))


def folded_mean(x: ArrayLike, s: ArrayLike) -> Array:
    """E|x + s Z| = s 2 phi(x / s) + x (2 Phi(x / s) - 1): the mean of a folded normal law, elementwise."""
    x, s = np.asarray(x, dtype=np.float64), np.asarray(s, dtype=np.float64)
    return np.asarray(s * folded_spread(x, s) + x * folded_slope(x, s))


def softplus_log_slope(x: ArrayLike) -> Array:
    """d/dx log softplus(x) = sigmoid(x) / softplus(x), elementwise; tends to 1 as x -> -inf."""
    x = np.asarray(x, dtype=np.float64)
    low, inner = x < -30.0, np.maximum(x, -30.0)
    far = 1.0 - 0.5 * np.exp(np.minimum(x, 0.0))
    return np.asarray(np.where(low, far, special.expit(inner) / np.logaddexp(0.0, inner)), dtype=np.float64)


# -- the vocabulary of generated kernels -----------------------------------------------------------------------------


def piece(feature: int, uses: tuple[int, ...], function: Function, label: str = "", **bound: object) -> Integrand:
    """The integrand of a printed function of the coordinates `uses`, with its other arguments bound."""
    return Integrand(feature, uses, bind(function, **bound) if bound else function, None, label)


def polynomial(feature: int, coordinate: int, coefficients: Sequence[float], label: str = "") -> Integrand:
    """The integrand sum_k coefficients[k] c^k of one coordinate; engines take it from moments, without a lattice."""
    numbers = tuple(float(number) for number in coefficients)
    if len(numbers) == 1:
        return Integrand.constant(feature, numbers[0], label)
    return Integrand(feature, (coordinate,), partial(_horner, numbers), numbers, label)


def _horner(coefficients: tuple[float, ...], c: Array) -> Array:
    total = np.full(np.shape(c), coefficients[-1], dtype=np.float64)
    for coefficient in coefficients[-2::-1]:
        total = total * c + coefficient
    return total


def unknown_family(family: str, printed: Sequence[str]) -> InputError:
    """The error for a posterior whose family these kernels were not generated for."""
    return InputError(
        f"these kernels were generated for {', '.join(printed)}, not for the posterior family {family!r}; generate "
        f"them again with family={sorted({*printed, family})}"
    )


# -- laws of beta given c ------------------------------------------------------------------------------------------


class BetaLaw(Protocol):
    """The law Q'(beta | c) of a feature with t parameters: expectations of functions of beta, for arrays of c."""

    @property
    def t(self) -> int: ...

    def expect(self, h: OfBeta, around: Prior, *c: ArrayLike, score: int | str | None = None) -> Array:
        """E[h(beta)] for each c, or with `score` (a coordinate r, or a parameter's name) its derivative in that.

        around: the prior that h is made from; quadrature ends its panels at its breakpoints.
        """


@dataclass(frozen=True)
class Standardised:
    """Laws of beta = centre + spread z, one a row: a density of z up to a factor, (z, rows) -> values, and panels of z that
    cover all of it but rounding."""

    centre: Array
    spread: Array
    density: Callable[[Array, NDArray[np.intp]], Array]
    panels: Panels


@dataclass(frozen=True)
class Law:
    """A continuous law with beta = centre(c) + spread(c) z.

    log_density        of z, a function (z, *c)
    scores             d log q(beta | c) / d c_r at fixed beta, functions (z, *c), one for each of the t coordinates
    parameter_scores   the same by each parameter of the family
    reach              the interval of z outside which the law is below rounding
    support            the interval of beta on which the density lives
    """

    centre: Function
    spread: Function
    log_density: Function
    scores: tuple[Function, ...]
    parameter_scores: Mapping[str, Function] = field(default_factory=dict)
    reach: tuple[float, float] = (-9.5, 9.5)
    support: tuple[float, float] = (-np.inf, np.inf)

    @property
    def t(self) -> int:
        return len(self.scores)

    def _slope(self, score: int | str | None) -> Function | None:
        return None if score is None else self.scores[score] if isinstance(score, int) else self.parameter_scores[score]

    def _panels(self, marks: Sequence[float], centre: Array, spread: Array) -> Panels:
        edges = np.linspace(*self.reach, 9) if self.reach[0] < 0 else _decaying(self.reach[1])
        return _with_marks(edges, marks, centre, spread, self.support)

    def of_z(self, g: Function, *c: ArrayLike, score: int | str | None = None) -> Array:
        """E[g(z, *c)] for each c, or with `score` E[g(z, *c) d log q / d that]."""
        shape, rows = rows_of(c)
        out = np.empty(len(rows[0]))
        for chosen in chunks(np.arange(len(out))):
            out[chosen] = self._of_z(g, [row[chosen] for row in rows], score)
        return out.reshape(shape)

    def _of_z(self, g: Function, c: list[Array], score: int | str | None) -> Array:
        slope = self._slope(score)

        def integrand(z: Array, i: NDArray[np.intp]) -> tuple[Array, Array]:
            here = [row[i][:, None] for row in c]
            density = np.exp(self.log_density(z, *here))
            value = np.where(density > 0, g(z, *here), 0.0)
            if slope is not None:
                density = np.where(density > 0, density * slope(z, *here), 0.0)
            return density * value, np.abs(density) * (1.0 + np.abs(value))

        return _adaptive(integrand, self._panels((), self.centre(*c), self.spread(*c)))

    def standardised(self, *c: Array) -> Standardised:
        """The law for each row of c, as something to integrate over z."""

        @vanishing
        def density(z: Array, i: NDArray[np.intp]) -> Array:
            return np.asarray(np.exp(self.log_density(z, *(row[i][:, None] for row in c))))

        centre, spread = self.centre(*c), self.spread(*c)
        return Standardised(centre, spread, density, self._panels((), centre, spread))

    def mean(self, *c: ArrayLike, score: int | str | None = None) -> Array:
        """s(c) by quadrature, or its derivative: E[score] = 0, so that of the centre falls away."""
        moment = self.spread(*c) * self.of_z(lambda z, *_: z, *c, score=score)
        return np.asarray(moment if score is not None else self.centre(*c) + moment)

    def variance(self, *c: ArrayLike, score: int | str | None = None) -> Array:
        """V(c) by quadrature, or its derivative E[(beta - s)^2 score]; moments of z, so nothing large cancels."""
        first = self.of_z(lambda z, *_: z, *c)
        shifted = self.of_z(lambda z, *_: z**2, *c, score=score)
        by = first if score is None else 2 * self.of_z(lambda z, *_: z, *c, score=score)
        return np.asarray(self.spread(*c) ** 2 * (shifted - first * by))

    def log_likelihood(self, *c: ArrayLike, score: int | str | None = None) -> Array:
        """E_Q[log q(beta | c)] by quadrature, or its derivative E[log q score]."""
        found = self.of_z(self.log_density, *c, score=score)
        return found if score is not None else np.asarray(found - np.log(self.spread(*c)))

    def expect(self, h: OfBeta, around: Prior, *c: ArrayLike, score: int | str | None = None) -> Array:
        """See BetaLaw. Where the law is narrower than 1e-6 of the prior's scale, d/dc is a fourth-order difference of
        E[h], because the score form would divide rounding errors by the spread."""
        shape, rows = rows_of(c)
        out = np.empty(len(rows[0]))
        narrow = np.zeros(len(out), dtype=bool)
        if isinstance(score, int):
            narrow = self.spread(*rows) < 1e-6 * around.scale
        for chosen in chunks(np.flatnonzero(~narrow)):
            out[chosen] = self._integrate(h, around, [row[chosen] for row in rows], score)
        for chosen in chunks(np.flatnonzero(narrow)):
            out[chosen] = self._difference(h, around, [row[chosen] for row in rows], int(score or 0))
        return out.reshape(shape)

    def _difference(self, h: OfBeta, around: Prior, c: list[Array], r: int) -> Array:
        step = 1e-3 * around.scale

        def at(k: int) -> Array:
            return self._integrate(h, around, [row + k * step * (i == r) for i, row in enumerate(c)], None)

        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)

    def _integrate(self, h: OfBeta, around: Prior, c: list[Array], score: int | str | None) -> Array:
        centre, spread = self.centre(*c), self.spread(*c)
        panels = self._panels(_landmarks(around), centre, spread)
        slope = self._slope(score)
        base = np.zeros(len(centre)) if slope is None else _baseline(h, centre, spread)

        def integrand(z: Array, i: NDArray[np.intp]) -> tuple[Array, Array]:
            here = [row[i][:, None] for row in c]
            density = np.exp(self.log_density(z, *here))
            value = h(centre[i][:, None] + spread[i][:, None] * z, False)
            if slope is not None:
                density, value = density * slope(z, *here), value - base[i][:, None]
            return density * value, np.abs(density) * (1.0 + np.abs(value))

        return _adaptive(integrand, panels)


@dataclass(frozen=True)
class TiltedLaw:
    """density(beta) = base(beta) exp(c beta - precision beta^2 / 2 - Lambda(c)): a mixture's components are tilted one
    by one and weighted by exp(Lambda_k - Lambda), atoms are summed exactly, and each continuous component is centred
    and scaled by its own mean and variance."""

    base: Prior
    precision: float
    t: int = 1

    def expect(self, h: OfBeta, around: Prior, *c: ArrayLike, score: int | str | None = None) -> Array:
        """See BetaLaw; `score` is 0 (for c) or "precision"."""
        shape, (rows,) = rows_of(c)
        out = np.empty(len(rows))
        for chosen in chunks(np.arange(len(rows))):
            out[chosen] = self._chunk(h, around, rows[chosen], score)
        return out.reshape(shape)

    @vanishing
    def _chunk(self, h: OfBeta, around: Prior, c: Array, score: int | str | None) -> Array:
        mean, variance, log_total = (self.base.log_partition(c, self.precision, k) for k in (1, 2, 0))
        base = np.zeros(len(c)) if score is None else _baseline(h, mean, np.sqrt(variance), self.base)

        def weighted(beta: Array, atom: bool, i: NDArray[np.intp] | slice) -> Array:
            value = h(beta, atom)
            if score is None:
                return value
            m, v = mean[i][:, None], variance[i][:, None]
            d = beta - m
            # -(beta^2 - E beta^2) / 2 = -(d^2 - V) / 2 - m d: no cancellation of squares
            slope = d if score == 0 else -0.5 * (d**2 - v) - m * d
            return (value - base[i][:, None]) * slope

        total = np.zeros(len(c))
        for weight, part in components(self.base):
            points, masses = (found[part.atoms[1] > 0] for found in part.atoms)
            if len(points):
                exponents = np.log(weight * masses) + c[:, None] * points - 0.5 * self.precision * points**2
                q = np.exp(exponents - log_total[:, None])
                values = weighted(np.broadcast_to(points, q.shape), True, slice(None))
                total += np.sum(np.where(q > 0, q * np.where(q > 0, values, 0.0), 0.0), axis=1)
            if part.continuous_weight > 0:
                share = weight * np.exp(part.log_partition(c, self.precision) - log_total)
                live = np.flatnonzero(share > 1e-30)
                total[live] += share[live] * self._continuous(weighted, part, around, c, live)
        return total

    def _continuous(
        self, weighted: Callable[..., Array], part: Prior, around: Prior, c: Array, live: NDArray[np.intp]
    ) -> Array:
        """E under one tilted continuous component, for the rows `live` of c; normalised by its own quadrature."""
        one = self.component(part, c[live], _landmarks(around))

        def integrand(z: Array, i: NDArray[np.intp]) -> tuple[Array, Array]:
            density = one.density(z, i)
            value = weighted(one.centre[i][:, None] + one.spread[i][:, None] * z, False, live[i])
            return np.where(density > 0, density * np.where(density > 0, value, 0.0), 0.0), density * (
                1 + np.abs(value)
            )

        def normaliser(z: Array, i: NDArray[np.intp]) -> tuple[Array, Array]:
            density = one.density(z, i)
            return density, density

        return _adaptive(integrand, one.panels) / _adaptive(normaliser, one.panels)

    def component(self, part: Prior, tilt: Array, marks: Sequence[float] = ()) -> Standardised:
        """One continuous component of the base, tilted: beta = centre + spread z with a density that is not normalised."""
        centre = part.log_partition(tilt, self.precision, 1)
        spread = np.sqrt(part.log_partition(tilt, self.precision, 2))
        gaussian = isinstance(part, Normal)
        edges = np.linspace(-9.5, 9.5, 9) if gaussian else np.concatenate([-_decaying(45.0)[:0:-1], _decaying(45.0)])
        panels = _with_marks(edges, (*marks, *part.breakpoints), centre, spread, part.support)

        def density(z: Array, i: NDArray[np.intp]) -> Array:
            if gaussian:
                return np.exp(-0.5 * z**2)
            beta = centre[i][:, None] + spread[i][:, None] * z
            # the exponent relative to its value at the centre: c beta alone may be 1e12
            tilted = (tilt[i][:, None] - self.precision * (beta + centre[i][:, None]) / 2) * spread[i][:, None] * z
            return np.exp(part.logpdf(beta) - part.logpdf(centre[i])[:, None] + tilted)

        return Standardised(centre, spread, density, panels)


def components(prior: Prior, weight: float = 1.0) -> list[tuple[float, Prior]]:
    """The components of a (nested) mixture with their weights; a spike is the law itself restricted to its atom."""
    if isinstance(prior, Mixture):
        pairs = zip(prior.weights, prior.components, strict=True)
        return [found for w, part in pairs if w > 0 for found in components(part, weight * w)]
    if isinstance(prior, SpikeSlab):
        spike = [(weight * (1 - prior.p), Prior.from_spec({"kind": "discrete", "points": [0.0], "masses": [1.0]}))]
        slab = components(prior.slab, weight * prior.p) if prior.p > 0 else []
        return (spike if prior.p < 1 else []) + slab
    return [(weight, prior)]


def _landmarks(prior: Prior) -> tuple[float, ...]:
    """Points of beta near which the log density of a prior may turn quickly: its breakpoints, and each component's mean
    with one, four and ten standard deviations about it."""
    marks = set(prior.breakpoints)
    parts = [part for _, part in components(prior) if part.continuous_weight > 0]
    for part in parts if len(parts) > 1 else []:
        deviation = float(np.sqrt(part.variance()))
        marks |= {part.mean() + k * deviation for k in (-10, -4, -1, 0, 1, 4, 10)}
    return tuple(sorted(marks))


# -- quadrature ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panels:
    """Panels [low, high] of z, each belonging to one row (one value of c)."""

    low: Array
    high: Array
    row: NDArray[np.intp]
    rows: int

    @cached_property
    def halved(self) -> Panels:
        middle = 0.5 * (self.low + self.high)
        low = np.concatenate([self.low, middle])
        return Panels(low, np.concatenate([middle, self.high]), np.tile(self.row, 2), self.rows)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Panels:
        return Panels(self.low[chosen], self.high[chosen], self.row[chosen], self.rows)

    def __len__(self) -> int:
        return len(self.low)


_X, _W = np.polynomial.legendre.leggauss(_NODES)


@vanishing
def rule(integrand: Callable[[Array, NDArray[np.intp]], tuple[Array, Array]], panels: Panels) -> tuple[Array, Array]:
    """The Gauss-Legendre value on each panel, and that of the magnitude that rounding scales with."""
    half = 0.5 * (panels.high - panels.low)
    z = (panels.low + half)[:, None] + half[:, None] * _X
    value, size = integrand(z, panels.row)
    return half * (value @ _W), half * (size @ _W)


def _adaptive(integrand: Callable[[Array, NDArray[np.intp]], tuple[Array, Array]], panels: Panels) -> Array:
    """int integrand dz for each row: panels are halved until the halves agree with the whole.

    integrand(z, rows) -> (value, size), on node arrays (panels, nodes). Raises InputError where the integrand is not
    finite, ToleranceError when 60 halvings do not resolve it, or some hundred panels for each there was.
    """
    total = np.zeros(panels.rows)
    for found, value in _each_panel(integrand, panels):
        np.add.at(total, found.row, value)
    return total


def resolved(
    integrand: Callable[[Array, NDArray[np.intp]], tuple[Array, Array]], panels: Panels
) -> tuple[Panels, Array]:
    """The panels in which `_adaptive` ends, in the order of rows and of z, and the integral over each."""
    parts = list(_each_panel(integrand, panels))
    low, high, row = (np.concatenate([getattr(found, name) for found, _ in parts]) for name in ("low", "high", "row"))
    order = np.lexsort((low, row))
    whole = Panels(low[order], high[order], row[order], panels.rows)
    return whole, np.concatenate([value for _, value in parts])[order]


def _each_panel(
    integrand: Callable[[Array, NDArray[np.intp]], tuple[Array, Array]], panels: Panels
) -> Iterator[tuple[Panels, Array]]:
    size_total = np.zeros(panels.rows)
    value, size = rule(integrand, panels)
    np.add.at(size_total, panels.row, size)
    if not np.all(np.isfinite(value)):
        raise InputError(
            "a prior has density 0 where the posterior has not, so their KL divergence is infinite; choose a prior "
            "whose support covers the posterior's"
        )
    seen, most = 0, max(_SOME_PANELS, _MAX_PANELS * panels.rows // _CHUNK)
    for _ in range(_LEVELS):
        seen += len(panels)
        halves = panels.halved
        fine, _ = rule(integrand, halves)
        n = len(panels)
        better = fine[:n] + fine[n:]
        done = np.abs(better - value) <= _TOL * size_total[panels.row]
        yield panels[done], better[done]
        keep = np.tile(~done, 2)
        panels, value = halves[keep], fine[keep]
        if not len(panels):
            return
        if seen > most:
            break
    worst = float(np.abs(value).max())
    if worst < 1e-12 * float(size_total.max()):  # an integrable singularity's last sliver
        yield panels, value
        return
    raise ToleranceError(
        f"an expectation over a posterior was not resolved by {seen:,} panels ({worst:.1e} left); its prior's log "
        "density is not piecewise smooth between its breakpoints"
    )


def _decaying(reach: float) -> Array:
    """Panel edges on [0, reach], fine near 0: for laws with exponential tails."""
    return np.array([0.0, 0.5, 1.5, 3.0, 6.0, 10.0, 16.0, 24.0, 34.0, reach])


def _with_marks(
    edges: Array,
    marks: Sequence[float],
    centre: Array,
    spread: Array,
    support: tuple[float, float] = (-np.inf, np.inf),
) -> Panels:
    """Panels between `edges` of z, for each row cut also at the marks of beta, and clipped to the support of beta."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        cuts = (np.asarray(marks, dtype=np.float64) - centre[:, None]) / spread[:, None]
        ends = (np.asarray(support) - centre[:, None]) / spread[:, None]
    low = np.maximum(np.nan_to_num(ends[:, :1], nan=-np.inf, neginf=-np.inf, posinf=np.inf), edges[0])
    high = np.minimum(np.nan_to_num(ends[:, 1:], nan=np.inf, neginf=-np.inf, posinf=np.inf), edges[-1])
    every = np.concatenate([np.broadcast_to(edges, (len(centre), len(edges))), np.nan_to_num(cuts, nan=0.0)], axis=1)
    every = np.sort(np.clip(every, low, np.maximum(low, high)), axis=1)
    rows = np.broadcast_to(np.arange(len(centre))[:, None], (len(centre), every.shape[1] - 1))
    lows, highs = every[:, :-1].ravel(), every[:, 1:].ravel()
    wide = highs > lows
    return Panels(lows[wide], highs[wide], rows.ravel()[wide], len(centre))


def _baseline(h: OfBeta, centre: Array, spread: Array, base: Prior | None = None) -> Array:
    """A value of h inside the law, taken off before a score multiplies it: scores have mean zero, so this changes
    rounding errors only. 0 where h is not finite there."""
    if base is not None and base.continuous_weight == 0:
        points = base.atoms[0]
        nearest = points[np.argmin(np.abs(centre[:, None] - points), axis=1)]
        value = h(nearest, True)
    else:
        value = h(centre + 0.5 * spread if base is None else centre, False)
    return np.where(np.isfinite(value), value, 0.0)


def rows_of(c: Sequence[ArrayLike]) -> tuple[tuple[int, ...], list[Array]]:
    arrays = np.broadcast_arrays(*(np.asarray(item, dtype=np.float64) for item in c))
    return arrays[0].shape, [array.ravel() for array in arrays]


def chunks(chosen: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]


# -- integrands that need it ---------------------------------------------------------------------------------------


def cross_entropy(
    feature: int, law: BetaLaw, prior: Prior, label: str = "", score: int | str | None = None
) -> Integrand:
    """-E_Q[log p(beta)] of a continuous posterior as a function of c, or its derivative by `score`."""
    return _integrand(feature, law, lambda beta, atom: -prior.logpdf(beta), prior, label, score)


def log_ratio(feature: int, law: TiltedLaw, prior: Prior, label: str = "", score: int | str | None = None) -> Integrand:
    """E_Q[log dbase/dprior] of a tilted posterior as a function of c, or its derivative by `score`."""
    base = law.base

    def h(beta: Array, atom: bool) -> Array:
        if atom:
            return base.log_mass(beta) - prior.log_mass(beta)
        return base.logpdf(beta) - prior.logpdf(beta)

    return _integrand(feature, law, h, prior, label, score)


def relative_entropy(
    feature: int, law: Law, prior: Prior, label: str = "", score: int | str | None = None
) -> Integrand:
    """E_Q[log q - log p] of a posterior whose entropy has no closed form either, or its derivative by `score`."""

    def value(*c: ArrayLike) -> Array:
        against = law.expect(lambda beta, atom: -prior.logpdf(beta), prior, *c, score=score)
        return law.log_likelihood(*c, score=score) + against

    return Integrand(feature, tuple(range(law.t)), value, None, label)


def law_mean(feature: int, law: Law, label: str = "", score: int | str | None = None) -> Integrand:
    """s(c) of a posterior whose mean has no closed form, or its derivative by `score`."""
    return Integrand(feature, tuple(range(law.t)), partial(law.mean, score=score), None, label)


def law_variance(feature: int, law: Law, label: str = "", score: int | str | None = None) -> Integrand:
    """V(c) of a posterior whose variance has no closed form, or its derivative by `score`."""
    return Integrand(feature, tuple(range(law.t)), partial(law.variance, score=score), None, label)


def prior_scores(feature: int, law: BetaLaw, prior: Prior, label: str = "") -> dict[str, Pieces | list[Pieces]]:
    """-E_Q[d log p(beta) / d parameter] for each parameter of the prior; a list of pieces for an array of them."""

    def of(name: str, index: int | None) -> Pieces:
        def h(beta: Array, atom: bool) -> Array:
            values = prior.score(beta, atom)[name]
            return -(values if index is None else values[index])

        return (_integrand(feature, law, h, prior, label),)

    return _by_parameter(prior, of)


def through_masses(
    feature: int, t: int, slopes: Mapping[float, Function], prior: Prior, label: str = ""
) -> dict[str, Pieces | list[Pieces]]:
    """dK by each parameter of the prior, for a posterior on finitely many points: sum over the points of
    slopes[point](c) = dK / d log p(point), times d log p(point) / d parameter."""
    points = np.array(list(slopes))
    scores = prior.score(points, True)
    uses = tuple(range(t))

    def of(name: str, index: int | None) -> Pieces:
        weights = tuple(float(w) for w in (scores[name] if index is None else scores[name][index]))
        return (Integrand(feature, uses, partial(_combine, tuple(slopes.values()), weights), None, label),)

    return _by_parameter(prior, of)


def _combine(functions: tuple[Function, ...], weights: tuple[float, ...], *c: Array) -> Array:
    return np.asarray(sum(w * f(*c) for w, f in zip(weights, functions, strict=True)), dtype=np.float64)


def _by_parameter(prior: Prior, of: Callable[[str, int | None], Pieces]) -> dict[str, Pieces | list[Pieces]]:
    out: dict[str, Pieces | list[Pieces]] = {}
    for name, value in prior.parameters().items():
        out[name] = of(name, None) if np.ndim(value) == 0 else [of(name, i) for i in range(np.size(value))]
    return out


def _integrand(
    feature: int, law: BetaLaw, h: OfBeta, around: Prior, label: str, score: int | str | None = None
) -> Integrand:
    return Integrand(feature, tuple(range(law.t)), partial(law.expect, h, around, score=score), None, label)
