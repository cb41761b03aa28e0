"""The verbs `derive` and `kernels`: the derivation and what is generated from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from elbotree.verbs.options import FORMAT, PATH
from elbotree.verbs.screen import Mistake, console, note, progress, say, show_python


@click.command(short_help="Print the derived loss as a tree, with formulas.")
@click.option(
    "--node",
    metavar="NAME",
    help="One item alone, in full: a node (L, R1, ..., U3), a derivative (dL/dB), a minimiser (B2*, L*), "
    "a lemma (Lemma 3.4).",
)
@click.option("--steps", is_flag=True, help="The proof line by line, each a named rule (with --node, of that item).")
@click.option("--verify", is_flag=True, help="Check every lemma, split, line and derivative exactly, and say which.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["rich", "plain", "json", "latex", "mermaid", "dot", "html"]),
    default="rich",
    show_default=True,
    help="How to print; html is a page with the whole proof.",
)
def derive(node: str | None, steps: bool, verify: bool, style: str) -> None:
    """Print the loss, derived from the ELBO by named rules, as a tree with formulae.

    \b
    elbotree derive
    elbotree derive --node T2
    elbotree derive --steps
    elbotree derive --node dL/dB --steps
    elbotree derive --format html > proof.html
    """
    from elbotree.derivation import derive as derive_tree
    from elbotree.display import tree_text

    if verify:
        if node is not None or steps or style not in ("rich", "plain"):
            raise Mistake("--verify checks the whole derivation and prints plain text; leave the other options out")
        from elbotree.derivation.lemmas import verify_all

        with progress("verifying the derivation"):
            say(str(verify_all()))
        return
    with progress("deriving the loss"):
        tree = derive_tree()
    text = tree_text(tree, node, style, steps)
    if style == "rich" and sys.stdout.isatty():
        from rich.text import Text

        drawn = Text(text)
        drawn.highlight_regex(r"\b([RSTU][123]|L)\b(?=\s+=|$)", "bold cyan")
        console().print(drawn, soft_wrap=True)
    else:
        say(text)


@click.command(short_help="Print numpy kernels for a psi and families.")
@click.option("--psi", default="relu", show_default=True, help="A nonlinearity by name, or an expression in b.")
@click.option(
    "--family",
    "families",
    multiple=True,
    default=("tilted",),
    show_default=True,
    help="Posterior family; repeat it or separate several by commas.",
)
@click.option("--out", type=PATH, help="Write the module there instead of to standard output.")
@click.option("--explain", is_flag=True, help="Say what the algebra found and did, instead of printing the module.")
@click.option("--check", "checked", type=PATH, metavar="FILE", help="Say whether FILE still matches the derivation.")
@FORMAT
def kernels(
    psi: str, families: tuple[str, ...], out: Path | None, explain: bool, checked: Path | None, style: str
) -> None:
    """Print the numpy kernels for a nonlinearity and posterior families: a readable Python module without sympy.

    \b
    elbotree kernels --psi relu --family bernoulli --out relu_kernels.py
    elbotree kernels --psi "max(b, 0) - 0.1*max(b - 1, 0)" --family tilted,normal
    elbotree kernels --psi identity --family normal --explain
    elbotree kernels --check relu_kernels.py
    """
    from elbotree.codegen import check, generate

    if checked is not None:
        differences = check(checked)
        if style == "json":
            say(json.dumps({"file": str(checked), "differences": list(differences)}))
        else:
            for line in differences:
                say(line)
        if differences:
            raise Mistake(f"{checked} differs from what this version generates; write it again with --out")
        note(f"{checked} matches")
        return
    names = [name.strip() for group in families for name in group.split(",") if name.strip()]
    with progress("generating kernels"):
        module = generate(psi=psi, family=names)
    if out is not None:
        module.write(out)
        note(f"wrote {out}")
    if style == "json":
        made = {"explanation": module.explain()} if explain else {"source": module.source}
        written = None if out is None else str(out)
        say(json.dumps({"psi": psi, "families": list(module.families), "written": written, **made}))
    elif explain:
        say(module.explain())
    elif out is None:
        show_python(module.source.rstrip("\n"), style)
