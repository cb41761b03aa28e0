"""The gradient of L through generated kernels against central differences of the independent oracle: one entry, drawn
once for ever, of every kind of parameter that each problem has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import elbotree as et
from tests.reference.oracle import central_difference
from tests.reference.problems import DISCRETE, LAPLACE, MIXTURE, NORMAL, _bernoulli, _build, _tilted

Spec = dict[str, Any]
Path = tuple[str | int, ...]

_INPUTS = _bernoulli(0.3, 0.6)
_GAMMA: Spec = {"kind": "gamma", "shape": 2.2, "scale": 0.7}
_SLAB: Spec = {"kind": "spike_slab", "p": 0.35, "slab": {"kind": "normal", "mean": 0.4, "std": 0.8}}

#: Small, so that the oracle's six evaluations an entry stay cheap; between them, every family and kind of prior.
PROBLEMS: dict[str, Spec] = {
    "bernoulli": _build(900, (2, 3), "tanh", _INPUTS, [({"family": "bernoulli"}, p) for p in _bernoulli(0.3, 0.45)]),
    "normal": _build(
        910,
        (3, 2),
        "relu",
        _INPUTS,
        [({"family": "normal", "std": 0.5}, LAPLACE), ({"family": "normal", "std": 0.8}, MIXTURE)],
    ),
    "normal_scale": _build(920, (2, 2), "gelu", _INPUTS, [({"family": "normal_scale"}, NORMAL)], noise=0.4),
    "exponential": _build(
        930,
        (2, 2),
        "hardtanh",
        _INPUTS,
        [({"family": "exponential"}, {"kind": "exponential", "scale": 0.9}), ({"family": "exponential"}, _GAMMA)],
        noise=0.4,
    ),
    "tilted": _build(940, (2, 2), "heaviside", _INPUTS, [_tilted(2.0, DISCRETE), _tilted(1.5, _SLAB)]),
}


@cache
def prepared(name: str) -> tuple[Spec, Any]:
    """The problem with everything written out that may be left out, and its gradient."""
    # through JSON, so that a posterior's base and its prior are two things and not one
    spec: Spec = json.loads(json.dumps(PROBLEMS[name]))
    rng = np.random.default_rng(list(name.encode()))
    for q in spec["encoder"]:
        q["bias"] = np.round(0.5 * rng.normal(size=len(q["C"])), 3).tolist()
    spec["model"]["offset"] = np.round(0.3 * rng.normal(size=len(spec["model"]["B"])), 3).tolist()
    return spec, et.gradient(et.Problem.from_dict(spec), tol=1e-8)


def one(rng: np.random.Generator, *shape: int) -> tuple[int, ...]:
    return tuple(int(rng.integers(n)) for n in shape)


def entries(spec: Spec) -> Iterator[Path]:
    """Paths of the numbers to differentiate in: a drawn entry of each matrix, every parameter of posteriors and priors
    (of an array, one entry)."""
    rng = np.random.default_rng(7)
    n, m = len(spec["model"]["B"]), len(spec["encoder"])
    yield ("model", "noise_std")
    yield ("model", "B", *one(rng, n, m))
    yield ("model", "offset", *one(rng, n))
    for j, q in enumerate(spec["encoder"]):
        for r in range(len(q["C"])):
            yield ("encoder", j, "C", r, *one(rng, n))
            yield ("encoder", j, "bias", r)
        yield from (("encoder", j, name) for name in ("std", "precision") if name in q)
        yield from (("model", "priors", j, *path) for path in numbers(spec["model"]["priors"][j], rng))


def numbers(prior: Spec, rng: np.random.Generator) -> Iterator[Path]:
    for name, value in prior.items():
        if name in ("kind", "points", "low", "high"):
            continue
        if name == "components":
            yield from (("components", i, *path) for i, part in enumerate(value) for path in numbers(part, rng))
        elif isinstance(value, dict):
            yield from ((name, *path) for path in numbers(value, rng))
        elif isinstance(value, list):
            yield (name, *one(rng, len(value)))
        else:
            yield (name,)


def entry(gradient: Any, path: Path) -> tuple[float, float]:
    """The derivative at a path of the problem, and its error."""
    match path:
        case ("model", "priors", int(j), *rest):
            found = gradient["priors"][j]
            index: tuple[int, ...] = ()
            if rest[0] in ("masses", "weights"):
                rest, index = rest[:1], (rest[1],)  # type: ignore[assignment]
            estimate = found[".".join(map(str, rest))]
        case ("model", str(name), *rest):
            estimate, index = gradient[name], tuple(rest)  # type: ignore[assignment]
        case ("encoder", int(j), ("C" | "bias") as name, *rest):
            estimate, index = gradient[name][j], tuple(rest)  # type: ignore[assignment]
        case ("encoder", int(j), str(name)):
            estimate, index = gradient["parameters"][j][name], ()
        case _:
            raise AssertionError(path)
    return float(estimate.value[index]), float(estimate.error[index])


CASES = [(name, path) for name in PROBLEMS for path in entries(PROBLEMS[name])]


@pytest.mark.parametrize(
    ("name", "path"), CASES, ids=lambda part: part if isinstance(part, str) else ".".join(map(str, part))
)
def test_gradient_equals_central_differences(name: str, path: Path) -> None:
    spec, gradient = prepared(name)
    value, error = entry(gradient, path)
    exact = central_difference(spec, path)
    scale = max(1.0, abs(exact))
    assert abs(value - exact) <= 1e-6 * scale
    assert abs(value - exact) <= error + 2e-8 * scale  # of the differences themselves
    assert error <= 1e-5 * scale


def test_every_kind_of_parameter_is_covered() -> None:
    kinds = {next(k for k in reversed(path) if isinstance(k, str)) for _, path in CASES}
    assert kinds == {
        *("C", "bias", "B", "offset", "noise_std", "std", "precision"),
        *("p", "mean", "scale", "shape", "masses", "weights"),
    }


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_has_an_entry_for_each_parameter(name: str) -> None:
    spec, gradient = prepared(name)
    problem = et.Problem.from_dict(spec)
    for j, (q, prior) in enumerate(zip(problem.encoder, problem.model.priors, strict=True)):
        assert gradient["C"][j].value.shape == q.C.shape
        assert gradient["bias"][j].value.shape == q.bias.shape
        assert set(gradient["parameters"][j]) == set(q.parameters)
        wanted = {key for key in prior.parameters() if key.split(".")[-1] not in ("points", "low", "high")}
        assert set(gradient["priors"][j]) == wanted
    assert gradient["B"].value.shape == problem.model.B.shape
    assert gradient["offset"].value.shape == problem.model.offset.shape
    assert gradient["noise_std"].value.shape == ()


def test_values_come_with_the_gradient() -> None:
    spec, gradient = prepared("tilted")
    values = et.evaluate(et.Problem.from_dict(spec), tol=1e-8)
    for term in values:
        off = abs(gradient.values[term].value - values[term].value)
        assert off <= gradient.values[term].error + values[term].error + 1e-14
