"""A bound on the time that sympy may take over one question: `within(seconds, work)`.

The clock is read from a profile hook of the calling thread (`sys.setprofile`), which sees every call and return that
`work` makes, and raises there once the thread has computed for that long (its own time, so that a busy machine does
not change what is found). That works in any thread and on every system, needs no signal that
the program may use for itself, and no second process that would import sympy again; it costs about twice the time.
Bounds nest: whichever ends first ends the work that it bounds. Where another profiler sits on the thread it is left
alone, and `work` runs unbounded."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from inspect import CO_GENERATOR
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


_EVERY = 128


class _Late(BaseException):
    """The time of one bound is up. Not an Exception: sympy catches those on its way to the next method."""

    def __init__(self, bound: _Bound) -> None:
        self.bound = bound


class _Bound:
    """The hook of one call of `within`, inside that of the call around it, if there is one."""

    def __init__(self, seconds: float, outer: _Bound | None) -> None:
        self.end = time.thread_time() + seconds
        self.outer = outer
        self.calls = 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        self.calls += 1
        # A thread's own clock is a call into the system, dearer than most of what is watched. What is raised while a
        # generator is closed would be lost, and complained about.
        if self.calls % _EVERY or frame.f_code.co_flags & CO_GENERATOR:
            return
        now = time.thread_time()
        late: _Bound | None = None
        bound: _Bound | None = self
        while bound is not None:  # the outermost that is late
            late, bound = (bound if now > bound.end else late), bound.outer
        if late is not None:
            if not _lost(frame):
                raise _Late(late)
            self.calls = -1  # look again at the next call


def _lost(frame: FrameType | None) -> bool:
    """Whether what is raised in this frame goes nowhere, and the hook with it: in a callback of the garbage collector or of a
    weak reference, or a finaliser."""
    codes = [getattr(callback, "__code__", None) for callback in gc.callbacks]
    while frame is not None:
        code = frame.f_code
        if code in codes or code.co_name == "__del__" or frame.f_globals.get("__name__") in ("weakref", "_weakrefset"):
            return True
        frame = frame.f_back
    return False


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """The result of `work()`, or None when it has not ended after so many seconds. Its exceptions pass through."""
    outer = sys.getprofile()
    if not (outer is None or isinstance(outer, _Bound)):
        return work()
    bound = _Bound(seconds, outer)
    sys.setprofile(bound)
    try:
        return work()
    except _Late as late:
        if late.bound is not bound:
            raise
        return None
    finally:
        sys.setprofile(outer)
