"""The verbs `evaluate` and `fit`: the loss of a problem, and models of layers and of networks."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from elbotree.verbs.options import FORMAT, PATH, SCHEDULER
from elbotree.verbs.screen import note, progress, say, show_values

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from elbotree.runtime.checkpoints import Step


@click.command(short_help="The twelve terms of the loss, each with its error.")
@click.argument("problem", type=PATH)
@click.option("--tol", type=float, help="Error allowed at each term, relative to max(1, |value|).  [default: 1e-6]")
@click.option("--method", type=click.Choice(["spectral", "grid"]), default="spectral", show_default=True)
@click.option("--eps", type=float, help="Width of the grid's bins (with --method grid).")
@click.option("--check-samples", type=int, metavar="N", help="Set a check by N samples beside the values.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the check's samples.")
@click.option("--max-seconds", type=float, help="Refuse, before the work, what is estimated to take longer.")
@click.option(
    "--max-memory", type=float, metavar="MIB", help="Refuse, before the work, what is estimated to take more."
)
@SCHEDULER
@FORMAT
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
    with progress("evaluating the loss tree"), _executor(scheduler) as executor:
        memory = None if max_memory is None else max_memory * 2**20
        values = elbotree.evaluate(given, tol, method, check_samples, eps, seed, max_seconds, memory, executor=executor)
    show_values(values, style)


@click.command(short_help="Fit a feature model and its encoder to a layer's output.")
@click.argument("problem", type=PATH)
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
@click.option("--starts", type=int, help="Starts, the best of which is kept.  [default: by the number of features]")
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
@click.option("--out", type=PATH, help="Folder to save the fit in (cfg.json, model.safetensors).")
@click.option("--checkpoint", type=PATH, help="Folder to keep the run's state in, to go on from after an interruption.")
@click.option("--resume", is_flag=True, help="Go on from --checkpoint, if there is one, to the same final numbers.")
@click.option("--input", "given", type=PATH, help="Of a network: a JSON file whose `input` models what goes in.")
@click.option(
    "--method",
    type=click.Choice(["fit", "mean-prop", "cov-prop", "sampling"]),
    default="fit",
    show_default=True,
    help="Of a network: how each layer's model is made.",
)
@click.option("--check-samples", type=int, metavar="N", help="Of a network: measure drift on N rows sent through it.")
@SCHEDULER
@FORMAT
def fit(
    problem: Path,
    features: int | None,
    family: str,
    prior: str,
    starts: int | None,
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
    from elbotree.runtime.errors import ToleranceError
    from elbotree.runtime.storage import check_writable
    from elbotree.sources import layer_and_input

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
    layer, p1 = layer_and_input(problem)
    if out is not None:
        check_writable(out)  # before the work, not after it
    history: list[Step] = []
    try:
        with progress("fitting") as tell, _executor(scheduler) as executor:
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
                progress=lambda step: tell(step_text(step, history, tol)),
                checkpoint=checkpoint,
                resume=resume,
                executor=executor,
            )
    except KeyboardInterrupt:
        if checkpoint is not None:
            note(f"interrupted after iteration {len(history)}; go on with --checkpoint {checkpoint} --resume")
        raise
    if fitted.dead:
        note(f"features that died: {', '.join(map(str, fitted.dead))}{'' if prune else ' (--prune leaves them out)'}")
    if prune:
        fitted = fitted.pruned()
    if out is not None:
        fitted.save(out)
        note(f"saved the fit in {out}")
    if len(fitted.starts) > 1:
        aside = 0
        for start in fitted.starts:
            if start.loss is None:
                aside += 1
                continue
            note(f"{'kept' if start.kept else '    '}  L = {start.loss:.6f}  {start.name}")
        if aside:
            note(f"      {aside} other starts have no loss; cfg.json and `Fit.starts` say why")
    note(fitted.message)
    if fitted.bound is not None:
        note(f"bound: {fitted.bound}")
    show_values(fitted.values, style)
    loss = fitted.values["L"]
    if fitted.bound is not None and (broken := fitted.bound.broken_by(loss.value, loss.error)):
        raise ToleranceError(f"{broken}: its error is estimated too small; give another --tol")
    fitted.values.require(tol)


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
    with progress("fitting") as tell, _executor(scheduler) as executor:
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
        note(f"saved the chain in {out}")
    say(json.dumps(chain.to_dict()) if style == "json" else str(chain))


def step_text(step: Step, history: list[Step], tol: float) -> str:
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
