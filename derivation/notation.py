"""The language of the derivation: symbols, random quantities and operators as sympy expressions, and the one traversal
over them. Vectors add and scale through sympy's own `Add` and `Mul`; `rank` tells a scalar from a vector and refuses
nonsense such as a vector plus a scalar. No rewriting happens here (see `rules`), and no printing (see `render`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import sympy

Expr: TypeAlias = sympy.Expr


class Vector(sympy.Symbol):  # type: ignore[misc]
    """A named vector of R^n2: f, y, w, mu2."""

    __slots__ = ()


class NodeValue(sympy.Symbol):  # type: ignore[misc]
    """The value of a node of the tree, by name, where an expression refers to it instead of repeating it."""

    __slots__ = ()


class Operator(sympy.Function):  # type: ignore[misc]
    """Base of the project's own functions: inert, told apart by class and arguments only."""


class Column(Operator):
    """Column(j) = b_j, column j of B2 (the paper's u_j; errata 9)."""

    nargs = 1


class Basis(Operator):
    """Basis(i) = e_i, the i-th unit vector of R^n2."""

    nargs = 1


class Image(Operator):
    """Image(z2) = B2 z2 in R^n2."""

    nargs = 1


class Latent(Operator):
    """Latent(j) = beta_j, coordinate j of z2."""

    nargs = 1


class Inner(Operator):
    """Inner(v, x) = <v, x>; symmetric, so stored in the order that keeps a random argument first."""

    nargs = 2


class NormSquared(Operator):
    """NormSquared(v) = |v|^2."""

    nargs = 1


class Component(Operator):
    """Component(v, i) = coordinate i of the vector v."""

    nargs = 2


class Gram(Operator):
    """Gram(j, k) = H_jk = <b_j, b_k>; symmetric, so its indices are kept sorted."""

    nargs = 2

    @classmethod
    def eval(cls, j: Expr, k: Expr) -> Expr | None:
        return cls(k, j) if j.sort_key() > k.sort_key() else None


class Psi(Operator):
    """Psi(b) = psi(b), the nonlinearity."""

    nargs = 1


class FeatureTerm(Operator):
    """A function of the encoder parameters c_j = C_j f + bias_j of feature j; its one argument is j."""

    nargs = 1


class Mean(FeatureTerm):
    """Mean(j) = s_j(c_j), the mean of Q'_j( . ; c_j)."""


class Spread(FeatureTerm):
    """Spread(j) = V_j(c_j), the variance of Q'_j( . ; c_j)."""


class Divergence(FeatureTerm):
    """Divergence(j) = K_j(c_j) = KL(Q'_j( . ; c_j) || P_{2,j})."""


class Slope(Operator):
    """Slope(g, q): the partial derivative of a `FeatureTerm` g in q, which is `r` (coordinate r of c_j), `omega` (a
    parameter of the posterior family) or `pi` (a parameter of the prior)."""

    nargs = 2


class PosteriorFactor(Operator):
    """PosteriorFactor(j) = Q'_j( . ; c_j)."""

    nargs = 1


class PriorFactor(Operator):
    """PriorFactor(j) = P_{2,j}."""

    nargs = 1


class ProductLaw(Operator):
    """ProductLaw(P, j): independent coordinates, coordinate j with law P."""

    nargs = 2


class KL(Operator):
    """KL(Q, P) = E_Q[log(Q / P)]."""

    nargs = 2


class NormalDensity(Operator):
    """NormalDensity(x, m, sigma): density at x in R^n2 of N(m, sigma^2 I). sigma is a standard deviation (errata 2)."""

    nargs = 3


class Expectation(Operator):
    """Expectation(g, X1) = E over x1 ~ P1; Expectation(g, Z2) = E over z2 ~ Q2( . | f(x1))."""

    nargs = 2


def _index(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


i, j, k, l, r = (_index(name) for name in "ijklr")
m1, m2, n2, t, modes = (_index(name) for name in ("m1", "m2", "n2", "t", "N"))
sigma2 = sympy.Symbol("sigma2", positive=True)
omega, pi_prior = sympy.Symbol("omega"), sympy.Symbol("pi_")
b = sympy.Symbol("b", real=True)
f, y, w, mu2, z2 = (Vector(name) for name in ("f", "y", "w", "mu2", "z2"))
X1, Z2 = sympy.Symbol("x1"), sympy.Symbol("z2|x2")

RANDOM_GIVEN_X1 = (Latent, Image)
"""Heads that are random once x1 is known: they carry z2."""

_VECTORS = (Vector, Column, Basis, Image)


def rank(expr: Expr) -> int:
    """0 for a scalar, 1 for a vector of R^n2. Raises TypeError on an expression that mixes the two."""
    if isinstance(expr, _VECTORS):
        return 1
    if isinstance(expr, (sympy.Sum, Expectation)):
        return rank(expr.args[0])
    if isinstance(expr, sympy.Add):
        ranks = {rank(term) for term in expr.args}
        if len(ranks) > 1:
            raise TypeError(f"{expr} adds a vector to a scalar")
        return ranks.pop()
    if isinstance(expr, sympy.Mul):
        vectors = sum(rank(factor) for factor in expr.args)
        if vectors > 1:
            raise TypeError(f"{expr} multiplies two vectors; use Inner")
        return vectors
    if isinstance(expr, (Inner, NormSquared, Component)):
        vectors_of = expr.args[:1] if isinstance(expr, Component) else expr.args
        for argument in vectors_of:
            if rank(argument) != 1:
                raise TypeError(f"{type(expr).__name__} wants vectors; {argument} is a scalar")
    return 0


def is_random(expr: Expr, law: Expr) -> bool:
    """Whether `expr` varies under `law`. Under Z2 only z2 and its coordinates do; under X1 also everything made of
    f, y, b. A variable that an inner expectation has averaged out no longer counts."""
    if isinstance(expr, Expectation):
        inner_law = expr.args[1]
        return inner_law != law and inner_law != X1 and (law == X1 or is_random(expr.args[0], law))
    if isinstance(expr, RANDOM_GIVEN_X1) or expr == z2:
        return True
    if law == X1 and (isinstance(expr, (FeatureTerm, PosteriorFactor, Psi)) or expr in (f, y, b)):
        return True
    return any(is_random(argument, law) for argument in expr.args)


def rebuild(expr: Expr, visit: Callable[[Expr], Expr]) -> Expr:
    """Rebuild `expr` bottom-up, passing every subexpression (its parts already rebuilt) through `visit`.

    The project's one traversal: pure, memoised by subexpression, children in the order of `args`.
    """
    memo: dict[Expr, Expr] = {}

    def walk(node: Expr) -> Expr:
        if node not in memo:
            parts = tuple(walk(part) for part in node.args)
            memo[node] = visit(node if parts == node.args else node.func(*parts))
        return memo[node]

    return walk(expr)


def subexpressions(expr: Expr) -> Iterator[Expr]:
    """Every subexpression, the outermost first, in the order of `args`."""
    yield expr
    for part in expr.args:
        yield from subexpressions(part)


def contains(expr: Expr, *heads: type) -> bool:
    """Whether some subexpression has one of the given heads."""
    return any(isinstance(part, heads) for part in subexpressions(expr))


def sum_over(body: Expr, *indices: Expr) -> Expr:
    """The sum of `body` over each of `indices` from 1 to m2."""
    return sympy.Sum(body, *((index, 1, m2) for index in indices))
