"""The house: which folder may import which, and that none reaches for sympy behind the door or names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "runtime": ("elbotree.derivation", "elbotree.codegen", "sympy", "elbotree.evaluation", "elbotree.fitting"),
    "derivation": ("elbotree.codegen", "numpy", "scipy"),
    "codegen": ("elbotree.evaluation", "elbotree.fitting", "elbotree.cli"),
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; the house uses long names"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_import_arrows_go_one_way(folder: str) -> None:
    for path in sorted((ROOT / folder).glob("*.py")):
        for module in imports(path):
            for forbidden in FORBIDDEN[folder]:
                assert not f"{module}.".startswith(f"{forbidden}."), f"{path.name} imports {module}"


def test_the_runtime_alone_loads_no_sympy() -> None:
    modules = [f"elbotree.runtime.{path.stem}" for path in (ROOT / "runtime").glob("*.py") if path.stem != "torch"]
    optional = ("network_torch", "network_onnx")
    core = [m for m in modules if not m.endswith(optional)]
    code = f"import sys, importlib\nfor name in {core!r}: importlib.import_module(name)\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('sympy' in sys.modules)"], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("folder", ["runtime", "derivation", "codegen", "elbotree"])
def test_the_library_prints_nothing(folder: str) -> None:
    """Results are returned and news goes through `logging`; the command line alone speaks, through click."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        spoken = [ast.unparse(call.func) for call in calls]
        said = {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"} & set(spoken)
        assert not said or (path.name == "screen.py" and "print" not in said), f"{path} says things itself: {said}"


def test_the_map_of_the_house_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for named in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (ROOT / named).is_file(), f"CONTRIBUTING.md names {named}"
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"`make (\w+)`", text)) <= set(targets)


def test_the_workflow_and_the_hooks_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for file in (".github/workflows/ci.yml", ".pre-commit-config.yaml", ".ci/run"):
        run = set(re.findall(r"\bmake (\w+)", re.sub(r"#.*", "", (ROOT / file).read_text(encoding="utf-8"))))
        run -= {"git", "python3"}  # words after `make` in a list of packages
        assert run
        assert run <= targets, f"{file} runs {run - targets}"


def test_mutations_still_find_the_text_that_they_change() -> None:
    """`make mutate` takes minutes and is run by hand; that its changes still apply is cheap to know."""
    from tests.mutations import MUTATIONS

    for mutation in MUTATIONS:
        text = (ROOT / mutation.file).read_text(encoding="utf-8")
        assert text.count(mutation.before) == 1, mutation.name
        assert all((ROOT / path.split("::")[0]).exists() for path in mutation.tests.split()), mutation.name
