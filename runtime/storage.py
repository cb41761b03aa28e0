"""Files: strict JSON in, atomic writes out, arrays in safetensors, and the two-file folder of a trained model. What the
files mean (problems, fits) is for `models` and the front door; this module knows bytes, keys and arrays only. Nothing
here ever unpickles or executes what it reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import InputError

Array = NDArray[np.float64]

JSON_LIMIT = 256 * 2**20  # bytes of one JSON file
ARRAY_LIMIT = 4 * 2**30  # bytes of one safetensors file
CFG = "cfg.json"
MODEL = "model.safetensors"
DIGEST = "model_sha256"  # the key of cfg.json that ties the two files together


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
            return file.read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the path of a file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_json(path: str | Path, limit: int = JSON_LIMIT) -> Any:
    """The JSON value in a file, read strictly.

    Refused with one line that names the place: a missing, empty, binary, non-UTF-8 or oversized file, a syntax error
    (line and column), a key twice in one object, NaN, Infinity and numbers beyond the range of float64.
    """
    content = read_bytes(path, limit)
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


def read_array(reference: Mapping[str, Any], where: str, folder: Path) -> Array:
    """The array that {"file": "weights.safetensors", "key": "A"} names, as float64.

    `file` is a plain name beside the problem file in `folder`: no folders, no "..", no absolute path, no link.
    """
    for given in reference:
        if given not in ("file", "key"):
            raise InputError(f"{where} has the key {given!r}; an array in a file has the keys 'file' and 'key'")
    name, key = reference.get("file"), reference.get("key")
    if not isinstance(name, str) or not isinstance(key, str):
        raise InputError(f'{where} must be {{"file": "weights.safetensors", "key": "A"}}, two texts')
    if not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", ":", "\0")):
        raise InputError(f"{where}.file is {name!r}; it must be the name of a file beside the problem file, no path")
    arrays = parse_arrays(read_bytes(folder / name, ARRAY_LIMIT, follow_links=False), f"{where}.file {name!r}")
    if key not in arrays:
        raise InputError(f"{where}.key is {key!r}, which {name} does not hold; it holds {', '.join(sorted(arrays))}")
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
    return {name: np.asarray(array, dtype=np.float64) for name, array in raw.items()}


# -- writing ----------------------------------------------------------------------------------------------------------
def write_atomic(path: str | Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part: temporary file, fsync, replace."""
    path = Path(path)
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
    probe = place / f".writable.{secrets.token_hex(6)}.tmp"
    try:
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise InputError(f"{folder} cannot be written: {place}: {error.strerror or error}; choose another") from None


# -- folders ----------------------------------------------------------------------------------------------------------
def save_folder(folder: str | Path, cfg: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Save cfg.json and model.safetensors. cfg.json comes last and holds the other's SHA-256 under "model_sha256"."""
    from safetensors.numpy import save

    if DIGEST in cfg:
        raise InputError(f"cfg has the key {DIGEST!r}, which the folder format keeps for itself; rename it")
    check_writable(folder)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}; choose another place") from None
    content = save({name: np.array(array, dtype=np.float64, order="C") for name, array in arrays.items()})
    text = _json_bytes({**cfg, DIGEST: hashlib.sha256(content).hexdigest()}, folder / CFG)
    write_atomic(folder / MODEL, content)
    write_atomic(folder / CFG, text)


def load_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """(cfg, arrays) of a folder that `save_folder` wrote; refuses one whose two files are not of the same save."""
    folder = Path(folder)
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {kind}; give the folder that holds {CFG} and {MODEL}")
    cfg = read_json(folder / CFG)
    if not isinstance(cfg, dict) or not isinstance(cfg.get(DIGEST), str):
        raise InputError(f"{folder / CFG} has no {DIGEST!r}, so it is not the {CFG} of a saved model")
    content = read_bytes(folder / MODEL, ARRAY_LIMIT)
    digest = cfg.pop(DIGEST)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            f"{folder}: {MODEL} does not match the SHA-256 in {CFG}; one of the two is damaged or from another save, "
            "so restore both from the same save, or save again"
        )
    return cfg, parse_arrays(content, str(folder / MODEL))
