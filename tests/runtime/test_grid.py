"""The grid engine against closed forms: Gaussian inputs, enumerated discrete inputs, and convolutions done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit, ndtr

from elbotree.runtime import grid
from elbotree.runtime.activations import Activation
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.grid import GridExpectations
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior
from elbotree.runtime.priors import Bernoulli, Discrete, Exponential, Laplace, Normal, Prior, SpikeSlab, Uniform

RELU = Activation("relu", lambda b: np.maximum(b, 0.0), lambda b: 1.0 * (b > 0), (0.0,))
AFFINE = Activation("2*b + 3", lambda b: 2 * b + 3, lambda b: 2 * np.ones_like(b), affine=(2.0, 3.0))
RECIPROCAL = Activation("reciprocal", lambda b: 1 / b, lambda b: -(b**-2), poles=(0.0,))


def sigmoid(feature: int) -> Integrand:
    return Integrand(feature, (0,), expit, label=f"s[{feature}]")


def covers(estimate, want: float, within: float) -> bool:  # type: ignore[no-untyped-def]
    """The value is as near as `within`, and its error says so without being absurd."""
    miss = abs(float(estimate.value) - want)
    return miss <= within and miss <= float(estimate.error) <= 20 * within


@pytest.mark.parametrize(
    "prior", [Normal(0.5, 2.0), Exponential(1.5), Uniform(-1, 2), SpikeSlab(0.3, Laplace(1.0, 0.5))]
)
def test_bins_keep_mass_mean_and_atoms(prior: Prior) -> None:
    points, masses = grid.bins(prior, 0.02)
    assert masses.sum() == pytest.approx(1.0, abs=1e-12)
    assert masses @ points == pytest.approx(prior.mean(), abs=1e-4)
    assert masses @ points**2 == pytest.approx(prior.moment(2), abs=3e-4)
    for atom, mass in zip(*prior.atoms, strict=True):
        assert masses[points == atom].max() == pytest.approx(mass, abs=1e-12)


def test_a_convolution_of_atoms_on_grid_points_is_enumeration() -> None:
    """alpha_1 + 2 alpha_2 with coins: the grid's bins are chosen so that every sum is a grid point."""
    std = math.sqrt(0.25 + 4 * 0.25)
    sources = [(Bernoulli(0.5), np.array([1.0])), (Bernoulli(0.5), np.array([2.0]))]
    law = grid.convolve(np.array([1.5]), sources, eps=0.5 / std, box=3.0)
    found = {round(float(x), 9): float(m) for x, m in zip(law.points[0], law.mass, strict=True) if m > 1e-12}
    assert found == pytest.approx({0.0: 0.25, 1.0: 0.25, 2.0: 0.25, 3.0: 0.25})


def test_a_two_dimensional_law_has_the_right_moments_and_no_negative_mass() -> None:
    sources = [(Exponential(1.0), np.array([1.0, 0.5])), (Normal(0.0, 1.0), np.array([0.3, -0.7]))]
    law = grid.convolve(np.array([2.0, -1.0]), sources, eps=0.1)
    assert law.mass.min() >= 0
    assert law.mass.sum() == pytest.approx(1.0, abs=1e-12)
    x, y = np.meshgrid(*law.points, indexing="ij")
    mean = [(law.mass * x).sum(), (law.mass * y).sum()]
    assert mean == pytest.approx([2.0, -1.0], abs=1e-3)
    covariance = (law.mass * (x - mean[0]) * (y - mean[1])).sum()
    assert covariance == pytest.approx(0.5 - 0.21, abs=5e-3)


def gaussian_case() -> tuple[Layer, FeatureModel, Encoder]:
    """x1 = (z, 0) + noise with z normal: y is N((0.5, 0), diag(1, 0.25) + 0.25 I)."""
    layer = Layer(np.eye(2), [1.0, 0.5], [1.0, -1.0], RELU, [0.5, 0.0], threshold=0.25)
    p1 = FeatureModel([[1.0, 0.0], [0.0, 0.5]], [Normal(), Normal()], 0.5)
    encoder = Encoder([Posterior("bernoulli", [1.0, 0.0], -0.2), Posterior("bernoulli", [0.3, 1.0], 0.4)])
    return layer, p1, encoder


