"""Expectations of three read-outs against enumeration of the sources' atoms with a quadrature written here: given the
atoms, x is an isotropic normal, turned so that its first axis moves b, and split there at psi's breaks (Lemma 3.4)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import elbotree as et

N = 3
V = np.array([[0.8, -0.5, 0.6], [0.1, 0.9, 0.4], [-0.3, 0.2, 1.0]])
SMOOTH = {
    "product": lambda a, b, c: a * b * c,
    "wave": lambda a, b, c: np.cos(a + 0.5 * b - c),
    "saturated": lambda a, b, c: np.tanh(a) / (1 + np.exp(-b - c)),
}


@pytest.fixture(scope="module")
def model() -> et.FeatureModel:
    rng = np.random.default_rng(0)
    priors = [et.Bernoulli(0.2), et.Discrete([0, 1, 2], [0.5, 0.3, 0.2]), et.Bernoulli(0.05)]
    return et.FeatureModel(rng.normal(size=(N, 3)), priors, 0.3, rng.normal(size=N) * 0.2)


def layer(psi: str) -> et.Layer:
    rng = np.random.default_rng(1)
    A, w, u = rng.normal(size=(N, N)) / 2 + 0.5 * np.eye(N), rng.normal(size=N), rng.normal(size=N)
    return et.Layer(A, w, u, psi=psi, offset=rng.normal(size=N) * 0.1, threshold=0.1)


def expectation(layer: et.Layer, model: et.FeatureModel, g, panels: int = 10, nodes: int = 8) -> float:
    """E g(V f(x)): the atoms enumerated, Gauss-Legendre panels along the three axes of the noise."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    a = layer.A.T @ layer.u
    axes, _ = np.linalg.qr(np.column_stack([a, np.eye(N)[:, :2]]))
    axes[:, 0] = a / np.linalg.norm(a)
    std = model.noise_std * float(np.linalg.norm(a))

    def rule(cuts: list[float]) -> tuple[np.ndarray, np.ndarray]:
        edges = np.unique(np.concatenate([np.linspace(-7.5, 7.5, panels + 1), cuts]))
        half, middle = 0.5 * np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
        z = (middle[:, None] + half[:, None] * x).ravel()
        return z, (half[:, None] * w).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    across, weights = rule([])
    total = []
    for atoms in itertools.product(*(list(zip(*p.atoms, strict=True)) for p in model.priors)):
        center = model.B @ [at for at, _ in atoms] + model.offset
        b = float(layer.u @ (layer.A @ center + layer.offset) + layer.threshold)
        cuts = [(t - b) / std for t in layer.activation.breaks if abs(t - b) < 7 * std]
        along, first = rule(cuts)
        z = np.stack([grid.ravel() for grid in np.meshgrid(along, across, across, indexing="ij")])
        s = layer(center + model.noise_std * (axes @ z).T) @ V.T
        values = np.asarray(g(*s.T)).reshape(len(along), len(across), len(across))
        total.append(math.prod(mass for _, mass in atoms) * float(first @ (values @ weights) @ weights))
    return math.fsum(total)


@pytest.mark.parametrize("psi", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions(model, psi, name) -> None:
    made = layer(psi)
    exact = expectation(made, model, SMOOTH[name])
    for tol in (1e-3, 1e-7):
        found = et.joint(made, model, V).expect(SMOOTH[name], tol)
        assert abs(float(found.value) - exact) <= float(found.error) + 1e-12
        assert float(found.error) <= 2 * tol


@pytest.mark.parametrize("psi", ["identity", "relu"])
def test_a_kink_or_a_jump_is_reached_within_its_error_or_refused(model, psi) -> None:
    made = layer(psi)
    joint = et.joint(made, model, V)
    for g in (lambda a, b, c: np.abs(a) + np.maximum(b, c), lambda a, b, c: 1.0 * (a + b + c > 1.0)):
        exact = expectation(made, model, g, 14, 7)
        rough = abs(exact - expectation(made, model, g, 11, 7))
        found = joint.expect(g, 1e-3)
        assert abs(float(found.value) - exact) <= float(found.error) + rough
        with pytest.raises(et.ToleranceError, match="varies or grows too fast"):
            joint.expect(g, 1e-8)


def test_a_row_of_zeros_leaves_two(model) -> None:
    made = layer("relu")
    two, three = et.joint(made, model, V[[0, 2]]), et.joint(made, model, [V[0], np.zeros(N), V[2]])
    exact = float(two.expect(lambda a, c: np.cos(a + 0.3) * c, 1e-8).value)
    found = three.expect(lambda a, b, c: np.cos(a + 0.3 + b) * c + b, 1e-8)
    assert float(found.value) == pytest.approx(exact, abs=1e-12)


def test_the_cost_is_said_before_it_is_paid(model, caplog) -> None:
    joint = et.joint(layer("relu"), model, V)
    with pytest.raises(et.CostError, match=r"modes of g by .* frequencies of b .* more than max_seconds = 1e-06"):
        joint.expect(SMOOTH["wave"], 1e-6, max_seconds=1e-6)
    with caplog.at_level("DEBUG", logger="elbotree.runtime.triple_series"):
        joint.expect(SMOOTH["wave"], 1e-2)
    assert "E g(S) of three read-outs sums" in caplog.text


def test_a_function_that_is_not_finite(model) -> None:
    with np.errstate(divide="ignore"), pytest.raises(et.UnsupportedError, match="g is not finite at c ="):
        et.joint(layer("relu"), model, V).expect(lambda a, b, c: np.log(a - 100.0), 1e-3)
