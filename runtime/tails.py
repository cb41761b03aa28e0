"""Probabilities of one read-out S, to relative accuracy at any depth, by inversion on a shifted contour.

With K the log moment generating function of S and any c > 0 in its domain, for S with some Gaussian noise,

    P(S > q) = (h/pi) Re sum'_{k >= 0} exp(K(z_k) - z_k q) / z_k,   z_k = c + i k h   (the k = 0 term halved)

up to an error that Poisson summation gives exactly: with the period P = 2 pi / h the sum equals sum_m e^{cmP} P(S > q
+ mP), so that Chernoff bounds of the terms m != 0 bound it. c is taken near the saddle of the integrand, where nothing
cancels; h and the number of terms follow from the tolerance. Densities drop the factor 1/z. Lemma 3.4 of the paper, in
the tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc, exp1, logsumexp

from elbotree.runtime.errors import InputError, ToleranceError, UnsupportedError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.source_sums import SourceSum
from elbotree.runtime.tilted_sources import Sources, TiltedSources, powers

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

EPS = 2.3e-16
_BLOCK = 2048  # contour nodes whose factors are held at a time
_MANY = 1000  # nodes beyond which a contour bent around the pole is tried first
_BENT_NODES = 96  # that it begins with: fewer cost as much
_MAX_NODES = 1_000_000
_MAX_SPLITS = 2000
SOURCES_OF_ERROR = ("left alias", "right alias", "truncation", "rounding")


@dataclass(frozen=True)
class TailProbability:
    """A probability with its error by source.

    value      P; it underflows to 0 below 1e-308, where log_value goes on
    log_value  log P
    error      a bound on the absolute error of `value`
    relative_error  the same divided by P: a bound on the error of log_value too
    bound      the relative error by source: "left alias", "right alias", "truncation", "rounding" (a contour that was
               bent around a pole, and sums over several dimensions, put what halving the step changes under "step")
    nodes      terms of the sum
    tol        what was asked for; relative_error <= tol

    Arrays where the argument was an array.
    """

    value: Array
    log_value: Array
    error: Array
    relative_error: Array
    bound: dict[str, Array]
    nodes: int
    tol: float

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        """P, its error and log P, a line for each threshold."""
        rows = zip(*(np.ravel(part).tolist() for part in (self.value, self.error, self.log_value)), strict=True)
        return "\n".join(f"P = {value:.12g} ± {error:.1e}, log P = {log + 0.0:.12g}" for value, error, log in rows)

    @staticmethod
    @vanishing
    def from_logs(
        log_value: Array | float, bound: Mapping[str, Array | float], nodes: int, tol: float
    ) -> TailProbability:
        """From log P and the relative errors by source."""
        parts: dict[str, Array] = {name: np.asarray(part, dtype=np.float64)[()] for name, part in bound.items()}
        relative, logs = np.asarray(sum(parts.values()))[()], np.asarray(log_value, dtype=np.float64)[()]
        value = np.exp(logs)
        return TailProbability(value, logs, value * relative, relative, parts, nodes, tol)

    def complement(self) -> TailProbability:
        """1 - P, where P <= 1/2 or so (nothing cancels)."""
        value = -np.expm1(self.log_value)
        scale = self.value / value
        bound = {name: part * scale for name, part in self.bound.items()}
        bound["rounding"] = bound.get("rounding", np.zeros(())) + EPS
        relative = np.asarray(sum(bound.values()))[()]
        return TailProbability(value, np.log1p(-self.value), value * relative, relative, bound, self.nodes, self.tol)


@dataclass(frozen=True)
class TailGradient:
    """d log P(S > q) / d(loadings, shift, variance of the noise), with log P itself."""

    log_value: float
    loadings: Array
    shift: float
    variance: float
    nodes: int


@dataclass(frozen=True)
class Contour:
    """Where to sum, for every x in [x0, x1]: z_k = c + i k h, k < count. Bounds are relative to e^{level - c x}."""

    c: float
    level: float  # K(c)
    step: float
    count: int
    tilted: TiltedSources
    kappa: Array
    left: float
    right: float
    truncation: float


@dataclass(frozen=True)
class Part:
    """One term w P of a sum of probabilities: log w, log of a bound on P, and P to a relative tolerance."""

    log_weight: float
    log_bound: float
    probability: Callable[[float], TailProbability]


def total_of(parts: Sequence[Part], tol: float, budget: list[int]) -> TailProbability:
    """sum_k w_k P_k to relative accuracy tol, the largest first: each to the tolerance that the sum needs, or left out and
    bounded. Takes one from the budget for each part that is computed."""
    ranked = sorted(parts, key=lambda part: -(part.log_weight + part.log_bound))
    logs: list[float] = []
    found: list[TailProbability] = []
    total, left_out = -math.inf, -math.inf
    for part in ranked:
        bound = part.log_weight + part.log_bound
        if bound < total + math.log(1e-3 * tol / len(parts)):
            left_out = float(np.logaddexp(left_out, bound))
            continue
        budget[0] -= 1
        share = math.exp(min(max(total - bound, 0.0), 600.0)) if math.isfinite(total) else 1.0
        made = part.probability(min(0.05, 0.5 * tol * (share / len(parts) if share > len(parts) else 1.0)))
        found.append(made)
        logs.append(part.log_weight + float(made.log_value))
        total = _log_of_sum(logs)
    bounds: dict[str, Array] = {"truncation": np.asarray(math.exp(left_out - total))}
    for log, made in zip(logs, found, strict=True):
        for name, relative in made.bound.items():
            bounds[name] = bounds.get(name, np.zeros(())) + math.exp(log - total) * relative
    return TailProbability.from_logs(total, bounds, sum(made.nodes for made in found), tol)


@dataclass
class _Table:
    """K, K', K'' at ascending s."""

    s: Array
    K: Array
    K1: Array
    K2: Array


