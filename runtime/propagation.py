"""One layer of a chain without an optimiser: how a feature model goes through f(x) = y + w psi(b), in closed form.

With y = ybar + sum_i r_i a_i + zeta, a_i the centred features, zeta ~ N(0, Gamma) (normal priors are part of Gamma), and
b - bbar = <u, y - ybar>, regress psi(b) on what it depends on:

    psi(b) = E psi + sum_i kappa_i a_i + g <u, zeta> + rest,   kappa_i = Cov(psi, a_i) / Var a_i,
    g = Cov(psi, <u, zeta>) / Var <u, zeta>.

Then f = E f + sum_i (r_i + kappa_i w) a_i + (I + g w u^T) zeta + w rest, and rest is uncorrelated with every a_i and with
zeta. The model that takes it for independent of them has the exact mean and covariance of f(x1) under the input model;
what it loses is dependence beyond correlation. Features that b does not read keep their columns (kappa_i = 0), affine
layers have rest = 0 and are exact, and all expectations are one-dimensional sums over the frequencies of b.

rest's prior is the law of E[rest | b], on 25 points, and a normal law for the part of its variance that b does not
decide (and for the spacing of the points). Features that matter least may be made normal, into Gamma: that keeps the
mean and the covariance too, and with no features left it is the propagation of Gaussian moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.priors import Discrete, Normal, Prior
from elbotree.runtime.psi_transform import PsiTransform
from elbotree.runtime.training import binned_samples

Array = NDArray[np.float64]

_NEGLIGIBLE = 1e-8  # share of x2's variance below which a feature is made normal, whatever its law


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
    """The feature model of f(x1), x1 ~ p1, by regression of psi(b) on the features; see the module.

    Arguments
        features     how many features that are not normal the result may have; None: no bound
        noise_floor  the least Gaussian standard deviation of b, in standard deviations of b. Where b has less, noise is
                     added along u: the law of b must have a density that a few hundred frequencies carry
        tol          of the expectations of psi

    Raises UnsupportedError where psi has a pole inside the law of b, or is not finite there.
    """
    layer, p1, added = _noisy_enough(layer, p1, noise_floor)
    law = OutputLaw(layer, p1, tol)
    transform = law.transform
    out = law.lattice_law if transform is None else _through(law.y, layer, transform)
    if transform is None:
        return Propagated(to_model(out), True, 0.0, added)
    out, share = _capped(out, features)
    return Propagated(to_model(out), False, share, added)


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
    B = np.concatenate([law.loadings, vectors[:, keep]], axis=1)
    priors: list[Prior] = [*law.priors, *normals]
    return FeatureModel(B, priors, float(np.sqrt(values[0])), law.mean - law.loadings @ means)


# ------------------------------------------------------------------ the parts of a step


def _noisy_enough(layer: Layer, p1: FeatureModel, floor: float) -> tuple[Layer, FeatureModel, float]:
    """The layer and its input, with noise added along u in y where b has less than the floor; and how much."""
    if not layer.w.any() or layer.activation.affine is not None:
        return layer, p1, 0.0
    y = LinearLaw.of(layer, p1)
    variance = float(layer.u @ y.covariance() @ layer.u)
    noise = float(layer.u @ y.noise @ layer.u)
    missing = floor**2 * variance - noise
    if missing <= 0 or variance == 0:
        return layer, p1, 0.0
    along = np.outer(layer.u, layer.u) / float(layer.u @ layer.u) ** 2
    noisy = to_model(LinearLaw(y.mean, y.loadings, y.priors, y.noise + missing * along))
    same = Layer(np.eye(layer.n2), layer.w, layer.u, layer.psi, threshold=layer.threshold)
    return same, noisy, float(np.sqrt(missing / variance))


def _through(y: LinearLaw, layer: Layer, transform: PsiTransform) -> LinearLaw:
    """The regression of psi(b), and its rest as a feature along w."""
    _, _, psi, F = transform.nodes(1.0)
    omega: Array = np.asarray(transform.step * np.arange(-transform.modes, transform.modes + 1), dtype=np.float64)
    s, var_b = layer.u @ y.loadings, float(layer.u @ y.noise @ layer.u)
    variances = np.array([p.variance() for p in y.priors]).reshape(-1)
    phi, with_source = _transforms(y.priors, s, omega)
    gauss = np.exp(-0.5 * omega**2 * var_b)
    phi, with_source = phi * gauss, with_source * gauss
    with_noise = 1j * omega * var_b * phi  # E[<u, zeta> e^{i omega (b - bbar)}]

    masses = np.maximum((phi @ F).real, 0.0)
    masses = masses / masses.sum()
    mean = float(masses @ psi)
    against = F @ (psi - mean)
    kappa = (with_source @ against).real / variances
    g = float((with_noise @ against).real) / var_b
    variance = float(masses @ (psi - mean) ** 2)
    left = max(0.0, variance - float(kappa**2 @ variances) - g**2 * var_b)

    J = np.eye(layer.n2) + g * np.outer(layer.w, layer.u)
    loadings = y.loadings + np.outer(layer.w, kappa)
    noise = J @ y.noise @ J.T
    priors = y.priors
    if left > 1e-14 * max(variance, 1e-300):
        # what the regression says given b, times the mass of b: E[sum kappa a + g <u, zeta>; b]
        explained = ((kappa @ with_source + g * with_noise) @ F).real
        seen = masses > 1e-9 * masses.max()
        rest = psi[seen] - mean - explained[seen] / masses[seen]
        prior, normal = _rest_law(rest, masses[seen], left)
        noise = noise + normal * np.outer(layer.w, layer.w)
        if prior is not None:
            loadings, priors = np.column_stack([loadings, layer.w]), (*priors, prior)
    return LinearLaw(y.mean + layer.w * mean, loadings, priors, noise)


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
