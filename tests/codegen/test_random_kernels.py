"""Kernels of random psi, families and dimensions against two references that share no code with them: the ELBO by its
definition, summed over a finite law of x1 and over quadrature nodes of every latent coordinate, with psi written in
plain numpy; and the reference oracle's twelve terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elbotree.codegen import compile_psi, generate
from elbotree.derivation.activations import definition
from elbotree.runtime import Encoder, FeatureModel, Layer, Normal, Posterior, Problem
from elbotree.runtime.activations import set_compiler
from elbotree.runtime.priors import Discrete

from .finite import Feature, FiniteExpectations, elbo
from .test_kernels import FAMILIES, make_features, prior_of

set_compiler(compile_psi, definition)


@dataclass(frozen=True)
class Drawn:
    """psi as the text that the grammar reads, and as a numpy function that nothing of the project made."""

    text: str
    value: object


_NUMBERS = st.sampled_from([-2, -1, -0.5, 0.25, 1, 3])
_UNARY = {
    "tanh": np.tanh,
    "sin": np.sin,
    "abs": np.abs,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "square": lambda x: x * x,
}


def _linear(scale, shift):
    return Drawn(f"({scale}*b + {shift})", lambda b: scale * b + shift)


def _applied(name, inner):
    return Drawn(f"{name}({inner.text})", lambda b: _UNARY[name](inner.value(b)))


def _combined(sign, left, right):
    operations = {"+": np.add, "-": np.subtract, "*": np.multiply}
    return Drawn(f"({left.text} {sign} {right.text})", lambda b: operations[sign](left.value(b), right.value(b)))


def _chosen(cut, left, right):
    return Drawn(
        f"where(b < {cut}, {left.text}, {right.text})", lambda b: np.where(b < cut, left.value(b), right.value(b))
    )


_LINEAR = st.builds(_linear, _NUMBERS, _NUMBERS)
_SIMPLE = st.builds(_applied, st.sampled_from(sorted(_UNARY)), _LINEAR)
PSI = st.one_of(
    _LINEAR,
    _SIMPLE,
    st.builds(_combined, st.sampled_from("+-*"), _SIMPLE, st.one_of(_SIMPLE, _LINEAR)),
    st.builds(_chosen, _NUMBERS, _SIMPLE, _LINEAR),
    st.just(Drawn("0", np.zeros_like)),
)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    psi=PSI,
    families=st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=3),
    n1=st.integers(1, 3),
    n2=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_random_kernels_are_the_elbo(psi, families, n1, n2, seed):
    rng = np.random.default_rng(seed)
    m = len(families)
    layer = Layer(
        rng.normal(size=(n2, n1)),
        rng.normal(size=n2),
        rng.normal(size=n2),
        psi.text,
        rng.normal(size=n2),
        threshold=0.2,
    )
    features: list[Feature] = make_features(rng, tuple(families), n2)
    B, offset, noise_std = rng.normal(size=(n2, m)), rng.normal(size=n2), 0.8
    posteriors = [
        Posterior(q.family, q.C, q.bias, base=None if q.base is None else Discrete(*q.base), **q.own) for q in features
    ]
    model = FeatureModel(B, [prior_of(feature) for feature in features], noise_std, offset)
    problem = Problem(layer, FeatureModel(np.eye(n1), [Normal(0, 1)] * n1, 0.1), model, Encoder(posteriors))
    x, weights = rng.normal(size=(3, n1)), np.array([0.5, 0.3, 0.2])

    y = x @ layer.A.T + layer.offset
    f = y + np.outer(psi.value(y @ layer.u + 0.2), layer.w)
    values = generate(psi.text, families).evaluate(FiniteExpectations(layer, problem.encoder, x, weights), problem)
    assert values["L"].value == pytest.approx(elbo(features, B, offset, noise_std, f, weights), rel=1e-10)
    assert values["T1"].value == pytest.approx(weights @ ((f - offset) ** 2).sum(axis=1), rel=1e-10)


_DRAWN = [
    ("relu", "bernoulli"),
    ("tanh", "normal"),
    ("identity", "normal_scale"),
    ("hardtanh", "tilted"),
    ("abs", "normal"),
]


@pytest.mark.parametrize(("psi", "family"), _DRAWN)
def test_kernels_agree_with_the_reference_oracle(psi, family):
    """All twelve terms of a problem drawn for this psi and family, to the error that the engine states."""
    import elbotree as et
    from tests.reference.oracle import reference_terms

    rng = np.random.default_rng(len(psi) + 10 * len(family))
    n1, n2 = (int(n) for n in rng.integers(1, 4, size=2))
    base = {"kind": "discrete", "points": [-1.0, 0.0, 2.0], "masses": [0.3, 0.5, 0.2]}
    normal = {"kind": "normal", "mean": 0.1, "std": 1.2}
    posterior, prior = {
        "bernoulli": ({"family": "bernoulli"}, {"kind": "bernoulli", "p": 0.3}),
        "normal": ({"family": "normal", "std": 0.6}, normal),
        "normal_scale": ({"family": "normal_scale"}, normal),
        "tilted": ({"family": "tilted", "precision": 1.5, "base": base}, base),
    }[family]
    t = 2 if family == "normal_scale" else 1

    def drawn(*shape):
        return (0.6 * rng.normal(size=shape)).tolist()

    spec = {
        "format": "elbotree-problem/1",
        "layer": {"A": drawn(n2, n1), "w": drawn(n2), "u": drawn(n2), "psi": psi, "threshold": 0.1},
        "input": {"B": drawn(n1, 2), "noise_std": 0.5, "priors": [{"kind": "bernoulli", "p": 0.4}, normal]},
        "model": {"B": drawn(n2, 2), "noise_std": 0.7, "priors": [prior, prior], "offset": drawn(n2)},
        "encoder": [{**posterior, "C": drawn(t, n2), "bias": drawn(t)} for _ in range(2)],
    }
    expected = reference_terms(spec)
    values = et.evaluate(et.Problem.from_dict(spec), tol=1e-6)
    for name, reference in expected.items():
        assert abs(values[name].value - reference) <= values[name].error + 1e-9 * max(1, abs(reference)), name
