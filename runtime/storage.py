"""Files: strict JSON in, atomic writes out, arrays in safetensors, and the two-file folder of a trained model. What the
files mean (problems, fits) is for `models` and the front door; this module knows bytes, keys and arrays only. Nothing
here ever unpickles or executes what it reads."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import InputError

Array = NDArray[np.float64]

JSON_LIMIT = 256 * 2**20  # bytes of one JSON file
LIST_LIMIT = (
    4_000_000  # lists and objects in one JSON text: each takes some sixty bytes of memory, and only two of text
)
ARRAY_LIMIT = 4 * 2**30  # bytes of one safetensors file, and of its arrays as float64
CFG = "cfg.json"
MODEL = "model.safetensors"
DIGEST = "model_sha256"  # the key of cfg.json that ties the two files together
OWN_DIGEST = "cfg_sha256"  # the key of cfg.json that ties it to itself
LOCK = ".lock"
_PROBE = "writable"


# -- reading ----------------------------------------------------------------------------------------------------------
def read_bytes(path: str | Path, limit: int, *, follow_links: bool = True) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises InputError that names the path and the reason."""
    path = Path(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not follow_links and path.is_symlink():
            raise InputError(f"{path} is a link; put the file itself there")
        descriptor = os.open(path, flags | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0)))
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise InputError(f"{path} is not a file; give the path of a regular file")
            if about.st_size > limit:
                raise InputError(f"{path} has {about.st_size:,} bytes; the limit is {limit:,}")
            return file.read(min(limit, about.st_size) + 1)  # what is asked for is set aside at once
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the path of a file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_json(path: str | Path, limit: int = JSON_LIMIT, *, follow_links: bool = True) -> Any:
    """The JSON value in a file, read strictly.

    Refused with one line that names the place: a missing, empty, binary, non-UTF-8 or oversized file, a syntax error
    (line and column), a key twice in one object, NaN, Infinity and numbers beyond the range of float64.
    """
    content = read_bytes(path, limit, follow_links=follow_links)
    if not content.strip():
        raise InputError(f"{path} is empty; it must hold one JSON object")
    if b"\0" in content:
        raise InputError(f"{path} is a binary file (a zero byte at offset {content.index(0)}); it must be JSON text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """The JSON value in `text`, as strictly as `read_json`; `where` opens every message."""

    if (count := text.count("[") + text.count("{")) > LIST_LIMIT:
        raise InputError(
            f"{where} has {count:,} opening brackets; the limit is {LIST_LIMIT:,}, so give large arrays as safetensors"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            line = _line_of_repeat(text, twice)
            raise InputError(f"{where}{line}: the key {twice!r} stands twice in one object; keep one")
        return out

    def refuse(name: str) -> NoReturn:
        line = text[: max(text.find(name), 0)].count("\n") + 1
        raise InputError(f"{where}, line {line}: {name} is not a number that JSON knows; give a finite number")

    def finite(digits: str) -> float:
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            line = text[: max(text.find(digits), 0)].count("\n") + 1
            raise InputError(f"{where}, line {line}: {digits} is beyond the range of float64; give a smaller number")
        return number

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        reason = f"{error.msg[:1].lower()}{error.msg[1:]}"
        raise InputError(f"{where}, line {error.lineno}, column {error.colno}: not JSON, {reason}") from None
    except RecursionError:
        raise InputError(f"{where}: the JSON nests too deeply; flatten it") from None
    except ValueError as error:  # integers of thousands of digits
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: a number is too long; give numbers in the range of float64") from None


def _line_of_repeat(text: str, key: str) -> str:
    """ ", line 7" for a key whose second spelling stands on line 7 and nowhere else, else nothing."""
    quoted = json.dumps(key, ensure_ascii=False)
    return f", line {text[: text.rfind(quoted)].count(chr(10)) + 1}" if text.count(quoted) == 2 else ""


class ArrayFiles:
    """The safetensors files beside a problem file in `folder`; each is read once, however many arrays come from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, dict[str, Array]] = {}

    def array(self, reference: Mapping[str, Any], where: str) -> Array:
        """The array that {"file": "weights.safetensors", "key": "A"} names, as float64.

        `file` is a plain name: no folders, no "..", no absolute path, no link.
        """
        for given in reference:
            if given not in ("file", "key"):
                raise InputError(f"{where} has the key {given!r}; an array in a file has the keys 'file' and 'key'")
        name, key = reference.get("file"), reference.get("key")
        if not isinstance(name, str) or not isinstance(key, str):
            raise InputError(f'{where} must be {{"file": "weights.safetensors", "key": "A"}}, two texts')
        if not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", ":", "\0")):
            raise InputError(
                f"{where}.file is {name!r}; it must be the name of a file beside the problem file, no path"
            )
        if name not in self._read:
            content = read_bytes(self.folder / name, ARRAY_LIMIT, follow_links=False)
            self._read[name] = parse_arrays(content, f"{where}.file {name!r}")
        arrays = self._read[name]
        if key not in arrays:
            raise InputError(
                f"{where}.key is {key!r}, which {name} does not hold; it holds {', '.join(sorted(arrays))}"
            )
        return arrays[key]


