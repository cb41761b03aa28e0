"""x1 without noise and with discrete priors takes finitely many values: their sums against a plain loop over them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import xlogy

import elbotree as et
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.sampling import EnumeratedExpectations


def problem(psi: str = "relu") -> et.Problem:
    rng = np.random.default_rng(0)
    n = 3
    B = np.eye(n) + 0.2 * rng.standard_normal((n, n))
    prior = et.Bernoulli(0.3)
    return et.Problem(
        et.Layer(np.eye(n), rng.standard_normal(n), rng.standard_normal(n), psi, threshold=0.1),
        et.FeatureModel(B, [prior, et.Discrete((-1.0, 0.0, 2.0), (0.2, 0.5, 0.3)), prior], 0.0),
        et.FeatureModel(B, [prior] * n, 0.4),
        et.Encoder([et.Posterior("bernoulli", 3 * row[None, :], [-1.0]) for row in np.linalg.inv(B)]),
    )


def plain_loss(p: et.Problem) -> float:
    """E over x1 of KL(Q || P2) + E_Q -log p2(f | beta), one value of x1 at a time."""
    total = 0.0
    atoms = [zip(*prior.atoms, strict=True) for prior in p.input.priors]
    for choice in itertools.product(*atoms):
        mass = math.prod(float(m) for _, m in choice)
        f = p.layer((p.input.B @ np.array([x for x, _ in choice]))[None])[0]
        sigma2 = p.model.noise_std
        s = np.array([1 / (1 + math.exp(-float(q.C[0] @ f + q.bias[0]))) for q in p.encoder])
        kl = float(np.sum(xlogy(s, s / 0.3) + xlogy(1 - s, (1 - s) / 0.7)))
        left = f - p.model.B @ s
        square = left @ left + (s * (1 - s)) @ np.sum(p.model.B**2, axis=0)
        total += mass * (kl + len(f) / 2 * math.log(2 * math.pi * sigma2**2) + square / (2 * sigma2**2))
    return total


@pytest.mark.parametrize("psi", ["relu", "heaviside", "tanh", "b**3"])
def test_equals_a_plain_loop(psi: str) -> None:
    p = problem(psi)
    assert EnumeratedExpectations.covers(p.input)
    loss = et.evaluate(p, tol=1e-10)["L"]
    exact = plain_loss(p)
    assert abs(loss.value - exact) <= loss.error + 1e-13 * abs(exact)
    assert loss.error < 1e-13 * max(1.0, abs(exact))


def test_the_gradient_comes_from_the_same_sums() -> None:
    p = problem()
    gradient = et.gradient(p, tol=1e-9)
    step = 1e-5

    def moved(by: float) -> float:
        B = p.model.B.copy()
        B[1, 2] += by
        return plain_loss(
            et.Problem(p.layer, p.input, et.FeatureModel(B, p.model.priors, p.model.noise_std), p.encoder)
        )

    assert gradient["B"].value[1, 2] == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-7)


def test_noise_goes_to_the_limit() -> None:
    """The spectral engine with ever less noise comes to what is enumerated without any."""
    p = problem("tanh")
    exact = et.evaluate(p)["L"].value
    gaps = []
    for noise in (0.1, 0.05):
        x1 = et.FeatureModel(p.input.B, p.input.priors, noise)
        gaps.append(abs(et.evaluate(et.Problem(p.layer, x1, p.model, p.encoder), tol=1e-7)["L"].value - exact))
    assert gaps[1] < 0.3 * gaps[0]  # the gap falls with the square of the noise


@pytest.mark.parametrize(
    "x1",
    [
        et.FeatureModel(np.eye(3), [et.Bernoulli(0.3)] * 3, 0.1),
        et.FeatureModel(np.eye(3), [et.Bernoulli(0.3), et.Normal(0.0, 1.0), et.Bernoulli(0.3)], 0.0),
        et.FeatureModel(np.ones((3, 30)), [et.Bernoulli(0.3)] * 30, 0.0),
    ],
)
def test_what_cannot_be_enumerated_is_refused(x1: et.FeatureModel) -> None:
    p = problem()
    assert not EnumeratedExpectations.covers(x1)
    with pytest.raises(UnsupportedError, match="enumerated only where"):
        EnumeratedExpectations(p.layer, x1, p.encoder)
