"""Layers of a chain without an optimiser: how a feature model goes through f(x) = y + w psi(b), in closed form.

Units that read the same law are a block (the units of one dense hidden layer are one). Within a block the state is

    f = const + L a + N zeta + W e,

a the centred features and zeta ~ N(0, Gamma) the noise of the law that the block began with (normal priors are part of
Gamma), e the rests of the units so far, uncorrelated with a, zeta and each other. The next unit's b = const + <s, a> + <h,
zeta> reads none of e, so that what is needed is exact under that law: regress

    psi_i(b_i) = E psi_i + <kappa_i, a> + g_i <h_i, zeta> + sum_j beta_ij e_j + e_i,
    kappa_i = Cov(psi_i, a) / Var a,    g_i = E psi_i'(b_i)  (Stein),    beta_ij = Cov(psi_i, e_j) / Var e_j,

where Cov(psi_i, e_j) follows from Cov(psi_i, psi_j), a two-dimensional sum over the frequencies of (b_i, b_j); all else is
one-dimensional. Hence mean and covariance after each step are those of the network under the block's first law, exactly:
with respect to the input model for a first hidden layer. A unit that reads rests begins a new block: there the features,
rests among them, are taken as independent although they are only uncorrelated. That is all that is lost.

e_i's prior is the law of what b_i says about it, E[rest | b_i], on 25 points, stretched to Var e_i, and a normal law for the
part of its variance that b_i does not decide (and for the spacing of the points). Features that matter least may be made
normal: that keeps the mean and the covariance too, and with no features left it is the propagation of Gaussian moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.priors import Bernoulli, Discrete, Normal, Prior
from elbotree.runtime.psi_transform import PsiTransform
from elbotree.runtime.quadrature import panels
from elbotree.runtime.starts import binned_samples

Array = NDArray[np.float64]

_NEGLIGIBLE = 1e-8  # share of x2's variance below which a feature is made normal, whatever its law
_ROUNDING = 1e-16  # share of b's variance in rests below which it does not read them
_FINER = 4  # times as many frequencies for pairs of units that share their noise
_NOTHING = 1e-14  # share of psi's variance below which a rest is 0


@dataclass(frozen=True)
class Propagated:
    """What a layer makes of a feature model.

    model       of f(x1)
    affine      whether the layer was affine, so that the model is exact
    made_normal share of x2's variance in features that were made normal in this step
    added_noise standard deviation of the noise added to b, in standard deviations of b (0 where none was needed)
    """

    model: FeatureModel
    affine: bool
    made_normal: float
    added_noise: float


def propagate(
    layer: Layer, p1: FeatureModel, *, features: int | None = None, noise_floor: float = 0.02, tol: float = 1e-6
) -> Propagated:
    """The feature model of f(x1), x1 ~ p1, for one layer; see `Propagation`."""
    return Propagation(p1, features=features, noise_floor=noise_floor, tol=tol).through(layer)


class Propagation:
    """A feature model on its way through the layers of a network; see the module.

    Arguments
        model        of the input
        features     how many features that are not normal a model may have; None: no bound
        noise_floor  the least Gaussian standard deviation of b, in standard deviations of b. Where b has less, psi is taken
                     of b plus noise: its law must have a density that a few hundred frequencies carry
        tol          of the expectations of psi
    """

    def __init__(
        self, model: FeatureModel, *, features: int | None = None, noise_floor: float = 0.02, tol: float = 1e-6
    ) -> None:
        self.features, self.noise_floor, self.tol = features, noise_floor, tol
        self.restart(model)

    def restart(self, model: FeatureModel) -> None:
        """Begin a block at a model: its features are taken as independent."""
        n = model.n
        self.model = model
        self.law = LinearLaw.of(Layer(np.eye(n), np.zeros(n), np.zeros(n)), model)
        self.mean, self.L, self.N = self.law.mean, self.law.loadings, np.eye(n)
        self.W = np.zeros((n, 0))
        self.units: list[_Unit] = []

    def through(self, layer: Layer) -> Propagated:
        """Send the model through a layer.

        Raises UnsupportedError where psi has a pole inside the law of b, or is not finite there.
        """
        if self.begins_a_block(layer):
            self.restart(self.model)
        mean, L, N, W = layer.A @ self.mean + layer.offset, layer.A @ self.L, layer.A @ self.N, layer.A @ self.W
        u, w, bbar = layer.u, layer.w, float(layer.u @ mean + layer.threshold)
        variances = _variances(self.law.priors)
        s, h = u @ L, u @ N
        total, from_noise = float(s**2 @ variances), float(h @ self.law.noise @ h)
        total += from_noise
        scale = float(np.trace(L * variances @ L.T) + np.trace(N @ self.law.noise @ N.T)) * float(u @ u)
        added, affine = 0.0, True
        if not w.any():
            pass
        elif total <= 1e-28 * scale or total == 0.0:
            mean = mean + w * float(layer.activation(np.array([bbar]))[0])
        elif layer.activation.affine is not None:
            slope, intercept = layer.activation.affine
            mean = mean + w * (slope * bbar + intercept)
            T = np.eye(layer.n2) + slope * np.outer(w, u)
            L, N, W = T @ L, T @ N, T @ W
        else:
            affine = False
            added = max(self.noise_floor**2 * total - from_noise, 0.0)
            middle, unit = self._unit(layer, bbar, s, h, from_noise + added)
            mean = mean + w * middle
            L, N, W = L + np.outer(w, unit.kappa), N + unit.g * np.outer(w, h), W + np.outer(w, unit.beta)
            self.units.append(unit)
            W = np.column_stack([W, w])
        self.mean, self.L, self.N, self.W = mean, L, N, W
        law, share = _capped(self._law(), self.features)
        self.model = to_model(law)
        return Propagated(self.model, affine, share, float(np.sqrt(added / total)) if added > 0 else 0.0)

    def begins_a_block(self, layer: Layer) -> bool:
        """Whether the layer's b depends on rests of the block, beyond rounding."""
        if not self.units or not layer.w.any() or layer.activation.affine is not None:
            return False
        row = layer.u @ layer.A
        rests = float((row @ self.W) ** 2 @ np.array([unit.variance for unit in self.units]))
        others = float(
            (row @ self.L) ** 2 @ _variances(self.law.priors) + row @ self.N @ self.law.noise @ (row @ self.N)
        )
        return rests > _ROUNDING * (rests + others)

    def _law(self) -> LinearLaw:
        """The law of the state, rests taken as independent."""
        shaped = [k for k, unit in enumerate(self.units) if unit.prior is not None]
        normal = np.array([unit.normal for unit in self.units])
        noise = self.N @ self.law.noise @ self.N.T + (self.W * normal) @ self.W.T
        priors = [*self.law.priors, *(unit.prior for unit in self.units if unit.prior is not None)]
        return LinearLaw(self.mean, np.concatenate([self.L, self.W[:, shaped]], axis=1), tuple(priors), noise)

    # ------------------------------------------------------------------ one unit

    def _unit(self, layer: Layer, bbar: float, s: Array, h: Array, var_noise: float) -> tuple[float, _Unit]:
        """E psi(b), and the regression of psi(b), b = bbar + <s, a> + N(0, var_noise)."""
        priors, variances = self.law.priors, _variances(self.law.priors)
        means = np.array([p.mean() for p in priors]).reshape(-1)
        of_b = FeatureModel(s[None, :], priors, float(np.sqrt(var_noise)), [bbar - float(s @ means)])
        transform = OutputLaw(Layer([[1.0]], [1.0], [1.0], layer.psi), of_b, self.tol).transform
        assert transform is not None
        psi, F = _against(transform, np.arange(-transform.modes, transform.modes + 1))
        omega: Array = np.asarray(transform.step * np.arange(-transform.modes, transform.modes + 1), dtype=np.float64)
        phi, with_source = _transforms(priors, s, omega)
        gauss = np.exp(-0.5 * omega**2 * var_noise)
        phi, with_source = phi * gauss, with_source * gauss
        with_noise = 1j * omega * var_noise * phi  # E[(noise of b) e^{i omega (b - bbar)}]

        masses = np.maximum((phi @ F).real, 0.0)
        masses = masses / masses.sum()
        mean = float(masses @ psi)
        against = F @ (psi - mean)
        kappa = (with_source @ against).real / variances
        g = float((with_noise @ against).real) / var_noise
        variance = float(masses @ (psi - mean) ** 2)
        unit = _Unit(s, h, var_noise, kappa, g, np.zeros(0), 0.0, None, 0.0, *_finer(transform, mean), transform.modes)
        beta = np.zeros(len(self.units))
        with_rests = self._with_rests(unit)
        rests = np.array([other.variance for other in self.units])
        beta[rests > 0] = with_rests[rests > 0] / rests[rests > 0]
        known = float(kappa**2 @ variances) + g**2 * float(h @ self.law.noise @ h) + float(beta**2 @ rests)
        left = max(0.0, variance - known)
        if left <= _NOTHING * variance:
            return mean, replace(unit, beta=beta)
        # what the regression says given b, times the mass of b: E[<kappa, a> + g (noise of b); b]
        explained = ((kappa @ with_source + g * with_noise) @ F).real
        seen = masses > 1e-9 * masses.max()
        rest = psi[seen] - mean - explained[seen] / masses[seen]
        prior, normal = _rest_law(rest, masses[seen], left)
        return mean, replace(unit, beta=beta, variance=left, prior=prior, normal=normal)

    def _with_rests(self, unit: _Unit) -> Array:
        """Cov(psi(b), e_j) for the rests e_j so far: e_j = psi_j - E psi_j - <kappa_j, a> - g_j <h_j, zeta> - sum_k beta_jk e_k."""
        variances = _variances(self.law.priors)
        out = np.zeros(len(self.units))
        for j, other in enumerate(self.units):
            across = float(unit.h @ self.law.noise @ other.h)
            linear = float((unit.kappa * variances) @ other.kappa) + unit.g * other.g * across
            out[j] = self._product(unit, other, across) - linear - float(other.beta @ out[:j])
        return out

    def _product(self, one: _Unit, two: _Unit, across: float) -> float:
        """Cov(psi_1, psi_2) = sum_pq psihat_1(p) psihat_2(q) E e^{i omega_p (b_1 - E b_1) + i omega_q (b_2 - E b_2)}; half of
        the sum is the conjugate of the other half. For each p, q runs over a band around where the Gaussian factor is
        largest; what the noise of b_1 does not share with that of b_2 bounds p.
        """
        apart = 1 - across**2 / (one.var_noise * two.var_noise)
        count = 1 + int(np.ceil(one.modes / np.sqrt(max(apart, 1 / _FINER**2))))
        first, step = one.omega[:count], two.omega[1]
        center = np.rint(-across / two.var_noise * first / step)
        band = np.arange(-two.modes, two.modes + 1)
        q = center[:, None] + band
        second = q * step
        exponent = two.var_noise * second**2 + 2 * across * first[:, None] * second
        phi = np.exp(-0.5 * (exponent + (one.var_noise * first**2)[:, None])).astype(np.complex128)
        for i, prior in enumerate(self.law.priors):
            phi *= _joint_transform(prior, one.s[i] * first + two.s[i] * step * center, two.s[i] * step * band)
        at = np.abs(q).astype(np.intp)
        known = at < len(two.hat)
        hat = two.hat[np.minimum(at, len(two.hat) - 1)] * known
        rows = (phi * np.where(q < 0, hat.conj(), hat)).sum(axis=1) * one.hat[:count]
        return float(rows[0].real + 2 * rows[1:].real.sum())


