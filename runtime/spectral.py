"""Expectations over f(x1) by characteristic functions: the default engine behind the generated kernels.

With z_j = <v_j, y - ybar>, v_j the rows of C_j made orthogonal to u in the metric of the noise, and beta = b - bbar,

    c_j = z_j + m_j(beta),        m_j(beta) = cbar_j + theta_j beta + kappa_j psi(bbar + beta),
    E g(c_j) = sum_p ghat(p) X(p),   X(p) = int h(p, beta) e^{i p Delta m_j(beta)} d beta,
    h(p, beta) = (step / 2 pi) sum_k E exp(i p Delta z_j + i k step beta') e^{-i k step beta}.

The orthogonal v_j keep every lattice well conditioned, whatever the angle between C_j and u; a direction in which c
carries no noise is met by a windowed series of g, whose own coefficients die out. The same lattice carries the
vector form Y, so that E[g f] costs no more dimensions; ranges come from Chernoff bounds, numbers of modes from
|ghat| and the Gaussian factor, frequencies of b from its noise. All from `tol`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime import rings
from elbotree.runtime.errors import CostError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.fourier import PADS, Period, Series, Spectrum, best_spectrum, finite, series_2d
from elbotree.runtime.frames import ROUNDOFF, Axis, Coordinate, Frame, FrameOfB, Term
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Problem
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.pair_blocks import Answer, LawData
from elbotree.runtime.pairs import Pairs, PairTerm, Task
from elbotree.runtime.rings import Ranges
from elbotree.runtime.single_blocks import Single, seconds

Array = NDArray[np.float64]

_COMPILE_FROM = (
    400_000  # pairs times sources times digits cubed: n = 8 is below at any tolerance, n = 16 at tol 1e-4 above
)
_OFTEN = 200  # from how many times less work on loops are compiled in training
_TAIL_SHARE = 0.003  # of tol, for the mass outside a coordinate's range: bounds on tails are looser than those on modes
_NOTICED = 0.05  # seconds of a call below which `_Budget` lets it pass
_SEEN = 1.0  # seconds of one lattice after which what it will take can be told
_WORTH = 2e-3  # seconds that the sums of one feature must take to be handed to an executor

_log = logging.getLogger(__name__)


@dataclass
class _Lines:
    """What lattices of pairs left to the functions' lines: line_j(c) = <e_j, F> (rows of `e`, `d` for the other functions),
    E[g F] and E[h F] with their errors, and E[F F^T]."""

    on: Array  # (a, b): 1 where a pair is on a lattice
    e: Array
    d: Array
    rows_g: Estimate
    rows_h: Estimate
    FF: Array
    FF_error: Array

    def values(self) -> Array:
        """<e_j, E[h_k F]> + <d_k, E[g_j F]> - e_j^T E[F F^T] d_k, (a, b)."""
        return self.on * (self.e @ self.rows_h.value.T + self.rows_g.value @ self.d.T - self.e @ self.FF @ self.d.T)

    def errors(self) -> Array:
        """A bound on the error of each, (a, b)."""
        e, d = np.abs(self.e), np.abs(self.d)
        return self.on * (e @ self.rows_h.error.T + self.rows_g.error @ d.T + e @ self.FF_error @ d.T)

    def error_of_sum(self, weights: Array) -> float:
        """A bound on the error of sum_jk weights[j, k] values()[j, k]: lines of many pairs meet the same few numbers."""
        w = weights * self.on
        met = np.sum(np.abs(w.T @ self.e) * self.rows_h.error) + np.sum(np.abs(w @ self.d) * self.rows_g.error)
        return float(met + np.sum(np.abs(self.e.T @ w @ self.d) * self.FF_error))


@dataclass
class _Products:
    """E[g_j h_k] for pairs, with two kinds of error: tails may all have one sign, errors behave like independent ones."""

    values: Array
    tails: Array
    errors: Array
    symmetric: bool
    lines: _Lines | None = None

    def estimate(self) -> Estimate:
        """All of them, each with the bound on its own error."""
        if self.lines is None:
            return Estimate(self.values, self.tails + self.errors)
        return Estimate(self.values + self.lines.values(), self.tails + self.errors + self.lines.errors())

    def sum(self, weights: Array) -> Estimate:
        """sum_jk weights[j, k] E[g_j h_k]; its error takes three standard deviations of independent errors, or their plain
        sum where that is less."""
        apart = np.abs(weights) * self.errors
        if self.symmetric:  # (j, k) and (k, j) are one number
            apart = np.triu(apart + apart.T) - np.diag(np.diag(apart))
        error = min(float(apart.sum()), float(3 * np.sqrt((apart**2).sum()))) + float(
            (np.abs(weights) * self.tails).sum()
        )
        value = float((self.values * weights).sum())
        if self.lines is not None:
            value += float((self.lines.values() * weights).sum())
            error += self.lines.error_of_sum(weights)
        return Estimate.of(value, error)


@dataclass
class _Begun:
    """E[g_j h_k] for pairs, under way: which pairs are made how, and the answers of those on lattices as they come.

    linear   one of the two is linear in its c
    of_one   both are functions of one coordinate, or of b: with their product, to a tolerance
    known    remembered from before: value, tail, error
    tiles    of those on lattices the others, as `walked` gives their answers; `level`, and whether all are posterior `means`
    """

    gs: Sequence[Integrand]
    hs: Sequence[Integrand]
    weights: Array | None
    symmetric: bool
    importance: Array
    linear_g: list[tuple[float, ...] | None]
    linear_h: list[tuple[float, ...] | None]
    linear: list[Task] = field(default_factory=list)
    of_one: list[tuple[int, int, float, Callable[[float], Term]]] = field(default_factory=list)
    known: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    means: bool = False
    level: int = 0
    on_lattices: list[Task] = field(default_factory=list)
    tiles: list[list[Task]] = field(default_factory=list)
    walked: Iterator[tuple[Sequence[PairTerm], Answer]] = field(default_factory=lambda: iter(()))

    def serves(self, gs: Sequence[Integrand], hs: Sequence[Integrand], weights: Array | None) -> bool:
        """Whether these are the posterior means that were begun, with the same weights."""
        means = all(_both_means(g, h) for g, h in zip(gs, hs, strict=False))
        same = means and _labels(gs) == _labels(hs) == _labels(self.gs)
        return same and weights is not None and np.array_equal(weights, self.weights)  # type: ignore[arg-type]


class _Budget:
    """Seconds that functions of single features may take to be computed, which may be quadratures: what a call will take is
    foreseen from the one before, by the clock, and refused where it is too much."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.spent = seconds, 0.0
        self._each: dict[str, float] = {}  # seconds a value

    def value(self, g: Integrand) -> Callable[..., Array]:
        """g's value. What it gives raises CostError."""

        def within(*c: Array) -> Array:
            count = int(np.size(c[0]))
            expected = self._each.get(g.label, 0.0) * count
            if expected > _NOTICED and self.spent + expected > self.seconds:
                raise CostError(
                    f"functions of single features would take about {self.spent + expected:.2g} s to expand, {_name(g)} alone "
                    f"{expected:.2g} s more, which is beyond max_seconds = {self.seconds:g}; loosen tol, choose a family or a base "
                    "whose expectations are closed forms, or allow more"
                )
            begun = perf_counter()
            found = g.value(*c)
            took = perf_counter() - begun
            self.spent += took
            self._each[g.label] = took / count
            return found

        return within

    def pace(self, took: float, seconds: float, share: float) -> None:
        """Sums of one lattice took so long, and with those before them, a share of all of its sums, `seconds`. Raises CostError."""
        self.spent += took
        left = seconds * max(1.0 / share - 1.0, 0.0)
        if seconds > _SEEN and self.spent + left > self.seconds:
            raise CostError(
                f"lattices of single features would take about {self.spent + left:.2g} s, one of them {left:.2g} s more, which is "
                f"beyond max_seconds = {self.seconds:g}; loosen tol, raise input.noise_std, choose a family of one parameter or a "
                "psi that is less steep, or allow more"
            )


