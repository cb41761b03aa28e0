"""Is one call enough? The default fit against the best of many starts, on small problems with many local minima.

python -m benchmarks.training_default [--starts 50] [--tol 1e-4] [--only angle,relu] [--seeds 3] [--keep lines.jsonl]

angle   f the identity, two Bernoulli(p) features of unit length at an angle, by which they share a direction
relu    f(x) = x + w relu(<x, u>), u, w Gaussian / sqrt(n), B1 orthogonal, Bernoulli(0.15), sigma1 = 0.1
oblique the same with random unit columns in B1
crowded f the identity, five Bernoulli(0.15) features in three dimensions

one      the propagated features alone (`starts=1`)
default  what `et.fit(layer, p1)` gives: encoders about the propagated one and at random, tried on points
many     the best of `--starts` others: random encoders, and the propagated one moved by 0.3, 1 and 2 lengths of its rows, each
         descended to its end on 16,384 random points, and the best five trained with the exact loss
L - best is against the least loss that any of the three reached; entropy (`Fit.bound`) where it is computable. With `--keep` each
line is written there too, and a problem that stands there already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import elbotree as et
from benchmarks.training_machine import machine
from elbotree.runtime.lbfgs import Search, advance
from elbotree.runtime.profile import EncoderCoordinates, least_noise, output_moments
from elbotree.runtime.search import PointLoss, gains
from elbotree.runtime.starts import first_encoder, propagated, random_encoder


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


def many(
    layer: et.Layer, p1: et.FeatureModel, starts: int, tol: float, trained: int = 5, points: int = 16_384
) -> float:
    """The least exact loss of the best few of so many starts."""
    mean, covariance = output_moments(layer, p1, tol)
    start = propagated(layer, p1, None)
    encoder = first_encoder(start, mean, covariance, ["tilted"] * len(start.priors))
    coordinates = EncoderCoordinates(encoder, mean, covariance)
    f = layer(p1.sample(points, np.random.default_rng(77)))
    loss = PointLoss(f, coordinates, least_noise(layer, p1, covariance), gains(layer, p1, coordinates))
    rng, reached = np.random.default_rng(78), []
    for number in range(starts):
        far = (None, 0.3, 1.0, 2.0)[number % 4]
        if far is None:
            x = coordinates.pack(random_encoder(1000 + number, encoder, mean, covariance))
        else:
            x = coordinates.pack(encoder)
            for row, about, _ in coordinates.split(x):
                size = far * float(np.linalg.norm(row)) / np.sqrt(row.size)
                row += size * rng.standard_normal(row.shape)
                about += size * rng.standard_normal(about.shape)
        reached.append(descended(loss, Search(x, *loss(x))))
    reached.sort(key=lambda search: search.loss)
    fits = [et.fit(layer, p1, tol=tol, encoder=coordinates.unpack(search.x)) for search in reached[:trained]]
    return min(float(fit.values["L"].value) for fit in fits)


def descended(loss: PointLoss, search: Search) -> Search:
    """The end of a descent on points."""
    for _ in range(200):
        found = advance(search, loss, 1e-6)
        if found is None:
            break
        gained, search = search.loss - found.loss, found
        if gained < 1e-5:
            break
    return search


def measured(layer: et.Layer, p1: et.FeatureModel, starts: int, tol: float) -> dict[str, Any]:
    """The losses of the three, the seconds of the first two, and the entropy."""
    losses, seconds = [], []
    for count in (1, None):
        started = time.process_time()
        fit = et.fit(layer, p1, tol=tol, starts=count)
        seconds.append(time.process_time() - started)
        losses.append(float(fit.values["L"].value))
    losses.append(many(layer, p1, starts, tol))
    return {"losses": losses, "seconds": seconds, "entropy": None if fit.bound is None else fit.bound.entropy}


def main() -> None:
    """One line a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--only", default="", help="beginnings of names, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="a file of lines that are known, to go on from")
    options = parser.parse_args()
    known: dict[str, dict[str, Any]] = {}
    if options.keep is not None and options.keep.exists():
        known = {line["name"]: line for line in map(json.loads, options.keep.read_text().splitlines())}
    print(machine())
    print(f"tol {options.tol:g}, {options.starts} starts in `many`; seconds of processors")
    print(
        f"{'problem':<30} {'entropy':>9} {'best':>9} {'L - best: one':>13} {'default':>9} {'many':>9} {'s: one':>7} {'default':>7}"
    )
    gaps = []
    for name, (layer, p1) in problems(options.seeds).items():
        if options.only and not name.startswith(tuple(options.only.split(","))):
            continue
        line = known.get(name)
        if line is None:
            line = {"name": name, **measured(layer, p1, options.starts, options.tol)}
            if options.keep is not None:
                with options.keep.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        losses, seconds, entropy = line["losses"], line["seconds"], line["entropy"]
        best = min(losses)
        shown = f"{'':>9}" if entropy is None else f"{entropy:9.4f}"
        off = [loss - best for loss in losses]
        gaps.append(off)
        print(
            f"{name:<30} {shown} {best:9.4f} {off[0]:13.4f} {off[1]:9.4f} {off[2]:9.4f} {seconds[0]:7.1f} {seconds[1]:7.1f}",
            flush=True,
        )
    for number, name in enumerate(("one", "default", "many")):
        off = np.array(gaps)[:, number]
        shares = ", ".join(f"{np.mean(off < nats):.0%} within {nats}" for nats in (0.001, 0.01))
        print(f"{name:<8} {shares} nats of the best of {len(off)}; mean {off.mean():.4f}, most {off.max():.4f}")


if __name__ == "__main__":
    main()
