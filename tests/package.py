"""Build the wheel and the source distribution, and install each in a clean environment of every Python asked for.

    python -m tests.package --out dist
    python -m tests.package --pythons 3.11 /opt/python3.13/bin/python3

An interpreter is a path, or a version, which is looked for on PATH, among pyenv's versions, and by uv. In each environment, from an
empty folder: the version, the names that an installation brings, a problem evaluated on the command line, the self-check of
`elbotree doctor`, and a report. Prints a line for each; exit status 1 where one fails, or where an interpreter is not found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ("3.11", "3.12", "3.13")
CHECK = """
import importlib.metadata, importlib.util, json, pathlib, sys, elbotree
assert elbotree.__version__ == importlib.metadata.version("elbotree")
assert "site-packages" in elbotree.__file__, elbotree.__file__
strays = [n for n in ("runtime", "derivation", "codegen", "tests", "docs") if importlib.util.find_spec(n)]
assert not strays, f"the installation brings {strays}"
assert (pathlib.Path(elbotree.__file__).parent / "py.typed").is_file()
assert len([name for name in elbotree.__all__ if getattr(elbotree, name) is not None]) == len(elbotree.__all__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """A command's standard output; its whole output in the error where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def version(python: str | Path) -> str | None:
    """major.minor.micro of an interpreter, None where it does not run."""
    try:
        return run(python, "-c", "import platform; print(platform.python_version())", cwd=ROOT).strip()
    except (RuntimeError, OSError):
        return None


def candidates(wanted: str) -> Iterator[str | Path]:
    """What may be the interpreter of a version such as 3.13: on PATH (where pyenv's shims may be, which need not run), among
    pyenv's versions, newest first, and what uv finds."""
    yield f"python{wanted}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    numbers = {path: [int(n) for n in re.findall(r"\d+", path.name)] for path in pyenv.glob(f"{wanted}.*")}
    for path in sorted(numbers, key=numbers.__getitem__, reverse=True):
        yield path / "bin" / "python"
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", wanted], capture_output=True, text=True, check=False)
        if not found.returncode:
            yield found.stdout.strip()


def interpreter(wanted: str) -> tuple[str | Path, str] | None:
    """An interpreter that runs, given by path or by version, and its whole version; None where there is none."""
    for python in candidates(wanted) if re.fullmatch(r"\d+\.\d+", wanted) else (wanted,):
        if found := version(python):
            return python, found
    return None


def build(out: Path) -> list[Path]:
    """The wheel and the source distribution, made by `python -m build` in an isolated environment."""
    before = time.time()
    run(sys.executable, "-m", "build", "--outdir", out.resolve(), ROOT, cwd=ROOT)
    made = [path for path in sorted(out.iterdir()) if path.stat().st_mtime >= before - 1]
    assert sorted(path.suffix for path in made) == [".gz", ".whl"], made
    return made


def check(python: str | Path, package: Path) -> None:
    """Install a package in a new environment, and use it."""
    with tempfile.TemporaryDirectory() as folder:
        place, venv = Path(folder), Path(folder) / "venv"
        run(python, "-m", "venv", venv, cwd=place)
        binaries = venv / "bin"
        run(binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package, cwd=place)
        run(binaries / "python", "-c", CHECK, cwd=place)
        elbotree = binaries / "elbotree"
        (place / "problem.json").write_text(run(elbotree, "example", cwd=place), encoding="utf-8")
        terms = json.loads(run(elbotree, "evaluate", "problem.json", "--format", "json", cwd=place))["terms"]
        assert len(terms) == 12
        findings = json.loads(run(elbotree, "doctor", "--format", "json", cwd=place))
        assert findings["self-check"]["passed"]
        run(elbotree, "report", "problem.json", "--tol", "1e-3", cwd=place)
        assert (place / "problem.html").stat().st_size > 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for what is built")
    parser.add_argument("--pythons", nargs="+", default=list(DEFAULT), help="versions or paths of interpreters")
    parser.add_argument(
        "--kinds", nargs="+", default=["sdist", "wheel"], choices=["sdist", "wheel"], help="which to try"
    )
    options = parser.parse_args()
    kinds = {"sdist": ".gz", "wheel": ".whl"}
    wanted = [kinds[kind] for kind in options.kinds]
    pythons = {asked: interpreter(asked) for asked in options.pythons}
    packages, failed, tried = [path for path in build(options.out) if path.suffix in wanted], 0, 0
    for python, found in filter(None, pythons.values()):
        for package in packages:
            begun = time.perf_counter()
            tried += 1
            try:
                check(python, package)
                print(f"Python {found}, {package.name}: works ({time.perf_counter() - begun:.0f} s)", flush=True)
            except (RuntimeError, AssertionError) as error:
                failed += 1
                print(f"Python {found}, {package.name}: FAILS\n{error}", flush=True)
    missing = [asked for asked, python in pythons.items() if python is None]
    for asked in missing:
        print(
            f"Python {asked}: NOT TESTED, none was found on PATH, in pyenv or by uv. `uv python install {asked}` or `pyenv install "
            f"{asked}` fetch one; `make package PYTHONS='...'` tests others"
        )
    print(f"{tried - failed} passed, {failed} failed")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
