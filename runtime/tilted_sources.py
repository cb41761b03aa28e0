"""Independent sources alpha_i under exponential tilts, for contours shifted into the complex plane.

Every prior is flattened into a mixture of four kinds, each of which stays of its kind when tilted by e^{s alpha}:
points, normals, (reflected, shifted) gammas, and uniforms with an exponential slope. Sources with the same sequence of
kinds are one block of arrays, whatever their parameters. What is asked of them: the log moment generating function
kappa_i(s) with three derivatives, and E_s e^{w alpha_i} of the tilted law at complex w, with its derivative. Contours
are `tails`' business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.priors import (
    Bernoulli,
    Discrete,
    Exponential,
    Gamma,
    Laplace,
    Mixture,
    Normal,
    Prior,
    SpikeSlab,
    Uniform,
)

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
Phase = Callable[[Array], ComplexArray]  # a (m,) -> e^{i a t} for the t (m, ...) at hand
BlockPhase = Callable[[Array, NDArray[np.intp]], ComplexArray]  # a and the sources it belongs to -> e^{i a t}
Cumulants = tuple[Array, Array, Array, Array]


def _column(parameter: Array, like: NDArray[np.generic]) -> Array:
    """A parameter (m,) with trailing axes, to go with an array (m, ...)."""
    return parameter if like.ndim == 1 else parameter.reshape((-1,) + (1,) * (like.ndim - 1))


class Component(ABC):
    """A law of one of the four kinds, once for each of m sources; parameters are arrays (m,)."""

    @abstractmethod
    def cumulants(self, s: Array) -> Cumulants:
        """kappa = log E e^{s alpha} and three derivatives in s, s (m, ...); only inside the domain."""

    @abstractmethod
    def log_mgf(self, s: Array) -> Array:
        """kappa alone."""

    @abstractmethod
    def tilted(self, s: Array) -> Component:
        """The law with density proportional to e^{s alpha}, s (m,)."""

    @abstractmethod
    def cf(self, t: Array, phase: Phase) -> ComplexArray:
        """E e^{i t alpha}, t (m, ...) real."""

    @abstractmethod
    def mgf(self, w: ComplexArray) -> ComplexArray:
        """E e^{w alpha} for complex w (m, ...), continued analytically off the real axis."""

    @abstractmethod
    def slope(self, w: ComplexArray, value: ComplexArray) -> ComplexArray:
        """d/dw E e^{w alpha}, given its value."""

    @abstractmethod
    def envelope(self, t: Array) -> Array:
        """A decreasing bound on |E e^{i t alpha}|, t >= 0 (m, ...)."""

    @abstractmethod
    def location(self) -> Array:
        """The mean, (m,)."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> Array:
        """Independent draws, (m, count)."""

    def domain(self) -> tuple[Array, Array]:
        """The open interval of s on which the moment generating function is finite, per source."""
        end = np.full(len(self.location()), np.inf)
        return -end, end

    def take(self, i: int) -> Component:
        """The component of source i alone."""
        return self.pick(np.array([i]))

    def pick(self, which: NDArray[np.intp]) -> Component:
        """The component for some of the sources."""
        return type(self)(**{name: value[which] for name, value in vars(self).items()})


@dataclass(frozen=True)
class PointPart(Component):
    """All mass at `at`."""

    at: Array

    def cumulants(self, s: Array) -> Cumulants:
        a, zero = _column(self.at, s), np.zeros_like(s)
        return a * s, a + zero, zero, zero

    def log_mgf(self, s: Array) -> Array:
        return _column(self.at, s) * s

    def tilted(self, s: Array) -> Component:
        return self

    def cf(self, t: Array, phase: Phase) -> ComplexArray:
        if not self.at.any():
            return np.ones((1,) * t.ndim, dtype=np.complex128)
        return phase(self.at)

    def mgf(self, w: ComplexArray) -> ComplexArray:
        return _exp(_column(self.at, w) * w) if self.at.any() else np.ones((1,) * w.ndim, dtype=np.complex128)

    def slope(self, w: ComplexArray, value: ComplexArray) -> ComplexArray:
        return _column(self.at, w) * value

    def envelope(self, t: Array) -> Array:
        return np.ones((1,) * t.ndim)

    def location(self) -> Array:
        return self.at

    def sample(self, rng: np.random.Generator, count: int) -> Array:
        return np.repeat(self.at[:, None], count, axis=1)


