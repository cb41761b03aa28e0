"""Training one layer's model: L-BFGS over the encoder alone, on the profile loss.

Given the encoder, the best decoder is closed-form. With s = E[z2 | x2], D = diag E V_j and centred moments
M = Cov(f, s), G = Cov(s, s):

    B2 = M (G + D)^-1,   mu2 = E f - B2 E s,   sigma2^2 = (tr Cov f - tr(B2^T M)) / n2,   P_{2,j} = E[Q'_j( . ; c_j)]

(the aggregate posterior; its moments for parametric priors). The loss at that decoder is a function of the encoder
whose gradient is the partial one (envelope theorem), so that neither step sizes nor gradient noise appear. The loss and
the gradient are the generated kernels', evaluated by the spectral engine; nothing here writes them again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import OptimizeResult, minimize

from elbotree.runtime.checkpoints import Record, Step, Training
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.expectations import Expectations
from elbotree.runtime.integrands import Integrand
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
from elbotree.runtime.priors import Bernoulli, Discrete, Exponential, Normal, Prior
from elbotree.runtime.spectral import SpectralExpectations

__all__ = [
    "Fitted",
    "ProfileObjective",
    "Start",
    "Step",
    "best_model",
    "binned",
    "first_encoder",
    "propagated",
    "train",
]

Array = NDArray[np.float64]
logger = logging.getLogger(__name__)

FAMILIES = ("tilted", "bernoulli", "normal", "exponential")
_POINTS = 25  # points of a binned prior


class TrainingKernels(Protocol):
    """What training needs of a generated kernel module."""

    def mean(self, j: int, q: Posterior) -> Integrand: ...
    def variance(self, j: int, q: Posterior) -> tuple[Integrand, ...]: ...
    def evaluate(self, law: Expectations, p: Problem) -> dict[str, Estimate]: ...
    def dL_dC(self, law: Expectations, p: Problem) -> list[Estimate]: ...
    def dL_domega(self, law: Expectations, p: Problem) -> list[dict[str, Estimate]]: ...


@dataclass(frozen=True)
class Fitted:
    """What training found: the problem (layer, input, model, encoder), the loss terms at it, and how it got there."""

    problem: Problem
    terms: dict[str, Estimate]
    history: tuple[Step, ...]
    message: str


# ------------------------------------------------------------------ where to start


def binned(prior: Prior, points: int = _POINTS) -> Discrete:
    """A prior with a density as masses on equally spaced points (free-form priors are of this form).

    The points span all but 1e-4 of the mass on either side; each takes the mass nearer to it than to its neighbours.
    """
    mean, std = prior.mean(), float(np.sqrt(prior.variance()))
    wide = mean + std * np.linspace(-12, 12, 4001)
    cdf = prior.cdf(wide)
    lo = float(wide[int(np.searchsorted(cdf, 1e-4))])
    hi = float(wide[min(int(np.searchsorted(cdf, 1 - 1e-4)), len(wide) - 1)])
    x = np.linspace(lo, hi, points)
    middle = 0.5 * (x[1:] + x[:-1])
    mass = np.diff(np.concatenate([[0.0], prior.cdf(middle), [1.0]]))
    return Discrete(tuple(x), tuple(np.maximum(mass, 1e-9) / np.maximum(mass, 1e-9).sum()))


def binned_samples(values: Array, masses: Array, points: int = _POINTS) -> Discrete:
    """A law given by weighted values as masses on equally spaced points; each value is split between its neighbours."""
    masses = np.maximum(masses, 0.0) / np.maximum(masses, 0.0).sum()
    order = np.argsort(values)
    cumulative = np.cumsum(masses[order])
    lo = float(values[order][int(np.searchsorted(cumulative, 1e-4))])
    hi = float(values[order][min(int(np.searchsorted(cumulative, 1 - 1e-4)), len(values) - 1)])
    x = np.linspace(lo, hi, points)
    at = np.clip((values - lo) / (x[1] - x[0]), 0, points - 1)
    left = np.minimum(at.astype(np.intp), points - 2)
    mass = np.bincount(left, masses * (left + 1 - at), points) + np.bincount(left + 1, masses * (at - left), points)
    return Discrete(tuple(x), tuple(np.maximum(mass, 1e-9) / np.maximum(mass, 1e-9).sum()))


@dataclass(frozen=True)
class Start:
    """Propagated features: decoder columns with a prior each, from which the encoder's first guess is made."""

    B: Array
    priors: tuple[Prior, ...]


