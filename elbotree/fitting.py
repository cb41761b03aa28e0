"""Train a layer's model, and keep what training found: the front of `runtime.training`, with the folder format of a fit
(cfg.json and model.safetensors). The optimiser, the loss and its gradient are elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import elbotree.compiler  # noqa: F401  (layers hold psi as text)
from elbotree.codegen import generate
from elbotree.evaluation import DEFAULT_TOL, kernels_for
from elbotree.runtime import encoding
from elbotree.runtime.arguments import (
    MOST_FEATURES,
    MOST_STARTS,
    check_count,
    check_kind,
    finite_number,
    generator,
    shortened,
)
from elbotree.runtime.bounds import Bound, bound_below
from elbotree.runtime.checkpoints import CheckpointFolder, Step, encoder_form, fingerprint
from elbotree.runtime.errors import InputError
from elbotree.runtime.float_range import overflow_told
from elbotree.runtime.joint import Joint
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Problem, check_reads
from elbotree.runtime.records import read_record
from elbotree.runtime.search import TRIED
from elbotree.runtime.storage import CFG, MODEL, load_folder, save_folder
from elbotree.runtime.training import DEAD, information, loss_terms, pruned, train
from elbotree.runtime.values import Term, Values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

FORMAT = "elbotree-fit/2"

#: Arrays that a problem's parts hold; in a fit's folder they stand in model.safetensors under their place's name.
_ARRAYS = ("A", "w", "u", "offset", "B", "C", "bias")


@dataclass(frozen=True)
class StartReport:
    """One start of a fit: its name, the loss that it reached (None where it was never tried) at the tolerance that its last
    leg ran at, its iterations, why the last leg ended, and whether it was kept."""

    name: str
    loss: float | None
    iterations: int
    message: str
    kept: bool


@dataclass(frozen=True)
class Fit:
    """What training found for one layer.

    problem      layer, input model, fitted model and encoder: what `evaluate` and `gradient` take
    values       the twelve terms at the fit
    history      one `Step` an accepted iteration: loss, error, terms, gradient_norm, noise_std, tol, seconds, duration
    message      why training ended
    starts       one `StartReport` a start
    information  E K_j of each feature in nats, (m2,): what it tells of x2 (the terms of R1)
    noise_floor  the least sigma2 that was allowed
    bound        the cross-entropy of the model and the entropy of f(x1), neither of which L may fall below, where they are
                 computable (`runtime.bounds`); None in folders of before
    """

    problem: Problem
    values: Values
    history: tuple[Step, ...]
    message: str
    starts: tuple[StartReport, ...] = ()
    information: tuple[float, ...] = ()
    noise_floor: float = 0.0
    bound: Bound | None = None

    @property
    def model(self) -> FeatureModel:
        """The feature model of the layer's output."""
        return self.problem.model

    @property
    def encoder(self) -> Encoder:
        """The encoder that was trained with it."""
        return self.problem.encoder

    def encode(self, x2: ArrayLike) -> tuple[Array, Array]:
        """Posterior means E[beta_j | x2] and variances of the features, (N, m2) each, of rows x2, (N, n2)."""
        return encoding.encode(kernels_for(self.problem.layer, self.encoder), self.problem, x2)

    def sample_features(self, x2: ArrayLike, rng: np.random.Generator | int | None = None) -> Array:
        """One draw of the features z2 ~ Q2( . | x2) for each row x2, (N, n2) -> (N, m2), from a generator or a seed; repeat a
        row for several."""
        return encoding.draw(kernels_for(self.problem.layer, self.encoder), self.problem, x2, generator(rng))

    def log_prob_bound(self, x2: ArrayLike) -> Array:
        """The ELBO of each row x2, (N, n2) -> (N,) in nats: a lower bound on log p(x2) under the model.

        ELBO(x2) = -(sum_j K_j + n2/2 log(2 pi sigma2^2) + (|x2 - mu2 - B2 s|^2 + sum_j H_jj V_j) / (2 sigma2^2)), with K, s, V at
        c_j = C_j x2 + bias_j. L is the mean of -ELBO over x2 = f(x1) (Lemma 2.2).
        """
        return encoding.bound(kernels_for(self.problem.layer, self.encoder), self.problem, x2)

    def sample(self, N: int, rng: np.random.Generator | int | None = None) -> Array:
        """N rows of x2 drawn from the model, (N, n2), from a generator or a seed."""
        return self.model.sample(N, rng)

    def marginal(self, v: ArrayLike) -> Joint:
        """The law of <v, x2> under the model, v (n2,), or of V x2, V (t, n2) with t <= 3: density, quantiles, tails."""
        return self.model.marginal(v)

    @property
    def dead(self) -> tuple[int, ...]:
        """Features that died: less than a thousandth of a nat of information about x2 (their posterior is their prior,
        and their column or the variance of their prior is near 0)."""
        return tuple(j for j, nats in enumerate(self.information) if nats < DEAD)

    def pruned(self) -> Fit:
        """The fit without its dead features, decoder, priors and sigma2 at the best for the others; itself where none died."""
        dead = self.dead
        if not dead:
            return self
        kernels, tol = kernels_for(self.problem.layer, self.encoder), self.values.tol or DEFAULT_TOL
        keep = [j for j in range(self.model.m) if j not in dead]
        problem = pruned(kernels, self.problem, keep, tol, self.noise_floor)
        names = ", ".join(str(j) for j in dead)
        return replace(
            self,
            problem=problem,
            values=Values.of(loss_terms(kernels, problem, tol), tol=tol, seconds=self.values.seconds),
            information=tuple(information(kernels, problem, tol).tolist()),
            bound=bound_below(problem),
            message=f"{self.message}; pruned of {_count(dead)} that died ({names})",
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """A figure of the features: each column of B2 (times the deviation of its prior), and each prior. Written to `path`
        where one is given (PNG, SVG or PDF by its ending). Needs the extra `plots`."""
        from elbotree.plots import features

        return features(self.model, path)

    def __repr__(self) -> str:
        loss = self.values["L"]
        died = f", {_count(self.dead)} died" if self.dead else ""
        return f"<Fit of {self.model.m} features{died}, L = {loss.value:.6g} ± {loss.error:.1e}, {self.message}>"

    def save(self, folder: str | Path) -> None:
        """Write cfg.json and model.safetensors into a folder, atomically. `elbotree.load` reads them back."""
        arrays: dict[str, Any] = {}
        cfg = {
            "format": FORMAT,
            "message": self.message,
            "values": self.values.to_dict(),
            "history": [asdict(step) for step in self.history],
            "starts": [asdict(start) for start in self.starts],
            "information": list(self.information),
            "noise_floor": self.noise_floor,
            "bound": None if self.bound is None else asdict(self.bound),
            "problem": _extract(self.problem.to_dict(), "", arrays),
        }
        save_folder(folder, cfg, arrays)


def _count(features: Sequence[int]) -> str:
    return f"{len(features)} feature{'s' if len(features) != 1 else ''}"


def fit(
    layer: Layer,
    p1: FeatureModel,
    features: int | None = None,
    family: str | Sequence[str] = "tilted",
    tol: float = 1e-4,
    *,
    iterations: int = 200,
    rounds: int = 4,
    prior: str | Sequence[str] = "parametric",
    starts: int | None = None,
    encoder: Encoder | None = None,
    noise_floor: float | None = None,
    progress: Callable[[Step], None] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    executor: Executor | None = None,
) -> Fit:
    """Learn a feature model and an encoder of f(x1), x1 ~ p1, by minimising the loss L, without sampling.

    The decoder, sigma2 and the priors have their best values in closed form given the encoder, so that L-BFGS moves the
    encoder alone, with the exact gradient. It starts at a coarse tolerance that is tightened down to a tenth of `tol`; at each
    an accepted step never raises the loss. The same call gives the same bytes, whatever the number of threads.

    Arguments
        layer, p1    the layer f and the model of its input
        features     number m2 of features; left out, those that the layer propagates and one along w
        family       posterior family of all features, or one name each: "tilted", "bernoulli", "normal", "normal_scale",
                     "exponential"
        tol          tolerance of each term of the loss, relative to max(1, |value|)
        iterations   bound on the iterations at one tolerance, from one set of bases
        rounds       how often, at one tolerance, the learned priors become the bases of tilted posteriors
        prior        of tilted features, one word for all or one each: "parametric" keeps the form of the propagated
                     feature's prior (Bernoulli, normal, its own points), "binned" gives it masses on equally spaced points
        starts       how many starts, the best of which is kept (`Fit.starts` reports all): the propagated features, or
                     `encoder`; a pursuit of the least Gaussian directions of f(x1), from the rows of `encoder` where one
                     is given; then random encoders, the same ones at each call. Left out, `encoder` alone where it is
                     given, else the best of 78 encoders (the propagated features, others about them, random ones, some
                     with features renewed), which are tried on a few thousand points of f(x1) before the loss is asked:
                     up to four of them, beyond nine features the propagated one and at most one other; families that do
                     not live on points have random encoders instead (12 for two features, 1 for nine)
        encoder      where to start instead of the propagated features; their number, families and bases are its own
        noise_floor  the least sigma2 allowed; left out, a thousandth of the output's root mean square deviation, or less
                     where Gaussian noise of full rank bounds the loss. Where f(x1) has no density on R^n2 the loss is
                     unbounded below as sigma2 -> 0: it ends on the floor, and the message says so
        progress     called with each accepted `Step`
        checkpoint   folder to keep the state of the run in, written atomically after each accepted iteration, so that an
                     interruption at any moment loses no more than the iteration under way
        resume       go on from that checkpoint, to the same bytes as without the interruption (same machine, same versions
                     of numpy and scipy: floating-point sums depend on them); start anew where there is
                     none yet. The arguments must be the ones it was begun with
        executor     any `concurrent.futures` executor, to make the sums over pairs of features, as in `evaluate`: the
                     bytes are the same, and it may be another one after an interruption

    Returns a `Fit`. Raises InputError for families or counts that do not fit, and ExecutorError where the executor is lost (the
    checkpoint stays).
    The paper: section 2.1.1 and Lemma 2.2 (what is minimised), Theorem 3.1 (that it can be computed).
    """
    check_kind(layer, "layer", Layer, "; fit_network(layers, p1) models a list of them")
    check_kind(p1, "p1", FeatureModel, "; elbotree.fit_input makes one of data")
    if p1.n != layer.n1:
        raise InputError(
            f"`p1` is of x1 in R^{p1.n}; the layer takes n1 = {layer.n1} coordinates, so `p1.B` must have {layer.n1} rows"
        )
    _check_counts(features, starts, iterations, rounds)
    tol = finite_number(tol, "tol")
    if not 1e-12 < tol < 1:
        raise InputError(f"`tol` is {tol!r}; it must lie between 1e-12 and 1, such as 1e-4")
    if noise_floor is not None:
        noise_floor = finite_number(noise_floor, "noise_floor")
        if noise_floor <= 0:
            raise InputError(f"`noise_floor` is {noise_floor!r}; it must be greater than 0, or be left out")
    if progress is not None and not callable(progress):
        raise InputError(f"`progress` is {shortened(progress)}; it must be a function of a `Step`")
    families, forms = _words("family", family), _words("prior", prior)
    if encoder is not None:
        encoder = _given_encoder(encoder, layer, features, families, forms)
    names = families if encoder is None else [q.family for q in encoder]
    place = None
    if checkpoint is not None:
        start = None if encoder is None else encoder_form(encoder)
        settings = {
            **fingerprint(layer, p1),
            "features": features,
            "family": families,
            "tol": tol,
            "iterations": iterations,
            "rounds": rounds,
            "prior": forms,
            "starts": starts,
            "noise_floor": noise_floor,
            "encoder": start,
        }
        # L-BFGS's memory in binary, the encoder of each start as text, and the history
        count = features if features is not None else len(p1.priors) + 1
        number = starts if starts is not None else TRIED
        largest = count * (2 * layer.n2 + 3) * (8 * 42 + 25 * number) + 800 * iterations * rounds * (number + 2)
        place = CheckpointFolder(checkpoint, settings, largest)
    elif resume:
        raise InputError("`resume` needs `checkpoint`, the folder to go on from")
    with overflow_told("the fit"), contextlib.nullcontext() if place is None else place.held():
        state = None
        if place is not None:
            if place.holds_one and not resume:
                raise InputError(
                    f"{checkpoint} holds a checkpoint; go on from it with resume=True (--resume), or give another folder"
                )
            state = place.load()
        found = train(
            layer,
            p1,
            generate(layer.psi, names or "tilted"),
            features=features,
            family=family,
            tol=tol,
            iterations=iterations,
            rounds=rounds,
            prior=prior,
            starts=starts,
            encoder=encoder,
            noise_floor=noise_floor,
            progress=progress,
            checkpoint=None if place is None else place.save,
            resume=state,
            executor=executor,
        )
    seconds = found.history[-1].seconds if found.history else None
    values = Values.of(found.terms, tol=tol, seconds=seconds)
    reports = tuple(StartReport(a.name, a.loss, a.iterations, a.message, a is found.kept) for a in found.starts)
    nats = tuple(float(v) for v in found.information)
    bound = bound_below(found.problem)
    broken = bound.broken_by(values["L"].value, values["L"].error)
    message = found.message + (f"; {broken}: its error is estimated too small, give another `tol`" if broken else "")
    return Fit(found.problem, values, found.history, message, reports, nats, found.noise_floor, bound)


def _check_counts(features: int | None, starts: int | None, iterations: int, rounds: int) -> None:
    check_count("features", features, 0, MOST_FEATURES)
    check_count("starts", starts, 1, MOST_STARTS)
    check_count("iterations", iterations, 1)
    check_count("rounds", rounds, 1)


def _words(name: str, given: object) -> list[str]:
    """One word, or several."""
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise InputError(f"`{name}` is {shortened(given)}; it must be one word, or a list with one for each feature")
    return list(words)


def _given_encoder(
    encoder: object, layer: Layer, features: int | None, families: Sequence[str], forms: Sequence[str]
) -> Encoder:
    """The encoder that training starts at. Raises InputError for one that reads another layer, and for arguments that say otherwise
    than it does."""
    if isinstance(encoder, str) or not isinstance(encoder, Iterable):
        raise InputError(f"`encoder` is {shortened(encoder)}; it must be an elbotree.Encoder")
    encoder = Encoder(encoder)
    for j, q in enumerate(encoder):
        check_reads(q, f"encoder[{j}]", layer.n2)
    own = [q.family for q in encoder]
    if features not in (None, len(own)):
        raise InputError(f"`features` is {features}, and `encoder` has {len(own)}; leave one of the two out")
    said = [*families] * (len(own) if len(families) == 1 else 1)
    if families != ["tilted"] and said != own:
        raise InputError(f"`family` is {', '.join(families)}, and `encoder` has {', '.join(own)}; leave `family` out")
    if any(form != "parametric" for form in forms):
        raise InputError(
            f"`prior` is {', '.join(forms)}; of an `encoder` that is given, the bases of its tilted posteriors say that"
        )
    return encoder


def load(folder: str | Path) -> Fit:
    """Read a fit that `Fit.save` wrote. Raises InputError that names the file and what is wrong with it."""
    folder = Path(folder)
    cfg, _ = load_folder(folder)
    place = folder / CFG
    if cfg.get("format") != FORMAT:
        raise InputError(f"{place}: `format` is {cfg.get('format')!r}; this version reads {FORMAT!r}")
    try:
        values = _read_values(cfg["values"])
        history = tuple(read_record(Step, step, f"history[{i}]") for i, step in enumerate(cfg["history"]))
        problem = Problem.from_dict(cfg["problem"], folder=folder)
        starts = tuple(read_record(StartReport, start, f"starts[{i}]") for i, start in enumerate(cfg["starts"]))
        nats = tuple(finite_number(v, f"information[{j}]") for j, v in enumerate(cfg["information"]))
        if nats and len(nats) != problem.model.m:
            raise InputError(f"`information` has {len(nats)} numbers; the model has m2 = {problem.model.m} features")
        return Fit(
            problem,
            values,
            history,
            str(cfg["message"]),
            starts,
            nats,
            finite_number(cfg["noise_floor"], "noise_floor"),
            None if cfg.get("bound") is None else read_record(Bound, cfg["bound"], "bound"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place} is not the {CFG} of a fit: {type(error).__name__} at {error}; save it again"
        ) from None
    except InputError as error:
        raise type(error)(f"{place}: {error}") from None


def _extract(part: Any, place: str, arrays: dict[str, Any]) -> Any:
    """The same JSON with every array moved to `arrays` and a reference to the file in its place."""
    if isinstance(part, list):
        return [_extract(item, f"{place}[{at}]", arrays) for at, item in enumerate(part)]
    if not isinstance(part, dict):
        return part
    out = {}
    for key, value in part.items():
        inner = f"{place}.{key}" if place else key
        if key in _ARRAYS and isinstance(value, list):
            arrays[inner] = np.asarray(value, dtype=np.float64)
            out[key] = {"file": MODEL, "key": inner}
        else:
            out[key] = _extract(value, inner, arrays)
    return out


def _read_values(form: Mapping[str, Any]) -> Values:
    def number(value: object, name: str) -> float | None:
        return None if value is None else finite_number(value, f"values.{name}")

    terms = {
        name: Term(
            str(name),
            finite_number(term["value"], f"values.terms.{name}.value"),
            finite_number(term["error"], f"values.terms.{name}.error"),
            number(term.get("check"), f"terms.{name}.check"),
            number(term.get("check_error"), f"terms.{name}.check_error"),
        )
        for name, term in form["terms"].items()
    }
    tol, seconds, samples = (number(form.get(name), name) for name in ("tol", "seconds", "samples"))
    return Values(
        terms, tol=tol, method=str(form["method"]), seconds=seconds, samples=None if samples is None else int(samples)
    )
