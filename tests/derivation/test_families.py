"""The families' algebra against the definition of each quantity: sums and mpmath integrals of the density itself."""

from __future__ import annotations

import mpmath
import pytest
import sympy as sp

from elbotree.derivation.families import (
    BETA,
    LOG_BASE,
    PRECISION,
    PRIOR_PARAMETERS,
    STD,
    C,
    Z,
    family_names,
    get_family,
    pieces,
    polynomial,
    prior_log_density,
)
from elbotree.derivation.special import LogPartition, LogSoftplus, Softplus, elementary
from elbotree.runtime.errors import InputError

CONTINUOUS = ("normal", "normal_scale", "exponential")
AT = {C[0]: sp.Rational(3, 10), C[1]: sp.Rational(-2, 5), STD: sp.Rational(7, 10)}
PRIOR_AT = {"prior_mean": -0.4, "prior_std": 1.3, "prior_scale": 0.8, "prior_shape": 2.5}


def number(expression, at=AT):
    return float(elementary(expression).subs(at).evalf(20))


def expectation(family, h):
    """E_Q[h(beta)] by mpmath on the density, split at 0 and at the mean."""
    low, high = (mpmath.mpf(float(end)) for end in family.support)
    density = sp.lambdify(BETA, elementary(sp.exp(family.log_density)).subs(AT), "mpmath")
    inner = sp.lambdify(BETA, h, "mpmath")
    cuts = [x for x in (-3, PRIOR_AT["prior_mean"], 0, 0.3, 3) if low < x < high]
    return float(mpmath.quad(lambda x: density(x) * inner(x), [low, *cuts, high]))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_mean_variance_and_entropy_are_those_of_the_density(name):
    family = get_family(name)
    assert expectation(family, sp.Integer(1)) == pytest.approx(1, rel=1e-12)
    mean, square = expectation(family, BETA), expectation(family, BETA**2)
    assert number(family.mean) == pytest.approx(mean, rel=1e-12)
    assert number(family.variance) == pytest.approx(square - mean**2, rel=1e-11)
    log_q = elementary(family.log_density).subs(AT)
    assert number(family.entropy) == pytest.approx(-expectation(family, log_q), rel=1e-11)


@pytest.mark.parametrize(
    ("name", "prior"), [(n, form.prior) for n in CONTINUOUS for form in get_family(n).divergences if form.prior != "*"]
)
def test_closed_divergences_are_the_integral_of_their_definition(name, prior):
    family = get_family(name)
    (form,) = [form for form in family.divergences if form.prior == prior]
    at = {symbol: PRIOR_AT[symbol.name] for symbol in PRIOR_PARAMETERS[prior]}
    log_ratio = (elementary(family.log_density) - prior_log_density(prior)).subs(AT | at)
    assert number(form.closed, AT | at) == pytest.approx(expectation(family, log_ratio), rel=1e-10)


def test_bernoulli_is_the_finite_sum():
    family = get_family("bernoulli")
    log_p = dict(zip(sp.symbols("log_p0 log_p1", real=True), (-0.3, -1.7), strict=True))
    q = [number(sp.exp(mass)) for mass in family.log_masses]
    assert sum(q) == pytest.approx(1, rel=1e-15)
    assert number(family.mean) == pytest.approx(q[1], rel=1e-15)
    assert number(family.variance) == pytest.approx(q[0] * q[1], rel=1e-15)
    logs = [number(mass) for mass in family.log_masses]
    expected = q[0] * (logs[0] + 0.3) + q[1] * (logs[1] + 1.7)
    assert number(family.divergences[0].closed, AT | log_p) == pytest.approx(expected, rel=1e-14)


# -- tilted: Lambda of a finite base is a finite sum, so everything can be checked exactly


def finite_log_partition(expression):
    """Put log sum_i m_i e^{c a_i - r a_i^2 / 2} for Lambda, differentiated as often as asked."""
    base = ((-1, sp.Rational(1, 4)), (0, sp.Rational(1, 4)), (2, sp.Rational(1, 2)))

    def closed(c, r, order):
        x = sp.Dummy("x", real=True)
        log_sum = sp.log(sum(m * sp.exp(x * a - r * sp.Rational(a * a, 2)) for a, m in base))
        return sp.diff(log_sum, x, int(order)).subs(x, c)

    return expression.replace(LogPartition, closed)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_precision_derivative_of_the_log_partition_is_the_heat_equation(order):
    log_z = LogPartition(C[0], PRECISION, order)
    direct = sp.diff(finite_log_partition(log_z), PRECISION)
    difference = (direct - finite_log_partition(sp.diff(log_z, PRECISION))).subs({C[0]: 0.37, PRECISION: 0.81})
    assert abs(difference.evalf(30)) < 1e-13
    assert abs(direct.subs({C[0]: 0.37, PRECISION: 0.81}).evalf()) > 1e-3


