"""Panels in b against integrals in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, spence

from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.quadrature import gauss_legendre, panels

Array = NDArray[np.float64]


@pytest.mark.parametrize("nodes", [1, 2, 7, 40])
def test_rule_is_exact_for_polynomials_up_to_degree_2n_minus_1(nodes: int) -> None:
    x, w = gauss_legendre(nodes)
    for degree in range(2 * nodes):
        assert w @ x**degree == pytest.approx((1 - (-1) ** (degree + 1)) / (degree + 1), abs=1e-13)
    assert w @ x ** (2 * nodes) != pytest.approx(2 / (2 * nodes + 1), abs=1e-30)


@pytest.mark.parametrize("frequency", [0.0, 1.0, 30.0, 700.0, 2500.0])
def test_nodes_follow_the_frequency(frequency: float) -> None:
    lo, hi = -1.3, 2.1
    b, w = panels(lo, hi, [], frequency, [np.exp], 1e-13)
    for nu in (frequency, -0.7 * frequency):  # integral of e^{b + i nu b}
        expected = (np.exp((1 + 1j * nu) * hi) - np.exp((1 + 1j * nu) * lo)) / (1 + 1j * nu)
        assert abs(w @ np.exp((1 + 1j * nu) * b) - expected) < 1e-12
    # about a quarter of a node a radian, and a few more for each panel: nobody pays for what is not needed
    assert len(b) <= 60 + 0.35 * frequency * (hi - lo)


def test_panels_end_at_breaks() -> None:
    # |b - 1/3| and a jump at 1/2, both to rounding although neither is smooth
    b, w = panels(0.0, 1.0, [1 / 3, 0.5, 7.0], 0.0, [lambda x: np.abs(x - 1 / 3)], 1e-13)
    assert w @ np.abs(b - 1 / 3) == pytest.approx((1 / 9 + 4 / 9) / 2, abs=1e-15)
    assert w @ (b > 0.5) == pytest.approx(0.5, abs=1e-15)
    assert w.sum() == pytest.approx(1.0, abs=1e-14)
    assert len(b) <= 3 * 14  # three panels, none of them halved


def test_panels_are_halved_where_a_function_turns_fast() -> None:
    def steep(x: Array) -> Array:
        return np.asarray(np.tanh(200 * (x - 0.3)))

    b, w = panels(-1.0, 1.0, [], 0.0, [steep], 1e-12)
    exact = (np.log(np.cosh(140.0)) - np.log(np.cosh(260.0))) / 200
    assert w @ steep(b) == pytest.approx(exact, abs=1e-12)
    width = np.diff(b)
    assert width[np.abs(b[:-1] - 0.3) < 0.05].max() < 0.1 * width[b[:-1] < -0.2].max()


def test_an_undeclared_jump_is_closed_in_on() -> None:
    b, w = panels(-1.0, 1.0, [], 0.0, [lambda x: (x > 0.123) * 1.0], 1e-13)
    assert w @ (b > 0.123) == pytest.approx(0.877, abs=1e-11)


def test_a_function_that_is_rough_everywhere_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"not smooth enough near b = -1: 400 halvings.*max, min, abs"):
        panels(-1.0, 1.0, [], 0.0, [lambda x: np.sin(1e7 * x)], 1e-13)


def test_a_step_between_the_last_node_and_an_end_is_seen() -> None:
    """sigmoid((b - 1e-5) 1e9) on panels that part at 0: no node of either lies between."""
    step = lambda b: expit(np.clip((b - 1e-5) * 1e9, -700.0, 700.0))  # noqa: E731
    beta, weights = panels(-1.0, 1.0, [], 1500.0, [step], 1e-9)
    with np.errstate(under="ignore"):
        assert weights @ step(beta) == pytest.approx(1 - 1e-5, abs=1e-9)


@pytest.mark.parametrize("frequency", [0.0, 2e-4])
def test_a_bend_between_a_break_and_the_first_node_is_seen(frequency: float) -> None:
    """softplus(10 - x) on [0, 4e5], whose integral is 50 + pi^2 / 6 + Li2(-e^-10): no node of a first panel lies below 17."""

    def f(x: Array) -> Array:
        return 1e-6 * np.logaddexp(0.0, 10.0 - x)

    x, w = panels(0.0, 4e5, [], frequency, [vanishing(f)], 1e-13)
    exact = 1e-6 * (50 + np.pi**2 / 6 + spence(1 + np.exp(-10.0)))
    assert vanishing(f)(x) @ w == pytest.approx(exact, abs=1e-10)
