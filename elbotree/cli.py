"""The command line: parse, call, print. Each verb is one function; what it does lives elsewhere and is imported only
when the verb runs, so that `elbotree --help` stays quick.

Exit status: 0 done, 1 a user's mistake (one line on standard error), 2 wrong usage, 3 a tolerance was not met. With
`--format json` standard output carries JSON alone; progress goes to standard error, and only on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console
    from rich.table import Table

    from elbotree.runtime.checkpoints import Step
    from elbotree.runtime.values import Values


class _Mistake(click.ClickException):
    """An error of the user's, shown as one line; status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=file is None)


class _Missed(_Mistake):
    """A tolerance that was not met."""

    exit_code = 3


class _Verbs(click.Group):
    """A group that lists its verbs in the order of use and turns elbotree's exceptions into exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except MemoryError as error:
            raise _Mistake(
                "out of memory: give a larger tol, a smaller problem, or --max-memory to be told before"
            ) from error
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise _Mistake(f"{place}{error.strerror or error}") from error
        except Exception as error:
            from elbotree.runtime.errors import ElbotreeError, ToleranceError

            if not isinstance(error, ElbotreeError):
                raise
            raise (_Missed if isinstance(error, ToleranceError) else _Mistake)(str(error)) from error


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["rich", "plain", "json"]),
    default="rich",
    show_default=True,
    help="How to print.",
)
_PATH = click.Path(path_type=Path)
_SCHEDULER = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="A Dask scheduler, such as tcp://host:8786, whose workers make the sums over pairs of features (needs the extra "
    "`cluster`).",
)
_OF = click.option(
    "--of",
    "which",
    type=click.Choice(["input", "output", "model"]),
    help="The input model, the layer's output, or the model of it (of a chain the last).  [default: model for a folder, "
    "output for a problem]",
)


@click.group(cls=_Verbs, context_settings=_CONTEXT)
@click.version_option(package_name="elbotree", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Tell on standard error what long work is doing.")
def main(verbose: bool) -> None:
    """Learn variational auto-encoders for a network's activations, without sampling.

    \b
    elbotree example > problem.json                    a small problem to try the verbs on
    elbotree derive                                    print the derived loss as a tree
    elbotree kernels --psi relu --family bernoulli     print numpy kernels made from it
    elbotree evaluate problem.json --tol 1e-8          its twelve terms, each with an error
    """
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        logging.getLogger("elbotree").setLevel(logging.INFO)


@main.command(short_help="Print the derived loss as a tree, with formulas.")
@click.option(
    "--node",
    metavar="NAME",
    help="One item alone, in full: a node (L, R1, ..., U3), a derivative (dL/dB), a minimiser (B2*, L*), "
    "a lemma (Lemma 3.4).",
)
@click.option("--steps", is_flag=True, help="The proof line by line, each a named rule (with --node, of that item).")
@click.option("--verify", is_flag=True, help="Check every lemma, split, line and derivative exactly, and say which.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["rich", "plain", "json", "latex", "mermaid", "dot", "html"]),
    default="rich",
    show_default=True,
    help="How to print; html is a page with the whole proof.",
)
def derive(node: str | None, steps: bool, verify: bool, style: str) -> None:
    """Print the loss, derived from the ELBO by named rules, as a tree with formulae.

    \b
    elbotree derive
    elbotree derive --node T2
    elbotree derive --steps
    elbotree derive --node dL/dB --steps
    elbotree derive --format html > proof.html
    """
    from elbotree.derivation import derive as derive_tree
    from elbotree.display import tree_text

    if verify:
        if node is not None or steps or style not in ("rich", "plain"):
            raise _Mistake("--verify checks the whole derivation and prints plain text; leave the other options out")
        from elbotree.derivation.lemmas import verify_all

        with _progress("verifying the derivation"):
            _print(str(verify_all()))
        return
    with _progress("deriving the loss"):
        tree = derive_tree()
    text = tree_text(tree, node, style, steps)
    if style == "rich" and sys.stdout.isatty():
        from rich.text import Text

        drawn = Text(text)
        drawn.highlight_regex(r"\b([RSTU][123]|L)\b(?=\s+=|$)", "bold cyan")
        _console().print(drawn, soft_wrap=True)
    else:
        _print(text)


@main.command(short_help="Print numpy kernels for a psi and families.")
@click.option("--psi", default="relu", show_default=True, help="A nonlinearity by name, or an expression in b.")
@click.option(
    "--family",
    "families",
    multiple=True,
    default=("tilted",),
    show_default=True,
    help="Posterior family; repeat it or separate several by commas.",
)
@click.option("--out", type=_PATH, help="Write the module there instead of to standard output.")
@click.option("--explain", is_flag=True, help="Say what the algebra found and did, instead of printing the module.")
@click.option("--check", "checked", type=_PATH, metavar="FILE", help="Say whether FILE still matches the derivation.")
@_FORMAT
def kernels(
    psi: str, families: tuple[str, ...], out: Path | None, explain: bool, checked: Path | None, style: str
) -> None:
    """Print the numpy kernels for a nonlinearity and posterior families: a readable Python module without sympy.

    \b
    elbotree kernels --psi relu --family bernoulli --out relu_kernels.py
    elbotree kernels --psi "max(b, 0) - 0.1*max(b - 1, 0)" --family tilted,normal
    elbotree kernels --psi identity --family normal --explain
    elbotree kernels --check relu_kernels.py
    """
    from elbotree.codegen import check, generate

    if checked is not None:
        differences = check(checked)
        if style == "json":
            _print(json.dumps({"file": str(checked), "differences": list(differences)}))
        else:
            for line in differences:
                _print(line)
        if differences:
            raise _Mistake(f"{checked} differs from what this version generates; write it again with --out")
        _note(f"{checked} matches")
        return
    names = [name.strip() for group in families for name in group.split(",") if name.strip()]
    with _progress("generating kernels"):
        module = generate(psi=psi, family=names)
    if out is not None:
        module.write(out)
        _note(f"wrote {out}")
    if style == "json":
        made = {"explanation": module.explain()} if explain else {"source": module.source}
        written = None if out is None else str(out)
        _print(json.dumps({"psi": psi, "families": list(module.families), "written": written, **made}))
    elif explain:
        _print(module.explain())
    elif out is None:
        _print_python(module.source.rstrip("\n"), style)


@main.command(short_help="The twelve terms of the loss, each with its error.")
@click.argument("problem", type=_PATH)
@click.option("--tol", type=float, help="Error allowed at each term, relative to max(1, |value|).  [default: 1e-6]")
@click.option("--method", type=click.Choice(["spectral", "grid"]), default="spectral", show_default=True)
@click.option("--eps", type=float, help="Width of the grid's bins (with --method grid).")
@click.option("--check-samples", type=int, metavar="N", help="Set a check by N samples beside the values.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the check's samples.")
@click.option("--max-seconds", type=float, help="Refuse, before the work, what is estimated to take longer.")
@click.option(
    "--max-memory", type=float, metavar="MIB", help="Refuse, before the work, what is estimated to take more."
)
@_SCHEDULER
@_FORMAT
def evaluate(
    problem: Path,
    tol: float | None,
    method: str,
    eps: float | None,
    check_samples: int | None,
    seed: int,
    max_seconds: float | None,
    max_memory: float | None,
    scheduler: str | None,
    style: str,
) -> None:
    """Evaluate all twelve terms of the loss of PROBLEM, each with an estimate of its error.

    PROBLEM is a JSON file, the folder of a fit, or - for JSON on standard input.

    \b
    elbotree evaluate problem.json --tol 1e-8 --format json
    elbotree evaluate problem.json --check-samples 200000
    """
    import elbotree
    from elbotree.sources import problem_at

    given = problem_at(problem)
    with _progress("evaluating the loss tree"), _executor(scheduler) as executor:
        memory = None if max_memory is None else max_memory * 2**20
        values = elbotree.evaluate(given, tol, method, check_samples, eps, seed, max_seconds, memory, executor=executor)
    _print_values(values, style)


@main.command(short_help="Fit a feature model and its encoder to a layer's output.")
@click.argument("problem", type=_PATH)
@click.option("--features", type=int, help="Features of the model.  [default: those of the input, and one along w]")
@click.option(
    "--family",
    default="tilted",
    show_default=True,
    help="Posterior family of all features, or one each, comma-separated.",
)
@click.option(
    "--prior",
    default="parametric",
    show_default=True,
    help="Form of the priors of tilted features: parametric or binned, for all or one each, comma-separated.",
)
@click.option("--starts", type=int, default=1, show_default=True, help="Starts, the best of which is kept.")
@click.option(
    "--tol", type=float, default=1e-4, show_default=True, help="Tolerance of each term at the end of the fit."
)
@click.option(
    "--iterations",
    type=int,
    default=200,
    show_default=True,
    help="Bound on the iterations of each leg; of a network, none unless asked for.",
)
@click.option("--noise-floor", type=float, help="The least sigma2.  [default: from the output's law]")
@click.option("--prune", is_flag=True, help="Leave features out that died.")
@click.option("--out", type=_PATH, help="Folder to save the fit in (cfg.json, model.safetensors).")
@click.option(
    "--checkpoint", type=_PATH, help="Folder to keep the run's state in, to go on from after an interruption."
)
@click.option("--resume", is_flag=True, help="Go on from --checkpoint, if there is one, to the same final numbers.")
@click.option("--input", "given", type=_PATH, help="Of a network: a JSON file whose `input` models what goes in.")
@click.option(
    "--method",
    type=click.Choice(["fit", "mean-prop", "cov-prop", "sampling"]),
    default="fit",
    show_default=True,
    help="Of a network: how each layer's model is made.",
)
@click.option("--check-samples", type=int, metavar="N", help="Of a network: measure drift on N rows sent through it.")
@_SCHEDULER
@_FORMAT
def fit(
    problem: Path,
    features: int | None,
    family: str,
    prior: str,
    starts: int,
    tol: float,
    iterations: int,
    noise_floor: float | None,
    prune: bool,
    out: Path | None,
    checkpoint: Path | None,
    resume: bool,
    given: Path | None,
    method: str,
    check_samples: int | None,
    scheduler: str | None,
    style: str,
) -> None:
    """Fit a feature model and its encoder to the output of the layer in PROBLEM, or a model to every layer of a network.

    PROBLEM is a JSON file with `layer` and `input`; a `model` and an `encoder` in it are left alone. Or it is an ONNX file
    (needs the extra `onnx`), with --input.

    \b
    elbotree fit problem.json --features 8 --family tilted --out fitted
    elbotree fit problem.json --out fitted --checkpoint state --resume
    elbotree fit problem.json --family bernoulli --starts 2 --prune
    elbotree fit network.onnx --input problem.json --check-samples 20000 --out chain
    """
    import elbotree
    from elbotree.fitting import read_layer_and_input
    from elbotree.runtime.storage import check_writable

    if resume and checkpoint is None:
        raise click.UsageError("--resume needs --checkpoint, the folder to go on from.")
    if problem.suffix == ".onnx":
        if given is None:
            raise click.UsageError("a network needs --input, a JSON file with the model of what goes in.")
        asked = click.get_current_context().get_parameter_source("iterations")
        steps = 0 if asked is click.core.ParameterSource.DEFAULT else iterations
        _fit_network(
            problem, given, method, features, steps, tol, check_samples, out, checkpoint, resume, scheduler, style
        )
        return
    layer, p1 = read_layer_and_input(problem)
    if out is not None:
        check_writable(out)  # before the work, not after it
    history: list[Step] = []
    try:
        with _progress("fitting") as tell, _executor(scheduler) as executor:
            fitted = elbotree.fit(
                layer,
                p1,
                features,
                _one_or_each(family),
                tol,
                iterations=iterations,
                prior=_one_or_each(prior),
                starts=starts,
                noise_floor=noise_floor,
                progress=lambda step: tell(_step_text(step, history, tol)),
                checkpoint=checkpoint,
                resume=resume,
                executor=executor,
            )
    except KeyboardInterrupt:
        if checkpoint is not None:
            _note(f"interrupted after iteration {len(history)}; go on with --checkpoint {checkpoint} --resume")
        raise
    if fitted.dead:
        _note(f"features that died: {', '.join(map(str, fitted.dead))}{'' if prune else ' (--prune leaves them out)'}")
    if prune:
        fitted = fitted.pruned()
    if out is not None:
        fitted.save(out)
        _note(f"saved the fit in {out}")
    if starts > 1:
        for start in fitted.starts:
            _note(f"{'kept' if start.kept else '    '}  L = {start.loss:.6f}  {start.name}")
    _note(fitted.message)
    _print_values(fitted.values, style)


def _executor(address: str | None) -> contextlib.AbstractContextManager[Executor | None]:
    """The executor of a Dask scheduler; none without an address."""
    if address is None:
        return contextlib.nullcontext()
    from elbotree.cluster import scheduler

    return scheduler(address)


def _one_or_each(text: str) -> str | list[str]:
    """One word, or several between commas."""
    names = [name.strip() for name in text.split(",")]
    return names[0] if len(names) == 1 else names


def _fit_network(
    network: Path,
    given: Path,
    method: str,
    features: int | None,
    iterations: int,
    tol: float,
    check_samples: int | None,
    out: Path | None,
    checkpoint: Path | None,
    resume: bool,
    scheduler: str | None,
    style: str,
) -> None:
    """`fit` on a network; without iterations its models are made in closed form."""
    import elbotree
    from elbotree.networks import read_input
    from elbotree.runtime.storage import check_writable

    p1, layers = read_input(given), elbotree.compile_network(network)
    if out is not None:
        check_writable(out)
    with _progress("fitting") as tell, _executor(scheduler) as executor:
        chain = elbotree.fit_network(
            layers,
            p1,
            method=method,
            tol=tol,
            features=24 if features is None else features,
            iterations=iterations,
            check_samples=check_samples,
            progress=lambda number, model: tell(f"layer {number} of {len(layers)}, {model.m} features"),
            checkpoint=checkpoint,
            resume=resume,
            executor=executor,
        )
    if out is not None:
        chain.save(out)
        _note(f"saved the chain in {out}")
    _print(json.dumps(chain.to_dict()) if style == "json" else str(chain))


@main.command(short_help="Draw rows from an input, an output or a model.")
@click.argument("source", type=_PATH)
@click.option("-n", "--rows", "count", type=click.IntRange(min=1), default=10, show_default=True, help="How many rows.")
@_OF
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@_FORMAT
def sample(source: Path, count: int, which: str | None, seed: int, style: str) -> None:
    """Draw rows from a law, as CSV without a header, from SOURCE: a problem's JSON file or a folder of a fit or a chain.

    \b
    elbotree sample fitted -n 1000 > rows.csv
    elbotree sample problem.json -n 5 --of input
    """
    import numpy as np

    from elbotree.sources import law_of, read_source

    model, layers = law_of(read_source(source), which)
    rows = model.sample(count, np.random.default_rng(seed))
    for layer in layers:
        rows = layer(rows)
    if style == "json":
        _print(json.dumps({"seed": seed, "rows": rows.tolist()}))
    else:
        np.savetxt(sys.stdout, rows, delimiter=",", fmt="%.17g")


@main.command(short_help="P(<v, x> > x0), however rare.")
@click.argument("source", type=_PATH)
@click.option("--row", required=True, metavar="V", help="The read-out v of P(<v, x> > x0), comma-separated.")
@click.option("--above", required=True, metavar="X0", help="One threshold, or several, comma-separated.")
@_OF
@click.option("--tol", type=float, default=1e-10, show_default=True, help="Error allowed, relative to the probability.")
@click.option(
    "--check-samples",
    type=int,
    metavar="N",
    help="Set an estimate by importance sampling of N rows beside it: of what the layers themselves make of the input.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the check's samples.")
@_FORMAT
def tail(
    source: Path,
    row: str,
    above: str,
    which: str | None,
    tol: float,
    check_samples: int | None,
    seed: int,
    style: str,
) -> None:
    """Probability that a read-out exceeds a threshold, to relative accuracy however rare the event.

    SOURCE is a problem's JSON file, or the folder of a fit or of a chain. Of a chain's last model, the drift is set beside
    it.

    \b
    elbotree tail problem.json --row 1,0 --above 2.5
    elbotree tail fitted --row=0.5,-1 --above 3,4,5 --tol 1e-8 --format json
    elbotree tail problem.json --row 1,0 --above 2.5 --check-samples 20000
    """
    import elbotree
    from elbotree.sources import check_row, law_of, one_layer, read_source

    v, points = _numbers(row, "--row"), _numbers(above, "--above")
    found_in = read_source(source)
    model, layers = law_of(found_in, which)
    check_row(v, model, layers)
    law = elbotree.joint(one_layer(layers), model, v) if layers else model.marginal(v)
    found = law.tail(points, tol=tol)
    columns = {
        "x": points,
        "p": found.value.tolist(),
        "error": found.error.tolist(),
        "log_p": found.log_value.tolist(),
        "relative_error": found.relative_error.tolist(),
    }
    checks: list[dict[str, Any]] = []
    if check_samples is not None:
        _, through = law_of(found_in, "input" if which == "input" else "output")
        start, _ = law_of(found_in, "input")
        checks = [
            check.to_dict() for check in elbotree.sampled_tails(through, start, v, points, check_samples, seed=seed)
        ]
    drift = found_in.drift[-1] if isinstance(found_in, elbotree.Chain) and which in (None, "model") else None
    if style == "json":
        shown_drift = None if drift is None else drift.to_dict()
        _print(json.dumps({"row": v, "tol": tol, "tails": columns, "checks": checks, "drift": shown_drift}))
        return
    shown = zip(*(columns[name] for name in ("x", "p", "error", "log_p")), strict=True)
    lines: list[tuple[str, ...]] = [
        (f"{x:.6g}", f"{p:.16g}", f"{error:.1e}", f"{log_p:.14g}") for x, p, error, log_p in shown
    ]
    head: tuple[str, ...] = ("x", "P(> x)", "error", "log P")
    if checks:
        head = (*head, "sampled", "its error", "effective")
        sampled = [(f"{c['value']:.6g}", f"{c['std_error']:.1e}", f"{c['effective_samples']:.0f}") for c in checks]
        lines = [(*line, *more) for line, more in zip(lines, sampled, strict=True)]
    _print_table(head, lines, style)
    if drift is not None:
        _print(f"the last model: {drift}")


def _numbers(text: str, option: str) -> list[float]:
    """Comma-separated numbers of an option, or a mistake that says which is none."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            raise _Mistake(
                f"{option} holds {part.strip()!r}, which is not a number; give numbers like 1,0,-0.5"
            ) from None
    return found


