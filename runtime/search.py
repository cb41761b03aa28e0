"""Where else training may begin: encoders about the propagated one, tried on finitely many points of x2 before the exact loss
is asked. What is learned, reported and compared is never this: points only say which encoders are worth the exact loss.

At N points f_i of f(x1), each of mass 1/N, the profile loss (see `profile`) of posteriors on finitely many values x_k is

    q_ijk = m_k exp(t_ij (x_k - mid) - lambda_j (x_k - mid)^2 / 2) / Z_ij,      t_ij = <row_j, f_i - E f> + about_j
    L = 1/N sum_ij sum_k q_ijk log(q_ijk / qbar_jk) + n2/2 log(2 pi sigma2^2) + residual / (2 sigma2^2)
    residual = 1/N sum_i |f_i - E f - B2 (s_i - E s)|^2 + sum_j |b_j|^2 E V_j,       sigma2^2 = max(residual / n2, floor^2)

with qbar = 1/N sum_i q_i and B2 the least squares solution (G + D)^-1 M. Its gradient is the partial one at that B2, sigma2 and
qbar (envelope theorem): dL/dt_ij = (Cov_q(x, log q/qbar) + dL/ds V + dL/dV kappa_3) / N, and the same with x^2 for log lambda.

Two things make points mislead. States of the features that are rare weigh much (a state of probability 0.002 that is missed by a
length 1 costs 0.1 nats at sigma2 = 0.1), so that random points tell losses apart to no better than 0.02 to 0.04 nats at N = 4,000;
points of a Sobol sequence, through the quantiles of the priors and of the noise, halve that. And where no point lies a
posterior may switch as sharply as it likes, and does; the exact loss then starts where it is slow. So a ridge
3e-4 |row_j|^2 / gain_j^2 is added, gain_j the row of a feature alone in the noise of x1: rows of that size cost nothing.

The minima that count lie near the propagated features, which have to part or to merge, less often where a random encoder leads,
and often one or two features away from one that is known: the best starts are tried again with one or two features anew, a
quarter of the times at random, else those that cost least, where the points ask for a feature (see `residual_features`).
`benchmarks.training_default` measures what comes of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from elbotree.runtime.blas import one_thread
from elbotree.runtime.errors import InputError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.lbfgs import Search, advance
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior
from elbotree.runtime.priors import Prior
from elbotree.runtime.profile import EncoderCoordinates, solved
from elbotree.runtime.residual_features import Decoded, detector
from elbotree.runtime.search_loops import combined, dots, tilted
from elbotree.runtime.starts import binned, random_encoder

__all__ = ["MOST_SEARCHED", "TRIED", "Found", "PointLoss", "on_points", "sampled_outputs", "searched"]

Array = NDArray[np.float64]
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

_NEAR, _FAR = 0.3, 1.0  # how far a start is moved from the propagated one, in lengths of each row
_COUNTS = {"near": 6, "far from": 60, "random": 8}  # starts of each kind
MOST_SEARCHED = 64  # features; beyond, points cost too much
_FEW = 9  # features up to which several starts go on to the exact loss
# points that all starts are tried on: eight a parameter, or descents follow the points, but no fewer and no more than these
_PER_PARAMETER, _FEWEST, _MANY = 8, 1024, 8192
_MOST_POINTS = 16384  # at least, of those that are left
_FIRST, _SECOND, _LAST = 15, 60, 40  # iterations: of all starts, of the best, and of those that are left
_SECOND_ROUND = 8
_BASES, _AGAIN = 3, 20  # starts with features anew, and iterations of each trial on the fewest points
_RENEWALS, _RENEWALS_OF_MANY = 100, 25  # how many trials, with few features and with many
_ANYWHERE = 4  # of so many trials one is anywhere, the others where points are missed
_WEAKEST = 0.5  # the chance that the feature that costs least is the one to go, then the next
_HOPEFUL = 0.03  # nats above its base within which such a trial goes on to more points
TRIED = 1 + sum(_COUNTS.values()) + _BASES
_RIDGE = 3e-4
_GAIN = 1e-3  # nats that an iteration gains, or a descent ends
_LEAST = 1e-6  # what a step must promise
_WORTH = 0.05  # nats above the best within which a start goes on to the exact loss, and how many do
_MOST = 3
_THREADS = 4  # at most, since each has its own arrays over points (70 MB for 33 features)
_SURE = 0.01  # nats by which another start must be better to go on in its place, with many
_SAME = 2e-3  # nats by which two starts are told apart
_LOG_PRECISION = 50.0  # bound on log lambda, where the posterior is one point long since


@dataclass(frozen=True)
class Found:
    """A start that was tried on points: its name, where it has come to, the loss there (of points), and how many points."""

    name: str
    encoder: Encoder
    loss: float
    points: int


def on_points(encoder: Encoder) -> bool:
    """Whether all posteriors live on finitely many values, or on a tilted base that can be binned: what `PointLoss` knows."""
    return all(q.family in ("bernoulli", "tilted") for q in encoder)


@vanishing
def sampled_outputs(layer: Layer, p1: FeatureModel, points: int) -> Array:
    """f(x1) at that many points of x1, (points, n2), the same ones at every call: a Sobol sequence, shifted at random for each
    number of points, through the quantiles of the priors and of the noise. A power of two balances it best."""
    from scipy.stats.qmc import Sobol  # takes a third of a second

    rng = np.random.default_rng(points)
    cube = Sobol(p1.m + p1.n, scramble=False).random_base2(int(np.ceil(np.log2(points))))[:points]
    cube = np.clip((cube + rng.random(p1.m + p1.n)) % 1.0, 1e-12, 1 - 1e-12)
    z = np.array([_quantiles(prior, u) for prior, u in zip(p1.priors, cube.T, strict=False)]).reshape(p1.m, points)
    return np.asarray(layer(z.T @ p1.B.T + p1.offset + p1.noise_std * ndtri(cube[:, p1.m :])))


def _quantiles(prior: Prior, u: Array) -> Array:
    """The quantiles of a prior: of its cdf between 4,001 points and its atoms."""
    atoms, _ = prior.atoms
    wide = prior.mean() + float(np.sqrt(prior.variance())) * np.linspace(-12, 12, 4001)
    x = np.sort(np.concatenate([wide if prior.continuous_weight > 0 else atoms, atoms, np.nextafter(atoms, -np.inf)]))
    return np.asarray(np.interp(u, np.maximum.accumulate(prior.cdf(x)), x))


class PointLoss:
    """The profile loss and its gradient on points f, (N, n2), over the flat vector of `EncoderCoordinates`.

    gains: where given, the ridge 3e-4 |row_j|^2 / gains_j^2 of each feature is added (see `gains`).

    Sums are taken in one order whatever the number of threads (no BLAS). Raises InputError for posteriors that do not
    live on points.
    """

    def __init__(self, f: Array, coordinates: EncoderCoordinates, floor: float, gains: Array | None = None) -> None:
        if not on_points(Encoder(coordinates.template)):
            raise InputError("a loss on points is that of posteriors `bernoulli` and `tilted` alone")
        self.coordinates, self.floor = coordinates, floor
        self.ridge = np.zeros(len(coordinates.template)) if gains is None else _RIDGE / gains**2
        self.x2 = np.ascontiguousarray((f - f.mean(axis=0)).T)  # (n2, N), as all that follows: points last
        self.white = np.einsum("ba,ai->bi", coordinates.inverse, (f - coordinates.mean).T)
        self.precision = np.array([q.parameters.get("precision", 0.0) for q in coordinates.template])
        values = [_values(q, m) for q, m in zip(coordinates.template, coordinates.middles, strict=True)]
        self.first = np.cumsum([0, *(len(z) for z, _ in values)])
        self.reaches = np.array([np.ptp(z) or 1.0 for z, _ in values])
        self.values, self.log_masses = (np.concatenate([np.zeros(0), *(v[part] for v in values)]) for part in (0, 1))
        self._room = local()
        sizes = [q.C.size + 1 + len(names) for q, names in zip(coordinates.template, coordinates.moving, strict=True)]
        places = coordinates.split(
            np.arange(sum(sizes))
        )  # where in x the rows are, the biases, and the logs of precisions
        self.of_rows, self.of_about = (np.array([place[part].ravel() for place in places]) for part in (0, 1))
        self.moving = np.array([len(place[2]) > 0 for place in places], dtype=bool)
        self.of_logs = np.concatenate([place[2] for place in places])

    @vanishing
    def __call__(self, x: Array) -> tuple[float, Array]:
        """The loss in nats and its gradient."""
        n, N = self.x2.shape
        rows = x[self.of_rows]
        t = combined(rows, self.white) + x[self.of_about]
        precision = self.precision.copy()
        precision[self.moving] = np.exp(np.minimum(x[self.of_logs], _LOG_PRECISION))
        features = self._features
        tilted(t, precision, self.first, self.values, self.log_masses, features)
        _, V, K, V_t, K_t, s_l, V_l, K_l = features
        s, spread, G, M = self._moments()
        B = solved(G, M)  # its rows are the columns of B2
        missed = self.x2 - combined(B.T, s)
        H = (B * B).sum(axis=1)
        residual = float((missed * missed).sum()) / N + float((spread * H).sum())
        variance = max(residual / n, self.floor**2)
        loss = float(K.mean(axis=1).sum()) + 0.5 * n * np.log(2 * np.pi * variance) + residual / (2 * variance)
        loss += float(self.ridge @ (rows * rows).sum(axis=1))
        along = combined(B, missed) / -variance  # dL/ds, dL/dV of each point, times N
        H = (H / (2 * variance))[:, None]
        slopes = (K_t + along * V + H * V_t) / N
        gradient = np.empty_like(x)
        gradient[self.of_rows] = dots(slopes, self.white) + 2 * self.ridge[:, None] * rows
        gradient[self.of_about[:, 0]] = slopes.sum(axis=1)
        own = precision * (K_l + along * s_l + H * V_l).mean(axis=1)
        gradient[self.of_logs] = own[self.moving]
        return float(loss), gradient

    @property
    def points(self) -> int:
        """How many."""
        return int(self.x2.shape[1])

    def decoded(self, x: Array) -> Decoded:
        """What the decoder makes of the posteriors at x."""
        self(x)
        s, _, G, M = self._moments()
        return Decoded(s, self.x2, G, M, self._features[2].mean(axis=1))

    @property
    def _features(self) -> Array:
        """What `tilted` fills, (8, m, N): one array for each thread."""
        if not hasattr(self._room, "features"):
            self._room.features = np.empty((8, len(self.reaches), self.points))
        return np.asarray(self._room.features)

    def _moments(self) -> tuple[Array, Array, Array, Array]:
        """At the last x: the centred means s, (m, N), E V, the covariance G of s with E V on its diagonal, and M = Cov(s, x2)."""
        N = self.x2.shape[1]
        means, variances, *_ = self._features
        s, spread = means - means.mean(axis=1, keepdims=True), variances.mean(axis=1)
        return s, spread, dots(s, s) / N + np.diag(spread), dots(s, self.x2) / N


def gains(layer: Layer, p1: FeatureModel, coordinates: EncoderCoordinates) -> Array:
    """The length of each feature's whitened row were it alone in the noise of x1: 1 / (noise^2 std), noise^2 the mean share of that
    noise in the variances of x2 (at least 1e-6), std the deviation of the base."""
    noise = p1.noise_std * coordinates.inverse @ layer.A
    share = max(float((noise * noise).sum()) / layer.n2, 1e-6)
    deviations = [0.5 if q.base is None else float(np.sqrt(q.base.variance())) for q in coordinates.template]
    return 1.0 / (share * np.maximum(deviations, 1e-150))


def _values(q: Posterior, middle: float) -> tuple[Array, Array]:
    """What a feature's posterior lives on, about the middle, and the logs of the masses that it tilts."""
    if q.family == "bernoulli":
        return np.array([0.0, 1.0]), np.zeros(2)
    assert q.base is not None
    points, masses = (binned(q.base) if q.base.continuous_weight > 0 else q.base).atoms
    return points - middle, np.log(np.maximum(masses, 1e-300))


