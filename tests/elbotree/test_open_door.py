"""Families and nonlinearities of a user's own, from the front door to the twelve numbers."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

import elbotree as et
from elbotree.derivation import activations, families
from elbotree.runtime import models
from elbotree.runtime.errors import InputError

BETA, C = sympy.symbols("beta c")


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    for module, name in ((families, "_registry"), (activations, "_registry"), (models, "_RULES")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


def problem(family, prior, psi="tanh"):
    rng = np.random.default_rng(3)
    layer = et.Layer(rng.normal(size=(2, 2)), rng.normal(size=2), rng.normal(size=2), psi)
    p1 = et.FeatureModel(rng.normal(size=(2, 2)), [et.Bernoulli(0.3), et.Normal(0, 1)], 0.4)
    p2 = et.FeatureModel(rng.normal(size=(2, 1)), [prior], 0.5)
    return et.Problem(layer, p1, p2, et.Encoder([et.Posterior(family, [[0.4, -0.3]], [0.2])]))


def test_a_family_that_repeats_a_shipped_one_gives_its_numbers():
    softplus = sympy.log(1 + sympy.exp(C))
    et.register_family("mine", sympy.exp(-BETA / softplus) / softplus, t=1, support="half-line")
    mine, theirs = (
        et.evaluate(problem(name, et.Gamma(2.0, 0.7)), tol=0.5, method="grid", eps=0.05)
        for name in ("mine", "exponential")
    )
    for name in ("L", "R1", "S1", "T2", "T3"):
        assert mine[name].value == pytest.approx(theirs[name].value, rel=1e-9)


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
