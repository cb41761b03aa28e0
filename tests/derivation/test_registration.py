"""Families from a density or a mass function: what is derived, what is left to quadrature, and what is refused."""

from __future__ import annotations

import gc
import math
import threading
import time

import pytest
import sympy as sp
from scipy import stats

from elbotree.derivation import families, registration
from elbotree.derivation.deadline import within
from elbotree.derivation.families import BETA, HALF_LINE, REAL_LINE, C, family_names, get_family
from elbotree.derivation.registration import check_family, register_family
from elbotree.runtime.errors import InputError

WIDTH = sp.Symbol("width", positive=True)
LAPLACE = sp.exp(-sp.Abs(BETA - C[0]) / WIDTH) / (2 * WIDTH)
beta, c, u = sp.symbols("beta c u")  # a user's symbols, without assumptions
EXPONENTIAL = sp.exp(c - beta * sp.exp(c))
KNOWN = {"t": 1, "support": "half-line", "mean": sp.exp(-c), "variance": sp.exp(-2 * c), "entropy": 1 - c}

pytestmark = pytest.mark.usefixtures("registries")


@pytest.mark.parametrize("name", sorted(families._SHIPPED))
def test_shipped_families_pass_the_checks_of_new_ones(name):
    check_family(get_family(name))


def test_moments_are_found_from_the_density():
    family = register_family("by_rate", sp.exp(c - beta * sp.exp(c)), t=1, support="half-line")
    assert sp.simplify(family.mean - sp.exp(-C[0])) == 0
    assert sp.simplify(family.variance - sp.exp(-2 * C[0])) == 0
    assert sp.simplify(family.entropy - (1 - C[0])) == 0
    assert get_family("by_rate") is family
    assert [form.prior for form in family.divergences] == ["exponential", "normal", "*"]
    assert sp.simplify(family.samplers["*"] + sp.exp(-C[0]) * sp.log(1 - families.U)) == 0
    laplace = register_family("around", LAPLACE, t=1, parameters=(WIDTH,))
    assert sp.simplify(laplace.variance - 2 * WIDTH**2) == 0
    assert sp.simplify(laplace.entropy - 1 - sp.log(2 * WIDTH)) == 0


def test_mass_function_of_three_points_and_two_parameters():
    total = 1 + sp.exp(C[0]) + sp.exp(C[1])
    log_mass = C[0] * BETA * (2 - BETA) + C[1] * BETA * (BETA - 1) / 2 - sp.log(total)
    family = register_family("three", log_density=log_mass, t=2, points=(0, 1, 2))
    assert sp.simplify(family.mean - (sp.exp(C[0]) + 2 * sp.exp(C[1])) / total) == 0
    second = (sp.exp(C[0]) + 4 * sp.exp(C[1])) / total
    assert sp.simplify(family.variance - (second - family.mean**2)) == 0
    (form,) = family.divergences
    equal = {sp.Symbol(f"log_p{i}", real=True): -sp.log(3) for i in range(3)}
    assert sp.simplify((form.closed - (sp.log(3) - family.entropy)).subs(equal)) == 0


def test_interval_where_sympy_finds_nothing_is_left_to_quadrature():
    # The normaliser is elementary, the entropy (a logarithm of the sine under the integral) is not.
    density = (1 + sp.tanh(c) * sp.sin(7 * sp.pi * beta**2) * beta) / (
        1 + sp.tanh(c) * (1 - sp.cos(7 * sp.pi)) / (14 * sp.pi)
    )
    family = register_family("ripple", density, t=1, support=(0, 1), seconds=0.5)
    assert family.entropy is None
    assert family.divergences[-1].remainder == families.RELATIVE_ENTROPY
    assert family.support == (0, 1)


def test_infinite_support_without_moments_needs_a_place_to_look():
    density = sp.cosh((beta - c) / 2) ** -2 / 4
    arguments = {"t": 1, "seconds": 0.0}
    with pytest.raises(
        InputError, match="no closed form of its mean within 0 s; pass `mean` and `variance`, or `centre`"
    ):
        register_family("logistic", density, **arguments)
    family = register_family("logistic", density, centre=c, spread=sp.Integer(2), **arguments)
    assert (family.mean, family.variance, family.entropy) == (None, None, None)
    assert family.centre == C[0]


