"""Posterior families: the law Q'(beta | c) of one feature given its encoder parameters c, as algebra. From the density
(or masses) of each family come its mean s(c), variance V(c), entropy, and K(c) = KL(Q'(c) || P) against every kind of
prior for which a closed form exists; derivatives are sympy's. Where no closed form exists the entry says which
expectation the runtime has to take by quadrature. Nothing numeric lives here.

    K(c) = E_Q[log q(beta | c) - log p(beta)]            (R1 of the paper's eq. (6), one feature)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import sympy as sp

from elbotree.derivation.grammar import nearest
from elbotree.derivation.special import (
    FoldedMean,
    LogPartition,
    LogSoftplus,
    NormalQuantile,
    Sigmoid,
    Softplus,
    SoftplusLogSlope,
)
from elbotree.runtime.errors import InputError

BETA = sp.Symbol("beta", real=True)
Z = sp.Symbol("z", real=True)
U = sp.Symbol("u", positive=True)
STD = sp.Symbol("std", positive=True)
PRECISION = sp.Symbol("precision", nonnegative=True)
REAL_LINE = (-sp.oo, sp.oo)


def encoder_parameters(t: int) -> tuple[sp.Symbol, ...]:
    """The symbols c0, ..., c(t-1) of the encoder parameters of one feature."""
    return tuple(sp.Symbol(f"c{r}", real=True) for r in range(t))


C = encoder_parameters(2)
HALF_LINE = (sp.Integer(0), sp.oo)

_SHORT = 40  # operations: longer coefficients are left as they stand, since factoring them takes seconds

#: remainders: what quadrature adds to the closed part of K
CROSS_ENTROPY = "cross_entropy"  # -E_Q[log p(beta)]
LOG_RATIO = "log_ratio"  # E_Q[log dbase/dprior]
RELATIVE_ENTROPY = "relative_entropy"  # E_Q[log q - log p], where the entropy has no closed form either

PRIOR_PARAMETERS: dict[str, tuple[sp.Symbol, ...]] = {
    "normal": (sp.Symbol("prior_mean", real=True), sp.Symbol("prior_std", positive=True)),
    "laplace": (sp.Symbol("prior_mean", real=True), sp.Symbol("prior_scale", positive=True)),
    "exponential": (sp.Symbol("prior_scale", positive=True),),
    "gamma": (sp.Symbol("prior_shape", positive=True), sp.Symbol("prior_scale", positive=True)),
}
LOG_BASE = sp.Function("log_base", real=True)


def prior_log_density(kind: str) -> sp.Expr:
    """log p(beta) of a prior kind on its support, in the symbols of PRIOR_PARAMETERS."""
    symbols = PRIOR_PARAMETERS[kind]
    if kind == "normal":
        mean, std = symbols
        return -((BETA - mean) ** 2) / (2 * std**2) - sp.log(std) - sp.log(2 * sp.pi) / 2
    if kind == "laplace":
        mean, scale = symbols
        return -sp.Abs(BETA - mean) / scale - sp.log(2 * scale)
    if kind == "exponential":
        return -BETA / symbols[0] - sp.log(symbols[0])
    shape, scale = symbols
    return (shape - 1) * sp.log(BETA) - BETA / scale - shape * sp.log(scale) - sp.loggamma(shape)


@dataclass(frozen=True)
class Divergence:
    """One form of K(c): where it applies, its closed part, and what quadrature has to add.

    prior      the prior's kind, "same" for a prior equal to the posterior's base, or "*" for all others
    base       the base's kind (tilted family), or "*"
    closed     sympy, in c, the family's parameters, and the prior's (PRIOR_PARAMETERS, or log_p0, log_p1, ...)
    remainder  "", CROSS_ENTROPY, LOG_RATIO or RELATIVE_ENTROPY
    """

    prior: str
    closed: sp.Expr
    remainder: str = ""
    base: str = "*"


@dataclass(frozen=True)
class Family:
    """A posterior family.

    t            the number of encoder parameters c of a feature
    law          in words and formulas, for comments
    parameters   its trained scalars besides c
    support      an interval, or a tuple of points for a finite law ("base": that of the base)
    log_density  log q(beta | c), for finite laws None
    log_masses   for finite laws: log q(point | c), in the order of `points`
    mean, variance, entropy   s(c), V(c), and -E_Q[log q]; None where they are taken by quadrature (for entropy also where
                 it involves the base)
    centre, spread            beta = centre(c) + spread(c) z puts the law on a scale of order one, for quadrature
    reach        the interval of z outside which the law is below rounding
    divergences  the forms of K, first match wins
    bases        closed log partition functions by the base's kind (tilted)
    samplers     draws as functions of c and of u, uniform on (0, 1), in closed form: by the base's kind (tilted), or under
                 "*". Where there is none, finite laws draw from a table of masses, others by quadrature
    """

    name: str
    t: int
    law: str
    mean: sp.Expr | None
    variance: sp.Expr | None
    divergences: tuple[Divergence, ...]
    parameters: tuple[sp.Symbol, ...] = ()
    support: tuple[sp.Expr, sp.Expr] | str = REAL_LINE
    points: tuple[sp.Expr, ...] = ()
    log_density: sp.Expr | None = None
    log_masses: tuple[sp.Expr, ...] = ()
    entropy: sp.Expr | None = None
    centre: sp.Expr | None = None
    spread: sp.Expr | None = None
    reach: tuple[float, float] = (-9.5, 9.5)
    bases: dict[str, sp.Expr] = field(default_factory=dict)
    samplers: dict[str, sp.Expr] = field(default_factory=dict)

    @property
    def c(self) -> tuple[sp.Symbol, ...]:
        """The symbols of the encoder parameters, c0 ... c(t-1)."""
        return encoder_parameters(self.t)

    @property
    def tilted(self) -> bool:
        """Whether the law tilts a base prior."""
        return self.support == "base"

    def on_base(self, expression: sp.Expr, kind: str) -> sp.Expr:
        """An expression with the log partition function of one kind of base put in."""
        if kind not in self.bases:
            return expression
        closed = self.bases[kind]
        return expression.replace(LogPartition, lambda c, r, k: sp.diff(closed, C[0], int(k)).subs(C[0], c))

    def standard_log_density(self) -> sp.Expr:
        """log of the density of z, where beta = centre(c) + spread(c) z."""
        assert self.log_density is not None
        inner = self.log_density.subs(BETA, self.centre + self.spread * Z) + sp.log(self.spread)
        return sp.expand(sp.expand(inner).replace(sp.log, _split_log))

    def scores(self) -> tuple[sp.Expr, ...]:
        """d log q(beta | c) / d c_r for each r, at fixed beta, written in z."""
        return tuple(self._score(symbol) for symbol in self.c)

    def parameter_scores(self) -> dict[str, sp.Expr]:
        """d log q(beta | c) / d parameter, at fixed beta, written in z."""
        return {symbol.name: self._score(symbol) for symbol in self.parameters}

    def _score(self, symbol: sp.Symbol) -> sp.Expr:
        assert self.log_density is not None
        slope = sp.diff(self.log_density, symbol).subs(BETA, self.centre + self.spread * Z)
        slope = sp.expand(slope)
        ratios = {Sigmoid(c) / Softplus(c): SoftplusLogSlope(c) for c in self.c}  # 0/0 as written, 1 in the limit
        return sp.factor(slope.subs(ratios))


def _split_log(argument: sp.Expr) -> sp.Expr:
    """log softplus by its stable name, so that it cancels against the density's own."""
    return LogSoftplus(argument.args[0]) if isinstance(argument, Softplus) else sp.log(argument)


