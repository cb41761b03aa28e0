"""Lattices of pairs against the plain lattice walk (which merges nothing, shears nothing and steps nowhere), and the numpy
walk against the compiled one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree.evaluation import kernels_for
from elbotree.runtime.fourier import Period
from elbotree.runtime.frames import Axis, Frame
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.pair_lattices import BLaw, PairLattice
from elbotree.runtime.priors import Bernoulli, Normal, Prior
from elbotree.runtime.spectral import SpectralExpectations
from elbotree.runtime.weak_sources import ORDERS, WeakSources
from tests.runtime.sources import MIXED, SPARSE


def output(priors: tuple[Prior, ...], psi: str, tol: float, noise: float = 0.15) -> OutputLaw:
    rng = np.random.default_rng(3)
    n = len(priors)
    B = np.eye(n) + 0.15 * rng.standard_normal((n, n))
    u, w = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
    return OutputLaw(Layer(np.eye(n), w, u, psi), FeatureModel(B, list(priors), noise), tol)


def pair(law: OutputLaw, scale: float) -> tuple[Axis, Axis]:
    n = len(law.w)
    rng = np.random.default_rng(4)
    axes = []
    for j in (0, 1):
        row = scale * np.eye(n)[j] + 0.05 * scale * rng.standard_normal(n)
        c = law.coordinate(row, 0.3)
        axes.append(Axis(c, Period(*c.ranges(np.log(1e-10)).first, 0.0)))
    return axes[0], axes[1]


def smooth(P: int, Q: int) -> np.ndarray:
    """Coefficients of a real function that fall off in p and q, one of each (n, -n)."""
    rng = np.random.default_rng(5)
    p, q = np.arange(-P, P + 1)[:, None], np.arange(Q + 1)[None, :]
    out = (rng.standard_normal((2 * P + 1, Q + 1)) + 1j * rng.standard_normal((2 * P + 1, Q + 1))) * np.exp(
        -0.3 * (abs(p) + q)
    )
    out[:P, 0] = 0.0
    return out


CASES = [(SPARSE, "relu"), (SPARSE, "tanh"), (MIXED, "relu"), (MIXED, "b"), (MIXED, "hardtanh")]


@pytest.mark.parametrize("tol", [1e-4, 1e-9])
@pytest.mark.parametrize(("priors", "psi"), CASES, ids=lambda x: x if isinstance(x, str) else f"{len(set(x))} priors")
def test_equals_the_plain_walk_within_its_error(priors: tuple[Prior, ...], psi: str, tol: float) -> None:
    law = output(priors, psi, 1e-10)
    a, b = pair(law, 6.0)
    coefficients = smooth(14, 11)
    shared = BLaw(law.lattice_law, law.transform, law.u, law.w, compiled=False)
    made = PairLattice(shared, a, b, np.abs(coefficients), tol)
    P = 14
    modes = np.array([(p, q) for p in range(-P, P + 1) for q in range(12) if q > 0 or p >= 0])
    frame = Frame(law.lattice_law, law.transform, law.u, law.w, [a, b], modes)
    of = coefficients[modes[:, 0] + P, modes[:, 1]]
    error = made.error(coefficients)
    assert error <= 1.1 * tol
    assert abs(made.value(coefficients) - float((of @ frame.X).real)) <= error
    assert np.all(
        np.abs(made.vector(coefficients) - (of @ frame.f).real) <= error * np.maximum(law.f_size, 1.0) + 1e-12
    )


@pytest.mark.parametrize(("priors", "psi"), CASES, ids=lambda x: x if isinstance(x, str) else f"{len(set(x))} priors")
def test_compiled_walk_equals_the_numpy_walk(priors: tuple[Prior, ...], psi: str) -> None:
    law = output(priors, psi, 1e-8)
    a, b = pair(law, 6.0)
    coefficients = smooth(9, 12)
    found = []
    for compiled in (False, True):
        shared = BLaw(law.lattice_law, law.transform, law.u, law.w, compiled)
        made = PairLattice(shared, a, b, np.abs(coefficients), 1e-7)
        found.append((made.value(coefficients), made.vector(coefficients)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-13)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-12)


@pytest.mark.parametrize("tol", [1e-4, 1e-9, 1e-12])
@pytest.mark.parametrize(("priors", "psi"), CASES, ids=lambda x: x if isinstance(x, str) else f"{len(set(x))} priors")
def test_compiled_plan_equals_the_numpy_plan(priors: tuple[Prior, ...], psi: str, tol: float) -> None:
    law = output(priors, psi, min(tol, 1e-8))
    a, b = pair(law, 6.0)
    weights = np.abs(smooth(14, 11))
    plain, compiled = (
        PairLattice(BLaw(law.lattice_law, law.transform, law.u, law.w, way), a, b, weights, tol)
        for way in (False, True)
    )
    assert (plain.first, plain.degree) == (compiled.first, compiled.degree)
    np.testing.assert_array_equal(plain.limits, compiled.limits)
    np.testing.assert_array_equal(plain.merged, compiled.merged)
    np.testing.assert_allclose(plain.slack, compiled.slack, rtol=1e-9, atol=1e-300)
    assert plain.points == compiled.points


def of_many(tol: float, noise: float = 0.15) -> tuple[OutputLaw, Axis, Axis]:
    """Forty features, of which the pair notices two much and the others little."""
    n = 40
    law = output((Bernoulli(0.1),) * n, "relu", 1e-8, noise)
    rows = 10.0 * np.eye(n)[:2] + 0.01 * np.random.default_rng(0).standard_normal((2, n))
    axes = []
    for row in rows @ np.linalg.inv(law.feature_columns()):
        c = law.coordinate(row, 0.0)
        axes.append(Axis(c, Period(*c.ranges(np.log(tol)).first, 0.0)))
    return law, axes[0], axes[1]


def test_many_weak_sources_cost_as_much_as_few() -> None:
    """The others are merged at a loose tolerance and at a tight one."""
    law, a, b = of_many(1e-9)
    shared = BLaw(law.lattice_law, law.transform, law.u, law.w, compiled=False)
    for tol in (1e-4, 1e-8):
        made = PairLattice(shared, a, b, np.abs(smooth(12, 12)), tol)
        assert int((~made.merged).sum()) <= 4
        assert made.degree <= 8


def flat(P: int, Q: int) -> np.ndarray:
    """Coefficients that hardly fall off: the box is walked to its corners, and rounding limits the polynomial's degree."""
    p, q = np.arange(-P, P + 1)[:, None], np.arange(Q + 1)[None, :]
    out = 1.0 / ((1.0 + abs(p)) * (1.0 + q)) + 0j
    out[:P, 0] = 0.0
    return out


