"""Where training stands, in memory and in a folder, so that it can be interrupted at any moment and go on to the same bytes.

L-BFGS keeps a memory of past steps that scipy does not hand out. So a checkpoint holds what the optimiser was told instead:
every loss and gradient since the round began, in order. Resuming starts the round again and answers from that record, which
takes no time, until the record ends; from there on the optimiser is in the state it was in, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import InputError
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
from elbotree.runtime.storage import CFG, check_writable, load_folder, save_folder

Array = NDArray[np.float64]

FORMAT = "elbotree-checkpoint/1"
_SLOTS = ("a", "b")  # written in turns: a save that is cut off leaves the other one whole
_EVERY = 1.0  # seconds between two saves within a round


@dataclass(frozen=True)
class Step:
    """One accepted iteration: loss in nats, gradient norm in the optimiser's coordinates, tolerance, seconds so far."""

    iteration: int
    loss: float
    error: float
    gradient_norm: float
    noise_std: float
    tol: float
    seconds: float


@dataclass
class Record:
    """The losses and gradients of a round, in the order in which the optimiser asked for them."""

    points: list[Array] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradients: list[Array] = field(default_factory=list)

    def add(self, x: Array, loss: float, gradient: Array) -> None:
        self.points.append(x.copy())
        self.losses.append(loss)
        self.gradients.append(gradient.copy())

    def answer(self, at: int, x: Array) -> tuple[float, Array] | None:
        """The answer number `at`, if it was to the same question; another question ends the record there."""
        if at >= len(self.points):
            return None
        if self.points[at].tobytes() != x.tobytes():  # another version of the optimiser: nothing after it is of use
            del self.points[at:], self.losses[at:], self.gradients[at:]
            return None
        return self.losses[at], self.gradients[at]


@dataclass
class Training:
    """Where a run stands: what `train` needs to go on.

    turn      the round, from 0
    encoder   the encoder that the round began with
    best      the best loss of the rounds before and the problem there, if there was one
    history   accepted steps
    accepted  how many of them belong to the rounds before
    record    what the optimiser was told in this round
    message   why training ended; empty while it goes on
    """

    encoder: Encoder
    turn: int = 0
    best: tuple[float, Problem] | None = None
    history: list[Step] = field(default_factory=list)
    accepted: int = 0
    record: Record = field(default_factory=Record)
    message: str = ""


