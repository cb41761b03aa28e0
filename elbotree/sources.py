"""What a path on the command line may be: a problem's JSON file (or "-", standard input), or the folder of a fit or of a
chain; and which feature model of it a verb means by "input", "output" or "model"."""

from __future__ import annotations

import sys
from pathlib import Path

from elbotree.fitting import Fit, load_problem
from elbotree.networks import Chain, load
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import FeatureModel, Layer, Problem
from elbotree.runtime.storage import CFG, parse_json

Source = Problem | Fit | Chain


def read_source(path: Path) -> Source:
    """The problem, fit or chain at a path, psi compiled; "-" is a problem on standard input. Raises InputError that names
    the file and what is wrong."""
    if str(path) == "-":
        try:
            problem = Problem.from_dict(parse_json(sys.stdin.read(), "standard input"))
            _ = problem.layer.activation
        except InputError as error:
            shown = str(error).removeprefix("standard input: ")
            raise type(error)(f"standard input: {shown}") from None
        return problem
    if path.is_dir() and not (path / CFG).exists():
        raise InputError(
            f"{path} is a folder without {CFG}; give the folder of a fit or a chain, or a problem's JSON file"
        )
    return load(path) if path.is_dir() else load_problem(path)


def problem_at(path: Path) -> Problem:
    """The problem at a path, a fit's own among them. Raises InputError for a chain, which has no encoder to evaluate."""
    found = read_source(path)
    if isinstance(found, Chain):
        raise InputError(
            f"{path} is the folder of a chain, whose loss is in its report; give a fit's folder or a problem"
        )
    return found.problem if isinstance(found, Fit) else found


def law_of(source: Source, which: str | None) -> tuple[FeatureModel, tuple[Layer, ...]]:
    """A feature model and the layers to send it through: (input, ()) for "input", (input, all layers) for "output",
    (the fitted model, ()) for "model", of a chain its last. Left out: "model" of what was fitted, "output" of a problem.
    """
    which = which or ("output" if isinstance(source, Problem) else "model")
    if isinstance(source, Chain):
        return (source.models[-1], ()) if which == "model" else (source.p1, source.layers if which == "output" else ())
    problem = source.problem if isinstance(source, Fit) else source
    return (problem.model, ()) if which == "model" else (problem.input, (problem.layer,) if which == "output" else ())


def one_layer(layers: tuple[Layer, ...]) -> Layer:
    """The only layer; the exact law of an output is there for one layer alone. Raises InputError for a longer chain."""
    if len(layers) != 1:
        raise InputError(
            f"--of output: the exact law is there for one layer, and this chain has {len(layers)}; ask for --of model"
        )
    return layers[0]


def check_row(row: list[float], model: FeatureModel, layers: tuple[Layer, ...]) -> None:
    """Raise InputError unless a read-out has a number for every coordinate of what it reads."""
    n = layers[-1].n2 if layers else model.n
    if len(row) != n:
        raise InputError(f"--row has {len(row)} numbers; what it reads has {n} coordinates, so it must have {n}")
