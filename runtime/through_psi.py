"""Probabilities of read-outs V f(x1) of a layer whose psi is not affine: boxes in (V y, b), split at psi's breaks.

Where psi(b) = slope b + intercept, <v, f> = <v + slope kappa u, y> + const with kappa = <v, w>, so that

    P(V f in W) = sum over pieces P(V_piece y + const in W, b in the piece)          (boxes of t + 1 read-outs)

Otherwise b is integrated by Gauss-Legendre panels, P(V f in W) = int P(V y in W - V w psi(b), b in db) db, each panel
on a contour of its own: the law of (V y, b) tilted to where the integrand lives. Lemma 3.4, to relative accuracy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from elbotree.runtime.boxes import LEAST_TOL, Window, alias_of, box_estimate, box_probability, lattice, moved_by, saddle
from elbotree.runtime.enclosures import places
from elbotree.runtime.errors import ToleranceError, UnsupportedError
from elbotree.runtime.models import Layer
from elbotree.runtime.psi_transform import finite_psi
from elbotree.runtime.quadrature import gauss_legendre
from elbotree.runtime.source_sums import Inputs, SourceSum
from elbotree.runtime.tails import EPS, Line, Part, TailProbability, total_of

Array = NDArray[np.float64]
Windows = Sequence[tuple[float, float]]

_NODES = 16
_MAX_PANELS = 3000
_TOO_MANY = "the integral over b does not end within 3,000 panels; raise noise_std or loosen tol"
_MAX_PARTS = 30  # conditional laws that one probability may be split into
_APART = 4.0  # squared distance of components over the noise from which on splitting helps
_FAR, _FEW = 100.0, 4  # where at most so many sources are so far apart, smooth psi is split before anything else


@dataclass(frozen=True)
class ThroughPsi:
    """The read-outs V f(x1), f(x) = y + w psi(b), y = A x + d, b = <y, u> + theta, for x1 with the given inputs."""

    layer: Layer
    inputs: Inputs
    V: Array
    budget: list[int] = field(default_factory=lambda: [_MAX_PARTS])

    @property
    def kappa(self) -> Array:
        """<v_a, w>, (t,)."""
        return np.asarray(self.V @ self.layer.w)

    def law(self, slope: float = 0.0) -> SourceSum:
        """The law of (<v_a + slope kappa_a u, y> for every a, b)."""
        layer = self.layer
        rows = np.concatenate([self.V + slope * np.outer(self.kappa, layer.u), layer.u[None]])
        exact = rows.astype(np.longdouble)
        constants = exact @ layer.offset
        constants[-1] += layer.threshold
        return self.inputs.read(exact @ layer.A, constants)

    def probability(self, windows: Windows, tol: float) -> TailProbability:
        """P(low_a <= <v_a, f> <= high_a for every a), t pairs, to relative accuracy tol; low = high asks for a
        density.

        Where the noise is so small beside a source's components that contours lose their digits, the law is split into
        those components: P = sum_k w_k P( . | source i in its component k), whose terms are positive.
        """
        inputs, law = self.inputs, self.law()
        metric = (law.loadings * np.linalg.lstsq(law.noise, law.loadings, rcond=None)[0]).sum(axis=0)
        apart = inputs.sources.apart() ** 2 * metric  # squared distance of a source's components over the noise
        far = int((apart > _FAR).sum())
        if not 0 < far <= _FEW or self.layer.activation.pieces is not None or self.budget[0] <= 0:
            try:
                return self._whole(windows, tol)
            except ToleranceError:
                apart = inputs.sources.unlike() ** 2 * metric  # a wide slab parts from its spike where tilts reach it
                if not apart.size or apart.max() < _APART or self.budget[0] <= 0:
                    raise
        parts = []
        for log_weight, sources in inputs.sources.conditioned(int(np.argmax(apart))):
            part = replace(self, inputs=replace(inputs, sources=sources))
            parts.append(Part(log_weight, part.log_bound(windows), partial(part.probability, windows)))
        return total_of(parts, tol, self.budget)

    def _whole(self, windows: Windows, tol: float) -> TailProbability:
        psi = self.layer.activation
        if psi.pieces is not None:
            return self._by_pieces(windows, tol)
        dependent = self._function_of_b()
        if dependent is not None:
            return self._by_roots(dependent, windows, tol)
        return _Panels(self, windows, tol).probability()

    # ------------------------------------------------------------------ piecewise linear psi

    def constants(self) -> list[float]:
        """The values that one read-out takes on whole pieces of psi: where its law may have atoms."""
        psi, out = self.layer.activation, []
        for slope, intercept in psi.pieces or ():
            law = self.law(slope)
            size = np.abs(law.loadings[0]).sum() + math.sqrt(float(law.noise[0, 0]))
            plain = self.law()
            if size <= 1e-13 * (np.abs(plain.loadings[0]).sum() + math.sqrt(float(plain.noise[0, 0]))):
                shift = float(self.kappa[0]) * (slope * self.layer.threshold + intercept)
                out.append(float(law.shift[0]) + shift)
        return out

    def log_bound(self, windows: Windows) -> float:
        """log of a bound on the probability: Chernoff's for each piece where psi is piecewise linear; elsewhere the
        saddle-point estimate of the integral over b and ten nats, as panels are dropped by such estimates too."""
        if self._function_of_b() is not None:
            return 0.0
        if self.layer.activation.pieces is None:
            return min(0.0, _Panels(self, windows, 1e-2).estimated() + 10.0)
        if any(low == high for low, high in windows):
            return 0.0
        bounds = [box_estimate(law, ready)[1] for law, ready in self._boxes(windows)]
        return min(0.0, float(np.logaddexp.reduce(bounds))) if bounds else -math.inf

    def _by_pieces(self, windows: Windows, tol: float) -> TailProbability:
        return _sum_of_boxes(self._boxes(windows), tol)

    def _boxes(self, windows: Windows) -> list[tuple[SourceSum, list[tuple[float, float]]]]:
        psi = self.layer.activation
        assert psi.pieces is not None
        ends = [-math.inf, *psi.breaks, math.inf]
        boxes = []
        for (low, high), (slope, intercept) in zip(itertools.pairwise(ends), psi.pieces, strict=True):
            if low < high:
                shift = self.kappa * (slope * self.layer.threshold + intercept)
                moved = [(a - s, b - s) for (a, b), s in zip(windows, shift, strict=True)]
                box = _reduced(self.law(slope), [*moved, (low, high)])
                if box is not None:
                    boxes.append(box)
        return boxes

    # ------------------------------------------------------------------ read-outs that are functions of b

    def _function_of_b(self) -> tuple[float, float] | None:
        """(rho, const) with <v, y> = rho b + const, where there is one read-out and it is such a function."""
        if len(self.V) != 1:
            return None
        rho, rest = _multiple(self.law())
        return None if rho is None else (rho, rest)

    def _by_roots(self, line: tuple[float, float], windows: Windows, tol: float) -> TailProbability:
        """The intervals of b on which rho b + const + kappa psi(b) lies in the window, found on a fine grid."""
        (low, high), (rho, const), kappa = windows[0], line, float(self.kappa[0])
        if low == high:
            raise UnsupportedError(
                "the read-out is a function of b alone, so that its density needs that function's inverse; ask for "
                "cdf or tail"
            )
        law = self.law().mapped(np.array([[0.0, 1.0]]), np.zeros(1))
        grid = _range_of(law, self.layer, 800.0)

        def value(b: Array) -> Array:
            return rho * b + const + kappa * finite_psi(self.layer.activation, b)

        cuts = [-math.inf, *_roots(value, low, grid), *_roots(value, high, grid), math.inf]
        cuts.sort()
        boxes: list[tuple[SourceSum, list[tuple[float, float]]]] = []
        for a, b in itertools.pairwise(cuts):
            middle = float(np.clip(0.5 * (max(a, grid[0]) + min(b, grid[-1])), a, b))
            if low <= float(value(np.array([middle]))[0]) <= high:
                boxes.append((law, [(a, b)]))
        return _sum_of_boxes(boxes, tol)


def _roots(value: Callable[[Array], Array], level: float, grid: Array) -> list[float]:
    if not math.isfinite(level):
        return []
    off = value(grid) - level
    places = np.flatnonzero(np.sign(off[:-1]) * np.sign(off[1:]) < 0)

    def at(b: float) -> float:
        return float(value(np.array([b]))[0]) - level

    found = [float(brentq(at, grid[i], grid[i + 1], xtol=1e-300, rtol=8.9e-16)) for i in places]
    return [*found, *(float(b) for b in grid[off == 0])]


def _range_of(law: SourceSum, layer: Layer, depth: float) -> Array:
    """A grid of b that P(b) leaves with probability below e^-depth, by Chernoff bounds; psi's breaks on both sides."""
    std = math.sqrt(float(law.covariance()[0, 0]))
    ends = []
    for sign in (-1.0, 1.0):
        s = sign * np.geomspace(0.05, 4000.0, 200) / std
        with np.errstate(over="ignore", invalid="ignore"):
            reach = (law.log_mgf(s[None, :]) + depth) / np.abs(s)
        ends.append(float(law.shift[0]) + sign * float(np.min(reach[np.isfinite(reach)])))
    tiny = 1e-12 * (1 + np.abs(np.array(layer.activation.breaks)))
    breaks = np.concatenate([np.array(layer.activation.breaks) - tiny, np.array(layer.activation.breaks) + tiny])
    inside = breaks[(breaks > ends[0]) & (breaks < ends[1])]
    return np.sort(np.concatenate([np.linspace(ends[0], ends[1], 20_001), inside]))


