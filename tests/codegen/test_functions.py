"""Printed psi and family sections: they run on numpy and scipy alone, mean what the definitions say (scipy's
quadrature, central differences), stay finite at extreme c, and are the same text every time."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import sympy as sp
from scipy import integrate, special, stats

from elbotree import runtime as rt
from elbotree.codegen.functions import KernelPrinter, family_section, fold, print_expression, psi_section
from elbotree.derivation import families
from elbotree.derivation.activations import activation_names
from elbotree.derivation.grammar import B, parse_psi
from elbotree.derivation.registration import register_family
from elbotree.runtime import posteriors
from elbotree.runtime.errors import InputError
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

HEADER = "import numpy as np\nfrom scipy import special\nfrom elbotree import runtime as rt\n"
ALL = ["bernoulli", "normal", "normal_scale", "exponential", "tilted"]
EXTREME = np.array([-1e6, -745.5, -40.0, -1.0, 0.0, 1.0, 40.0, 745.5, 1e6])


def load(text):
    """Run a section, as codegen does with the text that it printed itself."""
    assert rt.posteriors is posteriors
    namespace: dict = {}
    exec(compile(HEADER + text, "<section>", "exec"), namespace)
    return SimpleNamespace(**namespace)


@pytest.fixture(scope="module")
def kernels():
    return load(family_section(ALL))


def posterior(family, base=None, **parameters):
    return SimpleNamespace(family=family, parameters=parameters, base=base)


@np.errstate(under="ignore")  # as every engine asks for them
def total(integrands, *c):
    return sum((g.value(*(c[i] for i in g.uses)) for g in integrands), np.zeros(np.shape(c[0])))


# -- psi -----------------------------------------------------------------------------------------------------------

ORACLES = {
    "relu": lambda b: max(b, 0.0),
    "leaky_relu": lambda b: b if b > 0 else 0.01 * b,
    "elu": lambda b: b if b > 0 else math.expm1(b),
    "softplus": lambda b: math.log1p(math.exp(b)),
    "sigmoid": lambda b: 1 / (1 + math.exp(-b)),
    "tanh": math.tanh,
    "gelu": lambda b: b * stats.norm.cdf(b),
    "silu": lambda b: b / (1 + math.exp(-b)),
    "exp": math.exp,
    "square": lambda b: b * b,
    "cube": lambda b: b**3,
    "abs": abs,
    "sin": math.sin,
    "heaviside": lambda b: float(b > 0),
    "sign": lambda b: math.copysign(1, b),
    "reciprocal": lambda b: 1 / b,
    "identity": lambda b: b,
    "zero": lambda b: 0.0,
    "hardtanh": lambda b: min(1.0, max(-1.0, b)),
}


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_shipped_psi_and_its_derivative(name):
    kernel = load(psi_section(name))
    b = np.array([[-3.1, -0.9], [-0.2, 0.3], [1.7, 4.0]])
    with np.errstate(all="raise"):
        value, slope = kernel.psi(b), kernel.psi_derivative(b)
    expected = np.vectorize(ORACLES[name], otypes=[float])
    np.testing.assert_allclose(value, expected(b), rtol=2e-15, atol=1e-16)
    step = 1e-5
    np.testing.assert_allclose(slope, (expected(b + step) - expected(b - step)) / (2 * step), rtol=1e-8, atol=1e-9)
    assert value.shape == slope.shape == b.shape
    assert kernel.PSI.value is kernel.psi
    assert kernel.PSI.text == name


def test_every_shipped_psi_has_an_oracle():
    assert set(ORACLES) == set(activation_names())


@pytest.mark.parametrize("name", sorted(set(ORACLES) - {"exp", "cube", "sin"}))
def test_shipped_psi_is_silent_at_extremes(name):
    kernel = load(psi_section(name))
    b = np.array([-1e6, -800.0, 800.0, 1e6])
    with np.errstate(all="raise", under="ignore"):
        value, slope = kernel.psi(b), kernel.psi_derivative(b)
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()


def test_activation_carries_what_was_found():
    psi = load(psi_section("where(b < -1, 1/(b - 2), where(b < 2, b, log(b)))")).PSI
    assert psi.breaks == (-1.0, 2.0)
    assert (psi.affine, psi.poles, psi.domain) == (None, (), (-np.inf, np.inf))
    assert load(psi_section("3*b - 1/4")).PSI.affine == (3.0, -0.25)
    assert load(psi_section("reciprocal")).PSI.poles == (0.0,)
    assert load(psi_section("log(b)")).PSI.domain == (0.0, np.inf)


def test_branches_not_taken_stay_silent():
    kernel = load(psi_section("where(b > 0, log(b), b)"))
    with np.errstate(all="raise"):
        np.testing.assert_allclose(kernel.psi(np.array([-2.0, math.e])), [-2, 1], rtol=1e-15)


def test_printer_writes_plain_numpy():
    texts = {
        "max(0, b, b**2)": "np.maximum(b, b**2)",
        "0.1*b": "0.1 * b",
        "1/b**2": "1.0 / b**2",
        "sqrt(b)/3 + pi": "0.3333333333333333 * np.sqrt(b) + np.pi",
        "b**(1/3)": "b**0.3333333333333333",
        "exp(1/2)*b": "b * np.exp(0.5)",
    }
    assert {text: print_expression(parse_psi(text)) for text in texts} == texts
    assert KernelPrinter().doprint(B) == "b"


# -- families ------------------------------------------------------------------------------------------------------

LAWS = {
    "normal": lambda c, q: stats.norm(c, q.parameters["std"]),
    "exponential": lambda c, q: stats.expon(scale=np.logaddexp(0, c)),
}
MIX = Mixture([0.3, 0.7], [Normal(0, 0.2), Normal(1, 1.0)])
NUMERIC = [
    (posterior("normal", std=0.5), Normal(0.3, 1.2)),
    (posterior("normal", std=0.5), Laplace(0.2, 0.7)),
    (posterior("normal", std=0.5), MIX),
    (posterior("exponential"), Exponential(0.8)),
    (posterior("exponential"), Gamma(2.5, 0.5)),
    (posterior("exponential"), Normal(0.3, 1.2)),
    (posterior("exponential"), Laplace(0.2, 0.7)),
    (posterior("exponential"), Mixture([0.5, 0.5], [Exponential(0.1), Gamma(2.0, 1.0)])),
]


@pytest.mark.parametrize(("q", "prior"), NUMERIC)
def test_kl_is_its_integral(kernels, q, prior):
    make = LAWS[q.family]
    c = np.array([-1.5, 0.2, 2.0])
    found = total(kernels.kl(0, q, prior), c)
    for got, at in zip(found, c, strict=True):
        law = make(at, q)
        low_, high_ = (law.ppf(1e-14), law.isf(1e-14))
        cuts = [
            x for x in sorted({low_, *prior.breakpoints, law.mean(), -0.5, 0.0, 0.5, 1.0, high_}) if low_ <= x <= high_
        ]
        expected = sum(
            integrate.quad(lambda x, law=law: law.pdf(x) * (law.logpdf(x) - prior.logpdf(x)), a, z, epsabs=1e-13)[0]
            for a, z in pairwise(cuts)
        )
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-10)


TILTED = [
    (Normal(0.3, 1.2), Normal(-0.2, 0.9)),
    (Normal(0.3, 1.2), Laplace(0.2, 0.7)),
    (Discrete([0, 1, 2.5], [0.2, 0.5, 0.3]), Discrete([0, 1, 2.5], [0.2, 0.5, 0.3])),
    (Discrete([0, 1], [0.6, 0.4]), Discrete([0, 1, 2.5], [0.2, 0.5, 0.3])),
    (SpikeSlab(0.4, Laplace(0.0, 1.0)), SpikeSlab(0.3, Normal(0.0, 2.0))),
    (MIX, MIX),
    (Uniform(-1, 2), Normal(0.3, 1.2)),
    (Gamma(2.0, 0.5), Exponential(0.8)),
]


@pytest.mark.parametrize(("base", "prior"), TILTED)
def test_tilted_kl_is_its_definition(kernels, base, prior):
    """KL(Q || P) summed over the atoms and integrated over the rest, from the unnormalised density alone."""
    q, c = posterior("tilted", base, precision=1.5), 0.7

    def tilt(x):
        return np.exp(c * x - 0.75 * x**2)

    points, masses = base.atoms
    atoms = masses * tilt(points)
    cuts = sorted({-9.0, 9.0, -0.5, 0.0, 0.5, 1.0, *base.breakpoints, *prior.breakpoints})
    cuts = [x for x in cuts if max(-9.0, base.support[0]) <= x <= min(9.0, base.support[1])]

    def integral(h):
        pairs = pairwise(cuts)
        return sum(integrate.quad(lambda x: float(np.exp(base.logpdf(x))) * tilt(x) * h(x), a, z)[0] for a, z in pairs)

    rest = integral(lambda x: 1.0) if base.continuous_weight else 0.0
    z = atoms.sum() + rest
    expected = np.sum(atoms / z * (np.log(atoms / z) - prior.log_mass(points)))
    if base.continuous_weight:
        gap = integral(lambda x: float(base.logpdf(x) - prior.logpdf(x)) + c * x - 0.75 * x**2 - np.log(z))
        expected += gap / z
    assert total(kernels.kl(0, q, prior), np.array([c]))[0] == pytest.approx(expected, rel=1e-8, abs=1e-10)


CASES = [
    (posterior("bernoulli"), Bernoulli(0.3)),
    (posterior("bernoulli"), Discrete([0, 1, 2], [0.3, 0.3, 0.4])),
    *NUMERIC,
    (posterior("normal_scale"), Normal(0.3, 1.2)),
    (posterior("normal_scale"), MIX),
    *((posterior("tilted", base, precision=1.5), prior) for base, prior in TILTED),
]


def points_of(q):
    c = np.array([[-2.2, -0.4, 0.3], [0.9, 1.8, 3.1]])
    return (c, 0.7 * c[::-1] - 0.3) if q.family == "normal_scale" else (c,)


def difference(f, step):
    """The fourth-order central difference at 0."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