@dataclass(frozen=True)
class _Unit:
    """psi(b) of a block's unit: what its b reads, its regression, and its rest e.

    s, h       b - E b = <s, a> + <h, zeta>, and var_noise the variance of b's noise (added noise included)
    kappa, g   slopes on a (m,), and on <h, zeta>
    beta       slopes on the rests before it
    variance   of its rest; prior and normal: the law of that, without and with noise
    omega, hat frequencies >= 0 of b, and psi - E psi against them
    modes      how many of them b alone needs
    """

    s: Array
    h: Array
    var_noise: float
    kappa: Array
    g: float
    beta: Array
    variance: float
    prior: Discrete | None
    normal: float
    omega: Array
    hat: NDArray[np.complex128]
    modes: int


def _against(transform: PsiTransform, k: NDArray[np.int64]) -> tuple[Array, NDArray[np.complex128]]:
    """psi at quadrature nodes of the range of b, and F[k, node] = (step / 2 pi) weight exp(-i k step beta): sum_k phi(k step)
    F[k] are the masses of the nodes, F psi is psi against the frequencies."""

    def shape(beta: Array) -> Array:
        return transform.at(beta) / transform.largest

    frequency = transform.step * float(np.abs(k).max())
    beta, weights = panels(transform.lo, transform.hi, transform.breaks, frequency, [shape], 0.1 * transform.tol)
    turns: NDArray[np.complex128] = np.exp(-1j * transform.step * np.multiply.outer(k, beta))
    F = np.asarray(turns * (weights * (transform.step / (2 * np.pi))), dtype=np.complex128)
    return transform.at(beta), F