def _multiple(law: SourceSum) -> tuple[float | None, float]:
    """(rho, const) with S_0 = rho S_1 + const, or (None, 0), for the law of two read-outs."""
    loads, noise = law.loadings, law.noise
    size = loads @ loads.T + noise
    if size[1, 1] == 0:
        return None, 0.0
    rho = float(size[0, 1] / size[1, 1])
    row = np.array([1.0, -rho])
    apart, left = float(np.linalg.norm(row @ loads)), float(row @ noise @ row)
    scale = size[0, 0] + rho**2 * size[1, 1]
    if apart > 1e-11 * math.sqrt(scale) or left > 1e-14 * scale:  # as far as rounding tells
        return None, 0.0
    return rho, float(law.shift[0] - rho * law.shift[1])


def _reduced(law: SourceSum, windows: list[tuple[float, float]]) -> tuple[SourceSum, list[tuple[float, float]]] | None:
    """A box whose read-outs that are multiples of b (the last) or constants have become limits on b; None when empty.

    With psi piecewise linear and v near u these are common: <v, f> may even be constant on a piece.
    """
    last = law.dimension - 1
    keep, (low, high) = [], windows[last]
    for a in range(last):
        both = law.mapped(np.eye(law.dimension)[[a, last]], np.zeros(2))
        rho, const = _multiple(both)
        if rho is None:
            keep.append(a)
            continue
        start, stop = windows[a]
        if start == stop:
            raise UnsupportedError(
                f"read-out {a} is a function of b alone on a linear piece of psi, so that its law may have atoms "
                "and its density "
                "is not given; ask for cdf or tail"
            )
        flat = abs(rho) * math.sqrt(float((law.loadings[last] ** 2).sum() + law.noise[last, last])) <= 1e-13 * (
            abs(const) + abs(float(law.shift[a])) + 1e-300
        )
        if flat:
            if not start < const <= stop:
                return None
            continue
        ends = sorted(((start - const) / rho, (stop - const) / rho))
        low, high = max(low, ends[0]), min(high, ends[1])
    if not low < high:
        return None
    rows = [*keep, last]
    return law.mapped(np.eye(law.dimension)[rows], np.zeros(len(rows))), [*(windows[a] for a in keep), (low, high)]


