"""Probabilities of boxes, P(S in W_1 x ... x W_d) for d read-outs, to relative accuracy, on contours shifted in all d
variables at once:

    P = (h_1 / 2 pi) ... (h_d / 2 pi) sum_k exp(K(z_k)) prod_a What_a(z_{k,a}),   z_k = c + i (h_1 k_1, ..., h_d k_d)

with What_a(z) the integral of e^{-z x} over the window W_a: a half line, an interval, or a point (a density in that
read-out). c minimises the real summand, a convex problem, so that nothing cancels; the lattice is cut to an ellipsoid
of the noise. Errors: the sum equals the sum over shifted boxes (Poisson), each bounded by Chernoff. Lemma 3.4 with t
read-outs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, chdtri

from elbotree.runtime.errors import ToleranceError, UnsupportedError
from elbotree.runtime.source_sums import SourceSum
from elbotree.runtime.tails import EPS, Line, TailProbability
from elbotree.runtime.tilted_sources import TiltedSources, log_sinhc, powers

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

LEAST_TOL = 5e-13  # what a part of a sum is asked for at least
_BLOCK = 4096
_MAX_NODES = 3_000_000
_OFFSETS = np.array([0.03, 0.1, 0.2, 0.4, 0.7, 1.2, 2.0, 3.0, 4.5, 6.5, 9.0, 13.0])


@dataclass(frozen=True)
class Window:
    """[low, high] of one read-out; high = inf is a half line, low = high a point (density)."""

    low: float
    high: float

    @property
    def half_line(self) -> bool:
        return self.high == math.inf

    @property
    def point(self) -> bool:
        return self.low == self.high

    def moved(self, by: float) -> Window:
        return Window(self.low + by, self.high + by)

    def log_transform(self, c: float) -> tuple[float, float, float]:
        """log of the integral of e^{-c x}, with two derivatives in c."""
        if self.half_line:
            return -c * self.low - math.log(c), -self.low - 1 / c, 1 / c**2
        if self.point:
            return -c * self.low, -self.low, 0.0
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        value, first, second, _ = (float(level) for level in log_sinhc(np.array(c * half)))
        return -c * middle + math.log(2 * half) + value, -middle + half * first, half**2 * second

    def log_edge(self, s: Array) -> Array:
        """log of the largest e^{-s x} on the window; +inf where it has none."""
        if self.half_line:
            return np.where(s >= 0, -s * self.low, np.inf)
        return np.maximum(-s * self.low, -s * self.high)

    def transform(self, c: float, y: Array) -> ComplexArray:
        """The integral of e^{-z x} over e^{log_edge(c)}, at z = c + i y."""
        z = c + 1j * y
        start = self.low if c >= 0 else self.high
        turn = np.exp(-1j * y * start)
        if self.point:
            return np.asarray(turn)
        if self.half_line:
            return np.asarray(turn / z)
        width = (self.high - self.low) * (1.0 if c >= 0 else -1.0)
        zero = z == 0
        return np.asarray(turn * np.where(zero, width, -np.expm1(-z * width) / np.where(zero, 1.0, z)) * np.sign(width))


@dataclass(frozen=True)
class Lattice:
    """Nodes y = steps k of half a lattice inside the noise's ellipsoid, with E_c e^{i <y, S>} (noise included) there.

    steps (d, d), a step a column; k (d, N) integers; weights 1 for the origin and 2 for the others, which stand for
    their mirror images too.
    """

    level: float  # K(c)
    kappa: float  # sum of |kappa_i|
    steps: Array
    k: NDArray[np.int64]
    weights: Array
    phi: ComplexArray
    turns: Array  # how far the phase of phi may turn a unit of y_a, (d,)
    blur: Array  # by how much rounded inputs may move S, (d,)
    truncation: float  # of the sum, relative to e^level prod What_a(c)

    @property
    def y(self) -> Array:
        return np.asarray(self.steps @ self.k)

    @property
    def cell(self) -> float:
        return abs(float(np.linalg.det(self.steps / (2 * math.pi))))

    def turn(self, x: Array) -> ComplexArray:
        """e^{-i <y, x>} at the nodes, from one table of powers an axis."""
        out: ComplexArray | None = None
        for angle, row in zip(self.steps.T @ x, self.k, strict=True):
            reach = int(np.abs(row).max(initial=0))
            half = powers(np.array([-angle]), reach + 1)[0]
            factor = np.concatenate([half[:0:-1].conj(), half])[row + reach]
            out = factor if out is None else out * factor
        assert out is not None
        return out


def box_probability(law: SourceSum, windows: Sequence[tuple[float, float]], tol: float) -> TailProbability:
    """P(low_a <= S_a <= high_a for every a) to relative accuracy tol; low_a = high_a asks for the density in S_a.

    law        of d read-outs
    windows    d pairs; either end may be infinite
    Returns a TailProbability. Raises ToleranceError when rounding or the number of nodes stand in the way, and
    UnsupportedError when the noise of the read-outs is degenerate.
    """
    law, boxes = _oriented(law, windows)
    if not boxes:
        zero = np.zeros(())
        return TailProbability.from_logs(zero, {"rounding": zero}, 0, tol)
    _check_noise(law)
    return _box(law, boxes, tol)


def box_estimate(law: SourceSum, windows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """log of the saddle-point estimate of a box's probability, and log of a bound on it."""
    law, boxes = _oriented(law, windows)
    if not boxes:
        return 0.0, 0.0
    _, estimate, bound = _chernoff(law, boxes)
    return estimate, bound


