"""Input models from data: what is planted comes back, the covariance is the data's, and the report tells dependence
apart."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.integrate import quad
from scipy.stats import norm

from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.input_models import fit_input, input_from_sae, measure_dependence
from elbotree.runtime.prior_fits import fit_prior, fit_slab, laplace_plus_normal
from elbotree.runtime.priors import Exponential, Gamma, Laplace, Mixture, Normal, SpikeSlab

Array = NDArray[np.float64]


def planted(rng: np.random.Generator, rows: int = 4000) -> tuple[Array, Array]:
    """Rows of three non-normal features in six coordinates plus noise 0.1, and the mixing matrix."""
    Z = np.stack([rng.laplace(size=rows), rng.choice([-1.0, 1.0], rows), rng.exponential(size=rows)], axis=1)
    B = rng.standard_normal((6, 3))
    return Z @ B.T + 0.1 * rng.standard_normal((rows, 6)) + 2.0, B


# -- one coordinate ---------------------------------------------------------------------------------------------------
def test_laplace_plus_normal_is_the_convolution() -> None:
    for y in (-30.0, -1.0, 0.0, 0.4, 5.0):
        value, _ = quad(
            lambda a, y=y: np.exp(-abs(a) / 0.7) / 1.4 * norm.pdf(y - a, scale=0.3), y - 4, y + 4, points=[0, y]
        )
        assert laplace_plus_normal(np.array([y]), 0.7, 0.09)[0] == pytest.approx(np.log(value), abs=1e-7)


@pytest.mark.parametrize(
    ("kind", "draw"),
    [
        ("normal", lambda rng, N: rng.standard_normal(N)),
        ("laplace", lambda rng, N: rng.laplace(scale=np.sqrt(0.5), size=N)),
        ("mixture", lambda rng, N: rng.choice([-0.9, 0.9], N) + np.sqrt(0.19) * rng.standard_normal(N)),
        ("spike_slab", lambda rng, N: (rng.random(N) < 0.3) * rng.normal(1.8, 0.5, N) - 0.54),
    ],
)
def test_the_kind_that_drew_the_data_wins(kind: str, draw: Any) -> None:
    rng = np.random.default_rng(0)
    source = draw(rng, 6000)
    source = (source - source.mean()) / source.std()
    fitted = fit_prior(source + np.sqrt(0.05) * rng.standard_normal(6000), 0.05)
    assert fitted.kind == kind
    assert fitted.prior.mean() + fitted.shift == pytest.approx(0, abs=1e-12)
    assert fitted.prior.variance() == pytest.approx(1, abs=1e-12)


def test_the_noise_is_taken_off_what_is_fitted() -> None:
    """Two humps of std 0.3 seen through noise of std 0.4: the components are 0.3 wide, not 0.5."""
    rng = np.random.default_rng(1)
    x = rng.choice([-0.95, 0.95], 20_000) + rng.normal(0, np.hypot(0.3, 0.4), 20_000)
    prior = fit_prior(x, 0.16, ["mixture"]).prior
    assert isinstance(prior, Mixture)
    assert len(prior.components) == 2
    for part in prior.components:
        assert part.variance() == pytest.approx(0.09, abs=0.03)  # 0.25 with the noise
        assert abs(part.mean()) == pytest.approx(0.95, abs=0.03)


def test_a_spike_stands_at_zero_and_the_shift_says_where_it_was() -> None:
    rng = np.random.default_rng(2)
    z = (rng.random(20_000) < 0.25) * rng.normal(2.0, 0.4, 20_000)
    z = (z - z.mean()) / z.std()
    fitted = fit_prior(z + 0.2 * rng.standard_normal(20_000), 0.04, ["spike_slab"])
    assert isinstance(fitted.prior, SpikeSlab)
    assert fitted.prior.p == pytest.approx(0.25, abs=0.01)
    assert fitted.shift == pytest.approx(np.median(z), abs=0.05)
    assert isinstance(fitted.prior.slab, Normal)


def test_densities_of_fits_integrate_to_one() -> None:
    x = np.random.default_rng(3).laplace(scale=np.sqrt(0.5), size=500)
    for kind in ("normal", "laplace", "mixture", "spike_slab"):
        fitted = fit_prior(x, 0.1, [kind])
        total = quad(lambda y, f=fitted: float(np.exp(f.logpdf(np.array([y])))[0]), -15, 15, limit=200)[0]
        assert total == pytest.approx(1, abs=1e-7), kind


# -- a matrix ---------------------------------------------------------------------------------------------------------
def test_the_model_has_the_datas_mean_and_covariance() -> None:
    X, _ = planted(np.random.default_rng(4))
    model, report = fit_input(X, features=3, held_out=0, rotation="none")
    values, vectors = np.linalg.eigh(np.cov(X.T, bias=True))
    kept, rest = vectors[:, 3:], vectors[:, :3]
    expected = kept @ np.diag(values[3:]) @ kept.T + values[:3].mean() * rest @ rest.T
    np.testing.assert_allclose(model.covariance(), expected, atol=1e-10)
    np.testing.assert_allclose(model.mean(), X.mean(axis=0), atol=1e-10)
    assert model.noise_std == pytest.approx(0.1, rel=0.05)
    assert report.held_out is None
    assert report.rows == len(X)


def test_independent_features_are_found() -> None:
    """FastICA recovers the planted columns up to order and sign; likelihood beats the normal law of the same
    covariance."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(5)
    X, B = planted(rng, 6000)
    model, report = fit_input(X, features=3)
    cosines = np.abs((B / np.linalg.norm(B, axis=0)).T @ (model.B / np.linalg.norm(model.B, axis=0)))
    assert (cosines.max(axis=1) > 0.99).all()
    assert report.held_out is not None
    assert report.held_out[0] > report.held_out[1] + 0.3
    assert report.dependence.squares[1] < 0.1
    assert report.rows == 4800
    assert "3 features from 4800 rows" in str(report)