def _against_normal(mean: sp.Expr, variance: sp.Expr) -> sp.Expr:
    """-E_Q[log p] for a normal prior: the second moment about its mean is all that it sees."""
    prior_mean, prior_std = PRIOR_PARAMETERS["normal"]
    spread = variance + (mean - prior_mean) ** 2
    return spread / (2 * prior_std**2) + sp.log(prior_std) + sp.log(2 * sp.pi) / 2


def describe_masses(
    name: str,
    points: Sequence[sp.Expr],
    log_masses: Sequence[sp.Expr],
    *,
    t: int,
    law: str,
    masses: Sequence[sp.Expr] | None = None,
    parameters: tuple[sp.Symbol, ...] = (),
    variance: sp.Expr | None = None,
) -> Family:
    """A family on finitely many points, from log q(point | c): moments, entropy and K are finite sums."""
    q = [sp.exp(log_q) for log_q in log_masses] if masses is None else list(masses)
    mean = sp.Add(*(mass * point for mass, point in zip(q, points, strict=True)))
    spread = sp.Add(*(mass * (point - mean) ** 2 for mass, point in zip(q, points, strict=True)))
    log_p = [sp.Symbol(f"log_p{i}", real=True) for i in range(len(q))]
    terms = zip(q, log_masses, log_p, strict=True)
    return Family(
        name=name,
        t=t,
        law=law,
        parameters=parameters,
        mean=mean,
        variance=spread if variance is None else variance,
        support=(min(points), max(points)),
        points=tuple(points),
        log_masses=tuple(log_masses),
        entropy=-sp.Add(*(mass * log_q for mass, log_q in zip(q, log_masses, strict=True))),
        divergences=(Divergence("*", sp.expand(sp.Add(*(mass * (own - other) for mass, own, other in terms)))),),
    )


