"""What functions are where their arguments hardly ever are is in the error: against normal laws in closed form, for functions
that are nothing, to the last digit, where all of the mass is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats
from scipy.special import expit

import elbotree as et
from elbotree.runtime import rings
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.rings import Ranges
from elbotree.runtime.spectral import SpectralExpectations

Array = NDArray[np.float64]
STD = 1.25  # of each entry of x1
POLE = 9.0


@pytest.mark.parametrize("epsilon", [1e-2, 1e-7])
@pytest.mark.parametrize(
    "g",
    [
        lambda c: c**4,
        np.exp,
        lambda c: np.exp(0.2 * c**2),
        lambda c: expit(30 * (c - 6.5)),
        np.ones_like,
        lambda c: 1 / (POLE - c),
    ],
    ids=["power", "exp", "gaussian", "step", "one", "pole"],
)
def test_what_a_normal_variable_has_outside_its_range(g: Callable[[Array], Array], epsilon: float) -> None:
    """Its ranges are exact quantiles here: E[g; outside] <= 2 epsilon mean, and it is not far below where g is smooth."""
    ends = stats.norm.isf(epsilon * np.exp(-rings.STEPS))
    M = rings.largest("g", g, Ranges(-ends, ends))

    @vanishing
    def weighted(c: float) -> float:
        return float(abs(g(np.array(c))) * stats.norm.pdf(c))

    between = [(a, b) for a, b in pairwise(ends) if not a < POLE < b]
    parts = [integrate.quad(weighted, *ring, epsrel=1e-10)[0] for a, b in between for ring in ((a, b), (-b, -a))]
    assert 0 < sum(parts) <= 2 * epsilon * rings.mean(M)
    assert rings.mean(M) <= rings.root(M) * (1 + 1e-12)  # the mean of |g| and its root mean square


def test_means_of_rings() -> None:
    assert rings.mean(np.ones(6)) == pytest.approx(1.0, rel=1e-15)
    assert rings.root(np.full(6, 1e200)) == pytest.approx(1e200, rel=1e-15)
    assert rings.root(np.zeros(6)) == 0.0
    late = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])  # nothing up to e^-12 of the mass
    assert rings.mean(late) == pytest.approx(np.exp(-12.0), rel=1e-12)
    assert rings.root(late) == pytest.approx(np.exp(-6.0), rel=1e-12)
    assert rings.mean(np.array([1.0, 1, 1, 1, 1, np.inf])) == np.inf


def test_what_is_inside_counts_outside_too() -> None:
    """The series that stands for a function repeats there what it is inside."""
    ends = 5.0 + rings.STEPS
    np.testing.assert_array_equal(rings.largest("g", lambda c: np.exp(-(c**2)), Ranges(-ends, ends)), np.ones(6))


def test_boxes_see_what_one_coordinate_alone_does_not() -> None:
    lo, hi = -1.0 - rings.STEPS, 1.0 + rings.STEPS
    corner = rings.largest_on_boxes("g", lambda a, b: expit(50 * (a + b - 5.0)), [Ranges(lo, hi)] * 2)
    assert corner[0] == pytest.approx(1.0)  # at (4, 4)
    assert rings.largest("g", lambda a: expit(50 * (a - 5.0)), Ranges(lo, hi))[0] < 1e-20


def engine(
    psi: str, rows: list[list[float]], *, w: float = 0.0, threshold: float = 0.0, tol: float = 1e-4
) -> SpectralExpectations:
    """y ~ N(0, STD^2 I); one feature for all rows, and one for each."""
    n = len(rows[0])
    layer = et.Layer(np.eye(n), np.full(n, w), np.eye(n)[0], psi, threshold=threshold)
    model = et.FeatureModel(np.eye(n), [et.Normal(0.0, 1.0)] * n, 0.75)
    encoder = et.Encoder(
        [
            *(et.Posterior("bernoulli", np.array([row]), [0.0]) for row in rows),
            et.Posterior("normal_scale", np.array([rows[0], rows[-1]]), [0.0, 0.0]),
        ]
    )
    return SpectralExpectations(layer, model, encoder, tol=tol)


def step(at: float) -> Callable[[Array], Array]:
    """0 in float64 below at - 1.2 or so, 1 above."""
    return lambda c: np.where(c > at, 1.0, 0.0) * expit(600 * (c - at) ** 3 - 40)


def mass(g: Callable[[Array], Array], std: float, far: float) -> float:
    return float(
        integrate.quad(lambda c: float(g(np.array(c))) * stats.norm.pdf(c, 0, std), 0.8 * far, 3 * far, limit=500)[0]
    )


def covers(found: et.Estimate, truth: float, tol: float) -> None:
    value, error = float(np.ravel(found.value)[0]), float(np.ravel(found.error)[0])
    assert truth > 0
    assert abs(value - truth) <= error <= tol


@pytest.mark.parametrize("at", [5.5, 6.5, 8.0])
def test_a_function_of_one_coordinate(at: float) -> None:
    g = Integrand(0, (0,), step(at * STD), None, "g")
    law = engine("identity", [[1.0, 0.0], [0.0, 1.0]])
    covers(law.of_c_each([g]), mass(g.value, STD, at * STD), 1e-4)


def test_a_pair_of_functions() -> None:
    g, h = (
        Integrand(0, (0,), step(6.5 * STD), None, "g"),
        Integrand(1, (0,), lambda c: 0.5 + expit(c) + 0 * c, None, "h"),
    )
    law = engine("identity", [[1.0, 0.0], [0.0, 1.0]])
    truth = mass(g.value, STD, 6.5 * STD)
    covers(law.of_cc([g], [h], weights=np.ones((1, 1))), truth, 1e-4)
    assert law.pairs.term(g, h, 1e-5, 5).tail >= truth  # by itself, whatever else errs


def test_a_function_of_two_coordinates() -> None:
    both = Integrand(2, (0, 1), lambda a, b: step(6.5 * STD)(a) * (0.5 + expit(b)), None, "g")
    law = engine("identity", [[1.0, 0.0], [0.0, 1.0]])
    covers(law.of_c_each([both]), mass(step(6.5 * STD), STD, 6.5 * STD), 1e-4)


def test_a_function_of_b() -> None:
    """One input and a relu that is open where the mass is: c = y + relu(y + 20)."""
    g = Integrand(0, (0,), step(2 * 6.5 * STD + 20), None, "g")
    law = engine("relu", [[1.0]], w=1.0, threshold=20.0)
    covers(law.of_c_each([g]), mass(lambda y: g.value(2 * y + 20), STD, 6.5 * STD), 1e-4)


def test_a_coordinate_that_b_moves_from_outside_its_range() -> None:
    """c = <row, y> + 100 relu(b - 8): nothing is ever seen of the relu, and g is 0 unless it opens."""
    g = Integrand(0, (0,), step(50.0), None, "g")
    law = engine("relu", [[1.0, 1.0]], w=50.0, threshold=-8.0)
    covers(law.of_c_each([g]), 0.5 * float(stats.norm.sf(8.6 / STD)), 1e-4)


def test_a_large_function_that_b_moves_from_outside_its_range() -> None:
    """It asks for a wide range of c, and the mass that b leaves out is more than that range does; tol is missed, and said so."""
    g = Integrand(0, (0,), lambda c: 1e6 * step(50.0)(c), None, "g")
    law = engine("relu", [[1.0, 1.0]], w=5000.0, threshold=-7.0)
    covers(law.of_c_each([g]), 1e6 * float(stats.norm.sf(7.01 / STD)), 1.0)


def test_a_psi_that_is_nothing_where_b_has_its_mass() -> None:
    law = engine("relu", [[1.0]], w=1.0, threshold=-6.5 * STD)
    psi = law.output.layer.activation.value
    truth = STD * (stats.norm.pdf(6.5) - 6.5 * stats.norm.sf(6.5))
    covers(law.of_b(psi), float(truth), 1e-4)
    covers(law.mean_f(), float(truth), 1e-4)


def test_three_read_outs() -> None:
    layer = et.Layer(np.eye(3), np.zeros(3), np.eye(3)[0], "identity")
    model = et.FeatureModel(np.eye(3), [et.Normal(0.0, 1.0)] * 3, 0.75)
    g = step(6.5 * STD)
    found = et.joint(layer, model, np.eye(3)).expect(lambda a, b, c: g(a) * (0.5 + expit(b)) + 0 * c, 1e-3)
    covers(found, mass(g, STD, 6.5 * STD), 1e-3)


def test_a_function_that_grows_faster_than_the_tails_fall_is_refused() -> None:
    """E exp(c^2 / 2) does not exist for a standard deviation above 1."""
    g = Integrand(0, (0,), lambda c: np.exp(0.5 * c**2), None, "g")
    with pytest.raises(UnsupportedError, match=r"g of encoder\[0\] is not finite at c = .*, which the law"):
        engine("identity", [[1.0, 0.0], [0.0, 1.0]], tol=1e-2).of_c_each([g])


@pytest.mark.parametrize(("p", "size"), [(1e-7, 50.0), (1e-8, 50.0), (1e-9, 200.0)])
def test_a_rare_feature_that_is_large_where_g_is_not_nothing(p: float, size: float) -> None:
    """E[f g] is p times size, six standard deviations of f being far less than size; all of it lies outside the range of c."""
    p1 = et.FeatureModel(np.eye(2), [et.Discrete([0.0, size], [1 - p, p]), et.Normal(0.0, 1.0)], 0.5)
    layer = et.Layer(np.eye(2), np.zeros(2), np.ones(2), "identity")
    law = SpectralExpectations(layer, p1, et.Encoder([et.Posterior("bernoulli", [[1.0, 0.0]], [0.0])]), tol=1e-4)
    g = Integrand(0, (0,), step(0.4 * size), None, "g")
    assert law.output.f_size[0] >= 0.9 * size
    found = law.of_c([g], weights=np.ones(1), along=np.array([[1.0, 0.0]]))
    assert abs(float(found.value) - p * size) <= float(found.error)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-9])
def test_how_large_outputs_are_where_something_rare_happens(epsilon: float) -> None:
    """Atoms of one source and no noise: the rarest event of probability epsilon is that of the largest |y - mean|."""
    p1 = et.FeatureModel(np.array([[1.0], [-3.0]]), [et.Discrete([0.0, 1.0, 40.0], [0.98, 0.02 - 1e-6, 1e-6])], 0.0)
    law = SpectralExpectations(
        et.Layer(np.eye(2), np.zeros(2), np.ones(2), "identity"),
        p1,
        et.Encoder([et.Posterior("bernoulli", [[1.0, 0.0]], [0.0])]),
        tol=1e-4,
    ).output.lattice_law
    points, masses = p1.priors[0].atoms
    y = np.multiply.outer(p1.B[:, 0], points - points @ masses)
    for i, reach in enumerate(law.reaches(float(np.log(epsilon)))):
        order = np.argsort(-np.abs(y[i]))
        left = np.minimum(masses[order], np.maximum(epsilon - np.cumsum(masses[order]) + masses[order], 0.0))
        worst = float(left @ np.abs(y[i][order])) / epsilon
        assert worst <= reach <= 1.1 * float(np.abs(y[i]).max())
