"""The verbs `report`, `doctor`, `example` and `completion`: pages and texts to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from elbotree.verbs.options import FORMAT, PATH
from elbotree.verbs.screen import Mistake, note, progress, say, show_table


@click.command(short_help="Write one HTML page about a problem, a fit or a chain.")
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, help="The page to write.  [default: report.html in the folder, or beside the file]")
@click.option("--tol", type=float, help="Tolerance of the evaluation.  [default: 1e-6]")
@click.option("--check-samples", type=int, metavar="N", help="Set a check by N samples beside values, laws and tails.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the check's samples.")
@click.option(
    "--read-outs",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How many read-outs to draw the laws of.",
)
@FORMAT
def report(
    source: Path, out: Path | None, tol: float | None, check_samples: int | None, seed: int, read_outs: int, style: str
) -> None:
    """Write one self-contained HTML page about SOURCE: a problem's JSON file, or the folder of a fit or of a chain.

    \b
    elbotree report fitted --check-samples 200000
    elbotree report problem.json --out page.html
    """
    from elbotree.report import report_on

    with progress("evaluating and writing"):
        written = report_on(source, out, tol=tol, check_samples=check_samples, seed=seed, read_outs=read_outs)
    if style == "json":
        say(json.dumps({"written": str(written)}))
    else:
        note(f"wrote {written}")


@click.command(short_help="Versions, threads, extras, and a self-check.")
@FORMAT
def doctor(style: str) -> None:
    """Tell versions, threads and extras, and evaluate a few problems whose numbers are known (about ten seconds).

    \b
    elbotree doctor --format json
    """
    from elbotree.diagnosis import diagnose

    with progress("evaluating problems whose numbers are known"):
        findings = diagnose()
    check = findings["self-check"]
    if style == "json":
        say(json.dumps(findings, indent=2))
    else:
        facts = {key: value for key, value in findings.items() if key != "self-check"}
        for key, value in facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            say(f"{key:<12} {shown}")
        lines = [(part["name"], f"{part['worst']:.1e}", f"{part['seconds']:.2f} s") for part in check["problems"]]
        show_table(("self-check", "worst error", "time"), lines, style)
        say(f"{'passed' if check['passed'] else 'FAILED'}: errors up to {check['allowed']:g} are allowed")
    if not check["passed"]:
        raise Mistake("the self-check's numbers are wrong here: this installation is not to be trusted")


@click.command(short_help="Print a small problem to start from.")
def example() -> None:
    """Print a small problem, to see what a problem file holds and to try the other verbs on.

    \b
    elbotree example > problem.json
    """
    from importlib.resources import files

    say(files("elbotree").joinpath("example.json").read_text(encoding="utf-8").rstrip("\n"))


@click.command(short_help="Print the script for shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete verbs, options and their choices.

    \b
    elbotree completion bash >> ~/.bashrc
    elbotree completion zsh >> ~/.zshrc
    elbotree completion fish > ~/.config/fish/completions/elbotree.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # click knows all three
    say(found(click.get_current_context().find_root().command, {}, "elbotree", "_ELBOTREE_COMPLETE").source())
