"""The nine kinds of prior, each the law of one feature coordinate. Every formula is closed-form, but for the cumulants
of tilted truncated laws, whose quadrature is in `tilting`. What every kind answers, and in which shapes, is documented
once, on the base class `Prior`; what a prior is used for (models, encoders, support rules) lives in `models`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, gammainc, gammaln, logsumexp, ndtr

from elbotree.runtime.errors import InputError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.prior_base import (
    INF,
    Array,
    Complex,
    Parameters,
    Prior,
    Wave,
    checked_number,
    checked_numbers,
    checked_weights,
    nearest,
)
from elbotree.runtime.tilting import gamma_cumulants, interval_cumulants, mixture_cumulants

__all__ = [
    "PRIORS",
    "Bernoulli",
    "Discrete",
    "Exponential",
    "Gamma",
    "Laplace",
    "Mixture",
    "Normal",
    "Prior",
    "SpikeSlab",
    "Uniform",
    "nearest",
]


def _tilted_atoms(points: Array, masses: Array, c: Array, precision: float, top: int) -> list[Array]:
    """Lambda and cumulants of finitely many atoms: the law with masses proportional to mass e^{c x - precision x^2 / 2}."""
    exponents = np.multiply.outer(points, c) + (np.log(masses) - 0.5 * precision * points**2)[:, None]
    largest = exponents.max(axis=0)
    # far below the largest, a mass is 0: no underflow on the way there
    p = np.exp(np.maximum(exponents - largest, -700.0))
    total = p.sum(axis=0)
    out = [largest + np.log(total)]
    if top >= 1:
        p /= total
        out.append(points @ p)
        distance = points[:, None] - out[1]
        weighted = p * distance
    for order in range(2, top + 1):
        weighted = weighted * distance
        out.append(weighted.sum(axis=0))
        if order == 4:
            out[4] = out[4] - 3 * out[2] ** 2
    return out


class _Atomic(Prior):
    """What Discrete and Bernoulli share: finitely many atoms and no density."""

    @property
    def waves(self) -> tuple[Wave, ...]:
        return tuple(Wave(float(point), float(mass)) for point, mass in zip(*self.atoms, strict=True))

    @property
    def continuous_weight(self) -> float:
        return 0.0

    @property
    def continuous_support(self) -> tuple[tuple[float, float], ...]:
        return ()

    def moment(self, k: int) -> float:
        points, masses = self.atoms
        return float(masses @ points**k)

    def variance(self) -> float:
        points, masses = self.atoms
        return float(masses @ (points - masses @ points) ** 2)

    def cf(self, t: ArrayLike, order: int = 0) -> Complex:
        points, masses = self.atoms
        t = np.asarray(t)
        out = np.zeros(t.shape, dtype=np.complex128)
        for x, mass in zip(points, masses, strict=True):
            factor = mass * (1j * x) ** order
            out += factor * np.exp(1j * x * t) if x else factor
        return out

    @vanishing
    def log_mgf(self, s: ArrayLike) -> Array:
        points, masses = self.atoms
        return np.asarray(logsumexp(np.asarray(s, dtype=np.float64)[..., None] * points, b=masses, axis=-1))

    def _tilt(self, c: Array, precision: float, top: int) -> list[Array]:
        return _tilted_atoms(*self.atoms, c, precision, top)

    def logpdf(self, x: ArrayLike) -> Array:
        return np.full(np.shape(x), -INF)

    def cdf(self, x: ArrayLike) -> Array:
        points, masses = self.atoms
        total = np.concatenate([[0.0], np.minimum(np.cumsum(masses), 1.0)])
        total[-1] = 1.0
        return np.asarray(total[np.searchsorted(points, np.asarray(x, dtype=np.float64), side="right")])

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        points, masses = self.atoms
        return np.asarray(rng.choice(points, size=size, p=masses / masses.sum()))


@dataclass(frozen=True, repr=False)
class Discrete(_Atomic):
    """P(beta = points_i) = masses_i.

    Arguments
        points  (k,) numbers, distinct
        masses  (k,) probabilities, which sum to 1 within 1e-9

    Raises InputError for anything else.
    """

    kind: ClassVar[str] = "discrete"
    points: tuple[float, ...]
    masses: tuple[float, ...]

    def __post_init__(self) -> None:
        points, masses = (
            checked_numbers("discrete", "points", self.points),
            checked_weights("discrete", "masses", self.masses),
        )
        if len(points) != len(masses):
            raise InputError(f"discrete: {len(points)} points came with {len(masses)} masses; give one mass a point")
        if len(set(points)) != len(points):
            raise InputError(
                f"discrete: `points` {list(points)} repeat a value; add the masses of equal points together"
            )
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "masses", masses)

    @cached_property
    def _sorted(self) -> tuple[Array, Array]:
        points, masses = np.array(self.points), np.array(self.masses)
        order = np.argsort(points)
        keep = order[masses[order] > 0]
        return points[keep], masses[keep]

    @property
    def atoms(self) -> tuple[Array, Array]:
        return self._sorted

    def parameters(self) -> Parameters:
        return {"masses": np.array(self.masses)}

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        x = np.asarray(x, dtype=np.float64)
        out = np.zeros((len(self.points), *x.shape))
        if atom:
            for i, (point, mass) in enumerate(zip(self.points, self.masses, strict=True)):
                if mass > 0:
                    out[i] = (x == point) / mass
        return {"masses": out}


@dataclass(frozen=True, repr=False)
class Bernoulli(_Atomic):
    """P(beta = 1) = p, P(beta = 0) = 1 - p; mean p, variance p (1 - p). Raises InputError unless 0 <= p <= 1."""

    kind: ClassVar[str] = "bernoulli"
    p: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", checked_number("bernoulli", "p", self.p, 0.0, 1.0))

    @cached_property
    def _sorted(self) -> tuple[Array, Array]:
        points, masses = np.array([0.0, 1.0]), np.array([1 - self.p, self.p])
        return points[masses > 0], masses[masses > 0]

    @property
    def atoms(self) -> tuple[Array, Array]:
        return self._sorted

    def log_mgf(self, s: ArrayLike) -> Array:
        s = np.asarray(s, dtype=np.float64)
        below = np.expm1(-np.abs(s))  # counted from the larger of the two terms
        with np.errstate(divide="ignore"):  # log 0 where an atom has no mass
            return np.asarray(np.maximum(s, 0.0) + np.log1p(np.where(s > 0, 1 - self.p, self.p) * below))

    def parameters(self) -> Parameters:
        return {"p": self.p}

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        x = np.asarray(x, dtype=np.float64)
        out = np.zeros(x.shape)
        if atom:
            out[x == 1] = 1 / self.p if self.p > 0 else 0.0
            out[x == 0] = -1 / (1 - self.p) if self.p < 1 else 0.0
        return {"p": out}


@dataclass(frozen=True, repr=False)
class Normal(Prior):
    """N(mean, std^2), density e^(-(beta - mean)^2 / (2 std^2)) / (std sqrt(2 pi)). Raises InputError unless std > 0."""

    kind: ClassVar[str] = "normal"
    mean_: float
    std: float

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        object.__setattr__(self, "mean_", checked_number("normal", "mean", mean))
        object.__setattr__(self, "std", checked_number("normal", "std", std, positive=True))

    def moment(self, k: int) -> float:
        m, v = self.mean_, self.std**2
        return (1.0, m, m**2 + v, m**3 + 3 * m * v, m**4 + 6 * m**2 * v + 3 * v**2)[k]

    def variance(self) -> float:
        return self.std**2

    def cf(self, t: ArrayLike, order: int = 0) -> Complex:
        t = np.asarray(t)
        phi = np.exp(1j * t * self.mean_ - 0.5 * (self.std * t) ** 2)
        slope = 1j * self.mean_ - self.std**2 * t
        return np.asarray((phi, slope * phi, (slope**2 - self.std**2) * phi)[order], dtype=np.complex128)

    def log_mgf(self, s: ArrayLike) -> Array:
        s = np.asarray(s, dtype=np.float64)
        return np.asarray(s * self.mean_ + 0.5 * (self.std * s) ** 2)

    def _tilt(self, c: Array, precision: float, top: int) -> list[Array]:
        m, shrink = self.mean_, 1 + precision * self.std**2
        v = self.std**2 / shrink
        value = 0.5 * v * c**2 + c * m / shrink - 0.5 * precision * m**2 / shrink - 0.5 * math.log(shrink)
        zero = np.zeros_like(c)
        return [value, v * c + m / shrink, zero + v, zero, zero][: top + 1]

    def logpdf(self, x: ArrayLike) -> Array:
        z = (np.asarray(x, dtype=np.float64) - self.mean_) / self.std
        return np.asarray(-0.5 * z**2 - math.log(self.std) - 0.5 * math.log(2 * math.pi))

    @property
    def continuous_support(self) -> tuple[tuple[float, float], ...]:
        return ((-INF, INF),)

    def cdf(self, x: ArrayLike) -> Array:
        return np.asarray(ndtr((np.asarray(x, dtype=np.float64) - self.mean_) / self.std))

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        return rng.normal(self.mean_, self.std, size)

    def parameters(self) -> Parameters:
        return {"mean": self.mean_, "std": self.std}

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        z = (np.asarray(x, dtype=np.float64) - self.mean_) / self.std
        on = 0.0 if atom else 1.0
        return {"mean": on * z / self.std, "std": on * (z**2 - 1) / self.std}


class _GammaLaw(Prior):
    """What Gamma and Exponential (shape 1) share: density beta^(shape - 1) e^(-beta / scale) / Z on (0, inf)."""

    shape: float
    scale_: float

    def moment(self, k: int) -> float:
        return math.prod(self.scale_ * (self.shape + i) for i in range(k))

    def variance(self) -> float:
        return self.shape * self.scale_**2

    def cf(self, t: ArrayLike, order: int = 0) -> Complex:
        k, theta = self.shape, self.scale_
        factor = (1.0, 1j * k * theta, -k * (k + 1) * theta**2)[order]
        return np.asarray(factor * (1 - 1j * theta * np.asarray(t)) ** (-k - order), dtype=np.complex128)

    @property
    def mgf_domain(self) -> tuple[float, float]:
        return (-INF, 1 / self.scale_)

    def log_mgf(self, s: ArrayLike) -> Array:
        s = np.asarray(s, dtype=np.float64)
        inside = s < self.mgf_domain[1]
        return np.where(inside, -self.shape * np.log1p(-self.scale_ * np.where(inside, s, 0.0)), INF)

    def _tilt(self, c: Array, precision: float, top: int) -> list[Array]:
        k, theta = self.shape, self.scale_
        if precision == 0:
            tilted = theta / (1 - theta * c)
            return [self.log_mgf(c), k * tilted, k * tilted**2, 2 * k * tilted**3, 6 * k * tilted**4][: top + 1]
        a = c - 1 / theta
        out = interval_cumulants(a, precision, 0.0, INF, top) if k == 1 else gamma_cumulants(a, precision, k, top)
        out[0] = out[0] - k * math.log(theta)
        return out

    def logpdf(self, x: ArrayLike) -> Array:
        x = np.asarray(x, dtype=np.float64)
        inside = x >= 0 if self.shape == 1 else x > 0
        y = np.where(inside, x, 1.0) / self.scale_
        power = (self.shape - 1) * np.log(y) if self.shape != 1 else 0.0
        return np.where(inside, power - y - gammaln(self.shape) - math.log(self.scale_), -INF)

    @property
    def breakpoints(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def continuous_support(self) -> tuple[tuple[float, float], ...]:
        return ((0.0, INF),)

    def cdf(self, x: ArrayLike) -> Array:
        return np.asarray(gammainc(self.shape, np.maximum(np.asarray(x, dtype=np.float64), 0.0) / self.scale_))

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        return rng.gamma(self.shape, self.scale_, size)


@dataclass(frozen=True, repr=False)
class Gamma(_GammaLaw):
    """Density beta^(shape - 1) e^(-beta / scale) / (Gamma(shape) scale^shape) on (0, inf); mean shape scale, variance
    shape scale^2. Raises InputError unless shape > 0 and scale > 0."""

    kind: ClassVar[str] = "gamma"
    shape: float
    scale_: float

    def __init__(self, shape: float, scale: float = 1.0) -> None:
        object.__setattr__(self, "shape", checked_number("gamma", "shape", shape, positive=True))
        object.__setattr__(self, "scale_", checked_number("gamma", "scale", scale, positive=True))

    def parameters(self) -> Parameters:
        return {"shape": self.shape, "scale": self.scale_}

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        x = np.asarray(x, dtype=np.float64)
        on = (np.zeros(x.shape) if atom else np.ones(x.shape)) * (x > 0)
        y = np.where(x > 0, x, self.scale_) / self.scale_
        return {"shape": on * (np.log(y) - digamma(self.shape)), "scale": on * (y - self.shape) / self.scale_}


@dataclass(frozen=True, repr=False)
class Exponential(_GammaLaw):
    """Density e^(-beta / scale) / scale on (0, inf); scale is the mean and the standard deviation. Raises InputError unless
    scale > 0."""

    kind: ClassVar[str] = "exponential"
    shape: ClassVar[float] = 1.0  # type: ignore[misc]
    scale_: float

    def __init__(self, scale: float = 1.0) -> None:
        object.__setattr__(self, "scale_", checked_number("exponential", "scale", scale, positive=True))

    def parameters(self) -> Parameters:
        return {"scale": self.scale_}

    @property
    def waves(self) -> tuple[Wave, ...]:
        return (Wave(0.0, 1.0, (self.scale_, 0.0)),)

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        x = np.asarray(x, dtype=np.float64)
        on = (np.zeros(x.shape) if atom else np.ones(x.shape)) * (x >= 0)
        return {"scale": on * (x / self.scale_ - 1) / self.scale_}


def _sinc(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """sin(x) / x and its first two derivatives; by power series where the closed forms cancel."""
    near = np.abs(x) < 1.0
    z = np.where(near, 1.0, x)
    s = np.sin(z) / z
    s1 = (np.cos(z) - s) / z
    s2 = -s - 2 * s1 / z
    y = np.where(near, x, 0.0)
    series = [np.zeros_like(y) for _ in range(3)]
    for k in range(11, -1, -1):  # sum of (-1)^k x^(2k) / (2k + 1)!, differentiated term by term
        coefficient = (-1) ** k / math.factorial(2 * k + 1)
        series[0] += coefficient * y ** (2 * k)
        if k:
            series[1] += coefficient * 2 * k * y ** (2 * k - 1)
            series[2] += coefficient * 2 * k * (2 * k - 1) * y ** (2 * k - 2)
    return np.where(near, series[0], s), np.where(near, series[1], s1), np.where(near, series[2], s2)


@dataclass(frozen=True, repr=False)
class Uniform(Prior):
    """Density 1 / (high - low) on [low, high]; mean (low + high) / 2, variance (high - low)^2 / 12. Raises InputError unless
    low < high."""

    kind: ClassVar[str] = "uniform"
    low: float
    high: float

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        object.__setattr__(self, "low", checked_number("uniform", "low", low))
        object.__setattr__(self, "high", checked_number("uniform", "high", high))
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise InputError(f"uniform: `low` is {self.low!r} and `high` is {self.high!r}; low must be less than high")

    def moment(self, k: int) -> float:
        return math.fsum(self.low**i * self.high ** (k - i) for i in range(k + 1)) / (k + 1)

    def variance(self) -> float:
        return (self.high - self.low) ** 2 / 12

    def cf(self, t: ArrayLike, order: int = 0) -> Complex:
        t = np.asarray(t)
        middle, d = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        s, s1, s2 = _sinc(np.asarray(d * t))
        inner = (s, 1j * middle * s + d * s1, 2j * middle * d * s1 + d**2 * s2 - middle**2 * s)[order]
        return np.asarray(np.exp(1j * middle * t) * inner, dtype=np.complex128)

    def log_mgf(self, s: ArrayLike) -> Array:
        s = np.asarray(s, dtype=np.float64)
        middle, d = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        x = np.abs(s) * d
        z = np.maximum(x, 0.05)
        far = np.maximum(s * self.high, s * self.low) + np.log(-np.expm1(-2 * z) / (2 * z))  # middle + |s| d = an end
        y = np.minimum(x, 0.05) ** 2  # log(sinh x / x) by its series where it is a difference of nearly equal numbers
        near = s * middle + y * (1 / 6 - y * (1 / 180 - y * (1 / 2835 - y / 37800)))
        return np.asarray(np.where(x < 0.05, near, far))

    def _tilt(self, c: Array, precision: float, top: int) -> list[Array]:
        out = interval_cumulants(c, precision, self.low, self.high, top)
        out[0] = out[0] - math.log(self.high - self.low)
        return out

    def logpdf(self, x: ArrayLike) -> Array:
        x = np.asarray(x, dtype=np.float64)
        return np.where((x >= self.low) & (x <= self.high), -math.log(self.high - self.low), -INF)

    @property
    def breakpoints(self) -> tuple[float, ...]:
        return (self.low, self.high)

    @property
    def continuous_support(self) -> tuple[tuple[float, float], ...]:
        return ((self.low, self.high),)

    def cdf(self, x: ArrayLike) -> Array:
        return np.asarray(np.clip((np.asarray(x, dtype=np.float64) - self.low) / (self.high - self.low), 0.0, 1.0))

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        return rng.uniform(self.low, self.high, size)

    def parameters(self) -> Parameters:
        return {}

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        return {}


@dataclass(frozen=True, repr=False)
class Laplace(Prior):
    """Density e^(-|beta - mean| / scale) / (2 scale); variance 2 scale^2. Raises InputError unless scale > 0."""

    kind: ClassVar[str] = "laplace"
    mean_: float
    scale_: float

    def __init__(self, mean: float = 0.0, scale: float = 1.0) -> None:
        object.__setattr__(self, "mean_", checked_number("laplace", "mean", mean))
        object.__setattr__(self, "scale_", checked_number("laplace", "scale", scale, positive=True))

    @property
    def waves(self) -> tuple[Wave, ...]:
        return (Wave(self.mean_, 1.0, (self.scale_, -self.scale_)),)

    def moment(self, k: int) -> float:
        m, v = self.mean_, 2 * self.scale_**2
        return (1.0, m, m**2 + v, m**3 + 3 * m * v, m**4 + 6 * m**2 * v + 6 * v**2)[k]

    def variance(self) -> float:
        return 2 * self.scale_**2

    def cf(self, t: ArrayLike, order: int = 0) -> Complex:
        t = np.asarray(t)
        m, b2 = self.mean_, self.scale_**2
        phi = 1 / (1 + b2 * t**2)
        phi1 = -2 * b2 * t * phi**2
        phi2 = -2 * b2 * phi**2 * (1 - 4 * b2 * t**2 * phi)
        inner = (phi, 1j * m * phi + phi1, 2j * m * phi1 + phi2 - m**2 * phi)[order]
        return np.asarray(np.exp(1j * m * t) * inner, dtype=np.complex128)

    @property
    def mgf_domain(self) -> tuple[float, float]:
        return (-1 / self.scale_, 1 / self.scale_)

    def log_mgf(self, s: ArrayLike) -> Array:
        s = np.asarray(s, dtype=np.float64)
        inside = np.abs(s) < self.mgf_domain[1]
        x = np.where(inside, s * self.scale_, 0.0)
        return np.where(inside, s * self.mean_ - np.log1p(-x) - np.log1p(x), INF)

    def _tilt(self, c: Array, precision: float, top: int) -> list[Array]:
        m, half = self.mean_, Exponential(self.scale_)
        inner = c - precision * m  # beta = m + x right of the mean, m - x left of it, x exponential
        right, left = half._tilt(inner, precision, top), half._tilt(-inner, precision, top)
        left[1:] = [(-1) ** order * cumulant for order, cumulant in enumerate(left[1:], 1)]
        out = mixture_cumulants([right, left], top)
        out[0] = out[0] + m * (c - 0.5 * precision * m) - math.log(2)
        if top >= 1:
            out[1] = out[1] + m
        return out

    def logpdf(self, x: ArrayLike) -> Array:
        distance = np.abs(np.asarray(x, dtype=np.float64) - self.mean_)
        return np.asarray(-distance / self.scale_ - math.log(2 * self.scale_))

    @property
    def breakpoints(self) -> tuple[float, ...]:
        return (self.mean_,)

    @property
    def continuous_support(self) -> tuple[tuple[float, float], ...]:
        return ((-INF, INF),)

    def cdf(self, x: ArrayLike) -> Array:
        z = (np.asarray(x, dtype=np.float64) - self.mean_) / self.scale_
        tail = 0.5 * np.exp(-np.abs(z))
        return np.where(z < 0, tail, 1 - tail)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        return rng.laplace(self.mean_, self.scale_, size)

    def parameters(self) -> Parameters:
        return {"mean": self.mean_, "scale": self.scale_}

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        z = (np.asarray(x, dtype=np.float64) - self.mean_) / self.scale_
        on = 0.0 if atom else 1.0
        return {"mean": on * np.sign(z) / self.scale_, "scale": on * (np.abs(z) - 1) / self.scale_}


class _Sum(Prior):
    """What Mixture and SpikeSlab share: everything follows from `_terms`, the (weight, component) pairs."""

    @property
    @abstractmethod
    def _terms(self) -> tuple[tuple[float, Prior], ...]: ...

    @cached_property
    def _live(self) -> tuple[tuple[float, Prior], ...]:
        return tuple((weight, part) for weight, part in self._terms if weight > 0)

    @property
    def waves(self) -> tuple[Wave, ...] | None:
        found: list[Wave] = []
        for weight, part in self._live:
            if part.waves is None:
                return None
            found += [wave._replace(mass=weight * wave.mass) for wave in part.waves]
        return tuple(found)

    def moment(self, k: int) -> float:
        return math.fsum(weight * part.moment(k) for weight, part in self._live)

    def variance(self) -> float:
        mean = self.mean()
        return math.fsum(weight * (part.variance() + (part.mean() - mean) ** 2) for weight, part in self._live)

    def cf(self, t: ArrayLike, order: int = 0) -> Complex:
        return np.asarray(sum(weight * part.cf(t, order) for weight, part in self._live))

    @property
    def mgf_domain(self) -> tuple[float, float]:
        domains = [part.mgf_domain for _, part in self._live]
        return max(low for low, _ in domains), min(high for _, high in domains)

    def log_mgf(self, s: ArrayLike) -> Array:
        return self._log_sum(lambda part: part.log_mgf(s))

    @vanishing
    def _log_sum(self, log_value: Callable[[Prior], Array]) -> Array:
        """log sum_j weight_j exp(log_value(component j)); -inf where all are."""
        return np.asarray(np.logaddexp.reduce([math.log(weight) + log_value(part) for weight, part in self._live]))

    def _tilt(self, c: Array, precision: float, top: int) -> list[Array]:
        parts = []
        for weight, part in self._live:
            tilted = part._tilt(c, precision, top)
            parts.append([tilted[0] + math.log(weight), *tilted[1:]])
        return mixture_cumulants(parts, top)

    @cached_property
    def _all_atoms(self) -> tuple[Array, Array]:
        total: dict[float, float] = {}
        for weight, part in self._live:
            for point, mass in zip(*part.atoms, strict=True):
                total[float(point)] = total.get(float(point), 0.0) + weight * float(mass)
        return np.array(sorted(total)), np.array([total[point] for point in sorted(total)])

    @property
    def atoms(self) -> tuple[Array, Array]:
        return self._all_atoms

    @property
    def continuous_weight(self) -> float:
        return math.fsum(weight * part.continuous_weight for weight, part in self._live)

    def logpdf(self, x: ArrayLike) -> Array:
        return self._log_sum(lambda part: part.logpdf(x))

    @property
    def breakpoints(self) -> tuple[float, ...]:
        return tuple(sorted({point for _, part in self._live for point in part.breakpoints}))

    @property
    def continuous_support(self) -> tuple[tuple[float, float], ...]:
        merged: list[tuple[float, float]] = []
        for low, high in sorted(interval for _, part in self._live for interval in part.continuous_support):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return tuple(merged)

    @property
    def scale(self) -> float:
        continuous = [part.scale for _, part in self._live if part.continuous_weight > 0]
        return min(continuous) if continuous else (math.sqrt(self.variance()) or 1.0)

    def cdf(self, x: ArrayLike) -> Array:
        return np.asarray(np.minimum(sum(weight * part.cdf(x) for weight, part in self._live), 1.0))

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        weights = np.array([weight for weight, _ in self._live])
        which = rng.choice(len(weights), size=size, p=weights / weights.sum())
        out = np.empty(size)
        for j, (_, part) in enumerate(self._live):
            out[which == j] = part.sample(rng, int((which == j).sum()))
        return out

    def _shares(self, x: Array, atom: bool) -> list[Array]:
        """f_j(x) / f(x) for every term, f = sum_j weight_j f_j the density (atom=False) or the mass; 0 where f is."""
        total = self.log_mass(x) if atom else self.logpdf(x)
        on = total > -INF
        safe = np.where(on, total, 0.0)
        logs = [part.log_mass(x) if atom else part.logpdf(x) for _, part in self._terms]
        return [np.where(on, np.exp(np.where(on, log - safe, -INF)), 0.0) for log in logs]


@dataclass(frozen=True, repr=False)
class Mixture(_Sum):
    """sum_j weights_j components_j: a draw from component j with probability weights_j.

    Arguments
        weights     (k,) probabilities, which sum to 1 within 1e-9
        components  k priors of any kind, or their JSON forms

    Raises InputError for anything else.
    """

    kind: ClassVar[str] = "mixture"
    weights: tuple[float, ...]
    components: tuple[Prior, ...]

    def __init__(self, weights: Iterable[float], components: Iterable[Prior]) -> None:
        object.__setattr__(self, "weights", checked_weights("mixture", "weights", weights))
        parts = tuple(Prior.of(part, f"mixture: `components[{i}]`") for i, part in enumerate(components))
        if len(parts) != len(self.weights):
            raise InputError(f"mixture: {len(self.weights)} weights came with {len(parts)} components; give one each")
        object.__setattr__(self, "components", parts)

    @property
    def _terms(self) -> tuple[tuple[float, Prior], ...]:
        return tuple(zip(self.weights, self.components, strict=True))

    def parameters(self) -> Parameters:
        out: Parameters = {"weights": np.array(self.weights)}
        for i, part in enumerate(self.components):
            out |= {f"components.{i}.{name}": value for name, value in part.parameters().items()}
        return out

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        x = np.asarray(x, dtype=np.float64)
        shares = self._shares(x, atom)
        out = {"weights": np.stack(shares)}
        for i, ((weight, part), share) in enumerate(zip(self._terms, shares, strict=True)):
            out |= {f"components.{i}.{name}": weight * share * value for name, value in part.score(x, atom).items()}
        return out


@dataclass(frozen=True, repr=False)
class SpikeSlab(_Sum):
    """(1 - p) delta_0 + p slab: 0 with probability 1 - p, else a draw from the slab, a prior of any kind; mean p E[slab].
    Raises InputError unless 0 <= p <= 1."""

    kind: ClassVar[str] = "spike_slab"
    p: float
    slab: Prior

    def __init__(self, p: float, slab: Prior) -> None:
        object.__setattr__(self, "p", checked_number("spike_slab", "p", p, 0.0, 1.0))
        object.__setattr__(self, "slab", Prior.of(slab, "spike_slab: `slab`"))

    @property
    def _terms(self) -> tuple[tuple[float, Prior], ...]:
        return (1 - self.p, Discrete((0.0,), (1.0,))), (self.p, self.slab)

    def parameters(self) -> Parameters:
        return {"p": self.p} | {f"slab.{name}": value for name, value in self.slab.parameters().items()}

    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        x = np.asarray(x, dtype=np.float64)
        spike, slab = self._shares(x, atom)
        inner = self.slab.score(x, atom)
        return {"p": slab - spike} | {f"slab.{name}": self.p * slab * value for name, value in inner.items()}


PRIORS: dict[str, type[Prior]] = {
    cls.kind: cls for cls in (Discrete, Bernoulli, Normal, Exponential, Gamma, Uniform, Laplace, SpikeSlab, Mixture)
}
