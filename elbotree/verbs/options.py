"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path

import click

FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["rich", "plain", "json"]),
    default="rich",
    show_default=True,
    help="How to print.",
)
PATH = click.Path(path_type=Path)
SCHEDULER = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="A Dask scheduler, such as tcp://host:8786, whose workers make the sums over pairs of features (needs the extra "
    "`cluster`).",
)
OF = click.option(
    "--of",
    "which",
    type=click.Choice(["input", "output", "model"]),
    help="The input model, the layer's output, or the model of it (of a chain the last).  [default: model for a folder, "
    "output for a problem]",
)
