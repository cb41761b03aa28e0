"""Two features at an angle: how far the best fit stays above the entropy (the paper's discussion, item 3), by angle.

python -m benchmarks.training_angle [--out gap.svg] [--p 0.3] [--sigma 0.2] [--tol 1e-5]

f the identity, n = m = 2, priors Bernoulli(p), unit columns at an angle, noise sigma. f(x1) is a mixture of four normals;
its entropy, and every expectation of the reference below, is taken by Gauss-Hermite quadrature about each of the four.
None of elbotree's numerics is used for either.

L, tilted    elbotree.fit: log odds of each feature linear in x2, which is the whole mean-field family for two points with t = 1
L, binned    the same with free-form priors on 25 points: the broadest family that the method has
L, any Q     the least loss over models and over all factorised Q(beta_1 | x2) Q(beta_2 | x2), arbitrary functions of x2:
             Q at its optimum for each x2 by coordinate ascent from three starts, the model by L-BFGS from the truth
             and from two others
gap          L, any Q minus the entropy: not 0, so that no encoder however broad repairs it
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit, logsumexp

import elbotree as et
from benchmarks.training_machine import machine

Array = NDArray[np.float64]
ANGLES = (90, 60, 45, 30, 20, 15, 10, 5)
_STATES = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float64)


class Law:
    """The mixture of four normals, with quadrature nodes about each."""

    def __init__(self, B: Array, p: float, sigma: float, nodes: int = 40) -> None:
        z, weights = hermegauss(nodes)
        masses = p ** _STATES.sum(axis=1) * (1 - p) ** (2 - _STATES.sum(axis=1))
        plane = np.stack(np.meshgrid(z, z, indexing="ij"), axis=-1).reshape(-1, 2)
        shares = np.outer(weights, weights).ravel() / (2 * np.pi)
        self.x = np.concatenate([state @ B.T + sigma * plane for state in _STATES])
        self.weights = np.concatenate([mass * shares for mass in masses])
        far = ((self.x[:, None, :] - (_STATES @ B.T)[None]) ** 2).sum(axis=2)
        logs = logsumexp(np.log(masses) - far / (2 * sigma**2), axis=1) - np.log(2 * np.pi * sigma**2)
        self.entropy = -float(self.weights @ logs)


def best_mean_field(law: Law, numbers: Array) -> tuple[float, Array]:
    """The loss of a model (B, mu, log sigma, logit p) at the best factorised Q of each x, and its gradient in the model (Q is
    at its optimum, so that it is the partial one)."""
    B, mu, variance, p = numbers[:4].reshape(2, 2), numbers[4:6], float(np.exp(2 * numbers[6])), expit(numbers[7:9])
    H, y = B.T @ B, (law.x - mu) @ B
    least, chosen = np.full(len(law.x), np.inf), np.zeros((len(law.x), 2))
    for start in ((0.5, 0.5), (0.99, 0.01), (0.01, 0.99)):
        q = np.tile(start, (len(law.x), 1))
        for _ in range(100):
            before = q.copy()
            for j in (0, 1):
                q[:, j] = expit(logit(p[j]) + (y[:, j] - 0.5 * H[j, j] - H[0, 1] * q[:, 1 - j]) / variance)
            if np.abs(q - before).max() < 1e-8:
                break
        q = np.clip(q, 1e-300, 1 - 1e-16)
        divergence = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).sum(axis=1)
        missed = ((law.x - mu - q @ B.T) ** 2).sum(axis=1) + (q * (1 - q)) @ np.diag(H)
        loss = divergence + missed / (2 * variance)
        chosen = np.where((loss < least)[:, None], q, chosen)
        least = np.minimum(least, loss)
    q, weighted = chosen, law.weights[:, None] * chosen
    left = law.x - mu - q @ B.T
    spread = law.weights @ (q * (1 - q))
    missed = float(law.weights @ (left**2).sum(axis=1) + spread @ np.diag(H))
    slope = [
        ((-left.T @ weighted + B * spread) / variance).ravel(),
        -law.weights @ left / variance,
        [2 - missed / variance],
        p - weighted.sum(axis=0),
    ]
    return float(law.weights @ least + np.log(2 * np.pi * variance)), np.concatenate(slope)


def any_q(law: Law, B: Array, p: float, sigma: float) -> float:
    """The least loss over models, from the truth, from one with a column turned away and from two columns in one direction
    (features that count how many are on)."""
    least = np.inf
    turn, middle = np.array([[0.0, -B[1, 1]], [0.0, B[0, 1]]]), 0.5 * B.sum(axis=1)
    counts = logit([1 - (1 - p) ** 2, p**2])  # one feature on if any is, the other if both are
    starts = [(B, [logit(p)] * 2), (B + 0.3 * turn, [logit(p)] * 2), (np.column_stack([middle, middle]), counts)]
    for columns, odds in starts:
        start = np.concatenate([np.ravel(columns), [0.0, 0.0, np.log(sigma)], odds])
        options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8}
        found = minimize(
            lambda numbers: best_mean_field(law, numbers), start, jac=True, method="L-BFGS-B", options=options
        )
        least = min(least, float(found.fun))
    return least


def main() -> None:
    """The table, and the plot where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--p", type=float, default=0.3)
    parser.add_argument("--sigma", type=float, default=0.2)
    parser.add_argument("--tol", type=float, default=1e-5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(machine())
    print(f"two features Bernoulli({options.p}), sigma {options.sigma}, tol {options.tol:g}; nats")
    print(
        f"{'angle':>5} {'entropy':>10} {'L, tilted':>10} {'L, binned':>10} {'L, any Q':>10} {'gap':>9} {'fit - any Q':>11} {'s':>6}"
    )
    layer = et.Layer(np.eye(2), np.zeros(2), np.zeros(2), "identity")
    gaps = []
    for angle in ANGLES:
        t = np.deg2rad(angle)
        B = np.array([[1.0, np.cos(t)], [0.0, np.sin(t)]])
        p1 = et.FeatureModel(B, [et.Bernoulli(options.p)] * 2, options.sigma)
        started = time.perf_counter()
        losses = [
            float(et.fit(layer, p1, tol=options.tol, prior=form, starts=8).values["L"].value)
            for form in ("parametric", "binned")
        ]
        seconds = time.perf_counter() - started
        law = Law(B, options.p, options.sigma)
        broad = any_q(law, B, options.p, options.sigma)
        gaps.append((min(losses) - law.entropy, broad - law.entropy))
        print(
            f"{angle:>5} {law.entropy:10.5f} {losses[0]:10.5f} {losses[1]:10.5f} {broad:10.5f} {gaps[-1][1]:9.5f} "
            f"{min(losses) - broad:11.5f} {seconds:6.1f}",
            flush=True,
        )
    if options.out is not None:
        plot(options.out, gaps)


def plot(path: Path, gaps: list[tuple[float, float]]) -> None:
    """Both gaps against the angle."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for k, label in ((0, "best fit"), (1, "any factorised Q")):
        axes.plot(ANGLES, [gap[k] for gap in gaps], "o-", label=label)
    axes.set_xlabel("angle between the two features, degrees")
    axes.set_ylabel("loss above the entropy, nats")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
