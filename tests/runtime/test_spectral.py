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
    check(et.evaluate(et.Problem.from_dict(spec), tol=1e-6), reference_terms(spec), 1e-6)


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
