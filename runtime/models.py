"""What a loss is a function of: the layer f, the feature models of x1 and x2, the posteriors of the encoder, and the
`Problem` that holds all four and checks that they fit together. Everything is immutable and plain data; expectations
are taken elsewhere, and the JSON form is in `problem_json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.activations import Activation, compile_psi
from elbotree.runtime.arguments import (
    MOST_ROWS,
    check_count,
    check_kind,
    finite_number,
    generator,
    read_only_array,
    real_array,
    shortened,
)
from elbotree.runtime.errors import InputError
from elbotree.runtime.prior_base import nearest
from elbotree.runtime.priors import Prior

if TYPE_CHECKING:
    from elbotree.runtime.joint import Joint

Array = NDArray[np.float64]


# -- the layer --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the network, f(x) = y + w psi(b) with y = A x + d and b = <y, u> + theta (eq. (1) of the paper).

    Arguments
        A          (n2, n1)
        w, u       (n2,)
        psi        a name ("relu"), an expression in b, or an `Activation`
        offset     d, (n2,); zero when left out
        threshold  theta; zero when left out

    A layer is callable on rows, (N, n1) -> (N, n2). Raises InputError for wrong shapes and numbers that are not finite.
    """

    A: Array
    w: Array
    u: Array
    psi: str | Activation
    offset: Array
    threshold: float

    def __init__(
        self,
        A: ArrayLike,
        w: ArrayLike,
        u: ArrayLike,
        psi: str | Activation = "relu",
        offset: ArrayLike | None = None,
        threshold: float = 0.0,
    ) -> None:
        matrix = read_only_array(A, "layer.A", 2)
        n2 = matrix.shape[0]
        if n2 == 0 or matrix.shape[1] == 0:
            raise InputError(f"`layer.A` has shape {matrix.shape}; it needs at least one row and one column")
        if not isinstance(psi, str | Activation):
            raise InputError(
                f"`layer.psi` is {shortened(psi)}; it must be a name, an expression in b, or an Activation"
            )
        object.__setattr__(self, "A", matrix)
        given = {"w": w, "u": u, "offset": np.zeros(n2) if offset is None else offset}
        for name, value in given.items():
            vector = read_only_array(value, f"layer.{name}", 1)
            if vector.shape != (n2,):
                raise InputError(
                    f"`layer.{name}` has shape {vector.shape}; `layer.A` has n2 = {n2} rows, so it must be ({n2},)"
                )
            object.__setattr__(self, name, vector)
        object.__setattr__(self, "psi", psi)
        object.__setattr__(self, "threshold", finite_number(threshold, "layer.threshold"))

    @property
    def n1(self) -> int:
        """The dimension of the layer's input."""
        return int(self.A.shape[1])

    @property
    def n2(self) -> int:
        """The dimension of the layer's output."""
        return int(self.A.shape[0])

    @cached_property
    def activation(self) -> Activation:
        """psi as numpy functions, compiled when first needed."""
        return self.psi if isinstance(self.psi, Activation) else compile_psi(self.psi)

    def preactivation(self, x: ArrayLike) -> Array:
        """y = A x + d on rows, (N, n1) -> (N, n2)."""
        rows = real_array(x, "x")
        if rows.ndim != 2 or rows.shape[1] != self.n1:
            raise InputError(
                f"`x` has shape {rows.shape}; the layer takes rows of n1 = {self.n1}, shape (N, {self.n1})"
            )
        return np.asarray(rows @ self.A.T + self.offset)

    def b(self, y: Array) -> Array:
        """b = <y, u> + theta on rows, (N, n2) -> (N,)."""
        return np.asarray(y @ self.u + self.threshold)

    def __call__(self, x: ArrayLike) -> Array:
        y = self.preactivation(x)
        return np.asarray(y + self.activation(self.b(y))[:, None] * self.w)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.psi, str):
            state.pop("activation", None)  # generated functions do not pickle; the text compiles again elsewhere
        return state