def _oriented(law: SourceSum, windows: Sequence[tuple[float, float]]) -> tuple[SourceSum, list[Window]]:
    """The law with lower half lines reflected to upper ones, shifts moved into the windows, and free read-outs left
    out."""
    rows, boxes = [], []
    for a, (low, high) in enumerate(windows):
        if low == -math.inf and high == math.inf:
            continue
        sign = -1.0 if low == -math.inf else 1.0
        row = np.zeros(law.dimension)
        row[a] = sign
        rows.append(row)
        shift = float(law.shift[a])
        boxes.append(Window(shift - high, math.inf) if sign < 0 else Window(low - shift, high - shift))
    T = np.array(rows).reshape(len(rows), law.dimension)
    return law.mapped(T, -T @ law.shift), boxes


def _check_noise(law: SourceSum) -> None:
    spread = law.noise + (np.abs(law.loadings) ** 2).sum(axis=1) * np.eye(law.dimension)
    scale = np.sqrt(np.diag(spread))
    least = np.linalg.eigvalsh(law.noise / np.outer(scale, scale)).min()
    if not least > 1e-13:
        raise UnsupportedError(
            "the Gaussian noise of the read-outs (and of b, where psi comes between) is degenerate: some "
            "combination of them "
            "carries none, so that their joint law has no density to invert; raise noise_std, or leave out "
            "read-outs that "
            "are multiples of others"
        )


def _box(law: SourceSum, boxes: list[Window], tol: float) -> TailProbability:
    """The same for oriented windows. A half line that does not bind is 1 - its complement, an interval with one end far
    out is a half line less another: what is taken away is the smaller part, and contours keep their steps long."""
    if not boxes:
        return TailProbability.from_logs(0.0, {"rounding": 0.0}, 0, tol)
    if len(boxes) == 1 and boxes[0].half_line:
        return Line.of(law).upper(boxes[0].low, tol)
    for a, window in enumerate(boxes):
        if window.half_line and _loose(law, boxes, a):
            rest = [b for b in range(len(boxes)) if b != a]
            whole = _box(_part(law, rest), [boxes[b] for b in rest], max(0.3 * tol, LEAST_TOL))
            return _less(whole, *_flipped(law, boxes, a, math.inf), tol)
        if not window.half_line and not window.point:
            near, far = min(_ends(law, boxes, a), _ends(*_flipped(law, boxes, a, window.high), a), key=_apart)
            if _apart((near, far)) < -2.0:
                return _less(_box(near.law, near.boxes, max(0.3 * tol, LEAST_TOL)), far.law, far.boxes, tol)
    return _contour(law, boxes, tol)


