"""Where training starts: features of x2 = f(x1) with a prior each, and the encoder that they ask for.

Two ways to features. `propagated` takes what is known: A B1 with the priors of x1, and one feature along w with the law of
psi(b). `pursued` knows nothing but the law of x2 and looks for directions along which it is least Gaussian: in coordinates
x in which the signal's covariance is I, with c = <w, x> and |w| = 1,

    J(w) = kappa_3(w)^2 / 12 + kappa_4(w)^2 / 48                            (negentropy to second order, Edgeworth)
    grad J = kappa_3 E[c^2 x] / 2 + kappa_4 (E[c^3 x] - 3 E[c^2] Cov(x) w) / 6        (on the sphere, centred x)

and w <- grad J / |grad J| is the power iteration on the cumulant tensors. For independent features of unit variance with
orthonormal directions e_i, kappa_k(w) = sum_i kappa_k,i <w, e_i>^k: the only attractors are the e_i, and the approach is
quadratic at least. All rows go at once, made orthonormal after each step (W <- (W W^T)^-1/2 W), so that no two find the same
feature, and then on their own, since more features than dimensions cannot be orthogonal; beyond n2 rows, what is found is
subtracted from the cumulants (deflation) and the next block follows. Gaussian noise has no third and fourth cumulants: it
falls out. The expectations are the spectral engine's, one lattice a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit, softmax

from elbotree.runtime.float_range import vanishing
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior
from elbotree.runtime.priors import Bernoulli, Discrete, Exponential, Normal, Prior
from elbotree.runtime.profile import output_moments
from elbotree.runtime.spectral import SpectralExpectations

__all__ = [
    "FAMILIES",
    "Start",
    "binned",
    "binned_samples",
    "first_encoder",
    "ordinary_unit",
    "propagated",
    "pursued",
    "random_encoder",
    "random_rows",
]

Array = NDArray[np.float64]

FAMILIES = ("tilted", "bernoulli", "normal", "normal_scale", "exponential")
_POINTS = 25  # points of a binned prior
_PURSUIT_TOL = 1e-3
_PURSUIT_STEPS = 40
_ONE_PLACE = 0.95  # the cosine above which two rows count as one
_TWO_POINTS = 0.3  # by how much kappa_4 may exceed kappa_3^2 - 2, its least value, for a law that counts as two points
_ORDINARY = 256.0  # laws of psi(b) whose deviations are within this factor of 1 are kept as they are
_GAUSSIAN = 0.02  # the J below which a direction counts as Gaussian


def binned(prior: Prior, points: int = _POINTS) -> Discrete:
    """A prior with a density as masses on equally spaced points (free-form priors are of this form).

    The points span all but 1e-4 of the mass on either side; each takes the mass nearer to it than to its neighbours.
    """
    mean, std = prior.mean(), float(np.sqrt(prior.variance()))
    wide = mean + std * np.linspace(-12, 12, 4001)
    cdf = prior.cdf(wide)
    lo = float(wide[int(np.searchsorted(cdf, 1e-4))])
    hi = float(wide[min(int(np.searchsorted(cdf, 1 - 1e-4)), len(wide) - 1)])
    x = np.linspace(lo, hi, points)
    middle = 0.5 * (x[1:] + x[:-1])
    mass = np.diff(np.concatenate([[0.0], prior.cdf(middle), [1.0]]))
    return Discrete(tuple(x), tuple(np.maximum(mass, 1e-9) / np.maximum(mass, 1e-9).sum()))


def binned_samples(values: Array, masses: Array, points: int = _POINTS) -> Discrete:
    """A law given by weighted values as masses on equally spaced points; each value is split between its neighbours. One point
    where all but 2e-4 of the mass is at one value."""
    masses = np.maximum(masses, 0.0) / np.maximum(masses, 0.0).sum()
    order = np.argsort(values)
    cumulative = np.cumsum(masses[order])
    lo = float(values[order][int(np.searchsorted(cumulative, 1e-4))])
    hi = float(values[order][min(int(np.searchsorted(cumulative, 1 - 1e-4)), len(values) - 1)])
    if lo == hi:
        return Discrete((lo,), (1.0,))
    x = np.linspace(lo, hi, points)
    at = np.clip((values - lo) / (x[1] - x[0]), 0, points - 1)
    left = np.minimum(at.astype(np.intp), points - 2)
    mass = np.bincount(left, masses * (left + 1 - at), points) + np.bincount(left + 1, masses * (at - left), points)
    return Discrete(tuple(x), tuple(np.maximum(mass, 1e-9) / np.maximum(mass, 1e-9).sum()))


@dataclass(frozen=True)
class Start:
    """Propagated features: decoder columns with a prior each, from which the encoder's first guess is made."""

    B: Array
    priors: tuple[Prior, ...]


