"""What verbs say: results on standard output, everything about the work itself on standard error, colour and spinners on a
terminal only; and a user's mistake as one line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from elbotree.runtime.values import Values


class Mistake(click.ClickException):
    """An error of the user's, shown as one line; status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=file is None)


class Missed(Mistake):
    """A tolerance that was not met."""

    exit_code = 3


class Interrupted(click.ClickException):
    """Ctrl-C; status 130, as shells have it."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted")

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=file is None)


def say(text: str) -> None:
    click.echo(text)


def note(text: str) -> None:
    """Say something about the work itself, away from the results."""
    click.echo(text, err=True)


def show_values(values: Values, style: str) -> None:
    if style == "json":
        say(json.dumps(values.to_dict(), indent=2, allow_nan=False))
    elif style == "plain" or not sys.stdout.isatty():
        say(str(values))
    else:
        show_whole(rich_table(values))


def show_whole(table: Table) -> None:
    """Print a table at its own width: where the terminal is narrower it wraps lines, rather than to lose digits."""
    from rich.console import Console

    screen = console()
    needed = screen.measure(table, options=screen.options.update(max_width=10_000)).maximum
    if needed > screen.width:
        screen = Console(width=needed, highlight=False)
    screen.print(table, soft_wrap=False, crop=False, overflow="ignore", no_wrap=True)


def rich_table(values: Values) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head, *rows = values.cells()
    drawn = Table(box=box.SIMPLE_HEAD, caption=values.caption(), caption_justify="left")
    for position, cell in enumerate(head):
        drawn.add_column(cell, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        term, number, error, *others = row
        name = Text(term)
        name.stylize("bold cyan", len(term.rstrip("LRSTU123")))
        drawn.add_row(name, Text(number, "bold"), Text(error, "dim"), *others)
    return drawn


def show_python(source: str, style: str) -> None:
    """Source text: in colours on a terminal."""
    if style == "rich" and sys.stdout.isatty():
        from rich.syntax import Syntax

        console().print(Syntax(source, "python", theme="ansi_dark", background_color="default"), soft_wrap=True)
    else:
        say(source)


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> None:
    """Columns, the first one left-aligned: ruled on a terminal, plain text elsewhere."""
    if style == "rich" and sys.stdout.isatty():
        from rich import box
        from rich.table import Table

        drawn = Table(box=box.SIMPLE_HEAD)
        for position, cell in enumerate(head):
            drawn.add_column(cell, justify="left" if position == 0 else "right", no_wrap=True)
        for row in rows:
            drawn.add_row(*row)
        show_whole(drawn)
        return
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    for first, *others in [head, *rows]:
        say("  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]))


def console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Any]:
    """A spinner on standard error when that is a terminal, else nothing. Yields what shows a line of news there."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with console(stderr=True).status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")