def test_the_held_out_normal_likelihood_is_that_of_the_normal_law() -> None:
    from scipy.stats import multivariate_normal

    X, _ = planted(np.random.default_rng(6), 500)
    model, report = fit_input(X, features=2, rotation="none", priors=["normal"], seed=3)
    kept = round(0.2 * 500)
    rows = X[np.sort(np.random.default_rng(3).permutation(500)[:kept])]
    expected = multivariate_normal(model.mean(), model.covariance()).logpdf(rows).mean()
    assert report.held_out is not None
    assert report.held_out[1] == pytest.approx(expected, abs=1e-9)
    assert report.held_out[0] == pytest.approx(expected, abs=1e-9)  # without rotation the noise is uncorrelated: exact


def test_the_reduced_model_is_the_model_seen_through_the_directions() -> None:
    X, _ = planted(np.random.default_rng(7))
    model, report = fit_input(X, features=3, rotation="none")
    D = report.directions
    assert D is not None
    assert report.reduced is not None
    np.testing.assert_allclose(D @ D.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(report.reduced.B, D @ model.B, atol=1e-10)
    np.testing.assert_allclose(report.reduced.offset, D @ (model.offset - report.mean), atol=1e-10)
    assert report.reduced.noise_std == model.noise_std


def test_digits() -> None:
    """Real data: more than the normal law, less than independence."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    X = load_digits().data / 16.0
    model, report = fit_input(X, features=6)
    assert model.B.shape == (64, 6)
    assert 0.4 < report.explained < 0.6
    assert report.held_out is not None
    assert report.held_out[0] > report.held_out[1] + 0.2
    assert report.dependence.distance[1] > 1.3 * report.dependence.baseline


def test_as_many_features_as_carry_95_percent() -> None:
    rng = np.random.default_rng(8)
    X = rng.laplace(size=(500, 5)) * [10.0, 5.0, 1.0, 0.5, 0.5]
    model, _ = fit_input(X, rotation="none")
    assert model.m == 2


def test_without_scikit_learn_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    X, _ = planted(np.random.default_rng(9), 200)
    with pytest.raises(UnsupportedError, match=r"needs scikit-learn: pip install 'elbotree\[sklearn\]', or"):
        fit_input(X, features=2)


DATA = np.random.default_rng(10).standard_normal((50, 3)) * [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        ([[1.0, 2.0], [3.0]], {}, r"`X\[1\]` has length 1; the rows before it have 2"),
        ([[1.0, np.inf]], {}, r"`X\[0\]\[1\]` is inf"),
        (DATA[:3], {}, r"`X` has 3 rows of 3 numbers, 2 of them to fit to; .* needs at least 10 rows"),
        (np.ones((50, 3)), {}, r"every row of `X` is the same"),
        (DATA, {"features": 4}, r"`features` is 4; it must be a whole number from 1 to n = 3"),
        (DATA, {"features": 3}, r"`features` is 3, all n = 3 directions, so none is left .* give `noise_std`"),
        (DATA, {"features": 3, "noise_std": 1.5}, r"only 2 directions of `X` have more variance than the noise"),
        (DATA, {"features": 2, "noise_std": -1.0}, r"`noise_std` is -1.0; a standard deviation cannot be negative"),
        (DATA, {"priors": ["laplas"]}, r"`priors\[0\]` is 'laplas', .*did you mean 'laplace'"),
        (DATA, {"priors": []}, r"`priors` is \[\]; it must be a list of kinds"),
        (DATA, {"rotation": "pca"}, r"`rotation` is 'pca'; it must be 'ica' or 'none'"),
        (DATA, {"held_out": 1.0}, r"`held_out` is 1.0; it must be a share of the rows in \[0, 1\)"),
    ],
)
def test_bad_data_are_refused(X: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_input(X, **options)


# -- dependence -------------------------------------------------------------------------------------------------------
def test_dependence_sees_what_correlation_does_not() -> None:
    """y = x^2 - 1 and x are uncorrelated; their squares and their distances are not."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal(1500)
    Z = np.stack([rng.standard_normal(1500), x, x**2 - 1], axis=1)
    found = measure_dependence(Z)
    assert found.pair == (1, 2)
    assert found.pairs == 3
    assert found.distance[1] > 0.4
    assert found.squares[1] > 0.3
    independent = measure_dependence(rng.standard_normal((1500, 3)))
    assert independent.distance[1] < 2 * independent.baseline
    assert independent.squares[1] < 0.15


def test_distance_correlation_of_a_column_with_itself_is_one() -> None:
    x = np.random.default_rng(12).standard_normal(100)
    found = measure_dependence(np.stack([x, -2 * x + 3], axis=1))
    assert found.distance == (pytest.approx(1), pytest.approx(1))
    assert found.squares == (pytest.approx(1), pytest.approx(1))


def test_one_feature_has_nothing_to_compare() -> None:
    found = measure_dependence(np.ones((10, 1)))
    assert found.pair is None
    assert "nothing to compare" in str(found)


# -- sparse auto-encoders ---------------------------------------------------------------------------------------------
def autoencoder(rng: np.random.Generator, rows: int = 5000) -> tuple[Array, Array, Array]:
    """(W_dec, activations, X): twelve features in eight coordinates, one of which never fires, noise 0.05."""
    W = rng.standard_normal((12, 8))
    Z = (rng.random((rows, 12)) < 0.1) * rng.gamma(3.0, 0.5, (rows, 12))
    Z[:, 6:] = (rng.random((rows, 6)) < 0.2) * rng.exponential(2.0, (rows, 6))
    Z[:, 4] = 0.0
    return W, Z, Z @ W + 0.3 + 0.05 * rng.standard_normal((rows, 8))


def test_an_autoencoders_features() -> None:
    rng = np.random.default_rng(13)
    W, Z, X = autoencoder(rng)
    model, report = input_from_sae(W, Z, b_dec=np.full(8, 0.25), X=X)
    assert report.features == (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11)
    np.testing.assert_array_equal(model.B, W[list(report.features)].T)
    assert model.noise_std == pytest.approx(0.05, rel=0.02)
    np.testing.assert_allclose(model.offset, 0.3, atol=0.005)  # the residual's mean is moved into it
    for j, prior in zip(report.features, model.priors, strict=True):
        assert isinstance(prior, SpikeSlab)
        assert prior.p == (Z[:, j] > 0).mean()
        assert prior.mean() == pytest.approx(Z[:, j].mean(), rel=1e-12)
        assert isinstance(prior.slab, Gamma if j < 6 else Exponential)
        if j < 6:
            assert prior.variance() == pytest.approx(Z[:, j].var(), rel=1e-9)
    assert report.explained > 0.99
    np.testing.assert_allclose(model.mean(), X.mean(axis=0), atol=1e-10)


def test_sparse_matrices_give_the_same() -> None:
    W, Z, X = autoencoder(np.random.default_rng(14), 800)
    dense, first = input_from_sae(W, Z, X=X)
    other, second = input_from_sae(W, sparse.csr_matrix(Z), X=X)
    assert dense.priors == other.priors
    assert dense.noise_std == pytest.approx(other.noise_std, rel=1e-12)
    assert first.dependence == second.dependence


def test_slabs_by_moments() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0])
    slab = fit_slab(values, "gamma")
    assert slab.mean() == pytest.approx(3.0)
    assert slab.variance() == pytest.approx(3.5)
    assert fit_slab(values, "exponential") == Exponential(3.0)
    assert fit_slab(np.array([2.0])) == Exponential(2.0)


