"""How psi enters: the map from the lattice frequencies of b to integrals against exp(i alpha psi(b)).

With beta = b - bbar on [lo, hi], frequencies k step (k = -modes..modes) and 2 pi / step = hi - lo, `PsiTransform.rows` gives

    base_l[n, k] = (step / 2 pi) int psi^l exp(i (center_n + theta_n beta + alpha_n psi)) exp(-i k step beta) d beta,

which is all that an expectation ever asks of psi: three numbers per mode n. Where psi is linear between its breaks
(relu, leaky_relu, abs, hardtanh, heaviside, sign) each piece is a spherical Bessel function in closed form and costs
no nodes. Where psi is smooth on the whole range the trapezoidal rule is used, by one fast Fourier transform a mode: the
integrand of a lattice sum carries the density of b, which is zero at both ends, and so the rule is as good as exact for
the sum, though not for each k alone. Elsewhere Gauss-Legendre panels are used, as many nodes as the frequencies need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft
from scipy.special import erfc

from elbotree.runtime.activations import Activation
from elbotree.runtime.enclosures import places
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.quadrature import MOST_TURNS, panels

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


_MOST_POINTS = 1 << 16  # on which a smooth psi is looked at
_AT_ONCE = 1 << 17  # points whose waves are held at once
_OF_B = "psi, or a function of an encoder parameter that depends on b alone,"
_BLOCK = 64  # frequencies that are turned together
_MOST_KEPT = 1 << 21  # waves that are kept for the next rows: 32 MiB


def waves(angle: Array) -> ComplexArray:
    """exp(i angle); sine and cosine of real arrays are vectorised, exponentials of complex ones are not."""
    out = np.empty(angle.shape, dtype=np.complex128)
    out.real, out.imag = np.cos(angle), np.sin(angle)
    return out


def _level(size: float) -> int:
    """Sizes to within a quarter, by which nodes are shared."""
    return int(np.ceil(np.log(max(size, 1e-3)) / np.log(1.25)))


def finite_psi(psi: Activation, b: Array) -> Array:
    """psi(b), or an error that says where it is not finite."""
    value = np.broadcast_to(np.asarray(psi.value(b), dtype=np.float64), np.shape(b))
    if not np.all(np.isfinite(value)):
        bad = float(np.asarray(b)[~np.isfinite(value)].flat[0])
        raise UnsupportedError(
            f"psi ({psi.text}) is not finite at b = {bad:.6g}, which the law of b reaches; restrict the input or choose "
            "a psi that is finite there"
        )
    return value


@dataclass(frozen=True)
class Nodes:
    """A rule for integrals over b: beta, weights and psi(beta), (Q,), and the frequencies k step of b, (K,)."""

    beta: Array
    weights: Array
    psi: Array
    frequencies: Array

    @cached_property
    def _kept(self) -> ComplexArray | None:
        """exp(-i k step beta), (Q, K), where that is small."""
        few = len(self.beta) * len(self.frequencies) <= _MOST_KEPT
        return waves(np.multiply.outer(self.beta, -self.frequencies)) if few else None

    def _parts(self) -> Iterator[tuple[slice, ComplexArray, ComplexArray]]:
        """exp(-i k step beta), some beta at a time, as products of two (q, M) and (q, J), k = -modes + m J + j: so few sines."""
        width = max(1, _AT_ONCE // max(_BLOCK, self._blocks))
        first, step = self.frequencies[0], self.frequencies[1] - self.frequencies[0]
        steps = first + step * _BLOCK * np.arange(self._blocks), step * np.arange(_BLOCK)
        for start in range(0, len(self.beta), width):
            part = slice(start, start + width)
            outer, inner = (waves(np.multiply.outer(self.beta[part], -step)) for step in steps)
            yield part, outer, inner

    @property
    def _blocks(self) -> int:
        return -(-len(self.frequencies) // _BLOCK)

    @property
    def _share(self) -> float:
        return float(self.frequencies[1] - self.frequencies[0]) / (2 * np.pi)

    def against(self, values: Array | ComplexArray) -> ComplexArray:
        """(step / 2 pi) sum_q weight_q values[.., q] exp(-i k step beta_q), (.., K)."""
        weighted = values * (self.weights * self._share)
        if self._kept is not None:
            return np.asarray(weighted @ self._kept)
        rows = weighted.reshape(-1, len(self.beta))
        out = np.zeros((len(rows), self._blocks, _BLOCK), dtype=np.complex128)
        for part, outer, inner in self._parts():
            for sums, row in zip(out, rows, strict=True):
                sums += (row[part] * outer.T) @ inner
        return out.reshape(*values.shape[:-1], -1)[..., : len(self.frequencies)]

    def density(self, phi: ComplexArray) -> Array:
        """(step / 2 pi) Re sum_k phi[k] exp(-i k step beta), (Q,): the density of b at the nodes."""
        if self._kept is not None:
            return np.asarray((self._kept @ phi).real * self._share)
        blocks = np.zeros((self._blocks, _BLOCK), dtype=np.complex128)
        blocks.flat[: len(phi)] = phi
        parts = [(outer * (inner @ blocks.T)).sum(axis=1).real * self._share for _, outer, inner in self._parts()]
        return np.concatenate(parts)


class PsiTransform:
    """Integrals of psi^l exp(i alpha psi) against the frequencies of b, on one range of beta = b - bbar."""

    def __init__(self, psi: Activation, bbar: float, lo: float, hi: float, modes: int, tol: float) -> None:
        self.psi, self.bbar, self.lo, self.hi, self.modes, self.tol = psi, bbar, lo, hi, modes, tol
        self.step = 2 * np.pi / (hi - lo)
        self._nodes: dict[tuple[int, int], Nodes] = {}
        self._last: Nodes | None = None  # of `integrals`
        self._grids: dict[tuple[int, int], int] = {}

    def at(self, beta: Array) -> Array:
        """psi at b = bbar + beta."""
        return finite_psi(self.psi, self.bbar + beta)

    @cached_property
    def breaks(self) -> list[float]:
        """psi's breaks inside the range, in beta."""
        return [b - self.bbar for b in self.psi.breaks if self.lo < b - self.bbar < self.hi]

    @cached_property
    def places(self) -> Array:
        """Where psi must be looked at, in beta."""
        return places(self.psi, self.bbar + self.lo, self.bbar + self.hi) - self.bbar

    @cached_property
    def steepness(self) -> float:
        """max |psi'| over the range, jumps left out."""
        # The neighbourhood of a break is left out: jumps, and slopes that are infinite there. It is small against what lies
        # between the break and the next one, or the end of the range, so that this is seen however short it is.
        ends = [self.lo, *self.breaks, self.hi]
        gaps = np.diff(ends)
        apart = np.minimum(0.25 * np.minimum(gaps[:-1], gaps[1:]), (self.hi - self.lo) / 1024)
        sides = [x for b, d in zip(self.breaks, apart, strict=True) for x in (b - d, b + d)]
        grid = np.unique(np.concatenate([np.linspace(self.lo, self.hi, 1025), sides]))
        slopes = np.abs(np.diff(self.at(grid))) / np.diff(grid)
        for b, d in zip(self.breaks, apart, strict=True):
            slopes[(grid[:-1] >= b - d) & (grid[1:] <= b + d)] = 0.0
        return max(1e-12, float(slopes.max()))

    @cached_property
    def largest(self) -> float:
        """max |psi| over the range."""
        return max(1e-300, float(np.abs(self.at(self._looked_at(129))).max()))

    def _looked_at(self, count: int) -> Array:
        """So many points over the range, and psi's places."""
        return np.concatenate([self.lo + (self.hi - self.lo) * np.linspace(0.0, 1.0, count), self.places])

    @cached_property
    def frequencies(self) -> Array:
        """k step for k = -modes..modes."""
        return np.asarray(self.step * np.arange(-self.modes, self.modes + 1), dtype=np.float64)

    def nodes(self, turns: float, alpha: float) -> Nodes:
        """Nodes for integrands that hold exp(i alpha psi) and turn by at most `turns` radians over the whole range besides the
        lattice's own frequencies."""
        key = _level(turns), _level(alpha * self.largest)
        if key not in self._nodes:
            turn, most = 1.25 ** key[0] / (self.hi - self.lo), 1.25 ** key[1] / self.largest

            def wave(beta: Array) -> ComplexArray:
                return waves(most * self.at(beta))

            frequency = float(np.hypot(self.modes * self.step, turn))
            tol = max(0.1 * self.tol, 2e-15 * most * self.largest)  # phases are rounded too
            beta, weights = panels(
                self.lo,
                self.hi,
                self.breaks,
                frequency,
                [wave, self._relative, self._power],
                tol,
                places=self.places,
            )
            self._nodes[key] = Nodes(beta, weights, self.at(beta), self.frequencies)
        return self._nodes[key]

    def integrals(self, g: Callable[[Array], Array], times: float = 1.0) -> tuple[ComplexArray, float, float]:
        """(step / 2 pi) int psi^l g(beta) exp(-i k step beta) d beta for l = 0, 1, 2, (3, K); max |g|; and what the quadrature may
        miss of any E g, less where they will be multiplied by numbers as large as `times`. g must be smooth between psi's
        breaks."""
        largest = max(1e-300, float(np.abs(g(self._looked_at(257))).max()))

        def scaled(beta: Array) -> Array:
            return np.asarray(g(beta) / largest)

        # nodes four times as dense as the density of b asks for: what is narrower than they stand apart holds little mass
        frequency = min(4 * self.modes * self.step, max(self.modes * self.step, MOST_TURNS / (self.hi - self.lo)))
        missed = max(1e-3 * self.tol / max(1.0, largest * times), 1e-16)
        while True:
            try:
                seen = [scaled, self._relative, self._power]
                beta, weights = panels(self.lo, self.hi, self.breaks, frequency, seen, missed, _OF_B, self.places)
                break
            except UnsupportedError:  # a g that is a quadrature itself has digits enough for less
                if missed > 1e-6:
                    raise
                missed *= 100
        # psi and its square have the same ones
        if self._last is None or not np.array_equal(beta, self._last.beta):
            self._last = Nodes(beta, weights, self.at(beta), self.frequencies)
        nodes, values = self._last, g(beta)
        powers = np.stack([values, values * nodes.psi, values * nodes.psi**2])
        return nodes.against(powers), largest, missed * largest

    def _relative(self, beta: Array) -> Array:
        return np.asarray(self.at(beta) / self.largest)

    def _power(self, beta: Array) -> Array:
        return np.asarray((self.at(beta) / self.largest) ** 2)

    def rows(
        self, center: Array, theta: Array, alpha: Array, powers: int, limits: NDArray[np.int64] | None = None
    ) -> ComplexArray:
        """base_l[n, k] for l < powers <= 3, (powers, N, K); with `limits`, by compiled loops and for |k| <= limits[n] only."""
        if self.psi.pieces is not None and limits is not None:
            from elbotree.runtime import lattice_loops

            out = np.empty((powers, len(center), 2 * self.modes + 1), dtype=np.complex128)
            half, mid, slope, p0 = self.pieces.T.copy()
            lattice_loops.linear_base(
                center, theta, alpha, half, mid, slope, p0, self.step, self.hi - self.lo, limits, out
            )
            return out
        if self.psi.pieces is not None:
            return self._linear_pieces(center, theta, alpha, powers)
        most = float(np.abs(alpha).max(initial=0.0))
        turns = (float(np.abs(theta).max(initial=0.0)) + most * self.steepness) * (self.hi - self.lo)
        points = self.points(turns, most) if not self.breaks else 0
        if points:
            return self._by_trapezoids(center, theta, alpha, powers, points)
        nodes = self.nodes(turns, most)
        phase = waves(center[:, None] + np.multiply.outer(theta, nodes.beta) + np.multiply.outer(alpha, nodes.psi))
        return np.stack([nodes.against(phase * nodes.psi**power) for power in range(powers)])

    def points(self, turns: float, alpha: float) -> int:
        """How many points, a power of two, the trapezoidal rule needs for integrands like those of `nodes`; 0 where psi is too
        rough for it.

        Read off the spectrum of the steepest integrand under a window that dies out at both ends, as the density does.
        """
        key = _level(turns), _level(alpha * self.largest)
        if key not in self._grids:
            turn, most = 1.25 ** key[0], 1.25 ** key[1] / self.largest
            fine = 1 << int(np.ceil(np.log2(16 * (self.modes + turn / (2 * np.pi)) + 256)))
            self._grids[key] = 0
            # what psi does between the points may be all that it does
            if fine <= _MOST_POINTS and 4 * fine * np.diff(self.places).min(initial=np.inf) >= self.hi - self.lo:
                x = np.arange(fine) / fine
                psi = self.at(self.lo + (self.hi - self.lo) * x)
                window = 0.5 * erfc(6.0 * (np.abs(2 * x - 1) - 0.8) / 0.2)
                parts = [np.abs(np.fft.fft(g * window)) / fine for g in (waves(most * psi), (psi / self.largest) ** 2)]
                size = np.maximum(*parts)
                size[1 : fine // 2] += size[: fine // 2 : -1]  # both signs
                beyond = np.cumsum(size[: fine // 2][::-1])[::-1]
                good = np.nonzero(beyond <= max(0.1 * self.tol, 1e-13))[0]
                if len(good):
                    points = 1 << int(np.ceil(np.log2(2 * (self.modes + int(good[0])) + 2)))
                    self._grids[key] = points if points <= fine else 0
        return self._grids[key]

    def _by_trapezoids(self, center: Array, theta: Array, alpha: Array, powers: int, points: int) -> ComplexArray:
        beta = self.lo + (self.hi - self.lo) * np.arange(points) / points
        psi = self.at(beta)
        k = np.arange(-self.modes, self.modes + 1)
        ends = waves(np.asarray(-self.step * self.lo * k, dtype=np.float64)) / points
        out = np.empty((powers, len(center), len(k)), dtype=np.complex128)
        height = max(1, _AT_ONCE // points)
        for start in range(0, len(center), height):
            rows = slice(start, start + height)
            wave = waves(
                center[rows, None] + np.multiply.outer(theta[rows], beta) + np.multiply.outer(alpha[rows], psi)
            )
            for power in range(powers):
                out[power, rows] = fft(wave * psi**power if power else wave, axis=1)[:, k] * ends
        return out

    @cached_property
    def pieces(self) -> Array:
        """Half length, middle, slope and value at the middle of each linear piece inside the range, (pieces, 4)."""
        assert self.psi.pieces is not None
        ends = [self.lo, *self.breaks, self.hi]
        first = sum(b <= self.bbar + self.lo for b in self.psi.breaks)
        rows = []
        for (a, b), (slope, intercept) in zip(pairwise(ends), self.psi.pieces[first:], strict=False):
            mid = 0.5 * (a + b)
            rows.append((0.5 * (b - a), mid, slope, slope * (self.bbar + mid) + intercept))
        return np.array(rows)

    def _linear_pieces(self, center: Array, theta: Array, alpha: Array, powers: int) -> ComplexArray:
        """The same where psi = slope b + intercept between its breaks.

        On a piece of half length h around `mid`, psi = p0 + p1 x with x in [-1, 1], and with z = h (theta_n + alpha_n slope -
        k step): int e^{izx} = 2 j0(z), int x e^{izx} = 2 i j1(z), int x^2 e^{izx} = (2/3)(j0(z) - 2 j2(z)).
        """
        k = np.arange(-self.modes, self.modes + 1)
        out = np.zeros((powers, len(center), len(k)), dtype=np.complex128)
        for h, mid, slope, p0 in self.pieces:
            p1 = slope * h
            turn = theta + alpha * slope
            j0, j1, j2 = _bessel_of_differences(h * turn, h * self.step * k, powers)
            level = [2 * j0, 2 * (p0 * j0 + 1j * p1 * j1) if powers > 1 else j0, j0]
            if powers > 2:
                level[2] = 2 * p0**2 * j0 + 4j * p0 * p1 * j1 + p1**2 * (2 / 3) * (j0 - 2 * j2)
            over_n = np.exp(1j * (center + alpha * (p0 - slope * mid) + turn * mid)) * (h / (self.hi - self.lo))
            over_k = np.exp(-1j * self.step * mid * k)
            both = np.multiply.outer(over_n, over_k)
            for power in range(powers):
                out[power] += both * level[power]
        return out


def _bessel_of_differences(x: Array, y: Array, count: int) -> tuple[Array, Array, Array]:
    """Spherical Bessel functions j0, j1, j2 (as many as `count` asks for) at z = x_n - y_k, without a sine per entry."""
    z = np.subtract.outer(x, y)
    small = np.abs(z) < 0.3
    safe = np.where(small, 1.0, z)
    sine = np.multiply.outer(np.sin(x), np.cos(y)) - np.multiply.outer(np.cos(x), np.sin(y))
    inverse = 1.0 / safe
    j0 = sine * inverse
    near = z[small] ** 2
    j0[small] = 1 + near * (-1 / 6 + near * (1 / 120 + near * (-1 / 5040 + near * (1 / 362880 - near / 39916800))))
    if count < 2:
        return j0, j0, j0
    cosine = np.multiply.outer(np.cos(x), np.cos(y)) + np.multiply.outer(np.sin(x), np.sin(y))
    j1 = (j0 - cosine) * inverse
    j1[small] = z[small] * (1 / 3 + near * (-1 / 30 + near * (1 / 840 + near * (-1 / 45360 + near / 3991680))))
    if count < 3:
        return j0, j1, j0
    j2 = 3 * j1 * inverse - j0
    j2[small] = near * (1 / 15 + near * (-1 / 210 + near * (1 / 7560 + near * (-1 / 498960 + near / 51891840))))
    return j0, j1, j2