def ordinary_unit(deviation: float, within: float = 16.0) -> float:
    """A power of two to measure what has this deviation in: 1 where it lies between 1/within and within (or nowhere)."""
    if not math.isfinite(deviation) or deviation == 0.0 or 1 / within <= deviation <= within:
        return 1.0
    return 2.0 ** round(math.log2(deviation))


def propagated(layer: Layer, p1: FeatureModel, features: int | None) -> Start:
    """The features A B1 with their own priors, and one along w whose prior is the law of psi(b), in an ordinary unit.

    Those that carry no variance are left out. Fewer `features` than that keeps those that carry the most; more adds copies of the
    strongest ones, turned by a fixed small rotation so that they can part.
    """
    law = SpectralExpectations(layer, p1, Encoder([]), tol=1e-6)
    columns = list(law.output.feature_columns().T)
    priors = list(p1.priors)
    psi = law.output.law_of_psi()
    if psi is not None:
        along = binned_samples(*psi)
        unit = ordinary_unit(float(np.sqrt(along.variance())), _ORDINARY)
        columns.append(layer.w * unit)
        priors.append(Discrete(tuple(point / unit for point in along.points), along.masses))
    size = np.array([np.sqrt(p.variance()) * np.linalg.norm(c) for p, c in zip(priors, columns, strict=True)])
    strongest = [int(i) for i in np.argsort(-size, kind="stable") if size[i] > 0]
    wanted = len(strongest) if features is None else features
    order = sorted(strongest[:wanted])
    out, laws = [columns[i] for i in order], [priors[i] for i in order]
    rng = np.random.default_rng(0)
    while len(out) < wanted:
        if not strongest:  # nothing to copy
            out.append(np.zeros(layer.n2))
            laws.append(Bernoulli(0.5))
            continue
        i = strongest[(len(out) - len(order)) % len(strongest)]
        turn = rng.standard_normal(layer.n2)
        out.append(columns[i] + 0.3 * np.linalg.norm(columns[i]) * turn / np.linalg.norm(turn))
        laws.append(priors[i])
    return Start(np.array(out).reshape(len(out), layer.n2).T, tuple(laws))


def first_encoder(start: Start, mean: Array, covariance: Array, family: Sequence[str]) -> Encoder:
    """Posteriors from the linear estimate of each feature: beta_j | x2 is near N(betahat_j, v_j), betahat = E beta + K (x2 - E x2).

    K = (B^T B / s^2 + diag(1 / Var beta))^-1 B^T / s^2 is the regularised pseudo-inverse, s^2 the part of x2's variance that
    the features leave (at least a thousandth of it; 1 where x2 has none).
    """
    B = start.B
    variances = np.array([p.variance() for p in start.priors])
    means = np.array([p.mean() for p in start.priors])
    left = (np.trace(covariance) - np.trace((B * variances) @ B.T)) / len(B)
    s2 = max(left, 1e-3 * float(np.trace(covariance)) / len(B)) or 1.0
    posterior = np.linalg.inv(B.T @ B / s2 + np.diag(1.0 / variances))
    K = posterior @ B.T / s2
    v = np.diag(posterior)
    out = []
    for j, (name, prior) in enumerate(zip(family, start.priors, strict=True)):
        row, offset = K[j], float(means[j] - K[j] @ mean)
        if name == "tilted":
            base = prior if isinstance(prior, Discrete | Bernoulli | Normal) else binned(prior)
            precision = (
                max(1.0 / v[j] - 1.0 / variances[j], 0.1 / variances[j]) if isinstance(base, Normal) else 1.0 / v[j]
            )
            shift = -means[j] / variances[j] if isinstance(base, Normal) else 0.0
            gain = 1.0 / v[j]
            out.append(Posterior("tilted", gain * row, [gain * offset + shift], precision=precision, base=base))
        elif name == "bernoulli":
            # log odds of 1 against 0 from an observation with noise v; for another prior, of mean + std against mean - std
            if isinstance(prior, Bernoulli) and 0 < prior.p < 1:
                gain, middle, odds = 1.0 / v[j], 0.5, float(logit(prior.p))
            else:
                gain, middle, odds = 2.0 * float(np.sqrt(variances[j])) / v[j], means[j], 0.0
            out.append(Posterior("bernoulli", gain * row, [gain * (offset - middle) + odds]))
        elif name == "normal":
            out.append(Posterior("normal", row, [offset], std=float(np.sqrt(v[j]))))
        elif name == "normal_scale":
            spread = float(np.log(np.expm1(np.sqrt(v[j]))))  # softplus of it is the posterior's deviation
            out.append(Posterior("normal_scale", np.array([row, np.zeros_like(row)]), [offset, spread]))
        else:
            gain = 1.0 / float(np.sqrt(variances[j]))
            out.append(Posterior("exponential", gain * row, [gain * offset]))
    return Encoder(out)


