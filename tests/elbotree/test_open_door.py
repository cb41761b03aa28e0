"""Families and nonlinearities of a user's own, from the front door to the twelve numbers."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

import elbotree as et
from elbotree.derivation import families
from elbotree.runtime.errors import InputError

BETA, C = sympy.symbols("beta c")

pytestmark = pytest.mark.usefixtures("registries")


def problem(family, prior, psi="tanh"):
    rng = np.random.default_rng(3)
    layer = et.Layer(rng.normal(size=(2, 2)), rng.normal(size=2), rng.normal(size=2), psi)
    p1 = et.FeatureModel(rng.normal(size=(2, 2)), [et.Bernoulli(0.3), et.Normal(0, 1)], 0.4)
    p2 = et.FeatureModel(rng.normal(size=(2, 1)), [prior], 0.5)
    return et.Problem(layer, p1, p2, et.Encoder([et.Posterior(family, [[0.4, -0.3]], [0.2])]))


def test_a_family_that_repeats_a_shipped_one_gives_its_numbers():
    softplus = sympy.log(1 + sympy.exp(C))
    et.register_family("mine", sympy.exp(-BETA / softplus) / softplus, t=1, support="half-line")
    mine, theirs = (et.evaluate(problem(name, et.Gamma(2.0, 0.7)), tol=1e-7) for name in ("mine", "exponential"))
    for name in ("L", "R1", "S1", "T2", "T3"):
        assert mine[name].value == pytest.approx(theirs[name].value, rel=1e-9)


@pytest.mark.parametrize("psi", ["tanh", "relu"])
def test_an_exponential_posterior_has_the_square_of_its_mean_for_a_variance(psi):
    """V = s^2, so with one feature S1 = H_11 E[V] and T3 = H_11 E[s^2] are one number, computed in two ways."""
    values = et.evaluate(problem("exponential", et.Gamma(2.0, 0.7), psi), tol=1e-7)
    assert abs(values["T3"].value - values["S1"].value) <= values["T3"].error + values["S1"].error
    assert values["T3"].error <= 1e-7 * max(1, abs(values["T3"].value))


DENSITIES = {
    "bernoulli": (sympy.exp(C * BETA) / (1 + sympy.exp(C)), {"points": (0, 1)}),
    "normal": (
        sympy.exp(-(((BETA - C) / sympy.Symbol("width")) ** 2) / 2) / sympy.Symbol("width") / sympy.sqrt(2 * sympy.pi),
        {"parameters": ("width",), "mean": C, "variance": sympy.Symbol("width") ** 2},
    ),
    "exponential": (
        sympy.exp(-BETA / sympy.log(1 + sympy.exp(C))) / sympy.log(1 + sympy.exp(C)),
        {"support": "half-line"},
    ),
}


@pytest.mark.parametrize("name", list(DENSITIES))
def test_the_door_makes_of_a_density_what_is_shipped(name):
    """Mean, variance, K, their slopes in c, and the draw, at some values of c."""
    density, arguments = DENSITIES[name]
    et.register_family("again", density, t=1, **arguments)
    kernels = et.generate("zero", ["again", name])
    own = {"width": 0.7} if name == "normal" else {}
    again = et.Posterior("again", [[1.0, 0.0]], parameters=own)
    shipped = et.Posterior(name, [[1.0, 0.0]], parameters={"std": 0.7} if own else {})
    priors = {"bernoulli": [et.Bernoulli(0.3)], "normal": [et.Normal(0.2, 1.3), et.Laplace(0.1, 0.6)]}
    points = np.array([-3.0, -0.4, 0.0, 1.7])

    def total(pieces):
        return sum(np.broadcast_to(g.value(*(points for _ in g.uses)), points.shape) for g in pieces)

    for prior in priors.get(name, [et.Exponential(0.8), et.Gamma(2.0, 0.6)]):
        for builder in (kernels.kl, lambda j, q, p: kernels.kl_derivative(j, q, p, 0)):
            np.testing.assert_allclose(total(builder(0, again, prior)), total(builder(0, shipped, prior)), rtol=1e-9)
    for builder in (lambda q: (kernels.mean(0, q),), lambda q: kernels.variance(0, q)):
        np.testing.assert_allclose(total(builder(again)), total(builder(shipped)), rtol=1e-12)
    u = np.array([[0.03], [0.4], [0.95]])
    np.testing.assert_allclose(kernels.sampler(again)(u, points), kernels.sampler(shipped)(u, points), rtol=1e-9)


def test_a_mass_function_that_repeats_bernoulli_gives_its_numbers():
    et.register_family("coin", log_density=C * BETA - sympy.log(1 + sympy.exp(C)), t=1, points=(0, 1))
    mine, theirs = (et.evaluate(problem(name, et.Bernoulli(0.3)), tol=1e-8) for name in ("coin", "bernoulli"))
    assert mine["L"].value == pytest.approx(theirs["L"].value, abs=1e-7)


def test_a_prior_that_does_not_cover_the_family_is_refused():
    et.register_family("coin", log_density=C * BETA - sympy.log(1 + sympy.exp(C)), t=1, points=(0, 1))
    with pytest.raises(InputError, match="puts mass on 0, and the prior has none there"):
        problem("coin", et.Normal(0, 1))
    et.register_family("later", sympy.exp(C - BETA * sympy.exp(C)), t=1, support="half-line")
    with pytest.raises(InputError, match=r"its density covers \(0, inf\), the prior's does not"):
        problem("later", et.Uniform(0.0, 1.0))


def test_a_family_that_cannot_be_printed_is_refused_and_forgotten():
    # An integral of its own stands in the density; sympy knows it, numpy has no word for it.
    density = sympy.exp(-((BETA - C) ** 2) / 2) / sympy.sqrt(2 * sympy.pi) + 0 * BETA
    strange = density * sympy.zeta(3 + C**2) / sympy.zeta(3 + C**2, evaluate=False)
    with pytest.raises(InputError, match="family 'strange'"):
        et.register_family("strange", strange * sympy.zeta(2 + C**2), t=1, mean=C, variance=sympy.Integer(1))
    assert "strange" not in families.family_names()


def test_a_registered_psi_gives_the_numbers_of_its_expression():
    et.register_psi("ramp", "min(max(b, 0), 1)")
    named, spelled = (
        et.evaluate(problem("bernoulli", et.Bernoulli(0.3), psi), tol=1e-8) for psi in ("ramp", "min(max(b, 0), 1)")
    )
    assert named["L"].value == spelled["L"].value
    with pytest.raises(InputError, match="taken"):
        et.register_psi("ramp", "b")


@pytest.mark.parametrize("psi", ["identity", "2*b - 1", "3", "zero"])
def test_affine_psi_by_moments_of_y(psi):
    """U2 and U3 to rounding: E<y - mu2, w> psi(b), with E and covariance of y written out."""
    case = problem("bernoulli", et.Bernoulli(0.4), psi)
    values = et.evaluate(case, tol=1e-8)
    slope, intercept = {"identity": (1, 0), "2*b - 1": (2, -1), "3": (0, 3), "zero": (0, 0)}[psi]
    layer, p1 = case.layer, case.input
    mean, covariance = layer.A @ p1.mean(), layer.A @ p1.covariance() @ layer.A.T
    b, variance = mean @ layer.u, layer.u @ covariance @ layer.u
    psi_mean, psi_square = slope * b + intercept, slope**2 * variance + (slope * b + intercept) ** 2
    u2 = 2 * (mean @ layer.w * psi_mean + slope * layer.w @ covariance @ layer.u)
    assert values["U2"].value == pytest.approx(u2, rel=1e-13, abs=1e-14)
    assert values["U3"].value == pytest.approx(layer.w @ layer.w * psi_square, rel=1e-13, abs=1e-14)
    assert values["U2"].error <= 1e-13 * max(1, abs(u2)) * 10
    assert abs(values["U2"].value - u2) <= max(values["U2"].error, 1e-300)


def test_w_zero_prunes():
    case = problem("bernoulli", et.Bernoulli(0.4), "relu")
    still = et.Problem(et.Layer(case.layer.A, [0.0, 0.0], case.layer.u, "relu"), case.input, case.model, case.encoder)
    values = et.evaluate(still)
    assert (values["U2"].value, values["U3"].value, values["U2"].error) == (0.0, 0.0, 0.0)
