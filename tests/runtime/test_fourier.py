"""Fourier series of functions of c: E g under laws with known expectations, and whether `dropped` covers the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import expit, ndtr, roots_hermitenorm
from scipy.stats import norm

from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.fourier import PADS, Period, Series, Spectrum, best_spectrum, finite, series_2d

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

MEANS, MASSES = np.array([-1.3, 0.2, 2.4]), np.array([0.5, 0.4, 0.1])
GS: dict[str, Function] = {
    "logistic": expit,
    "steep": lambda c: expit(12 * c),
    "sharp": lambda c: expit(80 * c - 15),  # 256 samples are too few: aliases of its coefficients would show
    "softplus squared": lambda c: np.logaddexp(0, c) ** 2,
    "kl": lambda c: c * expit(c) - np.logaddexp(0, c) + 0.3,
    "wave": lambda c: np.cos(3 * c),
}


def by_sum(g: Function, sigma: float) -> float:
    """E g(c) for c ~ sum_k MASSES[k] N(MEANS[k], sigma^2), by the trapezoidal rule at a five-hundredth of sigma."""
    x = np.arange(-4600, 4601) / 500
    return float(MASSES @ (g(MEANS[:, None] + sigma * x) @ np.exp(-0.5 * x**2))) / (500 * np.sqrt(2 * np.pi))


def by_series(s: Series, period: Period, sigma: float) -> float:
    """The same through E e^{i p delta (c - middle)} in closed form."""
    t = period.delta * np.arange(s.P + 1)
    X = np.exp(1j * np.outer(t, MEANS - period.middle)) @ MASSES * np.exp(-0.5 * (t * sigma) ** 2)
    return float((s.half() @ X).real)


def range_of(sigma: float, deviations: float = 8.6) -> tuple[float, float]:
    return float(MEANS.min() - deviations * sigma), float(MEANS.max() + deviations * sigma)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-11])
@pytest.mark.parametrize("g", GS.values(), ids=GS.keys())
def test_dropped_covers_what_the_cut_leaves_out(g: Function, tol: float, pad: float) -> None:
    sigma = 0.4
    period = Period(*range_of(sigma), pad)
    made = Spectrum(g, period, tol).cut(sigma, tol)
    assert abs(by_series(made, period, sigma) - by_sum(g, sigma)) <= made.error + 0.2 * tol + 1e-13
    assert made.error <= tol


@pytest.mark.parametrize("hi", [2.4, 30.0])
@pytest.mark.parametrize("tol", [1e-4, 1e-8, 1e-11])
def test_a_law_without_noise_needs_a_window(tol: float, hi: float) -> None:
    lo = -1.3
    for g in (GS["logistic"], GS["softplus squared"]):
        chosen = best_spectrum(g, lo, hi, 0.0, tol, "g")
        assert chosen.period.pad > 0
        made = chosen.cut(0.0, tol)
        assert abs(by_series(made, chosen.period, 0.0) - float(MASSES @ g(MEANS))) <= made.error + tol
        assert made.error <= 1.01 * tol


def test_the_cut_is_not_wasteful() -> None:
    sigma, tol = 0.4, 1e-6
    period = Period(*range_of(sigma), 0.0)
    spectrum = Spectrum(GS["logistic"], period, tol)
    made = spectrum.cut(sigma, tol)
    # at this many modes the law's own factor is tol
    enough = np.sqrt(2 * np.log(1 / tol)) / (period.delta * sigma)
    assert enough / 2 < made.P < enough + 1
    assert spectrum.cut(sigma, 1e-3).P < made.P
    assert spectrum.cut(0.0, tol).P > 4 * made.P  # without noise the jump at the wrap stays


@pytest.mark.parametrize("tol", [1e-6, 1e-9])
def test_a_jump_that_no_sampling_resolves_is_confessed(tol: float) -> None:
    sigma = 0.05

    def jump(c: Array) -> Array:
        return np.asarray((c > 0.2001234) * 1.0)

    period = Period(*range_of(sigma), 0.0)
    made = Spectrum(jump, period, tol).cut(sigma, tol)
    exact = float(MASSES @ norm.sf((0.2001234 - MEANS) / sigma))
    off = abs(by_series(made, period, sigma) - exact)
    assert off <= made.error
    assert made.error > tol  # it does not claim to have met tol
    assert made.error < 1e-2


def test_series_reproduces_the_function_on_its_range() -> None:
    period = Period(-2.0, 3.0, 1.2)
    made = Spectrum(GS["kl"], period, 1e-10).cut(0.0, 1e-10)
    c = np.linspace(-2.0, 3.0, 77)
    p = np.arange(-made.P, made.P + 1)
    values = np.exp(1j * period.delta * np.outer(c - period.middle, p)) @ made.coefficients
    np.testing.assert_allclose(values.real, GS["kl"](c), atol=1e-9)
    np.testing.assert_allclose(values.imag, 0, atol=1e-12)


def test_grown_adds_zeros_and_half_folds() -> None:
    made = Series(np.array([1 - 2j, 3.0, 1 + 2j]), 0.0, 0.0, 1.0)
    assert made.P == 1
    np.testing.assert_array_equal(made.grown(3), [0, 0, 1 - 2j, 3, 1 + 2j, 0, 0])
    np.testing.assert_array_equal(made.grown(0), made.coefficients)
    np.testing.assert_array_equal(made.half(), [3, 2 + 4j])


def test_period_window_is_flat_on_the_range_and_small_at_its_ends() -> None:
    period = Period(-1.0, 3.0, 0.5)
    assert (period.length, period.start) == (6.0, -2.0)
    # 1 on [-1, 3] up to about tol, by symmetry 1/2 half way into the padding
    window = period.window(np.array([-2.0, -1.5, -1.0, 1.0, 3.0, 3.5, 4.0]), 1e-6)
    np.testing.assert_allclose(window, [0, 0.5, 1, 1, 1, 0.5, 0], atol=1e-6)
    assert 0 < window[0] < 1e-6
    np.testing.assert_array_equal(Period(-1.0, 3.0, 0.0).window(np.array([-1.0, 3.0]), 1e-6), 1.0)


# ---------------------------------------------------------------- two coordinates

COVARIANCE = np.array([[0.25, 0.1], [0.1, 0.09]])
CENTRES = np.array([[-0.5, 0.3], [0.7, -0.4]])
GS_2D: dict[str, Callable[[Array, Array], Array]] = {
    "smooth": lambda a, b: np.logaddexp(0, b) ** 2 * expit(a) - a * b,
    "log scale": lambda a, b: 0.5 * (a**2 + np.logaddexp(0, b) ** 2) - np.log(np.logaddexp(0, b)),
    # along a diagonal, so that many rectangles are needed
    "steep": lambda a, b: expit(25 * (a - b)),
}


def both_ways(g: Callable[[Array, Array], Array], tol: float) -> tuple[float, float, float]:
    """E g by the double series and by Gauss-Hermite, for a mixture of two normal laws; and its error."""
    sigma = np.sqrt(np.diag(COVARIANCE))
    lo, hi = CENTRES.min(axis=0) - 7.5 * sigma, CENTRES.max(axis=0) + 7.5 * sigma
    periods = [Period(float(a), float(b), 0.5) for a, b in zip(lo, hi, strict=True)]
    made = series_2d(g, periods, COVARIANCE, tol)
    omega = made.modes * np.array([p.delta for p in periods])
    turns = np.exp(1j * omega @ (CENTRES - [p.middle for p in periods]).T)
    X = turns.mean(axis=1) * np.exp(-0.5 * np.einsum("ni,ij,nj->n", omega, COVARIANCE, omega))
    x, w = roots_hermitenorm(160)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1) @ np.linalg.cholesky(COVARIANCE).T
    weights = np.outer(w, w) / (2 * np.pi)
    with np.errstate(under="ignore"):  # far out weights are 0
        exact = np.mean([np.sum(weights * g(grid[..., 0] + m[0], grid[..., 1] + m[1])) for m in CENTRES])
    return float((made.coefficients @ X).real), float(exact), made.error


@pytest.mark.parametrize("tol", [1e-4, 1e-9])
@pytest.mark.parametrize("g", GS_2D.values(), ids=GS_2D.keys())
def test_double_series(g: Callable[[Array, Array], Array], tol: float) -> None:
    value, exact, dropped = both_ways(g, tol)
    assert abs(value - exact) <= dropped + 0.5 * tol
    assert dropped <= 1.2 * tol


@pytest.mark.parametrize("width", [1e-1, 1e-2, 1e-3])
def test_a_narrow_bend_in_one_of_two_parameters_is_not_aliased(width: float) -> None:
    """The law's noise leaves few modes, but their coefficients must see what lies between the points of any coarse grid."""

    def bend(a: Array) -> Array:
        return np.sqrt((a - 0.3) ** 2 + width**2)

    value, _, dropped = both_ways(lambda a, b: bend(a) + 0 * b, 1e-8)
    std = COVARIANCE[0, 0] ** 0.5
    exact = np.mean(
        [
            quad(
                lambda a, m=m: norm.pdf(a, m[0], std) * bend(a),
                m[0] - 12 * std,
                m[0] + 12 * std,
                points=[0.3],
                limit=400,
            )[0]
            for m in CENTRES
        ]
    )
    assert dropped <= 1e-7
    assert abs(value - exact) <= dropped + 1e-12


