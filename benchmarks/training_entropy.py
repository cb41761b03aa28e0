"""How near a fit comes to the entropy of f(x1) where that is known: f the identity, orthonormal sparse features.

python -m benchmarks.training_entropy [--n 12] [--tol 1e-4]

x1 = B1 z1 + N(0, sigma^2 I) with orthonormal B1 splits into n independent coordinates beta_i + N(0, sigma^2), so that the
entropy of f(x1) = x1 is the sum of n entropies of one number each. These are computed here by adaptive quadrature of
-p log p, p the density of that sum by quadrature of its own: nothing of elbotree's is used for them. L is an upper bound on
the cross-entropy and so on the entropy.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
from scipy.integrate import quad

import elbotree as et
from benchmarks.training_machine import machine

SIGMA = 0.1
Density = Callable[[float], float]


def normal(x: float, std: float) -> float:
    """The normal density."""
    return float(np.exp(-0.5 * (x / std) ** 2) / (std * np.sqrt(2 * np.pi)))


def entropy(density: Density, lo: float, hi: float, marks: list[float]) -> float:
    """-integral of p log p."""

    def integrand(x: float) -> float:
        p = density(x)
        return -p * np.log(p) if p > 0 else 0.0

    edges = [lo, *sorted(marks), hi]
    return sum(quad(integrand, a, b, epsabs=1e-11, epsrel=1e-11, limit=400)[0] for a, b in itertools.pairwise(edges))


def atoms(points: list[float], masses: list[float]) -> float:
    """The entropy of atoms plus N(0, SIGMA^2)."""

    def density(x: float) -> float:
        return sum(m * normal(x - p, SIGMA) for p, m in zip(points, masses, strict=True))

    marks = [p + k * SIGMA for p in points for k in (-3, 0, 3)]
    return entropy(density, min(points) - 12 * SIGMA, max(points) + 12 * SIGMA, marks)


def spike_slab(p: float, std: float) -> float:
    """The entropy of (1 - p) delta_0 + p N(0, std^2), plus N(0, SIGMA^2)."""

    def density(x: float) -> float:
        return (1 - p) * normal(x, SIGMA) + p * normal(x, float(np.hypot(std, SIGMA)))

    return entropy(density, -12 * std, 12 * std, [k * SIGMA for k in (-6, -3, 0, 3, 6)])


def cases() -> list[tuple[str, str, str, et.Prior, float]]:
    """(features, family, form of the priors, prior, entropy of one coordinate)."""
    three = ([-1.0, 0.0, 1.5], [0.05, 0.85, 0.1])
    return [
        ("Bernoulli(0.15)", "tilted", "parametric", et.Bernoulli(0.15), atoms([0.0, 1.0], [0.85, 0.15])),
        ("Bernoulli(0.15)", "bernoulli", "parametric", et.Bernoulli(0.15), atoms([0.0, 1.0], [0.85, 0.15])),
        ("three points", "tilted", "parametric", et.Discrete(*map(tuple, three)), atoms(*three)),
        ("spike and slab", "tilted", "binned", et.SpikeSlab(0.15, et.Normal(0.0, 0.5)), spike_slab(0.15, 0.5)),
    ]


def main() -> None:
    """Fit each case and print what it reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--tol", type=float, default=1e-4)
    options = parser.parse_args()
    print(machine())
    print(f"identity f, n = {options.n} orthonormal features, sigma = {SIGMA}, tol {options.tol:g}")
    print(
        f"{'features':<16} {'family':<10} {'priors':<11} {'L':>11} {'error':>8} {'entropy':>11} {'L - entropy':>12} {'s':>7}"
    )
    B = np.linalg.qr(np.random.default_rng(0).standard_normal((options.n, options.n)))[0]
    layer = et.Layer(np.eye(options.n), np.zeros(options.n), np.zeros(options.n), "identity")
    for name, family, form, prior, single in cases():
        started = time.perf_counter()
        fit = et.fit(layer, et.FeatureModel(B, [prior] * options.n, SIGMA), family=family, prior=form, tol=options.tol)
        seconds = time.perf_counter() - started
        loss, bound = fit.values["L"], options.n * single
        print(
            f"{name:<16} {family:<10} {form:<11} {loss.value:11.5f} {loss.error:8.0e} {bound:11.5f} "
            f"{loss.value - bound:12.5f} {seconds:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