@pytest.mark.parametrize(("q", "prior"), CASES)
def test_derivatives_in_c(kernels, q, prior):
    c = points_of(q)
    sources = [
        (lambda: (kernels.mean(0, q),), lambda r: kernels.mean_derivative(0, q, r)),
        (lambda: kernels.variance(0, q), lambda r: kernels.variance_derivative(0, q, r)),
        (lambda: kernels.kl(0, q, prior), lambda r: kernels.kl_derivative(0, q, prior, r)),
    ]
    for value, slope in sources:
        for r in range(len(c)):
            expected = difference(lambda h, r=r: total(value(), *(x + h * (i == r) for i, x in enumerate(c))), 1e-3)  # noqa: B023
            np.testing.assert_allclose(total(slope(r), *c), expected, rtol=1e-8, atol=3e-10)


@pytest.mark.parametrize(("q", "prior"), CASES)
def test_derivatives_in_the_posteriors_parameters(kernels, q, prior):
    c = points_of(q)
    for quantity in ("mean", "variance", "kl"):
        extra = (prior,) if quantity == "kl" else ()
        slopes = getattr(kernels, f"{quantity}_parameters")(0, q, *extra)
        assert set(slopes) == set(q.parameters)
        for name in slopes:

            def value(h, name=name, quantity=quantity, extra=extra):
                moved = posterior(q.family, q.base, **{name: q.parameters[name] + h})
                found = getattr(kernels, quantity)(0, moved, *extra)
                return total(found if isinstance(found, tuple) else (found,), *c)

            np.testing.assert_allclose(total(slopes[name], *c), difference(value, 1e-3), rtol=1e-8, atol=3e-10)


