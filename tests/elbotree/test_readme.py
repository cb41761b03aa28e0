"""The README's tree is the derived one, it names every verb, and one version stands everywhere. Its code blocks run in
tests/docs."""

from __future__ import annotations

import re
from pathlib import Path

import elbotree as et
from elbotree.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_tree_is_the_derived_one() -> None:
    assert str(et.derive()).split("\n\n")[0] in README


def test_every_verb_is_named() -> None:
    shell = README.split("## Command line")[1].split("## Documentation")[0]
    assert set(re.findall(r"elbotree ([a-z]+)", shell)) == set(main.commands)


def test_the_same_version_stands_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, flags=re.MULTILINE) == [et.__version__]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(\S+)"$', project, flags=re.MULTILINE) == [et.__version__]
