"""The command line of what computes a file of the tests: writes it, or prints it instead."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path


def write(doc: str | None, target: Path, names: Sequence[str], compute: Callable[[list[str]], object]) -> None:
    """`compute(names)` as JSON into the target; with --print on standard output, --only some of the names."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="shown", help="print instead of writing the file")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these alone (with --print)")
    given = parser.parse_args()
    if given.only and not given.shown:
        parser.error("--only leaves the others out: give it with --print")
    text = json.dumps(compute([name for name in names if name in (given.only or names)]), indent=1, ensure_ascii=False)
    if given.shown:
        print(text)
    else:
        target.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {target.relative_to(Path.cwd())}")