@dataclass(frozen=True)
class _HalfLine:
    """A law and windows whose interval has become a half line, with log of a bound on the probability."""

    law: SourceSum
    boxes: list[Window]
    bound: float


def _ends(law: SourceSum, boxes: list[Window], a: int) -> tuple[_HalfLine, _HalfLine]:
    """The interval S_a in [low, high] as the half lines above low and above high."""
    found = []
    for end in (boxes[a].low, boxes[a].high):
        ready = [*boxes[:a], Window(end, math.inf), *boxes[a + 1 :]]
        found.append(_HalfLine(law, ready, _chernoff(law, ready)[2]))
    return found[0], found[1]


def _apart(ends: tuple[_HalfLine, _HalfLine]) -> float:
    """log of how much of the half line lies beyond the far end, at most about."""
    near, far = ends
    return far.bound - near.bound


def _loose(law: SourceSum, boxes: list[Window], a: int) -> bool:
    """Whether S_a, tilted to where the other windows are, lies above the end of its half line anyhow."""
    rest = [b for b in range(len(boxes)) if b != a]
    center = np.zeros(len(boxes))
    center[rest] = saddle(_part(law, rest), [boxes[b] for b in rest])[0]
    _, mean, hessian = law.cumulants(center)
    return bool(boxes[a].low < mean[a] - 0.5 * math.sqrt(hessian[a, a]))


def _part(law: SourceSum, rows: list[int]) -> SourceSum:
    return law.mapped(np.eye(law.dimension)[rows], np.zeros(len(rows)))


def _flipped(law: SourceSum, boxes: list[Window], a: int, high: float) -> tuple[SourceSum, list[Window]]:
    """The law with -S_a in place of S_a, and its window [-high, -low]; for high = inf the other side, [-low, inf]."""
    T = np.eye(law.dimension)
    T[a, a] = -1.0
    own = Window(-boxes[a].low, math.inf) if high == math.inf else Window(-high, -boxes[a].low)
    return law.mapped(T, np.zeros(law.dimension)), [*boxes[:a], own, *boxes[a + 1 :]]


def _less(whole: TailProbability, law: SourceSum, boxes: list[Window], tol: float) -> TailProbability:
    """The probability `whole` less that of a box inside it."""
    _, estimate, most = _chernoff(law, boxes)
    negligible = math.exp(min(most - float(whole.log_value), 0.0))
    if negligible < 1e-3 * tol:
        bounds = {**whole.bound, "truncation": whole.bound.get("truncation", np.zeros(())) + negligible}
        return TailProbability.from_logs(whole.log_value, bounds, whole.nodes, tol)
    slack = math.exp(min(max(float(whole.log_value) - estimate, 0.0), 600.0))
    part = _box(law, boxes, min(0.05, max(0.3 * tol, LEAST_TOL) * slack))
    share = math.exp(float(part.log_value) - float(whole.log_value))
    if share > 0.9:
        raise ToleranceError(
            f"the box holds a share of {1 - share:.2g} of a set that it is the difference of; loosen tol = {tol:g}"
        )
    zero = np.zeros(())
    names = sorted({*whole.bound, *part.bound})
    bounds = {n: (whole.bound.get(n, zero) + share * part.bound.get(n, zero)) / (1 - share) for n in names}
    log_value = np.asarray(whole.log_value + math.log1p(-share))
    out = TailProbability.from_logs(log_value, bounds, whole.nodes + part.nodes, tol)
    if not out.relative_error <= tol:
        raise ToleranceError(
            f"a box's probability was reached to a relative error of {out.relative_error:.2g}, above tol = {tol:g}; "
            "loosen tol"
        )
    return out