@dataclass(frozen=True)
class NormalPart(Component):
    """N(mean, variance)."""

    mean: Array
    variance: Array

    def cumulants(self, s: Array) -> Cumulants:
        m, v = _column(self.mean, s), _column(self.variance, s)
        zero = np.zeros_like(s)
        return s * (m + 0.5 * v * s), m + v * s, v + zero, zero

    def log_mgf(self, s: Array) -> Array:
        return s * (_column(self.mean, s) + 0.5 * _column(self.variance, s) * s)

    def tilted(self, s: Array) -> Component:
        return NormalPart(self.mean + self.variance * s, self.variance)

    def cf(self, t: Array, phase: Phase) -> ComplexArray:
        return phase(self.mean) * self.envelope(t)

    def mgf(self, w: ComplexArray) -> ComplexArray:
        return _exp(w * (_column(self.mean, w) + 0.5 * _column(self.variance, w) * w))

    def slope(self, w: ComplexArray, value: ComplexArray) -> ComplexArray:
        return (_column(self.mean, w) + _column(self.variance, w) * w) * value

    def envelope(self, t: Array) -> Array:
        return np.exp(_column(-0.5 * self.variance, t) * t * t)

    def location(self) -> Array:
        return self.mean

    def sample(self, rng: np.random.Generator, count: int) -> Array:
        draws = rng.standard_normal((len(self.mean), count))
        return np.asarray(self.mean[:, None] + np.sqrt(self.variance)[:, None] * draws)


@dataclass(frozen=True)
class GammaPart(Component):
    """start + sign * G with G of density proportional to g^(shape - 1) e^(-g / scale)."""

    start: Array
    sign: Array
    shape: Array
    scale: Array

    def _signed(self, like: NDArray[np.generic]) -> Array:
        return _column(self.sign * self.scale, like)

    def cumulants(self, s: Array) -> Cumulants:
        k, g = _column(self.shape, s), self._signed(s)
        r = g / (1 - g * s)
        first = k * r
        return self.log_mgf(s), _column(self.start, s) + first, first * r, 2 * first * r * r

    def log_mgf(self, s: Array) -> Array:
        return _column(self.start, s) * s - _column(self.shape, s) * np.log1p(-self._signed(s) * s)

    def tilted(self, s: Array) -> Component:
        return replace(self, scale=self.scale / (1 - self.sign * self.scale * s))

    def cf(self, t: Array, phase: Phase) -> ComplexArray:
        base = 1 - 1j * (self._signed(t) * t)
        whole = int(self.shape[0])
        if whole <= 4 and (self.shape == whole).all():
            out = 1 / base
            for _ in range(whole - 1):
                out /= base
        else:  # numpy's complex power is several times slower than this
            k, x = _column(self.shape, t), self._signed(t) * t
            angle, size = k * np.arctan(x), np.exp(-0.5 * k * np.log1p(x * x))
            out = size * (np.cos(angle) + 1j * np.sin(angle))
        return np.asarray(out * phase(self.start) if self.start.any() else out, dtype=np.complex128)

    def mgf(self, w: ComplexArray) -> ComplexArray:
        base = 1 - self._signed(w) * w
        whole = int(self.shape[0])
        if whole <= 4 and (self.shape == whole).all():
            out = 1 / base
            for _ in range(whole - 1):
                out /= base
        else:
            k = _column(self.shape, w)
            size = np.exp(-0.5 * k * np.log(base.real**2 + base.imag**2))
            out = size * _cis(-k * np.arctan2(base.imag, base.real))
        return np.asarray(out * _exp(_column(self.start, w) * w) if self.start.any() else out)

    def slope(self, w: ComplexArray, value: ComplexArray) -> ComplexArray:
        g = self._signed(w)
        return (_column(self.start, w) + _column(self.shape, w) * g / (1 - g * w)) * value

    def envelope(self, t: Array) -> Array:
        return np.asarray((1 + (_column(self.scale, t) * t) ** 2) ** (-0.5 * _column(self.shape, t)))

    def location(self) -> Array:
        return self.start + self.sign * self.shape * self.scale

    def sample(self, rng: np.random.Generator, count: int) -> Array:
        draws = rng.gamma(self.shape[:, None], self.scale[:, None], (len(self.shape), count))
        return np.asarray(self.start[:, None] + self.sign[:, None] * draws)

    def domain(self) -> tuple[Array, Array]:
        end = 1 / self.scale
        return np.where(self.sign > 0, -np.inf, -end), np.where(self.sign > 0, end, np.inf)


