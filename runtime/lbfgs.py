"""L-BFGS over a flat vector, one accepted iteration at a time: all that it remembers are plain arrays, so that a run can be
written to disk between two iterations and go on to the same bytes. What is minimised, and when to stop, is for `training`.

One iteration from x with gradient g, step s_i and gradient change y_i of the last iterations (Nocedal and Wright,
algorithms 7.4 and 3.5):

    d = -H g,   H the two-loop recursion over (s_i, y_i), H_0 = (<s, y> / <y, y>) I, or a model's (see `point_model`)
    x' = x + t d with L(x') <= L(x) + c1 t <g, d> and <g(x'), d> >= c2 <g, d>      c1 = 1e-4, c2 = 0.9

The first inequality holds for each accepted step, in the numbers that the loss returned: the loss never rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The loss and its gradient; None where the loss cannot be evaluated (the step is then shortened).
Objective = Callable[[Array], tuple[float, Array] | None]
#: H_0 of a model of the loss: from x and a gradient q there to H_0 q, <q, H_0 q> > 0.
Inverse = Callable[[Array, Array], Array]

_KEPT = 20  # pairs (s, y)
_DECREASE, _CURVATURE = 1e-4, 0.9  # c1, c2
_TRIALS = 12  # of one line search
_REFUSED, _REFUSED_AGAIN = 3, 1  # how many may fail before the first success, along the first direction and the second
_FIRST = 0.05  # the first step's length, relative to that of x


@dataclass
class Search:
    """Where L-BFGS stands: the point, its loss and gradient, and the last steps with their gradient changes, oldest first."""

    x: Array
    loss: float
    gradient: Array
    steps: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)

    def direction(self, inverse: Inverse | None = None) -> Array:
        """d = -H g, with H_0 of a model where one is given."""
        d = -self.gradient
        shares = []
        for s, y in zip(reversed(self.steps), reversed(self.changes), strict=True):
            share = float(s @ d) / float(s @ y)
            d = d - share * y
            shares.append(share)
        if inverse is not None:
            d = -inverse(self.x, -d)
        elif self.steps:
            s, y = self.steps[-1], self.changes[-1]
            d = d * (float(s @ y) / float(y @ y))
        for s, y, share in zip(self.steps, self.changes, reversed(shares), strict=True):
            d = d + (share - float(y @ d) / float(s @ y)) * s
        return d

    def expected_gain(self, direction: Array) -> float:
        """By how much the loss would fall along d = -H g to the minimum of the quadratic model that H stands for: <g, H g> / 2,
        nats."""
        return -0.5 * float(self.gradient @ direction)


def advance(
    search: Search, objective: Objective, least: float = 0.0, told: float = math.inf, led: Array | None = None
) -> Search | None:
    """The search after one more accepted iteration, or None where no step lowers the loss: along `led` where it is given (-H g
    with a model in it), where that fails along -H g, and where that fails along what the last pair alone makes of it.

    least: steps whose expected decrease is below it are not tried (the loss cannot tell them from its own error), but for the
    first one of a search that remembers nothing and has no scale yet.
    told: what the loss surely tells; while more is promised, steps that raised it are shortened further, however many they were.
    """
    found = None
    if led is not None:
        found = _along(search, led, objective, least, math.inf, scaled=True)
    if found is None:
        found = _along(search, search.direction(), objective, least, told, bool(search.steps))
    if found is None and search.steps:  # what it remembers misleads
        last = slice(-1, None) if len(search.steps) > 1 else slice(0)
        search = Search(search.x, search.loss, search.gradient, search.steps[last], search.changes[last])
        found = _along(search, search.direction(), objective, least, told, bool(search.steps), _REFUSED_AGAIN)
    if found is None:
        return None
    x, loss, gradient = found
    steps, changes = [*search.steps, x - search.x], [*search.changes, gradient - search.gradient]
    if float(steps[-1] @ changes[-1]) <= 1e-10 * float(changes[-1] @ changes[-1]):  # H would not stay positive
        steps, changes = search.steps, search.changes
    return Search(x, loss, gradient, steps[-_KEPT:], changes[-_KEPT:])


def _along(
    search: Search,
    d: Array,
    objective: Objective,
    least: float,
    told: float,
    scaled: bool,
    refused: int = _REFUSED,
) -> tuple[Array, float, Array] | None:
    """The accepted (x, loss, gradient) along d: both conditions met, or the best trial that met the first."""
    slope = float(search.gradient @ d)
    if not slope < 0:
        return None
    t = 1.0
    if not scaled:
        t = min(1.0, _FIRST * max(1.0, float(np.linalg.norm(search.x))) / float(np.linalg.norm(d)))
    low, high = (0.0, search.loss, slope), None
    best = None
    for tried in range(_TRIALS):
        promised = -t * slope
        if promised < least and (tried or scaled):
            break
        if tried >= refused and best is None and (promised < told or high is None or high[1] is None):
            break
        x = search.x + t * d
        answer = objective(x)
        if answer is None or not answer[0] <= search.loss + _DECREASE * t * slope:
            high = (t, None if answer is None else answer[0])
        else:
            loss, gradient = answer
            best = (x, loss, gradient)
            here = float(gradient @ d)
            if here >= _CURVATURE * slope:
                break
            low = (t, loss, here)
        t = _next(low, high)
    return best


def _next(low: tuple[float, float, float], high: tuple[float, float | None] | None) -> float:
    """The next trial: further out while nothing bounds the step, else the minimum of the parabola through the lower end
    (value and slope) and the upper one, kept off both."""
    t, loss, slope = low
    if high is None:
        return 4.0 * t
    width = high[0] - t
    if high[1] is None:
        return t + 0.2 * width
    curvature = (high[1] - loss - slope * width) / width**2
    inner = -0.5 * slope / curvature if curvature > 0 else 0.5 * width
    return t + min(max(inner, 0.1 * width), 0.7 * width)