# -- feature models ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class FeatureModel:
    """x = B z + mu + noise, the coordinates of z independent with `priors`, noise ~ N(0, noise_std^2 I) (assumption 3).

    Arguments
        B          (n, m), a column per feature; m may be 0
        priors     m priors: `Prior` objects, their JSON forms, or frozen scipy.stats distributions
        noise_std  the standard deviation sigma >= 0 (a standard deviation, never a variance)
        offset     mu, (n,); zero when left out

    Raises InputError for wrong shapes, a count of priors other than m, and numbers that are not finite.
    """

    B: Array
    priors: tuple[Prior, ...]
    noise_std: float
    offset: Array

    def __init__(
        self, B: ArrayLike, priors: Iterable[object], noise_std: float, offset: ArrayLike | None = None
    ) -> None:
        matrix = read_only_array(B, "B", 2)
        n, m = matrix.shape
        if n == 0:
            raise InputError("`B` has no rows; it needs one for each coordinate of x")
        if isinstance(priors, str | bytes | Mapping | Prior) or not isinstance(priors, Iterable):
            raise InputError(f"`priors` is {shortened(priors)}; it must be a list with one prior a column of `B`")
        laws = tuple(Prior.of(prior, f"`priors[{j}]`") for j, prior in enumerate(priors))
        if len(laws) != m:
            raise InputError(f"`priors` has {len(laws)} entries; `B` has m = {m} columns, so it must have {m}")
        sigma = finite_number(noise_std, "noise_std")
        if sigma < 0:
            raise InputError(f"`noise_std` is {sigma!r}; a standard deviation cannot be negative")
        mu = read_only_array(np.zeros(n) if offset is None else offset, "offset", 1)
        if mu.shape != (n,):
            raise InputError(f"`offset` has shape {mu.shape}; `B` has n = {n} rows, so it must be ({n},)")
        for name, value in {"B": matrix, "priors": laws, "noise_std": sigma, "offset": mu}.items():
            object.__setattr__(self, name, value)

    @property
    def n(self) -> int:
        """The dimension of x."""
        return int(self.B.shape[0])

    @property
    def m(self) -> int:
        """The number of features."""
        return int(self.B.shape[1])

    def mean(self) -> Array:
        """E x = B E z + mu, (n,)."""
        return np.asarray(self.B @ np.array([p.mean() for p in self.priors]).reshape(self.m) + self.offset)

    def covariance(self) -> Array:
        """Cov x = B diag(Var z) B^T + noise_std^2 I, (n, n)."""
        variances = np.array([p.variance() for p in self.priors]).reshape(self.m)
        return np.asarray((self.B * variances) @ self.B.T + self.noise_std**2 * np.eye(self.n))

    def sample(self, N: int, rng: np.random.Generator | int | None = None) -> Array:
        """N independent rows of x, (N, n), from a generator or a seed. Raises InputError for another N than 0 to ten million."""
        check_count("N", N, 0, MOST_ROWS)
        rng = generator(rng)
        z = np.empty((N, self.m))
        for j, prior in enumerate(self.priors):
            z[:, j] = prior.sample(rng, N)
        return np.asarray(z @ self.B.T + self.offset + self.noise_std * rng.standard_normal((N, self.n)))

    def marginal(self, v: ArrayLike) -> Joint:
        """The law of <v, x>, v (n,), or of V x, V (t, n) with t <= 3: density, quantiles, tails (Lemma 3.4)."""
        from elbotree.runtime.joint import marginal  # it imports this module

        return marginal(self, v)


# -- posteriors and the rules of their families -----------------------------------------------------------------------
@dataclass(frozen=True)
class FamilyRule:
    """What validation must know of a posterior family.

    t           the number of encoder parameters
    check       (posterior, prior) -> the reason why KL(Q' || prior) is infinite, or None when it is finite
    parameters  the names of the posterior's own parameters and the least value of each (exclusive when `strict`)
    base        whether a posterior of this family has a base law
    """

    t: int
    check: Callable[[Posterior, Prior], str | None]
    parameters: tuple[str, ...] | None = None
    base: bool = False


