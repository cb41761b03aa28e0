"""Wrong starts: how many planted directions a fit finds when it begins at a random encoder, by three methods.

python -m benchmarks.training_starts [--n 12] [--seeds 20] [--first 0] [--layers orthonormal,random,relu]
    [--methods plain,annealed,pursuit,known]

n sparse features Bernoulli(0.15) along the columns of B1, sigma1 = 0.1; f the identity (B1 orthonormal, or random unit
columns) or a relu layer with u, w Gaussian / sqrt(n). The encoder has m2 = n Bernoulli posteriors with random rows: c_j has
deviation 4, E c_j = -2. What feature i does to the output, E[f | z_i = 1] - E[f | z_i = 0], is its planted direction: B1 e_i for
the identity; relu bends it along w (from 200,000 samples, conditional means to 0.003). It counts as found when a column of B2 has
a cosine of at least 0.99 with it.

known     not a wrong start, for comparison: the default fit, from the propagated features

plain     L-BFGS from there
annealed  sigma2 held at or above a floor that falls from x2's root mean square deviation to 0.1 in six steps, each a fit of at
          most 30 iterations from the one before, then L-BFGS
pursuit   `starts=2`: the plain start against features pursued from the encoder's rows along the least Gaussian directions
          (all rows at once, kept orthonormal), the better of the two trained on
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.typing import NDArray

import elbotree as et
from benchmarks.training_machine import machine

SIGMA = 0.1
Array = NDArray[np.float64]


def planted(kind: str, n: int, seed: int) -> tuple[et.Layer, et.FeatureModel]:
    """The layer and its input."""
    rng = np.random.default_rng([seed, n])
    B = rng.standard_normal((n, n))
    B = np.linalg.qr(B)[0] if kind != "random" else B / np.linalg.norm(B, axis=0)
    p1 = et.FeatureModel(B, [et.Bernoulli(0.15)] * n, SIGMA)
    if kind == "relu":
        w, u = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
        return et.Layer(np.eye(n), w, u, "relu"), p1
    return et.Layer(np.eye(n), np.zeros(n), np.zeros(n), "identity"), p1


def random_encoder(layer: et.Layer, p1: et.FeatureModel, seed: int) -> et.Encoder:
    """n Bernoulli posteriors with random rows."""
    rng = np.random.default_rng([seed, 1])
    x = layer(p1.sample(4000, rng))
    posteriors = []
    for row in rng.standard_normal((layer.n2, layer.n2)):
        gain = 4 / np.std(x @ row)
        posteriors.append(et.Posterior("bernoulli", gain * row, [-2 - gain * float(np.mean(x @ row))]))
    return et.Encoder(posteriors)


def train(method: str, layer: et.Layer, p1: et.FeatureModel, encoder: et.Encoder, tol: float) -> et.Fit:
    """One fit by a method."""
    if method == "known":
        return et.fit(layer, p1, layer.n2, "bernoulli", tol=tol)
    if method == "pursuit":
        return et.fit(layer, p1, tol=tol, encoder=encoder, starts=2)
    if method == "annealed":
        rms = float(np.sqrt(np.trace(et.FeatureModel.covariance(p1)) / p1.n))
        for floor in np.geomspace(rms, SIGMA, 6):
            encoder = et.fit(layer, p1, tol=1e-2, encoder=encoder, noise_floor=float(floor), iterations=30).encoder
    return et.fit(layer, p1, tol=tol, encoder=encoder)


def effects(layer: et.Layer, p1: et.FeatureModel) -> Array:
    """E[f | z_i = 1] - E[f | z_i = 0] of the features z_i in {0, 1}, (n2, m1)."""
    if not layer.w.any():
        return np.asarray(layer.A @ p1.B)
    rng = np.random.default_rng(0)
    z = np.column_stack([prior.sample(rng, 200_000) for prior in p1.priors])
    y = layer(z @ p1.B.T + p1.offset + p1.noise_std * rng.standard_normal((len(z), p1.n)))
    return np.column_stack([y[on].mean(axis=0) - y[~on].mean(axis=0) for on in z.T > 0.5])


def found(fit: et.Fit, directions: Array) -> int:
    """Planted directions that some column of B2 has a cosine of at least 0.99 with."""
    columns = fit.model.B[:, np.linalg.norm(fit.model.B, axis=0) > 0]
    cosines = np.abs((columns / np.linalg.norm(columns, axis=0)).T @ (directions / np.linalg.norm(directions, axis=0)))
    return int(np.sum(cosines.max(axis=0) >= 0.99))


def main() -> None:
    """All methods on all layers over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--layers", default="orthonormal,random,relu")
    parser.add_argument("--methods", default="plain,annealed,pursuit")
    parser.add_argument("--tol", type=float, default=1e-3)
    options = parser.parse_args()
    print(machine())
    print(
        f"n = m2 = {options.n}, {options.seeds} seeds, Bernoulli posteriors, tol {options.tol:g}; L is the mean over the seeds"
    )
    print(f"{'layer':<12} {'method':<9} {'found':>7} {'worst seed':>11} {'L':>10} {'s a fit':>8}")
    for kind in options.layers.split(","):
        for method in options.methods.split(","):
            counts, losses, seconds = [], [], []
            for seed in range(options.first, options.first + options.seeds):
                layer, p1 = planted(kind, options.n, seed)
                started = time.perf_counter()
                fit = train(method, layer, p1, random_encoder(layer, p1, seed), options.tol)
                seconds.append(time.perf_counter() - started)
                counts.append(found(fit, effects(layer, p1)))
                losses.append(float(fit.values["L"].value))
            print(
                f"{kind:<12} {method:<9} {np.mean(counts) / options.n:7.1%} {min(counts):>4} of {options.n:<4} "
                f"{np.mean(losses):10.4f} {np.mean(seconds):8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