def describe_density(
    name: str,
    log_density: sp.Expr,
    *,
    t: int,
    law: str,
    mean: sp.Expr | None,
    variance: sp.Expr | None,
    entropy: sp.Expr | None,
    parameters: tuple[sp.Symbol, ...] = (),
    support: tuple[sp.Expr, sp.Expr] = REAL_LINE,
    mean_log: sp.Expr | None = None,
    mean_distance: Callable[[sp.Expr], sp.Expr] | None = None,
    centre: sp.Expr | None = None,
    spread: sp.Expr | None = None,
    reach: tuple[float, float] = (-45.0, 45.0),
    sampler: sp.Expr | None = None,
) -> Family:
    """A family with a density, from what is known of it in closed form; K follows for every prior that needs no more.

    mean_log       E log beta: what a gamma prior asks for besides the mean
    mean_distance  a -> E|beta - a|: what a Laplace prior asks for
    centre, spread, reach   as in `Family`; left out, the mean and the standard deviation
    sampler        the point below which the law has the mass u, in u and c
    """
    forms = []
    if entropy is not None and mean is not None and variance is not None:
        forms = _closed_divergences(mean, variance, entropy, support, mean_log, mean_distance)
    remainder = Divergence("*", sp.Integer(0), RELATIVE_ENTROPY)
    if entropy is not None:
        remainder = Divergence("*", -entropy, CROSS_ENTROPY)
    return Family(
        name=name,
        t=t,
        law=law,
        parameters=parameters,
        mean=mean,
        variance=variance,
        support=support,
        log_density=log_density,
        entropy=entropy,
        centre=mean if centre is None else centre,
        spread=sp.sqrt(variance) if spread is None and variance is not None else spread,
        reach=reach,
        divergences=(*forms, remainder),
        samplers={} if sampler is None else {"*": sampler},
    )


def _closed_divergences(
    mean: sp.Expr,
    variance: sp.Expr,
    entropy: sp.Expr,
    support: tuple[sp.Expr, sp.Expr],
    mean_log: sp.Expr | None,
    mean_distance: Callable[[sp.Expr], sp.Expr] | None,
) -> list[Divergence]:
    """K against the priors whose log density is linear in what is known: beta, beta^2, log beta, |beta - a|."""
    found = []
    if support[0] >= 0:
        (scale,) = PRIOR_PARAMETERS["exponential"]
        found.append(Divergence("exponential", sp.log(scale) + mean / scale - entropy))
    if support[0] >= 0 and mean_log is not None:
        shape, scale = PRIOR_PARAMETERS["gamma"]
        against = -(shape - 1) * mean_log + mean / scale + shape * sp.log(scale) + sp.loggamma(shape)
        found.append(Divergence("gamma", against - entropy))
    found.append(Divergence("normal", sp.expand(_against_normal(mean, variance) - entropy)))
    if mean_distance is not None:
        centre, scale = PRIOR_PARAMETERS["laplace"]
        found.append(Divergence("laplace", mean_distance(centre) / scale + sp.log(2 * scale) - entropy))
    return found