def propagated(layer: Layer, p1: FeatureModel, features: int | None) -> Start:
    """The features A B1 with their own priors, and one along w whose prior is the law of psi(b).

    Fewer `features` than that keeps those that carry the most variance; more adds copies of the strongest ones, turned
    by a fixed small rotation so that they can part.
    """
    law = SpectralExpectations(layer, p1, Encoder([]), tol=1e-6)
    columns = list(law.output.feature_columns().T)
    priors = list(p1.priors)
    psi = law.output.law_of_psi()
    if psi is not None:
        columns.append(layer.w.copy())
        priors.append(binned_samples(*psi))
    size = np.array([np.sqrt(p.variance()) * np.linalg.norm(c) for p, c in zip(priors, columns, strict=True)])
    wanted = int(np.sum(size > 0)) if features is None else features
    order = list(np.argsort(-size, kind="stable"))[:wanted]
    order.sort()
    out, laws = [columns[i] for i in order], [priors[i] for i in order]
    rng = np.random.default_rng(0)
    strongest = list(np.argsort(-size, kind="stable"))
    while len(out) < wanted and strongest:
        i = strongest[(len(out) - len(order)) % len(strongest)]
        turn = rng.standard_normal(layer.n2)
        out.append(columns[i] + 0.3 * np.linalg.norm(columns[i]) * turn / np.linalg.norm(turn))
        laws.append(priors[i])
    return Start(np.array(out).reshape(len(out), layer.n2).T, tuple(laws))


def first_encoder(start: Start, mean: Array, covariance: Array, family: Sequence[str]) -> Encoder:
    """Posteriors from the linear estimate of each feature: beta_j | x2 is near N(betahat_j, v_j), betahat = E beta + K (x2 - E x2).

    K = (B^T B / s^2 + diag(1 / Var beta))^-1 B^T / s^2 is the regularised pseudo-inverse, s^2 the part of x2's variance that
    the features leave (at least a thousandth of it).
    """
    B = start.B
    variances = np.array([p.variance() for p in start.priors])
    means = np.array([p.mean() for p in start.priors])
    left = (np.trace(covariance) - np.trace((B * variances) @ B.T)) / len(B)
    s2 = max(left, 1e-3 * float(np.trace(covariance)) / len(B))
    posterior = np.linalg.inv(B.T @ B / s2 + np.diag(1.0 / variances))
    K = posterior @ B.T / s2
    v = np.diag(posterior)
    out = []
    for j, (name, prior) in enumerate(zip(family, start.priors, strict=True)):
        row, offset = K[j], float(means[j] - K[j] @ mean)
        if name == "tilted":
            base = prior if isinstance(prior, Discrete | Bernoulli | Normal) else binned(prior)
            precision = (
                max(1.0 / v[j] - 1.0 / variances[j], 0.1 / variances[j]) if isinstance(base, Normal) else 1.0 / v[j]
            )
            shift = -means[j] / variances[j] if isinstance(base, Normal) else 0.0
            gain = 1.0 / v[j]
            out.append(Posterior("tilted", gain * row, [gain * offset + shift], precision=precision, base=base))
        elif name == "bernoulli":
            # log odds of beta = mean + std against mean - std from an observation with noise v
            std = float(np.sqrt(variances[j]))
            gain = min(2 * std / v[j], 8.0 / std)
            out.append(Posterior("bernoulli", gain * row, [gain * (offset - means[j])]))
        elif name == "normal":
            out.append(Posterior("normal", row, [offset], std=float(np.sqrt(v[j]))))
        else:
            gain = 1.0 / float(np.sqrt(variances[j]))
            out.append(Posterior("exponential", gain * row, [gain * offset]))
    return Encoder(out)


# ------------------------------------------------------------------ the decoder, in closed form


def aggregate_prior(law: SpectralExpectations, kernels: TrainingKernels, j: int, q: Posterior) -> Prior:
    """P_{2,j} = E[Q'_j( . ; c_j)], or the member of its parametric family with the same moments (the minimiser of R1)."""
    if q.family == "tilted" and isinstance(q.base, Discrete | Bernoulli):
        return _aggregate_masses(law, j, q)
    mean = float(law.of_c_each([kernels.mean(j, q)]).value[0])
    if q.family == "bernoulli":
        return Bernoulli(min(max(mean, 1e-12), 1 - 1e-12))
    if q.family == "exponential":
        return Exponential(mean)
    s = kernels.mean(j, q)
    pieces = kernels.variance(j, q)
    spread = float(law.of_c_each(list(pieces)).value.sum())
    second = float(law.moments_ss([s], [s]).value[0, 0])
    return Normal(mean, float(np.sqrt(max(second - mean**2 + spread, 1e-300))))


