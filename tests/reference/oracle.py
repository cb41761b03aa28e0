"""An independent oracle for the twelve terms of the loss: slow, transparent, accurate to about 1e-11 relative.

Nothing is imported from the package under test; the input is the plain dict of the `elbotree-problem/1` format.

Method. z1's discrete coordinates are enumerated (continuous ones become Gauss points and masses first, normal ones
are merged into the covariance exactly), so y = A x1 + d is a Gaussian mixture: y = mean_k + R g, g ~ N(0, I), with one
R for all components of a group. Given a component, b = <y, u> + theta is normal: Gauss-Legendre panels in b over +-10
standard deviations, split at psi's kinks. Given b, y = ybar + F x with x ~ N(0, I) and F = R (I - e e^T),
e = R^T u / |R^T u|, and psi(b) is a number, so every c_j is linear in x: expectations are trapezoidal sums over a
lattice in one or two whitened coordinates, which converge geometrically. A rank-deficient covariance only makes some
|C_j F| zero, which needs no care.

`resolution` multiplies every node count; results at 1 and at 2 agree to 1e-11 on the problems of `problems.py`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf

from tests.reference.laws import (
    Array,
    Family,
    Spec,
    discretise,
    family,
    flatten,
    gauss,
    normal_cross_entropy,
    panels,
    softplus,
    tabulate,
)

Psi = tuple[Callable[[Array], Array], tuple[float, ...]]
TERMS = ("L", "R1", "R2", "R3", "S1", "S2", "T1", "T2", "T3", "U1", "U2", "U3")
CHUNK = 1 << 14  # b-nodes handled at once: bounds memory

PSI: dict[str, Psi] = {
    "relu": (lambda b: np.maximum(b, 0.0), (0.0,)),
    "tanh": (np.tanh, ()),
    "heaviside": (lambda b: np.heaviside(b, 0.5), (0.0,)),
    "sigmoid": (lambda b: np.exp(-softplus(-b)), ()),
    "softplus": (softplus, ()),
    "leaky_relu": (lambda b: np.where(b > 0, b, 0.01 * b), (0.0,)),
    "elu": (lambda b: np.where(b > 0, b, np.expm1(np.minimum(b, 0.0))), (0.0,)),
    "gelu": (lambda b: 0.5 * b * (1 + erf(b / math.sqrt(2))), ()),
    "silu": (lambda b: b * np.exp(-softplus(-b)), ()),
    "abs": (np.abs, (0.0,)),
    "square": (lambda b: b**2, ()),
    "cube": (lambda b: b**3, ()),
    "sin": (np.sin, ()),
    "exp": (np.exp, ()),
    "identity": (lambda b: b, ()),
    "zero": (np.zeros_like, ()),
    "hardtanh": (lambda b: np.clip(b, -1.0, 1.0), (-1.0, 1.0)),
    "sign": (np.sign, (0.0,)),
    "b*tanh(b)/(1 + b**2)": (lambda b: b * np.tanh(b) / (1 + b**2), ()),
    "max(b, 0) - max(b - 1, 0)/2": (lambda b: np.maximum(b, 0) - 0.5 * np.maximum(b - 1, 0), (0.0, 1.0)),
    "sin(3*b) + abs(b)": (lambda b: np.sin(3 * b) + np.abs(b), (0.0,)),
    "max(b, 0)**2": (lambda b: np.maximum(b, 0) ** 2, (0.0,)),
    "tanh(5*b)": (lambda b: np.tanh(5 * b), ()),
}


# ---------------------------------------------------------------- the law of y


@dataclass(frozen=True)
class Plain:
    """The problem's numbers as arrays, defaults filled in."""

    A: Array
    d: Array
    w: Array
    u: Array
    theta: float
    psi: Psi
    B1: Array
    mu1: Array
    sigma1: float
    alphas: list[Spec]
    B2: Array
    mu2: Array
    sigma2: float
    betas: list[Spec]
    encoder: list[Spec]

    @property
    def C(self) -> list[Array]:
        return [np.atleast_2d(np.asarray(q["C"], float)) for q in self.encoder]

    @property
    def bias(self) -> list[Array]:
        return [np.atleast_1d(np.asarray(q.get("bias", np.zeros(len(q["C"]))), float)) for q in self.encoder]


