"""Checkpoints: an interrupted run ends on the same bytes, saves are cut off without harm, and refusals come before work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime import training
from elbotree.runtime.checkpoints import Attempt, CheckpointFolder, Step, Training, encoder_form, fingerprint
from elbotree.runtime.errors import InputError
from elbotree.runtime.lbfgs import Search
from elbotree.runtime.search import Found
from elbotree.runtime.storage import CFG, MODEL

SETTINGS = {"tol": 1e-3}


class Cut(Exception):
    """Stands for a signal."""


def problem() -> tuple[et.Layer, et.FeatureModel]:
    """One coordinate and one feature, affine: an iteration takes a hundredth of a second."""
    layer = et.Layer([[1.0]], [0.5], [0.8], "identity", threshold=0.1)
    return layer, et.FeatureModel([[1.0]], [et.Discrete((-1.0, 0.0, 2.0), (0.2, 0.5, 0.3))], 0.4)


def fit(
    folder: Path | None, cut: int | None = None, resume: bool = False, seen: list[int] | None = None, **more: object
) -> et.Fit:
    def stop(step: Step) -> None:
        if seen is not None:
            seen.append(step.iteration)
        if cut is not None and step.iteration >= cut:
            raise Cut

    layer, p1 = problem()
    arguments: dict[str, object] = {"features": 2, "tol": 1e-3, "iterations": 4, "rounds": 2, "starts": 2, **more}
    return et.fit(layer, p1, checkpoint=folder, resume=resume, progress=stop, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    fit(None).save(folder)
    return folder


def test_interrupted_twice_and_resumed_the_model_has_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    with pytest.raises(Cut):
        fit(place, cut=3)
    with pytest.raises(Cut):
        fit(place, cut=7, resume=True)  # in the second start
    resumed = fit(place, resume=True)
    resumed.save(tmp_path / "resumed")
    assert (tmp_path / "resumed" / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    expected = et.load(whole)
    assert resumed.problem.to_dict() == expected.problem.to_dict()
    assert resumed.message == expected.message
    assert [step.loss for step in resumed.history] == [step.loss for step in expected.history]
    seconds = [step.seconds for step in resumed.history]
    assert seconds == sorted(seconds)
    # a finished run is returned as it stands, without another iteration
    again = fit(place, cut=0, resume=True)
    assert again.problem.to_dict() == expected.problem.to_dict()


def test_resume_does_not_compute_again_what_the_checkpoint_knows(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fit(tmp_path, cut=3)
    seen: list[int] = []
    with pytest.raises(Cut):
        fit(tmp_path, cut=4, resume=True, seen=seen)
    assert seen == [4]


def test_the_search_for_starts_is_kept_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interruption before the first step of the exact loss does not lose what was found on points, nor the time it took."""

    def slow(layer: et.Layer, p1: et.FeatureModel, encoder: et.Encoder, *rest: object) -> object:
        time.sleep(0.2)
        return [Found("found", encoder, 0.0, 1)], []

    def cut(*given: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(training, "searched", slow)
        patched.setattr(training._Run, "leg", cut)
        with pytest.raises(Cut):
            fit(tmp_path, starts=None)
    monkeypatch.setattr(training, "searched", cut)
    found = fit(tmp_path, starts=None, resume=True)
    assert [start.name for start in found.starts] == ["found"]
    assert found.history[0].seconds > 0.2


def test_a_checkpoint_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fit(tmp_path, cut=1)
    with pytest.raises(InputError, match="holds a checkpoint; go on from it with resume=True"):
        fit(tmp_path)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fit(tmp_path, cut=1)
    with pytest.raises(InputError, match=r"another `tol` \(0.001 there, 0.002 here\)"):
        fit(tmp_path, resume=True, tol=2e-3)
    layer, p1 = problem()
    other = et.Layer(layer.A, layer.w, layer.u, "identity", threshold=0.2)
    with pytest.raises(InputError, match="checkpoint of a fit with another `layer`; give the same"):
        et.fit(other, p1, 2, tol=1e-3, iterations=4, rounds=2, checkpoint=tmp_path, resume=True)


def test_resume_needs_a_folder_and_starts_anew_in_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`resume` needs `checkpoint`"):
        fit(None, resume=True)
    with pytest.raises(Cut):
        fit(tmp_path / "new", cut=1, resume=True)


def test_a_place_that_cannot_hold_checkpoints_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give the path of a folder"):
        fit(tmp_path / "file" / "inside", cut=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="the disk has 0 MB free"):
        fit(tmp_path / "full", cut=0)


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    seen: list[int] = []
    with pytest.raises(InputError, match=r"cannot be written: .*: No space left on device; choose another"):
        fit(tmp_path / "state", seen=seen)
    assert seen == []


def test_a_disk_without_room_for_all_checkpoints_to_come_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))
    seen: list[int] = []
    with pytest.raises(
        InputError, match=r"the disk has 0 MB free; the checkpoints of this fit may take \d+ MB, so free some"
    ):
        fit(tmp_path / "state", seen=seen, iterations=2000, rounds=20)
    assert seen == []


