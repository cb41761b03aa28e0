"""Where training stands, in memory and in a folder, so that it can be interrupted at any moment and go on to the same bytes.

A checkpoint holds all that `training` remembers between two iterations, L-BFGS's memory included, to the last bit; it is
written after each accepted iteration. Two slots are written in turns, each atomically: whatever cuts a save off, the one before
it is whole, and no more is lost than the iteration under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import InputError
from elbotree.runtime.lbfgs import Search
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior
from elbotree.runtime.records import read_record
from elbotree.runtime.storage import CFG, FolderLock, check_writable, load_folder, remove_litter, save_folder

Array = NDArray[np.float64]

FORMAT = "elbotree-checkpoint/4"
_PLAIN = ("tol", "at", "stage", "waiting", "leg", "turn", "gained", "elapsed", "message")  # what JSON holds as it is
_SLOTS = ("a", "b")  # written in turns: a save that is cut off leaves the other one whole


@dataclass(frozen=True)
class Step:
    """One accepted iteration.

    loss, error    L in nats at tolerance `tol`, and its estimated error
    gradient_norm  the largest entry of the gradient in the optimiser's coordinates
    seconds        since the run began; `duration` of this iteration
    terms          the values of all twelve terms by name
    start, leg     which start it belongs to, and which run of the optimiser: within a leg the loss never rises
    """

    iteration: int
    loss: float
    error: float
    gradient_norm: float
    noise_std: float
    tol: float
    seconds: float
    duration: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    start: int = 0
    leg: int = 0


@dataclass
class Attempt:
    """One start of a run: its name, the encoder that it has reached, the loss there, and why its last leg ended."""

    name: str
    encoder: Encoder
    loss: float | None = None
    iterations: int = 0
    message: str = ""


@dataclass
class Training:
    """Where a run stands: what `train` needs to go on.

    attempts  every start
    tol       the tolerance of this leg
    at        which start is being trained
    stage     "trial" while each of many starts is tried for a few iterations, "coarse" while the best of them are trained,
              "fine" for the one that is kept
    waiting   the starts that this stage has not come to
    leg       number of this leg, from 0; `turn` of the leg among those of this start and tolerance
    gained    the loss at the end of the leg before, at this start and tolerance
    search    L-BFGS; None at the beginning of a leg
    history   accepted steps of all starts
    elapsed   seconds so far
    message   why training ended; empty while it goes on
    """

    attempts: list[Attempt]
    tol: float
    at: int = 0
    stage: str = "coarse"
    waiting: list[int] = field(default_factory=list)
    leg: int = 0
    turn: int = 0
    gained: float | None = None
    search: Search | None = None
    history: list[Step] = field(default_factory=list)
    elapsed: float = 0.0
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
        self._saves, self._at = 0, 0
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

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other processes, and remove what killed ones left half-written. Raises InputError where
        another run holds it."""
        with FolderLock(self.folder):
            for place in (self.folder, *(self.folder / slot for slot in _SLOTS)):
                remove_litter(place)
            yield

    @property
    def holds_one(self) -> bool:
        """Whether there is a checkpoint."""
        return any((self.folder / slot / CFG).exists() for slot in _SLOTS)

    def save(self, state: Training) -> None:
        """Write the state."""
        arrays: dict[str, Array] = {}
        cfg = {
            "format": FORMAT,
            "saves": self._saves + 1,
            "settings": self.settings,
            **{name: getattr(state, name) for name in _PLAIN},
            "history": [asdict(step) for step in state.history],
            "attempts": [{**vars(attempt), "encoder": encoder_form(attempt.encoder)} for attempt in state.attempts],
            "loss": None if state.search is None else state.search.loss,
        }
        if state.search is not None:
            arrays = {"x": state.search.x, "gradient": state.search.gradient}
            if state.search.steps:
                arrays |= {"steps": np.array(state.search.steps), "changes": np.array(state.search.changes)}
        save_folder(self.folder / _SLOTS[self._at], cfg, arrays)
        self._saves, self._at = self._saves + 1, 1 - self._at

    def load(self) -> Training | None:
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
        check_settings(cfg, place, FORMAT, self.settings, f"{self.folder} holds the checkpoint of a fit")
        try:
            state = _state(cfg, arrays)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{place} is damaged ({error}); start anew in another folder") from None
        self._saves, self._at = number, 1 - at
        return state


def check_settings(cfg: Mapping[str, Any], place: Path, form: str, settings: Mapping[str, Any], what: str) -> None:
    """InputError unless the cfg.json at `place` is of this format and was written under these settings; `what` says what
    is there."""
    if cfg.get("format") != form:
        raise InputError(f"{place}: `format` is {cfg.get('format')!r}; this version reads {form!r}")
    theirs = cfg.get("settings")
    theirs = theirs if isinstance(theirs, dict) else {}
    for name, value in settings.items():
        if theirs.get(name) != value:
            shown = f" ({theirs.get(name)!r} there, {value!r} here)"
            shown = shown if len(shown) < 80 else ""
            raise InputError(f"{what} with another `{name}`{shown}; give the same, or another folder")


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


def _state(cfg: Mapping[str, Any], arrays: Mapping[str, Array]) -> Training:
    search = None
    if "x" in arrays:
        memory = (list(arrays[name]) if name in arrays else [] for name in ("steps", "changes"))
        search = Search(arrays["x"], float(cfg["loss"]), arrays["gradient"], *memory)
        size = search.x.shape
        if len(size) != 1 or any(part.shape != size for part in (search.gradient, *search.steps, *search.changes)):
            raise ValueError("the optimiser's arrays do not fit together")
    if not (isinstance(cfg["at"], int) and 0 <= cfg["at"] < len(cfg["attempts"])):
        raise ValueError(f"`at` is {cfg['at']!r}, and there are {len(cfg['attempts'])} starts")
    return Training(
        [Attempt(**{**form, "encoder": _encoder(form["encoder"])}) for form in cfg["attempts"]],
        search=search,
        history=[read_record(Step, step, f"history[{i}]") for i, step in enumerate(cfg["history"])],
        **{name: cfg[name] for name in _PLAIN},
    )
