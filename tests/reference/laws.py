"""One-dimensional laws of the oracle, by brute force: priors as lists of simple pieces, the posterior families' mean,
variance and KL divergence by quadrature over beta. Plain numpy on plain dicts; the package under test is not used.

A prior is flattened to pieces (weight, kind, parameters) with kind among `point`, `normal`, `exponential`, `gamma`,
`uniform`, `laplace`. Masses and weights are never renormalised, so that a derivative with respect to one of them is
the derivative with the others held fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, gammaln, roots_jacobi

Array = NDArray[np.float64]
Spec = dict[str, Any]
Piece = tuple[float, str, tuple[float, ...]]

TAIL = 48.0  # log density this far below its peak is dropped: e^-48 = 1e-21
FAR = 200.0  # tables stop here
SPREAD = 9.5  # standard deviations kept of a normal


# ---------------------------------------------------------------- priors


def flatten(spec: Spec) -> list[Piece]:
    """The pieces (weight, kind, parameters) of a prior in the problem format."""
    kind = spec["kind"]
    if kind == "discrete":
        return [(float(m), "point", (float(x),)) for x, m in zip(spec["points"], spec["masses"], strict=True)]
    if kind == "bernoulli":
        return [(1.0 - spec["p"], "point", (0.0,)), (float(spec["p"]), "point", (1.0,))]
    if kind == "normal":
        return [(1.0, "normal", (float(spec.get("mean", 0.0)), float(spec.get("std", 1.0))))]
    if kind == "exponential":
        return [(1.0, "exponential", (float(spec["scale"]),))]
    if kind == "gamma":
        return [(1.0, "gamma", (float(spec["shape"]), float(spec["scale"])))]
    if kind == "uniform":
        return [(1.0, "uniform", (float(spec["low"]), float(spec["high"])))]
    if kind == "laplace":
        return [(1.0, "laplace", (float(spec.get("mean", 0.0)), float(spec["scale"])))]
    if kind == "spike_slab":
        slab = [(spec["p"] * weight, name, values) for weight, name, values in flatten(spec["slab"])]
        return [(1.0 - spec["p"], "point", (0.0,)), *slab]
    if kind == "mixture":
        parts = zip(spec["weights"], spec["components"], strict=True)
        return [(v * weight, name, values) for v, part in parts for weight, name, values in flatten(part)]
    raise ValueError(f"unknown prior kind {kind!r}")


def piece_log_density(kind: str, values: tuple[float, ...], x: Array) -> Array:
    """Log density of one continuous piece of weight 1, -inf off its support."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "normal":
            mean, std = values
            return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        if kind == "exponential":
            return np.where(x >= 0, -x / values[0] - math.log(values[0]), -np.inf)
        if kind == "gamma":
            shape, scale = values
            inside = (shape - 1) * np.log(np.maximum(x, 0)) - x / scale - gammaln(shape) - shape * math.log(scale)
            return np.where(x > 0, inside, -np.inf)
        if kind == "uniform":
            low, high = values
            return np.where((x >= low) & (x <= high), -math.log(high - low), -np.inf)
        if kind == "laplace":
            return -np.abs(x - values[0]) / values[1] - math.log(2 * values[1])
    raise ValueError(kind)


@np.errstate(under="ignore")  # weights far out are 0
def log_density(pieces: list[Piece], x: Array) -> Array:
    """Log density of the continuous part, its weight included."""
    x = np.asarray(x, dtype=float)
    logs = [math.log(v) + piece_log_density(kind, values, x) for v, kind, values in pieces if kind != "point" and v > 0]
    return logs[0] if len(logs) == 1 else np.logaddexp.reduce(logs) if logs else np.full(x.shape, -np.inf)


def log_mass(pieces: list[Piece], x: float) -> float:
    """Log of the mass at exactly x."""
    mass = sum(v for v, kind, values in pieces if kind == "point" and values[0] == x)
    return math.log(mass) if mass > 0 else -math.inf


def atoms(pieces: list[Piece]) -> list[float]:
    """The distinct points that carry mass, ascending."""
    return sorted({values[0] for v, kind, values in pieces if kind == "point" and v > 0})


def breaks(pieces: list[Piece]) -> list[float]:
    """Where the continuous part's density is not smooth, ascending."""
    found: set[float] = set()
    for _, kind, values in pieces:
        if kind in ("exponential", "gamma"):
            found.add(0.0)
        elif kind == "uniform":
            found.update(values)
        elif kind == "laplace":
            found.add(values[0])
    return sorted(found)


