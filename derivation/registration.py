"""New posterior families, from a density or a mass function. Everything else about a family is derived here: moments,
entropy, divergences and draws in closed form where sympy finds one in time, by quadrature where it does not. A family that is
not a probability law, or not one of the stated parameters, is refused with the reason. The shipped families pass the
same checks (in the tests: `check_family`), and are described through the same functions of `families`."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import mpmath  # type: ignore[import-untyped]
import sympy as sp

from elbotree.derivation.deadline import within
from elbotree.derivation.families import (
    BETA,
    HALF_LINE,
    REAL_LINE,
    Family,
    U,
    add_family,
    describe_density,
    describe_masses,
    encoder_parameters,
    family_names,
)
from elbotree.derivation.special import LogSoftplus, Sigmoid, Softplus, elementary, stable
from elbotree.runtime.errors import InputError

SECONDS = 5.0
"""How long sympy may look for the closed form of one moment."""

_PROBES = (sp.Rational(-7, 5), sp.Rational(3, 10), sp.Rational(9, 4))  # values of c at which a family is checked
_LEVELS = (sp.Rational(1, 20), sp.Rational(1, 2), sp.Rational(93, 100))  # values of u at which its draws are
Result = TypeVar("Result")
_SUPPORTS = {"real": REAL_LINE, "half-line": HALF_LINE}


def register_family(
    name: str,
    density: sp.Expr | None = None,
    *,
    t: int,
    log_density: sp.Expr | None = None,
    parameters: Sequence[sp.Symbol | str] = (),
    support: str | tuple[object, object] = REAL_LINE,
    points: Sequence[object] | None = None,
    mean: sp.Expr | None = None,
    variance: sp.Expr | None = None,
    entropy: sp.Expr | None = None,
    sampler: sp.Expr | None = None,
    centre: sp.Expr | None = None,
    spread: sp.Expr | None = None,
    reach: tuple[float, float] | None = None,
    seconds: float = SECONDS,
) -> Family:
    """Add a posterior family Q'(beta | c), given as a density or a mass function in sympy (assumption 4).

    Arguments
        density       q(beta | c) in the symbols beta and c (t = 1) or c0, ..., c(t-1), and positive `parameters`.
                      With `points`, the probability of the point beta
        log_density   its logarithm instead, which keeps digits where q itself would underflow
        support       "real", "half-line" (beta > 0), or an interval (low, high)
        points        for a mass function: the finitely many values of beta
        mean, variance, entropy   s(c), V(c), -E_Q[log q], where you know them; otherwise sympy looks for each for
                      `seconds`, and quadrature takes over where it finds none in time
        sampler       the point below which the law has the mass u, in the symbols u and c: for u uniform on (0, 1) a draw.
                      Left out, it is looked for in the same way
        centre, spread   a point and a length of the law, so that (beta - centre) / spread is of order one. Needed only
                      on an infinite support where no mean and variance are found
        reach         the interval of (beta - centre) / spread outside of which the law is below rounding

    Returns the `Family`; its derivatives, kernels and divergences follow from these. Whether a search ends in time may
    depend on the machine: pass what you know, and the kernels' text is the same everywhere.
    Raises InputError for a taken name, unknown symbols, a t that does not match, a law that is negative or does not
    sum to 1, given moments that are wrong, and an infinite support on which nothing says where the law is.

    >>> import sympy
    >>> from elbotree.derivation.families import remove_family
    >>> beta, c = sympy.symbols("beta c")
    >>> family = register_family("rate", sympy.exp(c - beta * sympy.exp(c)), t=1, support="half-line")
    >>> family.mean, family.entropy, family.samplers["*"]
    (exp(-c0), 1 - c0, -exp(-c0)*log(1 - u))
    >>> remove_family("rate")
    """
    if (density is None) == (log_density is None):
        raise InputError(f"family {name!r}: give either `density` or `log_density`")
    symbols = _parameters(name, parameters)
    _check_words(name, t)
    if density is not None:
        log_density = sp.expand_log(sp.log(_own_symbols(name, density, "density", t, symbols)), force=True)
    else:
        log_density = _own_symbols(name, log_density, "log_density", t, symbols)
    log_density = stable(log_density)
    given = {
        what: None if value is None else _own_symbols(name, value, what, t, symbols, variable=None)
        for what, value in {
            "mean": mean, "variance": variance, "entropy": entropy, "centre": centre, "spread": spread,
        }.items()
    }  # fmt: skip
    given["sampler"] = None if sampler is None else _own_symbols(name, sampler, "sampler", t, symbols, variable=U)
    if not {*encoder_parameters(t)} <= log_density.free_symbols:
        raise InputError(f"family {name!r}: its law must depend on all of {_names(t)}, since t = {t}")
    if points is not None:
        family = _from_masses(name, log_density, points, t, symbols, given)
    else:
        family = _from_density(name, log_density, _interval(name, support), t, symbols, given, reach, seconds)
    check_family(family)
    add_family(family)
    return family


def _from_masses(
    name: str,
    log_mass: sp.Expr,
    points: Sequence[object],
    t: int,
    parameters: tuple[sp.Symbol, ...],
    given: dict[str, sp.Expr | None],
) -> Family:
    for what in ("mean", "entropy", "sampler", "centre", "spread"):
        if given[what] is not None:
            raise InputError(
                f"family {name!r}: `{what}` of a law on finitely many points is a finite sum or a table; leave it out"
            )
    values = [sp.nsimplify(point, rational=True) if isinstance(point, int | float) else point for point in points]
    if len(values) < 2 or not all(isinstance(point, sp.Rational) for point in values) or len({*values}) < len(values):
        raise InputError(f"family {name!r}: points {points!r}; they must be at least two different finite numbers")
    log_masses = tuple(log_mass.subs(BETA, point) for point in values)
    return describe_masses(
        name, values, log_masses, t=t, law=f"log mass {log_mass}", parameters=parameters, variance=given["variance"]
    )


def _from_density(
    name: str,
    log_density: sp.Expr,
    support: tuple[sp.Expr, sp.Expr],
    t: int,
    parameters: tuple[sp.Symbol, ...],
    given: dict[str, sp.Expr | None],
    reach: tuple[float, float] | None,
    seconds: float,
) -> Family:
    """What sympy finds of a density, in one `describe_density`."""
    if BETA not in log_density.free_symbols:
        if support[0].is_finite and support[1].is_finite:
            raise InputError(f"family {name!r}: its density must depend on beta")
        raise InputError(f"family {name!r}: its density does not depend on beta, so it cannot integrate to 1")
    _check_sign(name, log_density, support, t, parameters)
    q = _plain_density(log_density)
    mean, variance, entropy = given["mean"], given["variance"], given["entropy"]
    mean = _integral(BETA * q, support, seconds) if mean is None else mean
    if variance is None and mean is not None:
        second = _integral(BETA**2 * q, support, seconds)
        variance = None if second is None else sp.simplify(second - mean**2)
    entropy = _integral(-log_density * q, support, seconds) if entropy is None else entropy
    logs = support[0] >= 0 and log_density.has(sp.log(BETA))  # a gamma prior is worth a look where the law has powers
    centre, spread = given["centre"], given["spread"]
    if mean is None or variance is None:
        # An interval says where the law is, if nothing else does.
        if support[0].is_finite and support[1].is_finite and centre is None and spread is None:
            centre, spread, reach = support[0], support[1] - support[0], (0.0, 1.0)
        elif (centre is None and mean is None) or spread is None:
            raise InputError(
                f"family {name!r}: sympy finds no closed form of its {'mean' if mean is None else 'variance'} within "
                f"{seconds:g} s; pass `mean` and `variance`, or `centre` and `spread` so that quadrature knows where to look"
            )
    return describe_density(
        name,
        log_density,
        t=t,
        law=f"log density {log_density}",
        parameters=parameters,
        support=support,
        mean=mean,
        variance=variance,
        entropy=entropy,
        mean_log=_integral(sp.log(BETA) * q, support, seconds) if logs else None,
        centre=centre,
        spread=spread,
        reach=(-45.0, 45.0) if reach is None else reach,
        sampler=_draw(log_density, support, t, parameters, seconds) if given["sampler"] is None else given["sampler"],
    )


def _integral(integrand: sp.Expr, support: tuple[sp.Expr, sp.Expr], seconds: float) -> sp.Expr | None:
    """The integral over the support in closed form and simplified, or None: not found, or not in time."""
    wide, back = _with_constants_named(sp.expand(integrand))

    def work() -> sp.Expr:
        found = sp.integrate(wide, (BETA, *support), conds="none")
        return sp.simplify(found.xreplace(back))

    found = _found(seconds, work)
    return None if found is None or found.has(sp.Piecewise, sp.oo) else stable(found)


def _draw(
    log_density: sp.Expr, support: tuple[sp.Expr, sp.Expr], t: int, parameters: tuple[sp.Symbol, ...], seconds: float
) -> sp.Expr | None:
    """The inverse distribution function in closed form, or None: not found, not in time, or not the law's own."""
    # e^(c - beta e^c) as two exponentials; but -(beta - c)^2 is to stay a square.
    named, back = _with_constants_named(sp.expand_power_exp(_plain_density(log_density)))

    def work() -> list[sp.Expr]:
        below = sp.integrate(named, BETA)
        if below.has(sp.Integral):
            return []
        found = sp.solve(below - sp.limit(below, BETA, support[0]) - U, BETA)
        return [_logarithms_apart(x).xreplace(back) for x in found]

    checks = [(_at(probe, t, parameters), u) for probe in _PROBES for u in _LEVELS]
    for draw in sorted(_found(seconds, work) or (), key=sp.count_ops):
        if draw.free_symbols <= {U, *encoder_parameters(t), *parameters} and not _strange(draw):
            with contextlib.suppress(InputError, TypeError, ValueError):  # not a number there: not the one
                if all(abs(_mass_below(log_density, support, draw, at, u) - float(u)) < 1e-8 for at, u in checks):
                    return draw
    return None


