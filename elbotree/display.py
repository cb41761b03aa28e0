"""What the command line prints of the derived tree: which of the tree's own renderings a `--format` stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from elbotree.runtime.errors import InputError

if TYPE_CHECKING:
    from elbotree.derivation import LossTree


def tree_text(tree: LossTree, node: str | None, style: str) -> str:
    """The text that `elbotree derive` prints: the whole tree or one node, in one of its formats.

    Raises InputError for a node that the tree does not have, and for a picture of one node alone.
    """
    if node is not None and node not in tree.names:
        raise InputError(f"--node {node}: the loss tree has no such node; its nodes are {', '.join(tree.names)}")
    if style in ("mermaid", "dot"):
        if node is not None:
            raise InputError(f"--format {style} draws the whole tree; leave --node out, or use plain, json or latex")
        return (tree.to_mermaid() if style == "mermaid" else tree.to_dot()).rstrip("\n")
    if style == "latex":
        return tree.to_latex(node)
    if style == "json":
        return tree.to_json() if node is None else _node_json(tree, node)
    return str(tree) if node is None else tree.describe(node)


def _node_json(tree: LossTree, name: str) -> str:
    nodes = json.loads(tree.to_json())["nodes"]
    return json.dumps(next(node for node in nodes if node["name"] == name), indent=2, ensure_ascii=False)
