"""What a user waits for the first kernels of a psi and a family: derive, specialise, print and load, each pair in a process of
its own with nothing cached, the import of sympy included; and the second time, from the cache on disk.

    python -m benchmarks.generation                      every shipped psi with every shipped family
    python -m benchmarks.generation relu gelu            those psi only

`seconds` is by the clock on the wall, `cpu` what the process itself used: on a busy machine the two differ."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

LIMIT = 3.0
_CODE = """
import sys, time
from elbotree.codegen import generate
kernels = generate({psi!r}, {family!r})
print(time.process_time(), len(kernels.source.splitlines()), "sympy" in sys.modules)
"""


def measured(psi: str, family: str, cache: str) -> tuple[float, float, int, bool]:
    """(seconds, cpu seconds, lines of the module, whether sympy was imported) of one new process."""
    environment = {**os.environ, "ELBOTREE_CACHE": cache}
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", _CODE.format(psi=psi, family=family)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    seconds = time.perf_counter() - start
    cpu, lines, sympy = run.stdout.split()
    return seconds, float(cpu), int(lines), sympy == "True"


def main(words: list[str]) -> None:
    from elbotree.derivation.activations import activation_names
    from elbotree.derivation.families import family_names

    chosen = [name for name in activation_names() if not words or name in words]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}")
    print(f"{'psi':<12} {'family':<14} {'seconds':>8} {'cpu':>6} {'lines':>6}   again")
    first, over = [], []
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache")
        measured("zero", "normal", "off")  # the disk's own cache, warm for all alike
        for psi in chosen:
            for family in family_names():
                seconds, cpu, lines, _ = measured(psi, family, cache)
                again, _, _, sympy = measured(psi, family, cache)
                first.append(cpu)
                over += [f"{psi} with {family}"] if cpu > LIMIT else []
                note = "  (imports sympy)" if sympy else ""
                print(f"{psi:<12} {family:<14} {seconds:8.2f} {cpu:6.2f} {lines:6}   {again:.2f}{note}", flush=True)
    print(
        f"{len(first)} pairs, cpu seconds {min(first):.2f} to {max(first):.2f}; above {LIMIT:g} s: {', '.join(over) or 'none'}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