def _plain_density(log_density: sp.Expr) -> sp.Expr:
    """The density for sympy to integrate: exp and log meet again, and what varies with beta is elementary."""
    named = log_density.replace(LogSoftplus, lambda x: sp.log(Softplus(x)))
    return sp.exp(named.replace(lambda x: isinstance(x, Softplus | Sigmoid) and x.has(BETA), lambda x: x.elementary()))


def _logarithms_apart(draw: sp.Expr) -> sp.Expr:
    """log(e^c u / (1 - u)) -> c + log u - log(1 - u), which does not overflow with e^c."""
    rest = sp.Dummy("v", positive=True)
    apart = sp.expand_log(draw.xreplace({U - 1: -rest, 1 - U: rest}), force=True).xreplace({rest: 1 - U})
    return draw if apart.has(sp.I) else apart  # log(-log u) is to stay


def _with_constants_named(integrand: sp.Expr) -> tuple[sp.Expr, dict[sp.Expr, sp.Expr]]:
    """What does not vary with beta is one positive number to the integral, whatever function of c it is."""
    fixed = sorted(integrand.atoms(Softplus, Sigmoid, sp.exp), key=sp.default_sort_key)
    names = {part: sp.Dummy("k", positive=True) for part in fixed if not part.has(BETA)}
    return integrand.xreplace(names), {dummy: part for part, dummy in names.items()}