def _needs_atoms(q: Posterior, prior: Prior) -> str | None:
    points, _ = prior.atoms
    missing = [x for x in (0.0, 1.0) if x not in points]
    return f"it puts mass on 0 and 1, and the prior has none at {missing[0]:g}" if missing else None


def _needs_line(q: Posterior, prior: Prior) -> str | None:
    whole = (-math.inf, math.inf)
    return None if prior.continuous_support == (whole,) else "its density covers the whole line, the prior's does not"


def _needs_half_line(q: Posterior, prior: Prior) -> str | None:
    covered = any(low <= 0 and high == math.inf for low, high in prior.continuous_support)
    return None if covered else "its density covers (0, inf), the prior's does not"


def _needs_base(q: Posterior, prior: Prior) -> str | None:
    assert q.base is not None  # the constructor saw to it
    if q.base == prior:
        return None
    own, _ = prior.atoms
    for x in q.base.atoms[0]:
        if x not in own:
            return f"its base has an atom at {x:g}, the prior has none there"
    for low, high in q.base.continuous_support:
        if not any(a <= low and high <= b for a, b in prior.continuous_support):
            return f"its base has a density on ({low:g}, {high:g}), the prior's does not cover that"
    return None


_RULES: dict[str, FamilyRule] = {
    "bernoulli": FamilyRule(1, _needs_atoms, ()),
    "normal": FamilyRule(1, _needs_line, ("std",)),
    "normal_scale": FamilyRule(2, _needs_line, ()),
    "exponential": FamilyRule(1, _needs_half_line, ()),
    "tilted": FamilyRule(1, _needs_base, ("precision",), base=True),
}


def register_family_rule(
    name: str,
    t: int,
    check: Callable[[Posterior, Prior], str | None] | None = None,
    *,
    parameters: Sequence[str] | None = None,
    base: bool = False,
) -> None:
    """Tell validation about a user-defined posterior family (the shipped ones stand in the same table).

    t is the number of encoder parameters; check(posterior, prior) returns why the KL divergence would be infinite, or
    None; parameters are the names a posterior must give (None: any); base says whether it needs a base law.
    """
    if not isinstance(t, int) or t < 1:
        raise InputError(f"`t` is {t!r}; a family has a whole number >= 1 of encoder parameters")
    names = None if parameters is None else tuple(parameters)
    _RULES[name] = FamilyRule(t, check or (lambda q, prior: None), names, base)


