"""Lattice sums that expectations of encoder parameters are made of, each made once and shared.

An `Axis` is one coordinate c = <row, f> + bias with a period to expand functions of it on. A `Frame` holds, for one or
two axes and a set of modes n, the numbers X[l, n] = E[psi^l e^{i <omega_n, c>}], Y[l, n] = E[(y - ybar) psi^l e^{..}] and
Z of the numerics page: everything that the loss and its gradient ask of the pair, whatever the function on it. In these
exponents each c is counted from the middle of its period.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.characteristic import Lattice, LinearLaw, Tails
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.fourier import Period
from elbotree.runtime.psi_transform import PsiTransform
from elbotree.runtime.rings import STEPS, Ranges

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

ROUNDOFF = 2.3e-16
_FEW_EDGES = 4  # modes near a cut that say how fast sums fall there
_EDGE_SAFETY = 3.0
_MAX_POINTS = 3e9  # lattice points times sources of one frame; beyond it the engine says so instead of starting


@dataclass(frozen=True)
class Coordinate:
    """c = <row, f> + bias = z + m(beta), z = <v, y - ybar> with v orthogonal to u in the metric of the noise, and
    m(beta) = center + theta beta + kappa psi(bbar + beta)."""

    v: Array
    theta: float
    kappa: float
    center: float
    sigma: float  # standard deviation of the Gaussian noise in z
    tails: Tails  # of z
    shift: Array  # least and largest m(beta) on each of beta's ranges, (2, ranges)
    of_b: bool = False  # whether z is 0, so that c = m(beta)
    # tails and means of the linear forms of y that c is one of, if it is, and the first of beta's ranges where it is that one
    pieces: tuple[tuple[Tails, float, int], ...] = ()

    def ranges(self, log_epsilon: float) -> Ranges:
        """Where c lives: outside the first with probability below 2 exp(log_epsilon), where beta is inside its own range, and
        likewise for wider and wider ranges of both, the masses outside being those of `rings`.

        Two bounds, the better on each side: z and m(beta) at their ends at once, and the worst of the linear pieces.
        """
        lo, hi = self.tails.bounds(log_epsilon - STEPS)
        lo, hi = self.shift[0] + lo, self.shift[1] + hi
        if self.pieces:
            least, most = np.full_like(lo, np.inf), np.full_like(hi, -np.inf)
            for tails, mean, first in self.pieces:
                ends = tails.bounds(log_epsilon - STEPS[first:] - np.log(len(self.pieces)))
                least[first:] = np.minimum(least[first:], mean + ends[0])
                most[first:] = np.maximum(most[first:], mean + ends[1])
            lo, hi = np.maximum(lo, least), np.minimum(hi, most)
        return Ranges(lo, hi)


@dataclass
class Axis:
    """A coordinate with a period: what Fourier series of functions of c are expanded on."""

    coordinate: Coordinate
    period: Period

    @property
    def delta(self) -> float:
        return self.period.delta

    def travelling(self) -> Axis:
        """The same axis without what only the choice of its range needs."""
        return Axis(
            replace(
                self.coordinate, tails=Tails.of_constant(), shift=self.coordinate.center + np.zeros((2, 1)), pieces=()
            ),
            self.period,
        )


@dataclass(frozen=True)
class Sums:
    """What of a frame was made in another process: `Frame.sums`."""

    order: int
    values: ComplexArray
    vectors: ComplexArray | None
    along: ComplexArray | None


class Frame:
    """The sums X, Y, Z of one lattice, each made when first asked for, or taken from where they were made."""

    def __init__(
        self,
        law: LinearLaw,
        transform: PsiTransform | None,
        u: Array,
        w: Array,
        axes: Sequence[Axis],
        modes: NDArray[np.int64],
        compiled: bool = False,
        pace: Callable[[float, float, float], None] | None = None,
    ) -> None:
        self.law, self.transform, self.w = law, transform, w
        self.axes, self.modes = axes, modes
        # told the seconds that some sums took, and those with all before them, and what share of the frame these are
        self._pace, self._seconds, self._share = pace, 0.0, 0.0
        self._along: dict[bytes, ComplexArray] = {}  # made elsewhere, until they are read
        steps = np.array([a.delta * a.coordinate.v for a in axes]).reshape(len(axes), len(w))
        parts = [(a.coordinate, a.period.middle) for a in axes]
        table = np.array([[c.center - middle, c.theta, c.kappa] for c, middle in parts]).reshape(len(axes), 3)
        delta = np.array([a.delta for a in axes])
        self._center, self._theta, self._alpha = (modes @ (table * delta[:, None])).T.copy()
        b_step, b_modes = (np.zeros(len(w)), 0) if transform is None else (u * transform.step, transform.modes)
        points = len(modes) * (2.0 * b_modes + 1) * max(1, len(law.priors))
        if points > _MAX_POINTS:
            raise UnsupportedError(
                f"an expectation over {len(axes) + 1} dimensions would need {len(modes):,} x {2 * b_modes + 1:,} lattice points "
                f"for {len(law.priors)} sources; loosen tol, raise input.noise_std, or use fewer encoder parameters per integrand"
            )
        self.lattice = Lattice(law, steps, modes, b_step, b_modes, compiled)
        self.rounding = 8 * ROUNDOFF * self.lattice.rounding()

    @cached_property
    def noise(self) -> Array:
        """What the Gaussian noise of the modes' own coordinates leaves of each at most, (N,)."""
        return np.maximum(self.lattice.over_n, 1e-300)

    def _base(self, rows: slice, powers: int) -> ComplexArray:
        """What the lattice sums against, (powers, N, K); K = 1 where f is affine in y and b plays no part."""
        if self.transform is None:
            return np.repeat(np.exp(1j * self._center[rows])[None, :, None], powers, axis=0)
        begun = perf_counter()
        made = self.transform.rows(
            self._center[rows],
            self._theta[rows],
            self._alpha[rows],
            powers,
            self.lattice.limits[rows] if self.lattice.compiled else None,
        )
        if self._pace is not None:
            took = perf_counter() - begun
            self._seconds += took
            self._share += made.shape[1] / len(self.modes)
            self._pace(took, self._seconds, self._share)
        return made

    @cached_property
    def X(self) -> ComplexArray:
        """E e^{i <omega_n, c>}, (N,)."""
        for made in ("_second", "_first"):
            if made in self.__dict__:
                return np.asarray(self.__dict__[made][0][0])
        return np.asarray(self.lattice.values(self._base, 1)[0])

    @cached_property
    def _first(self) -> tuple[ComplexArray, ComplexArray]:
        """X for l = 0, 1 and Y for l = 0: what E[g f] needs."""
        return self._second if "_second" in self.__dict__ else self.lattice.moments(self._base, 2, 1)

    @cached_property
    def _second(self) -> tuple[ComplexArray, ComplexArray]:
        """X for l = 0, 1, 2 and Y for l = 0, 1: what E[<f, v> g f] needs."""
        return self.lattice.moments(self._base, 3, 2)

    @cached_property
    def f(self) -> ComplexArray:
        """E[f e^{i <omega_n, c>}], (N, n2)."""
        X, Y = self._first
        plain = np.multiply.outer(X[0], self.law.mean) + Y[0]
        return np.asarray(plain if self.transform is None else plain + np.multiply.outer(X[1], self.w))

    def f_along(self, v: Array) -> ComplexArray:
        """E[<f, v> f e^{i <omega_n, c>}], (N, n2)."""
        if v.tobytes() in self._along:
            return self._along.pop(v.tobytes())
        X, Y = self._second
        mean, w = self.law.mean, np.zeros_like(self.w) if self.transform is None else self.w
        Z = self.lattice.second_moments(self._base, v)
        a, o = float(mean @ v), float(w @ v)
        constant = np.multiply.outer(a * X[0] + o * X[1] + Y[0] @ v, mean)
        nonlinear = np.multiply.outer(a * X[1] + o * X[2] + Y[1] @ v, w)
        return np.asarray(constant + nonlinear + a * Y[0] + o * Y[1] + Z)

    def lacks(self, order: int) -> bool:
        """Whether sums of this order (`sums`) would have to be made."""
        return order == 2 or not any(name in self.__dict__ for name in ("X", "_first", "_second")[order:])

    def sums(self, order: int, along: Array | None = None) -> Sums:
        """What has to be made for X (order 0), for `f` too (1), or for `f_along` (2)."""
        if order == 0:
            return Sums(order, self.X, None, None)
        values, vectors = self._first if order == 1 else self._second
        return Sums(order, values, vectors, None if along is None else self.f_along(along))

    def take(self, sums: Sums, along: Array | None = None) -> None:
        """Sums that another process has made."""
        if sums.vectors is None:
            self.__dict__["X"] = sums.values
        else:
            self.__dict__["_first" if sums.order == 1 else "_second"] = sums.values, sums.vectors
        if along is not None and sums.along is not None:
            self._along[along.tobytes()] = sums.along