def _found(seconds: float, work: Callable[[], Result]) -> Result | None:
    """What sympy finds, or None: not found, or not in time."""
    try:
        found = within(seconds, work)
    except (NotImplementedError, ValueError, TypeError, AttributeError, RecursionError, ZeroDivisionError):
        return None  # sympy's ways of not finding one; quadrature does not need it
    return None if isinstance(found, sp.Basic) and _strange(found) else found


def _strange(found: sp.Expr) -> bool:
    """Whether an expression has what no kernel computes."""
    strange = (sp.Integral, sp.nan, sp.zoo, sp.I, sp.meijerg, sp.hyper, sp.polar_lift, sp.LambertW)
    return bool(found.has(*strange) or found.atoms(sp.core.function.AppliedUndef))


def _mass_below(
    log_density: sp.Expr, support: tuple[object, object], draw: sp.Expr, at: dict[sp.Symbol, sp.Expr], u: sp.Expr
) -> float:
    """The mass of a law below what a sampler makes of u, by mpmath. Raises ValueError where that is not on the support."""
    low, high = (mpmath.mpf(str(end).replace("oo", "inf")) for end in support)
    end = elementary(draw).subs(at).subs(U, u).evalf(20)
    if not end.is_comparable or not low <= mpmath.mpf(str(end)) <= high:
        raise ValueError(f"{draw} is not on the support at u = {u}")
    point, q = mpmath.mpf(str(end)), _density(log_density, at)
    steps = [point - mpmath.mpf(10) ** k for k in (3, 2, 1, 0, -1)]
    cuts = [low, *(step for step in steps if step > low), point]
    return float(sum(mpmath.re(mpmath.quad(q, pair)) for pair in pairwise(cuts)))


