"""Kill runs that keep checkpoints, with SIGKILL at random moments, until enough were killed; each goes on from where it was
killed, and those that come to their end must have written the same bytes as a run that nobody touched.

    python -m tests.stress.kills fit 200

One process imports the library and forks for each run, so that a run costs its work alone. It has no other threads when it
forks. Prints one line of JSON: how many were killed, in how many of them a save was under way, and how many runs ended.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elbotree as et
from elbotree.runtime.storage import MODEL

Run = Callable[[Path, Path], None]


def fit(state: Path, **more: Any) -> et.Fit:
    """An affine fit, so that a step is soon made, of one coordinate, two features and two starts; its checkpoints in `state`."""
    layer = et.Layer([[1.0]], [0.5], [0.8], "identity", threshold=0.1)
    p1 = et.FeatureModel([[1.0]], [et.Discrete((-1.0, 0.0, 2.0), (0.2, 0.5, 0.3))], 0.4)
    return et.fit(layer, p1, 2, tol=1e-3, iterations=4, rounds=2, starts=2, checkpoint=state, **more)


def run_fit(state: Path, out: Path) -> None:
    """`fit`, begun or gone on with."""
    fit(state, resume=True).save(out)


def run_network(state: Path, out: Path) -> None:
    """Two layers of one coordinate, each trained."""
    layers = [et.Layer([[a]], [0.5], [0.8], psi, threshold=0.1) for a, psi in ((1.0, "relu"), (0.7, "tanh"))]
    p1 = et.FeatureModel([[1.0]], [et.Discrete((-1.0, 0.0, 2.0), (0.2, 0.5, 0.3))], 0.4)
    made = et.fit_network(
        layers, p1, features=2, iterations=2, tol=1e-2, check_samples=200, checkpoint=state, resume=True
    )
    made.save(out)


RUNS: dict[str, Run] = {"fit": run_fit, "fit_network": run_network}


def started(run: Run, state: Path, out: Path) -> int:
    """The process of a run."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(state, out)
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> bool:
    """Wait for a run: whether it came to its end, False where it was killed. RuntimeError where it failed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"a run ended with {os.waitstatus_to_exitcode(status)}")
    return True


def wait(state: Path, seconds: float, in_a_save: bool) -> None:
    """So long; or, for a kill in the middle of a save, from then on to the moment when a file is being written."""
    time.sleep(seconds / 2 if in_a_save else seconds)
    end = time.monotonic() + seconds
    while in_a_save and time.monotonic() < end and not any(state.rglob("*.tmp")):
        pass


def kill(run: Run, count: int, folder: Path, seed: int) -> dict[str, int]:
    """Kill `count` runs. RuntimeError where one fails, or ends on other bytes than the run that was left alone."""
    rng = random.Random(seed)
    begun = time.monotonic()
    ended(started(run, folder / "whole-state", folder / "whole"))
    length = time.monotonic() - begun
    whole = (folder / "whole" / MODEL).read_bytes()
    killed = saving = finished = 0
    while killed < count or not finished:
        state, out = folder / "state", folder / "out"
        pid = started(run, state, out)
        if killed < count:
            wait(state, rng.uniform(0.0, length), in_a_save=killed % 2 == 1)
            os.kill(pid, signal.SIGKILL)
        if not ended(pid):
            killed += 1
            saving += any(folder.rglob("*.tmp"))
            continue
        finished += 1
        if (out / MODEL).read_bytes() != whole:
            raise RuntimeError(f"after {killed} kills a run ended on other bytes")
        litter = list(state.rglob("*.tmp"))
        if litter:
            raise RuntimeError(f"a run left {litter[0]}")
        shutil.rmtree(state)
        shutil.rmtree(out)
    return {"killed": killed, "while saving": saving, "finished": finished}


def main() -> None:
    name, count = sys.argv[1], int(sys.argv[2])
    for psi in ("identity", "relu", "tanh"):
        et.generate(psi, "tilted")  # what runs need is there before the forks
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"run": name, **kill(RUNS[name], count, Path(folder), seed=len(name))}))


if __name__ == "__main__":
    main()
