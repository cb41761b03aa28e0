"""Importance sampling of a network's own tail: unbiased against exact laws at any depth, and honest where it knows little."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

import elbotree as et
from elbotree.runtime.importance import sampled_tail
from elbotree.runtime.tilted_sources import Sources, flatten

PRIORS = [
    et.Bernoulli(0.3),
    et.SpikeSlab(0.2, et.Normal(0.5, 1.0)),
    et.Exponential(0.6),
    et.Uniform(-1.0, 2.0),
    et.Laplace(0.2, 0.5),
    et.Mixture([0.4, 0.6], [et.Gamma(2.5, 0.4), et.Uniform(0.0, 1.0)]),
]


@pytest.mark.parametrize("s", [-1.1, 0.0, 0.9])
def test_draws_of_tilted_sources_have_the_tilted_cumulants(s: float) -> None:
    sources = Sources.of([flatten(prior) for prior in PRIORS])
    at = np.full(len(PRIORS), s)
    _, mean, variance, _ = sources.cumulants(at)
    draws = sources.tilted(at)[0].sample(np.random.default_rng(4), 200_000)
    assert np.all(np.abs(draws.mean(axis=1) - mean) <= 5 * np.sqrt(variance / 200_000))
    spread = (draws - mean[:, None]) ** 2
    assert np.all(np.abs(spread.mean(axis=1) - variance) <= 5 * spread.std(axis=1) / np.sqrt(200_000))


@pytest.mark.parametrize("q", [1.0, 5.0, 20.0, 60.0])
def test_a_normal_read_out_at_any_depth(q: float) -> None:
    p1 = et.FeatureModel(np.zeros((2, 0)), [], 1.0)
    layers = [et.Layer(np.array([[1.0, 1.0]]), [0.0], [1.0])]
    found = sampled_tail(layers, p1, np.ones(1), q, 50_000, 0)
    assert abs(found.log_value - norm.logsf(q / np.sqrt(2))) <= 5 * found.relative_std_error
    assert found.relative_std_error < 0.05
    assert 0 < found.effective_samples < found.hits <= found.samples


@pytest.mark.parametrize("q", [0.0, 4.0, 10.0, 25.0])
def test_through_relu_against_the_exact_law(q: float) -> None:
    rng = np.random.default_rng(1)
    p1 = et.FeatureModel(rng.standard_normal((3, 6)), PRIORS, 0.3)
    layer = et.Layer(np.eye(3), rng.standard_normal(3), rng.standard_normal(3), "relu")
    v = np.array([1.0, -0.5, 0.7])
    exact = float(et.joint(layer, p1, v).tail(q, 1e-8).log_value)
    found = sampled_tail([layer], p1, v, q, 50_000, 3)
    assert abs(found.log_value - exact) <= 5 * found.relative_std_error
    assert found.relative_std_error < 0.15


def test_the_standard_error_is_what_repetitions_show() -> None:
    p1 = et.FeatureModel(np.zeros((1, 0)), [], 1.0)
    layers = [et.Layer([[1.0]], [1.0], [1.0], "relu")]
    runs = [sampled_tail(layers, p1, np.ones(1), 6.0, 4000, seed) for seed in range(40)]
    exact = norm.sf(3.0)  # x + relu(x) > 6
    off = [(run.value - exact) / run.std_error for run in runs]
    assert np.std(off) == pytest.approx(1.0, abs=0.4)


def test_nothing_passes_is_said_and_not_invented() -> None:
    p1 = et.FeatureModel(np.zeros((1, 0)), [], 1.0)
    layers = [et.Layer([[1.0]], [-1.0], [1.0], "relu")]  # min(x, 0) never exceeds 1
    found = sampled_tail(layers, p1, np.ones(1), 1.0, 2000, 0)
    assert (found.value, found.hits, found.effective_samples) == (0.0, 0, 0.0)
    assert found.relative_std_error == np.inf
