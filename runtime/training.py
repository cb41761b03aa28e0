"""Training one layer's model: L-BFGS over the encoder alone, on the profile loss (`profile`), with no step size, no gradient
noise and no sample in what it minimises. Its first matrix is that of the loss on points (see `point_model`), where they know it.

A run is a sequence of legs: one start, one tolerance, one set of bases for the tilted posteriors. A leg ends where the
gradient promises nothing that the tolerance can tell, or where the loss stalls. After it the learned priors are tried as new
bases, and kept where the loss falls; then the tolerance is tightened tenfold, down to a tenth of the one asked for. Of several
starts each is trained at the first, coarse tolerance, and only the best goes on; where more than three are asked for, all are
tried for a few iterations first, and the best quarter, at least three, is trained. Where none are asked for, `search` chooses
them on points. Within a leg an accepted step never raises the loss.
All that a run remembers stands in a `Training`, so that it can be written down after each step and go on to the same bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.checkpoints import Attempt, Step, Training
from elbotree.runtime.errors import InputError, ToleranceError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.lbfgs import Search, advance
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
from elbotree.runtime.point_model import PointModel
from elbotree.runtime.priors import Bernoulli, Normal
from elbotree.runtime.profile import (
    EncoderCoordinates,
    ProfileObjective,
    TrainingKernels,
    best_model,
    continuous_dimensions,
    least_noise,
    output_moments,
)
from elbotree.runtime.search import MOST_SEARCHED, on_points, searched
from elbotree.runtime.spectral import SpectralExpectations
from elbotree.runtime.starts import (
    FAMILIES,
    Start,
    binned,
    first_encoder,
    propagated,
    pursued,
    random_encoder,
    random_rows,
)
from elbotree.runtime.units import encoder_in, layer_in, problem_in, term_in, terms_in, unit_of

__all__ = ["DEAD", "Fitted", "Step", "information", "loss_terms", "pruned", "random_starts", "time_left", "train"]

Array = NDArray[np.float64]
logger = logging.getLogger(__name__)

_COARSE = 1e-3  # the tolerance that every start is trained at first
_FINER = 0.1  # of tol: the last leg's tolerance, whose errors would end a descent along a flat valley
_SEEN = 0.3  # of tol, relative to max(1, |L|): what a step must promise to be tried, and gain not to count as a stall
_TRIED = 12  # iterations that every one of many starts is tried for, and how many of them at least are trained after it
_TRAINED = 3
_ASIDE = "set aside on points:"  # how the message of a start begins that is only trained where all others fail
_FINEST = 1e-3  # of the tolerance asked for: the finest at which a gradient is asked for that misled at coarser ones
_OTHER = 0.1  # of the gradient's norm: by how much another gradient differs from it
_TRUSTED = 10.0  # times the tolerance: how far off a loss may be before it counts as what it may be at most
_PATIENCE = 3  # steps after which L-BFGS knows enough for its promise to be believed
DEAD = 1e-3  # nats of information about x2 below which a feature is dead


@dataclass(frozen=True)
class Fitted:
    """What training found: the problem (layer, input, model, encoder), the loss terms at it, and how it got there.

    history      the accepted steps of the start that was kept, from its first one on
    starts       every start with the loss that it reached; `kept` is the one that went on
    information  E K_j of each feature: what it tells of x2, in nats
    noise_floor  the least sigma2 that was allowed
    """

    problem: Problem
    terms: dict[str, Estimate]
    history: tuple[Step, ...]
    message: str
    starts: tuple[Attempt, ...]
    kept: Attempt
    information: Array
    noise_floor: float


@vanishing
def train(
    layer: Layer,
    p1: FeatureModel,
    kernels: TrainingKernels,
    *,
    features: int | None = None,
    family: str | Sequence[str] = "tilted",
    prior: str | Sequence[str] = "parametric",
    tol: float = 1e-4,
    iterations: int = 200,
    rounds: int = 4,
    starts: int | None = 1,
    encoder: Encoder | None = None,
    noise_floor: float | None = None,
    progress: Callable[[Step], None] | None = None,
    checkpoint: Callable[[Training], None] | None = None,
    resume: Training | None = None,
    executor: Executor | None = None,
) -> Fitted:
    """Learn a feature model and an encoder for f(x1), x1 ~ p1, by minimising the profile loss over the encoder.

    Arguments:
        kernels: a generated kernel module for the layer's psi and the families used
        features: number m2 of features; left out, as many as the propagated ones
        family: one name for all features or one each ("tilted", "bernoulli", "normal", "normal_scale", "exponential")
        prior: of tilted features, one word for all or one each: "parametric" keeps the form of the feature's first prior
            (Bernoulli, normal, or its own points), "binned" gives it masses on equally spaced points (free form)
        tol: tolerance of each term of the loss, relative to max(1, |value|); a run ends when no step improves more
        iterations: bound on the L-BFGS iterations of one leg
        rounds: how many legs at one tolerance: after each the learned priors are tried as bases
        starts: how many starts. The first are the propagated features, or `encoder`; the second is a pursuit of
            non-Gaussian directions (see `starts`) from the rows of `encoder`, or from random ones; the others are random.
            None: `encoder` alone where it is given, else the propagated features and the best of many encoders about
            them, tried on points first (see `search`), or beyond 64 features, or where their families do not live on points,
            as many random encoders as `random_starts` says
        encoder: where to start instead of the propagated features
        noise_floor: the least sigma2 allowed; left out, `least_noise`
        progress: called with each accepted step
        checkpoint: called with the state of the run once its starts are chosen, after each accepted step and at the end of each leg
        resume: such a state, to go on from; the result has the same bytes as without the interruption
        executor: to make the sums over pairs, as in `SpectralExpectations`; it is no part of the state

    Raises InputError for unknown families or counts that do not fit, or where f(x1) is one point and no `noise_floor` is given, and
    UnsupportedError where the loss cannot be evaluated at a start.
    """
    begun = time.perf_counter()
    unit = unit_of(layer, p1)
    tell = progress and (lambda step: progress(_step_in(unit, layer.n2, step)))
    layer, encoder = layer_in(unit, layer), encoder and encoder_in(unit, encoder)
    finite = p1.noise_std == 0 and all(prior.continuous_weight == 0 for prior in p1.priors)
    with _named(finite):
        mean, covariance = output_moments(layer, p1, tol)
    floor = least_noise(layer, p1, covariance) if noise_floor is None else noise_floor / unit
    if not floor > 0:
        raise InputError(
            "f(x1) is one point, so that the loss is unbounded below as sigma2 -> 0, and no spread says where to stop; give a "
            "`noise_floor`"
        )
    keep = checkpoint or (lambda state: None)
    state = resume
    if state is None:
        attempts, aside = _attempts(layer, p1, mean, covariance, floor, features, family, prior, starts, encoder)
        few = len(attempts) <= _TRAINED or bool(aside)
        state = Training(attempts + aside, max(tol, _COARSE), stage="coarse" if few else "trial")
        state.waiting = list(range(1, len(attempts)))
        state.elapsed = time.perf_counter() - begun
        keep(state)
    run = _Run(layer, p1, kernels, mean, covariance, floor, tol, iterations, rounds, state, tell, keep, executor)
    with _named(finite):
        while not state.message:
            run.leg()
    problem, found = run.found(state.attempts[state.at])
    terms = terms_in(unit, layer.n2, found)
    for sharper in (0.1, 0.003) if unit != 1.0 else ():
        if _met(terms, tol):
            break
        found = loss_terms(kernels, problem, tol * sharper, executor, found)
        terms = terms_in(unit, layer.n2, found)
    bound = _bound(problem, floor, unit, noise_floor is None)
    attempts = [_attempt_in(unit, layer.n2, attempt) for attempt in state.attempts]
    return Fitted(
        problem_in(1 / unit, problem),
        terms,
        tuple(_step_in(unit, layer.n2, step) for step in state.history if step.start == state.at),
        state.message + bound + _missed(terms, tol),
        tuple(attempts),
        attempts[state.at],
        information(kernels, problem, tol),
        floor * unit,
    )


@contextlib.contextmanager
def _named(finite: bool) -> Iterator[None]:
    """What cannot be evaluated, with the reason where that is that f(x1) takes finitely many values."""
    try:
        yield
    except UnsupportedError as error:
        if not finite:
            raise
        raise UnsupportedError(
            "x1 has no noise and finitely many values, so that the loss is unbounded below as sigma2 -> 0, and posteriors may "
            f"switch as sharply as they like; give the input a small noise_std ({error})"
        ) from error


# ------------------------------------------------------------------ units (see `units`)


def _attempt_in(unit: float, n: int, attempt: Attempt) -> Attempt:
    loss = None if attempt.loss is None else attempt.loss + n * math.log(unit)
    return replace(attempt, encoder=encoder_in(1 / unit, attempt.encoder), loss=loss)


def _step_in(unit: float, n: int, step: Step) -> Step:
    terms = {name: float(term_in(unit, n, name, value)) for name, value in step.terms.items()}
    return replace(step, loss=step.loss + n * math.log(unit), noise_std=step.noise_std * unit, terms=terms)


def _attempts(
    layer: Layer,
    p1: FeatureModel,
    mean: Array,
    covariance: Array,
    floor: float,
    features: int | None,
    family: str | Sequence[str],
    prior: str | Sequence[str],
    starts: int | None,
    encoder: Encoder | None,
) -> tuple[list[Attempt], list[Attempt]]:
    """The starts in their order, each with its first encoder, and those that points have set aside."""
    made, aside = [], []
    if encoder is not None:
        count, names, forms = len(encoder), [q.family for q in encoder], ["parametric"] * len(encoder)
        made.append(Attempt("given", encoder))
    else:
        start = propagated(layer, p1, features)
        count = len(start.priors)
        names, forms = _each("family", family, count, FAMILIES), _each("prior", prior, count, ("parametric", "binned"))
        made.append(Attempt("propagated", first_encoder(_formed(start, forms), mean, covariance, names)))
    if starts is not None and starts > 1:
        rows = random_rows(count, layer) if encoder is None else np.array([q.C[0] for q in encoder])
        start = _formed(pursued(layer, p1, rows.reshape(count, layer.n2), names), forms)
        origin = "random rows" if encoder is None else "the encoder's rows"
        made.append(Attempt(f"pursuit from {origin}", first_encoder(start, mean, covariance, names)))
    randoms = 0 if starts is None else starts - 2
    if starts is None and encoder is None:
        if 0 < count <= MOST_SEARCHED and on_points(made[0].encoder) and np.trace(covariance) > 0:
            first = made.pop()
            worth, left = searched(layer, p1, first.encoder, mean, covariance, floor)
            made = [first] if first.name in [found.name for found in worth] else []
            made += [Attempt(found.name, found.encoder) for found in worth if found.name != first.name]
            aside = [
                Attempt(found.name, found.encoder, message=f"{_ASIDE} {found.loss:.4f} nats on {found.points:,} points")
                for found in left
            ]
        else:
            randoms = random_starts(count)
    for seed in range(1, randoms + 1):
        made.append(Attempt(f"random encoder {seed}", random_encoder(seed, made[0].encoder, mean, covariance)))
    return made, aside


def random_starts(features: int) -> int:
    """How many random encoders a fit of so many features begins at beside the propagated ones where these cannot be tried on
    points: 12 for one or two, 7 for four, 3 for six, 1 for eight or nine, none beyond."""
    return max(0, min(12, 45 // max(features, 1) - 4))


def _each(what: str, given: str | Sequence[str], count: int, known: Sequence[str]) -> list[str]:
    names = [given] * count if isinstance(given, str) else list(given)
    if len(names) != count:
        raise InputError(
            f"`{what}` lists {len(names)} names; there are {count} features, so it must list {count} or be one name"
        )
    for name in names:
        if name not in known:
            raise InputError(f"`{what}` is {name!r}; training knows {', '.join(known)}")
    return names


def _formed(start: Start, forms: Sequence[str]) -> Start:
    """The start with priors in the forms asked for."""
    priors = [binned(p) if form == "binned" else p for p, form in zip(start.priors, forms, strict=True)]
    return Start(start.B, tuple(priors))


# ------------------------------------------------------------------ a run


class _Run:
    """A run under way: what it depends on, and the state that it moves."""

    def __init__(
        self,
        layer: Layer,
        p1: FeatureModel,
        kernels: TrainingKernels,
        mean: Array,
        covariance: Array,
        floor: float,
        tol: float,
        iterations: int,
        rounds: int,
        state: Training,
        progress: Callable[[Step], None] | None,
        keep: Callable[[Training], None],
        executor: Executor | None,
    ) -> None:
        self.layer, self.p1, self.kernels, self.mean, self.covariance = layer, p1, kernels, mean, covariance
        self.floor, self.tol, self.iterations, self.rounds = floor, tol, iterations, rounds
        self.finest = _FINER * tol
        self._points: PointModel | None = None
        self.state, self.progress, self.keep, self.executor = state, progress, keep, executor
        self.begun = time.perf_counter() - state.elapsed

    def _objective(self, encoder: Encoder, tol: float | None = None) -> ProfileObjective:
        coordinates = EncoderCoordinates(encoder, self.mean, self.covariance)
        tol = self.state.tol if tol is None else tol
        return ProfileObjective(self.layer, self.p1, self.kernels, coordinates, tol, self.floor, executor=self.executor)

    def _on_points(self, encoder: Encoder) -> PointModel | None:
        """What points know of the loss, where they can."""
        if not 0 < len(encoder) <= MOST_SEARCHED or not on_points(encoder):
            return None
        if self._points is None:
            self._points = PointModel(self.layer, self.p1, self.floor)
        return self._points

    def _may_gain(self, encoder: Encoder, other: Encoder) -> bool:
        """Whether the exact losses of two encoders are worth comparing: points do not say that the other one is no better."""
        points = self._on_points(encoder)
        if points is None:
            return True
        here, there = (points.loss(e, EncoderCoordinates(e, self.mean, self.covariance)) for e in (encoder, other))
        return there < here

    def found(self, attempt: Attempt) -> tuple[Problem, dict[str, Estimate]]:
        """The attempt's encoder with its best decoder and priors, and the terms there, each within tol."""
        objective = self._objective(attempt.encoder)
        problem = objective.problem(objective.x0)
        try:
            return problem, loss_terms(self.kernels, problem, self.tol, self.executor)
        except (InputError, ToleranceError) as error:
            logger.info("terms are those of the descent: %s", error)
            return problem, objective.evaluate(objective.x0)[1]

    def leg(self) -> None:
        """One leg from where the state stands, and what follows from it."""
        state = self.state
        attempt = state.attempts[state.at]
        objective = self._objective(attempt.encoder)
        trial, points = _Trial(objective), self._on_points(attempt.encoder)
        inverse = None if points is None else points.inverse(objective.coordinates)
        if state.search is None:
            comparing = len(state.attempts) > 1 and state.stage != "fine"
            answer = trial(objective.x0) if comparing else objective.fun_and_jac(objective.x0)
            if answer is None:
                attempt.message = f"its loss cannot be evaluated there: {trial.refusal}"
                self._next_start()
                self.keep(state)
                return
            state.search = Search(objective.x0, *answer)
        limit = min(self.iterations, _TRIED) if state.stage == "trial" else self.iterations
        count = sum(step.start == state.at and step.leg == state.leg for step in state.history)
        while True:
            direction = state.search.direction(inverse)
            reason = _reason(state.search, self._gains(), self._told, state.tol > self.finest, direction)
            if reason or count == limit:
                break
            started = time.perf_counter()
            told, seen = _nats(self._told, state.search.loss), _seen(self._told, state.search.loss)
            found = advance(state.search, trial, seen, told, None if inverse is None else direction)
            if found is None and self._sharpened(trial):
                self.keep(state)
                return
            if found is None:
                reason = (
                    f"the loss stalled: no step along the gradient lowers it by what tol {self._told:g} can tell, gradient "
                    f"norm {_norm(state.search.gradient):.2g}"
                )
                break
            state.search, count = found, count + 1
            self._record(trial, time.perf_counter() - started)
        norm = _norm(state.search.gradient)
        if not reason and limit < self.iterations:
            reason = f"set aside after {limit} iterations, gradient norm {norm:.2g}"
        reason = (
            reason or f"stopped at the limit of {limit} iterations, gradient norm {norm:.2g}; give more `iterations`"
        )
        self._follow(attempt, trial.accepted or objective.problem(state.search.x), reason)
        self.keep(state)

    @property
    def _told(self) -> float:
        """What steps are told apart to: the tolerance of the leg, or the last leg's where one needs a finer one."""
        return max(self.state.tol, self.finest)

    def _sharpened(self, trial: _Trial) -> bool:
        """Whether the leg goes on at a tolerance tenfold finer: no step lowered the loss, though the gradient had promised what the
        tolerance can tell, and a finer gradient is another one.

        The errors that meet the tolerance are those of dL/dC and dL/dlambda; in the coordinates of the search a large lambda, or a
        narrow direction of x2, multiplies them.
        """
        state = self.state
        search = state.search
        assert search is not None
        finer = 0.1 * state.tol
        if trial.broken_promise(search) < _nats(self._told, search.loss) or finer < _FINEST * self.tol:
            return False
        answer = _Trial(self._objective(state.attempts[state.at].encoder, finer))(search.x)
        if answer is None or _norm(answer[1] - search.gradient) < _OTHER * _norm(search.gradient):
            return False
        logger.info("the gradient at tol %g misled; on at %g", state.tol, finer)
        state.tol, state.search = finer, Search(search.x, *answer)
        state.leg += 1
        return True

    def _record(self, trial: _Trial, seconds: float) -> None:
        """Report an accepted step."""
        state = self.state
        assert state.search is not None
        problem, terms = trial.at(state.search.x)
        step = Step(
            len(state.history) + 1,
            float(terms["L"].value),
            float(terms["L"].error),
            _norm(state.search.gradient),
            problem.model.noise_std,
            state.tol,
            time.perf_counter() - self.begun,
            seconds,
            {name: float(term.value) for name, term in terms.items()},
            state.at,
            state.leg,
        )
        state.history.append(step)
        state.elapsed = step.seconds
        logger.info("iteration %d: loss %.6f, gradient %.2e", step.iteration, step.loss, step.gradient_norm)
        self.keep(state)
        if self.progress is not None:
            self.progress(step)

    def _gains(self) -> list[float]:
        """By how much each iteration of this leg lowered the loss."""
        losses = [
            step.loss for step in self.state.history if step.start == self.state.at and step.leg == self.state.leg
        ]
        return [before - after for before, after in itertools.pairwise(losses)]

    def _follow(self, attempt: Attempt, problem: Problem, reason: str) -> None:
        """What comes after a leg: the learned priors as bases, the next start, a finer tolerance, or the end."""
        state = self.state
        search = state.search
        assert search is not None
        attempt.encoder, attempt.loss, attempt.message = problem.encoder, search.loss, reason
        attempt.iterations = sum(step.start == state.at for step in state.history)
        state.search = None
        state.leg += 1
        state.turn += 1
        worth = state.gained is None or state.gained - search.loss > state.tol
        state.gained = search.loss
        based = _rebased(problem)
        changed = any(a is not b for a, b in zip(based, problem.encoder, strict=True))
        worth = worth and changed and state.stage != "trial" and state.turn < self.rounds
        if worth and self._may_gain(problem.encoder, based):
            other = self._objective(based)
            answer = _Trial(other)(other.x0)
            if answer is not None and answer[0] < search.loss - _seen(state.tol, search.loss):
                attempt.encoder = based
                state.search = Search(other.x0, *answer, search.steps, search.changes)
                return
        if state.stage != "fine":
            self._next_start()
        if state.stage == "fine":
            self._tighten(search, attempt)

    def _next_start(self) -> None:
        """On to the start that waits, and where none does, to the next stage with the best ones."""
        state = self.state
        state.turn, state.gained = 0, None
        if state.waiting:
            state.at = state.waiting.pop(0)
            return
        ranked = sorted(
            range(len(state.attempts)), key=lambda i: math.inf if (loss := state.attempts[i].loss) is None else loss
        )
        if state.attempts[ranked[0]].loss is None:
            spare = [i for i, attempt in enumerate(state.attempts) if attempt.message.startswith(_ASIDE)]
            if spare:
                state.at = spare[0]
                return
            raise UnsupportedError(
                f"the loss cannot be evaluated at any start; at the first, {state.attempts[0].message}; where another start "
                "could help, give an `encoder`"
            )
        state.stage = "coarse" if state.stage == "trial" else "fine"
        going = ranked[: max(_TRAINED, math.ceil(len(ranked) / 4))] if state.stage == "coarse" else ranked[:1]
        state.at, *state.waiting = [i for i in going if state.attempts[i].loss is not None]

    def _tighten(self, search: Search, trained: Attempt) -> None:
        """A finer tolerance for the start that is kept, or the end; `trained` is the one that the search was for."""
        state = self.state
        state.turn, state.gained = 0, None
        attempt = state.attempts[state.at]
        converged = f"converged: {attempt.message}" if "limit" not in attempt.message else attempt.message
        if state.tol > self.finest:
            coarser, state.tol = state.tol, self.finest if state.tol < 30 * self.finest else 0.1 * state.tol
            finer = self._objective(attempt.encoder)
            trial, same = _Trial(finer), attempt is trained
            x = search.x if same else finer.x0
            answer = trial(x)
            if answer is None:
                state.tol = coarser
                state.message = (
                    converged
                    if coarser <= self.tol
                    else f"stopped at tol {coarser:g}, the loss cannot be had there to a finer one: {trial.refusal}"
                )
            elif same:  # the same point and coordinates: L-BFGS keeps its memory
                state.search = Search(x, *answer, search.steps, search.changes)
            else:
                state.search = Search(x, *answer)
        else:
            state.message = converged