def _aggregate_masses(law: SpectralExpectations, j: int, q: Posterior) -> Prior:
    """E of each mass of the tilted posterior, for a base of finitely many points."""
    assert q.base is not None
    points, masses = q.base.atoms
    base, precision = q.base, q.precision

    def mass(x: float, m: float) -> Callable[[Array], Array]:
        return lambda c: np.exp(np.log(m) + c * x - 0.5 * precision * x * x - base.log_partition(c, precision))

    gs = [Integrand(j, (0,), mass(x, m), None, f"Q[{j}]({x:g})") for x, m in zip(points, masses, strict=True)]
    found = np.maximum(law.of_c_each(gs).value, 1e-12)
    found = found / found.sum()
    return Bernoulli(float(found[1])) if isinstance(base, Bernoulli) else Discrete(tuple(points), tuple(found))


def best_model(
    law: SpectralExpectations, kernels: TrainingKernels, encoder: Encoder, noise_floor: float
) -> FeatureModel:
    """The decoder that minimises the loss for this encoder, sigma2 kept at or above `noise_floor`."""
    means = [kernels.mean(j, q) for j, q in enumerate(encoder)]
    first, second, _ = law.output.f_moments
    rows = law.of_c_F(means).value
    M = (rows[:, :-1] - np.outer(rows[:, -1], first)).T
    s = rows[:, -1]
    spread = np.array([law.of_c_each(list(kernels.variance(j, q))).value.sum() for j, q in enumerate(encoder)])
    pairs = law.moments_ss(means, means, weights=np.ones((len(means), len(means)))).value
    G = pairs - np.outer(s, s) + np.diag(spread)
    B = _solved(G, M.T).T if len(G) else M
    covariance = second - np.outer(first, first)
    # |f - B s|^2 + spread at any B, so that the ridge costs nothing
    variance = float(np.trace(covariance) - 2 * np.trace(B.T @ M) + np.trace(B @ G @ B.T)) / len(first)
    priors = [aggregate_prior(law, kernels, j, q) for j, q in enumerate(encoder)]
    return FeatureModel(B, priors, max(float(np.sqrt(max(variance, 0.0))), noise_floor), first - B @ s)


def _solved(G: Array, right: Array) -> Array:
    """G^-1 right with a ridge of 1e-12 of G's scale, more where G's own error has made it indefinite (a feature that a trial
    step has switched off, say). Any decoder gives a true loss, so that a ridge costs optimality and never honesty."""
    scale = max(1e-300, float(np.trace(G))) / len(G)
    for ridge in (1e-12, 1e-9, 1e-6, 1e-3):
        try:
            return np.asarray(cho_solve(cho_factor(G + ridge * scale * np.eye(len(G))), right))
        except LinAlgError:
            continue
    return np.asarray(np.linalg.pinv(G, rcond=1e-3, hermitian=True) @ right)


# ------------------------------------------------------------------ the optimiser


