"""What only algebra can do once psi and the posterior families are known, and an account of it: `specialise`.

    psi(b)                       -> k b + m                       psi is affine (zero: 0); then f is affine in y
    E[g], g = 0                  -> 0                             psi = 0 prunes U2 and U3
    E[(k b + m)^2], E[<y, w> (k b + m)]                           moments of y: no law of b
    E[g(c_j)], g a polynomial of degree at most 2                 moments of c_j: no lattice
    E[g(c_j)], g a function of some of c_j's t coordinates        a lattice of those alone
    K_j(c_j) against a prior of a known kind                      closed form instead of a quadrature over beta

The kernels do each of these; here is what they did, with the joint law and the operations of every leaf before and
after. w = 0 is a number of the problem, not of its algebra: the kernels look at it when they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation import render
from elbotree.derivation.activations import Psi, analyse
from elbotree.derivation.families import Family, get_family, pieces, polynomial
from elbotree.derivation.notation import Expr
from elbotree.derivation.tree import LossTree, cost, joint_law

MOMENTS = sympy.Integer(0)

#: sizes for which the account gives operations as numbers
_EXAMPLE = {nt.m1: 16, nt.m2: 16, nt.n2: 16, nt.modes: 32}


def put_in(expression: Expr, psi: Psi) -> Expr:
    """psi(b) -> k b + m, E[0] -> 0

    Precondition: psi is affine on the whole line. Any other psi leaves the expression as it is.
    """
    if psi.affine is None:
        return expression
    slope, intercept = psi.affine

    def visit(part: Expr) -> Expr:
        if isinstance(part, nt.Psi):
            return slope * part.args[0] + intercept
        if isinstance(part, nt.Expectation) and part.args[0] == 0:
            return sympy.Integer(0)
        return part

    return nt.rebuild(expression, visit)


@dataclass(frozen=True)
class Change:
    """What became of one leaf.

    before, after    its expression
    said             what was found, in words
    dimensions       of the largest lattice, before and after (0: moments only)
    operations       the node's cost formula, before and after
    """

    name: str
    before: Expr
    after: Expr
    said: tuple[str, ...]
    dimensions: tuple[Expr, Expr]
    operations: tuple[Expr, Expr]

    def __str__(self) -> str:
        head = f"{self.name} = {render.text(self.before)}"
        if self.after != self.before:
            head += f"\n  -> {render.text(self.after)}"
        lines = [head, *(f"  {line}" for line in self.said)]
        lines.append(f"  dimensions {self.dimensions[0]} -> {self.dimensions[1]}")
        lines.append(f"  operations {' -> '.join(map(render.cost_text, self.operations))}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Specialisation:
    """A tree with a psi and posterior families put in. `print` tells what was found; `specialisation["T3"]` is one leaf's
    `Change`."""

    psi: Psi
    families: tuple[Family, ...]
    changes: tuple[Change, ...]

    def __getitem__(self, name: str) -> Change:
        for change in self.changes:
            if change.name == name:
                return change
        raise KeyError(f"no leaf {name!r}; the leaves are {', '.join(change.name for change in self.changes)}")

    @property
    def dimensions(self) -> tuple[Expr, Expr]:
        """Of the largest lattice of all leaves, before and after."""
        before, after = zip(*(change.dimensions for change in self.changes), strict=True)
        return max(before), max(after)

    @property
    def operations(self) -> tuple[Expr, Expr]:
        """Of all leaves together, before and after, in m1, m2, n2 and N."""
        before, after = zip(*(change.operations for change in self.changes), strict=True)
        return sympy.Add(*before), sympy.Add(*after)

    def __str__(self) -> str:
        shown = " -> ".join(map(render.cost_text, self.operations))
        numbers = " -> ".join(f"{float(formula.subs(_EXAMPLE)):.2g}" for formula in self.operations)
        sizes = ", ".join(f"{symbol} = {number}" for symbol, number in _EXAMPLE.items())
        whole = (
            f"all leaves\n  dimensions {self.dimensions[0]} -> {self.dimensions[1]}\n  operations {shown}"
            f"\n  for {sizes}: {numbers}"
        )
        parts = [psi_text(self.psi), *map(family_text, self.families), *map(str, self.changes), whole]
        return "\n\n".join(parts)


def specialise(tree: LossTree, psi: str, families: str | Sequence[str]) -> Specialisation:
    """Put a psi and posterior families into the leaves of the tree.

    Raises what the parsers of psi and of the families' names raise.

    >>> from elbotree.derivation import derive
    >>> specialise(derive(), "identity", "normal")["T3"].dimensions
    (3, 0)
    """
    found = analyse(psi)
    names = (families,) if isinstance(families, str) else tuple(families)
    chosen = tuple(get_family(name) for name in names)
    changes = tuple(_change(tree[name].expression, name, found, chosen) for name in tree.leaves)
    return Specialisation(found, chosen, changes)


def _change(before: Expr, name: str, psi: Psi, families: tuple[Family, ...]) -> Change:
    after = put_in(before, psi)
    t = max(family.t for family in families)
    generic = joint_law(before).dimension.subs(nt.t, t)
    priced = cost(before).subs(nt.t, t)
    heads = {type(part).__name__ for part in nt.subexpressions(before) if isinstance(part, nt.FeatureTerm)}
    if heads:
        indices = len({part.args[0] for part in nt.subexpressions(before) if isinstance(part, nt.FeatureTerm)})
        found = [_features(family, heads, indices) for family in families]
        said = [line for one in found for line in one.said]
        dimension = sympy.Integer(max(one.dimension for one in found))
        if psi.affine is not None and dimension > 0:
            said.append("f is affine in y: no axis for b")
            dimension -= 1
        known = all(one.known for one in found)
        operations = nt.m2**indices if known else cost(after, dimension)
    elif after == 0:
        said, dimension, operations = ["psi = 0: pruned"], MOMENTS, sympy.Integer(0)
    elif psi.affine is not None and after != before:
        said, dimension = ["psi is affine: moments of y, in closed form"], MOMENTS
        operations = cost(after, dimension)
    else:
        said, dimension, operations = [], generic, priced
    if nt.w in before.free_symbols and after != 0:
        said.append("w = 0 (seen when the kernel runs): 0")
    return Change(name, before, after, tuple(said), (generic, dimension), (priced, operations))


# ------------------------------------------------------------------------------------------------------- integrands


@dataclass(frozen=True)
class _Found:
    """What is known of the functions of c_j that a leaf averages, for one family.

    dimension   of the lattice that they need
    said        what was found, in words
    known       whether they are constants, so that nothing is averaged
    """

    dimension: int
    said: list[str]
    known: bool = False


def _features(family: Family, heads: set[str], indices: int) -> _Found:
    """What is found about a leaf that averages these functions of c_j over `indices`."""
    if heads == {"Divergence"}:
        return _divergences(family)
    letter, expression = ("V", family.variance) if heads == {"Spread"} else ("s", family.mean)
    if expression is None:
        return _Found(indices * family.t + 1, [f"{family.name}: {letter}(c) by quadrature over beta"])
    parts = pieces(expression, family.c)
    orders = [_order(part, uses, family) for uses, part in parts]
    # A product s_j s_k, and <f, b_j> s_j, need one order more: only linear ones are then moments.
    most = 2 if heads == {"Spread"} else 1
    uses = max((len(u) for (u, _), order in zip(parts, orders, strict=True) if not _is_low(order, most)), default=0)
    said = _shape(family, f"{letter}(c) = {expression}", expression, orders)
    if uses == 0:
        # Moments of f are moments of y, and those of psi(b), which need the law of b alone.
        known = heads == {"Spread"} and not any(orders)
        return _Found(int(any(orders)), [f"{said}: {'known' if known else 'moments of f'}, no lattice of c"], known)
    partly = [f"{family.name}: {uses} of the {family.t} parameters enter together"] if uses < family.t else []
    return _Found(indices * uses + 1, [said, *partly])


def _order(part: Expr, uses: tuple[int, ...], family: Family) -> int | None:
    """The degree of a polynomial in one coordinate, otherwise None."""
    found = polynomial(part, uses, family.c)
    return None if found is None else len(found) - 1


def _is_low(order: int | None, most: int) -> bool:
    return order is not None and order <= most


def _shape(family: Family, formula: str, expression: Expr, orders: list[int | None]) -> str:
    if all(order is not None for order in orders):
        words = {0: "constant", 1: "linear", 2: "quadratic"}
        degree = max((order for order in orders if order is not None), default=0)
        return f"{family.name}: {formula}, {words.get(degree, f'of degree {degree}')}"
    short = formula if len(formula) < 90 else formula[:86] + " ..."
    return f"{family.name}: {short}"


def _divergences(family: Family) -> _Found:
    dimension, said = 0, []
    for form in family.divergences:
        prior = {"*": "any other prior" if len(family.divergences) > 1 else "every prior", "same": "its own base"}
        article = "an" if form.prior[0] in "aeiou" else "a"
        words = f"{family.name}: K against {prior.get(form.prior, f'{article} {form.prior} prior')}"
        words += f" (base {form.base})" if form.base != "*" else ""
        if form.remainder:
            said.append(f"{words}: by quadrature over beta")
            dimension = max(dimension, family.t + 1)
            continue
        parts = pieces(form.closed, family.c)
        high = [uses for uses, part in parts if not _is_low(_order(part, uses, family), 2)]
        sizes = max((len(uses) for uses in high), default=0)
        how = "moments of f, no lattice of c" if sizes == 0 else f"{sizes} of {family.t} parameters on a lattice"
        said.append(f"{words}: closed form, {how}")
        dimension = max(dimension, sizes + 1)
    return _Found(dimension, said)


# -------------------------------------------------------------------------------------------------------------- text


def psi_text(psi: Psi) -> str:
    """What was found about psi, in words."""
    found = [("kinks", psi.kinks), ("jumps", psi.jumps), ("poles", psi.poles)]
    where = "; ".join(f"{name} at {', '.join(map(str, points))}" for name, points in found if points)
    lines = [f"psi(b) = {psi.expression}", f"  derivative {psi.derivative}", f"  {where or 'smooth everywhere'}"]
    if psi.affine is not None:
        lines.append(f"  affine: slope {psi.affine[0]}, intercept {psi.affine[1]}")
    elif psi.linear_pieces is not None:
        lines.append(f"  linear between its breaks: {len(psi.linear_pieces)} pieces, integrated in closed form")
    low, high = ("unknown" if k is None else str(k).replace("oo", "faster than any power") for k in psi.growth)
    slope = "unknown" if psi.lipschitz is None else str(psi.lipschitz).replace("oo", "none")
    lines.append(f"  growth |b|^k: k = {low} towards -oo, {high} towards +oo; Lipschitz constant {slope}")
    if psi.domain != (-sympy.oo, sympy.oo):
        lines.append(f"  real on {psi.domain} only")
    return "\n".join(lines)


def family_text(family: Family) -> str:
    """A family in words: its law, and which of what follows from it has a closed form."""
    found = {"mean": family.mean, "variance": family.variance, "entropy": family.entropy}
    if family.tilted:
        return f"family {family.name}: t = {family.t}, {family.law}\n  mean, variance, draws: the base's own"
    closed = [name for name, formula in found.items() if formula is not None]
    closed += ["draws"] if family.samplers or family.points else []
    left = [name for name in (*found, "draws") if name not in closed]
    lines = [
        f"family {family.name}: t = {family.t}, {family.law}",
        f"  in closed form: {', '.join(closed) or 'nothing'}",
    ]
    return "\n".join([*lines, *([f"  by quadrature over beta: {', '.join(left)}"] if left else [])])
