"""The whole proof as one self-contained page: lemmas, every node with its lines, the gradient, the minimisers, in MathML.
Well-formed as XML too, so that any reader of markup can take it apart. How a formula looks is `mathml`'s work."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from elbotree.derivation import mathml, render
from elbotree.derivation import rules as all_rules
from elbotree.derivation.gradient import GradientNode, minimisers, profile_loss
from elbotree.derivation.lemmas import LEMMAS

if TYPE_CHECKING:
    from elbotree.derivation.tree import LossTree, Node, Step

_STYLE = """
:root { color-scheme: light dark; }
body { background: Canvas; font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
math { font-size: 1.1em; overflow: auto hidden; padding: .35rem 0; display: block; text-align: left; margin: .4rem 0; }
section { border-top: 1px solid #8886; padding: .6rem 0; }
code { font-size: .92em; } .note { opacity: .75; } li { margin: .5rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { opacity: .75; } dd { margin: 0; }
nav a { margin-right: .7rem; } p, li, dd { overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
  ol, ul { padding-left: 1.4rem; } }
"""


def proof_html(tree: LossTree) -> str:
    """The page as text; nothing in it is fetched from elsewhere."""
    body = [
        "<h1>The loss, derived</h1>",
        f"<p>{escape(render.LEGEND)}</p>",
        _contents(tree),
        _lemmas(),
        *(_node(tree, node) for node in tree),
        _section("gradient", "The gradient", [_derivative(node) for node in tree.gradient]),
        _section("minimisers", "Minimisers", _minimisers(tree)),
        _section("rules", "The rules, and when they apply", [_rules(tree)]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/><title>The loss, derived</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _contents(tree: LossTree) -> str:
    others = (("lemmas", "lemmas"), ("gradient", "gradient"), ("minimisers", "minimisers"), ("rules", "rules"))
    links = [*((name, name) for name in tree.names), *others]
    return "<nav>" + " ".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links) + "</nav>"


def _section(anchor: str, title: str, content: Iterable[str]) -> str:
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n' + "\n".join(content) + "\n</section>"


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs if text) + "</dl>"


def _lemmas() -> str:
    rows = []
    for item in LEMMAS:
        note = f'<br/><span class="note">Errata: {escape(item.erratum)}</span>' if item.erratum else ""
        rows.append(f"<li><b>{escape(item.name)}.</b> {escape(item.statement)}{note}</li>")
    return _section("lemmas", "Lemmas", ["<ul>", *rows, "</ul>"])


def _node(tree: LossTree, node: Node) -> str:
    content = [mathml.to_mathml(node.expression, node.name)]
    if node.children:
        links = " + ".join(f'<a href="#{child}">{child}</a>' for child in node.children)
        by = "" if node.factor == 1 else f", times {escape(render.text(node.factor))}"
        content.append(f"<p>{node.name} is the sum of its children {links}{by}.</p>")
    content.append(
        _facts([("paper", node.place), ("errata", node.erratum), ("made by", node.rule), *_law_and_cost(node)])
    )
    content.append(_lines(step for step in tree.steps() if step.node == node.name))
    return _section(node.name, node.name, content)


def _law_and_cost(item: Node | GradientNode) -> list[tuple[str, str]]:
    return [
        ("joint law", render.law_text(item.law)),
        ("cost", f"{render.cost_text(item.cost)}, N modes in each dimension"),
        ("on the paper's grid", f"{render.cost_text(item.grid_cost)}, N bins in each dimension"),
    ]


def _lines(steps: Iterable[Step]) -> str:
    rows = [
        f"<li><code>{escape(step.rule)}</code> {escape(step.arrow)}{mathml.to_mathml(step.after)}</li>"
        for step in steps
    ]
    return f"<ol>{''.join(rows)}</ol>" if rows else ""


def _derivative(node: GradientNode) -> str:
    head = f"<h3>{escape(node.name)} <small>{escape(node.meaning)}</small></h3>"
    return head + mathml.to_mathml(node.expression) + _facts(_law_and_cost(node)) + _lines(node.steps)


def _minimisers(tree: LossTree) -> list[str]:
    profile = profile_loss(tree)
    found = [
        f"<h3>{escape(item.name)} <small>{escape(item.meaning)}</small></h3>"
        + mathml.to_mathml(item.solution)
        + "".join(
            f"<p>where {escape(str(symbol))} is {mathml.to_mathml(meaning)}</p>" for symbol, meaning in item.where
        )
        + f"<p>It solves {mathml.to_mathml(item.equation)} = 0: {escape(item.how)}.</p>"
        for item in minimisers(tree)
    ]
    head = f"<h3>{escape(profile.name)} <small>{escape(profile.meaning)}</small></h3>"
    return [*found, head + mathml.to_mathml(profile.expression) + f"<p>{escape(profile.how)}.</p>"]


def _rules(tree: LossTree) -> str:
    rows = []
    for name in render.rules_used(tree):
        arrow, _, rest = (getattr(all_rules, name).__doc__ or "").partition("\n")
        rows.append(
            f"<li><b>{escape(name)}</b> {escape(arrow)}<br/><span class='note'>{escape(' '.join(rest.split()))}</span></li>"
        )
    return "<ul>" + "".join(rows) + "</ul>"
