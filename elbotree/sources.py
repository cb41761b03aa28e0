"""What a path on the command line may be: a problem's JSON file, or the folder of a fit or of a chain; and which feature
model of it a verb means by "input", "output" or "model"."""

from __future__ import annotations

from pathlib import Path

from elbotree.fitting import Fit, load_problem
from elbotree.networks import Chain, load
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import FeatureModel, Layer, Problem

Source = Problem | Fit | Chain


def read_source(path: Path) -> Source:
    """The problem, fit or chain at a path, psi compiled. Raises InputError that names the file and what is wrong."""
    return load(path) if path.is_dir() else load_problem(path)


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