def family_rule(name: object) -> FamilyRule:
    """The rule of a family; an unknown name raises InputError with the nearest known one."""
    if not isinstance(name, str) or name not in _RULES:
        raise InputError(f"`family` is {shortened(name)}, which is no posterior family{nearest(name, _RULES)}")
    return _RULES[name]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Q'_j( . ; c) of one feature, with c = C x2 + bias in R^t (assumption 4).

    bernoulli (t = 1): P(beta = 1) = 1 / (1 + e^-c). normal (1): N(c, std^2). normal_scale (2): N(c0, softplus(c1)^2).
    exponential (1): mean softplus(c). tilted (1): proportional to base(beta) e^(c beta - precision beta^2 / 2).

    Arguments
        family      "bernoulli", "normal", "normal_scale", "exponential", "tilted", or a registered name
        C           (t, n2); for t = 1 also (n2,)
        bias        (t,); zero when left out; for t = 1 also a number
        std         of the normal family, > 0
        precision   of the tilted family, >= 0
        base        of the tilted family: a prior
        parameters  the same numbers as a dictionary, for user-defined families

    Raises InputError for an unknown family, wrong shapes, and parameters that are missing, too many or out of range.
    """

    family: str
    C: Array
    bias: Array
    parameters: dict[str, float]
    base: Prior | None

    def __init__(
        self,
        family: str,
        C: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        std: float | None = None,
        precision: float | None = None,
        base: object | None = None,
        parameters: Mapping[str, float] | None = None,
    ) -> None:
        rule = family_rule(family)
        matrix = read_only_array(C, "C", 1 if rule.t == 1 and _is_flat(C) else 2)
        matrix = matrix[None, :] if matrix.ndim == 1 else matrix
        if matrix.shape[0] != rule.t:
            raise InputError(
                f"`C` has shape {matrix.shape}; the family {family!r} has t = {rule.t} parameters, so it must have "
                f"{rule.t} rows"
            )
        shift = np.zeros(rule.t) if bias is None else [bias] if isinstance(bias, int | float) else bias
        vector = read_only_array(shift, "bias", 1)
        if vector.shape != (rule.t,):
            raise InputError(
                f"`bias` has shape {vector.shape}; the family {family!r} has t = {rule.t} parameters, so it must be "
                f"({rule.t},)"
            )
        numbers = _posterior_numbers(family, rule, std, precision, parameters)
        law = None if base is None else Prior.of(base, "`base`")
        _check_base(family, rule, law, numbers)
        for name, value in {"family": family, "C": matrix, "bias": vector, "parameters": numbers, "base": law}.items():
            object.__setattr__(self, name, value)

    @property
    def t(self) -> int:
        """The number of encoder parameters."""
        return int(self.C.shape[0])

    @property
    def std(self) -> float:
        """The standard deviation of the normal family."""
        return self.parameters["std"]

    @property
    def precision(self) -> float:
        """The precision of the tilted family."""
        return self.parameters["precision"]


def _is_flat(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], int | float)


def _posterior_numbers(
    family: str, rule: FamilyRule, std: float | None, precision: float | None, parameters: Mapping[str, float] | None
) -> dict[str, float]:
    """The posterior's own parameters, checked against what its family takes."""
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InputError(f"`parameters` is {shortened(parameters)}; it must be a dictionary of numbers")
    given: dict[str, object] = dict(parameters or {})
    for name, value in (("std", std), ("precision", precision)):
        if value is not None:
            if name in given:
                raise InputError(f"`{name}` is given twice, by itself and in `parameters`; keep one")
            given[name] = value
    numbers = {name: finite_number(value, name) for name, value in given.items()}
    if rule.parameters is not None:
        for name in numbers:
            if name not in rule.parameters:
                takes = ", ".join(rule.parameters) or "none of its own"
                raise InputError(
                    f"`{name}` is no parameter of the family {family!r}, which takes {takes}; leave it out"
                )
        for name in rule.parameters:
            if name not in numbers:
                raise InputError(f"`{name}` is missing; the family {family!r} needs it")
    if "std" in numbers and not numbers["std"] > 0:
        raise InputError(f"`std` is {numbers['std']!r}; it must be greater than 0")
    if "precision" in numbers and numbers["precision"] < 0:
        raise InputError(f"`precision` is {numbers['precision']!r}; it must be 0 or greater")
    return numbers


def _check_base(family: str, rule: FamilyRule, base: Prior | None, numbers: Mapping[str, float]) -> None:
    if rule.base and base is None:
        raise InputError(f"`base` is missing; the family {family!r} tilts a base law: give the model's own prior")
    if base is not None and not rule.base:
        raise InputError(f"`base` is given, and the family {family!r} has none; leave it out")
    if base is not None and numbers.get("precision") == 0 and base.mgf_domain != (-math.inf, math.inf):
        low, high = base.mgf_domain
        raise InputError(
            f"`precision` is 0, and a tilted {base.kind} law then exists only for c between {low:g} and {high:g}; "
            "give a precision > 0"
        )


class Encoder(Sequence[Posterior]):
    """The `posteriors` of all m2 features, in order; Q2(z2 | x2) = prod_j Q'_j(beta_j; C_j x2 + bias_j) is their product
    (assumption 2). A sequence of them. Raises InputError for anything else than a `Posterior`."""

    def __init__(self, posteriors: Iterable[Posterior]) -> None:
        self._posteriors = tuple(posteriors)
        for j, q in enumerate(self._posteriors):
            check_kind(q, f"encoder[{j}]", Posterior)

    def __len__(self) -> int:
        return len(self._posteriors)

    @overload
    def __getitem__(self, index: int) -> Posterior: ...
    @overload
    def __getitem__(self, index: slice) -> Encoder: ...
    def __getitem__(self, index: int | slice) -> Posterior | Encoder:
        return Encoder(self._posteriors[index]) if isinstance(index, slice) else self._posteriors[index]

    def __iter__(self) -> Iterator[Posterior]:
        return iter(self._posteriors)

    def __repr__(self) -> str:
        return f"Encoder({list(self._posteriors)!r})"


