"""A fuzzer guided by coverage: bytes that reach new lines of elbotree are kept and changed further.

    python -m tests.stress.fuzz psi --seconds 60        also: problem, arrays, folder, onnx

Each way in is one of `outcomes`: anything but a result or an error of elbotree's own ends the run with the bytes that caused it,
written into the current folder. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["elbotree"]):
    import elbotree as et
    from elbotree.runtime.storage import save_folder
    from tests.stress import outcomes

SECONDS_EACH = 60  # for one input: the slowest psi takes ten


def psi(content: bytes) -> None:
    outcomes.psi(content.decode("ascii", "ignore")[:200])


def problem(content: bytes) -> None:
    outcomes.problem_file(content)


def arrays(content: bytes) -> None:
    outcomes.arrays_beside(content)


def folder(content: bytes) -> None:
    """JSON data as cfg.json with digests that fit, beside the arrays of a small fit."""
    try:
        cfg = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(cfg, dict):
        outcomes.model_folder({key: value for key, value in cfg.items() if not key.endswith("_sha256")}, ARRAYS)


def onnx(content: bytes) -> None:
    outcomes.onnx_file(content)


WAYS: dict[str, Callable[[bytes], None]] = {
    "psi": psi,
    "problem": problem,
    "arrays": arrays,
    "folder": folder,
    "onnx": onnx,
}
ARRAYS: dict[str, object] = {}


def seeds(way: str) -> list[bytes]:
    """Good inputs to start from."""
    if way == "psi":
        texts = ["max(0, b) - 0.1*b**2", "where(b < 1, exp(b), e*b)", "tanh(b)/(1 + b**2)", "hardtanh(b, -1, 1/3)"]
        return [text.encode() for text in texts]
    if way == "problem":
        return [json.dumps(outcomes.SMALL).encode()]
    if way == "arrays":
        from tests.stress.test_input import ARRAYS as content

        return [content]
    if way == "onnx":
        from tests.stress.test_input import onnx_network

        return [onnx_network()]
    with tempfile.TemporaryDirectory() as place:
        layer = et.Layer([[1.0]], [0.5], [0.8], "relu", threshold=0.1)
        p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
        et.fit_network([layer], p1, check_samples=100).save(place)
        from elbotree.runtime.storage import load_folder

        cfg, held = load_folder(place)
        ARRAYS.update(held)
        save_folder(place, cfg, held)
        return [(Path(place) / "cfg.json").read_bytes()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=sorted(WAYS))
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(seeds(given.way)):
            (Path(corpus) / str(i)).write_bytes(seed)
        options = [
            f"-max_total_time={given.seconds}",
            f"-timeout={SECONDS_EACH}",
            "-rss_limit_mb=4096",
            "-max_len=4096",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], WAYS[given.way])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
