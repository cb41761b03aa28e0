"""The gradient of the loss and the closed-form minimisers, derived from the tree.

`differentiate` applies the product and chain rules to a node's expression; the rules of `rules` then collapse Kronecker
deltas and unit vectors. The law of x1 is fixed, so derivatives pass under E. The minimisers set derived gradients to
zero and solve. The indices j (feature), i (coordinate of R^n2), r (coordinate of c_j) are free in a gradient node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation import rules
from elbotree.derivation.notation import Expr

if TYPE_CHECKING:
    from elbotree.derivation.tree import LossTree


@dataclass(frozen=True)
class Parameter:
    """Something to differentiate by: `atom` gives the derivative of a part that depends on it directly, else None.

    The entry differentiated by has the indices i, l, r (those that it has); l becomes j once the sums are collapsed.
    """

    name: str
    meaning: str
    indices: tuple[Expr, ...]
    atom: Callable[[Expr], Expr | None]


def by_column(part: Expr) -> Expr | None:
    """d b_j / d B_il = delta_jl e_i"""
    return sympy.KroneckerDelta(part.args[0], nt.l) * nt.Basis(nt.i) if isinstance(part, nt.Column) else None


def by_offset(part: Expr) -> Expr | None:
    """d mu2 / d mu2_i = e_i"""
    return nt.Basis(nt.i) if part == nt.mu2 else None


def by_noise(part: Expr) -> Expr | None:
    """d sigma2 / d sigma2 = 1"""
    return sympy.Integer(1) if part == nt.sigma2 else None


def by_encoder_matrix(part: Expr) -> Expr | None:
    """d g(c_j) / d C_l,ri = delta_jl (d g / d c_r) f_i      (chain rule, c_j = C_j f + bias_j)"""
    if not isinstance(part, nt.FeatureTerm):
        return None
    return sympy.KroneckerDelta(part.args[0], nt.l) * nt.Slope(part, nt.r) * nt.Component(nt.f, nt.i)


def by_encoder_bias(part: Expr) -> Expr | None:
    """d g(c_j) / d bias_l,r = delta_jl (d g / d c_r)      (chain rule, c_j = C_j f + bias_j)"""
    return sympy.KroneckerDelta(part.args[0], nt.l) * nt.Slope(part, nt.r) if isinstance(part, nt.FeatureTerm) else None


def by_posterior_parameter(part: Expr) -> Expr | None:
    """d g(c_j; omega_j) / d omega_l = delta_jl (d g / d omega)"""
    if not isinstance(part, nt.FeatureTerm):
        return None
    return sympy.KroneckerDelta(part.args[0], nt.l) * nt.Slope(part, nt.omega)


def by_prior_parameter(part: Expr) -> Expr | None:
    """d K_j(c_j; pi_j) / d pi_l = delta_jl (d K_j / d pi): of the three only the divergence knows the prior"""
    if not isinstance(part, nt.Divergence):
        return None
    return sympy.KroneckerDelta(part.args[0], nt.l) * nt.Slope(part, nt.pi_prior)


PARAMETERS = (
    Parameter("B", "entry (i, j) of B2", (nt.i, nt.j), by_column),
    Parameter("mu2", "entry i of the offset mu2", (nt.i,), by_offset),
    Parameter("sigma2", "the standard deviation sigma2", (), by_noise),
    Parameter("C", "entry (r, i) of C_j", (nt.j, nt.r, nt.i), by_encoder_matrix),
    Parameter("bias", "entry r of bias_j", (nt.j, nt.r), by_encoder_bias),
    Parameter("omega", "a parameter of the posterior family of feature j", (nt.j,), by_posterior_parameter),
    Parameter("pi", "a parameter of the prior P_{2,j}", (nt.j,), by_prior_parameter),
)


@dataclass(frozen=True)
class GradientNode:
    """One derivative of L: `name` is dL/dB and so on; `expression` has the free indices of `indices`."""

    name: str
    meaning: str
    indices: tuple[Expr, ...]
    expression: Expr
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Gradient:
    """All derivatives of L, in the order B, mu2, sigma2, C, bias, omega, pi; `gradient["dL/dB"]` is one node."""

    nodes: tuple[GradientNode, ...]

    def __getitem__(self, name: str) -> GradientNode:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no gradient node {name!r}; the nodes are {', '.join(node.name for node in self.nodes)}")

    def __iter__(self) -> Iterator[GradientNode]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        from elbotree.derivation import render

        return "\n".join(f"{node.name} = {render.text(node.expression)}" for node in self.nodes)


def differentiate(expr: Expr, by: Parameter) -> Expr:
    """The derivative of a scalar or vector expression in one parameter, before any collapsing of sums.

    Sums and E: linear; products: product rule; x^n and log x: chain rule; <v, x>: <dv, x> + <v, dx>; |v|^2: 2 <v, dv>;
    H_jk = <b_j, b_k>. Raises RuleError on a head without a rule.
    """
    direct = by.atom(expr)
    if direct is not None:
        return direct
    if isinstance(expr, nt.Gram):
        return differentiate(rules.gram_of_columns(expr), by)
    if isinstance(expr, (nt.FeatureTerm, nt.Column, nt.Psi)) or not expr.args:
        return sympy.Integer(0)
    if isinstance(expr, sympy.Add):
        return sympy.Add(*(differentiate(term, by) for term in expr.args))
    if isinstance(expr, sympy.Mul):
        return sympy.Add(*(_replace_factor(expr, n, differentiate(x, by)) for n, x in enumerate(expr.args)))
    if isinstance(expr, sympy.Pow) and expr.exp.is_number:
        return expr.exp * expr.base ** (expr.exp - 1) * differentiate(expr.base, by)
    if isinstance(expr, sympy.log):
        return differentiate(expr.args[0], by) / expr.args[0]
    if isinstance(expr, sympy.Sum):
        body = differentiate(expr.function, by)
        return sympy.Integer(0) if body == 0 else sympy.Sum(body, *expr.limits)
    if isinstance(expr, nt.Expectation) and expr.args[1] == nt.X1:
        inside = differentiate(expr.args[0], by)
        return sympy.Integer(0) if inside == 0 else nt.Expectation(inside, nt.X1)
    if isinstance(expr, nt.Inner):
        left, right = expr.args
        return inner(differentiate(left, by), right) + inner(left, differentiate(right, by))
    if isinstance(expr, nt.NormSquared):
        return 2 * inner(expr.args[0], differentiate(expr.args[0], by))
    raise rules.RuleError(f"no derivative rule for {type(expr).__name__}: {expr}; add one to `gradient.differentiate`")


def _replace_factor(product: Expr, position: int, factor: Expr) -> Expr:
    factors = list(product.args)
    factors[position] = factor
    return sympy.Mul(*factors)


def inner(left: Expr, right: Expr) -> Expr:
    """<c v, d x> = c d <v, x>, with <0, x> = 0."""
    if left == 0 or right == 0:
        return sympy.Integer(0)
    (c, v), (d, x) = (
        rules.split_scalar(side) if not isinstance(side, sympy.Add) else (1, side) for side in (left, right)
    )
    return c * d * nt.Inner(v, x)


CLEAN_UP: tuple[rules.Rule, ...] = (
    rules.unit_vector,
    rules.linearity,
    rules.sums_apart,
    rules.sift,
    rules.numbers_out,
    rules.rename_index,
)
"""The rules that bring a raw derivative into its final form, in order."""


def collapse(expr: Expr) -> tuple[Expr, tuple[str, ...]]:
    """Collapse deltas and unit vectors, take what is fixed out of E; returns the result and the rules that did it."""
    used = []
    for rule in CLEAN_UP:
        after = rules.wherever(rule, expr)
        if after != expr:
            used.append(rule.__name__)
        expr = sympy.expand_mul(after)
    return _lone_components(expr).xreplace({nt.l: nt.j}), tuple(used)


def _lone_components(expr: Expr) -> Expr:
    """E[(f - mu2)_i] -> E[f_i] - mu2_i where nothing else stands in the expectation."""

    def visit(part: Expr) -> Expr:
        if isinstance(part, nt.Expectation) and isinstance(part.args[0], nt.Component):
            expanded = nt.Expectation(rules.wherever(rules.linear_component, part.args[0]), nt.X1)
            return rules.wherever(rules.linearity, expanded)
        return part

    return sympy.expand_mul(nt.rebuild(expr, visit))


def loss_from(tree: LossTree, name: str, stop: tuple[str, ...]) -> Expr:
    """The node `name` written out through its children, factor * (sum of children), down to the nodes in `stop`."""
    node = tree[name]
    if name in stop or not node.children:
        return node.expression
    return node.factor * sympy.Add(*(loss_from(tree, child, stop) for child in node.children))


def _by_value(tree: LossTree) -> Expr:
    """L with S1 and S2 kept as values: neither contains sigma2, which only R2 and R3's factor know."""
    for child in tree["R3"].children:
        if nt.sigma2 in loss_from(tree, child, ("T1",)).free_symbols:
            raise rules.RuleError(
                f"{child} contains sigma2; it cannot be kept as a value while differentiating by sigma2"
            )
    values = sympy.Add(*(nt.NodeValue(child) for child in tree["R3"].children))
    return tree["R2"].expression + tree["R3"].factor * values