def by_quadrature(layer: Layer, g) -> float:  # type: ignore[no-untyped-def]
    """E g(y, b, f) of the Gaussian case: polar-free Gauss-Hermite along u (split by hand at the kink) and across it."""
    std = np.array([math.sqrt(1.25), math.sqrt(0.5)])
    z, weight = hermegauss(60)
    weight = weight / weight.sum()
    direction = std * layer.u
    norm = float(np.linalg.norm(direction))
    e1, e2 = direction / norm, np.array([-direction[1], direction[0]]) / norm
    kink = -(0.5 + layer.threshold) / norm  # b = norm s + 0.75
    x, w = np.polynomial.legendre.leggauss(80)
    total = 0.0
    for low, high in ((-9.0, kink), (kink, 9.0)):
        s = (low + high) / 2 + (high - low) / 2 * x
        density = (high - low) / 2 * w * np.exp(-(s**2) / 2) / math.sqrt(2 * math.pi)
        y = np.array([0.5, 0.0]) + std * (s[:, None, None] * e1 + z[:, None] * e2)
        b = y @ layer.u + layer.threshold
        f = y + layer.activation(b)[..., None] * layer.w
        total += float(density @ g(y, b, f) @ weight)
    return total


def test_every_method_on_a_gaussian_input() -> None:
    layer, p1, encoder = gaussian_case()
    law = GridExpectations(layer, p1, encoder, eps=0.1)
    centre, along = np.array([0.2, -0.3]), np.array([1.0, 2.0])
    assert float(law.norm_y(centre).value) == pytest.approx(0.3**2 + 0.3**2 + 1.25 + 0.5, rel=1e-13)

    # b is N(0.75, 1.75): E relu(b) and E relu(b)^2 have closed forms
    m, s = 0.75, math.sqrt(1.75)
    phi = math.exp(-0.5 * (m / s) ** 2) / math.sqrt(2 * math.pi)
    assert covers(law.of_b(RELU), m * ndtr(m / s) + s * phi, 2e-3)
    assert covers(law.of_b(lambda b: RELU(b) ** 2), (m * m + s * s) * ndtr(m / s) + m * s * phi, 2e-2)
    want = by_quadrature(layer, lambda y, b, f: ((y - centre) @ along) * RELU(b))
    assert covers(law.of_b(RELU, along=along, centre=centre), want, 1e-2)

    gs = [sigmoid(0), sigmoid(1)]
    c = [lambda f: f[..., 0] - 0.2, lambda f: f @ np.array([0.3, 1.0]) + 0.4]
    each = [by_quadrature(layer, lambda y, b, f, k=k: expit(c[k](f))) for k in (0, 1)]
    assert covers(law.of_c(gs, weights=np.array([2.0, -1.0])), 2 * each[0] - each[1], 4e-3)
    turned = by_quadrature(layer, lambda y, b, f: (f - centre) @ along * expit(c[0](f)))
    found = law.of_c(gs[:1], weights=np.ones(1), along=along[None], centre=centre)
    assert covers(found, turned, 2e-2)

    weights = np.array([[1.0, 0.5], [0.25, -2.0]])
    pair = {
        (j, k): by_quadrature(layer, lambda y, b, f, j=j, k=k: expit(c[j](f)) * expit(c[k](f)))
        for j in (0, 1)
        for k in (0, 1)
    }
    want = sum(weights[j, k] * value for (j, k), value in pair.items())
    assert covers(law.of_cc(gs, gs, weights=weights), want, 1e-2)
    assert float(law.of_cc(gs, list(gs), weights=weights).value) == pytest.approx(
        float(law.of_cc(gs, gs, weights=weights).value), rel=1e-9
    )


def test_discrete_inputs_are_enumerated() -> None:
    """Two discrete features and hardly any noise: the expectation is a sum over four points."""
    layer = Layer(np.eye(2), [1.0, 0.0], [0.0, 1.0], RELU)
    p1 = FeatureModel([[1.0, 0.5], [0.0, 1.0]], [Bernoulli(0.3), Discrete([-1.0, 2.0], [0.6, 0.4])], 1e-3)
    encoder = Encoder([Posterior("bernoulli", [1.0, 1.0], 0.1)])
    want = 0.0
    for z1, m1 in ((0, 0.7), (1, 0.3)):
        for z2, m2 in ((-1, 0.6), (2, 0.4)):
            y = np.array([z1 + 0.5 * z2, z2])
            f = y + np.array([max(y[1], 0.0), 0.0])
            want += m1 * m2 * float(expit(f.sum() + 0.1))
    found = GridExpectations(layer, p1, encoder, eps=0.02).of_c([sigmoid(0)], weights=np.ones(1))
    assert float(found.value) == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("w", [[0.0, 0.0], [1.0, 0.5]])