def saddle(law: SourceSum, boxes: Sequence[Window], start: Array | None = None) -> tuple[Array, float, Array]:
    """The c that minimises K(c) + sum_a log What_a(c_a), a convex function; its value and Hessian there."""
    d = len(boxes)
    if d == 0:
        return np.zeros(0), 0.0, np.zeros((0, 0))
    if start is not None:
        warm = _objective(law, boxes, start)
        if math.isfinite(warm[0]):
            return _newton(law, boxes, start, warm)
    variance = np.diag(law.cumulants(np.zeros(d))[2])
    c = np.array([1 / math.sqrt(v) if w.half_line else 0.0 for v, w in zip(variance, boxes, strict=True)])
    value, gradient, hessian = _objective(law, boxes, c)
    while not math.isfinite(value):
        c *= 0.5
        value, gradient, hessian = _objective(law, boxes, c)
    return _newton(law, boxes, c, (value, gradient, hessian))


def _newton(
    law: SourceSum, boxes: Sequence[Window], c: Array, found: tuple[float, Array, Array]
) -> tuple[Array, float, Array]:
    """Damped Newton steps until the decrement says that the minimum is near (the contour needs no more)."""
    value, gradient, hessian = found
    for _ in range(300):
        step = -np.linalg.solve(hessian, gradient)
        decrement = -float(gradient @ step)
        if decrement < 1e-4:
            break
        length = 1.0
        while length > 1e-12:
            new = _objective(law, boxes, c + length * step)
            if new[0] < value - 0.1 * length * decrement:
                break
            length *= 0.5
        c = c + length * step
        value, gradient, hessian = new
    return c, value, hessian


def _objective(law: SourceSum, boxes: Sequence[Window], c: Array) -> tuple[float, Array, Array]:
    if any(w.half_line and x <= 0 for w, x in zip(boxes, c, strict=True)):
        return math.inf, c, np.eye(len(c))
    value, gradient, hessian = law.cumulants(c)
    if not math.isfinite(value):
        return math.inf, c, np.eye(len(c))
    parts = np.array([w.log_transform(float(x)) for w, x in zip(boxes, c, strict=True)])
    return value + float(parts[:, 0].sum()), gradient + parts[:, 1], hessian + np.diag(parts[:, 2])


def _chernoff(law: SourceSum, boxes: Sequence[Window]) -> tuple[Array, float, float]:
    """The saddle, log of the saddle-point estimate, and log of a bound, of the box's probability."""
    c, value, hessian = saddle(law, boxes)
    estimate = value - 0.5 * float(np.linalg.slogdet(2 * math.pi * hessian)[1])
    level, _, _ = law.cumulants(c)
    bound = level + sum(float(w.log_edge(np.array(x))) for w, x in zip(boxes, c, strict=True))
    for w, v in zip(boxes, np.diag(law.noise), strict=True):
        bound -= 0.5 * math.log(2 * math.pi * v) if w.point else 0.0
    return c, estimate, bound


def _contour(law: SourceSum, boxes: Sequence[Window], tol: float) -> TailProbability:
    """The sum itself; repeated with a finer lattice when the value turns out smaller than the estimate."""
    c, estimate, _ = _chernoff(law, boxes)
    deeper = 0.0
    relative = math.inf
    for _ in range(4):
        made, aliases = lattice(law, boxes, c, estimate + math.log(tol / 4) - deeper)
        edges = sum(float(w.log_edge(np.array(x))) for w, x in zip(boxes, c, strict=True))
        factor = made.phi * made.weights * made.cell
        for w, x, y in zip(boxes, c, made.y, strict=True):
            factor = factor * w.transform(float(x), y)
        value = float(factor.real.sum())
        reach = np.array([max(abs(w.low), 0.0 if w.half_line else abs(w.high)) for w in boxes]) + made.turns
        noise = EPS * float(np.abs(factor) @ (16 + 2 * law.loadings.shape[1] ** 0.5 + reach @ np.abs(made.y)))
        noise += EPS * abs(value) * (made.kappa + float(np.abs(c) @ reach))
        noise += moved_by(np.abs(factor), c, made.y, made.blur)
        top = made.level + edges
        parts = [math.exp(alias - top) for alias in aliases]
        widths = [w.log_transform(float(x))[0] - float(w.log_edge(np.array(x))) for w, x in zip(boxes, c, strict=True)]
        parts.append(made.truncation * math.exp(sum(widths)))
        total = sum(parts) + noise
        if value > 0 and total <= tol * value:
            names = ("left alias", "right alias", "truncation", "rounding")
            bound = {n: np.asarray(p / value) for n, p in zip(names, [*parts, noise], strict=True)}
            return TailProbability.from_logs(np.asarray(top + math.log(value)), bound, made.k.shape[1], tol)
        relative = total / max(value, 1e-300)
        if noise > 0.5 * tol * value:
            break
        deeper += math.log(relative / tol) + 0.7
    raise ToleranceError(
        f"a box's probability of about exp({estimate:.4g}) was reached to a relative error of {relative:.2g} only, "
        "above tol = "
        f"{tol:g}; loosen tol, or raise noise_std"
    )


