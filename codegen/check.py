"""Whether a kernel module on disk is still what the present derivation prints. The file is parsed, never run."""

from __future__ import annotations

import ast
import difflib
import os
import re
from pathlib import Path

from elbotree.runtime.errors import InputError

_MOST_BYTES = 8 << 20


def check(path: str | os.PathLike[str]) -> list[str]:
    """The differences between a kernel module's file and the text generated now for its psi and families; [] for none.

    First the facts of the header that changed (version, tree), then the lines, as in a unified diff. Ends of lines do
    not count. Raises InputError for a file that cannot be read or is no kernel module, and what `generate` raises for
    a psi or a family that this version does not know.
    """
    from elbotree.codegen.kernels import source_of

    text = _read(Path(path))
    psi, families = _made_of(text, path)
    now = source_of(psi, families)
    if text == now:
        return []
    old, new = _facts(text), _facts(now)
    facts = [
        f"{name}: the file has {old.get(name, 'none')}, now {new[name]}" for name in new if old.get(name) != new[name]
    ]
    lines = difflib.unified_diff(
        text.splitlines(), now.splitlines(), os.fspath(path), "generated now", n=1, lineterm=""
    )
    return [*facts, *lines] if text.splitlines() != now.splitlines() else [*facts, "the last line's end differs"]


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than {_MOST_BYTES >> 20} MB; it is no kernel module")
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; it is no kernel module") from None


def _made_of(text: str, path: str | os.PathLike[str]) -> tuple[str, tuple[str, ...]]:
    """psi's text and the families, read off the assignments to PSI and FAMILIES."""
    found: dict[str, object] = {}
    try:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, node.value
                if name == "PSI" and isinstance(value, ast.Call):
                    found["psi"] = next(ast.literal_eval(k.value) for k in value.keywords if k.arg == "text")
                if name == "FAMILIES":
                    found["families"] = tuple(ast.literal_eval(value))
        psi, families = found["psi"], found["families"]
        if not isinstance(psi, str) or not isinstance(families, tuple) or not all(isinstance(f, str) for f in families):
            raise KeyError
    except (SyntaxError, ValueError, TypeError, KeyError, StopIteration, RecursionError, MemoryError):
        raise InputError(
            f"{os.fspath(path)} is no kernel module of elbotree: it has no PSI and FAMILIES that could be read"
        ) from None
    return psi, families


def _facts(text: str) -> dict[str, str]:
    """version and tree of the header."""
    return dict(re.findall(r"^(version|tree) +(.*)$", text, flags=re.MULTILINE)[:2])
