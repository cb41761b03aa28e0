"""What the loss may never fall below, by other means than the loss: the cross-entropy of the model and the entropy of f(x1),

    L >= H(f(x1), p2) = -E log p2(f(x1)) >= H(f(x1)) = -E log p(f(x1))        (Lemma 2.2, then Gibbs)

The entropy comes from a change of variables. f(y) = y + w psi(b), b = <y, u> + theta, is one to one where b + <w, u> psi(b)
is monotone, and its Jacobian determinant is 1 + <w, u> psi'(b), so that

    H(f(x1)) = H(y) + E log|1 + <w, u> psi'(b)|

With noise of full rank, Sigma = sigma1^2 A A^T, and r_i = Sigma^-1/2 A B1 e_i,

    H(y) = log det(Sigma) / 2 + H(sum_i z_i r_i + N(0, I))

splits into groups of features that are orthogonal to each other's: one number for a group that spans a line or a plane, by
quadrature, and log(2 pi e) / 2 for each dimension without features. So orthonormal features have an entropy in any dimension.
The cross-entropy is a quadrature over y in one or two dimensions. Nothing here uses the engine of the loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

from elbotree.runtime.errors import ToleranceError, UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.joint import joint, marginal
from elbotree.runtime.models import FeatureModel, Layer, Problem
from elbotree.runtime.priors import Mixture, Normal, Prior, SpikeSlab

__all__ = ["Bound", "bound_below"]

Array = NDArray[np.float64]

_ON_LINE = 1e-6  # where densities on a line come from characteristic functions
_ORTHOGONAL = 1e-10  # the cosine below which two columns count as orthogonal
_REACH = 9.0  # deviations on either side of a component of a mixture
_STATES = 256  # components that a mixture may have
_WORK = 3e8  # exponentials that a quadrature may take
_LINE = 0.5 * math.log(2 * math.pi * math.e)  # the entropy of N(0, 1)


@dataclass(frozen=True)
class Bound:
    """What L may not fall below, in nats, each number with its error; None where it is not computable, and `note` says why.

    cross_entropy  -E log p2(f(x1)), p2 the fitted model: in one and two dimensions
    entropy        -E log p(f(x1)), which no model can beat
    """

    cross_entropy: float | None
    cross_entropy_error: float | None
    entropy: float | None
    entropy_error: float | None
    note: str = ""

    def broken_by(self, loss: float, error: float) -> str:
        """What a loss with this error contradicts; empty where the inequalities hold."""
        cross, entropy = self.cross_entropy, self.entropy
        for name, least, slack in (
            ("the cross-entropy of its model", cross, self.cross_entropy_error),
            ("the entropy of f(x1)", entropy, self.entropy_error),
        ):
            if least is not None and slack is not None and not loss + error >= least - slack:
                return f"L = {loss:.8g} +- {error:.1g} lies below {name}, {least:.8g} +- {slack:.1g}, which no loss can"
        return ""

    def __str__(self) -> str:
        parts = []
        if self.cross_entropy is not None:
            parts.append(f"cross-entropy {self.cross_entropy:.6f}")
        if self.entropy is not None:
            parts.append(f"entropy {self.entropy:.6f}")
        return " >= ".join(["L", *parts]) + (f" ({self.note})" if self.note else "")


@vanishing
def bound_below(problem: Problem) -> Bound:
    """The cross-entropy of a problem's model and the entropy of f(x1), each where it is computable."""
    found: dict[str, Estimate] = {}
    notes = []
    for name, made in (("cross-entropy", _cross_entropy), ("entropy", _entropy)):
        try:
            found[name] = made(problem)
        except (UnsupportedError, ToleranceError) as reason:
            notes.append(f"no {name}: {reason}")
    cross, entropy = (_numbers(found.get(name)) for name in ("cross-entropy", "entropy"))
    return Bound(cross[0], cross[1], entropy[0], entropy[1], "; ".join(notes))


def _numbers(found: Estimate | None) -> tuple[float, float] | tuple[None, None]:
    return (None, None) if found is None else (float(found.value), float(found.error))


# ------------------------------------------------------------------ the two numbers


def _cross_entropy(problem: Problem) -> Estimate:
    layer, p1, model = problem.layer, problem.input, problem.model
    if layer.n2 > 2:
        raise UnsupportedError(f"x2 has {layer.n2} dimensions, and quadrature takes one or two")
    try:
        theirs = _Normals.of(model.B, model, model.noise_std**2 * np.eye(layer.n2), model.offset)
        noise = p1.noise_std**2 * layer.A @ layer.A.T
        law = _Normals.of(layer.A @ p1.B, p1, noise, layer.A @ p1.offset + layer.offset)
        cuts = [c - layer.threshold for c in layer.activation.breaks]
        return law.expect(lambda y: -theirs.log_density(_through(layer, y)), len(theirs.masses), layer.u, cuts)
    except UnsupportedError:
        if layer.n2 == 2:
            raise
    log_density, slope = marginal(model, [1.0]).log_pdf, float(layer.u[0])
    breaks = [(c - layer.threshold) / slope for c in layer.activation.breaks] if slope and layer.w.any() else []
    return joint(_affine(layer), p1, [1.0]).expect(
        lambda y: -log_density(_through(layer, y[..., None])[..., 0], _ON_LINE).value, _ON_LINE, breaks=breaks
    )