class _Trial:
    """The objective for the line search: None where the loss cannot be evaluated; remembers the last points' terms."""

    def __init__(self, objective: ProfileObjective) -> None:
        self.objective = objective
        self.accepted: Problem | None = None
        self.refusal = ""  # why the last trial that failed did
        self._seen: dict[bytes, tuple[Problem, dict[str, Estimate]]] = {}

    def __call__(self, x: Array) -> tuple[float, Array] | None:
        try:
            problem, terms, gradient = self.objective.evaluate(x)
        except (InputError, ToleranceError, ArithmeticError) as error:  # also a step so long that numbers overflow
            self.refusal = str(error)
            logger.info("a trial step was shortened: %s", error)
            return None
        self._seen[x.tobytes()] = (problem, terms)
        loss = float(terms["L"].value)
        return loss + max(0.0, float(terms["L"].error) - _TRUSTED * _nats(self.objective.tol, loss)), gradient

    def broken_promise(self, search: Search) -> float:
        """By how much the gradient says that the shortest trial since the last accepted point lowers the loss; none did."""
        steps = [np.frombuffer(x) - search.x for x in self._seen]
        tried = [step for step in steps if np.any(step)]
        return -float(search.gradient @ min(tried, key=np.linalg.norm)) if tried else 0.0

    def at(self, x: Array) -> tuple[Problem, dict[str, Estimate]]:
        """The problem and the terms at the accepted point; the other trials are forgotten."""
        found = self._seen[x.tobytes()]
        self._seen, self.accepted = {}, found[0]
        return found


