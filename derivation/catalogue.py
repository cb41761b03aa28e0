"""Everything of the derivation that can be asked for by name and printed alone: the nodes of the tree, the derivatives of
L, the closed-form minimisers, the profile loss, and the paper's lemmas. What a formula looks like is `layout`'s work."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

import sympy

from elbotree.derivation import render
from elbotree.derivation.gradient import GradientNode, Minimiser, ProfileLoss, minimisers, profile_loss
from elbotree.derivation.grammar import nearest
from elbotree.derivation.lemmas import LEMMAS, Lemma
from elbotree.derivation.tree import Node, Step
from elbotree.runtime.errors import InputError

if TYPE_CHECKING:
    from elbotree.derivation.notation import Expr
    from elbotree.derivation.tree import LossTree

Item = Node | GradientNode | Minimiser | ProfileLoss | Lemma


def items(tree: LossTree) -> tuple[Item, ...]:
    """All of them: nodes, derivatives, minimisers, the profile loss, lemmas."""
    return (*tree, *tree.gradient, *minimisers(tree), profile_loss(tree), *LEMMAS)


def find(tree: LossTree, name: str) -> Item:
    """The item of that name, capital letters or not. Raises InputError naming the nearest one and all there are."""
    found = {item.name.lower(): item for item in items(tree)}
    wanted = " ".join(name.split()).lower()
    if wanted not in found:
        known = tuple(item.name for item in found.values())
        raise InputError(f"there is no {name!r} in the derivation{nearest(name, known)}; there are {', '.join(known)}")
    return found[wanted]


def steps(tree: LossTree, item: Item) -> tuple[Step, ...]:
    """The lines of the proof that made an item: a node's from its parent, a derivative's from L; none for the others."""
    if isinstance(item, GradientNode):
        return item.steps
    if isinstance(item, Node):
        parents = [node.name for node in tree if item.name in node.children]
        return tuple(step for step in tree.steps() if step.node in parents)
    return ()


def steps_text(tree: LossTree, item: Item) -> str:
    """Those lines as text. Raises InputError for an item that no line made."""
    lines = steps(tree, item)
    if not lines:
        raise InputError(f"{item.name} is not made by steps of its own; leave --steps out to see how it comes about")
    return "\n".join([f"{lines[0].node} = {render.text(lines[0].before)}", *render.step_lines(lines)])


@singledispatch
def describe(item: Item) -> str:
    """One item in full, as text."""
    raise TypeError(f"no description of {type(item).__name__}; add one to `catalogue.describe`")


@describe.register
def _(item: Node) -> str:
    lines = [f"{item.name} = {render.text(item.expression)}"]
    if item.children:
        lines.append(f"{' ' * len(item.name)} = {render.combination_text(item)}")
    lines += [f"rule       {item.rule}", f"paper      {item.place}"]
    if item.erratum:
        lines.append(f"errata     {item.erratum}")
    return "\n".join([*lines, *_law_and_cost(item)])


@describe.register
def _(item: GradientNode) -> str:
    rules = "; ".join(dict.fromkeys(step.rule for step in item.steps))
    free = ", ".join(map(str, item.indices))
    return "\n".join(
        [
            f"{item.name} = {render.text(item.expression)}",
            f"meaning    {item.meaning}" + (f"; free indices {free}" if free else ""),
            f"rule       {rules}",
            f"from       L by {item.steps[0].arrow}",
            "paper      not there: the paper minimises L without saying how",
            *_law_and_cost(item),
        ]
    )


def _law_and_cost(item: Node | GradientNode) -> list[str]:
    return [
        f"joint law  {render.law_text(item.law)}",
        f"cost       {render.cost_text(item.cost)}, with N modes in each dimension",
        f"           {render.cost_text(item.grid_cost)}, with N bins in each dimension of the paper's grid (Fact 3.3)",
    ]


@describe.register
def _(item: Minimiser) -> str:
    where = [f"where      {symbol} = {render.text(meaning)}" for symbol, meaning in item.where]
    return "\n".join(
        [
            f"{item.name} = {render.text(item.solution)}",
            *where,
            f"meaning    {item.meaning}",
            f"equation   {render.text(item.equation)} = 0",
            f"how        {item.how}",
        ]
    )


@describe.register
def _(item: ProfileLoss) -> str:
    return f"{item.name} = {render.text(item.expression)}\nmeaning    {item.meaning}\nhow        {item.how}"


@describe.register
def _(item: Lemma) -> str:
    return str(item)


def expression_of(item: Item) -> Expr:
    """The item's formula. Raises InputError for a lemma, which is a statement."""
    if isinstance(item, Lemma):
        raise InputError(f"{item.name} is a statement, not a formula; print it as plain text or json")
    return item.solution if isinstance(item, Minimiser) else item.expression


def to_latex(item: Item) -> str:
    """`name = formula` in LaTeX."""
    return f"{render.name_latex(item.name)} = {render.latex(expression_of(item))}"


def to_dict(tree: LossTree, item: Item) -> dict[str, Any]:
    """Every field of an item that JSON can hold; expressions as text, LaTeX and sympy's srepr."""
    if isinstance(item, Lemma):
        return {"name": item.name, "statement": item.statement, "erratum": item.erratum}
    expression = expression_of(item)
    form: dict[str, Any] = {
        "name": item.name,
        "text": render.text(expression),
        "latex": render.latex(expression),
        "sympy": sympy.srepr(expression),
    }
    if isinstance(item, Node):
        form |= {"rule": item.rule, "place": item.place, "erratum": item.erratum}
        form |= {"children": list(item.children), "factor": str(item.factor)}
    else:
        form["meaning"] = item.meaning
    if isinstance(item, Minimiser | ProfileLoss):
        form["how"] = item.how
    if isinstance(item, Minimiser):
        form["equation"] = render.text(item.equation)
        form["where"] = {str(symbol): render.text(meaning) for symbol, meaning in item.where}
    if isinstance(item, Node | GradientNode):
        form["law"] = {
            "projections": [render.text(part) for part in item.law.projections],
            "linear": [render.text(part) for part in item.law.linear],
            "dimension": str(item.law.dimension),
            "grid_dimension": str(item.law.grid_dimension),
        }
        form |= {"cost": str(item.cost), "grid_cost": str(item.grid_cost)}
        form["steps"] = [
            {"rule": step.rule, "arrow": step.arrow, "text": render.text(step.after)} for step in steps(tree, item)
        ]
    return form