def spec_with(prior, name, h):
    """The prior with one scalar parameter moved by h."""
    spec = prior.spec()
    where, (*path, last) = spec, name.split(".")
    for key in path:
        where = where[int(key) if key.isdigit() else key]
    where[last] = where[last] + h
    return type(prior).from_spec(spec)


@pytest.mark.parametrize(("q", "prior"), CASES)
def test_derivatives_in_the_priors_parameters(kernels, q, prior):
    c = points_of(q)
    slopes = kernels.kl_prior(0, q, prior)
    assert set(slopes) == set(prior.parameters())
    for name, value in prior.parameters().items():
        if np.ndim(value) == 0:
            expected = difference(lambda h, name=name: total(kernels.kl(0, q, spec_with(prior, name, h)), *c), 1e-4)
            np.testing.assert_allclose(total(slopes[name], *c), expected, rtol=1e-7, atol=1e-9)
        else:  # scaling all masses by a factor moves log p by its log, and K by -1 per unit
            assert len(slopes[name]) == len(value)
            moved = sum(v * total(s, *c) for v, s in zip(value, slopes[name], strict=True))
            np.testing.assert_allclose(moved, -1.0, rtol=1e-11)


def test_mass_derivative_one_by_one(kernels):
    prior, q = Discrete([0, 1, 2], [0.3, 0.3, 0.4]), posterior("bernoulli")
    c = np.array([-1.0, 2.0])
    slopes = [total(s, c) for s in kernels.kl_prior(0, q, prior)["masses"]]
    np.testing.assert_allclose(slopes, [-special.expit(-c) / 0.3, -special.expit(c) / 0.3, [0, 0]], rtol=1e-14)


