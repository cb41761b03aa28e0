"""The tree on paper: a Unicode drawing, one node in full, the proof line by line, LaTeX, Mermaid, dot, JSON, MathML.

How a formula looks is `layout`'s (text, LaTeX) and `mathml`'s business; here it is put into a picture of the tree."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import sympy

from elbotree.derivation import layout
from elbotree.derivation import notation as nt
from elbotree.derivation.notation import Expr

if TYPE_CHECKING:
    from elbotree.derivation.gradient import Minimiser
    from elbotree.derivation.tree import JointLaw, LossTree, Node

LEGEND = (
    "f = y + w ψ(b), y = A x₁ + d, b = ⟨y, u⟩ + θ;  c_j = C_j f + bias_j;  "
    "s_j, V_j mean and variance of Q′_j(·; c_j), K_j = KL(Q′_j ‖ P_2,j);  H = B₂ᵀB₂"
)


def text(expr: Expr) -> str:
    """An expression in one line of Unicode."""
    return layout.text(layout.boxes(expr))


def latex(expr: Expr) -> str:
    """An expression in LaTeX."""
    return layout.latex(layout.boxes(expr))


def combination(node: Node) -> Expr | None:
    """How a node is made of its children, as an expression in their values; None for a leaf."""
    if not node.children:
        return None
    return node.factor * sympy.Add(*(nt.NodeValue(child) for child in node.children))


def combination_text(node: Node) -> str:
    total = " + ".join(node.children)
    return total if node.factor == 1 else f"({total}){text(node.factor).removeprefix('1')}"


def _combination_latex(node: Node) -> str:
    total = " + ".join(name[0] + "_" + name[1:] for name in node.children)
    if node.factor == 1:
        return total
    above, below = sympy.fraction(node.factor)
    return rf"\frac{{{'' if above == 1 else latex(above)}{total}}}{{{latex(below)}}}"


def draw(tree: LossTree) -> str:
    """The tree in Unicode, a node a line: its name, its formula, and for inner nodes how it is made of its children."""
    rows: list[tuple[str, str]] = []

    def walk(name: str, lead: str, joint: str, below: str) -> None:
        node = tree[name]
        made = f"{combination_text(node)}  =  " if node.children else ""
        rows.append((f"{lead}{joint}{name}", made + text(node.expression)))
        for child in node.children:
            last = child == node.children[-1]
            walk(child, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    walk(tree.names[0], "", "", "")
    width = max(len(name) for name, _ in rows)
    return "\n".join([*(f"{name.ljust(width)}  =  {formula}" for name, formula in rows), "", LEGEND])


def law_text(law: JointLaw) -> str:
    """A joint law in words: projections, the lattice's dimensions, linear factors, the paper's dimensions."""
    if law.dimension == 0:
        return "none (moments of y at most)"
    names = [text(part) for part in law.projections]
    through = " with b, through which f is pushed forward" if nt.b not in law.projections else ""
    words = f"of {', '.join(names)}{through}: {_plain(law.dimension)} dimensions"
    if law.linear:
        linear = ", ".join(text(part) for part in dict.fromkeys(law.linear))
        words += (
            f"; {linear} enters linearly (a derivative of the characteristic function), "
            f"on the paper's grid it is one more: {_plain(law.grid_dimension)}"
        )
    return words


def _plain(expr: Expr) -> str:
    return str(expr).replace("**", "^").replace("*", " ")


def describe(tree: LossTree, node: Node) -> str:
    """One node in full."""
    lines = [f"{node.name} = {text(node.expression)}"]
    if node.children:
        lines.append(f"{' ' * len(node.name)} = {combination_text(node)}")
    lines += [f"rule       {node.rule}", f"paper      {node.place}"]
    if node.erratum:
        lines.append(f"errata     {node.erratum}")
    lines += [
        f"joint law  {law_text(node.law)}",
        f"cost       {_plain(node.cost)}   (N bins or modes in each dimension)",
    ]
    return "\n".join(lines)


def proof(tree: LossTree) -> str:
    """The proof line by line: each step's rule, its arrow, and what it made."""
    lines = [f"L = {text(tree['L'].expression)}", "    Definition 2.3 with assumptions 1 to 4"]
    shown = "L"
    for number, step in enumerate(tree.steps(), start=1):
        if step.node != shown:
            lines.append(f"\n{step.node} = {text(step.before)}")
            shown = step.node
        lines.append(f"{number:3}  {step.rule}:  {step.arrow}")
        lines.append(f"     {step.node} = {text(step.after)}")
    return "\n".join(lines)


