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
from elbotree.derivation.tree import JointLaw, Step, cost, grid_cost, joint_law

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
    """One derivative of L.

    name         dL/dB and so on
    meaning      in words
    indices      its free indices
    expression   sympy, in the symbols of `notation`
    steps        the lines that made it from L, each a named rule
    """

    name: str
    meaning: str
    indices: tuple[Expr, ...]
    expression: Expr
    steps: tuple[Step, ...]

    @property
    def law(self) -> JointLaw:
        """The largest joint law that it needs; f_i is one of the linear quantities."""
        return joint_law(self.expression)

    @property
    def cost(self) -> Expr:
        """Operations of all its entries together, as `Node.cost`; those of L's own terms that it takes by value are not
        counted again."""
        return cost(self.expression)

    @property
    def grid_cost(self) -> Expr:
        """The same on the paper's grid (Fact 3.3)."""
        return grid_cost(self.expression)


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


def collapse(expr: Expr) -> Iterator[tuple[str, str, Expr]]:
    """Collapse deltas and unit vectors, take what is fixed out of E: (rule, its arrow, what it made), step by step."""
    for rule in CLEAN_UP:
        after = sympy.expand_mul(rules.wherever(rule, expr))
        if after != expr:
            yield rule.__name__, rules.arrow(rule), after
        expr = after
    lone = _lone_components(expr)
    if lone != expr:
        yield "linear_component", "E[(f - mu2)_i] -> E[f_i] - mu2_i", lone
    if lone.has(nt.l):
        yield (
            "rename_index",
            "the entry's index l is called j, now that no sum runs over j",
            lone.xreplace({nt.l: nt.j}),
        )


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
        name, start = f"dL/d{by.name}", _by_value(tree) if by.name == "sigma2" else loss
        raw = sympy.expand_mul(differentiate(start, by))
        steps = [Step(name, "product and chain rule", (by.atom.__doc__ or "").strip(), start, raw)]
        for rule, arrow, after in collapse(raw):
            steps.append(Step(name, rule, arrow, steps[-1].after, after))
        meaning = f"derivative of L in {by.meaning}"
        nodes.append(GradientNode(name, meaning, by.indices, steps[-1].after, tuple(steps)))
    return Gradient(tuple(nodes))


# ---------------------------------------------------------------------------------------------- closed-form minimisers


@dataclass(frozen=True)
class Minimiser:
    """A parameter's optimal value, the other parameters given: where its derivative (`equation` = 0) vanishes.

    `solution` is sympy; `where` names the statistics in it, as expressions of the tree's language; `how` tells in words
    how the one came from the other.
    """

    name: str
    meaning: str
    equation: Expr
    solution: Expr
    how: str
    where: tuple[tuple[Expr, Expr], ...] = ()


@dataclass(frozen=True)
class ProfileLoss:
    """L with sigma2 at its minimiser: what training minimises."""

    name: str
    meaning: str
    expression: Expr
    how: str


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
    return Minimiser(
        "B2*",
        "the best decoder, the encoder and mu2 given",
        equation,
        M * (G + D) ** -1,
        "sigma2^2 dL/dB = 0 is the linear system B2 (G + D) = M, a row of B2 at a time; G + D is positive definite",
        tuple(zip((M, G, D), linear_system(equation), strict=True)),
    )


def best_noise(tree: LossTree) -> Minimiser:
    """sigma2*^2 = (S1 + S2) / n2, from dL/dsigma2 = 0."""
    equation = tree.gradient["dL/dsigma2"].expression
    variance = sympy.Symbol("v", positive=True)
    # On v = sigma2^2 > 0 the equation times sigma2^3 is linear; the library's solver does the rest.
    solutions = sympy.solve(sympy.expand(equation * nt.sigma2**3).subs(nt.sigma2, sympy.sqrt(variance)), variance)
    if len(solutions) != 1:
        raise rules.RuleError(f"dL/dsigma2 = 0 should have one solution in sigma2^2 > 0; sympy found {solutions}")
    how = "sigma2^3 dL/dsigma2 = 0 is linear in sigma2^2"
    return Minimiser("sigma2*^2", "the best variance of the noise, all else given", equation, solutions[0], how)