def _density(log_density: sp.Expr, at: dict[sp.Symbol, sp.Expr]) -> Callable[[mpmath.mpf], mpmath.mpc]:
    """A density at one value of c, for mpmath."""
    log_q = sp.lambdify(BETA, elementary(log_density).subs(at), "mpmath")

    def q(x: mpmath.mpf) -> mpmath.mpc:
        exponent = log_q(x)
        # What is below 1e-4000 is 0: exp of -1e400 would cost more than all the rest.
        return mpmath.mpf(0) if mpmath.re(exponent) < -1e4 else mpmath.exp(exponent)

    return q


# ---------------------------------------------------------------------------------------------------------- words


def _check_words(name: str, t: int) -> None:
    """Refuse what is wrong with the words of a new family, before anything is integrated."""
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii() or name in family_names():
        raise InputError(f"family name {name!r} is taken or not an identifier; choose another")
    if not isinstance(t, int) or isinstance(t, bool) or t < 1:
        raise InputError(f"family {name!r}: t = {t}; it must be a whole number of at least 1")


def _parameters(name: str, parameters: Sequence[sp.Symbol | str]) -> tuple[sp.Symbol, ...]:
    """Positive symbols; a name, or a symbol without assumptions, stands for one."""
    found = []
    taken = {"beta", "z", "u", "c", "j", "q", "r", "base", "prior", "label"}
    for given in parameters:
        text = given if isinstance(given, str) else given.name if isinstance(given, sp.Symbol) else ""
        if (
            not text.isidentifier()
            or not text.isascii()
            or text in taken
            or re.fullmatch(r"prior_.*|base_.*|log_p.*|c\d+", text)
        ):
            raise InputError(f"family {name!r}: parameter {given!r} is not a free name; choose another")
        if isinstance(given, sp.Symbol) and given.is_positive is False:
            raise InputError(f"family {name!r}: parameter {text!r} must be a positive symbol")
        found.append(sp.Symbol(text, positive=True))
        taken.add(text)
    return tuple(found)


def _own_symbols(
    name: str,
    expression: object,
    what: str,
    t: int,
    parameters: tuple[sp.Symbol, ...],
    variable: sp.Symbol | None = BETA,
) -> sp.Expr:
    """The expression in this project's symbols: users' symbols are known by name, whatever they assume of them."""
    if isinstance(expression, str):
        raise InputError(f"family {name!r}: `{what}` is text; give a sympy expression, text is never evaluated")
    if isinstance(expression, int | float):
        expression = sp.nsimplify(expression, rational=True)
    if not isinstance(expression, sp.Expr):
        raise InputError(f"family {name!r}: `{what}` is {expression!r}; it must be a sympy expression")
    known = {symbol.name: symbol for symbol in (*encoder_parameters(t), *parameters)}
    known |= {"c": encoder_parameters(1)[0]} if t == 1 else {}
    known |= {} if variable is None else {variable.name: variable}
    unknown = sorted({symbol.name for symbol in expression.free_symbols} - set(known))
    if unknown:
        raise InputError(
            f"family {name!r}: unknown symbol(s) {', '.join(unknown)} in `{what}`; use "
            f"{'' if variable is None else f'{variable.name}, '}"
            f"{_names(t)} and the names in `parameters`"
        )
    undefined = sorted({type(f).__name__ for f in expression.atoms(sp.core.function.AppliedUndef)})
    if undefined:
        raise InputError(f"family {name!r}: `{what}` has the undefined function(s) {', '.join(undefined)}")
    return stable(expression.xreplace({symbol: known[symbol.name] for symbol in expression.free_symbols}))


