"""Expectations over finitely many points of x1: drawn at random (plain Monte Carlo, a check on the other engines and
nothing more), or all of them, where x1 takes finitely many values (sigma1 = 0, discrete priors)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.arguments import MOST_SAMPLES, check_count, check_seed
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer

Array = NDArray[np.float64]

CHUNK = 2**20  # numbers in one chunk's samples of f: bounds memory whatever N is
MOST_ATOMS = 2**18  # of x1, for `EnumeratedExpectations`


class _PointExpectations(ABC):
    """The protocol of `elbotree.runtime.expectations.Expectations` by sums over points of x1."""

    def __init__(self, layer: Layer, p1: FeatureModel, encoder: Encoder) -> None:
        self.layer, self.p1, self.encoder = layer, p1, encoder

    @property
    def _rows(self) -> int:
        """Points in a chunk."""
        return max(CHUNK // max(self.layer.n1, self.layer.n2, self.p1.m), 1)

    def _at(self, x1: Array) -> tuple[Array, Array, Array]:
        """y, b, f at points of x1."""
        y = self.layer.preactivation(x1)
        b = self.layer.b(y)
        return y, b, y + self.layer.activation(b)[:, None] * self.layer.w

    @abstractmethod
    def _average(self, per_sample: Callable[[Array, Array, Array], Array]) -> Estimate:
        """E of per_sample(y, b, f), an array with a row a point."""

    def _value(self, g: Integrand, f: Array) -> Array:
        """g(c_j) at every sample."""
        q = self.encoder[g.feature]
        c = [f @ q.C[r] + q.bias[r] for r in g.uses]
        return np.broadcast_to(np.asarray(g.value(*c), dtype=np.float64), (len(f),))

    def _values(self, gs: Sequence[Integrand], f: Array) -> Array:
        """(samples, len(gs))."""
        return np.stack([self._value(g, f) for g in gs], axis=1) if gs else np.zeros((len(f), 0))

    def _directed(self, gs: Sequence[Integrand], f: Array, along: Array | None, centre: Array | None) -> Array:
        """g_i(c), times <f - centre, along[i]> when `along` is given; (samples, len(gs))."""
        values = self._values(gs, f)
        return values if along is None else values * (_centred(f, centre) @ np.asarray(along).T)

    def norm_y(self, centre: Array) -> Estimate:
        return self._average(lambda y, b, f: (_centred(y, centre) ** 2).sum(axis=1))

    def of_b(self, g: Callable[[Array], Array], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        def per_sample(y: Array, b: Array, f: Array) -> Array:
            values = np.broadcast_to(g(b), b.shape)
            return values if along is None else values * (_centred(y, centre) @ along)

        return self._average(per_sample)

    def of_c(
        self,
        gs: Sequence[Integrand],
        *,
        weights: Array,
        along: Array | None = None,
        centre: Array | None = None,
    ) -> Estimate:
        return self._average(lambda y, b, f: self._directed(gs, f, along, centre) @ np.asarray(weights))

    def mean_f(self) -> Estimate:
        """E f(x1), (n2,)."""
        return self._average(lambda y, b, f: f)

    def of_c_each(self, gs: Sequence[Integrand], *, weights: Array | None = None) -> Estimate:
        """E[g_i(c)] for each i, (len,); the weights matter to other engines."""
        return self._average(lambda y, b, f: self._values(gs, f))

    def moments_fs(self, gs: Sequence[Integrand], centre: Array | None = None) -> Estimate:
        """M = E[(f - centre) g_j(c_j)], (n2, len(gs))."""
        return self._average(lambda y, b, f: _centred(f, centre)[:, :, None] * self._values(gs, f)[:, None, :])

    def moments_ss(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array | None = None) -> Estimate:
        """G = E[g_j(c_j) h_k(c_k)], (len(gs), len(hs)); the weights matter to other engines."""
        return self._average(lambda y, b, f: self._values(gs, f)[:, :, None] * self._values(hs, f)[:, None, :])

    def of_cc(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        def per_sample(y: Array, b: Array, f: Array) -> Array:
            left = self._values(gs, f)
            right = left if hs is gs else self._values(hs, f)
            return np.asarray(((left @ weights) * right).sum(axis=1))

        return self._average(per_sample)

    def of_c_F(self, gs: Sequence[Integrand], *, along: Array | None = None, centre: Array | None = None) -> Estimate:
        return self._average(
            lambda y, b, f: self._directed(gs, f, along, centre)[:, :, None] * _with_one(f)[:, None, :]
        )

    def of_cc_F(self, gs: Sequence[Integrand], hs: Sequence[Integrand], *, weights: Array) -> Estimate:
        def per_sample(y: Array, b: Array, f: Array) -> Array:
            rows = self._values(gs, f) * (self._values(hs, f) @ np.asarray(weights).T)
            return np.asarray(rows[:, :, None] * _with_one(f)[:, None, :])

        return self._average(per_sample)


class SamplingExpectations(_PointExpectations):
    """Averages over N seeded samples.

    Arguments
        layer, p1, encoder  the law of f(x1) and the projections c_j = C_j f + bias_j
        samples             N >= 2
        seed                of the generator; every method sees the same samples

    Errors are one standard error of the per-sample sum, so that they are exceeded one time in three: terms that fluctuate
    together are not added up as if each were alone.
    """

    def __init__(self, layer: Layer, p1: FeatureModel, encoder: Encoder, samples: int = 100_000, seed: int = 0) -> None:
        check_count("samples", samples, 2, MOST_SAMPLES)
        super().__init__(layer, p1, encoder)
        check_seed(seed)
        self.samples, self.seed = int(samples), seed

    def _chunks(self) -> Iterator[tuple[Array, Array, Array]]:
        """(y, b, f) of the samples, chunk by chunk; the same ones at every call."""
        return iter([self._only]) if self.samples <= self._rows else self._drawn()

    @cached_property
    def _only(self) -> tuple[Array, Array, Array]:
        """The samples where they are one chunk: drawn once."""
        return next(self._drawn())

    def _drawn(self) -> Iterator[tuple[Array, Array, Array]]:
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.samples, self._rows):
            yield self._at(self.p1.sample(min(self._rows, self.samples - start), rng))

    def _average(self, per_sample: Callable[[Array, Array, Array], Array]) -> Estimate:
        """Mean and standard error of per_sample(y, b, f), an array with a row a sample; chunks merge by Chan's rule."""
        count, mean, spread = 0, np.zeros(()), np.zeros(())
        for y, b, f in self._chunks():
            values = per_sample(y, b, f)
            n, new = len(values), values.mean(axis=0)
            delta = new - mean
            spread = spread + ((values - new) ** 2).sum(axis=0) + delta**2 * (count * n / (count + n))
            mean = mean + delta * (n / (count + n))
            count += n
        return Estimate(np.asarray(mean), np.asarray(np.sqrt(spread / (count - 1) / count)))


