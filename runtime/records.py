"""Plain records (dataclasses of numbers and text) from JSON data that somebody else may have written: every field is there, no
other is, and each has the type that the record says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from elbotree.runtime.arguments import finite_number, shortened
from elbotree.runtime.errors import InputError

Record = TypeVar("Record")


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"`{name}` is {shortened(value)}; it must be a whole number")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"`{name}` is {shortened(value)}; it must be text")
    return value


def _truth(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"`{name}` is {shortened(value)}; it must be true or false")
    return value


def _numbers(value: object, name: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"`{name}` is {shortened(value)}; it must be a list of numbers")
    return tuple(finite_number(item, f"{name}[{i}]") for i, item in enumerate(value))


def _named_numbers(value: object, name: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise InputError(f"`{name}` is {shortened(value)}; it must be an object of numbers")
    return {key: finite_number(item, f"{name}.{key}") for key, item in value.items()}


_READERS: dict[str, Callable[[object, str], Any]] = {
    "int": _whole,
    "float": finite_number,
    "str": _text,
    "bool": _truth,
    "tuple[float, ...]": _numbers,
    "dict[str, float]": _named_numbers,
}


def read_record(kind: type[Record], form: object, where: str) -> Record:
    """A dataclass from an object with exactly its fields. Raises InputError that names the field, such as `history[3].loss`."""
    if not isinstance(form, Mapping):
        raise InputError(f"`{where}` is {shortened(form)}; it must be an object")
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    for name in [*form, *known]:
        if name not in known or name not in form:
            reason = "has the unknown key" if name not in known else "lacks the key"
            raise InputError(f"`{where}` {reason} {name!r}")
    values = {}
    for name, type_ in known.items():
        word, optional = type_.removesuffix(" | None"), type_.endswith(" | None")
        values[name] = None if optional and form[name] is None else _READERS[word](form[name], f"{where}.{name}")
    return kind(**values)
