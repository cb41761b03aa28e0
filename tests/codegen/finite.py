"""A tiny engine and a tiny oracle for testing kernels: x1 lives on finitely many points, so every expectation is a
finite sum. The engine serves the kernels' protocol; the oracle computes the ELBO from its definition,
E[log Q - log P - log N], by summing over x1 and over quadrature nodes of every latent coordinate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from elbotree.runtime.estimates import Estimate
from elbotree.runtime.integrands import Integrand


class FiniteExpectations:
    """The `Expectations` protocol where x1 takes the rows of `x` with the given weights. Errors are reported as 0."""

    def __init__(self, layer: Any, encoder: Any, x: np.ndarray, weights: np.ndarray) -> None:
        self.weights = weights
        self.y = x @ layer.A.T + layer.offset
        self.b = self.y @ layer.u + layer.threshold
        self.f = layer(x)
        self.c = [self.f @ q.C.T + q.bias for q in encoder]
        self.calls: list[str] = []

    def _g(self, g: Integrand) -> np.ndarray:
        arguments = [self.c[g.feature][:, r] for r in g.uses]
        return np.broadcast_to(g.value(*arguments), self.weights.shape)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        return np.tensordot(self.weights, values, axes=1)

    def _rows(self, rows: list[np.ndarray], *shape: int) -> Estimate:
        return Estimate.of(np.array(rows).reshape(len(rows), *shape))

    @property
    def _F(self) -> np.ndarray:
        return np.column_stack([self.f, np.ones(len(self.f))])

    def norm_y(self, centre: np.ndarray) -> Estimate:
        self.calls.append("norm_y")
        return Estimate.of(self._mean(((self.y - centre) ** 2).sum(axis=1)))

    def of_b(self, g: Any, *, along: Any = None, centre: Any = 0.0) -> Estimate:
        self.calls.append("of_b")
        linear = 1.0 if along is None else (self.y - centre) @ along
        return Estimate.of(self._mean(linear * g(self.b)))

    def of_c(self, gs: Any, *, weights: Any, along: Any = None, centre: Any = 0.0) -> Estimate:
        self.calls.append("of_c")
        assert len(weights) == len(gs)
        assert along is None or along.shape == (len(gs), self.f.shape[1])
        total = 0.0
        for i, g in enumerate(gs):
            linear = 1.0 if along is None else (self.f - centre) @ along[i]
            total += weights[i] * self._mean(linear * self._g(g))
        return Estimate.of(total)

    def of_c_each(self, gs: Any) -> Estimate:
        self.calls.append("of_c_each")
        return self._rows([self._mean(self._g(g)) for g in gs])

    def of_cc(self, gs: Any, hs: Any, *, weights: Any) -> Estimate:
        self.calls.append("of_cc")
        assert weights.shape == (len(gs), len(hs))
        moments = self.moments_ss(gs, hs).value
        return Estimate.of((weights * moments).sum())

    def of_c_F(self, gs: Any, *, along: Any = None, centre: Any = 0.0) -> Estimate:
        self.calls.append("of_c_F")
        linear = [1.0 if along is None else (self.f - centre) @ along[i] for i in range(len(gs))]
        rows = [self._mean((linear[i] * self._g(g))[:, None] * self._F) for i, g in enumerate(gs)]
        return self._rows(rows, self._F.shape[1])

    def of_cc_F(self, gs: Any, hs: Any, *, weights: Any) -> Estimate:
        self.calls.append("of_cc_F")
        assert weights.shape == (len(gs), len(hs))
        paired = [
            sum((weights[i, k] * self._g(h) for k, h in enumerate(hs)), np.zeros(len(self.f))) for i in range(len(gs))
        ]
        rows = [self._mean((self._g(g) * paired[i])[:, None] * self._F) for i, g in enumerate(gs)]
        return self._rows(rows, self._F.shape[1])

    def moments_fs(self, gs: Any, centre: Any = 0.0) -> Estimate:
        self.calls.append("moments_fs")
        columns = [self._mean(self._g(g)[:, None] * (self.f - centre)) for g in gs]
        return Estimate.of(np.array(columns).reshape(len(gs), self.f.shape[1]).T)

    def moments_ss(self, gs: Any, hs: Any) -> Estimate:
        self.calls.append("moments_ss")
        values = [[self._mean(self._g(g) * self._g(h)) for h in hs] for g in gs]
        return Estimate.of(np.array(values).reshape(len(gs), len(hs)))

    def mean_f(self) -> Estimate:
        self.calls.append("mean_f")
        return Estimate.of(self._mean(self.f))


# ------------------------------------------------------------------------------------------------------------- oracle


@dataclass
class Feature:
    """One latent coordinate of the oracle: its family, the family's numbers, and the prior's, as plain values."""

    family: str
    C: np.ndarray
    bias: np.ndarray
    own: dict[str, float]
    prior_kind: str
    prior: dict[str, Any]
    base: tuple[np.ndarray, np.ndarray] | None = None

    def nodes(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(beta, weight, log q): sum of weight * g(beta) is E_Q[g] up to degree 5 (the loss has degree 2)."""
        if self.family == "bernoulli":
            p = 1 / (1 + np.exp(-c[0]))
            return np.array([0.0, 1.0]), np.array([1 - p, p]), np.log([1 - p, p])
        if self.family == "tilted":
            points, masses = self.base
            log_q = np.log(masses) + c[0] * points - self.own["precision"] * points**2 / 2
            log_q -= np.log(np.exp(log_q).sum())
            return points, np.exp(log_q), log_q
        if self.family == "exponential":
            scale = np.log1p(np.exp(c[0]))
            x, w = np.polynomial.laguerre.laggauss(3)
            return scale * x, w, -x - np.log(scale)
        std = self.own["std"] if self.family == "normal" else np.log1p(np.exp(c[1]))
        x, w = np.polynomial.hermite_e.hermegauss(3)
        return c[0] + std * x, w / w.sum(), -(x**2) / 2 - np.log(std) - np.log(2 * np.pi) / 2

    def log_prior(self, beta: np.ndarray) -> np.ndarray:
        if self.prior_kind == "bernoulli":
            return np.where(beta > 0.5, np.log(self.prior["p"]), np.log1p(-self.prior["p"]))
        if self.prior_kind == "discrete":
            return np.log(np.asarray(self.prior["masses"], dtype=float))
        if self.prior_kind == "exponential":
            return -beta / self.prior["scale"] - np.log(self.prior["scale"])
        mean, std = self.prior["mean"], self.prior["std"]
        return -(((beta - mean) / std) ** 2) / 2 - np.log(std) - np.log(2 * np.pi) / 2


def elbo(
    features: list[Feature], B: np.ndarray, offset: np.ndarray, noise_std: float, f: np.ndarray, weights: np.ndarray
):
    """L = sum over x1 and z2 of P1 Q2 [log Q2 - log P2 - log N(f; B z2 + offset, noise_std^2 I)]."""
    total = 0.0
    for point, weight in zip(f, weights, strict=True):
        laws = [feature.nodes(feature.C @ point + feature.bias) for feature in features]
        logs = [law[2] - feature.log_prior(law[0]) for law, feature in zip(laws, features, strict=True)]
        for places in itertools.product(*(range(len(law[0])) for law in laws)):
            z = np.array([law[0][n] for law, n in zip(laws, places, strict=True)])
            mass = np.prod([law[1][n] for law, n in zip(laws, places, strict=True)])
            ratio = sum(log[n] for log, n in zip(logs, places, strict=True))
            rest = point - B @ z - offset
            log_n = -len(point) / 2 * np.log(2 * np.pi * noise_std**2) - rest @ rest / (2 * noise_std**2)
            total += weight * mass * (ratio - log_n)
    return total