@lru_cache(maxsize=4)
def derive_gradient(tree: LossTree) -> Gradient:
    """The derivative of L in every parameter, as nodes. f stays whole: nothing below T1 is trained."""
    nodes = []
    loss = loss_from(tree, "L", ("T1",))
    for by in PARAMETERS:
        start = _by_value(tree) if by.name == "sigma2" else loss
        expression, used = collapse(sympy.expand_mul(differentiate(start, by)))
        steps = ("product and chain rule", (by.atom.__doc__ or "").strip(), *used)
        nodes.append(GradientNode(f"dL/d{by.name}", f"derivative of L in {by.meaning}", by.indices, expression, steps))
    return Gradient(tuple(nodes))


# ---------------------------------------------------------------------------------------------- closed-form minimisers


@dataclass(frozen=True)
class Minimiser:
    """A parameter's optimal value, the other parameters given: where its derivative (`equation` = 0) vanishes.

    `solution` is sympy; `where` names the statistics in it, as expressions of the tree's language.
    """

    name: str
    equation: Expr
    solution: Expr
    where: tuple[tuple[Expr, Expr], ...] = ()


M, G, D, B = (sympy.MatrixSymbol(name, *shape) for name, shape in (
    ("M", (nt.n2, nt.m2)), ("G", (nt.m2, nt.m2)), ("D", (nt.m2, nt.m2)), ("B2", (nt.n2, nt.m2)),
))  # fmt: skip
"""M = E[(f - mu2) s^T], G = E[s s^T], D = diag(E[V_j]), and B2 itself."""