def _entropy(problem: Problem) -> Estimate:
    layer, p1 = problem.layer, problem.input
    left, sizes, _ = np.linalg.svd(p1.noise_std * layer.A)
    if len(sizes) < layer.n2 or sizes.min() <= 1e-12 * sizes.max(initial=0.0):
        raise UnsupportedError("f(x1) has no Gaussian noise of full rank")
    bent = _log_slope(layer, p1)
    R = (left / sizes).T @ layer.A @ p1.B
    lengths = np.linalg.norm(R, axis=0)
    moving = [i for i, prior in enumerate(p1.priors) if lengths[i] > 0 and prior.variance() > 0]
    R, lengths, priors = R[:, moving], lengths[moving], [p1.priors[i] for i in moving]
    touching = np.abs(R.T @ R) > _ORTHOGONAL * np.outer(lengths, lengths)
    count, labels = connected_components(touching, directed=False)
    total = Estimate.of(float(np.log(sizes).sum())) + bent
    known: dict[tuple[object, ...], Estimate] = {}
    taken = 0
    for group in range(count):
        at = np.flatnonzero(labels == group)
        columns, own = R[:, at], [priors[i] for i in at]
        basis, values, _ = np.linalg.svd(columns, full_matrices=False)
        rank = int((values > _ORTHOGONAL * values[0]).sum())
        if rank > 2:
            raise UnsupportedError(f"{len(at)} features that are not orthogonal span {rank} dimensions")
        inside = FeatureModel(basis[:, :rank].T @ columns, own, 1.0)
        key = (rank, np.round(inside.B, 11).tobytes() if rank == 1 else group, *own)
        if key not in known:
            known[key] = _group_entropy(inside)
        total, taken = total + known[key], taken + rank
    return total + (layer.n2 - taken) * _LINE


def _group_entropy(law: FeatureModel) -> Estimate:
    """Of B z + N(0, I) in one or two dimensions."""
    try:
        normals = _Normals.of(law.B, law, np.eye(law.n), np.zeros(law.n))
        return normals.expect(lambda x: -normals.log_density(x), len(normals.masses))
    except UnsupportedError:
        if law.n == 2:
            raise
    line = marginal(law, [1.0])
    return line.expect(lambda s: -line.log_pdf(s, _ON_LINE).value, _ON_LINE)


def _log_slope(layer: Layer, p1: FeatureModel) -> Estimate:
    """E log|1 + <w, u> psi'(b)|. Raises UnsupportedError where f is not seen to be one to one."""
    kappa = float(layer.w @ layer.u)
    if kappa == 0.0:
        return Estimate.of(0.0)
    psi, row = layer.activation, (layer.A.T @ layer.u)[None]
    mean, deviation = (
        float(layer.u @ (layer.A @ p1.mean() + layer.offset)),
        float(np.sqrt(row[0] @ p1.covariance() @ row[0])),
    )
    grid = mean + layer.threshold + deviation * np.linspace(-40, 40, 20_001)
    steps = np.diff(grid + kappa * psi(grid))
    if not ((steps > 0).all() or (steps < 0).all()):
        raise UnsupportedError("f is not one to one")

    def g(s: Array) -> Array:
        return np.log(np.abs(1 + kappa * psi.derivative(s.reshape(len(s)) + layer.threshold)))

    cuts = [c - layer.threshold for c in psi.breaks]
    try:
        noise, shift = p1.noise_std**2 * row @ row.T, row @ p1.offset + layer.u @ layer.offset
        return _Normals.of(row @ p1.B, p1, noise, shift).expect(g, 1, cuts=cuts)
    except UnsupportedError:
        return joint(_affine(layer), p1, layer.u).expect(g, _ON_LINE, breaks=cuts)


def _affine(layer: Layer) -> Layer:
    """The layer without its nonlinearity: its output is y."""
    nothing = np.zeros(layer.n2)
    return Layer(layer.A, nothing, nothing, "zero", offset=layer.offset)


def _through(layer: Layer, y: Array) -> Array:
    """f as a function of y, (..., n2)."""
    return np.asarray(y + layer.activation(y @ layer.u + layer.threshold)[..., None] * layer.w)


# ------------------------------------------------------------------ mixtures of normals on a line or in the plane


