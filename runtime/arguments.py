"""Checks of the arrays and numbers that users give: float64 copies that nobody can change, and errors that name the
entry which is ragged, not a number, or not finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import InputError

Array = NDArray[np.float64]


def read_only_array(value: object, name: str, dimensions: int) -> Array:
    """A float64 copy of `value` that nobody can change; InputError names the entry that is ragged or not a number."""
    value = unwrapped(value)
    if not isinstance(value, np.ndarray):
        _check_nested(value, name, dimensions)
    elif value.dtype.kind not in "fiu":
        raise InputError(f"`{name}` has type {value.dtype}; it must be an array of real numbers")
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"`{name}` must be an array of numbers of shape {_shape_text(dimensions)}") from None
    if array.ndim != dimensions:
        raise InputError(f"`{name}` has shape {array.shape}; it must have shape {_shape_text(dimensions)}")
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        place = name + "".join(f"[{i}]" for i in index)
        raise InputError(f"`{place}` is {float(array[index])!r}; every entry must be a finite number")
    array.setflags(write=False)
    return array


def unwrapped(value: object) -> object:
    """A tensor, a data frame, or whatever else offers itself as an array, as a numpy array; anything else as it is."""
    if isinstance(value, np.ndarray | np.generic) or not hasattr(value, "__array__"):
        return value
    if hasattr(value, "detach"):  # a tensor: from its graph and its device; numpy has no bfloat16
        tensor: Any = value
        value = (tensor.double() if tensor.is_floating_point() else tensor).detach().cpu()
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        return np.asarray(value)
    return value


def real_array(value: object, name: str) -> Array:
    """`value` as a float64 array of any shape, itself where it is one. InputError for other than real numbers (complex ones
    and text are not converted) and for numbers that are not finite."""
    array: Array | None = None
    value = unwrapped(value)
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        array = value
    else:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            given = np.asarray(value)
            numbers = np.array(_real(given)).reshape(given.shape) if given.dtype.kind == "O" else given
            array = numbers.astype(np.float64) if numbers.dtype.kind in "fiu" else None
    if array is None:
        raise InputError(f"`{name}` is {shortened(value)}; it must be a number or an array of real numbers")
    if not np.isfinite(array).all():
        raise InputError(f"`{name}` holds {float(array[~np.isfinite(array)].flat[0])!r}; every entry must be finite")
    return array


def _real(given: NDArray[np.object_]) -> list[float]:
    """The entries of an array of objects, all of them numbers. TypeError for others."""
    entries: list[object] = given.ravel().tolist()
    found = [
        float(x) for x in entries if isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)
    ]
    if len(found) < len(entries):
        raise TypeError
    return found


def _shape_text(dimensions: int) -> str:
    return "(n,)" if dimensions == 1 else "(rows, columns)"


def _check_nested(value: object, name: str, dimensions: int) -> None:
    """Walk nested lists so that an error can name the row; arrays inside the lists are left to numpy."""
    if isinstance(value, np.ndarray):
        return
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        expected = "a list of numbers" if dimensions == 1 else "a list of rows, each a list of numbers"
        raise InputError(f"`{name}` is {shortened(value)}; it must be {expected}")
    for i, item in enumerate(value):
        if dimensions > 1:
            _check_nested(item, f"{name}[{i}]", dimensions - 1)
            if len(item) != len(value[0]):
                raise InputError(f"`{name}[{i}]` has length {len(item)}; the rows before it have {len(value[0])}")
        elif isinstance(item, bool) or not isinstance(item, int | float | np.integer | np.floating):
            raise InputError(f"`{name}[{i}]` is {shortened(item)}; it must be a number")


MOST_FEATURES = 65_536  # their pairs alone are two billion
MOST_STARTS = 1_000
MOST_ROWS = 10_000_000  # drawn at once
MOST_SAMPLES = 1_000_000_000  # hours of work; a standard error of 3e-5 standard deviations


def check_count(name: str, count: object, least: int, most: int | None = None) -> None:
    """InputError unless `count` is None or a whole number of at least `least`, and of at most `most` where that is given."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
        raise InputError(f"`{name}` is {shortened(count)}; it must be a whole number of at least {least}")
    if most is not None and count > most:
        shown = f"{count:,}" if count < 10**18 else "beyond 10^18"
        raise InputError(f"`{name}` is {shown}; the limit is {most:,}")


def check_seed(seed: object) -> None:
    """InputError unless `seed` is a whole number of at least 0, as numpy's generators take it."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"`seed` is {shortened(seed)}; it must be a whole number of at least 0")


def generator(rng: object) -> np.random.Generator:
    """A numpy generator as it is, a seed as a generator, None as one that nobody can repeat. InputError for anything else."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and (isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0):
        raise InputError(
            f"`rng` is {shortened(rng)}; it must be a numpy.random.Generator, a seed of at least 0, or be left out"
        )
    return np.random.default_rng(rng)


def check_bound(value: float | None, name: str) -> None:
    """InputError unless `value` is None or a positive number (inf: no bound)."""
    if value is not None and not value > 0:
        raise InputError(f"`{name}` is {value!r}; it must be a positive number, or be left out")


def check_kind(value: object, name: str, kind: type, hint: str = "") -> None:
    """InputError unless `value` is an instance of a public class; `hint` says where one comes from."""
    if not isinstance(value, kind):
        raise InputError(f"`{name}` is {shortened(value)}; it must be an elbotree.{kind.__name__}{hint}")


def shortened(value: object) -> str:
    """What arrived, on one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def finite_number(value: object, name: str) -> float:
    """`value` as a finite float, or an InputError that names it."""
    value = unwrapped(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"`{name}` is {shortened(value)}; it must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"`{name}` is {number!r}; it must be a finite number")
    return number