def _nats(tol: float, value: float) -> float:
    """A tolerance, which is relative to max(1, |value|), in nats."""
    return tol * max(1.0, abs(value))


def _seen(tol: float, loss: float) -> float:
    """What a step must promise, and an iteration gain, at a tolerance."""
    return _SEEN * _nats(tol, loss)


def _norm(gradient: Array) -> float:
    return float(np.abs(gradient).max(initial=0.0))


def _reason(search: Search, gains: Sequence[float], tol: float, finer: bool, direction: Array) -> str:
    """Why a leg ends here; empty while it goes on. Where a finer tolerance follows, a leg that slows down leaves the rest to it."""
    norm = _norm(search.gradient)
    if norm <= 1e-2 * tol:
        return f"gradient norm {norm:.2g} is below {1e-2 * tol:g}"
    if len(search.steps) >= _PATIENCE and 0 <= (promised := search.expected_gain(direction)) < _seen(tol, search.loss):
        return f"gradient norm {norm:.2g} promises no more than {promised:.1g} nats"
    quiet = gains[-1 if finer else -2 :]
    if len(quiet) == (1 if finer else 2) and max(quiet) < _seen(tol, search.loss):
        last = "the last iteration" if finer else "the last two iterations"
        return f"the loss stalled: {last} improved it by {sum(quiet):.1g}, gradient norm {norm:.2g}"
    return ""


