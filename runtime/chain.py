"""Chains of layers: a feature model for every layer of a network, each made from the model before it, and how far the
chain has drifted from the network, measured on samples.

Method "fit" sends the features through in closed form (`propagation`: mean and covariance exact at every step under the
model before it) and, where iterations are asked for, trains each layer's model from there (`training`). The baselines
have the same interface: "mean-prop" (a point), "cov-prop" (Gaussian moments), "sampling" (the normal law of the mean and
the covariance of samples). What psi is, and where kernels come from, is not here.

What drifts: a unit that reads others takes features for independent of each other that are only uncorrelated. The units of
one hidden layer do not read each other, so that the first hidden layer keeps its mean and covariance exactly.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.arguments import (
    MOST_FEATURES,
    MOST_SAMPLES,
    check_count,
    check_kind,
    check_seed,
    finite_number,
    read_only_array,
    real_array,
    shortened,
)
from elbotree.runtime.chain_checkpoints import ChainFolder, Done, Loss
from elbotree.runtime.drift import TRUSTED, Drift, measure_drift
from elbotree.runtime.encoding import EncodingKernels, bound
from elbotree.runtime.errors import InputError, ToleranceError, UnsupportedError
from elbotree.runtime.float_range import overflow_told
from elbotree.runtime.importance import SampledTail, sampled_tail
from elbotree.runtime.joint import Joint
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.prior_base import nearest
from elbotree.runtime.priors import Normal
from elbotree.runtime.profile import TrainingKernels
from elbotree.runtime.propagation import Propagation, gaussian, gaussian_of
from elbotree.runtime.starts import Start, first_encoder
from elbotree.runtime.tails import TailProbability
from elbotree.runtime.text_table import columns
from elbotree.runtime.training import train

Array = NDArray[np.float64]
logger = logging.getLogger(__name__)

METHODS = ("fit", "mean-prop", "cov-prop", "sampling")


class ChainKernels(TrainingKernels, EncodingKernels, Protocol):
    """What a chain needs of a generated kernel module."""


KernelFactory = Callable[[str, Sequence[str]], ChainKernels]


@dataclass(frozen=True)
class ChainTail:
    """P(<v, x> > threshold) under the last model, and how far that model is from the network.

    probability  of the model; its error says nothing about the network
    drift        of the last layer, None where it was not measured
    checks       the network's own probability by importance sampling, one a threshold; empty where none were asked for
    """

    probability: TailProbability
    drift: Drift | None
    checks: tuple[SampledTail, ...] = ()

    @property
    def value(self) -> Array:
        """P under the model."""
        return self.probability.value

    @property
    def log_value(self) -> Array:
        """log P under the model."""
        return self.probability.log_value

    @property
    def error(self) -> Array:
        """A bound on the error of `value` as a probability of the model."""
        return self.probability.error

    def __str__(self) -> str:
        drift = "drift not measured (give check_samples)" if self.drift is None else str(self.drift)
        checks = "".join(f"; {check}" for check in self.checks)
        return f"{self.probability} under the last model{checks}; {drift}"


@dataclass(frozen=True, eq=False)
class Chain:
    """A feature model for every layer of a network.

    layers   the network
    p1       the model of its input
    models   one a layer, of that layer's output
    losses   one a layer: L where the layer's model was trained, else None
    drift    one a layer: against samples of the network, None where no samples were asked for
    method   how the models were made
    notes    what was given up on the way: features made normal, noise added, layers where training did not work
    """

    layers: tuple[Layer, ...]
    p1: FeatureModel
    models: tuple[FeatureModel, ...]
    losses: tuple[Loss | None, ...]
    drift: tuple[Drift | None, ...]
    method: str
    notes: tuple[str, ...] = ()
    seconds: float | None = None

    @property
    def trusted(self) -> int | None:
        """How many layers, from the first on, have a model within `TRUSTED`; None where drift was not measured."""
        if not self.drift or self.drift[0] is None:
            return None
        good = [d is not None and d.trust for d in self.drift]
        return good.index(False) if False in good else len(good)

    def marginal(self, v: ArrayLike) -> Joint:
        """The law of <v, x> under the last layer's model, v (n,), or of V x, V (t, n) with t <= 3: density, quantiles, tails.
        Raises InputError for a wrong shape."""
        return self.models[-1].marginal(v)

    def tail(
        self, v: ArrayLike, x: ArrayLike, tol: float = 1e-10, *, check_samples: int | None = None, seed: int = 0
    ) -> ChainTail:
        """P(<v, x_last> > x) under the last layer's model, with its drift beside it. The model's error is within tol of
        the probability; the network's probability is as near as the drift says, and tails feel drift first.

        check_samples  rows for an unbiased estimate of the network's own probability, one a threshold, by importance
                       sampling from the exact input law: see `SampledTail`

        Raises InputError for a wrong shape of v, and UnsupportedError for a model without noise ("mean-prop").
        """
        model = self.models[-1]
        row = read_only_array(v, "v", 1)
        if row.shape != (model.n,):
            raise InputError(
                f"`v` has shape {row.shape}; the last layer has {model.n} outputs, so it must be ({model.n},)"
            )
        check_count("check_samples", check_samples, 100, MOST_SAMPLES)
        found = model.marginal(row).tail(x, tol)
        checks = []
        if check_samples is not None:
            for point in real_array(x, "x").ravel().tolist():
                checks.append(sampled_tail(self.layers, self.p1, row, point, check_samples, seed))
        return ChainTail(found, self.drift[-1], tuple(checks))

    def __repr__(self) -> str:
        return f"<Chain of {len(self.layers)} layers by {self.method}, {self.models[-1].n} outputs>"

    def __str__(self) -> str:
        return chain_table(self)


def chain_table(chain: Chain) -> str:
    """One line a layer: psi, width, features (those that are not normal); of trained layers L, its gap and the same bound
    on samples of the network; drift, with the excess in nats, and trust. Columns without an entry are left out."""
    lines: list[tuple[str, ...]] = [
        ("layer", "psi", "width", "features", "L", "gap", "samples", "mean", "covariance", "W1", "nats", "trust")
    ]
    for i, (layer, model, loss, drift) in enumerate(
        zip(chain.layers, chain.models, chain.losses, chain.drift, strict=True)
    ):
        psi = layer.activation.text if layer.w.any() else ""
        shaped = sum(not isinstance(p, Normal) for p in model.priors)
        nats = ("", "", "")
        if loss is not None:
            nats = (f"{loss.value:.4f}", _number(loss.gap, "+.4f"), _number(loss.cross_entropy, ".4f"))
        seen = ("", "", "", "", "not measured")
        if drift is not None:
            off = (f"{drift.mean:.3f}", f"{drift.covariance:.3f}", f"{drift.wasserstein:.3f}")
            seen = (*off, _number(drift.excess, ".3f"), "yes" if drift.trust else "no")
        lines.append((str(i + 1), psi, str(layer.n2), str(shaped), *nats, *seen))
    empty = [column for column in range(len(lines[0])) if not any(line[column] for line in lines[1:])]
    lines = [tuple(cell for column, cell in enumerate(line) if column not in empty) for line in lines]
    head = f"{len(chain.layers)} layers by {chain.method}" + (
        f", trusted up to layer {chain.trusted}" if chain.trusted is not None else ""
    )
    limits = ", ".join(f"{name} {limit:g}" for name, limit in TRUSTED.items())
    foot = []
    if chain.drift[0]:
        foot = [
            f"trust: {limits}; mean and W1 (of the worst coordinate) in standard deviations, covariance relative; nats: a row "
            "beyond what Gaussian moments of the network's own rows cost"
        ]
    return "\n".join([head, *columns(lines), *foot, *(f"note: {note}" for note in chain.notes)])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# ------------------------------------------------------------------ making a chain


def build_chain(
    layers: Sequence[Layer],
    p1: FeatureModel,
    kernels: KernelFactory,
    *,
    method: str = "fit",
    tol: float = 1e-3,
    features: int | None = 24,
    iterations: int = 0,
    noise_floor: float = 0.02,
    samples: int = 100_000,
    check_samples: int | None = None,
    seed: int = 0,
    progress: Callable[[int, FeatureModel], None] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    executor: Executor | None = None,
) -> Chain:
    """See `elbotree.fit_network`; `kernels(psi, families)` gives the generated kernel module for training."""
    layers = tuple(layers) if isinstance(layers, Sequence) else layers
    tol = finite_number(tol, "tol")
    _check(layers, p1, method, tol, features, iterations, noise_floor, samples, check_samples, seed)
    begun = time.perf_counter()
    settings = {
        "method": method,
        "tol": tol,
        "features": features,
        "iterations": iterations,
        "noise_floor": noise_floor,
        "check_samples": check_samples,
        "seed": seed,
    }
    folder = _folder(checkpoint, resume, layers, p1, {**settings, "samples": samples})
    drift: list[Drift | None] = []
    found: list[Done] = []
    with overflow_told("the chain"), contextlib.nullcontext() if folder is None else folder.held():
        _refuse_to_overwrite(folder, resume)
        truth = _Truth(p1, check_samples, seed)
        if method in ("fit", "cov-prop"):
            maker = _Maker(layers, p1, kernels, method, tol, features, iterations, noise_floor, folder, truth, executor)
            step = maker.step
        else:
            step = _Baseline(p1, method, samples, seed).step
        for i, layer in enumerate(layers):
            truth.through(layer)
            done, new = step(i, layer)
            drift.append(truth.drift(done.model))
            found.append(done)
            logger.info("layer %d of %d: %d features", i + 1, len(layers), done.model.m)
            if progress is not None and new:
                progress(i + 1, done.model)
    seconds = time.perf_counter() - begun
    models, losses = tuple(done.model for done in found), tuple(done.loss for done in found)
    notes = _notes(found, method, features, noise_floor)
    return Chain(layers, p1, models, losses, tuple(drift), method, notes, seconds)


def _folder(
    checkpoint: str | Path | None, resume: bool, layers: Sequence[Layer], p1: FeatureModel, settings: dict[str, object]
) -> ChainFolder | None:
    if checkpoint is None:
        if resume:
            raise InputError("`resume` needs `checkpoint`, the folder to go on from")
        return None
    return ChainFolder(checkpoint, layers, p1, settings)


def _refuse_to_overwrite(folder: ChainFolder | None, resume: bool) -> None:
    if folder is not None and folder.holds_one and not resume:
        raise InputError(
            f"{folder.folder} holds a checkpoint; go on from it with resume=True (--resume), or give another folder"
        )


def _notes(found: Sequence[Done], method: str, features: int | None, noise_floor: float) -> tuple[str, ...]:
    notes = [done.note for done in found if done.note]
    made_normal = max(done.made_normal for done in found)
    if method == "fit" and made_normal > 0:
        notes.append(f"features beyond {features} were made normal: at most {made_normal:.2%} of a layer's variance")
    added = sum(done.added_noise > 0 for done in found)
    if added:
        notes.append(
            f"b had too little noise in {added} layers: {noise_floor:g} of its standard deviation was added there"
        )
    return tuple(notes)


class _Truth:
    """Rows of the input model on their way through the true network; none where none were asked for."""

    def __init__(self, p1: FeatureModel, samples: int | None, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.rows = None if samples is None else p1.sample(samples, self.rng)

    def through(self, layer: Layer) -> None:
        """One layer further."""
        if self.rows is not None:
            self.rows = layer(self.rows)

    def drift(self, model: FeatureModel) -> Drift | None:
        """The model of the layer that the rows have reached, against them."""
        return None if self.rows is None else measure_drift(self.rows, model, self.rng)


class _Baseline:
    """Method "mean-prop" or "sampling", layer by layer."""

    def __init__(self, p1: FeatureModel, method: str, samples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.rows = p1.sample(samples, rng) if method == "sampling" else p1.mean()[None]

    def step(self, i: int, layer: Layer) -> tuple[Done, bool]:
        """The model of a layer's output."""
        self.rows = layer(self.rows)
        mean = self.rows.mean(axis=0)
        if len(self.rows) == 1:
            model = FeatureModel(np.zeros((layer.n2, 0)), [], 0.0, mean)
        else:
            model = gaussian_of(mean, np.atleast_2d(np.cov(self.rows.T)))
        return Done(model, None, 0, 0.0, 0.0, ""), True


