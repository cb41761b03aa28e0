"""Every code block of the documentation runs.

Of each page, in order and in a folder of its own: `python` blocks share one namespace; `console` blocks are command lines
after `$`, run through the command line's own entry; a `text` block after one of them is what it prints, where `...` stands
for anything, and times, errors, and digits beyond the fourth may differ. `sh` blocks may only install the project, or name
targets of the Makefile; `json` blocks must be JSON, and a problem where they say so. Pages that need an extra are skipped
where it is missing.
"""

from __future__ import annotations

import contextlib
import doctest
import inspect
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import elbotree as et
from elbotree.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    "howto/pytorch.md": "torch",
    "howto/networks.md": "sklearn",
    "howto/input.md": "sklearn",
    "howto/cluster.md": "distributed",
}
#: Public classes, beside the priors, that users make.
MADE = {"Layer", "FeatureModel", "Posterior", "Encoder", "Problem"}
LANGUAGES = {"python", "console", "text", "sh", "json", "bibtex"}


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block that is not a directive."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [(language.strip(), content) for language, content in found if not language.startswith("{")]


def settled(text: str) -> str:
    """Without what differs between machines and versions: times, the digits of errors, digits beyond the fifth."""
    text = re.sub(r"\b\d+(\.\d+)? m?s\b", "TIME", text)
    text = re.sub(r"\b\d\.\de-\d\d\b", "ERROR", text)
    return re.sub(r"-?\d+\.\d{4,}(e-?\d+)?", lambda found: f"{float(found[0]):.4g}", text)


def agree(printed: str, expected: str) -> bool:
    printed, expected = settled(printed), settled(expected)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(expected, printed, flags)


def run_python(source: str, names: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, "<page>", "exec"), names)
    return out.getvalue()


def run_console(lines: str) -> str:
    """Run `$ elbotree ...` lines; `> file` redirects, as in a shell."""
    printed = ""
    for line in lines.splitlines():
        assert line.startswith("$ "), f"a console block holds {line!r}; it must be `$ elbotree ...`"
        program, *arguments = shlex.split(line[2:])
        assert program == "elbotree"
        target = None
        if ">" in arguments:
            *arguments, _, target = arguments
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        if target is None:
            printed += result.stdout
        else:
            Path(target).write_text(result.stdout, encoding="utf-8")
    return printed


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = NEEDS.get(str(page.relative_to(ROOT / "docs")) if page.is_relative_to(ROOT / "docs") else "")
    if needed:
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for language, content in blocks(page.read_text(encoding="utf-8")):
        assert language in LANGUAGES, (
            f"{page.name} has a block in {language!r}; the tests run {', '.join(sorted(LANGUAGES))}"
        )
        if language == "python":
            printed = run_python(content, names)
        elif language == "console":
            printed = run_console(content)
        elif language == "text":
            if printed is not None:
                assert agree(printed, content), f"{page.name}: expected\n{content}\ngot\n{printed}"
            printed = None
        elif language == "json":
            data = json.loads(content)
            if "encoder" in data:
                et.evaluate(et.Problem.from_dict(data), tol=1e-2)
        elif language == "sh":
            check_shell(content)


def check_shell(content: str) -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in content.splitlines():
        command = line.split("#")[0].strip()
        if command.startswith("make "):
            assert command.split()[1] in targets, command
        elif command:
            assert re.match(r"(python3? -m )?pip install |cd elbotree$", command), command


def test_no_page_is_left_out_of_the_site() -> None:
    listed: set[Path] = set()
    for page in PAGES[1:]:
        for tree in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            entries = [line.strip() for line in tree.splitlines() if line.strip() and not line.startswith(":")]
            listed |= {(page.parent / entry).with_suffix(".md") for entry in entries}
    assert {page for page in PAGES[1:] if page.name != "index.md" or page.parent.name != "docs"} <= listed
    assert all(page.exists() for page in listed)


def test_the_picture_of_the_tree_shows_the_example_problems_numbers() -> None:
    problem = json.loads(CliRunner().invoke(main, ["example"]).stdout)
    values = et.evaluate(et.Problem.from_dict(problem), tol=1e-6)
    picture = (ROOT / "docs" / "figures" / "tree.svg").read_text(encoding="utf-8")
    shown = dict(re.findall(r'<tspan class="n">(\w+)</tspan><tspan dx="8">(-?[\d.]+)</tspan>', picture))
    assert {name: f"{term.value:.6f}" for name, term in values.items()} == shown


def test_every_picture_is_there_and_has_a_text_alternative() -> None:
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name} shows {target}"
            assert len(words) > 20


def test_the_page_of_the_command_line_has_every_verb() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{verb\} (\w+)$", page, flags=re.MULTILINE) == list(main.commands)


@pytest.mark.parametrize("name", [name for name in et.__all__ if callable(getattr(et, name))])
def test_the_docstring_of_a_public_name_is_whole(name: str) -> None:
    """Functions and classes that users make: every argument, what comes back, what is raised. Others say what they are."""
    thing = getattr(et, name)
    told = inspect.getdoc(thing) or ""
    assert told
    made = isinstance(thing, type) and (issubclass(thing, et.Prior) or name in MADE) and thing is not et.Prior
    if not made and isinstance(thing, type):
        return
    silent = [argument for argument in inspect.signature(thing).parameters if not re.search(rf"\b{argument}\b", told)]
    assert not silent, f"{name} does not say what {', '.join(silent)} may be"
    assert "Raises" in told
    assert made or re.search(r"\bReturns?\b", told)


def test_the_reference_lists_every_public_name() -> None:
    listed = re.findall(r"elbotree\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(et.__all__) - {"__version__"})