def _bernoulli() -> Family:
    (c,) = C[:1]
    return describe_masses(
        "bernoulli",
        (sp.Integer(0), sp.Integer(1)),
        (-Softplus(c), -Softplus(-c)),
        masses=(Sigmoid(-c), Sigmoid(c)),
        t=1,
        law="P(beta = 1) = sigmoid(c), P(beta = 0) = sigmoid(-c)",
        variance=Sigmoid(c) * Sigmoid(-c),
    )


def _gaussian(name: str, law: str, t: int, std: sp.Expr, log_std: sp.Expr, **more: object) -> Family:
    """N(c0, std^2); what a normal law knows of itself."""
    return describe_density(
        name,
        -((BETA - C[0]) ** 2) / (2 * std**2) - log_std - sp.log(2 * sp.pi) / 2,
        t=t,
        law=law,
        mean=C[0],
        variance=std**2,
        entropy=log_std + sp.log(2 * sp.pi) / 2 + sp.Rational(1, 2),
        mean_distance=lambda a: FoldedMean(C[0] - a, std),
        spread=std,
        reach=(-9.5, 9.5),
        sampler=C[0] + std * NormalQuantile(U),
        **more,  # type: ignore[arg-type]
    )


def _normal() -> Family:
    return _gaussian("normal", "N(c, std^2)", 1, STD, sp.log(STD), parameters=(STD,))


def _normal_scale() -> Family:
    return _gaussian("normal_scale", "N(c0, softplus(c1)^2)", 2, Softplus(C[1]), LogSoftplus(C[1]))


def _exponential() -> Family:
    (c,) = C[:1]
    s, log_s = Softplus(c), LogSoftplus(c)
    return describe_density(
        "exponential",
        -BETA / s - log_s,
        t=1,
        law="density exp(-beta / s) / s on beta > 0, s = softplus(c)",
        mean=s,
        variance=s**2,
        entropy=1 + log_s,
        support=HALF_LINE,
        mean_log=log_s - sp.EulerGamma,
        centre=sp.Integer(0),
        spread=s,
        reach=(0.0, 45.0),
        sampler=-s * sp.log(1 - U),
    )


def _tilted() -> Family:
    """q(beta | c) = base(beta) exp(c beta - precision beta^2 / 2 - Lambda(c)): s = Lambda', V = Lambda'', and
    E_Q[log dQ/dbase] = c s - precision/2 (V + s^2) - Lambda."""
    (c,) = C[:1]
    log_z, s, v = (LogPartition(c, PRECISION, k) for k in range(3))
    from_base = c * s - PRECISION / 2 * (v + s**2) - log_z
    mean, std = sp.Symbol("base_mean", real=True), sp.Symbol("base_std", positive=True)
    total = PRECISION + 1 / std**2
    normal_base = (c + mean / std**2) ** 2 / (2 * total) - mean**2 / (2 * std**2) - sp.log(1 + PRECISION * std**2) / 2
    family = Family(
        name="tilted",
        t=1,
        law="density proportional to base(beta) exp(c beta - precision beta^2 / 2)",
        parameters=(PRECISION,),
        mean=s,
        variance=v,
        support="base",
        log_density=LOG_BASE(BETA) + c * BETA - PRECISION * BETA**2 / 2 - log_z,
        divergences=(),
        bases={"normal": normal_base},
    )
    narrower = -sp.log(total) / 2 + sp.log(2 * sp.pi) / 2 + sp.Rational(1, 2)  # entropy of N(s, 1 / total)
    moments = family.on_base(s, "normal"), family.on_base(v, "normal")
    forms = (
        Divergence("normal", _against_normal(*moments) - narrower, base="normal"),
        Divergence("same", from_base),
        Divergence("*", family.on_base(from_base, "normal"), LOG_RATIO, base="normal"),
        Divergence("*", from_base, LOG_RATIO),
    )
    on_normal = moments[0] + sp.sqrt(moments[1]) * NormalQuantile(U)
    return replace(family, divergences=forms, samplers={"normal": on_normal})