# ---------------------------------------------------------------- quadrature


def gauss(count: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1), 0.5 * weights


def double_exponential(resolution: float) -> tuple[Array, Array]:
    """tanh-sinh nodes and weights on [0, 1]: converges whatever integrable singularity sits at 0, towards which the
    nodes keep full relative precision (x^-0.9 included), or weaker ones at 1."""
    step = 0.06 / resolution
    t = np.arange(-math.ceil(5.5 / step), math.ceil(3.05 / step) + 1) * step
    inner = math.pi * np.sinh(t)
    left, right = 1 / (1 + np.exp(-inner)), 1 / (1 + np.exp(inner))
    return left, step * math.pi * np.cosh(t) * left * right


def panels(edges: Array, rule: tuple[Array, Array]) -> tuple[Array, Array]:
    """Nodes and weights on consecutive panels; edges (..., E) ascending -> (..., (E-1) * count)."""
    width = np.diff(edges, axis=-1)[..., None]
    x = edges[..., :-1, None] + width * rule[0]
    w = width * rule[1]
    return x.reshape(*edges.shape[:-1], -1), w.reshape(*edges.shape[:-1], -1)


def discretise(piece: Piece, width: float, resolution: float) -> tuple[Array, Array]:
    """A continuous piece as points and masses: Gauss rules on panels of at most `width`, exact to rounding for smooth
    expectations. A gamma's first panel uses the Gauss-Jacobi rule of its own singularity at 0."""
    weight, kind, values = piece
    low, high, scale = {
        "normal": lambda m, s: (m - SPREAD * s, m + SPREAD * s, s),
        "exponential": lambda s: (0.0, 42 * s, s),
        "gamma": lambda k, s: (0.0, s * (k + 42 + 9 * math.sqrt(k)), s),
        "uniform": lambda a, b: (a, b, b - a),
        "laplace": lambda m, s: (m - 42 * s, m + 42 * s, s),
    }[kind](*values)
    cuts = [low, *(x for x in breaks([piece]) if low < x < high), high]
    limit = min(width, 3.0 * scale) / resolution
    counts = [max(2, math.ceil((b - a) / limit) + 1) for a, b in itertools.pairwise(cuts)]
    spans = zip(itertools.pairwise(cuts), counts, strict=True)
    edges = np.unique(np.concatenate([np.linspace(a, b, count) for (a, b), count in spans]))
    x, w = panels(edges, gauss(16))
    mass = w * np.exp(piece_log_density(kind, values, x))
    if kind == "gamma":
        shape, gamma_scale = values
        nodes, weights = roots_jacobi(24, 0.0, shape - 1.0)
        first = 0.5 * edges[1] * (nodes + 1)
        log_constant = shape * math.log(0.5 * edges[1] / gamma_scale) - gammaln(shape)
        x = np.concatenate([first, x[16:]])
        mass = np.concatenate([weights * np.exp(log_constant - first / gamma_scale), mass[16:]])
    return x, weight * mass


@dataclass(frozen=True)
class Table:
    """A smooth function on [low, high] as degree-7 pieces, verified between its nodes when built."""

    low: float
    step: float
    coefficients: Array  # (8, panels), powers of the local variable on [-1, 1]

    def __call__(self, x: Array) -> Array:
        position = (x - self.low) / self.step
        index = np.clip(position.astype(np.int64), 0, self.coefficients.shape[1] - 1)
        local = 2.0 * (position - index) - 1.0
        value = self.coefficients[-1][index]
        for row in self.coefficients[-2::-1]:
            value = value * local + row[index]
        return value


