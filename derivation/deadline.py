"""A bound on the time that sympy may take over one question: `within(seconds, work)`.

The clock is read from a profile hook of the calling thread (`sys.setprofile`), which sees every call and return that
`work` makes, and raises there once the thread has computed for that long (its own time, so that a busy machine does
not change what is found). That works in any thread and on every system, needs no signal that
the program may use for itself, and no second process that would import sympy again; it costs about twice the time.
Where a profiler already sits on the thread it is left alone, and `work` runs unbounded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from inspect import CO_GENERATOR
from typing import Any, TypeVar

Result = TypeVar("Result")


_EVERY = 128


class _Late(BaseException):
    """The time is up. Not an Exception: sympy catches those on its way to the next method."""


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """The result of `work()`, or None when it has not ended after so many seconds. Its exceptions pass through."""
    if sys.getprofile() is not None:
        return work()
    end = time.thread_time() + seconds
    calls = 0

    def look(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        # A thread's own clock is a call into the system, dearer than most of what is watched. What is raised while a
        # generator is closed would be lost, and complained about.
        if calls % _EVERY == 0 and not frame.f_code.co_flags & CO_GENERATOR and time.thread_time() > end:
            raise _Late

    sys.setprofile(look)
    try:
        return work()
    except _Late:
        return None
    finally:
        sys.setprofile(None)
