"""Fourier series of a function of c on the range where the law of c lives.

A function g on [lo, hi] is continued to a period L >= hi - lo and written g(c) = sum_p ghat(p) e^{i p Delta c},
Delta = 2 pi / L, so that E g(c) = sum_p ghat(p) E e^{i p Delta c}. Two ways of continuing it, and neither is always best:

* plain (pad 0): L = hi - lo, with the jump at the wrap left in. ghat falls off like 1/p only, but the law's
  characteristic function cuts the sum: right when c carries noise.
* windowed (pad > 0): L = (1 + pad)(hi - lo), g times an error-function window that is 1 on [lo, hi]. ghat itself dies out:
  right when g is smoother than the law of c, or c carries no noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

PADS = (0.0, 0.4, 0.8, 1.5)
_MAX_SAMPLES = 1 << 17


@dataclass(frozen=True)
class Series:
    """ghat(p), p = -P..P, on a period of 2 pi / delta; `dropped` is the sum of |ghat(p)| G(p) left out, G the bound on
    the characteristic function that chose P; `largest` is max |g| on the period."""

    delta: float
    coefficients: ComplexArray
    dropped: float
    largest: float

    @property
    def P(self) -> int:
        return len(self.coefficients) // 2

    def half(self) -> ComplexArray:
        """The coefficients for p = 0..P with those for -p folded in: Re sum half()[p] X(p) is the whole sum."""
        out = self.coefficients[self.P :].copy()
        out[1:] *= 2
        return out

    def grown(self, P: int) -> ComplexArray:
        """The coefficients for |p| <= P, zero beyond the cut."""
        return np.pad(self.coefficients, max(0, P - self.P))


def _samples(lo: float, hi: float, pad: float, count: int, tol: float) -> tuple[Array, Array]:
    """Sample points of one period and the window on them."""
    width = hi - lo
    length = (1.0 + pad) * width
    x = lo - 0.5 * pad * width + length * np.arange(count) / count
    if pad == 0.0:
        return x, np.ones(count)
    half = 0.25 * pad * width  # the window falls from 1 to 0 over 2 * half on either side
    sharpness = np.sqrt(np.log(1.0 / tol)) / half
    distance = np.maximum(lo - x, x - hi)  # > 0 outside [lo, hi]
    return x, np.asarray(0.5 * erfc(sharpness * (distance - half)))


def _spectrum(g: Callable[[Array], Array], lo: float, hi: float, pad: float, count: int, tol: float) -> tuple[
    ComplexArray, Array, float, float
]:
    """ghat(p) by FFT order, p, Delta and max |g| of one period sampled at `count` points."""
    x, window = _samples(lo, hi, pad, count, max(tol, 1e-16))
    values = g(x)
    delta = 2 * np.pi / ((1.0 + pad) * (hi - lo))
    p = np.fft.fftfreq(count, 1.0 / count)
    raw = np.fft.fft(values * window) / count * np.exp(-1j * p * delta * x[0])
    return raw, p, delta, float(np.abs(values).max())


def _tails(size: Array, p: Array) -> Array:
    """tails[P] = the sum of size over |p| > P."""
    by_order = np.bincount(np.abs(p).astype(np.intp), weights=size)
    return np.append(np.cumsum(by_order[::-1])[::-1][1:], 0.0)


def _resolution(g: Callable[[Array], Array], lo: float, hi: float, tol: float) -> tuple[int, float]:
    """How many samples resolve g itself on [lo, hi], and what is left of its spectrum there.

    Judged on a windowed copy: the plain one has a jump at the wrap, which no number of samples resolves and which does
    no harm, since the law has no mass there.
    """
    count = 128
    while True:
        raw, p, _, largest = _spectrum(g, lo, hi, PADS[1], count, tol)
        left = float(np.abs(raw[np.abs(p) >= count // 4]).max())
        if left <= max(tol / count, 4e-17 * largest) or count >= _MAX_SAMPLES:
            return count, left
        count *= 2


def series(
    g: Callable[[Array], Array], lo: float, hi: float, pad: float, sigma: float, tol: float, resolution: tuple[int, float]
) -> Series:
    """The Fourier series of g on [lo, hi], cut where what is left out adds at most tol to any E g(c).

    sigma: standard deviation of the Gaussian noise in c, so that |E e^{i p Delta c}| <= exp(-(p Delta sigma)^2 / 2) = G(p).
    resolution: samples that resolve g, and the size of its spectrum beyond them; samples are doubled from there until the
    cut lies in the lower half of the frequencies they resolve.
    """
    count, beyond = resolution
    while True:
        raw, p, delta, largest = _spectrum(g, lo, hi, pad, count, tol)
        gauss = np.exp(-0.5 * (p * delta * sigma) ** 2)
        tails = _tails(np.abs(raw) * gauss, p)
        P = int(np.argmax(tails <= max(tol, 4e-17 * largest * count**0.5)))
        if count // 4 >= P or count >= _MAX_SAMPLES:
            P = min(P, count // 2 - 1)
            index = np.arange(-P, P + 1) % count
            folded = beyond * float(gauss[np.abs(p) <= P].sum())
            return Series(delta, raw[index], float(tails[P]) + folded, largest)
        count *= 2


def best_series(
    gs: Sequence[Callable[[Array], Array]], lo: float, hi: float, sigma: float, tol: float
) -> list[Series]:
    """Series of several functions on one common period: the padding with the fewest modes."""
    resolutions = [_resolution(g, lo, hi, tol) for g in gs]
    found = [
        [series(g, lo, hi, pad, sigma, tol, size) for g, size in zip(gs, resolutions, strict=True)] for pad in PADS
    ]
    return min(found, key=lambda every: max(s.P for s in every))


@dataclass(frozen=True)
class Series2d:
    """A double Fourier series on a half lattice: modes (N, 2), coefficients (multiplicity included), what was left out."""

    deltas: tuple[float, float]
    modes: NDArray[np.int64]
    coefficients: ComplexArray
    dropped: float


def series_2d(
    g: Callable[..., Array], ranges: list[tuple[float, float]], noise: Array, tol: float, pad: float = 0.8
) -> Series2d:
    """The windowed double Fourier series of g(c0, c1), cut where what is left out adds at most tol.

    ranges: of the two coordinates; noise (2, 2): covariance of the Gaussian noise in (c0, c1).
    """
    count = 128
    while True:
        axes = [_samples(lo, hi, pad, count, max(tol, 1e-16)) for lo, hi in ranges]
        deltas = tuple(2 * np.pi / ((1.0 + pad) * (hi - lo)) for lo, hi in ranges)
        grid = np.meshgrid(*[a[0] for a in axes], indexing="ij")
        raw = np.fft.fft2(g(*grid) * np.multiply.outer(axes[0][1], axes[1][1])) / count**2
        p = np.fft.fftfreq(count, 1.0 / count)
        raw = raw * np.multiply.outer(*[np.exp(-1j * p * d * a[0][0]) for d, a in zip(deltas, axes, strict=True)])
        w0, w1 = p[:, None] * deltas[0], p[None, :] * deltas[1]
        gauss = np.exp(-0.5 * (noise[0, 0] * w0**2 + 2 * noise[0, 1] * w0 * w1 + noise[1, 1] * w1**2))
        size = np.abs(raw) * gauss
        order = np.argsort(size, axis=None)
        cumulative = np.cumsum(size.ravel()[order])
        cut = int(np.searchsorted(cumulative, tol))
        chosen = order[cut:]
        i, j = np.unravel_index(chosen, size.shape)
        modes = np.stack([p[i], p[j]], axis=1).astype(np.int64)
        inside = np.abs(modes).max(initial=0) <= count // 4
        if inside or count >= 1024:
            keep = (modes[:, 0] > 0) | ((modes[:, 0] == 0) & (modes[:, 1] >= 0))
            multiplicity = np.where(np.any(modes != 0, axis=1), 2.0, 1.0)
            dropped = float(cumulative[cut - 1]) if cut > 0 else 0.0
            return Series2d((deltas[0], deltas[1]), modes[keep], (raw.ravel()[chosen] * multiplicity)[keep], dropped)
        count *= 2
