"""The law of f(x1) = y + w psi(b): everything about it that does not depend on the encoder.

Ranges and frequencies of b, moments of f, expectations of functions of b, and how one read-out <row, f> splits into a
part orthogonal to b's noise and a function of b. Expectations of the encoder's parameters are `spectral`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime import rings
from elbotree.runtime.characteristic import Lattice, LinearLaw, Tails
from elbotree.runtime.enclosures import places
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.frames import ROUNDOFF, Coordinate
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.psi_transform import PsiTransform, finite_psi

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

_B_SHARE = 0.0002  # of tol, for each cut in b


class OutputLaw:
    """The law of f(x1) for x1 ~ p1, with expectations to an absolute error of about tol.

    Raises UnsupportedError when b = <y, u> + theta carries no Gaussian noise (its law has no density to invert) although
    psi is not affine, and when psi has a pole where b has mass.
    """

    def __init__(self, layer: Layer, p1: FeatureModel, tol: float) -> None:
        if not 1e-15 < tol < 1.0:
            raise InputError(f"`tol` is {tol!r}; it must lie between 1e-15 and 1 (float64 carries about 16 digits)")
        self.layer, self.tol = layer, float(tol)
        self.y = LinearLaw.of(layer, p1)
        self.u, self.w = layer.u, layer.w
        self._feature_columns = layer.A @ p1.B
        self._bbar = float(self.y.mean @ self.u + layer.threshold)
        self._var_b = float(self.u @ self.y.noise @ self.u)
        self._psi = layer.activation
        total = float(self.u @ self.y.covariance() @ self.u)
        scale = float(self.u @ self.u) * float(np.trace(self.y.covariance()))
        self._b_constant = total <= 1e-28 * scale or total == 0.0
        self._b_noisy = self._var_b > 1e-24 * total and not self._b_constant
        self.affine = self._affine_map()
        # f itself where f is affine in y, otherwise y: what lattices run over
        self.lattice_law = self.y if self.affine is None else self.y.mapped(*self.affine)
        self._p1 = p1
        spread = np.sqrt([p.variance() for p in p1.priors]).reshape(-1)
        # Cov(y) = root root^T: whether a read-out varies at all is seen here and not in its variance, which has half the digits
        self._root = np.hstack([p1.noise_std * layer.A, self._feature_columns * spread])
        self._tails: dict[tuple[bool, bytes], Tails] = {}

    def at(self, tol: float) -> OutputLaw:
        """The same law for another tolerance; bounds on tails, which know none, are shared."""
        other = OutputLaw(self.layer, self._p1, tol)
        other._tails = self._tails
        return other

    def _tails_of(self, law: LinearLaw, v: Array) -> Tails:
        key = law is self.y, v.tobytes()
        if key not in self._tails:
            self._tails[key] = Tails(law, v)
        return self._tails[key]

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

    def _narrow(self, lo: float, hi: float) -> Array:
        """Where psi must be looked at for beta from lo to hi."""
        return places(self._psi, self._bbar + lo, self._bbar + hi) - self._bbar

    @cached_property
    def b_error(self) -> float:
        """What the range and the frequencies of b leave out of any E g, in units of max |g|: mass on both sides of the
        range, its aliases, and the Gaussian factor beyond the last frequency."""
        return 0.0 if self.affine is not None else 6 * float(np.exp(self._b_range[2]))

    @cached_property
    def _b_range(self) -> tuple[float, float, float]:
        """Where beta lives, (lo, hi), and the log of the mass outside: times psi^2 it is a hundredth of tol."""
        log_epsilon = float(np.log(_B_SHARE * self.tol))
        for _ in range(4):
            ranges = self._b_ranges_at(log_epsilon)
            lo, hi = ranges.first
            for pole in self._psi.poles:
                if self._bbar + lo <= pole <= self._bbar + hi:
                    raise UnsupportedError(
                        f"psi ({self._psi.text}) has a pole at b = {pole:g}, and b = <y, u> + theta has a positive density "
                        "there, so that the expectations of psi diverge; move the threshold or the input away from it"
                    )
            seen = np.append(np.linspace(lo, hi, 129), self._narrow(lo, hi))
            square = float(np.max(self._psi_at(self._bbar + seen) ** 2))
            square = max(square, rings.mean(rings.largest("psi^2", partial(self._power, 2), ranges)))
            wanted = float(np.log(_B_SHARE * self.tol / max(1.0, square)))
            if wanted >= log_epsilon - 0.5 or not np.isfinite(wanted):
                break  # or psi grows faster than the tails fall: the error will say so
            log_epsilon = wanted
        return *self._b_ranges_at(log_epsilon).first, log_epsilon

    @cached_property
    def _b_tails(self) -> Tails:
        return Tails(self.y, self.u)

    def _b_ranges_at(self, log_epsilon: float) -> rings.Ranges:
        return rings.Ranges(*self._b_tails.bounds(log_epsilon - rings.STEPS))

    @cached_property
    def _b_ranges(self) -> rings.Ranges:
        """Wider and wider ranges of beta, `_b_range` being the first."""
        return self._b_ranges_at(self._b_range[2])

    @cached_property
    def _b_seen(self) -> tuple[Array, Array, NDArray[np.int64]]:
        """Where read-outs are looked at to find their ranges: beta, psi there, and where the points of each range begin."""
        lo, hi = self._b_ranges.lo, self._b_ranges.hi
        breaks = np.array([x - self._bbar for x in self._psi.breaks])
        narrow = [self._narrow(float(lo[k]), float(hi[k])) for k in (0, -1)]
        near = np.concatenate([breaks, breaks - 1e-9, breaks + 1e-9, *narrow])
        parts = [np.linspace(lo[0], hi[0], 513), *self._b_ranges.between]
        known = np.zeros(len(near), dtype=bool)
        for k, part in enumerate(parts):
            here = (near > lo[k]) & (near < hi[k]) & ~known
            parts[k], known = np.concatenate([part, near[here]]), known | here
        inside, beta = len(parts[0]), np.concatenate(parts)
        with np.errstate(all="ignore"):
            psi = np.array(np.broadcast_to(self._psi.value(self._bbar + beta), beta.shape), dtype=np.float64)
        psi[:inside] = self._psi_at(self._bbar + beta[:inside])
        psi[np.isnan(psi)] = np.inf
        return beta, psi, np.cumsum([0, *map(len, parts[:-1])])

    def _power(self, power: int, beta: Array) -> Array:
        return np.asarray(self._psi.value(self._bbar + beta) ** power)

    def beyond(self, g: Callable[[Array], Array]) -> Array:
        """How large a function of beta that is finite on beta's range is outside it: `rings.largest`."""
        try:
            return rings.largest("a function of b", g, self._b_ranges)
        except UnsupportedError:  # one that looks for itself whether it is finite
            return np.full(len(rings.STEPS) - 1, np.inf)

    @cached_property
    def _transform(self) -> PsiTransform:
        """psi against the frequencies of b; as many frequencies as the noise in b leaves."""
        if not self._b_noisy:
            raise UnsupportedError(
                "b = <y, u> + theta carries no Gaussian noise (input.noise_std is 0, or A^T u = 0), so its law has no density "
                f"that could be integrated against psi ({self._psi.text}); only `evaluate` and `gradient` enumerate x1, where "
                "it takes few values, so give the input a small noise_std"
            )
        lo, hi, log_epsilon = self._b_range
        std = float(np.sqrt(self._var_b))
        modes = int(np.ceil(np.sqrt(-2 * log_epsilon) / std * (hi - lo) / (2 * np.pi)))
        if modes > 20_000:
            raise UnsupportedError(
                f"b = <y, u> + theta has Gaussian noise {std:.3g} on a range of {hi - lo:.3g}: inverting its law would take "
                f"{2 * modes + 1:,} frequencies; raise input.noise_std or loosen tol"
            )
        return PsiTransform(self._psi, self._bbar, lo, hi, modes, self.tol)

    @property
    def transform(self) -> PsiTransform | None:
        """psi against the frequencies of b; None where f is affine in y, so that b plays no part of its own."""
        return None if self.affine is not None else self._transform

    # ------------------------------------------------------------------ moments

    @cached_property
    def _b_law(self) -> tuple[ComplexArray, ComplexArray, float]:
        """E e^{i k step beta} (K,) and E[(y - ybar) e^{i k step beta}] (K, n2) at the frequencies of b, and the rounding of sums
        over them, relative to the largest value of what is summed."""
        t = self._transform
        k = np.arange(-t.modes, t.modes + 1)[:, None]
        along = Lattice(self.y, (self.u * t.step)[None, :], k, np.zeros(len(self.w)), 0)
        phi, vectors = along.moments(lambda rows, powers: np.ones((1, len(k[rows]), 1), dtype=np.complex128), 1, 1)
        over_k = Lattice(self.y, np.zeros((1, len(self.w))), np.zeros((1, 1), dtype=np.int64), self.u * t.step, t.modes)
        return phi[0], vectors[0], 8 * ROUNDOFF * float(over_k.rounding()[0])

    def _of_b(self, g: Callable[[Array], Array]) -> tuple[float, Array, Array, float]:
        """E[g(b)], E[g(b) (y - ybar)], how large g is outside b's range (`rings.largest`), and an error for the first from inside
        it (times |y - ybar|: for the second)."""

        def of_beta(beta: Array) -> Array:
            return np.broadcast_to(g(self._bbar + beta), beta.shape)

        integrals, largest, missed = self._transform.integrals(of_beta)
        phi, vectors, rounding = self._b_law
        beyond = np.maximum(self.beyond(of_beta), largest)
        return float((integrals[0] @ phi).real), (integrals[0] @ vectors).real, beyond, missed + rounding * largest

    @cached_property
    def f_moments(self) -> tuple[Array, Array, Array]:
        """E f (n2,), E f f^T (n2, n2), and the errors of E F F^T, F = (f, 1), (n2 + 1, n2 + 1).

        With f = y + w psi(b) they are those of E psi, E psi^2 and E[psi y], carried through |w|. What is left out where b
        leaves its range, E[|y_i psi|; outside], is at most the sum over rings of their mass times the largest |psi| on them
        times `LinearLaw.reaches`, whose value at epsilon e^-s is at most 1 + s / (1 - log epsilon) times that at epsilon.
        """
        law, n = self.lattice_law, len(self.w)
        size, error = (
            np.append(np.abs(law.mean) + 6 * np.sqrt(np.diag(law.covariance())), 1.0),
            np.zeros((n + 1, n + 1)),
        )
        if self.affine is not None:
            return law.mean, law.covariance() + np.outer(law.mean, law.mean), 8 * ROUNDOFF * np.outer(size, size)
        transform, (phi, vectors, rounding) = self._transform, self._b_law
        integrals, _, missed = transform.integrals(np.ones_like, transform.largest**2)
        _, one, two = (float(x) for x in (integrals @ phi).real)
        ybar, w = self.y.mean, self.w
        y_psi = (integrals[1] @ vectors).real + ybar * one
        first = ybar + w * one
        second = (
            self.y.covariance() + np.outer(ybar, ybar) + np.outer(y_psi, w) + np.outer(w, y_psi) + np.outer(w, w) * two
        )
        beyond = [np.maximum(self.beyond(partial(self._power, l)), transform.largest**l) for l in (1, 2)]
        inside = (missed + rounding) * transform.largest
        log_epsilon = self._b_range[2]
        reach = np.multiply.outer(self.y.reaches(log_epsilon), 1 + rings.STEPS[1:] / (1 - log_epsilon))
        of_psi = self.b_error * rings.mean(beyond[0]) + inside
        of_square = self.b_error * rings.mean(beyond[1]) + inside * transform.largest
        of_y_psi = np.array([self.b_error * rings.mean(beyond[0] * q) + inside * q[0] for q in reach])
        mixed = np.outer(of_y_psi + np.abs(ybar) * of_psi, np.abs(w))
        error[:n, :n] = mixed + mixed.T + np.outer(np.abs(w), np.abs(w)) * of_square
        error[:n, n] = error[n, :n] = np.abs(w) * of_psi
        size[:n] += np.abs(w) * max(abs(one), abs(two) ** 0.5)
        return first, second, error + 8 * ROUNDOFF * np.outer(size, size)

    @cached_property
    def f_size(self) -> Array:
        """How large |f| is per coordinate where tails are cut: |E f| + 6 standard deviations, or more where features are rare and
        large (`LinearLaw.reaches`)."""
        first, second, _ = self.f_moments
        likely = np.abs(first) + 6 * np.sqrt(np.maximum(np.diag(second) - first**2, 0.0))
        law, log_epsilon = self.lattice_law, float(np.log(_B_SHARE * self.tol))
        most = np.abs(law.mean) + law.reaches(log_epsilon)
        if self.affine is None:
            most = most + np.abs(self.w) * self._transform.largest
        return np.asarray(np.maximum(likely, most))

    def law_of_psi(self) -> tuple[Array, Array] | None:
        """psi(b) as weighted values (they sum to 1 up to the tolerance); None where f is affine in y."""
        if self.affine is not None:
            return None
        nodes = self._transform.nodes(1.0, 0.0)
        return nodes.psi, nodes.density(self._b_law[0]) * nodes.weights

    def feature_columns(self) -> Array:
        """The directions in which the features of x1 move f when psi(b) is held: A B1, or T A B1 where f = T y + const."""
        return self._feature_columns if self.affine is None else self.affine[0] @ self._feature_columns

    def mean_f(self) -> Estimate:
        """E f(x1), (n2,)."""
        first, _, error = self.f_moments
        return Estimate.of(first, error[:-1, -1])

    def norm_y(self, centre: Array) -> Estimate:
        """E|y - centre|^2, in closed form."""
        value = float(np.sum((self.y.mean - centre) ** 2) + np.trace(self.y.covariance()))
        return Estimate.of(value, 16 * ROUNDOFF * value * len(centre))

    def of_b(self, g: Callable[[Array], Array], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        """E[g(b)], or E[<y - centre, along> g(b)]; g smooth between psi's breaks."""
        if self._b_constant:
            value = float(np.broadcast_to(g(np.array([self._bbar])), (1,))[0])
            if along is not None:
                value *= float((self.y.mean - (0.0 if centre is None else centre)) @ along)
            return Estimate.of(value, 8 * ROUNDOFF * abs(value))
        if not self._b_noisy and self._psi.affine is not None:
            return self._of_b_quadratic(g, along, centre)
        one, vector, beyond, error = self._of_b(g)
        if along is None:
            return Estimate.of(one, error + self.b_error * rings.mean(beyond))
        shift = self.y.mean - (0.0 if centre is None else centre)
        # how large <y, along> is where b leaves its ranges: 8 standard deviations, or more where features are rare and large
        tails = Tails(self.y, along)
        ends = np.abs(tails.bounds(self._b_range[2] - rings.STEPS)).max(axis=0)
        reach = 1.0 + np.maximum(8 * tails.std, ends) + abs(float(shift @ along))
        error = error * float(reach[0]) + self.b_error * rings.mean(beyond * reach[1:])
        return Estimate.of(float(along @ vector + (shift @ along) * one), error)

    def _of_b_quadratic(self, g: Callable[[Array], Array], along: Array | None, centre: Array | None) -> Estimate:
        """of_b without a density of b, for g a polynomial of degree at most 2 (affine psi and its square)."""
        low, mid, high = (float(x) for x in g(np.array([-1.0, 0.0, 1.0])))
        g0, g1, g2 = mid, 0.5 * (high - low), 0.5 * (high + low) - mid
        variance = float(self.u @ self.y.covariance() @ self.u)
        if along is None:
            value = g0 + g1 * self._bbar + g2 * (self._bbar**2 + variance)
        elif g2 == 0.0:
            shift = float((self.y.mean - (0.0 if centre is None else centre)) @ along)
            value = shift * (g0 + g1 * self._bbar) + g1 * float(along @ self.y.covariance() @ self.u)
        else:
            raise UnsupportedError("b carries no Gaussian noise; its third moments are not supported")
        return Estimate.of(value, 32 * ROUNDOFF * max(1.0, abs(value)))

    # ------------------------------------------------------------------ read-outs

    def coordinate(self, row: Array, bias: float) -> Coordinate:
        """How c = <row, f> + bias splits into z and m(beta)."""
        law = self.lattice_law
        center = float(row @ law.mean) + bias
        if self.affine is not None:
            sigma = float(np.sqrt(max(0.0, float(row @ law.noise @ row))))
            still = np.full((2, len(rings.STEPS)), center)
            return Coordinate(row, 0.0, 0.0, center, sigma, self._tails_of(law, row), still)
        theta = float(row @ law.noise @ self.u) / self._var_b if self._b_noisy else 0.0
        v, kappa = row - theta * self.u, float(row @ self.w)
        beta, psi, starts = self._b_seen
        shift = center + theta * beta + (kappa * psi if kappa else 0.0)
        ends = np.stack(
            [
                np.minimum.accumulate(np.minimum.reduceat(shift, starts)),
                np.maximum.accumulate(np.maximum.reduceat(shift, starts)),
            ]
        )
        size = float(np.linalg.norm(row)) * float(np.linalg.norm(self._root))
        if self._b_noisy and float(np.linalg.norm(v @ self._root)) <= 1e-13 * size:
            return Coordinate(v, theta, kappa, center, 0.0, Tails.of_constant(), ends, of_b=True)
        sigma = float(np.sqrt(max(0.0, float(v @ law.noise @ v))))
        return Coordinate(v, theta, kappa, center, sigma, self._tails_of(law, v), ends, pieces=self._pieces(row, bias))

    def _pieces(self, row: Array, bias: float) -> tuple[tuple[Tails, float, int], ...]:
        """The forms <row + kappa slope u, y> + constant that c is one of where psi is linear on pieces: their tails and
        means, and the first of b's ranges that reaches the piece; none for any other psi."""
        out = []
        lo, hi = self._b_ranges.lo, self._b_ranges.hi
        kappa = float(row @ self.w)
        ends = [-np.inf, *self._psi.breaks, np.inf]
        for (a, b), (slope, intercept) in zip(pairwise(ends), self._psi.pieces or (), strict=False):
            reached = (b > self._bbar + lo) & (a < self._bbar + hi)
            if reached.any():
                v = row + kappa * slope * self.u
                mean = float(v @ self.y.mean) + bias + kappa * (intercept + slope * self.layer.threshold)
                out.append((self._tails_of(self.y, v), mean, int(np.argmax(reached))))
        return tuple(out)
