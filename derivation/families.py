"""Posterior families: the law Q'(beta | c) of one feature given its encoder parameters c, as algebra. From the density
(or masses) of each family come its mean s(c), variance V(c), entropy, and K(c) = KL(Q'(c) || P) against every kind of
prior for which a closed form exists; derivatives are sympy's. Where no closed form exists the entry says which
expectation the runtime has to take by quadrature. Nothing numeric lives here.

    K(c) = E_Q[log q(beta | c) - log p(beta)]            (R1 of the paper's eq. (6), one feature)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mpmath  # type: ignore[import-untyped]
import sympy as sp

from elbotree.derivation.grammar import nearest
from elbotree.derivation.special import (
    FoldedMean,
    LogPartition,
    LogSoftplus,
    Sigmoid,
    Softplus,
    SoftplusLogSlope,
    elementary,
)
from elbotree.runtime.errors import InputError

BETA = sp.Symbol("beta", real=True)
Z = sp.Symbol("z", real=True)
C = sp.symbols("c0:8", real=True)
STD = sp.Symbol("std", positive=True)
PRECISION = sp.Symbol("precision", nonnegative=True)
REAL_LINE = (-sp.oo, sp.oo)
HALF_LINE = (sp.Integer(0), sp.oo)

_SHORT = 40  # operations: longer coefficients are left as they stand, since factoring them takes seconds

#: remainders: what quadrature adds to the closed part of K
CROSS_ENTROPY = "cross_entropy"  # -E_Q[log p(beta)]
LOG_RATIO = "log_ratio"  # E_Q[log dbase/dprior]

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
    remainder  "", CROSS_ENTROPY or LOG_RATIO
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
    mean, variance, entropy   s(c), V(c), and -E_Q[log q] (None where it involves the base)
    centre, spread            beta = centre(c) + spread(c) z puts the law on a scale of order one, for quadrature
    reach        the interval of z outside which the law is below rounding
    divergences  the forms of K, first match wins
    bases        closed log partition functions by the base's kind (tilted)
    """

    name: str
    t: int
    law: str
    mean: sp.Expr
    variance: sp.Expr
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

    @property
    def c(self) -> tuple[sp.Symbol, ...]:
        """The symbols of the encoder parameters, c0 ... c(t-1)."""
        return tuple(C[: self.t])

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


def _gaussian_log_density(mean: sp.Expr, std: sp.Expr, log_std: sp.Expr) -> sp.Expr:
    return -((BETA - mean) ** 2) / (2 * std**2) - log_std - sp.log(2 * sp.pi) / 2


def _against_normal(mean: sp.Expr, variance: sp.Expr) -> sp.Expr:
    """-E_Q[log p] for a normal prior: the second moment about its mean is all that it sees."""
    prior_mean, prior_std = PRIOR_PARAMETERS["normal"]
    spread = variance + (mean - prior_mean) ** 2
    return spread / (2 * prior_std**2) + sp.log(prior_std) + sp.log(2 * sp.pi) / 2


def _bernoulli() -> Family:
    (c,) = C[:1]
    s, masses = Sigmoid(c), (-Softplus(c), -Softplus(-c))
    log_p = sp.symbols("log_p0 log_p1", real=True)
    terms = zip((Sigmoid(-c), s), masses, log_p, strict=True)
    kl = sp.expand(sum(mass * (log_q - log_prior) for mass, log_q, log_prior in terms))
    return Family(
        name="bernoulli",
        t=1,
        law="P(beta = 1) = sigmoid(c), P(beta = 0) = sigmoid(-c)",
        mean=s,
        variance=Sigmoid(c) * Sigmoid(-c),
        support=(sp.Integer(0), sp.Integer(1)),
        points=(sp.Integer(0), sp.Integer(1)),
        log_masses=masses,
        entropy=Sigmoid(-c) * Softplus(c) + s * Softplus(-c),
        divergences=(Divergence("*", kl),),
    )


def _against_laplace(centre: sp.Expr, std: sp.Expr) -> sp.Expr:
    """-E log p(beta) of a Laplace prior for a normal law."""
    mean, scale = PRIOR_PARAMETERS["laplace"]
    return FoldedMean(centre - mean, std) / scale + sp.log(2 * scale)