@pytest.mark.parametrize(
    ("shape", "noise", "tol"),
    [(smooth, 0.15, 1e-4), (smooth, 0.15, 1e-8), (smooth, 0.15, 1e-11), (flat, 0.02, 1e-8), (flat, 0.02, 1e-11)],
)
def test_merged_sources_in_compiled_loops_are_those_of_numpy(shape: Any, noise: float, tol: float) -> None:
    """Plans and sums of a lattice with a polynomial of high degree, which agree with a lattice that merges nothing."""
    law, a, b = of_many(1e-9, noise)
    coefficients = shape(20, 20)
    plain, compiled = (
        PairLattice(BLaw(law.lattice_law, law.transform, law.u, law.w, way), a, b, np.abs(coefficients), tol)
        for way in (False, True)
    )
    assert plain.merged.sum() >= 30 or shape is flat
    assert (plain.first, plain.degree) == (compiled.first, compiled.degree)
    np.testing.assert_array_equal(plain.limits, compiled.limits)
    np.testing.assert_array_equal(plain.merged, compiled.merged)
    np.testing.assert_allclose(plain.slack, compiled.slack, rtol=1e-9, atol=1e-300)
    assert plain.value(coefficients) == pytest.approx(compiled.value(coefficients), abs=max(1e-12, 0.01 * tol))
    np.testing.assert_allclose(plain.vector(coefficients), compiled.vector(coefficients), atol=max(1e-11, 0.1 * tol))
    nothing = BLaw(law.lattice_law, law.transform, law.u, law.w, compiled=True)
    nothing.weak.usable[:] = False
    apart = PairLattice(nothing, a, b, np.abs(coefficients), tol)
    assert not apart.merged.any()
    allowed = plain.error(coefficients) + apart.error(coefficients)
    assert allowed <= 2.2 * tol
    assert abs(compiled.value(coefficients) - apart.value(coefficients)) <= allowed