def tabulate(
    function: Callable[[Array], Array], low: float, high: float, tol: float = 1e-13
) -> Callable[[Array], Array]:
    """`function` on [low, high] as a `Table` within tol * max|function|; panels double until a check agrees.

    A psi that grows fast sends a few far nodes to huge c: outside [-200, 200] the function itself is called.
    """
    if low < -FAR or high > FAR:
        inner = tabulate(function, *np.clip([low, high], -FAR, FAR).tolist(), tol)

        def hybrid(x: Array) -> Array:
            far = np.abs(x) > FAR
            value = inner(np.where(far, math.copysign(FAR, low + high), x))
            value[far] = function(x[far])
            return value

        return hybrid
    nodes = np.cos((np.arange(8) + 0.5) * math.pi / 8)
    inverse = np.linalg.inv(np.vander(nodes, increasing=True))
    probes = np.array([-0.997, -0.31, 0.17, 0.91])
    margin = 1e-9 * max(1.0, abs(low), abs(high))
    low, high = low - margin, high + margin
    count = 32
    while count <= 2**15:
        step = (high - low) / count
        left = low + step * np.arange(count)[:, None]
        values = function((left + 0.5 * step * (nodes + 1)).ravel()).reshape(count, 8)
        table = Table(low, step, np.ascontiguousarray(inverse @ values.T))
        x = (left + 0.5 * step * (probes + 1)).ravel()
        if np.max(np.abs(table(x) - function(x))) <= tol * np.max(np.abs(values)):
            return table
        count *= 2
    raise ArithmeticError(f"no table of a function on [{low:g}, {high:g}] reached {tol:g}")


# ---------------------------------------------------------------- posterior families


def softplus(c: Array) -> Array:
    return np.logaddexp(0.0, c)


def _finite(value: Array, what: str) -> Array:
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{what}: the KL divergence is not finite, the prior does not cover the posterior")
    return value


@np.errstate(under="ignore")  # weights far out are 0
def normal_cross_entropy(prior: Spec, mean: Array, std: Array, resolution: float = 1.0, closed: bool = True) -> Array:
    """-E log p(beta) for beta ~ N(mean, std^2), p the continuous part's density.

    A single normal or Laplace piece has a closed form, which `closed=False` replaces by quadrature (to test it).
    """
    pieces = flatten(prior)
    mean, std = np.broadcast_arrays(np.asarray(mean, float), np.asarray(std, float))
    if closed and len(pieces) == 1 and pieces[0][1] == "laplace":
        m, s = pieces[0][2]
        t = (mean - m) / std
        absolute = std * math.sqrt(2 / math.pi) * np.exp(-0.5 * t**2) + (mean - m) * erf(t / math.sqrt(2))
        return math.log(2 * s) + absolute / s - math.log(pieces[0][0])
    if closed and len(pieces) == 1 and pieces[0][1] == "normal":
        m, s = pieces[0][2]
        return 0.5 * math.log(2 * math.pi * s**2) + ((mean - m) ** 2 + std**2) / (2 * s**2) - math.log(pieces[0][0])
    fixed = np.linspace(-SPREAD, SPREAD, math.ceil(14 * resolution) + 1)
    rule = gauss(16)

    def block(m: Array, s: Array) -> Array:
        cuts = np.array(breaks(pieces))
        own = np.clip((cuts - m[:, None]) / s[:, None], -SPREAD, SPREAD)
        edges = np.sort(np.concatenate([np.broadcast_to(fixed, (m.size, fixed.size)), own], axis=1), axis=1)
        t, w = panels(edges, rule)
        log_p = log_density(pieces, m[:, None] + s[:, None] * t)
        return -np.sum(w * np.exp(-0.5 * t**2) / math.sqrt(2 * math.pi) * log_p, axis=1)

    flat_mean, flat_std = mean.ravel(), std.ravel()
    chunks = range(0, flat_mean.size, 8192)
    parts = [block(flat_mean[i : i + 8192], flat_std[i : i + 8192]) for i in chunks]
    return _finite(np.concatenate(parts), "normal posterior").reshape(mean.shape)


def exponential_cross_entropy(prior: Spec, mean: Array, resolution: float = 1.0) -> Array:
    """-E log p(beta) for beta exponential with the given mean."""
    pieces = flatten(prior)
    flat = np.asarray(mean, float).ravel()
    fixed = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 18.0, 24.0, 30.0, 36.0, 44.0])
    rule = double_exponential(resolution)
    cuts = np.array([x for x in breaks(pieces) if x > 0])
    result = np.empty(flat.size)
    for i in range(0, flat.size, 2048):
        m = flat[i : i + 2048, None]
        edges = np.concatenate([np.broadcast_to(fixed, (m.size, fixed.size)), np.clip(cuts / m, 0, fixed[-1])], axis=1)
        t, w = panels(np.sort(edges, axis=1), rule)
        log_p = log_density(pieces, m * np.maximum(t, 1e-300))
        result[i : i + 2048] = -np.sum(w * np.exp(-t) * log_p, axis=1)
    return _finite(result, "exponential posterior").reshape(np.shape(mean))