class FrameOfB(Frame):
    """The sums of one integrand that is a function of b alone: its Fourier integrals (3, K), times psi^l for l = 0, 1, 2, take the
    place of those of exponentials, so that X = [E g] and f = [E[g f]]."""

    def __init__(self, law: LinearLaw, transform: PsiTransform, u: Array, w: Array, integrals: ComplexArray) -> None:
        super().__init__(law, transform, u, w, [], np.zeros((1, 0), dtype=np.int64))
        self._integrals = integrals

    def lacks(self, order: int) -> bool:
        """Never: who would make its sums elsewhere knows axes and modes, and it has none."""
        return False

    def _base(self, rows: slice, powers: int) -> ComplexArray:
        return self._integrals[:powers, None, :]


@dataclass(frozen=True)
class Term:
    """An integrand on a frame: coefficients of its modes (multiplicity included), and the errors of cutting it.

    error: what its range and b leave out, about. dropped: what the modes left out add if E e^{i <omega, c>} is as large there as
    the noise allows; `edge` are modes of the frame near the cut, which say how much smaller it is.
    """

    frame: Frame
    coefficients: ComplexArray
    error: float
    dropped: float = 0.0
    edge: NDArray[np.intp] | slice | None = None
    first: int | None = None  # the first so many modes of the frame only; None: all of them

    def _left_out(self, sums: ComplexArray, most: Array | float = 1.0) -> Array:
        """`dropped` by what sums (N, ..) of the frame are near the cut: they fall off at least as fast beyond it. Against the noise
        they are `most` at most: 1 of e^{i <omega, c>}, and what f reaches with f."""
        if self.edge is None or self.dropped == 0.0 or len(self.frame.noise[self.edge]) < _FEW_EDGES:
            return np.full(sums.shape[1:], self.dropped * most)
        at, noise = sums[self.edge], self.frame.noise[self.edge]
        falls = np.abs(at) / noise.reshape(-1, *[1] * (sums.ndim - 1))
        return np.asarray(self.dropped * np.minimum(most, _EDGE_SAFETY * falls.max(axis=0)))

    @cached_property
    def _rounding(self) -> float:
        return float(np.abs(self.coefficients) @ self.frame.rounding[: self.first])

    def value(self) -> tuple[float, float]:
        """E g, and an estimate of its error."""
        X = self.frame.X[: self.first]
        return float((self.coefficients @ X).real), self.error + float(self._left_out(X)) + self._rounding

    def vector(self, Y: ComplexArray, size: Array) -> tuple[Array, Array]:
        """The same with vector-valued sums of the frame that reach `size`, (n2,)."""
        Y = Y[: self.first]
        left_out = self._left_out(Y, size)
        return np.asarray((self.coefficients @ Y).real), (self.error + self._rounding) * size + left_out

    def F(self, size: Array) -> tuple[Array, Array]:
        """E[g F], F = (f, 1), and its errors, (n2 + 1,); f reaches `size` (n2,) where tails are cut."""
        values, errors = self.vector(self.frame.f, size)  # first, since it brings X along
        value, error = self.value()
        return np.append(values, value), np.append(errors, error)
