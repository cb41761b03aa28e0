"""Where a chain stands, in a folder: one subfolder a finished layer, each written once and atomically, and the checkpoint of
the training under way in the layer after them. A run that goes on from it ends on the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.checkpoints import CheckpointFolder, check_settings, fingerprint
from elbotree.runtime.errors import InputError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.models import FeatureModel, Layer
from elbotree.runtime.records import read_record
from elbotree.runtime.storage import CFG, FolderLock, check_writable, load_folder, remove_litter, save_folder
from elbotree.runtime.values import NAMES, Values

Array = NDArray[np.float64]

FORMAT = "elbotree-chain-checkpoint/3"


@dataclass(frozen=True)
class Loss:
    """The loss L of a trained layer, in nats.

    values, errors  the twelve terms and estimates of their absolute errors; L is the model's cross-entropy bound against the
                   model before it
    gap            L minus the entropy of the normal law with f(x1)'s mean and covariance, which is what the best Gaussian
                   model reaches: below 0 the features say more than Gaussian moments. None where the covariance is singular
    cross_entropy  the same bound against samples of the true network, mean of -ELBO; None where none were asked for
    iterations     of the optimiser
    """

    values: dict[str, float]
    errors: dict[str, float]
    gap: float | None
    cross_entropy: float | None
    iterations: int

    @property
    def value(self) -> float:
        """L."""
        return self.values["L"]

    @property
    def error(self) -> float:
        """The error of L."""
        return self.errors["L"]

    @property
    def terms(self) -> Values:
        """The loss tree's numbers."""
        estimates = {name: Estimate.of(value, self.errors[name]) for name, value in self.values.items()}
        return Values.of(estimates)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data: what the table shows, and the terms."""
        terms = {name: term.to_dict() for name, term in self.terms.items()}
        more = {"gap": self.gap, "cross_entropy": self.cross_entropy, "iterations": self.iterations}
        return {"value": self.value, "error": self.error, **more, "terms": terms}


@dataclass(frozen=True)
class Done:
    """A finished layer.

    model        of its output
    loss         where it was trained
    block        how many layers were finished when the propagation's block began that this one belongs to
    made_normal, added_noise  of the step
    note         what was given up in training, or nothing
    """

    model: FeatureModel
    loss: Loss | None
    block: int
    made_normal: float
    added_noise: float
    note: str


def read_loss(form: object, where: str) -> Loss:
    """A loss from JSON data. Raises InputError that names the place."""
    loss = read_record(Loss, form, where)
    for name in ("values", "errors"):
        if set(getattr(loss, name)) != set(NAMES):
            raise InputError(f"`{where}.{name}` must hold the terms {', '.join(NAMES)}")
    return loss


class ChainFolder:
    """Checkpoints of one chain in a folder.

    Arguments
        folder    made when it is not there
        layers, p1, settings  what the chain depends on; a checkpoint of others is refused

    Raises InputError, before any work, when the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, layers: Sequence[Layer], p1: FeatureModel, settings: Mapping[str, Any]
    ) -> None:
        self.folder = Path(folder)
        prints = json.dumps([fingerprint(layer, p1) for layer in layers])
        self.settings = {"network": hashlib.sha256(prints.encode()).hexdigest(), **settings}
        check_writable(self.folder)

    def _place(self, i: int) -> Path:
        return self.folder / f"layer-{i + 1:05d}"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other processes, and remove what killed ones left half-written. Raises InputError where
        another run holds it."""
        with FolderLock(self.folder):
            for place in (self.folder, *self.folder.glob("layer-*"), *self.folder.glob("layer-*/training/**")):
                remove_litter(place)
            yield

    @property
    def holds_one(self) -> bool:
        """Whether anything of a chain is there."""
        return self._place(0).exists()

    def training(self, i: int, layer: Layer, before: FeatureModel, largest: int) -> CheckpointFolder:
        """The checkpoint of the training of layer i."""
        return CheckpointFolder(self._place(i) / "training", {**self.settings, **fingerprint(layer, before)}, largest)

    def save(self, i: int, done: Done) -> None:
        """Write a finished layer."""
        cfg = {
            "format": FORMAT,
            "settings": self.settings,
            "model": {"noise_std": done.model.noise_std, "priors": [prior.spec() for prior in done.model.priors]},
            "loss": None if done.loss is None else asdict(done.loss),
            "block": done.block,
            "made_normal": done.made_normal,
            "added_noise": done.added_noise,
            "note": done.note,
        }
        save_folder(self._place(i), cfg, {"B": done.model.B, "offset": done.model.offset})

    def load(self, count: int) -> list[Done]:
        """The finished layers, from the first on; one that is damaged, and all after it, are made again.

        Raises InputError when what is there belongs to another chain.
        """
        out: list[Done] = []
        for i in range(count):
            place = self._place(i)
            if not (place / CFG).exists():
                break
            try:
                cfg, arrays = load_folder(place)
            except InputError:
                break
            check_settings(cfg, place / CFG, FORMAT, self.settings, f"{self.folder} holds the checkpoint of a chain")
            try:
                form = cfg["model"]
                model = FeatureModel(arrays["B"], form["priors"], form["noise_std"], arrays["offset"])
                loss = None if cfg["loss"] is None else read_loss(cfg["loss"], "loss")
                numbers = (int(cfg["block"]), float(cfg["made_normal"]), float(cfg["added_noise"]))
                out.append(Done(model, loss, *numbers, str(cfg["note"])))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{place / CFG} is damaged ({error}); remove {place} to make that layer again"
                ) from None
        return out
