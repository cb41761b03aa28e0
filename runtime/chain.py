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

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.arguments import read_only_array, shortened
from elbotree.runtime.errors import InputError, ToleranceError, UnsupportedError
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.prior_base import nearest
from elbotree.runtime.priors import Normal
from elbotree.runtime.profile import TrainingKernels
from elbotree.runtime.propagation import Propagation, gaussian, gaussian_of
from elbotree.runtime.starts import Start, first_encoder
from elbotree.runtime.tails import TailProbability
from elbotree.runtime.training import train

Array = NDArray[np.float64]
KernelFactory = Callable[[str, Sequence[str]], TrainingKernels]
logger = logging.getLogger(__name__)

METHODS = ("fit", "mean-prop", "cov-prop", "sampling")

#: The drift up to which a layer's model is trusted: mean in standard deviations, covariance relative in the Frobenius
#: norm, Wasserstein-1 of the worst coordinate in standard deviations.
TRUSTED = {"mean": 0.1, "covariance": 0.1, "wasserstein": 0.1}


@dataclass(frozen=True)
class Loss:
    """The loss L of a trained layer, in nats.

    value, error  L and an estimate of its absolute error. L is the model's cross-entropy bound against the model before
                  it, not against the network
    gap           L minus the entropy of the normal law with f(x1)'s mean and covariance, which is what the best Gaussian
                  model reaches: below 0 the features say more than Gaussian moments. None where the covariance is singular
    iterations    of the optimiser
    """

    value: float
    error: float
    gap: float | None
    iterations: int


@dataclass(frozen=True)
class Drift:
    """How far a layer's model is from samples of the true network.

    mean         the largest |difference of the means| of a coordinate, in its standard deviations
    covariance   Frobenius norm of the difference of the covariances, relative to that of the samples' covariance
    wasserstein  the largest Wasserstein-1 distance of a coordinate, in its standard deviations
    unit         the coordinate it belongs to
    samples      how many rows were compared; all three contain their sampling error, about 1 / sqrt(samples)
    """

    mean: float
    covariance: float
    wasserstein: float
    unit: int
    samples: int

    @property
    def trust(self) -> bool:
        """Whether all three stay within `TRUSTED`."""
        return (
            self.mean <= TRUSTED["mean"]
            and self.covariance <= TRUSTED["covariance"]
            and self.wasserstein <= TRUSTED["wasserstein"]
        )

    def __str__(self) -> str:
        return (
            f"mean off by {self.mean:.3f} standard deviations, covariance by {self.covariance:.1%}, Wasserstein-1 up to "
            f"{self.wasserstein:.3f} standard deviations (coordinate {self.unit}): "
            f"{'trusted' if self.trust else 'not trusted'}"
        )


@dataclass(frozen=True)
class ChainTail:
    """P(<v, x> > threshold) under the last model, and how far that model is from the network.

    probability  of the model; its error says nothing about the network
    drift        of the last layer, None where it was not measured
    """

    probability: TailProbability
    drift: Drift | None

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
        return f"P = {self.value} ± {self.error} under the last model; {drift}"


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

    def tail(self, v: ArrayLike, x: ArrayLike, tol: float = 1e-10) -> ChainTail:
        """P(<v, x_last> > x) under the last layer's model, with its drift beside it. The model's error is within tol of
        the probability; the network's probability is as near as the drift says, and tails feel drift first.

        Raises InputError for a wrong shape of v, and UnsupportedError for a model without noise ("mean-prop").
        """
        model = self.models[-1]
        row = read_only_array(v, "v", 1)
        if row.shape != (model.n,):
            raise InputError(
                f"`v` has shape {row.shape}; the last layer has {model.n} outputs, so it must be ({model.n},)"
            )
        return ChainTail(model.marginal(row).tail(x, tol), self.drift[-1])

    def __repr__(self) -> str:
        return f"<Chain of {len(self.layers)} layers by {self.method}, {self.models[-1].n} outputs>"

    def __str__(self) -> str:
        return chain_table(self)