def test_double_series_calls_a_smooth_function_seldom() -> None:
    calls = 0

    def counted(a: Array, b: Array) -> Array:
        nonlocal calls
        calls += a.size
        return GS_2D["smooth"](a, b)

    both_ways(counted, 1e-9)
    assert calls <= 24**2 + 48**2 + 96**2 + 2 * 160**2


# ---------------------------------------------------------------- functions that are not finite


def test_functions_that_are_not_finite_are_named() -> None:
    period = Period(-1.0, 1.0, 0.0)
    with pytest.raises(UnsupportedError, match=r"K\[3\] is not finite at c = -1, which the law"):
        Spectrum(lambda c: np.log(c + 0.5), period, 1e-6, "K[3]")
    with pytest.raises(UnsupportedError, match=r"K\[1\] is not finite at c = .*, .*, which the law"):
        series_2d(lambda a, b: a / (b < 0.9), [period, period], np.eye(2), 1e-6, "K[1]")
    with pytest.raises(UnsupportedError, match=r"s\[0\] is not finite at c = 2, which"):
        finite("s[0]", lambda c: 1 / (c - 2), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(finite("one", lambda c: np.float64(1.0), np.zeros(3)), np.ones(3))


def test_a_jump_is_halved_as_far_as_floats_go() -> None:
    """Rectangles at a jump never resolve; their nodes must not fall together."""
    value, _, error = both_ways(lambda c0, c1: np.where(c0 > 0.3, 1.0, 0.0) + 0 * c1, 1e-9)
    exact = float(ndtr((CENTRES[:, 0] - 0.3) / np.sqrt(COVARIANCE[0, 0])).mean())
    assert abs(value - exact) <= error
