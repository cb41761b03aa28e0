"""The open door: posterior families and nonlinearities of a user's own. Each is told to the three parts that must know:
the algebra (which checks it and derives the rest), the printer (which must be able to write it), and the models' rules
(which say what a posterior needs, and which prior would make its divergence infinite)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from elbotree.runtime.errors import InputError

if TYPE_CHECKING:
    from elbotree.derivation.activations import Psi
    from elbotree.derivation.families import Family
    from elbotree.runtime.models import Posterior
    from elbotree.runtime.priors import Prior


def register_psi(name: str, expression: Any) -> Psi:
    """Give an expression in b a name that `Layer(psi=name)` and `generate(psi=name)` then take.

    The expression is text, read by a whitelist grammar and never evaluated, or sympy in a symbol b.
    Returns what was found about it (branches, kinks, jumps, poles, growth). Raises InputError for a name that is taken or
    no identifier, and for what the grammar has no words for; UnsupportedError where its kinks cannot be found.

    >>> import elbotree as et
    >>> print(et.register_psi("ramp", "min(max(b, 0), 1)"))
    ramp: Min(1, Max(0, b)); kinks [0, 1], jumps [], poles []
    >>> import sympy
    >>> b = sympy.Symbol("b")
    >>> et.register_psi("soft_sign", b / (1 + sympy.Abs(b))).kinks
    (0,)
    """
    from elbotree.derivation import activations

    return activations.register_psi(name, expression)


def register_family(name: str, density: Any = None, *, t: int, **known: Any) -> Family:
    """Add a posterior family Q'(beta | c), given as a density or a mass function in sympy over beta and c (or c0, c1, ...).

    Arguments
        name     how posteriors call it
        density  q(beta | c), sympy in beta and c (t = 1) or c0, ..., c(t-1); left out where `log_density` is given
        t        the number of encoder parameters
        known    what else is known, of which only an infinite support without moments needs any: log_density, parameters
                 (positive symbols), support ("real", "half-line", (low, high)) or points, mean, variance, entropy, sampler,
                 centre, spread, reach, seconds (`help(elbotree.derivation.registration.register_family)` tells each)

    Returns the `Family`: its mean s(c), variance V(c), entropy and derivatives, as far as algebra finds them. Afterwards
    `Posterior(name, C, parameters={...})` and `generate(family=name)` take the name; a `Problem` whose prior does not
    cover the family's support is refused, because the divergence of R1 would be infinite.
    Raises InputError for a taken name, unknown symbols, a law that is negative or does not sum to 1, moments that are wrong,
    and formulas that numpy and scipy have no functions for. The paper: assumption 4.

    >>> import elbotree as et, sympy
    >>> beta, c = sympy.symbols("beta c")
    >>> family = et.register_family("waiting", sympy.exp(c - beta * sympy.exp(c)), t=1, support="half-line")
    >>> family.mean, family.variance
    (exp(-c0), exp(-2*c0))
    """
    from elbotree.codegen.functions import family_section
    from elbotree.derivation import families, registration
    from elbotree.runtime.models import register_family_rule

    family = registration.register_family(name, density, t=t, **known)
    try:
        family_section(name)
    except Exception as error:
        families.remove_family(name)
        raise InputError(
            f"family {name!r}: its formulas cannot be printed as numpy ({error}); write it in functions that numpy or "
            "scipy have"
        ) from error
    names = tuple(symbol.name for symbol in family.parameters)
    check = _covers_points(family) if family.points else _covers_interval(family)
    register_family_rule(name, t, check, parameters=names)
    return family


def _covers_points(family: Family) -> Any:
    points = [float(point) for point in family.points]

    def check(q: Posterior, prior: Prior) -> str | None:
        own, _ = prior.atoms
        missing = [x for x in points if x not in own]
        return f"it puts mass on {missing[0]:g}, and the prior has none there" if missing else None

    return check


def _covers_interval(family: Family) -> Any:
    low, high = (float(end) for end in family.support)
    shown = f"({low:g}, {high:g})" if math.isfinite(low) or math.isfinite(high) else "the whole line"

    def check(q: Posterior, prior: Prior) -> str | None:
        covered = any(a <= low and high <= b for a, b in prior.continuous_support)
        return None if covered else f"its density covers {shown}, the prior's does not"

    return check
