"""What may come of bad input, one function a way in: each returns when the outcome is a success or an error of elbotree's own
in one line, and raises whatever else happened. Shared by the hypothesis tests and by the coverage-guided fuzzer.

Nothing here says what the right number is: that is the business of the other tests.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

import elbotree as et
from elbotree.cli import main
from elbotree.derivation.activations import analyse
from elbotree.runtime.storage import save_folder

EXIT_STATUSES = (0, 1, 2, 3)  # done, a user's mistake, wrong usage, tolerance not met
SECRET = "the content of a file that nobody named"


def own_error_or_fine(work: Callable[[], object]) -> bool:
    """Whether `work` succeeded. Its own errors must be one line without the secret; all others pass through."""
    text = None
    try:
        work()
    except et.ElbotreeError as error:
        text = str(error)
    assert text is None or (text.strip() and SECRET not in text), text
    return text is None


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, beside it a file with the secret that `../secret` names."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "secret").write_text(SECRET)
        inside = Path(place) / "inside"
        inside.mkdir()
        yield inside


def psi(text: str) -> bool:
    """psi as text: parsed, analysed, printed as numpy, computed."""

    def work() -> None:
        analyse(text)
        kernels = et.generate(text, "tilted")
        with np.errstate(all="ignore"):
            values = kernels.PSI.value(np.linspace(-3.0, 3.0, 7))
        assert values.shape == (7,), values
        assert values.dtype == np.float64, values

    return own_error_or_fine(work)


def problem_file(content: bytes) -> bool:
    """A problem's file, read only."""
    with folder() as place:
        (place / "p.json").write_bytes(content)
        return own_error_or_fine(lambda: et.Problem.load(place / "p.json"))


def evaluated(form: Any) -> bool:
    """A problem as JSON data, evaluated roughly: numbers that come out are finite and within their tolerance."""

    def work() -> None:
        values = et.evaluate(et.Problem.from_dict(form), 1e-3, max_seconds=20, max_memory=2**30)
        for term in values.values():
            assert math.isfinite(term.value), term
            assert term.error <= 1e-3 * max(1.0, abs(term.value)), term

    return own_error_or_fine(work)


def arrays_beside(content: bytes) -> bool:
    """A safetensors file beside a problem that takes its matrix from there."""
    form = json.loads(json.dumps(SMALL))
    form["layer"]["A"] = {"file": "w.safetensors", "key": "A"}
    with folder() as place:
        (place / "w.safetensors").write_bytes(content)
        return own_error_or_fine(lambda: et.Problem.from_dict(form, place))


def model_folder(cfg: dict[str, Any], arrays: dict[str, Any]) -> bool:
    """The folder of a fit or of a chain whose digests are right and whose content is anything."""

    def work() -> None:
        with folder() as place:
            save_folder(place / "model", cfg, arrays)
            found = et.load(place / "model")
            model = found.model if isinstance(found, et.Fit) else found.models[-1]
            assert np.isfinite(model.B).all()

    return own_error_or_fine(work)


def raw_folder(cfg: bytes, model: bytes) -> bool:
    """A folder of two files with any bytes."""
    with folder() as place:
        (place / "cfg.json").write_bytes(cfg)
        (place / "model.safetensors").write_bytes(model)
        return own_error_or_fine(lambda: et.load(place))


def network(description: object) -> bool:
    """A network as lists of arrays."""
    return own_error_or_fine(lambda: et.compile_network(description))


def onnx_file(content: bytes) -> bool:
    """An ONNX file."""
    with folder() as place:
        (place / "n.onnx").write_bytes(content)
        return own_error_or_fine(lambda: et.compile_network(place / "n.onnx"))


def command_line(arguments: Sequence[str], form: Any) -> int:
    """A command, P standing for the problem's file and OUT for a path that is free: its exit status.

    Whatever it printed on standard error is short, and on standard output alone under --format json is JSON.
    """
    with folder() as place:
        (place / "p.json").write_text(json.dumps(form))
        named = {"P": str(place / "p.json"), "OUT": str(place / "out")}
        result = CliRunner().invoke(main, [named.get(word, word) for word in arguments], env={"COLUMNS": "80"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in EXIT_STATUSES, result.output
    assert "Traceback" not in result.output, result.output
    if result.exit_code == 0 and "json" in arguments and "fit" not in arguments:
        json.load(io.StringIO(result.stdout))
    return result.exit_code


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """So many bytes of address space beyond what the process has now; MemoryError beyond. Where the system can say so."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Overtime(Exception):
    """A run took longer than it may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Overtime after so many seconds of processor time (other programs on the machine do not count)."""

    def stop(*_: object) -> None:
        raise Overtime(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# what `elbotree example` prints
SMALL: dict[str, Any] = json.loads(files("elbotree").joinpath("example.json").read_text(encoding="utf-8"))