@dataclass
class Line:
    """The law of S = shift + <loadings, alpha> + N(0, variance), as contours see it; x stands for S - shift throughout.

    Raises UnsupportedError when there is no Gaussian noise: then the sum over the contour does not converge absolutely,
    and where sources have atoms P(S > q) jumps.
    """

    shift: float
    d: Array
    variance: float
    sources: Sources
    shift_error: float  # by how much the shift may be rounded
    d_error: Array  # the same of the loadings
    budget: list[int] = field(default_factory=lambda: [_MAX_SPLITS])

    @staticmethod
    def of(law: SourceSum) -> Line:
        if law.dimension != 1:
            raise InputError(f"a line is the law of one read-out; this one has {law.dimension}")
        errors = float(law.shift_error[0]), law.loading_error[0]
        return Line(float(law.shift[0]), law.loadings[0], float(law.noise[0, 0]), law.sources, *errors)

    def __post_init__(self) -> None:
        spread = float(np.abs(self.d).sum())
        if not self.variance > 1e-22 * spread**2:
            raise UnsupportedError(
                "the read-out carries no Gaussian noise (noise_std is 0, or the row is 0 or orthogonal to it), so "
                "that its "
                "law may have atoms and its inversion does not converge; give the input model a small noise_std"
            )

    @cached_property
    def reflected(self) -> Line:
        """The law of -S."""
        out = Line(-self.shift, -self.d, self.variance, self.sources, self.shift_error, self.d_error, self.budget)
        if "_table" in self.__dict__:
            t = self._table
            out.__dict__["_table"] = _Table(-t.s[::-1], t.K[::-1], -t.K1[::-1], t.K2[::-1])
        return out

    # ------------------------------------------------------------------ the log moment generating function

    @cached_property
    def domain(self) -> tuple[float, float]:
        """The open interval of s on which K is finite."""
        low, high = self.sources.domain
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.stack([low / self.d, high / self.d])[:, self.d != 0]
        if not ends.size:
            return -math.inf, math.inf
        return float(ends.min(axis=0).max()), float(ends.max(axis=0).min())

    @vanishing
    def cumulants(self, s: Array) -> tuple[Array, Array, Array, Array]:
        """K and three derivatives at s (G,), (G,) each."""
        k = self.sources.cumulants(np.multiply.outer(self.d, s))
        K = [np.tensordot(self.d**order, level, axes=(0, 0)) for order, level in enumerate(k)]
        return K[0] + 0.5 * self.variance * s**2, K[1] + self.variance * s, K[2] + self.variance, K[3]

    def _K(self, s: Array) -> Array:
        sources = self.sources.log_mgf(np.multiply.outer(self.d, s)).sum(axis=0)
        return np.asarray(sources + 0.5 * self.variance * s**2)

    @cached_property
    def std(self) -> float:
        return math.sqrt(float(self.cumulants(np.zeros(1))[2][0]))

    @cached_property
    def mean(self) -> float:
        """E S - shift."""
        return float(self.cumulants(np.zeros(1))[1][0])

    @cached_property
    def _table(self) -> _Table:
        low, high = self.domain
        top = 60.0 / math.sqrt(self.variance)
        s = np.concatenate([-self._side(-low, top)[::-1], [0.0], self._side(high, top)])
        return _Table(s, *self.cumulants(s)[:3])

    def _side(self, end: float, top: float) -> Array:
        """Points of (0, end): geometric from far below 1/std up, and geometric towards a finite end."""
        start = 0.03 / self.std
        if end == math.inf or end > 2 * top:
            return np.geomspace(start, top, 2 + int(math.log(top / start) / 0.22))
        towards = end * (1 - 0.7 ** np.arange(2, 52))
        low = np.geomspace(min(start, 0.2 * end), 0.5 * end, 2 + max(2, int(math.log(0.5 * end / start) / 0.22)))
        return np.concatenate([low, towards[towards > 0.505 * end]])

    def _grown(self, x: float, power: int) -> _Table:
        """The table, reaching far enough that a saddle for x lies inside."""
        while True:
            t = self._table
            if t.K1[-1] - power / t.s[-1] > x and t.K1[0] < x:
                return t
            low, high = self.domain
            right = t.K1[-1] - power / t.s[-1] <= x
            end, edge = (high, t.s[-1]) if right else (-low, -t.s[0])
            if edge * 1e6 < 1e300 and (end == math.inf or edge < 0.5 * end):
                more = np.geomspace(edge, min(30 * edge, 0.9 * end), 16)[1:]
            else:
                raise ToleranceError(
                    f"P(S > q) at q = {x + self.shift:g} lies so deep that the saddle cannot be told from the end "
                    "of the moment "
                    "generating function's domain in float64; ask for a less extreme q"
                )
            more = more if right else -more[::-1]
            new = self.cumulants(more)[:3]
            parts = [(t.s, more), (t.K, new[0]), (t.K1, new[1]), (t.K2, new[2])]
            joined = [np.concatenate([a, b] if right else [b, a]) for a, b in parts]
            self.__dict__["_table"] = _Table(*joined)

    def _saddle(self, x: float, power: int) -> tuple[float, float]:
        """c with K'(c) - power / c near x, and K''(c): read off the table, for the sum needs it to a few percent
        only."""
        t = self._grown(x, power)
        if power == 0:
            c = float(np.interp(x, t.K1, t.s))
            return c, float(np.interp(c, t.s, t.K2))
        first = int(np.searchsorted(t.s, 0.0, side="right"))
        s = t.s[first:]
        c = float(np.interp(x, t.K1[first:] - 1 / s, s))
        return c, float(np.interp(c, s, t.K2[first:]))

    def chernoff_quantile(self, log_epsilon: float) -> float:
        """q with P(S > q) <= e^log_epsilon, by the best Chernoff bound in the table."""
        t = self._table
        right = t.s > 0
        return self.shift + float(((t.K[right] - log_epsilon) / t.s[right]).min())

    # ------------------------------------------------------------------ the contour

    def contour(self, x0: float, x1: float, tol: float, power: int, deeper: float = 0.0) -> Contour:
        """A contour whose bounds, at every x in [x0, x1], come below tol of the estimated result times e^-deeper."""
        c, K2 = self._saddle(0.5 * (x0 + x1), power)
        tilted, kappa = self.sources.tilted(c * self.d)
        level = float(kappa.sum()) + 0.5 * self.variance * c * c
        size = self._log_size(c, K2, power)
        for x in {x0, x1} if x0 < x1 else ():
            own, own2 = self._saddle(x, power)
            at = float(self._K(np.array([own]))[0])
            size = min(size, at - own * x + self._log_size(own, own2, power) - (level - c * x))
        target = size + math.log(tol / 8) - deeper
        s, K = self._chernoff_points(c, K2)
        density = 0.0 if power else -0.5 * math.log(2 * math.pi * self.variance)
        away = s - c
        over = K - level - np.where(away > 0, away * x0, away * x1) + density
        if power:  # P(S > x) <= e^{K(s) - s x} needs s >= 0; a density needs no sign
            over = np.where(s >= 0, over, np.inf)
        reach = (over - target) / np.abs(away)
        sides = [np.flatnonzero(away < 0), np.flatnonzero(away > 0)]
        best = [int(side[np.argmin(reach[side])]) for side in sides]
        period = max(float(reach[j]) for j in best)
        left, right = (math.exp(over[j] - abs(away[j]) * period) / -math.expm1(-abs(away[j]) * period) for j in best)
        step = 2 * math.pi / period
        T, truncation = self._truncation(tilted, target, power, 40 * step)
        return Contour(c, level, step, 1 + math.ceil(T / step), tilted, kappa, left, right, truncation)

    @staticmethod
    def _log_size(c: float, K2: float, power: int) -> float:
        """log of the saddle-point estimate over e^{K(c) - c x}."""
        if power == 0:
            return -0.5 * math.log(2 * math.pi * K2)
        return -math.log(c) - 0.5 * math.log(2 * math.pi * (K2 + 1 / c**2))

    def _chernoff_points(self, c: float, K2: float) -> tuple[Array, Array]:
        """(s, K(s)) around c for Chernoff bounds: the table, and closer points where c is far out."""
        t = self._table
        s, K = t.s, t.K
        if abs(c) * math.sqrt(K2) > 12 or c >= s[-1] or c <= s[0]:
            offsets = np.array([0.7, 1.5, 2.5, 4.0, 6.0, 9.0, 14.0, 30.0]) / math.sqrt(K2)
            near = c + np.concatenate([-offsets[::-1], offsets])
            low, high = self.domain
            if high - c < 30 * offsets[0]:
                near = np.concatenate([near, c + (high - c) * np.array([0.3, 0.5, 0.7, 0.9])])
            if c - low < 30 * offsets[0]:
                near = np.concatenate([near, c - (c - low) * np.array([0.3, 0.5, 0.7, 0.9])])
            near = near[(near > low) & (near < high)]
            s, K = np.concatenate([s, near]), np.concatenate([K, self._K(near)])
        apart = np.abs(s - c) > 1e-9 * abs(c)
        return s[apart], K[apart]

    def _truncation(self, tilted: TiltedSources, target: float, power: int, short: float) -> tuple[float, float]:
        """(T, bound): the least T tried beyond which the terms sum to less than e^target.

        Beyond T the factors of the sources stay below their envelope at T, and the Gaussian factor integrates to
        E1(variance T^2 / 2) / (2 pi), or to an erfc without the 1/z. A T below `short` is taken as it is.
        """
        sigma = math.sqrt(self.variance)
        T = math.sqrt(2 * max(1.0, -target - (0 if power else math.log(sigma)))) / sigma
        if short >= T:  # not worth asking the sources
            u = 0.5 * self.variance * T * T
            return T, float(exp1(u) / (2 * math.pi) if power else erfc(math.sqrt(u)) / (sigma * math.sqrt(2 * math.pi)))
        tries = T * np.array([0.08, 0.16, 0.25, 0.35, 0.5, 0.7, 1.0, 1.2])
        v = 0.5 * self.variance * tries**2
        whole = exp1(v) / (2 * math.pi) if power else erfc(np.sqrt(v)) / (sigma * math.sqrt(2 * math.pi))
        bound = tilted.envelope(np.multiply.outer(np.abs(self.d), tries)) * whole
        index = int(np.argmax(bound <= math.exp(target))) if bound[-1] <= math.exp(target) else len(tries) - 1
        return float(tries[index]), float(bound[index])

    def terms(self, contour: Contour, power: int) -> tuple[ComplexArray, Array]:
        """a_k with P e^{c x - level} = Re sum_k a_k e^{-i k h x}, and an estimate of a_k's rounding error at x = 0."""
        a = np.empty(contour.count, dtype=np.complex128)
        for start in range(0, contour.count, _BLOCK):
            k = np.arange(start, min(start + _BLOCK, contour.count))
            a[k] = self._block(contour, k, power)
        a[0] *= 0.5
        y = contour.step * np.arange(contour.count)
        turns = float(np.abs(self.d) @ contour.tilted.reach()) + self.variance * abs(contour.c)
        return a, EPS * np.abs(a) * (16 + 2 * len(self.d) ** 0.5 + y * turns)

    def _gauss(self, contour: Contour, y: NDArray[np.floating[Any]], power: int) -> ComplexArray:
        angle = y * (self.variance * contour.c)
        gauss = np.exp(-0.5 * self.variance * y * y) * (np.cos(angle) + 1j * np.sin(angle)) * (contour.step / math.pi)
        return np.asarray(gauss / (contour.c + 1j * y) if power else gauss)

    def _blur(self, tilted: TiltedSources, x: Array | float) -> Array:
        """By how much rounding of the shift, the loadings and x = q - shift may move S."""
        own = self.shift_error + float(self.d_error @ tilted.reach())
        return np.asarray(own + (0.5 * EPS * np.abs(x) if self.shift else 0.0))

    def _phase(self, contour: Contour, k: NDArray[np.int64]) -> _LatticePhase:
        return _LatticePhase(contour.step * self.d, k)

    def _block(self, contour: Contour, k: NDArray[np.int64], power: int) -> ComplexArray:
        y = contour.step * k
        phi = contour.tilted.product(np.multiply.outer(self.d, y), self._phase(contour, k))
        return np.asarray(phi * self._gauss(contour, y, power))

    # ------------------------------------------------------------------ one point

    def upper(self, q: float, tol: float) -> TailProbability:
        """P(S > q); relative accuracy on both sides of the mean."""
        x = q - self.shift
        if x < self.mean:
            left = self.reflected._right(-x, self._slack(-x, tol))
            if left.log_value <= math.log(0.5):
                return replace(left.complement(), tol=tol)
        return self._right(x, tol)

    def _slack(self, x: float, tol: float) -> float:
        """The relative tolerance of P(S < q) that 1 - P(S < q) needs, by its Chernoff bound; x belongs to the
        reflection."""
        law = self.reflected
        c, _ = law._saddle(x, 1)
        exponent = float(law._K(np.array([c]))[0]) - c * x
        return min(0.1, tol * math.exp(-max(exponent, -600.0))) if exponent < 0 else tol

    def _right(self, x: float, tol: float) -> TailProbability:
        """P(S - shift > x) on a contour right of 0."""
        if self._beside_a_pole(x, tol):
            bent = self._bent(x, tol, 1)
            if bent is not None:
                return bent
        deeper = 0.0
        for _ in range(5):
            contour = self.contour(x, x, tol, 1, deeper)
            if contour.count > _MAX_NODES:
                split = self._split(x, tol, contour)
                if split is not None:
                    return split
                raise ToleranceError(
                    f"P(S > {x + self.shift:g}) would take {contour.count:,} nodes for tol = {tol:g}; raise "
                    "noise_std (the noise "
                    f"is {math.sqrt(self.variance):.2g} against a spread of {self.std:.2g}) or loosen tol"
                )
            a, rounding = self.terms(contour, 1)
            y = contour.step * np.arange(contour.count)
            value = float((a.real * np.cos(y * x) + a.imag * np.sin(y * x)).sum())
            level = EPS * (abs(contour.c * x) + float(np.abs(contour.kappa).sum()) + 0.5 * self.variance * contour.c**2)
            parts = [contour.left, contour.right, contour.truncation]
            noise = float(rounding.sum() + EPS * abs(x) * (y @ np.abs(a))) + level * abs(value)
            noise += float(self._blur(contour.tilted, x) * (np.abs(a) @ np.hypot(contour.c, y)))  # a unit brings down z
            total = sum(parts) + noise
            if value > 0 and total <= tol * value:
                bound = {name: np.float64(p / value) for name, p in zip(SOURCES_OF_ERROR, [*parts, noise], strict=True)}
                log_value = np.float64(contour.level - contour.c * x + math.log(value))
                return TailProbability.from_logs(log_value, bound, contour.count, tol)
            if noise > 0.5 * tol * value:
                split = self._split(x, tol, contour)
                if split is not None:
                    return split
                raise ToleranceError(
                    f"a tail probability of about exp({contour.level - contour.c * x:.6g}): one bit of the threshold, or of "
                    "what the inputs add up to, is worth a relative error of about "
                    f"{noise / max(value, 1e-300):.2g} in float64, above tol = {tol:g}; loosen tol, ask for a less extreme "
                    "point, or move a large offset out of the input"
                )
            deeper += math.log(total / (tol * value)) + 0.7
        raise ToleranceError(
            f"P(S > {x + self.shift:g}) did not reach tol = {tol:g} (relative error {total / value:.2g}); loosen tol"
        )

    def _beside_a_pole(self, x: float, tol: float) -> bool:
        """Whether the straight contour would be long for the pole beside it: steps of 2 pi (end - c) / log(8 / tol), as the
        right alias asks, to where the noise has died out."""
        end = self.domain[1]
        if end == math.inf:
            return False
        c, _ = self._saddle(x, 1)
        depth = math.log(8 / tol)
        nodes = depth * math.sqrt(2 * depth / self.variance) / (2 * math.pi * (end - c))
        return 2 * c > end and nodes > _MANY

    def _split(self, x: float, tol: float, contour: Contour) -> TailProbability | None:
        """P(S > q) = sum_k w_k P(S > q | source i is in its component k), for the source that spreads the tilted law
        most.

        Where the contour's terms cancel, or are too many, S has separate modes, and q lies in a gap between them; the sum
        over conditional laws has positive terms. None where nothing is left to split, or rounding is in the way.
        """
        spread = contour.tilted.between() * self.d**2
        depth_left = EPS * abs(contour.c * x) < 0.25 * tol
        if not len(spread) or not spread.max() > 0 or self.budget[0] <= 0 or not depth_left:
            return None
        parts = []
        for log_weight, sources in self.sources.conditioned(int(np.argmax(spread))):
            part = Line(self.shift, self.d, self.variance, sources, self.shift_error, self.d_error, self.budget)
            parts.append(Part(log_weight, part.log_bound(x), partial(part.upper, x + self.shift)))
        return total_of(parts, tol, self.budget)

    def log_bound(self, x: float) -> float:
        """log of a Chernoff bound on P(S - shift > x)."""
        c, _ = self._saddle(x, 1)
        return min(0.0, float(self._K(np.array([c]))[0]) - c * x)

    def _bent(self, x: float, tol: float, power: int) -> TailProbability | None:
        """The same integral on a hyperbola around the pole, z = c + A (cosh t - 1) + i B sinh t; None if it does not
        settle.

        Next to a pole the straight contour needs steps as short as the distance to it, all the way to where the noise
        dies out. The hyperbola leaves c along the path of steepest descent (curvature K''' / 3K'') and lets steps grow
        with the distance. It opens by more than 45 degrees to the real axis, so that Gaussian factors decay on it,
        and crosses the axis at c only, where poles and cuts are not. The step is halved until the sum settles: the rule
        converges geometrically, so that the next change is less than this one by more than this one was by the last.
        """
        c, K2 = self._saddle(x, power)
        t = self._table
        j = min(max(int(np.searchsorted(t.s, c)), 1), len(t.s) - 1)
        K3 = float((t.K2[j] - t.K2[j - 1]) / (t.s[j] - t.s[j - 1]))  # any hyperbola will do, a near one settles soonest
        bend = max(K3 / (3 * K2), 1e-12)
        B = min(2.2 / math.sqrt(K2), 0.8 / bend)
        A = bend * B * B
        tilted, kappa = self.sources.tilted(c * self.d)
        level = float(kappa.sum()) + 0.5 * self.variance * c * c
        decades = math.log(1e4 / tol)
        top = math.asinh(2 * math.sqrt(2 * decades / self.variance) / B)

        @vanishing
        def integrand(t: Array) -> tuple[ComplexArray, Array, Array]:
            w = A * (np.cosh(t) - 1) + 1j * B * np.sinh(t)
            phi = np.empty(len(t), dtype=np.complex128)
            for a in range(0, len(t), _BLOCK):
                phi[a : a + _BLOCK] = tilted.mgf(np.multiply.outer(self.d, w[a : a + _BLOCK]))
            z = c + w if power else 1.0
            exponent = w * (self.variance * c - x) + 0.5 * self.variance * w * w
            f = phi * np.exp(exponent) / z * (B * np.cosh(t) - 1j * A * np.sinh(t)) / math.pi
            size = np.abs(f)
            turns = 16 + 2 * len(self.d) ** 0.5 + np.abs(w) * (abs(x) + self.variance * c)
            return f, size * turns, size * np.abs(c + w)

        n = _BENT_NODES
        step = top / n
        with np.errstate(over="ignore", invalid="ignore"):
            f, size, slope = integrand(np.asarray(step * np.arange(n + 1), dtype=np.float64))
            f[0] *= 0.5
            last, before = abs(f[-1]), 2 * step * float(f[::2].real.sum())
            earlier = abs(before - 4 * step * float(f[::4].real.sum()))
            total, absolute, moved = complex(f.sum()), float(size.sum()), float(slope.sum())
            for _ in range(7):
                value = step * total.real
                changed = abs(value - before)
                change = changed * (min(1.0, changed / earlier) if earlier else 1.0)
                noise = EPS * (step * absolute + abs(value) * (abs(c * x) + float(np.abs(kappa).sum())))
                noise += float(self._blur(tilted, x)) * step * moved
                if math.isfinite(value) and value > 0 and change + noise + last <= tol * value:
                    parts = {"step": change, "truncation": last, "rounding": noise}
                    bound = {name: np.float64(part / value) for name, part in parts.items()}
                    log_value = np.float64(level - c * x + math.log(value))
                    return TailProbability.from_logs(log_value, bound, n, tol)
                f, size, slope = integrand(np.asarray(step * (np.arange(n) + 0.5), dtype=np.float64))
                total, absolute = total + complex(f.sum()), absolute + float(size.sum())
                moved += float(slope.sum())
                n, step, before, earlier = 2 * n, 0.5 * step, value, changed
        return None

    # ------------------------------------------------------------------ curves

    def curve(self, q: Array, tol: float, power: int) -> tuple[Array, Array, int]:
        """log P(S > q) (power 1) or the log density (power 0) at q (J,), their relative errors, and the nodes taken.

        Points share contours: one for each stretch over which a single c loses less than a few digits.
        """
        x = np.asarray(q, dtype=np.float64) - self.shift
        order = np.argsort(x)
        log_value, error = np.empty(len(x)), np.empty(len(x))
        nodes = 0
        slack = min(max(math.log(tol / 3e-14), 0.5), 5.0)
        start = 0
        while start < len(order):
            x0 = float(x[order[start]])
            _, K2 = self._saddle(x0, power)
            stop = int(np.searchsorted(x[order], x0 + math.sqrt(8 * slack * K2), side="right"))
            index = order[start : max(stop, start + 1)]
            log_value[index], error[index], used = self._stretch(x[index], tol, power)
            nodes += used
            start = max(stop, start + 1)
        return log_value, error, nodes

    def _stretch(self, x: Array, tol: float, power: int) -> tuple[Array, Array, int]:
        """The same on one contour; where it fails, in halves, and at last point by point."""
        x0, x1 = float(x[0]), float(x[-1])
        deeper = 0.0
        for _ in range(4):
            contour = self.contour(x0, x1, tol, power, deeper)
            if contour.count > 40_000:
                break
            a, rounding = self.terms(contour, power)
            value = _real_series(a, contour.step * x)
            y = contour.step * np.arange(contour.count)
            level = EPS * (
                np.abs(contour.c * x) + float(np.abs(contour.kappa).sum()) + 0.5 * self.variance * contour.c**2
            )
            floor = float(rounding.sum()) * 2 + EPS * np.abs(x) * float(y @ np.abs(a))
            floor = floor + self._blur(contour.tilted, x) * float(np.abs(a) @ np.hypot(contour.c, y))
            alias = contour.left + contour.right + contour.truncation
            relative = (alias + floor) / np.where(value > 0, value, 1e-300) + level
            if (relative <= tol).all():
                return contour.level - contour.c * x + np.log(value), relative, contour.count
            if (floor > 0.5 * tol * value).any():
                break
            deeper += float(np.log((relative / tol).max())) + 0.7
        if len(x) > 1:
            half = len(x) // 2
            parts = [self._stretch(part, tol, power) for part in (x[:half], x[half:])]
            (logs, errors, used), (logs2, errors2, used2) = parts
            return np.concatenate([logs, logs2]), np.concatenate([errors, errors2]), used + used2
        if power == 0:
            law, at = (self, x0) if contour.c > 0 else (self.reflected, -x0)
            bent = law._bent(at, tol, 0)
            if bent is not None:
                return np.array([bent.log_value]), np.array([bent.relative_error]), bent.nodes
            raise ToleranceError(
                f"the density at {x0 + self.shift:g} cannot be had to a relative error of {tol:g} in float64; "
                "loosen tol or "
                "raise noise_std"
            )
        one = self._right(x0, tol)
        return np.array([one.log_value]), np.array([one.relative_error]), one.nodes

    def upper_curve(self, q: Array, tol: float) -> TailProbability:
        """P(S > q) at q (J,), as `upper`."""
        x = q - self.shift
        log_value, relative = np.empty(len(q)), np.empty(len(q))
        below = x < self.mean
        nodes = 0
        if below.any():
            left, error, nodes = self.reflected.curve(-q[below], tol, 1)
            good = left <= math.log(0.5)
            which = np.flatnonzero(below)
            value = -np.expm1(np.where(good, left, -1.0))
            log_value[which] = np.log(value)
            relative[which] = EPS + error * np.exp(np.where(good, left, -1.0)) / value
            below[which[~good]] = False
        if not below.all():
            log_value[~below], relative[~below], more = self.curve(q[~below], tol, 1)
            nodes += more
        return TailProbability.from_logs(log_value, {"all": relative}, nodes, tol)

    # ------------------------------------------------------------------ inverse, gradient

    def isf(self, log_p: float, tol: float) -> tuple[float, float]:
        """q with log P(S > q) = log_p, and a bound on its error; Newton steps inside a shrinking bracket."""
        if log_p > math.log(0.5):
            q, error = self.reflected.isf(math.log(-math.expm1(log_p)), tol)
            return -q, error
        x = self._first_guess(log_p)
        low, high = -math.inf, math.inf
        for _ in range(200):
            found = self.upper(x + self.shift, tol)
            log_density = float(self.curve(np.array([x + self.shift]), 0.1, 0)[0][0])
            off = float(found.log_value) - log_p
            hazard = math.exp(log_density - float(found.log_value))
            low, high = (x, high) if off > 0 else (low, x)
            if abs(off) <= 2 * tol or high - low <= 4 * EPS * abs(x):
                error = (abs(off) + float(found.relative_error)) / max(hazard, 1e-300) + 4 * EPS * abs(x + self.shift)
                return x + self.shift, error
            jump = min(max(off / hazard, -8 * self.std), 8 * self.std)
            x = x + jump
            if not low < x < high:
                x = (
                    0.5 * (low + high)
                    if math.isfinite(low + high)
                    else (low + self.std if off > 0 else high - self.std)
                )
        raise ToleranceError(f"the quantile of log probability {log_p:g} did not settle; loosen tol")

    def _first_guess(self, log_p: float) -> float:
        """x from the saddle-point estimate over the table."""
        while True:
            t = self._table
            first = int(np.searchsorted(t.s, 0.0, side="right"))
            s, K, K1, K2 = t.s[first:], t.K[first:], t.K1[first:], t.K2[first:]
            x = K1 - 1 / s
            estimate = K - s * x - np.log(s) - 0.5 * np.log(2 * math.pi * (K2 + 1 / s**2))
            if estimate[-1] < log_p:
                break
            self._grown(2 * float(x[-1]) + self.std, 1)
        order = np.argsort(estimate)
        return float(np.interp(log_p, estimate[order], x[order]))

    def gradient(self, q: float, tol: float) -> TailGradient:
        """d log P(S > q) in the loadings, the shift and the noise's variance, from one contour.

        d/d loading_i brings down z kappa_i'(z d_i), d/d shift brings down z, d/d variance z^2 / 2; the 1/z goes.
        """
        x = q - self.shift
        if x < self.mean:
            left = self.reflected._right_gradient(-x, tol)
            if left.log_value <= math.log(0.5):
                ratio = math.exp(left.log_value) / -math.expm1(left.log_value)
                log_value = math.log1p(-math.exp(left.log_value))
                return TailGradient(
                    log_value, ratio * left.loadings, ratio * left.shift, -ratio * left.variance, left.nodes
                )
        return self._right_gradient(x, tol)

    def _right_gradient(self, x: float, tol: float) -> TailGradient:
        deeper = math.log(1e2)
        for _ in range(4):
            contour = self.contour(x, x, tol, 1, deeper)
            if contour.count > _MAX_NODES // 20:
                raise ToleranceError(
                    f"the gradient at {x + self.shift:g} would take {contour.count:,} nodes; raise noise_std"
                )
            sums = np.zeros(3 + len(self.d))
            absolute = 0.0
            for start in range(0, contour.count, _BLOCK):
                k = np.arange(start, min(start + _BLOCK, contour.count))
                y = contour.step * k
                phi, slopes = contour.tilted.slopes(np.multiply.outer(self.d, y), self._phase(contour, k))
                f = phi * self._gauss(contour, y, 0) * (np.cos(y * x) - 1j * np.sin(y * x))
                f[0] *= 0.5 if start == 0 else 1.0
                z = contour.c + 1j * y
                sums[0] += (f / z).real.sum()
                sums[1] += f.real.sum()
                sums[2] += 0.5 * (f * z).real.sum()
                sums[3:] += slopes.real @ f.real - slopes.imag @ f.imag
                absolute += float(np.abs(f / z) @ (16 + y * abs(x)))
            total = contour.left + contour.right + contour.truncation + EPS * absolute
            if total <= 0.1 * tol * sums[0]:
                log_value = contour.level - contour.c * x + math.log(sums[0])
                scaled = sums[1:] / sums[0]
                return TailGradient(log_value, scaled[2:], float(scaled[0]), float(scaled[1]), contour.count)
            if sums[0] <= 0 or EPS * absolute > 0.05 * tol * sums[0]:
                break
            deeper += math.log(total / (0.1 * tol * sums[0])) + 0.7
        raise ToleranceError(f"the gradient of log P(S > {x + self.shift:g}) did not reach tol = {tol:g}; loosen tol")


