"""Which sparsity penalties are priors (after Lemma 2.4): S gives the prior exp(-rate S(e)) / Z(rate) on e > 0 exactly
where Z(rate) = int_0^oo exp(-rate S(e)) de is finite. That is decided here from the growth of S, and Z found in closed
form where sympy can within a time bound. The numbers of an SAE are `elbotree.runtime.sae`'s business."""

from __future__ import annotations

from dataclasses import dataclass

import mpmath  # type: ignore[import-untyped]
import sympy as sp

from elbotree.derivation.activations import Psi, analyse
from elbotree.derivation.deadline import within
from elbotree.derivation.grammar import B
from elbotree.derivation.special import elementary
from elbotree.runtime.errors import InputError, UnsupportedError

E = sp.Symbol("e", positive=True)
RATE = sp.Symbol("mu", positive=True)
SECONDS = 3.0
"""How long sympy may look for Z in closed form."""


@dataclass(frozen=True)
class PenaltyPrior:
    """The prior of one feature that a penalty S stands for.

    penalty     S as an expression in e > 0
    normaliser  Z(mu) in closed form, or None where quadrature takes it
    lowest, highest   exp(-mu S) is integrable exactly for lowest < mu < highest
    """

    text: str
    penalty: sp.Expr
    normaliser: sp.Expr | None
    lowest: sp.Expr
    highest: sp.Expr

    @property
    def log_density(self) -> sp.Expr:
        """log P(e) = -mu S(e) - log Z(mu)."""
        z = sp.Function("Z")(RATE) if self.normaliser is None else self.normaliser
        return -RATE * self.penalty - sp.log(z)

    def log_normaliser(self, rate: float) -> float:
        """log Z at a rate. Raises InputError where the integral diverges there, saying which rates have a prior."""
        if not self.lowest < rate < self.highest:
            raise InputError(
                f"the penalty {self.text!r} has no prior at the rate sparsity * weight / (2 noise_std^2) = {rate:g}: "
                f"exp(-rate S) is integrable for rates between {self.lowest} and {self.highest} only"
            )
        if self.normaliser is not None:
            return float(sp.log(self.normaliser).subs(RATE, sp.Float(rate, 30)).evalf(20))
        return float(mpmath.log(_integral(self.penalty, rate)))


def _integral(penalty: sp.Expr, rate: float) -> mpmath.mpf:
    """int exp(-rate S(e)) de by quadrature in log e, where power laws at either end decay exponentially."""
    value = sp.lambdify(E, penalty, "mpmath")

    def integrand(s: mpmath.mpf) -> mpmath.mpf:
        exponent = s - rate * value(mpmath.exp(s))
        # What is below 1e-4000 is 0: exp of -1e100 would cost more than all the rest.
        return mpmath.exp(exponent) if exponent > -1e4 else mpmath.mpf(0)

    return mpmath.quad(integrand, [-400, -100, *range(-40, 41, 2), 100, 400])


def prior_from_penalty(penalty: str) -> PenaltyPrior:
    """The prior that a separable penalty S, an expression in b >= 0, stands for.

    Raises InputError with the reason where exp(-mu S) is not integrable for any rate mu, and what the grammar raises.

    >>> print(prior_from_penalty("b").normaliser, prior_from_penalty("sqrt(b)").normaliser)
    1/mu 2/mu**2
    >>> prior_from_penalty("log(1 + b)").lowest
    1
    """
    psi = analyse(penalty)
    low, high = _behaviour(psi, penalty)
    tail = _order(high, sp.oo, penalty)
    if tail <= 0:
        raise InputError(
            f"the penalty {penalty!r} is no prior: S(e) grows no faster than a constant as e -> oo, so exp(-mu S) has "
            "an infinite integral at every rate mu; only penalties that outgrow log(e)/mu have one"
        )
    head = _order(low, sp.Integer(0), penalty)
    lowest = sp.Integer(0) if tail == sp.oo else 1 / tail
    highest = sp.oo if head >= 0 else (sp.Integer(0) if head == -sp.oo else -1 / head)
    if lowest >= highest:
        raise InputError(
            f"the penalty {penalty!r} is no prior: it needs a rate above {lowest} for its tail and below {highest} for "
            "its singularity at 0"
        )
    expression = elementary(psi.expression).subs(B, E)
    return PenaltyPrior(penalty, expression, _normaliser(expression, lowest, highest), lowest, highest)


def _behaviour(psi: Psi, text: str) -> tuple[sp.Expr, sp.Expr]:
    """S near 0 and near oo, each a smooth expression in e; refuses poles inside and penalties not defined on e > 0."""
    if psi.domain[0] > 0 or psi.domain[1] != sp.oo:
        raise InputError(f"the penalty {text!r} is not real on all of e > 0: only on {psi.domain}")
    inside = [pole for pole in psi.poles if pole > 0]
    if inside:
        raise InputError(f"the penalty {text!r} has a pole at e = {inside[0]}; a penalty is finite for e > 0")
    first = next(branch for branch in psi.branches if branch.low <= 0 < branch.high)
    near, far = (elementary(part.expression).subs(B, E) for part in (first, psi.branches[-1]))
    return near, far


def _order(expression: sp.Expr, end: sp.Expr, text: str) -> sp.Expr:
    """lim S(e) / log(e) as e -> oo, or lim S(e) / -log(e) as e -> 0: exp(-mu S) ~ e^(-mu that) there."""
    sign = 1 if end == sp.oo else -1
    if end == 0 and expression.subs(E, 0).is_finite:
        return sp.Integer(0)
    try:
        found = within(
            10 * SECONDS, lambda: sp.limit(expression / (sign * sp.log(E)), E, end, "-" if end == sp.oo else "+")
        )
    except (NotImplementedError, ValueError, TypeError, RecursionError):
        found = None
    if found is None or not (found.is_comparable or found in (sp.oo, -sp.oo)):
        raise UnsupportedError(f"the growth of the penalty {text!r} as e -> {end} could not be found; simplify it")
    return found


def _normaliser(expression: sp.Expr, lowest: sp.Expr, highest: sp.Expr) -> sp.Expr | None:
    """Z(mu) in closed form, checked against quadrature at one rate; None where sympy finds none that agrees."""

    def work() -> sp.Expr:
        return sp.simplify(sp.integrate(sp.powsimp(sp.exp(-RATE * expression)), (E, 0, sp.oo), conds="none"))

    try:
        found = within(SECONDS, work)
    except (NotImplementedError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    if found is None or found.has(sp.Integral, sp.nan, sp.zoo, sp.oo, sp.Piecewise, sp.I):
        return None
    rate = lowest + 1 if highest == sp.oo else (lowest + highest) / 2
    exact = _integral(expression, float(rate))
    agrees = abs(complex(found.subs(RATE, rate).evalf()) - complex(exact)) <= 1e-8 * abs(exact)
    return found if agrees else None