def plain(problem: Spec, psi: Psi | str | None = None) -> Plain:
    """Read the problem dict; `psi`, a name of `PSI` or (function, kinks), stands in for the layer's own text."""
    layer, first, second = problem["layer"], problem["input"], problem["model"]
    A = np.asarray(layer["A"], float)
    B1 = np.asarray(first["B"], float).reshape(A.shape[1], -1)
    B2 = np.asarray(second["B"], float).reshape(A.shape[0], -1)
    chosen = psi if psi is not None else layer["psi"]
    return Plain(
        A=A,
        d=np.asarray(layer.get("offset", np.zeros(A.shape[0])), float),
        w=np.asarray(layer["w"], float),
        u=np.asarray(layer["u"], float),
        theta=float(layer.get("threshold", 0.0)),
        psi=PSI[chosen] if isinstance(chosen, str) else chosen,
        B1=B1,
        mu1=np.asarray(first.get("offset", np.zeros(A.shape[1])), float),
        sigma1=float(first["noise_std"]),
        alphas=list(first["priors"]),
        B2=B2,
        mu2=np.asarray(second.get("offset", np.zeros(A.shape[0])), float),
        sigma2=float(second["noise_std"]),
        betas=list(second["priors"]),
        encoder=list(problem["encoder"]),
    )


@dataclass(frozen=True)
class Mixture:
    """y = mean[k] + R g with probability weight[k], g ~ N(0, I)."""

    weight: Array  # (K,)
    mean: Array  # (K, n2)
    R: Array  # (n2, r)


def mixtures(p: Plain, resolution: float = 1.0) -> Iterator[Mixture]:
    """The law of y as groups of equal covariance: one group a choice of normal pieces among the sources' priors."""
    directions = p.A @ p.B1
    options = []
    for i, spec in enumerate(p.alphas):
        pieces = flatten(spec)
        # Smoothed by the noise, the integrand varies along this source on the scale sigma1 / |B1 e_i|.
        width = 5.0 * p.sigma1 / max(float(np.linalg.norm(p.B1[:, i])), 1e-300)
        points: list[tuple[Array, Array]] = []
        for piece in pieces:
            if piece[1] == "point":
                points.append((np.array(piece[2]), np.array([piece[0]])))
            elif piece[1] != "normal":
                points.append(discretise(piece, width, resolution))
        choices: list[tuple[Array, Array, float]] = []  # values, masses, standard deviation
        if points:
            choices.append((np.concatenate([x for x, _ in points]), np.concatenate([m for _, m in points]), 0.0))
        choices += [(np.array([v[0]]), np.array([weight]), v[1]) for weight, kind, v in pieces if kind == "normal"]
        options.append(choices)
    for choice in itertools.product(*options):
        weight, mean = np.ones(1), (p.A @ p.mu1 + p.d)[None, :]
        columns = [p.sigma1 * p.A]
        for i, (values, masses, std) in enumerate(choice):
            weight = (weight[:, None] * masses).ravel()
            mean = (mean[:, None, :] + values[:, None] * directions[:, i]).reshape(-1, p.A.shape[0])
            columns.append(std * directions[:, i : i + 1])
        yield Mixture(weight, mean, np.concatenate(columns, axis=1))


@dataclass(frozen=True)
class Nodes:
    """Points of the law of (y, b): given node i, y = y[i] + F x with x ~ N(0, I), and b, psi(b) are numbers."""

    weight: Array  # (N,)
    b: Array  # (N,)
    psi: Array  # (N,)
    y: Array  # (N, n2), mean of y given b
    f: Array  # (N, n2), mean of f given b
    F: Array  # (n2, r)


def chunks(size: int) -> Iterator[slice]:
    return (slice(i, i + CHUNK) for i in range(0, size, CHUNK))


