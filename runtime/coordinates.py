"""A problem's free numbers as named arrays without constraints, for optimisers that know nothing of problems: positive
numbers as logs, probabilities as logits. The gradient in these arrays comes from the generated kernels' by the chain rule.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from elbotree.runtime.errors import InputError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.expectations import Expectations
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.models import Encoder, FeatureModel, Posterior, Problem
from elbotree.runtime.priors import Prior
from elbotree.runtime.spectral import SpectralExpectations

Array = NDArray[np.float64]

PARTS = ("encoder", "decoder", "priors")
_POSITIVE = ("std", "scale", "shape", "precision")


class GradientKernels(Protocol):
    """What these coordinates need of a generated kernel module."""

    def evaluate(self, law: Expectations, p: Problem) -> dict[str, Estimate]: ...
    def gradient(self, law: Expectations, p: Problem, values: dict[str, Estimate] | None = None) -> dict[str, Any]: ...


class Coordinates:
    """The free numbers of a problem by name, and the way there and back.

    Arguments
        problem  where to start; its layer, input, families, bases and prior kinds stay as they are
        what     parts that move: "encoder" (C_j, bias_j, own parameters), "decoder" (B, offset, noise_std), "priors"
                 (their parameters; points and supports stay)

    Names: C_0, bias_0, log_precision_0 (log_std_0), B, offset, log_noise_std, prior_0_logit_p, prior_0_log_std, ...
    Raises InputError for an unknown part, and for a number that has no log or logit (a precision or a mass of 0).
    """

    def __init__(self, problem: Problem, what: tuple[str, ...] | list[str]) -> None:
        for part in what:
            if part not in PARTS:
                raise InputError(f"`what` names {part!r}; its parts are {', '.join(PARTS)}")
        self.problem, self.what = problem, tuple(what)
        self.start = self._values(problem)
        for name, value in self.start.items():
            if not np.all(np.isfinite(value)):
                raise InputError(
                    f"{name} is {value}, since the number behind it lies at the end of its range; move it inside"
                )

    def _values(self, problem: Problem) -> dict[str, Array]:
        out: dict[str, Array] = {}
        model = problem.model
        with np.errstate(divide="ignore"):
            if "encoder" in self.what:
                for j, q in enumerate(problem.encoder):
                    out |= {f"C_{j}": q.C.copy(), f"bias_{j}": q.bias.copy()}
                    out |= {f"{_kind(name)}{name}_{j}": _free(name, value) for name, value in q.parameters.items()}
            if "decoder" in self.what:
                out |= {"B": model.B.copy(), "offset": model.offset.copy()}
                out["log_noise_std"] = np.log(np.array(model.noise_std))
            if "priors" in self.what:
                for j, prior in enumerate(model.priors):
                    for name, value in prior.parameters().items():
                        out[f"prior_{j}_{_spelled(name)}"] = _free(name, value)
        return out

    def problem_at(self, values: Mapping[str, Array]) -> Problem:
        """The problem whose free numbers are these."""
        old, model = self.problem, self.problem.model
        encoder = old.encoder
        if "encoder" in self.what:
            encoder = Encoder(
                [
                    Posterior(
                        q.family,
                        values[f"C_{j}"],
                        values[f"bias_{j}"],
                        parameters={
                            name: float(_bound(name, values[f"{_kind(name)}{name}_{j}"])) for name in q.parameters
                        },
                        base=q.base,
                    )
                    for j, q in enumerate(encoder)
                ]
            )
        priors = model.priors
        if "priors" in self.what:
            priors = tuple(_moved(prior, f"prior_{j}_", values) for j, prior in enumerate(priors))
        if "decoder" in self.what:
            noise_std = float(np.exp(values["log_noise_std"]))
            return Problem(
                old.layer, old.input, FeatureModel(values["B"], priors, noise_std, values["offset"]), encoder
            )
        return Problem(old.layer, old.input, FeatureModel(model.B, priors, model.noise_std, model.offset), encoder)

    def gradient_at(self, problem: Problem, gradient: Mapping[str, Any]) -> dict[str, Array]:
        """The kernels' gradient at a problem, in these coordinates, by name."""
        out: dict[str, Array] = {}
        model = problem.model
        if "encoder" in self.what:
            for j, q in enumerate(problem.encoder):
                out |= {f"C_{j}": gradient["C"][j].value, f"bias_{j}": gradient["bias"][j].value}
                for name, value in q.parameters.items():
                    slope = gradient["parameters"][j][name].value
                    out[f"{_kind(name)}{name}_{j}"] = _pulled(name, value, slope)
        if "decoder" in self.what:
            out |= {"B": gradient["B"].value, "offset": gradient["offset"].value}
            out["log_noise_std"] = np.asarray(gradient["noise_std"].value * model.noise_std)
        if "priors" in self.what:
            for j, prior in enumerate(model.priors):
                for name, number in prior.parameters().items():
                    slope = gradient["priors"][j][name].value
                    out[f"prior_{j}_{_spelled(name)}"] = _pulled(name, number, slope)
        return out

    @vanishing
    def loss(
        self, kernels: GradientKernels, values: Mapping[str, Array], tol: float, slope: bool = True
    ) -> tuple[dict[str, Estimate], dict[str, Array]]:
        """The terms of the loss and (with `slope`) its gradient by name, by the spectral engine."""
        problem = self.problem_at(values)
        law = SpectralExpectations.for_problem(problem, tol, tol if slope else None)
        terms = kernels.evaluate(law, problem)
        return terms, self.gradient_at(problem, kernels.gradient(law, problem, terms)) if slope else {}


