"""Evaluate the loss tree and its gradient: generate the kernels that a problem needs, build the engine that takes its
expectations, run the one on the other. No formula of the loss stands here, nor any numerics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import elbotree.compiler  # noqa: F401  (layers hold psi as text)
from elbotree.codegen import Kernels, generate
from elbotree.runtime.arguments import MOST_SAMPLES, check_bound, check_count, check_kind, check_seed, finite_number
from elbotree.runtime.errors import InputError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.expectations import Expectations
from elbotree.runtime.float_range import in_float64
from elbotree.runtime.models import Encoder, Layer, Problem
from elbotree.runtime.units import gradient_in, problem_in, terms_in, unit_of
from elbotree.runtime.values import Values

#: The tolerance of `evaluate` and `gradient` where none is given.
DEFAULT_TOL = 1e-6

METHODS = ("spectral", "grid")


class Gradient:
    """The gradient of L: `gradient["C"]` and so on are `Estimate`s (or lists of them, one a feature).

    Keys
        C, bias        list over features: (t_j, n2) and (t_j,)
        B, offset      (n2, m2) and (n2,)
        noise_std      scalar
        parameters     list over features: dict from the posterior's own parameters (std, precision) to estimates
        priors         list over features: dict from the prior's parameters to estimates
    Attribute
        values         the twelve terms at the same point, as `evaluate` returns them
    """

    def __init__(self, parts: Mapping[str, Any], values: Values) -> None:
        self._parts = dict(parts)
        self.values = values

    def __getitem__(self, name: str) -> Any:
        try:
            return self._parts[name]
        except KeyError:
            raise KeyError(f"the gradient has no part {name!r}; its parts are {', '.join(self._parts)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def keys(self) -> list[str]:
        """The names of its parts."""
        return list(self._parts)

    def __repr__(self) -> str:
        return f"<Gradient of L = {self.values['L'].value:.10g} in {', '.join(self._parts)}>"


def check_problem(problem: object) -> None:
    """InputError unless `problem` is one."""
    check_kind(
        problem, "problem", Problem, "; Problem.load(path) reads one from a file, and a fit has one as fit.problem"
    )


def kernels_for(layer: Layer, encoder: Encoder) -> Kernels:
    """The kernels of this layer's psi and of the families that occur in the encoder."""
    # A model without features needs no family, but the module wants one.
    return generate(layer.psi, [posterior.family for posterior in encoder] or "tilted")


def evaluate(
    problem: Problem,
    tol: float | None = None,
    method: str = "spectral",
    check_samples: int | None = None,
    eps: float | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    max_memory: float | None = None,
    executor: Executor | None = None,
) -> Values:
    """All twelve terms of the loss tree, each with an estimate of its absolute error.

    Arguments
        problem        layer, input model, model of the output, encoder
        tol            error allowed at each term, relative to max(1, |value|); 1e-6 where none is given. The grid takes
                       its accuracy from eps: there a tol is only compared with the errors, and only when given
        method         "spectral": characteristic functions, to tol; "grid": the paper's bins (Fact 3.3, Lemma 3.4)
        check_samples  also evaluate the same kernels on that many samples, to stand beside the values as a check
        eps            width of the grid's bins (method="grid" only)
        seed           of the check's samples
        max_seconds    of the sums over pairs of features, where nearly all time goes: estimated before they begin (of an
                       executor: of all its workers together); and of expanding functions of single features, foreseen step by
                       step
        max_memory     of the same, in bytes (of an executor: of one worker)
        executor       any `concurrent.futures` executor, to make these sums: processes, dask's `client.get_executor()`, MPI.
                       Left out, threads of this process make them; the bits are the same

    x1 without noise and with discrete priors that give it at most 262,144 values is enumerated, exactly.

    Returns `Values`. Raises InputError for a wrong argument, ToleranceError where a term misses tol, CostError, before
    the work, where the estimates are above max_seconds or max_memory, and ExecutorError where the executor is lost.
    The paper: Theorem 3.1 and Figure 2.
    """
    check_problem(problem)
    _check_arguments(tol, method, check_samples, eps, max_seconds, max_memory)
    check_seed(seed)
    if executor is not None and method != "spectral":
        raise InputError('executor makes sums over pairs of features: give it with method="spectral", or leave it out')
    kernels = kernels_for(problem.layer, problem.encoder)
    wanted = (DEFAULT_TOL if method == "spectral" else None) if tol is None else float(tol)
    clock = _Clock()
    with in_float64("the loss"):
        if method == "grid":
            estimates = kernels.evaluate(_grid(problem, eps), problem, clock.lap)
        else:
            assert wanted is not None  # the spectral method has a default
            estimates = _met(kernels, problem, wanted, None, clock.lap, max_seconds, max_memory, executor).terms
    seconds = clock.seconds()
    check = None if check_samples is None else _sampled(kernels, problem, check_samples, seed)
    values = Values.of(
        estimates, check, tol=wanted, method=method, seconds=seconds, samples=check_samples, laps=clock.laps
    )
    if wanted is not None:
        values.require(wanted)
    return values


def gradient(
    problem: Problem,
    tol: float | None = None,
    max_seconds: float | None = None,
    max_memory: float | None = None,
    executor: Executor | None = None,
) -> Gradient:
    """The gradient of L in everything that training moves, with the values at the same point.

    Arguments
        problem  layer, input model, model of the output, encoder
        tol      as in `evaluate`; the terms meet it, and the gradient's own errors stand in its estimates
        max_seconds, max_memory, executor  as in `evaluate`

    Returns a `Gradient`. Raises what `evaluate` raises.
    """
    check_problem(problem)
    _check_arguments(tol, "spectral", None, None, max_seconds, max_memory)
    wanted = DEFAULT_TOL if tol is None else float(tol)
    kernels = kernels_for(problem.layer, problem.encoder)
    start = time.perf_counter()
    with in_float64("the gradient"):
        met = _met(kernels, problem, wanted, wanted, max_seconds=max_seconds, max_memory=max_memory, executor=executor)
        parts = gradient_in(met.unit, kernels.gradient(met.engine, met.problem, met.estimates))
    values = Values.of(met.terms, tol=wanted, method="spectral", seconds=time.perf_counter() - start)
    values.require(wanted)
    return Gradient(parts, values)


