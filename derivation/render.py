"""The tree on paper: a Unicode drawing, the proof line by line, LaTeX, Mermaid, dot, JSON, MathML.

How a formula looks is `layout`'s (text, LaTeX) and `mathml`'s business; here it is put into a picture of the tree. One
item alone is `catalogue`'s, the page `page`'s."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import sympy

from elbotree.derivation import layout
from elbotree.derivation import notation as nt
from elbotree.derivation.notation import Expr

if TYPE_CHECKING:
    from elbotree.derivation.gradient import Minimiser
    from elbotree.derivation.tree import JointLaw, LossTree, Node, Step

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


def cost_text(expr: Expr) -> str:
    """A cost formula in one line, its logarithms to base 2 by name."""
    named = expr.replace(sympy.log, lambda x: sympy.log(2) * sympy.Symbol(f"log2({x})") if x != 2 else sympy.log(2))
    return _plain(named)


def step_lines(steps: Iterable[Step], first: int = 1) -> list[str]:
    """Two lines a step: its number, rule and arrow, and what it made."""
    lines = []
    for number, step in enumerate(steps, start=first):
        lines.append(f"{number:3}  {step.rule}:  {step.arrow}")
        lines.append(f"     {step.node} = {text(step.after)}")
    return lines


def proof(tree: LossTree) -> str:
    """The proof of the tree, line by line: each step's rule, its arrow, and what it made."""
    lines = [f"L = {text(tree['L'].expression)}", "    Definition 2.3 with assumptions 1 to 4"]
    shown = "L"
    for number, step in enumerate(tree.steps(), start=1):
        if step.node != shown:
            lines.append(f"\n{step.node} = {text(step.before)}")
            shown = step.node
        lines += step_lines([step], number)
    return "\n".join(lines)


def proof_text(tree: LossTree) -> str:
    """The whole proof: the lemmas that the tree rests on, each line of it, the gradient's lines, the minimisers, the rules
    with their preconditions, and the errata."""
    from elbotree.derivation import rules
    from elbotree.derivation.gradient import minimisers, profile_loss
    from elbotree.derivation.lemmas import LEMMAS

    profile = profile_loss(tree)
    notes = [f"  {node.name}, {node.place}: {node.erratum}" for node in tree if node.erratum]
    parts = [
        "\n".join(map(str, LEMMAS)),
        proof(tree),
        "The gradient, from L through its leaves",
        *("\n".join([f"{node.name}, {node.meaning}", *step_lines(node.steps)]) for node in tree.gradient),
        "Where the gradient is 0",
        *(f"{minimiser_text(item)}\n     {text(item.equation)} = 0:  {item.how}" for item in minimisers(tree)),
        f"{profile.name} = {text(profile.expression)}\n     {profile.how}",
        "Rules, and when they apply\n" + "\n".join(_rule_lines(getattr(rules, name)) for name in rules_used(tree)),
        "Where this differs from the paper as printed\n" + "\n".join(notes),
    ]
    return "\n\n".join(parts)


def rules_used(tree: LossTree) -> list[str]:
    """The names of the rules that the tree and its gradient are made by, in the order of first use."""
    from elbotree.derivation import rules

    steps = [*tree.steps(), *(step for node in tree.gradient for step in node.steps)]
    return [name for name in dict.fromkeys(step.rule for step in steps) if hasattr(rules, name)]


def _rule_lines(rule: Callable[[Expr], Expr]) -> str:
    """A rule's name and arrow, and below them its precondition, from its docstring."""
    arrow, _, rest = (rule.__doc__ or "").partition("\n")
    wrapped = textwrap.wrap(" ".join(rest.split()), 108, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([f"  {rule.__name__}:  {arrow.strip()}", *wrapped])


def name_latex(name: str) -> str:
    """A name such as L, T2, dL/dB, B2* or sigma2*^2 in LaTeX."""
    if name in ("L", "L*"):
        return r"\mathcal{L}" + name[1:]
    if re.fullmatch(r"[RSTU][123]", name):
        return f"{name[0]}_{name[1:]}"
    return rf"\text{{{name.replace('^', chr(92) + '^{}')}}}"


def to_latex(tree: LossTree, name: str | None = None) -> str:
    """LaTeX of one node's equation, or an `align*` of all of them."""
    if name is not None:
        return f"{name_latex(name)} = {latex(tree[name].expression)}"
    lines = []
    for node in tree:
        made = f" = {_combination_latex(node)}" if node.children else ""
        lines.append(f"{name_latex(node.name)} &= {latex(node.expression)}{made}")
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
    """JSON: format, hash, nodes with every field (expressions as text, LaTeX and srepr), gradient, minimisers, proof."""
    from elbotree.derivation import catalogue
    from elbotree.derivation.gradient import minimisers

    nodes, gradient, best = (
        [catalogue.to_dict(tree, item) for item in kind] for kind in (tree, tree.gradient, minimisers(tree))
    )
    steps = [
        {"node": step.node, "rule": step.rule, "arrow": step.arrow, "text": text(step.after)} for step in tree.steps()
    ]
    form = {
        "format": "elbotree-tree/1",
        "sha256": tree.sha256,
        "nodes": nodes,
        "gradient": gradient,
        "minimisers": best,
    }
    return json.dumps(form | {"steps": steps}, indent=2, ensure_ascii=False)


def minimiser_text(minimiser: Minimiser) -> str:
    """A closed-form minimiser in one line, with its statistics."""
    shown = [(symbol, meaning) for symbol, meaning in minimiser.where if meaning != minimiser.solution]
    where = ", ".join(f"{symbol} = {text(meaning)}" for symbol, meaning in shown)
    return f"{minimiser.name} = {text(minimiser.solution)}" + (f"   where {where}" if where else "")