def test_a_feature_that_always_fires_is_its_slab() -> None:
    rng = np.random.default_rng(15)
    model, _ = input_from_sae([[1.0, 0.0]], rng.gamma(4.0, 1.0, (300, 1)), noise_std=0.1)
    assert isinstance(model.priors[0], Gamma)


W, Z = np.ones((2, 3)), np.eye(2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((W, Z), {}, r"give `X`, the rows that were encoded, .* or `noise_std`"),
        ((W.T, Z), {"noise_std": 1.0}, r"`activations` has shape \(2, 2\); `W_dec` has m = 3 rows, .*turn `W_dec`"),
        ((W, -Z), {"noise_std": 1.0}, r"`activations` holds -1.0; a feature that fires does so above 0"),
        ((W, 0 * Z), {"noise_std": 1.0}, r"no feature ever fires"),
        ((W, Z, [1.0]), {"noise_std": 1.0}, r"`b_dec` has shape \(1,\); .* it must be \(3,\)"),
        ((W, Z), {"X": np.ones((2, 2))}, r"`X` has shape \(2, 2\); activations and W_dec make it \(2, 3\)"),
        ((W, Z), {"noise_std": 1.0, "slab": "flat"}, r"`slab` is 'flat'; it must be 'auto', 'gamma' or 'exponential'"),
        ((W, sparse.csc_matrix([[np.nan, 1], [0, 1]])), {"noise_std": 1.0}, r"`activations` holds entries that"),
        ((W, Z), {"noise_std": -1.0}, r"`noise_std` is -1.0; a standard deviation cannot be negative"),
    ],
)
def test_bad_autoencoders_are_refused(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        input_from_sae(*arguments, **options)


def test_priors_of_fits_are_the_projects_own() -> None:
    assert fit_prior(np.random.default_rng(16).laplace(size=400), 0.1, ["laplace"]).prior == Laplace(0.0, np.sqrt(0.5))
