"""The profile loss of an encoder: L at the decoder and the priors that are best for it, with its exact gradient.

Given the encoder, the best decoder is closed-form. With s = E[z2 | x2], D = diag E V_j and centred moments
M = Cov(f, s), G = Cov(s, s):

    B2 = M (G + D)^-1,   mu2 = E f - B2 E s,   sigma2^2 = (tr Cov f - tr(B2^T M)) / n2,   P_{2,j} = E[Q'_j( . ; c_j)]

(the aggregate posterior; its moments for parametric priors). The loss at that decoder is a function of the encoder
whose gradient is the partial one (envelope theorem). The loss and the gradient are the generated kernels', evaluated by the
spectral engine; nothing here writes them again. What moves the encoder is in `training`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.expectations import Expectations
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
from elbotree.runtime.priors import Bernoulli, Discrete, Exponential, Normal, Prior
from elbotree.runtime.spectral import SpectralExpectations
from elbotree.runtime.values import require_divergence

__all__ = [
    "EncoderCoordinates",
    "ProfileObjective",
    "TrainingKernels",
    "best_model",
    "continuous_dimensions",
    "least_noise",
    "output_moments",
    "solved",
]

Array = NDArray[np.float64]

_LOGS = 50.0  # bound on the logs of a posterior's own parameters, where it is one point, or the tilted base, long since


class TrainingKernels(Protocol):
    """What training needs of a generated kernel module."""

    def mean(self, j: int, q: Posterior) -> Integrand: ...
    def variance(self, j: int, q: Posterior) -> tuple[Integrand, ...]: ...
    def kl(self, j: int, q: Posterior, prior: Prior) -> tuple[Integrand, ...]: ...
    def evaluate(self, law: Expectations, p: Problem) -> dict[str, Estimate]: ...
    def dL_dC(self, law: Expectations, p: Problem) -> list[Estimate]: ...
    def dL_domega(self, law: Expectations, p: Problem) -> list[dict[str, Estimate]]: ...


# ------------------------------------------------------------------ the law of x2 = f(x1)


def output_moments(layer: Layer, p1: FeatureModel, tol: float) -> tuple[Array, Array]:
    """Mean and covariance of x2 = f(x1)."""
    probe = SpectralExpectations(layer, p1, Encoder([]), tol=min(tol, 1e-3) * 1e-2)
    mean, second, _ = probe.output.f_moments
    return mean, second - np.outer(mean, mean)


def continuous_dimensions(layer: Layer, p1: FeatureModel) -> int:
    """The least dimension d of a set that carries mass of f(x1): the rank of J A [sigma1 I, columns of B1 whose
    priors have a density and no atoms].

    J is the slope of f in y: I + slope w u^T where psi is affine, the least rank over its pieces where it is linear between
    breaks, and I elsewhere. Where d < n2 the entropy of f(x1) is -infinite, and a model that can tell the sets apart has a
    loss that is unbounded below as sigma2 -> 0.
    """
    spread = np.array([len(p.atoms[0]) == 0 and p.variance() > 0 for p in p1.priors], dtype=bool)
    moving = layer.A @ np.hstack([p1.noise_std * np.eye(p1.n), p1.B[:, spread]])
    affine = SpectralExpectations(layer, p1, Encoder([]), tol=1e-3).output.affine
    identity = np.eye(layer.n2)
    if affine is not None:
        slopes = [affine[0]]
    else:
        pieces = layer.activation.pieces or ()
        slopes = [identity + slope * np.outer(layer.w, layer.u) for slope, _ in pieces] or [identity]
    sizes = [np.linalg.svd(J @ moving, compute_uv=False) for J in slopes]
    return min(int((s > 1e-10 * s.max(initial=0.0)).sum()) for s in sizes)


def least_noise(layer: Layer, p1: FeatureModel, covariance: Array) -> float:
    """The least sigma2 where none is given: a thousandth of x2's root mean square deviation, and where f(x1) has Gaussian
    noise of full rank, so that the loss is bounded below, a tenth of its least standard deviation if that is less."""
    floor = 1e-3 * float(np.sqrt(np.trace(covariance) / len(covariance)))
    if continuous_dimensions(layer, p1) < layer.n2:
        return floor
    noise = p1.noise_std * float(np.linalg.svd(layer.A, compute_uv=False)[-1]) if layer.n1 >= layer.n2 else 0.0
    return min(floor, 0.1 * noise) if noise > 0 else floor


# ------------------------------------------------------------------ the decoder, in closed form


def aggregate_prior(law: SpectralExpectations, kernels: TrainingKernels, j: int, q: Posterior) -> Prior:
    """P_{2,j} = E[Q'_j( . ; c_j)], or the member of its parametric family with the same moments (the minimiser of R1)."""
    if q.family == "tilted" and isinstance(q.base, Discrete | Bernoulli):
        return _aggregate_masses(law, j, q)
    mean = float(law.of_c_each([kernels.mean(j, q)]).value[0])
    if q.family == "bernoulli":
        return Bernoulli(min(max(mean, 1e-12), 1 - 1e-12))
    if q.family == "exponential":
        return Exponential(mean)
    s = kernels.mean(j, q)
    pieces = kernels.variance(j, q)
    spread = float(law.of_c_each(list(pieces)).value.sum())
    second = float(law.moments_ss([s], [s]).value[0, 0])
    return Normal(mean, float(np.sqrt(max(second - mean**2 + spread, 1e-300))))


def _aggregate_masses(law: SpectralExpectations, j: int, q: Posterior) -> Prior:
    """E of each mass of the tilted posterior, for a base of finitely many points."""
    assert q.base is not None
    points, masses = q.base.atoms
    base, precision = q.base, q.precision

    def mass(x: float, m: float) -> Callable[[Array], Array]:
        return lambda c: np.exp(np.log(m) + c * x - 0.5 * precision * x * x - base.log_partition(c, precision))

    gs = [Integrand(j, (0,), mass(x, m), None, f"Q[{j}]({x:g})") for x, m in zip(points, masses, strict=True)]
    found = np.maximum(law.of_c_each(gs).value, 1e-12)
    found = found / found.sum()
    return Bernoulli(float(found[1])) if isinstance(base, Bernoulli) else Discrete(tuple(points), tuple(found))


def best_model(
    law: SpectralExpectations, kernels: TrainingKernels, encoder: Encoder, noise_floor: float
) -> FeatureModel:
    """The decoder that minimises the loss for this encoder, sigma2 kept at or above `noise_floor`."""
    means = [kernels.mean(j, q) for j, q in enumerate(encoder)]
    first, second, _ = law.output.f_moments
    alike = np.ones((len(means), len(means)))
    with law.under_way(means, alike):
        rows = law.of_c_F(means).value
        M = (rows[:, :-1] - np.outer(rows[:, -1], first)).T
        s = rows[:, -1]
        spread = np.array([law.of_c_each(list(kernels.variance(j, q))).value.sum() for j, q in enumerate(encoder)])
        pairs = law.moments_ss(means, means, weights=alike).value
    G = pairs - np.outer(s, s) + np.diag(spread)
    if not (np.isfinite(G).all() and np.isfinite(M).all()):
        raise UnsupportedError(
            "the moments of the posterior means leave the range of float64 at these parameters of the encoder; make its rows "
            "or precisions smaller"
        )
    B = solved(G, M.T).T if len(G) else M
    covariance = second - np.outer(first, first)
    # |f - B s|^2 + spread at any B, so that the ridge costs nothing
    variance = float(np.trace(covariance) - 2 * np.trace(B.T @ M) + np.trace(B @ G @ B.T)) / len(first)
    priors = [aggregate_prior(law, kernels, j, q) for j, q in enumerate(encoder)]
    return FeatureModel(B, priors, max(float(np.sqrt(max(variance, 0.0))), noise_floor), first - B @ s)


def solved(G: Array, right: Array) -> Array:
    """G^-1 right with a ridge of 1e-12 of G's scale, more where G's own error has made it indefinite (a feature that a trial
    step has switched off, say). Any decoder gives a true loss, so that a ridge costs optimality and never honesty."""
    scale = max(1e-300, float(np.trace(G))) / len(G)
    for ridge in (1e-12, 1e-9, 1e-6, 1e-3):
        try:
            return np.asarray(cho_solve(cho_factor(G + ridge * scale * np.eye(len(G))), right))
        except LinAlgError:
            continue
    return np.asarray(np.linalg.pinv(G, rcond=1e-3, hermitian=True) @ right)


# ------------------------------------------------------------------ as a function of one flat vector


class EncoderCoordinates:
    """The encoder as one flat vector: rows of C in whitened coordinates of x2, biases at E x2, logs of the parameters.

    A tilted posterior base(beta) exp(c beta - lambda beta^2 / 2) is written about the middle m of its base's points (its mean
    where the base has a density): as base(beta) exp((c - lambda m) beta - lambda ((beta - m)^2 - m^2) / 2), so that the bias is
    that of c - lambda m, and log lambda changes the width alone. On two points lambda then changes nothing and is left out.
    Logs beyond 50 either way are taken as 50: there the posterior is one point, or what lambda = 0 makes of the base.
    """

    def __init__(self, encoder: Encoder, mean: Array, covariance: Array) -> None:
        self.template = list(encoder)
        self.mean = mean
        values, vectors = np.linalg.eigh(covariance)
        root = np.sqrt(np.maximum(values, 1e-8 * values.max())) if values.max() > 0 else np.ones(len(values))
        self.root, self.inverse = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
        self.middles = [_middle(q) for q in self.template]
        self.moving = [_moving(q) for q in self.template]

    def pack(self, encoder: Encoder) -> Array:
        parts: list[Array] = []
        for q, middle, names in zip(encoder, self.middles, self.moving, strict=True):
            bias = q.bias + q.C @ self.mean - q.parameters.get("precision", 0.0) * middle
            own = np.maximum([q.parameters[name] for name in names], np.exp(-_LOGS))
            parts += [(q.C @ self.root).ravel(), bias, np.log(own)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def split(self, x: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Of each feature its whitened rows (t, n2), biases at E x2 (t,) and logs of its own parameters: views of x."""
        out, at = [], 0
        for q, names in zip(self.template, self.moving, strict=True):
            t, n = q.C.shape
            sizes = (t * n, t, len(names))
            row, about, logs = np.split(x[at : at + sum(sizes)], np.cumsum(sizes)[:2])
            out.append((row.reshape(t, n), about, logs))
            at += sum(sizes)
        return out

    def unpack(self, x: Array) -> Encoder:
        out = []
        parts = zip(self.template, self.middles, self.moving, self.split(x), strict=True)
        for q, middle, names, (row, about, logs) in parts:
            C = row @ self.inverse
            own = np.exp(np.clip(logs, -_LOGS, _LOGS))
            parameters = {**q.parameters, **dict(zip(names, map(float, own), strict=True))}
            bias = about - C @ self.mean + parameters.get("precision", 0.0) * middle
            out.append(Posterior(q.family, C, bias, parameters=parameters, base=q.base))
        return Encoder(out)

    def pull_back(
        self, encoder: Encoder, C: Sequence[Array], bias: Sequence[Array], own: Sequence[dict[str, float]]
    ) -> Array:
        """The gradient in the flat vector from the gradients in C, bias and the posteriors' own parameters."""
        parts: list[Array] = []
        for q, middle, names, dC, db, dp in zip(encoder, self.middles, self.moving, C, bias, own, strict=True):
            inner = (dC - np.outer(db, self.mean)) @ self.inverse
            slopes = {**dp, **({"precision": dp["precision"] + middle * float(db[0])} if q.family == "tilted" else {})}
            parts += [inner.ravel(), db, np.array([slopes[name] * q.parameters[name] for name in names])]
        return np.concatenate(parts) if parts else np.zeros(0)


def _middle(q: Posterior) -> float:
    """What a tilted posterior is written about; 0 for the other families."""
    if q.family != "tilted" or q.base is None:
        return 0.0
    if isinstance(q.base, Discrete | Bernoulli):
        points = q.base.atoms[0]
        return 0.5 * float(np.min(points) + np.max(points))
    return q.base.mean()


def _moving(q: Posterior) -> list[str]:
    """The names of the parameters that are coordinates."""
    two_points = q.family == "tilted" and isinstance(q.base, Discrete | Bernoulli) and len(q.base.atoms[0]) <= 2
    return [name for name in q.parameters if not (two_points and name == "precision")]


class ProfileObjective:
    """The loss of the best decoder and priors for an encoder, as a function of a flat vector, with its gradient.

    The vector x holds, feature by feature, the rows of C in whitened coordinates of x2, the biases at E x2, and the logs of
    the posterior's own parameters. x0 is the encoder that it was made with; `minimize(o.fun_and_jac, o.x0, jac=True)`
    trains. Remembers the last point.

    Raises UnsupportedError at a point where the loss or its gradient is not finite.
    """

    def __init__(
        self,
        layer: Layer,
        p1: FeatureModel,
        kernels: TrainingKernels,
        coordinates: EncoderCoordinates,
        tol: float,
        floor: float,
        x0: Array | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.layer, self.p1, self.kernels, self.coordinates = layer, p1, kernels, coordinates
        self.tol, self.floor, self.executor = tol, floor, executor
        self.x0 = coordinates.pack(Encoder(coordinates.template)) if x0 is None else x0
        self._last: tuple[bytes, float, Array] | None = None

    @staticmethod
    def of(
        layer: Layer,
        p1: FeatureModel,
        encoder: Encoder,
        kernels: TrainingKernels,
        tol: float = 1e-6,
        noise_floor: float | None = None,
    ) -> ProfileObjective:
        """The objective of an encoder; noise_floor as in `train`."""
        mean, covariance = output_moments(layer, p1, tol)
        floor = least_noise(layer, p1, covariance) if noise_floor is None else noise_floor
        return ProfileObjective(layer, p1, kernels, EncoderCoordinates(encoder, mean, covariance), tol, floor)

    def problem(self, x: Array) -> Problem:
        """The encoder at x with its best decoder and priors."""
        return self._problem(self.coordinates.unpack(np.asarray(x, dtype=np.float64)))[1]

    def _problem(self, encoder: Encoder) -> tuple[SpectralExpectations, Problem]:
        law = SpectralExpectations(
            self.layer,
            self.p1,
            encoder,
            tol=self.tol * 0.3,
            gradient_tol=10 * self.tol,
            executor=self.executor,
            often=True,
        )
        return law, Problem(self.layer, self.p1, best_model(law, self.kernels, encoder, self.floor), encoder)

    def evaluate(self, x: Array) -> tuple[Problem, dict[str, Estimate], Array]:
        """The problem at x, the terms of its loss with their errors, and the gradient."""
        law, problem = self._problem(self.coordinates.unpack(np.asarray(x, dtype=np.float64)))
        terms = self.kernels.evaluate(law, problem)
        require_divergence(float(terms["R1"].value), float(terms["R1"].error))
        if len(problem.encoder) == 0:  # nothing to move
            return problem, terms, np.zeros(0)
        rows = [e.value for e in self.kernels.dL_dC(law, problem)]  # (t, n2 + 1) each, the last column for the bias
        own = [{name: float(e.value) for name, e in named.items()} for named in self.kernels.dL_domega(law, problem)]
        gradient = self.coordinates.pull_back(problem.encoder, [r[:, :-1] for r in rows], [r[:, -1] for r in rows], own)
        if not np.isfinite(terms["L"].value) or not np.all(np.isfinite(gradient)):
            raise UnsupportedError(
                "the loss or its gradient is not finite at a trial encoder; give a smaller `tol` or a start"
            )
        return problem, terms, gradient

    def fun_and_jac(self, x: Array) -> tuple[float, Array]:
        """The loss in nats and its gradient."""
        x = np.asarray(x, dtype=np.float64)
        if x.shape != self.x0.shape:
            raise InputError(f"`x` has shape {x.shape}; it must be {self.x0.shape}, as `x0` is")
        key = x.tobytes()
        if self._last is None or self._last[0] != key:
            _, terms, gradient = self.evaluate(x)
            self._last = (key, float(terms["L"].value), gradient)
        return self._last[1], self._last[2].copy()

    def fun(self, x: Array) -> float:
        """The loss in nats."""
        return self.fun_and_jac(x)[0]

    def jac(self, x: Array) -> Array:
        """The gradient."""
        return self.fun_and_jac(x)[1]
