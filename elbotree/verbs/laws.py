"""The verbs `sample` and `tail`: draws and probabilities."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from elbotree.verbs.options import FORMAT, OF, PATH
from elbotree.verbs.screen import Mistake, say, show_table


@click.command(short_help="Draw rows from an input, an output or a model.")
@click.argument("source", type=PATH)
@click.option("-n", "--rows", "count", type=click.IntRange(min=1), default=10, show_default=True, help="How many rows.")
@OF
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@FORMAT
def sample(source: Path, count: int, which: str | None, seed: int, style: str) -> None:
    """Draw rows from a law, as CSV without a header, from SOURCE: a problem's JSON file (`layer`
    and `input` will do) or a folder of a fit or a chain.

    \b
    elbotree sample fitted -n 1000 > rows.csv
    elbotree sample problem.json -n 5 --of input
    """
    import numpy as np

    from elbotree.runtime.arguments import MOST_ROWS, check_count
    from elbotree.sources import law_of, read_law_source

    check_count("rows", count, 1, MOST_ROWS)
    model, layers = law_of(read_law_source(source), which)
    rows = model.sample(count, np.random.default_rng(seed))
    for layer in layers:
        rows = layer(rows)
    if style == "json":
        say(json.dumps({"seed": seed, "rows": rows.tolist()}))
    else:
        np.savetxt(sys.stdout, rows, delimiter=",", fmt="%.17g")


@click.command(short_help="P(<v, x> > x0), however rare.")
@click.argument("source", type=PATH)
@click.option("--row", required=True, metavar="V", help="The read-out v of P(<v, x> > x0), comma-separated.")
@click.option("--above", required=True, metavar="X0", help="One threshold, or several, comma-separated.")
@OF
@click.option("--tol", type=float, default=1e-10, show_default=True, help="Error allowed, relative to the probability.")
@click.option(
    "--check-samples",
    type=int,
    metavar="N",
    help="Set an estimate by importance sampling of N rows beside it: of what the layers themselves make of the input.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the check's samples.")
@FORMAT
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

    SOURCE is a problem's JSON file (`layer` and `input` will do), or the folder of a fit or of a chain. Of a chain's last
    model, the drift is set beside it.

    \b
    elbotree tail problem.json --row 1,0 --above 2.5
    elbotree tail fitted --row=0.5,-1 --above 3,4,5 --tol 1e-8 --format json
    elbotree tail problem.json --row 1,0 --above 2.5 --check-samples 20000
    """
    import elbotree
    from elbotree.sources import check_row, law_of, one_layer, read_law_source

    v, points = _numbers(row, "--row"), _numbers(above, "--above")
    found_in = read_law_source(source)
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
        say(json.dumps({"row": v, "tol": tol, "tails": columns, "checks": checks, "drift": shown_drift}))
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
    show_table(head, lines, style)
    if drift is not None:
        say(f"the last model: {drift}")


def _numbers(text: str, option: str) -> list[float]:
    """Comma-separated numbers of an option, or a mistake that says which is none."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            raise Mistake(
                f"{option} holds {part.strip()!r}, which is not a number; give numbers like 1,0,-0.5"
            ) from None
    return found
