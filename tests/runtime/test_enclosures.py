"""Interval arithmetic over psi, and the places that it finds: psi's own values must lie inside, and nothing narrow be missed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from scipy import stats

import elbotree as et
from elbotree.codegen import compile_psi
from elbotree.derivation.grammar import FUNCTIONS
from elbotree.runtime.activations import Activation
from elbotree.runtime.enclosures import Interval, places
from elbotree.runtime.output_law import OutputLaw
from tests.stress.test_input import expressions, quick

Array = NDArray[np.float64]

TEXTS = [
    *(f"{name}(b/3 - 0.2)" for name, word in FUNCTIONS.items() if word.fewest == 1 and name not in ("sqrt", "log")),
    *(
        "hardtanh(b, -2, 1)*b",
        "sqrt(abs(b) + 1)",
        "log(1 + b**2)",
        "1/(b - 0.3)",
        "b**3/(1 + b**4) - b**2",
        "(b**2 - 1)**5",
    ),
    *("where(b > 1, tanh(b), where(b <= -1, sin(4*b), b**2))", "cos(3*b)*b"),
    *("(abs(b) + 1)**(-2/3)", "1/(1 + b**2)**3", "(b**2 + 1)**(-1/2)", "b**(-3)", "where(b < 0, 1, (b + 1)**(-1/3))"),
    "abs(where(7 <= b/2, leaky_relu(b, 3), (b + 9)**(-2/3)))",
    *("where(b < 1, b**-1, b**(1/2))", "where(b < 1, b**-1, where(b < 2, b**(1/2), -1/b))"),
    *("exp(-(b - 2)**2)*sin(5*b)", "1/(1 + exp(b))", "max(b, 0, b**2 - 3)", "(abs(b) + 1)**(2/3)", "b - b", "3.5"),
]


def enclosed(psi: Activation) -> int:
    """psi and psi' are within their enclosures, on cells of every size and at points inside each; how many enclosures are tight."""
    rng = np.random.default_rng(0)
    centre, half = rng.uniform(-6, 6, 3000), 10 ** rng.uniform(-6, 1, 3000)
    cells = Interval(centre - half, centre + half)
    tight = 0
    for f in (psi.value, psi.derivative):
        with np.errstate(all="ignore"):
            found = Interval.of(f(cells))  # type: ignore[arg-type]
        low, high = (np.broadcast_to(x, centre.shape) for x in (found.low, found.high))
        for t in np.linspace(-1, 1, 23):
            with np.errstate(all="ignore"):
                value = np.broadcast_to(f(centre + t * half), centre.shape)
                room = 1e-9 * (1 + np.abs(value))  # rounding is not enclosed
                assert np.all((low - room <= value) & (value <= high + room) | ~np.isfinite(value))
        with np.errstate(invalid="ignore"):  # where psi has no values both ends may be infinite: log(b) below 0
            tight += int(np.sum((low <= high) & (high - low < 1e-2 * (1 + np.abs(low)))))
    return tight


@pytest.mark.parametrize("text", TEXTS)
def test_values_and_slopes_lie_within_their_enclosures(text: str) -> None:
    assert enclosed(compile_psi(text)) > 100  # (-inf, inf) encloses everything


PLAIN = "0", "1", "2", "0.5", "3", "1/3", "-2.5", "0.1", "pi"
EXPONENTS = "2", "3", "-1", "-2", "-3", "(1/2)", "(2/3)", "(-1/2)", "(-2/3)", "4"


@quick(40)
@given(expressions(PLAIN, EXPONENTS))
def test_values_and_slopes_of_any_psi_lie_within_their_enclosures(text: str) -> None:
    """Powers that fall were enclosed upside down, and |x|' was not known where x is a case of where()."""
    try:
        psi = compile_psi(text)
    except et.ElbotreeError:
        return
    enclosed(psi)


def test_no_function_of_the_grammar_is_unknown() -> None:
    for text in TEXTS:
        for f in (compile_psi(text).value, compile_psi(text).derivative):
            f(Interval(np.array([0.5]), np.array([0.75])))  # type: ignore[arg-type]