def _rebased(problem: Problem) -> Encoder:
    """Tilted posteriors on the learned priors instead of the old bases: the same family, nearer to the exact posterior."""
    out = []
    for q, prior in zip(problem.encoder, problem.model.priors, strict=True):
        if q.family != "tilted" or isinstance(prior, Bernoulli | Normal):
            out.append(q)
            continue
        out.append(Posterior("tilted", q.C, q.bias, precision=q.precision, base=prior))
    return Encoder(out)


def time_left(history: Sequence[Step], tol: float) -> float | None:
    """Seconds until the loss stalls at this tolerance, if the gains of the last iterations go on falling as they do.

    With gains g_k = g r^k the iterations left until g r^k < e = max(1, |L|) tol / 10 are log(g / e) / log(1 / r); g and r come from
    the last ten steps of the leg. None before there are four, or while the gains do not fall.
    """
    leg = [step for step in history if (step.start, step.leg) == (history[-1].start, history[-1].leg)][-11:]
    gains = [max(a.loss - b.loss, 1e-3 * tol) for a, b in itertools.pairwise(leg)]
    if len(gains) < 4:
        return None
    half = len(gains) // 2
    early, late = float(np.mean(gains[:half])), float(np.mean(gains[-half:]))
    rate = (late / early) ** (1 / (len(gains) - half))
    if rate >= 1:
        return None
    left = max(0.0, math.log(late / _seen(tol, leg[-1].loss)) / math.log(1 / rate))
    return left * float(np.mean([step.duration for step in leg]))