@main.command(name="compile", short_help="Plan a network as a chain of layers.")
@click.argument("network", type=_PATH)
@_FORMAT
def compile_(network: Path, style: str) -> None:
    """Plan a network as a chain of layers of the paper's form: widths, steps, estimated cost.

    NETWORK is an ONNX file (needs the extra `onnx`).

    \b
    elbotree compile network.onnx
    """
    import elbotree

    plan = elbotree.plan_network(network)
    _print(json.dumps(plan.to_dict()) if style == "json" else str(plan))


@main.command(short_help="Write one HTML page about a problem, a fit or a chain.")
@click.argument("source", type=_PATH)
@click.option("--out", type=_PATH, help="The page to write.  [default: report.html in the folder, or beside the file]")
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
@_FORMAT
def report(
    source: Path, out: Path | None, tol: float | None, check_samples: int | None, seed: int, read_outs: int, style: str
) -> None:
    """Write one self-contained HTML page about SOURCE: a problem's JSON file, or the folder of a fit or of a chain.

    \b
    elbotree report fitted --check-samples 200000
    elbotree report problem.json --out page.html
    """
    from elbotree.report import report_on

    with _progress("evaluating and writing"):
        written = report_on(source, out, tol=tol, check_samples=check_samples, seed=seed, read_outs=read_outs)
    if style == "json":
        _print(json.dumps({"written": str(written)}))
    else:
        _note(f"wrote {written}")