class _Maker:
    """Methods "fit" and "cov-prop", layer by layer, from a checkpoint where there is one."""

    def __init__(
        self,
        layers: Sequence[Layer],
        p1: FeatureModel,
        kernels: KernelFactory,
        method: str,
        tol: float,
        features: int | None,
        iterations: int,
        noise_floor: float,
        folder: ChainFolder | None,
        truth: _Truth,
        executor: Executor | None,
    ) -> None:
        self.kernels, self.tol, self.features, self.folder, self.truth = kernels, tol, features, folder, truth
        self.iterations, self.executor = iterations if method == "fit" else 0, executor
        first = gaussian(p1) if method == "cov-prop" else p1
        bound_on = 0 if method == "cov-prop" else features
        self.state = Propagation(first, features=bound_on, noise_floor=noise_floor, tol=min(1e-6, tol * 1e-3))
        self.known = [] if folder is None else folder.load(len(layers))
        self.block = 0
        if self.known:  # the block under way is gone through again, to stand where it stood
            self.block = self.known[-1].block
            if self.block:
                self.state.restart(self.known[self.block - 1].model)
            for layer in layers[self.block : len(self.known)]:
                self.state.through(layer)

    def step(self, i: int, layer: Layer) -> tuple[Done, bool]:
        """The model of a layer's output, and whether it was made now."""
        if i < len(self.known):
            return self.known[i], False
        before = self.state.model
        if self.state.begins_a_block(layer):
            self.block = i
        step = self.state.through(layer)
        done = Done(step.model, None, self.block, step.made_normal, step.added_noise, "")
        if self.iterations and not step.affine:
            try:
                model, loss = self._trained(i, layer, before, step.model)
                self.state.restart(model)
                self.block = i + 1
                done = Done(model, loss, self.block, step.made_normal, step.added_noise, "")
            except (UnsupportedError, ToleranceError) as error:
                note = f"layer {i + 1} was not trained, its features are the propagated ones: {error}"
                done = replace(done, note=note)
        if self.folder is not None:
            self.folder.save(i, done)
        return done, True

    def _trained(self, i: int, layer: Layer, before: FeatureModel, start: FeatureModel) -> tuple[FeatureModel, Loss]:
        """A trained model of one layer, started at the propagated features."""
        sizes = np.array([p.variance() for p in start.priors]) * (start.B**2).sum(axis=0)
        order = np.sort(np.argsort(-sizes, kind="stable")[: start.m if self.features is None else self.features])
        order = order[sizes[order] > 1e-9 * max(float(sizes.sum()), 1e-300)]
        priors = tuple(start.priors[j] for j in order)
        first, second, _ = OutputLaw(layer, before, self.tol * 1e-2).f_moments
        covariance = second - np.outer(first, first)
        encoder = first_encoder(Start(start.B[:, order], priors), first, covariance, ["tilted"] * len(order))
        psi = layer.psi if isinstance(layer.psi, str) else layer.psi.text
        made = self.kernels(psi, ["tilted"])
        keep = state = None
        if self.folder is not None:
            largest = len(order) * (2 * layer.n2 + 3) * 400 + 3000 * self.iterations  # L-BFGS's memory and the history
            place = self.folder.training(i, layer, before, largest)
            state, keep = place.load(), place.save
        fitted = train(
            layer,
            before,
            made,
            encoder=encoder,
            tol=self.tol,
            iterations=self.iterations,
            rounds=1,
            checkpoint=keep,
            resume=state,
            executor=self.executor,
        )
        values = {name: float(term.value) for name, term in fitted.terms.items()}
        errors = {name: float(term.error) for name, term in fitted.terms.items()}
        sign, logdet = np.linalg.slogdet(covariance)
        singular = sign <= 0 or np.linalg.cond(covariance) > 1e12
        gap = None if singular else float(values["L"] - 0.5 * (len(first) * np.log(2 * np.pi * np.e) + logdet))
        rows = self.truth.rows
        cross = None if rows is None else -float(bound(made, fitted.problem, rows).mean())
        found = fitted.problem.model
        model = FeatureModel(np.ascontiguousarray(found.B), found.priors, found.noise_std, found.offset)
        return model, Loss(values, errors, gap, cross, len(fitted.history))