def _normal() -> Family:
    (c,) = C[:1]
    entropy = sp.log(STD) + sp.log(2 * sp.pi) / 2 + sp.Rational(1, 2)
    return Family(
        name="normal",
        t=1,
        law="N(c, std^2)",
        parameters=(STD,),
        mean=c,
        variance=STD**2,
        log_density=_gaussian_log_density(c, STD, sp.log(STD)),
        entropy=entropy,
        centre=c,
        spread=STD,
        divergences=(
            Divergence("normal", sp.expand(_against_normal(c, STD**2) - entropy)),
            Divergence("laplace", _against_laplace(c, STD) - entropy),
            Divergence("*", -entropy, CROSS_ENTROPY),
        ),
    )


def _normal_scale() -> Family:
    c0, c1 = C[:2]
    entropy = LogSoftplus(c1) + sp.log(2 * sp.pi) / 2 + sp.Rational(1, 2)
    return Family(
        name="normal_scale",
        t=2,
        law="N(c0, softplus(c1)^2)",
        mean=c0,
        variance=Softplus(c1) ** 2,
        log_density=_gaussian_log_density(c0, Softplus(c1), LogSoftplus(c1)),
        entropy=entropy,
        centre=c0,
        spread=Softplus(c1),
        divergences=(
            Divergence("normal", sp.expand(_against_normal(c0, Softplus(c1) ** 2) - entropy)),
            Divergence("laplace", _against_laplace(c0, Softplus(c1)) - entropy),
            Divergence("*", -entropy, CROSS_ENTROPY),
        ),
    )


