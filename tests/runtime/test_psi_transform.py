"""Integrals against psi: closed forms for linear pieces, nodes for everything else, both against brute quadrature."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, ndtr

import elbotree as et
from elbotree.codegen import compile_psi
from elbotree.runtime import psi_transform
from elbotree.runtime.activations import Activation
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.psi_transform import PsiTransform, finite_psi

Array = NDArray[np.float64]

LINEAR = ("relu", "leaky_relu", "abs", "hardtanh", "heaviside", "sign", "max(b, 0) - max(b - 1, 0)/2")
BBAR, LO, HI, MODES = 0.3, -2.5, 3.1, 12
# modes of both signs, zero, one for which a piece's phase stands still, and one far out
CENTER = np.array([0.0, 1.2, -0.7, 5.0, 0.3])
THETA = np.array([0.0, 0.4, -3.0, 2 * np.pi / (HI - LO), 11.0])
ALPHA = np.array([0.0, -1.0, 3.0, 0.01, -30.0])


def brute(psi: Activation, lo: float = LO, hi: float = HI) -> NDArray[np.complex128]:
    """(step / 2 pi) int psi^l exp(i (center + theta beta + alpha psi)) exp(-i k step beta), (l, n, k), 5,000 nodes."""
    edges = [lo, *(b - BBAR for b in psi.breaks if lo < b - BBAR < hi), hi]
    x, w = np.polynomial.legendre.leggauss(50)
    parts = [np.linspace(a, b, 101) for a, b in pairwise(edges)]
    left, right = (np.concatenate([p[s] for p in parts]) for s in (slice(None, -1), slice(1, None)))
    beta = (0.5 * (left + right)[:, None] + 0.5 * (right - left)[:, None] * x).ravel()
    weight = (0.5 * (right - left)[:, None] * w).ravel() / (hi - lo)
    value = np.broadcast_to(psi.value(BBAR + beta), beta.shape)
    phase = np.exp(1j * (CENTER[:, None] + np.outer(THETA, beta) + np.outer(ALPHA, value)))
    F = np.exp(-2j * np.pi / (hi - lo) * np.outer(np.arange(-MODES, MODES + 1), beta)) * weight
    return np.stack([(phase * value**power) @ F.T for power in range(3)])


def rows(
    psi: Activation, lo: float = LO, hi: float = HI, powers: int = 3, tol: float = 1e-13
) -> NDArray[np.complex128]:
    return PsiTransform(psi, BBAR, lo, hi, MODES, tol).rows(CENTER, THETA, ALPHA, powers)


@pytest.mark.parametrize("text", LINEAR)
def test_linear_pieces_in_closed_form(text: str) -> None:
    psi = compile_psi(text)
    assert psi.pieces is not None
    np.testing.assert_allclose(rows(psi), brute(psi), atol=3e-13, rtol=0)


@pytest.mark.parametrize("text", LINEAR)
def test_closed_form_and_nodes_agree(text: str) -> None:
    psi = compile_psi(text)
    by_nodes = rows(replace(psi, pieces=None))
    np.testing.assert_allclose(rows(psi), by_nodes, atol=1e-12, rtol=0)


@pytest.mark.parametrize("text", ["sin(3*b) + abs(b)", "elu", "max(b, 0)**2", "where(b > 0, tanh(b), sin(b))"])
def test_nodes_for_every_other_psi(text: str) -> None:
    psi = compile_psi(text)
    assert psi.pieces is None
    scale = float(np.abs(psi.value(BBAR + np.linspace(LO, HI, 99))).max()) ** 2
    np.testing.assert_allclose(rows(psi), brute(psi), atol=1e-12 * max(1.0, scale), rtol=0)


@pytest.mark.parametrize("text", ["tanh", "gelu", "b*tanh(b)/(1 + b**2)", "tanh(5*b)", "b**3 - b", "1/(1 + 25*b**2)"])
def test_trapezoids_for_smooth_psi_are_right_where_a_density_weighs_them(text: str) -> None:
    """The frequencies of a density that is zero at both ends of the range, met with the rows and with brute quadrature."""
    psi = compile_psi(text)
    modes = 60
    k = np.arange(-modes, modes + 1)
    density = np.exp(
        -0.5 * (0.16 * 2 * np.pi / (HI - LO) * k) ** 2
    )  # a normal of standard deviation 0.16 around beta = 0
    transform = PsiTransform(psi, BBAR, LO, HI, modes, 1e-13)
    most = float(np.abs(ALPHA).max())
    assert transform.points((float(np.abs(THETA).max()) + most * transform.steepness) * (HI - LO), most) > 0
    found = transform.rows(CENTER, THETA, ALPHA, 3) @ density
    beta = np.linspace(LO, HI, 200_001)
    value = psi.value(BBAR + beta)
    h = np.exp(-0.5 * (beta / 0.16) ** 2) * np.sqrt(2 * np.pi) / (0.16 * 2 * np.pi)
    for n in range(len(CENTER)):
        wave = np.exp(1j * (CENTER[n] + THETA[n] * beta + ALPHA[n] * value))
        for power in range(3):
            exact = np.sum(h * wave * value**power) * (HI - LO) / 200_000
            scale = max(1.0, float(np.abs(value[np.abs(beta) < 1.3]).max()) ** power)
            assert abs(found[power, n] - exact) <= 1e-12 * scale


@pytest.mark.parametrize(("lo", "hi"), [(0.1, 2.0), (-2.0, -0.4), (-1.4, 0.9)])
def test_ranges_that_miss_some_breaks(lo: float, hi: float) -> None:
    # b = bbar + beta lies right of hardtanh's kinks at -1 and 1, between them, left of one, ...
    psi = compile_psi("hardtanh")
    np.testing.assert_allclose(rows(psi, lo, hi), brute(psi, lo, hi), atol=3e-13, rtol=0)


@pytest.mark.parametrize("powers", [1, 2])
@pytest.mark.parametrize("text", ["relu", "tanh"])
def test_fewer_powers_are_the_first_of_more(text: str, powers: int) -> None:
    psi = compile_psi(text)
    np.testing.assert_allclose(rows(psi, powers=powers), rows(psi)[:powers], atol=1e-14, rtol=0)


def test_weights_integrate_against_the_lattice() -> None:
    # int_lo^hi e^{3 beta} and psi^2; and against the frequencies of b, at turns that the caller asks for
    transform = PsiTransform(compile_psi("relu"), BBAR, LO, HI, MODES, 1e-12)
    nodes = transform.nodes(4.0 * (HI - LO), 1.0)
    assert nodes.weights @ np.exp(3 * nodes.beta) == pytest.approx((np.exp(3 * HI) - np.exp(3 * LO)) / 3, rel=1e-13)
    assert nodes.weights @ nodes.psi**2 == pytest.approx((BBAR + HI) ** 3 / 3, rel=1e-13)
    k = np.arange(-MODES, MODES + 1)
    np.testing.assert_allclose(nodes.against(np.ones_like(nodes.beta)), k == 0, atol=1e-13)  # whole periods


@pytest.mark.parametrize("text", ["tanh(5*b)", "sin(3*b) + abs(b)"])
def test_many_nodes_are_met_a_part_at_a_time(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PsiTransform(compile_psi(text), BBAR, LO, HI, MODES, 1e-12).nodes(4.0, 2.0)
    monkeypatch.setattr(psi_transform, "_MOST_KEPT", 0)
    monkeypatch.setattr(psi_transform, "_AT_ONCE", 7 * len(whole.frequencies))
    parts = PsiTransform(compile_psi(text), BBAR, LO, HI, MODES, 1e-12).nodes(4.0, 2.0)
    assert len(parts.beta) > 14
    np.testing.assert_allclose(parts.against(parts.psi), whole.against(whole.psi), atol=1e-14, rtol=0)
    phi = np.exp(-0.01 * whole.frequencies**2)
    np.testing.assert_allclose(parts.density(phi), whole.density(phi), atol=1e-14, rtol=1e-13)


@pytest.mark.parametrize("text", ["tanh(5*b)", "relu", "where(b > 0, tanh(b), sin(b))"])
def test_integrals_of_a_function_of_b(text: str) -> None:
    """Against brute sums: a function with a feature a fiftieth of the range wide, times psi^l, against the frequencies."""
    transform = PsiTransform(compile_psi(text), BBAR, LO, HI, MODES, 1e-9)

    @np.errstate(under="ignore")
    def g(beta: Array) -> Array:
        return np.asarray(100.0 * np.exp(-0.5 * ((beta - 0.3) / 0.02) ** 2) + np.cos(beta))

    found, largest, missed = transform.integrals(g)
    assert largest == pytest.approx(101.0, rel=0.05)
    beta = LO + (HI - LO) * (np.arange(400_000) + 0.5) / 400_000
    value = transform.at(beta)
    k = np.arange(-MODES, MODES + 1)
    for power in range(3):
        summed = (g(beta) * value**power) @ np.exp(-1j * transform.step * np.multiply.outer(beta, k)) / 400_000
        np.testing.assert_allclose(found[power], summed, atol=missed + 1e-9, rtol=0)


def test_steepness_leaves_jumps_out() -> None:
    assert PsiTransform(compile_psi("heaviside"), BBAR, LO, HI, 3, 1e-8).steepness <= 1e-12
    assert PsiTransform(compile_psi("leaky_relu"), BBAR, LO, HI, 3, 1e-8).steepness == pytest.approx(1.0)
    assert PsiTransform(compile_psi("tanh"), BBAR, LO, HI, 3, 1e-8).steepness == pytest.approx(1.0, rel=1e-4)


def test_a_kink_close_to_the_end_of_the_range() -> None:
    """b spends less than a thousandth of its range beyond the kink, where psi is not constant all the same."""
    lo, hi = -30.383, 4.1322
    transform = PsiTransform(compile_psi("relu"), -4.1057, lo, hi, 12, 1e-8)
    assert transform.steepness == pytest.approx(1.0)
    nodes = transform.nodes(1.0, 0.0)
    assert nodes.weights @ nodes.psi == pytest.approx((hi - 4.1057) ** 2 / 2, rel=1e-9)


def test_psi_that_is_not_finite_is_refused() -> None:
    with (
        np.errstate(over="ignore"),
        pytest.raises(UnsupportedError, match=r"psi \(exp\) is not finite at b = 1000, which the law of b reaches"),
    ):
        finite_psi(compile_psi("exp"), np.array([0.0, 1000.0]))


def test_a_function_of_b_that_does_not_resolve_is_not_blamed_on_psi_alone() -> None:
    transform = PsiTransform(compile_psi("relu"), BBAR, LO, HI, MODES, 1e-9)
    noise = np.random.default_rng(0)
    with pytest.raises(
        UnsupportedError, match="psi, or a function of an encoder parameter that depends on b alone, is not"
    ):
        transform.integrals(lambda beta: noise.standard_normal(np.shape(beta)))


@pytest.mark.parametrize("centre", [0.3, 1e-3])
@pytest.mark.parametrize("scale", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("text", ["tanh", "sigmoid", "exp(-b**2)", "tanh(b - 500)"])
def test_what_psi_does_within_a_small_part_of_the_range_is_seen(text: str, scale: float, centre: float) -> None:
    """E psi(b)^2 of b ~ N(-centre scale, scale^2): a step or a peak of width 1 on a range of 12 scale."""
    layer = et.Layer([[1.0]], [1.0], [scale], text, threshold=-centre * scale)
    p1 = et.FeatureModel(np.zeros((1, 0)), [], 1.0)
    problem = et.Problem(layer, p1, et.FeatureModel(np.zeros((1, 0)), [], 1.0), et.Encoder([]))
    found = et.evaluate(problem, tol=1e-6)["U3"]
    where = 500.0 if "500" in text else 0.0
    step = np.linspace(-30.0, 30.0, 60_001)  # b - where: outside of it psi^2 is constant to rounding
    psi = {"t": np.tanh, "s": expit, "e": lambda b: np.exp(np.maximum(-(b**2), -700.0))}[text[0]]
    below, above = (0.0, 0.0) if text[0] == "e" else (float(psi(-30.0)) ** 2, 1.0)
    ends = (where + step[[0, -1]] + centre * scale) / scale
    density = np.exp(-0.5 * ((where + step + centre * scale) / scale) ** 2) / (math.sqrt(2 * math.pi) * scale)
    with np.errstate(under="ignore"):
        value = psi(step) ** 2 * density
    middle = float(np.sum(value[1:] + value[:-1])) * 0.5e-3
    exact = below * ndtr(ends[0]) + middle + above * ndtr(-ends[1])
    assert abs(found.value - exact) <= found.error + 1e-12
