"""Lower a node's sympy expression to a plan: which expectation of the engine's protocol each of its terms is.

A term is (weight) * sum over indices of E[integrand]. The integrand's factors decide the call, by what they are and
never by which node they came from:

    |y - centre|^2                                  norm_y
    g(b)                  <y - centre, a> g(b)      of_b
    g(c_j)                <f - centre, a> g(c_j)    of_c      (of_c_each where j is free)
    g(c_j) h(c_k)                                   of_cc     (moments_ss where j and k are free)
    (f - centre)_i g(c_j)                           moments_fs, of_c_F
    <f - centre, a> g(c_j) f_i                      of_c_F
    g(c_j) h(c_k) f_i                               of_cc_F
    f_i                                             mean_f

Nothing is printed here (see `emit`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation.layout import term_order

if TYPE_CHECKING:
    from elbotree.derivation.notation import Expr


class LoweringError(RuntimeError):
    """An expression has a term for which the engine's protocol has no call. It stops the build."""


@dataclass(frozen=True)
class Call:
    """One term: weight * sum over `bound` of E[factors].

    weight     scalar expression in the indices and the model's numbers
    bound      indices summed over, j before k
    features   the functions of encoder parameters, one an index: g(c_j), h(c_k)
    of_b       the function of b alone, or None
    norm       the vector under |.|^2, as (base, centre), or None
    along      (base, centre, direction) of <base - centre, direction>, or None
    component  (centre, i) of (f - centre)_i, or None
    """

    weight: Expr
    bound: tuple[Expr, ...]
    features: tuple[Expr, ...] = ()
    of_b: Expr | None = None
    norm: tuple[Expr, Expr] | None = None
    along: tuple[Expr, Expr, Expr] | None = None
    component: tuple[Expr, Expr] | None = None

    @property
    def indices(self) -> tuple[Expr, ...]:
        """The feature index of each of `features`."""
        return tuple(feature_index(g) for g in self.features)


@dataclass(frozen=True)
class Plan:
    """A node's expression as a constant and calls: constant + sum of calls."""

    name: str
    constant: Expr
    calls: tuple[Call, ...]

    def __str__(self) -> str:
        lines = [f"{self.name} = {self.constant}"] if self.constant != 0 or not self.calls else [f"{self.name} ="]
        return "\n".join([*lines, *(f"  + {call}" for call in self.calls)])


def feature_index(g: Expr) -> Expr:
    """The index j of a function of c_j: of s_j, V_j, K_j or a slope of one."""
    return feature_index(g.args[0]) if isinstance(g, nt.Slope) else g.args[0]


def lower(name: str, expression: Expr) -> Plan:
    """Lower one expression.

    Returns a `Plan`. Raises LoweringError that names the term for which there is no call.
    """
    constant: Expr = sympy.Integer(0)
    calls = []
    for term in sorted(sympy.Add.make_args(sympy.expand_mul(expression, deep=False)), key=term_order):
        if nt.contains(term, nt.Expectation):
            calls.append(_lower_term(name, term))
        else:
            constant += term
    return Plan(name, constant, tuple(calls))


def _lower_term(name: str, term: Expr) -> Call:
    weight, bound, body = sympy.Integer(1), (), term
    integrand: Expr | None = None
    while integrand is None:
        factors = sympy.Mul.make_args(body)
        carriers = [x for x in factors if nt.contains(x, nt.Expectation)]
        weight *= sympy.Mul(*(x for x in factors if x not in carriers))
        if len(carriers) != 1:
            raise LoweringError(f"{name}: a product of expectations has no call: {term}")
        if isinstance(carriers[0], sympy.Sum):
            bound += tuple(carriers[0].variables)
            body = carriers[0].function
        elif isinstance(carriers[0], nt.Expectation) and carriers[0].args[1] == nt.X1:
            integrand = carriers[0].args[0]
        else:
            raise LoweringError(f"{name}: expected a sum or an expectation over x1; got {carriers[0]}")
    return _classify(name, weight, bound, integrand)


def _classify(name: str, weight: Expr, bound: tuple[Expr, ...], integrand: Expr) -> Call:
    features: list[Expr] = []
    of_b: Expr = sympy.Integer(1)
    norm = along = component = None
    for factor in sympy.Mul.make_args(integrand):
        if isinstance(factor, (nt.FeatureTerm, nt.Slope)):
            features.append(factor)
        elif factor.is_number or (
            nt.is_random(factor, nt.X1) and not nt.contains(factor, nt.FeatureTerm, nt.Vector, nt.Slope)
        ):
            of_b *= factor
        elif isinstance(factor, nt.NormSquared) and norm is None:
            norm = _centred(name, factor.args[0])
        elif isinstance(factor, nt.Inner) and along is None:
            along = _along(name, factor)
        elif isinstance(factor, nt.Component) and component is None:
            base, centre = _centred(name, factor.args[0])
            if base != nt.f:
                raise LoweringError(f"{name}: only components of f have a call; got {factor}")
            component = (centre, factor.args[1])
        else:
            raise LoweringError(f"{name}: no call takes the factor {factor} of {integrand}")
    # A free index stands before a bound one, and a slope before what it is paired with: g is the row, h what is summed.
    features.sort(key=lambda g: (feature_index(g) in bound, str(feature_index(g))))
    # <y - centre, a> alone is a function of b times it, the function 1; so is a number alone.
    alone = not features and norm is None and component is None
    call = Call(weight, bound, tuple(features), of_b if of_b != 1 or alone else None, norm, along, component)
    _check(name, call, integrand)
    return call


def _centred(name: str, vector: Expr) -> tuple[Expr, Expr]:
    """(base, centre) with vector = base - centre, base being f or y."""
    for base in (nt.f, nt.y):
        centre = base - vector
        if not nt.is_random(centre, nt.X1) and base not in centre.free_symbols:
            return base, centre
    raise LoweringError(f"{name}: expected f or y minus a fixed centre; got {vector}")


def _along(name: str, product: Expr) -> tuple[Expr, Expr, Expr]:
    for vector, direction in (product.args, product.args[::-1]):
        if not nt.is_random(direction, nt.X1):
            return (*_centred(name, vector), direction)
    raise LoweringError(f"{name}: expected an inner product with a fixed direction; got {product}")


def _check(name: str, call: Call, integrand: Expr) -> None:
    """Refuse the combinations that the protocol has no call for."""
    kinds = (call.norm is not None, call.of_b is not None, bool(call.features))
    trouble = ""
    if sum(kinds) > 1:
        trouble = "mixes |y|^2, functions of b and functions of c"
    elif sum(kinds) == 0 and (call.component is None or call.along is not None):
        trouble = "has neither"
    elif len(call.features) > 2:
        trouble = "couples more than two features"
    elif len(call.features) == 2 and (call.along is not None or len(set(call.indices)) == 1):
        trouble = "couples two features and an inner product, or one feature with itself"
    elif call.along is not None and call.along[0] != (nt.y if call.of_b is not None else nt.f):
        trouble = "pairs <y, a> with c, or <f, a> with b"
    elif call.norm is not None and call.norm[0] != nt.y:
        trouble = "is |f|^2, which must be opened into y and psi(b) first"
    elif call.of_b is not None and call.component is not None:
        trouble = "couples a component of f with b"
    if trouble:
        raise LoweringError(f"{name}: no call takes {integrand}: it {trouble}")
