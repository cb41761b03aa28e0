"""What L may not fall below: entropies and cross-entropies against integrals and sums written here."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

import elbotree as et
from elbotree.runtime.bounds import Bound, bound_below


def rotation(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def problem(layer: et.Layer, p1: et.FeatureModel, model: et.FeatureModel | None = None) -> et.Problem:
    """The encoder plays no part."""
    given = model or et.FeatureModel(np.eye(layer.n2), [et.Bernoulli(0.3)] * layer.n2, 0.4)
    row = np.ones((1, layer.n2))
    encoder = et.Encoder(
        [
            et.Posterior("normal", row, [0.0], std=1.0)
            if isinstance(p, et.Normal)
            else et.Posterior("bernoulli", row, [0.0])
            for p in given.priors
        ]
    )
    return et.Problem(layer, p1, given, encoder)


def line(p: float, std: float) -> float:
    """The entropy of a Bernoulli(p) plus N(0, std^2)."""

    def integrand(x: float) -> float:
        f = (1 - p) * norm.pdf(x, 0, std) + p * norm.pdf(x, 1, std)
        return float(-f * np.log(f)) if f > 0 else 0.0

    return float(quad(integrand, -10 * std, 1 + 10 * std, points=[0.0, 0.5, 1.0], limit=400, epsabs=1e-11)[0])


@pytest.mark.parametrize("w", [0.7, -0.4])
def test_a_bent_line_against_its_density(w: float) -> None:
    """x = y + w relu(y - 0.2): the density of x by hand, its entropy and cross-entropy by adaptive quadrature."""
    layer = et.Layer([[1.0]], [w], [1.0], "relu", threshold=-0.2)
    p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.35)], 0.3)
    model = et.FeatureModel([[1.2]], [et.Bernoulli(0.3)], 0.4, [0.1])

    def density(x: float) -> float:
        y, slope = (x, 1.0) if x < 0.2 else ((x + 0.2 * w) / (1 + w), 1 + w)
        return float(0.65 * norm.pdf(y, 0, 0.3) + 0.35 * norm.pdf(y, 1, 0.3)) / slope

    def theirs(x: float) -> float:
        return float(0.7 * norm.pdf(x, 0.1, 0.4) + 0.3 * norm.pdf(x, 1.3, 0.4))

    both = [
        quad(lambda x, of=of: -density(x) * np.log(of(x)), -2.5, 6.0, points=[0.0, 0.2, 1.0], limit=400, epsabs=1e-10)[
            0
        ]
        for of in (theirs, density)
    ]
    found = bound_below(problem(layer, p1, model))
    assert [found.cross_entropy, found.entropy] == pytest.approx(both, abs=1e-8)
    assert found.cross_entropy_error < 1e-6
    assert found.entropy_error < 1e-6
    assert found.cross_entropy > found.entropy


@pytest.mark.parametrize(("n", "psi"), [(3, "relu"), (5, "zero")])
def test_orthonormal_features_in_any_dimension(n: int, psi: str) -> None:
    """n entropies of one number each, and where relu stretches one side of a plane, log(1 + <w, u>) on the mass there."""
    rng = np.random.default_rng(n)
    w, u = rng.standard_normal(n) / 2, rng.standard_normal(n) / 2
    w *= np.sign(w @ u)
    layer = et.Layer(3 * rotation(n, 2), w, u, psi, offset=rng.standard_normal(n), threshold=0.1)
    p, std = 0.2, 0.15
    p1 = et.FeatureModel(rotation(n, 1), [et.Bernoulli(p)] * n, std)
    expected = n * (line(p, std) + np.log(3))
    if psi == "relu":
        row = layer.A.T @ u
        states = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        masses = np.prod(np.where(states == 1, p, 1 - p), axis=1)
        means = states @ (row @ p1.B) + u @ layer.offset + 0.1
        expected += np.log(1 + w @ u) * masses @ norm.cdf(means / (std * np.linalg.norm(row)))
    found = bound_below(problem(layer, p1))
    assert found.entropy == pytest.approx(expected, abs=1e-7)
    assert found.cross_entropy is None
    assert f"x2 has {n} dimensions" in found.note


def test_a_plane_against_samples() -> None:
    """A spike and slab and a normal feature at an angle, through relu: the mean of -log density over samples."""
    layer = et.Layer([[1.0, 0.2], [0.0, 0.9]], [0.5, -0.3], [0.4, 0.8], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0, 0.4], [0.1, 0.8]], [et.SpikeSlab(0.3, et.Normal(0.5, 0.7)), et.Normal(0.2, 0.6)], 0.3)
    model = et.FeatureModel([[0.9, 0.3], [0.2, 1.0]], [et.Bernoulli(0.4), et.Normal(0.1, 0.8)], 0.5, [0.1, 0.0])
    rng = np.random.default_rng(0)
    y = p1.sample(200_000, rng) @ layer.A.T
    b = y @ layer.u + 0.1
    x = y + np.maximum(b, 0)[:, None] * layer.w

    def normal(points: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
        off = points - mean
        quadratic = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off)
        return np.asarray(-0.5 * quadratic - 0.5 * np.log(np.linalg.det(2 * np.pi * cov)))

    R = layer.A @ p1.B
    noise = 0.09 * layer.A @ layer.A.T + 0.36 * np.outer(R[:, 1], R[:, 1])
    spike = np.log(0.7) + normal(y, 0.2 * R[:, 1], noise)
    slab = np.log(0.3) + normal(y, 0.5 * R[:, 0] + 0.2 * R[:, 1], noise + 0.49 * np.outer(R[:, 0], R[:, 0]))
    own = logsumexp([spike, slab], axis=0) - np.where(b > 0, np.log(1 + layer.w @ layer.u), 0.0)
    cov = 0.25 * np.eye(2) + 0.64 * np.outer(model.B[:, 1], model.B[:, 1])
    mean = np.array([0.1, 0.0]) + 0.1 * model.B[:, 1]
    theirs = logsumexp([np.log(0.6) + normal(x, mean, cov), np.log(0.4) + normal(x, mean + model.B[:, 0], cov)], axis=0)
    found = bound_below(problem(layer, p1, model))
    for value, logs in ((found.cross_entropy, theirs), (found.entropy, own)):
        error = logs.std() / np.sqrt(len(logs))
        assert value == pytest.approx(-logs.mean(), abs=4 * error)
        assert error < 0.01


def test_laws_that_are_no_mixtures_of_normals_on_a_line() -> None:
    p1 = et.FeatureModel([[1.0]], [et.Exponential(1.0)], 0.2)

    def density(y: float) -> float:  # exponentially modified normal law
        return float(np.exp(0.02 - y) * norm.cdf((y - 0.04) / 0.2))

    expected = quad(lambda y: -density(y) * np.log(density(y)), -1.2, 30, points=[0.0, 1.0, 5.0], limit=400)[0]
    found = bound_below(problem(et.Layer([[1.0]], [0.0], [0.0], "identity"), p1))
    assert found.entropy == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("layer", "p1", "reason"),
    [
        (
            et.Layer([[1.0]], [-2.0], [1.0], "relu"),
            et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.3),
            "not one to one",
        ),
        (
            et.Layer([[1.0]], [0.0], [0.0], "zero"),
            et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.0),
            "no Gaussian noise",
        ),
        (
            et.Layer(np.eye(3), np.zeros(3), np.zeros(3), "zero"),
            et.FeatureModel(np.eye(3) + 0.1, [et.Bernoulli(0.3)] * 3, 0.3),
            "3 features that are not orthogonal span 3 dimensions",
        ),
    ],
)
def test_what_is_not_computable_says_why(layer: et.Layer, p1: et.FeatureModel, reason: str) -> None:
    found = bound_below(problem(layer, p1))
    assert found.entropy is None
    assert reason in found.note


def test_a_loss_below_is_told() -> None:
    bound = Bound(1.0, 1e-6, 0.9, 1e-6)
    assert bound.broken_by(1.0, 1e-4) == ""
    assert bound.broken_by(0.99995, 1e-4) == ""
    assert "L = 0.999 +- 0.0001 lies below the cross-entropy of its model, 1 +- 1e-06" in bound.broken_by(0.999, 1e-4)
    assert "lies below the entropy of f(x1), 0.9" in Bound(None, None, 0.9, 1e-6).broken_by(0.899, 1e-4)
    assert "lies below" in bound.broken_by(float("nan"), 1e-4)
    assert Bound(None, None, None, None, "no noise").broken_by(-1e9, 0.0) == ""


def test_numbers_may_vanish_on_the_way_to_a_bound() -> None:
    """exp(-x^2 / 2) far from a model's points; the tests raise on underflow elsewhere."""
    layer = et.Layer([[1.0]], [0.5], [0.8], "elu")
    p1 = et.FeatureModel([[1.0]], [et.Normal(0.0, 1.0)], 0.2)
    model = et.FeatureModel([[1.0, 1.0]], [et.Bernoulli(0.3), et.Discrete((-9.0, 9.0), (0.5, 0.5))], 0.07)
    encoder = et.Encoder(
        [
            et.Posterior("bernoulli", [[1.0]], [0.0]),
            et.Posterior("tilted", [[1.0]], [0.0], precision=1.0, base=model.priors[1]),
        ]
    )
    assert bound_below(et.Problem(layer, p1, model, encoder)).cross_entropy is not None
