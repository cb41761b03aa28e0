"""Extremes of numbers: right, against a reference that shares no code, or refused with the reason."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime import frames, spectral
from elbotree.runtime.values import require_divergence
from tests.reference.oracle import reference_terms
from tests.stress import extremes
from tests.stress.outcomes import SMALL


def changed(**changes: Any) -> dict[str, Any]:
    """The small problem with other numbers: a key is the place, with __ for a step down."""
    form = copy.deepcopy(SMALL)
    for place, value in changes.items():
        *path, last = (int(step) if step.isdigit() else step for step in place.split("__"))
        holder: Any = form
        for step in path:
            holder = holder[step]
        holder[last] = value
    return form


def agrees(form: dict[str, Any], tol: float = 1e-6) -> None:
    """All twelve terms are within their stated errors of the reference, and the errors within tol."""
    values, expected = et.evaluate(et.Problem.from_dict(form), tol), reference_terms(form)
    for name, term in values.items():
        slack = 1e-10 * max(1.0, abs(expected[name]))  # the reference's own
        assert abs(term.value - expected[name]) <= term.error + slack, (name, term, expected[name])
        assert term.error <= tol * max(1.0, abs(term.value)), (name, term)


def scaled(x: float, c: float) -> dict[str, Any]:
    """The same problem with x1 and x2 in units that are `x` times smaller, c_j as before when c = 1 / x."""
    form = copy.deepcopy(SMALL)
    for part in ("input", "model"):
        form[part]["B"] = [[x * v for v in row] for row in form[part]["B"]]
        form[part]["noise_std"] *= x
    form["layer"]["threshold"] *= x
    for q in form["encoder"]:
        q["C"] = [[c * v for v in row] for row in q["C"]]
    return form


DISCRETE = {"kind": "discrete", "points": [0, 1, 5], "masses": [1e-300, 0.5, 0.5]}
NO_FEATURES = {"B": [[], []], "noise_std": 0.5, "priors": []}
ONE = {
    "format": SMALL["format"],
    "layer": {"A": [[1.0]], "w": [0.5], "u": [0.8], "psi": "relu"},
    "input": {"B": [[1.0]], "noise_std": 0.5, "priors": [{"kind": "bernoulli", "p": 0.3}]},
    "model": {"B": [[1.0]], "noise_std": 0.4, "priors": [{"kind": "bernoulli", "p": 0.3}]},
    "encoder": [{"family": "bernoulli", "C": [[1.0]]}],
}


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(changed(model__noise_std=1e-12), id="sigma2 = 1e-12"),
        pytest.param(changed(model__noise_std=1e12), id="sigma2 = 1e12"),
        pytest.param(changed(input__noise_std=1e-12), id="sigma1 = 1e-12, beside a normal feature"),
        pytest.param(changed(input__priors__0={"kind": "bernoulli", "p": 1e-300}), id="a mass of 1e-300"),
        pytest.param(changed(input__priors__0={"kind": "bernoulli", "p": 5e-324}), id="the least mass there is"),
        pytest.param(changed(input__priors__0=DISCRETE), id="a mass of 1e-300 among others"),
        pytest.param(changed(model__priors__0={"kind": "bernoulli", "p": 1e-300}), id="a prior's mass of 1e-300"),
        pytest.param(changed(encoder__0__bias=[1e6]), id="logit 1e6"),
        pytest.param(changed(encoder__0__bias=[-1e6]), id="logit -1e6"),
        pytest.param(changed(encoder__1__std=1e-12), id="a posterior's std of 1e-12"),
        pytest.param(changed(encoder__1__std=1e12), id="a posterior's std of 1e12"),
        pytest.param(changed(input__B=[[1e-8, 0.2], [-3e-9, 1.1]]), id="an input feature of 1e-8"),
        pytest.param(changed(model__B=[[1e-8, 0.1], [2e-9, 1e8]]), id="model features of 1e-8 beside 1e8"),
        pytest.param(changed(input__B=[[5e-324, 0.2], [-0.3, 1.1]]), id="an entry that is denormal"),
        pytest.param(changed(input__priors__1__std=1e-12), id="a prior's std of 1e-12"),
        pytest.param(changed(layer__w=[1e-300, -1e-300]), id="w of 1e-300"),
        pytest.param(changed(layer__u=[0.0, 0.0]), id="u = 0"),
        pytest.param(changed(layer__threshold=-1e6), id="a threshold that psi never passes"),
        pytest.param(ONE, id="n = 1"),
        pytest.param({**SMALL, "input": NO_FEATURES}, id="m1 = 0"),
        pytest.param({**SMALL, "model": NO_FEATURES, "encoder": []}, id="m2 = 0"),
        pytest.param({**SMALL, "input": NO_FEATURES, "model": NO_FEATURES, "encoder": []}, id="m1 = m2 = 0"),
        pytest.param(scaled(1e4, 1e-4), id="units 10,000 times smaller"),
        pytest.param(scaled(1e-4, 1e4), id="units 10,000 times larger"),
    ],
)
def test_right_against_the_reference(form: dict[str, Any]) -> None:
    agrees(form)


@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-8])
def test_means_of_a_large_f_with_what_few_modes_leave_out_of_it_are_covered(tol: float) -> None:
    """Modes beyond the cut count by what f reaches, 14 here: they counted by 1, as those of the function alone."""
    form = copy.deepcopy(ONE)
    form["layer"] |= {"A": [[-1.5]], "w": [-0.9], "u": [0.15], "psi": "identity", "offset": [-2.5], "threshold": 1.6}
    form["input"] = {"B": [[-0.9, 1.0]], "noise_std": 0.3, "priors": [ONE["input"]["priors"][0], {"kind": "normal"}]}
    form["model"]["B"] = [[0.007]]
    agrees(form, tol)


def test_units_of_b_do_not_matter() -> None:
    """x1 and x2 in units 1e8 times smaller, where the reference would need 7 GB: densities fall by 1e8 in each of n2 directions."""
    plain, small = (et.evaluate(et.Problem.from_dict(scaled(x, 1 / x)), 1e-6) for x in (1.0, 1e8))
    assert small["R1"].value == pytest.approx(plain["R1"].value, rel=1e-9)
    moved = plain["L"].value + len(SMALL["layer"]["u"]) * math.log(1e8)
    assert abs(small["L"].value - moved) <= small["L"].error + plain["L"].error + 1e-9


@pytest.mark.parametrize(
    ("form", "kind", "message"),
    [
        (changed(input__noise_std=1e12), et.ToleranceError, "what would help: a larger tol"),
        (changed(input__B=[[1e-8, 0.2], [-3e-9, 1e8]]), et.ToleranceError, "what would help: a larger tol"),
        (changed(encoder__0__C=[[1e6, 0.2]]), et.ToleranceError, "what would help: a larger tol"),
        (changed(layer__A=[[1e300, 0.2], [0.0, 0.9]]), et.UnsupportedError, "leaves the range of float64"),
        (changed(input__noise_std=1e300), et.UnsupportedError, "leaves the range of float64"),
        (changed(model__noise_std=1e-300), et.UnsupportedError, "leaves the range of float64"),
        (changed(input__priors__1__mean=1e308), et.UnsupportedError, "leaves the range of float64"),
    ],
)
def test_refused_with_the_reason(form: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        et.evaluate(et.Problem.from_dict(form))


def test_a_fit_beyond_float64_is_refused() -> None:
    problem = et.Problem.from_dict(changed(input__priors__1__mean=1e300))
    with pytest.raises(et.UnsupportedError, match="the fit leaves the range of float64"):
        et.fit(problem.layer, problem.input, 1, "normal", tol=1e-1)
    with pytest.raises(et.UnsupportedError, match="the chain leaves the range of float64"):
        et.fit_network([problem.layer], problem.input)


@pytest.mark.parametrize(
    ("model", "x", "exact"),
    [
        # 1 - Phi(3) where only the units differ, and where a feature of 1e-8 stands beside one of 1e8
        (et.FeatureModel([[1.0]], [et.Normal(0.0, 1.0)], 1e12), 3e12, math.erfc(3 / math.sqrt(2)) / 2),
        (et.FeatureModel([[1.0]], [et.Normal(0.0, 1.0)], 1e-12), 3.0, math.erfc(3 / math.sqrt(2)) / 2),
        (et.FeatureModel([[1e-8, 1e8]], [et.Normal(0.0, 1.0)] * 2, 0.0), 3e8, math.erfc(3 / math.sqrt(2)) / 2),
        (et.FeatureModel([[1e-8, 1e8]], [et.Bernoulli(0.3), et.Exponential(1.0)], 1.0), 3e8, math.exp(-3)),
        (et.FeatureModel([[1e-8]], [et.Bernoulli(0.3)], 1e-10), 5e-9, 0.3),
        (et.FeatureModel([[1.0]], [et.Discrete((0.0, 1.0), (1.0, 1e-200))], 0.01), 0.5, 1e-200),
        (et.FeatureModel(np.zeros((1, 0)), [], 1.0), 30.0, math.erfc(30 / math.sqrt(2)) / 2),
    ],
)
def test_tails_of_extremes_have_their_closed_form(model: et.FeatureModel, x: float, exact: float) -> None:
    found = model.marginal([1.0]).tail(x)
    assert float(found.value) == pytest.approx(exact, rel=float(found.relative_error) + 1e-13)
    assert float(found.relative_error) <= 1e-10


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_seeds_are_whole_numbers(seed: Any) -> None:
    problem = et.Problem.from_dict(SMALL)
    with pytest.raises(et.InputError, match=r"`seed` is .*; it must be a whole number of at least 0"):
        et.evaluate(problem, check_samples=100, seed=seed)
    with pytest.raises(et.InputError, match="`seed` is"):
        et.sampled_tails([problem.layer], problem.input, [1.0, 0.0], 1.0, 1000, seed=seed)


@pytest.mark.parametrize("bound", ["max_seconds", "max_memory"])
def test_bounds_are_positive(bound: str) -> None:
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(et.InputError, match=f"`{bound}` is .*; it must be a positive number"):
            et.evaluate(et.Problem.from_dict(SMALL), **{bound: value})


# -- posteriors whose expectations are quadratures that do not end ----------------------------------------------------
def with_base(base: dict[str, Any], precision: float) -> et.Problem:
    """The small problem with a tilted posterior on that base."""
    form = copy.deepcopy(SMALL)
    form["encoder"][1] = {"family": "tilted", "C": [[0.1, 0.7]], "precision": precision, "base": base}
    return et.Problem.from_dict(form)


def test_functions_that_take_longer_than_was_allowed_are_refused_with_the_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(spectral, "perf_counter", lambda: float(next(ticks)))  # each call takes a second
    given = with_base({"kind": "laplace", "scale": 1.0}, 1.0)
    with pytest.raises(et.CostError, match=r"functions of single features would take about .* max_seconds = 5; loosen"):
        et.evaluate(given, 1e-3, max_seconds=5)
    assert et.evaluate(given, 1e-3, max_seconds=1e9)


def test_lattices_that_take_longer_than_was_allowed_are_refused_with_the_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A posterior of two parameters behind a narrow psi: it went on for eight minutes, whatever `max_seconds` was."""
    form = changed(layer__psi="tanh")
    form["encoder"][1] = {"family": "normal_scale", "C": [[0.1, 0.7], [0.3, -0.2]]}
    given = et.Problem.from_dict(form)
    ticks = itertools.count(0, 3)
    monkeypatch.setattr(frames, "perf_counter", lambda: float(next(ticks)))  # each block of sums takes three seconds
    with pytest.raises(et.CostError, match=r"lattices of single features would take about .* max_seconds = 5; loosen"):
        et.evaluate(given, 1e-3, max_seconds=5)
    assert et.evaluate(given, 1e-3, max_seconds=1e9)