def check_layers(layers: object, p1: object) -> None:
    """InputError unless `layers` are a chain of layers from what `p1` models on."""
    if not isinstance(layers, Sequence):
        raise InputError(
            f"`layers` is {shortened(layers)}; it must be a list of layers, which elbotree.compile_network(network) makes"
        )
    check_kind(p1, "p1", FeatureModel, "; elbotree.fit_input makes one of data")
    assert isinstance(p1, FeatureModel)
    width, source = p1.n, "`p1` models"
    for i, layer in enumerate(layers):
        check_kind(layer, f"layers[{i}]", Layer, ", which elbotree.compile_network(network) makes")
        if layer.n1 != width:
            raise InputError(f"`layers[{i}]` takes n1 = {layer.n1} inputs; {source} {width} coordinates")
        width, source = layer.n2, f"`layers[{i}]` returns"


def _check(
    layers: Sequence[Layer],
    p1: FeatureModel,
    method: object,
    tol: float,
    features: int | None,
    iterations: int,
    noise_floor: float,
    samples: int,
    check_samples: int | None,
    seed: int,
) -> None:
    """InputError for whatever does not fit together."""
    check_layers(layers, p1)
    if not layers:
        raise InputError("`layers` is empty; it must be a list of one or more layers")
    if method not in METHODS:
        raise InputError(f"`method` is {method!r}, which is none of the methods{nearest(method, METHODS)}")
    if not 1e-9 < tol < 1:
        raise InputError(f"`tol` is {tol!r}; it must lie between 1e-9 and 1, such as 1e-3")
    if not 0 < noise_floor < 1:
        raise InputError(f"`noise_floor` is {noise_floor!r}; it must lie between 0 and 1, such as 0.02")
    check_seed(seed)
    check_count("features", features, 0, MOST_FEATURES)
    check_count("iterations", iterations, 0)
    check_count("samples", samples, 2, MOST_SAMPLES)
    check_count("check_samples", check_samples, 100, MOST_SAMPLES)