def state(steps: int) -> Training:
    q = et.Posterior("tilted", [[1 / 3]], [0.7], precision=1.1, base=et.Discrete((0.0, 1.0, 2.0), (0.3, 0.3, 0.4)))
    attempts = [Attempt("given", et.Encoder([q]), 1 / 3, 2, "stalled"), Attempt("pursuit", et.Encoder([q]))]
    vectors = [np.array([i / 7, 1 / (i + 1)]) for i in range(steps)]
    search = Search(np.array([1 / 3, 0.1]), 1 / 9, np.array([1 / 11, 2.0]), vectors, [v / 3 for v in vectors])
    terms = {"L": 1 / 3, "R1": 0.1}
    history = [Step(i + 1, 1 / (i + 1), 1e-9, 0.1, 0.3, 1e-3, 0.1 * i, 0.1, terms, 1, 4) for i in range(steps)]
    return Training(attempts, 1e-3, 1, "trial", [2], 4, 2, 1 / 3, search, history, 0.7)


def test_every_bit_of_a_state_is_kept(tmp_path: Path) -> None:
    made = state(3)
    CheckpointFolder(tmp_path, SETTINGS).save(made)
    read = CheckpointFolder(tmp_path, SETTINGS).load()
    assert read is not None
    assert made.search is not None
    assert read.search is not None
    for name in ("x", "gradient", "steps", "changes", "loss"):
        np.testing.assert_array_equal(getattr(read.search, name), getattr(made.search, name))
    for name in ("tol", "at", "stage", "waiting", "leg", "turn", "gained", "history", "elapsed", "message"):
        assert getattr(read, name) == getattr(made, name)
    for ours, theirs in zip(read.attempts, made.attempts, strict=True):
        assert {**vars(ours), "encoder": None} == {**vars(theirs), "encoder": None}
        assert encoder_form(ours.encoder) == encoder_form(theirs.encoder)


def test_the_beginning_of_a_leg_is_kept_too(tmp_path: Path) -> None:
    made = state(0)
    made.search = None
    CheckpointFolder(tmp_path, SETTINGS).save(made)
    read = CheckpointFolder(tmp_path, SETTINGS).load()
    assert read is not None
    assert read.search is None


@pytest.mark.parametrize("damaged", [CFG, MODEL])
def test_a_save_that_is_cut_off_leaves_the_one_before(damaged: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, SETTINGS)
    for steps in (1, 2, 3):
        folder.save(state(steps))
    content = (tmp_path / "a" / damaged).read_bytes()  # the third save went where the first one was
    (tmp_path / "a" / damaged).write_bytes(content[: len(content) // 2])
    read = CheckpointFolder(tmp_path, SETTINGS).load()
    assert read is not None
    assert len(read.history) == 2
    (tmp_path / "b" / damaged).write_bytes(b"{}")
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        CheckpointFolder(tmp_path, SETTINGS).load()


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_killed_at_any_moment_a_fit_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGINT, SIGTERM and SIGKILL, each at another moment: between two slots, in an iteration, in a save."""
    problem = {
        "format": "elbotree-problem/1",
        "layer": {"A": [[1.0]], "w": [0.5], "u": [0.8], "psi": "identity", "threshold": 0.1},
        "input": {
            "B": [[1.0]],
            "noise_std": 0.4,
            "priors": [{"kind": "discrete", "points": [-1.0, 0.0, 2.0], "masses": [0.2, 0.5, 0.3]}],
        },
    }
    (tmp_path / "p.json").write_text(json.dumps(problem))
    place = tmp_path / "state"
    call = [sys.executable, "-m", "elbotree", "fit", str(tmp_path / "p.json"), "--tol", "1e-6", "--format", "json"]
    kept = [*call, "--checkpoint", str(place), "--resume", "--out", str(tmp_path / "resumed")]
    reached = 0
    for signal_number, wait in ((signal.SIGKILL, 0.0), (signal.SIGINT, 0.07), (signal.SIGTERM, 0.02)):
        process = subprocess.Popen(kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and _saves(place) <= reached:
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal_number)
        process.wait(60)
        reached = _saves(place)
        assert reached > 0
    assert subprocess.run(kept, stdout=subprocess.DEVNULL).returncode == 0
    assert subprocess.run([*call, "--out", str(tmp_path / "whole")], stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "resumed" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


def _saves(place: Path) -> int:
    """The number of the newest whole save."""
    found = [0]
    for slot in ("a", "b"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(json.loads((place / slot / CFG).read_text())["saves"])
    return max(found)


def test_the_fingerprint_sees_every_part() -> None:
    layer, p1 = problem()
    changed = [
        (et.Layer(layer.A, layer.w, layer.u, "elu", threshold=0.1), p1),
        (et.Layer(layer.A, layer.w, layer.u * 2, "relu", threshold=0.1), p1),
        (layer, et.FeatureModel(p1.B, [et.Bernoulli(0.4)], 0.4)),
        (layer, et.FeatureModel(p1.B, p1.priors, 0.31)),
    ]
    assert all(fingerprint(*other) != fingerprint(layer, p1) for other in changed)
    assert fingerprint(*problem()) == fingerprint(layer, p1)