def linear_system(expr: Expr) -> tuple[Expr, Expr, Expr]:
    """sum_k B_ik G_kj + B_ij D_j - M_ij -> (M_ij, G_jk, D_j), the linear system B (G + diag D) = M

    Precondition: each term is linear in one entry of B2 in row i, or free of B2.
    """
    collected = {"M": sympy.Integer(0), "G": sympy.Integer(0), "D": sympy.Integer(0)}
    for term in sympy.Add.make_args(expr):
        outside = [x for x in sympy.Mul.make_args(term) if not isinstance(x, sympy.Sum)]
        inside = [x for x in sympy.Mul.make_args(term) if isinstance(x, sympy.Sum)]
        factors = outside + [x for s in inside for x in sympy.Mul.make_args(s.function)]
        entries = [x for x in factors if isinstance(x, nt.Component) and isinstance(x.args[0], nt.Column)]
        rest = sympy.Mul(*(x for x in factors if x not in entries))
        kind = {(0, 0): "M", (1, 1): "G", (1, 0): "D"}.get((len(entries), len(inside)))
        if kind is None or any(x.args[1] != nt.i for x in entries):
            raise rules.RuleError(f"rule linear_system expects terms linear in row i of B2; it got {term}")
        collected[kind] += -rest if kind == "M" else rest
    return collected["M"], collected["G"], collected["D"]


def best_decoder(tree: LossTree) -> Minimiser:
    """B2* = M (G + D)^-1, from dL/dB2 = 0, the encoder and mu2 given."""
    equation = sympy.expand_mul(tree.gradient["dL/dB"].expression * nt.sigma2**2)
    moments = linear_system(equation)
    return Minimiser("B2*", equation, M * (G + D) ** -1, tuple(zip((M, G, D), moments, strict=True)))