def _name_latex(name: str) -> str:
    return r"\mathcal{L}" if name == "L" else f"{name[0]}_{name[1:]}"


def to_latex(tree: LossTree, name: str | None = None) -> str:
    """LaTeX of one node's equation, or an `align*` of all of them."""
    if name is not None:
        return f"{_name_latex(name)} = {latex(tree[name].expression)}"
    lines = []
    for node in tree:
        made = f" = {_combination_latex(node)}" if node.children else ""
        lines.append(f"{_name_latex(node.name)} &= {latex(node.expression)}{made}")
    return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}"


def to_mathml(tree: LossTree, name: str) -> str:
    """Presentation MathML of one node's equation."""
    from elbotree.derivation import mathml

    return mathml.to_mathml(tree[name].expression, name)


def to_mermaid(tree: LossTree) -> str:
    """A Mermaid flowchart, parents above children."""
    lines = ["flowchart TD"]
    for node in tree:
        label = combination_text(node) if node.children else text(node.expression)
        lines.append(f'    {node.name}["{node.name} = {label.replace(chr(34), "#quot;")}"]')
    lines += [f"    {node.name} --> {child}" for node in tree for child in node.children]
    return "\n".join(lines) + "\n"


def to_dot(tree: LossTree) -> str:
    """Graphviz's dot language."""
    lines = ["digraph loss {", "    node [shape=box];"]
    for node in tree:
        label = combination_text(node) if node.children else text(node.expression)
        lines.append(f"    {node.name} [label={json.dumps(f'{node.name} = {label}', ensure_ascii=False)}];")
    lines += [f"    {node.name} -> {child};" for node in tree for child in node.children]
    return "\n".join([*lines, "}"]) + "\n"


def to_json(tree: LossTree) -> str:
    """JSON: format, hash, nodes with every field (expressions as text, LaTeX and srepr), gradient, and the proof."""
    nodes = [
        {
            "name": node.name,
            "text": text(node.expression),
            "latex": latex(node.expression),
            "sympy": sympy.srepr(node.expression),
            "rule": node.rule,
            "place": node.place,
            "erratum": node.erratum,
            "law": {
                "projections": [text(part) for part in node.law.projections],
                "linear": [text(part) for part in node.law.linear],
                "dimension": str(node.law.dimension),
                "grid_dimension": str(node.law.grid_dimension),
            },
            "cost": str(node.cost),
            "children": list(node.children),
            "factor": str(node.factor),
        }
        for node in tree
    ]
    gradient = [
        {"name": part.name, "meaning": part.meaning, "text": text(part.expression), "latex": latex(part.expression)}
        for part in tree.gradient
    ]
    steps = [
        {"node": step.node, "rule": step.rule, "arrow": step.arrow, "text": text(step.after)} for step in tree.steps()
    ]
    form = {"format": "elbotree-tree/1", "sha256": tree.sha256, "nodes": nodes, "gradient": gradient, "steps": steps}
    return json.dumps(form, indent=2, ensure_ascii=False)


def minimiser_text(minimiser: Minimiser) -> str:
    """A closed-form minimiser in one line, with its statistics."""
    where = ", ".join(f"{symbol} = {text(meaning)}" for symbol, meaning in minimiser.where)
    return f"{minimiser.name} = {text(minimiser.solution)}" + (f"   where {where}" if where else "")