@main.command(short_help="Versions, threads, extras, and a self-check.")
@_FORMAT
def doctor(style: str) -> None:
    """Tell versions, threads and extras, and evaluate a few problems whose numbers are known (about ten seconds).

    \b
    elbotree doctor --format json
    """
    from elbotree.diagnosis import diagnose

    with _progress("evaluating problems whose numbers are known"):
        findings = diagnose()
    check = findings["self-check"]
    if style == "json":
        _print(json.dumps(findings, indent=2))
    else:
        facts = {key: value for key, value in findings.items() if key != "self-check"}
        for key, value in facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            _print(f"{key:<12} {shown}")
        lines = [(part["name"], f"{part['worst']:.1e}", f"{part['seconds']:.2f} s") for part in check["problems"]]
        _print_table(("self-check", "worst error", "time"), lines, style)
        _print(f"{'passed' if check['passed'] else 'FAILED'}: errors up to {check['allowed']:g} are allowed")
    if not check["passed"]:
        raise _Mistake("the self-check's numbers are wrong here: this installation is not to be trusted")


@main.command(short_help="Print a small problem to start from.")
def example() -> None:
    """Print a small problem, to see what a problem file holds and to try the other verbs on.

    \b
    elbotree example > problem.json
    """
    from importlib.resources import files

    click.echo(files("elbotree").joinpath("example.json").read_text(encoding="utf-8"), nl=False)