def from_its_gradient(tree: LossTree) -> Expr:
    """grad F = 2 (B K - M), F(0) = c -> F = c - 2 tr(B^T M) + tr(B^T B K)

    Precondition: F = S1 + S2 is T1 where every column of B2 is 0; its gradient is that of `best_decoder`, with K = G + D.
    """
    spread = sympy.Add(*(loss_from(tree, child, ("T1",)) for child in tree["R3"].children))
    rest = nt.rebuild(spread, _without_columns)
    if rest != tree["T1"].expression:
        raise rules.RuleError(f"rule from_its_gradient expects S1 + S2 to be T1 where B2 = 0; it is {rest}")
    return nt.NodeValue("T1") - 2 * sympy.Trace(B.T * M) + sympy.Trace(B.T * B * (G + D))


def _without_columns(part: Expr) -> Expr:
    """H_jk and <v, b_j> where B2 = 0, and the sums and averages of 0."""
    if isinstance(part, nt.Gram) or (isinstance(part, nt.Inner) and any(isinstance(x, nt.Column) for x in part.args)):
        return sympy.Integer(0)
    empty = isinstance(part, (sympy.Sum, nt.Expectation)) and part.args[0] == 0
    return sympy.Integer(0) if empty else part


def best_noise_of_best_decoder(tree: LossTree) -> Minimiser:
    """sigma2*^2 = (T1 - tr(B2*^T M)) / n2: `best_noise` at B2*, where B2 (G + D) = M."""
    noise, decoder = best_noise(tree), best_decoder(tree)
    total = from_its_gradient(tree).subs(sympy.Trace(B.T * B * (G + D)), sympy.Trace(B.T * decoder.solution * (G + D)))
    at_best = total.replace(sympy.Trace, lambda inside: sympy.Trace(inside.doit()))
    spent = {nt.NodeValue("S1") + nt.NodeValue("S2"): at_best}
    return Minimiser(
        "sigma2*^2 at B2*",
        "the best variance of the noise at the best decoder",
        noise.equation,
        noise.solution.subs(spent),
        "S1 + S2 = T1 - 2 tr(B2^T M) + tr(B2^T B2 (G + D)), and B2* (G + D) = M",
        decoder.where,
    )


def best_offset(tree: LossTree) -> Minimiser:
    """mu2* = E[f] - B2 E[s], from dL/dmu2 = 0, B2 given (component i)."""
    equation = sympy.expand_mul(tree.gradient["dL/dmu2"].expression * nt.sigma2**2)
    unknown = nt.Component(nt.mu2, nt.i)
    slope = equation.coeff(unknown)
    if slope.free_symbols or slope == 0:
        raise rules.RuleError(f"dL/dmu2 should be linear in mu2_i with a constant slope; it got {equation}")
    solution = sympy.expand_mul(unknown - equation / slope)
    how = "sigma2^2 dL/dmu2 = 0 is linear in mu2_i"
    return Minimiser("mu2*", "the best offset, the encoder and B2 given; component i", equation, solution, how)


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
    return Minimiser(
        "P2j*",
        "the best prior of all, the encoder given: the aggregate posterior",
        sympy.diff(lagrangian, masses[0]),
        optimum,
        "the derivative of R1 + lambda (sum_a p_a - 1) in each mass p_a is 0, and the masses sum to 1",
        ((posterior[0], aggregate),),
    )


#: prior kinds whose best parameters have a closed form: (parameter, its unknown as a function of the parameter)
_PRIOR_UNKNOWNS: dict[str, tuple[tuple[str, str], ...]] = {
    "normal": (("prior_mean", "mean"), ("prior_std", "variance")),
    "exponential": (("prior_scale", "scale"),),
}


