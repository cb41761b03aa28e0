"""Features that points of x2 ask for: which of those there are could go, and what a new one in their place should tell.

Without the features D, those that are left leave r_i = x2_i - E x2 - B2 (s_i - E s), B2 refitted, and sigma2^2 = E |r|^2 / n2.
A new feature that is on or off, with column d and probability p, is on where that is worth its bits,

    2 <r_i, d> - |d|^2 > 2 sigma2^2 log((1 - p) / p),      then p <- the share of these points, d <- the mean of r over them

(Lloyd's steps for one code word beside 0, with the bits that it costs; Chou, Lookabaugh and Gray 1989), from d = r_i at points
drawn by how much they miss. The loss would change by about n2/2 log(1 - p (1 - p) |d|^2 / (n2 sigma2^2)) + H(p). What an
encoder can do about it is linear in x2: a logistic regression of on and off, by Newton's steps, with the ridge 1e-4 |row|^2 / 2.

Without feature j alone E |r|^2 rises by |b_j|^2 / ((G + D)^-1)_jj (as in `search`), and its K_j is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.profile import solved
from elbotree.runtime.search_loops import combined, dots

__all__ = ["Decoded", "detector"]

Array = NDArray[np.float64]

_WORDS, _SWEEPS = 16, 8  # code words tried at once, and Lloyd's steps
_FEWEST = 4  # points where a feature is on
_FLAT = 1e-4  # ridge of the logistic regression
_NEWTON, _HALVINGS = 12, 10
_SETTLED = 1e-5  # nats a point


@dataclass(frozen=True)
class Decoded:
    """Posteriors on N points and their decoder: centred means s, (m, N), centred x2, (n2, N), the covariance G of s with the mean
    variances on its diagonal, (m, m), M = Cov(s, x2), (m, n2), and E K_j, (m,)."""

    s: Array
    x2: Array
    G: Array
    M: Array
    K: Array

    def costs_of_removal(self) -> Array:
        """By how much the loss would rise without each feature alone, (m,)."""
        inverse = solved(self.G, np.eye(len(self.G)))
        B = inverse @ self.M
        left = float((self.x2 * self.x2).mean(axis=1).sum() - (B * self.M).sum())
        more = (B * B).sum(axis=1) / np.diag(inverse)
        return np.asarray(0.5 * self.M.shape[1] * np.log1p(more / left) - self.K)

    def missed_without(self, removed: Sequence[int]) -> Array:
        """r, (n2, N), without these features."""
        kept = np.setdiff1d(np.arange(len(self.G)), removed)
        if not len(kept):
            return self.x2
        B = solved(self.G[np.ix_(kept, kept)], self.M[kept])
        return np.asarray(self.x2 - combined(np.ascontiguousarray(B.T), self.s[kept]))


def detector(missed: Array, white: Array, rng: np.random.Generator) -> tuple[Array, float] | None:
    """The whitened row (n2,) and the bias of a feature that tells where x2 is missed alike: one of the best code words, by chance.
    None where nothing is missed at enough points."""
    n, N = missed.shape
    sizes = (missed * missed).sum(axis=0)
    variance = float(sizes.sum()) / (n * N)
    chance = np.maximum(sizes - np.median(sizes), 0.0)
    if not chance.sum() > 0:
        return None
    words = np.ascontiguousarray(missed[:, rng.choice(N, _WORDS, p=chance / chance.sum())].T)
    p, on = np.full(_WORDS, 0.05), np.zeros((_WORDS, N), dtype=bool)
    for _ in range(_SWEEPS):
        lengths = (words * words).sum(axis=1)
        on = 2 * combined(words, missed) > (lengths + 2 * variance * np.log((1 - p) / p))[:, None]
        counts = on.sum(axis=1)
        p = np.clip(counts / N, 1 / N, 0.5)
        words = dots(on.astype(np.float64), missed) / np.maximum(counts, 1)[:, None]
    explained = p * (1 - p) * (words * words).sum(axis=1) / (n * variance)
    change = 0.5 * n * np.log(np.maximum(1 - explained, 1e-9)) - p * np.log(p) - (1 - p) * np.log(1 - p)
    change[(counts < _FEWEST) | (counts > N // 2)] = np.inf
    usable = int(np.isfinite(change).sum())
    if not usable:
        return None
    chosen = np.argsort(change, kind="stable")[min(int(rng.exponential(3.0)), usable - 1)]
    return _separating(white, on[chosen])


def _separating(white: Array, on: NDArray[np.bool_]) -> tuple[Array, float]:
    """The row and the bias of a logistic regression."""
    N = len(on)
    X = np.vstack([white, np.ones((1, N))])
    ridge = np.full(len(X), _FLAT)
    ridge[-1] = 0.0
    share = float(on.mean())
    at = np.zeros(len(X))
    at[-1] = np.log(share / (1 - share))

    def loss(at: Array) -> tuple[float, Array]:
        t = combined(at[None], X)[0]
        return float(np.mean(np.logaddexp(0.0, t) - t * on)) + 0.5 * float(ridge @ (at * at)), t

    value, t = loss(at)
    for _ in range(_NEWTON):
        q = 1 / (1 + np.exp(-t))
        gradient = dots((q - on)[None], X)[0] / N + ridge * at
        curvature = dots(X * (q * (1 - q)), X) / N + np.diag(ridge + 1e-9)
        step = solved(curvature, gradient)
        for halving in range(_HALVINGS):
            there, t = loss(at - step * 0.5**halving)
            if there < value:
                break
        else:
            break
        at, gained, value = at - step * 0.5**halving, value - there, there
        if gained < _SETTLED:
            break
    return at[:-1], float(at[-1])
