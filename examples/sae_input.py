"""Activations of a digits network, a sparse auto-encoder trained on them, and the input model that its features make.

    python examples/sae_input.py
    elbotree tail sae-problem.json --row 1,0,0,0,0,0,0,0,0,0 --above 5,10

Steps: a classifier for scikit-learn's digits; a sparse auto-encoder (one ReLU layer, L1 penalty, unit decoder rows) on its
24 hidden activations; `et.input_from_sae`, with its report of how far the features are from independent; the network's
last layer, which reads those activations, as a problem on disk; and the law of each logit, exact under the model, beside
what the network does on all images.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import elbotree as et

Array = NDArray[np.float64]


def train_sae(X: Array, features: int, sparsity: float, steps: int, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """(W_enc, b_enc, W_dec, b_dec) that make |x - xhat|^2 + sparsity |e|_1 small on average, by Adam on all rows."""
    rng = np.random.default_rng(seed)
    W_dec = rng.standard_normal((features, X.shape[1]))
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    weights = [W_dec.T.copy(), np.zeros(features), W_dec, X.mean(axis=0)]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(1, steps + 1):
        W_enc, b_enc, W_dec, b_dec = weights
        before = (X - b_dec) @ W_enc + b_enc
        e = np.maximum(before, 0.0)
        off = 2 * (e @ W_dec + b_dec - X) / len(X)
        back = (off @ W_dec.T + sparsity / len(X)) * (before > 0)
        gradient = [(X - b_dec).T @ back, back.sum(axis=0), e.T @ off, off.sum(axis=0) - back.sum(axis=0) @ W_enc.T]
        for i, g in enumerate(gradient):
            first[i] += 0.1 * (g - first[i])
            second[i] += 0.001 * (g**2 - second[i])
            weights[i] -= 0.01 * (first[i] / (1 - 0.9**step)) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
        weights[2] /= np.linalg.norm(weights[2], axis=1, keepdims=True)
    return weights[0], weights[1], weights[2], weights[3]


def main() -> None:
    """Train, make the input model, save the problem, and compare the laws of the logits."""
    parser = argparse.ArgumentParser(
        description="An input model from a sparse auto-encoder on a network's activations."
    )
    parser.add_argument("--features", type=int, default=32, help="features of the auto-encoder")
    parser.add_argument("--sparsity", type=float, default=0.3, help="weight of the L1 penalty")
    parser.add_argument("--steps", type=int, default=2000, help="steps of Adam")
    parser.add_argument("--out", type=Path, default=Path("sae-problem.json"), help="where the problem is written")
    options = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has converged
        network = MLPClassifier((24,), random_state=0, max_iter=200).fit(images / 16.0, labels)
    X = np.maximum(images / 16.0 @ network.coefs_[0] + network.intercepts_[0], 0.0)

    W_enc, b_enc, W_dec, b_dec = train_sae(X, options.features, options.sparsity, options.steps)
    activations = np.maximum((X - b_dec) @ W_enc + b_enc, 0.0)
    print(f"auto-encoder: {(activations > 0).mean():.1%} of the features fire in a row")
    p1, report = et.input_from_sae(W_dec, activations, b_dec, X=X)
    print(report)

    last, nothing = network.coefs_[1].T, np.zeros(len(network.coefs_[1].T))
    layer = et.Layer(last, nothing, nothing, psi="zero", offset=network.intercepts_[1])
    problem = {
        "format": "elbotree-problem/1",
        "layer": {
            "A": last.tolist(),
            "w": nothing.tolist(),
            "u": nothing.tolist(),
            "psi": "zero",
            "offset": layer.offset.tolist(),
        },
        "input": {
            "B": p1.B.tolist(),
            "noise_std": p1.noise_std,
            "offset": p1.offset.tolist(),
            "priors": [prior.spec() for prior in p1.priors],
        },
    }
    options.out.write_text(json.dumps(problem), encoding="utf-8")
    print(f"wrote {options.out}\n\nlogit   mean: images  model   std: images  model   P(> 5): images    model")
    logits = X @ last.T + network.intercepts_[1]
    for k, row in enumerate(np.eye(len(last))):
        law = et.joint(layer, p1, row)
        mean = float(law.moment(1).value)
        std = float(np.sqrt(float(law.moment(2).value) - mean**2))
        seen, above = logits[:, k], float(law.tail(5.0).value)
        print(
            f"{k:5}   {seen.mean():12.2f}  {mean:5.2f}   {seen.std():11.2f}  {std:5.2f}   {(seen > 5).mean():14.3f}  {above:7.3f}"
        )


if __name__ == "__main__":
    main()