class _Coordinates:
    """The encoder as one flat vector: rows of C in whitened coordinates of x2, biases at E x2, logs of the parameters."""

    def __init__(self, encoder: Encoder, mean: Array, covariance: Array) -> None:
        self.template = list(encoder)
        self.mean = mean
        values, vectors = np.linalg.eigh(covariance)
        root = np.sqrt(np.maximum(values, 1e-8 * values.max()))
        self.root, self.inverse = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T

    def pack(self, encoder: Encoder) -> Array:
        parts: list[Array] = []
        for q in encoder:
            parts += [
                (q.C @ self.root).ravel(),
                q.bias + q.C @ self.mean,
                np.log(np.array(list(q.parameters.values()))),
            ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def unpack(self, x: Array) -> Encoder:
        out, at = [], 0
        for q in self.template:
            t, n = q.C.shape
            C = x[at : at + t * n].reshape(t, n) @ self.inverse
            at += t * n
            bias = x[at : at + t] - C @ self.mean
            at += t
            values = np.exp(x[at : at + len(q.parameters)])
            at += len(q.parameters)
            parameters = dict(zip(q.parameters, map(float, values), strict=True))
            out.append(Posterior(q.family, C, bias, parameters=parameters, base=q.base))
        return Encoder(out)

    def pull_back(
        self, encoder: Encoder, C: Sequence[Array], bias: Sequence[Array], own: Sequence[dict[str, float]]
    ) -> Array:
        """The gradient in the flat vector from the gradients in C, bias and the posteriors' own parameters."""
        parts: list[Array] = []
        for q, dC, db, dp in zip(encoder, C, bias, own, strict=True):
            inner = (dC - np.outer(db, self.mean)) @ self.inverse
            parts += [inner.ravel(), db, np.array([dp[name] * value for name, value in q.parameters.items()])]
        return np.concatenate(parts) if parts else np.zeros(0)


def _moments(layer: Layer, p1: FeatureModel, tol: float) -> tuple[Array, Array]:
    """Mean and covariance of x2 = f(x1)."""
    probe = SpectralExpectations(layer, p1, Encoder([]), tol=min(tol, 1e-3) * 1e-2)
    mean, second, _ = probe.output.f_moments
    return mean, second - np.outer(mean, mean)


def _floor(covariance: Array) -> float:
    """The least sigma2 where none is given: a thousandth of x2's root mean square deviation."""
    return 1e-3 * float(np.sqrt(np.trace(covariance) / len(covariance)))


def train(
    layer: Layer,
    p1: FeatureModel,
    kernels: TrainingKernels,
    *,
    features: int | None = None,
    family: str | Sequence[str] = "tilted",
    tol: float = 1e-4,
    iterations: int = 200,
    rounds: int = 4,
    encoder: Encoder | None = None,
    noise_floor: float | None = None,
    progress: Callable[[Step], None] | None = None,
    checkpoint: Callable[[Training, bool], None] | None = None,
    resume: Training | None = None,
) -> Fitted:
    """Learn a feature model and an encoder for f(x1), x1 ~ p1, by minimising the profile loss over the encoder.

    Arguments:
        kernels: a generated kernel module for the layer's psi and the families used
        features: number m2 of features; left out, as many as the propagated ones
        family: one name for all features or one each ("tilted", "bernoulli", "normal", "exponential")
        tol: tolerance of each term of the loss, relative to max(1, |value|); a run ends when no step improves more
        iterations: bound on the L-BFGS iterations of one round
        rounds: how often the bases of tilted posteriors are replaced by the learned priors and training goes on
        encoder: where to start instead of the propagated features
        noise_floor: the least sigma2 allowed; left out, a thousandth of x2's root mean square deviation. A loss that is
            unbounded below (f(x1) lies on an affine subspace, reconstructed exactly) ends there, and the message says so
        progress: called with each accepted step
        checkpoint: called with the state of the run after each accepted step, and with True as its second argument at
            the start, at the end of each round and at the end, when it should be kept in any case
        resume: such a state, to go on from; the result has the same bytes as without the interruption

    Raises InputError for unknown families or counts that do not fit.
    """
    mean, covariance = _moments(layer, p1, tol)
    floor = _floor(covariance) if noise_floor is None else noise_floor
    state = resume
    if state is None:
        if encoder is None:
            start = propagated(layer, p1, features)
            encoder = first_encoder(start, mean, covariance, _family_each(family, len(start.priors)))
        state = Training(encoder)
    keep = checkpoint or (lambda state, now: None)
    begun = time.perf_counter() - (state.history[-1].seconds if state.history else 0.0)
    keep(state, True)
    while not state.message:
        coordinates = _Coordinates(state.encoder, mean, covariance)
        objective = _Objective(layer, p1, kernels, coordinates, tol, floor, begun, state, progress, keep)
        _round(state, objective, tol, iterations, rounds)
        keep(state, True)
    assert state.best is not None
    problem, message = state.best[1], state.message
    if problem.model.noise_std <= floor * 1.0001:
        message += f"; sigma2 rests on its floor {floor:.3g}: without one the loss is unbounded below"
    law = SpectralExpectations.for_problem(problem, tol)
    return Fitted(problem, kernels.evaluate(law, problem), tuple(state.history), message)


def _round(state: Training, objective: _Objective, tol: float, iterations: int, rounds: int) -> None:
    """One run of L-BFGS, and what follows from it: another round on the learned priors, or the end and its reason."""
    try:
        found = minimize(  # type: ignore[call-overload]  # the stubs do not know (value, gradient) from a callable object
            objective,
            objective.coordinates.pack(state.encoder),
            jac=True,
            method="L-BFGS-B",
            callback=objective.accepted,
            options={"maxiter": iterations, "ftol": tol * 1e-1, "gtol": tol, "maxcor": 20},
        )
    except BaseException:  # an interruption: what was computed is not lost
        objective.keep(state, True)
        raise
    loss, problem = float(found.fun), objective.problem_at(found.x)
    reason = _reason(found, tol, iterations)
    before = state.best
    if before is None or loss < before[0]:
        state.best = (loss, problem)
    based = _rebased(problem)
    if before is not None and loss >= before[0] - tol:
        state.message = f"converged: round {state.turn + 1} improved the loss by less than {tol:g}; {reason}"
    elif all(a is b for a, b in zip(based, problem.encoder, strict=True)):
        state.message = reason
    elif state.turn + 1 >= rounds:
        state.message = f"{reason}; all {rounds} rounds were used"
    state.turn, state.encoder, state.record = state.turn + 1, based, Record()
    state.accepted = len(state.history)


def _reason(found: OptimizeResult, tol: float, iterations: int) -> str:
    """Why L-BFGS stopped, in words."""
    norm, text = float(np.abs(found.jac).max(initial=0.0)), str(found.message).upper()
    if "GRADIENT" in text or norm <= tol:
        return f"gradient norm {norm:.2g} is below {tol:g}"
    if "REDUCTION" in text:
        return f"the loss stalled: an iteration improved it by less than {0.1 * tol:g}, gradient norm {norm:.2g}"
    if found.nit >= iterations or "LIMIT" in text:
        return f"stopped at the limit of {iterations} iterations, gradient norm {norm:.2g}; give more `iterations`"
    return (
        f"the loss stalled: no step along the gradient lowers it by what tol {tol:g} can tell, gradient norm {norm:.2g}"
    )


def _family_each(family: str | Sequence[str], count: int) -> list[str]:
    names = [family] * count if isinstance(family, str) else list(family)
    if len(names) != count:
        raise InputError(
            f"`family` lists {len(names)} families; there are {count} features, so it must list {count} or be one name"
        )
    for name in names:
        if name not in FAMILIES:
            raise InputError(f"`family` is {name!r}; training knows {', '.join(FAMILIES)}")
    return names


def _rebased(problem: Problem) -> Encoder:
    """Tilted posteriors on the learned priors instead of the old bases: the same family, nearer to the exact posterior."""
    out = []
    for q, prior in zip(problem.encoder, problem.model.priors, strict=True):
        if q.family != "tilted" or isinstance(prior, Bernoulli | Normal):
            out.append(q)
            continue
        out.append(Posterior("tilted", q.C, q.bias, precision=q.precision, base=prior))
    return Encoder(out)


class ProfileObjective:
    """The loss of the best decoder and priors for an encoder, as a function of a flat vector, with its gradient.

    The vector x holds, feature by feature, the rows of C in whitened coordinates of x2, the biases at E x2, and the logs of
    the posterior's own parameters. x0 is the encoder that it was made with; `minimize(o.fun_and_jac, o.x0, jac=True)`
    trains. Remembers the last point.

    Raises UnsupportedError at a point where the loss or its gradient is not finite.
    """

    def __init__(
        self,
        layer: Layer,
        p1: FeatureModel,
        kernels: TrainingKernels,
        coordinates: _Coordinates,
        tol: float,
        floor: float,
        x0: Array | None = None,
    ) -> None:
        self.layer, self.p1, self.kernels, self.coordinates = layer, p1, kernels, coordinates
        self.tol, self.floor = tol, floor
        self.x0 = coordinates.pack(Encoder(coordinates.template)) if x0 is None else x0
        self._last: tuple[bytes, float, Array] | None = None

    @staticmethod
    def of(
        layer: Layer,
        p1: FeatureModel,
        encoder: Encoder,
        kernels: TrainingKernels,
        tol: float = 1e-6,
        noise_floor: float | None = None,
    ) -> ProfileObjective:
        """The objective of an encoder; noise_floor as in `train`."""
        mean, covariance = _moments(layer, p1, tol)
        floor = _floor(covariance) if noise_floor is None else noise_floor
        return ProfileObjective(layer, p1, kernels, _Coordinates(encoder, mean, covariance), tol, floor)

    def problem(self, x: Array) -> Problem:
        """The encoder at x with its best decoder and priors."""
        return self._problem(x)[1]

    def _problem(self, x: Array) -> tuple[SpectralExpectations, Problem]:
        encoder = self.coordinates.unpack(np.asarray(x, dtype=np.float64))
        law = SpectralExpectations(self.layer, self.p1, encoder, tol=self.tol * 0.3, gradient_tol=100 * self.tol)
        return law, Problem(self.layer, self.p1, best_model(law, self.kernels, encoder, self.floor), encoder)

    def evaluate(self, x: Array) -> tuple[Problem, Estimate, Array]:
        """The problem at x, its loss with an error, and the gradient."""
        law, problem = self._problem(x)
        loss = self.kernels.evaluate(law, problem)["L"]
        rows = [e.value for e in self.kernels.dL_dC(law, problem)]  # (t, n2 + 1) each, the last column for the bias
        own = [{name: float(e.value) for name, e in named.items()} for named in self.kernels.dL_domega(law, problem)]
        gradient = self.coordinates.pull_back(problem.encoder, [r[:, :-1] for r in rows], [r[:, -1] for r in rows], own)
        if not np.isfinite(loss.value) or not np.all(np.isfinite(gradient)):
            raise UnsupportedError(
                "the loss or its gradient is not finite at a trial encoder; give a smaller `tol` or a start"
            )
        return problem, loss, gradient

    def fun_and_jac(self, x: Array) -> tuple[float, Array]:
        """The loss in nats and its gradient."""
        key = np.asarray(x, dtype=np.float64).tobytes()
        if self._last is None or self._last[0] != key:
            _, loss, gradient = self.evaluate(x)
            self._last = (key, float(loss.value), gradient)
        return self._last[1], self._last[2].copy()

    def fun(self, x: Array) -> float:
        """The loss in nats."""
        return self.fun_and_jac(x)[0]

    def jac(self, x: Array) -> Array:
        """The gradient."""
        return self.fun_and_jac(x)[1]


class _Objective(ProfileObjective):
    """The objective during training: keeps the record that a checkpoint needs, and reports accepted steps."""

    def __init__(
        self,
        layer: Layer,
        p1: FeatureModel,
        kernels: TrainingKernels,
        coordinates: _Coordinates,
        tol: float,
        floor: float,
        begun: float,
        state: Training,
        progress: Callable[[Step], None] | None = None,
        keep: Callable[[Training, bool], None] = lambda state, now: None,
    ) -> None:
        super().__init__(layer, p1, kernels, coordinates, tol, floor)
        self.begun, self.state, self.progress, self.keep = begun, state, progress, keep
        self._asked, self._accepted = 0, state.accepted
        self._seen: dict[bytes, tuple[Problem, Estimate, float]] = {}

    def problem_at(self, x: Array) -> Problem:
        """The problem at a point where the loss was asked for; made again when the answer came from a checkpoint."""
        seen = self._seen.get(x.tobytes())
        return self.problem(x) if seen is None else seen[0]

    def __call__(self, x: Array) -> tuple[float, Array]:
        known = self.state.record.answer(self._asked, x)
        self._asked += 1
        if known is not None:
            return known
        problem, loss, gradient = self.evaluate(x)
        self._seen[x.tobytes()] = (problem, loss, float(np.abs(gradient).max(initial=0.0)))
        self.state.record.add(x, float(loss.value), gradient)
        return float(loss.value), gradient

    def accepted(self, x: Array) -> None:
        self._accepted += 1
        history = self.state.history
        if self._accepted <= len(history):  # a checkpoint's step
            return
        if x.tobytes() not in self._seen:  # recorded, and cut off before it was reported
            problem, loss, gradient = self.evaluate(x)
            self._seen[x.tobytes()] = (problem, loss, float(np.abs(gradient).max(initial=0.0)))
        problem, loss, norm = self._seen[x.tobytes()]
        self._seen = {x.tobytes(): self._seen[x.tobytes()]}
        step = Step(
            len(history) + 1,
            float(loss.value),
            float(loss.error),
            norm,
            problem.model.noise_std,
            self.tol,
            time.perf_counter() - self.begun,
        )
        history.append(step)
        logger.info("iteration %d: loss %.6f, gradient %.2e", step.iteration, step.loss, step.gradient_norm)
        self.keep(self.state, False)
        if self.progress is not None:
            self.progress(step)