def test_affine_layers_need_no_axis_for_b(w: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """f is affine, so c is normal: E c^2 is known, and no grid has more than one dimension."""
    layer = Layer(np.eye(2), w, [0.5, 1.0], AFFINE, [0.1, 0.2], threshold=0.3)
    p1 = FeatureModel(np.eye(2), [Normal(), Normal()], 0.5)
    encoder = Encoder([Posterior("bernoulli", [1.0, 2.0], 0.4)])
    seen: list[int] = []
    original = grid.convolve
    monkeypatch.setattr(grid, "convolve", lambda mean, *rest: seen.append(len(mean)) or original(mean, *rest))
    square = Integrand(0, (0,), lambda c: c**2)
    found = GridExpectations(layer, p1, encoder, eps=0.05).of_c([square], weights=np.ones(1))
    M = np.eye(2) + 2 * np.outer(w, [0.5, 1.0])
    v = M.T @ [1.0, 2.0]
    mean = v @ [0.1, 0.2] + (2 * 0.3 + 3) * (np.array(w) @ [1.0, 2.0]) + 0.4
    assert covers(found, mean**2 + 1.25 * v @ v, 0.1)
    assert set(seen) == {1}


def test_degenerate_directions() -> None:
    """C parallel to u (the pair (c, b) lives on a line), and A^T C = 0 (c is constant)."""
    layer = Layer([[1.0, 0.0], [0.0, 0.0]], [1.0, 0.0], [1.0, 0.0], RELU, [0.0, 0.7])
    p1 = FeatureModel(np.eye(2), [Normal(), Normal()], 0.5)
    encoder = Encoder([Posterior("bernoulli", [2.0, 0.0]), Posterior("bernoulli", [0.0, 1.0])])
    law = GridExpectations(layer, p1, encoder, eps=0.05)
    # c_0 = 2 (y + relu(y)), y ~ N(0, 1.25): E c_0 = 2 E relu(y) = 2 sqrt(1.25 / (2 pi))
    identity = Integrand(0, (0,), lambda c: c)
    assert covers(law.of_c([identity], weights=np.ones(1)), 2 * math.sqrt(1.25 / (2 * math.pi)), 4e-3)
    constant = law.of_c([sigmoid(1)], weights=np.ones(1))
    assert float(constant.value) == pytest.approx(float(expit(0.7)), rel=1e-12)


def test_constants_and_several_coordinates() -> None:
    layer, p1, _ = gaussian_case()
    encoder = Encoder([Posterior("normal_scale", [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])])
    law = GridExpectations(layer, p1, encoder, eps=0.25)
    three = Integrand.constant(0, 3.0)
    assert float(law.of_c([three], weights=np.array([2.0])).value) == 6.0
    product = Integrand(0, (0, 1), lambda c0, c1: expit(c0) * c1)
    want = by_quadrature(layer, lambda y, b, f: expit(f[..., 0]) * (f[..., 1] + 0.5))
    assert covers(law.of_c([product], weights=np.ones(1)), want, 4e-2)
    mixed = law.of_cc([three], [product], weights=np.array([[2.0]]))
    assert float(mixed.value) == pytest.approx(6 * float(law.of_c([product], weights=np.ones(1)).value), rel=1e-12)


def test_the_error_falls_with_eps() -> None:
    layer, p1, encoder = gaussian_case()
    coarse, fine = (
        GridExpectations(layer, p1, encoder, eps=eps).of_c([sigmoid(0)], weights=np.ones(1)) for eps in (0.2, 0.05)
    )
    assert float(fine.error) < float(coarse.error) / 8


def test_what_the_grid_refuses() -> None:
    layer, p1, encoder = gaussian_case()
    with pytest.raises(InputError, match=r"`eps` is 0; it must be a finite number greater than 0"):
        GridExpectations(layer, p1, encoder, eps=0)
    law = GridExpectations(layer, p1, encoder, eps=1e-4)
    message = (
        r'would need [\d,.e+]+ GiB for a grid of \d+ x \d+ points.* limit is 2 GiB. Use eps >= [\d.]+, or method="sp'
    )
    with pytest.raises(UnsupportedError, match=message):
        law.of_c([sigmoid(0)], weights=np.ones(1))
    with pytest.raises(UnsupportedError, match="the grid method has no gradients"):
        law.of_c_F([sigmoid(0)])
    with pytest.raises(UnsupportedError, match="the grid method has no gradients"):
        law.of_cc_F([sigmoid(0)], [sigmoid(0)], weights=np.ones((1, 1)))
    symmetric = Layer(np.eye(2), [1.0, 0.0], [1.0, 0.0], RECIPROCAL)
    with (
        np.errstate(divide="ignore"),
        pytest.raises(UnsupportedError, match="a value that is not finite: psi or an integrand has a pole"),
    ):
        GridExpectations(symmetric, p1, encoder).of_b(RECIPROCAL)