def test_a_source_with_zeros_is_never_merged() -> None:
    """The characteristic function of a fair coin vanishes on the way: it has no logarithm there, seen by the pair or not."""
    priors = (Bernoulli(0.5), Bernoulli(0.5), Bernoulli(0.1))
    law = OutputLaw(
        Layer(np.eye(3), np.ones(3), np.array([0.0, 1.0, 0.3]), "abs"),
        FeatureModel(np.eye(3), list(priors), 0.02),
        1e-8,
    )
    axes = []
    for row in np.array([[8.0, 0.0, 0.0], [7.0, 0.0, 1.0]]):
        c = law.coordinate(row, 0.0)
        axes.append(Axis(c, Period(*c.ranges(np.log(1e-9)).first, 0.0)))
    shared = BLaw(law.lattice_law, law.transform, law.u, law.w, compiled=False)
    coefficients = smooth(6, 6)
    made = PairLattice(shared, axes[0], axes[1], np.abs(coefficients), 1e-7)
    assert not made.merged[1]  # b meets its zeros, c_j and c_k do not see it
    modes = np.array([(p, q) for p in range(-6, 7) for q in range(7) if q > 0 or p >= 0])
    frame = Frame(law.lattice_law, law.transform, law.u, law.w, axes, modes)
    exact = float((coefficients[modes[:, 0] + 6, modes[:, 1]] @ frame.X).real)
    assert abs(made.value(coefficients) - exact) <= made.error(coefficients)


def test_a_smaller_tolerance_walks_more() -> None:
    law = output(SPARSE, "relu", 1e-10)
    a, b = pair(law, 6.0)
    shared = BLaw(law.lattice_law, law.transform, law.u, law.w, compiled=False)
    points = [PairLattice(shared, a, b, np.abs(smooth(14, 11)), tol).points for tol in (1e-3, 1e-6, 1e-9)]
    assert points[0] < points[1] < points[2]


@pytest.mark.parametrize("prior", sorted({*SPARSE, *MIXED}, key=repr), ids=repr)
def test_taylor_coefficients_give_the_characteristic_function(prior: Prior) -> None:
    law = output((prior, Normal(0.0, 1.0)), "relu", 1e-6).y
    weak = WeakSources(law, np.array([0.7, 0.2]), 6, np.exp(-0.1 * np.arange(-6, 7) ** 2))
    if not weak.usable.all():  # phi of a fair coin has zeros, and other laws may come close
        assert prior == Bernoulli(0.5)
        return
    along = float(np.array([0.7, 0.2]) @ law.loadings[:, 0])
    for k in (-6, -1, 0, 4):
        for delta in (0.05, -0.2):
            series = sum(weak.coefficients[m, 0, k + 6] * delta**m for m in range(ORDERS))
            t = k * along + delta
            exact = complex(prior.cf(np.array(t))) * np.exp(-1j * prior.mean() * t)
            left_out = 4 * abs(weak.coefficients[-1, 0, k + 6] * delta ** (ORDERS - 1))
            assert abs(np.exp(series) - exact) <= 1e-9 + left_out
            assert abs(np.exp(sum(weak.coefficients[m, 0, k + 6] * delta**m for m in range(3))) - exact) > 1e-9


@np.errstate(under="ignore")  # as `evaluate` and `gradient` ask an engine
def test_values_and_gradients_do_not_depend_on_threads() -> None:
    """All pairs, compiled, on one thread and on five: the same bits, at a size where the pairs see noise of several classes."""
    rng = np.random.default_rng(1)
    n = 7
    B = np.eye(n) + 0.3 * rng.standard_normal((n, n))
    rows = 8.0 * np.linalg.inv(B)
    rows[1] = rows[0] + 0.05 * rng.standard_normal(n)  # leaves c_0 little noise of its own
    problem = et.Problem(
        et.Layer(np.eye(n), rng.standard_normal(n), rng.standard_normal(n) / np.sqrt(n), "relu"),
        FeatureModel(B, [Bernoulli(0.2)] * n, 0.1),
        FeatureModel(B, [Bernoulli(0.2)] * n, 0.3),
        et.Encoder([et.Posterior("bernoulli", row[None, :], [-4.0]) for row in rows]),
    )
    kernels = kernels_for(problem.layer, problem.encoder)
    found = []
    for threads in (1, 5, 5):
        engine = SpectralExpectations(
            problem.layer, problem.input, problem.encoder, tol=1e-7, gradient_tol=1e-6, threads=threads
        )
        engine._compiled = engine.pairs._compiled = True
        values = kernels.evaluate(engine, problem)
        parts = kernels.gradient(engine, problem, values)
        found.append((values["T3"].value, values["T3"].error, np.concatenate([part.value for part in parts["C"]])))
    for other in found[1:]:
        assert found[0][0] == other[0]
        assert found[0][1] == other[1]
        np.testing.assert_array_equal(found[0][2], other[2])