def _names(t: int) -> str:
    return "c" if t == 1 else ", ".join(symbol.name for symbol in encoder_parameters(t))


def _interval(name: str, support: str | tuple[object, object]) -> tuple[sp.Expr, sp.Expr]:
    if isinstance(support, str) and support in _SUPPORTS:
        return _SUPPORTS[support]
    if isinstance(support, tuple) and len(support) == 2:
        low, high = (sp.nsimplify(end, rational=True) if isinstance(end, int | float) else end for end in support)
        if (low, high) in (REAL_LINE, HALF_LINE):
            return low, high
        if isinstance(low, sp.Rational) and isinstance(high, sp.Rational) and low < high:
            return low, high
    raise InputError(
        f'family {name!r}: support {support!r}; it must be "real", "half-line" or an interval (low, high) of numbers, '
        "or give `points` for a mass function"
    )


# --------------------------------------------------------------------------------------------------------- numbers


def check_family(family: Family) -> None:
    """Look at a family at a few values of c: it must be a law (non-negative, of mass 1), and its moments its own.

    Raises InputError that says what is wrong, and where. A tilted law, whose base is a number of the problem, passes.
    """
    if family.tilted:
        return
    for probe in _PROBES:
        at = _at(probe, family.t, family.parameters)
        (_check_masses if family.points else _check_density)(family, at, probe)


def _at(probe: sp.Expr, t: int, parameters: tuple[sp.Symbol, ...]) -> dict[sp.Symbol, sp.Expr]:
    """Values of the encoder parameters and of the family's own, at which to look at it."""
    at = {symbol: probe / (1 + i) for i, symbol in enumerate(encoder_parameters(t))}
    return at | {symbol: sp.Rational(4, 5) + sp.Rational(i, 3) for i, symbol in enumerate(parameters)}


def _check_sign(
    name: str,
    log_density: sp.Expr,
    support: tuple[sp.Expr, sp.Expr],
    t: int,
    parameters: tuple[sp.Symbol, ...],
) -> None:
    """Refuse what is negative somewhere before sympy spends its time on it."""
    low, high = (float(end) for end in support)
    fractions = [(2 * k + 1) / 42 for k in range(21)]
    wide = [math.tan(math.pi * (x - 0.5)) for x in fractions]
    if math.isfinite(low) and math.isfinite(high):
        points = [low + (high - low) * x for x in fractions]
    else:
        points = [low + math.exp(x / 3) for x in wide] if math.isfinite(low) else wide
    for probe in _PROBES:
        density = _density(log_density, _at(probe, t, parameters))
        for point in points:
            value = density(mpmath.mpf(point))
            if abs(mpmath.im(value)) > 1e-12 * abs(value) or mpmath.re(value) < 0:
                raise InputError(f"family {name!r}: its density at beta = {point:g}, c = {probe} is negative")


def _check_masses(family: Family, at: dict[sp.Symbol, sp.Expr], probe: sp.Expr) -> None:
    masses = [sp.exp(elementary(log_q).subs(at)).evalf() for log_q in family.log_masses]
    for point, mass in zip(family.points, masses, strict=True):
        if not mass.is_real or mass < 0:
            raise InputError(f"family {family.name!r}: the mass of beta = {point} at c = {probe} is {mass}, not >= 0")
    _compare(family, "its masses do not sum to 1", probe, sum(masses), 1)
    mean = sum(m * p for m, p in zip(masses, family.points, strict=True))
    variance = sum(m * (p - mean) ** 2 for m, p in zip(masses, family.points, strict=True))
    _compare(family, "its variance is wrong", probe, variance, _number(family.variance, at))
    entropy = -sum(m * sp.log(m).evalf() for m in masses if m > 0)
    _compare(family, "its entropy is wrong", probe, entropy, _number(family.entropy, at))