@pytest.mark.parametrize(("q", "prior"), CASES)
def test_extreme_parameters_are_finite_and_silent(kernels, q, prior):
    c = (EXTREME, EXTREME[::-1]) if q.family == "normal_scale" else (EXTREME,)
    with np.errstate(all="raise", under="ignore"):
        found = [
            total((kernels.mean(0, q),), *c),
            total(kernels.variance(0, q), *c),
            total(kernels.kl(0, q, prior), *c),
        ]
        for r in range(len(c)):
            found += [total(kernels.mean_derivative(0, q, r), *c), total(kernels.kl_derivative(0, q, prior, r), *c)]
    assert all(np.isfinite(values).all() for values in found)
    assert (found[1] >= 0).all()
    assert (found[2] >= -1e-9 * np.maximum(1, np.abs(c[0]))).all()


def test_bernoulli_kl_at_its_ends(kernels):
    found = total(kernels.kl(0, posterior("bernoulli"), Bernoulli(0.3)), np.array([-1e6, 1e6]))
    np.testing.assert_allclose(found, [-math.log(0.7), -math.log(0.3)], rtol=1e-12)


def test_polynomials_are_flagged(kernels):
    q = posterior("normal", std=0.5)
    assert kernels.mean(3, q).coefficients == (0.0, 1.0)
    (kl,) = kernels.kl(3, q, Normal(0.3, 1.2))
    assert (len(kl.coefficients), kl.uses, kl.feature, kl.label) == (3, (0,), 3, "K[3]")
    (variance,) = kernels.variance(3, q)
    assert (variance.coefficients, variance.uses) == ((0.25,), ())
    tilted = posterior("tilted", Normal(0.3, 1.2), precision=2.0)
    assert len(kernels.mean(0, tilted).coefficients) == 2
    assert [len(g.coefficients) for g in kernels.kl(0, tilted, Normal(0.0, 1.0))] == [3]
    first, second = kernels.kl(0, posterior("normal_scale"), Normal(0.3, 1.2))
    assert (first.uses, len(first.coefficients), second.uses, second.coefficients) == ((0,), 3, (1,), None)
    (alone,) = kernels.variance(0, posterior("normal_scale"))
    assert alone.uses == (1,)
    assert kernels.variance_derivative(0, q, 0) == ()


def test_family_that_was_not_printed_is_refused():
    kernel = load(family_section("normal"))
    with pytest.raises(InputError, match=r"generated for normal, not for the posterior family 'tilted'"):
        kernel.mean(0, posterior("tilted"))
    with pytest.raises(InputError, match="family 'normel' is not known"):
        family_section("normel")


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("how", ["closed", "quadrature"])
def test_registered_family_prints_and_agrees_with_the_shipped_one(how, kernels):
    """exponential by its log rate: the same laws as the shipped family's, at other c; once with the closed forms that
    sympy finds, once with none, so that mean, variance and entropy are quadratures."""
    c0, beta = families.C[0], families.BETA
    hints = {} if how == "closed" else {"seconds": 0.0, "centre": 0, "spread": sp.exp(-c0), "reach": (0.0, 45.0)}
    family = register_family("by_rate", sp.exp(c0 - beta * sp.exp(c0)), t=1, support="half-line", **hints)
    assert (family.mean is None) == (how == "quadrature")
    kernel, prior, rate = load(family_section("by_rate")), Gamma(2.5, 0.5), np.array([-1.0, 0.4])
    c = np.log(np.expm1(np.exp(-rate)))
    mine, theirs = posterior("by_rate"), posterior("exponential")
    np.testing.assert_allclose(kernel.mean(0, mine).value(rate), np.exp(-rate), rtol=1e-12)
    np.testing.assert_allclose(total(kernel.variance(0, mine), rate), np.exp(-2 * rate), rtol=1e-12)
    np.testing.assert_allclose(total(kernel.mean_derivative(0, mine, 0), rate), -np.exp(-rate), rtol=1e-12)
    np.testing.assert_allclose(total(kernel.variance_derivative(0, mine, 0), rate), -2 * np.exp(-2 * rate), rtol=1e-12)
    expected = total(kernels.kl(0, theirs, prior), c)
    np.testing.assert_allclose(total(kernel.kl(0, mine, prior), rate), expected, rtol=1e-11)
    slope = difference(lambda h: total(kernel.kl(0, mine, prior), rate + h), 1e-3)
    np.testing.assert_allclose(total(kernel.kl_derivative(0, mine, prior, 0), rate), slope, rtol=1e-9)