def check_reads(q: Posterior, name: str, n2: int) -> None:
    """InputError unless the posterior reads x2 in R^n2."""
    if q.C.shape[1] != n2:
        raise InputError(
            f"`{name}.C` has shape {q.C.shape}; the layer's output has n2 = {n2} coordinates, so it must be ({q.t}, {n2})"
        )


# -- the problem ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Problem:
    """A layer, the model of its input, the model of its output, and the encoder: everything the loss depends on.

    Arguments
        layer    f, n1 -> n2
        input    the feature model of x1, in R^n1
        model    the feature model of x2, in R^n2, with m2 features and noise_std > 0
        encoder  m2 posteriors

    Raises InputError when shapes do not fit, and when a posterior has mass where its prior has none (the KL divergence
    of R1 would be infinite).
    """

    layer: Layer
    input: FeatureModel
    model: FeatureModel
    encoder: Encoder

    def __init__(
        self, layer: Layer, input: FeatureModel, model: FeatureModel, encoder: Encoder | Iterable[Posterior]
    ) -> None:
        for name, value, kind in (
            ("layer", layer, Layer),
            ("input", input, FeatureModel),
            ("model", model, FeatureModel),
        ):
            check_kind(value, name, kind)
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "input", input)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "encoder", encoder if isinstance(encoder, Encoder) else Encoder(encoder))
        self._check()

    def _check(self) -> None:
        n1, n2, m2 = self.layer.n1, self.layer.n2, self.model.m
        if self.input.n != n1:
            raise InputError(
                f"`input.B` has {self.input.n} rows; the layer's input has n1 = {n1} coordinates, so it must have {n1}"
            )
        if self.model.n != n2:
            raise InputError(
                f"`model.B` has {self.model.n} rows; the layer's output has n2 = {n2} coordinates, so it must have {n2}"
            )
        if not self.model.noise_std > 0:
            raise InputError(
                f"`model.noise_std` is {self.model.noise_std!r}; it must be greater than 0, or R2 is -infinite"
            )
        if len(self.encoder) != m2:
            raise InputError(
                f"`encoder` has {len(self.encoder)} posteriors; `model.B` has m2 = {m2} columns, so it must have {m2}"
            )
        for j, (q, prior) in enumerate(zip(self.encoder, self.model.priors, strict=True)):
            check_reads(q, f"encoder[{j}]", n2)
            reason = family_rule(q.family).check(q, prior)
            if reason:
                raise InputError(
                    f"`encoder[{j}]` ({q.family}) and `model.priors[{j}]` ({prior.kind}) have an infinite KL "
                    f"divergence: {reason}; change one of the two"
                )

    @staticmethod
    def from_dict(data: object, folder: str | Path | None = None) -> Problem:
        """A problem from its JSON form (format elbotree-problem/1), read strictly.

        Arrays given as {"file": ..., "key": ...} are read from beside the problem, in `folder`; without it they are
        refused. Raises InputError naming the place, such as `layer.A[2]`.
        """
        from elbotree.runtime.problem_json import problem_from_dict  # it imports this module

        return problem_from_dict(data, None if folder is None else Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `from_dict` reads it back to the same numbers."""
        from elbotree.runtime.problem_json import problem_to_dict

        return problem_to_dict(self)

    def save(self, path: str | Path) -> None:
        """Write the JSON form to a file, atomically."""
        from elbotree.runtime.storage import write_json

        write_json(path, self.to_dict())

    @staticmethod
    def load(path: str | Path) -> Problem:
        """Read a problem file. Every error is one line that names the file, the place in it, and the fix."""
        from elbotree.runtime.storage import read_json

        data = read_json(path)
        try:
            return Problem.from_dict(data, folder=Path(path).parent)
        except InputError as error:
            raise type(error)(f"{path}: {error}") from None