@main.command(short_help="Print the script for shell completion.")
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
    _print(found(main, {}, "elbotree", "_ELBOTREE_COMPLETE").source())


def _print(text: str) -> None:
    click.echo(text)


def _step_text(step: Step, history: list[Step], tol: float) -> str:
    """The loss, how fast it falls and how long an iteration takes, and how long it may still take; keeps the step."""
    from elbotree.runtime.training import time_left

    before = history[-1].loss if history and history[-1].leg == step.leg else step.loss
    history.append(step)
    left = time_left(history, step.tol)
    remaining = "" if left is None else f", about {left:.0f} s left" + ("" if step.tol <= tol else " at this tolerance")
    return (
        f"iteration {step.iteration}, L = {step.loss:.6f} ({step.loss - before:+.1e}), tolerance {step.tol:.0e}, "
        f"{step.duration:.2g} s an iteration, {step.seconds:.0f} s so far{remaining}"
    )


def _note(text: str) -> None:
    """Say something about the work itself, away from the results."""
    click.echo(text, err=True)


def _print_values(values: Values, style: str) -> None:
    if style == "json":
        _print(json.dumps(values.to_dict(), indent=2, allow_nan=False))
    elif style == "plain" or not sys.stdout.isatty():
        _print(str(values))
    else:
        _print_whole(_rich_table(values))


