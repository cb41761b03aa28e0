"""Files: what strict reading refuses and how it says so, arrays beside a problem, atomic writes, and saved folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from elbotree.runtime import storage
from elbotree.runtime.errors import InputError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"p\.json is empty; it must hold one JSON object"),
        (b" \n ", r"p\.json is empty"),
        (b'{"a": 1\0}', r"p\.json is a binary file \(a zero byte at offset 7\)"),
        (b'{\n"a": "\xff"}', r"p\.json, line 2: byte 8 is not UTF-8"),
        (b'{"a": 1,\n "b" 2}', r"p\.json, line 2, column 6: not JSON, expecting ':' delimiter"),
        (b'{"a": 1}\n{}', r"p\.json, line 2, column 1: not JSON, extra data"),
        (b'{"a": 1,\n"b": 3,\n"a": 2}', r"p\.json, line 3: the key 'a' stands twice in one object; keep one"),
        (b'{\n"a": NaN}', r"p\.json, line 2: NaN is not a number that JSON knows"),
        (b'{"a": -Infinity}', r"p\.json, line 1: -Infinity is not a number that JSON knows"),
        (b'{"a": 1e999}', r"p\.json, line 1: 1e999 is beyond the range of float64"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"p\.json: a number is too long"),
        (b"[" * 200_000, r"p\.json: the JSON nests too deeply"),
    ],
)
def test_bad_json_is_refused_in_one_line_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        storage.read_json(path)
    assert "\n" not in str(caught.value)


def test_places_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json: there is no such file"):
        storage.read_json(tmp_path / "no.json")
    with pytest.raises(InputError, match=r"is a folder; give the path of a file|is not a file"):
        storage.read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe is not a file"):  # and does not wait for a writer
        storage.read_json(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"[1, 2, 3]")
    with pytest.raises(InputError, match=r"big has 9 bytes; the limit is 8"):
        storage.read_json(tmp_path / "big", limit=8)
    with pytest.raises(InputError, match="cannot be read"):
        storage.read_json(tmp_path / "a\0b")


def test_good_json_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, "\xc3\xa9"]}')
    assert storage.read_json(tmp_path / "p.json") == {"a": [1, 2.5, "é"]}


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "sub/w.safetensors", "..", "a\\b", "", "c:w"])
def test_arrays_come_only_from_beside_the_problem(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"x\.file is .*; it must be the name of a file beside the problem file"):
        storage.ArrayFiles(tmp_path).array({"file": name, "key": "A"}, "x")


def test_array_references(tmp_path: Path) -> None:
    save_file({"A": np.eye(2, dtype=np.float32), "n": np.arange(3)}, tmp_path / "w.safetensors")
    found = storage.ArrayFiles(tmp_path).array({"file": "w.safetensors", "key": "A"}, "x")
    assert found.dtype == np.float64
    assert found.tolist() == [[1, 0], [0, 1]]
    assert storage.ArrayFiles(tmp_path).array({"file": "w.safetensors", "key": "n"}, "x").tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"x\.key is 'B', which w\.safetensors does not hold; it holds A, n"):
        storage.ArrayFiles(tmp_path).array({"file": "w.safetensors", "key": "B"}, "x")
    with pytest.raises(InputError, match=r"x has the key 'extra'"):
        storage.ArrayFiles(tmp_path).array({"file": "w.safetensors", "key": "A", "extra": 1}, "x")
    with pytest.raises(InputError, match=r"x must be \{\"file\""):
        storage.ArrayFiles(tmp_path).array({"file": 3, "key": "A"}, "x")
    (tmp_path / "link").symlink_to(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"link is a link; put the file itself there"):
        storage.ArrayFiles(tmp_path).array({"file": "link", "key": "A"}, "x")
    (tmp_path / "junk").write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match=r"x\.file 'junk' cannot be read as safetensors"):
        storage.ArrayFiles(tmp_path).array({"file": "junk", "key": "A"}, "x")
    save_file({"A": np.array([True])}, tmp_path / "flags")
    with pytest.raises(InputError, match=r"holds 'A' of type bool"):
        storage.ArrayFiles(tmp_path).array({"file": "flags", "key": "A"}, "x")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.json"
    storage.write_json(path, {"a": 1})

    def broken(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", broken)
    with pytest.raises(InputError, match=r"p\.json cannot be written: No space left on device"):
        storage.write_json(path, {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
    assert json.loads(path.read_text()) == {"a": 1}


def test_writing_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only finite numbers can be written"):
        storage.write_json(tmp_path / "p.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "fit"
    arrays = {"model.B": np.arange(6.0).reshape(2, 3).T, "empty": np.zeros((2, 0)), "number": np.array(2.5)}
    storage.save_folder(folder, {"name": "é", "list": [1, 2]}, arrays)
    assert sorted(p.name for p in folder.iterdir()) == ["cfg.json", "model.safetensors"]
    cfg, found = storage.load_folder(folder)
    assert cfg == {"name": "é", "list": [1, 2]}
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in arrays.items()}
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in arrays.items()}
    storage.save_folder(folder, {"name": "again"}, arrays)  # overwriting works
    assert storage.load_folder(folder)[0] == {"name": "again"}


def test_a_mixed_or_damaged_folder_is_refused(tmp_path: Path) -> None:
    storage.save_folder(tmp_path / "a", {}, {"x": np.zeros(3)})
    storage.save_folder(tmp_path / "b", {}, {"x": np.ones(3)})
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors does not match the SHA-256 in cfg\.json"):
        storage.load_folder(tmp_path / "a")
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: there is no such file"):
        storage.load_folder(tmp_path / "b")
    (tmp_path / "b" / "cfg.json").write_text("{}")
    with pytest.raises(InputError, match=r"cfg\.json has no 'model_sha256'"):
        storage.load_folder(tmp_path / "b")
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        storage.load_folder(tmp_path / "nowhere")


def test_check_writable_asks_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file is a file; give the path of a folder"):
        storage.check_writable(tmp_path / "file" / "fit")

    def refused(self: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(InputError, match=r"cannot be written: .*: Permission denied; choose another"):
        storage.check_writable(tmp_path / "new")
