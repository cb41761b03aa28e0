"""The sampling engine: its averages against closed forms of a Gaussian input, its errors against repetition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from elbotree.runtime import sampling
from elbotree.runtime.activations import Activation
from elbotree.runtime.errors import InputError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior
from elbotree.runtime.priors import Bernoulli, Normal
from elbotree.runtime.sampling import SamplingExpectations

RELU = Activation("relu", lambda b: np.maximum(b, 0.0), lambda b: 1.0 * (b > 0), (0.0,))
ZERO = Activation("zero", np.zeros_like, np.zeros_like, affine=(0.0, 0.0))

# f = y ~ N((1, 0), diag(1.25, 0.5)), c_0 = y_0 - 0.5, c_1 = y_0 + y_1
LAYER = Layer(np.eye(2), [1.0, 0.5], [1.0, -1.0], ZERO, [1.0, 0.0], threshold=0.25)
INPUT = FeatureModel([[1.0, 0.0], [0.0, 0.5]], [Normal(), Normal()], 0.5)
ENCODER = Encoder([Posterior("bernoulli", [1.0, 0.0], -0.5), Posterior("bernoulli", [1.0, 1.0])])
LINEAR = [Integrand(0, (0,), lambda c: c), Integrand(1, (0,), lambda c: c)]
MEAN = np.array([1.0, 0.0])
COV = np.diag([1.25, 0.5])


def law(samples: int = 40_000, seed: int = 0) -> SamplingExpectations:
    return SamplingExpectations(LAYER, INPUT, ENCODER, samples=samples, seed=seed)


def near(found: Estimate, want: object) -> None:
    """Within five standard errors, which are themselves small."""
    assert np.all(np.abs(found.value - np.asarray(want)) <= 5 * found.error + 1e-12)
    assert np.all(found.error < 0.1)
    assert found.value.shape == np.shape(want)


def test_values_against_gaussian_moments() -> None:
    engine = law()
    centre, along = np.array([0.5, 1.0]), np.array([2.0, -1.0])
    near(engine.norm_y(centre), 0.25 + 1.0 + 1.75)
    m, s = 1.25, math.sqrt(1.75)  # b = y_0 - y_1 + 0.25
    phi = math.exp(-0.5 * (m / s) ** 2) / math.sqrt(2 * math.pi)
    near(engine.of_b(RELU), m * ndtr(m / s) + s * phi)
    # E <y - centre, along> b = E<..> E b + along^T Cov u
    near(engine.of_b(lambda b: b, along=along, centre=centre), 2.0 * 1.25 + along @ COV @ LAYER.u)
    near(engine.of_c(LINEAR, weights=np.array([2.0, -1.0])), 2 * 0.5 - 1.0)
    # E <f, e_0> c_0 = 1.25 + 1 * 0.5; E <f, e_1> c_1 = 0.5
    near(engine.of_c(LINEAR, weights=np.ones(2), along=np.eye(2)), 1.75 + 0.5)
    second = np.array([[1.25 + 0.25, 1.25 + 0.5], [1.25 + 0.5, 1.75 + 1.0]])
    weights = np.array([[1.0, 0.5], [-0.25, 0.125]])
    near(engine.of_cc(LINEAR, LINEAR, weights=weights), float((weights * second).sum()))
    near(engine.of_cc(LINEAR, LINEAR[1:], weights=weights[:, 1:]), float((weights * second)[:, 1].sum()))


def test_vectors_against_gaussian_moments() -> None:
    engine = law()
    near(engine.of_c_F(LINEAR), [[1.75, 0.0, 0.5], [2.25, 0.5, 1.0]])
    constant = [Integrand.constant(0, 2.0)]
    # E <f, a> F for a = (1, 1): (Cov a + mean <mean, a>, <mean, a>)
    near(engine.of_c_F(constant, along=np.array([[1.0, 1.0]])), [[2 * 2.25, 2 * 0.5, 2 * 1.0]])
    weights = np.array([[3.0], [1.0], [-1.0]])
    found = engine.of_cc_F([*LINEAR, LINEAR[0]], constant, weights=weights)
    near(found, [[6 * 1.75, 0.0, 3.0], [4.5, 1.0, 2.0], [-3.5, 0.0, -1.0]])


def test_the_standard_error_is_that_of_the_sum() -> None:
    """c_0 - c_0 cancels sample by sample, so its error is zero, not the sum of two errors."""
    pair = [LINEAR[0], LINEAR[0]]
    assert float(law().of_c(pair, weights=np.array([1.0, -1.0])).error) == pytest.approx(0.0, abs=1e-12)
    single = law(10_000).of_c(LINEAR[:1], weights=np.ones(1))
    assert float(single.error) == pytest.approx(math.sqrt(1.25 / 10_000), rel=0.05)
    spread = np.std([float(law(500, seed).of_c(LINEAR[:1], weights=np.ones(1)).value) for seed in range(200)])
    assert spread == pytest.approx(math.sqrt(1.25 / 500), rel=0.2)


def test_chunks_merge_into_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged variance is the variance of all samples, for uneven chunks too."""
    monkeypatch.setattr(sampling, "CHUNK", 2 * 300)
    engine = law(1000)
    c = np.concatenate([f @ [1.0, 0.0] - 0.5 for _, _, f in engine._chunks()])
    assert len(c) == 1000
    found = engine.of_c(LINEAR[:1], weights=np.ones(1))
    assert float(found.value) == pytest.approx(c.mean(), rel=1e-12)
    assert float(found.error) == pytest.approx(c.std(ddof=1) / math.sqrt(1000), rel=1e-12)


def test_samples_are_repeatable_and_pass_through_psi() -> None:
    layer = Layer([[1.0]], [2.0], [1.0], RELU)
    p1 = FeatureModel([[1.0]], [Bernoulli(0.5)], 0.0, [-0.25])
    q = Encoder([Posterior("bernoulli", [1.0])])
    engine = SamplingExpectations(layer, p1, q, samples=20_000, seed=3)
    found = engine.of_c(LINEAR[:1], weights=np.ones(1))  # f(-0.25) = -0.25, f(0.75) = 2.25
    assert np.array_equal(found.value, engine.of_c(LINEAR[:1], weights=np.ones(1)).value)
    near(found, 1.0)
    assert float(found.error) == pytest.approx(1.25 / math.sqrt(20_000), rel=0.01)


@pytest.mark.parametrize("samples", [1, 0, 2.5, True])
def test_the_number_of_samples_is_checked(samples: object) -> None:
    with pytest.raises(InputError, match=r"`samples` is .*; it must be a whole number of at least 2"):
        SamplingExpectations(LAYER, INPUT, ENCODER, samples=samples)  # type: ignore[arg-type]