def test_a_quadrature_that_cannot_be_resolved_ends_soon() -> None:
    with pytest.raises(et.ToleranceError, match=r"not resolved by \d{3},\d{3} panels"):
        et.evaluate(with_base({"kind": "laplace", "scale": 1.0}, 1e-12), 1e-3)


@pytest.mark.parametrize("bias", [1e3, 1e6, 1e9, 1e12, 1e15, 1e18])
@pytest.mark.parametrize(
    ("base", "beyond"),
    [
        (et.Discrete([0.0, 0.5, 1.3], [0.2, 0.3, 0.5]), lambda t: np.log(2.0)),  # all on the last atom
        (et.Uniform(0.0, 2.0), lambda t: np.log(2 * t) - 1),  # exponential below 2
    ],
    ids=["atoms", "uniform"],
)
def test_what_rounding_takes_from_the_divergence_of_a_huge_tilt_is_in_its_error(
    base: et.Prior, beyond: Callable[[float], float], bias: float
) -> None:
    layer, p1 = (
        et.Layer(np.eye(2), np.zeros(2), np.ones(2), "identity"),
        et.FeatureModel(np.eye(2), [et.Bernoulli(0.2)] * 2, 0.3),
    )
    posterior = et.Posterior("tilted", np.zeros((1, 2)), [bias], base=base, precision=0.0)
    given = et.Problem(layer, p1, et.FeatureModel(np.ones((2, 1)), [base], 0.3), et.Encoder([posterior]))
    if bias > 1e13:
        with pytest.raises(et.ToleranceError, match=r"R1 = .* has error \d\.\de\+"):
            et.evaluate(given, tol=1e-2)
        return
    R1 = et.evaluate(given, tol=1e-2)["R1"]
    assert abs(R1.value - beyond(bias)) <= R1.error <= 1e-14 * bias + 1e-10


