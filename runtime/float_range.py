"""Where arithmetic leaves the range of float64, an error that says so, in place of inf and nan that go on as numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import numpy as np

from elbotree.runtime.errors import UnsupportedError

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def vanishing(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """A function in which numbers may vanish, such as exp(-x^2 / 2) far out: what is below 1e-308 is 0 there, and is meant to be,
    also where numpy was told to raise on underflow."""

    @functools.wraps(function)
    def called(*given: _Given.args, **more: _Given.kwargs) -> _Found:
        with np.errstate(under="ignore"):
            return function(*given, **more)

    return called


@contextlib.contextmanager
def in_float64(what: str) -> Iterator[None]:
    """Arithmetic of `what` that must stay in the range of float64: overflow, 0/0 and their like raise UnsupportedError."""
    with overflow_told(what), np.errstate(over="raise", divide="raise", invalid="raise"):
        yield


@contextlib.contextmanager
def overflow_told(what: str) -> Iterator[None]:
    """The same for what stops by itself; numpy goes on with inf and nan, for work that looks at its numbers as it goes.

    Underflow passes in both, whatever the caller has told numpy: a weight below 1e-308 is 0 to within every error estimate, each of
    which has an absolute part, and what depends on numbers so small (rare events) works in logarithms.
    """
    try:
        with np.errstate(under="ignore"):
            yield
    except (FloatingPointError, OverflowError, ZeroDivisionError, np.linalg.LinAlgError) as error:
        raise UnsupportedError(
            f"{what} leaves the range of float64 ({_reason(error)}); bring its numbers nearer to 1, by other units of x1 and "
            "x2 or of the features"
        ) from error


def _reason(error: Exception) -> str:
    return "overflow" if isinstance(error, OverflowError) else str(error)
