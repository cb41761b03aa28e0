"""Tables as text: columns of equal width, one line a row. What the rows say is their owners' business."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell, left-aligned.

    >>> columns([("part", "steps"), ("net.0", "3")])
    ['part   steps', 'net.0  3']
    """
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(size) for text, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