@dataclass(frozen=True)
class UniformPart(Component):
    """Density proportional to e^{tilt (alpha - middle) / half} on [middle - half, middle + half]."""

    middle: Array
    half: Array
    tilt: Array

    def cumulants(self, s: Array) -> Cumulants:
        m, d = _column(self.middle, s), _column(self.half, s)
        base = log_sinhc(self.tilt)[0]
        levels = log_sinhc(_column(self.tilt, s) + d * s)
        return m * s + levels[0] - _column(base, s), m + d * levels[1], d**2 * levels[2], d**3 * levels[3]

    def log_mgf(self, s: Array) -> Array:
        return self.cumulants(s)[0]

    def tilted(self, s: Array) -> Component:
        return replace(self, tilt=self.tilt + self.half * s)

    def cf(self, t: Array, phase: Phase) -> ComplexArray:
        x = _column(self.tilt, t)
        x_coth = np.where(np.abs(x) < 1e-8, 1.0, x / np.where(np.abs(x) < 1e-8, 1.0, np.tanh(x)))
        turn = phase(self.half)
        below = x + 1j * (_column(self.half, t) * t)
        zero = np.abs(below) < 1e-150
        out = (x * turn.real + 1j * (x_coth * turn.imag)) / np.where(zero, 1.0, below)
        return np.where(zero, 1.0, out) * phase(self.middle)

    def mgf(self, w: ComplexArray) -> ComplexArray:
        x = _column(self.tilt, w)
        zeta = x + _column(self.half, w) * w
        return np.exp(_column(self.middle, w) * w) * _sinhc_ratio(zeta, x)

    def slope(self, w: ComplexArray, value: ComplexArray) -> ComplexArray:
        zeta = _column(self.tilt, w) + _column(self.half, w) * w
        small = np.abs(zeta) < 0.05
        safe = np.where(small, 1.0, zeta)
        right = zeta.real >= 0
        decay = np.exp(np.where(right, -2 * safe, 2 * safe))
        coth = np.where(right, 1.0, -1.0) * (1 + decay) / (1 - decay)
        square = zeta * zeta
        near = zeta * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
        relative = np.where(small, near, coth - 1 / safe)
        return (_column(self.middle, w) + _column(self.half, w) * relative) * value

    def envelope(self, t: Array) -> Array:
        x = _column(self.tilt, t)
        x_coth = np.where(np.abs(x) < 1e-8, 1.0, x / np.where(np.abs(x) < 1e-8, 1.0, np.tanh(x)))
        return np.minimum(1.0, x_coth / np.maximum(_column(self.half, t) * t, 1e-300))

    def location(self) -> Array:
        return self.middle + self.half * log_sinhc(self.tilt)[1]

    @vanishing
    def sample(self, rng: np.random.Generator, count: int) -> Array:
        """The inverse of the distribution function, from the end where the density is largest."""
        draws, slope = rng.random((len(self.half), count)), np.abs(self.tilt)[:, None]
        flat = slope < 1e-8
        safe = np.where(flat, 1.0, slope)
        up = np.where(flat, 2 * draws - 1, 1 + np.log(draws + (1 - draws) * np.exp(-2 * safe)) / safe)
        return np.asarray(self.middle[:, None] + self.half[:, None] * np.where(self.tilt < 0, -1.0, 1.0)[:, None] * up)


