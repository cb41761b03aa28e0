"""The verb `compile`: networks as chains of layers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from elbotree.verbs.options import FORMAT, PATH
from elbotree.verbs.screen import say


@click.command(name="compile", short_help="Plan a network as a chain of layers.")
@click.argument("network", type=PATH)
@FORMAT
def compile_(network: Path, style: str) -> None:
    """Plan a network as a chain of layers of the paper's form: widths, steps, estimated cost.

    NETWORK is an ONNX file (needs the extra `onnx`).

    \b
    elbotree compile network.onnx
    """
    import elbotree

    plan = elbotree.plan_network(network)
    say(json.dumps(plan.to_dict()) if style == "json" else str(plan))
