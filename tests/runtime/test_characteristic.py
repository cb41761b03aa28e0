"""The law of y on frequency lattices against sums over every outcome of discrete features, and Chernoff ranges against
exact tail probabilities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from elbotree.runtime.characteristic import Lattice, LinearLaw, Tails
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.priors import Bernoulli, Discrete, Exponential, Gamma, Normal, Prior

Array = NDArray[np.float64]

PRIORS: tuple[Prior, ...] = (Bernoulli(0.2), Discrete([-1.0, 0.5, 3.0], [0.3, 0.6, 0.1]), Bernoulli(0.2))


def a_law(rng: np.random.Generator, priors: tuple[Prior, ...] = PRIORS, n: int = 3) -> LinearLaw:
    factor = 0.4 * rng.normal(size=(n, n))
    return LinearLaw(rng.normal(size=n), rng.normal(size=(n, len(priors))), priors, factor @ factor.T)


def outcomes(law: LinearLaw, laws: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Every outcome of the features: y - mean without the noise, (O, n), and its probability."""
    rows, masses = [], []
    for choice in itertools.product(*[range(len(points)) for points, _ in laws]):
        alpha = np.array([laws[i][0][k] - law.priors[i].mean() for i, k in enumerate(choice)])
        rows.append(law.loadings @ alpha)
        masses.append(np.prod([laws[i][1][k] for i, k in enumerate(choice)]))
    return np.array(rows), np.array(masses)


def direct(
    law: LinearLaw, found: tuple[Array, Array], omega: Array, v: Array
) -> tuple[complex, NDArray[np.complex128], NDArray[np.complex128]]:
    """E e, E[(y - mean) e] and E[<y - mean, v> (y - mean) e] for e = exp(i <omega, y - mean>), summed over outcomes."""
    delta, mass = found
    e = mass * np.exp(1j * delta @ omega - 0.5 * omega @ law.noise @ omega)
    shifted = delta + 1j * law.noise @ omega  # the mean of y - mean under the exponentially tilted normal
    second = np.einsum("o,o,on->n", e, shifted @ v, shifted) + e.sum() * (law.noise @ v)
    return e.sum(), e @ shifted, second


def a_lattice(law: LinearLaw, rng: np.random.Generator, d: int = 2, b_modes: int = 3) -> Lattice:
    u = rng.normal(size=len(law.mean))
    steps = 0.3 * rng.normal(size=(d, len(law.mean)))
    steps -= np.outer(steps @ law.noise @ u / (u @ law.noise @ u), u)  # orthogonal to u in the metric of the noise
    modes = rng.integers(-4, 5, size=(7, d))
    return Lattice(law, steps, modes, 0.25 * u, b_modes)