_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)


@vanishing
def log_sinhc(x: Array) -> Cumulants:
    """log(sinh(x) / x) and three derivatives; by its power series where those are differences of large numbers."""
    small = np.abs(x) < 0.25
    z = np.where(small, 1.0, np.abs(x))
    sign = np.where(x < 0, -1.0, 1.0)
    decay = np.exp(-2 * z)
    coth, csch2 = (1 + decay) / (1 - decay), 4 * decay / (1 - decay) ** 2
    far = (
        z + np.log((1 - decay) / (2 * z)),
        sign * (coth - 1 / z),
        1 / z**2 - csch2,
        sign * 2 * (coth * csch2 - z**-3),
    )
    y = np.where(small, x, 0.0)
    near = [np.zeros_like(y) for _ in range(4)]
    for j, coefficient in enumerate(_SERIES):
        power = 2 * j + 2
        near[0] += coefficient * y**power
        near[1] += coefficient * power * y ** (power - 1)
        near[2] += coefficient * power * (power - 1) * y ** (power - 2)
        if power > 2:
            near[3] += coefficient * power * (power - 1) * (power - 2) * y ** (power - 3)
    a, b, c, d = (np.where(small, n, f) for n, f in zip(near, far, strict=True))
    return a, b, c, d


def _sinhc_ratio(zeta: ComplexArray, x: Array) -> ComplexArray:
    """[sinh(zeta) / zeta] / [sinh(x) / x], both scaled by e^{-|.|} so that neither overflows alone."""
    small = np.abs(zeta) < 1e-4
    safe = np.where(small, 1.0, zeta)
    right = np.where(zeta.real >= 0, 1.0, -1.0)
    scaled = np.where(
        small, np.exp(-right * zeta) * (1 + zeta**2 / 6), (1 - np.exp(-2 * right * safe)) / (2 * right * safe)
    )
    z = np.abs(x)
    below = np.where(z < 1e-4, np.exp(-z) * (1 + z**2 / 6), -np.expm1(-2 * z) / (2 * np.where(z < 1e-4, 1.0, z)))
    return np.asarray(np.exp(right * zeta - z) * scaled / below)


def flatten(prior: Prior) -> list[tuple[float, str, tuple[float, ...]]]:
    """A prior as (weight, kind, parameters) of components, weights > 0, kinds sorted so that equal shapes line up."""
    out: list[tuple[float, str, tuple[float, ...]]]
    if isinstance(prior, Discrete | Bernoulli):
        out = [(float(mass), "point", (float(x),)) for x, mass in zip(*prior.atoms, strict=True)]
    elif isinstance(prior, Normal):
        out = [(1.0, "normal", (prior.mean_, prior.std**2))]
    elif isinstance(prior, Exponential | Gamma):
        out = [(1.0, "gamma", (0.0, 1.0, float(prior.shape), prior.scale_))]
    elif isinstance(prior, Uniform):
        middle, half = 0.5 * (prior.low + prior.high), 0.5 * (prior.high - prior.low)
        out = [(1.0, "uniform", (middle, half, 0.0))]
    elif isinstance(prior, Laplace):
        out = [(0.5, "gamma", (prior.mean_, sign, 1.0, prior.scale_)) for sign in (1.0, -1.0)]
    elif isinstance(prior, SpikeSlab):
        slab = [(prior.p * weight, kind, values) for weight, kind, values in flatten(prior.slab)]
        out = [(1 - prior.p, "point", (0.0,)), *slab]
    elif isinstance(prior, Mixture):
        pairs = zip(prior.weights, prior.components, strict=True)
        out = [(share * weight, kind, values) for share, part in pairs for weight, kind, values in flatten(part)]
    else:
        raise UnsupportedError(
            f"a prior of type {type(prior).__name__} has no complex moment generating function here; use one of the "
            "shipped kinds"
        )
    return sorted((item for item in out if item[0] > 0), key=lambda item: "point normal gamma uniform".index(item[1]))