DRAWS = {
    "normal": (sp.exp(-((beta - c) ** 2) / 2) / sp.sqrt(2 * sp.pi), {}, lambda p, x: stats.norm.ppf(p, x)),
    "logistic": (
        sp.exp(c - beta) / (1 + sp.exp(c - beta)) ** 2,
        {"centre": c, "spread": sp.Integer(2)},
        lambda p, x: stats.logistic.ppf(p, x),
    ),
    "gumbel": (
        sp.exp(-(beta - c) - sp.exp(-(beta - c))),
        {"centre": c, "spread": sp.Integer(1)},
        lambda p, x: stats.gumbel_r.ppf(p, x),
    ),
    "weibull": (
        2 * beta * sp.exp(c - beta**2 * sp.exp(c)),
        {"support": "half-line", "mean": sp.sqrt(sp.pi) * sp.exp(-c / 2) / 2, "variance": (1 - sp.pi / 4) * sp.exp(-c)},
        lambda p, x: stats.weibull_min.ppf(p, 2, scale=math.exp(-x / 2)),
    ),
}


@pytest.mark.parametrize("name", list(DRAWS))
def test_draws_are_found_from_the_density(name, monkeypatch):
    """In closed form, and the quantiles that scipy has of that law. The other searches have no time here."""
    density, known, quantile = DRAWS[name]
    monkeypatch.setattr(registration, "_integral", lambda *arguments: None)
    arguments = {"centre": c, "spread": sp.Integer(1), "t": 1} | known
    family = register_family(f"my_{name}", density, **arguments)
    draw = family.samplers["*"]
    for p in (0.03, 0.4, 0.97):
        for x in (-1.2, 0.9):
            value = draw.subs({families.U: p, C[0]: x}).evalf()
            assert float(value) == pytest.approx(quantile(p, x), rel=1e-9, abs=1e-9)


def test_where_no_inverse_is_found_draws_are_left_to_quadrature(monkeypatch):
    monkeypatch.setattr(registration, "_integral", lambda *arguments: None)
    gamma = beta**2 * sp.exp(-beta / (1 + c**2)) / 2 / (1 + c**2) ** 3
    known = {"mean": 3 * (1 + c**2), "variance": 3 * (1 + c**2) ** 2}
    assert register_family("gamma_three", gamma, t=1, support="half-line", seconds=1.0, **known).samplers == {}


def test_any_number_of_parameters():
    t = 11
    mean = sp.Add(*sp.symbols(f"c0:{t}"))
    density = sp.exp(-((beta - mean) ** 2) / 2) / sp.sqrt(2 * sp.pi)
    known = {"mean": mean, "variance": sp.Integer(1), "entropy": (1 + sp.log(2 * sp.pi)) / 2, "sampler": mean + 0 * u}
    with pytest.raises(InputError, match="its sampler is wrong"):
        register_family("eleven", density, t=t, **known)
    family = register_family("eleven", density, t=t, **(known | {"sampler": mean + sp.sqrt(2) * sp.erfinv(2 * u - 1)}))
    assert len(family.c) == t
    assert family.c[10] in family.mean.free_symbols


@pytest.mark.parametrize(
    ("density", "arguments", "message"),
    [
        (LAPLACE, {"t": 1}, "unknown symbol.s. width in `density`; use beta, c and the names"),
        (LAPLACE, {"t": 2, "parameters": ("width",)}, "must depend on all of c0, c1, since t = 2"),
        (LAPLACE, {"t": 0, "parameters": ("width",)}, "t = 0; it must be a whole number of at least 1"),
        (LAPLACE, {"t": 1, "parameters": ("c12",)}, "parameter 'c12' is not a free name"),
        (LAPLACE, {"t": 1, "parameters": (sp.Symbol("width", negative=True),)}, "must be a positive symbol"),
        (LAPLACE, {"t": 1, "parameters": ("beta",)}, "parameter 'beta' is not a free name"),
        (LAPLACE, {"t": 1, "parameters": ("width",), "support": "circle"}, '"real", "half-line" or an interval'),
        (LAPLACE, {"t": 1, "parameters": ("width",), "support": (1, 0)}, '"real", "half-line" or an interval'),
        (2 * LAPLACE, {"t": 1, "parameters": ("width",)}, "does not integrate to 1 at c = -7/5: (2|1.9999).*, not 1"),
        (LAPLACE, {"t": 1, "parameters": ("width",), "mean": C[0], "variance": WIDTH**2}, "moment of order 2 is wrong"),
        (LAPLACE, {"t": 1, "parameters": ("width",), "entropy": WIDTH}, "its entropy is wrong at c"),
        (LAPLACE, {"t": 1, "parameters": ("width",), "reach": (-2.0, 2.0)}, "outside of `reach`"),
        (1 + c * (beta - sp.Rational(1, 2)) * 3, {"t": 1, "support": (0, 1)}, "density at beta = .* is negative"),
        (sp.Function("g")(beta, c), {"t": 1}, "undefined function.s. g"),
        ("exp(-beta)", {"t": 1}, "`density` is text; give a sympy expression"),
        (sp.exp(c), {"t": 1}, "does not depend on beta"),
        (c**beta, {"t": 1, "points": (0, 1)}, "its masses do not sum to 1|the mass of beta"),
        (c**beta, {"t": 1, "points": (1, 1)}, "at least two different finite numbers"),
        (1 / (1 + sp.exp(c)), {"t": 1, "points": (0, 1), "mean": c}, "is a finite sum or a table; leave it out"),
        (1 / (1 + sp.exp(c)), {"t": 1, "points": (0, 1), "sampler": c}, "is a finite sum or a table; leave it out"),
        (
            EXPONENTIAL,
            KNOWN | {"sampler": -sp.log(u)},
            r"sampler is wrong: the mass below the draw of u = 0.05 at c = -7/5",
        ),
        (
            EXPONENTIAL,
            KNOWN | {"sampler": sp.log(u)},
            r"its sampler log\(u\) is not on the support at u = 1/20, c = -7/5",
        ),
        (EXPONENTIAL, KNOWN | {"sampler": beta}, "unknown symbol.s. beta in `sampler`; use u, c"),
        (None, {"t": 1}, "give either `density` or `log_density`"),
    ],
)
def test_wrong_families_are_refused_with_the_reason(density, arguments, message):
    with pytest.raises(InputError, match=message):
        register_family("wrong", density, **arguments)
    assert "wrong" not in family_names()


