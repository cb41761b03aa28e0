"""What would take too long, or too much memory, is refused before it begins, with the estimates."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import sympy as sp

import elbotree as et


def problem(n: int = 5) -> et.Problem:
    rng = np.random.default_rng(0)
    B = np.eye(n) + 0.1 * rng.standard_normal((n, n))
    priors = [et.Bernoulli(0.2)] * n
    return et.Problem(
        et.Layer(np.eye(n), rng.standard_normal(n), rng.standard_normal(n), "relu"),
        et.FeatureModel(B, priors, 0.2),
        et.FeatureModel(B, priors, 0.3),
        et.Encoder([et.Posterior("bernoulli", 6 * row[None, :], [-3.0]) for row in np.linalg.inv(B)]),
    )


@pytest.mark.parametrize("ask", [et.evaluate, et.gradient])
def test_the_estimate_is_held_against_the_allowance(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(
        et.CostError, match=r"10 pairs of features would take about .* s and .* MiB, more than max_seconds = 1e-07"
    ):
        ask(problem(), tol=1e-4, max_seconds=1e-7)
    with pytest.raises(et.CostError, match="more than max_memory = 0 MiB; loosen tol"):
        ask(problem(), tol=1e-4, max_memory=10.0)
    assert ask(problem(), tol=1e-4, max_seconds=3600, max_memory=2**30)


def test_a_tighter_tolerance_is_estimated_to_take_longer(caplog: pytest.LogCaptureFixture) -> None:
    seconds = []
    for tol in (1e-2, 1e-6):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="elbotree.runtime.spectral"):
            et.evaluate(problem(), tol=tol)
        said = next(r.getMessage() for r in caplog.records if "pairs of features" in r.getMessage())
        seconds.append(float(said.split("about ")[1].split(" s")[0]))
    assert seconds[1] > 1.5 * seconds[0]


@pytest.mark.usefixtures("registries")
def test_pairs_whose_means_depend_on_two_parameters_are_refused_with_what_they_would_take() -> None:
    c0, c1, beta = sp.symbols("c0 c1 beta")
    total = 1 + sp.exp(c0) + sp.exp(c1)
    log_mass = c0 * beta * (2 - beta) + c1 * beta * (beta - 1) / 2 - sp.log(total)
    et.register_family("three", log_density=log_mass, t=2, points=(0, 1, 2))
    given = problem(2)
    rng = np.random.default_rng(1)
    prior = et.Discrete((0.0, 1.0, 2.0), (0.5, 0.3, 0.2))
    model = et.FeatureModel(given.model.B, [prior] * 2, 0.3)
    encoder = et.Encoder([et.Posterior("three", rng.standard_normal((2, 2)), [0.0, 0.0]) for _ in range(2)])
    with pytest.raises(
        et.UnsupportedError,
        match=r"s\[0\] of encoder\[0\] depends on 2 .*more than 3 dimensions \(about .* points, .* s and .* GiB a pair\)",
    ):
        et.evaluate(et.Problem(given.layer, given.input, model, encoder), tol=1e-6)