def nodes_of(p: Plain, mixture: Mixture, steepness: float, resolution: float) -> Nodes:
    """Gauss-Legendre panels in b for every component, split at psi's kinks.

    steepness: how fast the steepest integrand turns in c, in units of the logistic function.
    """
    function, kinks = p.psi
    projected = mixture.R.T @ p.u
    spread = float(np.linalg.norm(projected))
    centre = mixture.mean @ p.u + p.theta
    scale = float(np.linalg.norm(mixture.R)) * float(np.linalg.norm(p.u))
    if spread <= 1e-14 * scale or spread == 0.0:  # b does not vary given the component
        e, t, weight = np.zeros(mixture.R.shape[1]), np.zeros((centre.size, 1)), mixture.weight[:, None]
        spread = 0.0
    else:
        e = projected / spread
        slopes = [np.linalg.norm(C @ (mixture.R @ e)) + np.linalg.norm(C @ p.w) * spread for C in p.C]
        half_width = 0.85 / max(1.0, 0.5 * steepness * max(slopes, default=0.0), spread)
        fixed = np.linspace(-10.0, 10.0, math.ceil(10.0 / half_width * resolution) + 1)
        cuts = np.clip((np.array(kinks, float) - centre[:, None]) / spread, -10.0, 10.0)
        edges = np.concatenate([np.broadcast_to(fixed, (centre.size, fixed.size)), cuts], axis=1)
        t, weight = panels(np.sort(edges, axis=1), gauss(16))
        weight = mixture.weight[:, None] * weight * np.exp(-0.5 * t**2) / math.sqrt(2 * math.pi)
    b = (centre[:, None] + spread * t).ravel()
    y = (mixture.mean[:, None, :] + t[:, :, None] * (mixture.R @ e)).reshape(-1, p.A.shape[0])
    value = np.asarray(function(b), float)
    F = mixture.R - np.outer(mixture.R @ e, e)
    return Nodes(weight.ravel(), b, value, y, y + value[:, None] * p.w, F)


def lattice(slope: float, resolution: float) -> tuple[Array, Array]:
    """Trapezoidal nodes and weights for E g(x), x ~ N(0, 1), where g's poles are no nearer than pi / slope."""
    step = 0.5 / max(1.0, slope) / resolution
    count = math.ceil(8.8 / step)
    x = step * np.arange(-count, count + 1)
    return x, step * np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


# ---------------------------------------------------------------- the terms


class Row:
    """One encoder parameter c = <row, f> + bias on a group's nodes: mean given b, and standard deviation |row F|."""

    def __init__(self, nodes: Nodes, row: Array, bias: float) -> None:
        self.row, self.bias = row, bias
        self.direction = row @ nodes.F
        self.std = float(np.linalg.norm(self.direction))
        centre = self.centre(nodes)
        self.low = float(centre.min()) - 13.0 * self.std
        self.high = float(centre.max()) + 13.0 * self.std

    def centre(self, nodes: Nodes) -> Array:
        return nodes.f @ self.row + self.bias


class Feature:
    """Posterior j on a group's nodes: its rows, and its mean, variance and KL, tabulated where they are costly."""

    def __init__(self, p: Plain, nodes: Nodes, j: int, resolution: float) -> None:
        self.rows = [Row(nodes, c, bias) for c, bias in zip(p.C[j], p.bias[j], strict=True)]
        self.posterior, self.prior = p.encoder[j], p.betas[j]
        row = self.rows[0]
        self.law: Family = family(self.posterior, self.prior, row.low, row.high, resolution)
        self.mean = self.law.mean
        self.variance = self.law.variance
        if self.law.costly_mean:
            self.mean = tabulate(self.law.mean, row.low, row.high)
            self.variance = tabulate(self.law.variance, row.low, row.high)
        self.kl: Callable[..., Array] = self.law.kl
        if self.law.costly_kl and not self.law.scale_row:
            self.kl = tabulate(self.law.kl, row.low, row.high)

    @property
    def variance_row(self) -> Row:
        return self.rows[1] if self.law.scale_row else self.rows[0]


def smoothed_by(
    g: Callable[[Array], Array], std: float, weighted: tuple[Array, Array], centres: Array
) -> Callable[[Array], Array]:
    """c -> sum_x w(x) g(c + std x), in a table over the centres' range where they are many."""
    x, w = weighted

    def direct(c: Array) -> Array:
        return g(c[..., None] + std * x) @ w

    if std == 0.0 or centres.size < 4 * CHUNK:
        return direct
    return tabulate(direct, float(centres.min()), float(centres.max()))