class _LatticePhase:
    """e^{i a t} at t = k step for consecutive k, from powers of one factor a source."""

    def __init__(self, steps: Array, k: NDArray[np.int64]) -> None:
        self.steps, self.start, self.count = steps, int(k[0]), len(k)

    def __call__(self, a: Array, index: NDArray[np.intp]) -> ComplexArray:
        angles = a * self.steps[index]
        out = powers(angles, self.count)
        return out if self.start == 0 else out * np.exp(1j * self.start * angles)[:, None]


def _real_series(a: ComplexArray, theta: Array) -> Array:
    """Re sum_k a_k e^{-i k theta_j}, (J,): low powers times high powers through one matrix product."""
    if len(theta) == 1:
        y = theta[0] * np.arange(len(a))
        return np.array([float((a.real * np.cos(y) + a.imag * np.sin(y)).sum())])
    width = max(1, int(math.sqrt(len(a))))
    rows = -(-len(a) // width)
    padded = np.zeros(rows * width, dtype=np.complex128)
    padded[: len(a)] = a
    low, high = powers(-theta, width), powers(-width * theta, rows)
    return np.asarray(np.einsum("jr,jr->j", low @ padded.reshape(rows, width).T, high).real)


@vanishing
def _log_of_sum(logs: Sequence[float]) -> float:
    return float(logsumexp(logs))
