"""The exceptions that every part of elbotree raises for a user's mistake or an unmet request.

A message names the argument, what arrived, what was expected, and the fix. Nothing else lives here.
"""

from __future__ import annotations


class ElbotreeError(Exception):
    """Base of all errors that a user can cause and mend; the command line prints one line and exits with status 1."""


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
