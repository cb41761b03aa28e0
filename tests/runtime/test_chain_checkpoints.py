"""Chains that were interrupted: the same bytes, nothing made twice, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime.checkpoints import CheckpointFolder
from elbotree.runtime.storage import MODEL, load_folder, save_folder


class Cut(Exception):
    """Stands for a signal."""


def network() -> tuple[list[et.Layer], et.FeatureModel]:
    """Two hidden layers of three and two units, and their input."""
    rng = np.random.default_rng(5)
    W = [(rng.standard_normal(s), rng.standard_normal(s[0]), "relu") for s in ((3, 2), (2, 3))]
    layers = et.compile_network([*W, (np.ones((1, 2)), None, None)])
    return layers, et.FeatureModel(np.eye(2), [et.Exponential(1.0), et.Bernoulli(0.4)], 0.3)


def chain(folder: Path | None, cut: int | None = None, resume: bool = False, **more: Any) -> et.Chain:
    seen: list[int] = []

    def stop(number: int, model: et.FeatureModel) -> None:
        seen.append(number)
        if number == cut:
            raise Cut

    layers, p1 = network()
    arguments = {"check_samples": 500, "features": 3, **more}
    made = et.fit_network(layers, p1, progress=stop, checkpoint=folder, resume=resume, **arguments)
    assert not resume or seen[:1] != [1] or cut is None
    return made


@pytest.mark.parametrize("cut", [1, 2, 4, 5])
def test_interrupted_and_resumed_the_chain_has_the_same_bytes(cut: int, tmp_path: Path) -> None:
    whole = chain(None)
    whole.save(tmp_path / "whole")
    with pytest.raises(Cut):
        chain(tmp_path / "state", cut=cut)
    again = chain(tmp_path / "state", resume=True)
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    assert again.drift == whole.drift
    assert again.notes == whole.notes
    assert [m.priors for m in again.models] == [m.priors for m in whole.models]


def test_finished_layers_are_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        chain(tmp_path, cut=3)
    told: list[int] = []
    layers, p1 = network()
    arguments = {"check_samples": 500, "features": 3}
    et.fit_network(layers, p1, progress=lambda n, _: told.append(n), checkpoint=tmp_path, resume=True, **arguments)
    assert told == list(range(4, len(layers) + 1))


def test_an_interruption_in_the_middle_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser of the second trained layer is cut off after some steps and goes on from there."""
    more = {"iterations": 8, "tol": 1e-3, "features": 2, "check_samples": 200}
    layers, p1 = network()
    saves, last = 0, -1
    save = CheckpointFolder.save

    def cut(self: CheckpointFolder, state: Any) -> None:
        nonlocal saves
        save(self, state)
        saves += "layer-00002" in str(self.folder)
        if saves == last:
            raise Cut

    monkeypatch.setattr(CheckpointFolder, "save", cut)
    whole = et.fit_network(layers[:2], p1, checkpoint=tmp_path / "whole", **more)
    assert all(loss is not None and loss.cross_entropy is not None for loss in whole.losses), whole.notes
    assert saves > 1  # so that the first is in the middle
    saves, last = 0, 1
    with pytest.raises(Cut):
        et.fit_network(layers[:2], p1, checkpoint=tmp_path, **more)
    monkeypatch.setattr(CheckpointFolder, "save", save)
    again = et.fit_network(layers[:2], p1, checkpoint=tmp_path, resume=True, **more)
    assert again.losses == whole.losses
    for one, two in zip(again.models, whole.models, strict=True):
        assert one.B.tobytes() == two.B.tobytes()
        assert one.priors == two.priors


def test_a_damaged_layer_is_made_again(tmp_path: Path) -> None:
    whole = chain(tmp_path)
    place = tmp_path / "layer-00003"
    (place / MODEL).write_bytes(b"damaged")
    again = chain(tmp_path, resume=True)
    assert [m.B.tobytes() for m in again.models] == [m.B.tobytes() for m in whole.models]
    assert (place / MODEL).read_bytes() != b"damaged"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        chain(tmp_path, cut=2)
    with pytest.raises(et.InputError, match="holds a checkpoint; go on from it with resume=True"):
        chain(tmp_path)
    with pytest.raises(et.InputError, match=r"another `features` \(3 there, 4 here\)"):
        chain(tmp_path, resume=True, features=4)
    with pytest.raises(et.InputError, match="`resume` needs `checkpoint`"):
        chain(None, resume=True)
    layers, p1 = network()
    with pytest.raises(et.InputError, match="another `network`"):
        et.fit_network(
            layers[1:], layers_input(layers, p1), checkpoint=tmp_path, resume=True, check_samples=500, features=3
        )
    cfg, arrays = load_folder(tmp_path / "layer-00001")
    save_folder(tmp_path / "layer-00001", {name: value for name, value in cfg.items() if name != "block"}, arrays)
    with pytest.raises(et.InputError, match=r"is damaged \('block'\); remove .*layer-00001"):
        chain(tmp_path, resume=True)


def layers_input(layers: list[et.Layer], p1: et.FeatureModel) -> et.FeatureModel:
    """A model of the first layer's output."""
    return et.fit_network(layers[:1], p1).models[0]