def _sum_of_boxes(boxes: Sequence[tuple[SourceSum, list[tuple[float, float]]]], tol: float) -> TailProbability:
    """The sum of disjoint boxes, the largest first; each to the tolerance that the sum needs, or left out and
    bounded."""
    zero = np.zeros(())
    if not boxes:
        return TailProbability.from_logs(np.asarray(-math.inf), {"rounding": zero}, 0, tol)
    ranked = sorted(((*box_estimate(law, windows), law, windows) for law, windows in boxes), key=lambda item: -item[0])
    done: list[TailProbability] = []
    left_out = -math.inf
    for _, bound, law, windows in ranked:
        total = float(np.logaddexp.reduce([float(p.log_value) for p in done])) if done else -math.inf
        if done and bound < total + math.log(1e-3 * tol):
            left_out = float(np.logaddexp(left_out, bound))
            continue
        share = tol if not done else tol * math.exp(min(max(total - bound, 0.0), 600.0))
        done.append(box_probability(law, windows, min(max(0.4 * share, LEAST_TOL), 0.05)))
    logs = np.array([float(p.log_value) for p in done])
    log_value = float(np.logaddexp.reduce(logs))
    bounds: dict[str, Array] = {}
    for weight, part in zip(np.exp(logs - log_value), done, strict=True):
        for name, relative in part.bound.items():
            bounds[name] = bounds.get(name, zero) + weight * relative
    bounds["truncation"] = bounds.get("truncation", zero) + math.exp(left_out - log_value)
    out = TailProbability.from_logs(np.asarray(log_value), bounds, sum(p.nodes for p in done), tol)
    if not out.relative_error <= tol:
        raise ToleranceError(
            f"the pieces of psi add up to a relative error of {out.relative_error:.2g}, above tol = {tol:g}"
        )
    return out