@dataclass(eq=False)
class _Tried:
    """A start under way."""

    name: str
    loss: float
    x: Array
    points: int


@vanishing
def searched(
    layer: Layer, p1: FeatureModel, encoder: Encoder, mean: Array, covariance: Array, floor: float
) -> tuple[list[Found], list[Found]]:
    """Starts about `encoder`, tried on points: those that are worth the exact loss, best first, and those set aside.

    All are descended a little on few points, the best of them, and `encoder` itself, further on more; the best three of these are
    tried again with one or two features anew. The best of all are descended on most points. Of these, the ones within 0.05 nats of
    the best are worth the exact loss, three at most, no two of one loss, and `encoder`. Beyond nine features one start goes on: the
    best, or `encoder` within 0.01 nats of it. No start depends on another, and the number of threads changes nothing.
    """
    coordinates = EncoderCoordinates(encoder, mean, covariance)
    alone = gains(layer, p1, coordinates)
    parameters = len(coordinates.pack(encoder))
    few, more, most = (
        PointLoss(sampled_outputs(layer, p1, points), coordinates, floor, alone) for points in _points(parameters)
    )

    def descended(loss: PointLoss, iterations: int, starts: Iterable[tuple[str, Array]]) -> list[_Tried]:
        return _side_by_side(lambda one: _Tried(one[0], *_descended(loss, one[1], iterations), loss.points), starts)

    tried = descended(few, _FIRST, _candidates(encoder, coordinates, mean, covariance))
    ranked = sorted(tried, key=_loss)[:_SECOND_ROUND]
    again = [*ranked, *(tried[:1] if tried[0] not in ranked else [])]
    going = descended(more, _SECOND, [(start.name, start.x) for start in again])
    bases = _apart(sorted(going, key=_loss))[:_BASES]
    renewed = _side_by_side(
        lambda numbered: _renewed(
            numbered[1], few, more, mean, covariance, np.random.default_rng([parameters, numbered[0]])
        ),
        enumerate(bases),
    )
    gained = [start for start, base in zip(renewed, bases, strict=True) if start.loss < base.loss]
    left = sorted([*going, *gained], key=_loss)[: 2 * _MOST if len(encoder) <= _FEW else 2]
    propagated = next(start for start in going if start.name == tried[0].name)
    left += [] if propagated in left else [propagated]
    last = descended(most, _LAST, [(start.name, start.x) for start in left])
    worth: list[_Tried] = []
    for start in sorted(last, key=_loss):
        if not worth or (start.loss > worth[-1].loss + _SAME and start.loss < worth[0].loss + _WORTH):
            worth.append(start)
    first = next(start for start in last if start.name == propagated.name)
    if len(encoder) > _FEW:
        worth = [first if first.loss < worth[0].loss + _SURE else worth[0]]
    else:  # the first one in any case: points have the first bases, and learned ones may gain 0.1 nats
        worth = worth[:_MOST]
        worth += [] if first in worth else [first]
    further = {start.name: start for start in [*going, *renewed, *last]}
    aside = [start for start in (further.get(one.name, one) for one in [*tried, *renewed]) if start not in worth]
    return _found(worth, coordinates), _found(aside, coordinates)