# ------------------------------------------------------------------ features of a law of which nothing is known


def random_rows(rows: int, layer: Layer) -> Array:
    """Standard normal rows, (rows, n2): where a pursuit starts when nobody says."""
    return np.random.default_rng([rows, layer.n2]).standard_normal((rows, layer.n2))


def random_encoder(seed: int, like: Encoder, mean: Array, covariance: Array) -> Encoder:
    """Soft posteriors of the same families and bases along random directions: what a start that knows nothing is.

    Each reads d = <r, x2 - E x2> of unit deviation, at a random threshold t between -1 and 1: as if beta were observed as
    mu + tau (d - t) with noise of variance tau^2 / 2, mu and tau mean and deviation of the base. So a row does not decide at
    once, and two rows may share a direction at different thresholds, which no start by directions alone can do.
    """
    rng = np.random.default_rng([seed, len(like), len(mean)])
    out = []
    for q in like:
        row = rng.standard_normal(len(mean))
        row, t = row / np.sqrt(max(float(row @ covariance @ row), 1e-300)), rng.uniform(-1.0, 1.0)
        offset = -float(row @ mean) - t
        if q.family == "tilted":
            assert q.base is not None
            mu, tau = q.base.mean(), max(float(np.sqrt(q.base.variance())), 1e-150)
            bias = [2 * mu / tau**2 + 2 / tau * offset]
            out.append(Posterior("tilted", 2 / tau * row, bias, precision=2 / tau**2, base=q.base))
        elif q.family == "bernoulli":
            out.append(Posterior("bernoulli", 4 * row, [4 * offset]))
        elif q.family == "normal_scale":
            out.append(Posterior("normal_scale", np.array([row, np.zeros_like(row)]), [offset, 0.0]))
        else:
            out.append(Posterior(q.family, row, [offset], parameters=q.parameters))
    return Encoder(out)


def pursued(layer: Layer, p1: FeatureModel, rows: Array, family: Sequence[str]) -> Start:
    """As many features as there are `rows`, (m2, n2), each the least Gaussian direction of x2 that a row leads to.

    The prior of a feature comes from its first cumulants: two points where kappa_4 is near its least value
    kappa_3^2 - 2 (Pearson's inequality) or the family is Bernoulli, normal where both vanish, else the law of its c on equally
    spaced points.
    """
    mean, covariance = output_moments(layer, p1, _PURSUIT_TOL)
    values, vectors = np.linalg.eigh(covariance - p1.noise_std**2 * layer.A @ layer.A.T)
    whole = float(np.trace(covariance))
    if values.max() <= 1e-9 * whole:  # features move nothing, and what is left is rounding: in units of x2
        values = np.full(layer.n2, whole / layer.n2 or 1.0)
    values = np.maximum(values, 1e-6 * values.max())
    root, inverse = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
    columns: list[Array] = []
    priors: list[Prior] = []
    found: list[tuple[Array, float, float]] = []
    for at in range(0, len(rows), layer.n2):
        block = _Pursuit(layer, p1, mean, covariance, inverse, list(found))
        W, third, fourth = block.run(rows[at : at + layer.n2] @ root)
        for w, k3, k4 in zip(W, third, fourth, strict=True):
            found.append((w, k3, k4))
            w, k3 = (w, k3) if k3 >= 0 else (-w, -k3)
            prior = _prior_of(layer, p1, mean, w @ inverse, k3, k4, family[len(priors)])
            columns.append(root @ w / np.sqrt(prior.variance()))
            priors.append(prior)
    return Start(np.array(columns).reshape(len(columns), layer.n2).T, tuple(priors))


