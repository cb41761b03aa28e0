"""The loss tree (Figure 2), derived: it starts at the ELBO of Definition 2.3 and each split is a list of named rules.

`SPLITS` says which rules open a node and how to tell its children apart; everything else on a node (expression, joint
law, cost, how children combine) is read off the expressions. No formula of a child is written here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation import rules
from elbotree.derivation.notation import Expr

if TYPE_CHECKING:
    import networkx

    from elbotree.derivation.gradient import Gradient
    from elbotree.derivation.verify import Report

NODE_NAMES = ("L", "R1", "R2", "R3", "S1", "S2", "T1", "T2", "T3", "U1", "U2", "U3")


@dataclass(frozen=True)
class JointLaw:
    """Which random quantities a node's expectations are over, jointly.

    projections     the quantities that need a lattice: c_j, c_k (t coordinates each), b
    linear          quantities that enter linearly, <f, b_j> or <y, w>: the derivative of the characteristic function
                    carries them, at no further dimension
    dimension       dimensions of the lattice, the coordinate b that f is pushed forward through included (Lemma 3.4)
    grid_dimension  the same on the paper's grid, where a linear quantity is one coordinate more
    """

    projections: tuple[Expr, ...]
    linear: tuple[Expr, ...]
    dimension: Expr
    grid_dimension: Expr


@dataclass(frozen=True)
class Step:
    """One line of the proof: `rule` rewrote `before` into `after`."""

    node: str
    rule: str
    arrow: str
    before: Expr
    after: Expr


@dataclass(frozen=True)
class Node:
    """A node of the loss tree.

    name         L, R1, ..., U3
    expression   sympy, in the symbols of `notation`
    rule         the rules that made it from its parent, joined by "; " (for L: where it comes from)
    place        where it stands in the paper
    erratum      how it differs from what the paper prints, and why; "" where it does not
    law          the joint law that its expectations need
    cost         operations as a formula in m1, m2, n2, t and N, the modes in one dimension
    grid_cost    the same on the paper's grid, N bins in one dimension (Fact 3.3)
    children     names, in the paper's order
    factor       the node is `factor` times the sum of its children (1, but for R3)
    """

    name: str
    expression: Expr
    rule: str
    place: str
    erratum: str
    law: JointLaw
    cost: Expr
    grid_cost: Expr
    children: tuple[str, ...] = ()
    factor: Expr = sympy.S.One


@dataclass(frozen=True)
class Split:
    """How a node opens: rules in order, then children told apart by what each contains."""

    rules: tuple[rules.Rule, ...]
    children: tuple[tuple[str, Callable[[Expr], bool]], ...]


def _depth(expr: Expr) -> int:
    """How many indices the sums of a term run over."""
    return sum(len(part.limits) for part in nt.subexpressions(expr) if isinstance(part, sympy.Sum))


SPLITS: dict[str, Split] = {
    "L": Split(
        (rules.kl_of_products, rules.name_divergence, rules.log_normal_density, rules.linearity),
        (
            ("R1", lambda e: nt.contains(e, nt.Divergence)),
            ("R2", lambda e: not nt.contains(e, nt.Expectation)),
            ("R3", lambda e: nt.contains(e, nt.NormSquared)),
        ),
    ),
    "R3": Split(
        (
            rules.mean_and_spread,
            rules.columns,
            rules.linearity,
            rules.name_mean,
            rules.spread_of_independent_sum,
            rules.gram,
            rules.linearity,
        ),
        (
            ("S1", lambda e: nt.contains(e, nt.Spread)),
            ("S2", lambda e: nt.contains(e, nt.NormSquared)),
        ),
    ),
    "S2": Split(
        (rules.expand_squared_norm, rules.bilinearity, rules.gram, rules.linearity),
        (
            ("T1", lambda e: _depth(e) == 0),
            ("T2", lambda e: _depth(e) == 1),
            ("T3", lambda e: _depth(e) == 2),
        ),
    ),
    "T1": Split(
        (rules.layer, rules.expand_squared_norm, rules.bilinearity, rules.linearity),
        (
            ("U1", lambda e: not nt.contains(e, nt.Psi)),
            ("U2", lambda e: nt.contains(e, nt.Inner)),
            ("U3", lambda e: nt.contains(e, nt.Psi) and not nt.contains(e, nt.Inner)),
        ),
    ),
}

PLACES: dict[str, tuple[str, str]] = {
    "L": (
        "Lemma 2.2, Definition 2.3, Theorem 3.1",
        "The paper's second term lacks the expectation over x1 and z2 (errata 3). The offset mu2 is zero in the paper.",
    ),
    "R1": ("(6), first term", "The text calls it the third term (errata 11)."),
    "R2": ("(6), second term", "The paper has sigma2 for sigma2^2: sigma2 is a standard deviation here (errata 2)."),
    "R3": ("(6), third term; (7)", "1/(2 sigma2^2) where the paper has 1/(2 sigma2) (errata 2, 12); f - mu2 for f."),
    "S1": ("(7), first term", ""),
    "S2": ("(7), second term; (8)", "b_j is the column of B2, the paper's u_j (errata 9); f - mu2 for f."),
    "T1": ("(8), first term; (9)", "f - mu2 for f; b = <y, u> + theta, where the paper has <A x1, w> (errata 1)."),
    "T2": ("(8), second term", "b_j is the column of B2, the paper's u_j (errata 9); f - mu2 for f."),
    "T3": ("(8), third term", "The joint law is of C_j f and C_k f, where the paper has C_j f twice (errata 10)."),
    "U1": ("(9), first term", "y = A x1 + d, and y - mu2 for y."),
    "U2": ("(9), second term", "<y - mu2, w> psi(b), b = <y, u> + theta: the paper exchanges u and w (errata 1)."),
    "U3": (
        "(9), third term",
        "|w|^2 psi(b)^2: the paper exchanges u and w (errata 1), and calls it the second term (errata 11).",
    ),
}


def elbo() -> Expr:
    """Definition 2.3 under the assumptions of section 2.4: the loss before any rewriting.

    E_x1[ KL(prod_j Q'_j(.; c_j) || prod_j P_2j) - E_z2[ log N(f(x1); B2 z2 + mu2, sigma2^2 I) ] ]
    """
    posterior = nt.ProductLaw(nt.PosteriorFactor(nt.j), nt.j)
    prior = nt.ProductLaw(nt.PriorFactor(nt.j), nt.j)
    likelihood = nt.NormalDensity(nt.f, nt.Image(nt.z2) + nt.mu2, nt.sigma2)
    return nt.Expectation(nt.KL(posterior, prior) - nt.Expectation(sympy.log(likelihood), nt.Z2), nt.X1)


def open_node(name: str, expression: Expr, split: Split) -> tuple[dict[str, Expr], Expr, list[Step]]:
    """Apply a split's rules and tell the children apart.

    Returns ({child: expression}, factor, steps) with expression = factor * sum of children.
    Raises RuleError when a rule applies nowhere, or when the terms are not exactly the named children.
    """
    steps = []
    for rule in split.rules:
        after = rules.everywhere(rule, expression)
        steps.append(Step(name, rule.__name__, rules.arrow(rule), expression, after))
        expression = after
    factor, terms = _factor_and_terms(expression)
    children: dict[str, Expr] = {}
    for child, belongs in split.children:
        matching = [term for term in terms if belongs(term)]
        if len(matching) != 1:
            raise rules.RuleError(f"{name} should open into one term {child}; {len(matching)} terms fit, of {terms}")
        children[child] = matching[0]
    if len(terms) != len(split.children):
        raise rules.RuleError(f"{name} opened into {len(terms)} terms; {len(split.children)} were expected: {terms}")
    for child in children.values():
        nt.rank(child)
    return children, factor, steps


def _factor_and_terms(expression: Expr) -> tuple[Expr, tuple[Expr, ...]]:
    """(c, (a, b, ...)) with expression = c (a + b + ...)."""
    factors = sympy.Mul.make_args(expression)
    sums = [x for x in factors if isinstance(x, sympy.Add)]
    if len(sums) != 1:
        raise rules.RuleError(f"expected one sum of terms, times a factor; got {expression}")
    return sympy.Mul(*(x for x in factors if x is not sums[0])), sums[0].args


def joint_law(expression: Expr) -> JointLaw:
    """The largest joint law that an expectation in `expression` needs, read off the integrands."""
    laws = [_integrand_law(part.args[0]) for part in nt.subexpressions(expression) if _over_x1(part)]
    nothing = JointLaw((), (), sympy.Integer(0), sympy.Integer(0))
    return max(laws, key=lambda law: (law.grid_dimension.subs(nt.t, 2), len(law.projections)), default=nothing)


def _over_x1(part: Expr) -> bool:
    return isinstance(part, nt.Expectation) and part.args[1] == nt.X1


def _integrand_law(integrand: Expr) -> JointLaw:
    indices = _feature_indices(integrand)
    uses_b = nt.contains(integrand, nt.Psi)
    # A linear factor alone is a moment: it costs a dimension only beside something that is not polynomial. Alone, f is
    # y + w psi(b), and asks for the law of b.
    linear = tuple(
        part
        for part in nt.subexpressions(integrand)
        if isinstance(part, (nt.Inner, nt.Component)) and nt.is_random(part, nt.X1)
    )
    pushed = bool(indices) or any(part == nt.f for part in nt.subexpressions(integrand))
    lattice = nt.t * len(indices) + (1 if pushed or uses_b else 0)
    projections = (*(sympy.Symbol(f"c_{index}") for index in indices), *((nt.b,) if uses_b else ()))
    beside = len(set(linear)) if indices or uses_b else 0
    size = sympy.Integer(0) + lattice
    return JointLaw(projections, linear, size, size + beside)


def _feature_indices(expression: Expr) -> list[Expr]:
    """The indices of the features whose encoder parameters an expression takes."""
    parts = [part for part in nt.subexpressions(expression) if isinstance(part, (nt.FeatureTerm, nt.PosteriorFactor))]
    return sorted({index for part in parts for index in part.free_symbols}, key=str)


def convolution_cost(sources: Expr = nt.m1, dimension: Expr = nt.t, bins: Expr = nt.modes) -> Expr:
    """Fact 3.3: m convolutions by FFT on N^t points, each N^t log2(N^t) additions and multiplications."""
    return sources * bins**dimension * dimension * sympy.log(bins) / sympy.log(2)


def cost(expression: Expr, dimension: Expr | None = None) -> Expr:
    """Operations of an expression's expectations: (number of laws) * m1 * N^dimension; moments alone cost n2 m1.

    A law is one choice of the features in the integrand, whether their indices are summed over or free; components of f
    come together. `dimension` stands in for that of the lattice, where something is known that makes it smaller.
    """
    total = sympy.Integer(0)
    for count, law in _laws(expression):
        size = law.dimension if dimension is None else dimension
        total += count * (nt.n2 * nt.m1 if size == 0 else nt.m1 * nt.modes**size)
    return total


def grid_cost(expression: Expr) -> Expr:
    """The same on the paper's grid, each law by the convolutions of Fact 3.3."""
    total = sympy.Integer(0)
    for count, law in _laws(expression):
        size = law.grid_dimension
        total += count * (nt.n2 * nt.m1 if size == 0 else convolution_cost(nt.m1, size))
    return total


def _laws(expression: Expr) -> Iterator[tuple[Expr, JointLaw]]:
    """(how many, joint law) for each term of an expression with an expectation in it."""
    for term in sympy.Add.make_args(sympy.expand_mul(expression, deep=False)):
        if nt.contains(term, nt.Expectation):
            yield nt.m2 ** len(_feature_indices(term)), joint_law(term)


@dataclass(frozen=True)
class LossTree:
    """The derived tree. `tree["T2"]` is a `Node`; `tree.graph` a networkx.DiGraph with the nodes' fields as attributes.

    `print(tree)` draws it; `to_latex`, `to_mermaid`, `to_dot`, `to_json`, `to_mathml` render it; `verify` checks it.
    """

    nodes: tuple[Node, ...]
    proof: tuple[Step, ...] = field(repr=False)

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node {name!r}; the nodes are {', '.join(self.names)}")

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<LossTree of {len(self.nodes)} nodes, {len(self.leaves)} leaves, {len(self.proof)} steps>"

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the paper's order."""
        return tuple(node.name for node in self.nodes)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names of the nodes without children, in the paper's order."""
        return tuple(node.name for node in self.nodes if not node.children)

    @property
    def graph(self) -> networkx.DiGraph[str]:
        """A fresh networkx.DiGraph: edges from parent to child, the node's fields as attributes."""
        import networkx  # here, because it takes as long to import as the derivation takes

        graph: networkx.DiGraph[str] = networkx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.name, **{name: getattr(node, name) for name in Node.__dataclass_fields__})
        for node in self.nodes:
            graph.add_edges_from((node.name, child) for child in node.children)
        return graph

    @property
    def sha256(self) -> str:
        """A hash of everything that the kernels depend on: names, expressions, children, factors, and the gradient."""
        parts = [(node.name, sympy.srepr(node.expression), node.children, str(node.factor)) for node in self.nodes]
        parts += [(part.name, sympy.srepr(part.expression), (), "") for part in self.gradient]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def gradient(self) -> Gradient:
        """The derived gradient of L: nodes dL/dB, dL/dmu2, dL/dsigma2, dL/dC, dL/dbias, dL/domega, dL/dpi."""
        from elbotree.derivation.gradient import derive_gradient

        return derive_gradient(self)

    def steps(self) -> tuple[Step, ...]:
        """The proof, line by line, from the ELBO to the leaves."""
        return self.proof

    def verify(self) -> Report:
        """Check every split, and the gradient, on small explicit dimensions with finite laws and symbolic parameters
        (`lemmas.verify_all` checks the lemmas and every line of the proof besides).

        Raises VerificationError when a difference does not vanish.
        """
        from elbotree.derivation.verify import verify_tree

        return verify_tree(self)

    def __str__(self) -> str:
        from elbotree.derivation import render

        return render.draw(self)

    def describe(self, name: str) -> str:
        """One node in full: formula, rule, place in the paper, joint law, cost. Also a derivative (dL/dB), a minimiser
        (B2*) or a lemma (Lemma 3.4), by name."""
        from elbotree.derivation import catalogue

        return catalogue.describe(catalogue.find(self, name))

    def proof_text(self) -> str:
        """The proof line by line, with its lemmas, the rules' preconditions and the errata, as text."""
        from elbotree.derivation import render

        return render.proof_text(self)

    def proof_html(self) -> str:
        """The proof as one self-contained page with MathML."""
        from elbotree.derivation import page

        return page.proof_html(self)

    def to_latex(self, name: str | None = None) -> str:
        """LaTeX of one node's equation, or of all in an `align*`."""
        from elbotree.derivation import render

        return render.to_latex(self, name)

    def to_mathml(self, name: str) -> str:
        """Presentation MathML of one node's equation."""
        from elbotree.derivation import render

        return render.to_mathml(self, name)

    def to_mermaid(self) -> str:
        """A Mermaid flowchart of the tree."""
        from elbotree.derivation import render

        return render.to_mermaid(self)

    def to_dot(self) -> str:
        """The tree in Graphviz's dot language."""
        from elbotree.derivation import render

        return render.to_dot(self)

    def to_json(self) -> str:
        """The tree as JSON: every field of every node, expressions as text, LaTeX and sympy's srepr."""
        from elbotree.derivation import render

        return render.to_json(self)


@lru_cache(maxsize=1)
def derive() -> LossTree:
    """Derive the loss tree from the ELBO (Definition 2.3) by the rules of `rules`.

    Returns a `LossTree`. Raises RuleError when a step fails. The paper: Theorem 3.1's proof and Figure 2, with the errata's
    corrections.

    >>> from elbotree.derivation import derive
    >>> derive()["R2"].expression
    n2*log(2*pi*sigma2**2)/2
    """
    expressions: dict[str, Expr] = {"L": elbo()}
    made_by = {"L": "Definition 2.3 with assumptions 1 to 4"}
    opened: dict[str, tuple[tuple[str, ...], Expr]] = {}
    proof: list[Step] = []
    for name in NODE_NAMES:
        if name not in SPLITS:
            continue
        children, factor, steps = open_node(name, expressions[name], SPLITS[name])
        expressions.update(children)
        made_by.update(dict.fromkeys(children, "; ".join(dict.fromkeys(step.rule for step in steps))))
        opened[name] = (tuple(children), factor)
        proof += steps
    return LossTree(tuple(_nodes(expressions, made_by, opened)), tuple(proof))


def _nodes(
    expressions: dict[str, Expr], made_by: dict[str, str], opened: dict[str, tuple[tuple[str, ...], Expr]]
) -> Iterator[Node]:
    """The nodes in the paper's order; a parent's law is the largest, its cost the sum, of its children's."""
    laws = {name: joint_law(expressions[name]) for name in NODE_NAMES if name not in opened}
    costs, grid_costs = (
        {name: price(expressions[name]) for name in NODE_NAMES if name not in opened} for price in (cost, grid_cost)
    )
    for name in reversed(NODE_NAMES):
        if name in opened:
            children = opened[name][0]
            laws[name] = max((laws[child] for child in children), key=lambda law: law.grid_dimension.subs(nt.t, 2))
            for prices in (costs, grid_costs):
                prices[name] = sympy.Add(*(prices[child] for child in children))
    for name in NODE_NAMES:
        children, factor = opened.get(name, ((), sympy.Integer(1)))
        place, erratum = PLACES[name]
        yield Node(
            name,
            expressions[name],
            made_by[name],
            place,
            erratum,
            laws[name],
            costs[name],
            grid_costs[name],
            children,
            factor,
        )
