"""Quadrature over a posterior: against mpmath, exact sums and closed forms; its stable functions; what it refuses."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from elbotree.runtime.errors import InputError
from elbotree.runtime.posteriors import (
    Law,
    TiltedLaw,
    cross_entropy,
    log_ratio,
    log_softplus,
    piece,
    polynomial,
    prior_scores,
    softplus_log_slope,
    through_masses,
    unknown_family,
)
from elbotree.runtime.priors import (
    Bernoulli,
    Discrete,
    Exponential,
    Gamma,
    Laplace,
    Mixture,
    Normal,
    SpikeSlab,
    Uniform,
)

STD = 0.7
NORMAL = Law(
    centre=lambda c: c,
    spread=lambda c: np.full(np.shape(c), STD),
    log_density=lambda z, c: -0.5 * z**2 - 0.5 * np.log(2 * np.pi),
    scores=(lambda z, c: z / STD,),
    parameter_scores={"std": lambda z, c: (z**2 - 1) / STD},
)


def narrow_normal(std):
    return Law(
        lambda c: c,
        lambda c: np.full(np.shape(c), std),
        lambda z, c: -0.5 * z**2 - 0.5 * np.log(2 * np.pi),
        (lambda z, c: z / std,),
    )


@pytest.mark.parametrize("x", [-1e6, -700.0, -35.0, -30.1, -29.9, -5.0, 0.0, 3.0, 50.0, 1e6])
def test_stable_functions_against_mpmath(x):
    with mpmath.workdps(60):
        softplus = mpmath.log1p(mpmath.exp(x)) if x > -1e5 else None
        log = float(mpmath.log(softplus)) if softplus is not None else x
        slope = float(1 / (1 + mpmath.exp(-x)) / softplus) if softplus is not None else 1.0
    with np.errstate(all="raise", under="ignore"):
        assert log_softplus(x) == pytest.approx(log, rel=1e-14, abs=1e-300)
        assert softplus_log_slope(np.array([x]))[0] == pytest.approx(slope, rel=1e-14)


# -- continuous laws ---------------------------------------------------------------------------------------------------


def test_cross_entropy_against_a_narrow_mixture_by_mpmath():
    """A component 100 times narrower than the posterior must not fall between the nodes."""
    prior = Mixture([0.2, 0.8], [Normal(0.3, 0.007), Normal(-0.5, 1.0)])

    def log_p(x):
        parts = ((0.2, 0.3, 0.007), (0.8, -0.5, 1.0))
        return mpmath.log(sum(w * mpmath.npdf(x, m, s) for w, m, s in parts))

    cuts = [-8, -2, 0, *(0.3 + k * 0.007 for k in (-12, -6, -3, 0, 3, 6, 12)), 1, 3, 8]
    for c in (-1.1, 0.3, 2.0):
        expected = -mpmath.quad(lambda x, c=c: mpmath.npdf(x, c, STD) * log_p(x), cuts)
        assert cross_entropy(0, NORMAL, prior).value(np.array(c)) == pytest.approx(float(expected), rel=1e-11)


def test_cross_entropy_against_a_normal_prior_and_its_derivatives_are_the_closed_forms():
    prior, c = Normal(0.4, 1.3), np.linspace(-3, 3, 7).reshape(7, 1)
    closed = (STD**2 + (c - 0.4) ** 2) / (2 * 1.3**2) + np.log(1.3) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(cross_entropy(0, NORMAL, prior).value(c), closed, rtol=1e-12)
    slope = cross_entropy(0, NORMAL, prior, score=0).value(c)
    np.testing.assert_allclose(slope, (c - 0.4) / 1.3**2, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(cross_entropy(0, NORMAL, prior, score="std").value(c), STD / 1.3**2, rtol=1e-11)


@pytest.mark.parametrize("std", [1e-4, 1e-6, 1e-8, 1e-150])
def test_derivative_of_a_narrow_posterior_is_the_slope_of_the_prior(std):
    c = np.array([-1.2, 0.4, 2.0])
    with np.errstate(all="raise", under="ignore"):
        found = cross_entropy(0, narrow_normal(std), Normal(0.4, 1.3), score=0).value(c)
    np.testing.assert_allclose(found, (c - 0.4) / 1.3**2, rtol=1e-8, atol=1e-9)


def test_shape_and_many_rows():
    c = np.linspace(-2, 2, 5000)
    found = cross_entropy(0, NORMAL, Laplace(0.2, 0.7)).value(c)
    assert found.shape == (5000,)
    np.testing.assert_allclose(found[::1250], cross_entropy(0, NORMAL, Laplace(0.2, 0.7)).value(c[::1250]), rtol=1e-14)


def test_prior_scores_of_a_normal_prior():
    c = np.array([-1.0, 0.5])
    found = prior_scores(0, NORMAL, Normal(0.4, 1.3))
    assert set(found) == {"mean", "std"}
    np.testing.assert_allclose(found["mean"][0].value(c), -(c - 0.4) / 1.3**2, rtol=1e-11)
    expected = 1 / 1.3 - (STD**2 + (c - 0.4) ** 2) / 1.3**3
    np.testing.assert_allclose(found["std"][0].value(c), expected, rtol=1e-11)


def test_prior_scores_of_an_array_are_a_list():
    prior = Mixture([0.3, 0.7], [Normal(0.0, 1.0), Normal(0.0, 1.0)])
    weights = prior_scores(0, NORMAL, prior)["weights"]
    assert isinstance(weights, list)
    for pieces in weights:  # equal components: the score of each weight is 1
        np.testing.assert_allclose(pieces[0].value(np.array([0.2])), -1.0, rtol=1e-12)


def test_a_prior_that_does_not_cover_the_posterior_is_refused():
    with pytest.raises(InputError, match="density 0 where the posterior has not"):
        cross_entropy(0, NORMAL, Uniform(-1, 1)).value(np.array([0.0]))


# -- tilted laws -------------------------------------------------------------------------------------------------------

ONE = Normal(0.0, 1.0)  # what the expectation is made "around" where h is a polynomial


@pytest.mark.parametrize(
    "base",
    [
        Normal(0.3, 1.2),
        Laplace(0.2, 0.7),
        Uniform(-1, 2),
        Exponential(0.8),
        Gamma(2.5, 0.5),
        Gamma(0.6, 1.0),
        Discrete([-1, 0, 2.5], [0.2, 0.5, 0.3]),
        SpikeSlab(0.4, Laplace(0.0, 1.0)),
        Mixture([0.3, 0.7], [Normal(0, 0.05), Uniform(0, 3)]),
    ],
)
def test_moments_of_a_tilted_law_are_the_cumulants_of_its_base(base):
    c, precision = np.array([-4.0, -0.3, 0.0, 1.7, 6.0]), 1.5
    law = TiltedLaw(base, precision)
    mean, variance, third = (base.log_partition(c, precision, k) for k in (1, 2, 3))
    one = law.expect(lambda beta, atom: np.ones_like(beta), ONE, c)
    np.testing.assert_allclose(one, 1.0, rtol=1e-11)
    np.testing.assert_allclose(law.expect(lambda beta, atom: beta, ONE, c), mean, rtol=1e-9, atol=1e-10)
    square = law.expect(lambda beta, atom: beta**2, ONE, c)
    np.testing.assert_allclose(square, variance + mean**2, rtol=1e-9, atol=1e-10)
    slope = law.expect(lambda beta, atom: beta, ONE, c, score=0)
    np.testing.assert_allclose(slope, variance, rtol=1e-9, atol=1e-10)
    # heat equation: d mean / d precision = -(third cumulant + 2 mean variance) / 2
    slope = law.expect(lambda beta, atom: beta, ONE, c, score="precision")
    np.testing.assert_allclose(slope, -(third + 2 * mean * variance) / 2, rtol=1e-8, atol=1e-9)


def test_log_ratio_on_atoms_is_a_finite_sum():
    base, prior = Discrete([0, 1, 2], [0.2, 0.5, 0.3]), Discrete([0, 1, 2, 5], [0.1, 0.2, 0.3, 0.4])
    c, r = 0.8, 0.5
    q = np.array([0.2, 0.5, 0.3]) * np.exp(c * np.arange(3) - r * np.arange(3) ** 2 / 2)
    q /= q.sum()
    h = np.log([2.0, 2.5, 1.0])
    law = TiltedLaw(base, r)
    assert log_ratio(0, law, prior).value(np.array(c)) == pytest.approx(q @ h, rel=1e-14)
    spread = np.arange(3) - q @ np.arange(3)
    assert log_ratio(0, law, prior, score=0).value(np.array(c)) == pytest.approx(q @ (h * spread), rel=1e-13)


def test_log_ratio_keeps_atoms_and_density_apart():
    base, prior = SpikeSlab(0.4, Normal(0.0, 1.0)), SpikeSlab(0.7, Normal(0.0, 1.0))
    c = np.array([0.0, 2.0, -30.0])
    on = 0.4 * np.exp(c**2 / 2) / (0.4 * np.exp(c**2 / 2) + 0.6)  # chance of the slab given c, at precision 0
    expected = on * np.log(0.4 / 0.7) + (1 - on) * np.log(0.6 / 0.3)
    np.testing.assert_allclose(log_ratio(0, TiltedLaw(base, 0.0), prior).value(c), expected, rtol=1e-12)


def test_equal_laws_have_no_log_ratio():
    prior = SpikeSlab(0.4, Gamma(0.7, 2.0))
    found = log_ratio(0, TiltedLaw(prior, 1.0), prior).value(np.array([-1e6, -1.0, 2.0, 1e6]))
    np.testing.assert_array_equal(found, 0.0)


# -- the vocabulary


def test_polynomial_evaluates_and_keeps_its_coefficients():
    g = polynomial(2, 1, (1, -2, np.float64(3)), "K[2]")
    assert (g.feature, g.uses, g.coefficients, g.label) == (2, (1,), (1.0, -2.0, 3.0), "K[2]")
    np.testing.assert_allclose(g.value(np.array([0.0, 2.0])), [1, 9])
    constant = polynomial(2, 1, (4,))
    assert (constant.uses, constant.coefficients) == ((), (4.0,))


def test_piece_binds_all_but_the_coordinates():
    g = piece(1, (0,), lambda c, *, std: c / std, "x", std=2.0)
    np.testing.assert_allclose(g.value(np.array([3.0])), [1.5])


def test_through_masses_is_the_chain_rule():
    found = through_masses(0, 1, {0.0: lambda c: 1 - c, 1.0: lambda c: c}, Bernoulli(0.3))
    c = np.array([0.25, 0.9])
    np.testing.assert_allclose(found["p"][0].value(c), -(1 - c) / 0.7 + c / 0.3, rtol=1e-14)


def test_unknown_family_names_the_fix():
    assert "generated for normal, not for the posterior family 'tilted'" in str(unknown_family("tilted", ("normal",)))
    assert "family=['normal', 'tilted']" in str(unknown_family("tilted", ("normal",)))