_KINDS: dict[str, type[Component]] = {
    "point": PointPart,
    "normal": NormalPart,
    "gamma": GammaPart,
    "uniform": UniformPart,
}


@dataclass(frozen=True)
class Block:
    """Sources with the same sequence of kinds: which they are (m,), log weights (K, m), and the K components."""

    index: NDArray[np.intp]
    log_weights: Array
    parts: tuple[Component, ...]

    def take(self, i: int) -> Block:
        return Block(self.index[i : i + 1], self.log_weights[:, i : i + 1], tuple(part.take(i) for part in self.parts))


class Sources:
    """m independent sources in blocks; arrays in and out have the sources as their first axis."""

    def __init__(self, count: int, blocks: Sequence[Block]) -> None:
        self.count, self.blocks = count, tuple(blocks)

    @staticmethod
    def of(flat: Sequence[Sequence[tuple[float, str, tuple[float, ...]]]]) -> Sources:
        """From one flattened prior a source."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, source in enumerate(flat):
            groups.setdefault(tuple(kind for _, kind, _ in source), []).append(i)
        blocks = []
        for kinds, members in groups.items():
            weights = np.array([[flat[i][k][0] for i in members] for k in range(len(kinds))])
            parts = []
            for k, kind in enumerate(kinds):
                table = np.array([flat[i][k][2] for i in members], dtype=np.float64)
                parts.append(_KINDS[kind](*(np.ascontiguousarray(column) for column in table.T)))
            blocks.append(Block(np.array(members, dtype=np.intp), np.log(weights), tuple(parts)))
        return Sources(len(flat), blocks)

    @cached_property
    def domain(self) -> tuple[Array, Array]:
        """The open interval of s on which E e^{s alpha_i} is finite, (m,) each."""
        low, high = np.full(self.count, -np.inf), np.full(self.count, np.inf)
        for block in self.blocks:
            for part in block.parts:
                a, b = part.domain()
                low[block.index] = np.maximum(low[block.index], a)
                high[block.index] = np.minimum(high[block.index], b)
        return low, high

    def cumulants(self, s: Array) -> Cumulants:
        """kappa_i(s_i), kappa_i', kappa_i'', kappa_i''' for s (m, ...) inside the domain."""
        out = (np.empty_like(s), np.empty_like(s), np.empty_like(s), np.empty_like(s))
        for block in self.blocks:
            for level, value in zip(out, _mixed(block, s[block.index]), strict=True):
                level[block.index] = value
        return out

    @vanishing
    def log_mgf(self, s: Array) -> Array:
        """kappa_i(s_i) for s (m, ...) inside the domain."""
        out = np.empty_like(s)
        for block in self.blocks:
            at = s[block.index]
            logs = [part.log_mgf(at) + _column(w, at) for part, w in zip(block.parts, block.log_weights, strict=True)]
            out[block.index] = logs[0] if len(logs) == 1 else np.logaddexp.reduce(logs)
        return out

    @vanishing
    def tilted(self, s: Array) -> tuple[TiltedSources, Array]:
        """The sources tilted by s (m,), and kappa_i(s_i)."""
        kappa = np.empty(self.count)
        blocks = []
        for block in self.blocks:
            at = s[block.index]
            logs = np.stack([part.log_mgf(at) for part in block.parts]) + block.log_weights
            total = logs[0] if len(logs) == 1 else np.logaddexp.reduce(logs)
            kappa[block.index] = total
            blocks.append(Block(block.index, logs - total, tuple(part.tilted(at) for part in block.parts)))
        return TiltedSources(self.count, blocks), kappa

    def sample(self, rng: np.random.Generator, count: int) -> Array:
        """Independent draws, (m, count)."""
        out = np.empty((self.count, count))
        for block in self.blocks:
            ends = np.cumsum(np.exp(block.log_weights), axis=0)
            which = (rng.random((len(block.index), count)) >= (ends[:-1] / ends[-1])[:, :, None]).sum(axis=0)
            drawn = np.zeros(which.shape)
            for k, part in enumerate(block.parts):
                drawn = np.where(which == k, part.sample(rng, count), drawn)
            out[block.index] = drawn
        return out

    def apart(self) -> Array:
        """How far the means of a source's components lie apart, (m,)."""
        out = np.zeros(self.count)
        for block in self.blocks:
            means = np.stack([part.location() for part in block.parts])
            out[block.index] = means.max(axis=0) - means.min(axis=0)
        return out

    def unlike(self) -> Array:
        """How far the components of a source lie apart in their means and in their standard deviations together, (m,)."""
        out = self.apart()
        for block in self.blocks:
            at_zero = np.zeros(len(block.index))
            stds = np.sqrt(np.stack([part.cumulants(at_zero)[2] for part in block.parts]))
            out[block.index] += stds.max(axis=0) - stds.min(axis=0)
        return out

    def conditioned(self, i: int) -> list[tuple[float, Sources]]:
        """The sources with source i held to each of its components, with the log of that component's weight."""
        (which, place), *_ = [
            (b, int(np.flatnonzero(block.index == i)[0])) for b, block in enumerate(self.blocks) if i in block.index
        ]
        block = self.blocks[which]
        rest = np.delete(np.arange(len(block.index)), place)
        others = [b for j, b in enumerate(self.blocks) if j != which]
        if len(rest):
            parts = tuple(part.pick(rest) for part in block.parts)
            others.append(Block(block.index[rest], block.log_weights[:, rest], parts))
        alone = block.take(place)
        return [
            (float(weight), Sources(self.count, [*others, Block(alone.index, np.zeros((1, 1)), (part,))]))
            for weight, part in zip(alone.log_weights[:, 0], alone.parts, strict=True)
        ]


