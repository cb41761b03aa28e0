"""Where else training may begin: encoders about the propagated one, tried on finitely many points of x2 before the exact loss
is asked. What is learned, reported and compared is never this: points only say which encoders are worth the exact loss.

At N points f_i of f(x1), each of mass 1/N, the profile loss (see `profile`) of posteriors on finitely many values x_k is

    q_ijk = m_k exp(t_ij (x_k - mid) - lambda_j (x_k - mid)^2 / 2) / Z_ij,      t_ij = <row_j, f_i - E f> + about_j
    L = 1/N sum_ij sum_k q_ijk log(q_ijk / qbar_jk) + n2/2 log(2 pi sigma2^2) + residual / (2 sigma2^2)
    residual = 1/N sum_i |f_i - E f - B2 (s_i - E s)|^2 + sum_j |b_j|^2 E V_j,       sigma2^2 = max(residual / n2, floor^2)

with qbar = 1/N sum_i q_i and B2 the least squares solution (G + D)^-1 M. Its gradient is the partial one at that B2, sigma2 and
qbar (envelope theorem): dL/dt_ij = (Cov_q(x, log q/qbar) + dL/ds V + dL/dV kappa_3) / N, and the same with x^2 for log lambda.
N points tell losses apart to about (standard deviation of the summand) / sqrt N; encoders fit to them fall short of the exact
best by about (parameters) / (2 N) nats.

One evaluation takes a millisecond where the exact loss takes a tenth of a second, so that many starts can be afforded. The
minima that count lie near the propagated features, which have to part or to merge, and less often where a random encoder leads;
`benchmarks.training_default` measures it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import InputError
from elbotree.runtime.lbfgs import Search, advance
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior
from elbotree.runtime.profile import EncoderCoordinates, solved
from elbotree.runtime.starts import binned, random_encoder

__all__ = ["MOST_SEARCHED", "TRIED", "Found", "PointLoss", "on_points", "sampled_outputs", "searched"]

Array = NDArray[np.float64]

_NEAR, _FAR = 0.3, 1.0  # how far a start is moved from the propagated one, in lengths of each row
_COUNTS = {"near": 6, "far from": 60, "random": 8}  # starts of each kind
TRIED = 1 + sum(_COUNTS.values())
MOST_SEARCHED = 9  # features; beyond, the exact loss of one more start costs more than it was seen to gain
_FIRST, _SECOND = (1000, 15), (4000, 60)  # points and iterations: of all starts, and of the best
_SECOND_ROUND = 8
_GAIN = 1e-3  # nats that an iteration gains, or a descent ends
_LEAST = 1e-6  # what a step must promise
_WORTH = 0.05  # nats above the best within which a start goes on to the exact loss, and how many do
_MOST = 3
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


def sampled_outputs(layer: Layer, p1: FeatureModel, points: int) -> Array:
    """f(x1) at that many draws of x1, (points, n2), the same ones at every call."""
    return layer(p1.sample(points, np.random.default_rng(points)))


class PointLoss:
    """The profile loss and its gradient on points f, (N, n2), over the flat vector of `EncoderCoordinates`.

    Sums are taken in one order whatever the number of threads (einsum, not BLAS). Raises InputError for posteriors that do not
    live on points.
    """

    def __init__(self, f: Array, coordinates: EncoderCoordinates, floor: float) -> None:
        if not on_points(Encoder(coordinates.template)):
            raise InputError("a loss on points is that of posteriors `bernoulli` and `tilted` alone")
        self.coordinates, self.floor = coordinates, floor
        self.x2 = np.ascontiguousarray((f - f.mean(axis=0)).T)  # (n2, N), as all that follows: points last
        self.white = np.einsum("ba,ai->bi", coordinates.inverse, (f - coordinates.mean).T)
        self.precision = np.array([q.parameters.get("precision", 0.0) for q in coordinates.template])
        values = [_values(q, m) for q, m in zip(coordinates.template, coordinates.middles, strict=True)]
        self.groups = []  # features with equally many values: which, the values about the middle, their log masses
        for count in sorted({len(z) for z, _ in values}):
            which = [j for j, (z, _) in enumerate(values) if len(z) == count]
            z, log_masses = (np.array([values[j][part] for j in which]) for part in (0, 1))
            self.groups.append((which, z, log_masses))

    def __call__(self, x: Array) -> tuple[float, Array]:
        """The loss in nats and its gradient."""
        n, N = self.x2.shape
        split = self.coordinates.split(x)
        t = np.einsum("ai,ja->ji", self.white, np.array([row[0] for row, _, _ in split]))
        t += np.array([about for _, about, _ in split])
        precision = self.precision.copy()
        for j, (_, _, logs) in enumerate(split):
            if len(logs):
                precision[j] = np.exp(min(float(logs[0]), _LOG_PRECISION))
        features = np.empty((8, *t.shape))
        for which, z, log_masses in self.groups:
            features[:, which] = _of_c(t[which], precision[which], z, log_masses)
        s, V, K, V_t, K_t, s_l, V_l, K_l = features
        s = s - s.mean(axis=1, keepdims=True)
        spread = V.mean(axis=1)
        G = np.einsum("ji,ki->jk", s, s) / N + np.diag(spread)
        B = solved(G, np.einsum("ji,ai->ja", s, self.x2) / N)  # its rows are the columns of B2
        missed = self.x2 - np.einsum("ji,ja->ai", s, B)
        H = (B * B).sum(axis=1)
        residual = float((missed * missed).sum()) / N + float((spread * H).sum())
        variance = max(residual / n, self.floor**2)
        loss = float(K.mean(axis=1).sum()) + 0.5 * n * np.log(2 * np.pi * variance) + residual / (2 * variance)
        along = np.einsum("ai,ja->ji", missed, B) / -variance  # dL/ds, dL/dV of each point, times N
        H = (H / (2 * variance))[:, None]
        slopes = (K_t + along * V + H * V_t) / N
        rows, about = np.einsum("ji,ai->ja", slopes, self.white), slopes.sum(axis=1)
        own = precision * (K_l + along * s_l + H * V_l).mean(axis=1)
        parts = [
            np.concatenate([rows[j], about[j : j + 1], own[j : j + 1] if len(logs) else own[:0]])
            for j, (_, _, logs) in enumerate(split)
        ]
        return float(loss), np.concatenate(parts) if parts else np.zeros(0)


def _values(q: Posterior, middle: float) -> tuple[Array, Array]:
    """What a feature's posterior lives on, about the middle, and the logs of the masses that it tilts."""
    if q.family == "bernoulli":
        return np.array([0.0, 1.0]), np.zeros(2)
    assert q.base is not None
    points, masses = (binned(q.base) if q.base.continuous_weight > 0 else q.base).atoms
    return points - middle, np.log(np.maximum(masses, 1e-300))