def parse_arrays(content: bytes, where: str) -> dict[str, Array]:
    """The arrays of a safetensors file, each as float64."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        raw = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{where} cannot be read as safetensors of float or integer arrays: {reason}") from None
    for name, array in raw.items():
        if array.dtype.kind not in "fiu":
            raise InputError(f"{where} holds {name!r} of type {array.dtype}; it must be of a float or integer type")
    if (size := 8 * sum(array.size for array in raw.values())) > ARRAY_LIMIT:
        raise InputError(f"{where} holds {size:,} bytes of numbers as float64; the limit is {ARRAY_LIMIT:,}")
    return {name: np.asarray(array, dtype=np.float64) for name, array in raw.items()}


# -- writing ----------------------------------------------------------------------------------------------------------
def check_place(path: str | Path) -> None:
    """Raise InputError where `write_atomic` has no place for a file: ask before the work. Whether it may write is left to it."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is there and is no regular file; choose another place")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder; make it, or choose another place")


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part: temporary file, fsync, replace.

    Raises InputError where it cannot be written, or where something that is no file (a device, a pipe) would be replaced.
    """
    path = Path(path)
    check_place(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another place") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the platform can open folders; elsewhere the rename is durable enough."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some file systems refuse to sync a folder: the data itself is already on disk
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically. Raises InputError when a number is not finite or the place cannot be written."""
    write_atomic(path, _json_bytes(value, path))


def _json_bytes(value: Any, path: str | Path) -> bytes:
    try:
        return (json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1) + "\n").encode()
    except ValueError as error:
        raise InputError(f"{path}: {error}; only finite numbers can be written") from None


def check_writable(folder: str | Path) -> None:
    """Raise InputError unless `folder` exists and can be written, or can be made: ask before hours of work.

    The test is a real file of 64 KiB in the folder (or in the nearest one above it that exists), made and removed, so that a
    full disk is found too.
    """
    place = Path(folder).absolute()
    while not place.exists() and place.parent != place:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{folder}: {place} is a file; give the path of a folder")
    probe = place / f".{_PROBE}.{secrets.token_hex(6)}.tmp"
    try:
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise InputError(f"{folder} cannot be written: {place}: {error.strerror or error}; choose another") from None


# -- folders ----------------------------------------------------------------------------------------------------------
class FolderLock:
    """The hold of one process on a folder that it writes to, from `with` to its end; the system lets go of it when the
    process ends, however that comes about.

    Raises InputError on entry where another process (or another run in this one) holds the folder. On file systems without
    locks it holds nothing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror or error}; choose another") from None
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                os.close(descriptor)
                raise InputError(
                    f"{self.folder} is in use by another run; wait until it ends, or give another folder"
                ) from None
        self._descriptor = descriptor

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_litter(folder: str | Path) -> None:
    """Remove what writes into `folder` left behind that were cut off by a kill. Only for who holds the folder."""
    for name in (CFG, MODEL, _PROBE):
        for path in Path(folder).glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def save_folder(folder: str | Path, cfg: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Save cfg.json and model.safetensors. cfg.json comes last and holds the other's SHA-256 under "model_sha256", and under
    "cfg_sha256" that of all the rest of itself (of its value: how the text is laid out does not matter)."""
    from safetensors.numpy import save

    for key in (DIGEST, OWN_DIGEST):
        if key in cfg:
            raise InputError(f"cfg has the key {key!r}, which the folder format keeps for itself; rename it")
    check_writable(folder)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}; choose another place") from None
    content = save({name: np.array(array, dtype=np.float64, order="C") for name, array in arrays.items()})
    whole = {**cfg, DIGEST: hashlib.sha256(content).hexdigest()}
    text = _json_bytes({**whole, OWN_DIGEST: _value_digest(whole, folder / CFG)}, folder / CFG)
    write_atomic(folder / MODEL, content)
    write_atomic(folder / CFG, text)


def _value_digest(value: Mapping[str, Any], path: Path) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the layout of its text."""
    try:
        text = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"{path}: {error}; only finite numbers can be written") from None
    return hashlib.sha256(text.encode()).hexdigest()


def load_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """(cfg, arrays) of a folder that `save_folder` wrote; refuses one whose two files are not of the same save, or in which
    anything was changed since. Neither file may be a link."""
    folder = Path(folder)
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {kind}; give the folder that holds {CFG} and {MODEL}")
    cfg = read_json(folder / CFG, follow_links=False)
    for key in (DIGEST, OWN_DIGEST):
        if not isinstance(cfg, dict) or not isinstance(cfg.get(key), str):
            raise InputError(f"{folder / CFG} has no {key!r}, so it is not the {CFG} of a saved model")
    own = cfg.pop(OWN_DIGEST)
    if _value_digest(cfg, folder / CFG) != own:
        raise InputError(
            f"{folder / CFG} does not match its own SHA-256; it is damaged or was changed by hand, so restore it, or save "
            "again"
        )
    content = read_bytes(folder / MODEL, ARRAY_LIMIT, follow_links=False)
    digest = cfg.pop(DIGEST)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            f"{folder}: {MODEL} does not match the SHA-256 in {CFG}; one of the two is damaged or from another save, "
            "so restore both from the same save, or save again"
        )
    return cfg, parse_arrays(content, str(folder / MODEL))