class _Pursuit:
    """One block of rows W, (k, n2) with k <= n2, in the coordinates x = inverse (x2 - E x2)."""

    def __init__(
        self,
        layer: Layer,
        p1: FeatureModel,
        mean: Array,
        covariance: Array,
        inverse: Array,
        known: Sequence[tuple[Array, float, float]],
    ) -> None:
        self.layer, self.p1, self.mean, self.inverse = layer, p1, mean, inverse
        self.covariance = inverse @ covariance @ inverse.T
        self.known = known

    def run(self, W: Array) -> tuple[Array, Array, Array]:
        """The rows where the iteration has come to rest, with kappa_3 and kappa_4 along each: first kept orthonormal, then each
        on its own, unless that leads two of them to one place."""
        W = self._at_rest(_orthonormal(W), _orthonormal)
        alone = self._at_rest(W, _unit)
        overlap = np.abs(alone @ alone.T) - np.eye(len(W))
        parted = overlap.max(axis=1, initial=0.0) < _ONE_PLACE
        W = np.where(parted[:, None], alone, W)
        third, fourth = self._contractions(W)
        return W, np.einsum("ij,ij->i", third, W), np.einsum("ij,ij->i", fourth, W)

    def _at_rest(self, W: Array, normalised: Callable[[Array], Array]) -> Array:
        """W after w <- grad J / |grad J| and the normalisation, until nothing turns."""
        for _ in range(_PURSUIT_STEPS):
            third, fourth = self._contractions(W)
            k3, k4 = np.einsum("ij,ij->i", third, W), np.einsum("ij,ij->i", fourth, W)
            slope = 0.5 * k3[:, None] * third + k4[:, None] * fourth / 6
            size = np.linalg.norm(slope, axis=1, keepdims=True)
            new = normalised(np.where(size > 1e-9, slope / np.maximum(size, 1e-300), W))
            turned = float(np.abs(1 - np.abs(np.einsum("ij,ij->i", new, W))).max())
            W = new
            if turned < 1e-6:
                break
        return W

    def _contractions(self, W: Array) -> tuple[Array, Array]:
        """kappa_3(x, w, w) and kappa_4(x, w, w, w), a row of n2 numbers for each w, without what is known."""
        rows = W @ self.inverse
        encoder = Encoder([Posterior("normal", row, [-float(row @ self.mean)], std=1.0) for row in rows])
        law = SpectralExpectations(self.layer, self.p1, encoder, tol=_PURSUIT_TOL)
        moments = []
        for name, power in (("c^2", _square), ("c^3", _cube)):
            made = law.of_c_F([Integrand(j, (0,), power, None, f"{name}[{j}]") for j in range(len(rows))]).value
            moments.append((made[:, :-1] - np.outer(made[:, -1], self.mean)) @ self.inverse)
        third, fourth = moments
        spread = W @ self.covariance
        fourth = fourth - 3 * np.einsum("ij,ij->i", spread, W)[:, None] * spread
        for e, k3, k4 in self.known:
            share = W @ e
            third = third - k3 * np.outer(share**2, e)
            fourth = fourth - k4 * np.outer(share**3, e)
        return third, fourth


def _square(c: Array) -> Array:
    return c * c


def _cube(c: Array) -> Array:
    return c * c * c


def _unit(W: Array) -> Array:
    """Each row divided by its length."""
    return np.asarray(W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-300))


def _orthonormal(W: Array) -> Array:
    """(W W^T)^-1/2 W, by the singular value decomposition."""
    left, _, right = np.linalg.svd(W, full_matrices=False)
    return np.asarray(left @ right)


def _prior_of(layer: Layer, p1: FeatureModel, mean: Array, row: Array, k3: float, k4: float, family: str) -> Prior:
    """A prior for the law of <row, x2> (unit variance without the noise), skewed to the right, that the family can have."""
    if family == "exponential":
        return Exponential(1.0)
    if family in ("normal", "normal_scale"):
        return Normal(0.0, 1.0)
    two_points = Bernoulli(
        0.5 * (1 - k3 / np.sqrt(4 + k3**2))
    )  # the skewness of Bernoulli(p) is (1 - 2p) / sqrt(p (1 - p))
    if family == "bernoulli" or k4 < k3**2 - 2 + _TWO_POINTS:
        return two_points
    if k3**2 / 12 + k4**2 / 48 < _GAUSSIAN:
        return Normal(0.0, 1.0)
    return _binned_law(layer, p1, mean, row)


def _binned_law(layer: Layer, p1: FeatureModel, mean: Array, row: Array) -> Discrete:
    """The law of c = <row, x2 - E x2> as masses on equally spaced points x_k: E[exp(-(c - x_k)^2 / 2 h^2) / sum_l ...], h the
    spacing, first on 12 deviations either side, then on what holds all but 1e-4 of the mass at each end."""
    encoder = Encoder([Posterior("normal", row, [-float(row @ mean)], std=1.0)])
    law = SpectralExpectations(layer, p1, encoder, tol=_PURSUIT_TOL)
    x = np.linspace(-12, 12, 2 * _POINTS)
    for points in (_POINTS, 0):
        shares = [Integrand(0, (0,), partial(_share, x=x, k=k), None, f"P[{k}]") for k in range(len(x))]
        masses = np.maximum(law.of_c_each(shares).value, 1e-9)
        masses = masses / masses.sum()
        if points:
            inside = np.flatnonzero((np.cumsum(masses) > 1e-4) & (np.cumsum(masses[::-1])[::-1] > 1e-4))
            x = np.linspace(x[inside[0]], x[inside[-1]], points)
    return Discrete(tuple(x), tuple(masses))


@vanishing
def _share(c: Array, x: Array, k: int) -> Array:
    """The share of c that point k takes."""
    off = (np.asarray(c)[..., None] - x) / (x[1] - x[0])
    return np.asarray(softmax(-0.5 * off**2, axis=-1)[..., k])