def chain_table(chain: Chain) -> str:
    """One line a layer: psi, width, features (those that are not normal), L and its gap, drift and trust."""
    lines: list[tuple[str, ...]] = [
        ("layer", "psi", "width", "features", "L", "gap", "mean", "covariance", "W1", "trust")
    ]
    for i, (layer, model, loss, drift) in enumerate(
        zip(chain.layers, chain.models, chain.losses, chain.drift, strict=True)
    ):
        psi = layer.activation.text if layer.w.any() else ""
        shaped = sum(not isinstance(p, Normal) for p in model.priors)
        nats = ("", "") if loss is None else (f"{loss.value:.4f}", "" if loss.gap is None else f"{loss.gap:+.4f}")
        seen = ("", "", "", "not measured")
        if drift is not None:
            seen = (f"{drift.mean:.3f}", f"{drift.covariance:.3f}", f"{drift.wasserstein:.3f}", _word(drift))
        lines.append((str(i + 1), psi, str(layer.n2), str(shaped), *nats, *seen))
    empty = [column for column in range(10) if not any(line[column] for line in lines[1:])]
    lines = [tuple(cell for column, cell in enumerate(line) if column not in empty) for line in lines]
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(text.ljust(size) for text, size in zip(line, sizes, strict=True)).rstrip() for line in lines]
    head = f"{len(chain.layers)} layers by {chain.method}" + (
        f", trusted up to layer {chain.trusted}" if chain.trusted is not None else ""
    )
    limits = ", ".join(f"{name} {limit:g}" for name, limit in TRUSTED.items())
    foot = [f"trust: {limits}; mean and W1 in standard deviations, covariance relative"] if chain.drift[0] else []
    return "\n".join([head, *table, *foot, *(f"note: {note}" for note in chain.notes)])


def _word(drift: Drift) -> str:
    return "yes" if drift.trust else "no"


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
) -> Chain:
    """See `elbotree.fit_network`; `kernels(psi, families)` gives the generated kernel module for training."""
    layers = tuple(layers) if isinstance(layers, Sequence) else layers
    _check(layers, p1, method, tol, features, iterations, noise_floor, samples, check_samples)
    begun = time.perf_counter()
    rng = np.random.default_rng(seed)
    notes: list[str] = []
    models: list[FeatureModel] = []
    losses: list[Loss | None] = []
    rows = p1.sample(samples, rng) if method == "sampling" else None
    before = gaussian(p1) if method == "cov-prop" else p1
    state = Propagation(
        before,
        features=0 if method == "cov-prop" else features,
        noise_floor=noise_floor,
        tol=min(1e-6, tol * 1e-3),
    )
    made_normal, added = 0.0, 0
    for i, layer in enumerate(layers):
        loss = None
        if method == "mean-prop":
            mean = layer((before.mean())[None])[0]
            model = FeatureModel(np.zeros((layer.n2, 0)), [], 0.0, mean)
        elif rows is not None:
            rows = layer(rows)
            model = gaussian_of(rows.mean(axis=0), np.atleast_2d(np.cov(rows.T)))
        else:
            step = state.through(layer)
            model, made_normal = step.model, max(made_normal, step.made_normal)
            added += step.added_noise > 0
            if method == "fit" and iterations > 0 and not step.affine:
                model, loss = _trained(layer, before, model, kernels, features, iterations, tol, i, notes)
                state.restart(model)
        models.append(model)
        losses.append(loss)
        before = model
        logger.info("layer %d of %d: %d features", i + 1, len(layers), model.m)
        if progress is not None:
            progress(i + 1, model)
    if method == "fit" and made_normal > 0:
        notes.append(f"features beyond {features} were made normal: at most {made_normal:.2%} of a layer's variance")
    if added:
        notes.append(
            f"b had too little noise in {added} layers: {noise_floor:g} of its standard deviation was added there"
        )
    drift: tuple[Drift | None, ...] = (None,) * len(layers)
    if check_samples is not None:
        drift = measure_drift(layers, p1, models, check_samples, np.random.default_rng([seed, 1]))
    seconds = time.perf_counter() - begun
    return Chain(layers, p1, tuple(models), tuple(losses), drift, method, tuple(notes), seconds)