def tilted_nodes(
    base: Spec, precision: float, low: float, high: float, resolution: float
) -> tuple[Array, Array, Array]:
    """Points beta, log masses, and which are atoms, so that sums of e^{c beta - precision beta^2/2} over them are
    integrals against `base` for every c in [low, high]."""
    pieces = flatten(base)
    points = np.array(atoms(pieces))
    logs = np.array([log_mass(pieces, x) for x in points])
    continuous = [piece for piece in pieces if piece[1] != "point" and piece[0] > 0]
    if not continuous:
        return points, logs, np.ones(points.size, dtype=bool)
    spans = [_tilted_span(piece, precision, c) for piece in continuous for c in (low, high)]
    start, end = min(s[0] for s in spans), max(s[1] for s in spans)
    width = min(s[2] for s in spans) / resolution
    cuts = [start, *(x for x in breaks(pieces) if start < x < end), end]
    beta, weight = [], []
    for a, b in itertools.pairwise(cuts):
        edges = np.linspace(a, b, max(3, math.ceil((b - a) / width)) + 1)
        # An end of the support may carry a singularity (gamma) or a boundary layer (large |c|): tanh-sinh there.
        for x, w in (
            panels(edges[:2], double_exponential(resolution)),
            panels(edges[1:-1], gauss(16)),
            panels(edges[-2:], double_exponential(resolution)),
        ):
            beta.append(x)
            weight.append(w)
    nodes = np.concatenate(beta)
    with np.errstate(divide="ignore"):
        densities = np.log(np.concatenate(weight)) + log_density(pieces, nodes)
    kept = np.isfinite(densities)
    everything = np.concatenate([points, nodes[kept]])
    is_atom = np.arange(everything.size) < points.size
    return everything, np.concatenate([logs, densities[kept]]), is_atom


def _tilted_span(piece: Piece, precision: float, c: float) -> tuple[float, float, float]:
    """(low, high, width): where piece(beta) e^{c beta - precision beta^2/2} lives, and a panel width fit for it."""
    _, kind, values = piece
    spread = math.inf if precision == 0 else 1 / math.sqrt(precision)
    if kind == "normal":
        mean, std = values
        total = precision + std**-2
        centre = (c + mean / std**2) / total
        return centre - SPREAD / math.sqrt(total), centre + SPREAD / math.sqrt(total), 1.0 / math.sqrt(total)
    if kind == "uniform":
        return values[0], values[1], min(spread, values[1] - values[0], 12.0 / max(abs(c), 1e-9))

    def reach(rate: float, extra: float) -> float:
        # beta beyond which extra*log(beta) - rate*beta - precision*beta^2/2 stays TAIL under its peak
        need = TAIL + 4 * abs(extra)
        bounds = [need / rate] if rate > 0 else []
        if precision > 0:
            peak = max(-rate, 0.0) / precision
            bounds.append(peak + math.sqrt(2 * need) * spread)
        if not bounds:
            raise ValueError(f"c = {c:g} lies outside the domain of the tilted family's normaliser")
        return min(bounds)

    if kind == "laplace":
        mean, scale = values
        shifted = c - precision * mean
        up, down = reach(1 / scale - shifted, 0.0), reach(1 / scale + shifted, 0.0)
        return mean - down, mean + up, min(spread, scale, 12.0 / max(abs(shifted), 1e-9))
    shape, scale = (1.0, values[0]) if kind == "exponential" else values
    return 0.0, reach(1 / scale - c, shape - 1) * 1.2, min(spread, 2 * scale, 12.0 / max(abs(c), 1e-9))


@dataclass(frozen=True)
class Family:
    """Mean, variance and KL of one feature's posterior as plain functions of its parameters.

    mean(c0); variance(c) with c = c0, or c1 where `scale_row`; kl(c0) or kl(c0, c1). `costly` functions are put into
    tables by the oracle. `steepness(low, high)` is 2 sup sd: pi over it bounds how close a pole of the mean may come.
    """

    mean: Callable[[Array], Array]
    variance: Callable[[Array], Array]
    kl: Callable[..., Array]
    scale_row: bool = False
    costly_mean: bool = False
    costly_kl: bool = True
    steepness: float = 1.0


