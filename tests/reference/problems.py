"""Named problem dicts that span psi, families, shapes, offsets and degenerate geometry; plain data, no randomness left
to chance. `PROBLEMS[name]` is a fresh dict every time it is asked for through `problem(name)`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

Spec = dict[str, Any]
EXPRESSION = "b*tanh(b)/(1 + b**2)"


def _matrix(seed: int, rows: int, columns: int, scale: float = 1.0) -> list[list[float]]:
    """A matrix of round numbers, the same for ever: three decimals of a seeded normal draw."""
    draw = np.random.default_rng(seed).standard_normal((rows, columns))
    return [[float(v) for v in row] for row in np.round(scale * draw, 3)]


def _vector(seed: int, size: int, scale: float = 1.0) -> list[float]:
    return _matrix(seed, 1, size, scale)[0]


def _bernoulli(*ps: float) -> list[Spec]:
    return [{"kind": "bernoulli", "p": p} for p in ps]


def _build(
    seed: int,
    shape: tuple[int, int],
    psi: str,
    inputs: list[Spec],
    features: list[tuple[Spec, Spec]],
    *,
    noise: float = 0.3,
    sigma: float = 0.4,
    offsets: bool = False,
    sharp: float = 1.0,
) -> Spec:
    """A problem with drawn matrices; features are (posterior without C and bias, prior)."""
    n2, n1 = shape
    layer: Spec = {"A": _matrix(seed, n2, n1, 0.7), "w": _vector(seed + 1, n2), "u": _vector(seed + 2, n2), "psi": psi}
    first: Spec = {"B": _matrix(seed + 3, n1, len(inputs)), "noise_std": noise, "priors": inputs}
    second: Spec = {
        "B": _matrix(seed + 4, n2, len(features), 0.8),
        "noise_std": sigma,
        "priors": [prior for _, prior in features],
    }
    encoder: list[Spec] = []
    for j, (posterior, _) in enumerate(features):
        t = 2 if posterior["family"] == "normal_scale" else 1
        encoder.append({**posterior, "C": _matrix(seed + 10 + j, t, n2, sharp)})
        if offsets:
            encoder[-1]["bias"] = _vector(seed + 30 + j, t, 0.5)
    if offsets:
        layer |= {"offset": _vector(seed + 5, n2, 0.4), "threshold": -0.35}
        first["offset"] = _vector(seed + 6, n1, 0.3)
        second["offset"] = _vector(seed + 7, n2, 0.3)
    return {"format": "elbotree-problem/1", "layer": layer, "input": first, "model": second, "encoder": encoder}


BERNOULLI: Spec = {"family": "bernoulli"}
NORMAL: Spec = {"kind": "normal", "mean": 0.0, "std": 1.0}
LAPLACE: Spec = {"kind": "laplace", "mean": 0.1, "scale": 0.8}
GAMMA: Spec = {"kind": "gamma", "shape": 1.7, "scale": 0.6}
EXPONENTIAL: Spec = {"kind": "exponential", "scale": 0.9}
UNIFORM: Spec = {"kind": "uniform", "low": -1.0, "high": 1.5}
DISCRETE: Spec = {"kind": "discrete", "points": [-1.0, 0.0, 2.0], "masses": [0.2, 0.5, 0.3]}
SLAB: Spec = {"kind": "spike_slab", "p": 0.35, "slab": {"kind": "normal", "mean": 0.4, "std": 0.8}}
MIXTURE: Spec = {
    "kind": "mixture",
    "weights": [0.6, 0.4],
    "components": [{"kind": "normal", "mean": -0.5, "std": 0.5}, {"kind": "normal", "mean": 1.0, "std": 1.1}],
}


def _tilted(precision: float, base: Spec) -> tuple[Spec, Spec]:
    return {"family": "tilted", "precision": precision, "base": base}, base


def _coordinate() -> Spec:
    """A = [I; 0], w = e_last, u = (row, 0): psi(b) becomes a coordinate of its own, which C_1 = e_last reads alone."""
    built = _build(600, (3, 2), "relu", _bernoulli(0.3, 0.6), [(BERNOULLI, _bernoulli(p)[0]) for p in (0.4, 0.3)])
    built["layer"] |= {"A": [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], "w": [0.0, 0.0, 1.0], "u": [0.8, -0.6, 0.0]}
    built["encoder"][0]["C"] = [[0.0, 0.0, 2.5]]
    return built


def _parallel() -> Spec:
    """C_1 parallel to u (c_1 is a function of b alone), C_2 a multiple of C_3 (their joint law is singular)."""
    bernoullis = [(BERNOULLI, _bernoulli(p)[0]) for p in (0.4, 0.25, 0.5)]
    built = _build(700, (3, 3), "tanh", _bernoulli(0.3, 0.5, 0.2), bernoullis, noise=0.25)
    built["encoder"][0]["C"] = [[1.5 * v for v in built["layer"]["u"]]]
    built["encoder"][2]["C"] = [[-2.0 * v for v in built["encoder"][1]["C"][0]]]
    return built


def _all() -> dict[str, Spec]:
    b3, b4 = _bernoulli(0.2, 0.4, 0.7), _bernoulli(0.1, 0.3, 0.5, 0.6)
    bernoulli2 = [(BERNOULLI, _bernoulli(p)[0]) for p in (0.3, 0.45)]
    bernoulli3 = [(BERNOULLI, _bernoulli(p)[0]) for p in (0.3, 0.2, 0.5)]
    normal: Spec = {"family": "normal", "std": 0.5}
    exponential: Spec = {"family": "exponential"}
    scale: Spec = {"family": "normal_scale"}
    mixed = [bernoulli3[0], ({"family": "normal", "std": 0.6}, MIXTURE), (exponential, GAMMA), (scale, NORMAL)]
    continuous = _build(210, (3, 3), "relu", [EXPONENTIAL, *b3[:1], NORMAL], bernoulli2, noise=0.4)
    continuous["input"]["B"] = [[0.5 * v for v in row] for row in continuous["input"]["B"]]
    return {
        "relu": _build(100, (3, 3), "relu", b3, bernoulli3),
        "tanh-offsets": _build(110, (4, 3), "tanh", b3, bernoulli3, offsets=True, noise=0.5),
        "heaviside-tilted": _build(120, (3, 3), "heaviside", b3, [_tilted(2.0, DISCRETE), _tilted(1.5, SLAB)]),
        "hardtanh-mixed": _build(130, (3, 4), "hardtanh", b3, mixed, offsets=True, noise=0.4),
        "expression-exponential": _build(
            140, (3, 3), EXPRESSION, b3, [(exponential, EXPONENTIAL), (exponential, GAMMA)], offsets=True
        ),
        "narrow": _build(150, (2, 4), "relu", b4, [(normal, LAPLACE), bernoulli3[1]], offsets=True, noise=0.2),
        "normal-scale": _build(160, (3, 3), "tanh", b3, [(scale, LAPLACE), (scale, NORMAL)], offsets=True, noise=0.2),
        "tilted-continuous": _build(
            170, (3, 3), "relu", b3, [_tilted(2.0, EXPONENTIAL), _tilted(1.0, LAPLACE), _tilted(3.0, MIXTURE)]
        ),
        "tilted-bounded": _build(
            180, (2, 3), "silu", [SLAB, DISCRETE], [_tilted(4.0, UNIFORM), _tilted(0.5, GAMMA)], offsets=True
        ),
        "sharp": _build(190, (3, 3), "relu", b3, bernoulli3, sharp=6.0, noise=0.1, offsets=True),
        "flat": _build(200, (3, 3), "gelu", b3, [*bernoulli2, (normal, NORMAL)], sharp=0.1, sigma=0.9),
        "continuous-input": continuous,
        "continuous-mixed": _build(
            220, (2, 2), "tanh", [UNIFORM, MIXTURE], [_tilted(1.0, SLAB), (normal, MIXTURE)], noise=0.5, offsets=True
        ),
        "parallel": _parallel(),
        "coordinate": _coordinate(),
        "one-dimension": _build(800, (1, 2), "leaky_relu", b4, bernoulli2, offsets=True),
        "two-dimensions": _build(820, (2, 2), "abs", b3[:2], [bernoulli2[0], (exponential, EXPONENTIAL)], noise=0.15),
    }


PROBLEMS: dict[str, Spec] = _all()


def problem(name: str) -> Spec:
    """A copy of the named problem, free to change."""
    return copy.deepcopy(PROBLEMS[name])
