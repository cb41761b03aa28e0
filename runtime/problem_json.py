"""The JSON form of a problem (format elbotree-problem/1): strict reading, where an error names the path of the key, and
writing. The objects themselves, and the checks that do not depend on JSON, are in `models`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from elbotree.runtime.activations import Activation
from elbotree.runtime.arguments import shortened
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
from elbotree.runtime.prior_base import nearest
from elbotree.runtime.storage import ArrayFiles

T = TypeVar("T")

FORMAT = "elbotree-problem/1"
_PROBLEM = {"format": True, "layer": True, "input": True, "model": True, "encoder": True}  # key -> required
_LAYER = {"A": True, "w": True, "u": True, "psi": True, "offset": False, "threshold": False}
_MODEL = {"B": True, "noise_std": True, "priors": True, "offset": False}
_POSTERIOR = {
    "family": True,
    "C": True,
    "bias": False,
    "std": False,
    "precision": False,
    "base": False,
    "parameters": False,
}
_ARRAYS = {"A", "w", "u", "offset", "B", "C", "bias"}


def problem_from_dict(data: object, folder: Path | None) -> Problem:
    """See `Problem.from_dict`."""
    top = _object(data, "the problem", _PROBLEM)
    if top["format"] != FORMAT:
        raise InputError(f"`format` is {top['format']!r}; this version reads {FORMAT!r}")

    files = None if folder is None else ArrayFiles(folder)

    def part(value: object, where: str, keys: Mapping[str, bool]) -> dict[str, Any]:
        fields = _object(value, f"`{where}`", keys)
        return {key: _array(item, f"{where}.{key}", files) if key in _ARRAYS else item for key, item in fields.items()}

    def at(where: str, make: Callable[..., T], fields: dict[str, Any]) -> T:
        for name, item in fields.items():
            if item is None:
                raise InputError(f"`{where}.{name}` is null; give a value or leave the key out")
        try:
            return make(**fields)
        except InputError as error:
            raise type(error)(_prefixed(str(error), where)) from None

    layer_fields = part(top["layer"], "layer", _LAYER)
    if not isinstance(layer_fields["psi"], str):
        raise InputError(
            f"`layer.psi` is {layer_fields['psi']!r}; it must be text, a name such as 'relu' or an expression"
        )
    layer = at("layer", Layer, layer_fields)
    inputs, model = (at(name, FeatureModel, part(top[name], name, _MODEL)) for name in ("input", "model"))
    entries = top["encoder"]
    if not isinstance(entries, list):
        raise InputError("`encoder` must be a list of objects, one a feature of the model")
    posteriors = [
        at(f"encoder[{j}]", Posterior, part(entry, f"encoder[{j}]", _POSTERIOR)) for j, entry in enumerate(entries)
    ]
    return Problem(layer, inputs, model, Encoder(posteriors))


def _prefixed(message: str, where: str) -> str:
    """Constructors name their own arguments ("`C` has ..."); in a file the path goes in front ("`encoder[3].C`")."""
    if message.startswith(f"`{where}"):
        return message
    return f"`{where}.{message[1:]}" if message.startswith("`") else f"`{where}`: {message}"


def _object(value: object, where: str, keys: Mapping[str, bool]) -> dict[str, Any]:
    """`value` as an object with these keys and no others."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is a {type(value).__name__}; it must be an object with the keys {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise InputError(f"{where} has the unknown key {shortened(key)}{nearest(key, keys)}")
    for key, required in keys.items():
        if required and key not in value:
            raise InputError(f"{where} lacks the key {key!r}")
    return dict(value)


def _array(value: object, where: str, files: ArrayFiles | None) -> object:
    """An array as it stands, or read from the file beside the problem that it names."""
    if not isinstance(value, Mapping):
        return value
    if files is None:
        raise InputError(
            f"`{where}` refers to a file, and the problem was not read from one; use Problem.load, or `folder`"
        )
    return files.array(value, f"`{where}`")


def problem_to_dict(problem: Problem) -> dict[str, Any]:
    """See `Problem.to_dict`."""
    layer = problem.layer
    return {
        "format": FORMAT,
        "layer": {
            "A": layer.A.tolist(),
            "w": layer.w.tolist(),
            "u": layer.u.tolist(),
            "psi": layer.psi.text if isinstance(layer.psi, Activation) else layer.psi,
            "offset": layer.offset.tolist(),
            "threshold": layer.threshold,
        },
        "input": _model_to_dict(problem.input),
        "model": _model_to_dict(problem.model),
        "encoder": [_posterior_to_dict(q) for q in problem.encoder],
    }


def _model_to_dict(model: FeatureModel) -> dict[str, Any]:
    return {
        "B": model.B.tolist(),
        "noise_std": model.noise_std,
        "offset": model.offset.tolist(),
        "priors": [prior.spec() for prior in model.priors],
    }


def _posterior_to_dict(q: Posterior) -> dict[str, Any]:
    out: dict[str, Any] = {"family": q.family, "C": q.C.tolist(), "bias": q.bias.tolist()}
    named = {name: value for name, value in q.parameters.items() if name in ("std", "precision")}
    others = {name: value for name, value in q.parameters.items() if name not in named}
    return out | named | ({"parameters": others} if others else {}) | ({"base": q.base.spec()} if q.base else {})
