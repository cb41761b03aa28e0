"""Faults: killed processes, full and read-only disks, damaged checkpoints, two runs in one folder. Whatever happens, a run
goes on to the same bytes or says clearly why not, and the last good checkpoint loads.

`make faults` sets the counts of the environment variables below to what takes minutes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime.chain_checkpoints import ChainFolder, Done
from elbotree.runtime.checkpoints import Attempt, CheckpointFolder, Step, Training, encoder_form
from elbotree.runtime.lbfgs import Search
from elbotree.runtime.storage import CFG, MODEL, FolderLock
from tests.stress.kills import RUNS, fit, run_fit

KILLS = int(os.environ.get("ELBOTREE_KILLS", "10"))
FLIPS = int(os.environ.get("ELBOTREE_FLIPS", "300"))  # bytes flipped of each kind of checkpoint; -1: every one
SETTINGS = {"tol": 1e-3}
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


@posix
@pytest.mark.parametrize("run", ["fit", "fit_network"])
def test_killed_at_random_moments_a_run_goes_on_to_the_same_bytes(run: str) -> None:
    call = [sys.executable, "-m", "tests.stress.kills", run, str(KILLS)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(told)
    assert told["killed"] == KILLS
    assert told["finished"] >= 1


# -- damaged checkpoints ----------------------------------------------------------------------------------------------
def state(steps: int) -> Training:
    """A state of training of so many steps."""
    q = et.Posterior("tilted", [[1 / 3]], [0.7], precision=1.1, base=et.Discrete((0.0, 1.0, 2.0), (0.3, 0.3, 0.4)))
    vectors = [np.array([i / 7, 1 / (i + 1)]) for i in range(steps)]
    search = Search(np.array([1 / 3, 0.1]), 1 / 9, np.array([1 / 11, 2.0]), vectors, [v / 3 for v in vectors])
    history = [Step(i + 1, 1 / (i + 1), 1e-9, 0.1, 0.3, 1e-3, 0.1 * i, 0.1, {"L": 1 / 3}, 0, 0) for i in range(steps)]
    return Training([Attempt("given", et.Encoder([q]))], 1e-3, search=search, history=history)


def everything(found: Training) -> list[object]:
    """All that a state holds, to the last bit."""
    assert found.search is not None
    arrays = [found.search.x, found.search.gradient, *found.search.steps, *found.search.changes]
    attempts = [{**vars(attempt), "encoder": encoder_form(attempt.encoder)} for attempt in found.attempts]
    plain = {name: value for name, value in vars(found).items() if name not in ("search", "attempts")}
    return [plain, attempts, found.search.loss, [array.tobytes() for array in arrays]]


def flips(files: list[Path]) -> Iterator[tuple[Path, int]]:
    """Places of bytes in the files: FLIPS random ones, or each; the byte is other there while the loop's body runs."""
    rng = random.Random(1)
    places = [(path, at) for path in files for at in range(path.stat().st_size)]
    for path, at in places if FLIPS < 0 else rng.sample(places, min(FLIPS, len(places))):
        content = path.read_bytes()
        path.write_bytes(content[:at] + bytes([content[at] ^ rng.randint(1, 255)]) + content[at + 1 :])
        yield path, at
        path.write_bytes(content)


def test_any_byte_of_a_checkpoint_may_flip(tmp_path: Path) -> None:
    """The newest state loads where it is whole, the one before it where not; never a third one."""
    folder = CheckpointFolder(tmp_path, SETTINGS)
    for steps in (1, 2, 3):
        folder.save(state(steps))
    newest, before = everything(state(3)), everything(state(2))
    seen = 0
    for path, at in flips([tmp_path / slot / name for slot in "ab" for name in (CFG, MODEL)]):
        found = CheckpointFolder(tmp_path, SETTINGS).load()
        assert found is not None
        held = everything(found)
        # in slot b is the older state, and layout that no value depends on may change in slot a
        assert held == newest or (held == before and path.parent.name == "a"), (path, at)
        seen += held == before
    assert seen > 0


def test_any_byte_of_the_only_checkpoint_may_flip(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, SETTINGS).save(state(2))
    whole, refused = everything(state(2)), 0
    for path, at in flips([tmp_path / "a" / name for name in (CFG, MODEL)]):
        told, found = "", None
        try:
            found = CheckpointFolder(tmp_path, SETTINGS).load()
        except et.InputError as error:
            told = str(error)
        refused += found is None
        assert "holds no whole checkpoint" in told if found is None else everything(found) == whole, (path, at)
    assert refused > 0


def test_any_byte_of_a_chains_checkpoint_may_flip(tmp_path: Path) -> None:
    """Layers before the damaged one load, to the last bit; it and those after it are made again."""
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu")
    models = [et.FeatureModel([[1 / (i + 3)]], [et.Bernoulli(0.1 + i / 7)], 0.3 + i, [1 / 7]) for i in range(3)]
    folder = ChainFolder(tmp_path, [layer] * 3, models[0], SETTINGS)
    for i, model in enumerate(models):
        folder.save(i, Done(model, None, i, 0.1, 0.2, "note"))
    whole = [chain_form(done) for done in folder.load(3)]
    assert len(whole) == 3
    cut = 0
    for path, at in flips([tmp_path / f"layer-{i:05d}" / name for i in (1, 2, 3) for name in (CFG, MODEL)]):
        found = [chain_form(done) for done in folder.load(3)]
        damaged = int(path.parent.name[-5:]) - 1
        assert found == whole or found == whole[:damaged], (path, at)
        cut += len(found) == damaged
    assert cut > 0


