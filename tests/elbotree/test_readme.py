"""The README's Python blocks run, in order, and its tree is the derived one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import elbotree as et
from elbotree.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_its_blocks_run(capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["values"]["L"].error < 1e-5
    assert "└─ T3" in capsys.readouterr().out


def test_its_tree_is_the_derived_one() -> None:
    assert str(et.derive()).split("\n\n")[0] in README


def test_its_commands_exist() -> None:
    shell = README.split("## Command line")[1].split("```")[1]
    verbs = re.findall(r"^elbotree (\w+)", shell, flags=re.MULTILINE)
    assert sorted(verbs) == sorted(main.commands)