class SpectralExpectations:
    """The engine of `Expectations` that works in frequency space.

    Arguments:
        layer, p1, encoder: the law of f(x1) and the projections c_j = C_j f + bias_j
        tol: absolute error that each weighted sum asked of the engine should keep below (the `error` of what it
            returns says what was reached)
        pair_tol: the same for sums over pairs of features, where nearly all time goes; left out, it is tol
        threads: how many threads walk lattices; left out, as many as there are processors
        executor: walks them instead, in its own threads or processes; the bits are the same
        gradient_tol: the same for the sums that carry F = (f, 1); given, gradients will be asked for, and the sums of a
            pair are made for value and gradient at once. Left out, it is tol
        often: many engines of this size follow, as in training, so that compiled loops pay from less work on
        max_seconds, max_memory: estimates of the pairs' time (s; of an executor's workers together) and memory (bytes a
            process) beyond which CostError is raised before they are begun; the same for the time of expanding functions
            of single features

    Raises InputError for a tol out of range, and what `OutputLaw` raises.
    """

    def __init__(
        self,
        layer: Layer,
        p1: FeatureModel,
        encoder: Encoder,
        *,
        tol: float = 1e-8,
        pair_tol: float | None = None,
        gradient_tol: float | None = None,
        threads: int | None = None,
        max_seconds: float | None = None,
        max_memory: float | None = None,
        executor: Executor | None = None,
        often: bool = False,
    ) -> None:
        self.output = OutputLaw(layer, p1, tol)
        self.encoder, self.tol = encoder, float(tol)
        self.pair_tol = float(tol if pair_tol is None else pair_tol)
        self.gradient_tol = float(tol if gradient_tol is None else gradient_tol)
        self.max_seconds, self.max_memory = max_seconds, max_memory
        self._budget = None if max_seconds is None else _Budget(max_seconds)
        self.w = layer.w
        # compiled loops pay from a certain amount of work on; a rule by size, not by time, gives the same bits every time
        size = len(encoder) ** 2 * len(self.output.lattice_law.priors) * np.log10(1 / self.pair_tol) ** 3
        self._compiled = bool(size > _COMPILE_FROM / (_OFTEN if often else 1 if gradient_tol is None else 6))
        threads = threads or os.cpu_count() or 1
        self.pairs = Pairs(self.output, encoder, self._compiled, gradient_tol is not None, threads, executor)
        self._coordinates: dict[tuple[int, int], Coordinate] = {}
        self._constants: dict[tuple[int, int], float | None] = {}
        self._largest_entries: dict[tuple[int, int], int] = {}
        self._ranges: dict[tuple[int, int, int], Ranges] = {}
        self._axes: dict[tuple[int, int, int, int], Axis] = {}
        self._paddings: dict[tuple[int, int, int, int], int] = {}
        self._singles: dict[int, Frame] = {}
        self._terms_of_b: dict[int, tuple[Integrand, Term]] = {}
        self._spectra: dict[tuple[int, int], tuple[Integrand, Spectrum]] = {}
        self._sizes: dict[tuple[int, int], tuple[Integrand, float]] = {}
        self._mean_pairs: dict[tuple[str, str, int], tuple[float, float, float, float]] = {}
        self._mean_level = 1
        self._begun: _Begun | None = None

    @classmethod
    def for_problem(
        cls,
        problem: Problem,
        tol: float,
        gradient_tol: float | None = None,
        max_seconds: float | None = None,
        max_memory: float | None = None,
        executor: Executor | None = None,
        sizes: Mapping[str, float] | None = None,
        often: bool = False,
    ) -> SpectralExpectations:
        """An engine under which all twelve nodes of the problem's tree meet tol * max(1, |value|).

        R3 divides S1 and the T's by 2 sigma2^2, and sums add errors: of tol * min(1, 2 sigma2^2), T3 gets three quarters
        and each of the other leaves a twenty-fourth. `sizes`: what max(1, |value|) is at least, of nodes where that is known
        to be more than 1; all leaves may then err by more.
        """
        divided = 2 * problem.model.noise_std**2
        above = {"T3": 1.0, "S2": 1.0, "R3": divided, "L": divided}
        share = tol * min(factor * (sizes or {}).get(node, 1.0) for node, factor in above.items())
        leaf = max(1e-14, min(share / 24, tol / 3))  # T1 has three leaves of its own
        return cls(
            problem.layer,
            problem.input,
            problem.encoder,
            tol=min(leaf, 0.5),
            pair_tol=min(max(1e-14, 0.75 * share), 0.5),
            gradient_tol=gradient_tol,
            max_seconds=max_seconds,
            max_memory=max_memory,
            executor=executor,
            often=often,
        )

    @cached_property
    def _moments(self) -> tuple[Array, Array, Array]:
        """E f, E f f^T and the errors of E F F^T: one lattice of one mode, so that it may as well be good."""
        return self._finer.f_moments

    @cached_property
    def _f_size(self) -> Array:
        """How large f is where tails are cut, (n2,)."""
        return self._finer.f_size

    @cached_property
    def _finer(self) -> OutputLaw:
        tol = max(1e-3 * self.tol, 1e-14)
        return self.output.at(tol) if tol < self.tol else self.output

    # ------------------------------------------------------------------ what needs no encoder

    def mean_f(self) -> Estimate:
        """E f(x1), (n2,)."""
        return self.output.mean_f()

    def norm_y(self, centre: Array) -> Estimate:
        """E|y - centre|^2, in closed form."""
        return self.output.norm_y(centre)

    def of_b(self, g: Callable[[Array], Array], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        """E[g(b)], or E[<y - centre, along> g(b)]; g smooth between psi's breaks."""
        return self.output.of_b(g, along=along, centre=centre)

    # ------------------------------------------------------------------ coordinates, periods, series

    def _coordinate(self, j: int, r: int) -> Coordinate:
        if (j, r) not in self._coordinates:
            q = self.encoder[j]
            self._coordinates[j, r] = self.output.coordinate(q.C[r], float(q.bias[r]))
        return self._coordinates[j, r]

    def _range(self, j: int, r: int, level: int) -> Ranges:
        if (j, r, level) not in self._ranges:
            self._ranges[j, r, level] = self._coordinate(j, r).ranges(self._log_epsilon(level))
        return self._ranges[j, r, level]

    def _level(self, g: Integrand, tol: float) -> tuple[int, float]:
        """Which range of c to expand g on (a level of 0 leaves 0.3 % of tol outside, each further one e^3 less), and the
        bound on what is outside, the aliases of a period included (see `rings`)."""
        level = 0
        while True:
            tail = 4 * self._beyond(g, level) * float(np.exp(self._log_epsilon(level)))
            if tail <= 0.5 * tol or level >= 60:
                return level, tail
            level += max(1, int(np.ceil(min(20.0, np.log(2 * tail / tol) / 3))))

    def _beyond(self, g: Integrand, level: int) -> float:
        """How large g is outside the range of c of a level, in the mean, and at least its size inside; remembered for as long as
        g itself."""
        key = (id(g), level)
        if key not in self._sizes:
            ranges = self._range(g.feature, g.uses[0], level)
            self._sizes[key] = (g, rings.mean(rings.largest(_name(g), self._value(g), ranges)))
        return self._sizes[key][1]

    def _value(self, g: Integrand) -> Callable[..., Array]:
        return g.value if self._budget is None else self._budget.value(g)

    def _log_epsilon(self, level: int) -> float:
        return float(np.log(_TAIL_SHARE * self.tol)) - 3.0 * level

    def _axis(self, j: int, r: int, level: int, pad: int) -> Axis:
        key = (j, r, level, pad)
        if key not in self._axes:
            lo, hi = self._range(j, r, level).first
            self._axes[key] = Axis(self._coordinate(j, r), Period(lo, hi, PADS[pad]))
        return self._axes[key]

    def _expand(self, g: Integrand, sigma: float, tol: float) -> tuple[Axis, Series, float]:
        """g on an axis of its coordinate, for noise sigma.

        Functions of one coordinate share an axis wherever they can, since all sums of a lattice are then made once: a
        wider range than needed serves too, and the first function chooses the padding for all that see about as much
        noise, unless that leaves too much out.
        """
        j, r = g.feature, g.uses[0]
        level, tail = self._level(g, tol)
        level = max((l for a, b, l, _ in self._paddings if (a, b) == (j, r) and level <= l <= level + 3), default=level)
        # spectra are made to a quarter of a power of 100, so that nearby tolerances share them
        fine = float(100.0 ** np.floor(np.log(tol / 4) / np.log(100.0)))
        enough = sigma >= 0.6 * self._coordinate(j, r).sigma
        key = (j, r, level, 0 if enough else -1 if sigma == 0.0 else int(np.floor(np.log(sigma))) + 1000)
        name, noise = _name(g), self._coordinate(j, r).sigma
        if key not in self._paddings:
            lo, hi = self._range(j, r, level).first
            chosen = best_spectrum(self._value(g), lo, hi, sigma, fine, name, noise)
            self._paddings[key] = PADS.index(chosen.period.pad)
            self._spectra[id(g), id(self._axis(j, r, level, self._paddings[key]))] = (g, chosen)
        axis = self._axis(j, r, level, self._paddings[key])
        made = self._spectra.get((id(g), id(axis)))
        if made is None or made[1].tol > fine:
            # the integrand is kept beside its spectrum, so that its id stays taken
            made = self._spectra[id(g), id(axis)] = (g, Spectrum(self._value(g), axis.period, fine, name, noise))
        cut = made[1].cut(sigma, tol / 4)
        if cut.error > tol:
            lo, hi = axis.period.lo, axis.period.hi
            chosen = best_spectrum(self._value(g), lo, hi, sigma, fine, name, noise)
            other = chosen.cut(sigma, tol / 4)
            if other.error < 0.5 * cut.error:
                axis, cut = self._axis(j, r, level, PADS.index(chosen.period.pad)), other
                self._spectra[id(g), id(axis)] = (g, chosen)
        return axis, cut, tail

    # ------------------------------------------------------------------ expectations of one feature

    def _polynomial(self, g: Integrand, degree: int) -> tuple[float, ...] | None:
        """g's coefficients when it is a polynomial of at most this degree (also when c is a constant), else None."""
        if g.coefficients is not None and len(g.coefficients) <= degree + 1:
            return g.coefficients
        at = [self._fixed(g.feature, r) for r in g.uses]
        if at and None not in at:
            return (float(np.ravel(g.value(*[np.array([x]) for x in at]))[0]),)
        return None

    def _fixed(self, j: int, r: int) -> float | None:
        """The value of a coordinate that does not vary; None for one that does."""
        if (j, r) not in self._constants:
            lo, hi = self._range(j, r, 0).first
            still = hi - lo <= 1e-13 * max(1.0, abs(lo), abs(hi))
            self._constants[j, r] = 0.5 * (lo + hi) if still else None
        return self._constants[j, r]

    def _row(self, g: Integrand) -> tuple[Array, float]:
        if not g.uses:
            return np.zeros(len(self.w)), 0.0
        q = self.encoder[g.feature]
        return q.C[g.uses[0]], float(q.bias[g.uses[0]])

    def _frame(self, axes: Sequence[Axis], modes: NDArray[np.int64]) -> Frame:
        out = self.output
        pace = None if self._budget is None else self._budget.pace
        return Frame(out.lattice_law, out.transform, out.u, out.w, axes, modes, self._compiled, pace)

    def _of_b(self, g: Integrand) -> Callable[[Array], Array] | None:
        """g as a function of beta, where all its coordinates are functions of b alone; else None."""
        transform = self.output.transform
        if transform is None or not self._moves_with_b(g):
            return None
        coordinates = [self._coordinate(g.feature, r) for r in g.uses]

        def of_b(beta: Array) -> Array:
            psi = transform.psi.value(transform.bbar + beta)
            return finite(_name(g), self._value(g), *(c.center + c.theta * beta + c.kappa * psi for c in coordinates))

        return of_b

    def _moves_with_b(self, g: Integrand) -> bool:
        """Whether all coordinates of g, if it has any, are functions of b alone."""
        return bool(g.uses) and all(self._coordinate(g.feature, r).of_b for r in g.uses)

    def _term_of_b(self, g: Callable[[Array], Array]) -> Term:
        """A function of beta as one sum over the frequencies of b."""
        transform = self.output.transform
        assert transform is not None
        integrals, largest, missed = transform.integrals(g)
        frame = FrameOfB(self.output.lattice_law, transform, self.output.u, self.output.w, integrals / largest)
        beyond = rings.mean(np.maximum(self.output.beyond(g), largest))
        return Term(frame, np.array([largest + 0j]), self.output.b_error * beyond + missed)

    def _term(self, g: Integrand, tol: float) -> Term:
        """g as a sum over the modes of its own coordinates."""
        if (of_b := self._of_b(g)) is not None:
            if id(g) not in self._terms_of_b:
                # the integrand is kept beside its term, so that its id stays taken
                self._terms_of_b[id(g)] = g, self._term_of_b(of_b)
            return self._terms_of_b[id(g)][1]
        if len(g.uses) == 2:
            at = [self._fixed(g.feature, r) for r in g.uses]
            if at == [None, None]:
                return self._double_term(g, tol)
            varies = at.index(None)
            g = Integrand(g.feature, (g.uses[varies],), _holding(g.value, 1 - varies, at[1 - varies]), None, g.label)
        if len(g.uses) != 1:
            raise UnsupportedError(
                f"{g.label or 'an integrand'} of encoder[{g.feature}] depends on {len(g.uses)} encoder parameters at once; the "
                "spectral method covers at most 2 (a lattice over each, and one over b)"
            )
        axis, s, tail = self._expand(g, self._coordinate(g.feature, g.uses[0]).sigma, tol)
        frame = self._singles.get(id(axis))
        if frame is None or len(frame.modes) <= s.P:
            frame = self._frame([axis], np.arange(int(1.3 * s.P) + 1)[:, None])
            self._singles[id(axis)] = frame
        edge = slice((s.P + 1) // 2, s.P + 1)
        # b leaves its range where g may be large too
        tail += self.output.b_error * max(s.largest, self._beyond(g, 0))
        return Term(frame, s.half(), tail + s.unresolved, s.dropped, edge, s.P + 1)

    def _double_term(self, g: Integrand, tol: float) -> Term:
        coordinates = [self._coordinate(g.feature, r) for r in g.uses]
        boxes, outside, largest = rings.boxes(_name(g), self._value(g), coordinates, tol / 32)
        axes = [Axis(c, Period(*box.first, PADS[1])) for c, box in zip(coordinates, boxes, strict=True)]
        V = np.array([c.v for c in coordinates])
        noise = V @ self.output.lattice_law.noise @ V.T
        double = series_2d(self._value(g), [a.period for a in axes], noise, tol / 4, _name(g))
        frame = self._frame(axes, double.modes)
        beyond = (8 * outside + self.output.b_error) * largest + double.unresolved
        sizes = np.abs(double.coefficients) * frame.noise
        edge = np.argsort(sizes)[: len(sizes) // 2]
        return Term(frame, double.coefficients, beyond, double.dropped, edge)

    def _terms(
        self, asked: Sequence[tuple[int, Integrand, float]], order: int, along: Array | None = None
    ) -> list[tuple[int, Term]]:
        """Each (i, g, tol) as i with its sum, `order` saying what will be read of its frame (`Frame.sums`; `along` by i).
        Frames that are worth a journey are handed to an executor as they are found, and taken from it."""
        terms: list[tuple[int, Term]] = []
        frames: list[tuple[Frame, Array | None]] = []
        known: set[int] = set()

        def singles() -> Iterator[Single]:
            for i, g, tol in asked:
                term = self._term(g, tol)
                terms.append((i, term))
                frame, v = term.frame, None if along is None else along[i]
                if frame.lacks(order) and seconds(frame, order) > _WORTH and (order == 2 or id(frame) not in known):
                    known.add(id(frame))
                    frames.append((frame, v))
                    yield Single.of(frame, order, v)

        with self.pairs.crew.singles(self._law_data, singles()) as found:
            for number, sums in found:
                frame, v = frames[number]
                frame.take(frame.sums(order, v) if sums is None else sums, v)
        return terms

    @cached_property
    def _law_data(self) -> LawData:
        out = self.output
        return LawData.of(out.lattice_law, out.transform, out.u, out.w, self._compiled)

    def of_c_each(self, gs: Sequence[Integrand], *, weights: Array | None = None) -> Estimate:
        """E[g_i(c)] for each i, (len,); weights only say how much each error matters."""
        values, errors = np.zeros(len(gs)), np.zeros(len(gs))
        shares = np.ones(len(gs)) if weights is None else np.abs(weights)
        on_lattices = []
        for i, g in enumerate(gs):
            if shares[i] == 0.0:
                continue
            coefficients = self._polynomial(g, 2)
            if coefficients is not None:
                values[i], errors[i] = self._moment(g, coefficients)
            else:
                on_lattices.append((i, g, min(self.tol / (shares[i] * len(gs)), 0.5)))
        for i, term in self._terms(on_lattices, 0):
            values[i], errors[i] = term.value()
        for i, g in enumerate(gs):
            errors[i] += self._cancelled(g) if shares[i] else 0.0
        return Estimate(values, errors)

    def _cancelled(self, g: Integrand) -> float:
        """What rounding leaves uncertain of a tilted posterior's divergence <c, E beta> - Lambda(c) - ..., a difference of numbers
        as large as c beta, where c is huge; 0 for any other function."""
        q = self.encoder[g.feature]
        if q.base is None or not g.label.startswith("K[") or not g.uses:
            return 0.0
        ends = np.array(self._range(g.feature, g.uses[0], 0).first)
        return 8 * ROUNDOFF * float(np.abs(ends * q.base.log_partition(ends, q.parameters["precision"], 1)).max())

    def _moment(self, g: Integrand, coefficients: tuple[float, ...]) -> tuple[float, float]:
        """E of a polynomial of degree <= 2 in c, from the first two moments of f."""
        g0, g1, g2 = (*coefficients, 0.0, 0.0, 0.0)[:3]
        first, second, error = self._moments
        row, bias = self._row(g)
        c1 = float(row @ first) + bias
        c2 = float(row @ second @ row) + 2 * bias * float(row @ first) + bias**2
        size = np.append(np.abs(row), abs(bias))
        of_c, of_square = float(error[-1] @ size), float(size @ error @ size)
        return g0 + g1 * c1 + g2 * c2, abs(g1) * of_c + abs(g2) * of_square + 4 * ROUNDOFF * abs(g0)

    def of_c(
        self, gs: Sequence[Integrand], *, weights: Array, along: Array | None = None, centre: Array | None = None
    ) -> Estimate:
        """sum_i weights[i] E[g_i(c)], or sum_i weights[i] E[<f - centre, along[i]> g_i(c)]."""
        weights = np.asarray(weights, dtype=np.float64)
        if along is None:
            return (self.of_c_each(gs, weights=weights) * weights).sum()
        rows = self._F_rows(gs, np.abs(weights[:, None] * along))
        mu = np.zeros(len(self.w)) if centre is None else centre
        extended = np.concatenate([along, -(along @ mu)[:, None]], axis=1) * weights[:, None]
        return (rows * extended).sum()

    def _F_rows(self, gs: Sequence[Integrand], importance: Array | None = None) -> Estimate:
        """E[g_i(c) F], F = (f, 1), (len, n2 + 1)."""
        n = len(self.w)
        values, errors = np.zeros((len(gs), n + 1)), np.zeros((len(gs), n + 1))
        first, second, error = self._moments
        on_lattices = []
        for i, g in enumerate(gs):
            weight = 1.0 if importance is None else float(importance[i] @ self._f_size)
            if weight == 0.0:
                continue
            coefficients = self._polynomial(g, 1)
            if coefficients is not None:
                g0, g1 = (*coefficients, 0.0)[:2]
                row, bias = self._row(g)
                values[i, :n] = (g0 + g1 * bias) * first + g1 * (second @ row)
                values[i, n] = g0 + g1 * (float(row @ first) + bias)
                errors[i] = error @ np.append(np.abs(g1 * row), abs(g0 + g1 * bias))
                continue
            scale = max(1.0, float(self._f_size.max(initial=0.0)))
            share = max(weight, scale if importance is None else 0.0) * len(gs)
            on_lattices.append((i, g, min(self.tol / share, 0.5)))
        for i, term in self._terms(on_lattices, 1):
            values[i], errors[i] = term.F(self._f_size)
        return Estimate(values, errors)

    def of_c_F(self, gs: Sequence[Integrand], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        """E[g_i(c) F] or E[<f - centre, along[i]> g_i(c) F], F = (f, 1), (len, n2 + 1)."""
        if along is None:
            return self._F_rows(gs)
        n = len(self.w)
        values, errors = np.zeros((len(gs), n + 1)), np.zeros((len(gs), n + 1))
        mu = np.zeros(n) if centre is None else centre
        first, second, of_FF = self._moments
        offsets, sizes = along @ mu, np.abs(along) @ (self._f_size + np.abs(mu))
        on_lattices = []
        for i, (g, v) in enumerate(zip(gs, along, strict=True)):
            if not np.any(v):
                continue
            size, offset = float(sizes[i]), float(offsets[i])
            coefficients = self._polynomial(g, 0)
            if coefficients is not None:
                values[i, :n] = coefficients[0] * (second @ v - offset * first)
                values[i, n] = coefficients[0] * (float(first @ v) - offset)
                errors[i] = abs(coefficients[0]) * (of_FF @ np.append(np.abs(v), abs(offset)))
                continue
            scale = size * max(1.0, float(self._f_size.max(initial=0.0)))
            on_lattices.append((i, g, min(self.gradient_tol / (scale * len(gs)), 0.5)))
        for i, term in self._terms(on_lattices, 2, along):
            # first, since it brings the others along
            along_f, along_error = term.vector(term.frame.f_along(along[i]), sizes[i] * self._f_size)
            plain, error = term.F(self._f_size)
            values[i, :n] = along_f - offsets[i] * plain[:n]
            values[i, n] = float(along[i] @ plain[:n]) - offsets[i] * plain[n]
            errors[i, :n] = along_error + abs(offsets[i]) * error[:n]
            errors[i, n] = float(np.abs(along[i]) @ error[:n]) + abs(offsets[i]) * error[n]
        return Estimate(values, errors)

    def moments_fs(self, gs: Sequence[Integrand], centre: Array | None = None) -> Estimate:
        """M = E[(f - centre) g_j(c_j)], (n2, m)."""
        rows = self._F_rows(gs)
        n = len(self.w)
        mu = np.zeros(n) if centre is None else centre
        value = rows.value[:, :n] - np.outer(rows.value[:, n], mu)
        error = rows.error[:, :n] + np.outer(rows.error[:, n], np.abs(mu))
        return Estimate(value.T.copy(), error.T.copy())

    # ------------------------------------------------------------------ expectations of pairs

    def of_cc(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        """sum_jk weights[j, k] E[g_j(c_j) h_k(c_k)]."""
        return self._products(gs, hs, weights).sum(weights)

    def moments_ss(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array | None = None) -> Estimate:
        """G = E[g_j(c_j) h_k(c_k)], (len(gs), len(hs)); weights only say how much each error matters, and without them G is
        part of a gradient and meets its tolerance."""
        return self._products(gs, hs, weights).estimate()

    @contextmanager
    def under_way(self, means: Sequence[Integrand], weights: Array) -> Iterator[None]:
        """Pairs of posterior means that will be asked for inside, with these weights (`of_cc`, `moments_ss`): an executor walks
        them from now on, while this process makes sums over single features. They are given up where the context ends first."""
        with ExitStack() as walks:
            self._begun = self._begin(means, means, weights, walks)
            try:
                yield
            finally:
                self._begun = None

    def _products(self, gs: Sequence[Integrand], hs: Sequence[Integrand], weights: Array | None) -> _Products:
        """E[g_j(c_j) h_k(c_k)] for all pairs that the weights ask for.

        Pairs of posterior means (the integrands labelled s[j], of which an encoder has one each) are remembered, so that
        T3, the decoder's closed form and the gradient share them.
        """
        begun = self._begun
        if begun is not None and begun.serves(gs, hs, weights):
            self._begun = None
            return self._finish(begun)
        with ExitStack() as walks:
            return self._finish(self._begin(gs, hs, weights, walks))

    def _begin(
        self, gs: Sequence[Integrand], hs: Sequence[Integrand], weights: Array | None, walks: ExitStack
    ) -> _Begun:
        """Sort the pairs by how they are made, and hand out those that need lattices."""
        a, b = len(gs), len(hs)
        symmetric = gs is hs or _labels(gs) == _labels(hs) == [f"s[{g.feature}]" for g in gs]
        importance = np.ones((a, b)) if weights is None else np.abs(weights)
        if symmetric:
            importance = 0.5 * (importance + importance.T)
        share = _shared(self.gradient_tol if weights is None else self.pair_tol, importance, symmetric)
        # a gradient will ask for each of these again, as entries of G: once and for all
        most = _shared(self.gradient_tol, np.ones((a, b)), True) if symmetric and self.pairs.gradients else 0.5
        linear_g = [self._polynomial(g, 1) for g in gs]
        linear_h = linear_g if symmetric else [self._polynomial(h, 1) for h in hs]
        begun = _Begun(gs, hs, weights, symmetric, importance, linear_g, linear_h)
        on_lattices: list[Task] = []
        for j in range(a):
            for k in range(j if symmetric else 0, b):
                if importance[j, k] == 0.0:
                    continue
                tol = min(share / importance[j, k], most)
                if linear_h[k] is not None or linear_g[j] is not None:
                    begun.linear.append((j, k, tol))
                elif (both := self._of_one(gs[j], hs[k])) is not None:
                    begun.of_one.append((j, k, tol, both))
                else:
                    on_lattices.append((j, k, tol))
        if not on_lattices:
            return begun
        begun.level = level = self._pair_level(gs, hs, on_lattices)
        begun.means = all(_both_means(gs[j], hs[k]) for j, k, _ in on_lattices)
        if begun.means:
            begun.level = level = self._mean_level = max(level, self._mean_level)
        begun.on_lattices = on_lattices
        waiting = []
        for j, k, tol in on_lattices:
            known = self._mean_pairs.get((gs[j].label, hs[k].label, level)) if begun.means else None
            if known is not None and known[0] <= 1.0001 * tol:
                begun.known.append((j, k, *known[1:]))
            else:
                waiting.append((j, k, tol))

        def terms(tasks: Sequence[Task]) -> list[PairTerm]:
            return [self.pairs.term(gs[j], hs[k], tol, level) for j, k, tol in tasks]

        # also where nobody wants to know what it costs: the first pair of a function chooses its axis
        self._check_cost(level, terms(_spread(waiting)), len(waiting))
        begun.tiles = self.pairs.tiles(gs, hs, waiting)
        begun.walked = walks.enter_context(self.pairs.walked(level, map(terms, begun.tiles)))
        return begun

    def _finish(self, begun: _Begun) -> _Products:
        """What single features give of the pairs, and then the answers of those that were handed out."""
        gs, hs, symmetric = begun.gs, begun.hs, begun.symmetric
        shape = len(gs), len(hs)
        out = _Products(np.zeros(shape), np.zeros(shape), np.zeros(shape), symmetric)

        def record(j: int, k: int, value: float, tail: float, error: float) -> None:
            for at in {(j, k), (k, j)} if symmetric else {(j, k)}:
                out.values[at], out.tails[at], out.errors[at] = value, tail, error

        rows_g = self._linear_rows(gs, begun.linear_h)
        rows_h = rows_g if symmetric else self._linear_rows(hs, begun.linear_g)
        for j, k, _ in begun.linear:
            row, g, line = rows_g[j], hs[k], begun.linear_h[k]
            if line is None:
                row, g, line = rows_h[k], gs[j], begun.linear_g[j]
            record(j, k, *self._with_linear(row, g, line), 0.0)
        for j, k, tol, both in begun.of_one:
            record(j, k, *both(tol).value(), 0.0)
        for known in begun.known:
            record(*known)
        if begun.on_lattices:
            weights = begun.importance if begun.weights is None else begun.weights
            out.lines = self._meet(
                *self._lines(gs, hs, begun.on_lattices, begun.level, symmetric), gs, hs, weights, symmetric
            )
        for tile, (made, answer) in zip(begun.tiles, begun.walked, strict=True):
            errors = answer.errors + [term.dropped for term in made]
            for (j, k, tol), term, value, error in zip(
                tile, made, answer.values.tolist(), errors.tolist(), strict=True
            ):
                record(j, k, value, term.tail, error)
                if begun.means:
                    self._mean_pairs[gs[j].label, hs[k].label, begun.level] = (tol, value, term.tail, error)
        return out

    def _of_one(self, g: Integrand, h: Integrand) -> Callable[[float], Term] | None:
        """g h to a tolerance: as a function of b where both are, or of g's coordinates where h depends on the same ones or on a
        multiple of the same one; else None."""
        label = f"{g.label} {h.label}"
        if g.feature == h.feature and g.uses == h.uses:
            same = Integrand(g.feature, g.uses, vanishing(lambda *c: g.value(*c) * h.value(*c)), None, label)
            return lambda tol: self._term(same, tol)
        if self._moves_with_b(g) and self._moves_with_b(h):
            g_of_b, h_of_b = self._of_b(g), self._of_b(h)
            if g_of_b is not None and h_of_b is not None:
                return lambda tol: self._term_of_b(lambda beta: g_of_b(beta) * h_of_b(beta))
        if len(g.uses) != 1 or len(h.uses) != 1:
            return None
        (row, bias), (other, other_bias) = self._row(g), self._row(h)
        here, there = self._steepest(g), self._steepest(h)
        if row[here] == 0.0 or abs(other[there] - other[here] / row[here] * row[there]) > 1e-15 * abs(other[there]):
            return None  # nearly all pairs: two entries tell
        ratio = float(other @ row / (row @ row))
        if np.abs(other - ratio * row).max() > 1e-15 * np.abs(other).max():
            return None
        along = Integrand(
            g.feature, g.uses, lambda c: g.value(c) * h.value(ratio * (c - bias) + other_bias), None, label
        )
        return lambda tol: self._term(along, tol)

    def _steepest(self, g: Integrand) -> int:
        """The largest entry of g's row."""
        key = g.feature, g.uses[0]
        if key not in self._largest_entries:
            self._largest_entries[key] = int(np.abs(self._row(g)[0]).argmax())
        return self._largest_entries[key]

    def _pair_level(self, gs: Sequence[Integrand], hs: Sequence[Integrand], tasks: Sequence[Task]) -> int:
        """The digits that ranges and frequencies of these pairs are made for: they cut g times h, however large."""

        def size(g: Integrand) -> float:
            return max(1.0, self._beyond(g, 0)) if len(g.uses) == 1 else 1.0

        of_g = {j: size(gs[j]) for j in {j for j, _, _ in tasks}}
        of_h = {k: size(hs[k]) for k in {k for _, k, _ in tasks}}
        return self.pairs.level(min(tol / (of_g[j] * of_h[k]) for j, k, tol in tasks))

    def _check_cost(self, level: int, terms: Sequence[PairTerm], count: int) -> None:
        """Say how long `count` pairs like these will take, before they do, where someone wants to know; refuse where that is more
        than was allowed."""
        limited = self.max_seconds is not None or self.max_memory is not None
        if not terms or not (limited or _log.isEnabledFor(logging.INFO)):
            return
        seconds, memory = self.pairs.forecast(level, terms, count)
        seconds /= min(self.pairs.crew.workers, count)
        said = f"{count:,} pairs of features would take about {seconds:.2g} s and {memory / 2**20:,.0f} MiB"
        _log.log(logging.INFO if seconds > 10 else logging.DEBUG, said)
        help_ = "loosen tol, raise input.noise_std, or allow more"
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise CostError(f"{said}, more than max_seconds = {self.max_seconds:g}; {help_}")
        if self.max_memory is not None and memory > self.max_memory:
            raise CostError(f"{said}, more than max_memory = {self.max_memory / 2**20:,.0f} MiB; {help_}")

    def _lines(
        self, gs: Sequence[Integrand], hs: Sequence[Integrand], waiting: Sequence[Task], level: int, symmetric: bool
    ) -> tuple[Array, Array, Array]:
        """Which pairs are on lattices, and the lines of their functions: `on`, `e` and `d` of `_Lines`."""
        n = len(self.w)
        on, e, d = np.zeros((len(gs), len(hs))), np.zeros((len(gs), n + 1)), np.zeros((len(hs), n + 1))
        for j, k, _ in waiting:
            on[j, k] = 1.0
        if symmetric:
            on = np.maximum(on, on.T)
        for j, g in enumerate(gs):
            if on[j].any():
                e[j] = self.pairs.line(g, level)
        for k, h in enumerate(hs):
            if on[:, k].any():
                d[k] = e[k] if symmetric else self.pairs.line(h, level)
        return on, e, d

    def _meet(
        self,
        on: Array,
        e: Array,
        d: Array,
        gs: Sequence[Integrand],
        hs: Sequence[Integrand],
        weights: Array,
        symmetric: bool,
    ) -> _Lines:
        """The lines with what they are met with, to errors that the weights ask for."""
        n = len(self.w)
        # how much the rows E[g F] matter: by the lines that they are met with
        wanted_g, wanted_h = np.abs((weights * on) @ d), np.abs((weights * on).T @ e)
        if symmetric:
            wanted_g = wanted_h = wanted_g + wanted_h
        rows_g = self._F_rows(gs, wanted_g[:, :n])
        rows_h = rows_g if symmetric else self._F_rows(hs, wanted_h[:, :n])
        first, second, error = self._moments
        FF = np.block([[second, first[:, None]], [first[None, :], np.ones((1, 1))]])
        return _Lines(on, e, d, rows_g, rows_h, FF, error)

    def _linear_rows(self, gs: Sequence[Integrand], partners: Sequence[tuple[float, ...] | None]) -> list[Estimate]:
        """E[g F] for each g, where some partner is linear in its c (and so needs no lattice of the pair)."""
        if all(p is None for p in partners):
            return [Estimate.of(0.0)] * len(gs)
        rows = self._F_rows(gs)
        return [Estimate(v, e) for v, e in zip(rows.value, rows.error, strict=True)]

    def _with_linear(self, row: Estimate, h: Integrand, coefficients: tuple[float, ...] | None) -> tuple[float, float]:
        """E[g (h0 + h1 c)] from E[g F]."""
        assert coefficients is not None
        extended = self._linear_functional(h, coefficients)
        return float(row.value @ extended), float(row.error @ np.abs(extended))

    def _linear_functional(self, h: Integrand, coefficients: tuple[float, ...]) -> Array:
        """The vector e in R^(n2+1) with h(c) = <e, F>."""
        h0, h1 = (*coefficients, 0.0)[:2]
        row, bias = self._row(h)
        return np.append(h1 * row, h0 + h1 * bias)

    def of_cc_F(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        """Row i: sum_k weights[i, k] E[g_i(c) h_k(c_k) F], F = (f, 1), (len(gs), n2 + 1)."""
        n = len(self.w)
        values, errors = np.zeros((len(gs), n + 1)), np.zeros((len(gs), n + 1))
        linear_g = [self._polynomial(g, 1) for g in gs]
        linear_h = [self._polynomial(h, 1) for h in hs]
        # lines and linear partners: sum_k W_ik line_k(c_k) = <e_i, F> in one go per row
        functionals = np.zeros((len(hs), n + 1))
        for k, (h, c) in enumerate(zip(hs, linear_h, strict=True)):
            if c is not None:
                functionals[k] = self._linear_functional(h, c)
        combined = weights @ functionals
        size = np.append(self._f_size, 1.0)
        scale = max(1.0, float(size.max()))
        partners = max(1, len(hs))
        share = self.gradient_tol / (scale * min(float(partners), 3 * partners**0.5))
        tails, spreads = np.zeros(len(gs)), np.zeros(len(gs))
        waiting: list[Task] = []
        for i, g in enumerate(gs):
            for k, h in enumerate(hs):
                weight = float(weights[i, k])
                if linear_h[k] is not None or weight == 0.0:
                    continue
                coefficients = linear_g[i]
                tol = min(share / abs(weight), 0.5)
                if coefficients is not None:
                    functional = self._linear_functional(g, coefficients) * weight
                    done = self._F_and_along([h], functional[None, :])
                    values[i] += done.value[0]
                    errors[i] += done.error[0]
                elif (both := self._of_one(g, h)) is not None:
                    value, error = both(tol).F(self._f_size)
                    values[i] += weight * value
                    errors[i] += abs(weight) * error
                else:
                    waiting.append((i, k, tol))
        if waiting:
            pairs = self.pairs
            level = self._pair_level(gs, hs, waiting)
            for i, k, _ in waiting:
                combined[i] += weights[i, k] * pairs.line(hs[k], level)

            tiles = pairs.tiles(gs, hs, waiting)
            rows = [{i: row for row, i in enumerate(dict.fromkeys(i for i, _, _ in tile))} for tile in tiles]

            def terms(tile: Sequence[Task], row: Mapping[int, int]) -> list[PairTerm]:
                return [
                    pairs.term(gs[i], hs[k], tol, level, (False, True), row[i], float(weights[i, k]))
                    for i, k, tol in tile
                ]

            with pairs.walked(level, map(terms, tiles, rows)) as walked:
                self._add_F_and_along(gs, combined, values, errors)  # meanwhile, where others walk the pairs
                for tile, row, (made, answer) in zip(tiles, rows, walked, strict=True):
                    for i, at in row.items():
                        values[i] += answer.rows[at]
                    for (i, _, _), term, error in zip(tile, made, answer.errors.tolist(), strict=True):
                        weight = abs(term.asked.weight)
                        tails[i] += weight * term.tail
                        spreads[i] += (3 * weight * (term.dropped + error)) ** 2
        else:
            self._add_F_and_along(gs, combined, values, errors)
        return Estimate(values, errors + np.multiply.outer(tails + np.sqrt(spreads), size))

    def _add_F_and_along(self, gs: Sequence[Integrand], functionals: Array, values: Array, errors: Array) -> None:
        if np.any(functionals):
            done = self._F_and_along(gs, functionals)
            values += done.value
            errors += done.error

    def _F_and_along(self, gs: Sequence[Integrand], functionals: Array) -> Estimate:
        """E[g_i(c) <e_i, F> F] for functionals e_i in R^(n2+1)."""
        n = len(self.w)
        plain = self._F_rows(gs)
        along = self.of_c_F(gs, along=functionals[:, :n])
        last = functionals[:, n:]
        return Estimate(along.value + last * plain.value, along.error + np.abs(last) * plain.error)


def _shared(tol: float, importance: Array, symmetric: bool) -> float:
    """What each pair may err by, times its importance: errors of pairs add like independent ones, three standard deviations of
    them, or as they are where they are few; of a symmetric matrix (j, k) and (k, j) are one number."""
    pairs = max(1, int(np.count_nonzero(np.triu(importance) if symmetric else importance)))
    return float(tol / min(pairs, 3 * np.sqrt(pairs)) / (2.0 if symmetric else 1.0))


def _spread(tasks: Sequence[Task]) -> list[Task]:
    """At most eight of them, evenly spaced."""
    return list(tasks[:: max(1, -(-len(tasks) // 8))])


def _name(g: Integrand) -> str:
    """What messages call an integrand."""
    return f"{g.label or 'an integrand'} of encoder[{g.feature}]"


def _holding(g: Callable[..., Array], which: int, at: float | None) -> Callable[[Array], Array]:
    """g(c0, c1) as a function of one of the two, the other (`which`) held at a number."""

    def held(c: Array) -> Array:
        both = [c, c]
        both[which] = np.full_like(c, at)
        return g(*both)

    return held


def _labels(gs: Sequence[Integrand]) -> list[str]:
    return [g.label for g in gs]


def _both_means(g: Integrand, h: Integrand) -> bool:
    """Whether both are posterior means, which are remembered by their labels."""
    return g.label == f"s[{g.feature}]" and h.label == f"s[{h.feature}]"
