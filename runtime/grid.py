"""The paper's own algorithm, kept readable: laws of projections of y on a grid of bins, one FFT convolution per feature
(Fact 3.3), pushed forward through f (Lemma 3.4). It is the check on the spectral engine and the baseline in benchmarks:
its cost is (1/eps)^(t+1) per feature and its error O(eps^2), so it is for small problems.

Two readings of the paper's text: a mass that falls between grid points is split linearly between its neighbours (which
keeps the mean, and turns the paper's O(eps) into O(eps^2) in practice), and the Gaussian noise enters as a few more
features, one normal coordinate along each principal axis of its covariance, so that degenerate directions need no care.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer
from elbotree.runtime.priors import Normal, Prior

Array = NDArray[np.float64]
Source = tuple[Prior, Array]  # a coordinate's law and the direction d in which it moves the projections

MEMORY_LIMIT = 2 * 2**30  # bytes
BYTES_PER_POINT = 64  # the law, two spectra, one feature's masses, and the arrays of the push-forward
TAIL = 1e-12  # the mass that each end of the box may cut away, by Chernoff's bound
REFINEMENTS = (1.0, 1.5, 2.0)  # multiples of eps that are run: the first gives the value, the others its error


@dataclass(frozen=True)
class GridLaw:
    """A law on R^r as masses on a grid: `points[k]` are the coordinates along axis k, `mass` has one axis for each."""

    points: tuple[Array, ...]
    mass: Array


def convolve(mean: Array, sources: Sequence[Source], eps: float, box: float | None = None) -> GridLaw:
    """The law of mean + sum_i (alpha_i - E alpha_i) d_i on a grid (Fact 3.3).

    eps is the bin width as a fraction of each coordinate's standard deviation. The box is where Chernoff's bound leaves
    at most 1e-12 outside at each end; `box` gives its half-width in standard deviations instead. What leaves the box
    at one end comes in at the other (the convolution is circular). Raises UnsupportedError when the grid would not fit
    into 2 GiB.
    """
    dims = len(mean)
    std = np.sqrt(sum((prior.variance() * d**2 for prior, d in sources), np.zeros(dims)))
    width = np.where(std > 0, eps * std, 1.0)  # a constant coordinate gets a single bin
    ends = [_range(k, std[k], sources) if box is None else (-box * std[k], box * std[k]) for k in range(dims)]
    first = np.array([math.floor(low / h) - 1 for (low, _), h in zip(ends, width, strict=True)])
    last = np.array([math.ceil(high / h) + 1 for (_, high), h in zip(ends, width, strict=True)])
    counts = [1 if s == 0 else b - a + 1 for a, b, s in zip(first.tolist(), last.tolist(), std.tolist(), strict=True)]
    _require_memory(counts, eps)  # before rounding up: next_fast_len of an absurd number may itself not fit
    shape = [fft.next_fast_len(n, real=True) for n in counts]

    spectrum = np.asarray(fft.rfftn(_line([0.0], [1.0], np.zeros(dims), width, shape)))
    for prior, d in sources:
        if np.any(d != 0):
            step = min(eps * math.sqrt(prior.variance()), float((width / np.maximum(np.abs(d), 1e-300)).min()))
            alpha, masses = bins(prior, step)
            spectrum *= fft.rfftn(_line(alpha - prior.mean(), masses, d, width, shape))
    mass = np.maximum(fft.irfftn(spectrum, s=shape), 0.0)
    mass[mass < 1e-15 * mass.max()] = 0.0  # rounding of the FFT, which a growing integrand would blow up

    points = []
    for k, n in enumerate(shape):
        index = np.arange(n)
        offset = first[k] + (index - first[k]) % n if std[k] > 0 else 0 * index  # the index is circular
        points.append(mean[k] + width[k] * offset)
    return GridLaw(tuple(points), mass / mass.sum())


def bins(prior: Prior, step: float) -> tuple[Array, Array]:
    """A one-dimensional law as masses at points: atoms stay where they are, the density goes to bins of width `step`.

    A bin's mass is the difference of the continuous part's distribution function at its ends, put at its middle. Bins
    start at the support's finite end, if there is one.
    """
    atoms, masses = prior.atoms
    if prior.continuous_weight == 0 or prior.variance() == 0:
        return atoms, masses
    low, high = prior.support
    std = math.sqrt(prior.variance())
    low = low if math.isfinite(low) else _reach(prior, -std)
    high = high if math.isfinite(high) else _reach(prior, std)
    edges = low + step * np.arange(math.ceil((high - low) / step) + 1)
    below = prior.cdf(edges)
    for atom, mass in zip(atoms, masses, strict=True):
        below = below - mass * (edges >= atom)
    density = np.maximum(np.diff(below), 0.0)
    density *= prior.continuous_weight / density.sum()
    return np.concatenate([atoms, (edges[:-1] + edges[1:]) / 2]), np.concatenate([masses, density])


def _reach(prior: Prior, step: float) -> float:
    """A point beyond which, in the direction of `step`, the law has less than 1e-12."""
    distance = 4.0
    for _ in range(60):
        x = prior.mean() + distance * step
        below = float(prior.cdf(x))
        if (below if step < 0 else 1 - below) < TAIL:
            break
        distance *= 1.3
    return x


def _range(axis: int, std: float, sources: Sequence[Source]) -> tuple[float, float]:
    """(low, high) about the mean: inf_s (K(s) + log(1/TAIL)) / s for both signs of s, K the cumulant function."""
    if std == 0:
        return 0.0, 0.0
    s = np.geomspace(1e-6, 1e4, 401) / std
    ends = []
    for sign in (-1, 1):
        K = np.full(s.shape, -math.log(TAIL))
        for prior, d in sources:
            t = sign * s * d[axis]
            K = K + prior.log_mgf(t) - t * prior.mean()
        ends.append(sign * float((K / s).min()))
    if not np.isfinite(ends).all():
        raise UnsupportedError(
            "the grid method found no bound for the range of a projection: a prior's moment generating function exists "
            "nowhere useful; give `box`, the half-width of the grid in standard deviations"
        )
    return ends[0], ends[1]


def _require_memory(counts: Sequence[int], eps: float) -> None:
    needed = BYTES_PER_POINT * math.prod(counts)
    if needed > MEMORY_LIMIT:
        wanted = eps * (needed / MEMORY_LIMIT) ** (1 / len(counts))
        raise UnsupportedError(
            f"the grid method would need {needed / 2**30:,.3g} GiB for a grid of {' x '.join(map(str, counts))} "
            f'points; the limit is {MEMORY_LIMIT / 2**30:g} GiB. Use eps >= {wanted:.2g}, or method="spectral"'
        )


def _line(alpha: ArrayLike, masses: ArrayLike, d: Array, width: Array, shape: Sequence[int]) -> Array:
    """Masses at the points alpha d of a slanted line, split multilinearly among the neighbours on a circular grid."""
    place = np.multiply.outer(np.asarray(alpha), d / width)
    base = np.floor(place).astype(np.int64)
    fraction = place - base
    out = np.zeros(shape)
    for corner in product((0, 1), repeat=len(shape)):
        share = np.asarray(masses) * np.prod(np.where(corner, fraction, 1 - fraction), axis=1)
        np.add.at(out, tuple(((base + corner) % shape).T), share)
    return out


class GridExpectations:
    """The values (not the gradients) of `elbotree.runtime.expectations.Expectations`, by the paper's algorithm.

    Arguments
        layer, p1, encoder  the law of f(x1) and the projections c_j = C_j f + bias_j
        eps                 the width of a bin as a fraction of each coordinate's standard deviation
        box                 half-width of the grid in standard deviations; from Chernoff's bounds when left out

    Every value is computed at eps, 1.5 eps and 2 eps. Its error is the larger difference from the finest, about three
    times the true error where the error falls like eps^2: an estimate, not a bound. Integrands of several coordinates
    need grids of as many dimensions and one more for b; UnsupportedError says when one would not fit into 2 GiB.
    """

    def __init__(
        self, layer: Layer, p1: FeatureModel, encoder: Encoder, *, eps: float = 0.1, box: float | None = None
    ) -> None:
        for name, value in (("eps", eps), ("box", box)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"`{name}` is {value!r}; it must be a finite number greater than 0")
        self.layer, self.p1, self.encoder, self.eps, self.box = layer, p1, encoder, float(eps), box
        self._mean_y = layer.A @ p1.mean() + layer.offset
        self._cov_y = layer.A @ p1.covariance() @ layer.A.T
        self._columns = layer.A @ p1.B
        self._noise = p1.noise_std**2 * layer.A @ layer.A.T

    # -- the protocol ------------------------------------------------------------------------------------------------
    def norm_y(self, centre: Array) -> Estimate:
        """Closed form, as in the paper: |E y - centre|^2 + tr Cov y."""
        value = float(((self._mean_y - centre) ** 2).sum() + np.trace(self._cov_y))
        return Estimate.of(value, 8 * np.finfo(float).eps * abs(value))

    def of_b(self, g: Callable[[Array], Array], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        if along is None:
            return self._estimate(
                lambda eps: self._of_y(self.layer.u[None], lambda b: g(b + self.layer.threshold), eps)
            )
        rows = np.stack([along, self.layer.u])
        shift = 0.0 if centre is None else float(centre @ along)
        return self._estimate(lambda eps: self._of_y(rows, lambda a, b: (a - shift) * g(b + self.layer.threshold), eps))

    def of_c(
        self,
        gs: Sequence[Integrand],
        *,
        weights: Array,
        along: Array | None = None,
        centre: Array | None = None,
    ) -> Estimate:
        total = Estimate.of(0.0)
        for i, g in enumerate(gs):
            if weights[i] != 0:
                direction = None if along is None else np.asarray(along)[i]
                total = total + self._of_integrands((g,), direction, centre) * float(weights[i])
        return total

    def of_cc(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        weights = np.asarray(weights, dtype=np.float64)
        if hs is gs:  # the pair (j, k) is the pair (k, j)
            weights = np.triu(weights) + np.tril(weights, -1).T
        total = Estimate.of(0.0)
        for j, g in enumerate(gs):
            for k, h in enumerate(hs):
                if weights[j, k] != 0:
                    total = total + self._of_integrands((g, h), None, None) * float(weights[j, k])
        return total

    def of_c_F(self, gs: Sequence[Integrand], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        raise UnsupportedError('the grid method has no gradients; use method="spectral"')

    def of_cc_F(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        raise UnsupportedError('the grid method has no gradients; use method="spectral"')

    # -- Lemma 3.4 ---------------------------------------------------------------------------------------------------
    def _of_integrands(self, gs: Sequence[Integrand], along: Array | None, centre: Array | None) -> Estimate:
        """E of the product of the integrands, times <f - centre, along> when a direction is given."""
        places: dict[tuple[int, int], int] = {}  # (feature, coordinate of c) -> axis; features may be shared
        for g in gs:
            for r in g.uses:
                places.setdefault((g.feature, r), len(places))
        rows = [self.encoder[j].C[r] for j, r in places] + ([] if along is None else [along])
        shifts = [float(self.encoder[j].bias[r]) for j, r in places]
        shifts += [] if along is None else [0.0 if centre is None else -float(centre @ along)]

        def integrand(*f: Array) -> Array:
            c = [values + shift for values, shift in zip(f, shifts, strict=True)]
            out = np.asarray(1.0 if along is None else c[-1])
            for g in gs:
                out = out * g.value(*(c[places[g.feature, r]] for r in g.uses))
            return out

        if not rows:
            return Estimate.of(float(integrand()))
        return self._estimate(lambda eps: self._of_f(np.stack(rows), integrand, eps))

    def _of_f(self, rows: Array, g: Callable[..., Array], eps: float) -> float:
        """E g(<f, v_1>, ..., <f, v_r>): the joint law of all <y, v_k> and <y, u>, pushed forward through f."""
        layer, gain = self.layer, rows @ self.layer.w
        if not gain.any():
            return self._of_y(rows, g, eps)
        affine = layer.activation.affine
        if affine is not None:  # f is affine in y: no axis for b
            slope, intercept = affine
            constants = gain * (slope * layer.threshold + intercept)
            rows = rows + slope * np.outer(gain, layer.u)
            return self._of_y(rows, lambda *y: g(*(a + k for a, k in zip(y, constants, strict=True))), eps)

        def pushed(*y: Array) -> Array:
            psi = layer.activation(y[-1] + layer.threshold)
            return g(*(a + k * psi for a, k in zip(y[:-1], gain, strict=True)))

        return self._of_y(np.vstack([rows, layer.u]), pushed, eps)

    def _of_y(self, rows: Array, g: Callable[..., Array], eps: float) -> float:
        """E g(<y, v_1>, ..., <y, v_r>) on a grid of r dimensions."""
        law = convolve(rows @ self._mean_y, self._sources(rows), eps, self.box)
        where = np.nonzero(law.mass)
        values = np.asarray(g(*(axis[index] for axis, index in zip(law.points, where, strict=True))))
        if not np.isfinite(values).all():
            raise UnsupportedError(
                "the grid method met a value that is not finite: psi or an integrand has a pole where the law has "
                "mass, or overflows on the grid; the expectation may not exist"
            )
        return float(np.sum(law.mass[where] * values))

    def _sources(self, rows: Array) -> list[Source]:
        """Every feature with its direction d_i = W A B1 e_i; the noise as normal coordinates along principal axes."""
        sources: list[Source] = [
            (prior, direction) for prior, direction in zip(self.p1.priors, (rows @ self._columns).T, strict=True)
        ]
        spread, axes = np.linalg.eigh(rows @ self._noise @ rows.T)
        for variance, axis in zip(spread, axes.T, strict=True):
            if variance > 1e-14 * spread[-1]:
                sources.append((Normal(0.0, 1.0), math.sqrt(variance) * axis))
        return sources

    def _estimate(self, value: Callable[[float], float]) -> Estimate:
        """The value at eps, and its difference from coarser grids as the error."""
        fine, *coarse = (value(self.eps * factor) for factor in REFINEMENTS)
        return Estimate.of(fine, max(abs(fine - other) for other in coarse) + 1e-14 * abs(fine))