def moved_by(size: Array, c: Array, y: Array, blur: Array) -> float:
    """A bound on what moving S by `blur` changes: each term, of absolute value `size` (N,), gets the factor z_a = c_a + i y_a
    for a unit of S_a."""
    return float(sum(size @ np.hypot(v, axis) * by for v, axis, by in zip(c, y, blur, strict=True)))


def lattice(law: SourceSum, boxes: Sequence[Window], c: Array, target: float) -> tuple[Lattice, tuple[float, float]]:
    """Steps and extent such that aliases and truncation stay below e^target each; and the logs of the two aliases."""
    steps, aliases = _steps(law, boxes, c, target)
    s = c @ law.loadings
    tilted, kappa = law.sources.tilted(s)
    level = float(kappa.sum() + 0.5 * c @ law.noise @ c)
    transforms = sum(w.log_transform(float(x))[0] for w, x in zip(boxes, c, strict=True))
    k, weights, truncation = _ellipsoid(law.noise, steps, target - level - transforms)
    phi = _characteristic(law, tilted, c, steps, k)
    turns = np.abs(law.loadings) @ tilted.reach() + np.abs(law.noise) @ np.abs(c)
    made = Lattice(level, float(np.abs(kappa).sum()), steps, k, weights, phi, turns, law.blur(tilted), truncation)
    return made, aliases


def _steps(law: SourceSum, boxes: Sequence[Window], c: Array, target: float) -> tuple[Array, tuple[float, float]]:
    """A step a column, and the logs of the aliases: along the read-outs or along the principal axes of the tilted law,
    whichever takes fewer nodes."""
    hessian = law.cumulants(c)[2]
    found = [_periods(law, boxes, c, target, hessian, np.eye(len(c)))]
    if len(c) > 1:
        found.append(_periods(law, boxes, c, target, hessian, np.linalg.eigh(hessian)[1]))
    steps, _, aliases = min(found, key=lambda item: item[1])
    return steps, aliases


def _periods(
    law: SourceSum, boxes: Sequence[Window], c: Array, target: float, hessian: Array, axes: Array
) -> tuple[Array, float, tuple[float, float]]:
    """Steps 2 pi / P_j along `axes`, P_j the least period whose aliases come below e^target; the volume of the periods.

    A box moved by mu = sum_j m_j P_j axes_j has e^{<c, mu>} P(S in W + mu) <= e^{K(s) + edges(s) - <s - c, mu>} for
    every s; with s - c along one axis that decays in m_j. There are 3^d - 1 neighbours, and farther shells are e^{-t
    P} below.
    """
    d = len(boxes)
    points, moved, K = _tilts(law, boxes, c, hessian, axes)
    steps, volume = np.empty((d, d)), 0.0
    logs = np.full((2, d), -np.inf)
    for j in range(d):
        over = _over(law, boxes, points[j], K[j])
        reach = (over - target) / np.abs(moved[j])
        best = [
            int(side[np.argmin(reach[side])]) for side in (np.flatnonzero(moved[j] < 0), np.flatnonzero(moved[j] > 0))
        ]
        period = max(*(float(reach[i]) for i in best), 3.0 * math.sqrt(float(axes[:, j] @ hessian @ axes[:, j])))
        logs[:, j] = [over[i] - abs(moved[j][i]) * period for i in best]
        steps[:, j] = axes[:, j] * (2 * math.pi / period)
        volume += math.log(period)
    left, right = (float(np.logaddexp.reduce(side)) for side in logs)
    return steps, volume, (left, right)