def chain_form(done: Done) -> list[object]:
    """All that a finished layer holds, to the last bit."""
    model = done.model
    arrays = [model.B.tobytes(), model.offset.tobytes(), model.noise_std]
    return [arrays, [p.spec() for p in model.priors], done.loss, done.block, done.made_normal, done.added_noise]


def test_a_saved_fit_with_a_changed_number_is_refused(tmp_path: Path) -> None:
    run_fit(tmp_path / "state", tmp_path / "fit")
    text = (tmp_path / "fit" / CFG).read_text()
    changed = text.replace('"noise_std": 0.4', '"noise_std": 0.5')
    assert changed != text
    (tmp_path / "fit" / CFG).write_text(changed)
    with pytest.raises(et.InputError, match=r"cfg\.json does not match its own SHA-256"):
        et.load(tmp_path / "fit")


@pytest.mark.parametrize("name", [CFG, MODEL])
def test_a_folder_of_links_is_refused(name: str, tmp_path: Path) -> None:
    run_fit(tmp_path / "state", tmp_path / "fit")
    (tmp_path / "fit" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "fit" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(et.InputError, match="is a link; put the file itself there"):
        et.load(tmp_path / "fit")


# -- disks ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of half a MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, leave: int) -> None:
    """Fill a disk but for so many bytes."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    (place / "filler").write_bytes(bytes(max(0, free - leave)))


def test_a_disk_that_fills_up_ends_a_fit_with_an_error_and_it_goes_on_later(small_disk: Path, tmp_path: Path) -> None:
    run_fit(tmp_path / "state", tmp_path / "whole")

    def then_full(step: Step) -> None:
        if step.iteration == 3:
            fill(small_disk, leave=0)

    with pytest.raises(et.InputError, match="No space left on device"):
        fit(small_disk, progress=then_full)
    (small_disk / "filler").unlink()
    run_fit(small_disk, tmp_path / "out")
    assert (tmp_path / "out" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288, 16384, 20480])
def test_wherever_in_a_save_the_disk_is_full_the_one_before_loads(small_disk: Path, leave: int) -> None:
    """Between nothing and everything of a save finds room; check_writable's own probe is left out of the way."""
    folder = CheckpointFolder(small_disk, SETTINGS)
    for steps in (1, 2):
        folder.save(state(steps))
    fill(small_disk, leave)
    with contextlib.suppress(et.InputError):
        folder.save(state(40))
    (small_disk / "filler").unlink()
    found = CheckpointFolder(small_disk, SETTINGS).load()
    assert found is not None
    assert everything(found) in (everything(state(2)), everything(state(40)))


def test_a_read_only_disk_is_told_before_the_work(small_disk: Path) -> None:
    CheckpointFolder(small_disk, SETTINGS).save(state(2))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(et.InputError, match=r"cannot be written: .*: Read-only file system; choose another"):
        run_fit(small_disk, small_disk / "out")


@contextlib.contextmanager
def nobody_special() -> Iterator[None]:
    """As a user to whom permissions apply, also where the tests are run by root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@posix
def test_a_folder_without_permission_is_told_before_the_work(tmp_path: Path) -> None:
    run_fit(tmp_path / "warm", tmp_path / "out")  # what is imported late is imported now, by who may read it
    with tempfile.TemporaryDirectory() as place:  # tmp_path is closed to others
        locked = Path(place) / "locked"
        locked.mkdir()
        if os.geteuid() == 0:
            os.chown(locked, 65534, -1)
        os.chmod(place, 0o755)
        locked.chmod(0o500)
        with (
            nobody_special(),
            pytest.raises(et.InputError, match=r"cannot be written: .*: Permission denied; choose another"),
        ):
            run_fit(locked / "state", tmp_path / "out")
        assert list(locked.iterdir()) == []


# -- two runs in one folder -------------------------------------------------------------------------------------------
@posix
@pytest.mark.parametrize("run", ["fit", "fit_network"])
def test_of_two_runs_in_one_folder_the_second_is_refused(run: str, tmp_path: Path) -> None:
    """While another process holds the folder; when it has gone, even by a kill, the run goes on."""
    hold = (
        "import sys, time\nfrom elbotree.runtime.storage import FolderLock\n"
        "with FolderLock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(et.InputError, match="is in use by another run; wait until it ends, or give another folder"):
        RUNS[run](tmp_path / "state", tmp_path / "out")
    process.kill()
    process.wait(60)
    process.stdout.close()
    RUNS[run](tmp_path / "state", tmp_path / "out")
    assert (tmp_path / "out" / MODEL).exists()


def test_a_lock_is_let_go_of_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), FolderLock(tmp_path):
        raise KeyError
    with FolderLock(tmp_path), pytest.raises(et.InputError, match="in use"), FolderLock(tmp_path):
        pass


def test_a_kill_that_cut_a_write_off_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "state" / "a").mkdir(parents=True)
    cut_off = tmp_path / "state" / "a" / f".{CFG}.0123456789ab.tmp"
    cut_off.write_text("{")
    run_fit(tmp_path / "state", tmp_path / "out")
    assert not cut_off.exists()
