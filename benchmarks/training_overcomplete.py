"""More features than dimensions: m1 = m2 = 1.5 n sparse features, f the identity and a relu layer.

python -m benchmarks.training_overcomplete [--n 8] [--tol 1e-4]

Features Bernoulli(0.1) along random unit columns, sigma1 = 0.1. Beside L: the log density of the mixture that f(x1) is for f
the identity, summed over all 2^m1 states of the features, averages over samples to the entropy of f(x1) (with its standard
error); the Gaussian entropy of the same covariance is what the best linear Gaussian model reaches. Nothing of elbotree's is
used for either. "found": directions that some column of B2 has a cosine of at least 0.99 with.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

import elbotree as et
from benchmarks.training_machine import machine
from benchmarks.training_starts import found

SIGMA, P = 0.1, 0.1
Array = NDArray[np.float64]


def entropy(B: Array, samples: int, rng: np.random.Generator) -> tuple[float, float]:
    """-E log p(x) for x = B z + SIGMA noise, z_i Bernoulli(P), and its standard error: all 2^m states summed for each x."""
    n, m = B.shape
    states = ((np.arange(2**m)[:, None] >> np.arange(m)) & 1).astype(np.float64)
    on = states.sum(axis=1)
    log_mass = on * np.log(P) + (m - on) * np.log1p(-P)
    means = states @ B.T
    x = (rng.random((samples, m)) < P) @ B.T + SIGMA * rng.standard_normal((samples, n))
    logs = np.empty(samples)
    for at in range(0, samples, 200):
        rows = x[at : at + 200]
        squares = (rows**2).sum(axis=1)[:, None] - 2 * rows @ means.T + (means**2).sum(axis=1)
        logs[at : at + 200] = logsumexp(log_mass - squares / (2 * SIGMA**2), axis=1)
    logs -= 0.5 * n * np.log(2 * np.pi * SIGMA**2)
    return float(-logs.mean()), float(logs.std() / np.sqrt(samples))


def main() -> None:
    """Both layers: starts chosen on points (the default), the propagated start, and a pursuit beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--samples", type=int, default=20_000)
    options = parser.parse_args()
    n, m = options.n, options.n * 3 // 2
    rng = np.random.default_rng(0)
    B = rng.standard_normal((n, m))
    B /= np.linalg.norm(B, axis=0)
    p1 = et.FeatureModel(B, [et.Bernoulli(P)] * m, SIGMA)
    w, u = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
    layers = {
        "identity": et.Layer(np.eye(n), np.zeros(n), np.zeros(n), "identity"),
        "relu": et.Layer(np.eye(n), w, u, "relu"),
    }
    print(machine())
    print(f"n = {n}, m1 = m2 = {m}, Bernoulli({P}), sigma {SIGMA}, tol {options.tol:g}")
    bound, error = entropy(B, options.samples, rng)
    print(
        f"{'layer':<9} {'starts':>6} {'L':>10} {'error':>7} {'entropy':>18} {'Gaussian':>9} {'found':>9} {'died':>4} {'s':>7}"
    )
    for name, layer in layers.items():
        x = layer(p1.sample(200_000, np.random.default_rng(1)))
        gaussian = 0.5 * float(np.linalg.slogdet(2 * np.pi * np.e * np.cov(x.T))[1])
        for starts in (None, 1, 2):
            started = time.perf_counter()
            fit = et.fit(layer, p1, m, "bernoulli", tol=options.tol, starts=starts)
            seconds = time.perf_counter() - started
            loss = fit.values["L"]
            known = f"{bound:10.4f} +- {error:.3f}" if name == "identity" else f"{'not known':>18}"
            print(
                f"{name:<9} {starts or 'chosen':>6} {loss.value:10.4f} {loss.error:7.0e} {known:>18} {gaussian:9.4f} "
                f"{found(fit, layer.A @ B):>3} of {m:<3} {len(fit.dead):>4} {seconds:7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
