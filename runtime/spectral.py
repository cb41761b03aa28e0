"""Expectations over f(x1) by characteristic functions: the default engine behind the generated kernels.

With z_j = <v_j, y - ybar>, v_j the rows of C_j made orthogonal to u in the metric of the noise, and beta = b - bbar,

    c_j = z_j + m_j(beta),        m_j(beta) = cbar_j + theta_j beta + kappa_j psi(bbar + beta),
    E g(c_j) = sum_p ghat(p) X(p),   X(p) = int h(p, beta) e^{i p Delta m_j(beta)} d beta,
    h(p, beta) = (step / 2 pi) sum_k E exp(i p Delta z_j + i k step beta') e^{-i k step beta}.

The orthogonal v_j keep every lattice well conditioned, whatever the angle between C_j and u; a direction in which c
carries no noise is met by a windowed series of g, whose own coefficients die out. The same lattice carries the
vector form Y, so that E[g f] costs no more dimensions; ranges come from Chernoff bounds, numbers of modes from
|ghat| and the Gaussian factor, nodes in b from the frequencies that are left. All from `tol`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.characteristic import Lattice, LinearLaw, quantile_bounds
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.fourier import Series, best_series, series_2d
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer
from elbotree.runtime.psi_transform import PsiTransform, finite_psi

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

_ROUNDOFF = 2.3e-16
_MAX_POINTS = 3e8  # lattice points of one expectation; beyond it the engine says so instead of starting


@dataclass(frozen=True)
class Coordinate:
    """One coordinate c = <row, f> + bias of the encoder parameters, split into noise-orthogonal part and shift."""

    v: Array  # row - theta u: the direction of z
    theta: float
    kappa: float
    center: float
    sigma: float  # standard deviation of the Gaussian noise in z


class SpectralExpectations:
    """The engine of `Expectations` that works in frequency space.

    Arguments:
        layer, p1, encoder: the law of f(x1) and the projections c_j = C_j f + bias_j
        tol: absolute error that each weighted sum asked of the engine should keep below (the `error` of what it
            returns says what was reached)

    Raises UnsupportedError when b = <y, u> + theta carries no Gaussian noise (its law has no density to invert) although
    psi is not affine, and when psi has a pole where b has mass.
    """

    def __init__(self, layer: Layer, p1: FeatureModel, encoder: Encoder, *, tol: float = 1e-8) -> None:
        if not 1e-15 < tol < 1.0:
            raise InputError(f"`tol` is {tol!r}; it must lie between 1e-15 and 1 (float64 carries about 16 digits)")
        self.layer, self.encoder, self.tol = layer, encoder, float(tol)
        self.law = LinearLaw.of(layer, p1)
        self.u, self.w = layer.u, layer.w
        self._bbar = float(self.law.mean @ self.u + layer.threshold)
        self._var_b = float(self.u @ self.law.noise @ self.u)
        self._psi = layer.activation
        total = float(self.u @ self.law.covariance() @ self.u)
        scale = float(self.u @ self.u) * float(np.trace(self.law.covariance()))
        self._b_constant = total <= 1e-28 * scale or total == 0.0
        self._b_noisy = self._var_b > 1e-24 * total and not self._b_constant
        self._frames: dict[tuple[int, int, float], _Frame] = {}
        self._mean_pairs: dict[tuple[str, str], tuple[float, float, float]] = {}
        self._affine = self._affine_map()
        # f itself where f is affine in y, otherwise y: what the lattices of c_j run over
        self._base = self.law if self._affine is None else self.law.mapped(*self._affine)

    # ------------------------------------------------------------------ the law of b

    def _affine_map(self) -> tuple[Array, Array] | None:
        """(T, shift) with f = T y + shift, where psi is affine, w is 0 or b is a constant; None otherwise."""
        n = len(self.w)
        if not np.any(self.w):
            return np.eye(n), np.zeros(n)
        if self._b_constant:
            return np.eye(n), self.w * float(self._psi_at(np.array([self._bbar]))[0])
        if self._psi.affine is not None:
            slope, intercept = self._psi.affine
            return np.eye(n) + slope * np.outer(self.w, self.u), self.w * (slope * self.layer.threshold + intercept)
        return None

    def _psi_at(self, b: Array) -> Array:
        return finite_psi(self._psi, b)

    @cached_property
    def _b_range(self) -> tuple[float, float]:
        """Where beta lives: outside, the mass times psi^2 is far below tol."""
        log_epsilon = np.log(self.tol * 1e-4)
        lo = hi = 0.0
        for _ in range(4):
            lo, hi = quantile_bounds(self.law, self.u, log_epsilon)
            for pole in self._psi.poles:
                if self._bbar + lo <= pole <= self._bbar + hi:
                    raise UnsupportedError(
                        f"psi ({self._psi.text}) has a pole at b = {pole:g}, and b = <y, u> + theta has a positive density "
                        "there, so that the expectations of psi diverge; move the threshold or the input away from it"
                    )
            grid = self._bbar + np.linspace(lo, hi, 129)
            largest = max(1.0, float(np.max(self._psi_at(grid) ** 2)))
            wanted = np.log(self.tol * 1e-4 / largest)
            if wanted >= log_epsilon - 0.5:
                break
            log_epsilon = wanted
        return lo, hi

    @cached_property
    def _transform(self) -> PsiTransform:
        """psi against the frequencies of b; as many frequencies as the noise in b leaves."""
        if not self._b_noisy:
            raise UnsupportedError(
                "b = <y, u> + theta carries no Gaussian noise (input.noise_std is 0, or A^T u = 0), so its law has no density "
                f"that could be integrated against psi ({self._psi.text}); give the input a small noise_std"
            )
        lo, hi = self._b_range
        std = float(np.sqrt(self._var_b))
        modes = int(np.ceil(np.sqrt(2 * np.log(1e4 / self.tol)) / std * (hi - lo) / (2 * np.pi)))
        if modes > 20_000:
            raise UnsupportedError(
                f"b = <y, u> + theta has Gaussian noise {std:.3g} on a range of {hi - lo:.3g}: inverting its law would take "
                f"{2 * modes + 1:,} frequencies; raise input.noise_std or loosen tol"
            )
        return PsiTransform(self._psi, self._bbar, lo, hi, modes, self.tol)

    def _rows(self, center: Array, theta: Array, alpha: Array, powers: int) -> ComplexArray:
        """What `Lattice` sums against, (powers, N, K); K = 1 where f is affine in y and b plays no part."""
        if self._affine is not None:
            return np.repeat(np.exp(1j * center)[None, :, None], powers, axis=0)
        return self._transform.rows(center, theta, alpha, powers)

    # ------------------------------------------------------------------ moments

    @cached_property
    def _b_lattice(self) -> Lattice:
        t = self._transform
        return Lattice(self.law, np.zeros((1, len(self.w))), np.zeros((1, 1), dtype=np.int64), self.u * t.step, t.modes)

    def _of_b(self, g: Callable[[Array], Array]) -> tuple[float, Array, float]:
        """E[g(b)], E[g(b) (y - ybar)] and an error for the first (times |y - ybar|: for the second)."""
        beta, _, _, F = self._transform.nodes(1.0)
        values = np.broadcast_to(g(self._bbar + beta), beta.shape)
        X, Y = self._b_lattice.moments((F @ values)[None, None, :], 1)
        size = float(np.abs(values).max(initial=0.0))
        rounding = 8 * _ROUNDOFF * size * float(self._b_lattice.rounding()[0])
        return float(X[0, 0].real), Y[0, 0].real, self.tol * 1e-3 * min(size, 1.0) + rounding

    @cached_property
    def f_moments(self) -> tuple[Array, Array, float]:
        """E f (n2,), E f f^T (n2, n2), and a relative error for both."""
        if self._affine is not None:
            law = self._base
            return law.mean, law.covariance() + np.outer(law.mean, law.mean), 8 * _ROUNDOFF
        one, y_psi, error = self._of_b(self._psi_at)
        two, _, error2 = self._of_b(lambda b: self._psi_at(b) ** 2)
        ybar, w = self.law.mean, self.w
        y_psi = y_psi + ybar * one
        first = ybar + w * one
        second = (
            self.law.covariance()
            + np.outer(ybar, ybar)
            + np.outer(y_psi, w)
            + np.outer(w, y_psi)
            + np.outer(w, w) * two
        )
        return first, second, max(error, error2) / max(1.0, abs(one), abs(two)) + 8 * _ROUNDOFF

    @cached_property
    def _f_size(self) -> Array:
        """|E f| + 6 standard deviations, per coordinate: how large f is where tails are cut."""
        first, second, _ = self.f_moments
        return np.asarray(np.abs(first) + 6 * np.sqrt(np.maximum(np.diag(second) - first**2, 0.0)))

    def law_of_psi(self) -> tuple[Array, Array] | None:
        """psi(b) as weighted values (they sum to 1 up to the tolerance); None where f is affine in y."""
        if self._affine is not None:
            return None
        beta, _, psi, F = self._transform.nodes(1.0)
        phi = self._b_lattice.values(np.eye(self._b_lattice.columns, dtype=np.complex128)[:, None, :])[:, 0]
        return psi, np.asarray((phi @ F).real)

    def feature_columns(self, p1: FeatureModel) -> Array:
        """The directions in which the features of x1 move f when psi(b) is held: A B1, or T A B1 where f = T y + const."""
        columns = self.layer.A @ p1.B
        return columns if self._affine is None else self._affine[0] @ columns

    def mean_f(self) -> Estimate:
        """E f(x1), (n2,)."""
        first, _, relative = self.f_moments
        return Estimate.of(first, relative * self._f_size)

    def norm_y(self, centre: Array) -> Estimate:
        """E|y - centre|^2, in closed form."""
        value = float(np.sum((self.law.mean - centre) ** 2) + np.trace(self.law.covariance()))
        return Estimate.of(value, 16 * _ROUNDOFF * value * len(centre))

    def of_b(self, g: Callable[[Array], Array], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        """E[g(b)], or E[<y - centre, along> g(b)]; g smooth between psi's breaks."""
        if self._b_constant:
            value = float(np.broadcast_to(g(np.array([self._bbar])), (1,))[0])
            if along is not None:
                value *= float((self.law.mean - (0.0 if centre is None else centre)) @ along)
            return Estimate.of(value, 8 * _ROUNDOFF * abs(value))
        if not self._b_noisy and self._psi.affine is not None:
            return self._of_b_quadratic(g, along, centre)
        one, vector, error = self._of_b(g)
        if along is None:
            return Estimate.of(one, error)
        shift = self.law.mean - (0.0 if centre is None else centre)
        spread = float(np.sqrt(along @ self.law.covariance() @ along)) + abs(float(shift @ along))
        return Estimate.of(float(along @ vector + (shift @ along) * one), error * (1.0 + 8 * spread))

    def _of_b_quadratic(self, g: Callable[[Array], Array], along: Array | None, centre: Array | None) -> Estimate:
        """of_b without a density of b, for g a polynomial of degree at most 2 (affine psi and its square)."""
        low, mid, high = (float(x) for x in g(np.array([-1.0, 0.0, 1.0])))
        g0, g1, g2 = mid, 0.5 * (high - low), 0.5 * (high + low) - mid
        variance = float(self.u @ self.law.covariance() @ self.u)
        if along is None:
            value = g0 + g1 * self._bbar + g2 * (self._bbar**2 + variance)
        elif g2 == 0.0:
            shift = float((self.law.mean - (0.0 if centre is None else centre)) @ along)
            value = shift * (g0 + g1 * self._bbar) + g1 * float(along @ self.law.covariance() @ self.u)
        else:
            raise UnsupportedError("b carries no Gaussian noise; its third moments are not supported")
        return Estimate.of(value, 32 * _ROUNDOFF * max(1.0, abs(value)))

    # ------------------------------------------------------------------ coordinates and ranges

    def _coordinate(self, j: int, r: int) -> Coordinate:
        q = self.encoder[j]
        row, bias = q.C[r], float(q.bias[r])
        law = self._base
        if self._affine is not None:
            return Coordinate(
                row, 0.0, 0.0, float(row @ law.mean) + bias, float(np.sqrt(max(0.0, row @ law.noise @ row)))
            )
        theta = float(row @ law.noise @ self.u) / self._var_b if self._b_noisy else 0.0
        v = row - theta * self.u
        return Coordinate(
            v, theta, float(row @ self.w), float(row @ law.mean) + bias, float(np.sqrt(max(0.0, v @ law.noise @ v)))
        )

    def _range(self, c: Coordinate, log_epsilon: float) -> tuple[float, float]:
        """Where c lives: z outside its part with probability below exp(log_epsilon) a side."""
        lo, hi = quantile_bounds(self._base, c.v, log_epsilon)
        if self._affine is not None:
            return c.center + lo, c.center + hi
        a, b = self._b_range
        grid = np.linspace(a, b, 513)
        breaks = np.array([x - self._bbar for x in self._psi.breaks])
        breaks = breaks[(breaks > a) & (breaks < b)]
        grid = np.concatenate([grid, breaks, breaks - 1e-9, breaks + 1e-9])
        shift = c.center + c.theta * grid + c.kappa * self._psi_at(self._bbar + grid)
        return float(shift.min()) + lo, float(shift.max()) + hi

    def _support(self, c: Coordinate, g: Callable[[Array], Array], tol: float) -> tuple[float, float, float]:
        """A range of c outside of which |g| times the mass is below tol / 4, and the bound reached."""
        largest = 1.0
        lo = hi = bound = 0.0
        for _ in range(3):
            log_epsilon = float(np.log(tol / (16 * largest)))
            lo, hi = self._range(c, log_epsilon)
            now = max(1e-300, float(np.abs(g(np.linspace(lo, hi, 65))).max()))
            bound = 4 * now * float(np.exp(log_epsilon))
            if now <= 1.5 * largest:
                break
            largest = now
        return lo, hi, bound

    @staticmethod
    def _is_constant(lo: float, hi: float) -> bool:
        return hi - lo <= 1e-13 * max(1.0, abs(lo), abs(hi))

    # ------------------------------------------------------------------ expectations of one feature

    def _polynomial(self, g: Integrand, degree: int) -> tuple[float, ...] | None:
        """g's coefficients when it is a polynomial of at most this degree (also when c is a constant), else None."""
        if g.coefficients is not None and len(g.coefficients) <= degree + 1:
            return g.coefficients
        if len(g.uses) == 1:
            lo, hi = self._range(self._coordinate(g.feature, g.uses[0]), np.log(self.tol * 1e-3))
            if self._is_constant(lo, hi):
                return (float(np.ravel(g.value(np.array([0.5 * (lo + hi)])))[0]),)
        return None

    def _row(self, g: Integrand) -> tuple[Array, float]:
        if not g.uses:
            return np.zeros(len(self.w)), 0.0
        q = self.encoder[g.feature]
        return q.C[g.uses[0]], float(q.bias[g.uses[0]])

    def _lattice(self, coordinates: Sequence[Coordinate], deltas: Sequence[float], modes: NDArray[np.int64]) -> Lattice:
        steps = np.array([d * c.v for c, d in zip(coordinates, deltas, strict=True)])
        if self._affine is not None:
            return Lattice(self._base, steps, modes, np.zeros(len(self.w)), 0)
        t = self._transform
        if len(modes) * (2.0 * t.modes + 1) * max(1, len(self.law.priors)) > _MAX_POINTS:
            raise UnsupportedError(
                f"an expectation over {len(coordinates) + 1} dimensions would need {len(modes):,} x "
                f"{2 * t.modes + 1:,} lattice points for {len(self.law.priors)} sources; loosen tol, raise input.noise_std, or use "
                "fewer encoder parameters per integrand"
            )
        return Lattice(self.law, steps, modes, self.u * t.step, t.modes)

    def _frame(self, j: int, r: int, delta: float, P: int) -> _Frame:
        """The lattice sums of one coordinate at period 2 pi / delta, with at least P modes; made once, grown on demand."""
        key = (j, r, delta)
        frame = self._frames.get(key)
        if frame is None or len(frame.modes) <= P:
            frame = _Frame.build(self, [self._coordinate(j, r)], [delta], np.arange(P + 1)[:, None])
            self._frames[key] = frame
        return frame

    def _term(self, g: Integrand, tol: float) -> tuple[_Term, _Frame]:
        if len(g.uses) == 1:
            c = self._coordinate(g.feature, g.uses[0])
            lo, hi, tail = self._support(c, g.value, tol)
            (s,) = best_series([g.value], lo, hi, c.sigma, tol / 4)
            return _Term(s.half(), tail + s.dropped), self._frame(g.feature, g.uses[0], s.delta, s.P)
        if len(g.uses) != 2:
            raise UnsupportedError(
                f"{g.label or 'an integrand'} of encoder[{g.feature}] depends on {len(g.uses)} encoder parameters at once; the spectral method "
                "covers at most 2 (a lattice over each, and one over b)"
            )
        coordinates = [self._coordinate(g.feature, r) for r in g.uses]
        log_epsilon = float(np.log(tol / 16))
        ranges = [self._range(c, log_epsilon) for c in coordinates]
        grids = np.meshgrid(*[np.linspace(lo, hi, 33) for lo, hi in ranges], indexing="ij")
        largest = max(1.0, float(np.abs(g.value(*grids)).max()))
        log_epsilon -= float(np.log(largest))
        ranges = [self._range(c, log_epsilon) for c in coordinates]
        V = np.array([c.v for c in coordinates])
        double = series_2d(g.value, ranges, V @ self._base.noise @ V.T, tol / 4)
        frame = _Frame.build(self, coordinates, double.deltas, double.modes)
        return _Term(double.coefficients, 8 * largest * float(np.exp(log_epsilon)) + double.dropped), frame

    def of_c_each(self, gs: Sequence[Integrand], *, weights: Array | None = None) -> Estimate:
        """E[g_i(c)] for each i, (len,); weights only say how much each error matters."""
        values, errors = np.zeros(len(gs)), np.zeros(len(gs))
        shares = np.ones(len(gs)) if weights is None else np.abs(weights)
        for i, g in enumerate(gs):
            if shares[i] == 0.0:
                continue
            tol = min(self.tol / (shares[i] * len(gs)), 0.5)
            coefficients = self._polynomial(g, 2)
            if coefficients is not None:
                values[i], errors[i] = self._moment(g, coefficients)
                continue
            term, frame = self._term(g, tol)
            values[i], rounding = term.dot(frame.X[0], frame)
            errors[i] = term.error + rounding
        return Estimate(values, errors)

    def _moment(self, g: Integrand, coefficients: tuple[float, ...]) -> tuple[float, float]:
        """E of a polynomial of degree <= 2 in c, from the first two moments of f."""
        g0, g1, g2 = (*coefficients, 0.0, 0.0, 0.0)[:3]
        first, second, relative = self.f_moments
        row, bias = self._row(g)
        c1 = float(row @ first) + bias
        c2 = float(row @ second @ row) + 2 * bias * float(row @ first) + bias**2
        size = np.abs(row) @ self._f_size + abs(bias)
        return g0 + g1 * c1 + g2 * c2, float(relative * (abs(g1) * size + abs(g2) * size**2) + 4 * _ROUNDOFF * abs(g0))

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
        first, second, relative = self.f_moments
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
                size = abs(g0 + g1 * bias) + abs(g1) * float(np.abs(row) @ self._f_size)
                errors[i] = relative * size * np.append(self._f_size, 1.0)
                continue
            scale = max(1.0, float(self._f_size.max(initial=0.0)))
            term, frame = self._term(
                g, min(self.tol / (max(weight, scale if importance is None else 0.0) * len(gs)), 0.5)
            )
            values[i, n], rounding = term.dot(frame.X[0], frame)
            values[i, :n] = term.vector(frame.f())
            errors[i] = (term.error + rounding) * np.append(self._f_size, 1.0)
        return Estimate(values, errors)

    def of_c_F(self, gs: Sequence[Integrand], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        """E[g_i(c) F] or E[<f - centre, along[i]> g_i(c) F], F = (f, 1), (len, n2 + 1)."""
        if along is None:
            return self._F_rows(gs)
        n = len(self.w)
        values, errors = np.zeros((len(gs), n + 1)), np.zeros((len(gs), n + 1))
        mu = np.zeros(n) if centre is None else centre
        first, second, relative = self.f_moments
        for i, (g, v) in enumerate(zip(gs, along, strict=True)):
            if not np.any(v):
                continue
            size = float(np.abs(v) @ (self._f_size + np.abs(mu)))
            offset = float(v @ mu)
            coefficients = self._polynomial(g, 0)
            if coefficients is not None:
                values[i, :n] = coefficients[0] * (second @ v - offset * first)
                values[i, n] = coefficients[0] * (float(first @ v) - offset)
                errors[i] = relative * abs(coefficients[0]) * size * np.append(self._f_size, 1.0)
                continue
            scale = size * max(1.0, float(self._f_size.max(initial=0.0)))
            term, frame = self._term(g, min(self.tol / (scale * len(gs)), 0.5))
            plain = term.vector(frame.f())
            _, rounding = term.dot(frame.X[0], frame)
            values[i, :n] = term.vector(frame.f_along(v)) - offset * plain
            values[i, n] = float(v @ plain) - offset * term.dot(frame.X[0], frame)[0]
            errors[i] = (term.error + rounding) * size * np.append(self._f_size, 1.0)
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
        return (self.moments_ss(gs, hs, weights=weights) * weights).sum()

    def moments_ss(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array | None = None) -> Estimate:
        """G = E[g_j(c_j) h_k(c_k)], (len(gs), len(hs)); weights only say how much each error matters.

        Pairs of posterior means (the integrands labelled s[j], of which an encoder has one each) are remembered, so that
        T3, the decoder's closed form and the gradient share them.
        """
        a, b = len(gs), len(hs)
        values, errors = np.zeros((a, b)), np.zeros((a, b))
        importance = np.ones((a, b)) if weights is None else np.abs(weights)
        symmetric = gs is hs or [g.label for g in gs] == [h.label for h in hs] == [f"s[{g.feature}]" for g in gs]
        if symmetric:
            importance = 0.5 * (importance + importance.T)
        linear_g = [self._polynomial(g, 1) for g in gs]
        linear_h = linear_g if symmetric else [self._polynomial(h, 1) for h in hs]
        rows_g, rows_h = self._linear_rows(gs, linear_h), self._linear_rows(hs, linear_g)
        sides: _Sides = {}
        for j in range(a):
            for k in range(j if symmetric else 0, b):
                if importance[j, k] == 0.0:
                    continue
                g, h = gs[j], hs[k]
                tol = min(self.tol / (importance[j, k] * a * b), 0.5)
                key = (g.label, h.label)
                known = self._mean_pairs.get(key) if key == (f"s[{g.feature}]", f"s[{h.feature}]") else None
                if known is not None and known[0] <= 1.0001 * tol:
                    value, error = known[1:]
                elif linear_h[k] is not None:
                    value, error = self._with_linear(rows_g[j], h, linear_h[k])
                elif linear_g[j] is not None:
                    value, error = self._with_linear(rows_h[k], g, linear_g[j])
                elif g.feature == h.feature and g.uses == h.uses:
                    product = Integrand(g.feature, g.uses, _product(g, h), None, f"{g.label} {h.label}")
                    term, frame = self._term(product, tol)
                    value, rounding = term.dot(frame.X[0], frame)
                    error = term.error + rounding
                else:
                    pair = self._pair([(g, h)], tol, sides)
                    value, error = pair.value()
                values[j, k], errors[j, k] = value, error
                if key == (f"s[{g.feature}]", f"s[{h.feature}]"):
                    self._mean_pairs[key] = (tol, value, error)
                if symmetric:
                    values[k, j], errors[k, j] = value, error
        return Estimate(values, errors)

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

    def _pair(self, terms: Sequence[tuple[Integrand, Integrand]], tol: float, sides: _Sides) -> _Pair:
        """Products g h of functions of the same two coordinates, on the modes that matter to any of them.

        A mode (p, q) is kept by the size of |ghat(p) hhat(q)| times the Gaussian factor exp(-omega^T Q omega / 2), Q the
        covariance of the noise of (z_j, z_k); each function's series is cut by its noise given the other coordinate.
        """
        lefts, rights = [g for g, _ in terms], [h for _, h in terms]
        coordinates = [self._pair_coordinate(lefts[0]), self._pair_coordinate(rights[0])]
        V = np.array([c.v for c in coordinates])
        Q = V @ self._base.noise @ V.T
        given = [Q[i, i] - (Q[0, 1] ** 2 / Q[1 - i, 1 - i] if Q[1 - i, 1 - i] > 0 else 0.0) for i in (0, 1)]
        sizes = [max(1.0, self._largest(fs)) for fs in (lefts, rights)]
        series = [
            self._side(fs, coordinates[i], tol / (4 * sizes[1 - i]), float(np.sqrt(max(0.0, given[i]))), sides)
            for i, fs in enumerate((lefts, rights))
        ]
        P, R = (max(s.P for s, _ in side) for side in series)
        deltas = [series[i][0][0].delta for i in (0, 1)]
        p, q = np.arange(-P, P + 1)[:, None], np.arange(0, R + 1)[None, :]
        x, y = deltas[0] * p, deltas[1] * q
        gauss = np.exp(-0.5 * (Q[0, 0] * x**2 + Q[1, 1] * y**2 + 2 * Q[0, 1] * x * y))
        gauss *= np.where((q > 0) | (p > 0), 2.0, np.where(p == 0, 1.0, 0.0))  # one of each pair (n, -n), counted twice
        products = [np.multiply.outer(a.grown(P), b.grown(R)[R:]) for (a, _), (b, _) in zip(*series, strict=True)]
        sizes_of_modes = [np.abs(c) * gauss for c in products]
        worst = np.max(sizes_of_modes, axis=0).ravel()
        order = np.argsort(worst)
        cut = int(np.searchsorted(np.cumsum(worst[order]), tol / 4))
        chosen = np.sort(order[cut:])
        modes = np.stack([chosen // (R + 1) - P, chosen % (R + 1)], axis=1).astype(np.int64)
        multiplicity = np.where(np.any(modes != 0, axis=1), 2.0, 1.0)
        errors = []
        for size, (a, tail_a), (b, tail_b) in zip(sizes_of_modes, *series, strict=True):
            left_out = float(size.ravel()[order[:cut]].sum())
            errors.append(left_out + (tail_a + a.dropped) * b.largest + (tail_b + b.dropped) * a.largest)
        frame = _Frame.build(self, coordinates, deltas, modes)
        return _Pair(frame, [c.ravel()[chosen] * multiplicity for c in products], errors)

    def _pair_coordinate(self, g: Integrand) -> Coordinate:
        if len(g.uses) != 1:
            raise UnsupportedError(
                f"{g.label or 'a posterior mean'} of encoder[{g.feature}] depends on {len(g.uses)} encoder parameters, so that a pair would "
                "need a lattice in more than 3 dimensions; the spectral method covers posterior means that depend on one"
            )
        return self._coordinate(g.feature, g.uses[0])

    def _largest(self, gs: Sequence[Integrand]) -> float:
        """The largest |g| on the range of c at the engine's tolerance."""
        lo, hi = self._range(self._coordinate(gs[0].feature, gs[0].uses[0]), np.log(self.tol))
        return max(float(np.abs(g.value(np.linspace(lo, hi, 65))).max()) for g in gs)

    def _side(
        self, gs: Sequence[Integrand], c: Coordinate, tol: float, sigma: float, sides: _Sides
    ) -> list[tuple[Series, float]]:
        """Series of one side's functions on a common period, with the bound on their tails; shared between pairs of
        nearly the same tolerance and noise (both rounded to the safe side)."""
        level = int(np.floor(np.log(tol) / np.log(4.0)))
        noise = -10_000 if sigma == 0.0 else int(np.floor(np.log(sigma) / np.log(1.1)))
        key = (tuple(id(g) for g in gs), level, noise)
        if key not in sides:
            tol, sigma = 4.0**level, 0.0 if sigma == 0.0 else 1.1**noise
            supports = [self._support(c, g.value, tol) for g in gs]
            lo, hi = min(s[0] for s in supports), max(s[1] for s in supports)
            every = best_series([g.value for g in gs], lo, hi, sigma, tol / 4)
            sides[key] = [(one, s[2]) for one, s in zip(every, supports, strict=True)]
        return sides[key]

    def of_cc_F(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        """Row i: sum_k weights[i, k] E[g_i(c) h_k(c_k) F], F = (f, 1), (len(gs), n2 + 1)."""
        n = len(self.w)
        values, errors = np.zeros((len(gs), n + 1)), np.zeros((len(gs), n + 1))
        linear_g = [self._polynomial(g, 1) for g in gs]
        linear_h = [self._polynomial(h, 1) for h in hs]
        scale = max(1.0, float(self._f_size.max(initial=0.0)))

        def add(i: int, value: Array, error: Array) -> None:
            values[i] += value
            errors[i] += error

        # linear partners: sum_k W_ik (h0 + h1 c_k) = <e_i, F> in one go per row
        functionals = np.array(
            [np.zeros(n + 1) if c is None else self._linear_functional(h, c) for h, c in zip(hs, linear_h, strict=True)]
        ).reshape(len(hs), n + 1)
        combined = weights @ functionals
        if any(c is not None for c in linear_h):
            done = self._F_and_along(gs, combined)
            for i in range(len(gs)):
                add(i, done.value[i], done.error[i])
        others = [k for k, c in enumerate(linear_h) if c is None]
        sides: _Sides = {}
        pending: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for i, g in enumerate(gs):
            for k in others:
                if weights[i, k] == 0.0:
                    continue
                h = hs[k]
                tol = min(self.tol / (abs(weights[i, k]) * scale * len(gs) * len(hs)), 0.5)
                if linear_g[i] is not None:
                    functional = self._linear_functional(g, linear_g[i] or ()) * weights[i, k]
                    done = self._F_and_along([h], functional[None, :])
                    add(i, done.value[0], done.error[0])
                elif g.feature == h.feature and g.uses == h.uses:
                    product = Integrand(g.feature, g.uses, _product(g, h), None, f"{g.label} {h.label}")
                    term, frame = self._term(product, tol)
                    value, rounding = term.dot(frame.X[0], frame)
                    vector = np.append(term.vector(frame.f()), value) * weights[i, k]
                    add(i, vector, abs(weights[i, k]) * (term.error + rounding) * np.append(self._f_size, 1.0))
                else:
                    # (a', b) and (b', a) live on one lattice: gather them
                    key = (g.feature, h.feature)
                    pending.setdefault((min(key), max(key)), []).append((i, k))
        for members in pending.values():
            tol = min(min(self.tol / (abs(weights[i, k]) * scale * len(gs) * len(hs)) for i, k in members), 0.5)
            by_coordinates: dict[tuple[object, object], list[tuple[int, int, bool]]] = {}
            for i, k in members:
                one, two = (gs[i].feature, gs[i].uses), (hs[k].feature, hs[k].uses)
                by_coordinates.setdefault((min(one, two), max(one, two)), []).append((i, k, two < one))
            for group in by_coordinates.values():
                pair = self._pair([(hs[k], gs[i]) if swap else (gs[i], hs[k]) for i, k, swap in group], tol, sides)
                for (i, k, _), (value, error) in zip(group, pair.vectors(), strict=True):
                    add(i, weights[i, k] * value, abs(weights[i, k]) * error * np.append(self._f_size, 1.0))
        return Estimate(values, errors)

    def _F_and_along(self, gs: Sequence[Integrand], functionals: Array) -> Estimate:
        """E[g_i(c) <e_i, F> F] for functionals e_i in R^(n2+1)."""
        n = len(self.w)
        plain = self._F_rows(gs)
        along = self.of_c_F(gs, along=functionals[:, :n])
        last = functionals[:, n:]
        return Estimate(along.value + last * plain.value, along.error + np.abs(last) * plain.error)


def _product(g: Integrand, h: Integrand) -> Callable[..., Array]:
    return lambda *c: g.value(*c) * h.value(*c)


@dataclass(frozen=True)
class _Term:
    """Coefficients of an integrand on a half lattice (multiplicity included), and the error of cutting it."""

    coefficients: ComplexArray
    error: float

    def dot(self, X: ComplexArray, frame: _Frame) -> tuple[float, float]:
        """Re sum ghat X, and a bound on its rounding error."""
        N = len(self.coefficients)
        return float((self.coefficients @ X[:N]).real), float(np.abs(self.coefficients) @ frame.rounding[:N])

    def vector(self, Y: ComplexArray) -> Array:
        return np.asarray((self.coefficients @ Y[: len(self.coefficients)]).real)


@dataclass
class _Frame:
    """X, Y and Z sums on one lattice of encoder coordinates, each made when first asked for.

    X[l, n] = E[psi^l e^{i <omega_n, c>}] (l = 0, 1, 2), Y[l, n] = E[(y - ybar) psi^l e^{..}] (l = 0, 1).
    """

    engine: SpectralExpectations
    lattice: Lattice
    center: Array  # (N,): what psi needs of each mode, see `PsiTransform.rows`
    theta: Array
    alpha: Array
    rounding: Array

    @staticmethod
    def build(
        engine: SpectralExpectations,
        coordinates: Sequence[Coordinate],
        deltas: Sequence[float],
        modes: NDArray[np.int64],
    ) -> _Frame:
        lattice = engine._lattice(coordinates, deltas, modes)
        table = np.array([[c.center, c.theta, c.kappa] for c in coordinates]) * np.array(deltas)[:, None]
        center, theta, alpha = (modes @ table).T
        return _Frame(engine, lattice, center, theta, alpha, 8 * _ROUNDOFF * lattice.rounding())

    def _base(self, powers: int) -> ComplexArray:
        return self.engine._rows(self.center, self.theta, self.alpha, powers)

    @property
    def modes(self) -> NDArray[np.int64]:
        return self.lattice.modes

    @cached_property
    def X(self) -> ComplexArray:
        for made in ("_second", "_first"):
            if made in self.__dict__:
                return np.asarray(self.__dict__[made][0])
        return self.lattice.values(self._base(1))

    @cached_property
    def _first(self) -> tuple[ComplexArray, ComplexArray]:
        """X for l = 0, 1 and Y for l = 0: what E[g f] needs."""
        if "_second" in self.__dict__:
            return self._second
        return self.lattice.moments(self._base(2), 1)

    @cached_property
    def _second(self) -> tuple[ComplexArray, ComplexArray]:
        """X for l = 0, 1, 2 and Y for l = 0, 1: what E[<f, v> g f] needs."""
        return self.lattice.moments(self._base(3), 2)

    def f(self) -> ComplexArray:
        """E[f e^{i <omega_n, c>}], (N, n2)."""
        X, Y = self._first
        law = self.engine._base
        if self.engine._affine is not None:
            return np.asarray(np.multiply.outer(X[0], law.mean) + Y[0])
        return np.asarray(np.multiply.outer(X[0], law.mean) + Y[0] + np.multiply.outer(X[1], self.engine.w))

    def f_along(self, v: Array) -> ComplexArray:
        """E[<f, v> f e^{i <omega_n, c>}], (N, n2)."""
        X, Y = self._second
        engine = self.engine
        mean, w = engine._base.mean, np.zeros_like(engine.w) if engine._affine is not None else engine.w
        base = self._base(1)[0]
        a, o = float(mean @ v), float(w @ v)
        Z = self.lattice.second_moments(base, v)
        constant = np.multiply.outer(a * X[0] + o * X[1] + Y[0] @ v, mean)
        nonlinear = np.multiply.outer(a * X[1] + o * X[2] + Y[1] @ v, w)
        return np.asarray(constant + nonlinear + a * Y[0] + o * Y[1] + Z)


@dataclass
class _Pair:
    """E[g(c_j) h(c_k)] for one or more (g, h), on the lattice of the pair's two coordinates."""

    frame: _Frame
    coefficients: list[ComplexArray]
    errors: list[float]

    def value(self) -> tuple[float, float]:
        """E[g h] of the first product, and its error."""
        value, rounding = _Term(self.coefficients[0], 0.0).dot(self.frame.X[0], self.frame)
        return value, self.errors[0] + rounding

    def vectors(self) -> list[tuple[Array, float]]:
        """E[g h F] of each product, F = (f, 1), and the error of its last entry."""
        f = self.frame.f()
        out = []
        for coefficients, error in zip(self.coefficients, self.errors, strict=True):
            term = _Term(coefficients, error)
            value, rounding = term.dot(self.frame.X[0], self.frame)
            out.append((np.append(term.vector(f), value), error + rounding))
        return out


_Sides = dict[tuple[tuple[int, ...], int, int], list[tuple[Series, float]]]
