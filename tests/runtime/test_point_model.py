"""H_0 of the loss on points: against the Hessian by differences, and what it spares the exact loss."""

from __future__ import annotations

import numpy as np
import pytest

import elbotree as et
from elbotree.codegen import generate
from elbotree.runtime import point_model, training
from elbotree.runtime.lbfgs import Search, advance
from elbotree.runtime.point_model import PointModel
from elbotree.runtime.priors import Bernoulli
from elbotree.runtime.profile import EncoderCoordinates, output_moments
from elbotree.runtime.search import PointLoss, gains, sampled_outputs
from elbotree.runtime.starts import first_encoder, propagated
from elbotree.runtime.training import train


def bent(n: int, seed: int) -> tuple[et.Layer, et.FeatureModel]:
    rng = np.random.default_rng([n, seed])
    w, u = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
    B = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return et.Layer(np.eye(n), w, u, "relu"), et.FeatureModel(B, [Bernoulli(0.15)] * n, 0.1)


def propagated_start(layer: et.Layer, p1: et.FeatureModel) -> tuple[et.Encoder, EncoderCoordinates]:
    mean, covariance = output_moments(layer, p1, 1e-4)
    start = propagated(layer, p1, None)
    encoder = first_encoder(start, mean, covariance, ["tilted"] * len(start.priors))
    return encoder, EncoderCoordinates(encoder, mean, covariance)


@pytest.mark.parametrize(("floor", "spread"), [(1e-4, 100.0), (0.2, 40.0)])  # the second floor binds
def test_of_a_small_gradient_it_is_the_inverse_of_the_damped_hessian(floor: float, spread: float) -> None:
    """At a minimum on the same points, by central differences of the gradient, in coordinates in which the damping is a tenth of
    the identity; along each eigenvector."""
    layer, p1 = bent(2, 0)
    encoder, coordinates = propagated_start(layer, p1)
    alone = gains(layer, p1, coordinates)
    loss = PointLoss(sampled_outputs(layer, p1, 8192), coordinates, floor, alone)
    start = coordinates.pack(encoder)
    search: Search | None = Search(start, *loss(start))
    while search is not None:
        x, search = search.x, advance(search, loss, 1e-9)
    unit = np.zeros(len(x))
    for (rows, about, logs), gain in zip(coordinates.split(unit), alone, strict=True):
        rows[:], about[:], logs[:] = gain, gain, np.sqrt(10.0)
    h = 1e-4
    hessian = np.array([(loss(x + h * e)[1] - loss(x - h * e)[1]) * unit / (2 * h) for e in np.diag(unit)])
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T) + 0.1 * np.eye(len(x)))
    inverse = PointModel(layer, p1, floor).inverse(coordinates)
    assert values[-1] > spread * values[0] > 0.05 * spread
    for value, vector in zip(values, vectors.T, strict=True):
        found = inverse(x, 1e-4 * value * vector / unit) / unit
        np.testing.assert_allclose(found, 1e-4 * vector, atol=0.02 * 1e-4)


def test_it_leads_to_the_same_loss_in_fewer_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, p1 = bent(4, 0)
    led = train(layer, p1, generate("relu", "tilted"))
    monkeypatch.setattr(training, "MOST_SEARCHED", 0)
    alone = train(layer, p1, generate("relu", "tilted"))
    assert led.terms["L"].value < alone.terms["L"].value + 1e-4
    assert len(led.history) < 0.7 * len(alone.history)


def test_bases_that_points_have_no_use_for_are_not_tried_with_the_exact_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, p1 = bent(2, 1)
    tried: list[bool] = []
    may_gain = training._Run._may_gain

    def told(self: training._Run, encoder: et.Encoder, other: et.Encoder) -> bool:
        exact = {
            name: self.kernels.evaluate(law, problem)["L"].value
            for name, (law, problem) in {
                name: self._objective(e, 1e-5)._problem(e) for name, e in (("here", encoder), ("there", other))
            }.items()
        }
        tried.append(may_gain(self, encoder, other))
        assert tried[-1] == (exact["there"] < exact["here"])
        return tried[-1]

    monkeypatch.setattr(training._Run, "_may_gain", told)
    train(layer, p1, generate("relu", "tilted"), tol=1e-2)
    assert tried


def test_points_are_drawn_once_a_run_and_not_for_families_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        point_model, "sampled_outputs", lambda *arguments: drawn.append(1) or sampled_outputs(*arguments)
    )
    layer, p1 = bent(2, 1)
    train(layer, p1, generate("relu", "normal"), family="normal", tol=1e-2, iterations=1)
    assert not drawn
    train(layer, p1, generate("relu", "bernoulli"), family="bernoulli", tol=1e-2)
    assert drawn == [1]
