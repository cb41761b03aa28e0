"""Draws of beta given c: against scipy's quantiles, against the law's own moments, and through registered families."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import sympy as sp
from scipy import integrate, special, stats

from elbotree.codegen import generate
from elbotree.derivation import registration
from elbotree.runtime import samplers
from elbotree.runtime.encoding import draw
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
from elbotree.runtime.posteriors import Law
from elbotree.runtime.priors import Bernoulli, Discrete, Gamma, Laplace, Mixture, Normal, SpikeSlab, Uniform

U = np.array([1e-9, 0.02, 0.3, 0.5, 0.77, 0.999, 1 - 1e-9])
C = np.array([-2.3, 0.4, 3.1])[:, None]


def sampler_of(family: str, **own):
    t = 2 if family == "normal_scale" else 1
    posterior = Posterior(family, np.zeros((t, 2)), **own)
    return generate("zero", family).sampler(posterior)


def test_closed_forms_are_the_quantiles() -> None:
    np.testing.assert_allclose(sampler_of("normal", std=0.6)(U, C), stats.norm.ppf(U, C, 0.6), rtol=1e-12)
    scale = np.logaddexp(0, 1.3)
    np.testing.assert_allclose(sampler_of("normal_scale")(U, C, 1.3), stats.norm.ppf(U, C, scale), rtol=1e-12)
    expected = stats.expon.ppf(U, scale=np.logaddexp(0, C))
    np.testing.assert_allclose(sampler_of("exponential")(U, C), expected, rtol=1e-7)  # 1 - u loses digits near u = 1
    tilted = sampler_of("tilted", precision=1.5, base=Normal(0.3, 0.8))(U, C)
    variance = 1 / (1.5 + 1 / 0.64)
    np.testing.assert_allclose(tilted, stats.norm.ppf(U, variance * (C + 0.3 / 0.64), math.sqrt(variance)), rtol=1e-12)


def test_finite_laws_draw_from_their_table() -> None:
    np.testing.assert_array_equal(sampler_of("bernoulli")(U, C), (special.expit(-C) <= U).astype(float))
    points, masses = np.array([-1.0, 0.5, 2.0]), np.array([0.2, 0.5, 0.3])
    drawn = sampler_of("tilted", precision=0.7, base=Discrete(points, masses))(U, C)
    for row, c in zip(drawn, C[:, 0], strict=True):
        q = masses * np.exp(c * points - 0.35 * points**2)
        np.testing.assert_array_equal(row, points[np.searchsorted(np.cumsum(q / q.sum())[:-1], U, side="right")])


BASES = {"gamma": Gamma(2.0, 0.7), "uniform": Uniform(-1.0, 2.0), "laplace": Laplace(0.2, 0.5)}


@pytest.mark.parametrize("name", list(BASES))
def test_the_mass_below_a_tilted_draw_is_u(name: str) -> None:
    """The base's density times e^(c beta - precision beta^2 / 2), integrated by scipy up to the draw, over all of it."""
    base, precision = BASES[name], 1.1
    drawn = sampler_of("tilted", precision=precision, base=base)(U, C)

    def density(beta: float, c: float) -> float:
        return math.exp(float(base.logpdf(np.array([beta]))[0]) + c * beta - precision * beta**2 / 2)

    low, high = max(base.support[0], -15.0), min(base.support[1], 15.0)
    cuts = sorted({low, *(x for x in (0.0, 0.2, *range(-14, 15, 2)) if low < x < high), high})
    for row, c in zip(drawn, C[:, 0], strict=True):
        whole = sum(integrate.quad(density, *pair, (c,), epsabs=0, epsrel=1e-12)[0] for pair in pairwise(cuts))
        for u, beta in zip(U, row, strict=True):
            inner = [*(x for x in cuts if x < beta), beta]
            below = sum(integrate.quad(density, *pair, (c,), epsabs=0, epsrel=1e-12)[0] for pair in pairwise(inner))
            assert below / whole == pytest.approx(u, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    "base",
    [
        Mixture([0.3, 0.7], [Normal(-2.0, 0.3), Normal(1.0, 0.5)]),
        SpikeSlab(0.4, Laplace(0.0, 1.0)),
        Mixture([0.5, 0.5], [Bernoulli(0.3), Gamma(2.0, 0.5)]),
    ],
    ids=["mixture", "spike and slab", "atoms and a density"],
)
def test_draws_by_components_have_the_mean_and_variance_of_the_law(base) -> None:
    """Averages over evenly spaced u, one of which at each end of a component may fall to either side: within 4 of 0."""
    posterior = Posterior("tilted", np.zeros((1, 2)), precision=1.1, base=base)
    kernels = generate("zero", "tilted")
    u = (np.arange(4_000) + 0.5) / 4_000
    for c in (-1.5, 2.2):
        beta = kernels.sampler(posterior)(u, c)
        pieces = (kernels.mean(0, posterior), *kernels.variance(0, posterior))
        mean, variance = (float(g.value(np.array([c]))[0]) for g in pieces)
        assert beta.mean() == pytest.approx(mean, abs=2 * 4 / len(u))
        assert beta.var() == pytest.approx(variance, abs=2 * 4**2 / len(u))


