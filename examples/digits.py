"""The whole job on real input: from scikit-learn's handwritten digits to the learned features of a network's layer.

    python examples/digits.py --out demo-output

The digits come with scikit-learn. Steps: an input model of independent features plus noise from the images; a small
network trained on the same inputs; its first hidden unit as a layer of the paper's form; the loss tree derived, kernels
generated, the tree evaluated, the layer's model trained without a single sample; and only then samples, as a check.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FastICA
from sklearn.neural_network import MLPClassifier

import elbotree as et
from elbotree import report_laws
from elbotree.charts import grey_picture, signed_picture
from elbotree.html import Markup, tag
from elbotree.report import Page

Array = NDArray[np.float64]


def input_model(images: Array, dimensions: int) -> tuple[et.FeatureModel, PCA]:
    """x1 = B1 z1 + mu1 + noise for the whitened principal scores of the images, every coordinate of z1 on or off.

    FastICA turns the whitened scores into coordinates that are as independent as a rotation R can make them. Most have
    two humps, so each is modelled as a two-point law with normal noise of one variance for all, fitted by EM: column
    j is low_j + (high_j - low_j) alpha_j + sigma1 zeta with alpha_j ~ Bernoulli(p_j). Rotated back, the noise stays
    isotropic, the features are B1 = R diag(high - low), and mu1 = R low.
    """
    pca = PCA(dimensions, whiten=True, svd_solver="full").fit(images)
    scores = pca.transform(images)
    rotation = FastICA(whiten=False, random_state=0, max_iter=1000, tol=1e-6).fit(scores).components_.T
    low, high, p, sigma = fit_two_points(scores @ rotation)
    priors = [et.Bernoulli(float(mass)) for mass in p]
    return et.FeatureModel(rotation * (high - low), priors, sigma, offset=rotation @ low), pca


def fit_two_points(columns: Array, rounds: int = 500) -> tuple[Array, Array, Array, float]:
    """(low, high, p, sigma) of each column as low + (high - low) Bernoulli(p) + sigma N(0, 1), sigma shared, by EM.

    `high` is the point of the rarer hump, so that p <= 1/2 and a feature that is on adds something.
    """
    low, high = np.quantile(columns, 0.2, axis=0), np.quantile(columns, 0.8, axis=0)
    p, variance = np.full(columns.shape[1], 0.5), 0.5
    for _ in range(rounds):
        odds = ((columns - low) ** 2 - (columns - high) ** 2) / (2 * variance) + np.log(p / (1 - p))
        on = 1 / (1 + np.exp(-odds))
        p = on.mean(axis=0)
        low, high = ((1 - on) * columns).mean(axis=0) / (1 - p), (on * columns).mean(axis=0) / p
        variance = float(((1 - on) * (columns - low) ** 2 + on * (columns - high) ** 2).mean())
    swap = p > 0.5
    low, high, p = np.where(swap, high, low), np.where(swap, low, high), np.where(swap, 1 - p, p)
    return low, high, p, float(np.sqrt(variance))


def first_unit(network: MLPClassifier, unit: int = 0) -> et.Layer:
    """Hidden unit relu(<v, x> + theta) as a layer of the paper's form: f(x) = (x, relu(<v, x> + theta)).

    A = [I; 0] remembers x and appends an auxiliary coordinate, u = (v, 0) reads the unit, w = e_last writes it. So
    y lies on a subspace: the new coordinate has no noise of its own, and only the others keep sigma2 away from zero.
    """
    v, theta = network.coefs_[0][:, unit], float(network.intercepts_[0][unit])
    n = len(v)
    return et.Layer(np.eye(n + 1, n), np.eye(n + 1)[n], np.append(v, 0.0), psi="relu", threshold=theta)


def propagated_problem(layer: et.Layer, p1: et.FeatureModel) -> et.Problem:
    """What one would write down without training: the input's features sent through A, each decoded alone.

    For a feature on or off beside noise sigma, the log odds of "on" are
    <b_j, x - mu> / sigma^2 - |b_j|^2 / (2 sigma^2) + log(p_j / (1 - p_j)),
    exact where the columns are orthogonal, as FastICA's are, and blind to the new unit.
    """
    B, variance = layer.A @ p1.B, p1.noise_std**2
    offset = layer.A @ p1.offset
    odds = [np.log(prior.mean() / (1 - prior.mean())) for prior in p1.priors]
    posteriors = [
        et.Posterior(
            "bernoulli", column / variance, odd - column @ offset / variance - column @ column / (2 * variance)
        )
        for column, odd in zip(B.T, odds, strict=True)
    ]
    model = et.FeatureModel(B, p1.priors, p1.noise_std, offset=offset)
    return et.Problem(layer, p1, model, et.Encoder(posteriors))


def pictures(model: et.FeatureModel, pca: PCA) -> list[Markup]:
    """What each feature adds to an image when it rises by two prior standard deviations: its column in 8 x 8 pixels."""
    steps = model.B[: pca.n_components_] * [2 * prior.variance() ** 0.5 for prior in model.priors]
    pixels = pca.inverse_transform(steps.T) - pca.mean_
    return [signed_picture(row.reshape(8, 8), alt=f"feature {j + 1} in pixels") for j, row in enumerate(pixels)]


def drawn_digits(model: et.FeatureModel, pca: PCA, count: int) -> Markup:
    """Images of points that the fitted model generates, for the eye."""
    rows = model.sample(count, np.random.default_rng(1))[:, : pca.n_components_]
    drawn = pca.inverse_transform(rows).reshape(count, 8, 8)
    return tag("div", *(tag("figure", grey_picture(image, alt="a drawn image")) for image in drawn), class_="gallery")


def main() -> None:
    """Run every step, and write the report."""
    parser = argparse.ArgumentParser(description="Learn a layer of a small digits network without sampling.")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the report and the fit")
    parser.add_argument("--dimensions", type=int, default=8, help="principal components kept")
    parser.add_argument("--tol", type=float, default=3e-3, help="tolerance of the training")
    options = parser.parse_args()
    begun = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begun:5.1f} s] {text}", flush=True)

    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    p1, pca = input_model(images, options.dimensions)
    kept = pca.explained_variance_ratio_.sum()
    say(f"input model: {p1.m} features, noise {p1.noise_std:.3f}, {kept:.0%} of the variance of {len(images)} images")

    network = MLPClassifier((16,), random_state=0, max_iter=1000, tol=1e-3).fit(pca.transform(images), labels)
    layer = first_unit(network)
    right = network.score(pca.transform(images), labels)
    say(f"network: 16 hidden units, {right:.1%} of the images right; its first unit is our layer")

    print(f"\n{et.derive()}\n")
    say("derived the loss tree from the ELBO")
    # On or off for the input's features; for the new unit, whose values are many, a tilted law on a grid of points.
    families = ["bernoulli"] * p1.m + ["tilted"]
    kernels = et.generate("relu", families)
    options.out.mkdir(parents=True, exist_ok=True)
    kernels.write(options.out / "kernels.py")
    say(f"generated {len(kernels.source.splitlines())} lines of numpy kernels: {options.out / 'kernels.py'}")

    before = et.evaluate(propagated_problem(layer, p1), tol=1e-5)
    say(f"evaluated the tree before training\n\n{before}\n")

    def progress(step: Any) -> None:
        say(f"  iteration {step.iteration:2}: L = {step.loss:.4f}, sigma2 = {step.noise_std:.4f}")

    fit = et.fit(layer, p1, p1.m + 1, families, options.tol, progress=progress)
    fit.save(options.out / "fit")
    say(f"trained without a sample, {len(fit.history)} iterations: {fit.message}")

    after = et.evaluate(fit.problem, tol=1e-4, check_samples=200_000)
    say(f"evaluated the tree after training; 200,000 samples as a check\n\n{after}\n")
    intro = (
        f"Input: {p1.m} independent features, on or off, plus noise, estimated from scikit-learn's {len(images)} digits"
        " (PCA, FastICA, and EM for two points and a shared noise). Layer: the first hidden unit of a small network "
        "trained on the same inputs, written into a coordinate of its own. Training drew no samples; the check did. "
        "Its standard errors are added up from term to term, so that those of L, R3, S2, T1 are upper bounds."
    )
    page = Page(
        "One hidden unit of a digits network",
        fit.problem,
        after,
        history=fit.history,
        start=before,
        intro=[intro],
        pictures=pictures(fit.model, pca),
        sections=[("Images drawn from the fitted model", drawn_digits(fit.model, pca, 12))],
        read_outs=report_laws.of_problem(fit.problem, 200_000, 0),
    )
    say(f"report: {et.write_report(options.out / 'report.html', page)}")


if __name__ == "__main__":
    main()