@vanishing
def _mixed(block: Block, s: Array) -> Cumulants:
    """Cumulants of a mixture from those of its components."""
    parts = [part.cumulants(s) for part in block.parts]
    if len(parts) == 1:
        return parts[0]
    logs = [part[0] + _column(w, s) for part, w in zip(parts, block.log_weights, strict=True)]
    total = np.logaddexp.reduce(logs)
    shares = [np.exp(log - total) for log in logs]
    mean = sum(r * part[1] for r, part in zip(shares, parts, strict=True))
    second, third = np.zeros_like(s), np.zeros_like(s)
    for r, part in zip(shares, parts, strict=True):
        off = part[1] - mean
        second += r * (part[2] + off * off)
        third += r * (part[3] + off * (3 * part[2] + off * off))
    return total, np.asarray(mean), second, third


class TiltedSources(Sources):
    """Sources whose moment generating functions are wanted near 0, at i t or at complex w."""

    @vanishing
    def product(self, t: Array, phase: BlockPhase | None = None) -> ComplexArray:
        """prod_i E e^{i t_i alpha_i}, t (m, ...); `phase(a, index)` gives e^{i a t} for some sources, if it can be had
        more cheaply than by sines."""
        out: ComplexArray | None = None
        for block in self.blocks:
            factor = self._cf(block, t, phase).prod(axis=0)
            out = factor if out is None else out * factor
        return np.ones(t.shape[1:], dtype=np.complex128) if out is None else out

    def _cf(self, block: Block, t: Array, phase: BlockPhase | None) -> ComplexArray:
        whole = len(block.index) == len(t) and bool((np.diff(block.index) == 1).all())
        at = t if whole else t[block.index]
        of = _phase_of(at, block.index, phase)
        total: ComplexArray | None = None
        for part, log_weight in zip(block.parts, block.log_weights, strict=True):
            value = part.cf(at, of)
            if len(block.parts) > 1:
                value = value * _column(np.exp(log_weight), at)
            total = value if total is None else total + value
        assert total is not None
        return total if total.shape == at.shape else np.broadcast_to(total, at.shape)

    def slopes(self, t: Array, phase: BlockPhase | None = None) -> tuple[ComplexArray, ComplexArray]:
        """prod_i m_i(i t_i), and m_i'(i t_i) / m_i(i t_i) per source, with m_i(w) = E e^{w alpha_i}; t (m, ...)."""
        total = np.ones(t.shape[1:], dtype=np.complex128)
        ratio = np.empty(t.shape, dtype=np.complex128)
        for block in self.blocks:
            at = t[block.index]
            of = _phase_of(at, block.index, phase)
            value, slope = np.zeros(at.shape, dtype=np.complex128), np.zeros(at.shape, dtype=np.complex128)
            for part, log_weight in zip(block.parts, block.log_weights, strict=True):
                own = part.cf(at, of) * _column(np.exp(log_weight), at)
                value += own
                slope += part.slope(np.asarray(1j * at, dtype=np.complex128), own)
            ratio[block.index] = slope / np.where(value == 0, 1e-300, value)
            total *= value.prod(axis=0)
        return total, ratio

    def mgf(self, w: ComplexArray) -> ComplexArray:
        """prod_i E e^{w_i alpha_i} for complex w (m, ...)."""
        total = np.ones(w.shape[1:], dtype=np.complex128)
        for block in self.blocks:
            at = w[block.index]
            pairs = zip(block.parts, block.log_weights, strict=True)
            values = sum(_column(np.exp(log_weight), at) * part.mgf(at) for part, log_weight in pairs)
            total = total * np.asarray(values).prod(axis=0)
        return total

    def envelope(self, t: Array) -> Array:
        """A bound on |prod_i E e^{i t_i alpha_i}| that decreases along rays, t >= 0 (m, ...)."""
        total = np.ones(t.shape[1:])
        for block in self.blocks:
            at = t[block.index]
            pairs = zip(block.parts, block.log_weights, strict=True)
            bound = sum(_column(np.exp(w), at) * part.envelope(at) for part, w in pairs)
            total = total * np.broadcast_to(bound, at.shape).prod(axis=0)
        return total

    @vanishing
    def reach(self) -> Array:
        """sum_k weight_k |mean of component k|, (m,): how far phases of a source turn."""
        out = np.zeros(self.count)
        for block in self.blocks:
            for part, log_weight in zip(block.parts, block.log_weights, strict=True):
                out[block.index] += np.exp(log_weight) * np.abs(part.location())
        return out

    @vanishing
    def between(self) -> Array:
        """The variance of a source's component means, (m,): how much holding it to one component would calm it."""
        out = np.zeros(self.count)
        for block in self.blocks:
            shares = np.exp(block.log_weights)
            means = np.stack([part.location() for part in block.parts])
            middle = (shares * means).sum(axis=0)
            out[block.index] = (shares * (means - middle) ** 2).sum(axis=0)
        return out