def test_a_distribution_function_inverted_by_quadrature() -> None:
    """Gumbel's law, whose distribution function scipy has in closed form."""
    law = Law(
        centre=lambda c: np.asarray(c),
        spread=lambda c: np.full(np.shape(c), 2.0),
        log_density=lambda z, c: -2 * z - np.exp(-2 * z) + np.log(2.0),
        scores=(lambda z, c: z,),
        reach=(-10.0, 45.0),
    )
    found = samplers.of_law(law)(U, C)
    np.testing.assert_allclose(stats.gumbel_r.cdf(found, C), np.broadcast_to(U, found.shape), rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(found[:, 1:-1], stats.gumbel_r.ppf(U[1:-1], C), rtol=1e-12, atol=1e-12)
    assert np.all(np.diff(found, axis=1) > 0)


def test_a_narrow_law_and_one_with_an_end() -> None:
    law = Law(
        centre=lambda c: np.exp(c),
        spread=lambda c: np.full(np.shape(c), 1.0),
        log_density=lambda z, c: np.where(z > -np.exp(c), -(z + np.exp(c)) * 50.0 + np.log(50.0), -np.inf),
        scores=(lambda z, c: z,),
        support=(0.0, np.inf),
        reach=(-20.0, 20.0),
    )
    found = samplers.of_law(law)(U, np.zeros((1, 1)))
    np.testing.assert_allclose(stats.expon.cdf(found[0], scale=0.02), U, rtol=1e-3, atol=1e-14)
    np.testing.assert_allclose(found[0, 1:-1], stats.expon.ppf(U[1:-1], scale=0.02), rtol=1e-11, atol=2e-14)


@pytest.mark.usefixtures("registries")
def test_of_a_registered_family_without_closed_forms(monkeypatch) -> None:
    monkeypatch.setattr(registration, "_integral", lambda *arguments: None)
    beta, c = sp.symbols("beta c")
    scale = 1 + c**2
    density = beta**2 * sp.exp(-beta / scale) / (2 * scale**3)
    import elbotree as et

    et.register_family(
        "third_gamma", density, t=1, support="half-line", mean=3 * scale, variance=3 * scale**2, seconds=0.5
    )
    found = sampler_of("third_gamma")(U, C)
    np.testing.assert_allclose(stats.gamma.cdf(found, 3, scale=1 + C**2), np.broadcast_to(U, found.shape), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1:-1], stats.gamma.ppf(U[1:-1], 3, scale=1 + C**2), rtol=1e-11)


def test_draws_of_all_features_of_rows() -> None:
    """Averages of many draws at one x2 are the encoder's means and variances there."""
    rng = np.random.default_rng(0)
    posteriors = [
        Posterior("normal", [[0.5, -0.2]], [0.1], std=0.4),
        Posterior("bernoulli", [[1.0, 0.3]], [0.0]),
        Posterior("tilted", [[0.2, 0.7]], [0.0], precision=1.0, base=Gamma(2.0, 0.5)),
    ]
    model = FeatureModel(rng.normal(size=(2, 3)), [Normal(0, 1), Bernoulli(0.4), Gamma(2.0, 0.5)], 0.3)
    problem = Problem(
        Layer(np.eye(2), np.ones(2), np.ones(2), "zero"),
        FeatureModel(np.eye(2), [Normal(0, 1)] * 2, 0.1),
        model,
        Encoder(posteriors),
    )
    kernels = generate("zero", ["normal", "bernoulli", "tilted"])
    x2 = np.tile([[0.6, -1.1]], (4_000, 1))
    z = draw(kernels, problem, x2, np.random.default_rng(1))
    from elbotree.runtime.encoding import encode

    mean, variance = (part[0] for part in encode(kernels, problem, x2[:1]))
    assert z.shape == (4_000, 3)
    assert np.all(np.abs(z.mean(axis=0) - mean) < 4 * np.sqrt(variance / len(z)))
    np.testing.assert_allclose(z.var(axis=0), variance, rtol=0.15)
    np.testing.assert_array_equal(z, draw(kernels, problem, x2, np.random.default_rng(1)))


def test_no_rows_and_scalars() -> None:
    assert sampler_of("exponential")(0.5, 0.0) == pytest.approx(math.log(2) ** 2)
    tilted = sampler_of("tilted", precision=1.1, base=SpikeSlab(0.4, Laplace(0.0, 1.0)))
    assert tilted(np.zeros(0), np.zeros(0)).shape == (0,)
    assert np.shape(tilted(0.5, 0.3)) == ()
