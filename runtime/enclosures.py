"""Where psi must be looked at: interval arithmetic over psi's own formula.

Samples of psi say nothing of what it does between them: a peak far out, a step of tanh on a range of a million. An
`Interval` put through the numpy functions that psi was printed as gives bounds of all its values between two points, so that
cells on which psi cannot do anything unseen are told from those where it might. The latter are halved, those first
where it could matter most; what is left are places to sample, dense where psi is steep or might be. Rounding is not counted:
the bounds direct samples, and prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray
from scipy import special

from elbotree.runtime.activations import Activation

Array = NDArray[np.float64]

_CELLS = 8192  # in all
_ROUNDS = 80  # of halvings: narrower than 2^-80 of a range nothing is a float64
_FLOOR = 1e-12  # of max |psi|, averaged over the range: what may be left unseen
_CUBIC = 1e-3  # of what psi moves by to the nearest point: how nearly its neighbours tell it


@dataclass(frozen=True)
class Interval(NDArrayOperatorsMixin):
    """Numbers x with low <= x <= high, elementwise; numpy's functions and operators of them enclose all that they can be.

    Raises TypeError for a function that is not among those that psi's text can name.
    """

    low: Array
    high: Array

    @classmethod
    def of(cls, x: Any) -> Interval:
        """A number or an array is an interval of one point each."""
        if isinstance(x, cls):
            return x
        point = np.asarray(x, dtype=np.float64)
        return cls(point, point)

    def __bool__(self) -> bool:
        raise TypeError("an interval is neither true nor false: functions that ask for one truth do not enclose it")

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or function not in _RULES:
            return NotImplemented
        low, high = _RULES[function](*(self.of(x) for x in inputs))
        unknown = np.isnan(low) | np.isnan(high)  # infinities that cancel
        return Interval(np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high))

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        if function is np.shape:
            return self.low.shape
        if function is not np.where or options:
            return NotImplemented
        condition, yes, no = (self.of(x) for x in inputs)
        never, surely = condition.high == 0.0, condition.low == 1.0
        low = np.where(surely, yes.low, np.where(never, no.low, np.minimum(yes.low, no.low)))
        high = np.where(surely, yes.high, np.where(never, no.high, np.maximum(yes.high, no.high)))
        return Interval(low, high)


Ends = tuple[Array, Array]


def _rising(function: Callable[..., Any]) -> Callable[..., Ends]:
    """The rule of a function that does not fall in any argument."""
    return lambda *xs: (
        np.asarray(function(*(x.low for x in xs)), dtype=np.float64),
        np.asarray(function(*(x.high for x in xs)), dtype=np.float64),
    )


def _product(x: Interval, y: Interval) -> Ends:
    ends = [np.where((a == 0.0) | (b == 0.0), 0.0, a * b) for a in (x.low, x.high) for b in (y.low, y.high)]
    return np.minimum.reduce(ends), np.maximum.reduce(ends)


def _quotient(x: Interval, y: Interval) -> Ends:
    through = (y.low < 0.0) & (y.high > 0.0)
    low = np.where(through, -np.inf, np.where(y.high == 0.0, -np.inf, 1.0 / y.high))
    high = np.where(through, np.inf, np.where(y.low == 0.0, np.inf, 1.0 / y.low))
    return _product(x, Interval(low, high))


def _absolute(x: Interval) -> Ends:
    low, high = np.abs(x.low), np.abs(x.high)
    return np.where((x.low < 0.0) & (x.high > 0.0), 0.0, np.minimum(low, high)), np.maximum(low, high)


def _power(x: Interval, y: Interval) -> Ends:
    exponent = float(y.low)  # a number: psi's grammar knows no other
    if exponent < 0.0:
        return _quotient(Interval.of(1.0), Interval(*_power(x, Interval.of(-exponent))))
    if not exponent.is_integer():
        return np.maximum(x.low, 0.0) ** exponent, np.maximum(x.high, 0.0) ** exponent
    if exponent % 2 == 0:
        x = Interval(*_absolute(x))
    return x.low**exponent, x.high**exponent


def _cosine(x: Interval) -> Ends:
    """1 where a multiple of 2 pi is inside, -1 where an odd multiple of pi is, and the values at the ends elsewhere."""
    turn = 2 * np.pi
    top = np.floor(x.high / turn) >= np.ceil(x.low / turn)
    bottom = np.floor((x.high - np.pi) / turn) >= np.ceil((x.low - np.pi) / turn)
    ends = np.cos(x.low), np.cos(x.high)
    known = np.isfinite(x.low) & np.isfinite(x.high)
    return np.where(bottom | ~known, -1.0, np.minimum(*ends)), np.where(top | ~known, 1.0, np.maximum(*ends))


_RULES: dict[Any, Callable[..., Ends]] = {
    function: _rising(function)
    for function in (
        *(np.add, np.maximum, np.minimum, np.logaddexp, np.heaviside, np.exp, np.expm1, np.tanh, np.sign),
        *(np.positive, special.expit, special.ndtr, special.erf, np.logical_and, np.logical_or),
    )
} | {
    np.negative: lambda x: (-x.high, -x.low),
    np.subtract: lambda x, y: (x.low - y.high, x.high - y.low),
    np.multiply: _product,
    np.true_divide: _quotient,
    np.power: _power,
    np.absolute: _absolute,
    np.sqrt: lambda x: (np.sqrt(np.maximum(x.low, 0.0)), np.sqrt(np.maximum(x.high, 0.0))),
    np.log: lambda x: (np.log(np.maximum(x.low, 0.0)), np.log(np.maximum(x.high, 0.0))),
    np.cos: _cosine,
    np.sin: lambda x: _cosine(Interval(x.low - 0.5 * np.pi, x.high - 0.5 * np.pi)),
    np.logical_not: lambda x: (1.0 - x.high, 1.0 - x.low),
    np.greater: lambda x, y: (1.0 * (x.low > y.high), 1.0 * (x.high > y.low)),
    np.greater_equal: lambda x, y: (1.0 * (x.low >= y.high), 1.0 * (x.high >= y.low)),
    np.less: lambda x, y: (1.0 * (x.high < y.low), 1.0 * (x.low < y.high)),
    np.less_equal: lambda x, y: (1.0 * (x.high <= y.low), 1.0 * (x.low <= y.high)),
}


def _width(f: Callable[[Array], Array], cells: Interval) -> Array:
    """By how much a function may vary over each cell."""
    bounds = Interval.of(f(cells))  # type: ignore[arg-type]
    return np.broadcast_to(bounds.high - bounds.low, cells.low.shape)


@lru_cache(maxsize=64)
def places(psi: Activation, low: float, high: float) -> Array:
    """Points in b between `low` and `high`, ascending, that show what psi does within small parts of the range: where it does
    anything there, they are so dense that a cubic through four of them is psi to a thousandth of what it moves by to the next
    one. None where psi is linear between its breaks, or not made of functions that its text can name.

    On a cell of width h the values of psi vary by no more than the width of psi's enclosure, and from a line through one end by no
    more than h times the width of that of psi'. The lesser one, times h, is what the cell may hide. Those that may hide most are
    halved until there are 8,192, or nothing is hidden but a 1e-12th of max |psi| on the average; points that their neighbours
    tell are left out.
    """
    if psi.pieces is not None or psi.affine is not None:
        return np.empty(0)
    ends = [low, *(x for x in psi.breaks if low < x < high), high]
    # just inside, for at a break sign and comparisons are undecided
    gaps = [(a + 1e-9 * (b - a), b - 1e-9 * (b - a)) for a, b in pairwise(ends)]
    found = np.concatenate([np.linspace(a, b, 17) for a, b in gaps])
    apart = np.concatenate([np.repeat(True, 16), [False]] * len(gaps))[:-1]
    left, right = found[:-1][apart], found[1:][apart]
    with np.errstate(all="ignore"):
        try:
            hidden = _hidden(psi, left, right)
        except TypeError:
            return np.empty(0)
        for _ in range(_ROUNDS):
            seen = np.abs(psi.value(left))
            largest = float(np.max(seen, initial=0.0, where=np.isfinite(seen)))
            floor = _FLOOR * largest * (high - low) / _CELLS
            # where nothing is known, psi may do as much as it does anywhere: such cells do not take the turn of all others
            hides = np.where(np.isinf(hidden), (right - left) * max(4 * largest, 1e-300), hidden)
            middle = 0.5 * (left + right)
            split = (hides > max(floor, 0.05 * hides.max())) & (left < middle) & (middle < right)
            room = _CELLS - len(left)
            if not split.any() or room <= 0:
                break
            if split.sum() > room:
                split &= hides >= np.sort(hides[split])[-room]
            new_left = np.concatenate([left[split], middle[split]])
            new_right = np.concatenate([middle[split], right[split]])
            hidden = np.concatenate([hidden[~split], _hidden(psi, new_left, new_right)])
            left, right = np.concatenate([left[~split], new_left]), np.concatenate([right[~split], new_right])
    return _told_by_no_other(psi, np.unique(np.concatenate([left, right])))


def _hidden(psi: Activation, left: Array, right: Array) -> Array:
    """What each cell may hide; infinite where that is not known."""
    cells, h = Interval(left, right), right - left
    hidden = h * np.fmin(_width(psi.value, cells), h * _width(psi.derivative, cells))
    return np.where(np.isnan(hidden), np.inf, hidden)


def _told_by_no_other(psi: Activation, x: Array) -> Array:
    """The points without those that a cubic through two on either side tells (every other one at a time), and without three at
    either end."""
    with np.errstate(all="ignore"):
        y = np.broadcast_to(psi.value(x), x.shape)
        for offset in [0, 1] * 11:
            at = np.arange(3 + offset, len(x) - 3, 2)
            around = np.stack([at - 3, at - 1, at + 1, at + 3])
            t, seen = x[around], y[around]
            told = np.zeros(len(at))
            for i in range(4):
                others = [j for j in range(4) if j != i]
                told += seen[i] * np.prod([(x[at] - t[j]) / (t[i] - t[j]) for j in others], axis=0)
            off = np.minimum(np.abs(y[at] - seen[1]), np.abs(y[at] - seen[2]))
            keep = np.ones(len(x), dtype=bool)
            keep[at] = ~(np.abs(told - y[at]) <= _CUBIC * off + 1e-15 * np.abs(seen).max(axis=0))
            x, y = x[keep], y[keep]
    return x[3:-3]