def expect_one(nodes: Nodes, row: Row, g: Callable[[Array], Array], steepness: float, resolution: float) -> float:
    """E g(c) over one group."""
    centres = row.centre(nodes)
    value = smoothed_by(g, row.std, lattice(steepness * row.std, resolution), centres)
    return sum(float(nodes.weight[s] @ value(centres[s])) for s in chunks(centres.size))


def expect_along(
    nodes: Nodes,
    row: Row,
    g: Callable[[Array], Array],
    along: Array,
    centre: Array,
    steepness: float,
    resolution: float,
) -> float:
    """E[<f - centre, along> g(c)] over one group: given b, <f, along> is linear in c's own whitened coordinate x, so
    E[g(c)] and E[x g(c)] suffice."""
    x, w = lattice(steepness * row.std, resolution)
    slope = float((along @ nodes.F) @ row.direction) / row.std if row.std > 0 else 0.0
    centres = row.centre(nodes)
    plain_value = smoothed_by(g, row.std, (x, w), centres)
    turned_value = smoothed_by(g, row.std, (x, w * x), centres)
    total = 0.0
    for s in chunks(centres.size):
        fixed = (nodes.f[s] - centre) @ along
        total += float(nodes.weight[s] @ (fixed * plain_value(centres[s]) + slope * turned_value(centres[s])))
    return total


def expect_two(nodes: Nodes, first: Feature, second: Feature, resolution: float) -> float:
    """E[s_j(c_j) s_k(c_k)] over one group.

    Given b: c_j = cbar_j + g_j x_1, c_k = cbar_k + g_k1 x_1 + g_k2 x_2. The sum over x_2 smooths s_k into a function of
    one variable, which is tabulated; the sum over x_1 is taken at every node.
    """
    j, k = first.rows[0], second.rows[0]
    e = j.direction / j.std if j.std > 0 else np.zeros_like(j.direction)
    shared = float(k.direction @ e)
    own = float(np.linalg.norm(k.direction - shared * e))
    slope = max(first.law.steepness * j.std, second.law.steepness * abs(shared))
    x, w = lattice(slope, resolution)
    left, right = j.centre(nodes), k.centre(nodes)
    smoothed = second.mean
    if own > 0:
        reach = abs(shared) * float(x[-1])
        inner = lattice(second.law.steepness * own, resolution)
        smoothed = tabulate(
            lambda c: second.mean(c[:, None] + own * inner[0]) @ inner[1],
            float(right.min()) - reach,
            float(right.max()) + reach,
        )
    total = 0.0
    for s in chunks(left.size):
        product = first.mean(left[s, None] + j.std * x) * smoothed(right[s, None] + shared * x)
        total += float(nodes.weight[s] @ (product @ w))
    return total


def expected_kl(nodes: Nodes, feature: Feature, resolution: float) -> float:
    """E K_j(c_j) over one group.

    For normal_scale the cross entropy needs no second coordinate: given c_1, beta is itself normal, with c_0's own
    conditional variance added to softplus(c_1)^2.
    """
    if not feature.law.scale_row:
        return expect_one(nodes, feature.rows[0], feature.kl, feature.law.steepness, resolution)
    mean_row, scale_row = feature.rows
    e = scale_row.direction / scale_row.std if scale_row.std > 0 else np.zeros_like(scale_row.direction)
    shared = float(mean_row.direction @ e)
    own_variance = float(np.sum((mean_row.direction - shared * e) ** 2))
    means, scales = mean_row.centre(nodes), scale_row.centre(nodes)
    # beta's spread smooths the cross entropy along x: the lattice must be finer than its smallest likely value.
    smallest = math.sqrt(own_variance + float(softplus(np.array(scales.min() - 6 * scale_row.std))) ** 2)
    x, w = lattice(max(scale_row.std, abs(shared) / max(smallest, 0.02)), resolution)
    total = 0.0
    for s in chunks(means.size):
        variance = softplus(scales[s, None] + scale_row.std * x) ** 2
        cross = normal_cross_entropy(
            feature.prior, means[s, None] + shared * x, np.sqrt(own_variance + variance), resolution
        )
        total += float(nodes.weight[s] @ ((cross - 0.5 * np.log(2 * math.pi * math.e * variance)) @ w))
    return total


