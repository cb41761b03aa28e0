"""Is one call enough? The default fit against the best of many starts, on small problems with many local minima.

python -m benchmarks.training_default [--starts 24] [--tol 1e-4] [--only angle,relu] [--seeds 3]

angle   f the identity, two Bernoulli(p) features of unit length at an angle, by which they share a direction
relu    f(x) = x + w relu(<x, u>), u, w Gaussian / sqrt(n), B1 orthogonal, Bernoulli(0.15), sigma1 = 0.1
oblique the same with random unit columns in B1
crowded f the identity, five Bernoulli(0.15) features in three dimensions

one      the propagated features alone (`starts=1`)
default  what `et.fit(layer, p1)` gives: random encoders beside them, each tried for a few iterations
many     the best of `--starts` starts: propagated features, a pursuit, random encoders
L - best is against the least loss that any of the three reached; entropy (`Fit.bound`) where it is computable.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import elbotree as et
from benchmarks.training_machine import machine


def angle(degrees: float, p: float, sigma: float) -> tuple[et.Layer, et.FeatureModel]:
    """Two features at an angle."""
    t = np.deg2rad(degrees)
    layer = et.Layer(np.eye(2), np.zeros(2), np.zeros(2), "identity")
    return layer, et.FeatureModel([[1.0, np.cos(t)], [0.0, np.sin(t)]], [et.Bernoulli(p)] * 2, sigma)


def bent(n: int, seed: int, oblique: bool) -> tuple[et.Layer, et.FeatureModel]:
    """A relu layer."""
    rng = np.random.default_rng([n, seed])
    B = rng.standard_normal((n, n))
    B = B / np.linalg.norm(B, axis=0) if oblique else np.linalg.qr(B)[0]
    w, u = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
    return et.Layer(np.eye(n), w, u, "relu"), et.FeatureModel(B, [et.Bernoulli(0.15)] * n, 0.1)


def crowded(seed: int) -> tuple[et.Layer, et.FeatureModel]:
    """More features than dimensions."""
    B = np.random.default_rng([3, 5, seed]).standard_normal((3, 5))
    layer = et.Layer(np.eye(3), np.zeros(3), np.zeros(3), "identity")
    return layer, et.FeatureModel(B / np.linalg.norm(B, axis=0), [et.Bernoulli(0.15)] * 5, 0.1)


def problems(seeds: int) -> dict[str, tuple[et.Layer, et.FeatureModel]]:
    """By name."""
    made = {f"angle {d}, p 0.3, sigma 0.2": angle(d, 0.3, 0.2) for d in (90, 60, 45, 30, 20, 15, 10, 5)}
    made |= {f"angle {d}, p 0.15, sigma 0.1": angle(d, 0.15, 0.1) for d in (45, 30, 15, 5)}
    for seed in range(seeds):
        made |= {f"relu n = {n}, seed {seed}": bent(n, seed, False) for n in (2, 4, 6)}
        made |= {f"oblique n = {n}, seed {seed}": bent(n, seed, True) for n in (2, 4)}
        made[f"crowded, seed {seed}"] = crowded(seed)
    return dict(sorted(made.items(), key=lambda item: item[0].split()[0]))


def main() -> None:
    """One line a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=24)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--only", default="", help="beginnings of names, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    print(f"tol {options.tol:g}, {options.starts} starts in `many`; seconds of processors")
    print(
        f"{'problem':<30} {'entropy':>9} {'best':>9} {'L - best: one':>13} {'default':>9} {'many':>9} {'s: one':>7} {'default':>7}"
    )
    within = []
    for name, (layer, p1) in problems(options.seeds).items():
        if options.only and not name.startswith(tuple(options.only.split(","))):
            continue
        losses, seconds = [], []
        for starts in (1, None, options.starts):
            started = time.process_time()
            fit = et.fit(layer, p1, tol=options.tol, starts=starts)
            seconds.append(time.process_time() - started)
            losses.append(float(fit.values["L"].value))
        best = min(losses)
        entropy = None if fit.bound is None else fit.bound.entropy
        known = f"{'':>9}" if entropy is None else f"{entropy:9.4f}"
        off = [loss - best for loss in losses]
        within.append([gap < 1e-3 for gap in off])
        print(
            f"{name:<30} {known} {best:9.4f} {off[0]:13.4f} {off[1]:9.4f} {off[2]:9.4f} {seconds[0]:7.1f} {seconds[1]:7.1f}",
            flush=True,
        )
    share = np.mean(within, axis=0)
    print(
        f"within 1e-3 nats of the best: one {share[0]:.0%}, default {share[1]:.0%}, many {share[2]:.0%} of {len(within)}"
    )


if __name__ == "__main__":
    main()