def _loss(start: _Tried) -> float:
    return start.loss


def _side_by_side(function: Callable[[_Given], _Made], given: Iterable[_Given]) -> list[_Made]:
    """The function of each, in threads."""
    with one_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
        return list(pool.map(vanishing(function), given))


def _points(parameters: int) -> tuple[int, int, int]:
    """How many points all starts are tried on, the best ones, and those that are left: powers of two."""
    few = min(max(_FEWEST, 1 << (_PER_PARAMETER * parameters - 1).bit_length()), _MANY)
    return few, 4 * few, max(_MOST_POINTS, 4 * few)


def _apart(ranked: list[_Tried]) -> list[_Tried]:
    """The starts, best first, with those that are another's minimum again behind all others."""
    firsts = [start for i, start in enumerate(ranked) if i == 0 or start.loss > ranked[i - 1].loss + _SAME]
    return firsts + [start for start in ranked if start not in firsts]


def _renewed(
    base: _Tried, few: PointLoss, more: PointLoss, mean: Array, covariance: Array, rng: np.random.Generator
) -> _Tried:
    """The start after trials in which one or two of its features begin anew: each descended on few points, on more where it comes
    near what the start has there and is not the same, and kept where it ends below it."""
    best, there = base, _descended(few, base.x, _AGAIN)[0]
    template = Encoder(few.coordinates.template)
    for number in range(_RENEWALS if len(template) <= _FEW else _RENEWALS_OF_MANY):
        if number % _ANYWHERE == 0:
            other = few.coordinates.pack(random_encoder(int(rng.integers(1 << 30)), template, mean, covariance))
            x = _replaced(few, best.x, other, 1 + number // _ANYWHERE % 2, rng)
        else:
            x = _asked_for(few, best.x, 1 + (number % _ANYWHERE == _ANYWHERE - 1), rng)
        loss, x = _descended(few, x, _AGAIN)
        if loss < there + _HOPEFUL and abs(loss - there) > 0.1 * _GAIN:
            loss, x = _descended(more, x, _SECOND)
            if loss < best.loss - _GAIN:
                best, there = _Tried(base.name, loss, x, base.points), _descended(few, x, _AGAIN)[0]
    return _Tried(f"{base.name}, features anew", best.loss, best.x, base.points)


def _replaced(loss: PointLoss, x: Array, other: Array, count: int, rng: np.random.Generator) -> Array:
    """x with so many of its features taken from `other`."""
    x = x.copy()
    parts, others = loss.coordinates.split(x), loss.coordinates.split(other)
    for j in rng.choice(len(parts), size=min(count, len(parts)), replace=False):
        for part, new in zip(parts[j], others[j], strict=True):
            part[:] = new
    return x


def _asked_for(loss: PointLoss, x: Array, count: int, rng: np.random.Generator) -> Array:
    """x with so many of its features, mostly ones that cost little, where the points miss most without them (see
    `residual_features`). Half the time such a feature first takes the place of one on other values, which begins anew instead: a
    feature on many values that has nothing to tell can stand in for one on two, but not tell what is rare."""
    counts = np.diff(loss.first)
    m = len(counts)
    decoded = loss.decoded(x)
    removed: list[int] = []
    for rank, j in enumerate(np.argsort(decoded.costs_of_removal(), kind="stable")):
        wanted = min(count, m) - len(removed)
        if wanted and (wanted == m - rank or rng.random() < _WEAKEST):
            removed.append(int(j))
    x = x.copy()
    parts, missed = loss.coordinates.split(x), decoded.missed_without(removed)
    for j in removed:
        others = [k for k in range(m) if k not in removed and counts[k] != counts[j]]
        if others and rng.random() < 0.5:
            k = int(rng.choice(others))
            for part, new in zip(parts[j][:2], parts[k][:2], strict=True):
                part[:] = new * (loss.reaches[k] / loss.reaches[j])
            j = k
        found = detector(missed, loss.white, rng)
        if found is not None:
            parts[j][0][:], parts[j][1][:] = found[0] / loss.reaches[j], found[1] / loss.reaches[j]
    return x


def _found(starts: list[_Tried], coordinates: EncoderCoordinates) -> list[Found]:
    return [Found(start.name, coordinates.unpack(start.x), start.loss, start.points) for start in starts]


def _candidates(
    encoder: Encoder, coordinates: EncoderCoordinates, mean: Array, covariance: Array
) -> Iterator[tuple[str, Array]]:
    """The names and flat vectors of the starts, `encoder` first."""
    x0 = coordinates.pack(encoder)
    yield "propagated", x0
    rng = np.random.default_rng(len(x0))
    for word, far in (("near", _NEAR), ("far from", _FAR)):
        for number in range(1, _COUNTS[word] + 1):
            x = x0.copy()
            for row, about, _ in coordinates.split(x):
                size = far * float(np.linalg.norm(row)) / np.sqrt(row.size)
                row += size * rng.standard_normal(row.shape)
                about += size * rng.standard_normal(about.shape)
            yield f"{word} the propagated, {number}", x
    for seed in range(1, _COUNTS["random"] + 1):
        yield f"random encoder {seed}", coordinates.pack(random_encoder(seed, encoder, mean, covariance))


def _descended(loss: PointLoss, x: Array, iterations: int) -> tuple[float, Array]:
    """The loss and the point after so many iterations of L-BFGS, fewer where two in a row gain too little."""
    search, quiet = Search(x, *loss(x)), 0
    for _ in range(iterations):
        found = advance(search, loss, _LEAST)
        if found is None:
            break
        quiet = quiet + 1 if search.loss - found.loss < _GAIN else 0
        search = found
        if quiet == 2:
            break
    return search.loss, search.x