@dataclass(frozen=True)
class _OnPanel:
    """The integrand at the Gauss-Legendre nodes of a panel, over e^log_scale, and what it may be off by at each.

    alias     log of the bound on aliases and truncation
    density   log of the bound on the error of the density of b, -inf where it was not used
    rounding  over e^log_scale
    """

    log_scale: float
    values: Array
    alias: float
    density: float
    rounding: float
    nodes: int


class _Panels:
    """The integral over b for smooth psi. Panels are dropped where the saddle-point estimate is far below the whole,
    and halved where the integrand's Legendre series has not died out."""

    def __init__(self, read: ThroughPsi, windows: Windows, tol: float) -> None:
        signs = np.array([-1.0 if low == -math.inf and high < math.inf else 1.0 for low, high in windows])
        self.tol = tol
        self.psi = read.layer.activation
        law = read.law()
        self.keep = [
            a
            for a, (low, high) in enumerate(windows)
            if high - low < math.inf or abs(low) < math.inf or high < math.inf
        ]
        rows = np.zeros((len(self.keep) + 1, law.dimension))
        for i, a in enumerate(self.keep):
            rows[i, a] = signs[a]
        rows[-1, -1] = 1.0
        self.law = law.mapped(rows, np.zeros(len(rows)))
        self.kappa = (signs * read.kappa)[self.keep]
        self.windows = [
            Window(low, high) if sign > 0 else Window(-high, math.inf)
            for (low, high), sign in ((windows[a], signs[a]) for a in self.keep)
        ]
        precision = np.linalg.inv(self.law.noise) if np.linalg.det(self.law.noise) > 0 else None
        if precision is None or not np.all(np.isfinite(precision)):
            raise UnsupportedError(
                "the Gaussian noise of (V y, b) is degenerate, so that their joint law has no density to invert; "
                "raise noise_std"
            )
        self.width = 2.5 / math.sqrt(float(precision[-1, -1]))
        self.estimates: dict[float, float] = {}
        self.saddle: Array | None = None  # the last one found, a good start for the next
        self.marginal = Line.of(law.mapped(np.eye(law.dimension)[[-1]], np.zeros(1)))

    def boxes(self, b: float) -> list[Window]:
        """The windows of (V y - shift, b - shift) at a value of b."""
        shifts = self.law.shift[:-1] + self.kappa * float(finite_psi(self.psi, np.array([b]))[0])
        at = b - float(self.law.shift[-1])
        return [*(w.moved(-float(s)) for w, s in zip(self.windows, shifts, strict=True)), Window(at, at)]

    def estimate(self, b: float) -> float:
        """log of the saddle-point estimate of the integrand at b."""
        if b not in self.estimates:
            self.saddle, value, hessian = saddle(self.law, self.boxes(b), self.saddle)
            self.estimates[b] = value - 0.5 * float(np.linalg.slogdet(2 * math.pi * hessian)[1])
        return self.estimates[b]

    def _found(self) -> list[tuple[float, float]]:
        """Panels on which the integrand may matter: outward from the peaks of a coarse scan."""
        marginal = self.marginal
        cut = math.log(self.tol) - 6.0
        dense = [a for a, window in enumerate(self.windows) if window.point] + [len(self.windows)]
        mass = cut + 0.5 * float(np.linalg.slogdet(2 * math.pi * self.law.noise[np.ix_(dense, dense)])[1])
        center, std = marginal.shift + marginal.mean, marginal.std
        scan = center + std * np.linspace(-6.0, 6.0, 13)
        values = np.array([self.estimate(float(b)) for b in scan])
        while True:  # until no b that is left out has the mass for another peak
            best = self._climbed(scan, values)
            depth = best + mass
            low, high = -marginal.reflected.chernoff_quantile(depth), marginal.chernoff_quantile(depth)
            below, above = np.arange(scan[0] - std, low, -std)[::-1], np.arange(scan[-1] + std, high, std)
            more = np.concatenate([below[-12:], above[:12]])
            if not len(more):
                break
            order = np.argsort(np.concatenate([scan, more]))
            values = np.concatenate([values, [self.estimate(float(b)) for b in more]])[order]
            scan = np.concatenate([scan, more])[order]
        for pole in self.psi.poles:
            if low <= pole <= high:
                raise UnsupportedError(
                    f"psi ({self.psi.text}) has a pole at b = {pole:g}, where b has a density that matters to this "
                    "probability; "
                    "move the threshold or the input away from it"
                )
        ends, pieces = self._scan(low, high, depth)
        panels = [panel for run in ends for panel in itertools.pairwise(run.tolist())]
        sizes = np.array([self.highest(a, b) for a, b in panels])
        best = max(best, float(sizes.max()))
        kept = sizes > best + cut
        kept[1:] |= kept[:-1].copy()  # and a neighbour on either side
        kept[:-1] |= kept[1:].copy()
        if not 0 < int(kept.sum()) * pieces <= _MAX_PANELS:
            raise ToleranceError(_TOO_MANY)
        chosen = [panel for panel, keep in zip(panels, kept, strict=True) if keep]
        return [part for a, b in chosen for part in itertools.pairwise(np.linspace(a, b, pieces + 1).tolist())]

    def _climbed(self, scan: Array, values: Array) -> float:
        """The estimate at its peak beside the best point of a scan."""
        at = int(np.argmax(values))
        ends = float(scan[max(at - 1, 0)]), float(scan[min(at + 1, len(scan) - 1)])
        found = minimize_scalar(
            lambda b: -self.estimate(float(b)), bounds=ends, method="bounded", options={"maxiter": 30}
        )
        return max(float(values[at]), -float(found.fun))

    def _scan(self, low: float, high: float, depth: float) -> tuple[list[Array], int]:
        """Ends of panels over [low, high], one array for each stretch between psi's breaks, and in how many pieces to cut a
        panel.

        From end to end (V w psi(b), b) moves by 2.5 standard deviations of the noise, so that no peak of the integrand hides
        between two of them: where v is near u, or psi steep, peaks are much narrower than the noise of b. Where psi moves a
        window beyond what V y reaches with probability e^depth nothing depends on psi, and it does not count.
        """
        precision, d = np.linalg.inv(self.law.noise), len(self.law.noise)
        limits = []
        for axis, (kappa, window) in enumerate(zip(self.kappa, self.windows, strict=True)):
            line = Line.of(self.law.mapped(np.eye(d)[[axis]], np.zeros(1)))
            top = window.low if window.half_line else window.high
            reach = window.low - line.chernoff_quantile(depth), top + line.reflected.chernoff_quantile(depth)
            limits.append((float(kappa), *reach))
        edges = [low, *sorted(x for x in self.psi.breaks if low < x < high), high]
        narrow = places(self.psi, low, high)
        grids, arcs = [], []
        for a, b in itertools.pairwise(edges):
            grid = np.union1d(np.linspace(a, b, 4001), narrow[(a < narrow) & (narrow < b)])
            seen = finite_psi(self.psi, np.concatenate([[_within(a, b)], grid[1:-1], [_within(b, a)]]))
            moves = np.stack(
                [np.diff(np.clip(kappa * seen, below, above)) for kappa, below, above in limits] + [-np.diff(grid)]
            )
            steps = np.sqrt(np.einsum("ak,ab,bk->k", moves, precision, moves)) / 2.5
            grids.append(grid)
            arcs.append(np.concatenate([[0.0], np.cumsum(steps)]))
        coarser = max(1.0, sum(float(arc[-1]) for arc in arcs) / _MAX_PANELS)
        if 0.5 * (1.25 * coarser) ** 2 > 5.0 - math.log(self.tol):  # a peak midway between two ends could hide
            raise ToleranceError(_TOO_MANY)
        out = []
        for grid, arc in zip(grids, arcs, strict=True):
            count = 1 + int(arc[-1] / coarser)
            out.append(np.interp(np.linspace(0.0, arc[-1], count + 1), arc, grid))
        return out, math.ceil(coarser)

    def highest(self, a: float, b: float) -> float:
        """The larger estimate at the ends of a panel, each as psi is inside."""
        return max(self.estimate(_within(a, b)), self.estimate(_within(b, a)))

    def estimated(self, todo: Sequence[tuple[float, float]] | None = None) -> float:
        """log of the integral, by saddle-point estimates at the middles of the panels."""
        panels = self._found() if todo is None else todo
        return float(np.logaddexp.reduce([self.estimate(0.5 * (a + b)) + math.log(b - a) for a, b in panels]))

    def probability(self) -> TailProbability:
        todo = self._found()
        whole = self.estimated(todo)
        for _ in range(3):
            logs, errors, roundings, nodes = self._integrate(list(todo), whole)
            total = float(np.logaddexp.reduce(logs))
            scale = np.exp(np.minimum(np.array(errors) - total, 300.0)).sum()
            rounding = np.exp(np.minimum(np.array(roundings) - total, 300.0)).sum()
            if scale + rounding <= self.tol:
                edge = max(self.estimate(_within(*min(todo))), self.estimate(_within(*max(todo)[::-1])))
                beyond = math.exp(edge - total) * 2 * self.width
                bound = {"step": scale, "truncation": beyond, "rounding": rounding}
                made = {name: np.asarray(part) for name, part in bound.items()}
                return TailProbability.from_logs(np.asarray(total), made, nodes, self.tol)
            if rounding > 0.5 * self.tol:
                break
            whole = min(whole, total) - math.log(max(1.0, scale / self.tol)) - 1.0
        raise ToleranceError(
            f"the integral over b reached a relative error of {scale + rounding:.2g}, above tol = {self.tol:g}; "
            "loosen tol or raise "
            "noise_std"
        )

    def _integrate(
        self, todo: list[tuple[float, float]], whole: float
    ) -> tuple[list[float], list[float], list[float], int]:
        """log values, log errors and log rounding errors of the panels; a panel that is not resolved is halved."""
        logs: list[float] = []
        errors: list[float] = []
        roundings: list[float] = []
        nodes = 0
        budget = math.log(self.tol) - math.log(50.0 * len(todo))
        found = -math.inf
        todo.sort(key=lambda panel: self.highest(*panel))
        while todo:
            a, b = todo.pop()
            floor = max(whole, found) + budget  # the whole may turn out larger than its estimate
            at_nodes = self._panel(a, b, floor)
            log_scale, values, alias = at_nodes.log_scale, at_nodes.values, at_nodes.alias
            nodes += at_nodes.nodes
            half = 0.5 * (b - a)
            _, w = gauss_legendre(_NODES)
            unresolved, noisy = half * float(np.abs(_last_coefficients(values)).max()), 2 * half * at_nodes.rounding
            # a series that rounding keeps from dying out is not helped by halving, a contour that loses digits is
            rough = unresolved > 10 * noisy and math.log(unresolved + 1e-300) + log_scale > floor + math.log(5.0)
            lossy = math.log(noisy + 1e-300) + log_scale > floor + math.log(15.0)
            leaky = alias + math.log(2 * half) > floor + 1.5  # the panel's ends need much more than its middle
            if (rough or lossy or leaky) and b - a > self.width / 3000:
                middle = 0.5 * (a + b)
                todo += [(a, middle), (middle, b)]
                if nodes > 1e8:
                    raise ToleranceError("the integral over b needs too many panels; loosen tol or raise noise_std")
                continue
            logs.append(log_scale + math.log(max(half * float(w @ values), 1e-300)))
            found = float(np.logaddexp(found, logs[-1]))
            others = np.logaddexp(alias, at_nodes.density) + math.log(2 * half)
            errors.append(float(np.logaddexp(log_scale + math.log(unresolved + 1e-300), others)))
            roundings.append(log_scale + math.log(noisy + 1e-300))
        return logs, errors, roundings, nodes

    def _panel(self, a: float, b: float, floor: float) -> _OnPanel:
        """The integrand at Gauss-Legendre nodes.

        One read-out whose half line does not bind is taken as the density of b minus the rest.
        """
        x, _ = gauss_legendre(_NODES)
        at = 0.5 * (a + b) + 0.5 * (b - a) * x
        target = floor - math.log(b - a) - 2.0
        middle = self.boxes(0.5 * (a + b))
        if len(middle) != 2 or not middle[0].half_line or not self._loose(middle):
            return self._on_contour(at, 1.0, target)
        tol = min(self._tol_of_density(end, target) for end in (a, 0.5 * (a + b), b))
        try:
            log_density, relative, _ = self.marginal.curve(at, tol, 0)
        except ToleranceError:  # between separate modes of b
            return self._on_contour(at, 1.0, target)
        rest = self._on_contour(at, -1.0, target)
        top = float(log_density.max())
        share = math.exp(min(rest.log_scale - top, 300.0))
        values = np.exp(log_density - top) - share * rest.values
        density = float((log_density + np.log(relative)).max())
        return _OnPanel(top, values, rest.alias, density, share * rest.rounding + EPS, rest.nodes)

    def _tol_of_density(self, b: float, target: float) -> float:
        """The relative tolerance for the density at b that brings its error down to e^target, or a tenth of tol."""
        x = b - self.marginal.shift
        c, K2 = self.marginal._saddle(x, 0)
        size = float(self.marginal._K(np.array([c]))[0]) - c * x - 0.5 * math.log(2 * math.pi * K2)
        return min(0.05, max(0.1 * self.tol, math.exp(min(target - size, 0.0))))

    def _loose(self, middle: list[Window]) -> bool:
        """Whether <v, y> given b, tilted to where b is, lies above the half line's end."""
        only_b = self.law.mapped(np.eye(2)[[1]], np.zeros(1))
        c, _, _ = saddle(only_b, middle[1:])
        _, mean, hessian = self.law.cumulants(np.array([0.0, c[0]]))
        return bool(middle[0].low < mean[0] - 0.5 * math.sqrt(hessian[0, 0]))

    def _on_contour(self, at: Array, sign: float, target: float) -> _OnPanel:
        """The integrand at b = `at` on one contour; sign -1 takes the other side of the half line."""
        law, kappa, windows = self.law, self.kappa, self.windows
        if sign < 0:
            law = law.mapped(np.diag([-1.0, 1.0]), np.zeros(2))
            kappa, windows = -kappa, [Window(-windows[0].low, math.inf)]
        boxes = [
            [
                *(w.moved(-float(s)) for w, s in zip(windows, law.shift[:-1] + kappa * value, strict=True)),
                Window(b - float(law.shift[-1]), b - float(law.shift[-1])),
            ]
            for b, value in zip(at, finite_psi(self.psi, at), strict=True)
        ]
        tried = [boxes[j] for j in (0, len(at) // 2, len(at) - 1)]
        likely = [ready for ready in tried if _rough_bound(law, ready) > target - 8.0]
        if not likely:
            return _OnPanel(target, np.zeros(len(at)), target - 5.0, -math.inf, 0.0, 0)
        saddles = [saddle(law, ready, None if sign < 0 else self.saddle) for ready in likely]
        sizes = [value - 0.5 * float(np.linalg.slogdet(hessian)[1]) for _, value, hessian in saddles]
        middle, c = likely[int(np.argmax(sizes))], saddles[int(np.argmax(sizes))][0]
        made, _ = lattice(law, middle, c, target)
        y = made.y
        plain = made.phi * made.weights * made.cell
        shared = all(w.half_line or w.point for w in middle)  # then nodes of b differ in a phase only
        base = plain
        if shared:
            for w, v, axis in zip(middle, c, y, strict=True):
                base = base / (v + 1j * axis) if w.half_line else base

        def sizes_of(factor: NDArray[np.complex128]) -> tuple[float, Array, float]:
            """sum |f|, sum |f| |y_a| for every a, and what rounded inputs may move the sum by."""
            size = np.abs(factor)
            return float(size.sum()), np.abs(y) @ size, moved_by(size, c, y, made.blur)

        same = sizes_of(base) if shared else None  # phases do not change them
        scale = made.level + _edges(middle, c)
        values, noise, drift = np.empty(len(at)), 0.0, 0.0
        for j, ready in enumerate(boxes):
            if shared:
                factor = base * made.turn(np.array([w.low for w in ready]))
            else:
                factor = base
                for w, v, axis in zip(ready, c, y, strict=True):
                    factor = factor * w.transform(float(v), axis)
            above = made.level + _edges(ready, c) - scale
            lift = math.exp(min(max(above, -700.0), 300.0))
            values[j] = factor.real.sum() * lift
            reach = np.array([max(abs(w.low), 0.0 if w.half_line else abs(w.high)) for w in ready]) + made.turns
            whole, turned, moved = same or sizes_of(factor)
            turns = (16 + 2 * law.loadings.shape[1] ** 0.5) * whole + float(reach @ turned)
            noise = max(noise, EPS * lift * turns)
            noise = max(noise, EPS * abs(values[j]) * (made.kappa + float(np.abs(c) @ reach)))
            noise = max(noise, lift * moved)
            drift = max(drift, above)
        widths = sum(w.log_transform(float(v))[0] for w, v in zip(middle, c, strict=True)) - _edges(middle, c)
        truncation = scale + math.log(made.truncation + 1e-300) + widths
        # windows move from node to node, and aliases with them: the panel's ends and its middle tell the worst
        aliases = max(alias_of(law, ready, c, made.steps) for ready in tried)
        alias = float(np.logaddexp(aliases, truncation + drift))
        return _OnPanel(scale, values, alias, -math.inf, noise, y.shape[1])


def _within(a: float, b: float) -> float:
    """a, moved towards b by next to nothing: psi may jump at a."""
    return a + 1e-9 * (b - a)


def _rough_bound(law: SourceSum, boxes: Sequence[Window]) -> float:
    """log of a Chernoff bound on a box's probability or density, from a few tilts: enough to see that it is nothing."""
    d = len(boxes)
    std = np.sqrt(np.diag(law.covariance()))
    only_b, _, _ = saddle(law.mapped(np.eye(d)[[d - 1]], np.zeros(1)), boxes[-1:])
    tilts = np.zeros((d, 4))
    tilts[-1] = only_b[0]
    for a, window in enumerate(boxes[:-1]):
        if window.half_line:
            tilts[a] = np.array([0.0, 1.0, 4.0, 16.0]) / std[a]
    edges = sum(w.log_edge(row) for w, row in zip(boxes, tilts, strict=True))
    dense = sum(
        -0.5 * math.log(2 * math.pi * v) if w.point else 0.0 for w, v in zip(boxes, np.diag(law.noise), strict=True)
    )
    return float(np.min(law.log_mgf(tilts) + edges)) + dense


def _edges(boxes: Sequence[Window], c: Array) -> float:
    return sum(float(w.log_edge(np.array(v))) for w, v in zip(boxes, c, strict=True))


def _last_coefficients(values: Array) -> Array:
    """The last two Legendre coefficients of a function from its values at the nodes."""
    x, w = gauss_legendre(_NODES)
    degrees = np.arange(_NODES - 2, _NODES)
    table = np.polynomial.legendre.legvander(x, _NODES - 1)[:, -2:]
    return np.asarray((table.T * w) @ values * (degrees + 0.5))
