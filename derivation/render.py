"""The tree on paper: a Unicode drawing, one node in full, the proof line by line, LaTeX, Mermaid, dot, JSON, MathML.

How a formula looks is `layout`'s (text, LaTeX) and `mathml`'s business; here it is put into a picture of the tree."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from html import escape
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


def cost_text(node: Node) -> str:
    """A node's cost as a formula, m2^2 N^(2 t + 1) and so on."""
    return _plain(node.cost)


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


def proof_text(tree: LossTree) -> str:
    """The whole proof: the lemmas that the tree rests on, each line of it with rule and precondition, and the errata."""
    from elbotree.derivation import rules
    from elbotree.derivation.lemmas import LEMMAS

    parts = ["\n".join(str(item) for item in LEMMAS[:2]), proof(tree)]
    used = dict.fromkeys(step.rule for step in tree.steps())
    parts.append("Rules, and when they apply\n" + "\n".join(_rule_lines(getattr(rules, name)) for name in used))
    notes = [f"  {node.name}, {node.place}: {node.erratum}" for node in tree if node.erratum]
    parts.append("Where this differs from the paper as printed\n" + "\n".join(notes))
    return "\n\n".join(parts)


def _rule_lines(rule: Callable[[Expr], Expr]) -> str:
    """A rule's name and arrow, and below them its precondition, from its docstring."""
    arrow, _, rest = (rule.__doc__ or "").partition("\n")
    wrapped = textwrap.wrap(" ".join(rest.split()), 108, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([f"  {rule.__name__}:  {arrow.strip()}", *wrapped])


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
math { font-size: 1.1em; overflow-x: auto; display: block; text-align: left; margin: .4rem 0; }
section { border-top: 1px solid #8886; padding: .6rem 0; }
code { font-size: .92em; } .place { opacity: .75; } li { margin: .5rem 0; }
"""


def proof_html(tree: LossTree) -> str:
    """The proof as one self-contained page with MathML: lemmas, then every node with its lines, joint law and cost."""
    from elbotree.derivation import mathml
    from elbotree.derivation.lemmas import LEMMAS

    body = ["<h1>The loss, derived</h1>", f"<p>{escape(LEGEND)}</p>", "<section><h2>Lemmas</h2><ul>"]
    for item in LEMMAS:
        note = f'<br><span class="place">Errata: {escape(item.erratum)}</span>' if item.erratum else ""
        body.append(f"<li><b>{escape(item.name)}.</b> {escape(item.statement)}{note}</li>")
    body.append("</ul></section>")
    for node in tree:
        body += [
            f'<section id="{node.name}"><h2>{node.name} <small class="place">{escape(node.place)}</small></h2>',
            mathml.to_mathml(node.expression, node.name),
        ]
        if node.children:
            links = " + ".join(f'<a href="#{child}">{child}</a>' for child in node.children)
            by = "" if node.factor == 1 else f", times {escape(text(node.factor))}"
            body.append(f"<p>{node.name} is the sum of its children {links}{by}.</p>")
        if node.erratum:
            body.append(f'<p class="place">Errata: {escape(node.erratum)}</p>')
        law, cost = escape(law_text(node.law)), escape(_plain(node.cost))
        body.append(f"<p>Joint law {law}. Cost {cost}, N bins or modes in each dimension.</p>")
        steps = [step for step in tree.steps() if step.node == node.name]
        if steps:
            lines = "".join(
                f"<li><code>{escape(step.rule)}</code> {escape(step.arrow)}{mathml.to_mathml(step.after)}</li>"
                for step in steps
            )
            body.append(f"<ol>{lines}</ol>")
        body.append("</section>")
    body.append("<section><h2>Gradient</h2>")
    for part in tree.gradient:
        head = f"<h3>{escape(part.name)} <small>{escape(part.meaning)}</small></h3>"
        body.append(head + mathml.to_mathml(part.expression))
    body.append("</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>The loss, derived</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


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
