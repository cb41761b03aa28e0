"""Fourier series of functions of one encoder parameter c, on the range where the law of c lives.

A function g on [lo, hi] is continued to a period L >= hi - lo and written g(c) = sum_p ghat(p) e^{i p Delta (c - mid)},
Delta = 2 pi / L, mid = (lo + hi) / 2, so that E g(c) = sum_p ghat(p) E e^{i p Delta (c - mid)}. Two ways of continuing
it, and neither is always best:

* plain (pad 0): L = hi - lo, with the jump at the wrap left in. ghat falls off like 1/p only, but the law's
  characteristic function cuts the sum: right when c carries noise.
* windowed (pad > 0): L = (1 + pad)(hi - lo), g times an error-function window that is 1 on [lo, hi]. ghat itself dies
  out: right when g is smoother than the law of c, or c carries no noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.special import erfc

from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.float_range import vanishing

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

PADS = (0.0, 0.5, 1.2)
_MAX_SAMPLES = 1 << 17
_FIRST_SAMPLES = 1 << 13  # at most so many at once to begin with
_FEW = 64  # modes with which no other padding is tried
# eight-point Lagrange interpolation at the midpoint: how well a function's samples predict the sample between two
_MIDPOINT = np.array([-5, 49, -245, 1225, 1225, -245, 49, -5]) / 2048


@dataclass(frozen=True)
class Period:
    """One period of c: [lo, hi] is where c lives, 2 pi / delta the period, pad the share of it that a window uses."""

    lo: float
    hi: float
    pad: float

    @property
    def length(self) -> float:
        return (1.0 + self.pad) * (self.hi - self.lo)

    @property
    def delta(self) -> float:
        return 2 * np.pi / self.length

    @property
    def middle(self) -> float:
        """Where phases are counted from: a coordinate far from 0 on a narrow range keeps all its digits."""
        return 0.5 * (self.lo + self.hi)

    @property
    def start(self) -> float:
        return self.lo - 0.5 * self.pad * (self.hi - self.lo)

    def window(self, x: Array, tol: float) -> Array:
        """1 on [lo, hi], falling to about tol at the ends of the period; all ones without padding."""
        if self.pad == 0.0:
            return np.ones_like(x)
        half = 0.25 * self.pad * (self.hi - self.lo)
        outside = np.maximum(self.lo - x, x - self.hi)
        return np.asarray(0.5 * erfc(np.sqrt(np.log(1.0 / max(tol, 1e-16))) / half * (outside - half)))


@dataclass(frozen=True)
class Series:
    """ghat(p), p = -P..P; `dropped` bounds what cutting there adds to any E g(c), `unresolved` is about what
    sampling g adds; `largest` is max |g|."""

    coefficients: ComplexArray
    dropped: float
    unresolved: float
    largest: float

    @property
    def error(self) -> float:
        return self.dropped + self.unresolved

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
        if P <= self.P:
            return self.coefficients
        out = np.zeros(2 * P + 1, dtype=np.complex128)
        out[P - self.P : P + self.P + 1] = self.coefficients
        return out


class Spectrum:
    """The Fourier coefficients of g on `period`, before any cut.

    Samples are doubled until eight of them predict the next midpoint to a tenth of tol, so that g is resolved whatever
    its shape, and until the window is resolved too. They begin no farther apart than `noise`, the standard deviation of the
    noise in c: what is narrower and escapes them holds little mass. A g too sharp for 131,072 samples keeps what is missing in
    `misfit`.
    Raises UnsupportedError when g is not finite on the period; `name` is what the message calls it.
    """

    def __init__(
        self, g: Callable[[Array], Array], period: Period, tol: float, name: str = "an integrand", noise: float = 0.0
    ) -> None:
        count = 128
        while count < _FIRST_SAMPLES and period.length > count * noise > 0.0:
            count *= 2
        both = finite(name, g, np.asarray(period.start + (0.5 * period.length / count) * np.arange(2 * count)))
        values, between = both[0::2], both[1::2]
        while True:
            guess = np.convolve(values, _MIDPOINT, mode="valid")
            misfit = np.abs(between[3 : 3 + len(guess)] - guess)
            step, values, count = period.length / count, both, 2 * count
            worst, self.largest = float(misfit.max()), float(np.abs(values).max())
            resolved = worst <= max(0.1 * tol, 1e-15 * self.largest)
            if count >= _MAX_SAMPLES or (resolved and self._died_out(values, period, tol)):
                break
            between = finite(name, g, np.asarray(period.start + (period.length / count) * (np.arange(count) + 0.5)))
            both = np.empty(2 * count)
            both[0::2], both[1::2] = values, between
        self.period, self.tol, self.count = period, tol, count
        # worst misfit, and the sum that the trapezoidal rule misses at most when multiplied by step and density
        self.misfit = (0.0, 0.0) if resolved else (worst, step * float(misfit.sum()))
        raw = self._transformed(values, period, tol)
        raw[1::2] *= -1.0  # samples start half a period before the middle
        self.raw = raw
        self._sizes = 2 * np.abs(raw[::-1])
        self._squares = np.arange(len(raw) - 1, -1, -1.0) ** 2

    @vanishing
    def _transformed(self, values: Array, period: Period, tol: float) -> ComplexArray:
        # the window ends where it is tol against the largest value, so that its own jump at the wrap does not matter
        x = period.start + period.length * np.arange(len(values)) / len(values)
        windowed = values * period.window(x, tol / max(1.0, self.largest))
        return np.asarray(np.fft.rfft(windowed) / len(values))

    def _floor(self, count: int) -> float:
        """What rounding leaves in a sum of coefficients."""
        return float(4e-17 * self.largest * count**0.5)

    def _died_out(self, values: Array, period: Period, tol: float) -> bool:
        """Whether the windowed function's coefficients have; without a window they need not, the law cuts them."""
        if period.pad == 0.0:
            return True
        raw = np.abs(self._transformed(values, period, tol))
        return bool(2 * raw[-len(raw) // 4 :].sum() <= max(0.1 * tol, self._floor(len(values))))

    @vanishing
    def cut(self, sigma: float, tol: float) -> Series:
        """The series with what is left out adding at most tol to any E g(c).

        sigma: standard deviation of the Gaussian noise in c, so that |E e^{i p Delta c}| <= exp(-(p Delta sigma)^2 / 2) and
        the density of c is at most 1 / (sigma sqrt(2 pi)).
        """
        factor = -0.5 * (self.period.delta * sigma) ** 2
        left = np.cumsum(
            self._sizes * np.exp(np.maximum(factor * self._squares, -700.0))
        )  # out when the last 1, 2, .. are
        out = int(np.searchsorted(left, max(tol, self._floor(self.count)), side="right"))  # how many may be
        P = min(max(len(left) - 1 - out, 0), self.count // 2 - 1)
        dropped = float(left[len(left) - 2 - P])
        worst, total = self.misfit
        unresolved = min(worst, total / (sigma * np.sqrt(2 * np.pi))) if sigma > 0 else worst
        coefficients = np.concatenate([self.raw[P:0:-1].conj(), self.raw[: P + 1]])
        return Series(coefficients, dropped, unresolved, self.largest)

    def cost(self, sigma: float, tol: float) -> tuple[float, int]:
        """What to choose a period by: first how much is left out, where that is more than tol asks, then modes."""
        made = self.cut(sigma, tol)
        return max(made.error, 2 * tol), made.P


def finite(name: str, g: Callable[..., Array], *c: Array) -> Array:
    """g(c), or an error that says where it is not finite."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = np.asarray(g(*c), dtype=np.float64)
    if values.shape != c[0].shape:
        values = np.broadcast_to(values, c[0].shape)
    if not np.isfinite(values).all():
        bad = ", ".join(f"{float(x[~np.isfinite(values)][0]):.6g}" for x in c)
        raise UnsupportedError(
            f"{name} is not finite at c = {bad}, which the law of the encoder's parameters reaches; rescale these rows of "
            "C or mend the family's formula"
        )
    return values


def best_spectrum(
    g: Callable[[Array], Array], lo: float, hi: float, sigma: float, tol: float, name: str, noise: float = 0.0
) -> Spectrum:
    """The spectrum of g under the padding that needs the fewest modes for noise sigma, among those that reach tol."""
    plain = Spectrum(g, Period(lo, hi, PADS[0]), tol, name, noise)
    if plain.cost(sigma, tol) <= (2 * tol, _FEW):
        return plain
    found = [plain, *(Spectrum(g, Period(lo, hi, pad), tol, name, noise) for pad in PADS[1:])]
    return min(found, key=lambda spectrum: spectrum.cost(sigma, tol))


_PIECE_NODES = 32  # Chebyshev nodes a side of a rectangle
_MOST_PIECES = 400
_MOST_MODES = 512  # a side


@dataclass(frozen=True)
class Series2d:
    """A double Fourier series on a half lattice: modes (N, 2), coefficients (multiplicity included), what was left out, and what
    sampling g adds to any E g."""

    modes: NDArray[np.int64]
    coefficients: ComplexArray
    dropped: float
    unresolved: float

    @property
    def error(self) -> float:
        return self.dropped + self.unresolved


def series_2d(
    g: Callable[..., Array], periods: Sequence[Period], noise: Array, tol: float, name: str = "an integrand"
) -> Series2d:
    """The windowed double Fourier series of g(c0, c1), cut where what is left out adds at most tol.

    noise (2, 2): covariance of the Gaussian noise in (c0, c1). Coefficients are integrals over the pieces of `_pieces`, so that no
    grid aliases them. Raises UnsupportedError when g is not finite.
    """
    pieces, misfit = _pieces(g, periods, noise, tol, name)
    reach = [32, 32]
    while True:
        raw = _integrals(pieces, periods, reach, tol)
        p = [np.arange(-P, P + 1) for P in reach]
        w0, w1 = p[0][:, None] * periods[0].delta, p[1][None, :] * periods[1].delta
        size = np.abs(raw) * np.exp(-0.5 * (noise[0, 0] * w0**2 + 2 * noise[0, 1] * w0 * w1 + noise[1, 1] * w1**2))
        # what lies beyond is about what the last quarter holds
        beyond = [
            float(size[4 * np.abs(p[0]) > 3 * reach[0]].sum()),
            float(size[:, 4 * np.abs(p[1]) > 3 * reach[1]].sum()),
        ]
        wider = [axis for axis in range(2) if beyond[axis] > 0.1 * tol and reach[axis] < _MOST_MODES]
        if not wider:
            break
        for axis in wider:
            reach[axis] *= 2
    order = np.argsort(size, axis=None)
    cumulative = np.cumsum(size.ravel()[order])
    cut = int(np.searchsorted(cumulative, 0.7 * tol))
    i, j = np.unravel_index(order[cut:], size.shape)
    modes = np.stack([p[0][i], p[1][j]], axis=1).astype(np.int64)
    keep = (modes[:, 0] > 0) | ((modes[:, 0] == 0) & (modes[:, 1] >= 0))
    multiplicity = np.where(np.any(modes != 0, axis=1), 2.0, 1.0)
    dropped = float(cumulative[cut - 1]) if cut > 0 else 0.0
    return Series2d(modes[keep], (raw[i, j] * multiplicity)[keep], dropped + sum(beyond), misfit)


def _pieces(
    g: Callable[..., Array], periods: Sequence[Period], noise: Array, tol: float, name: str
) -> tuple[list[_Piece], float]:
    """g as Chebyshev series on rectangles that cover the periods, and about what they add to the error of any E g.

    Rectangles are halved until the series are resolved: g is called some thousand times, which matters where each call is a
    quadrature over beta. Where `_MOST_PIECES` do not resolve it the rest stays as it is, and is in the error.
    """
    # quarters to begin with: what is narrower than the nodes of the whole stand apart would go unseen
    edges = [np.linspace(period.start, period.start + period.length, 3) for period in periods]
    waiting = [
        _Piece.of(g, ((edges[0][i], edges[0][i + 1]), (edges[1][j], edges[1][j + 1])), name)
        for i in range(2)
        for j in range(2)
    ]
    done: list[_Piece] = []
    missed: list[float] = []
    while waiting:
        piece = waiting.pop()
        allowed = max(0.1 * tol, piece.floor)
        left = sum(piece.tails)
        if left <= allowed:
            left += 2 * piece.missed(g, name)  # coefficients may be small at the nodes alone
        if left <= 2 * allowed or piece.narrow or len(waiting) + len(done) >= _MOST_PIECES:
            done.append(piece)
            missed.append(left)
        else:
            waiting += [_Piece.of(g, part, name) for part in piece.halves()]
    spread = float(np.linalg.det(noise))
    density = 1 / (2 * np.pi * spread**0.5) if spread > 0 else np.inf
    mass = np.minimum(1.0, [piece.area * density for piece in done])
    return done, min(max(missed), float(mass @ missed))


@lru_cache(maxsize=64)
def _gauss(count: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(count)


def _integrals(pieces: Sequence[_Piece], periods: Sequence[Period], reach: Sequence[int], tol: float) -> ComplexArray:
    """The Fourier coefficients of the pieces' function times the periods' windows, for |p| <= reach in each direction."""
    out = np.zeros((2 * reach[0] + 1, 2 * reach[1] + 1), dtype=np.complex128)
    for piece in pieces:
        values, waves = piece.coefficients, []
        for (lo, hi), period, P in zip(piece.ends, periods, reach, strict=True):
            # panels as long as a window takes to fall; a series has degree _PIECE_NODES - 1, and e^(i a x) on [-1, 1] is resolved
            # by a degree a little above a
            panels = int(np.ceil((hi - lo) / (0.25 * period.pad * (period.hi - period.lo)))) if period.pad > 0 else 1
            half = 0.5 * (hi - lo) / panels
            nodes, weights = _gauss(_PIECE_NODES + int(0.75 * P * period.delta * half))
            at = (np.arange(panels)[:, None] + 0.5 * (1 + nodes)).ravel() / panels  # in [0, 1]
            # from the middle, so that a range that is small beside its place keeps its digits
            x = (lo - period.middle) + (hi - lo) * at
            about = Period(period.lo - period.middle, period.hi - period.middle, period.pad)
            turn = np.multiply.outer(np.arange(-P, P + 1) * period.delta, x)
            weighted = np.tile(weights, panels) * about.window(x, tol) * (half / period.length)
            basis = np.polynomial.chebyshev.chebvander(2 * at - 1, _PIECE_NODES - 1)
            values = (basis @ values).T
            waves.append(np.exp(-1j * turn) * weighted)
        out += waves[0] @ values @ waves[1].T
    return out


@dataclass(frozen=True)
class _Piece:
    """A double Chebyshev series on a rectangle; `tails` are the sums of its last coefficients in each direction, which say how
    well it is resolved, and `floor` what rounding leaves of them."""

    ends: tuple[tuple[float, float], tuple[float, float]]
    coefficients: Array
    tails: tuple[float, float]
    floor: float

    @property
    def narrow(self) -> bool:
        """Whether a side is so short beside its place that its nodes would fall together if it were halved further."""
        return any(hi - lo <= 1e-11 * (abs(lo) + abs(hi)) for lo, hi in self.ends)

    @property
    def area(self) -> float:
        return float(np.prod([hi - lo for lo, hi in self.ends]))

    @staticmethod
    def of(g: Callable[..., Array], ends: tuple[tuple[float, float], tuple[float, float]], name: str) -> _Piece:
        n = _PIECE_NODES
        nodes = np.cos(np.pi * (np.arange(n) + 0.5) / n)
        values = finite(name, g, *np.meshgrid(*(lo + 0.5 * (hi - lo) * (1 + nodes) for lo, hi in ends), indexing="ij"))
        coefficients = dctn(values, type=2) / n**2
        coefficients[0] *= 0.5
        coefficients[:, 0] *= 0.5
        first = 3 * n // 4
        tails = float(np.abs(coefficients[first:]).sum()), float(np.abs(coefficients[:, first:]).sum())
        return _Piece(ends, coefficients, tails, 1e-15 * n * float(np.abs(values).max()))

    def missed(self, g: Callable[..., Array], name: str) -> float:
        """How far the series is from g between its nodes, at most."""
        nodes = np.cos(np.pi * np.arange(1, _PIECE_NODES) / _PIECE_NODES)
        x = [lo + 0.5 * (hi - lo) * (1 + nodes) for lo, hi in self.ends]
        factor = np.polynomial.chebyshev.chebvander(nodes, _PIECE_NODES - 1)
        found = factor @ self.coefficients @ factor.T
        return float(np.abs(found - finite(name, g, *np.meshgrid(*x, indexing="ij"))).max())

    def halves(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """The rectangle cut in two across the direction that is worse resolved."""
        (lo, hi), other = self.ends if self.tails[0] >= self.tails[1] else self.ends[::-1]
        middle = 0.5 * (lo + hi)
        cut = [((lo, middle), other), ((middle, hi), other)]
        return cut if self.tails[0] >= self.tails[1] else [(b, a) for a, b in cut]