def _finer(transform: PsiTransform, mean: float) -> tuple[Array, NDArray[np.complex128]]:
    """Frequencies >= 0 and psi - mean against them, more than b alone needs: pairs of units that share noise need them."""
    k = np.arange(_FINER * transform.modes + 1)
    psi, F = _against(transform, k)
    return np.asarray(transform.step * k, dtype=np.float64), F @ (psi - mean)


def _variances(priors: Sequence[Prior]) -> Array:
    return np.array([p.variance() for p in priors]).reshape(-1)


def _joint_transform(prior: Prior, t: Array, r: Array) -> NDArray[np.complex128]:
    """E e^{i (t_p + r_q) a} of a centred feature, (P, Q)."""
    mean = prior.mean()
    if isinstance(prior, Discrete | Bernoulli):
        points, masses = prior.atoms
        left = np.exp(1j * np.multiply.outer(t, points - mean)) * masses
        return np.asarray(left @ np.exp(1j * np.multiply.outer(points - mean, r)))
    at = np.add.outer(t, r)
    return np.asarray(prior.cf(at) * np.exp(-1j * mean * at))


def gaussian(model: FeatureModel) -> FeatureModel:
    """The normal law of a model's mean and covariance, as a feature model."""
    return gaussian_of(model.mean(), model.covariance())


