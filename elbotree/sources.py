"""What a path on the command line may be: a problem's JSON file (or "-", standard input), or the folder of a fit or of a
chain; and which feature model of it a verb means by "input", "output" or "model"."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elbotree.fitting import Fit
from elbotree.networks import Chain, load
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import FeatureModel, Layer, Problem
from elbotree.runtime.storage import CFG, ArrayFiles, parse_json, read_json


@dataclass(frozen=True)
class Given:
    """A layer and the model of its input: a problem without `model` and `encoder`, which laws do not need."""

    layer: Layer
    input: FeatureModel


Source = Problem | Fit | Chain


def read_source(path: Path) -> Source:
    """The problem, fit or chain at a path, psi compiled; "-" is a problem on standard input. Raises InputError that names
    the file and what is wrong."""
    return _load(path) if path.is_dir() else _problem(*_json(path))


def read_law_source(path: Path) -> Source | Given:
    """The same, where a problem may lack `model` and `encoder`."""
    if path.is_dir():
        return _load(path)
    data, name, folder = _json(path)
    return _given(data, name, folder) if _is_bare(data) else _problem(data, name, folder)


def layer_and_input(path: Path) -> tuple[Layer, FeatureModel]:
    """What a fit begins with: `layer` and `input` of a problem, in which `model` and `encoder` may be absent."""
    data, name, folder = _json(path)
    found = _given(data, name, folder) if _is_bare(data) else _problem(data, name, folder)
    return found.layer, found.input


def _load(path: Path) -> Fit | Chain:
    if not (path / CFG).exists():
        raise InputError(
            f"{path} is a folder without {CFG}; give the folder of a fit or a chain, or a problem's JSON file"
        )
    return load(path)


def _json(path: Path) -> tuple[Any, str, Path | None]:
    """JSON data, what to call its file in messages, and the folder in which it may name further files."""
    if str(path) == "-":
        return parse_json(sys.stdin.read(), "standard input"), "standard input", None
    return read_json(path), str(path), path.parent


def _problem(data: Any, name: str, folder: Path | None) -> Problem:
    try:
        problem = Problem.from_dict(data, folder=folder)
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
    try:
        _ = problem.layer.activation
    except InputError as error:
        raise type(error)(f"{name}: `layer.psi`: {error}") from None
    return problem


def _is_bare(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("layer"), dict) and not {"model", "encoder"} & set(data)


def _given(data: dict[str, Any], name: str, folder: Path | None) -> Given:
    # An empty model keeps the strict reader's checks of everything that is there.
    w = data["layer"].get("w")
    if isinstance(w, Mapping) and folder is not None:
        n2 = ArrayFiles(folder).array(w, "`layer.w`").size
    else:
        n2 = len(w) if isinstance(w, list) else 1  # where w cannot tell, the reader says what is wrong
    model = {"B": np.zeros((max(1, n2), 0)), "noise_std": 1.0, "priors": []}
    found = _problem({**data, "model": model, "encoder": []}, name, folder)
    return Given(found.layer, found.input)


def problem_at(path: Path) -> Problem:
    """The problem at a path, a fit's own among them. Raises InputError for a chain, which has no encoder to evaluate."""
    found = read_source(path)
    if isinstance(found, Chain):
        raise InputError(
            f"{path} is the folder of a chain, whose loss is in its report; give a fit's folder or a problem"
        )
    return found.problem if isinstance(found, Fit) else found


def law_of(source: Source | Given, which: str | None) -> tuple[FeatureModel, tuple[Layer, ...]]:
    """A feature model and the layers to send it through: (input, ()) for "input", (input, all layers) for "output",
    (the fitted model, ()) for "model", of a chain its last. Left out: "model" of what was fitted, "output" of a problem.
    """
    which = which or ("output" if isinstance(source, Problem | Given) else "model")
    if isinstance(source, Given):
        if which == "model":
            raise InputError("--of model: the problem lacks the key 'model'; ask for --of output or --of input")
        return source.input, (source.layer,) if which == "output" else ()
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