def _tilts(
    law: SourceSum, boxes: Sequence[Window], c: Array, hessian: Array, axes: Array
) -> tuple[list[Array], list[Array], list[Array]]:
    """Points s = c + t axes_j for Chernoff bounds, the t, and K(s), for each axis."""
    points, moved = [], []
    for j in range(len(boxes)):
        t = np.concatenate([-_OFFSETS[::-1], _OFFSETS]) / math.sqrt(float(axes[:, j] @ hessian @ axes[:, j]))
        for sign in (-1.0, 1.0):  # as far as half lines allow: there s must not become negative
            down = [
                -x / (sign * e)
                for x, e, w in zip(c, axes[:, j], boxes, strict=True)
                if w.half_line and sign * e < -1e-12
            ]
            if down:
                t = np.concatenate([t, sign * (1 - 1e-12) * min(down) * np.array([0.25, 0.5, 0.75, 1.0])])
        points.append(c[:, None] + np.multiply.outer(axes[:, j], t))
        moved.append(t)
    K = np.split(law.log_mgf(np.concatenate(points, axis=1)), np.cumsum([len(m) for m in moved])[:-1])
    return points, moved, K


def _over(law: SourceSum, boxes: Sequence[Window], points: Array, K: Array) -> Array:
    """log of Chernoff's bound at each point, times the number of neighbours."""
    # a point's density adds 1 / (sqrt(2 pi) tau), tau its noise given the noise of the others
    precision = np.diag(np.linalg.inv(law.noise))
    dense = sum(0.5 * math.log(p / (2 * math.pi)) if w.point else 0.0 for p, w in zip(precision, boxes, strict=True))
    edges = sum(w.log_edge(row) for w, row in zip(boxes, points, strict=True))
    return np.asarray(K + edges + dense + math.log(3 ** len(boxes)))


def alias_of(law: SourceSum, boxes: Sequence[Window], c: Array, steps: Array) -> float:
    """log of a bound on the aliases of other boxes than the one that a lattice was made for, with its steps."""
    sizes = np.linalg.norm(steps, axis=0)
    points, moved, K = _tilts(law, boxes, c, law.cumulants(c)[2], steps / sizes)
    logs = []
    for j, size in enumerate(sizes):
        reached = _over(law, boxes, points[j], K[j]) - np.abs(moved[j]) * (2 * math.pi / float(size))
        logs += [float(reached[moved[j] < 0].min()), float(reached[moved[j] > 0].min())]
    return float(np.logaddexp.reduce(logs))


