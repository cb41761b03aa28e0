"""P(<v, F(x1)> > threshold) of a whole network F by importance sampling: unbiased, from the exact input law, however far
the models of the layers have drifted. A check beside what the last model says; nothing else here draws samples.

The proposal is a mixture of the input law and its exponential tilt by e^{<t, x>}, in closed form for every shipped prior, so
that a row's weight

    p(x) / q(x) = 1 / (a + (1 - a) e^{<t, x - mu> - K(t)}),   K(t) = log E e^{<t, x - mu>},   a = 0.1,

depends on x alone and is at most 1 / a. t is found by cross-entropy: the tilt whose mean is that of the rows that pass a
threshold, which rises with the tilt until it is the one asked for (Rubinstein and Kroese 2004). The rows that decide t are
not used again, so the estimate is unbiased; a bad t costs effective samples, never truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from elbotree.runtime.arguments import check_seed
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.source_sums import Inputs, SourceSum

Array = NDArray[np.float64]

_DEFENSIVE = 0.1  # share of the proposal that is the input law itself
_ELITE = 0.1  # share of pilot rows that pass a threshold on the way
_STEPS = 60
_BLOCK = 50_000


@dataclass(frozen=True)
class SampledTail:
    """An importance-sampling estimate of a probability of the network itself.

    value, log_value   unbiased estimate of P, and its log (-inf where no row passed)
    std_error          of the value; relative_std_error is that over the value
    effective_samples  (sum of weights)^2 / sum of squared weights over the rows that passed: as many plain hits would
                       tell as much. Below some dozens the standard error itself is not to be trusted
    hits, samples      rows that passed, and all rows
    tilt               t (n1,)
    """

    value: float
    log_value: float
    std_error: float
    relative_std_error: float
    effective_samples: float
    hits: int
    samples: int
    tilt: Array

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; numbers that are not finite (nothing passed) become None."""
        form = {**vars(self), "tilt": self.tilt.tolist()}
        return {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in form.items()}

    def __str__(self) -> str:
        shown = f"{self.value:.4g} ± {self.std_error:.1g}"
        if self.hits and self.value < 1e-300:
            shown = f"exp({self.log_value:.6g}) within {self.relative_std_error:.1%}"
        return (
            f"{shown} by importance sampling of the network ({self.effective_samples:,.0f} "
            f"effective of {self.samples:,} samples)"
        )


@vanishing
def sampled_tail(
    layers: Sequence[Layer], p1: FeatureModel, v: Array, threshold: float, samples: int, seed: int
) -> SampledTail:
    """P(<v, F(x1)> > threshold), x1 ~ p1, F the composition of the layers."""
    check_seed(seed)
    rng = np.random.default_rng([seed, 2])
    law = Inputs.of(p1).read(np.eye(p1.n), np.zeros(p1.n))

    def read_out(x: Array) -> Array:
        for layer in layers:
            x = layer(x)
        return np.asarray(x @ v)

    tilt = _tilt(law, read_out, threshold, max(4000, 100 * p1.n), rng)
    level = law.cumulants(tilt)[0]
    logs: list[Array] = []
    for start in range(0, samples, _BLOCK):
        count = min(_BLOCK, samples - start)
        plain = int(rng.binomial(count, _DEFENSIVE))
        x = np.concatenate([_draw(law, np.zeros(len(tilt)), plain, rng), _draw(law, tilt, count - plain, rng)])
        log_ratio = (x - law.shift) @ tilt - level
        log_weight = -np.logaddexp(math.log(_DEFENSIVE), math.log1p(-_DEFENSIVE) + log_ratio)
        logs.append(log_weight[read_out(x) > threshold])
    passed = np.concatenate(logs)
    if not len(passed):
        return SampledTail(0.0, -math.inf, 0.0, math.inf, 0.0, 0, samples, tilt)
    total, squares = float(logsumexp(passed)), float(logsumexp(2 * passed))
    effective = math.exp(2 * total - squares)
    log_value = total - math.log(samples)
    relative = math.sqrt(max(1 / effective - 1 / samples, 0.0))
    value = math.exp(log_value)
    return SampledTail(value, log_value, value * relative, relative, effective, len(passed), samples, tilt)


def _draw(law: SourceSum, tilt: Array, count: int, rng: np.random.Generator) -> Array:
    """Rows of the law tilted by e^{<tilt, x>}, (count, n)."""
    tilted, _ = law.sources.tilted(tilt @ law.loadings)
    values, vectors = np.linalg.eigh(law.noise)
    noise = (rng.standard_normal((count, len(tilt))) * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return np.asarray(law.shift + law.noise @ tilt + tilted.sample(rng, count).T @ law.loadings.T + noise)


def _tilt(
    law: SourceSum, read_out: Callable[[Array], Array], threshold: float, pilot: int, rng: np.random.Generator
) -> Array:
    """t by cross-entropy."""
    tilt, final = np.zeros(law.dimension), 0
    for _ in range(_STEPS):
        x = _draw(law, tilt, pilot, rng)
        values = read_out(x)
        level = min(threshold, float(np.quantile(values, 1 - _ELITE)))
        passed = values >= level if level < threshold else values > threshold
        if passed.sum() < 10:  # a plateau: the level cannot rise from here
            break
        logs = -(x[passed] - law.shift) @ tilt
        weights = np.exp(logs - logsumexp(logs))
        tilt = _with_mean(law, weights @ (x[passed] - law.shift), tilt)
        final += level >= threshold
        if final == 3:
            break
    return tilt


def _with_mean(law: SourceSum, mean: Array, start: Array) -> Array:
    """t with K'(t) = mean, as far as damped Newton steps inside the domain get: the minimum of the convex K(t) - <t, mean>."""
    t = start
    value, gradient, hessian = law.cumulants(t)
    ridge = 1e-9 * float(np.trace(hessian)) / len(t) * np.eye(len(t))
    for _ in range(60):
        off = gradient - mean
        step = -np.linalg.solve(hessian + ridge, off)
        decrement = -float(off @ step)
        if decrement < 1e-8:
            break
        length = 1.0
        while length > 1e-9:
            new = law.cumulants(t + length * step)
            if new[0] - value - length * float(step @ mean) < -0.1 * length * decrement:
                break
            length *= 0.5
        else:
            break
        t = t + length * step
        value, gradient, hessian = new
    return np.asarray(t)
