"""Checkpoints: an interrupted run ends on the same bytes, saves are cut off without harm, and refusals come before work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime.checkpoints import CheckpointFolder, Record, Step, Training, fingerprint
from elbotree.runtime.errors import InputError
from elbotree.runtime.storage import CFG, MODEL

SETTINGS = {"tol": 1e-3}


class Cut(Exception):
    """Stands for a signal."""


def problem() -> tuple[et.Layer, et.FeatureModel]:
    """One coordinate and one feature: an iteration takes a hundredth of a second."""
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu", threshold=0.1)
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
    arguments: dict[str, object] = {"features": 1, "tol": 1e-3, "iterations": 4, "rounds": 2, **more}
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
        fit(place, cut=6, resume=True)  # in the second round
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
    other = et.Layer(layer.A, layer.w, layer.u, "relu", threshold=0.2)
    with pytest.raises(InputError, match="checkpoint of a fit with another `layer`; give the same"):
        et.fit(other, p1, 1, tol=1e-3, iterations=4, rounds=2, checkpoint=tmp_path, resume=True)


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


def state(losses: int) -> tuple[Training, et.Layer, et.FeatureModel]:
    layer, p1 = problem()
    q = et.Posterior("tilted", [[1 / 3]], [0.7], precision=1.1, base=et.Discrete((0.0, 1.0, 2.0), (0.3, 0.3, 0.4)))
    made = Training(et.Encoder([q]), turn=1)
    for i in range(losses):
        made.record.add(np.array([i / 3]), i / 7, np.array([i / 11]))
    model = et.FeatureModel([[1.0]], [q.base], 0.3)
    made.best = (1 / 3, et.Problem(layer, p1, model, made.encoder))
    return made, layer, p1


def test_every_bit_of_a_state_is_kept(tmp_path: Path) -> None:
    made, layer, p1 = state(3)
    CheckpointFolder(tmp_path, SETTINGS).save(made)
    read = CheckpointFolder(tmp_path, SETTINGS).load(layer, p1)
    assert read is not None
    assert read.best is not None
    assert made.best is not None
    assert read.record.losses == made.record.losses
    np.testing.assert_array_equal(read.record.points, made.record.points)
    np.testing.assert_array_equal(read.record.gradients, made.record.gradients)
    assert (read.turn, read.best[0]) == (1, 1 / 3)
    assert read.best[1].to_dict() == made.best[1].to_dict()
    assert read.encoder[0].base == made.encoder[0].base


@pytest.mark.parametrize("damaged", [CFG, MODEL])
def test_a_save_that_is_cut_off_leaves_the_one_before(damaged: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, SETTINGS)
    for losses in (1, 2, 3):
        made, layer, p1 = state(losses)
        folder.save(made)
    content = (tmp_path / "a" / damaged).read_bytes()  # the third save went where the first one was
    (tmp_path / "a" / damaged).write_bytes(content[: len(content) // 2])
    read = CheckpointFolder(tmp_path, SETTINGS).load(layer, p1)
    assert read is not None
    assert len(read.record.losses) == 2
    (tmp_path / "b" / damaged).write_bytes(b"{}")
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        CheckpointFolder(tmp_path, SETTINGS).load(layer, p1)


def test_saves_within_a_second_are_left_out_unless_they_must_be(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, SETTINGS)
    for losses, now in ((1, True), (2, False)):
        folder.save(state(losses)[0], now)
    made, layer, p1 = state(3)
    read = CheckpointFolder(tmp_path, SETTINGS).load(layer, p1)
    assert read is not None
    assert len(read.record.losses) == 1
    folder.save(made)
    read = CheckpointFolder(tmp_path, SETTINGS).load(layer, p1)
    assert read is not None
    assert len(read.record.losses) == 3


def test_a_record_answers_only_the_question_that_was_asked() -> None:
    record = Record()
    record.add(np.array([1.0]), 2.0, np.array([3.0]))
    record.add(np.array([4.0]), 5.0, np.array([6.0]))
    assert record.answer(0, np.array([1.0])) == (2.0, np.array([3.0]))
    assert record.answer(1, np.array([4.0 + 1e-15])) is None
    assert len(record.losses) == 1  # and what came after it is forgotten


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
