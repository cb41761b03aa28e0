"""The object that holds the twelve terms."""

from __future__ import annotations

import html
import json
import re

import pytest

from elbotree.derivation import derive
from elbotree.runtime.errors import InputError, ToleranceError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.values import CHILDREN, NAMES, Term, Values


def made(error: float = 1e-9, check: bool = False) -> Values:
    estimates = {name: Estimate.of(float(at), error) for at, name in enumerate(NAMES)}
    beside = {name: Estimate.of(at + 0.2, 0.1) for at, name in enumerate(NAMES)}
    return Values.of(estimates, beside if check else None, tol=1e-6, seconds=0.25, samples=100 if check else None)


def test_the_tree_of_values_is_the_derived_tree() -> None:
    tree = derive()
    assert tree.names == NAMES
    assert {node.name: node.children for node in tree if node.children} == CHILDREN


def name_in(line: str) -> str:
    return re.findall(r"[LRSTU]\d?", line)[0]


def test_printing_draws_every_term_once_under_its_parent() -> None:
    lines = str(made()).splitlines()
    assert [name_in(line) for line in lines[1:-1]] == [
        "L",
        "R1",
        "R2",
        "R3",
        "S1",
        "S2",
        "T1",
        "U1",
        "U2",
        "U3",
        "T2",
        "T3",
    ]
    depth = {name_in(line): line.index(name_in(line)) for line in lines[1:-1]}
    assert all(depth[child] == depth[parent] + 3 for parent, children in CHILDREN.items() for child in children)
    assert lines[-1] == "method spectral, tol 1e-06, 0.25 s"


def test_samples_that_do_not_vary_beyond_rounding_have_no_distance() -> None:
    """A constant summed over samples leaves a spread of 1e-19, which is no scale to measure rounding with."""
    assert Term("S1", 0.2726268417, 1e-16, 0.2726268417 + 5e-17, 5e-19).deviation is None
    assert Term("S1", 0.2726268417, 1e-16, 0.28, 5e-19).deviation == pytest.approx(0.0073731583 / 5e-19)


def test_the_check_stands_beside_the_value_with_its_distance_in_standard_errors() -> None:
    values = made(check=True)
    assert values["T2"].deviation == pytest.approx(2.0)
    assert "+2.0" in str(values).splitlines()[1]
    assert "checked with 100 samples" in str(values)
    assert "std. error" in values._repr_html_()
    assert values.to_dict()["terms"]["L"] == {"value": 0.0, "error": 1e-9, "check": 0.2, "check_error": 0.1}


def test_json_holds_the_keys_of_the_format_alone() -> None:
    form = json.loads(json.dumps(made().to_dict()))
    assert list(form) == ["terms", "tol", "method", "seconds"]
    assert list(form["terms"]) == list(NAMES)
    assert form["terms"]["U3"] == {"value": 11.0, "error": 1e-9}


def test_html_escapes_nothing_away() -> None:
    page = made()._repr_html_()
    assert page.count("<tr>") == 13
    assert page.count("</td>") == 12 * 3


def test_shares_are_contributions_to_the_loss_and_add_up() -> None:
    numbers = {"L": 4.0, "R1": 1.0, "R2": -2.0, "R3": 5.0, "S1": 0.5, "S2": 2.0, "T1": 6.0, "T2": -5.0, "T3": 1.0}
    numbers |= {"U1": 1.0, "U2": 2.0, "U3": 3.0}  # 1 / (2 sigma2^2) is 2
    values = Values({name: Term(name, number, 0.0) for name, number in numbers.items()})
    shares = {name: values.share(name) for name in NAMES}
    assert shares["L"] == 1.0
    assert shares["R2"] == -0.5
    assert shares["T2"] == -5.0 * 2 / 4
    for parent, children in CHILDREN.items():
        assert shares[parent] == pytest.approx(sum(shares[child] or 0.0 for child in children))
    assert Values({name: Term(name, 0.0, 0.0) for name in NAMES}).share("T2") is None


def test_times_of_leaves_add_up_and_are_shown_where_known() -> None:
    laps = {name: 0.25 * 2.0**-at for at, name in enumerate(NAMES) if name not in CHILDREN}
    estimates = {name: Estimate.of(1.0, 0.0) for name in NAMES}
    values = Values.of(estimates, laps=laps)
    assert values["T1"].seconds == laps["U1"] + laps["U2"] + laps["U3"]
    assert values["L"].seconds == sum(laps.values())
    assert values.cells()[0] == ("term", "value", "error", "share", "time")
    assert "125 ms" in str(values)
    assert "time" not in str(made())
    assert "seconds" not in values.to_dict()["terms"]["L"]


@pytest.mark.parametrize("check", [False, True])
def test_print_and_notebook_show_the_same_cells(check: bool) -> None:
    values = made(check=check)
    page = html.unescape(values._repr_html_())
    for row in values.cells():
        for cell in row:
            assert cell in str(values)
            assert f">{cell}</" in page
    assert values.caption() in page
    assert values.caption() in str(values)


@pytest.mark.parametrize("name", NAMES)
def test_each_term_meets_the_tolerance_alone(name: str) -> None:
    terms = {key: Term(key, 100.0, 1e-3) for key in NAMES}
    Values(terms).require(1e-5)
    terms[name] = Term(name, 100.0, 1.1e-3)
    with pytest.raises(ToleranceError, match=rf"^{name} = 100 has error 1.1e-03, above .* = 1.0e-03 at tol = 1e-05"):
        Values(terms).require(1e-5)


def test_a_small_value_is_held_to_an_absolute_tolerance_and_nan_never_passes() -> None:
    terms = {key: Term(key, 1e-3, 0.9e-5) for key in NAMES}
    Values(terms).require(1e-5)
    with pytest.raises(ToleranceError, match="U1"):
        Values(terms | {"U1": Term("U1", 1.0, float("nan"))}).require(1e-5)


def test_a_leaf_is_named_before_the_sums_above_it() -> None:
    terms = {key: Term(key, 1.0, 2.0 if key in ("T3", "S2", "R3", "L") else 0.0) for key in NAMES}
    with pytest.raises(ToleranceError, match=r"^T3 .*also missed: L, R3, S2"):
        Values(terms).require(1e-5)


def test_a_missing_or_unknown_term_is_named() -> None:
    with pytest.raises(InputError, match="terms lacks T2, U3"):
        Values({name: Term(name, 0.0, 0.0) for name in NAMES if name not in ("T2", "U3")})
    with pytest.raises(KeyError, match="no term 'Q1'"):
        made()["Q1"]
