"""How the documentation site is built: Sphinx with MyST pages and the furo theme, `make docs`.

Sphinx, because it, MyST and furo are all released regularly and the site that they make needs no network: formulas are
MathML, printed by the project's own derivation (the directive `formula`), so that the site shows what the code derives.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import elbotree

project = "elbotree"
author = copyright = "The elbotree authors"
version = release = elbotree.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"elbotree {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = html_show_sphinx = False
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Array": "Array"}
exclude_patterns = ["_build", "figures.py"]
nitpicky = False


class Formula(SphinxDirective):
    """```{formula} T2``` shows the formula that the derivation has for a node of the loss tree, as MathML."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        tree = elbotree.derive()
        name = self.arguments[0]
        if name not in tree.names:
            raise self.error(f"the loss tree has no node {name!r}; its nodes are {', '.join(tree.names)}")
        return [nodes.raw("", f'<div class="formula">{tree.to_mathml(name)}</div>', format="html")]


class Described(SphinxDirective):
    """```{described} T2``` shows what `elbotree derive --node T2` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = elbotree.derive().describe(self.arguments[0])
        block = nodes.literal_block(text, text)
        block["language"] = "none"
        return [block]


class Help(SphinxDirective):
    """```{verb} evaluate``` shows what `elbotree evaluate --help` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        import click

        from elbotree.cli import main

        name = self.arguments[0]
        command = main.commands[name]
        context = click.Context(command, info_name=f"elbotree {name}", max_content_width=90, terminal_width=90)
        text = command.get_help(context)
        block = nodes.literal_block(text, text)
        block["language"] = "none"
        return [block]


class Stated(SphinxDirective):
    """```{lemma} Lemma 2.1``` shows a lemma's corrected statement, and how it differs from the paper's print."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        from elbotree.derivation.lemmas import lemma

        found = lemma(self.arguments[0])
        quote = nodes.block_quote("", nodes.paragraph("", found.statement))
        if not found.erratum:
            return [quote]
        return [
            quote,
            nodes.paragraph(
                "", "", nodes.emphasis("", "Errata. "), nodes.Text(f"{found.erratum[0].upper()}{found.erratum[1:]}.")
            ),
        ]


def docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The project's docstrings are prose with indented tables of arguments; both are shown as they are written."""
    out: list[str] = []
    indented = example = False
    for line in lines:
        if not line.strip():
            example = False
            out.append(line)
            continue
        example = example or line.startswith(">>>")
        # a table's rows are indented, or name, at least two spaces, what it is
        starts = not example and (line[0] in " \t" or re.match(r"\S.* {2,}\S", line) is not None)
        if starts and not indented:
            out += ["", "::", ""]
        elif indented and not starts:
            out.append("")
        indented = starts
        out.append("    " + line if starts else line if example else _escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    """A line of prose: | and * are norms and products in these docstrings and _ ends names, none of them is markup; what
    stands between backquotes is code, a plural s after it is not."""
    pieces = re.split(r"(`[^`]+`)", line)
    for at, piece in enumerate(pieces):
        if at % 2 == 0:
            pieces[at] = re.sub(r"([|*_\\])", r"\\\1", piece)
            if at and pieces[at][:1].isalnum():
                pieces[at] = "\\ " + pieces[at]
    return "".join(pieces)


def proof(app: Sphinx, failure: Exception | None) -> None:
    """The proof, line by line, as a page of its own beside the others."""
    if failure is None and app.builder.format == "html":
        Path(app.outdir, "proof.html").write_text(elbotree.derive().proof_html(), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("formula", Formula)
    app.add_directive("described", Described)
    app.add_directive("lemma", Stated)
    app.add_directive("verb", Help)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("build-finished", proof)
    return {"parallel_read_safe": True}