def _ellipsoid(noise: Array, steps: Array, target: float) -> tuple[NDArray[np.int64], Array, float]:
    """Half the lattice inside y^T noise y <= R, weights, and a bound on what the Gaussian leaves outside.

    R is the quantile of chi-squared at e^target: the lattice sum outside is an integral up to the factor e^{trace /
    24} of Jensen's inequality over cells, one cell's radius nearer.
    """
    d = len(steps)
    metric = steps.T @ noise @ steps
    slack = math.exp(float(np.trace(metric)) / 24)
    cell = 0.5 * math.sqrt(float(np.abs(metric).sum()))
    norm = slack * (2 * math.pi) ** (-0.5 * d) / math.sqrt(float(np.linalg.det(noise)))
    R = float(chdtri(d, min(0.5, math.exp(min(max(target - math.log(norm), -650.0), 0.0)))))
    R = (math.sqrt(R) + cell) ** 2
    extent = np.ceil(np.sqrt(R * np.diag(np.linalg.inv(metric)))).astype(np.int64)
    total = float(np.prod(2.0 * extent + 1)) / 2
    if total > 40 * _MAX_NODES:
        raise ToleranceError(
            f"a sum over {d} dimensions would run over {total:.3g} nodes; raise noise_std, loosen tol, or take "
            "fewer read-outs"
        )
    axes = [np.arange(0, extent[0] + 1), *(np.arange(-n, n + 1) for n in extent[1:])]
    rows = []
    for first in axes[0]:
        grid = np.meshgrid(*axes[1:], indexing="ij") if d > 1 else []
        k = np.stack([np.full(grid[0].size if d > 1 else 1, first), *(g.ravel() for g in grid)])
        keep = np.einsum("an,ab,bn->n", k, metric, k) <= R
        if first == 0:
            keep &= _upper_half(k[1:])
        rows.append(k[:, keep])
    k = np.concatenate(rows, axis=1)
    if k.shape[1] > _MAX_NODES:
        raise ToleranceError(
            f"a sum over {d} dimensions would take {k.shape[1]:,} nodes; raise noise_std, loosen tol, or take fewer "
            "read-outs"
        )
    weights = np.where((k == 0).all(axis=0), 1.0, 2.0)
    return k, weights, norm * float(chdtrc(d, (math.sqrt(R) - cell) ** 2))


def _upper_half(k: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The lattice points 0 and those whose first coordinate that is not 0 is positive."""
    out = np.ones(k.shape[1], dtype=bool)
    undecided = np.ones(k.shape[1], dtype=bool)
    for row in k:
        out &= ~(undecided & (row < 0))
        undecided &= row == 0
    return out


def _characteristic(
    law: SourceSum, tilted: TiltedSources, c: Array, steps: Array, k: NDArray[np.int64]
) -> ComplexArray:
    """E_c e^{i <y, S - shift>} at the nodes, (N,)."""
    phi = np.empty(k.shape[1], dtype=np.complex128)
    metric = steps.T @ law.noise @ steps
    drift = steps.T @ law.noise @ c
    turns = steps.T @ law.loadings
    tables = _PhaseTables(turns, k)
    for start in range(0, k.shape[1], _BLOCK):
        block = k[:, start : start + _BLOCK]
        t = turns.T @ block
        angle = drift @ block
        gauss = np.exp(-0.5 * np.einsum("an,ab,bn->n", block, metric, block)) * (np.cos(angle) + 1j * np.sin(angle))
        phi[start : start + _BLOCK] = gauss * tilted.product(t, tables.at(block))
    return phi


class _PhaseTables:
    """e^{i a t} at lattice nodes as a product over the axes, each from a table of powers."""

    def __init__(self, turns: Array, k: NDArray[np.int64]) -> None:
        self.turns, self.reach = turns, np.abs(k).max(axis=1, initial=0)
        self.found: dict[bytes, list[ComplexArray]] = {}

    def _tables(self, a: Array, index: NDArray[np.intp]) -> list[ComplexArray]:
        key = a.tobytes() + index.tobytes()
        if key not in self.found:
            tables = []
            for turn, n in zip(self.turns, self.reach, strict=True):
                half = powers(a * turn[index], int(n) + 1)
                tables.append(np.concatenate([half[:, :0:-1].conj(), half], axis=1))
            self.found[key] = tables
        return self.found[key]

    def at(self, block: NDArray[np.int64]) -> _BlockOfPhases:
        return _BlockOfPhases(self, block)


@dataclass(frozen=True)
class _BlockOfPhases:
    tables: _PhaseTables
    block: NDArray[np.int64]

    def __call__(self, a: Array, index: NDArray[np.intp]) -> ComplexArray:
        out: ComplexArray | None = None
        for table, k, n in zip(self.tables._tables(a, index), self.block, self.tables.reach, strict=True):
            factor = np.take(table, k + n, axis=1)
            out = factor if out is None else out * factor
        assert out is not None
        return out
