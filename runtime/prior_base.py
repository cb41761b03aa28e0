"""The base of every prior: what the law of one feature coordinate must answer, and the checks that constructors share.
The nine kinds are in `priors`, their JSON and scipy forms in `prior_forms`."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.arguments import shortened, unwrapped
from elbotree.runtime.errors import InputError

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Parameters: TypeAlias = dict[str, "float | Array"]
INF = float("inf")


def nearest(name: object, known: Iterable[str]) -> str:
    """The ending "; did you mean 'x'?" for a misspelt name, or the list of what is known when nothing is near."""
    choices = sorted(known)
    close = difflib.get_close_matches(str(name)[:100], choices, n=1, cutoff=0.5)
    close = [choice for choice in choices if choice.lower() == str(name).lower()] or close
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(choices)}"


def checked_number(
    kind: str, name: str, value: object, low: float = -INF, high: float = INF, positive: bool = False
) -> float:
    """`value` as a finite float in [low, high] (or > 0), or an InputError that says which argument was wrong."""
    value = unwrapped(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{kind}: `{name}` is {shortened(value)}; it must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = INF
    if not math.isfinite(number):
        raise InputError(f"{kind}: `{name}` is {value!r}; it must be a finite number")
    if positive and not number > 0:
        raise InputError(f"{kind}: `{name}` is {number!r}; it must be greater than 0")
    if not low <= number <= high:
        raise InputError(f"{kind}: `{name}` is {number!r}; it must lie between {low:g} and {high:g}")
    return number


def checked_numbers(kind: str, name: str, values: object) -> tuple[float, ...]:
    values = unwrapped(values)
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{kind}: `{name}` is {shortened(values)}; it must be a list of numbers")
    return tuple(checked_number(kind, f"{name}[{i}]", value) for i, value in enumerate(values))


def checked_weights(kind: str, name: str, values: object) -> tuple[float, ...]:
    """Probabilities: nonnegative, summing to 1 within 1e-9, then divided by their sum."""
    masses = checked_numbers(kind, name, values)
    for i, mass in enumerate(masses):
        if mass < 0:
            raise InputError(f"{kind}: `{name}[{i}]` is {mass!r}; a probability cannot be negative")
    try:
        total = math.fsum(masses)
    except OverflowError:
        total = INF
    if not abs(total - 1) <= 1e-9:
        raise InputError(f"{kind}: `{name}` sums to {total!r}; probabilities must sum to 1 (within 1e-9)")
    if abs(total - 1) > len(masses) * 2.0**-52:  # leave sums that are 1 up to rounding, so that files round-trip
        return tuple(mass / total for mass in masses)
    return masses


class Wave(NamedTuple):
    """mass e^(i place t) / ((1 - i s1 t)(1 - i s2 t)), scales = (s1, s2): an atom (0, 0), exponential (s, 0), Laplace (s, -s)."""

    place: float
    mass: float
    scales: tuple[float, float] = (0.0, 0.0)


class Prior(ABC):
    """The law P of one real coordinate alpha (or beta): discrete atoms plus a continuous part.

    Kinds: Discrete, Bernoulli, Normal, Exponential, Gamma, Uniform, Laplace, SpikeSlab, Mixture. All are immutable,
    compare and hash by their specification, and pickle. Arrays in, arrays of the same shape out.

    Parameters named mean and scale are stored as `mean_` and `scale_`, because `mean()` and `scale` mean something for
    every kind; `parameters()` and `spec()` carry the plain names.
    """

    kind: ClassVar[str]

    # -- making and printing ---------------------------------------------------------------------------------------
    def spec(self) -> dict[str, Any]:
        """The JSON form, for example {"kind": "normal", "mean": 0.0, "std": 1.0}; `from_spec` reads it back."""
        out: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):  # type: ignore[arg-type]
            out[field.name.rstrip("_")] = _plain(getattr(self, field.name))  # mean_ and scale_: see below
        return out

    def __repr__(self) -> str:
        inner = ", ".join(f"{field.name.rstrip('_')}={getattr(self, field.name)!r}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({inner})"

    @staticmethod
    def from_spec(spec: object, where: str = "prior") -> Prior:
        """Read the JSON form; `where` is the path put in front of an error's message ("input.priors[3]")."""
        from elbotree.runtime.prior_forms import from_spec  # it imports every kind, which import this

        return from_spec(spec, where)

    @staticmethod
    def of(obj: object, where: str = "prior") -> Prior:
        """A prior from a Prior, its JSON form, or a frozen scipy.stats distribution.

        Of scipy: norm, expon and gamma (loc = 0), uniform, laplace, bernoulli, and
        rv_discrete(values=(points, masses)). Raises InputError or UnsupportedError with the reason for anything else.
        """
        if isinstance(obj, Prior):
            return obj
        if isinstance(obj, Mapping):
            return Prior.from_spec(obj, where)
        from elbotree.runtime.prior_forms import from_scipy

        return from_scipy(obj, where)

    # -- moments -----------------------------------------------------------------------------------------------------
    @abstractmethod
    def moment(self, k: int) -> float:
        """The raw moment E alpha^k, 0 <= k <= 4."""

    @abstractmethod
    def variance(self) -> float:
        """E (alpha - E alpha)^2."""

    def mean(self) -> float:
        """E alpha."""
        return self.moment(1)

    # -- transforms --------------------------------------------------------------------------------------------------
    @abstractmethod
    def cf(self, t: ArrayLike, order: int = 0) -> Complex:
        """The order-th derivative in t of E e^{i t alpha}, order 0, 1 or 2; accurate near t = 0.

        t may also be complex inside the strip where the moment generating function exists (cf(t - 1j s) is
        E e^{(s + i t) alpha}), which shifted contours use.
        """

    @abstractmethod
    def log_mgf(self, s: ArrayLike) -> Array:
        """log E e^{s alpha} for real s; +inf outside `mgf_domain`."""

    @property
    def mgf_domain(self) -> tuple[float, float]:
        """The open interval of s on which E e^{s alpha} is finite."""
        return (-INF, INF)

    def log_partition(self, c: ArrayLike, precision: float = 0.0, order: int = 0) -> Array:
        """Lambda(c) = log integral of e^{c beta - precision beta^2 / 2} dP(beta), or its order-th derivative in c.

        Derivatives are the cumulants of the tilted law: 1 its mean, 2 its variance, 3 and 4. Stable for |c| up to 1e6
        and beyond. Raises InputError when precision is negative, or is 0 and some c lies outside `mgf_domain`.
        """
        if order not in (0, 1, 2, 3, 4):
            raise InputError(f"log_partition: `order` is {order!r}; it must be 0, 1, 2, 3 or 4")
        if not (math.isfinite(precision) and precision >= 0):
            raise InputError(f"log_partition: `precision` is {precision!r}; it must be a finite number >= 0")
        c = np.asarray(c, dtype=np.float64)
        if precision == 0:
            low, high = self.mgf_domain
            if ((c <= low) | (c >= high)).any():
                raise InputError(
                    f"log_partition: `c` reaches from {c.min():g} to {c.max():g}, and with precision 0 the integral of "
                    f"a {self.kind} law is finite only between {low:g} and {high:g}; use a precision > 0"
                )
        return np.asarray(self._tilt(c.ravel(), float(precision), order)[order].reshape(c.shape))

    @abstractmethod
    def _tilt(self, c: Array, precision: float, top: int) -> list[Array]:
        """Lambda and its derivatives up to `top` at a flat c inside the domain."""

    # -- density, masses, support ------------------------------------------------------------------------------------
    @property
    def waves(self) -> tuple[Wave, ...] | None:
        """The terms of the characteristic function where it is a sum of `Wave`s, else None."""
        return None

    @property
    def atoms(self) -> tuple[Array, Array]:
        """(points, masses) of the discrete part, ascending, masses > 0."""
        return np.empty(0), np.empty(0)

    @property
    def continuous_weight(self) -> float:
        """The mass of the continuous part."""
        return 1.0

    @abstractmethod
    def logpdf(self, x: ArrayLike) -> Array:
        """Log density of the continuous part, its weight included; -inf off its support."""

    def log_mass(self, x: ArrayLike) -> Array:
        """log P(alpha = x): -inf except at atoms, which must match to the last bit."""
        x = np.asarray(x, dtype=np.float64)
        out = np.full(x.shape, -INF)
        for point, mass in zip(*self.atoms, strict=True):
            out = np.where(x == point, np.log(mass), out)
        return out

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """Where logpdf is not smooth, ascending: finite edges of the support, and kinks."""
        return ()

    @property
    @abstractmethod
    def continuous_support(self) -> tuple[tuple[float, float], ...]:
        """The closed intervals, disjoint and ascending, on which the continuous part has a density > 0."""

    @property
    def support(self) -> tuple[float, float]:
        """The smallest interval that holds all of the law; an end may be infinite."""
        points, _ = self.atoms
        ends = [end for interval in self.continuous_support for end in interval] + [float(x) for x in points]
        return (min(ends), max(ends))

    @property
    def scale(self) -> float:
        """A length on which logpdf varies: the smallest standard deviation of a component (1 when all are 0)."""
        return math.sqrt(self.variance()) or 1.0

    @abstractmethod
    def cdf(self, x: ArrayLike) -> Array:
        """P(alpha <= x)."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """`size` independent draws."""

    # -- parameters --------------------------------------------------------------------------------------------------
    @abstractmethod
    def parameters(self) -> Parameters:
        """The smooth parameters by flat name: "std", "masses" (array), for mixtures "components.0.std" ..."""

    @abstractmethod
    def score(self, x: ArrayLike, atom: bool) -> dict[str, Array]:
        """d log density (atom=False) or d log mass (atom=True) at x by each parameter; arrays put their axis first.

        The dominating measure stays fixed, so points, low and high have no entry. Masses and weights count as free:
        nothing here keeps their sum at 1. Zero where the law has no density (mass).
        """


def _plain(value: object) -> object:
    """A field as JSON: tuples to lists, priors to their specification."""
    if isinstance(value, Prior):
        return value.spec()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