_SHIPPED: dict[str, Callable[[], Family]] = {
    "bernoulli": _bernoulli,
    "normal": _normal,
    "normal_scale": _normal_scale,
    "exponential": _exponential,
    "tilted": _tilted,
}
#: the families by name; a shipped one is described when it is first asked for
_registry: dict[str, Family | Callable[[], Family]] = dict(_SHIPPED)


def family_names() -> tuple[str, ...]:
    """The registered names, in the order of registration."""
    return tuple(_registry)


def get_family(name: str) -> Family:
    """The family of that name; InputError names the nearest known one."""
    if name not in _registry:
        hint = nearest(str(name), family_names())
        raise InputError(f"family {name!r} is not known{hint}; known: {', '.join(_registry)}")
    found = _registry[name]
    if not isinstance(found, Family):
        found = _registry[name] = found()
    return found


def is_registered_by_user(name: str) -> bool:
    """Whether the name is one that `add_family` added to the shipped ones."""
    return name in _registry and name not in _SHIPPED


def add_family(family: Family) -> None:
    """Put a family under its name. `registration.register_family` checks it first."""
    if family.name in _registry:
        raise InputError(f"family name {family.name!r} is taken; choose another")
    _registry[family.name] = family


def remove_family(name: str) -> None:
    """Forget a registered family; the shipped ones stay."""
    if is_registered_by_user(name):
        del _registry[name]


def pieces(expression: sp.Expr, c: tuple[sp.Symbol, ...]) -> list[tuple[tuple[int, ...], sp.Expr]]:
    """Split a function of c additively by the coordinates that its terms use: [(uses, part)], parts ascending in uses.

    sum of the parts = expression. A constant joins the first polynomial part (moments carry it exactly), else the first
    part of all; it stands alone, with uses (), only when there is nothing else. The zero function has no parts.
    """
    used = tuple(i for i, symbol in enumerate(c) if expression.has(symbol))
    if len(used) <= 1:
        return [(used, expression)] if expression != 0 else []
    groups: dict[tuple[int, ...], list[sp.Expr]] = {}
    for term in sp.Add.make_args(sp.expand(expression)):
        groups.setdefault(tuple(i for i in used if term.has(c[i])), []).append(term)
    constants = groups.pop((), [])
    order = sorted(groups)
    home = next((u for u in order if polynomial(sp.Add(*groups[u]), u, c) is not None), order[0])
    groups[home] += constants
    return [(uses, sp.Add(*groups[uses])) for uses in order]


def polynomial(expression: sp.Expr, uses: tuple[int, ...], c: tuple[sp.Symbol, ...]) -> tuple[sp.Expr, ...] | None:
    """Coefficients, lowest degree first, of a polynomial in one coordinate (or of a constant), otherwise None."""
    if not uses:
        return (expression,)
    if len(uses) > 1 or not expression.is_polynomial(c[uses[0]]):
        return None
    symbol = c[uses[0]]
    # The degree at one generic point of the other symbols: far cheaper than expanding with all of them.
    others = sorted(expression.free_symbols - {symbol}, key=str)
    generic = expression.subs({other: sp.Rational(2 * i + 3, 7 + 4 * i) for i, other in enumerate(others)})
    degree = sp.degree(sp.expand(generic), symbol)
    taylor = [(sp.diff(expression, symbol, k) / sp.factorial(k)).subs(symbol, 0) for k in range(degree + 1)]
    return tuple(sp.factor(t) if k and t.count_ops() < _SHORT else t for k, t in enumerate(taylor))