def best_noise(tree: LossTree) -> Minimiser:
    """sigma2*^2 = (S1 + S2) / n2, from dL/dsigma2 = 0."""
    equation = tree.gradient["dL/dsigma2"].expression
    variance = sympy.Symbol("v", positive=True)
    # On v = sigma2^2 > 0 the equation times sigma2^3 is linear; the library's solver does the rest.
    solutions = sympy.solve(sympy.expand(equation * nt.sigma2**3).subs(nt.sigma2, sympy.sqrt(variance)), variance)
    if len(solutions) != 1:
        raise rules.RuleError(f"dL/dsigma2 = 0 should have one solution in sigma2^2 > 0; sympy found {solutions}")
    return Minimiser("sigma2*^2", equation, solutions[0])


def best_noise_of_best_decoder(tree: LossTree) -> Minimiser:
    """sigma2*^2 = (T1 - tr(B2*^T M)) / n2: `best_noise` at B2*, where B2 (G + D) = M.

    S1 + S2 = T1 - 2 tr(B^T M) + tr(B^T B (G + D)), and the last trace is tr(B^T M) at B2*.
    """
    noise, decoder = best_noise(tree), best_decoder(tree)
    cross, quadratic = sympy.Trace(B.T * M), sympy.Trace(B.T * decoder.solution * (G + D))
    total = nt.NodeValue("T1") - 2 * cross + sympy.Trace(quadratic.arg.doit())
    spent = {nt.NodeValue("S1") + nt.NodeValue("S2"): total}
    return Minimiser("sigma2*^2 at B2*", noise.equation, noise.solution.subs(spent), decoder.where)


def best_offset(tree: LossTree) -> Minimiser:
    """mu2* = E[f] - B2 E[s], from dL/dmu2 = 0, B2 given (component i)."""
    equation = sympy.expand_mul(tree.gradient["dL/dmu2"].expression * nt.sigma2**2)
    unknown = nt.Component(nt.mu2, nt.i)
    slope = equation.coeff(unknown)
    if slope.free_symbols or slope == 0:
        raise rules.RuleError(f"dL/dmu2 should be linear in mu2_i with a constant slope; it got {equation}")
    return Minimiser("mu2*", equation, sympy.expand_mul(unknown - equation / slope))


def best_prior(points: int = 3) -> Minimiser:
    """P_{2,j}* = E[Q'_j( . ; c_j)], the aggregate posterior, from the stationary point of R1 + lambda (sum_a p_a - 1).

    For a prior on `points` points, E[K_j] = sum_a E[q_a log q_a] - E[q_a] log p_a; the first part does not move.
    """
    masses = sympy.symbols(f"p_1:{points + 1}", positive=True)
    posterior = sympy.symbols(f"qbar_1:{points + 1}", positive=True)
    multiplier = sympy.Symbol("lambda", real=True)
    cross_entropy = -sum(q * sympy.log(p) for q, p in zip(posterior, masses, strict=True))
    lagrangian = cross_entropy + multiplier * (sum(masses) - 1)
    # Each mass from its own equation, then lambda from sum_a p_a = 1, with sum_a qbar_a = 1.
    solved = [sympy.solve(sympy.diff(lagrangian, p), p)[0] for p in masses]
    level = sympy.solve(sum(solved) - 1, multiplier)[0].subs(posterior[-1], 1 - sum(posterior[:-1]))
    aggregate = nt.Expectation(nt.PosteriorFactor(nt.j), nt.X1)
    optimum = solved[0].subs(multiplier, sympy.simplify(level)).subs(posterior[0], aggregate)
    return Minimiser("P2j*", sympy.diff(lagrangian, masses[0]), optimum, ((posterior[0], aggregate),))


def profile_loss(tree: LossTree) -> Expr:
    """L at sigma2* : R1 + n2/2 log(2 pi v) + n2/2 with v = sigma2*^2 = (S1 + S2)/n2, what training minimises."""
    best = best_noise(tree).solution
    values = sympy.Add(*(nt.NodeValue(child) for child in tree["R3"].children))
    at_best = (tree["R2"].expression + tree["R3"].factor * values).subs(nt.sigma2, sympy.sqrt(best))
    return nt.NodeValue("R1") + sympy.expand(sympy.simplify(at_best))


def minimisers(tree: LossTree) -> tuple[Minimiser, ...]:
    """All closed-form minimisers, in the order B2*, sigma2*, sigma2* at B2*, mu2*, prior."""
    return (best_decoder(tree), best_noise(tree), best_noise_of_best_decoder(tree), best_offset(tree), best_prior())
