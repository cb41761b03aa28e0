"""The loss for other people's optimisers: a flat function for scipy, a module for torch. Kernels are generated here; the
rest is in `runtime.coordinates`, `runtime.training` and `runtime.torch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elbotree.evaluation import check_problem, kernels_for
from elbotree.runtime.coordinates import PARTS, FlatObjective
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Problem
from elbotree.runtime.profile import ProfileObjective

if TYPE_CHECKING:
    from elbotree.runtime.torch import AnalyticELBO


def flat_objective(problem: Problem, tol: float = 1e-6, what: str | Sequence[str] = ("encoder",)) -> FlatObjective:
    """L as a function of one flat vector of the parts that move.

    Arguments
        problem  where to start
        tol      tolerance of each term and of the gradient, relative to max(1, |value|)
        what     parts that move: "encoder", "decoder", "priors" (one or several), or "all"

    Returns an object with `.x0`, `.fun_and_jac(x)`, `.fun`, `.jac`, `.names`, `.problem(x)`.
    Raises InputError for an unknown part. The scipy call: `minimize(o.fun_and_jac, o.x0, jac=True)`.
    """
    check_problem(problem)
    parts = PARTS if what == "all" else (what,) if isinstance(what, str) else tuple(what)
    return FlatObjective(problem, kernels_for(problem.layer, problem.encoder), tol, parts)


def profile_objective(layer: Layer, p1: FeatureModel, encoder: Encoder, tol: float = 1e-6) -> ProfileObjective:
    """The loss at the best decoder and priors as a function of the encoder alone: what `fit` minimises.

    Arguments
        layer, p1  the layer f and the model of its input
        encoder    where to start
        tol        tolerance of each term, relative to max(1, |value|)

    Returns an object with `.x0`, `.fun_and_jac(x)`, `.fun`, `.jac`, `.problem(x)`. The gradient is the partial one, by the
    envelope theorem. Raises what `evaluate` raises.
    """
    return ProfileObjective.of(layer, p1, encoder, kernels_for(layer, encoder), tol)


def torch_module(
    problem: Problem, tol: float = 1e-6, what: str | Sequence[str] = ("encoder", "decoder")
) -> AnalyticELBO:
    """L as a torch module, whose backward pass is the exact gradient. Needs the extra `torch`.

    Arguments
        problem  where to start
        tol      tolerance of each term and of the gradient, relative to max(1, |value|)
        what     parts that are parameters, as in `flat_objective`

    Returns an `AnalyticELBO`: calling it gives L; `.terms` holds the twelve terms, `.problem()` the problem as it is now.
    Raises UnsupportedError where torch is not installed, InputError for an unknown part.
    """
    from elbotree.runtime.torch import AnalyticELBO

    check_problem(problem)
    parts = PARTS if what == "all" else (what,) if isinstance(what, str) else tuple(what)
    return AnalyticELBO(problem, kernels_for(problem.layer, problem.encoder), tol, parts)