def gaussian_of(mean: Array, covariance: Array) -> FeatureModel:
    """N(mean, covariance) as a feature model of normal features and isotropic noise."""
    return to_model(LinearLaw(mean, np.zeros((len(mean), 0)), (), covariance))


def to_model(law: LinearLaw) -> FeatureModel:
    """The same law as a feature model: noise_std^2 is the least eigenvalue of the noise, and each eigenvector with a
    larger one is a normal feature."""
    values, vectors = np.linalg.eigh(0.5 * (law.noise + law.noise.T))
    values = np.maximum(values, 0.0)
    rest = values - values[0]
    keep = rest > 1e-13 * max(values[-1], 1e-300)
    normals = [Normal(0.0, float(std)) for std in np.sqrt(rest[keep])]
    means = np.array([p.mean() for p in law.priors]).reshape(-1)
    B = np.ascontiguousarray(np.concatenate([law.loadings, vectors[:, keep]], axis=1))  # sums round by memory order
    priors: list[Prior] = [*law.priors, *normals]
    return FeatureModel(B, priors, float(np.sqrt(values[0])), law.mean - law.loadings @ means)


# ------------------------------------------------------------------ the parts of a step


def _transforms(
    priors: Sequence[Prior], s: Array, omega: Array
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """E e^{i omega sum s_i a_i} (K,), and E[a_i e^{...}] for each i, (m, K)."""
    m = len(priors)
    each, first = np.ones((m, len(omega)), complex), np.zeros((m, len(omega)), complex)
    for i, prior in enumerate(priors):
        t, mean = omega * s[i], prior.mean()
        turn = np.exp(-1j * t * mean)
        each[i] = prior.cf(t) * turn
        first[i] = -1j * prior.cf(t, 1) * turn - mean * each[i]
    before, after = np.ones((m + 1, len(omega)), complex), np.ones((m + 1, len(omega)), complex)
    for i in range(m):
        before[i + 1] = before[i] * each[i]
        after[m - 1 - i] = after[m - i] * each[m - 1 - i]
    return before[m], first * before[:m] * after[1:]


def _rest_law(values: Array, masses: Array, variance: float) -> tuple[Discrete | None, float]:
    """A discrete law with the shape of the weighted values and a normal variance, which add up to `variance`."""
    masses = masses / masses.sum()
    values = values - masses @ values
    decided = min(float(masses @ values**2), variance)
    if decided < 1e-6 * variance:
        return None, variance
    points, weights = binned_samples(values, masses).atoms
    points = points - weights @ points
    spread = float(weights @ points**2)
    smooth = min(0.5 * float(points[1] - points[0]) ** 2 * decided / spread, 0.25 * decided)
    return Discrete(tuple(points * np.sqrt((decided - smooth) / spread)), tuple(weights)), variance - decided + smooth


def _capped(law: LinearLaw, features: int | None) -> tuple[LinearLaw, float]:
    """The law with at most so many features that are not normal; the others' variance goes into the noise."""
    if not law.priors:
        return law, 0.0
    total = max(float(np.trace(law.covariance())), 1e-300)
    variances = np.array([p.variance() for p in law.priors])
    sizes = variances * (law.loadings**2).sum(axis=0) / total
    weights = sizes * np.array([_shape(p) for p in law.priors])
    order = np.argsort(-weights, kind="stable")
    kept = np.zeros(len(sizes), bool)
    kept[order[: len(order) if features is None else features]] = True
    kept &= sizes > _NEGLIGIBLE
    gone = law.loadings[:, ~kept]
    noise = law.noise + (gone * variances[~kept]) @ gone.T
    priors = tuple(p for p, k in zip(law.priors, kept, strict=True) if k)
    return LinearLaw(law.mean, law.loadings[:, kept], priors, noise), float(sizes[~kept].sum())


def _shape(prior: Prior) -> float:
    """How far a law is from normal: |skewness| + |excess kurtosis|, at most 1."""
    m1, m2, m3, m4 = (prior.moment(k) for k in (1, 2, 3, 4))
    variance = prior.variance()
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return float(min(1.0, abs(third) / variance**1.5 + abs(fourth / variance**2 - 3)))
