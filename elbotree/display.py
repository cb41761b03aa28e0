"""What `elbotree derive` prints: which of the derivation's own renderings its options stand for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from elbotree.runtime.errors import InputError

if TYPE_CHECKING:
    from elbotree.derivation import LossTree

_PICTURES = ("mermaid", "dot", "html")


def tree_text(tree: LossTree, node: str | None, style: str, steps: bool = False) -> str:
    """The text that `elbotree derive` prints: the whole tree or one item, its formula or its proof, in one of the formats.

    Raises InputError for a name that the derivation does not have, and for combinations of options without a meaning.
    """
    if steps and style in ("latex", *_PICTURES[:2]):
        raise InputError(f"--format {style} has no lines of a proof; print them as plain, html or json")
    if node is not None:
        return _item_text(tree, node, style, steps)
    if style == "json":
        return tree.to_json()
    if style == "html":
        return tree.proof_html().rstrip("\n")
    if style in _PICTURES:
        return (tree.to_mermaid() if style == "mermaid" else tree.to_dot()).rstrip("\n")
    if style == "latex":
        return tree.to_latex()
    return tree.proof_text() if steps else str(tree)


def _item_text(tree: LossTree, name: str, style: str, steps: bool) -> str:
    from elbotree.derivation import catalogue

    item = catalogue.find(tree, name)
    if style in _PICTURES:
        raise InputError(f"--format {style} draws the whole tree; leave --node out, or use plain, json or latex")
    if style == "latex":
        return catalogue.to_latex(item)
    if style == "json":
        return json.dumps(catalogue.to_dict(tree, item), indent=2, ensure_ascii=False)
    return catalogue.steps_text(tree, item) if steps else catalogue.describe(item)