def _print_whole(table: Table) -> None:
    """Print a table at its own width: where the terminal is narrower it wraps lines, rather than to lose digits."""
    from rich.console import Console

    console = _console()
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    if needed > console.width:
        console = Console(width=needed, highlight=False)
    console.print(table, soft_wrap=False, crop=False, overflow="ignore", no_wrap=True)


def _rich_table(values: Values) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head, *rows = values.cells()
    drawn = Table(box=box.SIMPLE_HEAD, caption=values.caption(), caption_justify="left")
    for position, cell in enumerate(head):
        drawn.add_column(cell, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        term, number, error, *others = row
        name = Text(term)
        name.stylize("bold cyan", len(term.rstrip("LRSTU123")))
        drawn.add_row(name, Text(number, "bold"), Text(error, "dim"), *others)
    return drawn


def _print_python(source: str, style: str) -> None:
    """Source text: in colours on a terminal."""
    if style == "rich" and sys.stdout.isatty():
        from rich.syntax import Syntax

        _console().print(Syntax(source, "python", theme="ansi_dark", background_color="default"), soft_wrap=True)
    else:
        _print(source)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> None:
    """Columns, the first one left-aligned: ruled on a terminal, plain text elsewhere."""
    if style == "rich" and sys.stdout.isatty():
        from rich import box
        from rich.table import Table

        drawn = Table(box=box.SIMPLE_HEAD)
        for position, cell in enumerate(head):
            drawn.add_column(cell, justify="left" if position == 0 else "right", no_wrap=True)
        for row in rows:
            drawn.add_row(*row)
        _print_whole(drawn)
        return
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    for first, *others in [head, *rows]:
        _print(
            "  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))])
        )


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Any]:
    """A spinner on standard error when that is a terminal, else nothing. Yields what shows a line of news there."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with _console(stderr=True).status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")


if __name__ == "__main__":
    main()
