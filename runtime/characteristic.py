"""The law of y = A x1 + d through its characteristic function, on frequency lattices.

y = ybar + sum_i r_i (alpha_i - E alpha_i) + N(0, Sigma), with r_i = A B1 e_i; normal priors are part of Sigma. In
frequency space the convolution of Fact 3.3 is a product, so that

    E exp(i <omega, y - ybar>) = exp(-omega^T Sigma omega / 2) prod_i phi_i(<omega, r_i>)

is exact at every omega: no bins, no slanted lines. A `Lattice` is a set of such omega, all integer combinations of a
few step vectors, and sums weights over it: values, first moments E[y e^{..}], and second moments along a direction.
How the weights come about is `spectral`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.priors import Bernoulli, Discrete, Normal, Prior

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

Base = Callable[[slice, int], ComplexArray]

# Lattices are walked in blocks of about this many (source, frequency) points: a block's arrays stay in cache.
_BLOCK = 100_000


@dataclass(frozen=True)
class LinearLaw:
    """The law of y = mean + sum_i loadings[:, i] (alpha_i - E alpha_i) + N(0, noise).

    mean (n,), loadings (n, m) for the m priors that are not normal, noise (n, n) positive semidefinite.
    """

    mean: Array
    loadings: Array
    priors: tuple[Prior, ...]
    noise: Array
    groups: tuple[tuple[Prior, NDArray[np.intp]], ...] = field(init=False)
    _flat: dict[tuple[bytes, int, float], tuple[Any, ...]] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        found: dict[Prior, list[int]] = {}
        for i, prior in enumerate(self.priors):
            found.setdefault(prior, []).append(i)
        object.__setattr__(self, "groups", tuple((p, np.array(i, dtype=np.intp)) for p, i in found.items()))

    @staticmethod
    def of(layer: Layer, p1: FeatureModel) -> LinearLaw:
        """The law of y = A x1 + d for x1 ~ p1; normal priors and constant sources leave the list of sources."""
        R = layer.A @ p1.B
        mean = layer.A @ p1.offset + layer.offset + R @ np.array([p.mean() for p in p1.priors]).reshape(-1)
        noise = p1.noise_std**2 * (layer.A @ layer.A.T)
        keep = []
        for i, prior in enumerate(p1.priors):
            if isinstance(prior, Normal):
                noise = noise + prior.variance() * np.outer(R[:, i], R[:, i])
            elif prior.variance() > 0 and np.any(R[:, i] != 0):
                keep.append(i)
        return LinearLaw(mean, R[:, keep], tuple(p1.priors[i] for i in keep), noise)

    @cached_property
    def atomic(self) -> bool:
        """Whether all sources take finitely many values."""
        return not any(prior.continuous_weight for prior in self.priors)

    def flat(self, b_step: Array, b_modes: int, reach: float) -> tuple[Any, ...]:
        """The sources as flat arrays for the compiled loops: waves (`Prior.waves`) as rotations over k, the rest as tables to
        `reach`."""
        key = (b_step.tobytes(), b_modes, reach)
        along = b_step @ self.loadings
        if key not in self._flat:
            from elbotree.runtime import lattice_loops

            m = len(self.priors)
            start, row, length, step = np.zeros(m + 1, np.int64), np.full(m, -1), np.zeros(m, np.int64), np.zeros(m)
            atoms: list[float] = []
            masses: list[float] = []
            poles: list[tuple[float, float]] = []
            of_source: list[int] = []
            tables, known, size = [np.zeros((0, 6))], {}, 0
            for i, prior in enumerate(self.priors):
                if prior.waves is not None:
                    for wave in prior.waves:
                        atoms.append(wave.place - prior.mean())
                        masses.append(wave.mass)
                        poles.append((wave.scales[0] + wave.scales[1], wave.scales[0] * wave.scales[1]))
                        of_source.append(i)
                else:
                    if prior not in known:
                        h, made = lattice_loops.table(prior, reach)
                        known[prior] = (size, len(made), h)
                        tables.append(made)
                        size += len(made)
                    row[i], length[i], step[i] = known[prior]
                start[i + 1] = len(atoms)
            k = np.arange(-b_modes, b_modes + 1)
            turn = np.multiply.outer(np.array(atoms) * along[np.array(of_source, dtype=np.intp)], k)
            rotate = np.stack([np.cos(turn), np.sin(turn)], axis=1) if atoms else np.zeros((0, 2, len(k)))
            poles_of = np.array(poles).reshape(-1, 2)
            sources = (
                start,
                np.array(atoms),
                np.array(masses),
                poles_of,
                rotate,
                row,
                length,
                step,
                np.concatenate(tables),
            )
            self._flat[key] = sources
        return (along, *self._flat[key])

    def mapped(self, T: Array, shift: Array) -> LinearLaw:
        """The law of T y + shift."""
        return LinearLaw(T @ self.mean + shift, T @ self.loadings, self.priors, T @ self.noise @ T.T)

    @cached_property
    def _covariance(self) -> Array:
        variances = np.array([p.variance() for p in self.priors]).reshape(-1)
        made = np.asarray(self.noise + (self.loadings * variances) @ self.loadings.T)
        made.flags.writeable = False
        return made

    def covariance(self) -> Array:
        """Cov(y), (n, n); read only."""
        return self._covariance

    def cumulant_generating(self, v: Array, s: Array) -> Array:
        """K(s) = log E exp(s <v, y - mean>) for real s, +inf outside its domain; s of any shape."""
        K = 0.5 * s**2 * float(v @ self.noise @ v)
        for prior, index in self.groups:
            d = v @ self.loadings[:, index]
            d = d[d != 0]
            x = np.multiply.outer(d, s)
            K = K + (prior.log_mgf(x) - prior.mean() * x).sum(axis=0)
        return np.asarray(K)

    def reaches(self, log_epsilon: float) -> Array:
        """How large |y_i - mean_i| is in the mean, (n,), where something of probability epsilon happens: E[|y_i - mean_i|; A] is at
        most epsilon times that, whatever the event A.

        P(y_i - mean_i > q) <= exp(K_i(s) - s q) gives min_s (K_i(s) - log_epsilon + 1) / s on either side, the 1 being what is
        beyond q; s on a geometric grid.
        """
        std = np.sqrt(np.diag(self.covariance()))
        s = np.geomspace(0.2, 80.0, 32) / np.maximum(std, 1e-300)[:, None]
        out = np.zeros_like(std)
        for sign in (1.0, -1.0):
            with np.errstate(all="ignore"):
                K = 0.5 * s**2 * np.diag(self.noise)[:, None]
                for prior, index in self.groups:
                    x = sign * self.loadings[:, index, None] * s[:, None, :]
                    K = K + (prior.log_mgf(x) - prior.mean() * x).sum(axis=1)
                q = (K - log_epsilon + 1.0) / s
            out = np.maximum(out, np.min(q, axis=1, where=np.isfinite(q), initial=np.inf))
        return np.where(std > 0.0, out, 0.0)


class Tails:
    """Intervals that S = <v, y - mean> leaves with small probability, by Chernoff bounds.

    P(S > q) <= exp(K(s) - s q) for every s > 0, and where S holds Gaussian noise sigma, so that its law tilted by e^{s S} has a
    density of at most 1 / (sigma sqrt(2 pi)), that times min(1, 1 / (s sigma sqrt(2 pi))). So q = inf_s (K(s) - log_epsilon) / s,
    the logarithm of the factor put to K; any s gives a valid bound, and the best of a geometric grid of ratio 1.1 is within half
    a percent of the infimum. Holds for skewed features, where "mean plus k standard deviations" fails. K is tabulated once; a
    bound then costs a minimum over the table.
    """

    def __init__(self, law: LinearLaw, v: Array) -> None:
        self.std = float(np.sqrt(max(0.0, float(v @ law.covariance() @ v))))
        self._noise = float(np.sqrt(max(0.0, float(v @ law.noise @ v))))
        if self.std == 0.0:
            return
        # s of a Gaussian bound is sqrt(2 log 1/epsilon) / std: the grid reaches from there down and, for a law whose noise
        # is much narrower than its features, up to the noise's own scale
        top = min(60.0 / max(self._noise, 1e-12 * self.std), 1e6 / self.std)
        self.s = np.geomspace(0.05 / self.std, max(top, 60.0 / self.std), 160)
        with np.errstate(over="ignore", invalid="ignore"):
            gained = -np.log(np.maximum(self.s * self._noise * np.sqrt(2 * np.pi), 1.0))
            K = [law.cumulant_generating(sign * v, self.s) + gained for sign in (1.0, -1.0)]
        self._sides = [(k[np.isfinite(k)], self.s[np.isfinite(k)]) for k in K]

    @staticmethod
    def of_constant() -> Tails:
        """Those of an S that is 0."""
        none = np.zeros((1, 0))
        return Tails(LinearLaw(np.zeros(1), none, (), np.zeros((1, 1))), np.zeros(1))

    def bounds(self, log_epsilon: Array) -> tuple[Array, Array]:
        """(lo, hi), each left with probability at most exp(log_epsilon), for each entry of log_epsilon, (n,)."""
        if self.std == 0.0:
            return np.zeros_like(log_epsilon), np.zeros_like(log_epsilon)
        hi, lo = (np.min((K - log_epsilon[:, None]) / s, axis=1, initial=np.inf) for K, s in self._sides)
        return -lo, hi


@dataclass(frozen=True)
class Lattice:
    """The frequencies omega[n, k] = sum_d modes[n, d] steps[d] + k b_step, k = -b_modes..b_modes.

    steps (d, n2), modes (N, d) integers, b_step (n2,). The steps are orthogonal to b_step in the metric of the noise,
    so that the Gaussian factor splits into one over n and one over k. The methods sum over k, K = 2 b_modes + 1 terms,
    against a `base` that carries the quadrature in b, base(rows, powers) being its (powers, len(rows), K) numbers for a
    block of n; what they return per n is X and Y of the numerics page.
    """

    law: LinearLaw
    steps: Array
    modes: NDArray[np.int64]
    b_step: Array
    b_modes: int
    compiled: bool = False

    @property
    def columns(self) -> int:
        return 2 * self.b_modes + 1

    def blocks(self) -> list[slice]:
        """Row ranges small enough that one block's factors stay in cache."""
        rows = max(1, _BLOCK // (max(1, len(self.law.priors)) * self.columns))
        return [slice(a, min(a + rows, len(self.modes))) for a in range(0, len(self.modes), rows)]

    @cached_property
    def limits(self) -> NDArray[np.int64]:
        """How far |k| goes for each n, (N,): to the ellipsoid on which the Gaussian factor is what it is at k = b_modes."""
        step = float(self.b_step @ self.law.noise @ self.b_step)
        if step == 0.0:
            return np.full(len(self.modes), self.b_modes, dtype=np.int64)
        Q = self.steps @ self.law.noise @ self.steps.T
        n = self.modes.astype(np.float64)
        left = self.b_modes**2 - np.einsum("nd,de,ne->n", n, Q, n) / step
        return np.asarray(np.sqrt(np.maximum(left, 0.0)), dtype=np.int64)

    @staticmethod
    def _loops() -> Any:
        """The compiled loops; numba takes half a second to import, which small problems need not pay."""
        from elbotree.runtime import lattice_loops

        return lattice_loops

    def _flat(self, rows: slice) -> tuple[Any, ...]:
        """This block of modes and the sources as the flat arrays that the compiled loops take."""
        over_n, over_k = self._gaussian(rows)
        across = self.steps @ self.law.loadings
        # reaches are rounded up to powers of two, so that all lattices of a law share tables
        reach = float(np.abs(self.modes @ across).max(initial=0.0))
        reach += float(np.abs(self.b_step @ self.law.loadings).max(initial=0.0)) * self.b_modes
        reach = float(2.0 ** np.ceil(np.log2(max(reach, 1e-6))))
        along, *sources = self.law.flat(self.b_step, self.b_modes, reach)
        return (self.modes[rows] @ across, along, over_n, over_k, self.limits[rows], tuple(sources))

    @property
    def over_n(self) -> Array:
        """The factor of exp(-omega^T Sigma omega / 2) over n, (N,)."""
        return self._gaussian(slice(None))[0]

    def _gaussian(self, rows: slice) -> tuple[Array, Array]:
        """exp(-omega^T Sigma omega / 2) as a factor over n and one over k."""
        Q = self.steps @ self.law.noise @ self.steps.T
        n = self.modes[rows].astype(np.float64)
        k = np.arange(-self.b_modes, self.b_modes + 1)
        over_n = np.exp(-0.5 * np.einsum("nd,de,ne->n", n, Q, n))
        over_k = np.exp(-0.5 * k**2 * float(self.b_step @ self.law.noise @ self.b_step))
        return over_n, over_k

    def _factors(self, rows: slice, order: int) -> list[ComplexArray]:
        """d^l/dt^l of the centred phi_i at t_i[n, k] = <omega[n, k], r_i>, l = 0..order, each (m, N, K)."""
        modes = self.modes[rows]
        m, N, K = len(self.law.priors), len(modes), self.columns
        out = [np.empty((m, N, K), dtype=np.complex128) for _ in range(order + 1)]
        across = self.steps @ self.law.loadings  # (d, m): t_i changes by this from one mode to the next
        along = self.b_step @ self.law.loadings
        k = np.arange(-self.b_modes, self.b_modes + 1)
        for prior, index in self.law.groups:
            t_n, t_k = modes @ across[:, index], np.multiply.outer(along[index], k)
            if isinstance(prior, Discrete | Bernoulli):
                atoms, masses = prior.atoms
                # one prior for all: nothing to put in place afterwards
                made = out if len(index) == m else [np.empty((len(index), N, K), dtype=np.complex128) for _ in out]
                for i, a in enumerate(atoms - prior.mean()):
                    # exp(i t a) is a product over the axes: one multiplication a point instead of one exponential.
                    over_n, over_k = np.exp(1j * a * t_n).T[:, :, None], (masses[i] * np.exp(1j * a * t_k))[:, None, :]
                    if i == 0:
                        for level in range(order + 1):
                            np.multiply(over_n, over_k * (1j * a) ** level, out=made[level])
                        continue
                    e = over_n * over_k
                    for level in range(order + 1):
                        made[level] += e
                        if level < order:
                            e *= 1j * a
                if made is not out:
                    for level in range(order + 1):
                        out[level][index] = made[level]
            else:
                t = t_n.T[:, :, None] + t_k[:, None, :]
                shift = np.exp(-1j * prior.mean() * t)
                raw = [prior.cf(t, level) for level in range(order + 1)]
                mu = prior.mean()
                out[0][index] = shift * raw[0]
                if order >= 1:
                    out[1][index] = shift * (raw[1] - 1j * mu * raw[0])
                if order >= 2:
                    out[2][index] = shift * (raw[2] - 2j * mu * raw[1] - mu**2 * raw[0])
        return out

    def values(self, base: Base, powers: int) -> ComplexArray:
        """X[q, n] = sum_k base[q, n, k] E exp(i <omega[n, k], y - mean>), q < powers; X (powers, N)."""
        X = np.empty((powers, len(self.modes)), dtype=np.complex128)
        if self.compiled:
            for rows in self.blocks():
                part = np.empty((powers, rows.stop - rows.start), dtype=np.complex128)
                self._loops().walk_values(*self._flat(rows), np.ascontiguousarray(base(rows, powers)), part)
                X[:, rows] = part
            return X
        for rows in self.blocks():
            over_n, over_k = self._gaussian(rows)
            phi = np.multiply.outer(over_n, over_k).astype(np.complex128)
            for factor in self._factors(rows, 0)[0]:
                phi *= factor
            X[:, rows] = np.einsum("qnk,nk->qn", base(rows, powers), phi)
        return X

    def moments(self, base: Base, powers: int, vectors: int) -> tuple[ComplexArray, ComplexArray]:
        """X as in `values`, and Y[q, n] = sum_k base[q, n, k] E[(y - mean) exp(i <omega[n, k], y - mean>)] for the first
        `vectors` of the q, (vectors, N, n2).

        E[(y - mean) e^{..}] = sum_i r_i (-i phi_i') prod_{l != i} phi_l + i Sigma omega phi. The products that leave one
        factor out are made from prefixes and suffixes: dividing by phi_i would lose all digits near its zeros.
        """
        law = self.law
        m = len(law.priors)
        X = np.empty((powers, len(self.modes)), dtype=np.complex128)
        Y = np.empty((vectors, len(self.modes), len(law.mean)), dtype=np.complex128)
        noise_steps, noise_b = self.steps @ law.noise, self.b_step @ law.noise
        if self.compiled:
            for rows in self.blocks():
                count = rows.stop - rows.start
                by_source = np.empty((vectors, count, m), dtype=np.complex128)
                by_k = np.empty((vectors, count), dtype=np.complex128)
                part = np.empty((powers, count), dtype=np.complex128)
                factors = np.ascontiguousarray(base(rows, powers))
                self._loops().walk_moments(*self._flat(rows), factors, part, by_source, by_k)
                X[:, rows] = part
                omega = X[:vectors, rows, None] * (self.modes[rows] @ noise_steps) + by_k[:, :, None] * noise_b
                Y[:, rows] = -1j * (by_source @ law.loadings.T) + 1j * omega
            return X, Y
        k = np.arange(-self.b_modes, self.b_modes + 1)
        for rows in self.blocks():
            over_n, over_k = self._gaussian(rows)
            phi, dphi = self._factors(rows, 1)
            left_out = np.empty_like(phi)
            running = np.multiply.outer(over_n, over_k).astype(np.complex128)
            for i in range(m):
                left_out[i] = running
                running = running * phi[i]
            suffix = np.ones_like(running)
            for i in range(m - 1, -1, -1):
                left_out[i] *= dphi[i] * suffix
                suffix *= phi[i]
            for a, part in enumerate(base(rows, powers)):
                terms = part * running
                X[a, rows] = terms.sum(axis=1)
                if a >= vectors:
                    continue
                by_source = np.matmul(left_out.transpose(1, 0, 2), part[:, :, None])[..., 0]
                omega = X[a, rows, None] * (self.modes[rows] @ noise_steps) + np.multiply.outer(terms @ k, noise_b)
                Y[a, rows] = -1j * (by_source @ law.loadings.T) + 1j * omega
        return X, Y

    def second_moments(self, base: Base, direction: Array) -> ComplexArray:
        """Z[n] = sum_k base[0, n, k] E[<y - mean, direction> (y - mean) exp(i <omega[n, k], y - mean>)], (N, n2).

        -i times the derivative of Y's summand along `direction`, taken with dual numbers (x + eps x_dot, eps^2 = 0):
        each factor phi_i carries <direction, r_i> phi_i', so that products that leave one factor out stay exact.
        """
        law = self.law
        m = len(law.priors)
        Z = np.empty((len(self.modes), len(law.mean)), dtype=np.complex128)
        k = np.arange(-self.b_modes, self.b_modes + 1)
        tau = direction @ law.loadings
        noise_steps, noise_b, noise_v = self.steps @ law.noise, self.b_step @ law.noise, direction @ law.noise
        for rows in self.blocks():
            over_n, over_k = self._gaussian(rows)
            block = base(rows, 1)[0]
            if self.compiled:
                count = rows.stop - rows.start
                by_source = np.empty((count, m), dtype=np.complex128)
                X, X_dot, by_k_dot = (np.empty(count, dtype=np.complex128) for _ in range(3))
                over_n_dot, over_k_dot = self.modes[rows] @ (noise_steps @ direction), (noise_b @ direction) * k
                given = tau, over_n, over_n_dot, over_k, over_k_dot, self.limits[rows], np.ascontiguousarray(block)
                if self.law.atomic:
                    t, *_, sources = self._flat(rows)
                    self._loops().walk_second_moments_of_atoms(t, sources, *given, by_source, X, X_dot, by_k_dot)
                else:
                    factors = self._factors(rows, 2)
                    self._loops().walk_second_moments(*factors, *given, by_source, X, X_dot, by_k_dot)
                omega = X_dot[:, None] * (self.modes[rows] @ noise_steps) + np.multiply.outer(by_k_dot, noise_b)
                Z[rows] = -(by_source @ law.loadings.T) + omega + np.multiply.outer(X, noise_v)
                continue
            phi, dphi, ddphi = self._factors(rows, 2)
            gauss = np.multiply.outer(over_n, over_k).astype(np.complex128)
            gauss_dot = -gauss * np.add.outer(self.modes[rows] @ (noise_steps @ direction), (noise_b @ direction) * k)
            prefix, prefix_dot = np.empty_like(phi), np.empty_like(phi)
            running, running_dot = gauss, gauss_dot
            for i in range(m):
                prefix[i], prefix_dot[i] = running, running_dot
                running, running_dot = running * phi[i], running_dot * phi[i] + running * (tau[i] * dphi[i])
            suffix, suffix_dot = np.ones_like(gauss), np.zeros_like(gauss)
            for i in range(m - 1, -1, -1):
                # the dual part of prefix * phi_i' * suffix
                left, left_dot = prefix[i] * dphi[i], prefix_dot[i] * dphi[i] + prefix[i] * (tau[i] * ddphi[i])
                prefix_dot[i] = left_dot * suffix + left * suffix_dot
                suffix, suffix_dot = suffix * phi[i], suffix_dot * phi[i] + suffix * (tau[i] * dphi[i])
            by_source = np.matmul(prefix_dot.transpose(1, 0, 2), block[..., None])[..., 0]
            terms_dot = block * running_dot
            omega = terms_dot.sum(axis=1)[:, None] * (self.modes[rows] @ noise_steps)
            omega += np.multiply.outer(terms_dot @ k, noise_b)
            omega += np.multiply.outer((block * running).sum(axis=1), noise_v)
            Z[rows] = -(by_source @ law.loadings.T) + omega
        return Z

    def rounding(self) -> Array:
        """A bound on the absolute value of X's summands, sum_k of the Gaussian factor, (N,): times the unit roundoff
        and the size of `base` it bounds the rounding error of X."""
        over_n, over_k = self._gaussian(slice(None))
        return np.asarray(over_n * over_k.sum())
