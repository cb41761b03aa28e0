"""The law of read-outs V f(x1) of one layer (Lemma 3.4), with no learning in between: densities, distribution
functions, quantiles, moments, expectations, and tail probabilities to relative accuracy at any depth.

This is the front of three ways to invert characteristic functions: `tails` for one read-out that is affine in x1 (of an
affine layer, or a unit before its nonlinearity), `boxes` for two or three, `through_psi` where psi lies in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.arguments import check_kind, finite_number, read_only_array, real_array, unwrapped
from elbotree.runtime.boxes import box_probability
from elbotree.runtime.errors import InputError, ToleranceError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.float_range import in_float64
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior
from elbotree.runtime.quadrature import panels
from elbotree.runtime.source_sums import Inputs, SourceSum
from elbotree.runtime.tails import EPS, Line, TailProbability
from elbotree.runtime.through_psi import ThroughPsi

if TYPE_CHECKING:
    from elbotree.runtime.output_law import OutputLaw

Array = NDArray[np.float64]

_TOL = 1e-10


@dataclass(frozen=True)
class ReadOutGradient:
    """d log P(<v, f> > x) with respect to the weights.

    log_value  log P
    V          (n2,), with respect to the read-out's row v; where v is orthogonal to w and psi is not affine, its part
               orthogonal to w (only there does the read-out stay affine in x1)
    A          (n2, n1), with respect to the layer's matrix
    threshold  d log P / d x
    nodes      terms of the sum
    """

    log_value: float
    V: Array
    A: Array
    threshold: float
    nodes: int


def joint(layer: Layer, p1: FeatureModel, V: ArrayLike) -> Joint:
    """The law of V f(x1) in R^t for x1 ~ p1, Lemma 3.4 of the paper.

    Arguments
        layer  f(x) = y + w psi(b), y = A x + d, b = <y, u> + theta
        p1     the feature model of x1; a positive noise_std, or normal priors, must reach the read-outs
        V      (t, n2) or (n2,): t = 1, 2 or 3 read-outs

    Returns a `Joint`. Raises InputError for wrong shapes. What has no Gaussian noise raises UnsupportedError when it is
    asked for a density or a probability (such a law may have atoms).
    """
    check_kind(
        layer, "layer", Layer, "; of a network ask fit_network(layers, p1).tail, or sampled_tails(layers, p1, ...)"
    )
    check_kind(p1, "p1", FeatureModel, "; elbotree.fit_input makes one of data")
    given = unwrapped(V)
    rows = read_only_array(given, "V", 1 if np.ndim(np.asarray(given, dtype=object)) == 1 else 2)
    rows = rows[None, :] if rows.ndim == 1 else rows
    if not 1 <= len(rows) <= 3:
        raise InputError(f"`V` has {len(rows)} rows; the joint law is there for 1, 2 or 3 read-outs")
    if rows.shape[1] != layer.n2:
        raise InputError(
            f"`V` has shape {rows.shape}; the layer has n2 = {layer.n2} outputs, so it must be (t, {layer.n2})"
        )
    if layer.n1 != p1.n:
        raise InputError(
            f"`layer` takes n1 = {layer.n1} inputs and `p1` models n = {p1.n} coordinates; they must be equal"
        )
    return Joint(layer, p1, rows)


def marginal(model: FeatureModel, v: ArrayLike) -> Joint:
    """The law of <v, x> (or of V x, V (t, n)) for x of a feature model; the same object as `joint` returns."""
    n = model.n
    return joint(Layer(np.eye(n), np.zeros(n), np.zeros(n), psi="identity"), model, v)


class Joint:
    """The law of S = V f(x1); made by `joint` or `FeatureModel.marginal`.

    With one read-out, points are numbers or arrays of any shape; with t > 1, points are arrays (..., t).
    `tol` is relative to the probability or density itself; it is met, or ToleranceError names what would help.
    """

    def __init__(self, layer: Layer, p1: FeatureModel, V: Array) -> None:
        self.layer, self.p1, self.V = layer, p1, V
        self.inputs = Inputs.of(p1)

    @property
    def t(self) -> int:
        """The number of read-outs."""
        return len(self.V)

    def __repr__(self) -> str:
        way = "affine in x1" if self.law is not None else f"through {self.layer.activation.text}"
        return f"Joint(t={self.t}, {way}, {self.inputs.sources.count} sources)"

    # ------------------------------------------------------------------ which way to take

    @cached_property
    def _affine_rows(self) -> tuple[Array, Array] | None:
        """(V', const) with S = V' y + const, where psi plays no part or an affine one; None otherwise."""
        layer = self.layer
        kappa = self.V @ layer.w
        if (np.abs(kappa) <= 4 * EPS * (np.abs(self.V) @ np.abs(layer.w))).all():  # orthogonal as far as rounding tells
            return self.V, np.zeros(self.t)
        if self._constant_b is not None:
            return self.V, kappa * float(layer.activation(np.array([self._constant_b]))[0])
        if layer.activation.affine is not None:
            slope, intercept = layer.activation.affine
            return self.V + slope * np.outer(kappa, layer.u), kappa * (slope * layer.threshold + intercept)
        return None

    @cached_property
    def _constant_b(self) -> float | None:
        """b, where it does not vary."""
        layer = self.layer
        b = self.inputs.read((layer.A.T @ layer.u)[None], np.array([layer.u @ layer.offset + layer.threshold]))
        return None if b.loadings.any() or b.noise.any() else float(b.shift[0])

    @cached_property
    def law(self) -> SourceSum | None:
        """The law of S as a sum of independent sources; None where psi is in between."""
        if self._affine_rows is None:
            return None
        rows, constants = self._affine_rows
        exact = rows.astype(np.longdouble)
        return self.inputs.read(exact @ self.layer.A, exact @ self.layer.offset + constants)

    @cached_property
    def _line(self) -> Line:
        assert self.law is not None
        return Line.of(self.law)

    @cached_property
    def _through(self) -> ThroughPsi:
        return ThroughPsi(self.layer, self.inputs, self.V)

    @in_float64("the law of the read-outs")
    def probability(self, windows: Sequence[tuple[float, float]], tol: float = _TOL) -> TailProbability:
        """P(low_a <= S_a <= high_a for every read-out a), t pairs whose ends may be infinite; low = high asks for the
        density in that read-out."""
        tol = _checked_tol(tol)
        if len(windows) != self.t:
            raise InputError(f"`windows` has {len(windows)} pairs; there are t = {self.t} read-outs")
        for a, (low, high) in enumerate(windows):
            if not low <= high or low == math.inf or high == -math.inf:
                raise InputError(f"`windows[{a}]` is ({low!r}, {high!r}); it must be a pair low <= high")
        if self.law is None:
            return self._through.probability(windows, tol)
        if self.t == 1 and windows[0][1] == math.inf and windows[0][0] > -math.inf:
            return self._line.upper(windows[0][0], tol)
        if self.t == 1 and windows[0][0] == -math.inf and windows[0][1] < math.inf:
            return self._line.reflected.upper(-windows[0][1], tol)
        return box_probability(self.law, windows, tol)

    # ------------------------------------------------------------------ probabilities

    @in_float64("the law of the read-outs")
    def tail(self, x: ArrayLike, tol: float = _TOL) -> TailProbability:
        """P(S > x), for t > 1 the orthant P(S_1 > x_1, ..., S_t > x_t), to relative accuracy.

        x: a number or an array; t > 1: (..., t). Points of an array share contours where the read-out is affine in x1.
        The value underflows to 0 below 1e-308; log_value goes on. Raises ToleranceError when tol cannot be met.
        """
        return self._tails(x, tol, 1.0)

    @in_float64("the law of the read-outs")
    def cdf(self, x: ArrayLike, tol: float = _TOL) -> TailProbability:
        """P(S_1 <= x_1, ..., S_t <= x_t), to relative accuracy; as `tail`."""
        return self._tails(x, tol, -1.0)

    @in_float64("the law of the read-outs")
    def log_tail(self, x: ArrayLike, tol: float = _TOL) -> Estimate:
        """log P(S > x) with its absolute error."""
        found = self.tail(x, tol)
        return Estimate.of(np.asarray(found.log_value), np.asarray(found.relative_error))

    def _tails(self, x: ArrayLike, tol: float, sign: float) -> TailProbability:
        tol = _checked_tol(tol)
        points = self._points(x, "x")
        if self.law is not None and self.t == 1:
            line = self._line if sign > 0 else self._line.reflected
            if points.size == 1:
                found = line.upper(sign * float(points.ravel()[0]), tol)
                return found if points.shape == (1,) else _reshaped(found, points.shape[:-1])
            return _reshaped(line.upper_curve(sign * points.ravel(), tol), points.shape[:-1])
        flat = points.reshape(-1, self.t)
        found_all = [self._orthant(point, sign, tol) for point in flat]
        if points.ndim == 1:
            return found_all[0]
        logs = np.array([float(p.log_value) for p in found_all])
        bound = {"all": np.array([float(p.relative_error) for p in found_all])}
        made = TailProbability.from_logs(logs, bound, sum(p.nodes for p in found_all), tol)
        return _reshaped(made, points.shape[:-1])

    def _orthant(self, point: Array, sign: float, tol: float) -> TailProbability:
        windows = [(float(x), math.inf) if sign > 0 else (-math.inf, float(x)) for x in point]
        found = self.probability(windows, tol)
        if self.t > 1 or self.law is not None or float(found.log_value) < math.log(0.5):
            return found
        # near 1 the complement, which needs fewer digits, says more: 1 - P stays above 0 and is exact when tiny
        other = [(-math.inf, float(point[0]))] if sign > 0 else [(float(point[0]), math.inf)]
        rest = max(1 - float(found.value), float(found.error), 1e-300)
        complement = self.probability(other, min(0.05, tol * 0.5 / rest)).complement()
        return replace(complement, tol=tol)

    def _points(self, x: ArrayLike, name: str) -> Array:
        """Points as (..., t)."""
        points = real_array(x, name)
        if self.t == 1:
            return points[..., None]
        if points.ndim == 0 or points.shape[-1] != self.t:
            raise InputError(
                f"`{name}` has shape {points.shape}; with t = {self.t} read-outs it must be (..., {self.t})"
            )
        return points

    # ------------------------------------------------------------------ densities

    @in_float64("the law of the read-outs")
    def pdf(self, grid: ArrayLike, tol: float = _TOL) -> Estimate:
        """The density of S at points (..., t) (t = 1: any shape), with its error; relative to the density itself."""
        logs = self.log_pdf(grid, tol)
        value = np.exp(logs.value)
        return Estimate.of(value, value * logs.error)

    @in_float64("the law of the read-outs")
    def log_pdf(self, grid: ArrayLike, tol: float = _TOL) -> Estimate:
        """log of the density of S, which does not underflow far out."""
        tol = _checked_tol(tol)
        points = self._points(grid, "grid")
        if self.law is not None and self.t == 1:
            log_value, error, _ = self._line.curve(points.ravel(), tol, 0)
        else:
            found = [self.probability([(x, x) for x in point.tolist()], tol) for point in points.reshape(-1, self.t)]
            log_value = np.array([float(p.log_value) for p in found])
            error = np.array([float(p.relative_error) for p in found])
        return Estimate.of(log_value.reshape(points.shape[:-1]), error.reshape(points.shape[:-1]))

    # ------------------------------------------------------------------ quantiles

    @in_float64("the law of the read-outs")
    def isf(self, p: float | None = None, tol: float = _TOL, *, log_p: float | None = None) -> Estimate:
        """x with P(S > x) = p, one read-out, with a bound on its error; log_p instead of p reaches below 1e-308.

        Where the law has an atom it is the generalised inverse, inf {x : P(S > x) <= p}. Raises InputError unless
        0 < p < 1.
        """
        target = _checked_log_p(p, log_p)
        self._one("isf")
        if self.law is not None:
            x, error = self._line.isf(target, _checked_tol(tol))
            return Estimate.of(x, error)
        return self._root(target, _checked_tol(tol), 1.0)

    @in_float64("the law of the read-outs")
    def quantile(self, p: float | None = None, tol: float = _TOL, *, log_p: float | None = None) -> Estimate:
        """x with P(S <= x) = p, as `isf`; over an atom inf {x : P(S <= x) >= p}."""
        target = _checked_log_p(p, log_p)
        self._one("quantile")
        if self.law is not None:
            x, error = self._line.reflected.isf(target, _checked_tol(tol))
            return Estimate.of(-x, error)
        return self._root(target, _checked_tol(tol), -1.0)

    def _one(self, what: str) -> None:
        if self.t != 1:
            raise UnsupportedError(f"`{what}` is for one read-out; this law has t = {self.t}")

    def _root(self, target: float, tol: float, sign: float) -> Estimate:
        """Where log P(sign S > sign x) passes target, through psi: a bracket grown from the mean, then regula falsi with
        the Illinois rule on log P, at a coarse tolerance until it is near, and halving where that stalls.

        Where the law jumps over target the bracket shrinks onto the atom, which is the generalised inverse.
        """
        mean, std = (float(m) for m in self._rough)

        def off(x: float, level: float) -> tuple[float, float]:
            found = self._orthant(np.array([x]), sign, level)
            return float(found.log_value) - target, float(found.relative_error)

        level = min(max(tol, 1e-4), 0.05)
        step, x0 = std, mean
        f0, _ = off(x0, level)
        direction = sign if f0 > 0 else -sign
        while True:
            x1 = x0 + direction * step
            f1, _ = off(x1, level)
            if f0 * f1 <= 0:
                break
            x0, f0, step = x1, f1, 1.7 * step
            if step > 1e12 * std:
                raise ToleranceError(f"no point with log probability {target:g} was found; ask for a less extreme one")
        g0, g1 = f0, f1  # as the Illinois rule weighs them
        widths = [abs(x1 - x0)]
        for _ in range(300):
            stalled = len(widths) > 3 and widths[-1] > 0.5 * widths[-4]
            x = 0.5 * (x0 + x1) if stalled or not math.isfinite(g0 + g1) else x1 - g1 * (x1 - x0) / (g1 - g0)
            f, relative = off(x, level)
            if abs(f) < 1e-2 and level > tol:
                level = tol
                (f0, _), (f1, _), (f, relative) = off(x0, tol), off(x1, tol), off(x, tol)
                g0, g1 = f0, f1
            if level <= tol and abs(f) <= 2 * tol:
                slope = abs((f1 - f0) / (x1 - x0))
                return Estimate.of(x, 2 * (abs(f) + relative) / max(slope, 1e-300) + 4 * EPS * abs(x))
            if f * f1 < 0:
                x0, f0, g0 = x1, f1, g1
            else:
                g0 *= 0.5
            x1, f1, g1 = x, f, f
            widths.append(abs(x1 - x0))
            if widths[-1] <= tol * std + 4 * EPS * (abs(x0) + abs(x1)):
                return self._between(min(x0, x1), max(x0, x1))
        raise ToleranceError(f"the quantile of log probability {target:g} did not settle at tol = {tol:g}; loosen tol")

    def _between(self, low: float, high: float) -> Estimate:
        """The quantile that lies in a short interval: an atom of the law where there is one, else the middle."""
        for atom in self._through.constants():
            if low - EPS * abs(low) <= atom <= high + EPS * abs(high):
                return Estimate.of(atom, 64 * EPS * abs(atom))
        return Estimate.of(0.5 * (low + high), high - low)

    @cached_property
    def _rough(self) -> tuple[float, float]:
        """Mean and standard deviation of one read-out."""
        first, second = self.moment(1, 1e-6), self.moment(2, 1e-6)
        mean = float(first.value)
        return mean, math.sqrt(max(float(second.value) - mean**2, 1e-300))

    # ------------------------------------------------------------------ expectations

    @in_float64("the law of the read-outs")
    def moment(self, k: int, tol: float = _TOL) -> Estimate:
        """E S^k of one read-out, k <= 4: in closed form where S is affine in x1, to tol max(1, |value|) otherwise."""
        self._one("moment")
        if not isinstance(k, int | np.integer) or not 0 <= k <= 4:
            raise InputError(f"`k` is {k!r}; moments are there for k = 0, 1, 2, 3, 4")
        if self.law is not None:
            value = self.law.moments(int(k))[int(k)]
            scale = float(self.law.moments(4)[4]) ** (k / 4)
            return Estimate.of(value, 64 * EPS * max(scale, abs(value)))
        if k in (1, 2):
            first, second, error = self._output(tol).f_moments
            v, size = self.V[0], np.abs(self.V[0])
            if k == 1:
                return Estimate.of(float(v @ first), float(size @ error[:-1, -1]))
            return Estimate.of(float(v @ second @ v), float(size @ error[:-1, :-1] @ size))
        return self.expect(lambda s: s ** int(k), tol)

    def _output(self, tol: float) -> OutputLaw:
        from elbotree.runtime.output_law import OutputLaw

        return OutputLaw(self.layer, self.p1, max(tol, 1e-14))

    @in_float64("the law of the read-outs")
    def mean(self, tol: float = _TOL) -> Estimate:
        """E S, (t,)."""
        if self.law is not None:
            value = self.law.mean()
            return Estimate.of(value, 16 * EPS * (np.abs(value) + np.sqrt(np.diag(self.law.covariance()))))
        found = self._output(tol).mean_f()
        return Estimate.of(self.V @ found.value, np.abs(self.V) @ found.error)

    @in_float64("the law of the read-outs")
    def expect(
        self,
        g: Callable[..., Array],
        tol: float = _TOL,
        *,
        breaks: Sequence[float] = (),
        max_seconds: float | None = None,
    ) -> Estimate:
        """E g(S) to an absolute error of about tol max(1, |value|).

        g       a vectorised function of t arrays, real-valued
        breaks  where g or a derivative of it jumps (one read-out that is affine in x1 only; elsewhere g must be smooth)
        max_seconds  of three read-outs' sum, estimated before it begins

        One read-out that is affine in x1 is integrated against its density on panels; otherwise the characteristic
        function of S is summed against a Fourier series of g (generalised Parseval). Its cost grows by the number of
        modes with each read-out: three take seconds at tol 1e-4, and CostError says so beforehand where they take more
        than is allowed. Raises ToleranceError where the error stays above twice tol.
        """
        tol = _checked_tol(tol)
        if self.law is not None and self.t == 1:
            return self._expect_on_line(g, tol, breaks)
        if len(breaks):
            raise UnsupportedError("`breaks` are for one read-out that is affine in x1; through psi, g must be smooth")
        found = self._expect_of_three(g, tol, max_seconds) if self.t == 3 else self._expect_of_few(g, tol)
        if not found.error <= 2 * tol * max(1.0, abs(float(found.value))):
            raise ToleranceError(
                f"E g(S) = {float(found.value):.6g} was reached to an error of {float(found.error):.2g}, above tol "
                f"= {tol:g}; g "
                "varies or grows too fast for the law's range: loosen tol, or raise noise_std"
            )
        return found

    def _expect_of_few(self, g: Callable[..., Array], tol: float) -> Estimate:
        """One or two read-outs, by the engine of the loss."""
        from elbotree.runtime.integrands import Integrand
        from elbotree.runtime.spectral import SpectralExpectations

        family = "bernoulli" if self.t == 1 else "normal_scale"  # any with t parameters: only C is used
        engine = SpectralExpectations(self.layer, self.p1, Encoder([Posterior(family, self.V)]), tol=max(tol, 2e-15))
        integrand = Integrand(0, tuple(range(self.t)), g, None, "g")
        return engine.of_c([integrand], weights=np.ones(1))

    def _expect_of_three(self, g: Callable[..., Array], tol: float, max_seconds: float | None) -> Estimate:
        from elbotree.runtime.triple_series import expect_of_three

        for a, row in enumerate(self.V):
            if not row.any():  # a read-out that is always 0
                rest = Joint(self.layer, self.p1, np.delete(self.V, a, axis=0))
                return rest._expect_of_few(lambda *s, a=a: g(*s[:a], np.zeros_like(s[0]), *s[a:]), tol)
        return expect_of_three(self._output(tol), self.V, g, tol, max_seconds)

    def _expect_on_line(self, g: Callable[..., Array], tol: float, breaks: Sequence[float]) -> Estimate:
        line = self._line
        depth = math.log(tol) - 5.0
        for _ in range(6):  # far enough out that g times the mass outside is nothing
            low, high = -line.reflected.chernoff_quantile(depth), line.chernoff_quantile(depth)
            largest = float(np.abs(g(np.linspace(low, high, 129))).max())
            wanted = math.log(tol) - 5.0 - math.log(max(1.0, largest))
            if wanted >= depth - 0.5:
                break
            depth = wanted

        def integrand(s: Array) -> Array:
            log_density, _, _ = line.curve(s, max(1e-2 * tol, 1e-12), 0)
            return np.asarray(g(s) * np.exp(log_density))

        x, w = panels(low, high, breaks, 0.0, [integrand], 0.1 * tol / (1 + high - low))
        values = w * integrand(x)
        value = float(values.sum())
        size = float(np.abs(values).sum())
        outside = 2 * math.exp(depth) * max(1.0, largest)
        return Estimate.of(value, 0.3 * tol + max(1e-2 * tol, 1e-12) * size + outside)

    # ------------------------------------------------------------------ gradient

    @in_float64("the law of the read-outs")
    def tail_gradient(self, x: float, tol: float = 1e-8) -> ReadOutGradient:
        """d log P(S > x) in the read-out's row and in the layer's A, from the contour that gives P (one read-out).

        For S = <v', A x1 + d> + const with v' = (I + slope u w^T) v:  d/dA = v' (x) d/da, d/dv' = A d/da + d d/dconst,
        with a = A^T v' the row on x1. To about tol relative to the largest entry. Raises UnsupportedError where psi is
        in between and not affine.
        """
        self._one("tail_gradient")
        if self.law is None or self._affine_rows is None:
            raise UnsupportedError(
                f"`tail_gradient` is there where the read-out is affine in x1; psi ({self.layer.activation.text}) "
                "is in between here"
            )
        found = self._line.gradient(finite_number(x, "x"), _checked_tol(tol))
        layer, inputs = self.layer, self.inputs
        rows, _ = self._affine_rows
        a = layer.A.T @ rows[0]
        over_a = inputs.loadings @ found.loadings + found.shift * inputs.offset
        over_a = over_a + 2 * found.variance * inputs.noise_times(a)
        over_row = layer.A @ over_a + found.shift * layer.offset
        over_v = over_row + self._along_w(over_row, found.shift)
        return ReadOutGradient(found.log_value, over_v, np.outer(rows[0], over_a), -found.shift, found.nodes)

    def _along_w(self, over_row: Array, over_constant: float) -> Array:
        """What v -> <v, w> adds to the gradient in v, (n2,)."""
        layer = self.layer
        if not layer.w.any():
            return np.zeros(layer.n2)
        if layer.activation.affine is not None:
            slope, intercept = layer.activation.affine
            inner = slope * float(layer.u @ over_row) + (slope * layer.threshold + intercept) * over_constant
            return np.asarray(layer.w * inner)
        if self._constant_b is not None:
            return np.asarray(layer.w * (float(layer.activation(np.array([self._constant_b]))[0]) * over_constant))
        return np.asarray(-layer.w * (float(layer.w @ over_row) / float(layer.w @ layer.w)))


def _reshaped(found: TailProbability, shape: tuple[int, ...]) -> TailProbability:
    bound = {
        name: np.reshape(np.broadcast_to(part, np.shape(found.value)), shape) for name, part in found.bound.items()
    }
    return replace(
        found,
        bound=bound,
        value=np.reshape(found.value, shape),
        log_value=np.reshape(found.log_value, shape),
        error=np.reshape(found.error, shape),
        relative_error=np.reshape(found.relative_error, shape),
    )


def _checked_tol(tol: object) -> float:
    number = finite_number(tol, "tol")
    if not 1e-14 <= number < 1:
        raise InputError(f"`tol` is {number!r}; it must lie between 1e-14 and 1 (float64 carries about 16 digits)")
    return number


def _checked_log_p(p: float | None, log_p: float | None) -> float:
    if (p is None) == (log_p is None):
        raise InputError("give either `p` or `log_p`")
    if p is not None:
        number = finite_number(p, "p")
        if not 0 < number < 1:
            raise InputError(f"`p` is {number!r}; it must lie strictly between 0 and 1 (use log_p below 1e-308)")
        return math.log(number)
    number = finite_number(log_p, "log_p")
    if not number < 0:
        raise InputError(f"`log_p` is {number!r}; it must be below 0")
    return number
