"""The units of x2. Tolerances are relative to max(1, |value|), and S1, S2, T1, .. have the units of x2 squared: where x2 is a
millionth, an error of tol in T2 is a million in L; where it is a million, tol asks for digits that nobody needs. So work is done
with x2 in units of a power of two near its deviation, which costs no rounding:

    x2 = unit x2',  A = unit A',  w = unit w',  B2 = unit B2',  sigma2 = unit sigma2',
    u' = unit u,  C' = unit C,  L = L' + n2 log(unit)

What is reported is in the units that were given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.estimates import Estimate
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
from elbotree.runtime.starts import ordinary_unit

__all__ = ["encoder_in", "gradient_in", "layer_in", "problem_in", "term_in", "terms_in", "unit_of"]

Array = NDArray[np.float64]


def unit_of(layer: Layer, p1: FeatureModel) -> float:
    """What x2 is measured in: see `ordinary_unit`."""
    with np.errstate(all="ignore"):
        return ordinary_unit(float(np.sqrt(layer(p1.sample(1000, np.random.default_rng(0))).var(axis=0).mean())))


def layer_in(unit: float, layer: Layer) -> Layer:
    """The layer whose outputs are measured in `unit`."""
    return Layer(layer.A / unit, layer.w / unit, layer.u * unit, layer.psi, layer.offset / unit, layer.threshold)


def encoder_in(unit: float, encoder: Encoder) -> Encoder:
    """The encoder of outputs that are measured in `unit`."""
    return Encoder([Posterior(q.family, q.C * unit, q.bias, parameters=q.parameters, base=q.base) for q in encoder])


def problem_in(unit: float, problem: Problem) -> Problem:
    """The problem whose outputs are measured in `unit`."""
    p2 = problem.model
    return Problem(
        layer_in(unit, problem.layer),
        problem.input,
        FeatureModel(p2.B / unit, p2.priors, p2.noise_std / unit, p2.offset / unit),
        encoder_in(unit, problem.encoder),
    )


def terms_in(unit: float, n: int, terms: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The terms of outputs in `unit`, (n,), in the units that were given."""
    return {
        name: Estimate(np.asarray(term_in(unit, n, name, term.value)), term.error * _squared(unit, name))
        for name, term in terms.items()
    }


def term_in(unit: float, n: int, name: str, value: Array | float) -> Array | float:
    """The same of one term."""
    return value * _squared(unit, name) + (n * math.log(unit) if name in ("L", "R2") else 0.0)


def _squared(unit: float, name: str) -> float:
    """unit^2 for a term that has the units of x2 squared, 1 for the others."""
    return 1.0 if name in ("L", "R1", "R2", "R3") else unit**2


def gradient_in(unit: float, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a gradient for outputs in `unit`, in the units that were given: dL/dC = unit dL/dC', dL/dB2 = dL/dB2' / unit, as
    for mu2 and sigma2."""
    out = dict(parts)
    out["C"] = [estimate * unit for estimate in parts["C"]]
    return out | {name: parts[name] / unit for name in ("B", "offset", "noise_std")}