# ------------------------------------------------------------------ what was found


def loss_terms(
    kernels: TrainingKernels,
    problem: Problem,
    tol: float,
    executor: Executor | None = None,
    known: dict[str, Estimate] | None = None,
) -> dict[str, Estimate]:
    """The terms to tol, asked for more where an error misses it at first. Where that cannot be done, what came before, `known` at
    first: terms that are less certain than was asked for are worth more than none."""
    terms = known
    for sharper in (1.0, 0.1, 0.003):
        try:
            law = SpectralExpectations.for_problem(problem, tol * sharper, executor=executor, often=True)
            terms = kernels.evaluate(law, problem)
        except (InputError, ToleranceError) as error:
            if terms is None:
                raise
            logger.info("terms stay as they are: %s", error)
            break
        if _met(terms, tol):
            break
    assert terms is not None
    return terms


def _met(terms: dict[str, Estimate], tol: float) -> bool:
    return all(e.error <= _nats(tol, float(e.value)) for e in terms.values())


def information(kernels: TrainingKernels, problem: Problem, tol: float) -> Array:
    """E K_j of each feature, (m2,): the KL divergence of R1, which is the information about x2 that the feature holds."""
    law = SpectralExpectations(problem.layer, problem.input, problem.encoder, tol=min(tol, 1e-4))
    pairs = zip(problem.encoder, problem.model.priors, strict=True)
    return np.array([law.of_c_each(list(kernels.kl(j, q, p))).value.sum() for j, (q, p) in enumerate(pairs)])