def compare(law: LinearLaw, laws: list[tuple[Array, Array]], seed: int, tolerance: float = 1e-13) -> None:
    rng = np.random.default_rng(seed)
    lattice = a_lattice(law, rng)
    N, K, n = len(lattice.modes), lattice.columns, len(law.mean)
    base = rng.normal(size=(3, N, K)) + 1j * rng.normal(size=(3, N, K))
    v = rng.normal(size=n)
    found = outcomes(law, laws)
    X, Y, Z = np.zeros((3, N), complex), np.zeros((3, N, n), complex), np.zeros((N, n), complex)
    for row, k in itertools.product(range(N), range(K)):
        omega = lattice.modes[row] @ lattice.steps + (k - lattice.b_modes) * lattice.b_step
        x, y, z = direct(law, found, omega, v)
        X[:, row] += base[:, row, k] * x
        Y[:, row] += np.multiply.outer(base[:, row, k], y)
        Z[row] += base[0, row, k] * z

    def of(rows: slice, powers: int) -> NDArray[np.complex128]:
        return base[:powers, rows]

    scale = float(np.abs(X).max())
    np.testing.assert_allclose(lattice.values(of, 3), X, atol=tolerance * scale, rtol=0)
    values, vectors = lattice.moments(of, 3, 2)
    np.testing.assert_allclose(values, X, atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(vectors, Y[:2], atol=tolerance * np.abs(Y).max(), rtol=0)
    np.testing.assert_allclose(lattice.second_moments(of, v), Z, atol=tolerance * np.abs(Z).max(), rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_lattice_sums_equal_sums_over_all_outcomes(seed: int) -> None:
    law = a_law(np.random.default_rng(seed))
    compare(law, [prior.atoms for prior in law.priors], seed)


def test_lattice_sums_with_a_continuous_feature() -> None:
    # a gamma law of shape 2 as 30 Gauss-Laguerre points, exact for the smooth integrands here
    points, weights = np.polynomial.laguerre.laggauss(30)
    priors: tuple[Prior, ...] = (Gamma(2.0, 0.3), Bernoulli(0.4), Exponential(0.2))
    law = a_law(np.random.default_rng(3), priors)
    laws = [(0.3 * points, weights * points), Bernoulli(0.4).atoms, (0.2 * points, weights)]
    compare(law, laws, 3, 1e-12)


def test_lattice_sums_do_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    import elbotree.runtime.characteristic as module

    law = a_law(np.random.default_rng(5))
    rng = np.random.default_rng(6)
    lattice = a_lattice(law, rng)
    base = rng.normal(size=(3, len(lattice.modes), lattice.columns)) + 0j

    def of(rows: slice, powers: int) -> NDArray[np.complex128]:
        return base[:powers, rows]

    whole = lattice.moments(of, 3, 2)
    monkeypatch.setattr(module, "_BLOCK", 1)
    assert len(lattice.blocks()) == len(lattice.modes)
    for a, b in zip(lattice.moments(of, 3, 2), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=0)
    np.testing.assert_allclose(lattice.values(of, 3), whole[0], rtol=1e-13, atol=0)


def test_rounding_bounds_the_summands() -> None:
    law = a_law(np.random.default_rng(7))
    lattice = a_lattice(law, np.random.default_rng(8))

    def ones(rows: slice, powers: int) -> NDArray[np.complex128]:
        return np.ones((powers, len(lattice.modes[rows]), lattice.columns), dtype=np.complex128)

    assert np.all(np.abs(lattice.values(ones, 1)[0]) <= lattice.rounding() * (1 + 1e-14))
    centre = Lattice(law, np.zeros((1, 3)), np.zeros((1, 1), dtype=np.int64), np.zeros(3), 0)
    assert centre.rounding() == pytest.approx([1.0])


def test_law_of_a_layer_merges_normal_priors_and_drops_constants() -> None:
    rng = np.random.default_rng(9)
    A, B = rng.normal(size=(3, 4)), rng.normal(size=(4, 5))
    B[:, 3] = 0.0  # a feature that moves nothing
    priors: list[Prior] = [Bernoulli(0.3), Normal(0.7, 1.4), Exponential(0.5), Bernoulli(0.5), Discrete([2.0], [1.0])]
    layer = Layer(A, rng.normal(size=3), rng.normal(size=3), offset=rng.normal(size=3))
    p1 = FeatureModel(B, priors, 0.3, offset=rng.normal(size=4))
    law = LinearLaw.of(layer, p1)
    assert law.priors == (Bernoulli(0.3), Exponential(0.5))
    np.testing.assert_allclose(law.loadings, (A @ B)[:, [0, 2]])
    np.testing.assert_allclose(law.mean, A @ p1.mean() + layer.offset)
    np.testing.assert_allclose(law.covariance(), A @ p1.covariance() @ A.T)
    r = A @ B[:, 1]
    np.testing.assert_allclose(law.noise, 0.09 * A @ A.T + 1.96 * np.outer(r, r))


def test_mapped_law_has_the_mapped_moments() -> None:
    rng = np.random.default_rng(10)
    law, T, shift = a_law(rng), rng.normal(size=(2, 3)), rng.normal(size=2)
    mapped = law.mapped(T, shift)
    np.testing.assert_allclose(mapped.mean, T @ law.mean + shift)
    np.testing.assert_allclose(mapped.covariance(), T @ law.covariance() @ T.T)


def test_cumulant_generating_function_is_the_logarithm_of_a_sum() -> None:
    law = a_law(np.random.default_rng(11))
    v, s = np.array([0.3, -1.0, 0.6]), np.array([[-2.0, 0.0], [0.1, 1.5]])
    delta, mass = outcomes(law, [prior.atoms for prior in law.priors])
    expected = np.log(np.exp(np.multiply.outer(s, delta @ v)) @ mass) + 0.5 * s**2 * (v @ law.noise @ v)
    np.testing.assert_allclose(law.cumulant_generating(v, s), expected, atol=1e-13)


def sparse_law(noise: float) -> tuple[LinearLaw, Array, Array]:
    """Eight skewed features on one line: every outcome and its probability in closed form."""
    rng = np.random.default_rng(12)
    priors: tuple[Prior, ...] = tuple([Bernoulli(0.05)] * 4 + [Bernoulli(0.5)] * 3 + [Discrete([0, 6], [0.999, 0.001])])
    law = LinearLaw(np.zeros(1), rng.normal(size=(1, 8)), priors, np.array([[noise**2]]))
    delta, mass = outcomes(law, [prior.atoms for prior in priors])
    return law, delta[:, 0], mass


def bounds(law: LinearLaw, v: Array, log_epsilon: float) -> tuple[float, float]:
    lo, hi = Tails(law, v).bounds(np.array([-1.0, log_epsilon]))
    return float(lo[1]), float(hi[1])


@pytest.mark.parametrize("log_epsilon", [-3.0, -10.0, -30.0, -100.0])
@pytest.mark.parametrize("noise", [0.02, 0.3, 3.0])
def test_ranges_are_left_with_less_than_the_probability_they_state(noise: float, log_epsilon: float) -> None:
    law, delta, mass = sparse_law(noise)
    lo, hi = bounds(law, np.ones(1), log_epsilon)
    for end, sign in ((hi, 1.0), (-lo, -1.0)):
        with np.errstate(under="ignore"):
            tail = np.logaddexp.reduce(np.log(mass) + stats.norm.logsf(end, sign * delta, noise))
        assert tail <= log_epsilon
        # Chernoff's bound loses a factor of a few dozens, not a power
        assert tail >= 1.25 * log_epsilon - 6.0


def test_ranges_of_a_skewed_law_are_not_symmetric() -> None:
    law = LinearLaw(np.zeros(1), np.ones((1, 1)), (Exponential(1.0),), np.array([[1e-4]]))
    lo, hi = bounds(law, np.ones(1), -25.0)
    assert -1.25 < lo < -1.0  # the support begins one scale below the mean
    assert 24.0 < hi < 32.0  # P(alpha > q) = exp(-q)
    # the same law looked at from the other side
    assert bounds(law, -np.ones(1), -25.0) == pytest.approx((-hi, -lo))


def test_range_of_a_normal_law_is_its_quantile() -> None:
    """exp(K(s) - s q) alone would say sqrt(40) = 6.32; the density of the tilted law brings it to the quantile, 5.88."""
    law = LinearLaw(np.zeros(2), np.zeros((2, 0)), (), np.diag([4.0, 0.0]))
    lo, hi = bounds(law, np.array([0.5, 7.0]), -20.0)
    quantile = stats.norm.isf(np.exp(-20.0))
    assert quantile <= hi <= 1.005 * quantile
    assert lo == pytest.approx(-hi)


def test_range_of_a_constant_is_a_point() -> None:
    law = LinearLaw(np.zeros(2), np.array([[1.0], [0.0]]), (Bernoulli(0.5),), np.zeros((2, 2)))
    assert bounds(law, np.array([0.0, 1.0]), -20.0) == (0.0, 0.0)
