"""Generated text kept on disk, so that a second process need not import sympy to have the same kernels again.

What is read back is executed, so the question is who could have written it. A file is used only if it is a plain file
(not a link), belongs to the user who runs this process, and neither it nor its folder can be written by group or
others: whoever could forge it could equally rewrite the user's shell profile, or Python's own `__pycache__`. It must
also carry the name of its key and the sha256 of its text, which a cut, corrupted or misplaced file does not; then it is
ignored and made anew. On systems without file owners (Windows) nothing is cached.

The key is a hash of everything that the text depends on: the sources of `elbotree.derivation` and `elbotree.codegen`
(of which the loss tree and its hash are a function), the versions of elbotree and sympy, psi's text, and the families.
Writers replace a file in one step, so readers see an old file or a new one, never half of one.

The folder is `$XDG_CACHE_HOME/elbotree`, or `~/.cache/elbotree`. ELBOTREE_CACHE=off turns the cache off;
ELBOTREE_CACHE=/some/folder moves it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

_FORMAT = "# elbotree-cache/1"
_MOST_BYTES = 8 << 20
_PACKAGES = ("elbotree.derivation", "elbotree.codegen")


def folder() -> Path | None:
    """Where generated text is kept; None where it is not (turned off, no home, or a system without file owners)."""
    wish = os.environ.get("ELBOTREE_CACHE", "")
    if wish.lower() in ("off", "0", "no", "false") or not hasattr(os, "geteuid"):
        return None
    if wish:
        return Path(wish) if os.path.isabs(wish) else None
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # the standard says that a relative path is to be ignored
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        root = os.path.join(home, ".cache")
    return Path(root) / "elbotree"


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """A hash of the sources that turn a psi and families into text, and of the versions of elbotree and sympy."""
    from elbotree import __version__

    found = hashlib.sha256(f"{__version__} {metadata.version('sympy')}".encode())
    for package in _PACKAGES:
        spec = util.find_spec(package)
        for place in sorted((spec.submodule_search_locations if spec else None) or ()):
            for path in sorted(Path(place).glob("*.py")):
                content = path.read_bytes()
                found.update(f"\n{package} {path.name} {len(content)}\n".encode())
                found.update(content)
    return found.hexdigest()


def key(*parts: str) -> str:
    """The name of what is made from `parts` by the present sources."""
    return hashlib.sha256(json.dumps((fingerprint(), *parts)).encode()).hexdigest()


def remembered(make: Callable[[], str], *parts: str) -> str:
    """`make()`, or what it gave for the same parts before. A cache that cannot be read or written is no cache."""
    place = folder()
    if place is None:
        return make()
    name = key(*parts)
    found = _read(place, name)
    if found is None:
        found = make()
        with contextlib.suppress(OSError):
            _write(place, name, found)
    return found


def _read(place: Path, name: str) -> str | None:
    """The text kept under a name, if it is there, ours alone to write, and whole."""
    try:
        if not _trusted(os.lstat(place), stat.S_ISDIR):
            return None
        handle = os.open(place / f"{name}.txt", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            # The open file is looked at, not its name: nothing can be exchanged between the look and the reading.
            if not _trusted(os.fstat(file.fileno()), stat.S_ISREG):
                return None
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        return None
    head, _, body = content.partition(b"\n")
    if len(content) > _MOST_BYTES or head != _head(name, body):
        return None
    return body.decode()


def _trusted(found: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether a file or folder is of a kind, belongs to this user, and can be written by nobody else."""
    return kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _head(name: str, body: bytes) -> bytes:
    return f"{_FORMAT} {name} {hashlib.sha256(body).hexdigest()}".encode()


def _write(place: Path, name: str, text: str) -> None:
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _trusted(os.lstat(place), stat.S_ISDIR):
        return
    body = text.encode()
    handle, temporary = tempfile.mkstemp(dir=place, prefix=".new-")  # mode 0600
    try:
        with open(handle, "wb") as file:
            file.write(_head(name, body) + b"\n" + body)
        os.replace(temporary, place / f"{name}.txt")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
