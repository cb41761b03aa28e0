"""Write the values that the tests of this folder compare with.

    python -m tests.golden.make             write tests/golden/values.json
    python -m tests.golden.make --print     print them instead: what this machine and these versions make of them

Each is computed by the package itself, at a tolerance of 1e-10, where it matters little what is left out; four of the
problems are `elbotree doctor`'s too, whose values an independent oracle made (`tests.reference.selfcheck`). Values that move
by more than 1e-10 are a change of numerics, which a commit that writes the file anew has to explain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import elbotree as et
from tests.reference.problems import problem
from tests.written import write

TARGET = Path(__file__).parent / "values.json"

#: Every family, psi smooth, with kinks and with jumps, priors with and without atoms.
EVALUATED = (
    "relu",
    "tanh-offsets",
    "heaviside-tilted",
    "hardtanh-mixed",
    "two-dimensions",
    "one-dimension",
)
TOL = 1e-10


def denormal() -> dict[str, Any]:
    """A problem in which denormal numbers stand wherever numbers may."""
    form = problem("relu")
    form["input"]["B"][0][1] = 5e-324
    form["input"]["priors"][0] = {"kind": "discrete", "points": [0.0, 1.0, 2.0], "masses": [0.5, 1e-309, 0.5]}
    form["layer"]["w"][1] = 3e-320
    form["model"]["B"][0][0] = -2e-315
    form["encoder"][0]["bias"] = [1e-318]
    return form


def terms(form: dict[str, Any]) -> list[float]:
    """The twelve terms of a problem."""
    return [term.value for term in et.evaluate(et.Problem.from_dict(form), TOL).values()]


def slope() -> list[float]:
    """dL/dC."""
    found = et.gradient(et.Problem.from_dict(problem("one-dimension")), 1e-8)
    return [float(x) for part in found["C"] for x in np.ravel(part.value)]


def tails() -> list[float]:
    """Logarithms of probabilities down to 1e-300, of a layer's output and of its input."""
    layer = et.Layer([[1.0, 0.2], [0.0, 0.9]], [0.3, -0.6], [0.8, 0.5], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0, 0.2], [-0.3, 1.1]], [et.Bernoulli(0.3), et.Laplace(0.0, 0.7)], 0.5)
    out, into = et.joint(layer, p1, [1.0, -0.5]), p1.marginal([1.0, 1.0])
    return [float(x) for x in (*out.tail([1.0, 4.0, 12.0]).log_value, *into.tail([1.0, 8.0, 400.0]).log_value)]


def chain() -> list[float]:
    """Covariances of the models of a small network's layers."""
    rng = np.random.default_rng(5)
    network = [(rng.standard_normal((3, 2)), rng.standard_normal(3), "tanh"), (np.ones((1, 3)), None, None)]
    p1 = et.FeatureModel([[1.0, 0.2], [-0.3, 1.1]], [et.Bernoulli(0.3), et.Laplace(0.0, 0.7)], 0.5)
    made = et.fit_network(et.compile_network(network), p1)
    return [float(x) for model in made.models for x in model.covariance().ravel()]


#: What is computed, by name.
VALUES: dict[str, Callable[[], list[float]]] = {
    **{f"terms of {name}": partial(terms, problem(name)) for name in EVALUATED},
    "terms of denormal": partial(terms, denormal()),
    "slope": slope,
    "log-tails": tails,
    "covariances of a chain": chain,
}


if __name__ == "__main__":
    write(__doc__, TARGET, list(VALUES), lambda names: {name: VALUES[name]() for name in names})