def family(posterior: Spec, prior: Spec, low: float = -40.0, high: float = 40.0, resolution: float = 1.0) -> Family:
    """The posterior's functions against `prior`, valid for c0 in [low, high] (a bound that only `tilted` uses)."""
    name = posterior["family"]
    if name == "bernoulli":
        return _bernoulli(prior)
    if name == "normal":
        return _normal(float(posterior["std"]), prior, resolution)
    if name == "normal_scale":
        return _normal_scale(prior, resolution)
    if name == "exponential":
        return _exponential(prior, resolution)
    if name == "tilted":
        return _tilted(float(posterior["precision"]), posterior["base"], prior, low, high, resolution)
    raise ValueError(f"unknown family {name!r}")


def _bernoulli(prior: Spec) -> Family:
    pieces = flatten(prior)
    log_one, log_zero = log_mass(pieces, 1.0), log_mass(pieces, 0.0)

    def one(c: Array) -> Array:
        return np.exp(-softplus(-c))

    def kl(c: Array) -> Array:
        value = one(c) * (-softplus(-c) - log_one) + one(-c) * (-softplus(c) - log_zero)
        return _finite(value, "bernoulli posterior")

    return Family(one, lambda c: one(c) * one(-c), kl, costly_kl=False)


def _normal(std: float, prior: Spec, resolution: float) -> Family:
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    return Family(
        mean=lambda c: np.asarray(c, float),
        variance=lambda c: np.full(np.shape(c), std**2),
        kl=lambda c: normal_cross_entropy(prior, c, np.full(np.shape(c), std), resolution) - entropy,
        steepness=0.0,
    )


def _normal_scale(prior: Spec, resolution: float) -> Family:
    def kl(c0: Array, c1: Array) -> Array:
        std = softplus(c1)
        return normal_cross_entropy(prior, c0, std, resolution) - np.log(std) - 0.5 * math.log(2 * math.pi * math.e)

    return Family(lambda c: np.asarray(c, float), lambda c1: softplus(c1) ** 2, kl, scale_row=True)


def _exponential(prior: Spec, resolution: float) -> Family:
    def kl(c: Array) -> Array:
        mean = softplus(c)
        return exponential_cross_entropy(prior, mean, resolution) - 1.0 - np.log(mean)

    return Family(softplus, lambda c: softplus(c) ** 2, kl)


def _tilted(precision: float, base: Spec, prior: Spec, low: float, high: float, resolution: float) -> Family:
    beta, logs, is_atom = tilted_nodes(base, precision, low, high, resolution)
    base_pieces, prior_pieces = flatten(base), flatten(prior)
    ratio = np.empty(beta.size)  # log d(base)/d(prior)
    for i in np.flatnonzero(is_atom):
        ratio[i] = log_mass(base_pieces, beta[i]) - log_mass(prior_pieces, beta[i])
    ratio[~is_atom] = log_density(base_pieces, beta[~is_atom]) - log_density(prior_pieces, beta[~is_atom])
    _finite(ratio, "tilted posterior")

    @np.errstate(under="ignore")  # weights far out are 0
    def summed(c: Array, term: Callable[[Array, Array], Array]) -> Array:
        """Rows of q against term(q, exponent - log normaliser), q the tilted law at each c."""
        flat = np.asarray(c, float).ravel()
        if flat.size and (flat.min() < low - 1e-6 or flat.max() > high + 1e-6):
            raise ValueError(f"tilted family prepared for c in [{low:g}, {high:g}] only")
        out = np.empty(flat.size)
        for i in range(0, flat.size, 512):
            exponent = flat[i : i + 512, None] * beta - 0.5 * precision * beta**2
            q = exponent + logs
            top = q.max(axis=1, keepdims=True)
            np.exp(q - top, out=q)
            normaliser = q.sum(axis=1, keepdims=True)
            q /= normaliser
            out[i : i + 512] = term(q, exponent - (top + np.log(normaliser)))
        return out.reshape(np.shape(c))

    def mean(c: Array) -> Array:
        return summed(c, lambda q, _: q @ beta)

    def variance(c: Array) -> Array:
        return summed(c, lambda q, _: np.sum(q * (beta - (q @ beta)[:, None]) ** 2, axis=1))

    def kl(c: Array) -> Array:
        return summed(c, lambda q, log_tilt: np.sum(q * (log_tilt + ratio), axis=1))

    steepness = 2.0 * math.sqrt(float(np.max(variance(np.linspace(low, high, 201)))))
    return Family(mean, variance, kl, costly_mean=True, steepness=steepness)
