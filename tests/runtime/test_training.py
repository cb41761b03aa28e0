"""Training: the bound that it may not cross, the closed-form decoder, the gradient of the profile loss, its stops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad

import elbotree as et
from elbotree.codegen import generate
from elbotree.runtime.errors import InputError
from elbotree.runtime.priors import Bernoulli, Discrete, Exponential, Laplace, Normal
from elbotree.runtime.profile import EncoderCoordinates, ProfileObjective, best_model
from elbotree.runtime.spectral import SpectralExpectations
from elbotree.runtime.starts import binned, binned_samples
from elbotree.runtime.training import train


def entropy(priors: list[tuple[list[float], list[float]]], std: float) -> float:
    """Sum of the entropies of one-dimensional mixtures of normals, by quadrature: what L may never fall below."""
    total = 0.0
    for points, masses in priors:

        def minus_f_log_f(x: float, points: list[float] = points, masses: list[float] = masses) -> float:
            z = (x - np.array(points)) / std
            f = float(np.array(masses) @ np.exp(-0.5 * z**2)) / (std * np.sqrt(2 * np.pi))
            return -f * np.log(f) if f > 0 else 0.0

        lo, hi = min(points) - 10 * std, max(points) + 10 * std
        total += quad(minus_f_log_f, lo, hi, points=sorted(points), limit=400)[0]
    return total


def rotation(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


@pytest.mark.parametrize("family", ["bernoulli", "tilted"])
def test_orthonormal_bernoulli_features_reach_the_entropy_and_no_less(family: str) -> None:
    n, std, p = 4, 0.15, 0.2
    layer = et.Layer(np.eye(n), np.zeros(n), np.zeros(n), "identity")
    p1 = et.FeatureModel(rotation(n, 3), [Bernoulli(p)] * n, std)
    fitted = train(layer, p1, generate("identity", family), family=family, tol=1e-4)
    bound = n * entropy([([0.0, 1.0], [1 - p, p])], std)
    loss = fitted.terms["L"]
    assert loss.value >= bound - loss.error
    assert loss.value <= bound + 0.02


def test_orthonormal_features_on_several_points_reach_the_entropy_and_no_less() -> None:
    std = 0.2
    laws = [([-1.0, 0.0, 1.5], [0.1, 0.7, 0.2]), ([0.0, 1.0], [0.9, 0.1])]
    priors = [Discrete(tuple(points), tuple(masses)) for points, masses in laws]
    layer = et.Layer(np.eye(2), np.zeros(2), np.zeros(2), "identity")
    fitted = train(layer, et.FeatureModel(rotation(2, 5), priors, std), generate("identity", "tilted"), tol=1e-4)
    bound = entropy(laws, std)
    loss = fitted.terms["L"]
    assert bound - loss.error <= loss.value <= bound + 0.02


def relu_problem() -> tuple[et.Layer, et.FeatureModel]:
    rng = np.random.default_rng(1)
    layer = et.Layer(np.eye(3), rng.standard_normal(3), rng.standard_normal(3), "relu", threshold=0.1)
    return layer, et.FeatureModel(rotation(3, 7), [Bernoulli(0.2), Bernoulli(0.3), Normal(0.0, 0.5)], 0.2)


def test_accepted_steps_never_raise_the_loss_and_are_reported() -> None:
    layer, p1 = relu_problem()
    seen = []
    fitted = train(layer, p1, generate("relu", "tilted"), tol=1e-4, iterations=6, rounds=1, progress=seen.append)
    losses = [step.loss for step in fitted.history]
    assert losses == [step.loss for step in seen]
    assert len(losses) >= 2
    assert all(after <= before + 1e-5 for before, after in itertools.pairwise(losses))
    assert fitted.terms["L"].value <= losses[0]


def objective() -> tuple[ProfileObjective, np.ndarray]:
    layer, p1 = relu_problem()
    rng = np.random.default_rng(2)
    encoder = et.Encoder(
        [
            et.Posterior("bernoulli", rng.standard_normal((1, 3)), [0.1]),
            et.Posterior("tilted", rng.standard_normal((1, 3)), [0.2], precision=1.5, base=Bernoulli(0.3)),
            et.Posterior("normal", rng.standard_normal((1, 3)), [0.0], std=0.6),
        ]
    )
    law = SpectralExpectations(layer, p1, encoder, tol=1e-8)
    first, second, _ = law.output.f_moments
    coordinates = EncoderCoordinates(encoder, first, second - np.outer(first, first))
    kernels = generate("relu", ["bernoulli", "tilted", "normal"])
    made = ProfileObjective(layer, p1, kernels, coordinates, 1e-7, 1e-6)
    return made, made.x0


def test_flat_coordinates_round_trip() -> None:
    made, x = objective()
    np.testing.assert_allclose(made.coordinates.pack(made.coordinates.unpack(x)), x, rtol=1e-12, atol=1e-12)


def test_gradient_of_the_profile_loss_is_the_partial_gradient() -> None:
    """The envelope theorem: central differences of the loss, decoder and priors minimised anew at every point."""
    made, x = objective()
    gradient = made.jac(x)
    for i in (0, 3, 5, 8, 9, 12, 13):
        step = np.zeros_like(x)
        step[i] = 1e-3
        ahead, behind = made.fun(x + step), made.fun(x - step)
        further, back = made.fun(x + 2 * step), made.fun(x - 2 * step)
        difference = (8 * (ahead - behind) - (further - back)) / 12e-3
        assert gradient[i] == pytest.approx(difference, abs=2e-5 * max(1.0, np.abs(gradient).max()))


def test_closed_form_decoder_is_a_minimum() -> None:
    made, x = objective()
    problem = made.problem(x)
    law = SpectralExpectations(problem.layer, problem.input, problem.encoder, tol=1e-9)
    best = made.kernels.evaluate(law, problem)["L"].value
    model = problem.model
    rng = np.random.default_rng(4)
    for change in (1e-2, -1e-2):
        moved = [
            et.FeatureModel(
                model.B + change * rng.standard_normal(model.B.shape), model.priors, model.noise_std, model.offset
            ),
            et.FeatureModel(model.B, model.priors, model.noise_std * (1 + change), model.offset),
            et.FeatureModel(model.B, model.priors, model.noise_std, model.offset + change),
            et.FeatureModel(
                model.B, [Bernoulli(model.priors[0].p * (1 + change)), *model.priors[1:]], model.noise_std, model.offset
            ),
        ]
        for other in moved:
            worse = et.Problem(problem.layer, problem.input, other, problem.encoder)
            assert made.kernels.evaluate(law, worse)["L"].value > best


def test_aggregate_prior_of_a_tilted_posterior_keeps_its_points() -> None:
    made, x = objective()
    encoder = made.coordinates.unpack(x)
    law = SpectralExpectations(made.layer, made.p1, encoder, tol=1e-8)
    model = best_model(law, made.kernels, encoder, 1e-6)
    base = Bernoulli(0.3)
    expected = law.of_c_each([made.kernels.mean(1, encoder[1])]).value[0]  # on {0, 1} the mean is the mass at 1
    assert model.priors[1] == Bernoulli(model.priors[1].p)
    assert model.priors[1].p == pytest.approx(float(expected), abs=1e-7)
    assert model.priors[1] != base


def test_a_loss_without_lower_bound_ends_on_the_floor_and_says_so() -> None:
    layer = et.Layer(np.array([[1.0], [0.5]]), np.zeros(2), np.zeros(2), "identity")
    p1 = et.FeatureModel(np.ones((1, 1)), [Normal(0.0, 1.0)], 0.3)
    fitted = train(layer, p1, generate("identity", "normal"), family="normal", noise_floor=0.01, tol=1e-4)
    assert fitted.problem.model.noise_std == pytest.approx(0.01)
    assert "unbounded below" in fitted.message


def test_more_features_than_sources() -> None:
    layer, p1 = relu_problem()
    fitted = train(layer, p1, generate("relu", "tilted"), features=6, tol=1e-3, iterations=2, rounds=1)
    assert fitted.problem.model.m == 6


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("beta", "`family` is 'beta'; training knows tilted, bernoulli"),
        (["tilted"], "lists 1 names; there are 4 features"),
    ],
)
def test_families_that_do_not_fit(family: str | list[str], message: str) -> None:
    layer, p1 = relu_problem()
    with pytest.raises(InputError, match=message):
        train(layer, p1, generate("relu", "tilted"), family=family)


@pytest.mark.parametrize("prior", [Exponential(0.5), Laplace(0.2, 0.7)])
def test_binned_priors_keep_the_first_two_moments(prior: Exponential | Laplace) -> None:
    coarse = binned(prior)
    assert coarse.mean() == pytest.approx(prior.mean(), rel=0.02)
    assert coarse.variance() == pytest.approx(prior.variance(), rel=0.05)


def test_binned_samples_keep_the_mean() -> None:
    values, masses = np.array([0.0, 0.0, 0.3, 1.1, 2.0]), np.array([0.2, 0.3, 0.1, 0.2, 0.2])
    assert binned_samples(values, masses).mean() == pytest.approx(float(values @ masses), abs=1e-6)