class FlatObjective:
    """L as a function of one flat vector, for scipy.optimize and its like.

        found = scipy.optimize.minimize(o.fun_and_jac, o.x0, jac=True)
        o.problem(found.x)

    x0 holds the start, `names` what the entries are. Nothing is eliminated: see `ProfileObjective` for the loss at the
    best decoder. The last point is remembered, so that fun and jac apart cost one evaluation.
    """

    def __init__(self, problem: Problem, kernels: GradientKernels, tol: float, what: tuple[str, ...]) -> None:
        self.coordinates, self.kernels, self.tol = Coordinates(problem, what), kernels, tol
        start = self.coordinates.start
        self.x0 = np.concatenate([np.ravel(v) for v in start.values()]) if start else np.zeros(0)
        self.names = [
            name + "".join(f"[{i}]" for i in at) for name, v in start.items() for at in np.ndindex(np.shape(v))
        ]
        self._last: tuple[bytes, float, Array] | None = None

    def _values(self, x: Array) -> dict[str, Array]:
        x = np.asarray(x, dtype=np.float64)
        if x.shape != self.x0.shape:
            raise InputError(f"`x` has shape {x.shape}; it must be {self.x0.shape}, as `x0` is")
        out, at = {}, 0
        for name, value in self.coordinates.start.items():
            out[name] = x[at : at + value.size].reshape(value.shape)
            at += value.size
        return out

    def problem(self, x: Array) -> Problem:
        """The problem whose free numbers are x."""
        return self.coordinates.problem_at(self._values(x))

    def fun_and_jac(self, x: Array) -> tuple[float, Array]:
        """L in nats and its gradient."""
        values = self._values(x)
        key = np.asarray(x, dtype=np.float64).tobytes()
        if self._last is None or self._last[0] != key:
            terms, slopes = self.coordinates.loss(self.kernels, values, self.tol)
            flat = (
                np.concatenate([np.ravel(slopes[name]) for name in self.coordinates.start]) if slopes else np.zeros(0)
            )
            self._last = (key, float(terms["L"].value), flat)
        return self._last[1], self._last[2].copy()

    def fun(self, x: Array) -> float:
        """L in nats."""
        return self.fun_and_jac(x)[0]

    def jac(self, x: Array) -> Array:
        """The gradient of L."""
        return self.fun_and_jac(x)[1]


# -- one number, or one vector of probabilities ------------------------------------------------------------------------


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _kind(name: str) -> str:
    """The function behind a coordinate, as its name spells it."""
    name = _last(name)
    return (
        "log_" if name in _POSITIVE else "logit_" if name == "p" else "logits_" if name in ("masses", "weights") else ""
    )


def _spelled(name: str) -> str:
    """components.0.std -> components_0_log_std."""
    inner, last = name.rpartition(".")[0], _last(name)
    return (inner.replace(".", "_") + "_" if inner else "") + _kind(name) + last


def _free(name: str, value: Any) -> Array:
    v = np.asarray(value, dtype=np.float64)
    kind = _kind(name)
    return np.asarray(np.log(v) if kind in ("log_", "logits_") else logit(v) if kind == "logit_" else v)


def _bound(name: str, free: Array) -> Array:
    kind = _kind(name)
    if kind == "log_":
        return np.asarray(np.exp(free))
    if kind == "logit_":
        return np.asarray(expit(free))
    return np.asarray(softmax(free) if kind == "logits_" else free)


def _pulled(name: str, value: Any, slope: Array) -> Array:
    """The slope in the coordinate from the slope in the number itself."""
    v, kind = np.asarray(value, dtype=np.float64), _kind(name)
    if kind == "log_":
        return np.asarray(slope * v)
    if kind == "logit_":
        return np.asarray(slope * v * (1 - v))
    return np.asarray(v * (slope - v @ slope) if kind == "logits_" else slope)


def _moved(prior: Prior, prefix: str, values: Mapping[str, Array]) -> Prior:
    """The prior with its parameters taken from the coordinates."""
    spec = copy.deepcopy(prior.spec())
    for name in prior.parameters():
        number = _bound(name, values[prefix + _spelled(name)])
        place: Any = spec
        *path, last = name.split(".")
        for step in path:
            place = place[int(step)] if step.isdigit() else place[step]
        place[last] = number.tolist()
    return Prior.from_spec(spec)