def _phase_of(t: Array, index: NDArray[np.intp], phase: BlockPhase | None) -> Phase:
    """e^{i a t} of some sources as a function of a."""
    if phase is None:
        return lambda a: _cis(_column(a, t) * t)
    return lambda a: phase(a, index)


def _cis(x: Array) -> ComplexArray:
    out = np.empty(x.shape, dtype=np.complex128)
    out.real, out.imag = np.cos(x), np.sin(x)
    return out


def _exp(z: ComplexArray) -> ComplexArray:
    """e^z; exponentials, sines and cosines of real arrays are vectorised, exponentials of complex ones are not."""
    size, out = np.exp(z.real), np.empty(z.shape, dtype=np.complex128)
    np.multiply(size, np.cos(z.imag), out=out.real)
    np.multiply(size, np.sin(z.imag), out=out.imag)
    return out


def powers(angles: Array, count: int) -> ComplexArray:
    """e^{i k a} for k = 0..count - 1 and angles a (m,), (m, count): by doubling, so that only log2(count) sines are
    taken and the rounding error grows with log2(count)."""
    if count <= 24:
        return _cis(np.multiply.outer(angles, np.arange(count)))
    out = np.empty((len(angles), count), dtype=np.complex128)
    out[:, 0] = 1.0
    have = 1
    while have < count:
        more = min(have, count - have)
        np.multiply(out[:, :more], _cis(have * angles)[:, None], out=out[:, have : have + more])
        have += more
    return out