def measure_drift(
    layers: Sequence[Layer], p1: FeatureModel, models: Sequence[FeatureModel], samples: int, rng: np.random.Generator
) -> tuple[Drift, ...]:
    """The models against `samples` rows of p1 sent through the layers."""
    rows = p1.sample(samples, rng)
    out = []
    for layer, model in zip(layers, models, strict=True):
        rows = layer(rows)
        mean, covariance = rows.mean(axis=0), np.atleast_2d(np.cov(rows.T))
        # a coordinate that hardly moves is measured against the layer's size: it has no scale of its own
        size = float(np.sqrt(np.trace(covariance) / len(mean)))
        std = np.maximum(np.sqrt(np.diag(covariance)), max(1e-6 * size, 1e-300))
        drawn = np.sort(model.sample(samples, rng), axis=0)
        distance = np.abs(np.sort(rows, axis=0) - drawn).mean(axis=0) / std
        unit = int(distance.argmax())
        off = float(np.linalg.norm(model.covariance() - covariance) / max(float(np.linalg.norm(covariance)), 1e-300))
        means = float((np.abs(model.mean() - mean) / std).max())
        out.append(Drift(means, off, float(distance[unit]), unit, samples))
    return tuple(out)


def _trained(
    layer: Layer,
    before: FeatureModel,
    start: FeatureModel,
    kernels: KernelFactory,
    features: int | None,
    iterations: int,
    tol: float,
    i: int,
    notes: list[str],
) -> tuple[FeatureModel, Loss | None]:
    """A trained model of one layer, started at the propagated features; where training cannot work, those themselves."""
    sizes = np.array([p.variance() for p in start.priors]) * (start.B**2).sum(axis=0)
    order = np.sort(np.argsort(-sizes, kind="stable")[: start.m if features is None else features])
    order = order[sizes[order] > 1e-9 * max(float(sizes.sum()), 1e-300)]
    priors = tuple(start.priors[j] for j in order)
    try:
        first, second, _ = OutputLaw(layer, before, tol * 1e-2).f_moments
        covariance = second - np.outer(first, first)
        encoder = first_encoder(Start(start.B[:, order], priors), first, covariance, ["tilted"] * len(order))
        psi = layer.psi if isinstance(layer.psi, str) else layer.psi.text
        made = kernels(psi, ["tilted"])
        fitted = train(layer, before, made, encoder=encoder, tol=tol, iterations=iterations, rounds=1)
    except (UnsupportedError, ToleranceError) as error:
        notes.append(f"layer {i + 1} was not trained, its features are the propagated ones: {error}")
        return start, None
    value, uncertain = float(fitted.terms["L"].value), float(fitted.terms["L"].error)
    sign, logdet = np.linalg.slogdet(covariance)
    singular = sign <= 0 or np.linalg.cond(covariance) > 1e12
    gap = None if singular else float(value - 0.5 * (len(first) * np.log(2 * np.pi * np.e) + logdet))
    return fitted.problem.model, Loss(value, uncertain, gap, len(fitted.history))


def _check(
    layers: object,
    p1: object,
    method: object,
    tol: float,
    features: int | None,
    iterations: int,
    noise_floor: float,
    samples: int,
    check_samples: int | None,
) -> None:
    """InputError for whatever does not fit together."""
    if not isinstance(layers, tuple) or not layers:
        raise InputError(f"`layers` is {shortened(layers)}; it must be a list of one or more layers")
    if not isinstance(p1, FeatureModel):
        raise InputError(f"`p1` is {shortened(p1)}; it must be an elbotree.FeatureModel")
    width, source = p1.n, "`p1` models"
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise InputError(f"`layers[{i}]` is {shortened(layer)}; it must be an elbotree.Layer")
        if layer.n1 != width:
            raise InputError(f"`layers[{i}]` takes n1 = {layer.n1} inputs; {source} {width} coordinates")
        width, source = layer.n2, f"`layers[{i}]` returns"
    if method not in METHODS:
        raise InputError(f"`method` is {method!r}, which is none of the methods{nearest(method, METHODS)}")
    if not 1e-9 < tol < 1:
        raise InputError(f"`tol` is {tol!r}; it must lie between 1e-9 and 1, such as 1e-3")
    if not 0 < noise_floor < 1:
        raise InputError(f"`noise_floor` is {noise_floor!r}; it must lie between 0 and 1, such as 0.02")
    counts = {"features": (features, 0), "iterations": (iterations, 0), "samples": (samples, 2)}
    for name, (count, least) in {**counts, "check_samples": (check_samples, 100)}.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < least):
            raise InputError(f"`{name}` is {count!r}; it must be a whole number of at least {least}")