def _check_density(family: Family, at: dict[sp.Symbol, sp.Expr], probe: sp.Expr) -> None:
    """Integrate the density, and what the moments and the entropy are integrals of, by mpmath."""
    log_q = sp.lambdify(BETA, elementary(family.log_density).subs(at), "mpmath")
    low, high = (mpmath.mpf(str(end).replace("oo", "inf")) for end in family.support)
    # A density that is not a law may have no spread; that it is not a law is then the better thing to say.
    centre, spread = _number(family.centre, at), _number(family.spread, at)
    located = math.isfinite(centre) and spread > 0
    centre, spread = (centre, spread) if located else (0.0, 1.0)
    steps = (-1e3, -45, -9, -3, -1, -0.1, 0, 0.1, 1, 3, 9, 45, 1e3)
    cuts = [low, *(x for x in (mpmath.mpf(centre + spread * k) for k in steps) if low < x < high), high]

    density = _density(family.log_density, at)

    def q(x: mpmath.mpf) -> mpmath.mpf:
        value = density(x)
        if mpmath.im(value) != 0 or value < 0:
            raise InputError(f"family {family.name!r}: its density at beta = {float(x):g}, c = {probe} is negative")
        return mpmath.re(value)

    def total(g: Callable[[mpmath.mpf], mpmath.mpf]) -> float:
        return float(sum(mpmath.quad(lambda x: g(x) * q(x), pair) for pair in pairwise(cuts)))

    _compare(family, "its density does not integrate to 1", probe, total(lambda x: mpmath.mpf(1)), 1)
    mean = total(lambda x: x)
    if family.mean is not None:
        _compare(family, "its moment of order 1 is wrong", probe, mean, _number(family.mean, at))
    if family.variance is not None:
        variance = total(lambda x: (x - mean) ** 2)
        _compare(family, "its moment of order 2 is wrong", probe, variance, _number(family.variance, at))
    if family.entropy is not None:
        entropy = total(lambda x: -log_q(x) if mpmath.isfinite(log_q(x)) else mpmath.mpf(0))
        _compare(family, "its entropy is wrong", probe, entropy, _number(family.entropy, at))
    for draw in family.samplers.values():
        for u in _LEVELS:
            try:
                found = _mass_below(family.log_density, (low, high), draw, at, u)
            except ValueError as error:
                raise InputError(f"family {family.name!r}: its sampler {error}, c = {probe}") from None
            _compare(
                family, f"its sampler is wrong: the mass below the draw of u = {float(u):g}", probe, found, float(u)
            )
    if not located:
        raise InputError(f"family {family.name!r}: its spread at c = {probe} is not a number > 0; pass `spread`")
    ends = (max(low, mpmath.mpf(centre + spread * family.reach[0])), min(high, centre + spread * family.reach[1]))
    inner = [x for x in cuts if ends[0] < x < ends[1]]
    inside = float(sum(mpmath.quad(q, pair) for pair in pairwise([ends[0], *inner, ends[1]])))
    if 1 - inside > 1e-9:
        raise InputError(
            f"family {family.name!r}: at c = {probe} a part of {1 - inside:.1e} of it lies outside of `reach` = "
            f"{family.reach}, in units of its spread; pass a wider reach"
        )


def _number(expression: sp.Expr | None, at: dict[sp.Symbol, sp.Expr]) -> float:
    """A real number, or nan."""
    value = elementary(sp.Integer(0) if expression is None else expression).subs(at).evalf()
    return float(value) if value.is_real else math.nan


def _compare(family: Family, trouble: str, probe: sp.Expr, found: float, wanted: float) -> None:
    if not abs(found - wanted) <= 1e-6 * max(1, abs(wanted)):
        raise InputError(
            f"family {family.name!r}: {trouble} at c = {probe}: {float(found):.8g}, not {float(wanted):.8g}"
        )