def test_tilted_moments_and_divergence_from_its_base_are_finite_sums():
    family = get_family("tilted")
    at = {C[0]: 0.37, PRECISION: 0.81}
    weights = [m * mpmath.exp(0.37 * a - 0.405 * a * a) for a, m in ((-1, 0.25), (0, 0.25), (2, 0.5))]
    q = [w / sum(weights) for w in weights]
    mean = 2 * q[2] - q[0]
    variance = q[0] + 4 * q[2] - mean**2
    kl = sum(p * mpmath.log(p / m) for p, m in zip(q, (0.25, 0.25, 0.5), strict=True))
    (same,) = [form.closed for form in family.divergences if form.prior == "same"]
    for expression, expected in ((family.mean, mean), (family.variance, variance), (same, kl)):
        assert float(finite_log_partition(expression).subs(at)) == pytest.approx(float(expected), rel=1e-12)


def test_tilted_on_a_normal_base_is_the_normal_posterior():
    family = get_family("tilted")
    mean, std = sp.Symbol("base_mean", real=True), sp.Symbol("base_std", positive=True)
    s, v = (family.on_base(e, "normal") for e in (family.mean, family.variance))
    assert sp.simplify(1 / v - PRECISION - 1 / std**2) == 0
    assert sp.simplify(s - (C[0] + mean / std**2) * v) == 0
    assert len(polynomial(s, (0,), family.c)) == 2
    (form,) = [f for f in family.divergences if (f.prior, f.base) == ("normal", "normal")]
    prior_mean, prior_std = PRIOR_PARAMETERS["normal"]
    textbook = sp.log(prior_std) - sp.log(v) / 2 + (v + (s - prior_mean) ** 2) / (2 * prior_std**2) - sp.Rational(1, 2)
    at = {C[0]: 0.37, PRECISION: 0.81, mean: 0.2, std: 1.7, prior_mean: -0.4, prior_std: 1.3}
    assert float(form.closed.subs(at)) == pytest.approx(float(textbook.subs(at)), rel=1e-13)
    assert len(polynomial(form.closed, (0,), family.c)) == 3


def test_score_of_tilted_is_beta_less_its_mean():
    family = get_family("tilted")
    assert sp.diff(family.log_density, C[0]) == BETA - family.mean
    assert family.log_density.has(LOG_BASE(BETA))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_standard_form_and_scores(name):
    family = get_family(name)
    assert not family.standard_log_density().has(*family.c, STD)  # a location-scale family
    beta = family.centre + family.spread * Z
    for symbol, score in zip(
        (*family.c, *family.parameters), (*family.scores(), *family.parameter_scores().values()), strict=True
    ):
        at = AT | {Z: 0.6}
        direct = sp.diff(family.log_density, symbol).subs(BETA, beta)
        assert number(score, at) == pytest.approx(number(direct, at), rel=1e-13)


def test_pieces_separate_coordinates_and_flag_polynomials():
    c0, c1 = C[:2]
    expression = (c0 - STD) ** 2 + Softplus(c1) + 5
    (uses0, part0), (uses1, part1) = pieces(expression, (c0, c1))
    assert (uses0, uses1) == ((0,), (1,))
    assert sp.expand(part0 + part1 - expression) == 0
    assert part1 == Softplus(c1)  # the constant went to the polynomial
    assert polynomial(part0, uses0, (c0, c1)) == (STD**2 + 5, -2 * STD, 1)
    assert polynomial(part1, uses1, (c0, c1)) is None
    assert pieces(sp.Integer(0), (c0,)) == []
    assert pieces(c0 * Softplus(c1), (c0, c1)) == [((0, 1), c0 * Softplus(c1))]  # left alone
    assert pieces(STD, (c0,)) == [((), STD)]


def test_normal_scale_splits_against_a_normal_prior():
    family = get_family("normal_scale")
    parts = pieces(family.divergences[0].closed, family.c)
    assert [uses for uses, _ in parts] == [(0,), (1,)]
    assert parts[1][1].has(LogSoftplus(C[1]))


def test_names_and_unknown_name():
    assert set(family_names()) >= {"bernoulli", "normal", "normal_scale", "exponential", "tilted"}
    with pytest.raises(InputError, match=r"family 'tilt' is not known \(did you mean 'tilted'\?\); known: bernoulli, "):
        get_family("tilt")
