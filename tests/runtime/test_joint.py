"""Laws of read-outs and their tails, against sums of normal tails over enumerated components: no shared code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import log_ndtr, logsumexp
from scipy.stats import exponnorm, multivariate_normal

import elbotree as et
from elbotree.runtime.errors import InputError


def discrete_tail(d: np.ndarray, p: np.ndarray, std: float, x: float) -> float:
    """log P(sum_i d_i alpha_i + std Z > x) for Bernoulli alphas, by enumeration."""
    logs = []
    for on in itertools.product((0, 1), repeat=len(d)):
        weight = float(np.sum(np.where(on, np.log(p), np.log1p(-p))))
        logs.append(weight + float(log_ndtr((float(np.dot(d, on)) - x) / std)))
    return float(logsumexp(logs))


def linear(n: int, m: int, priors: list[et.Prior], seed: int = 0) -> tuple[et.Layer, et.FeatureModel]:
    rng = np.random.default_rng(seed)
    layer = et.Layer(rng.standard_normal((n, n)), np.zeros(n), np.zeros(n), "relu", offset=rng.standard_normal(n))
    return layer, et.FeatureModel(rng.standard_normal((n, m)), priors, 0.3)


@pytest.mark.parametrize("x", [-1.0, 1.0, 4.0, 9.0, 25.0, 50.0])
def test_tails_of_an_affine_read_out_keep_their_tolerance_at_any_depth(x: float) -> None:
    p = np.array([0.3, 0.05, 0.5, 0.1, 0.2])
    layer, p1 = linear(3, 5, [et.Bernoulli(float(q)) for q in p])
    v = np.array([1.0, -0.5, 0.3])
    row = layer.A.T @ v
    found = et.joint(layer, p1, v).tail(x, tol=1e-10)
    exact = discrete_tail(p1.B.T @ row, p, 0.3 * float(np.linalg.norm(row)), x - float(v @ layer.offset))
    assert abs(found.log_value - exact) <= 1e-10 + 1e-15 * abs(exact)
    assert abs(found.log_value - exact) <= found.relative_error + 1e-13 + 1e-15 * abs(exact)
    assert found.relative_error <= 1e-10


def test_exponential_feature_against_its_closed_form() -> None:
    layer = et.Layer(np.eye(1), [0.0], [0.0], "identity")
    p1 = et.FeatureModel([[1.0]], [et.Exponential(0.7)], 0.4)
    x = np.array([1.0, 5.0, 12.0])
    found = et.joint(layer, p1, [1.0]).tail(x, tol=1e-9)
    np.testing.assert_allclose(found.value, exponnorm.sf(x, 0.7 / 0.4, scale=0.4), rtol=1e-9)


@pytest.mark.parametrize("x", [0.5, 3.0, 8.0])
def test_tails_through_relu_against_enumerated_components(x: float) -> None:
    p = np.array([0.3, 0.2])
    layer = et.Layer([[1.0, 0.2], [0.1, 0.9]], [0.8, -0.3], [0.7, 0.6], "relu", threshold=-0.2)
    p1 = et.FeatureModel([[1.0, 0.4], [-0.5, 1.2]], [et.Bernoulli(float(q)) for q in p], 0.3)
    v = np.array([1.0, 0.4])
    noise = 0.09 * layer.A @ layer.A.T
    total = 0.0
    for on in itertools.product((0, 1), repeat=2):
        mean = layer.A @ p1.B @ np.array(on)
        b0, sb = float(mean @ layer.u) - 0.2, float(np.sqrt(layer.u @ noise @ layer.u))
        slope = float(v @ noise @ layer.u) / sb**2
        rest = float(np.sqrt(v @ noise @ v - slope**2 * sb**2))

        def given(
            b: float, mean: np.ndarray = mean, b0: float = b0, sb: float = sb, slope: float = slope, rest: float = rest
        ) -> float:
            centre = float(v @ mean) + slope * (b - b0) + float(v @ layer.w) * max(b, 0.0)
            return float(np.exp(log_ndtr((centre - x) / rest) - 0.5 * ((b - b0) / sb) ** 2)) / (sb * np.sqrt(2 * np.pi))

        weight = float(np.prod(np.where(on, p, 1 - p)))
        lo, hi = b0 - 14 * sb, b0 + 14 * sb
        inner = sorted({min(max(0.0, lo), hi)})
        total += weight * quad(given, lo, hi, points=inner, epsabs=0, epsrel=1e-12, limit=500)[0]
    found = et.joint(layer, p1, v).tail(x, tol=1e-9)
    assert float(found.value) == pytest.approx(total, rel=2e-9)


def test_orthant_probability_of_two_read_outs() -> None:
    layer, p1 = linear(2, 1, [et.Bernoulli(0.25)], seed=3)
    V = np.array([[1.0, 0.2], [-0.3, 0.8]])
    x = np.array([0.4, 0.1])
    rows = V @ layer.A
    covariance = 0.09 * rows @ rows.T
    expected = 0.0
    for on, weight in ((0.0, 0.75), (1.0, 0.25)):
        mean = rows @ p1.B[:, 0] * on + V @ layer.offset
        expected += weight * float(multivariate_normal(-mean, covariance, abseps=1e-12, releps=1e-12).cdf(-x))
    found = et.joint(layer, p1, V).tail(x, tol=1e-8)
    assert float(found.value) == pytest.approx(expected, rel=1e-6)  # scipy's own bivariate cdf is good to about 1e-7


def test_isf_inverts_the_tail_and_the_two_sides_add_up() -> None:
    layer, p1 = linear(3, 4, [et.Laplace(0.0, 0.4), et.Bernoulli(0.2), et.Uniform(-1.0, 1.0), et.Normal(0.0, 0.5)])
    law = et.joint(layer, p1, [0.5, 1.0, -0.2])
    x = float(law.isf(1e-20).value)
    assert float(law.tail(x).value) == pytest.approx(1e-20, rel=1e-8)
    assert float(law.tail(0.3).value) + float(law.cdf(0.3).value) == pytest.approx(1.0, abs=1e-9)


def test_gradient_of_the_log_tail_against_differences() -> None:
    layer, p1 = linear(3, 4, [et.Bernoulli(0.2), et.Exponential(0.3), et.Bernoulli(0.4), et.Normal(0.0, 0.5)])
    v, x = np.array([0.5, 1.0, -0.2]), 6.0
    row = np.asarray(et.joint(layer, p1, v).tail_gradient(x).V)
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-4
        ahead, behind = (float(et.joint(layer, p1, v + s).tail(x, tol=1e-12).log_value) for s in (step, -step))
        assert float(np.ravel(row)[i]) == pytest.approx((ahead - behind) / 2e-4, rel=1e-5, abs=1e-6)


def test_marginal_of_a_model_and_wrong_shapes() -> None:
    p1 = et.FeatureModel(np.eye(2), [et.Normal(0.0, 1.0)] * 2, 0.5)
    assert float(p1.marginal([1.0, 1.0]).tail(3.0).log_value) == pytest.approx(
        float(log_ndtr(-3 / np.sqrt(2.5))), abs=1e-9
    )
    with pytest.raises(InputError):
        p1.marginal([1.0, 1.0, 1.0])
