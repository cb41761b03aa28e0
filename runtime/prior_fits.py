"""One prior for one coordinate of data, seen through noise of known variance: several kinds fitted, the best kept by
BIC. Closed forms and EM only. Which coordinates to fit is for `input_models`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from elbotree.runtime.errors import InputError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.priors import Exponential, Gamma, Laplace, Mixture, Normal, Prior, SpikeSlab

Array = NDArray[np.float64]

KINDS = ("normal", "laplace", "mixture", "spike_slab")

#: The least variance of a mixture's component, of a source of variance 1: narrower ones only echo single rows.
NARROWEST = 0.01
ITERATIONS = 300


@dataclass(frozen=True)
class FittedPrior:
    """A prior of mean 0 and variance 1 once `shift` is added: the coordinate is prior + shift + noise.

    kind    which of KINDS won
    prior   the law; the shift is 0 but for spike_slab, whose spike must stand at 0
    logpdf  log density of the coordinate, noise included
    bic     of the kind, less is better
    """

    kind: str
    prior: Prior
    shift: float
    logpdf: Callable[[Array], Array]
    bic: float


def fit_prior(x: Array, noise: float, kinds: Sequence[str] = KINDS) -> FittedPrior:
    """The prior of alpha, E alpha = 0 and Var alpha = 1, from x = alpha + N(0, noise), with noise the variance.

    Returns the kind among `kinds` with the least BIC, each fitted to x with the noise taken into account: normal and
    laplace have nothing left to fit; mixtures of 2 and 3 normals and the spike-and-slab with a normal slab go by EM,
    then are standardised, so that prior variance + noise is what the data's variance is.
    """
    fits: list[FittedPrior] = []
    if "normal" in kinds:
        fits.append(_scored("normal", Normal(0.0, 1.0), 0.0, 0, _normals([1.0], [0.0], [1 + noise]), x))
    if "laplace" in kinds:
        scale = math.sqrt(0.5)
        fits.append(_scored("laplace", Laplace(0.0, scale), 0.0, 0, lambda y: laplace_plus_normal(y, scale, noise), x))
    if "mixture" in kinds:
        fits += [fit for count in (2, 3) if (fit := _mixture(x, noise, count)) is not None]
    if "spike_slab" in kinds and (spike := _spike(x, noise)) is not None:
        fits.append(spike)
    if not fits:
        raise InputError(f"none of the kinds {', '.join(kinds)} fits this coordinate; allow 'normal' or 'mixture' too")
    return min(fits, key=lambda fit: fit.bic)


def _scored(
    kind: str, prior: Prior, shift: float, parameters: int, logpdf: Callable[[Array], Array], x: Array
) -> FittedPrior:
    bic = parameters * math.log(len(x)) - 2 * float(logpdf(x).sum())
    return FittedPrior(kind, prior, shift, logpdf, bic)


def _normals(weights: Sequence[float], means: Sequence[float], variances: Sequence[float]) -> Callable[[Array], Array]:
    """log density of a mixture of normals; components of no variance cannot occur with noise, and are refused
    before."""
    p, m, v = (np.array(values) for values in (weights, means, variances))

    @vanishing
    def logpdf(y: Array) -> Array:
        z = -0.5 * (y[:, None] - m) ** 2 / v - 0.5 * np.log(2 * np.pi * v)
        return np.asarray(logsumexp(z, b=p, axis=1))

    return logpdf


@vanishing
def laplace_plus_normal(y: Array, scale: float, variance: float) -> Array:
    """log density of Laplace(0, scale) + N(0, variance): halves of an exponential, each convolved with the normal."""
    if variance == 0:
        return np.asarray(-np.abs(y) / scale - math.log(2 * scale))
    s = math.sqrt(variance)
    half = variance / (2 * scale**2)
    up = half - y / scale + log_ndtr(y / s - s / scale)
    down = half + y / scale + log_ndtr(-y / s - s / scale)
    return np.asarray(np.logaddexp(up, down) - math.log(2 * scale))


@dataclass
class _Normals:
    """A mixture of normals for alpha: weights, means, variances; `spike` says that the first one is a point."""

    p: Array
    m: Array
    v: Array
    spike: bool

    def standardised(self) -> _Normals:
        """Moved and stretched to mean 0 and variance 1."""
        mean = float(self.p @ self.m)
        spread = math.sqrt(float(self.p @ (self.v + (self.m - mean) ** 2)))
        return _Normals(self.p, (self.m - mean) / spread, self.v / spread**2, self.spike)


@vanishing
def _em(x: Array, noise: float, start: _Normals) -> _Normals:
    """EM for x = alpha + N(0, noise): an M step gives each component's observed variance, and the noise is taken off
    it."""
    now, before, squared = start, -math.inf, x**2
    for _ in range(ITERATIONS):
        total = (now.v + noise)[:, None]
        logs = np.log(now.p[:, None]) - 0.5 * (x - now.m[:, None]) ** 2 / total - 0.5 * np.log(2 * np.pi * total)
        top = logs.max(axis=0)
        shares = np.exp(logs - top)
        each = shares.sum(axis=0)
        shares /= each
        counts = np.maximum(shares.sum(axis=1), 1e-9)
        means = shares @ x / counts
        v = np.maximum(shares @ squared / counts - means**2 - noise, NARROWEST)
        if now.spike:
            v[0] = 0.0
        now = _Normals(np.maximum(counts / len(x), 1e-9), means, v, now.spike)
        now.p /= now.p.sum()
        likelihood = float(np.mean(top + np.log(each)))
        if likelihood - before < 1e-8:
            break
        before = likelihood
    return now


def _mixture(x: Array, noise: float, count: int) -> FittedPrior | None:
    """`count` normals by EM from two starts (side by side, and one inside the other); None where one dies out."""
    spread = float(x.std())
    beside = np.quantile(x, (np.arange(count) + 0.5) / count)
    inside = np.array([0.3, 1.0, 3.0])[:count] if count == 3 else np.array([0.5, 2.0])
    equal = np.full(count, 1 / count)
    starts = [
        _Normals(equal, beside, np.full(count, max(spread**2 / count**2, NARROWEST)), False),
        _Normals(equal, np.full(count, x.mean()), np.maximum(inside * spread**2, NARROWEST), False),
    ]
    fits = []
    for start in starts:
        found = _em(x, noise, start).standardised()
        if found.p.min() * len(x) < 5:
            continue
        prior = Mixture(
            found.p.tolist(), [Normal(m, math.sqrt(v)) for m, v in zip(found.m.tolist(), found.v.tolist(), strict=True)]
        )
        logpdf = _normals(found.p.tolist(), found.m.tolist(), (found.v + noise).tolist())
        fits.append(_scored("mixture", prior, 0.0, 3 * count - 3, logpdf, x))
    return min(fits, key=lambda fit: fit.bic) if fits else None


def _spike(x: Array, noise: float) -> FittedPrior | None:
    """A point and a normal by EM: the point stands at `shift`, and the prior is measured from it."""
    if noise <= 0:
        return None  # an atom in noiseless data has no density to compare the others with
    centre = float(np.median(x))
    start = _Normals(np.array([0.5, 0.5]), np.array([centre, x.mean()]), np.array([0.0, 2 * float(x.var())]), True)
    found = _em(x, noise, start).standardised()
    p = float(found.p[1])
    if min(p, 1 - p) * len(x) < 5:
        return None
    spike, mean = float(found.m[0]), float(found.m[1])
    prior = SpikeSlab(p, Normal(mean - spike, math.sqrt(float(found.v[1]))))
    logpdf = _normals([1 - p, p], [spike, mean], [noise, float(found.v[1]) + noise])
    return _scored("spike_slab", prior, spike, 2, logpdf, x)


def fit_slab(active: Array, slab: str = "auto") -> Prior:
    """Gamma or exponential by moments, for the values of a feature in the rows where it fires.

    The gamma's shape is mean^2 / variance. "auto" takes the exponential where that is 1 within two standard errors (of
    the moment estimator at shape 1, sqrt(8 / N)), and where fewer than three different values leave no variance to fit.
    """
    mean, variance = float(active.mean()), float(active.var())
    if slab == "exponential" or (slab == "auto" and (len(active) < 3 or variance <= 1e-12 * mean**2)):
        return Exponential(mean)
    if variance <= 1e-12 * mean**2:
        raise InputError("`slab` is 'gamma', but a feature always fires at the same value; give slab='auto'")
    shape = mean**2 / variance
    if slab == "auto" and abs(shape - 1) <= 2 * math.sqrt(8 / len(active)):
        return Exponential(mean)
    return Gamma(shape, variance / mean)