class EnumeratedExpectations(_PointExpectations):
    """Exact sums over all values of x1 = B alpha + offset, for discrete priors and no noise.

    Without noise b = <y, u> + theta has no density, so that there is nothing to invert; but x1 has prod_i (atoms of prior
    i) values, and their probabilities are known. Errors are those of rounding.

    Raises UnsupportedError where x1 has noise, a continuous prior, or more than 262,144 values.
    """

    @staticmethod
    def covers(p1: FeatureModel) -> bool:
        """Whether x1 ~ p1 takes few enough values."""
        if p1.noise_std > 0 or any(prior.continuous_weight > 0 for prior in p1.priors):
            return False
        return math.prod(len(prior.atoms[0]) for prior in p1.priors) <= MOST_ATOMS

    def __init__(self, layer: Layer, p1: FeatureModel, encoder: Encoder) -> None:
        super().__init__(layer, p1, encoder)
        if not self.covers(p1):
            raise UnsupportedError(
                "x1 can be enumerated only where input.noise_std is 0, every prior is discrete, and it takes at most "
                f"{MOST_ATOMS:,} values; give the input a small noise_std"
            )
        self._atoms = [prior.atoms for prior in p1.priors]
        self.count = math.prod(len(points) for points, _ in self._atoms)

    def _average(self, per_sample: Callable[[Array, Array, Array], Array]) -> Estimate:
        total, size = np.zeros(()), np.zeros(())
        for start in range(0, self.count, self._rows):
            left = np.arange(start, min(start + self._rows, self.count))
            alpha, mass = np.empty((len(left), len(self._atoms))), np.ones(len(left))
            for i, (points, masses) in enumerate(self._atoms):
                left, which = np.divmod(left, len(points))
                alpha[:, i] = points[which]
                mass *= masses[which]
            values = per_sample(*self._at(alpha @ self.p1.B.T + self.p1.offset))
            total = total + np.tensordot(mass, values, axes=1)
            size = size + np.tensordot(mass, np.abs(values), axes=1)
        rounding = np.finfo(np.float64).eps * (8 + math.log2(max(self.count, 2)) + self.p1.m)
        return Estimate(np.asarray(total), np.asarray(rounding * size))


def _centred(rows: Array, centre: Array | None) -> Array:
    return rows if centre is None else rows - centre


def _with_one(f: Array) -> Array:
    """F = (f, 1)."""
    return np.concatenate([f, np.ones((len(f), 1))], axis=1)
