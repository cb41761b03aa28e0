"""The spectral engine behind generated kernels against the independent oracle of tests/reference, on every problem
there: values, errors that cover the truth, tolerances that are met; and problems that once went wrong."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.priors import Normal
from elbotree.runtime.spectral import SpectralExpectations
from tests.reference.oracle import TERMS, reference_terms
from tests.reference.problems import PROBLEMS, problem

# what the oracle itself may be off by, relative to max(1, |value|)
ORACLE = 1e-13
REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.json"))


@cache
def truth(name: str) -> dict[str, float]:
    return reference_terms(problem(name))


def check(values: Any, exact: dict[str, float], tol: float) -> None:
    for term in TERMS:
        scale = max(1.0, abs(exact[term]))
        off, error = abs(values[term].value - exact[term]), values[term].error
        assert off <= error + ORACLE * scale, f"{term} is off by {off:.1e}, its error says {error:.1e}"
        assert error <= tol * scale, f"{term} has error {error:.1e} at tol {tol:g}"


@pytest.mark.parametrize("tol", [1e-4, 1e-8])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_term_meets_its_tolerance_and_its_error_covers_the_truth(name: str, tol: float) -> None:
    check(et.evaluate(et.Problem.from_dict(problem(name)), tol=tol), truth(name), tol)


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_problems_that_once_went_wrong(path: Path) -> None:
    spec = json.loads(path.read_text())
    check(et.evaluate(et.Problem.from_dict(spec), tol=1e-6), reference_terms(spec, resolution=1.6), 1e-6)


def test_errors_shrink_with_the_tolerance() -> None:
    given = et.Problem.from_dict(problem("relu"))
    coarse, fine = et.evaluate(given, tol=1e-3), et.evaluate(given, tol=1e-9)
    for term in ("R1", "S1", "T2", "T3"):
        assert fine[term].error < 1e-3 * coarse[term].error
    # a coarse tolerance is cheaper, not merely worse
    assert coarse["T3"].error > 1e-9


def engine(name: str = "relu", tol: float = 1e-8) -> SpectralExpectations:
    given = et.Problem.from_dict(problem(name))
    return SpectralExpectations(given.layer, given.input, given.encoder, tol=tol)


@pytest.mark.parametrize("tol", [0.0, 1e-17, 1.0, float("nan")])
def test_tolerances_out_of_range_are_refused(tol: float) -> None:
    with pytest.raises(InputError, match=r"`tol` is .*; it must lie between 1e-15 and 1"):
        engine(tol=tol)


def test_integrands_that_are_not_finite_are_refused_by_name() -> None:
    wrong = Integrand(1, (0,), lambda c: np.log(c), label="K[1]")
    with pytest.raises(UnsupportedError, match=r"K\[1\] of encoder\[1\] is not finite at c = -"):
        engine().of_c([wrong], weights=np.ones(1))


def test_b_without_noise_is_refused_where_psi_is_not_affine() -> None:
    given = problem("relu")
    given["input"] |= {"noise_std": 0.0, "priors": [{"kind": "exponential", "scale": 0.5}] * 3}
    with pytest.raises(
        UnsupportedError, match=r"b = <y, u> \+ theta carries no Gaussian noise .*give the input a small"
    ):
        et.evaluate(et.Problem.from_dict(given), tol=1e-4)


def test_an_affine_psi_needs_no_noise() -> None:
    given = problem("relu")
    given["input"]["noise_std"] = 0.0
    given["layer"]["psi"] = "identity"
    check(et.evaluate(et.Problem.from_dict(given), tol=1e-7), reference_terms(given), 1e-7)


def test_a_pole_that_b_reaches_is_refused() -> None:
    given = problem("relu")
    given["layer"]["psi"] = "1/b"
    with pytest.raises(UnsupportedError, match=r"psi \(1/b\) has a pole at b = 0"):
        et.evaluate(et.Problem.from_dict(given), tol=1e-4)


def constant_rows(spec: dict[str, Any], j: int, rows: list[int]) -> dict[str, Any]:
    for r in rows:
        spec["encoder"][j]["C"][r] = [0.0] * len(spec["encoder"][j]["C"][r])
    return spec


@pytest.mark.parametrize("rows", [[0], [1], [0, 1]])
def test_rows_of_the_encoder_that_are_zero(rows: list[int]) -> None:
    given = constant_rows(problem("normal-scale"), 0, rows)
    check(et.evaluate(et.Problem.from_dict(given), tol=1e-8), reference_terms(given), 1e-8)


def of_rank_one() -> dict[str, Any]:
    """A layer after which each c is a function of b, with a KL term whose feature is a thousandth of the range of c wide."""
    given = problem("normal-scale")
    n1, n2 = np.shape(given["input"]["B"])[0], np.shape(given["layer"]["A"])[0]
    given["layer"] |= {"A": np.outer([0.6, 1.9, -0.6, 0.4][:n2], np.ones(n1)).tolist(), "psi": "abs"}
    given["layer"] |= {"w": [-0.1, -4.6, -1.4, 0.3][:n2], "u": [3.8, -1.0, -3.7, 0.2][:n2]}
    spike = {"kind": "normal", "mean": 0.9, "std": 0.02}
    wide = {"kind": "normal", "mean": -1.0, "std": 0.6}
    given["model"]["priors"][0] = {"kind": "mixture", "weights": [0.5, 0.5], "components": [spike, wide]}
    return constant_rows(given, 0, [1])


def test_functions_of_b_alone_are_integrated_over_b() -> None:
    given = of_rank_one()
    values = et.evaluate(et.Problem.from_dict(given), tol=1e-6)
    check(values, reference_terms(given), 1e-6)
    exact = SpectralExpectations.for_problem(et.Problem.from_dict(given), 1e-6)
    assert all(exact._coordinate(j, 0).of_b for j in range(len(given["encoder"])))


def test_the_gradient_through_functions_of_b_is_that_of_the_loss() -> None:
    given = of_rank_one()
    step = 1e-4
    found = et.gradient(et.Problem.from_dict(given), tol=1e-8)
    for row, column in ((0, 1), (0, 2)):
        ends = []
        for sign in (1, -1):
            moved = json.loads(json.dumps(given))
            moved["encoder"][0]["C"][row][column] += sign * step
            ends.append(et.evaluate(et.Problem.from_dict(moved), tol=1e-10)["L"].value)
        slope = (ends[0] - ends[1]) / (2 * step)
        assert found["C"][0].value[row, column] == pytest.approx(slope, rel=1e-5, abs=1e-5)


def test_no_features_at_all() -> None:
    given = problem("relu")
    given["model"] |= {"B": [[], [], []], "priors": []}
    given["encoder"] = []
    values = et.evaluate(et.Problem.from_dict(given), tol=1e-8)
    exact = truth("relu")  # the terms of f alone do not see the encoder
    for term in ("T1", "U1", "U2", "U3", "R2"):
        assert values[term].value == pytest.approx(exact[term], rel=1e-12)
    assert [values[term].value for term in ("R1", "S1", "T2", "T3")] == [0.0] * 4


@pytest.mark.parametrize("name", ["relu", "normal-scale"])
def test_parameters_on_narrow_ranges_keep_their_digits(name: str) -> None:
    given = problem(name)
    for q in given["encoder"]:  # c = 1 up to 1e-8
        q["C"] = [[1e-8 * v for v in row] for row in q["C"]]
        q["bias"] = [1.0] * len(q["C"])
    check(et.evaluate(et.Problem.from_dict(given), tol=1e-9), reference_terms(given), 1e-9)


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-8])
def test_moments_of_f_are_within_their_errors_which_are_of_the_size_of_the_tolerance(tol: float) -> None:
    """f = y + w b^2 of a Gaussian y, large against 1: E f and E f f^T are polynomials in its mean and covariance."""
    rng = np.random.default_rng(2)
    n = 3
    A, w, u = rng.standard_normal((n, n)), 2.0 * rng.standard_normal(n), rng.standard_normal(n)
    layer = et.Layer(A, w, u, "square", offset=rng.standard_normal(n))
    p1 = et.FeatureModel(np.eye(n), [Normal(0.3, 1.5)] * n, 0.5)
    law = OutputLaw(layer, p1, tol)
    first, second, error = law.f_moments
    mean, C = A @ np.full(n, 0.3) + layer.offset, (1.5**2 + 0.5**2) * A @ A.T
    m, v = mean @ u, u @ C @ u
    one, two, with_y = v + m**2, 3 * v**2 + 6 * v * m**2 + m**4, mean * (v + m**2) + 2 * m * C @ u
    exact = C + np.outer(mean, mean) + np.outer(with_y, w) + np.outer(w, with_y) + np.outer(w, w) * two
    off = np.zeros((n + 1, n + 1))
    off[:n, :n], off[:n, n] = np.abs(second - exact), np.abs(first - mean - w * one)
    off[n, :n] = off[:n, n]
    assert np.all(off <= error)
    size = np.append(np.sqrt(np.diag(exact)), 1.0)
    assert np.all(error <= 0.1 * tol * np.outer(size, size))


def test_each_entry_of_the_second_moment_of_f_has_an_error_of_its_own() -> None:
    """f_0 is 2 e^b and next to no y, the others are y alone: E f_0^2 is E psi^2, and E f_0 f_i is E[psi y_i]."""
    A = np.array([[1e-9, 0.0, 0.0], [0.0, 0.8, 0.3], [0.0, -0.2, 0.6]])
    u, w = np.array([0.0, 0.6, -0.5]), np.array([2.0, 0.0, 0.0])
    law = OutputLaw(et.Layer(A, w, u, "exp(b)"), et.FeatureModel(np.eye(3), [Normal(0.0, 1.0)] * 3, 0.5), 1e-2)
    first, second, error = law.f_moments
    C = 1.25 * A @ A.T
    v = u @ C @ u
    one, square, with_y = 2 * np.exp(v / 2), 4 * np.exp(2 * v), 2 * (C @ u) * np.exp(v / 2)
    off = np.abs([first[0] - one, second[0, 0] - square, second[0, 1] - with_y[1], second[0, 2] - with_y[2]])
    said = np.array([error[0, 3], error[0, 0], error[0, 1], error[0, 2]])
    assert np.all(off > 1e-9)  # there is something to cover
    assert np.all((off <= said) & (said < 1e-2))
    np.testing.assert_allclose(second[1:, 1:], C[1:, 1:], atol=1e-14)
    assert np.all(error[1:, 1:] < 1e-13)