class _Clock:
    """Seconds since it was made, and `laps`: for each name how much of that went by before its `lap`s."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> float:
        return time.perf_counter() - self._start


@dataclass(frozen=True)
class _Met:
    """Terms, and what they came from: the engine, and the problem and the terms in its unit of x2; `worst` is the largest error
    over what tol allows it."""

    terms: dict[str, Estimate]
    unit: float
    problem: Problem
    estimates: dict[str, Estimate]
    engine: Expectations
    worst: float


def _met(
    kernels: Kernels,
    problem: Problem,
    tol: float,
    gradient_tol: float | None = None,
    done: Callable[[str], None] = lambda leaf: None,
    max_seconds: float | None = None,
    max_memory: float | None = None,
    executor: Executor | None = None,
) -> _Met:
    """The terms by the spectral engine, with x2 in its own unit (see `units`): asked for more where a term's error misses tol at
    first (how large the functions of a problem get is known only once they have been expanded)."""
    from elbotree.runtime.sampling import EnumeratedExpectations

    if EnumeratedExpectations.covers(problem.input):
        # no noise and few values of x1: plain sums, exact to rounding
        exact = EnumeratedExpectations(problem.layer, problem.input, problem.encoder)
        estimates: dict[str, Estimate] = kernels.evaluate(exact, problem, done)
        return _Met(estimates, 1.0, problem, estimates, exact, 0.0)
    rest = tol, gradient_tol, done, max_seconds, max_memory, executor
    met = _in_unit(unit_of(problem.layer, problem.input), kernels, problem, *rest)
    if met.worst > 1.0 and met.unit != 1.0:
        # psi has no unit: where b is 1e8 and x2 as large, w is 1e-8 in its unit, and of psi(b) no digits are left
        met = min(met, _in_unit(1.0, kernels, problem, *rest), key=lambda one: one.worst)
    return met


def _in_unit(
    unit: float,
    kernels: Kernels,
    problem: Problem,
    tol: float,
    gradient_tol: float | None,
    done: Callable[[str], None],
    max_seconds: float | None,
    max_memory: float | None,
    executor: Executor | None,
) -> _Met:
    """The terms by the spectral engine, with x2 in a unit."""
    from elbotree.runtime.spectral import SpectralExpectations

    given, problem = problem, problem if unit == 1.0 else problem_in(unit, problem)
    sizes = _sizes(kernels, problem)
    sharper = 1.0
    for _ in range(3):
        engine = SpectralExpectations.for_problem(
            problem, tol * sharper, gradient_tol, max_seconds, max_memory, executor, sizes
        )
        means = [kernels.mean(j, q) for j, q in enumerate(problem.encoder)]
        with engine.under_way(means, problem.model.B.T @ problem.model.B):
            done("T3")
            estimates: dict[str, Estimate] = kernels.evaluate(engine, problem, done)
        terms = terms_in(unit, given.layer.n2, estimates)
        worst = max(float(e.error) / (tol * max(1.0, abs(float(e.value)))) for e in terms.values())
        if worst <= 1.0:
            break
        sharper *= max(0.003, 0.3 / worst)
    return _Met(terms, unit, problem, estimates, engine, worst)


def _sizes(kernels: Kernels, problem: Problem) -> dict[str, float]:
    """How large the nodes' values are at least, as far as 256 samples tell (a fifth of what is left of three standard errors):
    tolerances are relative to large values. A guess that is too high costs a second round, and no accuracy."""
    rough = _sampled(kernels, problem, 256, 0)
    sure = {name: 0.2 * (abs(float(e.value)) - 3 * float(e.error)) for name, e in rough.items()}
    return {name: size for name, size in sure.items() if size > 1.0}  # nan and what is not sure stay out


def _grid(problem: Problem, eps: float | None) -> Any:
    """The paper's grid as the engine."""
    from elbotree.runtime.grid import GridExpectations

    return GridExpectations(problem.layer, problem.input, problem.encoder, **({} if eps is None else {"eps": eps}))


def _sampled(kernels: Kernels, problem: Problem, samples: int, seed: int) -> dict[str, Estimate]:
    """The same kernels with averages over samples in place of expectations: a check and nothing else."""
    from elbotree.runtime.sampling import SamplingExpectations

    law = SamplingExpectations(problem.layer, problem.input, problem.encoder, samples=samples, seed=seed)
    estimates: dict[str, Estimate] = kernels.evaluate(law, problem)
    return estimates


def _check_arguments(
    tol: float | None,
    method: str,
    check_samples: int | None,
    eps: float | None,
    max_seconds: float | None,
    max_memory: float | None,
) -> None:
    check_bound(max_seconds, "max_seconds")
    check_bound(max_memory, "max_memory")
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if tol is not None and not finite_number(tol, "tol") > 0:
        raise InputError(f"tol is {tol!r}; it must be a positive number, such as 1e-6")
    if eps is not None and method != "grid":
        raise InputError('eps is the width of the grid\'s bins: give it with method="grid", or leave it out')
    if eps is not None and not finite_number(eps, "eps") > 0:
        raise InputError(f"eps is {eps!r}; it must be a positive number, such as 0.01")
    check_count("check_samples", check_samples, 2, MOST_SAMPLES)