def _of_c(t: Array, precision: Array, z: Array, log_masses: Array) -> Array:
    """Of k features with as many values each, t (k, N): posterior means s, variances V, K, the slopes of V and K in t (that of s is
    V), and those of s, V and K in the precision; (8, k, N)."""
    z = z.T[:, :, None]  # (values, k, 1)
    log_q = t * z + (log_masses.T[:, :, None] - 0.5 * precision[:, None] * z * z)
    log_q -= log_q.max(axis=0)
    q = np.exp(log_q)
    total = q.sum(axis=0)
    q /= total
    divergence = q * (log_q - np.log(total) - np.log(np.maximum(q.mean(axis=2, keepdims=True), 1e-12)))
    K = divergence.sum(axis=0)
    m1, m2, m3, m4 = ((q * z**power).sum(axis=0) for power in (1, 2, 3, 4))
    d1, d2 = ((divergence * z**power).sum(axis=0) for power in (1, 2))
    V = m2 - m1 * m1
    s_l, K_l = -0.5 * (m3 - m1 * m2), -0.5 * (d2 - m2 * K)
    V_l = -0.5 * (m4 - m2 * m2) - 2 * m1 * s_l
    return np.array([m1, V, K, m3 - 3 * m1 * V - m1**3, d1 - m1 * K, s_l, V_l, K_l])


@dataclass(eq=False)
class _Tried:
    """A start under way."""

    name: str
    loss: float
    x: Array
    points: int


def searched(
    layer: Layer, p1: FeatureModel, encoder: Encoder, mean: Array, covariance: Array, floor: float
) -> tuple[list[Found], list[Found]]:
    """Starts about `encoder`, tried on points: those that are worth the exact loss, best first, and those set aside.

    All are descended a little on few points, the best of them, and `encoder` itself, further on more. Of these, the ones within
    0.05 nats of the best are worth the exact loss, three at most, no two of one loss.
    """
    coordinates = EncoderCoordinates(encoder, mean, covariance)
    few, more = (PointLoss(sampled_outputs(layer, p1, points), coordinates, floor) for points, _ in (_FIRST, _SECOND))
    tried = []
    for name, x in _candidates(encoder, coordinates, mean, covariance):
        tried.append(_Tried(name, *_descended(few, x, _FIRST[1]), _FIRST[0]))
    ranked = sorted(tried, key=lambda start: start.loss)
    going = [
        _Tried(start.name, *_descended(more, start.x, _SECOND[1]), _SECOND[0])
        for start in [*ranked[:_SECOND_ROUND], *(tried[:1] if tried[0] not in ranked[:_SECOND_ROUND] else [])]
    ]
    worth: list[_Tried] = []
    for start in sorted(going, key=lambda start: start.loss):
        if not worth or (start.loss > worth[-1].loss + _SAME and start.loss < worth[0].loss + _WORTH):
            worth.append(start)
    worth = worth[:_MOST]
    further = {start.name: start for start in going}
    aside = [start for start in (further.get(one.name, one) for one in tried) if start not in worth]
    return _found(worth, coordinates), _found(aside, coordinates)


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