def _steepness(p: Plain) -> float:
    """A guess at the steepest feature, for the panels in b only (a logistic function is 1)."""
    found = 1.0
    for q in p.encoder:
        if q["family"] == "tilted":
            points = [v[0] for _, kind, v in flatten(q["base"]) if kind == "point"]
            found = max(found, max(points) - min(points) if points else 1.0)
    return min(found, 6.0)


@np.errstate(under="ignore")
def reference_terms(problem: Spec, psi: Psi | str | None = None, resolution: float = 1.0) -> dict[str, float]:
    """The twelve terms L, R1, R2, R3, S1, S2, T1, T2, T3, U1, U2, U3.

    problem     a dict of the `elbotree-problem/1` format (not modified)
    psi         a name of `PSI` or (function, kinks); default: the problem's own psi looked up in `PSI`
    resolution  multiplies every node count; 1 is meant to be enough for 1e-11, compare with 2 to make sure
    """
    p = plain(problem, psi)
    H = p.B2.T @ p.B2
    total = dict.fromkeys(("R1", "S1", "T2", "T3", "U1", "U2", "U3"), 0.0)
    for mixture in mixtures(p, resolution):
        nodes = nodes_of(p, mixture, _steepness(p), resolution)
        features = [Feature(p, nodes, j, resolution) for j in range(len(p.encoder))]
        spread = float(np.sum(mixture.R**2))
        total["U1"] += float(mixture.weight @ (np.sum((mixture.mean - p.mu2) ** 2, axis=1) + spread))
        total["U2"] += 2 * float(nodes.weight @ ((nodes.y - p.mu2) @ p.w * nodes.psi))
        total["U3"] += float(p.w @ p.w) * float(nodes.weight @ nodes.psi**2)
        for j, feature in enumerate(features):
            steepness = feature.law.steepness
            total["R1"] += expected_kl(nodes, feature, resolution)
            steep_v = 1.0 if feature.law.scale_row else steepness
            total["S1"] += H[j, j] * expect_one(nodes, feature.variance_row, feature.variance, steep_v, resolution)
            total["T2"] -= 2 * expect_along(
                nodes, feature.rows[0], feature.mean, p.B2[:, j], p.mu2, steepness, resolution
            )
            total["T3"] += H[j, j] * expect_one(
                nodes, feature.rows[0], lambda c, s=feature.mean: s(c) ** 2, steepness, resolution
            )
            for k in range(j):
                total["T3"] += 2 * H[j, k] * expect_two(nodes, feature, features[k], resolution)
    total["T1"] = total["U1"] + total["U2"] + total["U3"]
    total["S2"] = total["T1"] + total["T2"] + total["T3"]
    total["R3"] = (total["S1"] + total["S2"]) / (2 * p.sigma2**2)
    total["R2"] = 0.5 * p.A.shape[0] * math.log(2 * math.pi * p.sigma2**2)
    total["L"] = total["R1"] + total["R2"] + total["R3"]
    return {name: total[name] for name in TERMS}


# ---------------------------------------------------------------- helpers for other tests