def pruned(kernels: TrainingKernels, problem: Problem, keep: Sequence[int], tol: float, floor: float) -> Problem:
    """The problem with the features `keep` alone, their decoder, priors and sigma2 at the best for them."""
    encoder = Encoder([problem.encoder[j] for j in keep])
    law = SpectralExpectations(problem.layer, problem.input, encoder, tol=0.3 * tol)
    return Problem(problem.layer, problem.input, best_model(law, kernels, encoder, floor), encoder)


def _missed(terms: dict[str, Estimate], tol: float) -> str:
    """What of the result is less certain than was asked for."""
    names = [name for name, term in terms.items() if not _met({name: term}, tol)]
    if not names:
        return ""
    return f"; tol {tol:g} is missed by {', '.join(names)}: see their errors"


def _bound(problem: Problem, floor: float, unit: float, own: bool) -> str:
    """What the floor of sigma2 has to do with the result."""
    if problem.model.noise_std > floor * 1.0001:
        return ""
    n, d = problem.layer.n2, continuous_dimensions(problem.layer, problem.input)
    stated = f"sigma2 rests on its floor {floor * unit:.3g}" + (" (give another as `noise_floor`)" if own else "")
    if d < n:
        return (
            f"; f(x1) has mass on sets of dimension {d} in R^{n}, so that the loss is unbounded below as sigma2 -> 0: "
            f"{stated}"
        )
    return f"; {stated}"