@pytest.mark.usefixtures("registries")
def test_family_on_an_interval_with_a_parameter_agrees_with_its_integrals():
    """A Beta-like law on (-1, 2): its moments by scipy, its divergence from a normal prior by scipy."""
    c0, beta = families.C[0], families.BETA
    shape, x = sp.Symbol("shape", positive=True), (families.BETA + 1) / 3
    a = shape + 1 / (1 + sp.exp(-c0))
    density = x ** (a - 1) * (1 - x) / sp.gamma(a) / sp.gamma(2) * sp.gamma(a + 2) / 3
    family = register_family("beta_like", density, t=1, parameters=("shape",), support=(-1, 2), seconds=0.0)
    assert (family.mean, family.entropy) == (None, None)
    assert beta in family.log_density.free_symbols
    kernel, prior = load(family_section("beta_like")), Normal(0.3, 1.4)
    q, at = posterior("beta_like", shape=1.3), np.array([-0.7, 1.1])

    def law(c, shape=1.3):
        return stats.beta(shape + 1 / (1 + np.exp(-c)), 2, loc=-1, scale=3)

    def divergence(c, shape=1.3):
        own = law(c, shape)
        against = integrate.quad(lambda b: -own.pdf(b) * float(prior.logpdf(np.array(b))), -1, 2, epsabs=1e-13)[0]
        return against - own.entropy()

    np.testing.assert_allclose(kernel.mean(0, q).value(at), [law(c).mean() for c in at], rtol=1e-11)
    np.testing.assert_allclose(total(kernel.variance(0, q), at), [law(c).var() for c in at], rtol=1e-11)
    np.testing.assert_allclose(total(kernel.kl(0, q, prior), at), [divergence(c) for c in at], rtol=1e-9)
    for c in at:
        slope = (divergence(c + 1e-4) - divergence(c - 1e-4)) / 2e-4
        np.testing.assert_allclose(total(kernel.kl_derivative(0, q, prior, 0), c), slope, rtol=1e-6)
        by_shape = (divergence(c, 1.3001) - divergence(c, 1.2999)) / 2e-4
        (pieces,) = kernel.kl_parameters(0, q, prior).values()
        np.testing.assert_allclose(total(pieces, c), by_shape, rtol=1e-6)
        means = (law(c, 1.3001).mean() - law(c, 1.2999).mean()) / 2e-4
        np.testing.assert_allclose(total(kernel.mean_parameters(0, q)["shape"], c), means, rtol=1e-6)


# -- the text ------------------------------------------------------------------------------------------------------


def test_text_is_deterministic_across_hash_seeds():
    program = (
        "from elbotree.codegen.functions import *; print(psi_section('where(b < 1, gelu(b), b**3)')); "
        f"print(family_section({ALL!r}))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0] == psi_section("where(b < 1, gelu(b), b**3)") + "\n" + family_section(ALL) + "\n"


def test_text_is_readable():
    text = family_section(ALL)
    assert max(map(len, text.splitlines())) <= 120
    assert "lambda" not in text
    assert "sympy" not in text
    lines = text.splitlines()
    functions = [i for i, line in enumerate(lines) if line.startswith("def ")]
    public = {
        node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    }
    for i in functions:
        name = lines[i].removeprefix("def ").split("(")[0]
        assert name in public or lines[i - 1].startswith("# "), name
    assert text == family_section(list(reversed(ALL)))  # the order of the names says nothing


def test_fold_breaks_long_lines_and_leaves_short_ones():
    short = "    return a + b"
    assert fold(short) == [short]
    long = "    return f(" + ", ".join(f"argument_{i}={i}" for i in range(12)) + ")"
    folded = fold(long)
    assert max(map(len, folded)) < 60
    assert ast.dump(ast.parse("def g():\n" + "\n".join(folded))) == ast.dump(ast.parse("def g():\n" + long))
    total_ = "    return " + " + ".join(f"call_{i}(x - {i})" for i in range(14))
    assert ast.dump(ast.parse("def g():\n" + "\n".join(fold(total_)))) == ast.dump(ast.parse("def g():\n" + total_))
