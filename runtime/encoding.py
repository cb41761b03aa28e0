"""The encoder at given points x2: posterior means, variances and draws, and the ELBO of each point. The functions of c are the
generated kernels'; here they are evaluated at c_j = C_j x2 + bias_j instead of in expectation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.arguments import real_array
from elbotree.runtime.errors import InputError
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Posterior, Problem
from elbotree.runtime.priors import Prior

Array = NDArray[np.float64]


class EncodingKernels(Protocol):
    """What encoding needs of a generated kernel module."""

    def mean(self, j: int, q: Posterior) -> Integrand: ...
    def variance(self, j: int, q: Posterior) -> tuple[Integrand, ...]: ...
    def kl(self, j: int, q: Posterior, prior: Prior) -> tuple[Integrand, ...]: ...
    def sampler(self, q: Posterior) -> Callable[..., Array]: ...


def encode(kernels: EncodingKernels, problem: Problem, x2: ArrayLike) -> tuple[Array, Array]:
    """s_j(c_j) and V_j(c_j) at rows x2, (N, n2): two arrays (N, m2). Raises InputError for another shape."""
    x = _rows(x2, problem.layer.n2)
    s, V = np.zeros((len(x), len(problem.encoder))), np.zeros((len(x), len(problem.encoder)))
    for j, q in enumerate(problem.encoder):
        s[:, j] = _at([kernels.mean(j, q)], q, x)
        V[:, j] = _at(kernels.variance(j, q), q, x)
    return s, V


def draw(kernels: EncodingKernels, problem: Problem, x2: ArrayLike, rng: np.random.Generator) -> Array:
    """One draw of z2 ~ Q2( . | x2) for each row of x2, (N, n2) -> (N, m2). Raises InputError for another shape."""
    x = _rows(x2, problem.layer.n2)
    z = np.zeros((len(x), len(problem.encoder)))
    for j, q in enumerate(problem.encoder):
        u = rng.random(len(x)) + 2.0**-54  # never 0, where a law on the whole line has no point
        z[:, j] = kernels.sampler(q)(u, *(x @ q.C[r] + q.bias[r] for r in range(q.t)))
    return z


def bound(kernels: EncodingKernels, problem: Problem, x2: ArrayLike) -> Array:
    """The ELBO of rows x2, (N, n2) -> (N,): minus the terms R1, R2, R3 of one point each."""
    x = _rows(x2, problem.layer.n2)
    s, V = encode(kernels, problem, x)
    model = problem.model
    variance = model.noise_std**2
    divergence = np.zeros(len(x))
    for j, q in enumerate(problem.encoder):
        divergence += _at(kernels.kl(j, q, model.priors[j]), q, x)
    spread = V @ (model.B**2).sum(axis=0)
    missed = ((x - model.offset - s @ model.B.T) ** 2).sum(axis=1)
    return np.asarray(-(divergence + 0.5 * model.n * np.log(2 * np.pi * variance) + (missed + spread) / (2 * variance)))


def _rows(x2: ArrayLike, n2: int) -> Array:
    x = real_array(x2, "x2")
    if x.ndim != 2 or x.shape[1] != n2:
        raise InputError(f"`x2` has shape {x.shape}; the encoder takes rows of n2 = {n2}, shape (N, {n2})")
    return x


def _at(pieces: Iterable[Integrand], q: Posterior, x: Array) -> Array:
    """The sum of the pieces at c = C x + bias, (N,)."""
    total = np.zeros(len(x))
    for g in pieces:
        total += g.value(*(x @ q.C[r] + q.bias[r] for r in g.uses))
    return total