def best_prior_of(kind: str) -> tuple[Minimiser, ...]:
    """The best parameters of a normal or an exponential prior: those with the moments of the aggregate posterior.

    E_x1 E_Q[-log p(beta)] with the moments E beta = E[s_j] and E beta^2 = E[V_j] + E[s_j^2]; each derivative is set to 0.
    Raises RuleError for a kind whose log density asks for other moments.
    """
    from elbotree.derivation.families import BETA, PRIOR_PARAMETERS, prior_log_density

    parameters = {symbol.name: symbol for symbol in PRIOR_PARAMETERS[kind]}
    s, V = nt.Mean(nt.j), nt.Spread(nt.j)
    moments = {BETA**2: nt.Expectation(V, nt.X1) + nt.Expectation(s**2, nt.X1), BETA: nt.Expectation(s, nt.X1)}
    score = sympy.expand(-prior_log_density(kind))
    cross_entropy = sum(_averaged(term, BETA, moments) for term in sympy.Add.make_args(score))
    found: dict[Expr, Expr] = {}
    best = []
    for name, unknown in _PRIOR_UNKNOWNS[kind]:
        symbol = parameters[name]
        equation = sympy.expand(sympy.diff(cross_entropy, symbol)).subs(found)
        solutions = sympy.solve(sympy.numer(sympy.together(equation)), symbol)
        solution = next(x for x in solutions if not x.could_extract_minus_sign())
        found[symbol] = solution
        value = solution**2 if unknown == "variance" else solution
        how = f"dR1/d{name} = 0, R1's only part that knows the prior being E_x1 E_Q[-log P_2j(beta)]"
        meaning = f"the best {unknown} of {'an' if kind[0] in 'aeiou' else 'a'} {kind} prior P_2j, the encoder given"
        best.append(Minimiser(f"{kind} {unknown}*", meaning, equation, sympy.expand(value), how))
    return tuple(best)


def _averaged(term: Expr, beta: Expr, moments: dict[Expr, Expr]) -> Expr:
    """E of a term c, c beta or c beta^2."""
    rest, power = term.as_independent(beta, as_Add=False)
    if power != 1 and power not in moments:
        raise rules.RuleError(f"E[{power}] is no moment that s_j and V_j give")
    return rest * moments.get(power, sympy.Integer(1))


def profile_loss(tree: LossTree) -> ProfileLoss:
    """L at sigma2* : R1 + n2/2 log(2 pi v) + n2/2 with v = sigma2*^2 = (S1 + S2)/n2, what training minimises."""
    best = best_noise(tree).solution
    values = sympy.Add(*(nt.NodeValue(child) for child in tree["R3"].children))
    at_best = (tree["R2"].expression + tree["R3"].factor * values).subs(nt.sigma2, sympy.sqrt(best))
    return ProfileLoss(
        "L*",
        "the profile loss: L at sigma2*, what training minimises over the encoder",
        nt.NodeValue("R1") + _powers_together(at_best),
        "sigma2 -> sigma2*: R3 becomes n2/2. By the envelope theorem its gradient is that of L at sigma2*",
    )


def _powers_together(expr: Expr) -> Expr:
    """(x^(1/2))^2 -> x, a b / a -> b, and no more: the logarithm stays whole."""
    return sympy.Add(*(sympy.cancel(term) if not term.has(sympy.log) else term for term in sympy.Add.make_args(expr)))


def minimisers(tree: LossTree) -> tuple[Minimiser, ...]:
    """All closed-form minimisers, in the order B2*, sigma2*, sigma2* at B2*, mu2*, the prior, and priors of known kinds."""
    return (
        best_decoder(tree),
        best_noise(tree),
        best_noise_of_best_decoder(tree),
        best_offset(tree),
        best_prior(),
        *(item for kind in _PRIOR_UNKNOWNS for item in best_prior_of(kind)),
    )