def expectation(
    problem: Spec,
    g: Callable[[Array, Array, Array], Array],
    psi: Psi | str | None = None,
    resolution: float = 1.0,
    slope: float = 1.0,
) -> Array:
    """E g(y, b, f) by brute force on the whole lattice; g maps (N, n2), (N,), (N, n2) to (N,) or (N, ...).

    slope  steepness of g along a unit step of the whitened noise (a logistic function of x itself is 1)

    The cost is 36^rank nodes for every node in b, rank = that of y's covariance given b: for n2 <= 3 or small mixtures.
    """
    p = plain(problem, psi)
    total: Array | float = 0.0
    x, w = lattice(slope, resolution)
    for mixture in mixtures(p, resolution):
        nodes = nodes_of(p, mixture, _steepness(p), resolution)
        left, singular, _ = np.linalg.svd(nodes.F, full_matrices=False)
        rank = int(np.sum(singular > 1e-12 * max(1e-300, float(np.linalg.norm(mixture.R)))))
        grid = (
            np.stack(np.meshgrid(*[x] * rank, indexing="ij"), axis=-1).reshape(-1, rank) if rank else np.zeros((1, 0))
        )
        weight = np.prod(np.stack(np.meshgrid(*[w] * rank, indexing="ij"), axis=-1), axis=-1).ravel() if rank else 1.0
        kept = weight > 1e-22 if rank else np.ones(1, dtype=bool)
        offsets = grid[kept] @ (left[:, :rank] * singular[:rank]).T
        weight = weight[kept] if rank else np.ones(1)
        block = max(1, 400_000 // weight.size)
        for i in range(0, nodes.b.size, block):
            s = slice(i, i + block)
            shift = np.tile(offsets, (nodes.b[s].size, 1))
            repeat = [np.repeat(a[s], weight.size, axis=0) for a in (nodes.y, nodes.b, nodes.f)]
            value = np.asarray(g(repeat[0] + shift, repeat[1], repeat[2] + shift), float)
            total = total + np.tensordot(np.outer(nodes.weight[s], weight).ravel(), value, axes=(0, 0))
    return np.asarray(total)


def sample(
    problem: Spec, count: int, rng: np.random.Generator, psi: Psi | str | None = None
) -> tuple[Array, Array, Array]:
    """Plain draws of (y, b, f), shapes (count, n2), (count,), (count, n2): for Monte Carlo checks."""
    p = plain(problem, psi)
    z = np.stack([_draw(spec, count, rng) for spec in p.alphas], axis=1) if p.alphas else np.zeros((count, 0))
    x1 = z @ p.B1.T + p.mu1 + p.sigma1 * rng.standard_normal((count, p.A.shape[1]))
    y = x1 @ p.A.T + p.d
    b = y @ p.u + p.theta
    return y, b, y + np.asarray(p.psi[0](b), float)[:, None] * p.w


def _draw(spec: Spec, count: int, rng: np.random.Generator) -> Array:
    pieces = flatten(spec)
    weights = np.array([weight for weight, _, _ in pieces])
    which = rng.choice(len(pieces), size=count, p=weights / weights.sum())
    values = np.empty(count)
    for i, (_, kind, v) in enumerate(pieces):
        here = which == i
        size = int(here.sum())
        values[here] = {
            "point": lambda a, n=size: np.full(n, a),
            "normal": lambda m, s, n=size: rng.normal(m, s, n),
            "exponential": lambda s, n=size: rng.exponential(s, n),
            "gamma": lambda k, s, n=size: rng.gamma(k, s, n),
            "uniform": lambda a, c, n=size: rng.uniform(a, c, n),
            "laplace": lambda m, s, n=size: rng.laplace(m, s, n),
        }[kind](*v)
    return values


POSITIVE = {"noise_std", "std", "precision", "scale", "shape", "p", "masses", "weights"}


def central_difference(
    problem: Spec,
    path: Sequence[str | int],
    step: float | None = None,
    psi: Psi | str | None = None,
    term: str = "L",
    resolution: float = 1.0,
) -> float:
    """d(term)/d(entry) for the number at `path`, e.g. ("encoder", 0, "C", 0, 2), to about 1e-9 relative.

    Central differences at step, step/2, step/4, extrapolated twice (error step^6). The default step is 3% of a positive
    parameter, and 3% of max(|value|, 0.5) of any other.
    """
    changed = copy.deepcopy(problem)
    holder: Any = changed
    for key in path[:-1]:
        holder = holder[key]
    value = float(holder[path[-1]])
    name = next(key for key in reversed(path) if isinstance(key, str))
    if step is None:
        step = 0.03 * (abs(value) if name in POSITIVE else max(abs(value), 0.5))

    def at(x: float) -> float:
        holder[path[-1]] = x
        return reference_terms(changed, psi, resolution)[term]

    first, second, third = ((at(value + h) - at(value - h)) / (2 * h) for h in (step, step / 2, step / 4))
    return (64 * third - 20 * second + first) / 45
