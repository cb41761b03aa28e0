"""Build the wheel and the source distribution, and install each in a clean environment of every Python there is.

    python -m tests.package --out dist
    python -m tests.package --pythons python3.11 /opt/python3.13/bin/python3

In each environment, from an empty folder: the version, the names that an installation brings, a problem evaluated on the
command line, the self-check of `elbotree doctor`, and a report. Prints a line for each; exit status 1 where one fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ("python3.11", "python3.12", "python3.13")
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


def version(python: str) -> str | None:
    """major.minor.micro of an interpreter, None where it does not run."""
    try:
        return run(python, "-c", "import platform; print(platform.python_version())", cwd=ROOT).strip()
    except (RuntimeError, OSError):
        return None


def build(out: Path) -> list[Path]:
    """The wheel and the source distribution, made by `python -m build` in an isolated environment."""
    before = time.time()
    run(sys.executable, "-m", "build", "--outdir", out.resolve(), ROOT, cwd=ROOT)
    made = [path for path in sorted(out.iterdir()) if path.stat().st_mtime >= before - 1]
    assert sorted(path.suffix for path in made) == [".gz", ".whl"], made
    return made


def check(python: str, package: Path) -> None:
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
    parser.add_argument("--pythons", nargs="+", default=list(DEFAULT), help="interpreters to try")
    parser.add_argument(
        "--kinds", nargs="+", default=["sdist", "wheel"], choices=["sdist", "wheel"], help="which to try"
    )
    options = parser.parse_args()
    kinds = {"sdist": ".gz", "wheel": ".whl"}
    wanted = [kinds[kind] for kind in options.kinds]
    packages, failed, tried = [path for path in build(options.out) if path.suffix in wanted], 0, 0
    for python in options.pythons:
        found = version(python)
        if found is None:
            print(f"{python}: not here, not tried", flush=True)
            continue
        for package in packages:
            begun = time.perf_counter()
            tried += 1
            try:
                check(python, package)
                print(f"Python {found}, {package.name}: works ({time.perf_counter() - begun:.0f} s)", flush=True)
            except (RuntimeError, AssertionError) as error:
                failed += 1
                print(f"Python {found}, {package.name}: FAILS\n{error}", flush=True)
    print(f"{tried - failed} passed, {failed} failed")
    return 1 if failed or not tried else 0


if __name__ == "__main__":
    sys.exit(main())
