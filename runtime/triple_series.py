"""E g(S) for three read-outs S = V f(x1) at once: a triple Fourier series of g against the law's characteristic function,

    E g(S) = sum_p ghat(p) E e^{i <omega_p, S - middle>},      omega_p = (p_1 Delta_1, p_2 Delta_2, p_3 Delta_3)

with modes kept where |ghat(p)| times the Gaussian factor of the noise given b matters. Lemma 3.4 with t = 3. The cost is
modes times frequencies of b times sources; it is said, and refused where it is too much, before the sum begins. One and
two read-outs are `spectral`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fftn

from elbotree.runtime import rings
from elbotree.runtime.errors import CostError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.fourier import PADS, Period, finite
from elbotree.runtime.frames import Axis, Frame
from elbotree.runtime.output_law import OutputLaw

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

_COUNTS = (24, 48, 96, 144)  # samples of g a side
# of a cell: where grids of samples start; no two low aliases have the same phases on all of them
_SHIFTS = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.25, 0.5, 0.75))
_MAX_POINTS = 2e10
_POINTS_A_SECOND = 1.2e8  # of the compiled loops, on one core of 2026

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Modes:
    """Half a lattice of modes (N, 3), g's coefficients there on each of the grids (shifts, N), multiplicity included; what
    was left out; and the largest |g|."""

    modes: NDArray[np.int64]
    coefficients: ComplexArray
    dropped: float
    largest: float


def expect_of_three(
    output: OutputLaw, V: Array, g: Callable[..., Array], tol: float, max_seconds: float | None = None
) -> Estimate:
    """E g(V f(x1)) for V (3, n2) and g of three arrays, with an error that aims at tol.

    The error adds up what modes leave out, the mass outside the ranges (Chernoff), rounding, and the largest difference
    between three grids of samples of g, which shows what a g too rough for them loses. Raises CostError before the work
    where it would take longer than max_seconds, or more than 2e10 terms.
    """
    coordinates = [output.coordinate(row, 0.0) for row in V]
    boxes, epsilon, beyond = rings.boxes("g", g, coordinates, tol / 64)
    rows = np.array([c.v for c in coordinates])
    noise = rows @ output.lattice_law.noise @ rows.T
    found = [([Period(lo, hi, pad) for lo, hi in (box.first for box in boxes)], pad) for pad in PADS[:2]]
    made = [(periods, _series(g, periods, noise, tol / 8)) for periods, _ in found]
    periods, series = min(made, key=lambda item: (max(item[1].dropped, tol / 4), len(item[1].modes)))
    _check_cost(output, len(series.modes), max_seconds)
    axes = [Axis(c, period) for c, period in zip(coordinates, periods, strict=True)]
    frame = Frame(output.lattice_law, output.transform, output.u, output.w, axes, series.modes, compiled=True)
    values = (series.coefficients @ frame.X).real
    aliases = 2 * float(values.max() - values.min())
    rounding = float(np.abs(series.coefficients[0]) @ frame.rounding)
    outside = 8 * epsilon * beyond + output.b_error * max(series.largest, beyond)
    return Estimate.of(float(values.mean()), series.dropped + aliases + rounding + outside)


def _check_cost(output: OutputLaw, modes: int, max_seconds: float | None) -> None:
    columns = 1 if output.transform is None else 2 * output.transform.modes + 1
    points = float(modes) * columns * max(1, len(output.lattice_law.priors))
    seconds = points / _POINTS_A_SECOND
    said = (
        f"E g(S) of three read-outs sums {modes:,} modes of g by {columns:,} frequencies of b for "
        f"{len(output.lattice_law.priors)} sources, about {seconds:.2g} s"
    )
    _log.log(logging.INFO if seconds > 10 else logging.DEBUG, said)
    limit = _MAX_POINTS / _POINTS_A_SECOND if max_seconds is None else max_seconds
    if seconds > limit:
        allowed = f"max_seconds = {max_seconds:g}" if max_seconds is not None else f"the {limit:.0f} s that are allowed"
        raise CostError(
            f"{said}, more than {allowed}; loosen tol, raise noise_std, take a smoother g or two read-outs, or give "
            "max_seconds"
        )


def _series(g: Callable[..., Array], periods: Sequence[Period], noise: Array, tol: float) -> _Modes:
    """Modes of the windowed g, left out where |ghat| times the Gaussian factor sums up to tol; samples are refined until
    the outer half of their frequencies is not needed."""
    for count in _COUNTS:
        raw, largest = _transformed(g, periods, count, _SHIFTS[0], tol)
        p = np.fft.fftfreq(count, 1.0 / count)
        omega = np.stack(np.meshgrid(*[p * period.delta for period in periods], indexing="ij"), axis=-1)
        size = np.abs(raw) * np.exp(-0.5 * np.einsum("...a,ab,...b->...", omega, noise, omega))
        order = np.argsort(size, axis=None)
        cumulative = np.cumsum(size.ravel()[order])
        cut = int(np.searchsorted(cumulative, tol))
        places = np.unravel_index(order[cut:], size.shape)
        modes = np.stack([p[i] for i in places], axis=1).astype(np.int64)
        if np.abs(modes).max(initial=0) <= count // 4 or count == _COUNTS[-1]:
            break
    first = modes[:, 0] * (4 * count * count) + modes[:, 1] * (2 * count) + modes[:, 2]
    keep = (first >= 0) & (np.abs(modes).max(axis=1) < count // 2)  # one of each pair p, -p
    modes, places = modes[keep], tuple(i[keep] for i in places)
    grids = [raw, *(_transformed(g, periods, count, shift, tol)[0] for shift in _SHIFTS[1:])]
    multiplicity = np.where(modes.any(axis=1), 2.0, 1.0)
    coefficients = np.stack([grid[places] * multiplicity for grid in grids])
    return _Modes(modes, coefficients, float(cumulative[cut - 1]) if cut else 0.0, largest)


def _transformed(
    g: Callable[..., Array], periods: Sequence[Period], count: int, shift: tuple[float, ...], tol: float
) -> tuple[ComplexArray, float]:
    """ghat(p) from count^3 samples of g times its window, phases counted from the middles of the periods; and max |g|."""
    x = [a.start + a.length * (np.arange(count) + s) / count for a, s in zip(periods, shift, strict=True)]
    values = finite("g", g, *np.meshgrid(*x, indexing="ij"))
    largest = float(np.abs(values).max())
    for axis, (period, at) in enumerate(zip(periods, x, strict=True)):
        window = period.window(at, tol / max(1.0, largest))
        values = values * window.reshape([-1 if a == axis else 1 for a in range(3)])
    raw = fftn(values) / values.size
    p = np.fft.fftfreq(count, 1.0 / count)
    for axis, s in enumerate(shift):  # samples start half a period before the middle, and s of a cell
        turn = (-1.0) ** p * np.exp(-2j * np.pi * s * p / count)
        raw = raw * turn.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(raw, dtype=np.complex128), largest