def test_a_pair_of_series_that_fills_memory_is_refused() -> None:
    """Its plan alone would take gigabytes."""
    with pytest.raises(et.UnsupportedError, match=r"would need [\d,]+ x 65,536 modes"):
        et.evaluate(with_base({"kind": "exponential", "scale": 1.0}, 1e-12), 1e-3)


def test_a_divergence_that_rounding_has_made_negative_is_refused() -> None:
    """As of a tilted posterior at t = 1e18: little is left of <t, E x> - log Z in float64."""
    require_divergence(-1e-6, 2e-6)
    with pytest.raises(et.ToleranceError, match=r"R1 = -2 is negative beyond its error 1\.0e-06"):
        require_divergence(-2.0, 1e-6)


def test_what_is_drawn_at_random_is_right_or_refused() -> None:
    """`make fuzz` draws for a minute. Of these most can be decided: where all were undecided nothing would be tested."""
    outcomes = Counter(extremes.one([0, number]) for number in range(12))
    assert outcomes["right"] >= 6
    assert set(outcomes) <= {"right", "refused", "undecided"}


def test_what_is_drawn_at_random_would_not_pass_with_a_wrong_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = et.evaluate

    def off(problem: et.Problem, tol: float, **limits: Any) -> dict[str, Any]:
        return {name: replace(term, value=term.value + 3e-7) for name, term in plain(problem, tol, **limits).items()}

    form = changed(layer__psi="relu")
    assert extremes.decided(form, 1e-7) == "right"
    monkeypatch.setattr(et, "evaluate", off)
    with pytest.raises(AssertionError, match="T1"):
        extremes.decided(form, 1e-7)
