"""The loss for other people's optimisers: a flat function for scipy, a module for torch. Kernels are generated here; the
rest is in `runtime.coordinates`, `runtime.training` and `runtime.torch`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from elbotree.evaluation import check_problem, kernels_for
from elbotree.runtime.arguments import check_kind, finite_number, shortened
from elbotree.runtime.coordinates import PARTS, FlatObjective
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Problem, check_reads
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
    Raises InputError for an unknown part or another `tol`. The scipy call: `minimize(o.fun_and_jac, o.x0, jac=True)`.
    """
    check_problem(problem)
    return FlatObjective(problem, kernels_for(problem.layer, problem.encoder), _tolerance(tol), _parts(what))


def profile_objective(layer: Layer, p1: FeatureModel, encoder: Encoder, tol: float = 1e-6) -> ProfileObjective:
    """The loss at the best decoder and priors as a function of the encoder alone: what `fit` minimises.

    Arguments
        layer, p1  the layer f and the model of its input
        encoder    where to start
        tol        tolerance of each term, relative to max(1, |value|)

    Returns an object with `.x0`, `.fun_and_jac(x)`, `.fun`, `.jac`, `.problem(x)`. The gradient is the partial one, by the
    envelope theorem. Raises InputError for an encoder of another layer, and what `evaluate` raises.
    """
    check_kind(layer, "layer", Layer)
    check_kind(p1, "p1", FeatureModel)
    check_kind(encoder, "encoder", Encoder)
    for j, q in enumerate(encoder):
        check_reads(q, f"encoder[{j}]", layer.n2)
    return ProfileObjective.of(layer, p1, encoder, kernels_for(layer, encoder), _tolerance(tol))


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
    return AnalyticELBO(problem, kernels_for(problem.layer, problem.encoder), _tolerance(tol), _parts(what))


def _tolerance(tol: object) -> float:
    """`tol` as a positive number."""
    number = finite_number(tol, "tol")
    if number <= 0:
        raise InputError(f"`tol` is {tol!r}; it must be a positive number, such as 1e-6")
    return number


def _parts(what: object) -> tuple[str, ...]:
    """The parts that move; whether there are such is for who takes them."""
    if what == "all":
        return PARTS
    if isinstance(what, str):
        return (what,)
    if not isinstance(what, Iterable):
        raise InputError(f'`what` is {shortened(what)}; it must be "all", or some of {", ".join(PARTS)}')
    return tuple(what)
