"""The law of read-outs S = shift + D alpha + N(0, noise) of a feature model, alpha the independent sources.

Normal sources, and the narrowest normal of a source that is a mixture of normals, are part of the noise. This is what
contours of `tails` (one read-out) and `boxes` (several) integrate over; nothing is integrated here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.models import FeatureModel
from elbotree.runtime.priors import Prior
from elbotree.runtime.tilted_sources import Sources, TiltedSources, flatten

Array = NDArray[np.float64]
Flat = list[tuple[float, str, tuple[float, ...]]]


@dataclass(frozen=True)
class Inputs:
    """The sources of a feature model x = offset + B alpha + N(0, noise_std^2 I + N N^T), N the columns of normal
    sources.

    offset (n,), loadings (n, m) of the kept sources, normals (n, k) with their standard deviations multiplied in.
    """

    offset: Array
    loadings: Array
    normals: Array
    noise_std: float
    sources: Sources
    priors: tuple[Prior, ...]

    @staticmethod
    def of(model: FeatureModel) -> Inputs:
        offset = model.offset.astype(np.float64)
        keep: list[int] = []
        flats: list[Flat] = []
        normals: list[Array] = []
        for i, prior in enumerate(model.priors):
            flat, variance = _without_noise(flatten(prior))
            column = model.B[:, i]
            if variance > 0:
                normals.append(np.sqrt(variance) * column)
            if len(flat) == 1 and flat[0][1] == "point":
                offset = offset + flat[0][2][0] * column
            elif np.any(column != 0):
                keep.append(i)
                flats.append(flat)
        stacked = np.array(normals).T if normals else np.zeros((model.n, 0))
        priors = tuple(model.priors[i] for i in keep)
        return Inputs(offset, model.B[:, keep], stacked, model.noise_std, Sources.of(flats), priors)

    def read(self, rows: NDArray[np.floating[Any]], constants: NDArray[np.floating[Any]]) -> SourceSum:
        """The law of rows @ x + constants, rows (d, n), constants (d,), either of any precision.

        Shift and loadings are summed in extended precision, where the platform has it, and remember by how much they were
        rounded: a read-out may cancel most of a large offset, and then the rounding is what a threshold feels.
        """
        exact = rows.astype(np.longdouble)
        shift = exact @ self.offset.astype(np.longdouble) + constants
        size = np.abs(rows) @ np.abs(self.offset) + np.abs(constants)
        loadings = exact @ self.loadings.astype(np.longdouble)
        sizes = np.abs(rows) @ np.abs(self.loadings)
        plain = np.asarray(rows, dtype=np.float64)
        normals = plain @ self.normals
        noise = self.noise_std**2 * (plain @ plain.T) + normals @ normals.T
        return SourceSum(
            np.asarray(shift, dtype=np.float64),
            np.asarray(loadings, dtype=np.float64),
            noise,
            self.sources,
            self.priors,
            _rounded_by(shift, size),
            _rounded_by(loadings, sizes),
        )

    def noise_times(self, row: Array) -> Array:
        """(noise_std^2 I + N N^T) row, the gradient of half the noise's variance along `row`."""
        return np.asarray(self.noise_std**2 * row + self.normals @ (row @ self.normals))


def _rounded_by(exact: NDArray[np.floating[Any]], size: NDArray[np.floating[Any]]) -> Array:
    """By how much float64 misses sums of terms of this size."""
    own = 4 * np.finfo(np.longdouble).eps * size
    return np.asarray(np.abs(exact - np.asarray(exact, dtype=np.float64)) + own, dtype=np.float64)


def _without_noise(flat: Flat) -> tuple[Flat, float]:
    """A mixture of normals as a narrower mixture plus independent noise of the least variance."""
    if any(kind != "normal" for _, kind, _ in flat):
        return flat, 0.0
    least = min(values[1] for _, _, values in flat)
    rest = [(w, "normal", (m, v - least)) if v > least else (w, "point", (m,)) for w, _, (m, v) in flat]
    return sorted(rest, key=lambda item: item[1] != "point"), least


@dataclass(frozen=True)
class SourceSum:
    """The law of S = shift + loadings alpha + N(0, noise) in R^d; shift (d,), loadings (d, m), noise (d, d); and by how much
    shift and loadings may be rounded."""

    shift: Array
    loadings: Array
    noise: Array
    sources: Sources
    priors: tuple[Prior, ...]
    shift_error: Array
    loading_error: Array

    @property
    def dimension(self) -> int:
        return len(self.shift)

    def mean(self) -> Array:
        """E S, (d,)."""
        return np.asarray(self.shift + self.loadings @ np.array([p.mean() for p in self.priors]).reshape(-1))

    def covariance(self) -> Array:
        """Cov S, (d, d)."""
        variances = np.array([p.variance() for p in self.priors]).reshape(-1)
        return np.asarray(self.noise + (self.loadings * variances) @ self.loadings.T)

    def moments(self, top: int) -> list[float]:
        """E S^k for k = 0..top <= 4 of a single read-out, from its cumulants (these add)."""
        cumulants = [float(self.shift[0]), float(self.noise[0, 0]), 0.0, 0.0]
        for prior, d in zip(self.priors, self.loadings[0], strict=True):
            for k in range(1, top + 1):
                cumulants[k - 1] += float(prior.log_partition(0.0, 0.0, k)) * float(d) ** k
        raw = [1.0]
        for k in range(1, top + 1):  # m_k = sum_j C(k - 1, j - 1) c_j m_{k - j}
            binomials = [factorial(k - 1) // (factorial(j - 1) * factorial(k - j)) for j in range(1, k + 1)]
            raw.append(sum(b * cumulants[j] * raw[k - 1 - j] for j, b in enumerate(binomials)))
        return raw

    def mapped(self, T: Array, shift: Array) -> SourceSum:
        """The law of T S + shift."""
        size = np.abs(T)
        return SourceSum(
            T @ self.shift + shift,
            T @ self.loadings,
            T @ self.noise @ T.T,
            self.sources,
            self.priors,
            size @ self.shift_error,
            size @ self.loading_error,
        )

    def blur(self, tilted: TiltedSources) -> Array:
        """By how much rounding of shift and loadings may move S under a tilted law, (d,)."""
        return np.asarray(self.shift_error + self.loading_error @ tilted.reach())

    def log_mgf(self, c: Array) -> Array:
        """log E e^{<c, S - shift>} for c (d, G), (G,); +inf outside the domain."""
        s = np.tensordot(self.loadings, c, axes=(0, 0))
        low, high = self.sources.domain
        inside = ((s > low[:, None]) & (s < high[:, None])).all(axis=0)
        kappa = self.sources.log_mgf(np.where(inside, s, 0.0)).sum(axis=0)
        return np.where(inside, kappa + 0.5 * np.einsum("dg,de,eg->g", c, self.noise, c), np.inf)

    def cumulants(self, c: Array) -> tuple[float, Array, Array]:
        """The same at one c (d,), with its gradient (d,) and Hessian (d, d); inf where c is outside the domain."""
        s = c @ self.loadings
        low, high = self.sources.domain
        if not ((s > low) & (s < high)).all():
            return np.inf, np.zeros(len(c)), np.eye(len(c))
        k0, k1, k2, _ = self.sources.cumulants(s)
        gradient = self.noise @ c
        value = float(k0.sum() + 0.5 * c @ gradient)
        return value, gradient + self.loadings @ k1, self.noise + (self.loadings * k2) @ self.loadings.T
