"""The cache of generated text: it answers, and it never answers with what somebody else could have written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from elbotree.codegen import cache

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="without file owners nothing is cached")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ELBOTREE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def ask(answer="made", *parts):
    """What the cache gives, and whether it had to make it."""
    calls = []
    text = cache.remembered(lambda: calls.append(1) or answer, *(parts or ("a", "b")))
    return text, bool(calls)


def only_file(place):
    (path,) = place.glob("*.txt")
    return path


def test_second_time_it_is_remembered(place):
    assert ask() == ("made", True)
    assert ask("other") == ("made", False)
    assert ask("other", "a", "c") == ("other", True)
    assert ask("other", "ab") == ("other", True)


def test_files_are_the_users_alone(place):
    ask()
    assert os.stat(place).st_mode & 0o777 == 0o700
    assert os.stat(only_file(place)).st_mode & 0o777 == 0o600
    assert not list(place.glob(".new-*"))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_could_write_is_ignored(place, mode):
    ask()
    only_file(place).chmod(mode)
    assert ask("again") == ("again", True)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_could_write_is_ignored(place, mode):
    ask()
    place.chmod(mode)
    assert ask("again") == ("again", True)
    assert ask("again") == ("again", True)  # nor is anything written there


def test_a_file_of_another_user_is_ignored(place, monkeypatch):
    ask()
    owner = os.stat(only_file(place)).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert ask("again") == ("again", True)


def test_a_link_is_ignored_even_to_a_good_file(place, tmp_path):
    ask()
    path = only_file(place)
    moved = tmp_path / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    assert ask("again") == ("again", True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + b"x",
        lambda text: text[:-1],
        lambda text: text.replace(b"made", b"evil"),
        lambda text: b"",
        lambda text: text.split(b"\n", 1)[1],
        lambda text: b"\xff\xfe" + text,
    ],
)
def test_a_damaged_file_is_made_anew_and_replaced(place, damage):
    ask()
    path = only_file(place)
    path.write_bytes(damage(path.read_bytes()))
    assert ask("again") == ("again", True)
    assert ask("other") == ("again", False)


def test_a_good_file_under_another_name_is_ignored(place):
    ask("one", "x")
    path = only_file(place)
    path.rename(place / f"{cache.key('y')}.txt")
    assert ask("two", "y") == ("two", True)


def test_the_key_knows_the_sources(monkeypatch):
    before = cache.key("a")
    monkeypatch.setattr(cache, "fingerprint", lambda: "other sources")
    assert cache.key("a") != before


def test_fingerprint_covers_every_source_that_makes_text():
    from pathlib import Path

    import elbotree.codegen
    import elbotree.derivation

    cache.fingerprint.cache_clear()
    read, original = [], Path.read_bytes
    try:
        Path.read_bytes = lambda self: read.append(self.name) or original(self)
        cache.fingerprint()
    finally:
        Path.read_bytes = original
    wanted = [
        path.name
        for package in (elbotree.derivation, elbotree.codegen)
        for path in Path(package.__path__[0]).glob("*.py")
    ]
    assert sorted(read) == sorted(wanted)
    assert "rules.py" in read


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no"])
def test_it_can_be_turned_off(monkeypatch, word):
    monkeypatch.setenv("ELBOTREE_CACHE", word)
    assert cache.folder() is None
    assert ask() == ("made", True)
    assert ask() == ("made", True)


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("ELBOTREE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "elbotree"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "elbotree"


def test_a_place_that_cannot_be_written_costs_nothing_but_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ELBOTREE_CACHE", str(tmp_path / "file" / "below"))
    assert ask() == ("made", True)


def test_writers_at_once_leave_one_whole_file(place):
    text = "line\n" * 20000
    threads = [threading.Thread(target=ask, args=(text, "same")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask("other", "same") == (text, False)
    assert len(list(place.iterdir())) == 1


def test_processes_at_once_leave_whole_files_and_agree(place):
    """Four processes write and read the same three keys a hundred times, with texts that no single write would hold."""
    code = (
        "from elbotree.codegen import cache\n"
        "for n in range(100):\n"
        "    name = 'abc'[n % 3]\n"
        "    text = cache.remembered(lambda: name * 300_000, 'shared', name)\n"
        "    assert text == name * 300_000, (name, len(text))\n"
        "    if n % 7 == 0: (cache.folder() / f\"{cache.key('shared', name)}.txt\").unlink(missing_ok=True)\n"
        "print('done')"
    )
    environment = {**os.environ, "ELBOTREE_CACHE": str(place)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(4)
    ]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, "done\n"), err
    assert not list(place.glob(".new-*"))
    assert len(list(place.glob("*.txt"))) <= 3


def test_remembered_kernels_load_without_sympy_and_are_the_same(place):
    code = (
        "import sys; from elbotree.codegen import compile_psi, generate; k = generate('tanh', 'bernoulli');"
        "compile_psi('tanh'); print('sympy' in sys.modules, hash(k.source) and k.source[-60:].split())"
    )
    environment = {**os.environ, "ELBOTREE_CACHE": str(place)}
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0].startswith("True")
    assert runs[1] == runs[0].replace("True", "False", 1)
    assert len(list(place.glob("*.txt"))) == 2


@pytest.mark.usefixtures("registries")
def test_what_a_user_registered_is_not_kept(place):
    from elbotree.codegen import kernels
    from elbotree.derivation import activations

    activations.register_psi("kept_by_nobody", "b + 1")
    kernels.generate("kept_by_nobody", "normal")
    kernels.compile_psi("kept_by_nobody")
    assert not place.exists()