def test_a_function_that_is_not_known_is_an_error_and_a_psi_of_it_has_no_places() -> None:
    with pytest.raises(TypeError):
        np.arctan(Interval(np.zeros(1), np.ones(1)))  # type: ignore[call-overload]
    own = Activation("arctan", np.arctan, lambda b: 1 / (1 + b**2))
    assert len(places(own, -1e6, 1e6)) == 0


@pytest.mark.parametrize(("text", "at", "width"), [
    ("exp(-(b - 1000)**2)", 1000.0, 1.0),
    ("tanh(b) + exp(-(b - 1e5)**2)", 1e5, 1.0),
    ("b/1e6 + 1/(1 + (1e4*(b - 7))**2)", 7.0, 1e-4),
    ("tanh(1e5*(b + 3))", -3.0, 1e-5),
    ("log(1 + exp(b)) + exp(-((b - 4650)*300)**2)", 4650.0, 1 / 300),  # of whose slope nothing is known where exp overflows
])  # fmt: skip
def test_places_lie_densely_where_psi_does_much_within_little(text: str, at: float, width: float) -> None:
    found = places(compile_psi(text), -4e6, 9e6)
    assert np.all(np.diff(found) > 0)
    assert np.sum(np.abs(found - at) < width) >= 4
    assert len(found) < 10_000


@pytest.mark.parametrize("text", ["relu", "sign", "0.3*b - 2", "b**2"])
def test_what_a_cubic_tells_everywhere_has_no_places(text: str) -> None:
    assert len(places(compile_psi(text), -5.0, 6.0)) == 0


def of_psi(text: str, spread: float) -> tuple[float, float, float]:
    """E psi(b) with its error, for b = spread (0.3 Z + Bernoulli(0.3)), and the same by nodes about where psi is written."""
    law = OutputLaw(et.Layer([[1.0]], [1.0], [spread], text), et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.3), 1e-6)
    found = law.of_b(law.layer.activation.value)
    s = 0.3 * spread
    marks = [np.linspace(-9 * s, spread + 9 * s, 4001)]
    marks += [c + w * np.linspace(-12, 12, 2001) for c in (0.0, 1.0, 3.0, 1000.0) for w in 10.0 ** np.arange(-5, 3)]
    ends = np.unique(np.concatenate(marks))
    x, w = np.polynomial.legendre.leggauss(6)
    mid, half = 0.5 * (ends[1:] + ends[:-1]), 0.5 * np.diff(ends)
    b = mid[:, None] + half[:, None] * x
    with np.errstate(under="ignore"):
        density = 0.7 * stats.norm.pdf(b, 0.0, s) + 0.3 * stats.norm.pdf(b, spread, s)
        true = float((density * law.layer.activation.value(b) * w * half[:, None]).sum())
    return float(found.value), float(found.error), true


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("text", [
    "exp(-(b - 1000)**2)",
    "tanh(b) + exp(-(b - 1000)**2)",
    "b + exp(-(b - 1000)**2)",
    "exp(-(b - 1)**2*1e8)",
    "where(b > 0, tanh(b), b/(1 + (b + 3)**2))",
    "b/(abs(b) + 1) + 0.01*exp(-((b - 1000)*3)**2)",
    "elu",
])  # fmt: skip
@np.errstate(under="ignore")
def test_a_narrow_peak_anywhere_is_not_missed(text: str, spread: float) -> None:
    """They were, by all of their mass, with an error of 0."""
    value, error, true = of_psi(text, spread)
    assert abs(value - true) <= error
    assert error <= 1e-6 * max(1.0, abs(true))


def test_functions_that_ask_for_one_truth_are_refused() -> None:
    """np.logical_or.reduce makes an object array of its arguments, and asks each whether it is true."""
    cells = Interval(np.zeros(3), np.ones(3))
    with pytest.raises(TypeError, match="neither true nor false"):
        np.logical_or.reduce((cells, cells))