def _exponential() -> Family:
    (c,) = C[:1]
    s, log_s = Softplus(c), LogSoftplus(c)
    entropy = 1 + log_s
    (rate_scale,) = PRIOR_PARAMETERS["exponential"]
    shape, scale = PRIOR_PARAMETERS["gamma"]
    mean_log = log_s - sp.EulerGamma  # E log beta
    against_gamma = -(shape - 1) * mean_log + s / scale + shape * sp.log(scale) + sp.loggamma(shape)
    return Family(
        name="exponential",
        t=1,
        law="density exp(-beta / s) / s on beta > 0, s = softplus(c)",
        mean=s,
        variance=s**2,
        support=HALF_LINE,
        log_density=-BETA / s - log_s,
        entropy=entropy,
        centre=sp.Integer(0),
        spread=s,
        reach=(0.0, 45.0),
        divergences=(
            Divergence("exponential", sp.log(rate_scale) + s / rate_scale - entropy),
            Divergence("gamma", against_gamma - entropy),
            Divergence("normal", _against_normal(s, s**2) - entropy),
            Divergence("*", -entropy, CROSS_ENTROPY),
        ),
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
    return Family(**{**family.__dict__, "divergences": forms})


_registry: dict[str, Family] = {
    family.name: family for family in (_bernoulli(), _normal(), _normal_scale(), _exponential(), _tilted())
}


def family_names() -> tuple[str, ...]:
    """The registered names, in the order of registration."""
    return tuple(_registry)


def get_family(name: str) -> Family:
    """The family of that name; InputError names the nearest known one."""
    if name not in _registry:
        hint = nearest(str(name), family_names())
        raise InputError(f"family {name!r} is not known{hint}; known: {', '.join(_registry)}")
    return _registry[name]


_PROBES = (sp.Rational(-7, 5), sp.Rational(3, 10), sp.Rational(9, 4))  # values of c at which a density is checked


def register_family(
    name: str,
    log_density: sp.Expr,
    *,
    t: int,
    parameters: tuple[sp.Symbol, ...] = (),
    support: tuple[sp.Expr, sp.Expr] = REAL_LINE,
    mean: sp.Expr | None = None,
    variance: sp.Expr | None = None,
    entropy: sp.Expr | None = None,
    reach: tuple[float, float] | None = None,
) -> Family:
    """Add a continuous posterior family, given log q(beta | c) in BETA, C[0], ..., C[t-1] and positive parameters.

    support   REAL_LINE or HALF_LINE
    mean, variance, entropy   s(c), V(c), -E_Q[log q]; where left out, sympy integrates the density for them
    reach     z = (beta - mean) / sd outside of which the law is below rounding (real line; default (-45, 45)), or
              beta / mean (half-line; default (0, 45))

    Derivatives follow from these; against every prior, K(c) = -entropy(c) + cross-entropy, the latter by quadrature.
    Raises InputError for a taken name, unknown symbols, coordinates of c that do not match t, a density
    that does not integrate to 1 or whose mean and variance disagree with the given ones, and where sympy finds no
    closed form (pass it then).
    """
    _check_family(name, log_density, t, parameters, support)
    q = sp.exp(log_density)
    s = sp.simplify(_integral(name, "mean", BETA * q, support)) if mean is None else mean
    if variance is None:
        variance = sp.simplify(_integral(name, "variance", BETA**2 * q, support) - s**2)
    _check_moments(name, q, support, (sp.Integer(1), s, variance + s**2), t, parameters)
    if entropy is None:
        entropy = sp.simplify(_integral(name, "entropy", -log_density * q, support))
    half = support == HALF_LINE
    family = Family(
        name=name,
        t=t,
        law=f"log density {log_density}",
        mean=s,
        variance=variance,
        parameters=parameters,
        support=support,
        log_density=log_density,
        entropy=entropy,
        centre=sp.Integer(0) if half else s,
        spread=s if half else sp.sqrt(variance),
        reach=reach or ((0.0, 45.0) if half else (-45.0, 45.0)),
        divergences=(Divergence("*", -entropy, CROSS_ENTROPY),),
    )
    _registry[name] = family
    return family


def _check_family(
    name: str, log_density: sp.Expr, t: int, parameters: tuple[sp.Symbol, ...], support: tuple[sp.Expr, sp.Expr]
) -> None:
    """Refuse what is wrong with the words of a new family, before any integral is tried."""
    if not name.isidentifier() or name in _registry:
        raise InputError(f"family name {name!r} is taken or not an identifier; choose another")
    if not 1 <= t <= len(C):
        raise InputError(f"family {name!r}: t = {t}; it must be a whole number from 1 to {len(C)}")
    if support not in (REAL_LINE, HALF_LINE):
        raise InputError(f"family {name!r}: support {support}; only REAL_LINE and HALF_LINE can be registered")
    if not all(symbol.is_positive for symbol in parameters):
        raise InputError(f"family {name!r}: its parameters must be symbols declared positive=True")
    unknown = log_density.free_symbols - {BETA, *C[:t], *parameters}
    if unknown:
        listed = ", ".join(sorted(map(str, unknown)))
        raise InputError(f"family {name!r}: unknown symbol(s) {listed}; use BETA, C[0]..C[{t - 1}] and `parameters`")
    if not {BETA, *C[:t]} <= log_density.free_symbols:
        raise InputError(f"family {name!r}: its log density must use BETA and all of C[0]..C[{t - 1}], since t = {t}")


def _integral(name: str, what: str, integrand: sp.Expr, support: tuple[sp.Expr, sp.Expr]) -> sp.Expr:
    found = sp.integrate(sp.expand(integrand), (BETA, *support), conds="none")
    if found.has(sp.Integral) or found.has(sp.nan, sp.zoo, sp.oo):
        raise InputError(f"family {name!r}: sympy finds no closed form of its {what}; pass it, or simplify the density")
    return found


def _check_moments(
    name: str,
    density: sp.Expr,
    support: tuple[sp.Expr, sp.Expr],
    moments: tuple[sp.Expr, ...],
    t: int,
    parameters: tuple[sp.Symbol, ...],
) -> None:
    """Integrate the density itself at a few values of c, and compare with 1, s and V + s^2."""
    for probe in _PROBES:
        at = {symbol: probe / (1 + i) for i, symbol in enumerate(C[:t])} | {p: sp.Rational(4, 5) for p in parameters}
        q = sp.lambdify(BETA, elementary(density).subs(at), "mpmath")
        centre = float(elementary(moments[1]).subs(at).evalf())
        inner = (x for x in (centre - 5, centre - 1, centre, centre + 1, centre + 5) if x > support[0])
        cuts = [mpmath.mpf(str(support[0]).replace("oo", "inf")), *inner, mpmath.inf]
        for k, moment in enumerate(moments):
            found = mpmath.quad(lambda x, q=q, k=k: q(x) * x**k, cuts)
            wanted = elementary(moment).subs(at).evalf()
            if abs(found - wanted) > 1e-6 * max(1, abs(wanted)):
                what = "its density does not integrate to 1" if k == 0 else f"its moment of order {k} is wrong"
                raise InputError(f"family {name!r}: {what} at c = {probe}: {float(found):.8g}, not {float(wanted):.8g}")


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