def _normal_parts(prior: Prior) -> list[tuple[float, float, float]]:
    """(weight, mean, variance) of a prior that is a mixture of points and normals."""
    if isinstance(prior, Normal):
        return [(1.0, prior.mean(), prior.variance())]
    if isinstance(prior, SpikeSlab | Mixture):
        weights = (1 - prior.p, prior.p) if isinstance(prior, SpikeSlab) else prior.weights
        inner = (
            [[(1.0, 0.0, 0.0)], _normal_parts(prior.slab)]
            if isinstance(prior, SpikeSlab)
            else [_normal_parts(part) for part in prior.components]
        )
        return [(share * w, mean, var) for share, parts in zip(weights, inner, strict=True) for w, mean, var in parts]
    if prior.continuous_weight == 0:
        return [(float(m), float(x), 0.0) for x, m in zip(*prior.atoms, strict=True)]
    raise UnsupportedError(f"a quadrature takes priors of points and normals, and one is {prior.kind}")


@dataclass(frozen=True)
class _Normals:
    """A mixture of normals in R^n, n = 1 or 2: masses (K,), means (K, n), covariances (K, n, n)."""

    masses: Array
    means: Array
    covariances: Array

    @staticmethod
    def of(columns: Array, law: FeatureModel, noise: Array, offset: Array) -> _Normals:
        """columns z + offset + N(0, noise), z as in the law."""
        parts = [_normal_parts(prior) for prior in law.priors]
        if math.prod(len(part) for part in parts) > _STATES:
            raise UnsupportedError(f"{law.m} features have too many states")
        masses, means, covariances = [], [], []
        for state in itertools.product(*parts):
            weight, mean, variance = np.array(state).reshape(len(parts), 3).T
            masses.append(weight.prod())
            means.append(offset + columns @ mean)
            covariances.append(noise + (columns * variance) @ columns.T)
        keep = np.array(masses) > 0
        spread = np.linalg.eigvalsh(noise)
        if not spread[0] > 1e-14 * spread[-1]:
            raise UnsupportedError("f(x1) has no Gaussian noise of full rank")
        return _Normals(np.array(masses)[keep], np.array(means)[keep], np.array(covariances)[keep])

    def log_density(self, x: Array) -> Array:
        """log p at points (N, n)."""
        inverse = np.linalg.inv(self.covariances)
        log_size = np.log(self.masses) - 0.5 * np.linalg.slogdet(2 * np.pi * self.covariances)[1]
        logs = np.empty(len(x))
        for at in range(0, len(x), 20_000):
            off = x[at : at + 20_000, None, :] - self.means
            logs[at : at + 20_000] = logsumexp(log_size - 0.5 * np.einsum("nki,kij,nkj->nk", off, inverse, off), axis=1)
        return logs

    def expect(
        self, g: Callable[[Array], Array], terms: int, u: Array | None = None, cuts: Sequence[float] = ()
    ) -> Estimate:
        """E g(x): about each component Gauss-Legendre panels a deviation wide, split where <x, u> is one of the cuts.

        terms  exponentials that g takes at a point
        The error is the difference from panels with fewer nodes; what lies outside of 9 deviations is 1e-18 of the mass.
        """
        n = self.means.shape[1]
        u = np.eye(n)[0] if u is None or not u.any() else u
        if len(self.masses) * (2 * _REACH * 10) ** n * terms > _WORK:
            raise UnsupportedError(f"{len(self.masses)} states are too many for a quadrature")
        sums = []
        for nodes in (10, 8):
            total = 0.0
            for mass, mean, covariance in zip(self.masses, self.means, self.covariances, strict=True):
                deviation = math.sqrt(u @ covariance @ u)
                a, weights = _normal_panels(nodes, [(c - float(mean @ u)) / deviation for c in cuts])
                points = mean + a[:, None] * (covariance @ u / deviation)
                if n == 2:
                    b, others = _normal_panels(nodes, [])
                    across = math.sqrt(np.linalg.det(covariance)) / deviation * np.array([-u[1], u[0]])
                    points = (points[:, None, :] + b[None, :, None] * across).reshape(-1, 2)
                    weights = np.outer(weights, others).ravel()
                total += mass * float(weights @ g(points))
            sums.append(total)
        return Estimate.of(sums[0], abs(sums[0] - sums[1]) + 1e-12 * (1 + abs(sums[0])))


def _normal_panels(nodes: int, cuts: list[float]) -> tuple[Array, Array]:
    """Points and weights for the expectation over N(0, 1), on panels a deviation wide that end at the cuts."""
    x, w = leggauss(nodes)
    inner = [c for c in cuts if -_REACH < c < _REACH]
    edges = np.unique(np.concatenate([np.arange(-_REACH, _REACH + 0.5), inner]))
    half, middle = 0.5 * np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    points = (middle[:, None] + half[:, None] * x).ravel()
    weights = (half[:, None] * w).ravel() * np.exp(-0.5 * points**2) / math.sqrt(2 * math.pi)
    return points, weights
