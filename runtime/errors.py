"""The exceptions that every part of elbotree raises for a user's mistake or an unmet request.

A message names the argument, what arrived, what was expected, and the fix. Nothing else lives here.
"""

from __future__ import annotations

import re

_LONG = re.compile(r"\S{201,}")


def abridged(message: str) -> str:
    """The message with words of more than 200 characters cut in their middle: names and texts come from strangers.

    >>> len(abridged("there is no " + "x" * 5000))
    115
    """
    return _LONG.sub(lambda word: f"{word[0][:60]}...{word[0][-40:]}", message)


class ElbotreeError(Exception):
    """Base of all errors that a user can cause and mend; the command line prints one line and exits with status 1."""

    def __init__(self, message: str = "") -> None:
        super().__init__(abridged(message))


class InputError(ElbotreeError, ValueError):
    """An argument, a file or a key is wrong. The message names the place and the fix."""


class UnsupportedError(InputError):
    """The input is well formed, but what it asks for has no answer here (the message says why)."""


class ToleranceError(ElbotreeError, ArithmeticError):
    """A requested tolerance was not met; names the term, the estimate of its error, and what would help. Exit status 3."""


class CostError(ElbotreeError):
    """What was asked for would take more time or memory than allowed; raised before the work, with the estimates."""


class ExecutorError(ElbotreeError):
    """An executor lost its workers, or cannot do what it was given. The message names it and what to do; a checkpoint stays."""