def test_a_density_that_is_negative_between_the_first_looks_is_refused_by_the_check():
    """The check integrates, and looks at every node: what the look before sympy's work misses does not get past it."""
    log_density = sp.log(1 + 3 * C[0] * (BETA - sp.Rational(1, 2)))
    known = {"mean": None, "variance": None, "entropy": None, "centre": sp.Integer(0), "spread": sp.Integer(1)}
    interval = (sp.Integer(0), sp.Integer(1))
    family = families.describe_density("dip", log_density, t=1, law="", support=interval, reach=(0.0, 1.0), **known)
    with pytest.raises(InputError, match=r"family 'dip': its density at beta = .*, c = -7/5 is negative"):
        check_family(family)


@pytest.mark.parametrize("name", ["normal", "two words", "naïve", ""])
def test_names_that_are_taken_or_no_identifiers(name):
    with pytest.raises(InputError, match="is taken or not an identifier"):
        register_family(name, LAPLACE, t=1, parameters=("width",))


def test_registration_tells_users_names_from_shipped_ones():
    assert not families.is_registered_by_user("normal")
    register_family("by_rate", sp.exp(c - beta * sp.exp(c)), t=1, support=HALF_LINE)
    assert families.is_registered_by_user("by_rate")
    families.remove_family("by_rate")
    families.remove_family("normal")
    assert family_names() == tuple(families._SHIPPED)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_search_that_takes_too_long_ends(in_thread):
    found = []

    def never() -> int:
        while True:
            len(())

    def run() -> None:
        start = time.monotonic()
        found.append((within(0.05, never), time.monotonic() - start, within(5.0, lambda: 7)))

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    ((late, seconds, result),) = found
    assert (late, result) == (None, 7)
    assert seconds < 2.0


def test_errors_pass_through_the_time_bound_and_the_hook_is_gone():
    import sys

    with pytest.raises(ZeroDivisionError):
        within(1.0, lambda: 1 / 0)
    assert sys.getprofile() is None


def test_real_line_is_the_default():
    family = register_family("around", LAPLACE, t=1, parameters=("width",), mean=c, variance=2 * WIDTH**2)
    assert family.support == REAL_LINE
    assert registration.SECONDS > 0


def test_softplus_and_sigmoid_are_known_by_what_they_are_written_as():
    from elbotree.derivation.special import LogSoftplus, Sigmoid, Softplus, stable

    x = sp.Symbol("x", real=True)
    assert stable(sp.log(sp.log(1 + sp.exp(2 * x)))) == LogSoftplus(2 * x)
    assert stable(1 / (1 + sp.exp(-x)) ** 2) == Sigmoid(x) ** 2
    assert stable(sp.log(2 + sp.exp(x))) == sp.log(2 + sp.exp(x))  # left alone
    softplus = sp.log(1 + sp.exp(c))
    family = register_family("waiting", sp.exp(-beta / softplus) / softplus, t=1, support="half-line")
    assert family.mean == Softplus(C[0])
    assert family.entropy == LogSoftplus(C[0]) + 1


def test_a_deadline_that_passes_while_garbage_is_collected_still_ends_the_work() -> None:
    """What is raised in a callback of the collector is lost, and the hook with it: psi's analysis went on without bound."""

    def small() -> int:
        return 1

    def busy(phase: str, info: dict[str, int]) -> None:
        for _ in range(200):
            small()

    def work() -> str:
        end = time.thread_time() + 3.0
        while time.thread_time() < end:
            gc.collect(0)
        return "not ended"

    gc.callbacks.append(busy)
    try:
        assert within(0.1, work) is None
    finally:
        gc.callbacks.remove(busy)
