"""A network for scikit-learn's digits as a chain of layers of the paper's form, and a transformer block as another.

    python examples/compile_network.py

Steps: an input model of independent features plus noise, fitted to the images; a classifier with hidden layers (24, 16)
trained on the same inputs, compiled, compared with its source on every image; and one attention head with its MLP, from
plain arrays, whose step count says what products and a softmax cost when each step may bend one direction only.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import elbotree as et
from elbotree.runtime.network_blocks import TransformerBlock


def digits() -> None:
    """The input model and its report, the plan, and the largest difference from scikit-learn's own probabilities."""
    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    model, report = et.fit_input(images, features=8)
    print(f"input model: {model.m} features in {model.n} coordinates\n{report}\n")
    assert report.directions is not None
    inputs = (images - report.mean) @ report.directions.T  # what report.reduced is the model of

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has converged
        network = MLPClassifier((24, 16), random_state=0, max_iter=200).fit(inputs, labels)
    plan = et.plan_network(network)
    powers = np.exp(plan(inputs))
    gap = np.abs(powers / powers.sum(axis=1, keepdims=True) - network.predict_proba(inputs)).max()
    print(f"digits network, {network.score(inputs, labels):.1%} right on its inputs\n{plan}")
    print(f"widths: {plan.widths}\nlargest difference from scikit-learn on {len(inputs)} images: {gap:.1e}\n")


def block() -> None:
    """One head on three tokens of four coordinates, with a GELU MLP of eight units."""
    rng = np.random.default_rng(0)
    query, key, value, out = ((rng.standard_normal((4, 4)) / 2, rng.standard_normal(4) / 2) for _ in range(4))
    up, down = (rng.standard_normal((8, 4)) / 2, np.zeros(8)), (rng.standard_normal((4, 8)) / 3, np.zeros(4))
    for softmax in ("softplus", "reciprocal"):
        transformer = TransformerBlock(3, query, key, value, out, up, down, "gelu", softmax=softmax)
        print(f"transformer block, softmax by {softmax}\n{et.plan_network(transformer)}\n")


if __name__ == "__main__":
    digits()
    block()