class CheckpointFolder:
    """Checkpoints of one fit in a folder.

    Arguments
        folder    made when it is not there
        settings  what the fit depends on (plain JSON); a checkpoint of other settings is refused
        largest   bytes that one checkpoint may come to take, for the question whether the disk has room

    Raises InputError, before any work, when the folder cannot be written or the disk is too full.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], largest: int = 0) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self._written, self._saves, self._at = float("-inf"), 0, 0
        check_writable(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise InputError(f"{self.folder} cannot be made: {error.strerror or error}; choose another place") from None
        if free < 3 * largest:  # two slots, and one being written
            raise InputError(
                f"{self.folder}: the disk has {free / 1e6:,.0f} MB free; the checkpoints of this fit may take "
                f"{3 * largest / 1e6:,.0f} MB, so free some or choose another place"
            )

    @property
    def holds_one(self) -> bool:
        """Whether there is a checkpoint."""
        return any((self.folder / slot / CFG).exists() for slot in _SLOTS)

    def save(self, state: Training, now: bool = True) -> None:
        """Write the state; unless `now`, only when a second has passed since the last time."""
        if not now and time.monotonic() - self._written < _EVERY:
            return
        arrays: dict[str, Array] = {}
        cfg = {
            "format": FORMAT,
            "saves": self._saves + 1,
            "settings": self.settings,
            "turn": state.turn,
            "accepted": state.accepted,
            "message": state.message,
            "history": [asdict(step) for step in state.history],
            "encoder": encoder_form(state.encoder),
            "best": None if state.best is None else _best_form(*state.best),
        }
        known = len(state.record.gradients)  # an interruption may have cut the last entry off
        if known:
            arrays["points"] = np.array(state.record.points[:known])
            arrays["losses"] = np.array(state.record.losses[:known])
            arrays["gradients"] = np.array(state.record.gradients)
        save_folder(self.folder / _SLOTS[self._at], cfg, arrays)
        self._saves, self._at, self._written = self._saves + 1, 1 - self._at, time.monotonic()

    def load(self, layer: Layer, p1: FeatureModel) -> Training | None:
        """The newest whole checkpoint, or None when there is none.

        Raises InputError when what is there is of another fit, or all of it is damaged.
        """
        found: tuple[int, int, dict[str, Any], dict[str, Array]] | None = None
        failure: Exception | None = None
        for at, slot in enumerate(_SLOTS):
            if not (self.folder / slot / CFG).exists():
                continue
            try:
                cfg, arrays = load_folder(self.folder / slot)
                number = int(cfg["saves"])
                if found is None or number > found[0]:
                    found = (number, at, cfg, arrays)
            except (InputError, KeyError, TypeError, ValueError) as error:
                failure = error
        if found is None:
            if failure is not None:
                raise InputError(f"{self.folder} holds no whole checkpoint ({failure}); start anew in another folder")
            return None
        number, at, cfg, arrays = found
        place = self.folder / _SLOTS[at] / CFG
        self._check(cfg, place)
        try:
            state = _state(cfg, arrays, layer, p1)
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise InputError(f"{place} is damaged ({error}); start anew in another folder") from None
        self._saves, self._at = number, 1 - at
        return state

    def _check(self, cfg: Mapping[str, Any], place: Path) -> None:
        if cfg.get("format") != FORMAT:
            raise InputError(f"{place}: `format` is {cfg.get('format')!r}; this version reads {FORMAT!r}")
        theirs = cfg.get("settings")
        theirs = theirs if isinstance(theirs, dict) else {}
        for name, value in self.settings.items():
            if theirs.get(name) != value:
                shown = f" ({theirs.get(name)!r} there, {value!r} here)"
                shown = shown if len(shown) < 80 else ""
                raise InputError(
                    f"{self.folder} holds the checkpoint of a fit with another `{name}`{shown}; give the same, or "
                    "another folder"
                )


def fingerprint(layer: Layer, p1: FeatureModel) -> dict[str, str]:
    """SHA-256 of a layer and of the model of its input: what a checkpoint remembers of them."""
    parts = {
        "layer": [layer.A, layer.w, layer.u, layer.offset, np.array(layer.threshold)],
        "input": [p1.B, p1.offset, np.array(p1.noise_std)],
    }
    psi = layer.psi if isinstance(layer.psi, str) else layer.psi.text
    texts = {"layer": psi, "input": json.dumps([prior.spec() for prior in p1.priors])}
    out = {}
    for name, arrays in parts.items():
        digest = hashlib.sha256(texts[name].encode())
        for array in arrays:
            digest.update(str(array.shape).encode() + array.tobytes())
        out[name] = digest.hexdigest()
    return out


# JSON keeps every bit of a float64, so that what is read back trains to the same bytes.


def encoder_form(encoder: Encoder) -> list[dict[str, Any]]:
    """An encoder as JSON."""
    return [
        {
            "family": q.family,
            "C": q.C.tolist(),
            "bias": q.bias.tolist(),
            "parameters": dict(q.parameters),
            "base": None if q.base is None else q.base.spec(),
        }
        for q in encoder
    ]


def _encoder(form: Sequence[Mapping[str, Any]]) -> Encoder:
    return Encoder([Posterior(**entry) for entry in form])


def _best_form(loss: float, problem: Problem) -> dict[str, Any]:
    model = problem.model
    return {
        "loss": loss,
        "encoder": encoder_form(problem.encoder),
        "model": {
            "B": model.B.tolist(),
            "priors": [prior.spec() for prior in model.priors],
            "noise_std": model.noise_std,
            "offset": model.offset.tolist(),
        },
    }


def _state(cfg: Mapping[str, Any], arrays: Mapping[str, Array], layer: Layer, p1: FeatureModel) -> Training:
    best, form = None, cfg["best"]
    if form is not None:
        model = dict(form["model"])
        model["B"] = np.asarray(model["B"], dtype=np.float64).reshape(layer.n2, len(model["priors"]))
        best = (float(form["loss"]), Problem(layer, p1, FeatureModel(**model), _encoder(form["encoder"])))
    record = Record()
    if "points" in arrays:
        record = Record(list(arrays["points"]), [float(v) for v in arrays["losses"]], list(arrays["gradients"]))
    names = [entry.name for entry in fields(Step)]
    return Training(
        _encoder(cfg["encoder"]),
        int(cfg["turn"]),
        best,
        [Step(**{name: step[name] for name in names}) for step in cfg["history"]],
        int(cfg["accepted"]),
        record,
        str(cfg["message"]),
    )
