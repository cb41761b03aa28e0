"""How large functions are where their arguments hardly ever are.

A coordinate leaves its range with probability at most epsilon, and wider and wider ranges, `STEPS` apart, with e^-s epsilon.
With M_k the largest |g| on the (k+1)-th of these ranges,

    E[|g|; outside] <= epsilon mean(M),      E[|g h|; either outside] <= epsilon root(M_g) root(M_h),

    mean(M) = sum_k (e^-s_k - e^-s_(k+1)) M_k,      root(M)^2 = mean(M^2),

the second by Cauchy and Schwarz. A largest value on the range alone would not do: a posterior mean may be nothing there and 1
beyond. What functions are at a mass below e^-96 epsilon is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.float_range import vanishing
from elbotree.runtime.fourier import finite

Array = NDArray[np.float64]


class Ranged(Protocol):
    """A coordinate: its ranges, each left with probability at most 2 e^(log_epsilon - step)."""

    def ranges(self, log_epsilon: float) -> Ranges: ...


STEPS: Array = np.array([0.0, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0])
"""By how much less the logarithm of the mass outside is from one range to the next."""
_MASSES = -np.diff(np.append(np.exp(-STEPS[:-1]), 0.0))
_INSIDE = np.linspace(0.0, 1.0, 33)
_ACROSS = np.arange(1, 7) / 6.0  # of the way from one range's end to the next one's
_STARTS = np.array([0, *range(len(_INSIDE), len(_INSIDE) + 2 * len(_ACROSS) * (len(STEPS) - 1), 2 * len(_ACROSS))])


@dataclass(frozen=True)
class Ranges:
    """Wider and wider ranges, each from `lo` to `hi`, (steps,): the first is what functions are expanded on."""

    lo: Array
    hi: Array

    @property
    def first(self) -> tuple[float, float]:
        return float(self.lo[0]), float(self.hi[0])

    @cached_property
    def inside(self) -> Array:
        """Where functions are looked at inside the first range, (33,)."""
        lo, hi = self.first
        return lo + (hi - lo) * _INSIDE

    @cached_property
    def between(self) -> Array:
        """The same between each range and the next, (rings, 12)."""
        sides = [ends[:-1, None] + (ends[1:] - ends[:-1])[:, None] * _ACROSS for ends in (self.lo, self.hi)]
        return np.concatenate(sides, axis=1)

    @cached_property
    def points(self) -> Array:
        """Both, from the inside out."""
        return np.concatenate([self.inside, self.between.ravel()])


def largest(name: str, g: Callable[[Array], Array], ranges: Ranges) -> Array:
    """M, (rings,): infinite where g is not finite outside the first range.

    Raises UnsupportedError where g is not finite inside it.
    """
    with np.errstate(all="ignore"):
        sizes = np.abs(np.asarray(g(ranges.points), dtype=np.float64))
        if not np.isfinite(sizes).all():
            finite(name, g, ranges.inside)
            sizes = np.where(np.isnan(sizes), np.inf, sizes)
    if sizes.shape != ranges.points.shape:
        return np.full(len(_STARTS) - 1, float(sizes))
    return np.maximum.accumulate(np.maximum.reduceat(sizes, _STARTS))[1:]


def largest_on_boxes(name: str, g: Callable[..., Array], ranges: Sequence[Ranges]) -> Array:
    """M of a function of several coordinates, (rings,): the ranges are boxes.

    Raises UnsupportedError where g is not finite inside the first of them.
    """
    each, steps = [], []
    for one in ranges:
        inside, outer = one.inside[::2], one.between[:, 2::3]
        each.append(np.concatenate([inside, outer.ravel()]))
        steps.append(np.repeat(np.arange(len(STEPS)), [len(inside), *[outer.shape[1]] * len(outer)]))
    grid, step = np.meshgrid(*each, indexing="ij"), np.meshgrid(*steps, indexing="ij")
    ring = np.maximum.reduce(step)
    with np.errstate(all="ignore"):
        sizes = np.abs(np.broadcast_to(np.asarray(g(*grid), dtype=np.float64), ring.shape))
    if not np.all(np.isfinite(sizes[ring == 0])):
        finite(name, g, *(c[ring == 0] for c in grid))
    sizes = np.where(np.isnan(sizes), np.inf, sizes)
    return np.array([sizes[ring <= k].max() for k in range(1, len(STEPS))])


def boxes(
    name: str, g: Callable[..., Array], coordinates: Sequence[Ranged], share: float
) -> tuple[list[Ranges], float, float]:
    """The ranges of coordinates so wide that each leaves share outside, times what g is there in the mean; the probability epsilon
    that they leave; and that mean."""
    size = 1.0
    for _ in range(4):
        epsilon = share / size
        ranges = [c.ranges(float(np.log(epsilon))) for c in coordinates]
        beyond = mean(largest_on_boxes(name, g, ranges))
        if beyond <= 2 * size or not np.isfinite(beyond):
            break  # or g grows faster than the tails fall: the error will say so
        size = beyond
    return ranges, epsilon, max(1.0, beyond)


@vanishing
def mean(M: Array) -> float:
    """E[|g|; outside] / epsilon at most."""
    return float(_MASSES @ M)


@vanishing
def root(M: Array) -> float:
    """sqrt(E[g^2; outside] / epsilon) at most."""
    top = float(M[-1])
    return top * float(np.sqrt(_MASSES @ (M / top) ** 2)) if 0.0 < top < np.inf else top
